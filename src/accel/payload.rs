//! The body of a request on its way to the backend: as it comes, bounded, and watched.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::body::BodyError;

/// How far a request's body has come.
#[derive(Debug)]
pub(super) struct Progress {
    bytes_max: Option<u64>,
    bytes: Cell<u64>,
    state: Cell<State>,
    end: Cell<End>,
    is_read: Cell<bool>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// The client is to send more.
    Client,
    /// It is the backend's turn, since then.
    Backend(Instant),
}

/// What became of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It is under way, or came to its end.
    Well,
    /// It is longer than it may be.
    TooLong,
    /// The client broke it off.
    Broken,
}

impl Progress {
    /// Of a body that may have `bytes_max` bytes.
    pub(super) fn new(bytes_max: Option<u64>) -> Self {
        Self {
            bytes_max,
            bytes: Cell::new(0),
            state: Cell::new(State::Backend(Instant::now())),
            end: Cell::new(End::Well),
            is_read: Cell::new(false),
        }
    }

    /// When something moved last; now, if it is the client that is waited for.
    pub(super) fn moved(&self) -> Instant {
        match self.state.get() {
            State::Client => Instant::now(),
            State::Backend(since) => since,
        }
    }

    pub(super) fn end(&self) -> End {
        self.end.get()
    }

    /// Whether all of it was read from the client.
    pub(super) fn is_read(&self) -> bool {
        self.is_read.get()
    }

    fn take(&self, len: usize) -> bool {
        let bytes = self.bytes.get().saturating_add(len as u64);
        self.bytes.set(bytes);
        self.bytes_max.is_none_or(|max| bytes <= max)
    }
}

/// What the HTTP library reads of it.
pub(super) struct Payload(Option<(Incoming, Rc<Progress>)>);

impl Payload {
    /// No body.
    pub(super) const fn none() -> Self {
        Self(None)
    }

    pub(super) fn new(body: Incoming, progress: Rc<Progress>) -> Self {
        Self(Some((body, progress)))
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some((body, progress)) = &mut self.0 else { return Poll::Ready(None) };
        progress.state.set(State::Client);
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        progress.is_read.set(frame.is_none() || body.is_end_stream());
        progress.state.set(State::Backend(Instant::now()));
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                if progress.take(frame.data_ref().map_or(0, Bytes::len)) {
                    Some(Ok(frame))
                } else {
                    progress.end.set(End::TooLong);
                    Some(Err(BodyError::new("the request's body is too long")))
                }
            }
            Some(Err(error)) => {
                progress.end.set(End::Broken);
                Some(Err(BodyError::new(error)))
            }
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|(body, _)| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |(body, _)| body.size_hint())
    }
}
