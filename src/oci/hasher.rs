//! Hashing content as it passes, in a way that can be interrupted and taken up again.
//!
//! Two serialised forms of a running hash exist: [`Hasher::state`], the hash library's own, for fills; and
//! [`Hasher::hashstate`], the one that CNCF distribution keeps beside an upload session, so that an upload begun in one
//! program can be finished in the other. Whether a state may be *trusted* (was the data before it synced?) is the
//! caller's to decide; here it is only checked for form.

use std::fmt;

use sha2::digest::common::hazmat::{SerializableState, SerializedState};
use sha2::digest::{FixedOutput, Update};
use sha2::{Sha256, Sha512};

use super::digest::{Algorithm, Digest};

/// Names the form of [`Hasher::state`]; to be kept beside a stored state, and a state under any other tag to be dropped.
/// The hash library promises a stable form only within a minor version.
pub const STATE_TAG: &str = "sha2-0.11";

/// The longest content a restored state may claim, in bytes (1 EiB). Far above any file, and far enough below SHA-256's
/// limit of 2^61 bytes that a state which is nonsense cannot make the length overflow later.
const RESTORED_LEN_MAX: u64 = 1 << 60;

/// A hash under way.
///
/// Dropping it forgets the progress; nothing else is held.
#[derive(Clone)]
pub struct Hasher {
    state: State,
    /// Bytes hashed so far.
    len: u64,
}

#[derive(Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// A hash of nothing yet.
    pub fn new(algorithm: Algorithm) -> Hasher {
        let state = match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::default()),
            Algorithm::Sha512 => State::Sha512(Sha512::default()),
        };
        Hasher { state, len: 0 }
    }

    /// Which algorithm runs.
    pub fn algorithm(&self) -> Algorithm {
        match self.state {
            State::Sha256(_) => Algorithm::Sha256,
            State::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// Hashes the bytes that follow.
    pub fn update(&mut self, content: &[u8]) {
        match &mut self.state {
            State::Sha256(hash) => hash.update(content),
            State::Sha512(hash) => hash.update(content),
        }
        self.len += content.len() as u64;
    }

    /// Bytes hashed so far, those before a restore included.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was hashed yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The digest of everything hashed.
    pub fn finish(self) -> Digest {
        match self.state {
            State::Sha256(hash) => Digest::from_sha256(hash.finalize_fixed().into()),
            State::Sha512(hash) => Digest::from_sha512(hash.finalize_fixed().into()),
        }
    }

    /// The running hash as bytes, for [`Hasher::restore`]; to be stored together with [`STATE_TAG`].
    ///
    /// For SHA-256, 104 bytes: the chaining value (eight u32, little-endian), the number of whole blocks (u64,
    /// little-endian), the fill of the partial block (u8), and that block's 63 usable bytes, zero behind the fill. For
    /// SHA-512, 208 bytes: the same with u64 words, a u128 count and 127 bytes.
    pub fn state(&self) -> Vec<u8> {
        match &self.state {
            State::Sha256(hash) => hash.serialize().to_vec(),
            State::Sha512(hash) => hash.serialize().to_vec(),
        }
    }

    /// A hash that goes on where [`Hasher::state`] was taken, its length included.
    ///
    /// `None` if the bytes are not such a state: wrong size, a fill that does not fit the block, padding that is not
    /// zero, a length beyond reason, or a chaining value that no data has yet touched but that is not the initial one.
    /// Other corruption cannot be seen; it shows as a wrong digest at the end.
    pub fn restore(algorithm: Algorithm, state: &[u8]) -> Option<Hasher> {
        let shape = Shape::of(algorithm);
        let (chain, rest) = state.split_at_checked(shape.chain_len)?;
        let (blocks, rest) = rest.split_at_checked(shape.count_len)?;
        // Both counters are little-endian, so a count that fits 64 bits ends in zeros.
        let (blocks, high) = blocks.split_first_chunk::<8>()?;
        if high.iter().any(|&byte| byte != 0) {
            return None;
        }
        let len = u64::from_le_bytes(*blocks)
            .checked_mul(shape.block_len as u64)?
            .checked_add(u64::from(*rest.first()?))
            .filter(|len| *len <= RESTORED_LEN_MAX)?;
        if len < shape.block_len as u64 && !Hasher::new(algorithm).state().starts_with(chain) {
            return None;
        }
        let state = match algorithm {
            Algorithm::Sha256 => State::Sha256(deserialize(state)?),
            Algorithm::Sha512 => State::Sha512(deserialize(state)?),
        };
        Some(Hasher { state, len })
    }

    /// The running hash in the form of a `hashstates` file of CNCF distribution, which is Go's binary form: the magic
    /// `sha\x03` (SHA-512: `sha\x07`), the chaining value as eight big-endian words, the block buffer of 64 (128) bytes,
    /// zero behind its fill, and the length in bytes as big-endian u64; 108 (204) bytes in all.
    pub fn hashstate(&self) -> Vec<u8> {
        let shape = Shape::of(self.algorithm());
        let state = self.state();
        let (chain, rest) = state.split_at(shape.chain_len);
        // Behind the counter and the fill; the serialised block is one byte short, as a full block is never kept.
        let block = &rest[shape.count_len + 1..];

        let mut out = Vec::with_capacity(shape.hashstate_len());
        out.extend_from_slice(shape.magic);
        out.extend(chain.chunks(shape.word_len).flat_map(|word| word.iter().rev()));
        out.extend_from_slice(block);
        out.resize(out.len() + shape.block_len - block.len(), 0);
        out.extend_from_slice(&self.len.to_be_bytes());
        out
    }

    /// A hash that goes on where a `hashstates` file of CNCF distribution was written; see [`Hasher::hashstate`].
    ///
    /// `None` if the bytes are not such a state. What stands behind the fill of the block buffer is ignored, as Go does.
    pub fn from_hashstate(algorithm: Algorithm, hashstate: &[u8]) -> Option<Hasher> {
        let shape = Shape::of(algorithm);
        if hashstate.len() != shape.hashstate_len() {
            return None;
        }
        let rest = hashstate.strip_prefix(shape.magic)?;
        let (chain, rest) = rest.split_at(shape.chain_len);
        let (block, len) = rest.split_at(shape.block_len);
        let len = u64::from_be_bytes(len.try_into().ok()?);
        let fill = usize::try_from(len % shape.block_len as u64).ok()?;

        let mut state = Vec::with_capacity(shape.chain_len + shape.count_len + shape.block_len);
        state.extend(chain.chunks(shape.word_len).flat_map(|word| word.iter().rev()));
        state.extend_from_slice(&(len / shape.block_len as u64).to_le_bytes());
        state.resize(shape.chain_len + shape.count_len, 0);
        state.push(u8::try_from(fill).ok()?);
        state.extend_from_slice(&block[..fill]);
        state.resize(shape.chain_len + shape.count_len + shape.block_len, 0);
        Hasher::restore(algorithm, &state)
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hasher({}, {} bytes)", self.algorithm(), self.len)
    }
}

/// The measures of the serialised forms, in bytes.
struct Shape {
    magic: &'static [u8],
    word_len: usize,
    /// Eight words.
    chain_len: usize,
    /// The counter of whole blocks.
    count_len: usize,
    block_len: usize,
}

impl Shape {
    const fn of(algorithm: Algorithm) -> Shape {
        match algorithm {
            Algorithm::Sha256 => {
                Shape { magic: b"sha\x03", word_len: 4, chain_len: 32, count_len: 8, block_len: 64 }
            }
            Algorithm::Sha512 => {
                Shape { magic: b"sha\x07", word_len: 8, chain_len: 64, count_len: 16, block_len: 128 }
            }
        }
    }

    const fn hashstate_len(&self) -> usize {
        self.magic.len() + self.chain_len + self.block_len + size_of::<u64>()
    }
}

fn deserialize<H: SerializableState>(state: &[u8]) -> Option<H> {
    H::deserialize(&SerializedState::<H>::try_from(state).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hashed(algorithm: Algorithm, content: &[u8]) -> Hasher {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(content);
        hasher
    }

    fn content(len: usize) -> Vec<u8> {
        (0..=250u8).rev().cycle().take(len).collect()
    }

    #[test]
    fn known_answers() {
        // FIPS 180-4 examples.
        for (algorithm, expected) in [
            (Algorithm::Sha256, "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (
                Algorithm::Sha512,
                "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                 2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            ),
        ] {
            assert_eq!(hashed(algorithm, b"abc").finish().to_string(), expected);
        }
    }

    #[test]
    fn the_states_have_the_documented_form() {
        let state = hashed(Algorithm::Sha256, &content(64 + 5)).state();
        assert_eq!(state.len(), 104);
        assert_eq!(state[32..40], 1u64.to_le_bytes());
        assert_eq!(state[40], 5);
        assert_eq!(state[41..46], content(69)[64..]);
        assert!(state[46..].iter().all(|&byte| byte == 0));
        assert_eq!(hashed(Algorithm::Sha512, &content(300)).state().len(), 208);
    }

    #[test]
    fn the_hashstate_is_that_of_go() {
        // What Go's crypto/sha256 and crypto/sha512 give after one `a`.
        let mut expected = b"sha\x03\x6a\x09\xe6\x67\xbb\x67\xae\x85\x3c\x6e\xf3\x72\xa5\x4f\xf5\x3a\
            \x51\x0e\x52\x7f\x9b\x05\x68\x8c\x1f\x83\xd9\xab\x5b\xe0\xcd\x19a"
            .to_vec();
        expected.resize(107, 0);
        expected.push(1);
        assert_eq!(hashed(Algorithm::Sha256, b"a").hashstate(), expected);

        let long = hashed(Algorithm::Sha512, b"a").hashstate();
        assert_eq!(long.len(), 204);
        assert!(long.starts_with(b"sha\x07\x6a\x09\xe6\x67\xf3\xbc\xc9\x08\xbb\x67\xae\x85"));
        assert_eq!((long[68], long[203]), (b'a', 1));
    }

    #[test]
    fn restoring_goes_on_at_every_boundary() {
        for algorithm in Algorithm::ALL {
            for len in [0, 1, 63, 64, 65, 127, 128, 129, 191, 192, 255, 256, 1000] {
                let before = hashed(algorithm, &content(len));
                let whole = Digest::of(algorithm, &[content(len).as_slice(), b"tail"].concat());
                for restored in [
                    Hasher::restore(algorithm, &before.state()),
                    Hasher::from_hashstate(algorithm, &before.hashstate()),
                ] {
                    let mut restored = restored.expect("its own state");
                    assert_eq!(restored.len(), len as u64);
                    assert_eq!(restored.is_empty(), len == 0);
                    restored.update(b"tail");
                    assert_eq!(restored.finish(), whole, "{algorithm} at {len}");
                }
            }
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let good = hashed(Algorithm::Sha256, &content(70)).state();
        let with = |at: usize, value: u8| {
            let mut state = good.clone();
            state[at] = value;
            Hasher::restore(Algorithm::Sha256, &state)
        };
        assert!(with(40, 6).is_some());
        assert!(with(40, 5).is_none(), "a byte behind the fill");
        assert!(with(40, 64).is_none() && with(40, 255).is_none(), "a fill beyond the block");
        assert!(with(39, 1).is_none() && with(39, 255).is_none(), "a length beyond reason");
        assert!(with(32, 0).is_none(), "a chaining value before the first block");
        assert!(Hasher::restore(Algorithm::Sha512, &good).is_none());
        for len in 0..good.len() {
            assert!(Hasher::restore(Algorithm::Sha256, &good[..len]).is_none());
        }
        assert!(Hasher::restore(Algorithm::Sha256, &[good.as_slice(), &[0]].concat()).is_none());

        let mut wide = hashed(Algorithm::Sha512, &content(300)).state();
        wide[79] = 1;
        assert!(Hasher::restore(Algorithm::Sha512, &wide).is_none(), "a count of more than 64 bits");

        let go = hashed(Algorithm::Sha256, &content(70)).hashstate();
        assert!(Hasher::from_hashstate(Algorithm::Sha512, &go).is_none());
        assert!(Hasher::from_hashstate(Algorithm::Sha256, &go[1..]).is_none());
        let mut magic = go.clone();
        magic[3] = 2;
        assert!(Hasher::from_hashstate(Algorithm::Sha256, &magic).is_none());
        let mut dirty = go;
        dirty[4 + 32 + 63] = 7;
        let restored =
            Hasher::from_hashstate(Algorithm::Sha256, &dirty).expect("bytes behind the fill are ignored");
        assert_eq!(restored.finish(), Digest::of(Algorithm::Sha256, &content(70)));
    }

    proptest! {
        #[test]
        fn a_split_does_not_matter(data in proptest::collection::vec(any::<u8>(), 0..600), at in 0usize..600, wide: bool) {
            let algorithm = if wide { Algorithm::Sha512 } else { Algorithm::Sha256 };
            let at = at.min(data.len());
            let mut hasher = Hasher::restore(algorithm, &hashed(algorithm, &data[..at]).state()).unwrap();
            hasher.update(&data[at..]);
            prop_assert_eq!(hasher.len(), data.len() as u64);
            prop_assert_eq!(hasher.finish(), Digest::of(algorithm, &data));
        }

        #[test]
        fn whatever_is_restored_can_be_used(
            data in proptest::collection::vec(any::<u8>(), 104),
            tame in any::<[bool; 2]>(),
        ) {
            let mut data = data;
            if tame[0] { data[38..40].fill(0); }
            if tame[1] { data[40] = 0; data[41..].fill(0); }
            if let Some(mut hasher) = Hasher::restore(Algorithm::Sha256, &data) {
                prop_assert_eq!(hasher.state(), data);
                hasher.update(&[0; 1000]);
                let _ = hasher.finish();
            }
        }
    }
}
