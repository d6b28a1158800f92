//! A response's body on its way into the HTTP library.
//!
//! [`Outgoing`] wraps a [`Body`] and turns its regions into tokens (see [`outbox`](super::outbox)); a [`Delivery`] follows
//! the response until its last byte was taken by the socket, which is after the library has dropped the body. If the
//! response ends in any other way, whoever dropped what, the connection is marked to end in a reset.
//!
//! A region whose pages are not in memory would make `sendfile` wait for the disk, and every connection of the thread
//! with it. So regions of large bodies are looked at first, and what is missing is brought in by another thread
//! ([`Files::bring_in`]), the next window while this one is being sent; the kernel reads on ahead of that by itself.

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};

use super::residency;
use super::shared::Shared;
use crate::body::{Body, BodyError, Chunk, Region};
use crate::sys::Files;

/// Bodies up to this length, in bytes, are sent without a look at the page cache: one read of the disk is what a look and
/// a read-ahead would cost too.
pub(super) const UNCHECKED_BYTES_MAX: u64 = 256 * 1024;
/// How much of a cold region is brought in and sent at a time, in bytes: about a millisecond of a fast disk. Longer ones
/// would gain nothing, as the disk is kept busy by the kernel's own read-ahead.
const COLD_WINDOW_BYTES: usize = 2 << 20;

/// How a response ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Body bytes that the socket took, without heads and chunk framing. The peer may have received fewer.
    pub bytes: u64,
    /// Whether that was the whole body, and the body ended well.
    pub completed: bool,
    /// From the first byte of the request's head.
    pub duration: Duration,
    /// What the body failed with and why, if it was the body that failed; `None` when it was the peer that went away.
    pub error: Option<String>,
}

/// To be put into a response's extensions: is told once how the response ended.
///
/// Called on the connection's thread when the last byte was taken by the socket or the connection is gone; also if the
/// response never got to its first byte. It must not block.
#[derive(Clone)]
pub struct ResponseEnd(Arc<Mutex<Option<Callback>>>);

type Callback = Box<dyn FnOnce(&Outcome) + Send>;

impl ResponseEnd {
    /// Calls `on_end` at the end. (`Clone` and `Send` are what [`http::Extensions`] asks for; of several clones the
    /// first that sees the end makes the call.)
    pub fn new(on_end: impl FnOnce(&Outcome) + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(on_end)))))
    }

    pub(super) fn call(&self, outcome: &Outcome) {
        let callback = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(callback) = callback {
            callback(outcome);
        }
    }
}

impl std::fmt::Debug for ResponseEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResponseEnd")
    }
}

/// Follows one response. Held by its [`Outgoing`] and by every [`Payload`] of it that the library still has, so that
/// its drop is the response's end.
pub(super) struct Delivery {
    shared: Rc<Shared>,
    received: Instant,
    on_end: Option<ResponseEnd>,
    /// Body bytes that were handed to the library. Invariant: `sent <= handed`.
    handed: Cell<u64>,
    /// Body bytes that the library reported as written.
    sent: Cell<u64>,
    /// The body came to its clean end.
    ended: Cell<bool>,
    error: RefCell<Option<String>>,
}

impl Drop for Delivery {
    fn drop(&mut self) {
        let bytes = self.sent.get();
        let completed = self.ended.get() && bytes == self.handed.get();
        if let Some(on_end) = self.on_end.take() {
            let (duration, error) = (self.received.elapsed(), self.error.take());
            on_end.call(&Outcome { bytes, completed, duration, error });
        }
        self.shared.response_over(completed);
    }
}

/// What the library queues: bytes, or a token for a region.
pub(super) struct Payload {
    slice: Slice,
    delivery: Rc<Delivery>,
}

enum Slice {
    Bytes(Bytes),
    Token(&'static [u8]),
}

impl Buf for Payload {
    fn remaining(&self) -> usize {
        match &self.slice {
            Slice::Bytes(bytes) => bytes.len(),
            Slice::Token(token) => token.len(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match &self.slice {
            Slice::Bytes(bytes) => bytes,
            Slice::Token(token) => token,
        }
    }

    fn advance(&mut self, count: usize) {
        match &mut self.slice {
            Slice::Bytes(bytes) => bytes.advance(count),
            Slice::Token(token) => *token = &token[count..],
        }
        let sent = &self.delivery.sent;
        sent.set(sent.get() + count as u64);
    }
}

/// A body as the library polls it.
pub(super) struct Outgoing {
    body: Body,
    delivery: Rc<Delivery>,
    /// Brings cold windows in; `None` for bodies that go out unlooked at.
    files: Option<Files>,
    /// The rest of a region whose first window is being sent.
    rest: Option<Region>,
    /// The window that is being brought in.
    incoming: Option<Window>,
}

/// A piece of a cold region.
struct Window {
    region: Region,
    populate: Pin<Box<dyn Future<Output = ()>>>,
}

impl Outgoing {
    /// Wraps the body of a response that begins now.
    pub(super) fn new(
        body: Body,
        shared: Rc<Shared>,
        files: &Files,
        received: Instant,
        on_end: Option<ResponseEnd>,
    ) -> Self {
        let check = body.size().is_none_or(|size| size > UNCHECKED_BYTES_MAX);
        // An empty body is never polled by the library, so it has to be at its end from the start.
        let body = if body.size() == Some(0) { Body::empty() } else { body };
        let ended = Cell::new(body.is_end());
        shared.response_begins();
        let delivery = Delivery {
            shared,
            received,
            on_end,
            handed: Cell::new(0),
            sent: Cell::new(0),
            ended,
            error: RefCell::new(None),
        };
        Self {
            body,
            delivery: Rc::new(delivery),
            files: check.then(|| files.clone()),
            rest: None,
            incoming: None,
        }
    }

    /// The next region to hand out, once its pages are in memory as far as can be told; `None` if the body has to be
    /// asked.
    fn poll_region(&mut self, cx: &mut Context<'_>) -> Poll<Option<Region>> {
        loop {
            if let Some(window) = &mut self.incoming {
                ready!(window.populate.as_mut().poll(cx));
                let window = self.incoming.take().map(|window| window.region);
                self.read_ahead(cx);
                return Poll::Ready(window);
            }
            let Some(region) = self.rest.take() else { return Poll::Ready(None) };
            if self.is_resident(&region) {
                return Poll::Ready(Some(region));
            }
            self.begin(region);
        }
    }

    fn is_resident(&self, region: &Region) -> bool {
        // What cannot be told is brought in as well: a needless read-ahead costs microseconds, a wait milliseconds.
        region.recent || self.files.is_none() || residency::is_resident(region)
    }

    /// Begins to bring in the first window of `region`, and keeps the rest.
    fn begin(&mut self, mut region: Region) {
        let Some(files) = self.files.clone() else {
            self.rest = Some(region);
            return;
        };
        if region.len > COLD_WINDOW_BYTES {
            self.rest = Some(Region {
                file: Arc::clone(&region.file),
                offset: region.offset + COLD_WINDOW_BYTES as u64,
                len: region.len - COLD_WINDOW_BYTES,
                recent: false,
            });
            region.len = COLD_WINDOW_BYTES;
        }
        let Region { file, offset, len, .. } = region.clone();
        let populate = Box::pin(async move {
            if let Err(error) = files.bring_in(&file, offset, len).await {
                // Sending will wait for the disk instead, and will tell if the file cannot be read at all.
                tracing::debug!(%error, offset, len, "read-ahead failed");
            }
        });
        self.incoming = Some(Window { region, populate });
    }

    /// Begins with the window behind the one that is handed out now, so that the disk works while the socket does.
    ///
    /// Without a look: behind a cold window the kernel has read ahead, and whoever first comes to pages that it did read
    /// starts the next such read. That may wait (41 ms were seen), so it must not be this thread.
    fn read_ahead(&mut self, cx: &mut Context<'_>) {
        let Some(region) = self.rest.take().or_else(|| self.body.take_region()) else { return };
        self.begin(region);
        if let Some(window) = &mut self.incoming
            && window.populate.as_mut().poll(cx).is_ready()
        {
            window.populate = Box::pin(std::future::ready(()));
        }
    }

    fn payload(&self, slice: Slice) -> Frame<Payload> {
        let payload = Payload { slice, delivery: Rc::clone(&self.delivery) };
        let handed = &self.delivery.handed;
        handed.set(handed.get() + payload.remaining() as u64);
        Frame::data(payload)
    }

    fn is_end(&self) -> bool {
        self.rest.is_none() && self.incoming.is_none() && self.body.size() == Some(0)
    }
}

/// An error's message and those of its causes.
fn with_causes(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message.push_str(": ");
        message.push_str(&error.to_string());
        cause = error.source();
    }
    message
}

impl http_body::Body for Outgoing {
    type Data = Payload;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Payload>, BodyError>>> {
        let this = self.get_mut();
        let slice = loop {
            if let Some(region) = ready!(this.poll_region(cx)) {
                break Slice::Token(this.delivery.shared.outbox.borrow_mut().push(region));
            }
            match ready!(this.body.poll_chunk(cx)) {
                Some(Ok(Chunk::Bytes(bytes))) => break Slice::Bytes(bytes),
                Some(Ok(Chunk::Region(region))) => this.rest = Some(region),
                Some(Ok(Chunk::Trailers(trailers))) => {
                    this.body = Body::empty();
                    this.delivery.ended.set(true);
                    return Poll::Ready(Some(Ok(Frame::trailers(*trailers))));
                }
                Some(Err(error)) => {
                    // The delivery ends incomplete, so the connection ends in a reset.
                    this.delivery.error.replace(Some(with_causes(&error)));
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    this.delivery.ended.set(true);
                    return Poll::Ready(None);
                }
            }
        };
        if this.is_end() {
            // The library asks `is_end_stream` now and then never again.
            this.delivery.ended.set(true);
        }
        Poll::Ready(Some(Ok(this.payload(slice))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        // Asked before the first frame only, when nothing is held here.
        self.body.size().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
