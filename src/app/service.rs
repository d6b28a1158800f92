//! The seam between the server and what it serves: the registry, and the fronts of applications. None knows the other.

use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::Either;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, Response};
use hyper::body::{Body as _, Incoming};

use crate::accel::{Accel, Answered, Arrived, Selected};
use crate::body::{Body, BodyError};
use crate::registry::{self, Again, Handler, Payload, RequestBody};
use crate::server::{Outcome, Repeat, Repeatable, Request, ResponseEnd, Service, Switch, discard};

/// How much of a body that was not wanted, or not to its end, is read before the answer, in bytes: a client that is still
/// sending would not see an early one.
const DISCARD_MAX: u64 = 1 << 20;
/// How long that may take.
const DISCARD_TIME_MAX: Duration = Duration::from_secs(2);

/// What a worker's connections are served.
pub(super) struct SiteService {
    pub(super) registries: Handler,
    pub(super) fronts: Accel,
}

impl Service for SiteService {
    fn call(&self, request: Request) -> impl Future<Output = Response<Body>> + 'static {
        match self.fronts.select(&request.head.headers, request.listener) {
            // Boxes, as the connection and the library hand the future on, and would copy the larger of the two each time.
            Some(front) => Either::Left(Box::pin(respond_by_front(front, request))),
            None => Either::Right(Box::pin(respond(self.registries.clone(), request))),
        }
    }
}

fn respond_by_front(front: Selected, request: Request) -> impl Future<Output = Response<Body>> {
    let Request { head, body, peer, received, rejected, upgrade, .. } = request;
    let refused = rejected.map(|error| (error.status, error.reason));
    let answering = front.respond(Arrived { head, body, peer, received_at: received, upgrade, refused });
    async move {
        let Answered { mut response, ending, switch } = answering.await;
        let extensions = response.extensions_mut();
        if let Some((far, idle_max)) = switch {
            extensions.insert(Switch::new(far, idle_max));
        }
        extensions
            .insert(ResponseEnd::new(move |outcome| ending.finish(outcome.bytes, outcome.error.as_deref())));
        response
    }
}

async fn respond(handler: Handler, request: Request) -> Response<Body> {
    let Request { head, body, peer, listener, received, rejected, repeats, .. } = request;
    let mut unread = None;
    let body = match rejected {
        Some(error) => RequestBody::HeadRefused {
            status: error.status,
            label: error.refusal.as_str(),
            reason: error.reason,
        },
        None if has_body(&head.headers) => {
            let length = body.size_hint().exact();
            let shared = Rc::new(RefCell::new(body));
            unread = Some((Rc::clone(&shared), head.headers.clone()));
            RequestBody::Some(Payload { pieces: Box::pin(Pieces(shared)), length })
        }
        None => RequestBody::None,
    };
    let (mut response, ending) =
        handler.respond(registry::Arrived { head, peer, listener, received_at: received, body }).await;
    if let Some((body, headers)) = unread
        // Nobody else has it: what was to read it went with the call.
        && let Ok(body) = Rc::try_unwrap(body)
        && !discard(&headers, body.into_inner(), DISCARD_MAX, DISCARD_TIME_MAX).await
    {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if repeats && let Some(again) = ending.again() {
        response.extensions_mut().insert(Repeatable(Arc::new(Encore(again))));
    }
    response
        .extensions_mut()
        .insert(ResponseEnd::new(move |outcome| ending.finish(outcome.bytes, outcome.error.as_deref())));
    response
}

/// A request's body as the registry reads it. What it leaves is discarded when it has answered.
struct Pieces(Rc<RefCell<Incoming>>);

impl Stream for Pieces {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut body = self.0.borrow_mut();
        loop {
            return Poll::Ready(match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => Some(Ok(data)),
                    // Trailers say nothing here.
                    Err(_) => continue,
                },
                Some(Err(error)) => Some(Err(BodyError::new(error))),
                None => None,
            });
        }
    }
}

/// The registry's leave to repeat an answer, as the server asks for it.
struct Encore(Again);

impl Repeat for Encore {
    fn is_current(&self, now: Instant) -> bool {
        self.0.is_current(now)
    }

    fn ended(&self, peer: SocketAddr, received: Instant, outcome: &Outcome) {
        self.0.finish(peer, received, outcome.bytes, outcome.error.as_deref());
    }
}

fn has_body(headers: &HeaderMap) -> bool {
    let length = headers.get(CONTENT_LENGTH);
    length.is_some_and(|length| length.as_bytes().iter().any(|&digit| digit != b'0'))
        || headers.contains_key(TRANSFER_ENCODING)
}
