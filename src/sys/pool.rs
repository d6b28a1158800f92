//! The blocking pool: what [`Files`](super::Files) does where `io_uring` is refused.
//!
//! Tokio's pool of blocking threads does the work, at most [`OPERATIONS_MAX`] operations at once for each worker. A
//! dropped future leaves its operation to run to its end; its result is dropped there.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, pread};
use tokio::sync::Semaphore;

use super::files::Stat;

/// How many operations of one worker run at once, each on a thread of its own; more wait for their turn.
const OPERATIONS_MAX: u32 = 64;

/// The pool as one worker uses it. A clone shares the bound.
#[derive(Clone)]
pub(super) struct Pool {
    capacity: Arc<Semaphore>,
}

impl Pool {
    pub(super) fn new() -> Self {
        Self { capacity: Arc::new(Semaphore::new(OPERATIONS_MAX as usize)) }
    }

    pub(super) async fn open(&self, path: &Path, flags: i32) -> io::Result<File> {
        let path = path.to_owned();
        self.run(move || OpenOptions::new().read(true).custom_flags(flags).open(path)).await
    }

    pub(super) async fn stat(&self, path: &Path) -> io::Result<Stat> {
        let path = path.to_owned();
        self.run(move || std::fs::metadata(path).map(|metadata| Stat::from(&metadata))).await
    }

    /// Reads into the spare capacity of `buffer` until it holds `end` bytes or the file ends.
    pub(super) async fn read(
        &self,
        file: &Arc<File>,
        mut buffer: Vec<u8>,
        end: usize,
        offset: u64,
    ) -> io::Result<Vec<u8>> {
        let file = Arc::clone(file);
        self.run(move || {
            while buffer.len() < end {
                let at = offset + buffer.len() as u64;
                match pread(&*file, spare_capacity(&mut buffer), at) {
                    Ok(0) => break,
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            buffer.truncate(end);
            Ok(buffer)
        })
        .await
    }

    /// Brings `len` bytes from `offset` on into the page cache, advising `piece` bytes at once.
    pub(super) async fn populate(
        &self,
        file: &Arc<File>,
        offset: u64,
        len: u64,
        piece: u32,
    ) -> io::Result<()> {
        let file = Arc::clone(file);
        self.run(move || {
            let mut rest = len;
            while let Some(piece) = NonZeroU64::new(rest.min(u64::from(piece))) {
                // Advice that is not taken only makes the read below slower.
                let _ = fadvise(&*file, offset + len - rest, Some(piece), Advice::WillNeed);
                rest -= piece.get();
            }
            if len == 0 {
                return Ok(());
            }
            loop {
                match pread(&*file, &mut [0_u8], offset + len - 1) {
                    Err(Errno::INTR) => {}
                    result => return Ok(result.map(drop)?),
                }
            }
        })
        .await
    }

    /// Waits until no operation is under way.
    pub(super) async fn drain(&self) {
        // Never closed, so this ends with all permits in hand, or is cancelled.
        drop(self.capacity.acquire_many(OPERATIONS_MAX).await);
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let permit = Arc::clone(&self.capacity).acquire_owned().await.map_err(io::Error::other)?;
        let run = move || {
            let result = work();
            drop(permit);
            result
        };
        tokio::task::spawn_blocking(run).await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::sys::is_window_resident;

    fn file_of(content: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file.sync_all().unwrap();
        Arc::new(file)
    }

    #[tokio::test]
    async fn a_buffer_with_more_room_than_wanted_is_not_filled() {
        let file = file_of(b"0123456789");
        let read = Pool::new().read(&file, Vec::with_capacity(100), 4, 3).await;
        assert_eq!(read.unwrap(), b"3456");
    }

    #[tokio::test]
    async fn every_piece_of_a_window_is_advised() {
        let file = file_of(&vec![7; 1 << 20]);
        fadvise(&*file, 0, None, Advice::DontNeed).unwrap();
        Pool::new().populate(&file, 1, (1 << 20) - 1, 4096).await.unwrap();
        assert_ne!(is_window_resident(&file, 0, 1 << 20), Some(false));
    }

    #[tokio::test]
    async fn a_thread_at_work_is_waited_for() {
        let pool = Pool::new();
        let (reader, mut writer) = io::pipe().unwrap();
        let reader = Arc::new(File::from(std::os::fd::OwnedFd::from(reader)));
        let waiting = Arc::clone(&reader);
        let work = pool.run(move || io::Read::read(&mut &*waiting, &mut [0]));
        let mut work = std::pin::pin!(work);
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(work.as_mut().poll(&mut cx).is_pending());
        assert_eq!(pool.capacity.available_permits(), 63);
        writer.write_all(b"x").unwrap();
        pool.drain().await;
        assert_eq!(Arc::strong_count(&reader), 1);
        assert_eq!(work.await.unwrap(), 1);
    }
}
