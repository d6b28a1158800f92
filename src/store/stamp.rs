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
//! **Files of others.** Only its owner may give a file any time; who may write to it may give it the time of now, as the
//! kernel has it: that is a promise nearly always, which is safe, and a tick late, which is waited for. So a tree of another
//! user or of several, such as a docker-registry's, can be pushed to as long as its blobs can be written.
//!
//! Everything here blocks and belongs on a store thread.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, utimensat};
use rustix::io::Errno;

/// How often, and after what time, a file of another user is given the kernel's time until that has come to ours: a tick is
/// 10 ms at most.
const TICK_LOOKS_MAX: usize = 100;
const TICK_LOOK_EVERY: Duration = Duration::from_millis(1);

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
/// The disk's: `NotFound` if there is no such blob, `PermissionDenied` if it is another user's and may not be written.
pub(crate) fn stamp(blob: &Path, how: Stamp) -> io::Result<()> {
    set_modified(blob, |now| fraction(now, how))
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
    set_modified(path, |now| now)
}

/// Sets the time of modification to what `time` makes of that of now, or to now where only that is allowed.
fn set_modified(path: &Path, time: impl FnOnce(Duration) -> Duration) -> io::Result<()> {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let began = now();
    let times = Timestamps { last_access: omit, last_modification: timespec(time(began)) };
    match utimensat(CWD, path, &times, AtFlags::empty()) {
        Err(Errno::PERM) => set_to_now(path, UNIX_EPOCH + began),
        set => Ok(set?),
    }
}

/// Gives a file of another user the time of now, and not before `began`: the kernel's own clock is behind by a tick.
fn set_to_now(path: &Path, began: SystemTime) -> io::Result<()> {
    // Both, or the kernel wants an owner again.
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    for _ in 0..TICK_LOOKS_MAX {
        match utimensat(CWD, path, &times, AtFlags::empty()) {
            Err(Errno::PERM | Errno::ACCESS) => return Err(of_another(path)),
            set => set?,
        }
        if stamped(&fs::metadata(path)?)?.at >= began {
            return Ok(());
        }
        thread::sleep(TICK_LOOK_EVERY);
    }
    let message = format!("{}: the filesystem's clock is behind this machine's", path.display());
    Err(io::Error::other(message))
}

fn of_another(path: &Path) -> io::Error {
    let owner = match fs::metadata(path) {
        Ok(meta) => format!("user {}", meta.uid()),
        Err(error) => return error,
    };
    let message = format!(
        "{}: belongs to {owner} and cannot be written, so that nobody can note that it is needed: make it, and all of the \
         directory, the server's (chown -R), or let the server's group write to it (chmod -R g+w)",
        path.display()
    );
    io::Error::new(io::ErrorKind::PermissionDenied, message)
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
    use std::os::unix::fs::{PermissionsExt as _, chown};

    use super::*;
    use crate::sys::as_another;

    /// Nobody in particular.
    const USER: u32 = 54_321;

    #[test]
    fn blob_of_another_user_that_may_be_written_is_stamped_and_never_early() {
        let home = tempfile::tempdir().unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let blob = home.path().join("data");
        fs::write(&blob, b"content").unwrap();
        fs::set_permissions(&blob, fs::Permissions::from_mode(0o664)).unwrap();
        if chown(&blob, None, Some(USER)).is_err() {
            return;
        }
        as_another(USER, USER, || {
            for how in [Stamp::Promised, Stamp::Claimed] {
                let before = SystemTime::now();
                stamp(&blob, how).unwrap();
                assert!(stamped(&fs::metadata(&blob).unwrap()).unwrap().at >= before);
            }
            touch(&blob).unwrap();
        });
    }

    #[test]
    fn blob_of_another_user_that_may_not_be_written_is_named_with_the_remedy() {
        let home = tempfile::tempdir().unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let blob = home.path().join("data");
        fs::write(&blob, b"content").unwrap();
        fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).unwrap();
        let refused = as_another(USER, USER, || stamp(&blob, Stamp::Claimed).unwrap_err());
        let Some(error) = refused else { return };
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        for word in [blob.to_str().unwrap(), "belongs to user 0", "chown"] {
            assert!(error.to_string().contains(word), "{error}");
        }
    }

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
