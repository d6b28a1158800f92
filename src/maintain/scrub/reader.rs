//! Reading one blob, paced and interruptible, and what that says about it.

use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::pace::Pace;
use super::{Cause, Stop};
use crate::oci::{Digest, Hasher, schema1};
use crate::sys::uncached::{Buffer, PIECE, Uncached};

/// A blob counts as this many bytes at least: finding a small file takes a disk as long as reading so much.
const BLOB_COST: u64 = 64 << 10;
/// How soon a scrub that waits for its turn notices that it is to end.
const STOP_EVERY: Duration = Duration::from_millis(50);
/// The largest manifest that is looked at for signatures, in bytes: what is ever accepted as one.
const SIGNED_MAX: u64 = 16 << 20;

/// What reading a blob once showed.
pub(super) enum Reading {
    Right,
    Wrong(Cause),
    Stopped,
}

/// Reads blobs, one after the other, at a bounded rate.
pub(super) struct Reader<'a> {
    pace: Pace,
    buffer: Buffer,
    stop: &'a Stop,
    /// Bytes read so far, since somebody took them.
    pub(super) bytes: u64,
}

impl<'a> Reader<'a> {
    /// At this rate, until it is told to end.
    pub(super) fn new(rate: NonZeroU64, stop: &'a Stop) -> Self {
        Self { pace: Pace::new(rate, Instant::now()), buffer: Buffer::new(), stop, bytes: 0 }
    }

    /// Reads all of a blob.
    ///
    /// # Errors
    /// Those that say nothing about the blob.
    pub(super) fn read(&mut self, mut file: Uncached, digest: &Digest) -> io::Result<Reading> {
        let len = file.file().metadata()?.len();
        let mut hasher = Hasher::new(digest.algorithm());
        loop {
            let offset = hasher.len();
            let cost = len.saturating_sub(offset).min(PIECE as u64);
            let cost = if offset == 0 { cost.max(BLOB_COST) } else { cost };
            let pause = self.pace.take(cost, Instant::now());
            if !self.wait(pause) {
                return Ok(Reading::Stopped);
            }
            match file.read_piece(offset, &mut self.buffer) {
                Ok(piece) => {
                    hasher.update(piece);
                    self.bytes += piece.len() as u64;
                    if piece.len() < PIECE {
                        break;
                    }
                }
                Err(error) if is_damage(&error) => {
                    return Ok(Reading::Wrong(Cause::Unreadable { offset, error }));
                }
                Err(error) => return Err(error),
            }
        }
        let actual = hasher.finish();
        Ok(if actual == *digest { Reading::Right } else { Reading::Wrong(Cause::Content(Box::new(actual))) })
    }

    /// Sleeps. `false`: it was told to end.
    pub(super) fn wait(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            if self.stop.is_set() {
                return false;
            }
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return true;
            }
            thread::sleep(rest.min(STOP_EVERY));
        }
    }
}

/// Whether it is a signed schema 1 manifest that has this digest.
pub(super) fn is_signed(path: &Path, digest: &Digest) -> bool {
    let is_small = fs::metadata(path).is_ok_and(|meta| meta.len() <= SIGNED_MAX);
    let payload = is_small.then(|| fs::read(path).ok()).flatten().and_then(|bytes| schema1::payload(&bytes));
    payload.is_some_and(|payload| Digest::of(digest.algorithm(), &payload) == *digest)
}

/// Whether the error is about what the disk holds, not about this process.
fn is_damage(error: &io::Error) -> bool {
    let damage = [libc::EIO, libc::EUCLEAN, libc::EBADMSG, libc::ENODATA, libc::EILSEQ, libc::EREMOTEIO];
    error.raw_os_error().is_some_and(|code| damage.contains(&code))
}
