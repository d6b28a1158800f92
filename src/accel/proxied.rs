//! The backend's own body on its way to the client: chunk by chunk, as fast as the client takes them.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use futures_util::Stream;
use http_body::Body as _;
use hyper::body::Incoming;

use super::backend::{Link, Pool};
use super::payload::Progress;
use crate::body::{Body, BodyError, Chunk};

/// A body that nobody wants is read up to this many bytes to keep its connection.
const DRAIN_BYTES_MAX: u64 = 64 << 10;
/// How long that may take.
const DRAIN_TIME_MAX: Duration = Duration::from_millis(500);

/// A backend's answer after its head: the body, and the connection that it comes over.
pub(super) struct Answering {
    pub(super) body: Incoming,
    pub(super) way_back: WayBack,
}

/// A connection whose answer is under way, and what becomes of it then.
pub(super) struct WayBack {
    pub(super) link: Link,
    pub(super) pool: Rc<Pool>,
    /// Of the request's body, which may still be under way when the answer is over.
    pub(super) progress: Option<Rc<Progress>>,
    /// How long nothing may pass.
    pub(super) stall_max: Duration,
}

impl WayBack {
    /// The answer was read to its end: the connection can be used again, as soon as the request was sent to its end too. A
    /// client is not to be stuck with the rest of it.
    fn release(self) {
        if self.is_sent() {
            self.pool.put(self.link);
        } else {
            tokio::task::spawn_local(self.finish(None));
        }
    }

    fn is_sent(&self) -> bool {
        self.progress.as_deref().is_none_or(Progress::is_read)
    }

    /// Sends the rest of the request and reads the rest of `body`, if that is short.
    async fn finish(mut self, mut body: Option<Incoming>) {
        let mut read = 0;
        let mut since = Instant::now();
        let mut is_reusable = true;
        let finished = poll_fn(|cx| {
            if let Some(unread) = body.as_mut().filter(|_| is_reusable) {
                match poll_read(&mut self.link, unread, cx, &mut read) {
                    Poll::Ready(true) => body = None,
                    Poll::Ready(false) => is_reusable = false,
                    Poll::Pending => {}
                }
            }
            self.link.drive(cx);
            let is_sent = self.is_sent() || self.link.is_ended();
            if is_sent && !is_reusable {
                return Poll::Ready(false);
            }
            if is_sent && body.is_none() && self.link.is_settled() {
                return Poll::Ready(true);
            }
            let (moved, limit) = match self.progress.as_deref().filter(|_| !is_sent) {
                Some(progress) => (progress.moved(), self.stall_max),
                None => (since, DRAIN_TIME_MAX),
            };
            since = since.max(moved);
            self.link.timer.poll(cx, since + limit).map(|()| false)
        });
        if finished.await {
            self.pool.put(self.link);
        }
    }
}

/// Reads and drops a body; whether it came to its end.
fn poll_read(link: &mut Link, body: &mut Incoming, cx: &mut Context<'_>, read: &mut u64) -> Poll<bool> {
    if body.is_end_stream() {
        return Poll::Ready(true);
    }
    while let Some(frame) = ready!(link.poll_body(cx, |cx| Pin::new(&mut *body).poll_frame(cx))) {
        let Ok(frame) = frame else { return Poll::Ready(false) };
        *read += frame.data_ref().map_or(0, |data| data.len() as u64);
        if *read > DRAIN_BYTES_MAX {
            return Poll::Ready(false);
        }
    }
    Poll::Ready(true)
}

impl Answering {
    /// The body for the client, of this many bytes if that is known; fails if none come for too long.
    pub(super) fn into_body(self, len: Option<u64>) -> Body {
        let Self { body, way_back } = self;
        if body.is_end_stream() {
            way_back.release();
            return Body::empty();
        }
        Body::stream(Proxied { body, way_back: Some(way_back), failed: None, waiting: None }, len)
    }

    /// Reads the body if it is short, so that the connection can be used again: what is there at once, the rest in the
    /// background. A long or slow one costs the connection, but not before the request's own body was taken.
    pub(super) fn discard(self) {
        let Self { mut body, mut way_back } = self;
        if way_back.is_sent() {
            if body.size_hint().lower() > DRAIN_BYTES_MAX {
                return;
            }
            let mut cx = Context::from_waker(Waker::noop());
            match poll_read(&mut way_back.link, &mut body, &mut cx, &mut 0) {
                Poll::Ready(true) => return way_back.release(),
                Poll::Ready(false) => return,
                Poll::Pending => {}
            }
        }
        tokio::task::spawn_local(way_back.finish(Some(body)));
    }
}

struct Proxied {
    body: Incoming,
    /// Released at the end; a drop before that closes the connection.
    way_back: Option<WayBack>,
    /// Why it broke off, until that is said.
    failed: Option<BodyError>,
    /// Since when nothing came.
    waiting: Option<Instant>,
}

impl Stream for Proxied {
    type Item = Result<Chunk, BodyError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(error) = this.failed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        // Without a connection its end was said.
        let Some(WayBack { link, stall_max, .. }) = &mut this.way_back else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = link.poll_body(cx, |cx| Pin::new(&mut this.body).poll_frame(cx)) {
            this.waiting = None;
            return Poll::Ready(match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => Some(Ok(Chunk::Bytes(data))),
                    Err(frame) => {
                        // They are the end.
                        if let Some(way_back) = this.way_back.take() {
                            way_back.release();
                        }
                        let trailers = frame.into_trailers().unwrap_or_default();
                        Some(Ok(Chunk::Trailers(Box::new(trailers))))
                    }
                },
                Some(Err(error)) => {
                    this.way_back = None;
                    this.failed = Some(BodyError::new(error));
                    // What came before it leaves first: the connection is reset then.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                None => {
                    if let Some(way_back) = this.way_back.take() {
                        way_back.release();
                    }
                    None
                }
            });
        }
        let since = *this.waiting.get_or_insert_with(Instant::now);
        ready!(link.timer.poll(cx, since + *stall_max));
        this.way_back = None;
        Poll::Ready(Some(Err(BodyError::new("the backend sends nothing more"))))
    }
}
