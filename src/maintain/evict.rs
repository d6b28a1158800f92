//! Eviction: `cache` stays within `max_size`, and the filesystem keeps `min_free`.
//!
//! **Who goes first**: the blobs used longest ago (their access time, which serving sets every few minutes, or what this
//! process remembers). Never one that this process is sending, one that is being filled, one that a [pinned](super::pins)
//! repository links, or anything in `local`. Layers of the Docker v1 protocol count and go like blobs, whether they are being
//! sent or not; the rest of their images, which is small, stays.
//!
//! **What is free when.** A blob that somebody else has open, such as another process or a slow reader of its fill, keeps
//! its bytes until it is closed: unlinking does not take an open file away. Such bytes count as taken until then
//! ([`Departing`]). For half a minute nothing else goes in their place, as most are free by then; after that they
//! are part of what the cache takes. A blob whose file has a name in `local` too (a push took it over) takes no space of its
//! own: it counts for `max_size`, and does not go for `min_free`.
//!
//! **No list in memory**: the tree's sum is a counter, set by a scan at start and again every `RESCAN_EVERY`, or
//! `RESCAN_SHARE` times as long as a scan takes; victims come from a scan with a heap of at most `VICTIMS_MAX`. Links to an
//! evicted blob stay for a while (see [`crate::store::stale`]): they remember that upstream let the repository have it, and the
//! next request fills it again.
//!
//! **Runs at once**: one task per registry. Scans that nothing waits for run in the [background](super::background), and end
//! early when there is something to evict; what makes room runs on a store thread of the main thread, apart from the
//! workers'. Of the processes on a directory one evicts at a time (flock on `locks/evict`). A crash loses nothing: the next
//! scan sees what is there.
//!
//! [`Departing`]: crate::store::Departing

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use super::Stop;
use super::background::{Background, Work};
use super::fingerprints::Fingerprints;
use super::pins::Pins;
use crate::metrics::{MaintenanceMetrics, Outcome};
use crate::store::images::{self, ImageFile};
use crate::store::ingest::{lock_shard, open_lock};
use crate::store::recover::{self, FILL_AGE, Scanned};
use crate::store::{Store, Stored};

/// How often the tree is scanned although nothing seems to have grown: other processes may share it.
const RESCAN_EVERY: Duration = Duration::from_mins(5);
/// A scan of a large tree is repeated only after this many times as long as it took.
const RESCAN_SHARE: u32 = 50;
/// Candidates that one scan keeps.
const VICTIMS_MAX: usize = 16_384;
/// Once over a bound, this share of it is freed beyond, so that not every blob costs a scan.
const SLACK_DIVISOR: u64 = 50;
/// Scans that one round makes before it gives up for now.
const SCANS_MAX: usize = 64;
/// The pause after a round, so that a stream of small blobs does not cause a scan each. At least as long as the round took.
const PAUSE: Duration = Duration::from_millis(100);
/// The pause after a round that could not do what it should: what is left in the cache is in use or pinned.
const PAUSE_IN_VAIN: Duration = Duration::from_secs(2);
/// How often what was evicted while it was open is looked at again.
const SETTLE_EVERY: Duration = Duration::from_secs(1);
/// Under pressure, an interrupted fill that nobody came back for within this time goes before any blob.
const FILL_AGE_UNDER_PRESSURE: Duration = Duration::from_mins(10);

/// The bounds of one cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvictionOptions {
    /// Bytes that the tree may hold; `None`: no bound but the disk.
    pub max_size: Option<u64>,
    /// Bytes that are to stay free on the filesystem.
    pub min_free: u64,
    /// What never goes.
    pub pins: Pins,
}

/// Keeps `store`, the cache of the registry of this name, within its bounds until the future is dropped.
pub async fn run(
    store: Arc<Store>,
    options: EvictionOptions,
    background: Background,
    metrics: MaintenanceMetrics,
) {
    let mut settle = interval(SETTLE_EVERY);
    settle.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let keeper = Arc::new(Keeper { store, options, metrics });
    // The scan at start comes with the sweep of what a crash may have left behind.
    let mut scanning = Some(Scanning::begin(&keeper, &background, true));
    let mut rescan_at = Instant::now();
    loop {
        tokio::select! {
            result = ended(&mut scanning) => {
                rescan_at = Instant::now() + rescan_after(result);
                scanning = None;
            }
            () = sleep_until(rescan_at), if scanning.is_none() => {
                scanning = Some(Scanning::begin(&keeper, &background, false));
                continue;
            }
            () = keeper.store.usage().grown() => {}
            _ = settle.tick(), if keeper.store.usage().departing().bytes() > 0 => {}
        }
        let begun = Instant::now();
        let pause = match keeper.on_store_thread(Keeper::demand).await {
            Ok(demand) if demand.is_none() => PAUSE,
            Ok(demand) => {
                // It would count what goes meanwhile, and its reading is in the way.
                let interrupted = Scanning::end(&mut scanning).await;
                let made = keeper.on_store_thread(move |keeper| keeper.make_room(demand)).await;
                if matches!(made, Ok(Round { has_scanned: true, .. })) {
                    rescan_at = Instant::now() + rescan_after(Ok(begun.elapsed()));
                } else if interrupted {
                    rescan_at = Instant::now();
                }
                failed(made).map_or(PAUSE_IN_VAIN, |round| round.pause(begun.elapsed()))
            }
            Err(error) => {
                failed::<()>(Err(error));
                PAUSE_IN_VAIN
            }
        };
        sleep(pause).await;
    }
}

/// A scan in the background that nothing waits for. It ends when this is dropped.
struct Scanning {
    stop: Stop,
    work: Work<Duration>,
}

impl Scanning {
    fn begin(keeper: &Arc<Keeper>, background: &Background, is_first: bool) -> Self {
        let (stop, keeper) = (Stop::new(), Arc::clone(keeper));
        let stopped = stop.clone();
        let work = background.run(move || {
            let layout = keeper.store.layout();
            if is_first && let Err(error) = recover::sweep(layout, FILL_AGE) {
                tracing::warn!(%error, "cannot sweep what a crash may have left behind");
            }
            let begun = Instant::now();
            if recover::scan(layout, keeper.store.usage(), || stopped.is_set(), |_| ())? {
                keeper.metrics.ran("scan", Outcome::Done, begun.elapsed());
            }
            Ok(begun.elapsed())
        });
        Self { stop, work }
    }

    /// Ends one that is under way, and says whether there was one.
    async fn end(scanning: &mut Option<Self>) -> bool {
        let Some(mut scanning) = scanning.take() else { return false };
        scanning.stop.stop();
        let _ = scanning.work.ended().await;
        true
    }
}

impl Drop for Scanning {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

/// How long the scan took that is under way; never if there is none.
async fn ended(scanning: &mut Option<Scanning>) -> io::Result<Duration> {
    match scanning {
        Some(scanning) => scanning.work.ended().await,
        None => std::future::pending().await,
    }
}

/// When to scan again after a scan that took so long.
fn rescan_after(took: io::Result<Duration>) -> Duration {
    failed(took).map_or(RESCAN_EVERY, |took| RESCAN_EVERY.max(took * RESCAN_SHARE))
}

/// Logs a failure.
fn failed<T>(result: io::Result<T>) -> Option<T> {
    result
        .inspect_err(|error| tracing::error!(%error, "eviction failed: the cache may outgrow its bounds"))
        .ok()
}

/// Bytes to be freed, or that were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bytes {
    /// Of the tree.
    size: u64,
    /// Of the filesystem.
    disk: u64,
}

impl Bytes {
    fn is_none(self) -> bool {
        self == Self::default()
    }

    /// What is left of it after so much.
    fn less(self, done: Self) -> Self {
        Self { size: self.size.saturating_sub(done.size), disk: self.disk.saturating_sub(done.disk) }
    }

    fn add(&mut self, victim: &Scanned) {
        self.size += victim.len;
        if !victim.has_other_name {
            self.disk += victim.len;
        }
    }
}

/// What came of making room.
struct Round {
    /// Whether the tree was scanned to its end.
    has_scanned: bool,
    /// Whether there is as much room as there should be.
    is_enough: bool,
}

impl Round {
    fn pause(&self, took: Duration) -> Duration {
        PAUSE.max(took).max(if self.is_enough { Duration::ZERO } else { PAUSE_IN_VAIN })
    }
}

struct Keeper {
    store: Arc<Store>,
    options: EvictionOptions,
    metrics: MaintenanceMetrics,
}

impl Keeper {
    async fn on_store_thread<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let keeper = Arc::clone(self);
        self.store.blocking(move |_| work(&keeper)).await
    }

    /// What is to be freed now.
    fn demand(&self) -> io::Result<Bytes> {
        let usage = self.store.usage();
        usage.set_limit(self.most()?);
        self.metrics.evicted(usage.departing().settle(), 0);
        let mut demand = self.excess()?;
        if !demand.is_none() {
            recover::sweep(self.store.layout(), FILL_AGE_UNDER_PRESSURE)?;
            demand = self.excess()?;
        }
        // What is free soon need not be freed again.
        let need = usage.take_need().saturating_sub(usage.departing().bytes_soon());
        demand.disk = demand.disk.max(need);
        self.show();
        Ok(demand)
    }

    fn make_room(&self, demand: Bytes) -> io::Result<Round> {
        let Some(_lock) = self.lock()? else { return Ok(Round { has_scanned: false, is_enough: true }) };
        let begun = Instant::now();
        let pinned = self.options.pins.held(self.store.layout()).map_err(|error| {
            io::Error::other(format!("it is not known what is pinned, so nothing is evicted: {error}"))
        })?;
        let (mut demand, mut done, mut blobs) = (demand, Bytes::default(), 0);
        for scan in 0..SCANS_MAX {
            let victims = self.scan(&pinned, demand.less(done))?;
            if scan == 0 {
                // Another process may have evicted since the last scan. From here on the demand stays as it is: free
                // space may rise only later, when files are closed or the filesystem commits, and measuring it again would
                // evict for the same bytes twice.
                demand.size = demand.size.min(self.excess()?.size);
            }
            let evicted = self.evict(&victims, demand, &mut done);
            blobs += evicted;
            if demand.less(done).is_none() || evicted == 0 {
                break;
            }
        }
        self.show();
        self.metrics.ran("evict", Outcome::Done, begun.elapsed());
        let usage = self.store.usage();
        if blobs > 0 {
            let still_read = usage.departing().bytes();
            tracing::info!(blobs, bytes = done.size, still_read, stored = usage.stored(), "evicted");
        }
        // What could not be freed beyond the bounds was for convenience.
        let missing = demand.less(self.slack()).less(done);
        if !missing.is_none() {
            let (pinned, missing) = (pinned.len(), missing.size.max(missing.disk));
            tracing::warn!(
                missing,
                pinned,
                "the cache is over its bounds, and what is left in it is in use or pinned"
            );
        }
        Ok(Round { has_scanned: true, is_enough: demand.less(done).is_none() })
    }

    /// The most that the tree could ever hold, in bytes.
    fn most(&self) -> io::Result<u64> {
        let disk = rustix::fs::statvfs(self.store.layout().root())?;
        let whole = disk.f_blocks.saturating_mul(disk.f_frsize).saturating_sub(self.options.min_free);
        Ok(self.options.max_size.unwrap_or(u64::MAX).min(whole))
    }

    /// Bytes to free: what is over a bound, and some slack if anything is.
    fn excess(&self) -> io::Result<Bytes> {
        let mut fills = HashMap::new();
        recover::scan_fills(self.store.layout(), |stored, size| {
            fills.insert(stored, size);
        })?;
        let usage = self.store.usage();
        let soon = usage.departing().bytes_soon();
        let lasting = usage.departing().bytes().saturating_sub(soon);
        let taken = usage.stored().saturating_add(usage.claimed(fills)).saturating_add(lasting);
        let (max_size, slack) = (self.options.max_size.unwrap_or(u64::MAX), self.slack());
        let disk = rustix::fs::statvfs(self.store.layout().root())?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize).saturating_add(soon);
        Ok(Bytes {
            size: with_slack(taken.saturating_sub(max_size), slack.size),
            disk: with_slack(self.options.min_free.saturating_sub(free), slack.disk),
        })
    }

    /// What is freed beyond a bound that is broken.
    fn slack(&self) -> Bytes {
        let of = |bound: u64| bound / SLACK_DIVISOR;
        Bytes { size: of(self.options.max_size.unwrap_or(0)), disk: of(self.options.min_free) }
    }

    /// Sums the tree up, and collects what was used longest ago of what would help, the oldest first.
    fn scan(&self, pinned: &Fingerprints, demand: Bytes) -> io::Result<Vec<Scanned>> {
        // The most recently used is on top: it is the one to give way.
        let mut heap: BinaryHeap<ByUse> = BinaryHeap::new();
        let visit = |mut seen: Scanned| {
            let is_pinned = matches!(&seen.stored, Stored::Blob(digest) if pinned.contains(digest));
            if is_pinned || (demand.size == 0 && seen.has_other_name) {
                return;
            }
            seen.used_ms = self.used_ms(&seen);
            heap.push(ByUse(seen));
            if heap.len() > VICTIMS_MAX {
                heap.pop();
            }
        };
        recover::scan(self.store.layout(), self.store.usage(), || false, visit)?;
        Ok(heap.into_sorted_vec().into_iter().map(|ByUse(seen)| seen).collect())
    }

    /// Removes victims, the oldest first, until the demand is met; adds to what is done. How many it removed.
    fn evict(&self, victims: &[Scanned], demand: Bytes, done: &mut Bytes) -> u64 {
        let mut blobs = 0;
        for victim in victims {
            let missing = demand.less(*done);
            if missing.is_none() {
                break;
            }
            if missing.size == 0 && victim.has_other_name {
                continue;
            }
            match self.remove(victim) {
                Ok(Some(free)) => {
                    done.add(victim);
                    blobs += 1;
                    self.metrics.evicted(free, 1);
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(stored = %victim.stored, %error, "cannot evict"),
            }
        }
        blobs
    }

    /// When it was last used, by what the disk and this process know.
    fn used_ms(&self, seen: &Scanned) -> u64 {
        match &seen.stored {
            Stored::Blob(digest) => seen.used_ms.max(self.store.last_use_ms(digest)),
            Stored::Layer(_) => seen.used_ms,
        }
    }

    /// Removes one blob or layer unless somebody uses it. The bytes that are free now: none of what is still open.
    fn remove(&self, victim: &Scanned) -> io::Result<Option<u64>> {
        let layout = self.store.layout();
        let (_shard, path) = match &victim.stored {
            Stored::Blob(digest) => (lock_shard(layout, digest)?, layout.blob(digest)),
            Stored::Layer(image) => (images::lock(layout, image)?, layout.image(image, ImageFile::Layer)),
        };
        let usage = self.store.usage();
        let is_sent = matches!(&victim.stored, Stored::Blob(digest) if self.store.is_in_use(digest));
        if is_sent || usage.is_filling(&victim.stored) {
            return Ok(None);
        }
        // Used since the scan saw it: it is not the oldest any more.
        let Some(now) = recover::scanned(&path, victim.stored.clone()) else { return Ok(None) };
        if self.used_ms(&now) > victim.used_ms {
            return Ok(None);
        }
        // Opening is no use of it: nothing is read.
        let file = File::open(&path)?;
        if let Stored::Blob(digest) = &victim.stored {
            self.store.forget(digest);
        }
        fs::remove_file(&path)?;
        if let Some(directory) = path.parent() {
            let _ = fs::remove_dir(directory);
        }
        usage.removed(victim.stored.clone(), now.len);
        // With another name left it frees nothing by being closed.
        let has_name = file.metadata().is_ok_and(|meta| meta.nlink() > 0);
        Ok(Some(if has_name { now.len } else { usage.departing().add(file, now.len) }))
    }

    fn show(&self) {
        let departing = self.store.usage().departing().bytes();
        self.metrics.stored("cache", self.store.usage().stored().saturating_add(departing), departing);
    }

    fn lock(&self) -> io::Result<Option<File>> {
        let path = self.store.layout().evict_lock();
        let file = open_lock(&path)?;
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

/// What is to be freed for `excess` bytes over a bound; 0 if it is not over it.
fn with_slack(excess: u64, slack: u64) -> u64 {
    if excess == 0 { 0 } else { excess.saturating_add(slack) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_that_holds_needs_nothing_and_a_broken_one_some_slack() {
        assert_eq!(with_slack(0, 2), 0);
        assert_eq!(with_slack(1, 2), 3);
        assert_eq!(with_slack(u64::MAX, 2), u64::MAX);
    }

    #[test]
    fn a_file_with_another_name_frees_nothing_on_the_disk() {
        let victim = |len, has_other_name| Scanned {
            stored: Stored::Blob(crate::oci::Digest::of(crate::oci::Algorithm::Sha256, b"")),
            len,
            used_ms: 0,
            has_other_name,
        };
        let mut done = Bytes::default();
        done.add(&victim(5, true));
        done.add(&victim(3, false));
        assert_eq!(done, Bytes { size: 8, disk: 3 });
        let demand = Bytes { size: 7, disk: 4 };
        assert_eq!(demand.less(done), Bytes { size: 0, disk: 1 });
        done.add(&victim(1, false));
        assert!(demand.less(done).is_none());
    }
}
