//! What maintenance does in a server by itself, for one registry: the jobs that the [schedule](super::schedule) runs.

use std::error::Error;
use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use super::Stop;
use super::gc::{self, Collected, Event, GcError, GcOptions};
use super::repair::{self, Sources, Step, Tree};
use super::schedule::{Job, Ran, Running, Turn};
use super::scrub::{self, Run, ScrubError, ScrubOptions, Scrubbed};
use crate::metrics::MaintenanceMetrics;
use crate::store::walk::{self, WalkError};
use crate::store::{Store, on_store_thread, stale, upload};

/// How often the links of `cache` are looked through for what leads to nothing.
const STALE_EVERY: Duration = Duration::from_hours(24);

/// What is to be done, and how often; `None`: not at all.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How often garbage of what was pushed is collected, and which.
    pub gc: Option<(Duration, GcOptions)>,
    /// How often uploads that are over are swept.
    pub uploads: Option<Duration>,
    /// How long after its last chunk an upload is over.
    pub upload_expiry: Duration,
    /// How often everything is read again.
    pub scrub: Option<Duration>,
    /// How fast that goes, in bytes a second.
    pub scrub_rate: NonZeroU64,
    /// Whether what it finds corrupt is fetched again.
    pub scrub_repair: bool,
}

/// One registry, as far as maintenance is concerned.
#[derive(Clone)]
pub struct Site {
    /// Its name.
    pub registry: String,
    /// What was pushed.
    pub local: Arc<Store>,
    /// What was fetched.
    pub cache: Arc<Store>,
    /// Where what they held can be had again.
    pub sources: Arc<Sources>,
    /// What is to be done.
    pub settings: Settings,
    /// Where it is counted.
    pub metrics: MaintenanceMetrics,
}

impl Site {
    /// The jobs.
    pub fn jobs(&self) -> Vec<Job> {
        let scrubs = [(&self.local, Tree::Local), (&self.cache, Tree::Cache)];
        let scrubs = scrubs.map(|(store, tree)| self.scrub(store, tree));
        [self.gc(), self.uploads(), Some(self.stale())].into_iter().chain(scrubs).flatten().collect()
    }

    fn gc(&self) -> Option<Job> {
        let (every, options) = self.settings.gc?;
        let work = move |store: &Store, stop: &Stop, metrics: &MaintenanceMetrics| {
            let collected = match gc::run(store, &options, stop, &mut told) {
                Ok(collected) => collected,
                Err(GcError::Stopped) => return Ok(Ran::Stopped),
                Err(GcError::Busy) => return Ok(Ran::Busy),
                Err(error) => return Err(error),
            };
            metrics.freed("gc", collected.bytes);
            for (kind, count) in kinds(&collected) {
                metrics.removed("gc", kind, count);
            }
            Ok(if collected.failures > 0 {
                let failures = collected.failures;
                Ran::Failed(format!("{failures} things could not be removed; the log says which").into())
            } else {
                Ran::Done(summary(&collected))
            })
        };
        Some(Job { locks_itself: true, ..self.job("gc", &self.local, every, &options, work) })
    }

    fn uploads(&self) -> Option<Job> {
        let expiry = self.settings.upload_expiry;
        let work = move |store: &Store, stop: &Stop, metrics: &MaintenanceMetrics| {
            let removed = sweep_uploads(store, expiry, stop);
            metrics.removed("uploads", "upload", *removed.as_ref().unwrap_or(&0));
            removed.map(|removed| match removed {
                _ if stop.is_set() => Ran::Stopped,
                0 => Ran::Done(None),
                _ => Ran::Done(Some(format!("removed {removed} uploads that nobody went on with"))),
            })
        };
        Some(self.job("uploads", &self.local, self.settings.uploads?, &expiry, work))
    }

    fn stale(&self) -> Job {
        let work = |store: &Store, stop: &Stop, metrics: &MaintenanceMetrics| {
            let swept = stale::sweep(store, &|| stop.is_set())?;
            metrics.removed("stale", "link", swept.links);
            metrics.removed("stale", "tag", swept.tags);
            let what =
                format!("removed {} links and {} tags of what was evicted long ago", swept.links, swept.tags);
            Ok::<_, WalkError>(match swept.links + swept.tags {
                _ if !swept.complete => Ran::Stopped,
                0 => Ran::Done(None),
                _ => Ran::Done(Some(what)),
            })
        };
        self.job("stale", &self.cache, STALE_EVERY, &(), work)
    }

    fn scrub(&self, store: &Arc<Store>, tree: Tree) -> Option<Job> {
        let every = self.settings.scrub?;
        let options = ScrubOptions { rate: self.settings.scrub_rate, run: Run::Background };
        let sources = self.settings.scrub_repair.then(|| Arc::clone(&self.sources));
        // With new sources it begins anew where it was: passwords may have changed.
        let settings = format!("{options:?} {:?}", sources.as_ref().map(Arc::as_ptr));
        let (on, metrics) = (Arc::clone(store), self.metrics.clone());
        let run = move |stop: Stop| {
            let (store, sources, metrics) = (Arc::clone(&on), sources.clone(), metrics.clone());
            Box::pin(
                async move { scrubbed(&store, tree, sources.as_deref(), options, &stop, &metrics).await },
            ) as Running
        };
        let layout = store.layout();
        Some(Job {
            name: "scrub",
            registry: self.registry.clone(),
            settings,
            every,
            tree: layout.repositories(),
            lock: layout.job_lock("scrub"),
            locks_itself: true,
            turn: Turn::Long,
            metrics: self.metrics.clone(),
            run: Arc::new(run),
        })
    }

    /// A job whose runs block, on one tree. `options` is all that it goes by.
    fn job<E: Error + Send + Sync + 'static>(
        &self,
        name: &'static str,
        store: &Arc<Store>,
        every: Duration,
        options: &dyn std::fmt::Debug,
        work: impl Fn(&Store, &Stop, &MaintenanceMetrics) -> Result<Ran, E> + Clone + Send + Sync + 'static,
    ) -> Job {
        let metrics = self.metrics.clone();
        let on = Arc::clone(store);
        let run = move |stop: Stop| {
            let (store, metrics, work) = (Arc::clone(&on), metrics.clone(), work.clone());
            let run = on_store_thread(move || work(&store, &stop, &metrics).map_err(io::Error::other));
            Box::pin(async move { run.await.unwrap_or_else(|error| Ran::Failed(error.into())) }) as _
        };
        let layout = store.layout();
        Job {
            name,
            registry: self.registry.clone(),
            settings: format!("{options:?}"),
            every,
            tree: layout.repositories(),
            lock: layout.job_lock(name),
            locks_itself: false,
            turn: Turn::Short,
            metrics: self.metrics.clone(),
            run: Arc::new(run),
        }
    }
}

/// One scrub: what it finds goes into the log and the metrics.
async fn scrubbed(
    store: &Arc<Store>,
    tree: Tree,
    sources: Option<&Sources>,
    options: ScrubOptions,
    stop: &Stop,
    metrics: &MaintenanceMetrics,
) -> Ran {
    let mut read = None;
    let mut report = |step: Step| {
        step.log(store.layout().root());
        match &step {
            Step::Scrub(scrub::Event::Reached(reached)) => {
                // What was read before a restart was counted then.
                let before = read.replace(reached.bytes).unwrap_or(reached.bytes);
                metrics.scrubbed(reached.bytes - before);
            }
            Step::Scrub(scrub::Event::Found(_)) => metrics.corrupt("found", 1),
            Step::Repaired(..) => metrics.corrupt("repaired", 1),
            Step::NotRepaired(..) => metrics.corrupt("left", 1),
            _ => {}
        }
    };
    let mended = match repair::scrub(store, tree, sources, options, stop, &mut report).await {
        Ok(mended) => mended,
        Err(ScrubError::Busy(_)) => return Ran::Busy,
        Err(error) => return Ran::Failed(error.into()),
    };
    if sources.is_none() {
        metrics.corrupt("left", mended.unrepaired);
    }
    let Scrubbed { blobs, wrong, complete, .. } = mended.scrubbed;
    let root = store.layout().root().display();
    match wrong {
        _ if !complete => Ran::Stopped,
        _ if !mended.is_right() => Ran::Failed(
            format!("{root} is not right; the log says what is corrupt, missing or unreadable").into(),
        ),
        0 => Ran::Done(Some(format!("read {blobs} blobs of {root} again: all right"))),
        _ => Ran::Done(Some(format!(
            "read {blobs} blobs of {root} again: {wrong} were corrupt, and are right now"
        ))),
    }
}

/// What is told of a collection goes into the log.
fn told(event: Event) {
    match event {
        Event::Phase(phase) => tracing::debug!("collecting garbage: {phase}"),
        Event::Removed(removed) => tracing::debug!(?removed, "collecting garbage"),
        Event::Failed { what, error } => tracing::warn!(?what, %error, "cannot be removed"),
    }
}

fn kinds(collected: &Collected) -> [(&'static str, u64); 6] {
    [
        ("blob", collected.blobs),
        ("manifest", collected.manifests),
        ("tag", collected.tags),
        ("link", collected.links),
        ("upload", collected.uploads),
        ("leftover", collected.leftovers),
    ]
}

/// What was removed, in words; `None` if nothing was.
fn summary(collected: &Collected) -> Option<String> {
    let parts: Vec<_> = kinds(collected)
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(kind, count)| format!("{count} {kind}s"))
        .collect();
    let bytes = collected.bytes;
    (!parts.is_empty()).then(|| format!("removed {}, and freed {bytes} bytes", parts.join(", ")))
}

/// Removes the uploads of all repositories that are over. How many.
fn sweep_uploads(store: &Store, expiry: Duration, stop: &Stop) -> Result<u64, WalkError> {
    let mut removed = 0;
    walk::repositories(store.layout(), |repository| {
        if stop.is_set() {
            return Ok(());
        }
        match upload::sweep(store.layout(), repository, expiry) {
            Ok(swept) => removed += swept as u64,
            Err(error) => tracing::warn!(%repository, %error, "cannot look for uploads that are over"),
        }
        Ok::<_, WalkError>(())
    })?;
    Ok(removed)
}
