//! A blob's bytes hashed on their way through, on a thread of their own: hashing takes about as long as all the rest of a
//! transfer, and so runs beside it.
//!
//! What was hashed can be taken back to where a target stands after a break: a state is kept every few MiB.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::error::CopyError;
use crate::oci::{Algorithm, Digest, Hasher};

/// The distance between two states, in bytes: what has to be read again after a break at most.
const STATE_EVERY: u64 = 4 << 20;
/// States kept; a target that lost more than these cover begins anew.
const STATES_MAX: usize = 1024;
/// Pieces that wait for the thread; each is what one read of the source gave.
const PIECES_WAITING: usize = 3;

/// A hash with the states that it went through.
#[derive(Clone)]
pub(super) struct Hashing {
    hasher: Hasher,
    /// From the oldest to the newest.
    states: VecDeque<Hasher>,
}

impl Hashing {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        let hasher = Hasher::new(algorithm);
        Self { states: VecDeque::from([hasher.clone()]), hasher }
    }

    /// Bytes hashed.
    pub(super) fn position(&self) -> u64 {
        self.hasher.len()
    }

    /// Goes back to the last state at or before `position`. Returns where that is: everything from there on is to come
    /// again. `None`: there is no such state.
    pub(super) fn rewind(&mut self, position: u64) -> Option<u64> {
        if self.position() != position {
            while self.states.back().is_some_and(|state| state.len() > position) {
                self.states.pop_back();
            }
            self.hasher = self.states.back()?.clone();
        }
        Some(self.position())
    }

    pub(super) fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        if self.states.back().is_none_or(|state| self.hasher.len() - state.len() >= STATE_EVERY) {
            if self.states.len() == STATES_MAX {
                self.states.pop_front();
            }
            self.states.push_back(self.hasher.clone());
        }
    }
}

/// A [`Hashing`] on a thread. Dropping it ends the thread once what it was given is hashed, and loses the hash.
pub(super) struct HashThread {
    pieces: mpsc::Sender<Bytes>,
    thread: JoinHandle<Hashing>,
}

impl HashThread {
    /// To be called on a runtime, whose blocking pool has the thread.
    pub(super) fn start(mut hashing: Hashing) -> Self {
        let (pieces, mut received) = mpsc::channel::<Bytes>(PIECES_WAITING);
        let thread = tokio::task::spawn_blocking(move || {
            while let Some(piece) = received.blocking_recv() {
                hashing.update(&piece);
            }
            hashing
        });
        Self { pieces, thread }
    }

    /// Gives it the next bytes, once there is room.
    pub(super) async fn push(&self, bytes: Bytes) -> Result<(), CopyError> {
        self.pieces.send(bytes).await.map_err(|_| gone())
    }

    /// The hash of all that it was given.
    pub(super) async fn finish(self) -> Result<Hashing, CopyError> {
        drop(self.pieces);
        self.thread.await.map_err(|_| gone())
    }
}

fn gone() -> CopyError {
    CopyError::Unfit("the hashing thread died".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hash_goes_back_and_on_again() {
        let content: Vec<u8> = (0..STATE_EVERY * 3 + 5).map(|n| (n % 251) as u8).collect();
        let thread = HashThread::start(Hashing::new(Algorithm::Sha256));
        for piece in content.chunks(300_000) {
            thread.push(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        let mut hashing = thread.finish().await.unwrap();
        let expected = Digest::of(Algorithm::Sha256, &content);
        assert_eq!(hashing.digest(), expected);
        let end = content.len() as u64;
        assert_eq!(hashing.rewind(end), Some(end), "nothing to be done");
        for position in [end - 1, STATE_EVERY * 2, STATE_EVERY, 7, 0] {
            let from = hashing.rewind(position).unwrap();
            assert!(from <= position && position - from < STATE_EVERY + 300_000, "{from} {position}");
            hashing.update(&content[usize::try_from(from).unwrap()..]);
            assert_eq!(hashing.digest(), expected, "{position}");
        }
    }

    #[test]
    fn states_are_bounded() {
        let mut hashing = Hashing::new(Algorithm::Sha256);
        let piece = vec![0; 4 << 20];
        hashing.update(&piece);
        hashing.states = std::iter::repeat_n(hashing.hasher.clone(), STATES_MAX).collect();
        hashing.update(&piece);
        assert_eq!(hashing.states.len(), STATES_MAX);
        assert_eq!(hashing.rewind(1), None, "the beginning is forgotten");
    }
}
