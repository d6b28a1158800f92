//! Eviction: `cache` stays within `max_size`, and the filesystem keeps `min_free`.
//!
//! **Who goes first**: the blobs used longest ago (their access time, which serving sets every few minutes, or this process's own memory of it). Never one that this process is
//! sending, one that is being filled, or anything in `local`. A blob that another process sends keeps its bytes until
//! that process closes it: unlinking does not take an open file away.
//!
//! **No list in memory**: the tree's sum is a counter, set by a scan at start and again every [`RESCAN_EVERY`]; victims come
//! from a scan with a heap of at most [`VICTIMS_MAX`]. Links to an evicted blob stay: they remember that upstream let
//! the repository have it, and the next request fills it again.
//!
//! **Runs at once**: one task per registry, its scans and removals on a store thread. Of the processes on a directory one
//! evicts at a time (flock on `locks/evict`). A crash loses nothing: the next scan sees what is there.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::fs::{self, OpenOptions};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::fill::Fills;
use crate::metrics::Metrics;
use crate::oci::Digest;
use crate::store::Store;
use crate::store::ingest::lock_shard;
use crate::store::recover::{self, FILL_AGE, Scanned};

/// How often the tree is scanned although nothing seems to have grown: other processes may share it.
const RESCAN_EVERY: Duration = Duration::from_mins(5);
/// Candidates that one scan keeps.
const VICTIMS_MAX: usize = 4096;
/// Once over a bound, this share of it is freed beyond, so that not every blob costs a scan.
const SLACK_DIVISOR: u64 = 50;
/// Scans that one round makes before it gives up for now.
const SCANS_MAX: usize = 64;
/// The pause after a round, so that a stream of small blobs does not cause a scan each.
const PAUSE: Duration = Duration::from_millis(100);
/// Under pressure, an interrupted fill that nobody came back for within this time goes before any blob.
const FILL_AGE_UNDER_PRESSURE: Duration = Duration::from_mins(10);

/// The bounds of one cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvictionOptions {
    /// Bytes that the tree may hold; `None`: no bound but the disk.
    pub max_size: Option<u64>,
    /// Bytes that are to stay free on the filesystem.
    pub min_free: u64,
}

/// Keeps the cache of `fills` within its bounds until the future is dropped.
pub async fn run(fills: Arc<Fills>, options: EvictionOptions, metrics: Metrics) {
    let store = Arc::clone(fills.store());
    let sweeping = store.blocking(|store| recover::sweep(store.layout(), FILL_AGE)).await;
    if let Err(error) = sweeping {
        tracing::warn!(%error, "cannot sweep what a crash may have left behind");
    }
    let mut rescan = tokio::time::interval(RESCAN_EVERY);
    let mut full_scan = true;
    loop {
        let (fills, metrics) = (Arc::clone(&fills), metrics.clone());
        let round = store
            .blocking(move |store| Round { store, fills: &fills, options, metrics: &metrics }.run(full_scan));
        if let Err(error) = round.await {
            tracing::error!(%error, "eviction failed: the cache may outgrow its bounds");
        }
        tokio::time::sleep(PAUSE).await;
        full_scan = tokio::select! {
            _ = rescan.tick() => true,
            () = store.usage().grown() => false,
        };
    }
}

struct Round<'a> {
    store: &'a Arc<Store>,
    fills: &'a Fills,
    options: EvictionOptions,
    metrics: &'a Metrics,
}

impl Round<'_> {
    fn run(&self, full_scan: bool) -> io::Result<()> {
        if full_scan {
            self.scan(None)?;
        }
        if self.excess()? == 0 {
            self.report();
            return Ok(());
        }
        let Some(_lock) = self.lock()? else { return Ok(()) };
        recover::sweep(self.store.layout(), FILL_AGE_UNDER_PRESSURE)?;
        let mut freed = (0, 0);
        for _ in 0..SCANS_MAX {
            let excess = self.excess()?;
            if excess == 0 {
                break;
            }
            let mut victims = Vec::new();
            self.scan(Some(&mut victims))?;
            let excess = excess.max(self.excess()?);
            let (bytes, blobs) = self.evict(&victims, excess);
            freed = (freed.0 + bytes, freed.1 + blobs);
            if blobs == 0 {
                break;
            }
        }
        self.metrics.evicted(freed.0, freed.1);
        self.report();
        let left = self.excess()?;
        if freed.1 > 0 {
            tracing::info!(blobs = freed.1, bytes = freed.0, stored = self.store.usage().stored(), "evicted");
        }
        if left > 0 {
            tracing::warn!(bytes = left, "the cache is over its bounds, and what is left in it is in use");
        }
        Ok(())
    }

    /// Bytes to free: what is over a bound, and some slack if anything is.
    fn excess(&self) -> io::Result<u64> {
        let usage = self.store.usage();
        let taken = usage.stored() + usage.reserved();
        let over_size = self.options.max_size.map_or(0, |max| over(taken, max));
        let free = free_space(self.store)?;
        let under_free = if free < self.options.min_free { over(self.options.min_free, free) } else { 0 };
        Ok(over_size.max(under_free))
    }

    /// Sums the tree up, and collects the blobs used longest ago.
    fn scan(&self, victims: Option<&mut Vec<Scanned>>) -> io::Result<()> {
        let mut total = 0;
        // The most recently used is on top: it is the one to give way.
        let mut heap: BinaryHeap<ByUse> = BinaryHeap::new();
        let collect = victims.is_some();
        recover::scan_blobs(self.store.layout(), |mut blob| {
            total += blob.len;
            if collect {
                blob.used_ms = blob.used_ms.max(self.store.last_use_ms(&blob.digest));
                heap.push(ByUse(blob));
                if heap.len() > VICTIMS_MAX {
                    heap.pop();
                }
            }
        })?;
        self.store.usage().set_stored(total);
        if let Some(victims) = victims {
            *victims = heap.into_sorted_vec().into_iter().map(|ByUse(blob)| blob).collect();
        }
        Ok(())
    }

    /// Removes victims, the oldest first, until `excess` bytes are free. The bytes and the number removed.
    fn evict(&self, victims: &[Scanned], excess: u64) -> (u64, u64) {
        let (mut bytes, mut blobs) = (0, 0);
        for victim in victims {
            if bytes >= excess {
                break;
            }
            match self.remove(victim) {
                Ok(true) => {
                    self.store.usage().remove(victim.len);
                    bytes += victim.len;
                    blobs += 1;
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(digest = %victim.digest, %error, "cannot evict a blob"),
            }
        }
        (bytes, blobs)
    }

    /// Removes one blob unless somebody uses it.
    fn remove(&self, victim: &Scanned) -> io::Result<bool> {
        let digest = &victim.digest;
        let _shard = lock_shard(self.store.layout(), digest)?;
        if self.store.is_in_use(digest) || self.fills.is_filling(digest) {
            return Ok(false);
        }
        let path = self.store.layout().blob(digest);
        // Used since the scan saw it: it is not the oldest any more.
        let Some(now) = recover::scanned(&path, *digest) else { return Ok(false) };
        if now.used_ms.max(self.store.last_use_ms(digest)) > victim.used_ms {
            return Ok(false);
        }
        self.store.forget(digest);
        fs::remove_file(&path)?;
        if let Some(directory) = path.parent() {
            let _ = fs::remove_dir(directory);
        }
        Ok(true)
    }

    fn lock(&self) -> io::Result<Option<fs::File>> {
        let path = self.store.layout().evict_lock();
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn report(&self) {
        let stored = self.store.usage().stored();
        self.metrics.stored_bytes("cache", i64::try_from(stored).unwrap_or(i64::MAX));
    }
}

/// Orders by last use, ties by digest so that the order is total.
struct ByUse(Scanned);

impl ByUse {
    fn key(&self) -> (u64, Digest) {
        (self.0.used_ms, self.0.digest)
    }
}

impl PartialEq for ByUse {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for ByUse {}

impl PartialOrd for ByUse {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByUse {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// What is to be freed so that `taken` comes under `bound` with some slack; 0 if it is not over it.
fn over(taken: u64, bound: u64) -> u64 {
    match taken.saturating_sub(bound) {
        0 => 0,
        excess => excess + bound / SLACK_DIVISOR,
    }
}

fn free_space(store: &Store) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(store.layout().root())?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_that_holds_needs_nothing_and_a_broken_one_some_slack() {
        assert_eq!(over(100, 100), 0);
        assert_eq!(over(101, 100), 3);
        assert_eq!(over(5000, 1000), 4020);
    }
}
