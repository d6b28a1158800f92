//! Whether a file's bytes are in the page cache: whether `sendfile` would have to wait for the disk.
//!
//! Both answers are a look at one instant: the kernel may drop any clean page the moment after.

use std::fs::File;
use std::io::IoSliceMut;
use std::ops::Range;
use std::os::fd::AsRawFd;

use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// `cachestat(2)`, since 6.5: one number on every architecture but alpha.
const SYS_CACHESTAT: libc::c_long = 451;
/// Where `cachestat` is refused, one byte of this many is looked at.
const STRIDE: u64 = 256 << 10;

/// Whether the page with the byte at `offset` is in the page cache, by reading that byte without waiting
/// (`preadv2(RWF_NOWAIT)`; 0.5 µs where it is).
///
/// **Asking brings the page in**: the kernel starts to read the page that it did not find (seen on 6.18), in the
/// thread's time (4–13 µs). So a `Some(true)` says nothing of the neighbouring pages if the same byte was asked for
/// before; for a window use [`is_window_resident`].
///
/// `None` where it cannot be told: at or behind the end of the file, on a filesystem that cannot read without
/// waiting, under a filter that refuses the call.
pub fn is_resident(file: &File, offset: u64) -> Option<bool> {
    if i64::try_from(offset).is_err() {
        return None;
    }
    let mut byte = [0];
    loop {
        let mut slices = [IoSliceMut::new(&mut byte)];
        match preadv2(file, &mut slices, offset, ReadWriteFlags::NOWAIT) {
            Ok(1) => return Some(true),
            Err(Errno::AGAIN) => return Some(false),
            Err(Errno::INTR) => {}
            Ok(_) | Err(_) => return None,
        }
    }
}

/// Whether all `len` bytes from `offset` on are in the page cache, or on their way there; they must be within the file.
///
/// By `cachestat(2)`, which changes nothing (0.1 µs for 2 MiB of which nothing is there, 0.5–14 µs for 2 MiB that is
/// all there, depending on the size of the kernel's folios). Where that is refused (before 6.5, or another owner's
/// file) by [`is_resident`] for the first byte, one in every 256 KiB, and the last.
///
/// `None` where neither can tell, and for a window of no bytes.
pub fn is_window_resident(file: &File, offset: u64, len: u64) -> Option<bool> {
    let last = offset.checked_add(len)?.checked_sub(1).filter(|_| len > 0)?;
    if let Some(pages) = cached_pages(file, offset, len) {
        let page = page_size();
        return Some(pages > last / page - offset / page);
    }
    is_sample_resident(file, offset, last)
}

/// The parts of the window that are not in the page cache, in whole pages but for its ends, as far as that can be told:
/// where `cachestat(2)` is refused, all of it or nothing, by [`is_window_resident`]'s other means.
pub fn absent_runs(file: &File, offset: u64, len: u64) -> Vec<Range<u64>> {
    let mut runs = Vec::new();
    let end = offset.saturating_add(len);
    if cached_pages(file, offset, len.max(1)).is_none() {
        if len > 0 && is_window_resident(file, offset, len) != Some(true) {
            runs.push(offset..end);
        }
        return runs;
    }
    collect_absent(file, offset..end, &mut runs);
    runs
}

/// By halves, so that it takes as many looks as the window is fragmented.
fn collect_absent(file: &File, window: Range<u64>, runs: &mut Vec<Range<u64>>) {
    let (page, len) = (page_size(), window.end - window.start);
    if len == 0 {
        return;
    }
    let pages = (window.end - 1) / page - window.start / page + 1;
    match cached_pages(file, window.start, len) {
        Some(0) => match runs.last_mut() {
            Some(last) if last.end == window.start => last.end = window.end,
            _ => runs.push(window),
        },
        Some(cached) if cached < pages && pages > 1 => {
            let middle = (window.start / page + pages / 2) * page;
            collect_absent(file, window.start..middle, runs);
            collect_absent(file, middle..window.end, runs);
        }
        _ => {}
    }
}

/// How many pages of the window are in the page cache.
fn cached_pages(file: &File, offset: u64, len: u64) -> Option<u64> {
    /// `struct cachestat_range`.
    #[repr(C)]
    struct Window {
        offset: u64,
        len: u64,
    }
    /// `struct cachestat`, in pages.
    #[repr(C)]
    #[derive(Default)]
    struct Counts {
        cached: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    let (range, mut counts) = (Window { offset, len }, Counts::default());
    let flags: libc::c_uint = 0;
    // SAFETY: both pointers lead to live structs of the layout that the call is documented to read and to write, and
    // it keeps neither.
    let result =
        unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut counts, flags) };
    (result == 0).then_some(counts.cached)
}

fn page_size() -> u64 {
    // SAFETY: takes a number and returns one.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096).max(1)
}

fn is_sample_resident(file: &File, first: u64, last: u64) -> Option<bool> {
    let mut at = first;
    while at < last {
        if !is_resident(file, at)? {
            return Some(false);
        }
        at = at.saturating_add(STRIDE);
    }
    is_resident(file, last)
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;

    use rustix::fs::{Advice, fadvise};

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Two MiB on the disk, none of it in the page cache where the filesystem has a disk.
    fn cold() -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![1; 2 << 20]).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        file
    }

    #[test]
    fn what_was_read_is_resident() {
        let file = cold();
        let mut all = vec![0; 2 << 20];
        rustix::io::pread(&file, &mut all[..], 0).unwrap();
        for (offset, len) in
            [(0, 1), (0, 2 * MIB), (4095, 2), (4096, 4096), (2 * MIB - 1, 1), (1, 2 * MIB - 1)]
        {
            assert_ne!(is_window_resident(&file, offset, len), Some(false), "{len} from {offset}");
            assert_ne!(
                is_sample_resident(&file, offset, offset + len - 1),
                Some(false),
                "{len} from {offset}"
            );
            assert_ne!(is_resident(&file, offset), Some(false), "{offset}");
        }
    }

    #[test]
    fn a_hole_in_the_cache_is_seen() {
        let file = cold();
        if cached_pages(&file, 0, 2 * MIB) != Some(0) {
            return; // a filesystem in memory, or a kernel without cachestat
        }
        assert_eq!(is_window_resident(&file, 0, 2 * MIB), Some(false));
        assert_eq!(is_resident(&file, MIB), Some(false));
        // One page alone; without advice its neighbours would be read as well.
        fadvise(&file, 0, None, Advice::Random).unwrap();
        rustix::io::pread(&file, &mut [0; 1][..], MIB).unwrap();
        assert_eq!(is_window_resident(&file, MIB, 4096), Some(true));
        assert_eq!(is_window_resident(&file, MIB + 100, 1), Some(true));
        assert_eq!(is_window_resident(&file, MIB - 1, 2), Some(false));
        assert_eq!(is_window_resident(&file, MIB, 4097), Some(false));
        // The first and the last page are there, the one 256 KiB on is not.
        rustix::io::pread(&file, &mut [0; 1][..], 2 * MIB - 1).unwrap();
        assert_eq!(is_sample_resident(&file, MIB, 2 * MIB - 1), Some(false));
    }

    #[test]
    fn the_holes_are_found() {
        let file = cold();
        let absent = |offset, len| {
            let runs = absent_runs(&file, offset, len);
            runs.into_iter().map(|run| (run.start, run.end)).collect::<Vec<_>>()
        };
        if cached_pages(&file, 0, 2 * MIB) != Some(0) {
            return; // a filesystem in memory, or a kernel without cachestat
        }
        assert_eq!(absent(0, 2 * MIB), [(0, 2 * MIB)]);
        assert_eq!(absent(5, 100), [(5, 105)]);
        assert_eq!(absent(0, 0), []);
        fadvise(&file, 0, None, Advice::Random).unwrap();
        rustix::io::pread(&file, &mut [0; 1][..], MIB + 5).unwrap();
        assert_eq!(absent(0, 2 * MIB), [(0, MIB), (MIB + page_size(), 2 * MIB)]);
        assert_eq!(absent(MIB, 10), []);
        assert_eq!(absent(MIB - 1, 2), [(MIB - 1, MIB)]);
    }

    #[test]
    fn nothing_can_be_told_of_what_is_not_there() {
        let file = cold();
        for offset in [2 * MIB, 3 * MIB, i64::MAX as u64, u64::MAX] {
            assert_eq!(is_resident(&file, offset), None, "{offset}");
        }
        assert_eq!(is_window_resident(&file, 0, 0), None);
        assert_eq!(is_window_resident(&file, u64::MAX, 2), None);
        let writer = OpenOptions::new().write(true).open("/dev/null").unwrap();
        assert_eq!(is_resident(&writer, 0), None);
    }
}
