//! The HTTP client: one request, one response head, by a deadline.
//!
//! Owns the connections. A connection is driven by the runtime that opened it, and a body is read where its connection
//! is driven, so each runtime (worker) has a client with a pool of its own: [`PerRuntime`]. Idle connections are bounded
//! in number and age. A pooled connection that the server closed in the meantime is no error: the request goes out again
//! on another one. Dropping a call or a body closes its connection unless the response was read to its end.

use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::runtime;
use tokio::time::{Instant, timeout, timeout_at};
use tower_service::Service;
use url::Url;

use super::error::causes;
use super::payload::Payload;
use super::tls::Tls;

/// How long an idle connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);
/// How many idle connections are kept per origin and worker.
const IDLE_PER_ORIGIN_MAX: usize = 16;
/// hyper's read buffer per connection, in bytes: bounds a response's head, the largest piece of a body, and with them
/// the memory of a fill.
///
/// Exactly that much: the library would otherwise shrink it with every short read, and a fast upstream would be read in
/// many small pieces (512 MiB for 16 clients, from an nginx with `tcp_nopush off`: 2.4 s instead of 1.8). 128 KiB take
/// 1.71 s, 256 1.64, 512 1.55 (medians of five interleaved rounds); but with 512, 64 fills at once take the process to
/// 111 MiB, with this to 90.
pub const READ_BUFFER: usize = 384 << 10;
/// How many reused connections in a row may turn out closed before the request fails. After a restart of the upstream all
/// pooled connections are stale at once, and hyper may not have noticed yet.
const STALE_RETRIES_MAX: u32 = 3;
/// An unwanted body is read up to this many bytes to keep its connection; a longer one costs the connection.
const DRAIN_BYTES_MAX: u64 = 64 << 10;
/// How long to wait for the rest of an unwanted body.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// Sent with every request that does not say another.
const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("spliceway/", env!("CARGO_PKG_VERSION")));

/// Why there is no response head.
#[derive(Clone, Debug)]
pub(super) enum TransportError {
    /// Name resolution, TCP or TLS failed.
    Connect(Arc<str>),
    /// Connecting took longer than the connect timeout.
    ConnectTimeout(Duration),
    /// The deadline passed.
    Deadline,
    /// The connection broke before the response's head was complete.
    Broken(Arc<str>),
    /// The response is no HTTP.
    Malformed(Arc<str>),
}

impl TransportError {
    /// Whether the server could not be reached, or does not react.
    pub(super) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::ConnectTimeout(_) | Self::Deadline)
    }
}

/// Sends requests; shared by all workers.
pub(super) struct HttpClient {
    clients: PerRuntime<Client<Connector, Payload>>,
    connector: Connector,
}

impl HttpClient {
    /// A client without connections.
    pub(super) fn new(
        extra_roots: Vec<rustls::pki_types::CertificateDer<'static>>,
        connect_timeout: Duration,
        workers: usize,
    ) -> Self {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        // Shared among the addresses of a name, so that one dead address leaves time for the next.
        http.set_connect_timeout(Some(connect_timeout));
        let connector = Connector { http, tls: Arc::new(Tls::new(extra_roots)), timeout: connect_timeout };
        Self { clients: PerRuntime::new(workers), connector }
    }

    /// Sends a request and waits for the response's head, until `deadline`.
    ///
    /// Follows no redirect and takes any status. A stream is sent once, whatever becomes of its connection. Cancel-safe in
    /// that a dropped call closes or returns its connection.
    pub(super) async fn send(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        payload: Payload,
        deadline: Instant,
    ) -> Result<Response<Incoming>, TransportError> {
        let uri: Uri = without_fragment(url)
            .parse()
            .map_err(|error: http::uri::InvalidUri| TransportError::Malformed(error.to_string().into()))?;
        let client = self.clients.of_this_runtime(|| self.connector.client());
        let mut retries = 0;
        let mut next = Some(payload);
        while let Some(payload) = next.take() {
            let again = match &payload {
                Payload::Whole(bytes) => Some(Payload::Whole(bytes.clone())),
                Payload::Stream(_) => None,
            };
            let is_empty = payload.is_end_stream();
            let mut request = Request::new(payload);
            *request.method_mut() = method.clone();
            *request.uri_mut() = uri.clone();
            *request.headers_mut() = headers.clone();
            request.headers_mut().entry(header::USER_AGENT).or_insert(USER_AGENT);
            if is_empty && matches!(*method, Method::POST | Method::PUT | Method::PATCH) {
                // Some servers want to be told that there is nothing (RFC 9110 §8.6), and hyper does not say it.
                request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
            }
            let began = Instant::now();
            let error = match timeout_at(deadline, client.request(request)).await {
                Err(_) => {
                    log(method, url, "timeout", began);
                    return Err(TransportError::Deadline);
                }
                Ok(Ok(response)) => {
                    log(method, url, response.status().as_str(), began);
                    if let Some(uses) = response.extensions().get::<ConnectionUses>() {
                        uses.count();
                    }
                    return Ok(response);
                }
                Ok(Err(error)) => error,
            };
            log(method, url, "failed", began);
            if again.is_none() || retries >= STALE_RETRIES_MAX || !broke_when_reused(&error) {
                return Err(self.transport_error(&error));
            }
            retries += 1;
            next = again;
        }
        // Every way through the loop either returns or has a payload for the next.
        Err(TransportError::Broken("nothing was sent".into()))
    }

    fn transport_error(&self, error: &hyper_util::client::legacy::Error) -> TransportError {
        // The outermost message only says "client error (Connect)"; its source says why.
        let text = error.source().map_or_else(|| error.to_string().into(), causes);
        if error.is_connect() {
            return if chain(error).any(is_timed_out) {
                TransportError::ConnectTimeout(self.connector.timeout)
            } else {
                TransportError::Connect(text)
            };
        }
        if chain(error).any(|cause| cause.downcast_ref().is_some_and(hyper::Error::is_parse)) {
            TransportError::Malformed(text)
        } else {
            TransportError::Broken(text)
        }
    }
}

/// Reads a short unwanted body to its end so that its connection can be used again; drops a long or slow one.
pub(super) async fn drain(response: Response<Incoming>) {
    let mut body = response.into_body();
    if body.is_end_stream() || body.size_hint().lower() > DRAIN_BYTES_MAX {
        return;
    }
    let read = async {
        let mut len = 0;
        while let Some(Ok(frame)) = body.frame().await {
            len += frame.data_ref().map_or(0, |data| data.len() as u64);
            if len > DRAIN_BYTES_MAX {
                return;
            }
        }
    };
    // A timeout is as good as an end: the connection is closed instead of kept.
    let _ = timeout(DRAIN_TIMEOUT, read).await;
}

/// The URL as sent, without its fragment (RFC 9110 §7.1).
fn without_fragment(url: &Url) -> String {
    let mut url = url.clone();
    url.set_fragment(None);
    url.into()
}

/// The query stays out of the log: a CDN's URLs carry their signature in it.
fn log(method: &Method, url: &Url, outcome: &str, began: Instant) {
    tracing::debug!(
        %method,
        host = url.host_str().unwrap_or_default(),
        port = url.port_or_known_default(),
        path = url.path(),
        outcome,
        elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        "upstream request"
    );
}

/// Whether the connection had answered before and broke without an answer now: closed by the server while it was idle.
/// What is sent whole may be sent twice (RFC 9110 §9.2.2; the refresh of a token changes nothing either, and an upload
/// that got its bytes twice does not have the digest that it is to end with).
fn broke_when_reused(error: &hyper_util::client::legacy::Error) -> bool {
    if error.is_connect()
        || chain(error).any(|cause| cause.downcast_ref().is_some_and(hyper::Error::is_parse))
    {
        return false;
    }
    let mut extras = http::Extensions::new();
    if let Some(connected) = error.connect_info() {
        connected.get_extras(&mut extras);
    }
    extras.get::<ConnectionUses>().is_some_and(ConnectionUses::is_reused)
}

fn is_timed_out(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}

/// One value per tokio runtime, made at its first use there.
///
/// Values of runtimes that ended stay: there are as many runtimes as workers, and they live as long as the process.
struct PerRuntime<T>(Mutex<HashMap<runtime::Id, T>>);

impl<T: Clone> PerRuntime<T> {
    fn new(capacity: usize) -> Self {
        Self(Mutex::new(HashMap::with_capacity(capacity)))
    }

    fn of_this_runtime(&self, make: impl FnOnce() -> T) -> T {
        let id = runtime::Handle::current().id();
        // The map is whole after a panic elsewhere: insertion is its only change.
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        values.entry(id).or_insert_with(make).clone()
    }
}

/// Opens connections, TCP or TLS by the URL's scheme, within the connect timeout (which hyper applies to TCP alone).
#[derive(Clone)]
struct Connector {
    http: HttpConnector,
    tls: Arc<Tls>,
    timeout: Duration,
}

impl Connector {
    fn client(&self) -> Client<Self, Payload> {
        Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_PER_ORIGIN_MAX)
            .retry_canceled_requests(true)
            .http1_read_buf_exact_size(READ_BUFFER)
            .build(self.clone())
    }
}

impl Service<Uri> for Connector {
    type Response = CountedStream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<CountedStream>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.http.poll_ready(cx).map_err(io::Error::other)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { mut http, tls, timeout: limit } = self.clone();
        Box::pin(async move {
            let connect = async {
                if uri.scheme() == Some(&http::uri::Scheme::HTTPS) {
                    let config = tls.config().await?;
                    HttpsConnector::from((http, config)).call(uri).await.map_err(io::Error::other)
                } else {
                    let tcp = http.call(uri).await.map_err(io::Error::other)?;
                    Ok(MaybeHttpsStream::Http(tcp))
                }
            };
            match timeout(limit, connect).await {
                Ok(stream) => Ok(CountedStream { stream: stream?, uses: ConnectionUses::default() }),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        })
    }
}

/// How many responses a connection has delivered.
#[derive(Clone, Default)]
struct ConnectionUses(Arc<AtomicU64>);

impl ConnectionUses {
    fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn is_reused(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

/// A connection that tells its number of uses to whoever gets a response or an error from it.
struct CountedStream {
    stream: MaybeHttpsStream<TokioIo<TcpStream>>,
    uses: ConnectionUses,
}

impl Connection for CountedStream {
    fn connected(&self) -> Connected {
        self.stream.connected().extra(self.uses.clone())
    }
}

impl Read for CountedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl Write for CountedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}
