//! One fill per digest and directory: who leads, who joins.
//!
//! The map of flights is guarded by one lock that is held for map operations only. A flight stays in the map from its
//! first request until it is published or has failed; a failed one is replaced by whoever asks next. Dropping a
//! [`Flight`] handle (a client that leaves) does not touch the fill: the leader is a task of its own.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Semaphore;

use super::error::FillError;
use super::fetch::Source;
use super::lead;
use crate::metrics::Metrics;
use crate::oci::Digest;
use crate::store::{Store, StoredRepository};
use crate::watermark::{self, Progress};

/// Fills that run at once; further ones wait for their turn.
pub const FILLS_MAX: usize = 256;
/// What all fills together may have received and not yet written, in KiB.
const BUFFERS_KIB: usize = 32 * 1024;

/// The fills of one cache.
pub struct Fills {
    pub(super) store: Arc<Store>,
    pub(super) metrics: Metrics,
    pub(super) turns: Semaphore,
    pub(super) buffers: Arc<Semaphore>,
    flights: Mutex<HashMap<Digest, Arc<Flight>>>,
}

/// Whether a request began the fill that answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It did.
    Leader,
    /// It found one under way.
    Joined,
}

/// One fill under way, as a reader sees it.
pub struct Flight {
    /// What is being fetched.
    pub digest: Digest,
    /// The repository through which it is fetched: the only one whose right to it upstream has been asked about.
    pub repository: StoredRepository,
    /// Where it comes from.
    pub source: Source,
    /// Bytes received from upstream so far.
    pub received: Arc<AtomicU64>,
    pub(super) reader: watermark::Reader<FillError>,
    pub(super) file: OnceLock<Arc<File>>,
}

impl Fills {
    /// No fills yet, into `store`.
    pub fn new(store: Arc<Store>, metrics: Metrics) -> Self {
        Self {
            store,
            metrics,
            turns: Semaphore::new(FILLS_MAX),
            buffers: Arc::new(Semaphore::new(BUFFERS_KIB)),
            flights: Mutex::new(HashMap::new()),
        }
    }

    /// The store that is filled.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The fill of `digest` that is under way, if there is one.
    pub fn current(&self, digest: &Digest) -> Option<Arc<Flight>> {
        let flights = self.lock();
        flights.get(digest).filter(|flight| !has_failed(flight)).cloned()
    }

    /// Joins the fill of `digest`, or begins it, on this worker. `length` is what a manifest says about it.
    ///
    /// Must be called inside a `LocalSet`. The caller has established that `repository` may ask `source` for it; if it
    /// joins a fill of another repository, the right of its own must have been asked about.
    pub fn join(
        self: &Arc<Self>,
        digest: Digest,
        repository: StoredRepository,
        source: Source,
        length: Option<u64>,
    ) -> (Arc<Flight>, Role) {
        let mut flights = self.lock();
        let entry = flights.entry(digest);
        if let Entry::Occupied(occupied) = &entry
            && !has_failed(occupied.get())
        {
            return (Arc::clone(occupied.get()), Role::Joined);
        }
        let (writer, reader) = watermark::channel();
        let flight = Arc::new(Flight {
            digest,
            repository,
            source,
            received: Arc::new(AtomicU64::new(0)),
            reader,
            file: OnceLock::new(),
        });
        entry.insert_entry(Arc::clone(&flight));
        drop(flights);
        tokio::task::spawn_local(lead::lead(Arc::clone(self), Arc::clone(&flight), writer, length));
        (flight, Role::Leader)
    }

    /// Whether a fill of `digest` is under way.
    pub fn is_filling(&self, digest: &Digest) -> bool {
        self.lock().contains_key(digest)
    }

    pub(super) fn land(&self, flight: &Arc<Flight>) {
        if let Entry::Occupied(occupied) = self.lock().entry(flight.digest)
            && Arc::ptr_eq(occupied.get(), flight)
        {
            occupied.remove();
        }
    }

    /// A panic while the map is locked cannot leave it inconsistent: each change is one map operation.
    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Flight>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    /// Waits until upstream has answered, or the fill is over. Cancel safe.
    pub async fn started(&self) -> Progress<FillError> {
        self.reader.clone().wait_until(|progress| !matches!(progress, Progress::Waiting)).await
    }

    /// Waits until the fill is over. Cancel safe.
    pub async fn ended(&self) -> Progress<FillError> {
        self.reader.clone().wait_until(Progress::is_final).await
    }

    /// How far it is.
    pub fn progress(&self) -> Progress<FillError> {
        self.reader.progress()
    }

    /// Bytes received from upstream so far.
    pub fn bytes_received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

fn has_failed(flight: &Flight) -> bool {
    matches!(flight.progress(), Progress::Failed(_))
}
