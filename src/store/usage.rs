//! How much a tree takes: what the evictor goes by.
//!
//! Published blobs are one counter, set by a scan and kept by what is published and removed since, and meanwhile. A fill
//! counts with what is on disk of it or what it announced, whichever is more, from its start to its end, so that room is
//! made before it is needed. What was removed and is still read is kept apart ([`Departing`]).

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Store;
use super::departing::Departing;
use super::images::ImageId;
use crate::oci::{Algorithm, Digest};

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

/// Where in a scan's order something is: blobs by algorithm and first byte, then all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bucket {
    /// The blobs of one directory `blobs/<alg>/<hex[0:2]>`.
    Blobs(Algorithm, u8),
    /// The layers of the Docker v1 protocol.
    Layers,
}

impl Stored {
    fn bucket(&self) -> Bucket {
        match self {
            Self::Blob(digest) => Bucket::Blobs(digest.algorithm(), digest.shard()),
            Self::Layer(_) => Bucket::Layers,
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
    scan: Mutex<Option<Scan>>,
    departing: Departing,
    grown: Notify,
}

/// A scan under way. What changes meanwhile is counted once: behind the bucket that is being read by whoever changes it,
/// before it by the scan when it comes there, and in it by the first of the two.
#[derive(Debug)]
struct Scan {
    total: u64,
    /// `None` before the first.
    bucket: Option<Bucket>,
    /// What is known of things in this bucket, one in 256 of all blobs: whether they are counted.
    counted: HashMap<Stored, bool>,
}

impl Scan {
    fn enters(&mut self, bucket: Bucket) {
        self.bucket = Some(bucket);
        self.counted.clear();
    }

    /// The scan finds it: counted, unless it was heard of before.
    fn sees(&mut self, stored: &Stored, bytes: u64) {
        if !self.counted.contains_key(stored) {
            self.counted.insert(stored.clone(), true);
            self.total = self.total.saturating_add(bytes);
        }
    }

    fn published(&mut self, stored: Stored, bytes: u64) {
        let is_new = match self.place(&stored) {
            Ordering::Less => true,
            Ordering::Equal => self.counted.insert(stored, true) != Some(true),
            Ordering::Greater => false,
        };
        if is_new {
            self.total = self.total.saturating_add(bytes);
        }
    }

    fn removed(&mut self, stored: Stored, bytes: u64) {
        let was_counted = match self.place(&stored) {
            Ordering::Less => true,
            Ordering::Equal => self.counted.insert(stored, false) == Some(true),
            Ordering::Greater => false,
        };
        if was_counted {
            self.total = self.total.saturating_sub(bytes);
        }
    }

    /// Whether the scan is done with it (less), may have seen it (equal), or will come to it.
    fn place(&self, stored: &Stored) -> Ordering {
        Some(stored.bucket()).cmp(&self.bucket)
    }
}

impl Default for Usage {
    fn default() -> Self {
        Self {
            stored: AtomicU64::new(0),
            limit: AtomicU64::new(u64::MAX),
            needed: AtomicU64::new(0),
            fills: Mutex::default(),
            scan: Mutex::default(),
            departing: Departing::default(),
            grown: Notify::new(),
        }
    }
}

impl Usage {
    /// Bytes of published blobs and layers.
    pub fn stored(&self) -> u64 {
        self.stored.load(Relaxed)
    }

    /// What was published and removed, and is not free because somebody still reads it.
    pub fn departing(&self) -> &Departing {
        &self.departing
    }

    /// The most that the tree could ever hold, in bytes: a larger blob is not worth emptying the tree for.
    pub fn limit(&self) -> u64 {
        self.limit.load(Relaxed)
    }

    /// Sets the most that the tree could ever hold.
    pub fn set_limit(&self, bytes: u64) {
        self.limit.store(bytes, Relaxed);
    }

    /// Counts a publication; `bytes` is 0 if it was there already.
    pub fn published(&self, stored: impl Into<Stored>, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let mut scan = lock(&self.scan);
        if let Some(scan) = &mut *scan {
            scan.published(stored.into(), bytes);
        }
        self.stored.fetch_add(bytes, Relaxed);
        drop(scan);
        self.grown.notify_one();
    }

    /// Counts what was removed.
    pub fn removed(&self, stored: impl Into<Stored>, bytes: u64) {
        let mut scan = lock(&self.scan);
        if let Some(scan) = &mut *scan {
            scan.removed(stored.into(), bytes);
        }
        let less = |stored: u64| Some(stored.saturating_sub(bytes));
        let _ = self.stored.fetch_update(Relaxed, Relaxed, less);
    }

    /// A scan begins, which goes through the buckets in their order. One that was under way counts for nothing.
    pub fn scan_begins(&self) {
        *lock(&self.scan) = Some(Scan { total: 0, bucket: None, counted: HashMap::new() });
    }

    /// The scan is about to read this bucket.
    pub fn scan_enters(&self, bucket: Bucket) {
        if let Some(scan) = &mut *lock(&self.scan) {
            scan.enters(bucket);
        }
    }

    /// The scan has seen this in the bucket that it reads.
    pub fn scan_sees(&self, stored: &Stored, bytes: u64) {
        if let Some(scan) = &mut *lock(&self.scan) {
            scan.sees(stored, bytes);
        }
    }

    /// The scan has come to its end: what it counted is the truth.
    pub fn scan_ends(&self) {
        let mut scan = lock(&self.scan);
        if let Some(scan) = scan.take() {
            self.stored.store(scan.total, Relaxed);
        }
    }

    /// The scan counts for nothing.
    pub fn scan_fails(&self) {
        *lock(&self.scan) = None;
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
        self.needed.fetch_max(bytes, Relaxed);
        self.grown.notify_one();
    }

    /// What was needed since the last call, in bytes.
    pub fn take_need(&self) -> u64 {
        self.needed.swap(0, Relaxed)
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

    fn digest(n: u8) -> Digest {
        Digest::of(Algorithm::Sha256, &[n])
    }

    fn blob(n: u8) -> Stored {
        digest(n).into()
    }

    /// The digest of the smallest number, from `from` on, whose first byte is this.
    fn in_shard(shard: u8, from: u32) -> Stored {
        let digests = (from..).map(|n| Digest::of(Algorithm::Sha256, &n.to_be_bytes()));
        digests.into_iter().find(|digest| digest.shard() == shard).unwrap().into()
    }

    #[test]
    fn what_changes_during_a_scan_counts_once_wherever_the_scan_is() {
        let bucket = |shard| Bucket::Blobs(Algorithm::Sha256, shard);
        let usage = Usage::default();
        let behind = in_shard(3, 0);
        usage.published(behind.clone(), 1);
        usage.scan_begins();
        usage.scan_enters(bucket(3));
        usage.scan_sees(&behind, 1);
        usage.scan_enters(bucket(4));
        // Behind the scan: one that it counted goes, one that it did not see comes.
        usage.removed(behind, 1);
        usage.published(in_shard(3, 9999), 10);
        // In the bucket that is being read: seen and then gone; published, and seen or not; gone before it was seen.
        let [gone, seen, unseen, early] = [0, 5000, 10_000, 15_000].map(|from| in_shard(4, from));
        usage.scan_sees(&gone, 100);
        usage.removed(gone, 100);
        usage.published(seen.clone(), 1000);
        usage.scan_sees(&seen, 1000);
        usage.published(unseen, 10_000);
        usage.removed(early.clone(), 7);
        usage.scan_sees(&early, 7);
        let again = in_shard(4, 20_000);
        usage.removed(again.clone(), 20_000_000);
        usage.published(again.clone(), 20_000_000);
        usage.scan_sees(&again, 20_000_000);
        // Before the scan: what is there when it comes.
        let ahead = in_shard(5, 0);
        usage.published(ahead.clone(), 100_000);
        usage.published(in_shard(5, 9999), 3);
        usage.removed(in_shard(5, 9999), 3);
        usage.scan_enters(bucket(5));
        usage.scan_sees(&ahead, 100_000);
        let layer: Stored = "0123456789abcdef".parse::<ImageId>().unwrap().into();
        usage.published(layer.clone(), 1_000_000);
        usage.scan_enters(Bucket::Layers);
        usage.scan_sees(&layer, 1_000_000);
        usage.scan_ends();
        assert_eq!(usage.stored(), 21_111_010);
        usage.removed(layer, u64::MAX);
        assert_eq!(usage.stored(), 0, "less than nothing is nothing");
    }

    #[test]
    fn a_scan_that_another_one_overtakes_counts_for_nothing() {
        let usage = Usage::default();
        usage.scan_begins();
        usage.scan_enters(Bucket::Layers);
        usage.scan_sees(&blob(1), 10);
        usage.scan_begins();
        usage.published(digest(2), 5);
        usage.scan_enters(Bucket::Blobs(Algorithm::Sha256, digest(2).shard()));
        usage.scan_sees(&blob(2), 5);
        usage.scan_ends();
        usage.scan_ends();
        assert_eq!(usage.stored(), 5);
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
