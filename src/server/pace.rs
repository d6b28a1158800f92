//! How much of a response the kernel may take ahead of what the peer can receive.
//!
//! Little (`TCP_NOTSENT_LOWAT`, set on the listening socket) for most: a peer that stands still would otherwise pin
//! megabytes. But with little the thread is woken for every few hundred kilobytes, and a fast peer of a large file costs
//! more than it must. So a connection that has shown that it takes much is given more, until its response is over; and
//! since a fast peer too may stop, only so many connections of a thread at once.

use std::cell::Cell;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::TcpStream;

use super::listener::UNSENT_BYTES_MAX;
use crate::body::Region;

/// What a fast connection may have unsent in the kernel, in bytes: as much as its send buffer grows to.
const UNSENT_FAST_BYTES_MAX: u32 = 4 << 20;
/// A connection is fast that took this much of files, in bytes, …
const FAST_BYTES: usize = 8 << 20;
/// … within this time: 80 MB/s.
const FAST_TIME: Duration = Duration::from_millis(100);
/// Fast connections of a thread at once: at most 256 MiB of pages are pinned that way.
const FAST_MAX: usize = 64;

thread_local! {
    static FAST: Cell<usize> = const { Cell::new(0) };
}

/// The pace of one connection.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Bytes that were taken since a moment, while it is not known whether the connection is fast.
    run: Option<(Instant, usize)>,
    fast: Option<Permit>,
}

/// One of a thread's fast connections.
#[derive(Debug)]
struct Permit;

impl Permit {
    fn take() -> Option<Self> {
        let taken = FAST.get();
        (taken < FAST_MAX).then(|| {
            FAST.set(taken + 1);
            Self
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        FAST.set(FAST.get().saturating_sub(1));
    }
}

impl Pace {
    /// To be called before each write, with the region that it will come to first.
    pub(super) fn before_write(&mut self, stream: &TcpStream, region: Option<&Region>) {
        // What follows a fill goes out as it comes in: nothing is gained by queueing it.
        let Some(_) = region.filter(|region| !region.recent) else {
            self.run = None;
            if self.fast.take().is_some() {
                set(stream, UNSENT_BYTES_MAX);
            }
            return;
        };
        match self.run {
            None => self.run = Some((Instant::now(), 0)),
            Some((since, bytes)) if self.fast.is_none() && bytes >= FAST_BYTES => {
                self.run = None;
                if since.elapsed() <= FAST_TIME {
                    self.fast = Permit::take();
                    if self.fast.is_some() {
                        set(stream, UNSENT_FAST_BYTES_MAX);
                    }
                }
            }
            Some(_) => {}
        }
    }

    /// To be called after each write.
    pub(super) fn wrote(&mut self, sent: usize) {
        if let Some((_, bytes)) = &mut self.run {
            *bytes += sent;
        }
    }
}

fn set(stream: &TcpStream, bytes: u32) {
    if let Err(error) = SockRef::from(stream).set_tcp_notsent_lowat(bytes) {
        tracing::debug!(%error, "TCP_NOTSENT_LOWAT cannot be set");
    }
}
