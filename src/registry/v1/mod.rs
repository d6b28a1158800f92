//! The Docker v1 protocol, as a mirror: what docker-registry 0.9 did in front of another one.
//!
//! ```text
//! respond          one request: route, access
//!  ├ images        layer, json, ancestry: local → cache → the source, through fill::layer
//!  │  └ admission  who may have an image that is held
//!  ├ repositories  tags, kept for a while; lists of images and a repository's json, passed on
//!  └ search        what the source finds, and what is here
//! headers          what is passed on in either direction
//! documents        what must hold of JSON before it is kept
//! ```
//!
//! `local` may be a directory of docker-registry: what is there is served as it is, and the source is not asked. The rest
//! comes from the source, with the client's own header fields, and is kept in `cache` in the same layout
//! ([`crate::store::images`]). Nothing can be pushed.
//!
//! **Who may do what.** `[registry.access]` decides first: a repository is known to its rules as `<namespace>/<name>`,
//! `library/` included. An image belongs to no repository, so images need the right to pull from all of them, and so does a
//! search. Then the source decides, by the client's credentials (`admission`); where users log in to this registry itself,
//! their `Authorization` is not passed on, and the source is asked as by nobody.
//!
//! **In memory**, and lost at the end: who was admitted, who was refused, and private tags; each bounded in number, all
//! believed for [`BELIEVED_FOR`] at most.

mod admission;
mod documents;
mod headers;
mod images;
mod repositories;
mod route;
mod search;

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, request};
use lru::LruCache;
use tokio::sync::Semaphore;
use url::Url;

use self::headers::Asker;
use self::route::Route;
use super::access::{AccessError, Action, Trace, Tracer, Wish};
use super::access_log::Record;
use super::blobs::disk_error;
use super::deliver::{Plain, deliver_plain};
use super::handler::Worker;
use super::namespace::Registry;
use super::respond::ApiError;
use crate::body::Body;
use crate::fill::Fills;
use crate::fill::coalesce::Coalesce;
use crate::fill::fetch::TURNS;
use crate::http::conditional::Validators;
use crate::metrics::Metrics;
use crate::store::Store;
use crate::store::images::ImageId;
use crate::upstream::{Refusal, Relay, Relayed, UpstreamError};

/// How long the source's word about a client is believed.
const BELIEVED_FOR: Duration = Duration::from_mins(1);
/// How many yeses are remembered.
const ADMITTED_MAX: NonZeroUsize = NonZeroUsize::new(8192).expect("not zero");
/// How many objects are remembered that nobody without credentials may have.
const PRIVATE_MAX: NonZeroUsize = NonZeroUsize::new(8192).expect("not zero");
/// How many private answers about tags are remembered.
const PRIVATE_TAGS_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// Most bytes of a document that is about a repository or a search.
const LIST_BYTES_MAX: usize = 4 << 20;
/// Documents that are being read from sources may take so much together, in KiB.
const DOCUMENTS_KIB: usize = 32 * 1024;
/// How long a document waits for others to be read.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(20);
const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// The field by which `_ping` says what kind of registry this is.
const STANDALONE: HeaderName = HeaderName::from_static("x-docker-registry-standalone");

/// A permit for each KiB of [`DOCUMENTS_KIB`].
static DOCUMENTS: Semaphore = Semaphore::const_new(DOCUMENTS_KIB);

/// Whether a path is the Docker v1 protocol's.
pub(super) fn speaks(path: &str) -> bool {
    path == "/_ping" || path.starts_with("/v1/")
}

/// What a mirror needs to know.
pub struct MirrorOptions {
    /// Where images and tags come from.
    pub source: Relay,
    /// Where the index is.
    pub index: Relay,
    /// How long tags are served without asking again.
    pub tags_cache_ttl: Duration,
    /// Where clients are sent for public layers that are held; ends in a slash.
    pub storage_redirect: Option<Url>,
}

/// The Docker v1 mirror of a registry; shared by all workers.
pub struct Mirror {
    source: Arc<Relay>,
    index: Arc<Relay>,
    tags_cache_ttl: Duration,
    storage_redirect: Option<Url>,
    local: Arc<Store>,
    cache: Arc<Store>,
    fills: Arc<Fills>,
    metrics: Metrics,
    tracer: Tracer,
    turns: Arc<Semaphore>,
    /// Questions to the source about an image, or a path, each as one asks it: by a trace, or as nobody.
    asked: Coalesce<(String, Option<Trace>), Result<Bytes, Refused>>,
    admitted: Mutex<LruCache<(ImageId, Trace), Instant>>,
    /// What the source refused to nobody, by path.
    private: Mutex<LruCache<String, Instant>>,
    private_tags: Mutex<LruCache<(Trace, String), (Bytes, Instant)>>,
    /// When the source failed the last time.
    failed: Mutex<Option<Instant>>,
}

/// Why the source's answer cannot be given. Everybody who waits for it hears the same.
#[derive(Clone, Debug)]
enum Refused {
    /// The source's word, or what kept it from speaking.
    Source(Refusal),
    /// It sends something else than it was asked for.
    Senseless(&'static str),
    /// The disk failed; the log says how.
    Disk,
    /// The worker that asked is ending.
    Abandoned,
}

/// One request, as the parts of a mirror see it.
struct Context<'a> {
    worker: &'a Worker,
    head: &'a request::Parts,
    asker: Asker,
    /// More ranges than this are answered by the whole.
    ranges_max: usize,
    /// Whether anybody may have what everybody may have.
    is_open: bool,
}

impl Mirror {
    /// A mirror that has asked nobody.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn new(
        options: MirrorOptions,
        local: Arc<Store>,
        fills: Arc<Fills>,
        metrics: Metrics,
    ) -> Result<Self, AccessError> {
        Ok(Self {
            source: Arc::new(options.source),
            index: Arc::new(options.index),
            tags_cache_ttl: options.tags_cache_ttl,
            storage_redirect: options.storage_redirect,
            local,
            cache: Arc::clone(fills.store()),
            fills,
            metrics,
            tracer: Tracer::new(Path::new("/dev/urandom"))?,
            turns: Arc::new(Semaphore::new(TURNS)),
            asked: Coalesce::default(),
            admitted: Mutex::new(LruCache::new(ADMITTED_MAX)),
            private: Mutex::new(LruCache::new(PRIVATE_MAX)),
            private_tags: Mutex::new(LruCache::new(PRIVATE_TAGS_MAX)),
            failed: Mutex::default(),
        })
    }

    /// Whether nobody without credentials was given this path a moment ago.
    fn is_private(&self, path: &str) -> bool {
        lock(&self.private).get(path).is_some_and(|at| at.elapsed() < BELIEVED_FOR)
    }

    fn remember_private(&self, path: &str) {
        lock(&self.private).put(path.to_owned(), Instant::now());
    }
}

impl Registry {
    /// Answers a request of the Docker v1 protocol.
    pub(super) async fn v1(
        &self,
        mirror: &Arc<Mirror>,
        worker: &Worker,
        head: &request::Parts,
        record: &mut Record,
    ) -> Result<Response<Body>, ApiError> {
        if !matches!(head.method, Method::GET | Method::HEAD) {
            record.route = "v1_push";
            return Err(ApiError::method_not_allowed(&head.method, "GET, HEAD"));
        }
        let route = Route::parse(head.uri.path())?;
        record.route = route.as_str();
        if route != Route::Search {
            // It may be a signature.
            record.without_query();
        }
        let name = match &route {
            Route::Ping => return ping(head),
            Route::Repository(name, _) => name.known_as(),
            Route::Image(..) | Route::Search => None,
        };
        let action = if route == Route::Search { Action::Catalog } else { Action::Pull };
        let wish = Wish { repository: name.as_ref(), action };
        self.access.permit(&head.headers, record.peer, &[wish]).await?;
        let authenticates = self.access.authenticates();
        let context = Context {
            worker,
            head,
            asker: Asker::of(head, &mirror.tracer, authenticates),
            ranges_max: self.options.ranges_max,
            is_open: !authenticates,
        };
        let answer = match route {
            Route::Image(image, part) => mirror.image(&context, &image, part, record).await,
            Route::Repository(name, resource) => mirror.repository(&context, &name, &resource, record).await,
            Route::Search => mirror.search(&context, record).await,
            Route::Ping => ping(head),
        };
        match answer {
            // The client has a login, and it is right: the source was not shown it.
            Err(error) if authenticates && error.status() == StatusCode::UNAUTHORIZED => {
                Err(ApiError::denied("the source gives this to its own users only"))
            }
            answer => answer,
        }
    }
}

impl Refused {
    /// What a client is told. `absent` is the answer if the source does not have it.
    fn into_error(self, absent: impl FnOnce() -> ApiError) -> ApiError {
        match self {
            Self::Source(refusal) => ApiError::source(&refusal, absent),
            Self::Senseless(what) => ApiError::source_senseless(what),
            Self::Disk => ApiError::internal(),
            Self::Abandoned => ApiError::unavailable("the question to the source was given up"),
        }
    }

    /// A stable word for the log.
    fn reason(&self) -> &'static str {
        match self {
            Self::Source(refusal) => refusal.error.reason(),
            Self::Senseless(_) => "senseless",
            Self::Disk => "disk",
            Self::Abandoned => "abandoned",
        }
    }

    /// Whether the source may answer somebody with credentials otherwise than nobody: it does not fail, it refuses, or has
    /// been asked too much by nobody, or sends what nobody is to log in by.
    fn is_for_nobody(&self) -> bool {
        match self {
            Self::Source(Refusal { error, .. }) => {
                !error.is_retryable() || matches!(error, UpstreamError::RateLimited { .. })
            }
            Self::Senseless(_) => true,
            Self::Disk | Self::Abandoned => false,
        }
    }

    /// Whether the source may answer otherwise in a moment: it was not refused, it failed.
    fn is_passing(&self) -> bool {
        match self {
            Self::Source(refusal) => refusal.error.is_retryable(),
            Self::Senseless(_) | Self::Disk | Self::Abandoned => true,
        }
    }
}

impl Context<'_> {
    /// The host that the client says that we are.
    fn host(&self) -> Option<&HeaderValue> {
        self.head.headers.get(HOST)
    }

    /// Answers with a document.
    fn document(&self, mut content: Bytes, fields: HeaderMap) -> Result<Response<Body>, ApiError> {
        let mut response = Response::new(Body::empty());
        let media_type = fields.get(CONTENT_TYPE).cloned().unwrap_or(JSON);
        *response.headers_mut() = fields;
        let len = Some(content.len() as u64);
        let plain = Plain { validators: Validators::default(), media_type: &media_type, len, ranges_max: 0 };
        deliver_plain(self.head, response, &plain, |_| Ok(Body::bytes(std::mem::take(&mut content))))
    }
}

/// Reads a document of at most `limit` bytes.
async fn read(relayed: Relayed, limit: usize) -> Result<Bytes, Refused> {
    let most = relayed.length().and_then(|length| usize::try_from(length).ok()).unwrap_or(limit).min(limit);
    let kib = u32::try_from(most.div_ceil(1024)).unwrap_or(u32::MAX);
    // Nobody closes it.
    let room = tokio::time::timeout(ROOM_WAIT_MAX, DOCUMENTS.acquire_many(kib.max(1)));
    let Ok(Ok(_room)) = room.await else { return Err(Refused::Abandoned) };
    relayed.document(limit).await.map_err(|error| Refused::Source(error.into()))
}

/// Says that this is a mirror.
fn ping(head: &request::Parts) -> Result<Response<Body>, ApiError> {
    let mut response = Response::new(Body::empty());
    response.headers_mut().insert(STANDALONE, HeaderValue::from_static("mirror"));
    let content = Bytes::from_static(b"{}");
    let len = Some(content.len() as u64);
    let plain = Plain { validators: Validators::default(), media_type: &JSON, len, ranges_max: 0 };
    deliver_plain(head, response, &plain, |_| Ok(Body::bytes(content.clone())))
}

/// A panic while a map is locked cannot leave it inconsistent: each change is one map operation.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
