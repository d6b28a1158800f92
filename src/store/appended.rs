//! A file that grows from front to end and is hashed on the way: what fills and uploads are before they are blobs.
//!
//! Everything here blocks and belongs on a store thread. Nothing here is synced; who owns the file says when.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use crate::oci::Hasher;
use crate::sys;

/// How much is written before the kernel is asked to begin to put it on disk, in bytes. Of 512 MiB written in a second,
/// the fdatasync at the end takes 210–240 ms without that, 17–24 ms with 64 MiB, 4–7 ms with 16, 1–2 ms with 4, for the
/// same CPU time.
const WRITEBACK_EVERY: u64 = 8 << 20;
/// What one call writes, up to a multiple of as many in the file, in bytes. The page cache takes it in as one folio where
/// the filesystem has large ones; with a call for each of upstream's pieces they had 33 KiB on average, and a hit of 256
/// MiB cost 0.063 s/GB instead of 0.054. Larger ones (2 MiB: 0.055) gain nothing more, and where a hypervisor takes
/// free memory back, the large blocks go first: a fill of 512 MiB then took 2.0 s instead of 0.8.
const CALL_BYTES: usize = 64 << 10;
/// How many pieces one call writes: Linux's `IOV_MAX`.
const PIECES_MAX: usize = 1024;
/// Read size when data is hashed again, in bytes.
pub(super) const REHASH_BUFFER: usize = 1 << 20;

/// The file, and the hash of its first bytes.
#[derive(Debug)]
pub(super) struct Appended {
    file: Arc<File>,
    hasher: Hasher,
    /// Bytes that the hash saw before the file's first.
    prefix: u64,
}

impl Appended {
    /// `hasher` has seen what the file begins with.
    pub(super) fn new(file: File, hasher: Hasher) -> Self {
        Self { file: Arc::new(file), hasher, prefix: 0 }
    }

    /// An empty file whose content is hashed behind what `hasher` has seen.
    pub(super) fn behind(file: File, hasher: Hasher) -> Self {
        let prefix = hasher.len();
        Self { file: Arc::new(file), hasher, prefix }
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(super) fn hasher(&self) -> &Hasher {
        &self.hasher
    }

    /// Goes on from another state of the hash.
    pub(super) fn set_hasher(&mut self, hasher: Hasher) {
        self.hasher = hasher;
    }

    /// Bytes written and hashed so far.
    pub(super) fn written(&self) -> u64 {
        self.hasher.len() - self.prefix
    }

    /// Hashes what the file holds from where the hash stands.
    pub(super) fn hash_up_to(&mut self, end: u64) -> io::Result<()> {
        let mut buffer = vec![0; REHASH_BUFFER];
        while self.written() < end {
            let want = REHASH_BUFFER.min(usize::try_from(end - self.written()).unwrap_or(REHASH_BUFFER));
            match self.file.read_at(&mut buffer[..want], self.written())? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => self.hasher.update(&buffer[..read]),
            }
        }
        Ok(())
    }

    /// Appends and hashes. After an error nothing more counts as written: the file may hold a part of `chunks` behind
    /// [`Appended::written`], which is overwritten or hashed by whoever goes on.
    ///
    /// One call writes [`CALL_BYTES`], whatever pieces it comes in, and the hash follows while they are in the CPU's cache.
    pub(super) fn append(&mut self, chunks: &[Bytes]) -> io::Result<()> {
        let begun = self.written() / WRITEBACK_EVERY;
        let (mut chunks, mut left) = (chunks.iter().map(|chunk| &chunk[..]), &[][..]);
        loop {
            // Less than CALL_BYTES, so it is a usize.
            let into = usize::try_from(self.written() % CALL_BYTES as u64).unwrap_or_default();
            let pieces = take_front(&mut chunks, &mut left, CALL_BYTES - into);
            if pieces.is_empty() {
                break;
            }
            write_all_at(&self.file, &pieces, self.written())?;
            for piece in pieces {
                self.hasher.update(piece);
            }
        }
        let whole = self.written() / WRITEBACK_EVERY - begun;
        if whole > 0 {
            sys::start_writeback(&self.file, begun * WRITEBACK_EVERY, whole * WRITEBACK_EVERY);
        }
        Ok(())
    }
}

/// Writes `pieces` one behind the other.
fn write_all_at(file: &File, pieces: &[&[u8]], mut offset: u64) -> io::Result<()> {
    for pieces in pieces.chunks(PIECES_MAX) {
        let mut slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            match rustix::io::pwritev(file, rest, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// The first `most` bytes of `chunks`, or all of them, without what is empty. Takes them off.
fn take_front<'a>(
    chunks: &mut impl Iterator<Item = &'a [u8]>,
    left: &mut &'a [u8],
    mut most: usize,
) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    while most > 0 {
        if left.is_empty() {
            match chunks.next() {
                Some(chunk) => *left = chunk,
                None => break,
            }
            continue;
        }
        let (piece, behind) = left.split_at(most.min(left.len()));
        most -= piece.len();
        *left = behind;
        pieces.push(piece);
    }
    pieces
}
