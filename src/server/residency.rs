//! Whether a region can be sent without waiting for the disk, asked often and answered cheaply.
//!
//! The kernel is asked about every page of a region (`cachestat`), because a look at one of them can deceive: a reader
//! that jumped about leaves single pages behind, and so does a look that reads. That takes 0.5 to 10 µs per region,
//! which is little beside sending 4 MiB and too much on every request for something hot. So each thread remembers the
//! regions that it saw resident, for a second: what is sent all the time is not what the kernel drops first.

use std::cell::RefCell;
use std::fs::File;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::body::Region;
use crate::sys;

/// How long a region that was seen resident is taken to be.
const MEMORY: Duration = Duration::from_secs(1);
/// How many regions a thread remembers, about; a power of two. 256 of the longest are a gigabyte.
const SLOTS: usize = 256;

/// How far apart the bytes are that [`has_arrived`] looks at.
const STRIDE: usize = 256 << 10;

thread_local! {
    static SEEN: RefCell<Memo> = const { RefCell::new(Memo { slots: Vec::new() }) };
}

/// Whether all of `region` is, or was a moment ago, in the page cache. False too where the kernel does not say.
pub(super) fn is_resident(region: &Region) -> bool {
    SEEN.with_borrow_mut(|seen| {
        let now = Instant::now();
        if seen.has(region, now) {
            return true;
        }
        let all = sys::is_window_resident(&region.file, region.offset, region.len as u64);
        let resident = all == Some(true) && has_arrived(region);
        if resident {
            seen.add(region, now);
        }
        resident
    })
}

/// Whether the pages of a region that are in the page cache can be sent: the kernel counts those too that it is still
/// reading. It reads in long runs, so one byte of every [`STRIDE`] and the last are looked at, half a µs each. Where a
/// filesystem cannot tell, they are taken to be there.
fn has_arrived(region: &Region) -> bool {
    let last = region.len.saturating_sub(1);
    let mut looked_at = (0..last).step_by(STRIDE).chain([last]);
    looked_at.all(|at| sys::is_resident(&region.file, region.offset + at as u64) != Some(false))
}

/// What was seen resident, one region a slot.
struct Memo {
    slots: Vec<Option<Seen>>,
}

struct Seen {
    /// Keeps the address from being used for another file, but not the file open.
    file: Weak<File>,
    offset: u64,
    len: usize,
    at: Instant,
}

impl Memo {
    fn has(&self, region: &Region, now: Instant) -> bool {
        self.slots.get(slot(region)).and_then(Option::as_ref).is_some_and(|seen| {
            std::ptr::eq(seen.file.as_ptr(), Arc::as_ptr(&region.file))
                && (seen.offset, seen.len) == (region.offset, region.len)
                && now.saturating_duration_since(seen.at) < MEMORY
        })
    }

    fn add(&mut self, region: &Region, now: Instant) {
        if self.slots.is_empty() {
            self.slots.resize_with(SLOTS, || None);
        }
        self.slots[slot(region)] = Some(Seen {
            file: Arc::downgrade(&region.file),
            offset: region.offset,
            len: region.len,
            at: now,
        });
    }
}

/// Fibonacci hashing of what tells regions apart: the file's address and the offset.
fn slot(region: &Region) -> usize {
    let key = (Arc::as_ptr(&region.file) as usize >> 4) as u64 ^ (region.offset >> 12).rotate_left(32);
    let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    usize::try_from(hash >> (u64::BITS - SLOTS.trailing_zeros())).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_remembered_for_a_second_and_no_other_with_it() {
        let region = |offset, len| Region {
            file: Arc::new(tempfile::tempfile().unwrap()),
            offset,
            len,
            recent: false,
        };
        let mut memo = Memo { slots: Vec::new() };
        let (one, other) = (region(4096, 10), region(4096, 10));
        let now = Instant::now();
        assert!(!memo.has(&one, now));
        memo.add(&one, now);
        assert!(memo.has(&one, now) && memo.has(&one.clone(), now + MEMORY / 2));
        assert!(!memo.has(&one, now + MEMORY));
        assert!(!memo.has(&other, now));
        assert!(!memo.has(&Region { len: 11, ..one.clone() }, now));
        assert!(!memo.has(&Region { offset: 4097, ..one.clone() }, now));
    }

    #[test]
    fn slots_are_used_evenly() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let of = |number: u64| Region {
            file: Arc::clone(&file),
            offset: number * (4 << 20),
            len: 4 << 20,
            recent: false,
        };
        let used: std::collections::HashSet<usize> =
            (0..SLOTS as u64).map(|number| slot(&of(number))).collect();
        assert!(used.iter().all(|slot| *slot < SLOTS));
        assert!(used.len() > SLOTS / 2, "{} slots for {SLOTS} regions", used.len());
    }

    #[test]
    fn what_was_just_written_is_resident_and_what_is_not_there_is_not() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        std::os::unix::fs::FileExt::write_all_at(&*file, &vec![1; 100_000], 0).unwrap();
        assert!(is_resident(&Region { file: Arc::clone(&file), offset: 0, len: 100_000, recent: false }));
        assert!(!is_resident(&Region { file, offset: 1 << 30, len: 100_000, recent: false }));
    }
}
