//! The operator's endpoints, on an address of their own: `/healthz`, `/readyz`, `/metrics`.
//!
//! They run on the main thread, apart from the workers, so that they answer while the workers are busy. They answer
//! everybody who reaches the address: bind it to loopback or to a management network.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;

use crate::metrics::{self, Metrics};

/// Connections to the operator's endpoints at once.
const CONNECTIONS_MAX: usize = 64;
/// From a connection's start, or its last answer, to the end of a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// A connection's whole life: a peer that takes no answer must not keep probes out.
const CONNECTION_MAX: Duration = Duration::from_mins(5);
/// The pause after a failure to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whether this process wants requests; shared between the application and `/readyz`.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicU8>);

impl Readiness {
    const STARTING: u8 = 0;
    const READY: u8 = 1;
    const DRAINING: u8 = 2;

    /// Requests are welcome from now on.
    pub fn ready(&self) {
        self.0.store(Self::READY, Ordering::Relaxed);
    }

    /// No more requests, please.
    pub fn draining(&self) {
        self.0.store(Self::DRAINING, Ordering::Relaxed);
    }

    fn answer(&self) -> (StatusCode, &'static str) {
        match self.0.load(Ordering::Relaxed) {
            Self::STARTING => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
            Self::READY => (StatusCode::OK, "ready\n"),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        }
    }
}

/// Brings counts that others keep into the metrics, before each scrape.
pub type Sample = Rc<dyn Fn(&Metrics)>;

/// Serves the endpoints until the future is dropped. Must run inside a `LocalSet`.
///
/// # Errors
/// The listener cannot be used.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    readiness: Readiness,
    sample: Sample,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return Ok(()) };
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the admin address");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (metrics, readiness, sample) = (metrics.clone(), readiness.clone(), Rc::clone(&sample));
        tokio::task::spawn_local(async move {
            let service = service_fn(|request| {
                let response = answer(&request, &metrics, &readiness, &sample);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(socket), service);
            match tokio::time::timeout(CONNECTION_MAX, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "an admin connection ended with an error"),
                Err(_) => tracing::debug!("an admin connection has had its time"),
            }
            drop(permit);
        });
    }
}

fn answer(
    request: &Request<Incoming>,
    metrics: &Metrics,
    readiness: &Readiness,
    sample: &Sample,
) -> Response<Full<Bytes>> {
    const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
    let respond = |status, content_type, body: Bytes| {
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET or HEAD\n".into());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/healthz" => respond(StatusCode::OK, TEXT, "ok\n".into()),
        "/readyz" => {
            let (status, word) = readiness.answer();
            respond(status, TEXT, word.into())
        }
        "/metrics" => {
            sample(metrics);
            let content_type = HeaderValue::from_static(metrics::CONTENT_TYPE);
            respond(StatusCode::OK, content_type, metrics.encode().into())
        }
        "/" => respond(StatusCode::OK, TEXT, "spliceway: /healthz /readyz /metrics\n".into()),
        _ => respond(StatusCode::NOT_FOUND, TEXT, "not found: try /healthz, /readyz or /metrics\n".into()),
    }
}
