//! The writing side of a connection: slices of memory by `sendmsg`, regions of files without a copy.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::net::TcpStream;

use super::outbox::Outbox;
use super::pace::Pace;
use super::pipes::{Loan, PIPE_BYTES};
use super::shared::Shared;
use crate::body::Region;
use crate::sys;

/// The most bytes that one call sends of a region: what a thread spends on one connection without looking up.
const CALL_BYTES_MAX: usize = 1 << 20;
/// The most bytes that a connection sends before the others of its thread have their turn.
const TURN_BYTES_MAX: usize = 4 << 20;
/// How much of a region is read at a time where it must be copied, in bytes.
const COPY_BYTES: usize = 64 * 1024;

/// The shortest region that goes through a pipe, in bytes: from here on it is less work than `sendfile` (64 KiB: 14.9
/// instead of 16.0 µs, the smallest of six interleaved rounds).
const SPLICE_BYTES_MIN: usize = 64 * 1024;

thread_local! {
    /// What regions are read into where they must be copied. Borrowed only between a read and a send.
    static COPY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// How the bytes of a region get into a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sender {
    /// `sendfile(2)`: from the page cache, without a copy. Where a file's filesystem cannot do it, the connection goes
    /// on with [`Copy`](Self::Copy).
    Sendfile,
    /// Long regions by `splice(2)` through a pipe of 1 MiB, short ones as [`Sendfile`](Self::Sendfile). Less work per 64
    /// KiB than with the small pipe inside `sendfile`: 0.176 instead of 0.217 s/GB at 256 MiB, 1.01 instead of 1.06 s for
    /// 16 × 512 MiB, 2.3 instead of 2.7 s for 16 readers of a fill of 512 MiB (medians of four interleaved rounds).
    #[default]
    Splice,
    /// `pread(2)` and `sendmsg(2)`: works everywhere, at about three times the CPU.
    Copy,
}

/// Writes what the HTTP library hands over, and keeps to the connection's turn.
pub(super) struct Writer {
    sender: Sender,
    /// Bytes sent since the connection last let others go first.
    turn_bytes: usize,
    /// What was taken out of the first region and is not sent; only with [`Sender::Splice`].
    pipe: Option<Loan>,
    pace: Pace,
}

/// How far a piece got.
enum Progress {
    Whole(usize),
    /// The socket took no more than this.
    Part(usize),
}

impl Writer {
    pub(super) fn new(sender: Sender) -> Self {
        Self { sender, turn_bytes: 0, pipe: None, pace: Pace::default() }
    }

    /// Sends as much of `slices` as the socket takes, tokens as the regions that they stand for; returns how many bytes
    /// that was. Pending if it takes nothing, or if the connection's turn is over (then the task is woken at once).
    ///
    /// Errors: whatever the socket says; `UnexpectedEof` if a file is shorter than its region, `InvalidInput` if slices
    /// and regions do not match. After an error the connection is of no use.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        stream: &TcpStream,
        shared: &Shared,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut outbox = shared.outbox.borrow_mut();
        if !outbox.matches(slices) {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the response's slices do not match the regions under way",
            )));
        }
        if self.turn_bytes >= TURN_BYTES_MAX {
            self.turn_bytes = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            self.pace.before_write(stream, outbox.first());
            match self.write(stream, &mut outbox, slices) {
                Ok(sent) => {
                    self.turn_bytes += sent;
                    shared.deadlines.wrote();
                    return Poll::Ready(Ok(sent));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    shared.deadlines.write_blocked();
                    self.pace.blocked();
                    self.turn_bytes = 0;
                    ready!(stream.poll_write_ready(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Sends until the socket is full, the slices are through or the turn is over. An error is returned only if nothing
    /// was sent before it: the next call meets it again.
    fn write(
        &mut self,
        stream: &TcpStream,
        outbox: &mut Outbox,
        slices: &[IoSlice<'_>],
    ) -> io::Result<usize> {
        let mut total = 0;
        let mut rest = slices;
        while !rest.is_empty() {
            let plain = rest.iter().position(|slice| outbox.is_token(slice)).unwrap_or(rest.len());
            let progress = if plain > 0 {
                let (run, behind) = rest.split_at(plain);
                rest = behind;
                send_plain(stream, run, !behind.is_empty())
            } else {
                rest = &rest[1..];
                self.send_region(stream, outbox, TURN_BYTES_MAX.saturating_sub(self.turn_bytes + total))
            };
            match progress {
                Ok(Progress::Whole(sent)) => total += sent,
                Ok(Progress::Part(sent)) => return Ok(total + sent),
                Err(_) if total > 0 => return Ok(total),
                Err(error) => return Err(error),
            }
        }
        Ok(total)
    }

    /// Sends what is left of the first region, at most about `budget` bytes and at least one call's worth.
    fn send_region(
        &mut self,
        stream: &TcpStream,
        outbox: &mut Outbox,
        budget: usize,
    ) -> io::Result<Progress> {
        let Some(mut region) = outbox.front() else { return Ok(Progress::Whole(0)) };
        let mut total = 0;
        while region.len > 0 {
            if total > 0 && total >= budget {
                return Ok(Progress::Part(total));
            }
            match self.send_piece(stream, &region) {
                // What was sent is told first: the next call meets the end, or the error, again.
                Ok(0) | Err(_) if total > 0 => return Ok(Progress::Part(total)),
                Ok(0) => {
                    let reason = format!("a file ends {} bytes before what is to be sent of it", region.len);
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
                }
                Ok(sent) => {
                    outbox.advance(sent);
                    region.offset += sent as u64;
                    region.len -= sent;
                    total += sent;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Progress::Whole(total))
    }

    /// One call's worth of a region; 0 if the file has ended.
    fn send_piece(&mut self, stream: &TcpStream, region: &Region) -> io::Result<usize> {
        if self.pipe.is_some() || (self.sender == Sender::Splice && region.len >= SPLICE_BYTES_MIN) {
            match self.splice_piece(stream, region) {
                Err(error) if self.pipe.is_none() && error.kind() != io::ErrorKind::WouldBlock => {
                    // Nothing was taken out of the file: no descriptors are left, or its filesystem cannot do it.
                    self.sender = Sender::Sendfile;
                }
                result => return result,
            }
        }
        if self.sender != Sender::Copy {
            let len = region.len.min(CALL_BYTES_MAX);
            let result = try_send(stream, len, || {
                sys::sendfile(stream.as_fd(), region.file.as_fd(), region.offset, len)
            });
            match result {
                Err(error) if is_unsupported(&error) => self.sender = Sender::Copy,
                result => return result,
            }
        }
        copy_piece(stream, region)
    }

    /// One pipe's worth of a region; 0 if the file has ended. Keeps the pipe while it holds anything.
    fn splice_piece(&mut self, stream: &TcpStream, region: &Region) -> io::Result<usize> {
        let wanted = self.pipe.as_ref().map_or(region.len.min(PIPE_BYTES), |pipe| pipe.held());
        // The socket is asked before the file is read: while it takes nothing, the pipe would only be kept.
        try_send(stream, wanted, || {
            let mut pipe = self.pipe.take().map_or_else(Loan::take, Ok)?;
            if pipe.held() == 0 && pipe.fill(region.file.as_fd(), region.offset, wanted)? == 0 {
                return Ok(0);
            }
            let more = pipe.held() < region.len;
            let sent = pipe.drain(stream.as_fd(), more);
            self.pipe = Some(pipe).filter(|pipe| pipe.held() > 0);
            sent
        })
    }
}

/// Calls `send` unless the socket is known to take nothing. If it took only a part of `wanted` bytes, and would not take
/// a good deal more, that is known from then on: so the next call waits until it does, instead of following the peer
/// segment by segment (256 MiB hits: 77,000 calls of `splice` for 7.5 GB, 96 KB each).
fn try_send(
    stream: &TcpStream,
    wanted: usize,
    send: impl FnOnce() -> io::Result<usize>,
) -> io::Result<usize> {
    let mut part = None;
    let result = stream.try_io(Interest::WRITABLE, || {
        let sent = send()?;
        if (1..wanted).contains(&sent) && !sys::is_writable(stream.as_fd()) {
            part = Some(sent);
            // What makes the stream forget that it was ready.
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(sent)
    });
    part.map_or(result, Ok)
}

/// Sends slices of memory with one call; `more` if a region follows.
fn send_plain(stream: &TcpStream, slices: &[IoSlice<'_>], more: bool) -> io::Result<Progress> {
    let len: usize = slices.iter().map(|slice| slice.len()).sum();
    if len == 0 {
        return Ok(Progress::Whole(0));
    }
    let sent = stream.try_io(Interest::WRITABLE, || sys::send_vectored(stream.as_fd(), slices, more))?;
    Ok(if sent == len { Progress::Whole(sent) } else { Progress::Part(sent) })
}

fn copy_piece(stream: &TcpStream, region: &Region) -> io::Result<usize> {
    COPY.with_borrow_mut(|buf| {
        buf.resize(COPY_BYTES, 0);
        // Asked before the file is read: while the socket takes nothing, reading would be for nothing.
        stream.try_io(Interest::WRITABLE, || {
            let len = loop {
                match region.file.read_at(&mut buf[..region.len.min(COPY_BYTES)], region.offset) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    read => break read?,
                }
            };
            if len == 0 {
                return Ok(0);
            }
            sys::send_vectored(stream.as_fd(), &[IoSlice::new(&buf[..len])], len < region.len)
        })
    })
}

/// What `sendfile` says of a file that it cannot take pages from, or where a filter refuses the call.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::EPERM))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use super::*;

    /// A socket to write to, and its other end.
    fn pair() -> (TcpStream, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        (TcpStream::from_std(stream).unwrap(), peer)
    }

    fn on_runtime(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap().block_on(test);
    }

    #[test]
    fn the_zeros_of_a_token_are_never_sent() {
        on_runtime(async {
            for sender in [Sender::Sendfile, Sender::Splice, Sender::Copy] {
                let (stream, mut peer) = pair();
                stream.writable().await.unwrap();
                let shared = Shared::new().unwrap();
                let file = Arc::new(tempfile::tempfile().unwrap());
                let region = Region { file, offset: 0, len: 10, recent: false };
                let token = shared.outbox.borrow_mut().push(region);
                let mut writer = Writer::new(sender);
                let mut cx = Context::from_waker(Waker::noop());
                for slices in [&[IoSlice::new(b"head")][..], &[IoSlice::new(&token[1..])], &[]] {
                    let Poll::Ready(Err(error)) = writer.poll_write(&mut cx, &stream, &shared, slices) else {
                        panic!("sent");
                    };
                    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
                }
                drop(stream);
                assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0, "nothing was to be sent");
            }
        });
    }

    #[test]
    fn a_turn_that_is_over_lets_others_go_first_and_comes_back() {
        on_runtime(async {
            let (stream, _peer) = pair();
            stream.writable().await.unwrap();
            let shared = Shared::new().unwrap();
            let mut writer = Writer { turn_bytes: TURN_BYTES_MAX, ..Writer::new(Sender::Sendfile) };
            let woken = Arc::new(Woken::default());
            let waker = Waker::from(Arc::clone(&woken));
            let mut cx = Context::from_waker(&waker);
            let slices = [IoSlice::new(b"hello")];
            assert!(writer.poll_write(&mut cx, &stream, &shared, &slices).is_pending());
            assert_eq!(woken.0.load(Ordering::Relaxed), 1, "nobody else would wake it");
            assert!(matches!(writer.poll_write(&mut cx, &stream, &shared, &slices), Poll::Ready(Ok(5))));
            assert_eq!(writer.turn_bytes, 5);
        });
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}
