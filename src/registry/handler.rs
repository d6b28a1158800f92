//! One request from its head to its answer: which registry, which route; the log and the metrics at its end.

use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::header::{ALLOW, CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Response, StatusCode, request};

use super::access_log::Record;
use super::namespace::Registry;
use super::respond::{API_VERSION, API_VERSION_VALUE, ApiError, OCI_NAMESPACE};
use super::route::{Query, Route};
use crate::body::Body;
use crate::metrics::Metrics;
use crate::server::{Request, ResponseEnd, Service, discard};
use crate::sys::files::Files;

/// How much of a body that nobody wants is read before the answer, in bytes.
const DISCARD_MAX: u64 = 1 << 20;
/// How long that may take.
const DISCARD_TIME_MAX: Duration = Duration::from_secs(2);

/// The registries that this process serves, chosen by Host.
pub struct Site {
    /// Hosts that select a registry, in lower case, with or without a port; without one, any port is meant.
    pub hosts: Vec<(String, Arc<Registry>)>,
    /// The registry of all other hosts.
    pub default: Arc<Registry>,
}

impl Site {
    fn registry(&self, headers: &HeaderMap) -> &Arc<Registry> {
        if self.hosts.is_empty() {
            return &self.default;
        }
        let host =
            headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
        let name = without_port(&host);
        let selected = self.hosts.iter().find(|(selector, _)| *selector == host || selector == name);
        selected.map_or(&self.default, |(_, registry)| registry)
    }
}

/// What a handler of one worker has.
#[derive(Clone)]
pub(super) struct Worker {
    pub(super) files: Files,
}

/// The service of one worker.
#[derive(Clone)]
pub struct Handler {
    /// Replaced as a whole on reload; requests under way keep what they began with.
    site: Arc<RwLock<Arc<Site>>>,
    worker: Worker,
    metrics: Metrics,
}

impl Handler {
    /// A handler for one worker, over a site that all workers share.
    pub fn new(site: Arc<RwLock<Arc<Site>>>, files: Files, metrics: Metrics) -> Self {
        Self { site, worker: Worker { files }, metrics }
    }

    async fn respond(self, request: Request) -> Response<Body> {
        let Request { head, body, peer, received, rejected } = request;
        let mut record = Record::new(&head.method, &head.uri, peer, received);
        let mut result = match &rejected {
            Some(refused) => {
                record.refused();
                self.metrics.head_refused(refused.refusal.as_str());
                Err(ApiError::refused_head(refused.status, &refused.reason))
            }
            None if has_body(&head.headers) => {
                // Read first: a client that is still sending would not see an early answer.
                let drained = discard(&head.headers, body, DISCARD_MAX, DISCARD_TIME_MAX).await;
                let error = ApiError::unexpected_body();
                Err(if drained { error } else { error.closing() })
            }
            None => self.route(&head, &mut record).await,
        };
        if let Ok(response) = &mut result
            && let Some(namespace) = namespace_given(&head)
        {
            response.headers_mut().insert(OCI_NAMESPACE, namespace);
        }
        let reason = result.as_ref().err().map(|error| error.message().to_owned());
        let mut response = result.unwrap_or_else(ApiError::into_response);
        if head.uri.path().starts_with("/v2") {
            response.headers_mut().insert(API_VERSION, API_VERSION_VALUE);
        }
        let (status, metrics) = (response.status(), self.metrics);
        response.extensions_mut().insert(ResponseEnd::new(move |outcome| {
            record.finish(&metrics, status, outcome.bytes, outcome.error.as_deref().or(reason.as_deref()));
        }));
        response
    }

    async fn route(&self, head: &request::Parts, record: &mut Record) -> Result<Response<Body>, ApiError> {
        if head.method == Method::OPTIONS && head.uri.path() == "*" {
            return Ok(empty(StatusCode::NO_CONTENT));
        }
        if matches!(head.method, Method::CONNECT | Method::TRACE) {
            return Err(ApiError::method_not_allowed(&head.method));
        }
        let route = Route::parse(head.uri.path())?;
        record.route = route.as_str();
        let query = Query::parse(head.uri.query())?;
        if !matches!(head.method, Method::GET | Method::HEAD) {
            return Err(ApiError::method_not_allowed(&head.method));
        }
        let site = Arc::clone(&self.site.read().unwrap_or_else(PoisonError::into_inner));
        let registry = site.registry(&head.headers);
        let target = |name| registry.target(name, query.namespace.as_deref());
        match &route {
            Route::Base => Ok(base(head)),
            Route::Blob(name, digest) => {
                registry.blob(&self.worker, head, &target(name)?, digest, record).await
            }
            Route::Manifest(name, reference) => {
                registry.manifest(&self.worker, head, &target(name)?, reference, record).await
            }
            Route::Tags(name) => registry.tags(head, &target(name)?, &query, record).await,
        }
    }
}

impl Service for Handler {
    fn call(&self, request: Request) -> impl Future<Output = Response<Body>> + 'static {
        self.clone().respond(request)
    }
}

/// `/v2/`: an empty object, as distribution says.
fn base(head: &request::Parts) -> Response<Body> {
    const OBJECT: &[u8] = b"{}";
    let mut response = empty(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(OBJECT.len()));
    if head.method == Method::GET {
        *response.body_mut() = Body::bytes(OBJECT);
    }
    response
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    if status == StatusCode::NO_CONTENT {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
    }
    response
}

fn has_body(headers: &HeaderMap) -> bool {
    let sized =
        headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes().iter().any(|&byte| byte != b'0'));
    sized || headers.contains_key(TRANSFER_ENCODING)
}

/// The namespace that the client named, to be said back (OCI distribution spec 1.1, "Registry Proxying").
fn namespace_given(head: &request::Parts) -> Option<HeaderValue> {
    let query = head.uri.query()?;
    let (_, namespace) = url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "ns")?;
    HeaderValue::from_str(&namespace).ok()
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // `[::1]` has colons and no port.
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}
