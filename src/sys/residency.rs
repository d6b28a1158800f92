//! Whether a file's bytes are in the page cache: whether `sendfile` would have to wait for the disk.

use std::fs::File;
use std::io::IoSliceMut;

use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// Whether the page with the byte at `offset` is in the page cache.
///
/// `None` where that cannot be told: at or beyond the end of the file, on a filesystem that cannot read without
/// waiting, or under a filter that refuses the call.
pub fn is_resident(file: &File, offset: u64) -> Option<bool> {
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
