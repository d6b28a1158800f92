//! What pushing does to a tree beside receiving blobs: manifests with their tags, links to blobs that are there already,
//! and their removal.
//!
//! **Order.** A manifest's blobs, then the manifest's blob, then its links, then its tags: each is on disk before the next,
//! so a crash leaves the old state or the new one, never a tag that leads to nothing.
//!
//! **Locks.** A manifest is published under the locks of all digests that it needs, taken in one order, and they are looked
//! at again and [stamped](super::stamp) under them, before the manifest is linked: whoever collects garbage takes the same
//! locks, so a blob is either gone before the client is answered or it stays. How both sides together make sure that no
//! push is broken is written down in `maintain::sweep`.
//!
//! Everything here blocks and belongs on a store thread.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use bytes::Bytes;

use super::durable::{Durability, Temporary};
use super::ingest::{ShardLock, lock_shard};
use super::layout::{Layout, LinkKind, StoredRepository};
use super::refs;
use super::stamp::{Stamp, stamp};
use super::upload::publish_linked;
use crate::oci::{Digest, Hasher, Tag};

/// A manifest that was pushed and verified.
#[derive(Clone, Debug)]
pub struct PushedManifest {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub content: Bytes,
    /// What the repository must link for it.
    pub needed: Vec<(LinkKind, Digest)>,
    /// What it refers to; need not be there.
    pub subject: Option<Digest>,
    /// What is to point at it.
    pub tags: Vec<Tag>,
}

/// Stores a manifest and points its tags at it, durably. `Ok(Err(…))`: what it needs is not there, and nothing happened.
///
/// # Errors
/// The disk's. Some tags may point at the manifest then.
pub(super) fn manifest(
    layout: &Layout,
    repository: &StoredRepository,
    pushed: &PushedManifest,
) -> io::Result<Result<u64, Vec<Digest>>> {
    let digest = &pushed.digest;
    let mut temporary = Temporary::create(&layout.temporary())?;
    temporary.write(&pushed.content)?;
    temporary.sync()?;
    // A link may lead to another digest than its name says.
    let target = |(kind, digest): &(LinkKind, Digest)| refs::target(layout, repository, *kind, digest);
    let targets: Vec<_> = pushed.needed.iter().filter_map(target).collect();
    let named = pushed.needed.iter().map(|(_, digest)| digest);
    let _locks = lock_all(layout, named.chain(&targets).chain([digest]))?;
    let mut missing = Vec::new();
    for needed in &pushed.needed {
        let held = target(needed).filter(|target| targets.contains(target));
        if !held.is_some_and(|target| layout.blob(&target).exists()) {
            missing.push(needed.1);
        }
    }
    if !missing.is_empty() {
        return Ok(Err(missing));
    }
    for target in &targets {
        stamp(&layout.blob(target), Stamp::Claimed)?;
    }
    let (made, published) = publish_linked(layout, temporary.path(), digest, Stamp::Claimed)?;
    refs::link_after(published, layout, repository, LinkKind::Manifest, digest)?;
    // The age of a manifest that is pushed again begins anew, and is never less than that of its claims.
    refs::renew(layout, repository, LinkKind::Manifest, digest)?;
    if let Some(subject) = &pushed.subject {
        refs::add_referrer(layout, repository, subject, digest)?;
    }
    for tag in &pushed.tags {
        refs::set_tag(layout, repository, tag, digest, Durability::Synced)?;
    }
    Ok(Ok(if made { pushed.content.len() as u64 } else { 0 }))
}

/// Stores a small, already verified blob and links it, durably. The bytes that this added.
///
/// # Errors
/// The disk's.
pub(super) fn small_blob(
    layout: &Layout,
    repository: &StoredRepository,
    digest: &Digest,
    content: &[u8],
) -> io::Result<u64> {
    let mut temporary = Temporary::create(&layout.temporary())?;
    temporary.write(content)?;
    temporary.sync()?;
    let _shard = lock_shard(layout, digest)?;
    let (made, published) = publish_linked(layout, temporary.path(), digest, Stamp::Promised)?;
    refs::link_after(published, layout, repository, LinkKind::Layer, digest)?;
    Ok(if made { content.len() as u64 } else { 0 })
}

/// Takes the locks of all these digests, each shard once and in the order of their numbers.
pub(crate) fn lock_all<'a>(
    layout: &Layout,
    digests: impl Iterator<Item = &'a Digest>,
) -> io::Result<Vec<ShardLock>> {
    let shards: BTreeMap<_, _> = digests.map(|digest| (digest.shard(), digest)).collect();
    shards.into_values().map(|digest| lock_shard(layout, digest)).collect()
}

/// Links a blob of the tree into a repository, durably; its age begins anew. `Ok(false)`: it is not there.
///
/// # Errors
/// The disk's.
pub(super) fn link_held(
    layout: &Layout,
    repository: &StoredRepository,
    kind: LinkKind,
    digest: &Digest,
) -> io::Result<bool> {
    let _shard = lock_shard(layout, digest)?;
    if !is_stamped(stamp(&layout.blob(digest), Stamp::Promised))? {
        return Ok(false);
    }
    refs::link(layout, repository, kind, digest, Durability::Synced)?;
    Ok(true)
}

/// Promises a client that a blob which `repository` links stays for a manifest that it is about to push. `false`: there is
/// none.
///
/// # Errors
/// The disk's; nothing is promised then.
pub(super) fn promise(layout: &Layout, repository: &StoredRepository, digest: &Digest) -> io::Result<bool> {
    let find = || refs::target(layout, repository, LinkKind::Layer, digest);
    let Some(target) = find() else { return Ok(false) };
    let _locks = lock_all(layout, [digest, &target].into_iter())?;
    // It may have been removed while we waited.
    if find() != Some(target) {
        return Ok(false);
    }
    is_stamped(stamp(&layout.blob(&target), Stamp::Promised))
}

/// Absence is an answer, not an error.
fn is_stamped(stamped: io::Result<()>) -> io::Result<bool> {
    match stamped {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes a blob over from another tree and links it, durably: the file gets a second name, or is copied where it cannot.
/// The bytes that this added; `None` if the other tree does not have it.
///
/// # Errors
/// The disk's; `InvalidData` if a copy does not have the digest.
pub(super) fn adopt(
    layout: &Layout,
    from: &Layout,
    repository: &StoredRepository,
    kind: LinkKind,
    digest: &Digest,
) -> io::Result<Option<u64>> {
    let source = from.blob(digest);
    let len = match fs::metadata(&source) {
        Ok(meta) => meta.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut shard = lock_shard(layout, digest)?;
    let (made, published) = match publish_linked(layout, &source, digest, Stamp::Promised) {
        Err(error) if matches!(error.kind(), io::ErrorKind::CrossesDevices | io::ErrorKind::TooManyLinks) => {
            // Others need not wait for the copy.
            drop(shard);
            let copy = copied(layout, &source, digest)?;
            shard = lock_shard(layout, digest)?;
            publish_linked(layout, copy.path(), digest, Stamp::Promised)?
        }
        // It was evicted a moment ago.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        published => published?,
    };
    refs::link_after(published, layout, repository, kind, digest)?;
    drop(shard);
    Ok(Some(if made { len } else { 0 }))
}

/// A synced copy of a blob, verified.
pub(super) fn copied(layout: &Layout, source: &std::path::Path, digest: &Digest) -> io::Result<Temporary> {
    let mut source = fs::File::open(source)?;
    let mut copy = Temporary::create(&layout.temporary())?;
    let mut hasher = Hasher::new(digest.algorithm());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match io::Read::read(&mut source, &mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                hasher.update(&buffer[..read]);
                copy.write(&buffer[..read])?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if hasher.finish() != *digest {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{digest} is corrupt")));
    }
    copy.sync()?;
    Ok(copy)
}

/// Removes a manifest from a repository, with every tag that points at it. Gives the tags; `None`: it was not there.
///
/// # Errors
/// The disk's. The tags go first, so that none is left that leads to nothing.
pub(super) fn remove_manifest(
    layout: &Layout,
    repository: &StoredRepository,
    digest: &Digest,
    subject: Option<&Digest>,
) -> io::Result<Option<Vec<Tag>>> {
    let _shard = lock_shard(layout, digest)?;
    if !refs::is_linked(layout, repository, LinkKind::Manifest, digest) {
        return Ok(None);
    }
    let mut removed = Vec::new();
    for tag in refs::all_tags(layout, repository)? {
        let tag = tag?;
        if refs::tagged(layout, repository, &tag)? == Some(*digest)
            && refs::remove_tag(layout, repository, &tag, Some(digest), Durability::Synced)?
        {
            removed.push(tag);
        }
    }
    if let Some(subject) = subject {
        refs::remove_referrer(layout, repository, subject, digest)?;
    }
    refs::unlink(layout, repository, LinkKind::Manifest, digest)?;
    Ok(Some(removed))
}
