//! Files as a worker reads them: through its ring, or through the blocking pool.
use std::ffi::CString;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::pool::Pool;
use super::ring::Ring;

/// The longest window that [`Files::populate`] takes: 1 GiB.
const POPULATE_MAX: u32 = 1 << 30;

/// What is known of a file without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Length in bytes.
    pub len: u64,
    /// Number of the filesystem's device, as in `st_dev`.
    pub dev: u64,
    /// Inode number, unique on that device.
    pub ino: u64,
    /// When the content was last changed.
    pub mtime: SystemTime,
    /// Whether it is a regular file.
    pub is_file: bool,
}

impl From<&Metadata> for Stat {
    fn from(metadata: &Metadata) -> Self {
        let nanos = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
        Self {
            len: metadata.len(),
            dev: metadata.dev(),
            ino: metadata.ino(),
            mtime: time(metadata.mtime(), nanos),
            is_file: metadata.is_file(),
        }
    }
}

impl From<&libc::statx> for Stat {
    fn from(statx: &libc::statx) -> Self {
        Self {
            len: statx.stx_size,
            dev: libc::makedev(statx.stx_dev_major, statx.stx_dev_minor),
            ino: statx.stx_ino,
            mtime: time(statx.stx_mtime.tv_sec, statx.stx_mtime.tv_nsec),
            is_file: u32::from(statx.stx_mode) & libc::S_IFMT == libc::S_IFREG,
        }
    }
}

/// Files as one worker thread reads them, without ever blocking it: through the thread's ring, or through the blocking
/// pool. A clone is the same.
#[derive(Clone)]
pub struct Files {
    ring: Option<Ring>,
    pool: Pool,
}

impl Files {
    /// With `use_ring` sets up a ring for this thread.
    pub fn new(use_ring: bool) -> io::Result<Self> {
        let ring = if use_ring { Some(Ring::new()?) } else { None };
        Ok(Self { ring, pool: Pool::new() })
    }

    /// Whether operations go through a ring.
    pub fn uses_ring(&self) -> bool {
        self.ring().is_some()
    }

    /// Opens for reading.
    pub async fn open(&self, path: &Path) -> io::Result<File> {
        match self.open_with(path, libc::O_NOATIME).await {
            // Another owner's file: its access time then moves as the mount says.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => self.open_with(path, 0).await,
            result => result,
        }
    }

    /// Looks at the file at `path`.
    pub async fn stat(&self, path: &Path) -> io::Result<Stat> {
        let name = terminated(path)?;
        match self.ring() {
            Some(ring) => ring.stat(name).await,
            None => self.pool.stat(path).await,
        }
    }

    /// Reads `len` bytes.
    pub async fn read_at(&self, file: &Arc<File>, offset: u64, len: usize) -> io::Result<Bytes> {
        check_window(offset, len as u64)?;
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(len)?;
        let buffer = match self.ring() {
            Some(ring) => ring.read(file, buffer, len, offset).await?,
            None => self.pool.read(file, buffer, len, offset).await?,
        };
        Ok(buffer.into())
    }

    /// Brings a window into the page cache.
    pub async fn populate(&self, file: &Arc<File>, offset: u64, len: usize) -> io::Result<()> {
        check_window(offset, len as u64)?;
        let len = u32::try_from(len).ok().filter(|len| *len <= POPULATE_MAX);
        let len = len.ok_or_else(|| invalid("a window of more than 1 GiB"))?;
        if len == 0 {
            return Ok(());
        }
        match self.ring() {
            Some(ring) => ring.populate(file, offset, len).await,
            None => self.pool.populate(file, offset, len).await,
        }
    }

    /// Waits until no operation is in flight.
    pub async fn drain(&self) {
        if let Some(ring) = &self.ring {
            ring.drain().await;
        }
        self.pool.drain().await;
    }

    async fn open_with(&self, path: &Path, flags: i32) -> io::Result<File> {
        let name = terminated(path)?;
        match self.ring() {
            Some(ring) => ring.open(name, flags).await,
            None => self.pool.open(path, flags).await,
        }
    }

    fn ring(&self) -> Option<&Ring> {
        self.ring.as_ref().filter(|ring| ring.works())
    }
}

fn terminated(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| invalid("a path with a NUL byte"))
}

/// The kernel's offsets are signed; and -1 would mean to the ring "wherever the file stands".
fn check_window(offset: u64, len: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if i64::try_from(end).is_ok() => Ok(()),
        _ => Err(invalid("a window that ends beyond the longest file")),
    }
}

fn time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let start = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    };
    start
        .and_then(|start| start.checked_add(Duration::from_nanos(nanoseconds.into())))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[tokio::test]
    async fn smoke() {
        super::super::probe().unwrap();
        for ring in [true, false] {
            let files = Files::new(ring).unwrap();
            let path = Path::new("/proc/self/exe");
            let s = files.stat(path).await.unwrap();
            let f = Arc::new(files.open(path).await.unwrap());
            assert_eq!(s, Stat::from(&f.metadata().unwrap()));
            let b = files.read_at(&f, 0, s.len as usize + 10).await.unwrap();
            assert_eq!(&b[..], &std::fs::read(path).unwrap()[..]);
            files.populate(&f, 5, 1 << 20).await.unwrap();
            assert_eq!(files.open(Path::new("/nonexist")).await.unwrap_err().kind(), io::ErrorKind::NotFound);
            files.drain().await;
        }
    }
}
