//! How single things are taken from a tree, under the locks that those take who add them.
//!
//! What may go is decided elsewhere (`maintain`); the last word is a closure that is asked under the lock, with the blob's
//! [stamp](super::stamp). Everything here blocks and belongs on a store thread.

use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use super::durable;
use super::ingest::{ShardLock, lock_file, lock_shard};
use super::layout::{Layout, LinkKind, StoredRepository};
use super::push::lock_all;
pub(crate) use super::stamp::{Stamp, Stamped, stamped};
pub(crate) use super::upload::{each_over as each_upload_over, remove_session};
use super::{Store, refs, walk};
use crate::oci::{Digest, Tag};

/// Directories that are synced together, a thread each: one commit of the journal does for many.
const SYNCED_AT_ONCE: usize = 64;

/// Takes a blob over from another tree.
#[cfg(test)]
pub(crate) fn adopt(
    layout: &Layout,
    from: &Layout,
    repository: &StoredRepository,
    digest: &Digest,
) -> io::Result<Option<u64>> {
    super::push::adopt(layout, from, repository, LinkKind::Layer, digest)
}

/// Waits for the lock of a shard.
pub(crate) fn lock_number(layout: &Layout, shard: u8) -> io::Result<ShardLock> {
    lock_file(layout, &layout.shard_lock(shard))
}

/// Whether a manifest, or a tag, was taken from its repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It was.
    Yes,
    /// There is no such manifest; no such tag, or it points at another manifest.
    Absent,
    /// It was not to be.
    Refused,
}

/// Removes a blob, with its directory, if this process is not sending it and `may` agrees; what is known of its file then. A
/// dry run takes no lock and removes nothing. An empty directory goes without a question.
pub(crate) fn blob(
    store: &Store,
    digest: &Digest,
    dry_run: bool,
    may: impl FnOnce(Stamped) -> bool,
) -> io::Result<Option<Metadata>> {
    let path = store.layout().blob(digest);
    let _lock = if dry_run { None } else { Some(lock_shard(store.layout(), digest)?) };
    let meta = match fs::metadata(&path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !dry_run {
                remove_directory_of(&path);
            }
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if store.is_in_use(digest) || !may(stamped(&meta)?) {
        return Ok(None);
    }
    if !dry_run {
        store.forget(digest);
        fs::remove_file(&path)?;
        remove_directory_of(&path);
        store.usage().removed(*digest, meta.len());
        // Who looked it up in between remembers what is gone.
        store.forget(digest);
    }
    Ok(Some(meta))
}

/// Takes a manifest from a repository if `may` agrees to the stamp of its blob, `target`. On disk once the directory
/// of the manifests is synced.
pub(crate) fn manifest(
    store: &Store,
    repository: &StoredRepository,
    digest: &Digest,
    target: &Digest,
    subject: Option<&Digest>,
    may: impl FnOnce(Stamped) -> bool,
) -> io::Result<Taken> {
    let layout = store.layout();
    let _locks = lock_all(layout, [digest, target].into_iter())?;
    let path = layout.link(repository, LinkKind::Manifest, digest);
    match fs::metadata(layout.blob(target)) {
        Ok(meta) if !may(stamped(&meta)?) => return Ok(Taken::Refused),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if let Some(subject) = subject {
        let referrer = layout.referrer(repository, subject, digest);
        durable::remove_file(&referrer)?;
        remove_directory_of(&referrer);
    }
    let there = durable::remove_if_there(&path)?;
    store.forget_link(repository, LinkKind::Manifest, digest);
    durable::remove(&Layout::signatures(&path))?;
    if !remove_directory_of(&path) {
        durable::sync_parent(&path)?;
    }
    Ok(if there { Taken::Yes } else { Taken::Absent })
}

/// Brings what was removed from these directories to the disk; those that are gone have nothing to bring.
pub(crate) fn sync_directories(mut directories: impl Iterator<Item = PathBuf>) -> io::Result<()> {
    loop {
        let some: Vec<_> = directories.by_ref().take(SYNCED_AT_ONCE).collect();
        if some.is_empty() {
            return Ok(());
        }
        let mut syncs = durable::Syncs::default();
        for directory in some {
            match fs::File::open(directory) {
                Ok(file) => syncs.add(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        syncs.run()?;
    }
}

/// Removes a tag with its history if it points at `digest` and `may` agrees to the stamp of that blob: whoever sets a tag
/// has the lock of what it points at, and has stamped that. Not synced.
pub(crate) fn tag(
    store: &Store,
    repository: &StoredRepository,
    tag: &Tag,
    digest: &Digest,
    may: impl FnOnce(Stamped) -> bool,
) -> io::Result<Taken> {
    let layout = store.layout();
    let _lock = lock_shard(layout, digest)?;
    match fs::metadata(layout.blob(digest)) {
        Ok(meta) if !may(stamped(&meta)?) => return Ok(Taken::Refused),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let removed = refs::take_tag(layout, repository, tag, digest);
    store.forget_tag(repository, tag);
    Ok(if removed? { Taken::Yes } else { Taken::Absent })
}

/// Removes a link of a repository, which was seen to lead to `target`, if it still does and `may` agrees to the stamp of
/// that blob (`None`: there is none). Not synced. Says whether it was removed, or would be.
pub(crate) fn link(
    store: &Store,
    (repository, kind): (&StoredRepository, LinkKind),
    (digest, target): (&Digest, &Digest),
    dry_run: bool,
    may: impl FnOnce(Option<Stamped>) -> bool,
) -> io::Result<bool> {
    let layout = store.layout();
    let _locks = if dry_run { Vec::new() } else { lock_all(layout, [digest, target].into_iter())? };
    let path = layout.link(repository, kind, digest);
    let link = walk::link(&path).map_err(io::Error::other)?;
    if link.is_none_or(|link| link.digest != *target) {
        return Ok(false);
    }
    let stamped = match fs::metadata(layout.blob(target)) {
        Ok(meta) => Some(stamped(&meta)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if !may(stamped) {
        return Ok(false);
    }
    if !dry_run {
        durable::remove_file(&path)?;
        remove_directory_of(&path);
        store.forget_link(repository, kind, digest);
    }
    Ok(true)
}

/// Removes the directory of a link that is not there, under the lock of what it is named by.
pub(crate) fn empty_place(layout: &Layout, digest: &Digest, link: &Path) -> io::Result<()> {
    let _lock = lock_shard(layout, digest)?;
    if !link.exists() {
        durable::remove(&Layout::signatures(link))?;
    }
    remove_directory_of(link);
    Ok(())
}

/// Removes the directory of `path` if there is nothing in it any more; whoever puts something into it makes it anew. Says
/// whether it is gone.
fn remove_directory_of(path: &Path) -> bool {
    let Some(directory) = path.parent() else { return false };
    match fs::remove_dir(directory) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}
