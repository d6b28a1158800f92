//! What a connection sends without passing through memory of ours, and what it sends with one call.

use std::io::{self, IoSlice};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags};
use rustix::pipe::{PipeFlags, SpliceFlags};

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

/// Whether the socket would take a good deal now (`poll(2)`): of TCP, a third of what its buffer holds. After a `false` an
/// edge-triggered epoll is certain to report when it would, since asking is what makes the kernel remember to.
///
/// To be asked after a call that took only a part: to try again at once would find room for a segment or two, again
/// and again.
pub fn is_writable(socket: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(&socket, PollFlags::OUT)];
    // What cannot be told is tried.
    !matches!(rustix::event::poll(&mut polled, Some(&Timespec::default())), Ok(0))
}

/// A pipe for [`splice(2)`](https://man7.org/linux/man-pages/man2/splice.2.html): pages of a file go in and out to a
/// socket without being copied. More of them at once than in the 64 KiB pipe that `sendfile` has inside.
///
/// Bytes that went in must come out before those of another file or offset may go in: whoever gives a pipe away checks
/// [`held`](Self::held). Dropping it drops what it holds.
#[derive(Debug)]
pub struct Pipe {
    write: OwnedFd,
    read: OwnedFd,
    held: usize,
}

impl Pipe {
    /// A pipe of about `bytes` bytes, or of as many as the system allows.
    ///
    /// Errors: no file descriptors are left.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // An unprivileged user may have only so much in pipes; a small one works too.
        let _ = rustix::pipe::fcntl_setpipe_size(&write, bytes);
        Ok(Self { write, read, held: 0 })
    }

    /// How many bytes fit in.
    pub fn capacity(&self) -> io::Result<usize> {
        Ok(rustix::pipe::fcntl_getpipe_size(&self.write)?)
    }

    /// How many bytes went in and not out yet.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes at most `len` bytes of `file`, from `offset` on; returns how many: 0 at the end of the file.
    ///
    /// Blocks while the pages are not in the page cache, as [`sendfile`] does. Errors: `WouldBlock` when the pipe is
    /// full, `InvalidInput` when the file's filesystem cannot do it.
    pub fn fill(&mut self, file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<usize> {
        let mut position = offset;
        let taken = retry(|| {
            rustix::pipe::splice(file, Some(&mut position), &self.write, None, len, SpliceFlags::MOVE)
        })?;
        self.held += taken;
        Ok(taken)
    }

    /// Sends what is held, as far as the socket takes it; `more` as for [`send_vectored`]. Errors as for that.
    pub fn drain(&mut self, socket: BorrowedFd<'_>, more: bool) -> io::Result<usize> {
        let mut flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        flags.set(SpliceFlags::MORE, more);
        let sent = retry(|| rustix::pipe::splice(&self.read, None, socket, None, self.held, flags))?;
        self.held -= sent;
        Ok(sent)
    }
}

fn retry(mut call: impl FnMut() -> Result<usize, Errno>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn file() -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        file
    }

    #[test]
    fn a_region_is_sent_and_the_position_stays() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut file = file();
        for (offset, len, expected) in [(0, 10, "0123456789"), (3, 4, "3456"), (8, 10, "89"), (9, 1, "9")] {
            assert_eq!(sendfile(near.as_fd(), file.as_fd(), offset, len).unwrap(), expected.len());
            let mut received = vec![0; expected.len()];
            far.read_exact(&mut received).unwrap();
            assert_eq!(received, expected.as_bytes());
        }
        assert_eq!(file.stream_position().unwrap(), 10);
    }

    #[test]
    fn a_pipe_gives_out_what_went_in_in_order_and_no_more() {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut large = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
        large.write_all(&bytes).unwrap();
        let mut pipe = Pipe::new(1 << 20).unwrap();
        assert!(pipe.capacity().unwrap() >= 4096);
        let (mut taken, mut received) = (3, Vec::new());
        while taken < bytes.len() as u64 || pipe.held() > 0 {
            if pipe.held() == 0 {
                taken += pipe.fill(large.as_fd(), taken, 100_001).unwrap() as u64;
            }
            match pipe.drain(near.as_fd(), false) {
                Ok(sent) => assert!(sent > 0),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    let mut some = vec![0; 50_000];
                    let len = far.read(&mut some).unwrap();
                    received.extend_from_slice(&some[..len]);
                }
            }
        }
        assert_eq!(pipe.fill(large.as_fd(), taken, 1).unwrap(), 0, "the file has ended");
        drop(near);
        far.read_to_end(&mut received).unwrap();
        assert!(received == bytes[3..], "{} bytes", received.len());
        assert_eq!(pipe.fill(large.as_fd(), 0, 10).unwrap(), 10);
        let (gone, _) = UnixStream::pair().unwrap();
        assert_eq!(pipe.drain(gone.as_fd(), false).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(pipe.held(), 10);
    }

    #[test]
    fn nothing_is_sent_from_the_end_on() {
        let (near, _far) = UnixStream::pair().unwrap();
        for (offset, len) in [(10, 1), (11, 1), (1 << 40, 4096), (0, 0)] {
            assert_eq!(
                sendfile(near.as_fd(), file().as_fd(), offset, len).unwrap(),
                0,
                "{len} from {offset}"
            );
        }
        let error = sendfile(near.as_fd(), file().as_fd(), u64::MAX, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_full_socket_takes_a_part_and_then_nothing() {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut large = tempfile::tempfile().unwrap();
        large.write_all(&vec![7; 4 << 20]).unwrap();
        let mut sent = 0;
        let error = loop {
            match sendfile(near.as_fd(), large.as_fd(), sent, 4 << 20) {
                Ok(taken) => sent += taken as u64,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!((1..4 << 20).contains(&sent), "{sent}");
        assert_eq!(
            send_vectored(near.as_fd(), &[IoSlice::new(b"x")], false).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        assert!(!is_writable(near.as_fd()));
        drop(near);
        assert_eq!(
            far.read_to_end(&mut Vec::new()).unwrap() as u64,
            sent,
            "what was taken arrives, and no more"
        );
    }

    #[test]
    fn slices_are_sent_in_order() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let slices = ["one ", "", "two ", "three"].map(|slice| IoSlice::new(slice.as_bytes()));
        assert_eq!(send_vectored(near.as_fd(), &slices, true).unwrap(), 13);
        assert_eq!(send_vectored(near.as_fd(), &[], false).unwrap(), 0);
        drop(near);
        assert_eq!(io::read_to_string(&mut far).unwrap(), "one two three");
    }

    #[test]
    fn more_slices_than_the_kernel_takes_are_sent_in_part() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let slices = vec![IoSlice::new(b"x"); SLICES_MAX + 1];
        assert_eq!(send_vectored(near.as_fd(), &slices, false).unwrap(), SLICES_MAX);
        drop(near);
        assert_eq!(io::read_to_string(&mut far).unwrap().len(), SLICES_MAX);
    }

    /// The socket is a blocking one, and the process would be ended by a SIGPIPE that is not ignored.
    #[test]
    fn slices_never_block_and_a_gone_peer_is_an_error() {
        let (near, far) = UnixStream::pair().unwrap();
        let large = vec![0; 1 << 20];
        let error = loop {
            if let Err(error) = send_vectored(near.as_fd(), &[IoSlice::new(&large)], false) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(far);
        let error = send_vectored(near.as_fd(), &[IoSlice::new(b"x")], false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        let error = sendfile(near.as_fd(), file().as_fd(), 0, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn more_holds_a_segment_back_until_something_follows() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        far.set_nonblocking(true).unwrap();
        send_vectored(near.as_fd(), &[IoSlice::new(b"head")], true).unwrap();
        let error = far.read(&mut [0; 9]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "held back");
        assert_eq!(sendfile(near.as_fd(), file().as_fd(), 0, 3).unwrap(), 3);
        far.set_nonblocking(false).unwrap();
        let mut received = [0; 7];
        far.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"head012");
    }
}
