//! What is remembered of one tree, so that a hit needs no look at the disk.
//!
//! Blobs and links that were looked at are remembered, bounded in number (and small contents in bytes), least recently
//! looked at first out. Memory is only an accelerator: what was looked at longer than [`REVALIDATE_AFTER`] ago is compared
//! with the disk again (device, inode, length and time of the last change), so another process on the same directory, or
//! a person with `rm`, is noticed.
//!
//! **Content or descriptor.** A small blob is kept by its content while there is room for it, and then without a
//! descriptor; else by its open file. Once the room is taken, a content that is in use stays, and the newcomer gets a
//! descriptor: with 10,000 blobs asked for in turn, more than there are descriptors or room for, a list that always lets
//! the newest in would be read anew on every request (94 µs of CPU for 4 KiB instead of 20, in one run).
//!
//! **A hit is one look-up** in the map of links, which leads on to the blob; the blob itself says when its file was last
//! seen. Nothing is moved to the front of a list then, but when the disk is looked at.
//!
//! One lock per map, held for map operations only, never across I/O.

use std::collections::hash_map::RandomState;
use std::io;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::blob::{Blob, Held, present, renew_generation};
use super::layout::{Layout, LinkKind, StoredRepository};
use super::links::{self, Known, Links, Looked, TagLink, Unknown, lock};
use crate::oci::{Digest, Tag};
use crate::sys::files::Files;

/// Links remembered for each open file that may be remembered.
const LINKS_PER_HANDLE: usize = 4;
/// What a blob takes in memory beside its content, about, in bytes: so empty ones are bounded too.
const OVERHEAD: u64 = 512;
/// A content that was not looked at for so long gives way to another.
const IDLE_AFTER: Duration = Duration::from_secs(10);

type LinkKey = (StoredRepository, LinkKind, Digest);

/// What is remembered of one tree.
#[derive(Debug)]
pub(crate) struct Handles {
    held: Mutex<Blobs>,
    links: Mutex<Links<LinkKey, Weak<Blob>>>,
    tags: Mutex<Links<(StoredRepository, Tag), ()>>,
}

/// The blobs, each in one of two lists, the one looked at last in front.
#[derive(Debug)]
struct Blobs {
    /// Those with a descriptor.
    open: LruCache<Digest, Arc<Blob>, RandomState>,
    /// Those without; their number is bounded by `content_bytes`.
    contents: LruCache<Digest, Arc<Blob>, RandomState>,
    /// What `contents` takes, in bytes; at most `content_bytes_max` after every insertion.
    content_bytes: u64,
    content_bytes_max: u64,
}

impl Handles {
    /// Remembers at most `max` open files, and contents of at most `content_bytes_max`.
    pub(crate) fn new(max: NonZeroUsize, content_bytes_max: u64) -> Self {
        let links = max.saturating_mul(NonZeroUsize::MIN.saturating_add(LINKS_PER_HANDLE - 1));
        let blobs = Blobs {
            open: LruCache::with_hasher(max, RandomState::new()),
            contents: LruCache::unbounded_with_hasher(RandomState::new()),
            content_bytes: 0,
            content_bytes_max,
        };
        Self {
            held: Mutex::new(blobs),
            links: Mutex::new(Links::new(links)),
            tags: Mutex::new(Links::new(links)),
        }
    }

    /// The blob that a repository links, as far as it is known without a look at the disk. `None`: it is not.
    pub(crate) fn known(
        &self,
        repository: &StoredRepository,
        kind: LinkKind,
        digest: &Digest,
    ) -> Option<Looked<Option<Arc<Blob>>>> {
        let now = Instant::now();
        let links = lock(&self.links);
        match links.known(repository, &(repository.clone(), kind, *digest), now) {
            Known::NoRepository(at) | Known::Fresh(Looked { value: None, at }, _) => {
                Some(Looked { value: None, at })
            }
            Known::Fresh(Looked { value: Some(_), at }, blob) => {
                let blob = blob.upgrade()?;
                let at = at.min(blob.fresh(now)?);
                Some(Looked { value: Some(blob), at })
            }
            Known::Unknown(_) => None,
        }
    }

    /// The blob that a repository links, wherever it takes a look to find it.
    pub(crate) async fn linked(
        &self,
        files: &Files,
        layout: &Layout,
        repository: &StoredRepository,
        kind: LinkKind,
        digest: &Digest,
    ) -> io::Result<Looked<Option<Arc<Blob>>>> {
        let link = self.link(files, layout, repository, kind, digest).await?;
        let Some(target) = link.value else { return Ok(Looked { value: None, at: link.at }) };
        let blob = self.blob(files, layout, &target).await?;
        if let Some(blob) = &blob.value {
            lock(&self.links).attach(&(repository.clone(), kind, *digest), Arc::downgrade(blob));
        }
        Ok(Looked { at: link.at.min(blob.at), ..blob })
    }

    /// The blob; `None` if the tree does not hold it.
    pub(crate) async fn blob(
        &self,
        files: &Files,
        layout: &Layout,
        digest: &Digest,
    ) -> io::Result<Looked<Option<Arc<Blob>>>> {
        let now = Instant::now();
        let held = lock(&self.held).find(digest).cloned();
        if let Some(blob) = &held
            && let Some(at) = blob.fresh(now)
        {
            return Ok(Looked { value: held, at });
        }
        // A question for what was never there must not end what was concluded about other things.
        let was_held = held.is_some();
        let absent = || {
            if was_held {
                self.forget(digest);
            }
            Ok(Looked { value: None, at: now })
        };
        let path = layout.blob(digest);
        if let Some(blob) = held {
            let Some(stat) = present(files.stat(&path).await)? else { return absent() };
            if blob.is_of(&stat) {
                blob.looked(now);
                lock(&self.held).remember(&blob);
                return Ok(Looked { value: Some(blob), at: now });
            }
        }
        let Some(file) = present(files.open(&path).await)? else { return absent() };
        let has_room = |len| lock(&self.held).make_room(len + OVERHEAD, now);
        let blob = Arc::new(Blob::open(files, *digest, file, has_room, now).await?);
        lock(&self.held).remember(&blob);
        Ok(Looked { value: Some(blob), at: now })
    }

    /// What a repository's link leads to; `None` if it has none.
    pub(crate) async fn link(
        &self,
        files: &Files,
        layout: &Layout,
        repository: &StoredRepository,
        kind: LinkKind,
        digest: &Digest,
    ) -> io::Result<Looked<Option<Digest>>> {
        let key = (repository.clone(), kind, *digest);
        let now = Instant::now();
        let unknown = match lock(&self.links).known(repository, &key, now) {
            Known::Fresh(Looked { value, at }, _) => {
                return Ok(Looked { value: value.map(|link| link.digest), at });
            }
            Known::NoRepository(at) => return Ok(Looked { value: None, at }),
            Known::Unknown(unknown) => unknown,
        };
        let link = links::look(files, &layout.link(repository, kind, digest), &unknown).await?;
        let looked = Looked { value: link, at: now };
        if link.is_none() && self.is_absent(files, layout, repository, now, &unknown).await? {
            return Ok(Looked { value: None, at: now });
        }
        lock(&self.links).remember(key, &looked, &unknown);
        Ok(Looked { value: link.map(|link| link.digest), at: now })
    }

    /// Whether there is no such repository at all, which is remembered.
    async fn is_absent(
        &self,
        files: &Files,
        layout: &Layout,
        repository: &StoredRepository,
        now: Instant,
        unknown: &Unknown,
    ) -> io::Result<bool> {
        let is_absent = present(files.stat(&layout.repository(repository)).await)?.is_none();
        if is_absent {
            lock(&self.links).remember_absent(repository, now, unknown);
        }
        Ok(is_absent)
    }

    /// What a tag points at; `None` if there is no such tag.
    pub(crate) async fn tag(
        &self,
        files: &Files,
        layout: &Layout,
        repository: &StoredRepository,
        tag: &Tag,
    ) -> io::Result<Option<TagLink>> {
        let key = (repository.clone(), tag.clone());
        let now = Instant::now();
        let unknown = match lock(&self.tags).known(repository, &key, now) {
            Known::Fresh(looked, ()) => return Ok(looked.value.map(Into::into)),
            Known::NoRepository(_) => return Ok(None),
            Known::Unknown(unknown) => unknown,
        };
        let link = links::look(files, &layout.tag_current(repository, tag), &unknown).await?;
        match link {
            Some(_) => lock(&self.tags).remember(key, &Looked { value: link, at: now }, &unknown),
            // Another process may be pushing it, to a client that then asks this one.
            None => lock(&self.tags).forget(repository, &key),
        }
        Ok(link.map(Into::into))
    }

    /// Forgets a blob, so that the next look goes to the disk.
    pub(crate) fn forget(&self, digest: &Digest) {
        renew_generation();
        lock(&self.held).forget(digest);
    }

    /// Forgets open files that have lost their names, such as by another process: nobody will ask for them here, and the disk
    /// gets their bytes back when they are closed. How many. Less than a microsecond for each open file.
    pub(crate) fn forget_removed(&self) -> usize {
        let open: Vec<_> = lock(&self.held).open.iter().map(|(digest, _)| *digest).collect();
        let mut forgotten = 0;
        for digest in open {
            // The lock is not held for all of them: requests wait for it.
            let is_removed = lock(&self.held).open.peek(&digest).is_some_and(|blob| blob.has_lost_its_name());
            if is_removed {
                self.forget(&digest);
                forgotten += 1;
            }
        }
        forgotten
    }

    /// A link was written: the next look goes to the disk.
    pub(crate) fn forget_link(&self, repository: &StoredRepository, kind: LinkKind, digest: &Digest) {
        lock(&self.links).forget(repository, &(repository.clone(), kind, *digest));
    }

    /// A tag was written or removed: the next look goes to the disk.
    pub(crate) fn forget_tag(&self, repository: &StoredRepository, tag: &Tag) {
        lock(&self.tags).forget(repository, &(repository.clone(), tag.clone()));
    }

    /// Whether somebody is sending this blob, or is about to.
    pub(crate) fn is_in_use(&self, digest: &Digest) -> bool {
        lock(&self.held).find(digest).is_some_and(Blob::is_in_use)
    }

    /// When this process last used a blob that it remembers, in milliseconds since the epoch; 0 if it does not know.
    pub(crate) fn last_use_ms(&self, digest: &Digest) -> u64 {
        lock(&self.held).find(digest).map_or(0, |blob| blob.last_use_ms())
    }
}

impl Blobs {
    fn find(&self, digest: &Digest) -> Option<&Arc<Blob>> {
        self.open.peek(digest).or_else(|| self.contents.peek(digest))
    }

    /// Puts a blob in front of its list; what is too much goes from the other end.
    fn remember(&mut self, blob: &Arc<Blob>) {
        match &blob.held {
            Held::File(_) => {
                self.forget_content(&blob.digest);
                self.open.put(blob.digest, Arc::clone(blob));
            }
            Held::Memory(_) => {
                self.open.pop(&blob.digest);
                self.content_bytes += cost(blob);
                if let Some(old) = self.contents.put(blob.digest, Arc::clone(blob)) {
                    self.content_bytes -= cost(&old);
                }
                while self.content_bytes > self.content_bytes_max && self.forget_oldest_content() {}
            }
        }
    }

    /// Makes room for a content that takes `bytes`, if there is some or others were not looked at for long.
    fn make_room(&mut self, bytes: u64, now: Instant) -> bool {
        while self.content_bytes + bytes > self.content_bytes_max {
            let Some((_, oldest)) = self.contents.peek_lru() else { return false };
            if now.saturating_duration_since(oldest.looked_at()) < IDLE_AFTER {
                return false;
            }
            self.forget_oldest_content();
        }
        true
    }

    fn forget(&mut self, digest: &Digest) {
        if let Some(blob) = self.find(digest) {
            // Links lead to it, and it may be held elsewhere.
            blob.distrust();
        }
        self.open.pop(digest);
        self.forget_content(digest);
    }

    fn forget_content(&mut self, digest: &Digest) {
        if let Some(old) = self.contents.pop(digest) {
            self.content_bytes -= cost(&old);
        }
    }

    /// Whether there was one.
    fn forget_oldest_content(&mut self) -> bool {
        let oldest = self.contents.pop_lru();
        self.content_bytes -= oldest.as_ref().map_or(0, |(_, blob)| cost(blob));
        oldest.is_some()
    }
}

/// What a blob without a descriptor takes.
fn cost(blob: &Blob) -> u64 {
    match &blob.held {
        Held::Memory(content) => content.len() as u64 + OVERHEAD,
        Held::File(_) => 0,
    }
}

#[cfg(test)]
mod tests;
