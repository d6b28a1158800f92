//! What the OCI distribution specification's conformance suite checks, in its four categories, and what the protocol
//! asks for beyond it. Written anew from the specification (1.1.1, and what has come after it) and from a reading of
//! the suite, which is a program of its own in another language.
//!
//! [`data`] drives the suite's kinds of content through all four; the other modules hold the checks of one category.

mod data;
mod discovery;
mod limits;
mod management;
mod pull;
mod push;
mod sessions;
mod uploads;

use crate::support::process::Spliceway;
use crate::support::push::Repository;

/// A registry without upstreams, and a repository of it.
fn registry() -> (Spliceway, Repository) {
    let spliceway = Spliceway::start(|_| ());
    let repository = Repository::new(spliceway.addr(), "team/app");
    (spliceway, repository)
}

/// How a blob's bytes are given to the registry.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// POST, then PUT of all.
    Put,
    /// One POST.
    Post,
    /// Three chunks that say their place, then PUT of nothing.
    Chunks,
    /// As `Chunks`, the last chunk with the PUT.
    ChunksAndPut,
    /// One chunk of unknown length, then PUT of nothing.
    Stream,
}

const WAYS: [Way; 5] = [Way::Put, Way::Post, Way::Chunks, Way::ChunksAndPut, Way::Stream];
