//! Reads what a disk holds, not what memory remembers of it, and leaves the page cache as it was.
//!
//! For whoever reads everything once to see whether it is still right: pages in memory say nothing about the disk under
//! them, and what is read once would push out what is read all the time.
//!
//! **How.** `O_DIRECT`, into a buffer at an address that devices can write to: nothing of it goes through the page cache,
//! and pages that have not been written yet are written first. Where the filesystem refuses that (tmpfs before 6.6, some
//! of FUSE) reading is [`Way::Buffered`]: what is in memory is read from there, and what was not is dropped afterwards
//! (`POSIX_FADV_DONTNEED`), page by page, so that neither more nor less is in memory than before.
//!
//! A file is opened with `O_NOATIME` where the kernel lets us: being looked at is not being used.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{Advice, OFlags, fadvise, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, pread};

use super::residency::absent_runs;

/// What is read at once, in bytes: long enough for any disk, and half a millisecond of one that gives 2 GB/s.
pub const PIECE: usize = 1 << 20;
/// What addresses, offsets and lengths of direct reads are multiples of, in bytes: no device asks for more than its
/// logical block, and none in use has larger ones.
const ALIGNMENT: usize = 4096;

/// How a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Past the page cache, from the disk.
    Direct,
    /// Through the page cache, which is put back as it was.
    Buffered,
}

/// A file that is open for reading, and how.
#[derive(Debug)]
pub struct Uncached {
    file: File,
    way: Way,
}

/// Where pieces are read into; to be used for one file after the other.
pub struct Buffer {
    bytes: Vec<u8>,
    /// Of the first byte at an aligned address.
    start: usize,
}

impl Buffer {
    /// Room for one piece.
    pub fn new() -> Self {
        let bytes = vec![0; PIECE + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        // Where an address cannot be aligned, reads are refused and go the other way.
        Self { bytes, start: if start <= ALIGNMENT { start } else { 0 } }
    }

    fn piece(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + PIECE]
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self::new()
    }
}

impl Uncached {
    /// Opens the file at `path`. Never waits for the writer of a FIFO.
    ///
    /// # Errors
    /// As of `open(2)`.
    pub fn open(path: &Path) -> io::Result<Self> {
        match open(path, libc::O_DIRECT) {
            Ok(file) => Ok(Self { file, way: Way::Direct }),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Self::open_buffered(path),
            Err(error) => Err(error),
        }
    }

    /// The same, through the page cache.
    ///
    /// # Errors
    /// As of `open(2)`.
    pub fn open_buffered(path: &Path) -> io::Result<Self> {
        let file = open(path, 0)?;
        // What is read ahead of us would be in memory without anybody knowing that it was not before.
        let _ = fadvise(&file, 0, None, Advice::Random);
        Ok(Self { file, way: Way::Buffered })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// How it is read.
    pub fn way(&self) -> Way {
        self.way
    }

    /// Reads the piece at `offset`, a multiple of [`PIECE`]; shorter only where the file ends in it.
    ///
    /// # Errors
    /// As of `pread(2)`; what the disk could not give is `EIO` as a rule.
    pub fn read_piece<'a>(&mut self, offset: u64, buffer: &'a mut Buffer) -> io::Result<&'a [u8]> {
        let piece = buffer.piece();
        if self.way == Way::Direct {
            match self.fill(offset, piece) {
                Ok(read) => return Ok(&buffer.piece()[..read]),
                // Some filesystems take the flag and refuse the read, or want more than we align to.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    let flags = fcntl_getfl(&self.file)?;
                    fcntl_setfl(&self.file, flags - OFlags::DIRECT)?;
                    let _ = fadvise(&self.file, 0, None, Advice::Random);
                    self.way = Way::Buffered;
                }
                Err(error) => return Err(error),
            }
        }
        let len = self.file.metadata()?.len().saturating_sub(offset).min(PIECE as u64);
        let absent = absent_runs(&self.file, offset, len);
        let piece = buffer.piece();
        let read = self.fill(offset, piece);
        for run in absent {
            // What cannot be dropped stays: that costs memory, nothing else.
            let _ = fadvise(&self.file, run.start, NonZeroU64::new(run.end - run.start), Advice::DontNeed);
        }
        Ok(&buffer.piece()[..read?])
    }

    /// Reads until the buffer is full or the file ends.
    fn fill(&self, offset: u64, piece: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < piece.len() {
            match pread(&self.file, &mut piece[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => {
                    filled += read;
                    // A direct read that is not a whole number of blocks ended at the end of the file.
                    if self.way == Way::Direct && !read.is_multiple_of(ALIGNMENT) {
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(filled)
    }
}

fn open(path: &Path, flags: i32) -> io::Result<File> {
    let with = |flags| std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path);
    match with(flags | libc::O_NONBLOCK | libc::O_NOATIME) {
        // Another owner's file.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => with(flags | libc::O_NONBLOCK),
        opened => opened,
    }
}

// A piece is a whole number of aligned blocks.
const _: () = assert!(PIECE.is_multiple_of(ALIGNMENT));

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::sys::residency::is_window_resident;

    /// A file on the disk (where the temporary directory is on one), and what is in it.
    fn written(len: usize) -> (tempfile::NamedTempFile, Vec<u8>) {
        let mut content = vec![0; len];
        fastrand::Rng::with_seed(len as u64).fill(&mut content);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&content).unwrap();
        file.as_file().sync_all().unwrap();
        fadvise(file.as_file(), 0, None, Advice::DontNeed).unwrap();
        (file, content)
    }

    fn read_all(mut file: Uncached) -> Vec<u8> {
        let (mut all, mut buffer) = (Vec::new(), Buffer::new());
        loop {
            let piece = file.read_piece(all.len() as u64, &mut buffer).unwrap();
            all.extend_from_slice(piece);
            if piece.len() < PIECE {
                return all;
            }
        }
    }

    #[test]
    fn either_way_reads_every_byte() {
        for len in [0, 1, 511, 512, 4095, 4096, 4097, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 4096] {
            let (file, content) = written(len);
            assert!(read_all(Uncached::open(file.path()).unwrap()) == content, "direct, {len}");
            assert!(read_all(Uncached::open_buffered(file.path()).unwrap()) == content, "buffered, {len}");
        }
    }

    #[test]
    fn what_was_not_in_memory_is_not_there_afterwards_and_what_was_still_is() {
        const HOT: usize = 300 << 10;
        type Open = fn(&Path) -> io::Result<Uncached>;
        for (name, open) in
            [("direct", Uncached::open as Open), ("buffered", Uncached::open_buffered as Open)]
        {
            let (file, content) = written(2 * PIECE + 100);
            let reader = File::open(file.path()).unwrap();
            if is_window_resident(&reader, 0, content.len() as u64) != Some(false) {
                return; // a filesystem in memory, or a kernel without cachestat
            }
            fadvise(&reader, 0, None, Advice::Random).unwrap();
            pread(&reader, &mut vec![0; HOT][..], PIECE as u64).unwrap();
            assert!(read_all(open(file.path()).unwrap()) == content);
            assert_eq!(is_window_resident(&reader, PIECE as u64, HOT as u64), Some(true), "{name}");
            let behind = PIECE as u64 + HOT.next_multiple_of(64 << 10) as u64;
            let absent: u64 =
                absent_runs(&reader, 0, content.len() as u64).iter().map(|run| run.end - run.start).sum();
            // Folios that are partly hot may keep their neighbours.
            assert!(absent >= content.len() as u64 - behind + PIECE as u64 - (64 << 10), "{name}: {absent}");
        }
    }

    #[test]
    fn what_was_written_and_not_synced_is_read_too() {
        let (mut file, mut content) = written(PIECE);
        file.write_all(b"more").unwrap();
        content.extend_from_slice(b"more");
        assert!(read_all(Uncached::open(file.path()).unwrap()) == content);
    }

    #[test]
    fn a_directory_opens_and_cannot_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let opened = Uncached::open(directory.path())
            .and_then(|mut opened| opened.read_piece(0, &mut Buffer::new()).map(<[u8]>::len));
        assert!(opened.is_err());
        assert_eq!(
            Uncached::open(&directory.path().join("none")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
