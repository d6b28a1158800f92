//! The vocabulary of the OCI distribution and image specifications.
//!
//! Owns: the names of things (digest, repository, tag, reference), the media types and their negotiation, the shape of
//! manifests, and the error codes a registry answers with. Everything here is pure: no I/O, no clocks, no shared state;
//! all types are `Send + Sync`, and dropping a value has no effect.
//!
//! Text from the network or from disk becomes one of these types at the edge (`"…".parse::<Digest>()`), so that what
//! travels inwards is already valid. In particular a [`RepositoryName`], a [`Tag`] and a [`Digest`] are safe as parts of
//! a path: none of them can be empty, hold a NUL, a backslash or a leading `/`, or have a component `.` or `..`.

pub mod descriptor;
pub mod digest;
pub mod error;
pub mod hasher;
pub mod image;
pub mod manifest;
pub mod media_type;
pub mod name;
pub mod pattern;
pub mod schema1;
mod spelling;

pub use descriptor::{Descriptor, Platform};
pub use digest::{Algorithm, Digest, InvalidDigest};
pub use error::{ErrorCode, error_body};
pub use hasher::Hasher;
pub use image::{ImageName, InvalidImageName};
pub use manifest::{InvalidManifest, Kind, Manifest};
pub use media_type::Accept;
pub use name::{
    InvalidName, InvalidReference, InvalidTag, REPOSITORY_NAME_LEN_MAX, Reference, RepositoryName, Tag,
};
pub use pattern::Pattern;

/// How much of a refused input an error message repeats, in characters.
const QUOTED_CHARS_MAX: usize = 100;

/// The refused input as an error message shows it: escaped (a log line stays one line, a terminal sees no control
/// codes), in quotes, cut after [`QUOTED_CHARS_MAX`] characters with the full length told.
fn quoted(input: &str) -> String {
    match input.char_indices().nth(QUOTED_CHARS_MAX) {
        None => format!("\"{}\"", input.escape_debug()),
        Some((cut, _)) => format!("\"{}…\" ({} bytes)", input[..cut].escape_debug(), input.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_escapes_and_cuts() {
        assert_eq!(quoted("a\n\u{1b}[1m\""), r#""a\n\u{1b}[1m\"""#);
        assert_eq!(quoted(&"é".repeat(100)), format!("\"{}\"", "é".repeat(100)));
        assert_eq!(quoted(&"é".repeat(101)), format!("\"{}…\" (202 bytes)", "é".repeat(100)));
    }
}
