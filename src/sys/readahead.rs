//! How much of a window one `posix_fadvise(WILLNEED)` brings in.
//!
//! The kernel cuts each call to the larger of the device's read-ahead and its longest request
//! (`force_page_cache_ra` in mm/readahead.c): of a 2 MiB window with 128 KiB and 128 KiB set, 6.4 % came in, with
//! 128 KiB and 1280 KiB 62.7 % (6.18, ext4 on a loop device). A longer window is advised piece by piece.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What every kernel reads ahead unless told otherwise (`VM_READAHEAD_PAGES`), and the shortest piece: where an
/// administrator chose less, the window comes in only partly.
const PIECE_MIN: u32 = 128 << 10;
/// The longest piece.
const PIECE_MAX: u32 = 16 << 20;
/// How many devices are remembered.
const DEVICES_MAX: usize = 64;

/// The pieces of the devices met so far. A device is asked once, with a few reads in sysfs, which never wait for a
/// disk. A clone shares what is known.
#[derive(Clone, Default)]
pub(super) struct Pieces(Rc<RefCell<Vec<(u64, u32)>>>);

impl Pieces {
    /// How many bytes of `file` to advise at once.
    pub(super) fn of(&self, file: &File) -> u32 {
        let Ok(metadata) = file.metadata() else { return PIECE_MIN };
        let device = metadata.dev();
        let mut known = self.0.borrow_mut();
        if let Some((_, piece)) = known.iter().find(|(number, _)| *number == device) {
            return *piece;
        }
        let piece = piece_of(Path::new("/sys"), device);
        if known.len() == DEVICES_MAX {
            known.clear();
        }
        known.push((device, piece));
        piece
    }
}

/// Looks a device up below `sysfs`. A partition's limits are those of its disk, one folder up. A filesystem without a
/// block device (NFS) has a `bdi` alone; one whose device number is its own invention (btrfs, overlayfs) has nothing.
fn piece_of(sysfs: &Path, device: u64) -> u32 {
    let number = format!("{}:{}", libc::major(device), libc::minor(device));
    let block = sysfs.join("dev/block").join(&number);
    let kib = |path: PathBuf| std::fs::read_to_string(path).ok()?.trim().parse::<u32>().ok();
    let limit = |queue: &Path| {
        let read_ahead = kib(queue.join("read_ahead_kb"))?;
        Some(read_ahead.max(kib(queue.join("max_sectors_kb")).unwrap_or(0)))
    };
    limit(&block.join("queue"))
        .or_else(|| limit(&block.join("../queue")))
        .or_else(|| limit(&sysfs.join("class/bdi").join(&number)))
        .map_or(PIECE_MIN, |kib| kib.saturating_mul(1024).clamp(PIECE_MIN, PIECE_MAX))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

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
                assert_eq!(piece_of(root.path(), device), kib << 10, "{read_ahead:?} {max_sectors:?}");
            }
        }
    }

    #[test]
    fn a_filesystem_without_a_disk_has_a_limit_too() {
        let root = sysfs("128", "1280");
        assert_eq!(piece_of(root.path(), NFS), 1 << 20);
        assert_eq!(piece_of(root.path(), UNKNOWN), PIECE_MIN);
        assert_eq!(piece_of(Path::new("/nonexistent"), DISK), PIECE_MIN);
    }

    #[test]
    fn a_device_is_remembered() {
        let pieces = Pieces::default();
        let file = tempfile::tempfile().unwrap();
        let first = pieces.clone().of(&file);
        assert!((PIECE_MIN..=PIECE_MAX).contains(&first));
        assert_eq!(pieces.0.borrow().len(), 1);
        pieces.0.borrow_mut()[0].1 = 4096;
        assert_eq!(pieces.of(&file), 4096);
    }
}
