//! Files as one worker thread reads them, without ever waiting for the disk itself.
//!
//! Behind [`Files`] is the thread's ring, or where `io_uring` is refused a pool of blocking threads; they give the same
//! results and errors, and the same tests hold them to that. The choice is made once, by whoever calls
//! [`Files::new`]; should the kernel later refuse the ring (a filter that was put up meanwhile), the operations that
//! wait fail, and those that follow go to the pool.
//!
//! **What needs no wait is done at once**, on the calling thread: a path whose components the kernel has in memory is
//! walked by `openat2(2)` with `RESOLVE_CACHED` (5.12), which gives up where it would have to ask the disk, and small
//! pieces that are in the page cache are read by `preadv2(2)` with `RWF_NOWAIT`, which does the same. Only what those
//! give up on goes through the ring or the pool, as does everything where the calls are not known or refused.
//!
//! **Dropping.** Every operation owns its path, buffer and file until the kernel is done with it. A dropped future
//! therefore leaves nothing behind that could be written to; its operation runs to its end unseen. A file that was
//! opened for nobody is closed.

use std::cmp::Ordering;
use std::ffi::{CStr, CString};
use std::fs::{File, Metadata};
use std::io::{self, IoSliceMut};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fcntl_setfl, openat2};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::openat2::{self, BeneathError};
use super::pool::Pool;
use super::readahead::Devices;
use super::ring::Ring;

/// Reads up to this length are tried at once, in bytes: copying more would take the thread longer than asking.
const AT_ONCE_BYTES_MAX: usize = 64 * 1024;

/// What is known of a file without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Length in bytes.
    pub len: u64,
    /// Number of the device that the filesystem is on, as in `st_dev`.
    pub dev: u64,
    /// Inode number, unique on that device.
    pub ino: u64,
    /// When the content was last changed.
    pub mtime: SystemTime,
    /// When anything about the file was last changed, its names included. Nobody can set this back.
    pub ctime: SystemTime,
    /// When it was last accessed, as far as the filesystem keeps account of that.
    pub atime: SystemTime,
    /// Whether it is a regular file.
    pub is_file: bool,
}

impl From<&Metadata> for Stat {
    fn from(metadata: &Metadata) -> Self {
        Self {
            len: metadata.len(),
            dev: metadata.dev(),
            ino: metadata.ino(),
            mtime: time(metadata.mtime(), metadata.mtime_nsec()),
            ctime: time(metadata.ctime(), metadata.ctime_nsec()),
            atime: time(metadata.atime(), metadata.atime_nsec()),
            is_file: metadata.is_file(),
        }
    }
}

/// The files of one worker thread; bound to it. A clone shares the ring, or the pool, with its original.
#[derive(Clone)]
pub struct Files {
    ring: Option<Ring>,
    pool: Pool,
    pub(super) devices: Devices,
}

impl Files {
    /// With `use_ring` sets a ring up for this thread, else the blocking pool is used.
    ///
    /// To be called on a current-thread runtime of tokio, inside of a `LocalSet` or not. The ring's driver is a task of
    /// that runtime, so operations go on only while it runs, and [`drain`](Self::drain) comes before its end.
    ///
    /// Errors, with `use_ring` only: what [`probe`](super::probe) would have told; no runtime, or another kind.
    ///
    /// # Panics
    ///
    /// With `use_ring`, if the runtime was built without I/O (`enable_io`).
    pub fn new(use_ring: bool) -> io::Result<Self> {
        let ring = if use_ring { Some(Ring::new()?) } else { None };
        Ok(Self { ring, ..Self::without_ring() })
    }

    /// Uses the blocking pool.
    pub fn without_ring() -> Self {
        Self { ring: None, pool: Pool::new(), devices: Devices::default() }
    }

    /// Whether operations go through a ring.
    pub fn uses_ring(&self) -> bool {
        self.ring().is_some()
    }

    /// Opens a file for reading, close-on-exec, and where the kernel lets us (our own files) with `O_NOATIME`: the
    /// access time is the time of last use, which reading alone does not mean.
    ///
    /// Follows symbolic links. A directory opens too, and reading it fails, as it does for a FIFO. Opening a FIFO may wait
    /// for its writer, on a thread of the kernel or of the pool, and with it [`drain`](Self::drain): nothing that a client
    /// sends creates one.
    ///
    /// Errors: as of `open(2)`; `InvalidInput` for a path with a NUL byte.
    pub async fn open(&self, path: &Path) -> io::Result<File> {
        match self.open_with(path, libc::O_NOATIME).await {
            // Another owner's file.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => self.open_with(path, 0).await,
            result => result,
        }
    }

    /// Opens the regular file at `path`, which is relative, beneath the directory `root` for reading: see
    /// [`openat2`](mod@super::openat2). With `follow` symbolic links are followed that stay beneath it.
    pub async fn open_beneath(
        &self,
        root: &Arc<File>,
        path: &CStr,
        follow: bool,
    ) -> Result<File, BeneathError> {
        if let Some(opened) = openat2::open_beneath(root, path, follow, true) {
            return opened;
        }
        let (root, path) = (Arc::clone(root), path.to_owned());
        // Only what is not in memory comes here, and the ring has no operation that looks before it opens.
        let opened = self.pool.run(move || Ok(openat2::open_beneath(&root, &path, follow, false))).await;
        opened.map_err(BeneathError::Io)?.unwrap_or(Err(BeneathError::Absent))
    }

    /// Looks at the file at `path`, following symbolic links.
    ///
    /// Errors: as of `stat(2)`; `InvalidInput` for a path with a NUL byte; through the ring also `EMFILE` and `ENFILE`.
    pub async fn stat(&self, path: &Path) -> io::Result<Stat> {
        match open_at_once(path, OFlags::PATH) {
            Some(Ok(named)) => return Ok(Stat::from(&named.metadata()?)),
            Some(Err(error)) => return Err(error),
            None => {}
        }
        match self.ring() {
            // The kernel leaves STATX to a worker always; opening a cached path it does at once, and what is open can
            // be looked at without waiting. `O_PATH` only names the file, be it a FIFO or unreadable.
            Some(ring) => {
                let named = ring.open(terminated(path)?, libc::O_PATH).await?;
                Ok(Stat::from(&named.metadata()?))
            }
            None => self.pool.stat(path).await,
        }
    }

    /// Reads the `len` bytes from `offset` on; fewer only where the file ends before, none behind its end.
    ///
    /// Allocates `len` bytes first: the caller bounds it.
    ///
    /// Errors: as of `pread(2)`, and then nothing of what was read is returned; `InvalidInput` if the range ends
    /// beyond 2^63 bytes; `OutOfMemory`.
    pub async fn read_at(&self, file: &Arc<File>, offset: u64, len: usize) -> io::Result<Bytes> {
        check_range(offset, len as u64)?;
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(len)?;
        let buffer = match self.ring() {
            Some(ring) => ring.read(file, buffer, len, offset).await?,
            None => self.pool.read(file, buffer, len, offset).await?,
        };
        Ok(buffer.into())
    }

    /// Reads the first `len` bytes as [`read_at`](Self::read_at) does, at once if they are few and in the page cache: for
    /// what is small and was looked at lately.
    ///
    /// Errors: as of [`read_at`](Self::read_at).
    pub async fn read_small(&self, file: &Arc<File>, len: usize) -> io::Result<Bytes> {
        let content = read_at_once(file, len);
        if content.len() == len { Ok(content.into()) } else { self.read_at(file, 0, len).await }
    }

    /// Brings the `len` bytes from `offset` on into the page cache, and returns when the last of them is there; those
    /// before it are asked for earlier and as a rule there too. Nothing is copied.
    ///
    /// To be asked for only what is missing ([`is_window_resident`](super::is_window_resident)): for a 2 MiB window of
    /// which all is there it costs 40–85 µs of CPU for nothing.
    ///
    /// By FADVISE WILLNEED, in as many pieces as the device needs for the whole window to come in, linked to a READ of
    /// the last byte. A cold window of 2 MiB is in after 1.9–2.5 ms for 30–40 µs of this thread's CPU, of which no
    /// stretch is long; each piece beyond the first adds 4–6 µs (6.18, ext4 on a virtual disk, which takes 8 MiB in one
    /// piece). A window that reaches behind the end of the file comes in as well, but nobody waits for it.
    ///
    /// Errors: as of `pread(2)`; `InvalidInput` if the range ends beyond 2^63 bytes.
    pub async fn populate(&self, file: &Arc<File>, offset: u64, len: usize) -> io::Result<()> {
        let len = len as u64;
        check_range(offset, len)?;
        let piece = self.devices.of(file).piece;
        match self.ring() {
            Some(ring) => ring.populate(file, offset, len, piece).await,
            None => self.pool.populate(file, offset, len, piece).await,
        }
    }

    /// Waits until no operation is in flight, those of dropped futures included. For the end of a runtime: while others
    /// begin operations it may wait for ever. Cancelling it is harmless.
    pub async fn drain(&self) {
        if let Some(ring) = &self.ring {
            ring.drain().await;
        }
        self.pool.drain().await;
    }

    async fn open_with(&self, path: &Path, flags: i32) -> io::Result<File> {
        if let Some(opened) = open_at_once(path, OFlags::from_bits_retain(flags.cast_unsigned())) {
            return opened;
        }
        match self.ring() {
            Some(ring) => ring.open(terminated(path)?, flags).await,
            None => self.pool.open(path, flags).await,
        }
    }

    fn ring(&self) -> Option<&Ring> {
        self.ring.as_ref().filter(|ring| ring.works())
    }
}

/// Opens a file for reading, or with `O_PATH`, if the kernel has everything in memory that it takes, or finds that there
/// is none. `None` if that cannot be told without waiting, or not in this way.
fn open_at_once(path: &Path, flags: OFlags) -> Option<io::Result<File>> {
    let reads = !flags.contains(OFlags::PATH);
    // Opening must not wait for a lease to be given up either, nor for a FIFO's writer.
    let at_once = if reads { OFlags::NONBLOCK } else { OFlags::empty() };
    match openat2(CWD, path, flags | at_once | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::CACHED) {
        Ok(file) => {
            let file = File::from(file);
            if reads {
                // The ring would take the flag to mean that its reads must not wait either.
                fcntl_setfl(&file, flags).ok()?;
            }
            Some(Ok(file))
        }
        Err(Errno::NOENT) => Some(Err(Errno::NOENT.into())),
        // What else is wrong is said by the call that everybody knows.
        Err(_) => None,
    }
}

/// As many of the first `len` bytes as are in the page cache; none if they are too many to look.
fn read_at_once(file: &File, len: usize) -> Vec<u8> {
    if len == 0 || len > AT_ONCE_BYTES_MAX {
        return Vec::new();
    }
    let mut buffer = vec![0; len];
    let read = preadv2(file, &mut [IoSliceMut::new(&mut buffer)], 0, ReadWriteFlags::NOWAIT);
    // Whatever is wrong, waiting shows it too.
    buffer.truncate(read.unwrap_or(0));
    buffer
}

fn terminated(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a path with a NUL byte"))
}

/// The kernel's offsets are signed, and -1 would mean to the ring: where the file stands.
fn check_range(offset: u64, len: u64) -> io::Result<()> {
    let end = offset.checked_add(len).and_then(|end| i64::try_from(end).ok());
    end.map(drop).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("no file reaches {len} bytes from {offset} on"))
    })
}

/// A time of the kernel: seconds since 1970, negative before, and nanoseconds that always count forwards.
fn time(seconds: i64, nanoseconds: i64) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let second = match seconds.cmp(&0) {
        Ordering::Less => SystemTime::UNIX_EPOCH.checked_sub(whole),
        Ordering::Equal | Ordering::Greater => SystemTime::UNIX_EPOCH.checked_add(whole),
    };
    let part = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0));
    second.and_then(|second| second.checked_add(part)).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests;
