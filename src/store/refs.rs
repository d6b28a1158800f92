//! Links and tags of a repository: what makes content reachable.
//!
//! Everything here blocks and belongs on a store thread. In `cache` nothing here is synced: a link that a power cut takes
//! costs one question upstream. In `local` everything is, before the client hears of it. A link is written whole or not at
//! all (rename), so a reader never sees half a digest.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::SystemTime;

use super::durable::{self, Durability, Syncs};
use super::ingest::{ShardLock, lock_file};
use super::layout::{Layout, LinkKind, StoredRepository};
use super::stamp::touch;
use crate::oci::{Algorithm, Digest, Tag};

/// Makes `digest` reachable through `repository`. Nothing happens if it is already.
pub(crate) fn link(
    layout: &Layout,
    repository: &StoredRepository,
    kind: LinkKind,
    digest: &Digest,
    durability: Durability,
) -> io::Result<()> {
    point(layout, &layout.link(repository, kind, digest), digest, durability)
}

/// Makes `digest` reachable through `repository`, durably, once what it leads to is on disk.
pub(crate) fn link_after(
    before: Syncs,
    layout: &Layout,
    repository: &StoredRepository,
    kind: LinkKind,
    digest: &Digest,
) -> io::Result<()> {
    point_after(before, layout, &layout.link(repository, kind, digest), digest)
}

/// Gives a link the time of now; where its file is another user's, it becomes a new one.
pub(crate) fn renew(
    layout: &Layout,
    repository: &StoredRepository,
    kind: LinkKind,
    digest: &Digest,
) -> io::Result<()> {
    let path = layout.link(repository, kind, digest);
    match touch(&path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            write_after(Syncs::default(), layout, &path, digest)
        }
        touched => touched,
    }
}

/// Whether `repository` links `digest`: an empty or malformed link is none.
pub(crate) fn is_linked(
    layout: &Layout,
    repository: &StoredRepository,
    kind: LinkKind,
    digest: &Digest,
) -> bool {
    target(layout, repository, kind, digest).is_some()
}

/// What `repository` links under `digest`: distribution names a blob by another algorithm, too.
pub(crate) fn target(
    layout: &Layout,
    repository: &StoredRepository,
    kind: LinkKind,
    digest: &Digest,
) -> Option<Digest> {
    fs::read_to_string(layout.link(repository, kind, digest)).ok()?.trim().parse().ok()
}

/// Remembers that `referrer` has `subject` as its subject.
pub(crate) fn add_referrer(
    layout: &Layout,
    repository: &StoredRepository,
    subject: &Digest,
    referrer: &Digest,
) -> io::Result<()> {
    point(layout, &layout.referrer(repository, subject, referrer), referrer, Durability::Synced)
}

/// Points `tag` at `digest`, confirmed now.
pub(crate) fn set_tag(
    layout: &Layout,
    repository: &StoredRepository,
    tag: &Tag,
    digest: &Digest,
    durability: Durability,
) -> io::Result<()> {
    let _lock = lock_tag(layout, repository, tag, durability)?;
    point(layout, &layout.tag_index(repository, tag, digest), digest, durability)?;
    let current = layout.tag_current(repository, tag);
    match durability {
        Durability::Synced => write_after(Syncs::default(), layout, &current, digest),
        Durability::Relaxed => write_relaxed(layout, &current, digest),
    }
}

/// The lock under which a tag of `local` is set and removed, so that neither takes away what the other has just done. Who
/// holds locks of digests takes it after them. In `cache` upstream says again what is right.
fn lock_tag(
    layout: &Layout,
    repository: &StoredRepository,
    tag: &Tag,
    durability: Durability,
) -> io::Result<Option<ShardLock>> {
    let name = Digest::of(Algorithm::Sha256, format!("{repository}:{tag}").as_bytes());
    (durability == Durability::Synced).then(|| lock_file(layout, &layout.tag_lock(name.shard()))).transpose()
}

/// Makes `path` a link to `digest` unless it is one. A power cut may have left one without content.
fn point(layout: &Layout, path: &Path, digest: &Digest, durability: Durability) -> io::Result<()> {
    match durability {
        Durability::Synced => point_after(Syncs::default(), layout, path, digest),
        Durability::Relaxed if points_at(path, digest) => Ok(()),
        Durability::Relaxed => write_relaxed(layout, path, digest),
    }
}

fn point_after(mut before: Syncs, layout: &Layout, path: &Path, digest: &Digest) -> io::Result<()> {
    if points_at(path, digest) {
        // Somebody may have written it a moment ago, and our caller is about to promise that it lasts.
        before.parents(path, &layout.repositories())?;
        return before.run();
    }
    write_after(before, layout, path, digest)
}

fn points_at(path: &Path, digest: &Digest) -> bool {
    fs::read(path).is_ok_and(|held| held.trim_ascii() == digest.to_string().as_bytes())
}

fn write_relaxed(layout: &Layout, path: &Path, digest: &Digest) -> io::Result<()> {
    durable::write_relaxed(&layout.temporary(), path, digest.to_string().as_bytes())
}

fn write_after(before: Syncs, layout: &Layout, path: &Path, digest: &Digest) -> io::Result<()> {
    let content = digest.to_string();
    durable::write_after(before, &layout.temporary(), path, &layout.repositories(), content.as_bytes())
}

/// Records that `tag` was confirmed now.
pub(crate) fn confirm_tag(layout: &Layout, repository: &StoredRepository, tag: &Tag) -> io::Result<()> {
    File::options().write(true).open(layout.tag_current(repository, tag))?.set_modified(SystemTime::now())
}

/// Removes a tag with its history, if it points at `only` where that is given. Says whether it did.
pub(crate) fn remove_tag(
    layout: &Layout,
    repository: &StoredRepository,
    tag: &Tag,
    only: Option<&Digest>,
    durability: Durability,
) -> io::Result<bool> {
    let _lock = lock_tag(layout, repository, tag, durability)?;
    let there = remove_tag_locked(layout, repository, tag, only)?;
    if there && durability == Durability::Synced {
        durable::sync_dir(&layout.tags(repository))?;
    }
    Ok(there)
}

/// Removes a tag of `local` with its history if it points at `only`. Says whether it did; the caller syncs the directory of
/// the tags.
pub(crate) fn take_tag(
    layout: &Layout,
    repository: &StoredRepository,
    tag: &Tag,
    only: &Digest,
) -> io::Result<bool> {
    let _lock = lock_tag(layout, repository, tag, Durability::Synced)?;
    remove_tag_locked(layout, repository, tag, Some(only))
}

fn remove_tag_locked(
    layout: &Layout,
    repository: &StoredRepository,
    tag: &Tag,
    only: Option<&Digest>,
) -> io::Result<bool> {
    if let Some(only) = only
        && tagged(layout, repository, tag)? != Some(*only)
    {
        return Ok(false);
    }
    // `current` first: from then on the tag does not exist, whatever happens to the rest.
    let there = durable::remove_if_there(&layout.tag_current(repository, tag))?;
    match fs::remove_dir_all(layout.tag(repository, tag)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(there),
    }
}

/// Removes a link, durably; its directory stays, as distribution leaves it. Says whether there was one.
pub(crate) fn unlink(
    layout: &Layout,
    repository: &StoredRepository,
    kind: LinkKind,
    digest: &Digest,
) -> io::Result<bool> {
    let path = layout.link(repository, kind, digest);
    let there = durable::remove_if_there(&path)?;
    if there {
        durable::sync_parent(&path)?;
    }
    Ok(there)
}

/// Forgets that `referrer` has `subject` as its subject.
pub(crate) fn remove_referrer(
    layout: &Layout,
    repository: &StoredRepository,
    subject: &Digest,
    referrer: &Digest,
) -> io::Result<()> {
    durable::remove_file(&layout.referrer(repository, subject, referrer))
}

/// The manifests that are known to have `subject` as their subject, in order, at most `max`.
pub(crate) fn referrers(
    layout: &Layout,
    repository: &StoredRepository,
    subject: &Digest,
    max: usize,
) -> io::Result<Vec<Digest>> {
    let mut found = Vec::new();
    let directory = layout.referrers(repository, subject);
    for algorithm in Algorithm::ALL {
        let entries = match fs::read_dir(directory.join(algorithm.as_str())) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries.take(max) {
            let name = entry?.file_name();
            let Some(digest) = name.to_str().and_then(|hex| format!("{algorithm}:{hex}").parse().ok()) else {
                continue;
            };
            if layout.referrer(repository, subject, &digest).try_exists()? {
                found.push(digest);
            }
        }
    }
    found.sort_unstable_by_key(ToString::to_string);
    Ok(found)
}

/// Every tag of a repository, in no order, one at a time; some may not point at anything.
pub(crate) fn all_tags(
    layout: &Layout,
    repository: &StoredRepository,
) -> io::Result<impl Iterator<Item = io::Result<Tag>>> {
    let entries = match fs::read_dir(layout.tags(repository)) {
        Ok(entries) => Some(entries),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let tag = |entry: io::Result<fs::DirEntry>| match entry {
        Ok(entry) => entry.file_name().to_str().and_then(|name| name.parse().ok()).map(Ok),
        Err(error) => Some(Err(error)),
    };
    Ok(entries.into_iter().flatten().filter_map(tag))
}

/// What a tag points at; `None` if there is no such tag.
pub(crate) fn tagged(
    layout: &Layout,
    repository: &StoredRepository,
    tag: &Tag,
) -> io::Result<Option<Digest>> {
    match fs::read_to_string(layout.tag_current(repository, tag)) {
        Ok(content) => Ok(content.trim().parse().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
