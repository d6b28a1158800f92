//! One connection: the HTTP library between a transport and a service, and the watchdog beside them.
//!
//! The library is there only while it is needed. A connection begins without it, waiting in the transport, which gives
//! answers [again](super::encore) by itself; whatever else there is to do, closing included, is the library's, and when
//! that is idle it goes. So a waiting connection costs little memory, and an answer that is given again no call into the
//! library.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, HOST};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, request, uri};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::net::TcpStream;

use super::control::Control;
use super::encore::{self, Answer, Repeatable, Repertoire, Repertoires};
use super::head::MASKED_UPGRADE;
use super::outgoing::{Outgoing, ResponseEnd};
use super::shared::{Arrival, Shared};
use super::switch::{Switch, Switching};
use super::transport::{LINGER_TIME, Transport};
use super::watchdog::{Expired, Timeouts, Watchdog};
use super::{Counters, Request, ServerOptions, Service};
use crate::body::Body;
use crate::sys::Files;

/// The most bytes that the library buffers of a request's body, and the most of ordinary slices of a response before it
/// flushes them. A push of 512 MiB takes 0.65 s of CPU with 128 KiB, 0.61 with this.
const BUFFER_BYTES: usize = 256 * 1024;
/// A connection that has been idle for so long goes on without the library, whose buffers take 16 KiB of the 20 that an
/// idle connection takes with it. Short, so that not many are idle and have them; long beside the time that setting the
/// library up takes (about 1 µs).
const REST_AFTER: Duration = Duration::from_millis(250);
/// The fields that the library parses on its stack; more take an allocation per request.
const FIELDS_INLINE: usize = 100;

/// Who a connection is with.
#[derive(Clone)]
struct Client {
    peer: SocketAddr,
    /// The number of the listener that it came through.
    listener: usize,
    repertoire: Rc<Repertoire>,
}

/// What all connections of a worker have in common.
pub(super) struct Shop<S> {
    pub(super) service: Rc<S>,
    pub(super) options: Arc<ServerOptions>,
    pub(super) files: Files,
    pub(super) counters: Arc<Counters>,
    pub(super) repertoires: Repertoires,
}

impl<S: Service> Shop<S> {
    /// Serves one connection to its end.
    ///
    /// Ends when the peer closes, when a bound is overstepped, or soon after `control` asked for it. Dropping the future
    /// closes the connection at once; if a response is under way, by a reset.
    pub(super) async fn serve(
        self: Rc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        listener: usize,
        control: Rc<Control>,
    ) {
        let shared = match Shared::new() {
            Ok(shared) => Rc::new(shared),
            Err(error) => {
                tracing::error!(%error, "no address space for the tokens of file regions");
                return;
            }
        };
        let (limits, sender) = (self.options.limits(), self.options.sender);
        let repertoire = self.repertoires.of(listener);
        let mut transport =
            Transport::new(stream, peer, Rc::clone(&shared), Rc::clone(&repertoire), limits, sender);
        let client = Client { peer, listener, repertoire };
        let mut driver = Driver {
            shared,
            watchdog: Watchdog::new(),
            timeouts: Timeouts {
                head: self.options.header_timeout,
                idle: self.options.idle_timeout,
                stall: self.options.stall_timeout,
                linger: LINGER_TIME,
            },
            control,
            closing: false,
        };
        let end = loop {
            if let Err(end) = driver.wait(&mut transport).await {
                break Err(end);
            }
            // In a box, because its memory is needed only as long as it runs.
            match Box::pin(Rc::clone(&self).through_library(transport, &client, &mut driver)).await {
                Ok(Next::Rest(resting)) => transport = resting,
                Ok(Next::Closed) => break Ok(()),
                Ok(Next::Switch(transport, switching)) => {
                    // In a box, because few connections ever come to it: an idle one took 3.9 KiB with it, 1.8 without.
                    Box::pin(switching.run(transport)).await;
                    break Ok(());
                }
                Err(end) => break Err(end),
            }
        };
        match end {
            Ok(()) => tracing::trace!(%peer, "connection closed"),
            Err(End::Library(error)) => tracing::debug!(%peer, %error, "connection failed"),
            Err(End::Socket(error)) => tracing::debug!(%peer, %error, "connection failed"),
            Err(End::Stalled(expired)) => {
                self.counters.stalled();
                tracing::debug!(%peer, ?expired, "connection cut: the peer does not move");
            }
        }
    }

    /// Lets the library serve the connection until it is closed, or until it has been idle for [`REST_AFTER`]: then the
    /// transport comes back.
    async fn through_library(
        self: Rc<Self>,
        transport: Transport,
        client: &Client,
        driver: &mut Driver,
    ) -> Result<Next, End> {
        let limits = self.options.limits();
        let mut builder = http1::Builder::new();
        // The head was checked for its size; the library's own limit only has to be no smaller.
        builder.max_buf_size(BUFFER_BYTES.max(limits.bytes * 2));
        if limits.fields > FIELDS_INLINE {
            builder.max_headers(limits.fields);
        }
        let (shared, control) = (Rc::clone(&driver.shared), Rc::clone(&driver.control));
        let client = client.clone();
        let service = service_fn(move |request| {
            let (shared, control) = (Rc::clone(&shared), Rc::clone(&control));
            Rc::clone(&self).respond(shared, control, client.clone(), request)
        });
        let mut connection = builder.serve_connection(transport, service);
        if driver.closing {
            Pin::new(&mut connection).graceful_shutdown();
        }
        // A closure rather than a future of its own, because the library's type cannot be written down.
        let rests = poll_fn(|cx| {
            loop {
                if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
                    return Poll::Ready(result.map(|()| false).map_err(End::Library));
                }
                match driver.supervise(cx, true) {
                    Verdict::Wait => return Poll::Pending,
                    Verdict::PollAgain => {}
                    Verdict::CloseGracefully => Pin::new(&mut connection).graceful_shutdown(),
                    Verdict::Rest => return Poll::Ready(Ok(true)),
                    Verdict::Cut(expired) => return Poll::Ready(Err(End::Stalled(expired))),
                }
            }
        });
        if !rests.await? {
            let Some(switching) = driver.shared.take_switching() else { return Ok(Next::Closed) };
            let parts = connection.into_parts();
            let clean = driver.shared.is_idle() && driver.shared.is_flushed() && parts.read_buf.is_empty();
            return Ok(if clean { Next::Switch(parts.io, switching) } else { Next::Closed });
        }
        let parts = connection.into_parts();
        // It rests only with nothing read that is not answered.
        debug_assert!(parts.read_buf.is_empty());
        Ok(if parts.read_buf.is_empty() { Next::Rest(parts.io) } else { Next::Closed })
    }

    /// Lets the service answer one request.
    fn respond(
        self: Rc<Self>,
        shared: Rc<Shared>,
        control: Rc<Control>,
        client: Client,
        request: http::Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Outgoing>, Infallible>> + use<S> {
        let Client { peer, listener, repertoire } = client;
        // Every head goes through the transport, so there is one; if not, the request is still a request.
        let arrival = shared.next_arrival();
        let Arrival { received, refused: rejected, bytes, upgrade } = arrival.unwrap_or_else(Arrival::now);
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
        let upgrade = if upgrade { head.headers.remove(MASKED_UPGRADE) } else { None };
        let upgrade = upgrade.filter(|_| body.is_end_stream());
        let repeats = bytes.is_some();
        let request = Request { head, body, peer, listener, received, rejected, repeats, upgrade };
        async move {
            let (mut parts, body) = self.service.call(request).await.into_parts();
            let mut on_end = parts.extensions.remove::<ResponseEnd>();
            let switch = parts.extensions.remove::<Switch>();
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
            if let Some(switch) = switch.filter(|_| parts.status == StatusCode::SWITCHING_PROTOCOLS) {
                shared.switch(switch.begin(received, on_end.take()));
            } else if control.is_draining() {
                parts.headers.insert(CONNECTION, HeaderValue::from_static("close"));
            } else if let (Some(bytes), Some(repeatable)) = (bytes, repeatable)
                && let Some(answer) = Answer::new(bytes, &parts, &body, repeatable)
            {
                repertoire.learn(answer);
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

/// What follows when the library is done with a connection.
enum Next {
    Closed,
    /// Nothing for now.
    Rest(Transport),
    /// Another protocol.
    Switch(Transport, Switching),
}

/// Why a connection did not end well.
enum End {
    Library(hyper::Error),
    Socket(io::Error),
    Stalled(Expired),
}

/// What is to be done with a connection that has nothing to do.
enum Verdict {
    Wait,
    /// A wait is over, and the transport will act on it.
    PollAgain,
    /// Let the library close after the response under way.
    CloseGracefully,
    /// Go on without the library until there is something to do.
    Rest,
    Cut(Expired),
}

/// Ends a connection when a wait has lasted too long or a drain asks for it.
struct Driver {
    shared: Rc<Shared>,
    watchdog: Watchdog,
    timeouts: Timeouts,
    control: Rc<Control>,
    /// The library was told, or is to be told, to close after the response under way.
    closing: bool,
}

impl Driver {
    /// Waits, without the library, until there is something to do for it: a request, or the connection's end.
    async fn wait(&mut self, transport: &mut Transport) -> Result<(), End> {
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(needed) = transport.poll_needs_library(cx) {
                    return Poll::Ready(needed.map_err(End::Socket));
                }
                match self.supervise(cx, false) {
                    Verdict::Wait => return Poll::Pending,
                    Verdict::PollAgain => {}
                    Verdict::CloseGracefully | Verdict::Rest => return Poll::Ready(Ok(())),
                    Verdict::Cut(expired) => return Poll::Ready(Err(End::Stalled(expired))),
                }
            }
        })
        .await
    }

    /// Called after every poll of the transport or of the library's connection that left it pending.
    fn supervise(&mut self, cx: &mut Context<'_>, in_library: bool) -> Verdict {
        self.control.set_waker(cx.waker());
        let deadlines = &self.shared.deadlines;
        deadlines.set_idle(self.shared.is_idle());
        // A head under way is waited for: its sender could not know better.
        let busy = deadlines.is_in_head() || self.shared.is_in_encore();
        if self.control.is_draining() && !self.closing && !busy {
            self.closing = true;
            return Verdict::CloseGracefully;
        }
        let rest = deadlines.idle_since().filter(|_| in_library && !self.closing && self.shared.is_flushed());
        let rest = rest.map(|since| (since + REST_AFTER, None));
        let next = deadlines.next(&self.timeouts).map(|(deadline, expired)| (deadline, Some(expired)));
        let Some((deadline, expired)) = rest.into_iter().chain(next).min_by_key(|(deadline, _)| *deadline)
        else {
            return Verdict::Wait;
        };
        if self.watchdog.poll(deadline, cx).is_pending() {
            return Verdict::Wait;
        }
        let Some(expired) = expired else { return Verdict::Rest };
        if deadlines.is_expiry_pending() {
            // The library does not even ask the transport any more. What the peer did not take it need not get.
            self.shared.abort();
            return Verdict::Cut(expired);
        }
        deadlines.expire(expired);
        Verdict::PollAgain
    }
}
