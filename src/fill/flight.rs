//! One fill per digest and directory: who leads, who joins.
//!
//! The map of flights is guarded by one lock that is held for map operations only. A flight stays in the map from its
//! first request until it is published or has failed; a failed one is replaced by whoever asks next. Dropping a
//! [`Flight`] handle (a client that leaves) does not touch the fill: the leader is a task of its own.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use lru::LruCache;
use tokio::sync::Semaphore;

use super::error::FillError;
use super::fetch::Source;
use super::layer::LayerFlight;
use super::lead;
use crate::metrics::Metrics;
use crate::oci::Digest;
use crate::store::images::ImageId;
use crate::store::{Store, StoredRepository, on_store_thread};
use crate::watermark::{self, Progress};

/// Fills that are claimed at once: an interrupted one is hashed again as it is claimed.
const CLAIMS_AT_ONCE: usize = 4;
/// Blob sizes that manifests told, remembered at most.
const SIZES_MAX: usize = 65_536;
/// How often it is looked whether a fill has been published.
const LANDING_EVERY: Duration = Duration::from_millis(5);
/// Endpoints that sent wrong bytes, remembered at most.
const SUSPECTS_MAX: usize = 1024;

/// The fills of one cache.
pub struct Fills {
    pub(super) store: Arc<Store>,
    pub(super) metrics: Metrics,
    pub(super) claims: Semaphore,
    /// What manifests of a repository say about the sizes of its blobs: upstream may not announce them.
    sizes: Mutex<LruCache<(StoredRepository, Digest), u64>>,
    /// Which endpoint sent something else under a digest: another one is asked first the next time.
    suspects: Mutex<LruCache<Digest, usize>>,
    flights: Mutex<HashMap<Digest, Arc<Flight>>>,
    pub(super) layers: Mutex<HashMap<ImageId, Arc<LayerFlight>>>,
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
    /// What a manifest of the repository says about its length, in bytes.
    pub expected: Option<u64>,
    growing: Growing,
}

/// The file of a fill under way, as its readers see it.
pub struct Growing {
    /// Bytes received from upstream so far.
    pub received: Arc<AtomicU64>,
    pub(super) reader: watermark::Reader<FillError>,
    pub(super) file: OnceLock<Arc<File>>,
}

impl Growing {
    /// Shows readers the file at `path`, which was published between a look and a claim, as `what` is. The file's length;
    /// `None`: and it is gone again.
    pub(super) async fn show_stored(
        &self,
        path: PathBuf,
        writer: &watermark::Writer<FillError>,
        what: &'static str,
    ) -> Result<Option<u64>, FillError> {
        let opened = on_store_thread(move || {
            let file = File::open(path)?;
            let len = file.metadata()?.len();
            Ok((file, len))
        });
        match opened.await {
            Ok((file, len)) => {
                let _ = self.file.set(Arc::new(file));
                writer.verified(len);
                Ok(Some(len))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(FillError::disk(what, error)),
        }
    }
}

impl Fills {
    /// No fills yet, into `store`.
    pub fn new(store: Arc<Store>, metrics: Metrics) -> Self {
        Self {
            store,
            metrics,
            claims: Semaphore::new(CLAIMS_AT_ONCE),
            sizes: Mutex::new(LruCache::new(nonzero(SIZES_MAX))),
            suspects: Mutex::new(LruCache::new(nonzero(SUSPECTS_MAX))),
            flights: Mutex::default(),
            layers: Mutex::default(),
        }
    }

    /// The store that is filled.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The fill of `digest` that is under way, if there is one.
    pub fn current(&self, digest: &Digest) -> Option<Arc<Flight>> {
        let flights = lock(&self.flights);
        flights.get(digest).filter(|flight| !has_failed(flight)).cloned()
    }

    /// Joins the fill of `digest`, or begins it, on this worker.
    ///
    /// Must be called inside a `LocalSet`. The caller has established that `repository` may ask `source` for it; if it
    /// joins a fill of another repository, the right of its own must have been asked about.
    pub fn join(
        self: &Arc<Self>,
        digest: Digest,
        repository: StoredRepository,
        source: Source,
    ) -> (Arc<Flight>, Role) {
        let mut flights = lock(&self.flights);
        let entry = flights.entry(digest);
        if let Entry::Occupied(occupied) = &entry
            && !has_failed(occupied.get())
        {
            return (Arc::clone(occupied.get()), Role::Joined);
        }
        let (writer, reader) = watermark::channel();
        let expected = lock(&self.sizes).get(&(repository.clone(), digest)).copied();
        let flight = Arc::new(Flight { digest, expected, repository, source, growing: Growing::new(reader) });
        entry.insert_entry(Arc::clone(&flight));
        drop(flights);
        tokio::task::spawn_local(lead::lead(Arc::clone(self), Arc::clone(&flight), writer));
        (flight, Role::Leader)
    }

    /// Waits until `flight` is over and its blob, if it is verified, has its name or cannot get it: readers have the
    /// verdict before. Cancel safe.
    pub async fn landed(&self, flight: &Arc<Flight>) -> Progress<FillError> {
        let progress = flight.ended().await;
        let is_under_way =
            || lock(&self.flights).get(&flight.digest).is_some_and(|known| Arc::ptr_eq(known, flight));
        // Publishing takes the time of an fdatasync, and its leader ends in any case.
        while is_under_way() {
            tokio::time::sleep(LANDING_EVERY).await;
        }
        progress
    }

    /// Remembers what a manifest of `repository` says about the sizes of blobs.
    pub fn remember_sizes(&self, repository: &StoredRepository, sizes: impl Iterator<Item = (Digest, u64)>) {
        let mut remembered = lock(&self.sizes);
        for (digest, size) in sizes {
            remembered.put((repository.clone(), digest), size);
        }
    }

    /// The endpoint that sent something else under this digest the last time.
    pub(super) fn suspect(&self, digest: &Digest) -> Option<usize> {
        lock(&self.suspects).get(digest).copied()
    }

    /// Draws the consequences of a failure: what a manifest said may be wrong, and so may be the endpoint.
    pub(super) fn distrust(&self, flight: &Flight, error: &FillError, endpoint: Option<usize>) {
        if matches!(error, FillError::Digest { .. } | FillError::Short { .. }) {
            lock(&self.sizes).pop(&(flight.repository.clone(), flight.digest));
        }
        if let (FillError::Digest { .. }, Some(endpoint)) = (error, endpoint) {
            lock(&self.suspects).put(flight.digest, endpoint);
        }
    }

    pub(super) fn land(&self, flight: &Arc<Flight>) {
        if let Entry::Occupied(occupied) = lock(&self.flights).entry(flight.digest)
            && Arc::ptr_eq(occupied.get(), flight)
        {
            occupied.remove();
        }
    }
}

impl Deref for Flight {
    type Target = Growing;

    fn deref(&self) -> &Growing {
        &self.growing
    }
}

impl Growing {
    pub(super) fn new(reader: watermark::Reader<FillError>) -> Self {
        Self { received: Arc::default(), reader, file: OnceLock::new() }
    }

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

pub(super) fn has_failed(flight: &Growing) -> bool {
    matches!(flight.progress(), Progress::Failed(_))
}

/// A panic while a map is locked cannot leave it inconsistent: each change is one map operation.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn nonzero(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN)
}
