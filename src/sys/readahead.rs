//! Bringing a window of a file into the page cache before it is sent.
//!
//! **By reading, on a thread that may wait.** [`Files::bring_in`] splices the window into a pipe that is then thrown
//! away: to the kernel a sequential reader, for whom it reads ahead by itself, in large folios and asynchronously, while
//! what it already has is being sent. Nothing is copied, and every page of the window has arrived when the call returns,
//! not just the last. Advice (`posix_fadvise(WILLNEED)`, as [`Files::populate`] gives it) is served page by page instead
//! and never starts that read-ahead. A cold file of 2 GiB, window by window (6.18, ext4 on a virtual disk with
//! `read_ahead_kb` 8192, pinned to one core; three interleaved runs on a busy machine):
//!
//! | way | GB/s | CPU, s/GB |
//! |---|---|---|
//! | WILLNEED for 2 MiB, wait for its last byte; one window ahead | 1.15–1.40 | 0.21–0.25 |
//! | the same, seven windows ahead | 1.13–1.36 | 0.22–0.23 |
//! | `pread` of 1 MiB into one buffer | 0.7–2.7 | 0.10–0.32 |
//! | `sendfile` to `/dev/null`, whose pipe holds 64 KiB | 1.19–1.29 | 0.03 |
//! | `splice` into a pipe of 1 MiB | 1.66–2.42 | 0.03 |
//!
//! So deeper queues of advice gain little: the kernel's work per page, not the queue, is what they wait for.
//!
//! **Bounded.** At most [`WINDOWS_MAX`] windows of a worker are being read at once, in the order in which they were asked
//! for. So a small cold file waits for a few windows and not for all that many large ones would like to have.
//! What the kernel reads ahead of a stream besides is its administrator's choice (`read_ahead_kb`).
//!
//! **Where splicing is not possible**, or the device's read-ahead is so short (`read_ahead_kb` is 128 unless an
//! administrator or the cloud's image says otherwise) that a single reader would wait for each piece of it, the window is
//! advised as a whole, piece by piece: the kernel cuts each call to the larger of the device's read-ahead and its longest
//! request (`force_page_cache_ra` in mm/readahead.c). Of a 2 MiB window with 128 KiB and 128 KiB set, 6.4 % came in, with
//! 128 KiB and 1280 KiB 62.7 % (6.18, ext4 on a loop device).
//!
//! Beside clients that hammer a 4 KiB blob, a cold stream of 2 GiB ran at 0.70 GB/s by advice and 1.36 so (nginx 1.27 to
//! 1.48), beside 2,000 requests a second at 0.90 and 1.31 (nginx 1.26 to 1.61), with no worse p99 for the others.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::files::Files;
use super::send::Pipe;

/// How many windows a worker reads at once; more wait for their turn.
const WINDOWS_MAX: usize = 8;
/// How much of a window is spliced at once, in bytes. Between two calls even a kernel without preemption lets others have
/// the core.
const PIPE_BYTES: usize = 256 << 10;
/// The shortest read-ahead of a device, in bytes, with which one reader keeps it busy: a millisecond of half a GB/s.
const SEQUENTIAL_MIN: u32 = 512 << 10;
/// What every kernel reads ahead unless told otherwise (`VM_READAHEAD_PAGES`), and the shortest piece: where an
/// administrator chose less, the window comes in only partly.
const PIECE_MIN: u32 = 128 << 10;
/// The longest piece.
const PIECE_MAX: u32 = 16 << 20;
/// How many devices are remembered.
const DEVICES_MAX: usize = 64;

thread_local! {
    /// The turns of this thread's windows: [`Files`] are bound to a thread.
    static TURNS: Arc<Semaphore> = Arc::new(Semaphore::new(WINDOWS_MAX));
}

impl Files {
    /// Brings the `len` bytes from `offset` on into the page cache, and returns when all of them are there. Nothing is
    /// copied. To be asked for only what is missing ([`is_window_resident`](super::is_window_resident)).
    ///
    /// With or without a ring by a thread of tokio's blocking pool, about 25 µs of CPU for the way there and back. Where
    /// that fails, whatever the reason, and where the device's read-ahead is short, as [`populate`](Self::populate).
    ///
    /// **Dropping.** Before its turn has come nothing is left; after, the thread reads the window to its end, and keeps
    /// the file open and the turn until then. [`drain`](Self::drain) does not wait for that thread, the runtime's own end
    /// does.
    ///
    /// Errors: as of [`populate`](Self::populate). A file that ends before the window does is no error.
    pub async fn bring_in(&self, file: &Arc<File>, offset: u64, len: usize) -> io::Result<()> {
        if self.devices.of(file).read_ahead < SEQUENTIAL_MIN {
            return self.populate(file, offset, len).await;
        }
        let turns = TURNS.with(Arc::clone);
        let turn = turns.acquire_owned().await.map_err(io::Error::other)?;
        let read = {
            let file = Arc::clone(file);
            move || {
                let result = read_through(&file, offset, len);
                drop((file, turn));
                result
            }
        };
        match tokio::task::spawn_blocking(read).await.map_err(io::Error::other) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => self.populate(file, offset, len).await,
        }
    }
}

/// Reads the window through pipes that nobody empties. A pipe of its own for each piece: making one costs some
/// microseconds, and there is nothing to keep between windows.
fn read_through(file: &File, mut offset: u64, len: usize) -> io::Result<()> {
    let mut rest = len;
    while rest > 0 {
        match Pipe::new(PIPE_BYTES)?.fill(file.as_fd(), offset, rest.min(PIPE_BYTES))? {
            0 => break,
            read => {
                rest -= read;
                offset += read as u64;
            }
        }
    }
    Ok(())
}

/// The devices met so far. Each is asked once, with a few reads in sysfs, which never wait for a disk. A clone shares what
/// is known.
#[derive(Clone, Default)]
pub(super) struct Devices(Rc<RefCell<Vec<(u64, Device)>>>);

/// How the kernel reads from a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Device {
    /// How many bytes to advise at once.
    pub(super) piece: u32,
    /// How many bytes it reads ahead of a sequential reader.
    pub(super) read_ahead: u32,
}

impl Devices {
    /// The device that `file` is on.
    pub(super) fn of(&self, file: &File) -> Device {
        let Ok(metadata) = file.metadata() else { return Device::UNKNOWN };
        let number = metadata.dev();
        let mut known = self.0.borrow_mut();
        if let Some((_, device)) = known.iter().find(|(known, _)| *known == number) {
            return *device;
        }
        let device = Device::find(Path::new("/sys"), number);
        if known.len() == DEVICES_MAX {
            known.clear();
        }
        known.push((number, device));
        device
    }
}

impl Device {
    const UNKNOWN: Self = Self { piece: PIECE_MIN, read_ahead: PIECE_MIN };

    /// Looks one up below `sysfs`. A partition's limits are those of its disk, one folder up. A filesystem without a block
    /// device (NFS) has a `bdi` alone; one whose device number is its own invention (btrfs, overlayfs) has nothing.
    fn find(sysfs: &Path, number: u64) -> Self {
        let name = format!("{}:{}", libc::major(number), libc::minor(number));
        let block = sysfs.join("dev/block").join(&name);
        Self::from_queue(&block.join("queue"))
            .or_else(|| Self::from_queue(&block.join("../queue")))
            .or_else(|| Self::from_queue(&sysfs.join("class/bdi").join(&name)))
            .unwrap_or(Self::UNKNOWN)
    }

    fn from_queue(queue: &Path) -> Option<Self> {
        let bytes = |name| {
            let kib = fs::read_to_string(queue.join(name)).ok()?.trim().parse::<u32>().ok()?;
            Some(kib.saturating_mul(1024))
        };
        let read_ahead = bytes("read_ahead_kb")?;
        let longest = read_ahead.max(bytes("max_sectors_kb").unwrap_or(0));
        Some(Self { piece: longest.clamp(PIECE_MIN, PIECE_MAX), read_ahead })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::symlink;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;
    use crate::sys::is_window_resident;

    const LEN: usize = 4 << 20;
    const DISK: u64 = libc::makedev(8, 0);
    const PARTITION: u64 = libc::makedev(8, 1);
    const NFS: u64 = libc::makedev(0, 40);
    const UNKNOWN: u64 = libc::makedev(0, 41);

    fn sysfs(read_ahead: &str, max_sectors: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for folder in ["devices/sda/sda1", "devices/sda/queue", "dev/block", "class/bdi/0:40"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        symlink("../../devices/sda", at("dev/block/8:0")).unwrap();
        symlink("../../devices/sda/sda1", at("dev/block/8:1")).unwrap();
        fs::write(at("devices/sda/queue/read_ahead_kb"), read_ahead).unwrap();
        fs::write(at("devices/sda/queue/max_sectors_kb"), max_sectors).unwrap();
        fs::write(at("class/bdi/0:40/read_ahead_kb"), "1024\n").unwrap();
        root
    }

    #[test]
    fn the_larger_limit_of_the_disk_counts() {
        for (read_ahead, max_sectors, kib) in [
            ("128\n", "1280\n", 1280),
            ("8192\n", "4096\n", 8192),
            ("0\n", "64\n", 128),
            ("4294967295\n", "512\n", 16 << 10),
            ("nonsense", "1280\n", 128),
            ("256\n", "", 256),
        ] {
            let root = sysfs(read_ahead, max_sectors);
            for device in [DISK, PARTITION] {
                assert_eq!(
                    Device::find(root.path(), device).piece,
                    kib << 10,
                    "{read_ahead:?} {max_sectors:?}"
                );
            }
        }
    }

    #[test]
    fn a_filesystem_without_a_disk_has_a_limit_too() {
        let root = sysfs("128", "1280");
        let nfs = Device::find(root.path(), NFS);
        assert_eq!(nfs, Device { piece: 1 << 20, read_ahead: 1 << 20 });
        assert_eq!(Device::find(root.path(), UNKNOWN), Device::UNKNOWN);
        assert_eq!(Device::find(Path::new("/nonexistent"), DISK), Device::UNKNOWN);
    }

    /// Four MiB, on the disk and not in the page cache where the filesystem has a disk; opened anew, so that nothing is
    /// known of earlier readers.
    fn cold() -> Arc<File> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![1; LEN]).unwrap();
        file.as_file().sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        Arc::new(File::open(file.path()).unwrap())
    }

    fn on_runtime<F: Future<Output = ()>>(test: impl FnOnce(Files) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { test(Files::new(false).unwrap()).await });
    }

    #[test]
    fn a_window_that_was_brought_in_is_there() {
        on_runtime(|files| async move {
            let third = PIPE_BYTES / 3;
            for (offset, len) in
                [(0, LEN), (0, 1), (1, PIPE_BYTES), (third, 2 * PIPE_BYTES + 1), (LEN - 1, 1)]
            {
                let file = cold();
                files.bring_in(&file, offset as u64, len).await.unwrap();
                let there = is_window_resident(&file, offset as u64, len as u64);
                assert_ne!(there, Some(false), "{len} from {offset}");
            }
            // Behind the end there is nothing to wait for.
            let file = cold();
            files.bring_in(&file, 0, LEN + 1).await.unwrap();
            assert_ne!(is_window_resident(&file, 0, LEN as u64), Some(false));
            files.bring_in(&file, 1 << 40, 4096).await.unwrap();
            files.bring_in(&file, 7, 0).await.unwrap();
        });
    }

    #[test]
    fn what_cannot_be_spliced_is_read_the_other_way() {
        on_runtime(|files| async move {
            let folder = Arc::new(File::open("/").unwrap());
            assert!(read_through(&folder, 0, 10).is_err());
            let error = files.bring_in(&folder, 0, 10).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
            let error = files.bring_in(&folder, u64::MAX, 10).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        });
    }

    #[test]
    fn windows_wait_for_their_turn_and_give_it_back() {
        on_runtime(|files| async move {
            let file = cold();
            // Whatever the device of the temporary directory is.
            let device = Device { piece: PIECE_MIN, read_ahead: SEQUENTIAL_MIN };
            files.devices.0.borrow_mut().push((file.metadata().unwrap().dev(), device));
            let turns = TURNS.with(Arc::clone);
            let mut taken = turns.try_acquire_many(8).unwrap();
            assert_eq!(turns.available_permits(), 0);
            let mut cx = Context::from_waker(Waker::noop());
            {
                let mut waiting = pin!(files.bring_in(&file, 0, LEN));
                assert!(waiting.as_mut().poll(&mut cx).is_pending());
                let mut dropped = Box::pin(files.bring_in(&file, 0, LEN));
                assert!(dropped.as_mut().poll(&mut cx).is_pending());
                drop(dropped);
                assert_eq!(Arc::strong_count(&file), 1, "nothing is begun before its turn");
                drop(taken.split(1));
                waiting.await.unwrap();
            }
            drop(taken);
            // The turn of one that was dropped under way comes back as well.
            let mut dropped = Box::pin(files.bring_in(&file, 0, LEN));
            // It may be over already.
            let _ = dropped.as_mut().poll(&mut cx);
            drop(dropped);
            drop(turns.acquire_many(8).await.unwrap());
            assert_eq!(Arc::strong_count(&file), 1);
        });
    }

    #[test]
    fn a_device_is_remembered() {
        let devices = Devices::default();
        let file = tempfile::tempfile().unwrap();
        let first = devices.clone().of(&file);
        assert!((PIECE_MIN..=PIECE_MAX).contains(&first.piece));
        assert_eq!(devices.0.borrow().len(), 1);
        devices.0.borrow_mut()[0].1.piece = 4096;
        assert_eq!(devices.of(&file).piece, 4096);
    }
}
