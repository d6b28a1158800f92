//! What a connection sends without passing through memory of ours, and what it sends with one call.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags};

/// The most slices that the kernel takes in one call (`UIO_MAXIOV`).
const SLICES_MAX: usize = 1024;

/// Sends at most `len` bytes of `file`, from `offset` on, to `socket`, from the page cache without a copy.
///
/// Returns how many were taken: fewer than `len` when the socket's buffer is full, and 0 when the file ends at or
/// before `offset`, though more was expected: somebody truncated it. The file's own position stays.
///
/// Errors: `WouldBlock` when a non-blocking socket takes nothing (a blocking one blocks); whatever the socket says. A
/// peer that is gone raises SIGPIPE too, which Rust programs ignore from the start. Blocks while the file's pages are not
/// in the page cache, whatever the socket's mode: see [`is_resident`](super::residency::is_resident).
pub fn sendfile(socket: BorrowedFd<'_>, file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<usize> {
    loop {
        let mut position = offset;
        match rustix::fs::sendfile(socket, file, Some(&mut position), len) {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Sends the slices in order, with one call, as far as the socket takes them; `more` says that something follows at
/// once, so that the kernel waits for it to fill a segment (`MSG_MORE`).
///
/// Returns how many bytes were taken. Takes the first 1024 slices only. Never blocks, whatever the socket's mode, and
/// never raises SIGPIPE.
///
/// Errors: `WouldBlock` when the socket takes nothing; whatever the socket says.
pub fn send_vectored(socket: BorrowedFd<'_>, slices: &[IoSlice<'_>], more: bool) -> io::Result<usize> {
    let slices = &slices[..slices.len().min(SLICES_MAX)];
    let mut flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    flags.set(SendFlags::MORE, more);
    loop {
        match rustix::net::sendmsg(socket, slices, &mut SendAncillaryBuffer::default(), flags) {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}
