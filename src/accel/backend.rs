//! The way to the application: connections to it, those that are idle among them, and one request over one of them.
//!
//! Each worker has its own connections; nothing is shared between threads. A connection has no task of its own: whoever
//! waits for something from it [drives](Link::drive) it meanwhile, so a request wakes one task and not two. An idle one is
//! driven by nobody; whether the backend closed it is asked when it is to be used again. One that the backend closes at the
//! very moment when a request is sent costs a second attempt, on a new connection, if the request may be sent twice or was
//! not sent at all. Dropping a connection closes it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::error::Error;
use std::future::{Future, poll_fn};
use std::io;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::rt::{Read, Write};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::task::coop::unconstrained;
use tokio::time::timeout;
use tower_service::Service;
use url::Url;

use super::options::BackendAddress;
use super::payload::{Payload, Progress};
use super::timer::Timer;
use crate::upstream::Tls;

/// The most that is read of a backend at once, in bytes, and with it the longest head of an answer.
const BUFFER_BYTES: usize = 128 * 1024;
/// The most fields in the head of an answer.
const FIELDS_MAX: usize = 256;
/// How long an idle connection is kept.
const IDLE_TIME_MAX: Duration = Duration::from_mins(1);
/// Attempts on connections that were kept and turn out to be closed before the request was sent.
const STALE_MAX: usize = 8;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The backend cannot be reached.
    Unreachable(String),
    /// This machine has no room for one more connection, or the backend's queue is full.
    Busy(String),
    /// It did not accept a connection, or did not answer, in time.
    Timeout(&'static str),
    /// It broke the connection off, or what it says is no HTTP.
    Broken(String),
}

/// Where the backend is.
pub(super) struct Address {
    place: Place,
    connect_timeout: Duration,
}

enum Place {
    Tcp { uri: Uri, tls: Option<Arc<Tls>> },
    Unix(PathBuf),
}

impl Address {
    pub(super) fn new(
        address: &BackendAddress,
        tls: Arc<Tls>,
        connect_timeout: Duration,
    ) -> Result<Self, http::uri::InvalidUri> {
        let place = match address {
            BackendAddress::Url(url) => {
                Place::Tcp { uri: url.as_str().parse()?, tls: (url.scheme() == "https").then_some(tls) }
            }
            BackendAddress::Unix(path) => Place::Unix(path.clone()),
        };
        Ok(Self { place, connect_timeout })
    }

    /// Opens a connection.
    async fn connect(&self) -> Result<Link, Failure> {
        let connecting = async {
            match &self.place {
                Place::Unix(path) => start(TokioIo::new(UnixStream::connect(path).await?)).await,
                Place::Tcp { uri, tls } => {
                    let mut http = HttpConnector::new();
                    http.enforce_http(false);
                    http.set_nodelay(true);
                    http.set_connect_timeout(Some(self.connect_timeout));
                    match tls {
                        Some(tls) => {
                            let mut https = HttpsConnector::from((http, tls.config().await?));
                            start(https.call(uri.clone()).await.map_err(io::Error::other)?).await
                        }
                        None => start(http.call(uri.clone()).await.map_err(io::Error::other)?).await,
                    }
                }
            }
        };
        match timeout(self.connect_timeout, connecting).await {
            Ok(Ok(link)) => Ok(link),
            Ok(Err(error)) if is_full(&error) => Err(Failure::Busy(causes(&error))),
            Ok(Err(error)) if is_timed_out(&error) => Err(Failure::Timeout("the backend does not accept")),
            Ok(Err(error)) => Err(Failure::Unreachable(causes(&error))),
            Err(_) => Err(Failure::Timeout("the backend does not accept")),
        }
    }
}

async fn start<S: Read + Write + Unpin + Send + 'static>(stream: S) -> io::Result<Link> {
    let mut builder = Builder::new();
    builder.max_buf_size(BUFFER_BYTES).max_headers(FIELDS_MAX);
    let (sender, connection) = builder.handshake(stream).await.map_err(io::Error::other)?;
    Ok(Link { sender, driver: Some(Box::pin(connection.with_upgrades())), timer: Timer::default() })
}

/// A connection to the backend.
pub(super) struct Link {
    sender: SendRequest<Payload>,
    /// What reads and writes; `None` when it has come to its end.
    driver: Option<Pin<Box<dyn Future<Output = hyper::Result<()>>>>>,
    /// For every wait on it, one after the other.
    pub(super) timer: Timer,
}

impl Link {
    /// Reads and writes what can be. To be called by who waits for an answer or a body, before asking for it; asking itself
    /// needs no waker, as all there is comes from here.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && let Poll::Ready(ended) = driver.as_mut().poll(cx)
        {
            self.driver = None;
            if let Err(error) = ended {
                tracing::debug!(error = causes(&error), "connection to a backend failed");
            }
        }
    }

    /// Asks something that [`drive`](Self::drive) brings about.
    pub(super) fn poll_driven<T>(
        &mut self,
        cx: &mut Context<'_>,
        ask: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.drive(cx);
        ask_unwatched(ask)
    }

    /// As [`poll_driven`](Self::poll_driven), of a body, whose next piece may only come when it was asked for.
    pub(super) fn poll_body<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut ask: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        match self.poll_driven(cx, &mut ask) {
            Poll::Pending => self.poll_driven(cx, ask),
            ready @ Poll::Ready(_) => ready,
        }
    }

    /// Whether the connection has come to its end.
    pub(super) fn is_ended(&self) -> bool {
        self.driver.is_none()
    }

    /// Whether the last request and its answer are over, or the connection is.
    pub(super) fn is_settled(&self) -> bool {
        self.is_ended() || self.sender.is_ready()
    }

    /// Whether another request can be sent.
    fn is_usable(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.driver.is_some() && self.sender.is_ready()
    }
}

/// Asks without a waker. Unconstrained, because what would rather be asked later could not say so.
fn ask_unwatched<T>(ask: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    pin!(unconstrained(poll_fn(ask))).poll(&mut Context::from_waker(Waker::noop()))
}

/// The connections of one front on one worker.
pub(super) struct Pool {
    idle: RefCell<VecDeque<Idle>>,
    idle_max: usize,
    /// A task closes those that have been idle for too long.
    is_tidied: Cell<bool>,
}

struct Idle {
    link: Link,
    since: Instant,
}

impl Pool {
    pub(super) fn new(idle_max: usize) -> Self {
        Self { idle: RefCell::default(), idle_max, is_tidied: Cell::new(false) }
    }

    /// The connection that was used last, if it can be used again.
    fn take(&self) -> Option<Link> {
        let mut idle = self.idle.borrow_mut();
        std::iter::from_fn(|| idle.pop_back())
            .map(|one| one.link)
            .find_map(|mut link| link.is_usable().then_some(link))
    }

    /// Keeps a connection whose answer was read to its end.
    pub(super) fn put(self: &Rc<Self>, link: Link) {
        if self.idle_max == 0 || link.driver.is_none() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        if idle.len() >= self.idle_max {
            idle.pop_front();
        }
        idle.push_back(Idle { link, since: Instant::now() });
        if !self.is_tidied.replace(true) {
            tokio::task::spawn_local(tidy(Rc::downgrade(self)));
        }
    }
}

/// Closes what has been idle for too long, as long as there is anything.
async fn tidy(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(IDLE_TIME_MAX / 2).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut idle = pool.idle.borrow_mut();
        idle.retain_mut(|one| one.since.elapsed() < IDLE_TIME_MAX && one.link.is_usable());
        if idle.is_empty() {
            pool.is_tidied.set(false);
            return;
        }
    }
}

/// A request as it is sent to the backend.
pub(super) struct Outbound {
    pub(super) method: Method,
    pub(super) target: Uri,
    pub(super) headers: HeaderMap,
    /// The body; `None` if there is none.
    pub(super) body: Option<(Incoming, Rc<Progress>)>,
}

impl Outbound {
    /// The request; the body goes with the first one.
    fn request(&mut self) -> Request<Payload> {
        let payload =
            self.body.take().map_or_else(Payload::none, |(body, progress)| Payload::new(body, progress));
        let mut request = Request::new(payload);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// Sends a request and waits for the head of its answer, at most `header_timeout` from the last byte of the request. The
/// connection comes with the answer: it can be used again when its body was read to the end.
pub(super) async fn exchange(
    address: &Address,
    pool: &Pool,
    outbound: &mut Outbound,
    header_timeout: Duration,
) -> Result<(Response<Incoming>, Link), Failure> {
    let progress = outbound.body.as_ref().map(|(_, progress)| Rc::clone(progress));
    let mut repeatable = outbound.body.is_none() && outbound.method.is_idempotent();
    let mut unsent: Option<Box<Request<Payload>>> = None;
    let mut stale = 0;
    loop {
        let kept = if stale < STALE_MAX { pool.take() } else { None };
        let is_kept = kept.is_some();
        let mut link = match kept {
            Some(link) => link,
            // In a box, as it is large and rare.
            None => Box::pin(address.connect()).await?,
        };
        let answering = match unsent.take() {
            Some(request) => link.sender.try_send_request(*request),
            None => link.sender.try_send_request(outbound.request()),
        };
        let Some(answer) = in_time(answering, &mut link, progress.as_deref(), header_timeout).await else {
            return Err(Failure::Timeout("the backend does not answer"));
        };
        let mut error = match answer {
            Ok(response) => return Ok((response, link)),
            Err(error) => error,
        };
        match error.take_message() {
            // It was never sent.
            Some(request) if is_kept => {
                unsent = Some(Box::new(request));
                stale += 1;
            }
            // It was closed meanwhile, or something else than an answer was in the way.
            None if is_kept && repeatable && !error.error().is_user() => {
                repeatable = false;
                stale = STALE_MAX;
            }
            _ => return Err(Failure::Broken(causes(error.error()))),
        }
    }
}

/// The outcome, unless nothing has moved for `limit` while it was the backend's turn.
async fn in_time<F: Future>(
    answering: F,
    link: &mut Link,
    progress: Option<&Progress>,
    limit: Duration,
) -> Option<F::Output> {
    let mut answering = pin!(answering);
    let mut deadline = Instant::now() + limit;
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(answer) = link.poll_driven(cx, |cx| answering.as_mut().poll(cx)) {
                return Poll::Ready(Some(answer));
            }
            ready!(link.timer.poll(cx, deadline));
            // A client that takes its time with the body is the server's business.
            match progress.map(Progress::moved) {
                Some(moved) if moved + limit > Instant::now() => deadline = moved + limit,
                _ => return Poll::Ready(None),
            }
        }
    })
    .await
}

/// An error's message and those of its causes.
pub(super) fn causes(error: &(dyn Error + 'static)) -> String {
    crate::upstream::causes(error).to_string()
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}

fn io_errors(error: &io::Error) -> impl Iterator<Item = &io::Error> {
    let inner = error.get_ref().map(|inner| inner as &(dyn Error + 'static));
    std::iter::once(error).chain(inner.into_iter().flat_map(chain).filter_map(|cause| cause.downcast_ref()))
}

fn is_full(error: &io::Error) -> bool {
    let full = [libc::EMFILE, libc::ENFILE, libc::EAGAIN, libc::EADDRNOTAVAIL, libc::ENOBUFS];
    io_errors(error).any(|error| error.raw_os_error().is_some_and(|code| full.contains(&code)))
}

fn is_timed_out(error: &io::Error) -> bool {
    io_errors(error).any(|error| error.kind() == io::ErrorKind::TimedOut)
}

/// The path that is put before the path of every request, without a slash at its end.
pub(super) fn path_prefix(address: &BackendAddress) -> &str {
    match address {
        BackendAddress::Url(url) => url.path().trim_end_matches('/'),
        BackendAddress::Unix(_) => "",
    }
}

/// The value of Host for a request that has none.
pub(super) fn authority(address: &BackendAddress) -> String {
    match address {
        BackendAddress::Url(url) => host_and_port(url),
        BackendAddress::Unix(_) => "localhost".to_owned(),
    }
}

fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}
