//! The files of a front that are open, on one worker: found by path beneath a root, believed for a moment.
//!
//! Finding a file costs three calls of the kernel and more for a long path, so a handle is kept under its path for
//! [`BELIEVED_FOR`]. After that the path is walked again: a file that was replaced (by a rename, as it should be) is
//! served for so long at most after it, and for as long again if it is the root that was. A file that is changed in place
//! is noticed sooner, as the open file itself is looked at every [`LOOK_EVERY`]. What is being sent goes on from the file
//! that was opened, whatever happens to its name.
//!
//! Small files are kept with their content: it leaves in one write with the head. What nobody asked for in [`UNUSED_MAX`]
//! is closed, so that a file that was removed does not take its space for longer, nor a filesystem stay mounted.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::HeaderValue;
use lru::LruCache;

use crate::body::Body;
use crate::http::date;
use crate::http::range::ByteRange;
use crate::sys::{BeneathError, Files, Stat};

/// For how long a path is believed to name the file that it named.
const BELIEVED_FOR: Duration = Duration::from_millis(500);
/// How long what nobody asks for stays open. A task of the worker looks every half of it.
const UNUSED_MAX: Duration = Duration::from_secs(10);
/// How often an open file is looked at, at most: it costs 0.7 µs.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Handles that a front keeps on each worker.
const HANDLES_MAX: NonZeroUsize = NonZeroUsize::new(512).unwrap();
/// The largest file that is kept with its content, in bytes.
const SMALL_BYTES_MAX: u64 = 32 * 1024;
/// The most content that a front keeps on each worker, in bytes.
const CONTENT_BYTES_MAX: usize = 4 << 20;

/// An open file, and what is said about it.
pub(super) struct Handle {
    file: Arc<File>,
    seen: Seen,
    /// When it was last looked at.
    looked_at: Cell<Instant>,
    /// Its length in bytes.
    pub(super) len: u64,
    pub(super) modified: SystemTime,
    /// As nginx makes it: time and length, in hexadecimal digits.
    pub(super) etag: HeaderValue,
    pub(super) last_modified: HeaderValue,
    /// All of it, if it is small.
    content: Option<Bytes>,
}

/// What a path was found to name.
struct Found {
    handle: Rc<Handle>,
    /// When the path was walked.
    since: Instant,
    used: Instant,
}

/// What tells a file from what it was before.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    dev: u64,
    ino: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Seen {
    fn from(metadata: &Metadata) -> Self {
        Self {
            dev: metadata.dev(),
            ino: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Handle {
    /// The body of a part, or of all of it.
    pub(super) fn body(&self, part: Option<ByteRange>) -> Body {
        let (start, len) = part.map_or((0, self.len), |range| (range.start, range.len));
        match &self.content {
            Some(content) => {
                let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
                Body::bytes(content.slice(at(start)..at(start.saturating_add(len))))
            }
            None => Body::file(Arc::clone(&self.file), start, len),
        }
    }

    fn content_len(&self) -> usize {
        self.content.as_ref().map_or(0, Bytes::len)
    }

    fn is_unchanged(&self, now: Instant) -> bool {
        if now.duration_since(self.looked_at.get()) < LOOK_EVERY {
            return true;
        }
        self.looked_at.set(now);
        self.file.metadata().is_ok_and(|metadata| Seen::from(&metadata) == self.seen)
    }
}

/// A directory beneath which files are found.
pub(super) struct Root {
    path: PathBuf,
    /// Open, and since when.
    directory: RefCell<Option<(Arc<File>, Instant)>>,
}

impl Root {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, directory: RefCell::new(None) }
    }

    /// The directory, walked to again when it is no longer believed. Blocks for a path that the kernel does not have in
    /// memory, which is rare: it is walked all the time.
    fn open(&self, now: Instant) -> io::Result<Arc<File>> {
        let mut directory = self.directory.borrow_mut();
        if let Some((open, since)) = &*directory
            && now.duration_since(*since) < BELIEVED_FOR
        {
            return Ok(Arc::clone(open));
        }
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let open = Arc::new(OpenOptions::new().read(true).custom_flags(flags).open(&self.path)?);
        *directory = Some((Arc::clone(&open), now));
        Ok(open)
    }
}

/// The open files of one front on one worker.
pub(super) struct OpenFiles {
    files: Files,
    roots: Vec<Root>,
    follow: bool,
    /// By root and path.
    handles: RefCell<LruCache<Box<[u8]>, Found>>,
    /// Bytes of content among them.
    content_bytes: Cell<usize>,
    /// A task closes what nobody asks for.
    is_tidied: Cell<bool>,
}

/// The bytes of a key before the path.
const ROOT_BYTES: usize = 2;

impl OpenFiles {
    pub(super) fn new(files: Files, roots: Vec<PathBuf>, follow: bool) -> Self {
        let roots = roots.into_iter().map(Root::new).collect();
        let handles = RefCell::new(LruCache::new(HANDLES_MAX));
        Self { files, roots, follow, handles, content_bytes: Cell::new(0), is_tidied: Cell::new(false) }
    }

    /// The file at `path` beneath the root of this number. Slashes at the path's beginning mean nothing; it has no NUL.
    pub(super) async fn find(self: &Rc<Self>, root: u16, path: &[u8]) -> Result<Rc<Handle>, BeneathError> {
        let begin = path.iter().position(|byte| *byte != b'/').unwrap_or(path.len());
        let key = [&root.to_ne_bytes()[..], &path[begin..], b"\0"].concat();
        let now = Instant::now();
        if let Some(found) = self.handles.borrow_mut().get_mut(&key[..])
            && now.duration_since(found.since) < BELIEVED_FOR
            && found.handle.is_unchanged(now)
        {
            found.used = now;
            return Ok(Rc::clone(&found.handle));
        }
        // In a box, so that it does not make the future of who finds a handle larger.
        let opened = Box::pin(self.open(root, &key[ROOT_BYTES..], now)).await;
        match opened {
            Ok(handle) => {
                self.keep(key, &handle, now);
                Ok(handle)
            }
            Err(error) => {
                self.forget(&key);
                Err(error)
            }
        }
    }

    async fn open(&self, root: u16, path: &[u8], now: Instant) -> Result<Rc<Handle>, BeneathError> {
        let path = CStr::from_bytes_with_nul(path).map_err(|_| BeneathError::Absent)?;
        let path = if path.is_empty() { c"." } else { path };
        let root = self.roots.get(usize::from(root)).ok_or(BeneathError::Absent)?;
        let root = root.open(now).map_err(|error| {
            tracing::error!(root = %root.path.display(), %error, "cannot open the root of a location");
            BeneathError::Absent
        })?;
        let file = Arc::new(self.files.open_beneath(&root, path, self.follow).await?);
        let metadata = file.metadata().map_err(BeneathError::Io)?;
        let stat = Stat::from(&metadata);
        let text = |text: String| {
            HeaderValue::try_from(text).map_err(|error| BeneathError::Io(io::Error::other(error)))
        };
        let mut handle = Handle {
            seen: Seen::from(&metadata),
            looked_at: Cell::new(now),
            len: stat.len,
            modified: stat.mtime,
            etag: text(format!("\"{:x}-{:x}\"", metadata.mtime(), stat.len))?,
            last_modified: text(date::format(stat.mtime))?,
            content: None,
            file,
        };
        if handle.len <= SMALL_BYTES_MAX {
            let len = usize::try_from(handle.len).unwrap_or(0);
            let content = self.files.read_small(&handle.file, len).await.map_err(BeneathError::Io)?;
            // Shorter: it was cut meanwhile, which the one who sends it is going to notice.
            handle.content = (content.len() == len).then_some(content);
        }
        Ok(Rc::new(handle))
    }

    fn keep(self: &Rc<Self>, key: Vec<u8>, handle: &Rc<Handle>, now: Instant) {
        let mut bytes = self.content_bytes.get() + handle.content_len();
        let mut handles = self.handles.borrow_mut();
        let found = Found { handle: Rc::clone(handle), since: now, used: now };
        if let Some((_, old)) = handles.push(key.into(), found) {
            bytes -= old.handle.content_len();
        }
        while bytes > CONTENT_BYTES_MAX
            && let Some((_, old)) = handles.pop_lru()
        {
            bytes -= old.handle.content_len();
        }
        self.content_bytes.set(bytes);
        if !self.is_tidied.replace(true) {
            tokio::task::spawn_local(tidy(Rc::downgrade(self)));
        }
    }

    fn forget(&self, key: &[u8]) {
        if let Some(old) = self.handles.borrow_mut().pop(key) {
            self.content_bytes.set(self.content_bytes.get() - old.handle.content_len());
        }
    }

    /// Closes what nobody asked for lately; returns whether anything is left.
    fn close_unused(&self, now: Instant) -> bool {
        let mut handles = self.handles.borrow_mut();
        while let Some((_, oldest)) = handles.peek_lru()
            && now.duration_since(oldest.used) >= UNUSED_MAX
            && let Some((_, old)) = handles.pop_lru()
        {
            self.content_bytes.set(self.content_bytes.get() - old.handle.content_len());
        }
        for root in &self.roots {
            root.directory.borrow_mut().take_if(|(_, since)| now.duration_since(*since) >= UNUSED_MAX);
        }
        !handles.is_empty() || self.roots.iter().any(|root| root.directory.borrow().is_some())
    }
}

/// Closes what nobody asks for, as long as anything is open.
async fn tidy(open: Weak<OpenFiles>) {
    loop {
        tokio::time::sleep(UNUSED_MAX / 2).await;
        let Some(open) = open.upgrade() else { return };
        if !open.close_unused(Instant::now()) {
            open.is_tidied.set(false);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_nobody_asks_for_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "small").unwrap();
        std::fs::write(dir.path().join("b"), vec![0; 40_000]).unwrap();
        let files = Files::new(false).unwrap();
        let open = Rc::new(OpenFiles::new(files, vec![dir.path().to_owned()], true));
        let both = async {
            for (name, len) in [("a", 5), ("//b", 40_000), ("a", 5)] {
                assert_eq!(open.find(0, name.as_bytes()).await.unwrap().len, len);
            }
            assert!(matches!(open.find(0, b"absent").await, Err(BeneathError::Absent)));
            assert!(matches!(open.find(0, b"").await, Err(BeneathError::Directory)));
        };
        tokio::task::LocalSet::new().run_until(both).await;
        assert_eq!((open.handles.borrow().len(), open.content_bytes.get()), (2, 5));
        assert!(open.close_unused(Instant::now()));
        assert!(!open.close_unused(Instant::now() + UNUSED_MAX));
        assert_eq!((open.handles.borrow().len(), open.content_bytes.get()), (0, 0));
    }
}
