//! Whether a file is open anywhere else.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `fcntl(2)`'s command that chooses the signal of a lease; one number on every architecture of Linux.
const F_SETSIG: libc::c_int = 10;

/// Whether nobody but this handle has the file open, in any process: read by asking for a write lease, which the kernel
/// grants only then (`fcntl(F_SETLEASE)`), and which is given back at once. A handle that was cloned (`dup`) counts once.
///
/// Who opens the file in between waits for that moment, so it is for files that have lost their name. `None` where it cannot
/// be told: the filesystem has no leases, or the file is another user's and the process has no `CAP_LEASE`.
pub fn is_open_here_only(file: &File) -> Option<bool> {
    let descriptor = file.as_raw_fd();
    // Who opens the file meanwhile has the kernel tell us. Its usual signal would end the process; this one is ignored.
    // SAFETY: takes numbers only, and the descriptor is open for as long as `file` is borrowed; so does the next one.
    if unsafe { libc::fcntl(descriptor, F_SETSIG, libc::SIGURG) } == -1 {
        return None;
    }
    // SAFETY: see above.
    let granted = unsafe { libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_WRLCK) } != -1;
    if granted {
        // SAFETY: see above.
        unsafe { libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_UNLCK) };
        return Some(true);
    }
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::EAGAIN) => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_open_elsewhere_until_the_last_other_handle_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "content").unwrap();
        let file = File::open(&path).unwrap();
        let Some(alone) = is_open_here_only(&file) else { return }; // no leases here
        assert!(alone);
        let reader = File::open(&path).unwrap();
        let writer = File::options().write(true).open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(is_open_here_only(&file), Some(false));
        drop(writer);
        assert_eq!(is_open_here_only(&file), Some(false));
        let clone = reader.try_clone().unwrap();
        drop(reader);
        assert_eq!(is_open_here_only(&file), Some(false), "a clone keeps it open");
        drop(clone);
        assert_eq!(is_open_here_only(&file), Some(true));
    }

    #[test]
    fn a_mapping_keeps_a_file_open() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "content").unwrap();
        let file = File::open(&path).unwrap();
        let other = File::open(&path).unwrap();
        // SAFETY: the file is this test's own, and nobody writes to it.
        let mapping = unsafe { memmap2::Mmap::map(&other).unwrap() };
        drop(other);
        assert_ne!(is_open_here_only(&file), Some(true));
        drop(mapping);
        assert_ne!(is_open_here_only(&file), Some(false));
    }

    #[test]
    fn a_directory_cannot_be_told() {
        assert_eq!(is_open_here_only(&File::open("/").unwrap()), None);
    }
}
