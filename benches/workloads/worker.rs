//! One worker of the program without its sockets: a runtime, files, and a registry over two fresh trees.

use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use http::{HeaderMap, Response, request};
use spliceway::body::{Body, BodyError, Chunk};
use spliceway::fill::Fills;
use spliceway::fill::fetch::{Source, TURNS};
use spliceway::metrics::Metrics;
use spliceway::oci::{Algorithm, Digest, RepositoryName};
use spliceway::registry::access::{Access, AccessOptions};
use spliceway::registry::{Arrived, Handler, Registry, RegistryOptions, RegistryUpstream, RequestBody, Site};
use spliceway::store::upload::UploadLimits;
use spliceway::store::{Layout, LinkKind, Store, StoreOptions, StoredRepository};
use spliceway::sys::{self, Files};
use spliceway::upstream::{Upstream, UpstreamOptions};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::LocalSet;

/// The name of the one upstream.
pub(crate) const UPSTREAM: &str = "origin";
/// The repository that everything is asked for in.
const REPOSITORY: &str = "team/app";
/// Longer than any bench: an origin may stand still.
const FOREVER: Duration = Duration::from_hours(1);

/// A worker, driven by the bench's own thread.
pub(crate) struct Worker {
    // Before the runtime that its tasks belong to.
    tasks: LocalSet,
    runtime: Runtime,
    handler: Handler,
    files: Files,
    local: Arc<Store>,
    pub(crate) fills: Arc<Fills>,
    pub(crate) source: Source,
    _home: TempDir,
}

impl Worker {
    /// In front of the upstream at `origin`, which is asked only for what is not held.
    pub(crate) fn before(origin: SocketAddr) -> Self {
        let home = TempDir::with_prefix("spliceway-bench-").expect("a temporary directory");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let tasks = LocalSet::new();
        let open = |name, evictable| {
            let handles_max = NonZeroUsize::new(1024).expect("not zero");
            let options = StoreOptions { handles_max, evictable };
            Arc::new(Store::open(&home.path().join(name), options).expect("our own directory"))
        };
        let (local, cache) = (open("local", false), open("cache", true));
        let metrics = Metrics::new();
        let fills = Arc::new(Fills::new(cache, metrics.clone()));
        let options = UpstreamOptions {
            stall_timeout: FOREVER,
            ..UpstreamOptions::new(UPSTREAM, format!("http://{origin}"))
        };
        let upstream = Arc::new(Upstream::new(options).expect("a plain upstream"));
        let turns = Arc::new(Semaphore::new(TURNS));
        let source = Source {
            upstream: Arc::clone(&upstream),
            repository: repository(),
            retries: 0,
            turns: Arc::clone(&turns),
            metrics: metrics.clone(),
        };
        let upstream = RegistryUpstream {
            upstream,
            name: UPSTREAM.to_owned(),
            aliases: Vec::new(),
            directory: UPSTREAM.to_owned(),
            default: true,
            tag_ttl: FOREVER,
            negative_ttl: FOREVER,
            retries: 0,
            turns,
            gate: None,
            failed: Mutex::new(None),
        };
        let options = RegistryOptions {
            far_range: 32 << 20,
            ranges_max: 64,
            manifest_bytes_max: 4 << 20,
            uploads: UploadLimits { sessions_max: 1, expiry: Duration::from_hours(1), bytes_max: u64::MAX },
        };
        let access = Access::new(AccessOptions::open()).expect("it reads no file");
        let (site_local, site_fills) = (Arc::clone(&local), Arc::clone(&fills));
        let registry =
            Registry::new(options, access, site_local, site_fills, vec![upstream], None, metrics.clone());
        let site = Site { hosts: Vec::new(), listeners: Vec::new(), default: Arc::new(registry) };
        let files = tasks
            .block_on(&runtime, async { Files::new(sys::probe().is_ok()) })
            .expect("a ring, if the probe says so");
        let handler = Handler::new(Arc::new(RwLock::new(Arc::new(site))), files.clone(), metrics);
        Self { tasks, runtime, handler, files, local, fills, source, _home: home }
    }

    /// Without an upstream that anybody could reach.
    pub(crate) fn alone() -> Self {
        // TCP's discard port.
        Self::before(SocketAddr::from(([127, 0, 0, 1], 9)))
    }

    /// Runs `future` where tasks of a worker run.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.tasks.block_on(&self.runtime, future)
    }

    /// Holds `bytes` as if they had been pushed.
    pub(crate) fn hold(&self, bytes: &[u8]) -> Digest {
        hold(self.local.layout(), bytes)
    }

    /// Answers a request, as far as the transport sees it.
    pub(crate) async fn respond(&self, head: request::Parts) -> Response<Body> {
        let peer = SocketAddr::from(([127, 0, 0, 1], 50_000));
        let arrived =
            Arrived { head, peer, listener: 0, received_at: Instant::now(), body: RequestBody::None };
        let (response, ending) = self.handler.respond(arrived).await;
        ending.finish(0, None);
        response
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.tasks.block_on(&self.runtime, self.files.drain());
    }
}

/// Puts `bytes` into the tree of what was pushed.
pub(crate) fn hold(local: &Layout, bytes: &[u8]) -> Digest {
    let digest = Digest::of(Algorithm::Sha256, bytes);
    let link = local.link(&StoredRepository::local(&repository()), LinkKind::Layer, &digest);
    for (path, content) in [(local.blob(&digest), bytes), (link, digest.to_string().as_bytes())] {
        fs::create_dir_all(path.parent().expect("below the tree")).expect("our own directory");
        fs::write(path, content).expect("our own directory");
    }
    digest
}

/// The head of a GET for a blob.
pub(crate) fn get(digest: &Digest, fields: HeaderMap) -> request::Parts {
    let request = http::Request::get(blob_path(digest)).body(()).expect("a valid target");
    let (mut parts, ()) = request.into_parts();
    parts.headers = fields;
    parts.headers.insert(http::header::HOST, http::HeaderValue::from_static("registry.example"));
    parts
}

pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}")
}

pub(crate) fn repository() -> RepositoryName {
    REPOSITORY.parse().expect("a valid name")
}

/// The next piece of a body.
pub(crate) async fn next_chunk(body: &mut Body) -> Option<Result<Chunk, BodyError>> {
    std::future::poll_fn(|cx| body.poll_chunk(cx)).await
}
