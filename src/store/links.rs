//! Links that were looked at: what a repository's files say about blobs and tags.
//!
//! A link that is not there is remembered as well: `local` is looked at before `cache`, so a hit in `cache` would
//! otherwise open a missing file every time (2–3 µs of the 15 that a hit of 4 KiB took). Where the whole repository is
//! not there, that is what is remembered, once for all its blobs. What this process writes it forgets at once; a look at
//! the disk that was under way meanwhile is not remembered ([`Links::written`]).
//!
//! A link that was read is not read again while its file is the same: a look at its inode, size and times is half
//! the system calls of opening and reading it.

use std::collections::hash_map::RandomState;
use std::hash::Hash;
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use lru::LruCache;

use super::blob::{REVALIDATE_AFTER, present};
use super::layout::StoredRepository;
use crate::oci::Digest;
use crate::sys::files::{Files, Stat};

/// A link's content is a digest; anything longer is not a link, in bytes.
const LINK_MAX: u64 = 512;
/// Repositories remembered as absent at most.
const ABSENT_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// A file that changed less than this long ago may change again without its times showing it: they tick.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// What a tag points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagLink {
    /// The manifest.
    pub digest: Digest,
    /// When that was last confirmed upstream (in `cache`) or written (in `local`).
    pub confirmed: SystemTime,
}

/// What was found, and since when it has not been looked at again.
#[derive(Clone, Copy, Debug)]
pub struct Looked<T> {
    /// What was found.
    pub value: T,
    /// When the disk was looked at, at the latest.
    pub at: Instant,
}

/// What links were seen to lead to.
#[derive(Debug)]
pub(super) struct Links<K: Hash + Eq, A> {
    seen: LruCache<K, Seen<A>, RandomState>,
    /// Repositories that were not there, and when they were not.
    absent: LruCache<StoredRepository, Instant, RandomState>,
    /// How often this process wrote a link: what was read from the disk across such a moment may be out of date.
    written: u64,
}

/// A link as it was seen. In the order of these moments the maps forget: what is used is looked at again.
#[derive(Clone, Debug)]
struct Seen<A> {
    /// `None` where there was no link.
    link: Option<Link>,
    at: Instant,
    /// What the user of the map keeps with the link.
    attached: A,
}

/// A link that was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) digest: Digest,
    /// When it was written.
    pub(super) mtime: SystemTime,
    /// The file that was read; `None` if the same file may have other content by now.
    source: Option<Source>,
}

impl From<Link> for TagLink {
    fn from(link: Link) -> Self {
        Self { digest: link.digest, confirmed: link.mtime }
    }
}

/// A file and the state that it was in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Source {
    device: u64,
    inode: u64,
    len: u64,
    mtime: SystemTime,
    ctime: SystemTime,
}

impl From<&Stat> for Source {
    fn from(stat: &Stat) -> Self {
        Self { device: stat.dev, inode: stat.ino, len: stat.len, mtime: stat.mtime, ctime: stat.ctime }
    }
}

/// What a map knows about a link.
pub(super) enum Known<'a, A> {
    /// Seen lately, with what is attached to it.
    Fresh(Looked<Option<Link>>, &'a A),
    /// Its repository was seen lately not to be there.
    NoRepository(Instant),
    /// The disk has to be looked at.
    Unknown(Unknown),
}

/// What a look at the disk goes by.
pub(super) struct Unknown {
    /// How it was when it was last seen.
    before: Option<Link>,
    /// To be told to [`Links::remember`].
    written: u64,
}

#[cfg(test)]
impl Unknown {
    /// Whether the file is read only if it is another one than before.
    pub(super) fn reads_only_changes(&self) -> bool {
        self.before.is_some_and(|link| link.source.is_some())
    }
}

impl<K: Hash + Eq, A: Clone + Default> Links<K, A> {
    pub(super) fn new(max: NonZeroUsize) -> Self {
        Self {
            seen: LruCache::with_hasher(max, RandomState::new()),
            absent: LruCache::with_hasher(ABSENT_MAX, RandomState::new()),
            written: 0,
        }
    }

    /// What is known of a link of `repository` at `now`.
    pub(super) fn known(&self, repository: &StoredRepository, key: &K, now: Instant) -> Known<'_, A> {
        if !self.absent.is_empty()
            && let Some(at) = self.absent.peek(repository)
            && is_fresh(*at, now)
        {
            return Known::NoRepository(*at);
        }
        // Not moved to the front: that is done when the disk is looked at, twice a second for what is in use.
        match self.seen.peek(key) {
            Some(seen) if is_fresh(seen.at, now) => {
                Known::Fresh(Looked { value: seen.link, at: seen.at }, &seen.attached)
            }
            seen => {
                Known::Unknown(Unknown { before: seen.and_then(|seen| seen.link), written: self.written })
            }
        }
    }

    /// Takes note of what the disk had at `looked.at` or later, if nothing was written since.
    pub(super) fn remember(&mut self, key: K, looked: &Looked<Option<Link>>, unknown: &Unknown) {
        if self.written == unknown.written {
            let attached = self.seen.peek(&key).map(|seen| seen.attached.clone()).unwrap_or_default();
            self.seen.put(key, Seen { link: looked.value, at: looked.at, attached });
        } else {
            self.seen.pop(&key);
        }
    }

    /// Takes note that there was no such repository at `at` or later, if nothing was written since.
    pub(super) fn remember_absent(&mut self, repository: &StoredRepository, at: Instant, unknown: &Unknown) {
        if self.written == unknown.written {
            self.absent.put(repository.clone(), at);
        }
    }

    /// Keeps something with a link that is remembered.
    pub(super) fn attach(&mut self, key: &K, attached: A) {
        if let Some(seen) = self.seen.peek_mut(key) {
            seen.attached = attached;
        }
    }

    /// The link was written or removed, so that the next look goes to the disk.
    pub(super) fn forget(&mut self, repository: &StoredRepository, key: &K) {
        self.written += 1;
        self.seen.pop(key);
        self.absent.pop(repository);
    }
}

/// What the disk has now: read anew, unless the file is the one that was read before.
pub(super) async fn look(files: &Files, path: &Path, unknown: &Unknown) -> io::Result<Option<Link>> {
    if let Some(Link { source: Some(source), .. }) = unknown.before {
        match present(files.stat(path).await)? {
            None => return Ok(None),
            Some(stat) if Source::from(&stat) == source => return Ok(unknown.before),
            Some(_) => {}
        }
    }
    let Some(file) = present(files.open(path).await)? else { return Ok(None) };
    let stat = Stat::from(&file.metadata()?);
    let len = usize::try_from(stat.len.min(LINK_MAX)).unwrap_or(0);
    let content = files.read_small(&Arc::new(file), len).await?;
    let parsed = std::str::from_utf8(&content).ok().and_then(|text| text.trim_end().parse().ok());
    if parsed.is_none() {
        tracing::warn!(path = %path.display(), "not a link: treated as absent");
    }
    let is_settled = SystemTime::now().duration_since(stat.ctime).is_ok_and(|since| since > SETTLED_AFTER);
    let source = is_settled.then(|| Source::from(&stat));
    Ok(parsed.map(|digest| Link { digest, mtime: stat.mtime, source }))
}

/// Whether what was seen at `at` is believed at `now`.
fn is_fresh(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < REVALIDATE_AFTER
}

/// A panic while the maps are locked cannot leave them inconsistent: each change is one map operation.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
