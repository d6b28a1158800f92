//! What of the server can be set, and what it counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::head::Limits;
use super::refusal::Refusal;
use super::sender::Sender;

/// The longest head that can be allowed, in bytes: the HTTP library parses no longer target.
const HEADER_BYTES_MAX: usize = 64 * 1024 - 2;
/// The most fields that can be allowed.
const HEADER_FIELDS_MAX: usize = 1000;

/// How connections are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerOptions {
    /// The longest request head, in bytes; a longer one is answered with 431. Default 32 KiB; more than 64 KiB − 2 is
    /// taken as that.
    pub header_bytes: usize,
    /// The most fields of a request head; more are answered with 431. Default 100; more than 1000 is taken as that.
    pub header_fields: usize,
    /// How long a head may take from its first byte; then 408. Default 10 s.
    pub header_timeout: Duration,
    /// How long a connection may be silent before a request; then it is closed. Default 75 s.
    pub idle_timeout: Duration,
    /// How long a request's body may stand still while it is wanted, or a response while the peer's window is full; then
    /// the connection is cut. A peer that takes a byte now and then is not cut. Default 60 s.
    pub stall_timeout: Duration,
    /// The most connections that are open at once, over all listeners and workers; further ones wait in the kernel's
    /// queue. Default 4096; to be at most half of the limit of open files.
    pub connections_max: usize,
    /// How long connections may go on when the server ends; then they are cut. Default 30 s.
    pub drain_timeout: Duration,
    /// How regions of files are sent. Default [`Sender::Splice`].
    pub sender: Sender,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            header_bytes: 32 * 1024,
            header_fields: 100,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            stall_timeout: Duration::from_mins(1),
            connections_max: 4096,
            drain_timeout: Duration::from_secs(30),
            sender: Sender::default(),
        }
    }
}

impl ServerOptions {
    pub(super) fn limits(&self) -> Limits {
        Limits {
            bytes: self.header_bytes.min(HEADER_BYTES_MAX),
            fields: self.header_fields.min(HEADER_FIELDS_MAX),
        }
    }
}

/// What the connections of all workers count together.
#[derive(Debug, Default)]
pub struct Counters {
    refused: [AtomicU64; Refusal::ALL.len()],
    stalled: AtomicU64,
}

impl Counters {
    /// Heads refused for this reason.
    pub fn refused_heads(&self, refusal: Refusal) -> u64 {
        self.refused[refusal.index()].load(Ordering::Relaxed)
    }

    /// Connections cut because the peer neither sent nor took what was due.
    pub fn stalled_connections(&self) -> u64 {
        self.stalled.load(Ordering::Relaxed)
    }

    pub(super) fn refused(&self, refusal: Refusal) {
        self.refused[refusal.index()].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn stalled(&self) {
        self.stalled.fetch_add(1, Ordering::Relaxed);
    }
}
