//! What a person calls an image: `[host[:port]/]repository[:tag][@digest]`.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use super::digest::{Digest, InvalidDigest};
use super::name::{InvalidName, InvalidTag, RepositoryName, Tag};

/// An image, or a repository, as a person names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName {
    text: String,
    /// The repository: as it stands, if that is a name, else without the host. `host.example/a` is a name: only a port tells
    /// a host for certain.
    pub repository: RepositoryName,
    /// Which tag is meant.
    pub tag: Option<Tag>,
    /// Which manifest is meant.
    pub digest: Option<Digest>,
}

/// A text that names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidImageName {
    /// What stands before the tag is no repository's name.
    #[error(transparent)]
    Repository(#[from] InvalidName),
    /// What stands behind the colon is no tag.
    #[error(transparent)]
    Tag(#[from] InvalidTag),
    /// What stands behind the `@` is no digest.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
}

impl FromStr for ImageName {
    type Err = InvalidImageName;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        let (rest, digest) = match input.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (input, None),
        };
        // A colon before the last slash belongs to the host's port.
        let (name, tag) = match rest.rfind(':') {
            Some(colon) if !rest[colon..].contains('/') => (&rest[..colon], Some(rest[colon + 1..].parse()?)),
            _ => (rest, None),
        };
        let repository = match (name.parse(), name.split_once('/')) {
            (Err(_), Some((host, rest))) if is_host(host) => rest.parse()?,
            (whole, _) => whole?,
        };
        Ok(Self { text: input.to_owned(), repository, tag, digest })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether the first part of a name is a host: as docker tells, by a dot, a port, or its being this machine. `..` and the
/// like are no host's name.
fn is_host(part: &str) -> bool {
    let (host, has_port) = match part.rsplit_once(':') {
        Some((host, port)) if !part.ends_with(']') => match port.parse::<u16>() {
            Ok(_) => (host, true),
            Err(_) => return false,
        },
        _ => (part, false),
    };
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().is_ok();
    }
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        let is_inner = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        bytes.iter().all(is_inner) && !bytes.is_empty() && bytes[0] != b'-'
    };
    (has_port || host.contains('.') || host == "localhost") && host.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn images_as_people_name_them() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        let with_digest = format!("a/b@{digest}");
        let with_both = format!("host:5000/a/b:1@{digest}");
        for (text, repository, tag, has_digest) in [
            ("a", "a", None, false),
            ("a:1", "a", Some("1"), false),
            ("a/b/c:x-1.2", "a/b/c", Some("x-1.2"), false),
            ("localhost:5000/a", "a", None, false),
            ("localhost/a:1", "localhost/a", Some("1"), false),
            ("registry.example/a/b", "registry.example/a/b", None, false),
            ("[::1]:5000/a/b:1", "a/b", Some("1"), false),
            ("host:5000/a.b/c", "a.b/c", None, false),
            (&with_digest, "a/b", None, true),
            (&with_both, "a/b", Some("1"), true),
        ] {
            let image: ImageName = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(image.repository.as_str(), repository, "{text}");
            assert_eq!(image.tag.as_ref().map(Tag::as_str), tag, "{text}");
            assert_eq!(image.digest, has_digest.then_some(digest), "{text}");
            assert_eq!(image.to_string(), text);
        }
        for bad in [
            "../a",
            "./a",
            "-/a",
            ".:5000/a",
            "[x]:5000/a",
            "",
            "/",
            "a/",
            "/a",
            "A",
            "a:",
            "a:b:c",
            "a@sha256:0",
            "a@",
            "host:5000/",
            "host:5000/A",
            "..",
            "a/../b",
            "a:x/y",
        ] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad}");
        }
    }
}
