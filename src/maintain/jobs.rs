//! What maintenance does in a server by itself, for one registry: the jobs that the [schedule](super::schedule) runs.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::Stop;
use super::gc::{self, Collected, Event, GcError, GcOptions};
use super::schedule::{Job, Ran};
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
}

/// One registry, as far as maintenance is concerned.
#[derive(Clone, Debug)]
pub struct Site {
    /// Its name.
    pub registry: String,
    /// What was pushed.
    pub local: Arc<Store>,
    /// What was fetched.
    pub cache: Arc<Store>,
    /// What is to be done.
    pub settings: Settings,
    /// Where it is counted.
    pub metrics: MaintenanceMetrics,
}

impl Site {
    /// The jobs.
    pub fn jobs(&self) -> Vec<Job> {
        [self.gc(), self.uploads(), Some(self.stale())].into_iter().flatten().collect()
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
            metrics: self.metrics.clone(),
            run: Arc::new(run),
        }
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
