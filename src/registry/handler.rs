//! One request from its head to its answer: which registry, which route; the log and the metrics at its end.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, Response, StatusCode, request};

use super::access::{Action, TOKEN_PATH, Wanted, Wish};
use super::access_log::Record;
use super::namespace::{Registry, Target};
use super::receive::Payload;
use super::respond::{API_VERSION, API_VERSION_VALUE, ApiError, OCI_NAMESPACE};
use super::route::{Query, Route};
use super::v1;
use crate::body::Body;
use crate::http::host;
use crate::metrics::Metrics;
use crate::store::{REVALIDATE_AFTER, generation};
use crate::sys::files::Files;

/// The registries that this process serves, chosen by Host.
pub struct Site {
    /// Hosts that select a registry, in lower case, with or without a port; without one, any port is meant.
    pub hosts: Vec<(String, Arc<Registry>)>,
    /// Listeners that select a registry, by their numbers, whatever the host.
    pub listeners: Vec<(usize, Arc<Registry>)>,
    /// The registry of all other hosts.
    pub default: Arc<Registry>,
}

impl Site {
    /// This one, and of `old` the registries of listeners that none is for any more: the listeners stay while the process
    /// runs, and another registry is not to be reached through them all at once.
    #[must_use]
    pub fn with_listeners_of(mut self, old: &Self) -> Self {
        for (number, registry) in &old.listeners {
            if !self.listeners.iter().any(|(known, _)| known == number) {
                self.listeners.push((*number, Arc::clone(registry)));
            }
        }
        self
    }

    fn registry(&self, headers: &HeaderMap, listener: usize) -> &Arc<Registry> {
        if let Some((_, registry)) = self.listeners.iter().find(|(number, _)| *number == listener) {
            return registry;
        }
        host::select(&self.hosts, headers).unwrap_or(&self.default)
    }
}

/// What a handler of one worker has.
#[derive(Clone)]
pub(super) struct Worker {
    pub(super) files: Files,
}

/// A request as it arrived.
pub struct Arrived {
    /// Its head.
    pub head: request::Parts,
    /// The client.
    pub peer: SocketAddr,
    /// The number of the listener that it came through.
    pub listener: usize,
    /// When its first byte was there.
    pub received_at: Instant,
    /// What is known of its body.
    pub body: RequestBody,
}

/// What is known of a request's body.
pub enum RequestBody {
    /// There is none.
    None,
    /// There is one.
    Some(Payload),
    /// Not even the head could be read, and the head given is a stand-in.
    HeadRefused {
        /// The status to answer with.
        status: StatusCode,
        /// Why, for the metrics.
        label: &'static str,
        /// Why, for the client.
        reason: String,
    },
}

/// What is said about a request once its answer is over.
pub struct Ending {
    record: Record,
    metrics: Metrics,
    status: StatusCode,
    reason: Option<String>,
    /// As it was before anything was looked up.
    generation: u64,
}

impl Ending {
    /// Says it: `bytes` of the body reached the socket; `error` is why it did not reach its end.
    pub fn finish(self, bytes: u64, error: Option<&str>) {
        self.record.finish(&self.metrics, self.status, bytes, error.or(self.reason.as_deref()));
    }

    /// The leave to give an equal request the same answer without asking again; `None` if the answer may be another one.
    pub fn again(&self) -> Option<Again> {
        let looked_at = self.record.rests_on?;
        matches!(self.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED).then(
            || Again {
                record: self.record.of_repeat(),
                metrics: self.metrics.clone(),
                status: self.status,
                until: looked_at + REVALIDATE_AFTER,
                generation: self.generation,
            },
        )
    }
}

/// An answer that follows from the request's head and from looks at the disk alone, and that holds for as long as those
/// are believed.
pub struct Again {
    record: Record,
    metrics: Metrics,
    status: StatusCode,
    until: Instant,
    generation: u64,
}

impl Again {
    /// Whether an equal request would be answered in the same way at `now`.
    pub fn is_current(&self, now: Instant) -> bool {
        now < self.until && self.generation == generation()
    }

    /// Says that `peer` was given the answer: see [`Ending::finish`].
    pub fn finish(&self, peer: SocketAddr, received_at: Instant, bytes: u64, error: Option<&str>) {
        self.record.finish_for(peer, received_at, &self.metrics, self.status, bytes, error);
    }
}

/// Answers the requests of one worker.
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

    /// Answers a request. The log and the metrics hear of it when the [`Ending`] is told how the answer went.
    pub async fn respond(&self, arrived: Arrived) -> (Response<Body>, Ending) {
        let Arrived { head, peer, listener, received_at, body } = arrived;
        let generation = generation();
        let mut record = Record::new(&head.method, &head.uri, peer, received_at);
        let mut result = match body {
            RequestBody::HeadRefused { status, label, reason } => {
                record.refused();
                self.metrics.head_refused(label);
                Err(ApiError::refused_head(status, &reason))
            }
            RequestBody::Some(_) if matches!(head.method, Method::GET | Method::HEAD) => {
                Err(ApiError::unexpected_body())
            }
            RequestBody::Some(payload) => self.route(&head, listener, Some(payload), &mut record).await,
            RequestBody::None => self.route(&head, listener, None, &mut record).await,
        };
        if let Ok(response) = &mut result
            && let Some(namespace) = namespace_given(&head)
        {
            response.headers_mut().insert(OCI_NAMESPACE, namespace);
        }
        let reason = result.as_ref().err().map(|error| error.message().to_owned());
        let mut response = result.unwrap_or_else(ApiError::into_response);
        let path = head.uri.path();
        if path == "/v2" || path.starts_with("/v2/") {
            response.headers_mut().insert(API_VERSION, API_VERSION_VALUE);
        }
        let ending =
            Ending { record, metrics: self.metrics.clone(), status: response.status(), reason, generation };
        (response, ending)
    }

    async fn route(
        &self,
        head: &request::Parts,
        listener: usize,
        payload: Option<Payload>,
        record: &mut Record,
    ) -> Result<Response<Body>, ApiError> {
        if head.method == Method::OPTIONS && head.uri.path() == "*" {
            return Ok(empty(StatusCode::NO_CONTENT));
        }
        if matches!(head.method, Method::CONNECT | Method::TRACE) {
            return Err(ApiError::method_not_allowed(&head.method, "GET, HEAD"));
        }
        let site = Arc::clone(&self.site.read().unwrap_or_else(PoisonError::into_inner));
        let registry = site.registry(&head.headers, listener);
        if head.uri.path() == TOKEN_PATH
            && let Some(answer) = registry.access.token(head, record.peer).await
        {
            record.route = "token";
            return answer;
        }
        if let Some(mirror) = &registry.mirror
            && v1::speaks(head.uri.path())
        {
            // In a box, because it is large and rare.
            let answer = Box::pin(registry.v1(mirror, &self.worker, head, record)).await;
            return answer.map_err(ApiError::in_v1);
        }
        let reads = matches!(head.method, Method::GET | Method::HEAD);
        // What cannot be there is not there, to who only looks for it: the OCI conformance tests ask for that.
        let route =
            Route::parse(head.uri.path()).map_err(|error| if reads { error.absent_tag() } else { error })?;
        record.route = route.as_str();
        if !route.allows(&head.method) {
            return Err(ApiError::method_not_allowed(&head.method, route.allowed()));
        }
        let mut query = Query::parse(head.uri.query())?;
        permit(registry, head, &route, &query, record).await?;
        if reads {
            return self.read(head, registry, &route, &query, record).await;
        }
        let Some(name) = route.repository() else { return Err(ApiError::no_such_endpoint(head.uri.path())) };
        let target = registry.target(name, query.namespace.as_deref())?.for_writing();
        if query.mount.is_some()
            && let Some(from) = &query.from
        {
            let wish = Wish { repository: Some(from), action: Action::Pull };
            if registry.access.permit(&head.headers, record.peer, &[wish]).await.is_err() {
                // Who may not read there gets an ordinary upload, as if nothing were there.
                query.from = None;
            }
        }
        self.write(head, registry, &target, &route, &query, payload).await
    }

    async fn read(
        &self,
        head: &request::Parts,
        registry: &Arc<Registry>,
        route: &Route,
        query: &Query,
        record: &mut Record,
    ) -> Result<Response<Body>, ApiError> {
        let mut target = match route {
            Route::Base => return Ok(base(head)),
            Route::Catalog => return registry.catalog(head, query).await,
            Route::Uploads(_) | Route::Upload(_, None) => {
                return Err(ApiError::upload_unknown(&head.uri.path()));
            }
            Route::Upload(name, Some(id)) => {
                let target = registry.target(name, query.namespace.as_deref())?;
                return registry.upload_status(&target, id).await;
            }
            Route::Blob(name, _)
            | Route::Manifest(name, _)
            | Route::Tags(name)
            | Route::Referrers(name, _) => registry.target(name, query.namespace.as_deref())?,
        };
        let wanted = match route {
            Route::Blob(_, digest) => Wanted::Blob(digest),
            Route::Manifest(_, reference) => Wanted::Manifest(reference),
            _ => Wanted::Tags,
        };
        let refusal = registry.admit(head, record.peer, &target, wanted).await.err();
        if refusal.is_some() {
            target.remote = None;
        }
        let answer = match route {
            Route::Blob(_, digest) if head.method == Method::HEAD => {
                // In a box, so that it does not make the future of a hit larger.
                let promising = registry.promises(&self.worker, head, record.peer, &target, digest);
                let is_promise = Box::pin(promising).await;
                let answer = registry.blob(&self.worker, head, &target, digest, record).await;
                if is_promise {
                    record.rests_on = None;
                }
                answer
            }
            Route::Blob(_, digest) => registry.blob(&self.worker, head, &target, digest, record).await,
            Route::Manifest(_, reference) => {
                registry.manifest(&self.worker, head, &target, reference, record).await
            }
            Route::Referrers(_, subject) => {
                registry.referrers(&self.worker, head, &target, subject, query, record).await
            }
            _ => registry.tags(head, &target, query, record).await,
        };
        match (answer, refusal) {
            // Who is about to push a blob looks for it first, and goes on only if it is not there.
            (Err(error), Some(_)) if head.method == Method::HEAD && matches!(route, Route::Blob(..)) => {
                Err(error)
            }
            // What was pushed is there all the same; what is not, upstream refused.
            (Err(error), Some(refusal)) if error.status() == StatusCode::NOT_FOUND => Err(refusal),
            (answer, _) => answer,
        }
    }

    /// Pushes and removals. Boxed, so that what they hold does not make the future of a hit larger.
    async fn write(
        &self,
        head: &request::Parts,
        registry: &Arc<Registry>,
        target: &Target,
        route: &Route,
        query: &Query,
        payload: Option<Payload>,
    ) -> Result<Response<Body>, ApiError> {
        let worker = &self.worker;
        match (route, &head.method) {
            (Route::Blob(_, digest), _) => registry.delete_blob(target, digest).await,
            (Route::Manifest(_, reference), &Method::DELETE) => {
                registry.delete_manifest(worker, target, reference).await
            }
            (Route::Manifest(_, reference), _) => {
                let putting = registry.put_manifest(worker, head, target, reference, query, payload);
                Box::pin(putting).await
            }
            (Route::Uploads(_), _) => Box::pin(registry.begin_upload(worker, target, query, payload)).await,
            (Route::Upload(_, Some(id)), &Method::PATCH) => {
                Box::pin(registry.patch_upload(head, target, id, payload)).await
            }
            (Route::Upload(_, Some(id)), &Method::PUT) => {
                Box::pin(registry.finish_upload(head, target, id, query, payload)).await
            }
            (Route::Upload(_, Some(id)), _) => registry.cancel_upload(target, id).await,
            _ => Err(ApiError::upload_unknown(&head.uri.path())),
        }
    }
}

/// Whether the client may do what it asks for; nothing is looked up before.
async fn permit(
    registry: &Registry,
    head: &request::Parts,
    route: &Route,
    query: &Query,
    record: &Record,
) -> Result<(), ApiError> {
    let action = match (route, &head.method) {
        (Route::Base, _) => Action::Ping,
        (Route::Catalog, _) => Action::Catalog,
        // How far a session is concerns who writes to it.
        (Route::Uploads(_) | Route::Upload(..), _) => Action::Push,
        (_, &Method::GET | &Method::HEAD) => Action::Pull,
        (_, &Method::DELETE) => Action::Delete,
        _ => Action::Push,
    };
    let name = route.repository().map(|name| registry.known_as(name, query.namespace.as_deref()));
    let repository = name.transpose()?;
    let wish = Wish { repository: repository.as_deref(), action };
    registry.access.permit(&head.headers, record.peer, &[wish]).await
}

/// `/v2/`: an empty object, as distribution says.
fn base(head: &request::Parts) -> Response<Body> {
    const OBJECT: &[u8] = b"{}";
    let mut response = empty(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
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

/// The namespace that the client named, to be said back (OCI distribution spec 1.1, "Registry Proxying").
fn namespace_given(head: &request::Parts) -> Option<HeaderValue> {
    let query = head.uri.query()?;
    let (_, namespace) = url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "ns")?;
    HeaderValue::from_str(&namespace).ok()
}
