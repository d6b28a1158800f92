//! How much of a response the kernel may take ahead of what the peer can receive.
//!
//! Little (`TCP_NOTSENT_LOWAT`, set on the listening socket) for what follows a fill, which goes out as it comes in, and
//! where many peers stand still: each would otherwise pin megabytes. Much where a file is there to be sent: with little
//! the thread is woken for every few hundred kilobytes (1 MiB hits: 74 µs with 128 KiB, 62 µs with 4 MiB; nginx, which
//! knows no limit, 65 µs; smallest of four interleaved rounds, reno). So a connection may have much unsent as long as not
//! many of its thread are waiting for their peers in that state.

use std::cell::Cell;

use socket2::SockRef;
use tokio::net::TcpStream;

use super::listener::UNSENT_BYTES_MAX;
use crate::body::Region;

/// What may be unsent in the kernel of a file that is there, in bytes: as much as a send buffer grows to.
const UNSENT_MUCH_BYTES_MAX: u32 = 4 << 20;
/// How many connections of a thread may wait for their peers with so much: 256 MiB are pinned that way at most.
const WAITING_MAX: usize = 64;

thread_local! {
    static WAITING: Cell<usize> = const { Cell::new(0) };
}

/// The pace of one connection.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The socket is set to much.
    much: bool,
    waiting: Option<Waiting>,
}

/// One of a thread's connections that wait with much unsent.
#[derive(Debug)]
struct Waiting;

impl Waiting {
    fn begin() -> Self {
        WAITING.set(WAITING.get() + 1);
        Self
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // The thread may be on its way out.
        let _ = WAITING.try_with(|waiting| waiting.set(waiting.get().saturating_sub(1)));
    }
}

impl Pace {
    /// To be called before each write, with the region that it will come to first.
    pub(super) fn before_write(&mut self, stream: &TcpStream, region: Option<&Region>) {
        self.waiting = None;
        // What has no region is short.
        let Some(region) = region else { return };
        let much = !region.recent && WAITING.get() < WAITING_MAX;
        if much != self.much {
            let bytes = if much { UNSENT_MUCH_BYTES_MAX } else { UNSENT_BYTES_MAX };
            match SockRef::from(stream).set_tcp_notsent_lowat(bytes) {
                Ok(()) => self.much = much,
                Err(error) => tracing::debug!(%error, "TCP_NOTSENT_LOWAT cannot be set"),
            }
        }
    }

    /// To be called when the socket takes nothing.
    pub(super) fn blocked(&mut self) {
        self.waiting = self.much.then(Waiting::begin);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn many_that_wait_leave_little_for_the_others() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let stream = || {
                let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                stream.set_nonblocking(true).unwrap();
                TcpStream::from_std(stream).unwrap()
            };
            let limit = |stream: &TcpStream| SockRef::from(stream).tcp_notsent_lowat().unwrap();
            let file = Arc::new(tempfile::tempfile().unwrap());
            let region = |recent| Region { file: Arc::clone(&file), offset: 0, len: 1 << 20, recent };
            let one = stream();
            let mut pace = Pace::default();
            pace.before_write(&one, Some(&region(false)));
            assert_eq!(limit(&one), UNSENT_MUCH_BYTES_MAX);
            pace.before_write(&one, Some(&region(true)));
            assert_eq!(limit(&one), UNSENT_BYTES_MAX, "what follows a fill");
            pace.before_write(&one, Some(&region(false)));
            let mut others = Vec::new();
            for _ in 0..WAITING_MAX {
                let (stream, mut pace) = (stream(), Pace::default());
                pace.before_write(&stream, Some(&region(false)));
                pace.blocked();
                others.push((stream, pace));
            }
            pace.before_write(&one, Some(&region(false)));
            assert_eq!(limit(&one), UNSENT_BYTES_MAX, "enough of them wait");
            let (stream, waiting) = &mut others[0];
            waiting.before_write(stream, None);
            pace.before_write(&one, Some(&region(false)));
            assert_eq!(limit(&one), UNSENT_MUCH_BYTES_MAX, "one of them went on");
            drop(others);
            assert_eq!(WAITING.get(), 0);
        });
    }
}
