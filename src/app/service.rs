//! The seam between the server and the registry: neither knows the other.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Response};

use crate::body::Body;
use crate::registry::{Again, Arrived, Handler, RequestBody};
use crate::server::{Outcome, Repeat, Repeatable, Request, ResponseEnd, Service, discard};

/// How much of a body that nobody wants is read before the answer, in bytes: a client that is still sending would not see
/// an early one.
const DISCARD_MAX: u64 = 1 << 20;
/// How long that may take.
const DISCARD_TIME_MAX: Duration = Duration::from_secs(2);

/// The registry as a service of a worker's connections.
pub(super) struct RegistryService(pub(super) Handler);

impl Service for RegistryService {
    fn call(&self, request: Request) -> impl Future<Output = Response<Body>> + 'static {
        respond(self.0.clone(), request)
    }
}

async fn respond(handler: Handler, request: Request) -> Response<Body> {
    let Request { head, body, peer, received, rejected, repeats } = request;
    let body = match rejected {
        Some(error) => RequestBody::HeadRefused {
            status: error.status,
            label: error.refusal.as_str(),
            reason: error.reason,
        },
        None if has_body(&head.headers) => RequestBody::Unwanted {
            drained: discard(&head.headers, body, DISCARD_MAX, DISCARD_TIME_MAX).await,
        },
        None => RequestBody::None,
    };
    let (mut response, ending) = handler.respond(Arrived { head, peer, received_at: received, body }).await;
    if repeats && let Some(again) = ending.again() {
        response.extensions_mut().insert(Repeatable(Arc::new(Encore(again))));
    }
    response
        .extensions_mut()
        .insert(ResponseEnd::new(move |outcome| ending.finish(outcome.bytes, outcome.error.as_deref())));
    response
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
