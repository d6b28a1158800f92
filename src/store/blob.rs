//! Open blobs, and the links that lead to them.
//!
//! An answer is found without touching the disk: open files and links that were looked at are remembered, bounded in
//! number (and small contents in bytes), least recently used first out. Memory is only an accelerator: what was looked at
//! longer than [`REVALIDATE_AFTER`] ago is compared with the disk again (device, inode, length; for links the content),
//! so another process on the same directory, or a person with `rm`, is noticed.
//!
//! A link that is not there is remembered as well: `local` is looked at before `cache`, so a hit in `cache` would
//! otherwise open a missing file every time (2–3 µs of the 15 that a hit of 4 KiB took). What this process writes it
//! forgets at once; a look at the disk that was under way meanwhile is not remembered ([`Links::written`]).
//!
//! One lock per tree guards the maps; it is held for map operations only, never across I/O. Dropping a [`Blob`] closes
//! its file once the last body that sends from it is gone.

use std::collections::hash_map::RandomState;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::HeaderValue;
use lru::LruCache;

use super::layout::{Layout, LinkKind, StoredRepository};
use crate::oci::{Digest, Tag};
use crate::sys::files::{Files, Stat};

/// How long what was seen on disk is believed without looking again.
pub const REVALIDATE_AFTER: Duration = Duration::from_millis(500);
/// Contents up to this size are kept in memory with the open file, in bytes.
pub const SMALL: u64 = 32 * 1024;
/// All small contents of one tree together, in bytes.
const SMALL_TOTAL: u64 = 24 << 20;
/// A blob's last use is put on disk at most this often, in milliseconds.
const TOUCH_EVERY_MS: u64 = 180_000;
/// A link's content is a digest; anything longer is not a link, in bytes.
const LINK_MAX: u64 = 512;
/// Links remembered for each open file that may be remembered.
const LINKS_PER_HANDLE: usize = 4;

/// See [`generation`].
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// A number that is another one after anything in any tree of this process was forgotten, or [`renew_generation`] was
/// called: what was concluded from a look at a tree may be repeated without another look only while it stays the same,
/// and for at most [`REVALIDATE_AFTER`].
pub fn generation() -> u64 {
    GENERATION.load(Ordering::Acquire)
}

/// Ends what was concluded from looks at trees, as when other trees or other rules apply from now on.
pub fn renew_generation() {
    GENERATION.fetch_add(1, Ordering::Release);
}

/// An open blob.
#[derive(Debug)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its file, open for reading.
    pub file: Arc<File>,
    /// Its length in bytes.
    pub len: u64,
    /// The whole content, if it is at most [`SMALL`].
    pub small: Option<Bytes>,
    /// The media type of its content as a manifest; filled by whoever first serves it as one.
    pub media_type: OnceLock<HeaderValue>,
    device: u64,
    inode: u64,
    /// When it was last used, in milliseconds since the epoch.
    used: AtomicU64,
    /// When its last use was put on disk, in milliseconds since the epoch.
    touched: AtomicU64,
}

impl Blob {
    /// The whole content. Reads it if it is not kept in memory; `limit` bounds that.
    ///
    /// # Errors
    /// Reading failed, the file is shorter than it was, or the content is longer than `limit` bytes.
    pub async fn content(&self, files: &Files, limit: u64) -> io::Result<Bytes> {
        if let Some(small) = &self.small {
            return Ok(small.clone());
        }
        if self.len > limit {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("{} has {} bytes", self.digest, self.len),
            ));
        }
        let len = usize::try_from(self.len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let content = files.read_at(&self.file, 0, len).await?;
        if content.len() == len { Ok(content) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// What a tag points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagLink {
    /// The manifest.
    pub digest: Digest,
    /// When that was last confirmed upstream (in `cache`) or written (in `local`).
    pub confirmed: SystemTime,
}

/// What is remembered of one tree.
#[derive(Debug)]
pub(crate) struct Handles {
    opened: Mutex<Opened>,
    links: Mutex<Links<(StoredRepository, LinkKind, Digest), Digest>>,
    tags: Mutex<Links<(StoredRepository, Tag), TagLink>>,
}

/// What links were seen to lead to; `None` where there was none.
#[derive(Debug)]
struct Links<K: std::hash::Hash + Eq, V> {
    seen: Remembered<K, Option<V>>,
    /// How often this process wrote a link: what was read from the disk across such a moment may be out of date.
    written: u64,
}

impl<K: std::hash::Hash + Eq, V: Clone> Links<K, V> {
    fn new(max: NonZeroUsize) -> Self {
        Self { seen: LruCache::with_hasher(max, RandomState::new()), written: 0 }
    }

    /// What was seen lately, or what [`remember`](Self::remember) has to be told after a look at the disk.
    fn fresh(&mut self, key: &K) -> Result<Looked<Option<V>>, u64> {
        match self.seen.get(key) {
            Some(seen) if seen.is_fresh() => Ok(Looked { value: seen.value.clone(), at: seen.at }),
            _ => Err(self.written),
        }
    }

    /// Takes note of what the disk had at `looked.at` or later, if nothing was written since `written` was told.
    fn remember(&mut self, key: K, looked: &Looked<Option<V>>, written: u64) {
        if self.written == written {
            self.seen.put(key, Seen { value: looked.value.clone(), at: looked.at });
        } else {
            self.seen.pop(&key);
        }
    }

    /// The link was written, so that the next look goes to the disk.
    fn forget(&mut self, key: &K) {
        self.written += 1;
        self.seen.pop(key);
    }
}

/// What was found, and since when it has not been looked at again.
#[derive(Clone, Copy, Debug)]
pub struct Looked<T> {
    /// What was found.
    pub value: T,
    /// When the disk was looked at, at the latest.
    pub at: Instant,
}

#[derive(Debug)]
struct Opened {
    blobs: Remembered<Digest, Arc<Blob>>,
    /// Sum of the lengths of the small contents in `blobs`; at most `SMALL_TOTAL` after every insertion.
    small_bytes: u64,
}

type Remembered<K, V> = LruCache<K, Seen<V>, RandomState>;

#[derive(Clone, Debug)]
struct Seen<T> {
    value: T,
    at: Instant,
}

impl<T> Seen<T> {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < REVALIDATE_AFTER
    }
}

impl Handles {
    /// Remembers at most `max` open files.
    pub(crate) fn new(max: NonZeroUsize) -> Self {
        let links = max.saturating_mul(NonZeroUsize::MIN.saturating_add(LINKS_PER_HANDLE - 1));
        let opened = Opened { blobs: LruCache::with_hasher(max, RandomState::new()), small_bytes: 0 };
        Self {
            opened: Mutex::new(opened),
            links: Mutex::new(Links::new(links)),
            tags: Mutex::new(Links::new(links)),
        }
    }

    /// The blob, opened or remembered; `None` if the tree does not hold it.
    pub(crate) async fn blob(
        &self,
        files: &Files,
        layout: &Layout,
        digest: &Digest,
    ) -> io::Result<Looked<Option<Arc<Blob>>>> {
        let remembered = lock(&self.opened).blobs.get(digest).cloned();
        let path = match remembered {
            Some(seen) if seen.is_fresh() => return Ok(Looked { value: Some(seen.value), at: seen.at }),
            _ => layout.blob(digest),
        };
        let at = Instant::now();
        let Some(stat) = present(files.stat(&path).await)? else {
            self.forget(digest);
            return Ok(Looked { value: None, at });
        };
        if let Some(Seen { value: blob, .. }) = remembered
            && (blob.device, blob.inode, blob.len) == (stat.dev, stat.ino, stat.len)
        {
            self.remember(Arc::clone(&blob), at);
            return Ok(Looked { value: Some(blob), at });
        }
        let Some(file) = present(files.open(&path).await)? else { return Ok(Looked { value: None, at }) };
        let blob = Arc::new(open(files, *digest, file, stat).await?);
        self.remember(Arc::clone(&blob), at);
        Ok(Looked { value: Some(blob), at })
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
        let written = match lock(&self.links).fresh(&key) {
            Ok(looked) => return Ok(looked),
            Err(written) => written,
        };
        let at = Instant::now();
        let link = read_link(files, &layout.link(repository, kind, digest)).await?;
        let looked = Looked { value: link.map(|(target, _)| target), at };
        lock(&self.links).remember(key, &looked, written);
        Ok(looked)
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
        let written = match lock(&self.tags).fresh(&key) {
            Ok(looked) => return Ok(looked.value),
            Err(written) => written,
        };
        let at = Instant::now();
        let link = read_link(files, &layout.tag_current(repository, tag)).await?;
        let value = link.map(|(digest, confirmed)| TagLink { digest, confirmed });
        lock(&self.tags).remember(key, &Looked { value, at }, written);
        Ok(value)
    }

    /// Forgets a blob, so that the next look goes to the disk.
    pub(crate) fn forget(&self, digest: &Digest) {
        GENERATION.fetch_add(1, Ordering::Release);
        let mut opened = lock(&self.opened);
        if let Some(seen) = opened.blobs.pop(digest) {
            opened.small_bytes -= small_len(&seen.value);
        }
    }

    /// A link was written: the next look goes to the disk.
    pub(crate) fn forget_link(&self, repository: &StoredRepository, kind: LinkKind, digest: &Digest) {
        lock(&self.links).forget(&(repository.clone(), kind, *digest));
    }

    /// A tag was written or removed: the next look goes to the disk.
    pub(crate) fn forget_tag(&self, repository: &StoredRepository, tag: &Tag) {
        lock(&self.tags).forget(&(repository.clone(), tag.clone()));
    }

    /// Whether somebody is sending this blob, or is about to.
    pub(crate) fn is_in_use(&self, digest: &Digest) -> bool {
        let opened = lock(&self.opened);
        opened
            .blobs
            .peek(digest)
            .is_some_and(|seen| Arc::strong_count(&seen.value) > 1 || Arc::strong_count(&seen.value.file) > 1)
    }

    /// When this process last used a blob that it has open, in milliseconds since the epoch; 0 if it does not know.
    pub(crate) fn last_use_ms(&self, digest: &Digest) -> u64 {
        lock(&self.opened).blobs.peek(digest).map_or(0, |seen| seen.value.used.load(Ordering::Relaxed))
    }

    fn remember(&self, blob: Arc<Blob>, at: Instant) {
        let mut opened = lock(&self.opened);
        opened.small_bytes += small_len(&blob);
        if let Some((_, old)) = opened.blobs.push(blob.digest, Seen { value: blob, at }) {
            opened.small_bytes -= small_len(&old.value);
        }
        while opened.small_bytes > SMALL_TOTAL {
            let Some((_, old)) = opened.blobs.pop_lru() else { break };
            opened.small_bytes -= small_len(&old.value);
        }
    }
}

/// Records on disk that a blob was used now, at most every [`TOUCH_EVERY_MS`]. Returns at once; losing it is harmless.
pub(crate) fn touch(blob: &Arc<Blob>) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    blob.used.store(now, Ordering::Relaxed);
    let touched = blob.touched.load(Ordering::Relaxed);
    if now < touched.saturating_add(TOUCH_EVERY_MS) {
        return;
    }
    if blob.touched.compare_exchange(touched, now, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        return;
    }
    let file = Arc::clone(&blob.file);
    // Off the event loop: setting a time starts a journal transaction, which can wait for one under way.
    tokio::task::spawn_blocking(move || {
        let times = rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
            last_modification: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        };
        if let Err(error) = rustix::fs::futimens(&file, &times) {
            tracing::debug!(%error, "cannot record a blob's last use");
        }
    });
}

async fn open(files: &Files, digest: Digest, file: File, stat: Stat) -> io::Result<Blob> {
    let file = Arc::new(file);
    let small = match usize::try_from(stat.len) {
        Ok(len) if stat.len <= SMALL => {
            let content = files.read_at(&file, 0, len).await?;
            // A file that changes under its digest's name is served from the file, whose end the transport checks.
            (content.len() == len).then_some(content)
        }
        _ => None,
    };
    Ok(Blob {
        digest,
        file,
        len: stat.len,
        small,
        media_type: OnceLock::new(),
        device: stat.dev,
        inode: stat.ino,
        used: AtomicU64::new(0),
        touched: AtomicU64::new(0),
    })
}

/// A link's target, and when the link was written.
async fn read_link(files: &Files, path: &Path) -> io::Result<Option<(Digest, SystemTime)>> {
    let Some(stat) = present(files.stat(path).await)? else { return Ok(None) };
    let Some(file) = present(files.open(path).await)? else { return Ok(None) };
    let content =
        files.read_at(&Arc::new(file), 0, usize::try_from(stat.len.min(LINK_MAX)).unwrap_or(0)).await?;
    let parsed = std::str::from_utf8(&content).ok().and_then(|text| text.trim_end().parse().ok());
    if parsed.is_none() {
        tracing::warn!(path = %path.display(), "not a link: treated as absent");
    }
    Ok(parsed.map(|digest| (digest, stat.mtime)))
}

/// Absence is an answer, not an error.
fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn small_len(blob: &Blob) -> u64 {
    blob.small.as_ref().map_or(0, |small| small.len() as u64)
}

/// A panic while the maps are locked cannot leave them inconsistent: each change is one map operation.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
