//! A set of digests in little memory.

use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

use crate::oci::Digest;

/// A set of digests, of each of which 64 bits are kept under a key of this set's own. What was added is in it; something
/// else is only by accident (a chance of 1 in 10¹³ for each look at a set of a million), and by nobody's design.
///
/// About 18 bytes a digest.
#[derive(Debug, Default)]
pub struct Fingerprints {
    key: RandomState,
    set: HashSet<u64, BuildHasherDefault<Same>>,
}

impl Fingerprints {
    /// Adds a digest.
    pub fn insert(&mut self, digest: &Digest) {
        self.set.insert(self.key.hash_one(digest));
    }

    /// Whether it was added.
    pub fn contains(&self, digest: &Digest) -> bool {
        !self.set.is_empty() && self.set.contains(&self.key.hash_one(digest))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.set.len()
    }

    /// About what they take, in bytes.
    pub fn bytes(&self) -> usize {
        // A byte of its own for each place, of which one in eight stays free.
        self.set.capacity() * (size_of::<u64>() + 1) * 8 / 7
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }
}

/// A fingerprint is a hash already.
#[derive(Debug, Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn what_was_added_is_in_it_and_nothing_else() {
        let digest = |n: u32| Digest::of(Algorithm::Sha256, &n.to_le_bytes());
        let mut set = Fingerprints::default();
        assert!(set.is_empty() && !set.contains(&digest(0)));
        for n in (0..2000).chain(0..1000) {
            set.insert(&digest(n));
        }
        assert_eq!(set.len(), 2000);
        assert!((0..2000).all(|n| set.contains(&digest(n))));
        assert!(!(2000..4000).any(|n| set.contains(&digest(n))));
    }
}
