//! What is said about a request once it is over: one line in the log (target `access`), and the metrics.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use http::{Method, StatusCode, Uri};

use crate::metrics::AccelMetrics;

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The backend's own body.
    Proxied,
    /// A file of a location.
    File,
    /// A blob of a registry.
    Blob,
    /// The front itself: something is not as it should be.
    Error,
}

impl Origin {
    /// The word in logs and metrics.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Proxied => "proxied",
            Self::File => "file",
            Self::Blob => "blob",
            Self::Error => "error",
        }
    }
}

/// What is learnt about a request on its way.
pub(super) struct Record {
    pub(super) front: Arc<str>,
    pub(super) metrics: AccelMetrics,
    method: Method,
    path: String,
    peer: SocketAddr,
    received_at: Instant,
    pub(super) origin: Origin,
    /// What went wrong, for the log.
    pub(super) reason: Option<String>,
}

impl Record {
    pub(super) fn new(
        front: Arc<str>,
        metrics: AccelMetrics,
        method: &Method,
        target: &Uri,
        peer: SocketAddr,
        received_at: Instant,
    ) -> Self {
        // Only the log says it.
        let log = tracing::enabled!(target: "access", tracing::Level::INFO);
        let path = if log { target.path_and_query().map_or("*", |target| target.as_str()) } else { "" };
        let path = path.to_owned();
        let method = method.clone();
        Self { front, metrics, method, path, peer, received_at, origin: Origin::Error, reason: None }
    }
}

/// What is said about a request once its answer is over.
pub struct Ending {
    record: Box<Record>,
    status: StatusCode,
}

impl Ending {
    pub(super) fn new(record: Box<Record>, status: StatusCode) -> Self {
        Self { record, status }
    }

    /// Says it: `bytes` of the body reached the socket; `error` is why it did not reach its end.
    pub fn finish(self, bytes: u64, error: Option<&str>) {
        let Self { record, status } = self;
        let source = record.origin.as_str();
        record.metrics.answered(source, status.as_u16(), bytes);
        tracing::info!(
            target: "access",
            method = record.method.as_str(),
            path = record.path.as_str(),
            status = status.as_u16(),
            bytes,
            duration_ms = (record.received_at.elapsed().as_secs_f64() * 1e6).round() / 1000.0,
            accel = &*record.front,
            source,
            client = %record.peer,
            error = error.or(record.reason.as_deref()),
        );
    }
}
