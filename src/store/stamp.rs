//! A blob's time of modification: what it says to whoever removes blobs.
//!
//! The bytes of a blob never change, so its time of modification is free to say when somebody last relied on it. It is
//! set under the digest's lock before a client is answered, and read under the same lock before the blob is removed: so
//! whoever holds the lock and sees a time before the beginning of his own look at the tree knows that nobody has relied on
//! the blob since.
//!
//! There are two ways of relying on it, and the time tells them apart: a [promise](Stamp::Promised) has a fraction of a
//! microsecond, a [claim](Stamp::Claimed) has none. A promise that no manifest has followed up yet keeps a blob until it is
//! older than the collector's grace; a claim counts for as long as a manifest refers to the blob, so that removing the last
//! such manifest may remove the blob at once. What neither wrote (distribution, a copy of the tree) counts as a promise.
//! On a filesystem that keeps no fractions everything counts as a claim: then a push that reuses a blob while it is being
//! removed may have to be repeated, and nothing is lost.
//!
//! Everything here blocks and belongs on a store thread.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT, utimensat};

/// How a blob is relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stamp {
    /// A client was told that it is there, or has just sent it, and will name it in a manifest.
    Promised,
    /// A manifest that refers to it is there.
    Claimed,
}

/// When, and how, a blob was last relied on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamped {
    /// When; never before it happened, also where the filesystem keeps whole seconds only.
    pub(crate) at: SystemTime,
    pub(crate) how: Stamp,
}

/// Notes that a blob is relied on from now on. The caller has the digest's lock.
///
/// # Errors
/// The disk's: `NotFound` if there is no such blob, and whoever does not own the file may not set its times.
pub(crate) fn stamp(blob: &Path, how: Stamp) -> io::Result<()> {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let times = Timestamps { last_access: omit, last_modification: timespec(fraction(now(), how)) };
    Ok(utimensat(CWD, blob, &times, AtFlags::empty())?)
}

/// Reads what [`stamp`] wrote.
pub(crate) fn stamped(meta: &fs::Metadata) -> io::Result<Stamped> {
    let at = meta.modified()?;
    let nanoseconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    let how = if nanoseconds.is_multiple_of(1000) { Stamp::Claimed } else { Stamp::Promised };
    let at = if nanoseconds == 0 { at + Duration::from_nanos(999_999_999) } else { at };
    Ok(Stamped { at, how })
}

/// Gives a file, such as a manifest's link, the time of now.
pub(crate) fn touch(path: &Path) -> io::Result<()> {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let times = Timestamps { last_access: omit, last_modification: timespec(now()) };
    Ok(utimensat(CWD, path, &times, AtFlags::empty())?)
}

/// Since the epoch.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The time, or one less than a microsecond after it, that says how.
fn fraction(time: Duration, how: Stamp) -> Duration {
    let over = time.subsec_nanos() % 1000;
    match how {
        Stamp::Promised if over == 0 => time + Duration::from_nanos(1),
        Stamp::Claimed if over != 0 => time + Duration::from_nanos(u64::from(1000 - over)),
        _ => time,
    }
}

fn timespec(time: Duration) -> Timespec {
    let tv_sec = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timespec { tv_sec, tv_nsec: i64::from(time.subsec_nanos()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_tells_a_promise_from_a_claim_and_is_never_early() {
        let home = tempfile::tempdir().unwrap();
        let blob = home.path().join("data");
        fs::write(&blob, b"content").unwrap();
        for how in [Stamp::Promised, Stamp::Claimed, Stamp::Promised] {
            let before = SystemTime::now();
            stamp(&blob, how).unwrap();
            let read = stamped(&fs::metadata(&blob).unwrap()).unwrap();
            assert_eq!(read.how, how);
            assert!(read.at >= before);
        }
        for nanoseconds in [0, 1, 999, 1000, 1001, 999_999_999] {
            let time = Duration::new(7, nanoseconds);
            let (promise, claim) = (fraction(time, Stamp::Promised), fraction(time, Stamp::Claimed));
            assert!(promise.subsec_nanos() % 1000 != 0 && claim.subsec_nanos() % 1000 == 0);
            assert!(promise >= time && claim >= time && claim < time + Duration::from_micros(1));
        }
    }

    #[test]
    fn whole_seconds_stand_for_their_ends() {
        let home = tempfile::tempdir().unwrap();
        let blob = home.path().join("data");
        let file = fs::File::create(&blob).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(5)).unwrap();
        let read = stamped(&file.metadata().unwrap()).unwrap();
        assert_eq!(read.how, Stamp::Claimed);
        assert!(read.at > UNIX_EPOCH + Duration::from_millis(5999));
    }

    #[test]
    fn absent_blob_cannot_be_relied_on() {
        let error = stamp(Path::new("/nonexistent/blob"), Stamp::Promised).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
