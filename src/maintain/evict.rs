//! Eviction: `cache` stays within `max_size`, and the filesystem keeps `min_free`.
//!
//! **Who goes first**: the blobs used longest ago (their access time, which serving sets every few minutes, or what this
//! process remembers). Never one that this process is sending, one that is being filled, or anything in `local`. A blob
//! that another process sends keeps its bytes until that process closes it: unlinking does not take an open file away.
//! Layers of the Docker v1 protocol count and go like blobs, whether they are being sent or not; the rest of their images,
//! which is small, stays.
//!
//! **No list in memory**: the tree's sum is a counter, set by a scan at start and again every `RESCAN_EVERY`; victims come
//! from a scan with a heap of at most `VICTIMS_MAX`. Links to an evicted blob stay: they remember that upstream let
//! the repository have it, and the next request fills it again.
//!
//! **Runs at once**: one task per registry, its scans and removals on a store thread. Of the processes on a directory one
//! evicts at a time (flock on `locks/evict`). A crash loses nothing: the next scan sees what is there.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::fs::{self, OpenOptions};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::metrics::Metrics;
use crate::store::images::{self, ImageFile};
use crate::store::ingest::lock_shard;
use crate::store::recover::{self, FILL_AGE, Scanned};
use crate::store::{Store, Stored};

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

/// Keeps `store` within its bounds until the future is dropped.
pub async fn run(store: Arc<Store>, options: EvictionOptions, metrics: Metrics) {
    let sweeping = store.blocking(|store| recover::sweep(store.layout(), FILL_AGE)).await;
    if let Err(error) = sweeping {
        tracing::warn!(%error, "cannot sweep what a crash may have left behind");
    }
    let mut rescan = tokio::time::interval(RESCAN_EVERY);
    loop {
        // The first tick is at once: the scan at start.
        let full_scan = tokio::select! {
            _ = rescan.tick() => true,
            () = store.usage().grown() => false,
        };
        let metrics = metrics.clone();
        let round = store.blocking(move |store| Round { store, options, metrics: &metrics }.run(full_scan));
        if let Err(error) = round.await {
            tracing::error!(%error, "eviction failed: the cache may outgrow its bounds");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

struct Round<'a> {
    store: &'a Store,
    options: EvictionOptions,
    metrics: &'a Metrics,
}

impl Round<'_> {
    fn run(&self, full_scan: bool) -> io::Result<()> {
        self.store.usage().set_limit(self.most()?);
        if full_scan {
            self.scan(None)?;
        }
        if self.excess()? > 0 {
            recover::sweep(self.store.layout(), FILL_AGE_UNDER_PRESSURE)?;
        }
        // Fixed for the round: free space may rise only later, when files are closed or the filesystem commits, and
        // measuring it again would evict for the same bytes twice.
        let demand = self.excess()?.max(self.store.usage().take_need());
        if demand > 0
            && let Some(_lock) = self.lock()?
        {
            self.make_room(demand)?;
        }
        let stored = self.store.usage().stored();
        self.metrics.stored_bytes("cache", i64::try_from(stored).unwrap_or(i64::MAX));
        Ok(())
    }

    fn make_room(&self, demand: u64) -> io::Result<()> {
        let (mut bytes, mut blobs) = (0, 0);
        for _ in 0..SCANS_MAX {
            let mut victims = Vec::new();
            self.scan(Some(&mut victims))?;
            let freed = self.evict(&victims, demand - bytes);
            bytes += freed.0;
            blobs += freed.1;
            if bytes >= demand || freed.1 == 0 {
                break;
            }
        }
        self.metrics.evicted(bytes, blobs);
        if blobs > 0 {
            tracing::info!(blobs, bytes, stored = self.store.usage().stored(), "evicted");
        }
        if bytes < demand {
            tracing::warn!(
                missing = demand - bytes,
                "the cache is over its bounds, and what is left in it is in use"
            );
        }
        Ok(())
    }

    /// The most that the tree could ever hold, in bytes.
    fn most(&self) -> io::Result<u64> {
        let disk = rustix::fs::statvfs(self.store.layout().root())?;
        let whole = disk.f_blocks.saturating_mul(disk.f_frsize).saturating_sub(self.options.min_free);
        Ok(self.options.max_size.unwrap_or(u64::MAX).min(whole))
    }

    /// Bytes to free: what is over a bound, and some slack if anything is.
    fn excess(&self) -> io::Result<u64> {
        let mut fills = HashMap::new();
        recover::scan_fills(self.store.layout(), |stored, size| {
            fills.insert(stored, size);
        })?;
        let usage = self.store.usage();
        let taken = usage.stored().saturating_add(usage.claimed(fills));
        let max_size = self.options.max_size.unwrap_or(u64::MAX);
        let disk = rustix::fs::statvfs(self.store.layout().root())?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let over_size = with_slack(taken.saturating_sub(max_size), max_size);
        Ok(over_size.max(with_slack(self.options.min_free.saturating_sub(free), self.options.min_free)))
    }

    /// Sums the tree up, and collects what was used longest ago, the oldest first.
    fn scan(&self, victims: Option<&mut Vec<Scanned>>) -> io::Result<()> {
        let usage = self.store.usage();
        let mut total: u64 = 0;
        // The most recently used is on top: it is the one to give way.
        let mut heap: BinaryHeap<ByUse> = BinaryHeap::new();
        let collect = victims.is_some();
        usage.scan_begins();
        let mut visit = |mut seen: Scanned| {
            if usage.counts(&seen.stored) {
                total = total.saturating_add(seen.len);
            }
            if collect {
                seen.used_ms = self.used_ms(&seen);
                heap.push(ByUse(seen));
                if heap.len() > VICTIMS_MAX {
                    heap.pop();
                }
            }
        };
        recover::scan_blobs(self.store.layout(), &mut visit)?;
        recover::scan_layers(self.store.layout(), &mut visit)?;
        usage.scanned(total);
        if let Some(victims) = victims {
            *victims = heap.into_sorted_vec().into_iter().map(|ByUse(seen)| seen).collect();
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
                    self.store.usage().removed(victim.len);
                    bytes += victim.len;
                    blobs += 1;
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(stored = %victim.stored, %error, "cannot evict"),
            }
        }
        (bytes, blobs)
    }

    /// When it was last used, by what the disk and this process know.
    fn used_ms(&self, seen: &Scanned) -> u64 {
        match &seen.stored {
            Stored::Blob(digest) => seen.used_ms.max(self.store.last_use_ms(digest)),
            Stored::Layer(_) => seen.used_ms,
        }
    }

    /// Removes one blob or layer unless somebody uses it.
    fn remove(&self, victim: &Scanned) -> io::Result<bool> {
        let layout = self.store.layout();
        let (_shard, path) = match &victim.stored {
            Stored::Blob(digest) => (lock_shard(layout, digest)?, layout.blob(digest)),
            Stored::Layer(image) => (images::lock(layout, image)?, layout.image(image, ImageFile::Layer)),
        };
        let is_sent = matches!(&victim.stored, Stored::Blob(digest) if self.store.is_in_use(digest));
        if is_sent || self.store.usage().is_filling(&victim.stored) {
            return Ok(false);
        }
        // Used since the scan saw it: it is not the oldest any more.
        let Some(now) = recover::scanned(&path, victim.stored.clone()) else { return Ok(false) };
        if self.used_ms(&now) > victim.used_ms {
            return Ok(false);
        }
        if let Stored::Blob(digest) = &victim.stored {
            self.store.forget(digest);
        }
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
}

/// Orders by last use, ties by what it is so that the order is total.
struct ByUse(Scanned);

impl ByUse {
    fn key(&self) -> (u64, &Stored) {
        (self.0.used_ms, &self.0.stored)
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

/// What is to be freed for `excess` bytes over a bound, with some slack; 0 if it is not over it.
fn with_slack(excess: u64, bound: u64) -> u64 {
    if excess == 0 { 0 } else { excess.saturating_add(bound / SLACK_DIVISOR) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_that_holds_needs_nothing_and_a_broken_one_some_slack() {
        assert_eq!(with_slack(0, 100), 0);
        assert_eq!(with_slack(1, 100), 3);
        assert_eq!(with_slack(4000, 1000), 4020);
    }
}
