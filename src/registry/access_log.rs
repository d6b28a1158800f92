//! What is said about a request once it is over: one line in the log (target `access`), and the metrics.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use http::{Method, StatusCode};

use crate::metrics::Metrics;

/// The route, in metrics, of a request whose head was refused.
const REFUSED: &str = "refused";

/// Where an answer came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheState {
    /// The question did not touch content.
    #[default]
    None,
    /// It was held.
    Hit,
    /// It was fetched because of this request.
    Miss,
    /// It was being fetched because of another one.
    Join,
    /// It was held, and upstream could not be asked whether it still holds true.
    Stale,
    /// It came from upstream and was not kept.
    Pass,
}

impl CacheState {
    /// The word in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Join => "join",
            Self::Stale => "stale",
            Self::Pass => "pass",
        }
    }
}

/// What is learnt about a request on its way.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) peer: SocketAddr,
    pub(super) received_at: Instant,
    pub(super) route: &'static str,
    pub(super) cache: CacheState,
    /// Bytes that the fill which this request began has received from upstream.
    pub(super) received: Option<Arc<AtomicU64>>,
    /// Bytes that came from upstream for this request alone.
    pub(super) also_received: Option<Arc<AtomicU64>>,
    /// When the disk was looked at, if the answer follows from that and the request's head alone.
    pub(super) rests_on: Option<Instant>,
}

impl Record {
    pub(super) fn new(method: &Method, target: &http::Uri, peer: SocketAddr, received_at: Instant) -> Self {
        // Only the log says it.
        let path = if tracing::enabled!(target: "access", tracing::Level::INFO) {
            let path = target.path_and_query().map_or_else(|| target.to_string(), ToString::to_string);
            without_state(path)
        } else {
            String::new()
        };
        Self {
            method: method.clone(),
            path,
            peer,
            received_at,
            route: "other",
            cache: CacheState::None,
            received: None,
            also_received: None,
            rests_on: None,
        }
    }

    /// The query is not for the log.
    pub(super) fn without_query(&mut self) {
        if let Some(query) = self.path.find('?') {
            self.path.truncate(query);
        }
    }

    /// The answer is content that is held, as looks at the disk at `at` and later said.
    pub(super) fn hit(&mut self, at: Instant) {
        self.cache = CacheState::Hit;
        self.rests_on = Some(at);
    }

    /// The record of an equal request that is given the same answer.
    pub(super) fn of_repeat(&self) -> Self {
        Self {
            method: self.method.clone(),
            path: self.path.clone(),
            received: None,
            also_received: None,
            ..*self
        }
    }

    /// The head was refused: there is no method and no path to speak of.
    pub(super) fn refused(&mut self) {
        "-".clone_into(&mut self.path);
        self.route = REFUSED;
    }

    /// A manifest of `len` bytes was fetched: for this request, or it joined another one's question.
    pub(super) fn fetched(&mut self, joined: bool, len: usize) {
        self.cache = if joined { CacheState::Join } else { CacheState::Miss };
        if !joined {
            self.received = Some(Arc::new(AtomicU64::new(len as u64)));
        }
    }

    /// Says it. `error` is why the body did not reach its end.
    pub(super) fn finish(&self, metrics: &Metrics, status: StatusCode, bytes: u64, error: Option<&str>) {
        self.finish_for(self.peer, self.received_at, metrics, status, bytes, error);
    }

    /// Says it of an equal request by `peer`.
    pub(super) fn finish_for(
        &self,
        peer: SocketAddr,
        received_at: Instant,
        metrics: &Metrics,
        status: StatusCode,
        bytes: u64,
        error: Option<&str>,
    ) {
        let cache = self.cache.as_str();
        metrics.request(self.route, status.as_u16(), cache);
        metrics.served(cache, bytes);
        let upstream_bytes = counted(self.received.as_ref()) + counted(self.also_received.as_ref());
        tracing::info!(
            target: "access",
            method = if self.route == REFUSED { "-" } else { self.method.as_str() },
            path = self.path.as_str(),
            status = status.as_u16(),
            bytes,
            duration_ms = (received_at.elapsed().as_secs_f64() * 1e6).round() / 1000.0,
            cache,
            client = %peer,
            upstream_bytes,
            error,
        );
    }
}

/// Leaves out what lets its bearer go on with an upload in a distribution beside us.
fn without_state(path: String) -> String {
    const KEY: &str = "_state=";
    match path.split_once(KEY) {
        Some((front, rest)) => {
            let behind = rest.find('&').map_or("", |end| &rest[end..]);
            format!("{front}{KEY}…{behind}")
        }
        None => path,
    }
}

fn counted(bytes: Option<&Arc<AtomicU64>>) -> u64 {
    bytes.map_or(0, |bytes| bytes.load(Ordering::Relaxed))
}
