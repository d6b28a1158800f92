//! How far a growing file is written, and how it ended.
//!
//! One [`Writer`] (the leader of a fill) drives it; any number of [`Reader`]s, on any thread, follow it. The state is one
//! enum, so a reader cannot mistake "the writer is gone" for "the file is whole": a writer that is dropped without
//! [`Writer::verified`] leaves a failure behind. Every reader sees the same outcome, however late it looks.
//!
//! The watermark also holds the rule that makes streaming before verification safe: until the digest matched, the
//! last [`HELD_BACK`] bytes *of the file* are readable by nobody, ranges included.

use std::fmt;

use tokio::sync::watch;

/// How many bytes at the end of an unverified file are withheld from every reader, in bytes.
///
/// Small, so that a reader waits for the verdict with next to nothing left to send; any value from 1 byte to 1 MiB
/// keeps the promise that an unverified body is never complete.
pub const HELD_BACK: u64 = 64 * 1024;

/// The state of a growing file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress<E> {
    /// Nothing is known yet: the source has not answered.
    Waiting,
    /// `written` bytes are in the file. `length` is the announced total, if there is one; `written <= length`.
    Growing {
        /// Bytes written so far, contiguous from offset 0.
        written: u64,
        /// The announced total length in bytes.
        length: Option<u64>,
        /// The smallest length that the file may turn out to have, by whoever said one: its tail is withheld too, so
        /// that announcing too much does not set the true last bytes free.
        least: Option<u64>,
    },
    /// The file is whole and its digest matched.
    Verified {
        /// Total length in bytes.
        len: u64,
    },
    /// The file will not become whole.
    Failed(E),
}

impl<E> Progress<E> {
    /// How many bytes from offset 0 a reader may pass on now. Never decreases while the state is not `Failed`.
    pub fn readable(&self) -> u64 {
        match *self {
            Self::Waiting | Self::Failed(_) => 0,
            Self::Growing { written, length, .. } => {
                let safe = if length.is_some() { written } else { written.saturating_sub(HELD_BACK) };
                safe.min(self.tail().unwrap_or(u64::MAX))
            }
            Self::Verified { len } => len,
        }
    }

    /// The total length in bytes, if it is known.
    pub fn length(&self) -> Option<u64> {
        match *self {
            Self::Growing { length, .. } => length,
            Self::Verified { len } => Some(len),
            Self::Waiting | Self::Failed(_) => None,
        }
    }

    /// Where the withheld end of an unverified file begins, if that is known.
    pub fn tail(&self) -> Option<u64> {
        match *self {
            Self::Growing { length, least, .. } => {
                let shortest = length.into_iter().chain(least).min()?;
                Some(shortest.saturating_sub(HELD_BACK))
            }
            _ => None,
        }
    }

    /// Whether nothing more will happen.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Verified { .. } | Self::Failed(_))
    }
}

/// The writer went away without a verdict: its task was cancelled, or it panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abandoned;

impl fmt::Display for Abandoned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the fill ended without a verdict")
    }
}

impl std::error::Error for Abandoned {}

/// Makes a watermark in state [`Progress::Waiting`].
pub fn channel<E>() -> (Writer<E>, Reader<E>) {
    let (sender, receiver) = watch::channel(Progress::Waiting);
    (Writer { sender }, Reader { receiver })
}

/// The writing side. Dropping it without a verdict fails every reader with [`Abandoned`].
#[derive(Debug)]
pub struct Writer<E> {
    sender: watch::Sender<Progress<E>>,
}

impl<E> Writer<E> {
    /// Records that `written` bytes are in the file now. Call it after the write, never before.
    pub fn advance(&self, written: u64, length: Option<u64>, least: Option<u64>) {
        self.sender.send_replace(Progress::Growing { written, length, least });
    }

    /// The digest of all `len` bytes matched.
    pub fn verified(&self, len: u64) {
        self.sender.send_replace(Progress::Verified { len });
    }

    /// The file will not become whole.
    pub fn failed(&self, error: E) {
        self.sender.send_replace(Progress::Failed(error));
    }
}

/// The reading side; cheap to clone.
#[derive(Clone, Debug)]
pub struct Reader<E> {
    receiver: watch::Receiver<Progress<E>>,
}

impl<E: Clone + From<Abandoned>> Reader<E> {
    /// The state now. Does not mark it as seen.
    pub fn progress(&self) -> Progress<E> {
        let progress = self.receiver.borrow().clone();
        // has_changed errs only once the writer is gone; a state that is not final then is a failure.
        if !progress.is_final() && self.receiver.has_changed().is_err() {
            let last = self.receiver.borrow().clone();
            return if last.is_final() { last } else { Progress::Failed(Abandoned.into()) };
        }
        progress
    }

    /// Waits until `enough` holds of the state or the state is final, and returns the state.
    ///
    /// Cancel safe: nothing is consumed.
    pub async fn wait_until(&mut self, mut enough: impl FnMut(&Progress<E>) -> bool) -> Progress<E> {
        let reached = self.receiver.wait_for(|progress| progress.is_final() || enough(progress)).await;
        match reached {
            Ok(progress) => progress.clone(),
            Err(_gone) => Progress::Failed(Abandoned.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type State = Progress<Abandoned>;

    #[test]
    fn nothing_of_the_tail_is_readable_before_the_verdict() {
        let cases: [(u64, Option<u64>, Option<u64>, u64); 9] = [
            (0, Some(10), None, 0),
            (10, Some(10), None, 0),
            (HELD_BACK, Some(HELD_BACK + 1), None, 1),
            (HELD_BACK * 3, Some(HELD_BACK * 3), None, HELD_BACK * 2),
            (HELD_BACK, Some(HELD_BACK * 3), None, HELD_BACK),
            (HELD_BACK, None, None, 0),
            (HELD_BACK + 7, None, None, 7),
            (HELD_BACK * 3, Some(HELD_BACK * 4), Some(HELD_BACK * 2), HELD_BACK),
            (HELD_BACK * 3, None, Some(HELD_BACK * 2), HELD_BACK),
        ];
        for (written, length, least, readable) in cases {
            let state = State::Growing { written, length, least };
            assert_eq!(state.readable(), readable, "{state:?}");
        }
        assert_eq!(State::Verified { len: 10 }.readable(), 10);
        assert_eq!(State::Failed(Abandoned).readable(), 0);
    }

    #[tokio::test]
    async fn a_writer_that_vanishes_is_a_failure_for_early_and_late_readers() {
        let (writer, mut early) = channel::<Abandoned>();
        writer.advance(5, None, None);
        let waiting = tokio::spawn(async move { early.wait_until(|_| false).await });
        let mut late = Reader { receiver: writer.sender.subscribe() };
        drop(writer);
        assert_eq!(waiting.await.expect("the task does not panic"), Progress::Failed(Abandoned));
        assert_eq!(late.progress(), Progress::Failed(Abandoned));
        assert_eq!(late.wait_until(|_| false).await, Progress::Failed(Abandoned));
    }

    #[tokio::test]
    async fn a_verdict_survives_its_writer() {
        let (writer, mut reader) = channel::<Abandoned>();
        writer.verified(7);
        drop(writer);
        assert_eq!(reader.progress(), Progress::Verified { len: 7 });
        assert_eq!(reader.wait_until(|_| false).await, Progress::Verified { len: 7 });
    }
}
