//! One connection: the HTTP library between a transport and a service, and the watchdog beside them.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{CONNECTION, CONTENT_LENGTH, HOST};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, request, uri};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::net::TcpStream;

use super::control::Control;
use super::encore::{self, Answer, Repeatable, Repertoire};
use super::outgoing::{Outgoing, ResponseEnd};
use super::shared::{Arrival, Shared};
use super::transport::{LINGER_TIME, Transport};
use super::watchdog::{Expired, Timeouts, Watchdog};
use super::{Counters, Request, ServerOptions, Service};
use crate::body::Body;
use crate::sys::Files;

/// The most bytes that the library buffers of a request's body, and the most of ordinary slices of a response before it
/// flushes them.
const BUFFER_BYTES: usize = 128 * 1024;
/// The fields that the library parses on its stack; more take an allocation per request.
const FIELDS_INLINE: usize = 100;

/// What all connections of a worker have in common.
pub(super) struct Shop<S> {
    pub(super) service: Rc<S>,
    pub(super) options: Arc<ServerOptions>,
    pub(super) files: Files,
    pub(super) counters: Arc<Counters>,
    pub(super) repertoire: Rc<Repertoire>,
}

impl<S: Service> Shop<S> {
    /// Serves one connection to its end.
    ///
    /// Ends when the peer closes, when a bound is overstepped, or soon after `control` asked for it. Dropping the future
    /// closes the connection at once; if a response is under way, by a reset.
    pub(super) async fn serve(self: Rc<Self>, stream: TcpStream, peer: SocketAddr, control: Rc<Control>) {
        let shared = match Shared::new() {
            Ok(shared) => Rc::new(shared),
            Err(error) => {
                tracing::error!(%error, "no address space for the tokens of file regions");
                return;
            }
        };
        let limits = self.options.limits();
        let repertoire = Rc::clone(&self.repertoire);
        let transport =
            Transport::new(stream, peer, Rc::clone(&shared), repertoire, limits, self.options.sender);
        let mut builder = http1::Builder::new();
        // The head was checked for its size; the library's own limit only has to be no smaller.
        builder.max_buf_size(BUFFER_BYTES.max(limits.bytes * 2));
        if limits.fields > FIELDS_INLINE {
            builder.max_headers(limits.fields);
        }
        let (shop, service_shared) = (Rc::clone(&self), Rc::clone(&shared));
        let service_control = Rc::clone(&control);
        let service = service_fn(move |request| {
            let (shared, control) = (Rc::clone(&service_shared), Rc::clone(&service_control));
            Rc::clone(&shop).respond(shared, control, peer, request)
        });
        let mut connection = pin!(builder.serve_connection(transport, service));
        let mut driver = Driver {
            shared,
            watchdog: Watchdog::new(),
            timeouts: Timeouts {
                head: self.options.header_timeout,
                idle: self.options.idle_timeout,
                stall: self.options.stall_timeout,
                linger: LINGER_TIME,
            },
            control: &control,
            closing: false,
        };
        // A closure rather than a future of its own, because the library's type cannot be written down.
        let end = poll_fn(|cx| {
            loop {
                if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                    return Poll::Ready(result.map_err(End::Library));
                }
                match driver.supervise(cx) {
                    Verdict::Wait => return Poll::Pending,
                    Verdict::PollAgain => {}
                    Verdict::CloseGracefully => connection.as_mut().graceful_shutdown(),
                    Verdict::Cut(expired) => return Poll::Ready(Err(End::Stalled(expired))),
                }
            }
        });
        match end.await {
            Ok(()) => tracing::trace!(%peer, "connection closed"),
            Err(End::Library(error)) => tracing::debug!(%peer, %error, "connection failed"),
            Err(End::Stalled(expired)) => {
                self.counters.stalled();
                tracing::debug!(%peer, ?expired, "connection cut: the peer does not move");
            }
        }
    }

    /// Lets the service answer one request.
    fn respond(
        self: Rc<Self>,
        shared: Rc<Shared>,
        control: Rc<Control>,
        peer: SocketAddr,
        request: http::Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Outgoing>, Infallible>> + use<S> {
        // Every head goes through the transport, so there is one; if not, the request is still a request.
        let arrival = shared.next_arrival();
        let Arrival { received, refused: rejected, bytes } = arrival.unwrap_or_else(Arrival::now);
        if let Some(error) = &rejected {
            self.counters.refused(error.refusal);
            tracing::debug!(%peer, status = %error.status, reason = %error.reason, "head refused");
        }
        let (mut head, body) = request.into_parts();
        if head.method != Method::CONNECT {
            adopt_authority(&mut head);
        }
        let method_is_head = head.method == Method::HEAD;
        let bytes = bytes.filter(|_| encore::is_repeatable(&head));
        let request = Request { head, body, peer, received, rejected, repeats: bytes.is_some() };
        async move {
            let (mut parts, body) = self.service.call(request).await.into_parts();
            let on_end = parts.extensions.remove::<ResponseEnd>();
            let repeatable = parts.extensions.remove::<Repeatable>();
            let body = if method_is_head || has_no_body(parts.status) {
                // Dropped here rather than by the library, so that it is not taken for a body that was cut short.
                Body::empty()
            } else {
                match fit_length(&parts.headers, body) {
                    Ok(body) => body,
                    Err(reason) => {
                        tracing::error!(%peer, status = %parts.status, reason, "a response contradicts itself");
                        parts.status = StatusCode::INTERNAL_SERVER_ERROR;
                        parts.headers = HeaderMap::new();
                        parts.headers.insert(CONNECTION, HeaderValue::from_static("close"));
                        Body::empty()
                    }
                }
            };
            if control.is_draining() {
                parts.headers.insert(CONNECTION, HeaderValue::from_static("close"));
            } else if let (Some(bytes), Some(repeatable)) = (bytes, repeatable)
                && let Some(answer) = Answer::new(bytes, &parts, &body, repeatable)
            {
                self.repertoire.learn(answer);
            }
            let outgoing = Outgoing::new(body, shared, &self.files, received, on_end);
            Ok(Response::from_parts(parts, outgoing))
        }
    }
}

/// The target's authority replaces Host, and the service sees the target in origin form (RFC 9112 section 3.2.2).
fn adopt_authority(head: &mut request::Parts) {
    let Some(authority) = head.uri.authority() else { return };
    if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
        head.headers.insert(HOST, host);
    }
    let path_and_query = match head.uri.path_and_query() {
        // `http://host?query` has an empty path, which means `/`.
        Some(target) if target.as_str().starts_with('/') => target.clone(),
        Some(target) => format!("/{}", target.as_str()).parse().unwrap_or_else(|_| root()),
        None => root(),
    };
    head.uri = Uri::from(path_and_query);
}

fn root() -> uri::PathAndQuery {
    uri::PathAndQuery::from_static("/")
}

/// RFC 9110 section 6.4.1, but for HEAD.
fn has_no_body(status: StatusCode) -> bool {
    status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Holds a body against the Content-Length that the service gave, which the library does not.
fn fit_length(headers: &HeaderMap, body: Body) -> Result<Body, String> {
    let Some(value) = headers.get(CONTENT_LENGTH) else { return Ok(body) };
    let announced = value.to_str().ok().and_then(|text| text.parse::<u64>().ok());
    match (announced, body.size()) {
        (Some(announced), Some(size)) if announced == size => Ok(body),
        (Some(announced), None) => Ok(body.with_size(announced)),
        (_, size) => Err(format!("Content-Length {value:?}, but the body has {size:?} bytes")),
    }
}

/// Why a connection did not end well.
enum End {
    Library(hyper::Error),
    Stalled(Expired),
}

/// What is to be done with a connection that has nothing to do.
enum Verdict {
    Wait,
    /// A wait is over, and the transport will act on it.
    PollAgain,
    /// Let the library close after the response under way.
    CloseGracefully,
    Cut(Expired),
}

/// Ends a connection when a wait has lasted too long or a drain asks for it.
struct Driver<'a> {
    shared: Rc<Shared>,
    watchdog: Watchdog,
    timeouts: Timeouts,
    control: &'a Control,
    /// The library was told to close after the response under way.
    closing: bool,
}

impl Driver<'_> {
    /// Called after every poll of the library's connection that left it pending.
    fn supervise(&mut self, cx: &mut Context<'_>) -> Verdict {
        self.control.set_waker(cx.waker());
        let deadlines = &self.shared.deadlines;
        deadlines.set_idle(self.shared.is_idle());
        // A head under way is waited for: its sender could not know better.
        let busy = deadlines.is_in_head() || self.shared.is_in_encore();
        if self.control.is_draining() && !self.closing && !busy {
            self.closing = true;
            return Verdict::CloseGracefully;
        }
        let Some((deadline, expired)) = deadlines.next(&self.timeouts) else { return Verdict::Wait };
        if self.watchdog.poll(deadline, cx).is_pending() {
            return Verdict::Wait;
        }
        if deadlines.is_expiry_pending() {
            // The library does not even ask the transport any more. What the peer did not take it need not get.
            self.shared.abort();
            return Verdict::Cut(expired);
        }
        deadlines.expire(expired);
        Verdict::PollAgain
    }
}
