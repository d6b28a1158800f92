//! What the process-level tests share: the program under test, its peers, and the tools that look at both.
//!
//! Everything here is threads and plain sockets, so that none of it shares a bug with what is tested. Every wait
//! is bounded by [`PATIENCE`], every process is ended by its own id, every port is the kernel's choice.

pub(crate) mod client;
pub(crate) mod containerd;
pub(crate) mod disk;
pub(crate) mod images;
pub(crate) mod inject;
pub(crate) mod listener;
pub(crate) mod origin;
pub(crate) mod plan;
pub(crate) mod process;
pub(crate) mod push;
pub(crate) mod registry;
pub(crate) mod relay;
pub(crate) mod request;
pub(crate) mod token;
pub(crate) mod tools;

use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256, Sha512};

pub(crate) const KIB: usize = 1024;
pub(crate) const MIB: usize = 1024 * KIB;

/// The longest that any single wait lasts. Generous: it bounds a hang and measures nothing.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Asks `probe` again until it has an answer; fails the test, naming `what`, after [`PATIENCE`].
pub(crate) fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(Instant::now() < deadline, "gave up waiting for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes that no compressor, and no accident, reproduces; the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// The digest of `bytes` as registries write it.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", data_encoding::HEXLOWER.encode(&Sha256::digest(bytes)))
}

/// `sha256:<hex>` without its algorithm.
pub(crate) fn hex(digest: &str) -> &str {
    digest.split_once(':').map_or(digest, |(_, hex)| hex)
}

/// The digest of `bytes` by the longer algorithm.
pub(crate) fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", data_encoding::HEXLOWER.encode(&Sha512::digest(bytes)))
}
