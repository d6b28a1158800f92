//! When the kernel begins to write what was written to a file.

use std::fs::File;
use std::os::fd::AsRawFd;

/// Has the kernel begin to write `len` bytes from `offset` on to the disk (`sync_file_range(2)`), without waiting for it
/// and without a promise: only an fsync makes anything durable, but then has less left to do.
///
/// What cannot do it, some filesystems, does not.
pub fn start_writeback(file: &File, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
    // SAFETY: takes numbers only, and the descriptor is open for as long as `file` is borrowed.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
    if result != 0 {
        tracing::trace!(error = %std::io::Error::last_os_error(), "sync_file_range");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn odd_ranges_do_no_harm() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 10_000]).unwrap();
        for (offset, len) in [(0, 10_000), (0, 0), (4096, u64::MAX), (u64::MAX, 1), (1 << 40, 1)] {
            start_writeback(&file, offset, len);
        }
        assert_eq!(file.metadata().unwrap().len(), 10_000);
    }
}
