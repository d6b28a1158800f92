//! Files that have lost their name and that somebody still reads: their bytes are free when the last reader closes them.
//!
//! Eviction removes what was used longest ago, also while a slow reader of a fill, or another process, has it open. The
//! disk gets its space back later then, so counting it as free would have the same bytes freed twice, or promise space that
//! is not there. Each such file is kept open here too, and looked at again ([`Departing::settle`]) until nobody else has it.
//!
//! Survives nothing: what a process does not remember after a restart, the filesystem's own count of free space knows.

use std::fs::File;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::sys::is_open_here_only;

/// Files remembered at most; of more, the smallest count as free at once.
const FILES_MAX: usize = 256;
/// A reader that is about to end does so within this time, as does another process that has the file open for nothing (see
/// [`super::Store::forget_removed`]). Until then nothing else is evicted in place of the file.
const SOON: Duration = Duration::from_secs(30);

/// The files of one tree that are on their way.
#[derive(Debug, Default)]
pub struct Departing(Mutex<Vec<Departed>>);

#[derive(Debug)]
struct Departed {
    file: File,
    bytes: u64,
    since: Instant,
}

impl Departing {
    /// A file of `bytes` has lost its last name. The bytes that are free now: its own, unless somebody else has it open;
    /// then perhaps those of one that is too much.
    pub fn add(&self, file: File, bytes: u64) -> u64 {
        // Where it cannot be told, it counts as gone.
        if is_open_here_only(&file) != Some(false) {
            return bytes;
        }
        let mut files = lock(&self.0);
        files.push(Departed { file, bytes, since: Instant::now() });
        if files.len() <= FILES_MAX {
            return 0;
        }
        let smallest = files.iter().enumerate().min_by_key(|(_, departed)| departed.bytes);
        smallest.map(|(at, _)| at).map_or(0, |at| files.swap_remove(at).bytes)
    }

    /// Lets go of the files that nobody has open any more. Their bytes.
    pub fn settle(&self) -> u64 {
        let mut files = lock(&self.0);
        let gone = files.extract_if(.., |departed| is_open_here_only(&departed.file) != Some(false));
        gone.map(|departed| departed.bytes).sum()
    }

    /// Bytes that are still taken.
    pub fn bytes(&self) -> u64 {
        lock(&self.0).iter().map(|departed| departed.bytes).sum()
    }

    /// Those of them that are likely to be free soon.
    pub fn bytes_soon(&self) -> u64 {
        let files = lock(&self.0);
        let soon = files.iter().filter(|departed| departed.since.elapsed() < SOON);
        soon.map(|departed| departed.bytes).sum()
    }
}

/// A panic while the list is locked cannot leave it inconsistent: each change is one operation on it.
fn lock(files: &Mutex<Vec<Departed>>) -> std::sync::MutexGuard<'_, Vec<Departed>> {
    files.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A file without a name, which the second handle reads.
    fn nameless(directory: &tempfile::TempDir) -> (File, File) {
        let path = directory.path().join("file");
        fs::write(&path, "content").unwrap();
        let handles = (File::open(&path).unwrap(), File::open(&path).unwrap());
        fs::remove_file(&path).unwrap();
        handles
    }

    #[test]
    fn bytes_are_free_when_the_last_reader_closes() {
        let directory = tempfile::tempdir().unwrap();
        let departing = Departing::default();
        let (file, reader) = nameless(&directory);
        if departing.add(file, 7) == 7 {
            return; // no leases here
        }
        let (other, gone) = nameless(&directory);
        drop(gone);
        assert_eq!(departing.add(other, 5), 5, "nobody has it");
        assert_eq!((departing.bytes(), departing.bytes_soon(), departing.settle()), (7, 7, 0));
        drop(reader);
        assert_eq!(departing.settle(), 7);
        assert_eq!((departing.bytes(), departing.settle()), (0, 0));
    }

    #[test]
    fn of_too_many_files_the_smallest_count_as_free() {
        let directory = tempfile::tempdir().unwrap();
        let departing = Departing::default();
        let mut readers = Vec::new();
        let mut freed = Vec::new();
        for bytes in 0..FILES_MAX as u64 + 2 {
            let (file, reader) = nameless(&directory);
            freed.push(departing.add(file, 100 + bytes));
            readers.push(reader);
        }
        if freed[0] == 100 {
            return; // no leases here
        }
        assert_eq!(freed[FILES_MAX - 1..], [0, 100, 101]);
    }
}
