//! How much a tree takes: what the evictor goes by.
//!
//! Published blobs are one counter, set by a scan and kept by what is published and removed since. A fill counts with what
//! is on disk of it or what it announced, whichever is more, from its start to its end, so that room is made before it
//! is needed.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Store;
use super::images::ImageId;
use crate::oci::Digest;

/// What takes space in a tree.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stored {
    /// A blob.
    Blob(Digest),
    /// The layer of an image of the Docker v1 protocol.
    Layer(ImageId),
}

impl From<Digest> for Stored {
    fn from(digest: Digest) -> Self {
        Self::Blob(digest)
    }
}

impl From<ImageId> for Stored {
    fn from(image: ImageId) -> Self {
        Self::Layer(image)
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blob(digest) => digest.fmt(f),
            Self::Layer(image) => write!(f, "layer {image}"),
        }
    }
}

/// How many bytes a tree takes, and may take.
#[derive(Debug)]
pub struct Usage {
    stored: AtomicU64,
    limit: AtomicU64,
    needed: AtomicU64,
    /// Fills of this process that have not ended, with the lengths that are announced.
    fills: Mutex<HashMap<Stored, u64>>,
    /// What is published while a scan runs, which may or may not see it.
    during_scan: Mutex<Option<HashMap<Stored, u64>>>,
    grown: Notify,
}

impl Default for Usage {
    fn default() -> Self {
        Self {
            stored: AtomicU64::new(0),
            limit: AtomicU64::new(u64::MAX),
            needed: AtomicU64::new(0),
            fills: Mutex::default(),
            during_scan: Mutex::default(),
            grown: Notify::new(),
        }
    }
}

impl Usage {
    /// Bytes of published blobs and layers.
    pub fn stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    /// The most that the tree could ever hold, in bytes: a larger blob is not worth emptying the tree for.
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Sets the most that the tree could ever hold.
    pub fn set_limit(&self, bytes: u64) {
        self.limit.store(bytes, Ordering::Relaxed);
    }

    /// Counts a publication; `bytes` is 0 if it was there already.
    pub fn published(&self, stored: impl Into<Stored>, bytes: u64) {
        if bytes == 0 {
            return;
        }
        if let Some(published) = &mut *lock(&self.during_scan) {
            published.insert(stored.into(), bytes);
        }
        self.stored.fetch_add(bytes, Ordering::Relaxed);
        self.grown.notify_one();
    }

    /// Counts what was removed.
    pub fn removed(&self, bytes: u64) {
        let less = |stored: u64| Some(stored.saturating_sub(bytes));
        let _ = self.stored.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// A scan begins; [`Usage::scanned`] ends it.
    pub fn scan_begins(&self) {
        *lock(&self.during_scan) = Some(HashMap::new());
    }

    /// Takes what a scan found as the truth. `total` sums those that `counts` says yes to.
    pub fn scanned(&self, total: u64) {
        let mut during_scan = lock(&self.during_scan);
        let since: u64 = during_scan.take().unwrap_or_default().values().sum();
        self.stored.store(total.saturating_add(since), Ordering::Relaxed);
    }

    /// Whether a scan is to count this: it was not published since the scan began, which is counted already.
    pub fn counts(&self, stored: &Stored) -> bool {
        lock(&self.during_scan).as_ref().is_none_or(|published| !published.contains_key(stored))
    }

    /// Bytes that fills take or will take. `on_disk` has the size so far of every fill, of other processes too.
    pub fn claimed(&self, mut on_disk: HashMap<Stored, u64>) -> u64 {
        for (stored, announced) in &*lock(&self.fills) {
            let size = on_disk.entry(stored.clone()).or_default();
            *size = (*size).max(*announced);
        }
        on_disk.values().fold(0, |sum, size| sum.saturating_add(*size))
    }

    /// Whether this process is filling it.
    pub fn is_filling(&self, stored: &Stored) -> bool {
        lock(&self.fills).contains_key(stored)
    }

    /// The disk, or a quota, is full: `bytes` more are needed.
    pub fn need(&self, bytes: u64) {
        self.needed.fetch_max(bytes, Ordering::Relaxed);
        self.grown.notify_one();
    }

    /// What was needed since the last call, in bytes.
    pub fn take_need(&self) -> u64 {
        self.needed.swap(0, Ordering::Relaxed)
    }

    /// Waits until something grew or is needed. Cancel safe.
    pub async fn grown(&self) {
        self.grown.notified().await;
    }
}

/// A fill in progress, as far as space is concerned; ends when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    store: Arc<Store>,
    stored: Stored,
}

impl Reservation {
    /// A fill begins.
    pub fn begin(store: &Arc<Store>, stored: impl Into<Stored>) -> Self {
        let stored = stored.into();
        lock(&store.usage().fills).insert(stored.clone(), 0);
        Self { store: Arc::clone(store), stored }
    }

    /// Its length is announced.
    pub fn announce(&self, bytes: u64) {
        let usage = self.store.usage();
        lock(&usage.fills).insert(self.stored.clone(), bytes);
        usage.grown.notify_one();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        lock(&self.store.usage().fills).remove(&self.stored);
    }
}

/// A panic while a map is locked cannot leave it inconsistent: each change is one map operation.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn digest(n: u8) -> Digest {
        Digest::of(Algorithm::Sha256, &[n])
    }

    fn blob(n: u8) -> Stored {
        digest(n).into()
    }

    #[test]
    fn what_is_published_during_a_scan_counts_once_whether_the_scan_saw_it_or_not() {
        let usage = Usage::default();
        usage.published(digest(1), 10);
        usage.scan_begins();
        usage.published(digest(2), 100);
        assert!(usage.counts(&blob(1)) && !usage.counts(&blob(2)));
        usage.scanned(10);
        assert_eq!(usage.stored(), 110);
        usage.removed(1000);
        assert_eq!(usage.stored(), 0);
    }

    #[test]
    fn a_fill_counts_with_what_is_there_or_announced_whichever_is_more() {
        let usage = Usage::default();
        lock(&usage.fills).extend([(blob(1), 100), (blob(2), 0), (blob(3), u64::MAX)]);
        let on_disk = HashMap::from([(blob(1), 7), (blob(2), 5), (blob(4), 3)]);
        assert_eq!(usage.claimed(on_disk), u64::MAX, "a sum past the end saturates");
        lock(&usage.fills).remove(&blob(3));
        assert_eq!(usage.claimed(HashMap::from([(blob(1), 7), (blob(2), 5), (blob(4), 3)])), 108);
    }
}
