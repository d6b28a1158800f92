//! A replication from its first look for sources to its end: once, or again and again.
//!
//! Runs on the thread that calls it, a current-thread runtime's; between runs it keeps the finders' last finds, and for
//! each source its connections and tokens. Nothing of it survives the process, and nothing needs to: the next run compares
//! again.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::finder::REFRESH_EVERY;
use super::narrate::TARGET;
use super::{Address, Event, Failure, Finders, Found, Replicator, Source, Stop, Summary};
use crate::upstream::{UpstreamConfigError, UpstreamOptions};

/// What a registry listens on if nobody says otherwise.
pub const PORT: u16 = 5000;
/// Tags that a run may remove, if it may, unless something else is said.
pub const DELETE_MAX: u32 = 10;
/// Blobs that may be under way at once.
pub const CONCURRENCY_MAX: u32 = 64;

/// How a source that was found is spoken to.
pub type SourceOptions = Box<dyn Fn(&Address) -> UpstreamOptions + Send>;

/// What is to be done, ready to begin.
pub struct Replication {
    /// Where the sources come from.
    pub finders: Finders,
    /// How they are spoken to.
    pub options: SourceOptions,
    /// What copies.
    pub replicator: Replicator,
    /// The pause between the end of a run and the next; `None`: there is one run.
    pub interval: Option<Duration>,
}

impl fmt::Debug for Replication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replication")
            .field("replicator", &self.replicator)
            .field("interval", &self.interval)
            .finish_non_exhaustive()
    }
}

/// How the last run went.
#[derive(Clone, Debug, Default)]
pub struct Ended {
    /// The run; `None` if it was told to stop before. Finders that failed are among its failures, and sources that cannot be
    /// spoken to.
    pub summary: Option<Summary>,
}

impl Ended {
    /// Whether everything that was to be there is there.
    pub fn is_complete(&self) -> bool {
        self.summary.as_ref().is_some_and(Summary::is_complete)
    }
}

impl Replication {
    /// Runs until everything is done, or until `stop`. What happens is told to `events`, finders' failures too.
    ///
    /// To be called on a current-thread runtime with I/O and timers. Dropping the call is like [`Stop::at_once`].
    pub async fn run(self, stop: &Stop, events: &dyn Fn(Event)) -> Ended {
        let Self { mut finders, options, replicator, interval } = self;
        let mut sources = Sources { options, known: HashMap::new(), told: Vec::new() };
        let Some(interval) = interval else {
            let Some(found) = until_stop(stop, finders.refresh()).await else { return Ended::default() };
            return sources.run(&found, &replicator, stop, events).await;
        };
        let Some((found, refreshing)) = until_stop(stop, finders.watch(REFRESH_EVERY)).await else {
            return Ended::default();
        };
        let running = async {
            loop {
                let now = Arc::clone(&found.borrow());
                let ended = sources.run(&now, &replicator, stop, events).await;
                if until_stop(stop, pause(interval, found.clone(), now)).await.is_none() {
                    return ended;
                }
            }
        };
        tokio::select! {
            ended = running => ended,
            // It ends only when nobody wants to know any more.
            () = refreshing => Ended::default(),
        }
    }
}

/// What the future gives, unless somebody wishes to end first.
async fn until_stop<T>(stop: &Stop, future: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = stop.requested() => None,
        value = future => Some(value),
    }
}

/// Waits for the next run: the interval, or, if there was nobody to copy from, until somebody is found.
async fn pause(interval: Duration, mut found: watch::Receiver<Arc<Found>>, seen: Arc<Found>) {
    let somebody = async {
        // A closed channel finds nobody any more.
        if !seen.sources.is_empty() || found.wait_for(|now| !now.sources.is_empty()).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = tokio::time::sleep(interval) => {}
        () = somebody => {}
    }
}

/// The sources that are known, kept from run to run while they are found.
struct Sources {
    options: SourceOptions,
    known: HashMap<Address, Arc<Source>>,
    /// What failed before the last run.
    told: Vec<Failure>,
}

impl Sources {
    async fn run(
        &mut self,
        found: &Found,
        replicator: &Replicator,
        stop: &Stop,
        events: &dyn Fn(Event),
    ) -> Ended {
        // What is bridged the finder has told itself; what it knows is asked all the same.
        let failed = found.failures.iter().filter(|failed| !failed.is_bridged);
        let failed = failed.map(|failed| Failure { what: failed.finder.clone(), why: failed.why.clone() });
        let mut failures: Vec<_> = failed.collect();
        self.known.retain(|address, _| found.sources.contains(address));
        let mut sources = Vec::with_capacity(found.sources.len());
        for address in &found.sources {
            match self.source(address) {
                Ok(source) => sources.push(source),
                Err(error) => {
                    failures.push(Failure { what: address.to_string(), why: error.to_string() });
                }
            }
        }
        if sources.is_empty() && failures.is_empty() && !found.has_local {
            failures.push(Failure { what: "sources".to_owned(), why: "none was found".to_owned() });
        }
        self.tell(&failures, events);
        if sources.is_empty() {
            if failures.is_empty() {
                tracing::info!(
                    target: TARGET,
                    "the only source found is the target itself: there is nothing to copy"
                );
            }
            // A run all the same, for whoever counts them.
            let failures_total = failures.len() as u64;
            let dry_run = replicator.is_dry_run();
            let summary = Summary { dry_run, failures_total, failures, ..Summary::default() };
            events(Event::RunDone(summary.clone()));
            return Ended { summary: Some(summary) };
        }
        let summary = replicator.run(&sources, &failures, stop, events).await;
        Ended { summary: Some(summary) }
    }

    /// Tells the failures that were not there at the last run.
    fn tell(&mut self, failures: &[Failure], events: &dyn Fn(Event)) {
        for failure in failures.iter().filter(|failure| !self.told.contains(failure)) {
            events(Event::Failed(failure.clone()));
        }
        self.told = failures.to_vec();
    }

    fn source(&mut self, address: &Address) -> Result<Arc<Source>, UpstreamConfigError> {
        if let Some(source) = self.known.get(address) {
            return Ok(Arc::clone(source));
        }
        let source = Arc::new(Source::new(address.to_string(), (self.options)(address))?);
        self.known.insert(address.clone(), Arc::clone(&source));
        Ok(source)
    }
}
