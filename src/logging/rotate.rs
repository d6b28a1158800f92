//! A log file that is put aside when it has grown: `LOG` becomes `LOG.1`, that `LOG.2`, and so on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// How long a file gets, in bytes.
const FILE_BYTES_MAX: u64 = 10 << 20;
/// How many old files are kept.
const OLD_FILES_MAX: u32 = 5;

/// Appends lines to a file. Each `write` is taken to be whole lines, and is never divided between two files.
///
/// Of several processes that write to one file each rotates it when it sees fit, and goes on with the file that it has
/// open: give each a file of its own.
#[derive(Debug)]
pub struct Rotating {
    path: PathBuf,
    file: File,
    len: u64,
    len_max: u64,
}

impl Rotating {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// It cannot be opened for writing.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::with_length(path, FILE_BYTES_MAX)
    }

    fn with_length(path: &Path, len_max: u64) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(Self { path: path.to_owned(), len: file.metadata()?.len(), file, len_max })
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..OLD_FILES_MAX).rev() {
            // Most are not there at first; what cannot be renamed is replaced by the next, or stays.
            let _ = fs::rename(self.old(number), self.old(number + 1));
        }
        fs::rename(&self.path, self.old(1))?;
        *self = Self::with_length(&self.path, self.len_max)?;
        Ok(())
    }

    fn old(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

impl Write for Rotating {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        if self.len > 0 && self.len.saturating_add(lines.len() as u64) > self.len_max {
            // A file that cannot be put aside grows on: better than losing lines. The next line tries again.
            let _ = self.rotate();
        }
        self.file.write_all(lines)?;
        self.len += lines.len() as u64;
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_lines_move_on_and_the_oldest_go() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).ok();
        let mut log = Rotating::with_length(&path, 20).unwrap();
        for number in 0..10 {
            assert_eq!(log.write(format!("line {number:03}\n").as_bytes()).unwrap(), 9);
        }
        assert_eq!(read("log").unwrap(), "line 008\nline 009\n");
        assert_eq!(read("log.1").unwrap(), "line 006\nline 007\n");
        assert_eq!(read("log.4").unwrap(), "line 000\nline 001\n");

        drop(log);
        let mut log = Rotating::with_length(&path, 20).unwrap();
        for number in 10..14 {
            log.write_all(format!("line {number:03}\n").as_bytes()).unwrap();
        }
        log.write_all(&[b'x'; 30]).unwrap();
        assert_eq!(read("log").unwrap().len(), 30, "a line that is too long has a file of its own");
        assert_eq!(read("log.1").unwrap(), "line 012\nline 013\n");
        assert_eq!(read("log.5").unwrap(), "line 004\nline 005\n");
        assert_eq!(read("log.6"), None);
    }

    #[test]
    fn a_file_that_cannot_be_put_aside_grows_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::create_dir_all(directory.path().join("log.1/full")).unwrap();
        let mut log = Rotating::with_length(&path, 5).unwrap();
        log.write_all(b"one\n").unwrap();
        // Every place is taken by a directory that nothing can be renamed to.
        for number in 2..=5 {
            fs::create_dir_all(directory.path().join(format!("log.{number}/full"))).unwrap();
        }
        log.write_all(b"two\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    }
}
