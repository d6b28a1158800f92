//! One request: to the backend and back.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ALLOW, CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::{Method, Response, StatusCode, Uri, Version, request};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use super::answer::Orders;
use super::backend::{self, Address, Failure, Link, Outbound, exchange};
use super::content;
use super::forward::{self, Introduction};
use super::limit::limited;
use super::location::Locations;
use super::options::AccelOptions;
use super::pages::{last_page, page};
use super::payload::{End, Progress};
use super::proxied::{Answering, WayBack};
use super::record::{Ending, Origin, Record};
use super::{Answered, Arrived, State};
use crate::body::Body;
use crate::metrics::AccelMetrics;
use crate::registry::Registry;

/// A front: what all workers have of it.
pub(super) struct Front {
    pub(super) name: Arc<str>,
    pub(super) metrics: AccelMetrics,
    pub(super) options: AccelOptions,
    pub(super) address: Address,
    pub(super) introduction: Introduction,
    pub(super) locations: Locations,
    /// By the numbers that [`Locations`] gives.
    pub(super) roots: Vec<PathBuf>,
    /// By the numbers that [`Locations`] gives.
    pub(super) blobs: Vec<Arc<Registry>>,
}

/// A request that is under way.
pub(super) struct Asked {
    /// As the backend was sent it: method, target and fields.
    pub(super) outbound: Outbound,
    /// The client's version of HTTP.
    pub(super) version: Version,
    pub(super) peer: SocketAddr,
}

/// What a client's connection is to be joined with.
type Joined = (TokioIo<hyper::upgrade::Upgraded>, Duration);

/// See [`super::Selected::respond`].
///
/// What is decided without waiting is in plain functions, and what is rare in boxes: a future is copied whenever it is
/// handed on, so this one is kept small.
pub(super) fn respond(
    front: Arc<Front>,
    state: Rc<State>,
    arrived: Arrived,
) -> impl Future<Output = Answered> {
    let Arrived { head, body, peer, received_at, upgrade, refused } = arrived;
    let (name, metrics) = (Arc::clone(&front.name), front.metrics.clone());
    let mut record = Box::new(Record::new(name, metrics, &head.method, &head.uri, peer, received_at));
    let version = head.version;
    let wants_upgrade = upgrade.is_some();
    let outbound = match refused {
        None => outbound(&front, &state, head, peer, body, upgrade, &mut record),
        Some((status, reason)) => {
            record.reason = Some(reason);
            Err(Box::new(page(status)))
        }
    };
    async move {
        let mut asked = match outbound {
            Ok(outbound) => Asked { outbound, version, peer },
            Err(response) => return answered(record, *response, None),
        };
        let progress = asked.outbound.body.as_ref().map(|(_, progress)| Rc::clone(progress));
        let wait_max = front.options.header_timeout;
        let (answer, link) = match exchange(&front.address, &state.pool, &mut asked.outbound, wait_max).await
        {
            Ok(answer) => answer,
            Err(failure) => {
                let response = failed(&front, &failure, progress.as_deref(), &mut record);
                return answered(record, response, None);
            }
        };
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let (response, joined) = Box::pin(switch(&front, answer, link, wants_upgrade, &mut record)).await;
            return answered(record, response, joined);
        }
        let (pool, stall_max) = (Rc::clone(&state.pool), front.options.stall_timeout);
        let way_back = WayBack { link, pool, progress, stall_max };
        let response = match react(&front, &asked, answer, way_back, &mut record) {
            Reaction::Answer(response) => response,
            Reaction::Instead(backend) => {
                Box::pin(content::send(&front, &state, &asked, backend, &mut record)).await
            }
        };
        answered(record, response, None)
    }
}

fn answered(record: Box<Record>, response: Response<Body>, switch: Option<Joined>) -> Answered {
    let ending = Ending::new(record, response.status());
    Answered { response, ending, switch }
}

/// The request to the backend, whose fields are the client's made over; or the answer to one that is not passed on.
fn outbound(
    front: &Front,
    state: &State,
    head: request::Parts,
    peer: SocketAddr,
    body: Incoming,
    upgrade: Option<HeaderValue>,
    record: &mut Record,
) -> Result<Outbound, Box<Response<Body>>> {
    if matches!(head.method, Method::CONNECT | Method::TRACE) {
        let mut response = page(StatusCode::METHOD_NOT_ALLOWED);
        let allowed = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
        response.headers_mut().insert(ALLOW, allowed);
        return Err(Box::new(response));
    }
    let bytes_max = front.options.body_bytes_max;
    if bytes_max.is_some_and(|max| body.size_hint().lower() > max) {
        record.reason = Some("the request's body is too long".to_owned());
        return Err(Box::new(last_page(StatusCode::PAYLOAD_TOO_LARGE)));
    }
    let prefix = backend::path_prefix(&front.options.backend);
    let target = target(prefix, &head.uri).ok_or_else(|| Box::new(page(StatusCode::BAD_REQUEST)))?;
    let mut headers = head.headers;
    let upgrade = upgrade.filter(|_| head.version == Version::HTTP_11);
    forward::request(&mut headers, peer, upgrade, &front.introduction, &state.clients);
    let body = (!body.is_end_stream()).then(|| (body, Rc::new(Progress::new(bytes_max))));
    Ok(Outbound { method: head.method, target, headers, body })
}

/// What the backend's answer leads to.
enum Reaction {
    /// That is sent to the client.
    Answer(Response<Body>),
    /// Something else is.
    Instead(Box<BackendHead>),
}

/// What is left of a backend's answer that names something else.
pub(super) struct BackendHead {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) orders: Orders,
}

fn react(
    front: &Front,
    asked: &Asked,
    answer: Response<Incoming>,
    way_back: WayBack,
    record: &mut Record,
) -> Reaction {
    let (mut parts, body) = answer.into_parts();
    let answering = Answering { body, way_back };
    if !is_plain(&parts.headers) {
        record.reason = Some("the backend answers in an unknown transfer coding".to_owned());
        return Reaction::Answer(page(StatusCode::BAD_GATEWAY));
    }
    let chunked = parts.headers.contains_key(TRANSFER_ENCODING);
    forward::response(&mut parts.headers);
    let orders = Orders::take(&mut parts.headers, front.options.honour);
    if orders.instead.is_some() {
        answering.discard();
        return Reaction::Instead(Box::new(BackendHead {
            status: parts.status,
            headers: parts.headers,
            orders,
        }));
    }
    record.origin = Origin::Proxied;
    orders.add_charset(&mut parts.headers);
    let method = &asked.outbound.method;
    let response = proxied(parts.status, parts.headers, chunked, method, answering);
    Reaction::Answer(at_rate(response, &orders))
}

/// Holds the body to the rate that the backend wants.
pub(super) fn at_rate(mut response: Response<Body>, orders: &Orders) -> Response<Body> {
    if let Some(rate) = orders.limit_rate {
        let body = std::mem::take(response.body_mut());
        *response.body_mut() = limited(body, rate);
    }
    response
}

/// The target of the request to the backend, in origin form.
fn target(prefix: &str, uri: &Uri) -> Option<Uri> {
    if prefix.is_empty() || uri.path() == "*" {
        return Some(uri.clone());
    }
    let path = uri.path_and_query().map_or("/", |target| target.as_str());
    format!("{prefix}{path}").parse().ok()
}

/// What a client is told when there is no answer.
fn failed(
    front: &Front,
    failure: &Failure,
    progress: Option<&Progress>,
    record: &mut Record,
) -> Response<Body> {
    match progress.map_or(End::Well, Progress::end) {
        End::Well => {}
        End::TooLong => {
            record.reason = Some("the request's body is too long".to_owned());
            return last_page(StatusCode::PAYLOAD_TOO_LARGE);
        }
        End::Broken => {
            record.reason = Some("the request's body was cut off".to_owned());
            return last_page(StatusCode::BAD_REQUEST);
        }
    }
    let (status, reason) = match failure {
        Failure::Unreachable(error) => {
            (StatusCode::BAD_GATEWAY, format!("the backend cannot be reached: {error}"))
        }
        Failure::Broken(error) => {
            (StatusCode::BAD_GATEWAY, format!("the backend does not answer well: {error}"))
        }
        Failure::Busy(error) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("no further connection to the backend: {error}"))
        }
        Failure::Timeout(what) => (StatusCode::GATEWAY_TIMEOUT, (*what).to_owned()),
    };
    tracing::warn!(accel = &*front.name, backend = %front.options.backend, status = status.as_u16(), reason);
    record.reason = Some(reason);
    // What is left of a body that the backend did not take is not read.
    if progress.is_some_and(|progress| !progress.is_read()) { last_page(status) } else { page(status) }
}

/// The backend's own answer.
fn proxied(
    status: StatusCode,
    mut headers: HeaderMap,
    chunked: bool,
    method: &Method,
    answering: Answering,
) -> Response<Body> {
    let bodiless = *method == Method::HEAD || status == StatusCode::NOT_MODIFIED;
    if chunked || status == StatusCode::NO_CONTENT {
        // RFC 9112 section 6.3, RFC 9110 section 8.6.
        headers.remove(CONTENT_LENGTH);
    } else if let Some(length) = headers.get(CONTENT_LENGTH).cloned() {
        // Once.
        headers.insert(CONTENT_LENGTH, length);
    }
    let len = if chunked || bodiless { None } else { answering.body.size_hint().exact() };
    if let Some(len) = len
        && headers.contains_key(CONTENT_LENGTH)
    {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
    }
    let mut response = Response::new(answering.into_body(len));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Whether the backend's body is in no transfer coding but the chunked one.
fn is_plain(headers: &HeaderMap) -> bool {
    headers.get_all(TRANSFER_ENCODING).iter().all(|value| {
        let coding = value.as_bytes().trim_ascii();
        coding.eq_ignore_ascii_case(b"chunked") || coding.eq_ignore_ascii_case(b"identity")
    })
}

/// The backend changes the protocol: from now on its connection and the client's are one.
async fn switch(
    front: &Front,
    mut answer: Response<Incoming>,
    mut link: Link,
    was_asked: bool,
    record: &mut Record,
) -> (Response<Body>, Option<Joined>) {
    let protocol = answer.headers().get(UPGRADE).cloned();
    let joined = match protocol {
        Some(_) if was_asked => {
            let mut upgrading = hyper::upgrade::on(&mut answer);
            let joined = poll_fn(|cx| link.poll_driven(cx, |cx| Pin::new(&mut upgrading).poll(cx)));
            joined.await.map_err(|error| error.to_string())
        }
        _ => Err("nobody asked for another protocol".to_owned()),
    };
    let joined = match joined {
        Ok(joined) => joined,
        Err(error) => {
            record.reason = Some(format!("the backend changes the protocol: {error}"));
            return (page(StatusCode::BAD_GATEWAY), None);
        }
    };
    record.origin = Origin::Proxied;
    let mut headers = std::mem::take(answer.headers_mut());
    forward::response(&mut headers);
    headers.remove(CONTENT_LENGTH);
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.extend(protocol.map(|protocol| (UPGRADE, protocol)));
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    (response, Some((TokioIo::new(joined), front.options.stall_timeout)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backends_path_comes_before_the_requests() {
        for (prefix, uri, expected) in [
            ("", "/a?b", "/a?b"),
            ("/app", "/a%20b?c=/d", "/app/a%20b?c=/d"),
            ("/app", "/", "/app/"),
            ("", "*", "*"),
            ("/app", "*", "*"),
        ] {
            assert_eq!(target(prefix, &uri.parse().unwrap()).unwrap(), *expected, "{prefix} {uri}");
        }
    }
}
