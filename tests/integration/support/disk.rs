//! Filesystems of a test's own: one of which a copy can be taken as a power cut would leave it, and one that fills up.
//! Needs root.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::tools;

/// How a filesystem treats what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Journal {
    /// ext4 as it comes: a file's length on disk covers only what has reached the disk.
    Ordered,
    /// Lengths reach the disk before the data does: files come back at their full length, full of zeros.
    LengthFirst,
}

/// An image file with a mounted ext4.
pub(crate) struct Disk {
    home: TempDir,
    journal: Journal,
}

impl Disk {
    /// A fresh one of 512 MiB, of which as much is taken as is used.
    pub(crate) fn new(journal: Journal) -> Self {
        let disk = Self::unmounted(journal);
        let image = std::fs::File::create(disk.image()).expect("our own directory");
        image.set_len(512 << 20).expect("a sparse file");
        tools::succeed(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk.image()));
        disk.mount();
        disk
    }

    fn unmounted(journal: Journal) -> Self {
        let disk = Self { home: TempDir::with_prefix("disk-").expect("a temporary directory"), journal };
        std::fs::create_dir(disk.path()).expect("our own directory");
        disk
    }

    fn image(&self) -> PathBuf {
        self.home.path().join("image")
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.home.path().join("at")
    }

    /// Never writes of its own accord within a test's time: what reaches the image was synced.
    fn mount(&self) {
        let options = match self.journal {
            Journal::Ordered => "loop,commit=3600",
            Journal::LengthFirst => "loop,commit=3600,data=writeback,nodelalloc",
        };
        tools::succeed(Command::new("mount").args(["-o", options]).arg(self.image()).arg(self.path()));
    }

    /// What is on the disk at this instant, without what the kernel still holds back: what a machine finds that lost
    /// its power. Nobody may be writing meanwhile.
    pub(crate) fn after_power_cut(&self) -> Self {
        let copy = Self::unmounted(self.journal);
        tools::succeed(Command::new("cp").arg("--sparse=always").arg(self.image()).arg(copy.image()));
        copy.mount();
        copy
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

/// Brings one file to the disk, as the kernel does at a time of its own choosing.
pub(crate) fn write_back(path: &Path) {
    std::fs::File::open(path).and_then(|file| file.sync_all()).expect("the file is synced");
}

/// A filesystem of its own, so small that it fills up. Needs root.
pub(crate) struct SmallDisk {
    at: TempDir,
}

impl SmallDisk {
    /// `free` is how much of it is left, such as `8m`. The filesystem is larger than any blob here, so that none is refused
    /// for its size alone.
    pub(crate) fn mount(free: &str) -> Self {
        let at = TempDir::with_prefix("small-disk-").expect("a temporary directory");
        let free: usize = free.trim_end_matches('m').parse().expect("a number of MiB");
        let size = format!("size={}m", 64 + free);
        tools::succeed(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(at.path()));
        std::fs::write(at.path().join("taken"), vec![0; 64 * super::MIB]).expect("room for what takes it");
        Self { at }
    }

    /// Makes 64 MiB of room.
    pub(crate) fn free_up(&self) {
        std::fs::remove_file(self.at.path().join("taken")).expect("what took it");
    }

    /// Takes all that is left.
    pub(crate) fn fill_up(&self) {
        let mut rest = std::fs::File::create(self.at.path().join("rest")).expect("our own directory");
        while rest.write_all(&[0; 4096]).is_ok() {}
    }

    pub(crate) fn path(&self) -> &Path {
        self.at.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.at.path()).status();
    }
}
