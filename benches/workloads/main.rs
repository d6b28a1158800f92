//! What the parts of a request cost, each bench named by what it is a part of.
//!
//! ```sh
//! cargo bench --bench workloads                    # all
//! cargo bench --bench workloads -- hit request     # those whose path contains one of these words
//! ```
//!
//! | module | shows |
//! |---|---|
//! | `request` | what is done before and for an answer's head: checking a head, reading digests and ranges, answering |
//! | `store` | what a fill does with the bytes that come: hashing, writing, publishing |
//! | `fill` | what it takes to join a fill that is under way, and to follow it, for one reader among few or many |
//! | `listing` | a page of 100 out of 100,000 tags, or of 10,000 repositories |
//! | `hit` | one client's way to the running program and back, over loopback |
//!
//! A bench runs on one thread and shows times of the wall clock; the fastest is the one to compare, as noise only adds. They
//! are for the one who changes a part and wants to know what that did to it. What clients get from the whole program, at
//! which cost in CPU, and how that compares with other servers, is what `loadtest/` measures.
//!
//! `cargo test` runs each of them once, to see that they still work.

mod fill;
mod hit;
mod listing;
mod origin;
mod request;
mod store;
mod worker;

use std::fmt;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// A length in bytes, shown in KiB.
#[derive(Clone, Copy)]
struct Size(usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One unit for all, so that the output is sorted by length.
        write!(f, "{} KiB", self.0 / KIB)
    }
}

/// Bytes of no pattern, the same every time.
fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(len as u64).fill(&mut bytes);
    bytes
}

fn main() {
    divan::main();
}
