//! Blobs that are not what their names say, set aside.
//!
//! A blob's name promises its content. When the disk no longer holds that, the name has to go: whoever asks is told that
//! the blob is not there, which a client can cope with, instead of being sent wrong bytes under a digest. The file itself
//! is kept: `<root>/quarantine/<alg>/<hex>.<seconds>` (`seconds` after 1970). It may be all that is left of something
//! that was pushed, and it shows what happened to the disk. It is a plain file, to be looked at, copied back or removed.
//!
//! **How long.** What was set aside of `local` stays until somebody removes it. What was set aside of `cache` can be
//! fetched again and is kept for inspection only: at most [`AGE_MAX`] and [`BYTES_MAX`] ([`trim`]).
//!
//! **What survives a crash**: the blob has its name, or is set aside; in between a hard link may have it in both places,
//! and the next look sets the name aside again. Everything here takes the digest's lock, so nobody publishes or links
//! the digest meanwhile, and moves the file only if it is still the one that was looked at.
//!
//! Everything here blocks and belongs on a store thread.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::durable::{self, Syncs};
use super::ingest::lock_shard;
use super::layout::Layout;
use super::{Store, push, renew_generation};
use crate::oci::{Algorithm, Digest};

/// What was set aside of a tree that is fetched into is removed after this time.
pub const AGE_MAX: Duration = Duration::from_hours(30 * 24);
/// And the oldest of it when it takes more than this, in bytes.
pub const BYTES_MAX: u64 = 1 << 30;
/// How many names are tried for one file: it is set aside at most once a second, unless the clock stepped back.
const NAMES_MAX: u64 = 4096;
/// Digests that [`missing`] gives at most; the others are there when these are done with.
const MISSING_MAX: usize = 65_536;

/// Which file was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
}

impl From<&Metadata> for FileIdentity {
    fn from(meta: &Metadata) -> Self {
        Self { device: meta.dev(), inode: meta.ino() }
    }
}

/// One file that was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    digest: Digest,
    seconds: u64,
    path: PathBuf,
    len: u64,
}

/// Takes its name from the blob that `seen` was, and keeps the file. Where it is now; `None`: the name is gone or another
/// file's, which nobody has looked at.
///
/// # Errors
/// The disk's. The blob may still have its name then.
pub fn set_aside(store: &Store, digest: &Digest, seen: FileIdentity) -> io::Result<Option<PathBuf>> {
    let layout = store.layout();
    let path = layout.blob(digest);
    let _shard = lock_shard(layout, digest)?;
    let Some(meta) = still(&path, seen)? else { return Ok(None) };
    let aside = free_name(layout, digest)?;
    fs::rename(&path, &aside)?;
    if let Some(directory) = path.parent() {
        // Whatever else is in there stays, and the directory with it.
        let _ = fs::remove_dir(directory);
    }
    store.usage().removed(*digest, meta.len());
    forget(store, digest);
    moved(layout, digest, &path, &aside);
    Ok(Some(aside))
}

/// Puts a copy of what memory holds of the blob that `seen` was in its place: for a blob that the disk has wrong under
/// right pages. Where the file is now; `None` as of [`set_aside`].
///
/// # Errors
/// The disk's; `InvalidData` if memory does not hold it right either. The blob is as it was then.
pub fn rescue(store: &Store, digest: &Digest, seen: FileIdentity) -> io::Result<Option<PathBuf>> {
    let layout = store.layout();
    let path = layout.blob(digest);
    let copy = match push::copied(layout, &path, digest) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        copy => copy?,
    };
    let _shard = lock_shard(layout, digest)?;
    let Some(meta) = still(&path, seen)? else { return Ok(None) };
    // Its times say when it was used, and when it was last relied on; that is still so.
    let times = Timestamps {
        last_access: Timespec { tv_sec: meta.atime(), tv_nsec: meta.atime_nsec() },
        last_modification: Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() },
    };
    let aside = free_name(layout, digest)?;
    // The name always leads to one of the two: nobody finds the blob absent.
    fs::hard_link(&path, &aside)?;
    fs::rename(copy.path(), &path)?;
    // Not before: an old temporary file is swept.
    utimensat(CWD, &path, &times, AtFlags::empty())?;
    forget(store, digest);
    let mut replaced = Syncs::default();
    replaced.parents(&path, &layout.blobs())?;
    replaced.run()?;
    Ok(Some(aside))
}

/// Digests of which something was set aside and that are not held now, in order.
///
/// # Errors
/// A directory cannot be read.
pub fn missing(layout: &Layout) -> io::Result<Vec<Digest>> {
    let mut missing = Vec::new();
    for_each(layout, |entry| {
        if missing.len() < MISSING_MAX && !layout.blob(&entry.digest).try_exists()? {
            missing.push(entry.digest);
        }
        Ok(())
    })?;
    missing.sort_unstable();
    missing.dedup();
    Ok(missing)
}

/// Removes what is too old or too much of what was set aside, if it can be fetched again. The bytes freed.
///
/// # Errors
/// A directory cannot be read or a file not be removed.
pub fn trim(store: &Store) -> io::Result<u64> {
    if !store.options.evictable {
        return Ok(0);
    }
    let mut entries = Vec::new();
    for_each(store.layout(), |entry| {
        entries.push(entry);
        Ok(())
    })?;
    let mut freed = 0;
    for entry in too_many(entries, now(), BYTES_MAX) {
        durable::remove_file(&entry.path)?;
        freed += entry.len;
    }
    Ok(freed)
}

/// Those that are older than [`AGE_MAX`], and of the others the oldest, until the rest takes at most `bytes_max`.
fn too_many(mut entries: Vec<Entry>, now: u64, bytes_max: u64) -> Vec<Entry> {
    entries.sort_unstable_by_key(|entry| entry.seconds);
    let mut bytes: u64 = entries.iter().map(|entry| entry.len).sum();
    entries.retain(|entry| {
        let goes = now.saturating_sub(entry.seconds) > AGE_MAX.as_secs() || bytes > bytes_max;
        if goes {
            bytes -= entry.len;
        }
        goes
    });
    entries
}

/// What the name leads to, if that is the file that was looked at.
fn still(path: &Path, seen: FileIdentity) -> io::Result<Option<Metadata>> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some(meta).filter(|meta| FileIdentity::from(meta) == seen)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A name that nothing has. The caller has the digest's lock, so nothing gets it.
fn free_name(layout: &Layout, digest: &Digest) -> io::Result<PathBuf> {
    durable::create_dir_all(&layout.quarantine(digest.algorithm()))?;
    let first = now();
    for seconds in first..first.saturating_add(NAMES_MAX) {
        let path = layout.quarantined(digest, seconds);
        if !path.try_exists()? {
            return Ok(path);
        }
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{digest} was set aside too often")))
}

fn forget(store: &Store, digest: &Digest) {
    store.forget(digest);
    renew_generation();
}

/// Makes a move last. It is done in any case: a power cut could only bring the wrong blob back, to be found again.
fn moved(layout: &Layout, digest: &Digest, from: &Path, to: &Path) {
    let sync = || {
        durable::sync_parent(to)?;
        let mut left = Syncs::default();
        left.parents(from.parent().unwrap_or(from), &layout.blobs())?;
        left.run()
    };
    if let Err(error) = sync() {
        tracing::warn!(%digest, %error, "cannot make it last that a blob was set aside");
    }
}

fn for_each(layout: &Layout, mut visit: impl FnMut(Entry) -> io::Result<()>) -> io::Result<()> {
    for algorithm in Algorithm::ALL {
        let entries = match fs::read_dir(layout.quarantine(algorithm)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            // Something else that somebody put there is not ours.
            let Some((digest, seconds)) = name.to_str().and_then(|name| parsed(algorithm, name)) else {
                continue;
            };
            let Ok(meta) = entry.metadata() else { continue };
            visit(Entry { digest, seconds, path: entry.path(), len: meta.len() })?;
        }
    }
    Ok(())
}

fn parsed(algorithm: Algorithm, name: &str) -> Option<(Digest, u64)> {
    let (hex, seconds) = name.split_once('.')?;
    Some((format!("{algorithm}:{hex}").parse().ok()?, seconds.parse().ok()?))
}

/// Seconds after 1970; 0 before.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::store::StoreOptions;
    use crate::store::ingest::publish_small;

    fn tree(evictable: bool) -> (tempfile::TempDir, Store) {
        let root = tempfile::tempdir().unwrap();
        let options = StoreOptions { handles_max: NonZeroUsize::MIN, evictable };
        let store = Store::open(root.path(), options).unwrap();
        (root, store)
    }

    fn held(store: &Store, content: &[u8]) -> (Digest, FileIdentity) {
        let digest = Digest::of(Algorithm::Sha256, content);
        let added = publish_small(store.layout(), &digest, content).unwrap();
        store.usage().published(digest, added);
        let identity = FileIdentity::from(&fs::metadata(store.layout().blob(&digest)).unwrap());
        (digest, identity)
    }

    #[test]
    fn what_is_set_aside_has_no_name_any_more_and_keeps_its_bytes() {
        let (_root, store) = tree(false);
        let (digest, seen) = held(&store, b"content");
        let aside = set_aside(&store, &digest, seen).unwrap().unwrap();
        assert!(!store.layout().blob(&digest).parent().unwrap().exists());
        assert_eq!(fs::read(&aside).unwrap(), b"content");
        assert_eq!(store.usage().stored(), 0);
        assert_eq!(missing(store.layout()).unwrap(), [digest]);
        assert_eq!(set_aside(&store, &digest, seen).unwrap(), None, "it is gone");

        // Twice within a second: neither takes the other's place.
        let (_, seen) = held(&store, b"content");
        assert_eq!(missing(store.layout()).unwrap(), [], "it is held again");
        let second = set_aside(&store, &digest, seen).unwrap().unwrap();
        assert_ne!(aside, second);
        assert_eq!(missing(store.layout()).unwrap(), [digest]);
    }

    #[test]
    fn another_file_under_the_name_is_let_alone() {
        let (_root, store) = tree(false);
        let (digest, seen) = held(&store, b"content");
        let path = store.layout().blob(&digest);
        fs::write(path.with_extension("new"), b"content").unwrap();
        fs::rename(path.with_extension("new"), &path).unwrap();
        assert_eq!(set_aside(&store, &digest, seen).unwrap(), None);
        assert_eq!(rescue(&store, &digest, seen).unwrap(), None);
        assert!(path.exists());
        assert_eq!(missing(store.layout()).unwrap(), []);
    }

    #[test]
    fn a_rescued_blob_is_another_file_with_the_same_bytes() {
        let (_root, store) = tree(false);
        let (digest, seen) = held(&store, b"content");
        let path = store.layout().blob(&digest);
        let aside = rescue(&store, &digest, seen).unwrap().unwrap();
        assert_eq!(FileIdentity::from(&fs::metadata(aside).unwrap()), seen);
        assert_ne!(FileIdentity::from(&fs::metadata(&path).unwrap()), seen);
        assert_eq!(fs::read(&path).unwrap(), b"content");

        fs::write(&path, b"rubbish").unwrap();
        let seen = FileIdentity::from(&fs::metadata(&path).unwrap());
        assert_eq!(rescue(&store, &digest, seen).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(fs::read(&path).unwrap(), b"rubbish", "untouched");
    }

    #[test]
    fn only_what_can_be_fetched_again_is_removed_in_the_end() {
        let entry = |seconds, len| Entry {
            digest: Digest::of(Algorithm::Sha256, b"x"),
            seconds,
            path: PathBuf::from(seconds.to_string()),
            len,
        };
        let now = 2 * AGE_MAX.as_secs();
        let old = now - AGE_MAX.as_secs() - 1;
        let gone =
            too_many(vec![entry(now, 60), entry(now - 2, 30), entry(old, 1), entry(now - 1, 40)], now, 100);
        assert_eq!(gone, [entry(old, 1), entry(now - 2, 30)]);
        assert_eq!(too_many(vec![entry(now + 5, 100)], now, 100), []);

        for (evictable, kept) in [(true, 0), (false, 1)] {
            let (_root, store) = tree(evictable);
            let (digest, _) = held(&store, b"content");
            let path = store.layout().quarantined(&digest, 1);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, b"rotten").unwrap();
            fs::write(path.with_file_name("README"), b"not ours").unwrap();
            assert_eq!(trim(&store).unwrap(), if evictable { 6 } else { 0 });
            assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), kept + 1);
        }
    }
}
