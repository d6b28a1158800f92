//! Blobs as they are held for sending.
//!
//! A blob is held by its open file, or, if it is small and there is room, by its content in memory and nothing else:
//! then it takes no descriptor. Which of the two is decided when it is first looked at (`handles`).
//!
//! Dropping a [`Blob`] closes its file once the last body that sends from it is gone.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::HeaderValue;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use super::layout::Layout;
use crate::oci::Digest;
use crate::sys::files::{Files, Stat};

/// How long what was seen on disk is believed without looking again.
pub const REVALIDATE_AFTER: Duration = Duration::from_millis(500);
/// Contents up to this size may be kept in memory, in bytes.
pub const SMALL: u64 = 32 * 1024;
/// A blob's last use is put on disk at most this often, in milliseconds.
const TOUCH_EVERY_MS: u64 = 180_000;

/// See [`generation`].
static GENERATION: AtomicU64 = AtomicU64::new(0);
/// What moments that are kept as numbers are counted from.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

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

/// A blob that can be sent.
#[derive(Debug)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub len: u64,
    /// What it can be sent from.
    pub held: Held,
    /// The header fields that name it.
    pub labels: Labels,
    /// The media type of its content as a manifest; filled by whoever first serves it as one.
    pub media_type: OnceLock<HeaderValue>,
    file_id: FileId,
    /// When the file was last seen under the digest's name, in nanoseconds since `START`; 0 if that holds no longer.
    looked_at: AtomicU64,
    /// When it was last used, in milliseconds since the epoch.
    used: AtomicU64,
    /// When its last use was put on disk, in milliseconds since the epoch.
    touched: AtomicU64,
}

/// What a blob can be sent from.
#[derive(Clone, Debug)]
pub enum Held {
    /// The whole content, of at most [`SMALL`] bytes.
    Memory(Bytes),
    /// The file, open for reading.
    File(Arc<File>),
}

/// The values of the header fields that name content: ready-made, as formatting them took a seventh of the instructions of a hit.
#[derive(Clone, Debug)]
pub struct Labels {
    /// `Docker-Content-Digest`.
    pub digest: HeaderValue,
    /// `ETag`: the digest in quotes.
    pub etag: HeaderValue,
}

impl Labels {
    /// The labels of the content with this digest.
    pub fn new(digest: &Digest) -> Self {
        let etag = Bytes::from(format!("\"{digest}\""));
        // A digest is an algorithm's name, a colon and hexadecimal digits: always a valid value.
        let value = |bytes| HeaderValue::from_maybe_shared(bytes).unwrap_or(HeaderValue::from_static(""));
        Self { digest: value(etag.slice(1..etag.len() - 1)), etag: value(etag) }
    }
}

/// Which file it is. Without a descriptor the number of an inode may come to name another file, but hardly one that was
/// written at the same nanosecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
    len: u64,
    mtime: SystemTime,
}

impl From<&Stat> for FileId {
    fn from(stat: &Stat) -> Self {
        Self { device: stat.dev, inode: stat.ino, len: stat.len, mtime: stat.mtime }
    }
}

impl Blob {
    /// The blob in `file`, which was found under its name at `looked_at`. With `in_memory` the content is read if it is
    /// small, and the file closed.
    pub(super) async fn open(
        files: &Files,
        digest: Digest,
        file: File,
        in_memory: impl FnOnce(u64) -> bool,
        looked_at: Instant,
    ) -> io::Result<Self> {
        let stat = Stat::from(&file.metadata()?);
        let file = Arc::new(file);
        let held = match usize::try_from(stat.len) {
            Ok(len) if stat.len <= SMALL && in_memory(stat.len) => {
                let content = files.read_small(&file, len).await?;
                // A file that changes under its digest's name is served from the file, whose end the transport checks.
                if content.len() == len { Held::Memory(content) } else { Held::File(file) }
            }
            _ => Held::File(file),
        };
        let now = milliseconds(SystemTime::now());
        // What was recorded lately need not be recorded again; a time to come is no record.
        let touched = Some(milliseconds(stat.atime)).filter(|at| *at <= now).unwrap_or(0);
        Ok(Self {
            digest,
            len: stat.len,
            held,
            labels: Labels::new(&digest),
            media_type: OnceLock::new(),
            file_id: FileId::from(&stat),
            looked_at: AtomicU64::new(nanoseconds(looked_at)),
            used: AtomicU64::new(0),
            touched: AtomicU64::new(touched),
        })
    }

    /// The whole content. Reads it if it is not kept in memory; `limit` bounds that.
    ///
    /// # Errors
    /// Reading failed, the file is shorter than it was, or the content is longer than `limit` bytes.
    pub async fn content(&self, files: &Files, limit: u64) -> io::Result<Bytes> {
        let file = match &self.held {
            Held::Memory(content) => return Ok(content.clone()),
            Held::File(file) => file,
        };
        if self.len > limit {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("{} has {} bytes", self.digest, self.len),
            ));
        }
        let len = usize::try_from(self.len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let content = files.read_at(file, 0, len).await?;
        if content.len() == len { Ok(content) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Whether this is the file that it is held of.
    pub(super) fn is_of(&self, stat: &Stat) -> bool {
        self.file_id == FileId::from(stat)
    }

    /// When its file was last seen, if that is to be believed at `now`.
    pub(super) fn fresh(&self, now: Instant) -> Option<Instant> {
        let at = *START + Duration::from_nanos(self.looked_at.load(Ordering::Acquire));
        (now.saturating_duration_since(at) < REVALIDATE_AFTER && at > *START).then_some(at)
    }

    /// When its file was last seen.
    pub(super) fn looked_at(&self) -> Instant {
        *START + Duration::from_nanos(self.looked_at.load(Ordering::Acquire))
    }

    /// Its file was seen.
    pub(super) fn looked(&self, at: Instant) {
        self.looked_at.store(nanoseconds(at), Ordering::Release);
    }

    /// Its file may be gone: whoever finds it has to look.
    pub(super) fn distrust(&self) {
        self.looked_at.store(0, Ordering::Release);
    }

    /// Whether somebody is sending it, or is about to, when nothing but a map has it.
    pub(super) fn is_in_use(self: &Arc<Self>) -> bool {
        let sent = matches!(&self.held, Held::File(file) if Arc::strong_count(file) > 1);
        sent || Arc::strong_count(self) > 1
    }

    /// Whether it is held by a file that has no name any more.
    pub(super) fn has_lost_its_name(&self) -> bool {
        match &self.held {
            Held::File(file) => rustix::fs::fstat(file).is_ok_and(|stat| stat.st_nlink == 0),
            Held::Memory(_) => false,
        }
    }

    /// When it was last used, in milliseconds since the epoch; 0 if it was not.
    pub(super) fn last_use_ms(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Records that it was used now; on disk at most every [`TOUCH_EVERY_MS`]. Returns at once; losing it is harmless.
    pub(super) fn touch(&self, layout: &Layout) {
        let now = milliseconds(SystemTime::now());
        self.used.store(now, Ordering::Relaxed);
        let touched = self.touched.load(Ordering::Relaxed);
        if now < touched.saturating_add(TOUCH_EVERY_MS) {
            return;
        }
        if self.touched.compare_exchange(touched, now, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        let file = match &self.held {
            Held::File(file) => Ok(Arc::clone(file)),
            Held::Memory(_) => Err(layout.blob(&self.digest)),
        };
        // Off the event loop: setting a time starts a journal transaction, which can wait for one under way.
        tokio::task::spawn_blocking(move || {
            let times = Timestamps {
                last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
                last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            };
            let recorded = match file {
                Ok(file) => rustix::fs::futimens(&file, &times),
                Err(path) => rustix::fs::utimensat(CWD, path, &times, AtFlags::empty()),
            };
            if let Err(error) = recorded {
                tracing::debug!(%error, "cannot record a blob's last use");
            }
        });
    }
}

/// Since the epoch; 0 before it.
fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Since `START`; at least 1, as 0 is no moment.
fn nanoseconds(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*START).as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// Absence is an answer, not an error.
pub(super) fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
