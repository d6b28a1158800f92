//! A connection that changed its protocol (101, RFC 9110 section 7.8): joined with another one, byte by byte.
//!
//! The library does not know of it: the field that asks for the change is kept from it, and so is every byte behind that
//! request until it is answered. When the 101 is out the library goes, and the socket is joined with what the service
//! gave in its [`Switch`], in the connection's own task: nothing changes threads. A drain lets it go on until the
//! connections that are left are cut.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional_with_sizes};

use super::outgoing::{Outcome, ResponseEnd};
use super::transport::Transport;

/// What is read before it is written on, each way, in bytes.
const BUFFER_BYTES: usize = 16 * 1024;

/// What bytes can be read from and written to.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// To be put into the extensions of a 101: what the connection is joined with from then on, until both ends have closed
/// or nothing has passed for a while. The response's [`ResponseEnd`] is told at the end of that, with the bytes that the
/// peer was sent.
#[derive(Clone)]
pub struct Switch(Arc<Mutex<Option<Far>>>);

struct Far {
    stream: Box<dyn Duplex>,
    idle_max: Duration,
}

impl Switch {
    /// Joins with `stream`; ends when nothing has passed either way for `idle_max`. (`Clone` and `Send` are what
    /// [`http::Extensions`] asks for.)
    pub fn new(stream: impl Duplex + 'static, idle_max: Duration) -> Self {
        Self(Arc::new(Mutex::new(Some(Far { stream: Box::new(stream), idle_max }))))
    }

    pub(super) fn begin(&self, received: Instant, on_end: Option<ResponseEnd>) -> Switching {
        let far = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        Switching { far, received, on_end, sent: Cell::new(0), error: None }
    }
}

impl std::fmt::Debug for Switch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Switch")
    }
}

/// A connection on its way to, or in, another protocol. Its drop is the response's end.
pub(super) struct Switching {
    far: Option<Far>,
    received: Instant,
    on_end: Option<ResponseEnd>,
    /// Bytes that the peer was sent.
    sent: Cell<u64>,
    error: Option<String>,
}

impl Switching {
    /// Joins the two ends until both have closed, one breaks, or nothing passes.
    pub(super) async fn run(mut self, mut transport: Transport) {
        let Some(Far { mut stream, idle_max }) = self.far.take() else { return };
        let (socket, early) = transport.switched();
        let moved = Cell::new(Instant::now());
        let mut near = Watched { inner: socket, moved: &moved, written: Some(&self.sent) };
        let mut far = Watched { inner: &mut *stream, moved: &moved, written: None };
        let copied = {
            let copy = async {
                far.write_all(&early).await?;
                copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER_BYTES, BUFFER_BYTES).await
            };
            until_idle(pin!(copy), &moved, idle_max).await
        };
        match copied {
            Some(Ok(_)) => {}
            Some(Err(error)) => self.error = Some(error.to_string()),
            None => self.error = Some("nothing passed for too long".to_owned()),
        }
    }
}

impl Drop for Switching {
    fn drop(&mut self) {
        if let Some(on_end) = self.on_end.take() {
            let (bytes, error) = (self.sent.get(), self.error.take());
            let completed = error.is_none();
            on_end.call(&Outcome { bytes, completed, duration: self.received.elapsed(), error });
        }
    }
}

/// Runs `copy` to its end; `None` if nothing moved for `idle_max`.
async fn until_idle<F: Future>(
    mut copy: Pin<&mut F>,
    moved: &Cell<Instant>,
    idle_max: Duration,
) -> Option<F::Output> {
    loop {
        let deadline = moved.get() + idle_max;
        tokio::select! {
            copied = &mut copy => return Some(copied),
            () = tokio::time::sleep_until(deadline.into()) => {
                if moved.get() + idle_max <= Instant::now() {
                    return None;
                }
            }
        }
    }
}

/// Notes when bytes move, and counts those that are written.
struct Watched<'a, S: ?Sized> {
    inner: &'a mut S,
    moved: &'a Cell<Instant>,
    written: Option<&'a Cell<u64>>,
}

impl<S: AsyncRead + Unpin + ?Sized> AsyncRead for Watched<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut *self.inner).poll_read(cx, buf);
        if polled.is_ready() {
            self.moved.set(Instant::now());
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin + ?Sized> AsyncWrite for Watched<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut *self.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(len)) = polled {
            self.moved.set(Instant::now());
            if let Some(written) = self.written {
                written.set(written.get() + len as u64);
            }
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.inner).poll_shutdown(cx)
    }
}
