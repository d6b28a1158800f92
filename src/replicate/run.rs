//! One run: whom to ask for what, repository by repository.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::{StreamExt, future, stream};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::error::CopyError;
use super::event::{Event, ImageName, Summary};
use super::flights::{Flights, Places};
use super::source::{Holders, Source};
use super::tally::Tally;
use super::{Options, Replicator, Selection, Stop, Target};
use crate::oci::RepositoryName;
use crate::sys::files::Files;

/// Repositories whose tags are compared at once.
const REPOSITORIES_AT_ONCE: usize = 4;
/// Tags that are compared at once, of all repositories together.
const LOOKS_AT_ONCE: usize = 8;

/// Small blobs that are under way at once for each large one.
const SMALL_PER_LARGE: usize = 4;

/// What all of a run shares. It runs on one thread.
pub(super) struct Run<'a> {
    pub(super) target: &'a Target,
    pub(super) selection: &'a Selection,
    pub(super) options: &'a Options,
    pub(super) sources: &'a [Arc<Source>],
    pub(super) stop: &'a Stop,
    pub(super) events: &'a dyn Fn(Event),
    pub(super) tally: Tally,
    pub(super) files: Files,
    /// Where the target has which blob.
    pub(super) places: &'a Places,
    /// Referrers that were found equal.
    pub(super) equal: &'a super::referrers::Equal,
    /// Blobs that are being copied.
    pub(super) flights: Flights,
    /// Manifests that are being pushed.
    pub(super) manifests: Flights,
    /// Lists of referrers that are being changed.
    pub(super) fallbacks: Flights,
    pub(super) looks: Semaphore,
    pub(super) images: Semaphore,
    pub(super) large_blobs: Semaphore,
    pub(super) small_blobs: Semaphore,
    /// Tags of the target that no source has.
    pub(super) superfluous: RefCell<Vec<ImageName>>,
}

/// Runs from beginning to end.
pub(super) async fn run(
    replicator: &Replicator,
    sources: &[Arc<Source>],
    stop: &Stop,
    events: &dyn Fn(Event),
) -> Summary {
    let (began, options) = (Instant::now(), &replicator.options);
    let run = Run {
        target: &replicator.target,
        selection: &replicator.selection,
        options,
        sources,
        stop,
        events,
        tally: Tally::new(options.dry_run),
        // What is read from a tree here is little, and each of it small.
        files: Files::without_ring(),
        places: &replicator.places,
        equal: &replicator.equal,
        flights: Flights::default(),
        manifests: Flights::default(),
        fallbacks: Flights::default(),
        looks: Semaphore::new(LOOKS_AT_ONCE),
        images: Semaphore::new(options.images_at_once.max(1)),
        large_blobs: Semaphore::new(options.blobs_at_once.max(1)),
        small_blobs: Semaphore::new(options.blobs_at_once.max(1).saturating_mul(SMALL_PER_LARGE)),
        superfluous: RefCell::default(),
    };
    let asked = |run: &Run<'_>| -> u64 { run.sources.iter().map(|source| source.requests()).sum() };
    let (source_before, target_before) = (asked(&run), run.target.requests());
    for source in sources {
        source.begin_run();
    }
    run.tell(Event::RunStarted {
        sources: sources.iter().map(|source| source.name().to_owned()).collect(),
        target: run.target.name().to_owned(),
        dry_run: options.dry_run,
    });
    tokio::select! {
        () = run.all() => {}
        () = stop.requested_at_once() => {}
    }
    run.tally.count(|summary| {
        summary.stopped = stop.is_requested();
        summary.requests_source = asked(&run).saturating_sub(source_before);
        summary.requests_target = run.target.requests().saturating_sub(target_before);
        summary.elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    });
    let summary = run.tally.into_summary();
    events(Event::RunDone(summary.clone()));
    summary
}

impl<'a> Run<'a> {
    async fn all(&self) {
        let (repositories, is_whole) = self.repositories().await;
        let work = repositories.into_iter().map(|(repository, holders)| async move {
            if !self.stop.is_requested() {
                self.repository(Rc::new(repository), holders, is_whole).await;
            }
        });
        stream::iter(work).buffer_unordered(REPOSITORIES_AT_ONCE).collect::<()>().await;
        self.delete_superfluous().await;
    }

    /// The selected repositories with the sources that list them, and whether every source gave its list.
    async fn repositories(&self) -> (BTreeMap<RepositoryName, Holders<'a>>, bool) {
        let lists = self.sources.iter().map(|source| async move { (&**source, self.catalog(source).await) });
        let mut found: BTreeMap<RepositoryName, Holders<'a>> = BTreeMap::new();
        let mut is_whole = true;
        for (source, list) in future::join_all(lists).await {
            match list {
                Ok(names) => {
                    for name in names.into_iter().filter(|name| self.selection.repository(name)) {
                        found.entry(name).or_default().push(source);
                    }
                }
                Err(error) => {
                    is_whole = false;
                    if !error.is_stop() {
                        self.failed(&source.name(), &hint(&error));
                    }
                }
            }
        }
        (found, is_whole)
    }

    /// What a source has. One that lists nothing (Docker Hub) is asked for what the patterns name.
    async fn catalog(&self, source: &'a Source) -> Result<Vec<RepositoryName>, CopyError> {
        let what = format!("the repositories of {}", source.name());
        let asking = self.retrying(&what, &source.health, async || {
            source.upstream.catalog().await.map_err(CopyError::Source)
        });
        match asking.await {
            Err(error) if !error.is_retryable() && !error.is_stop() => {
                let named = self.selection.named_repositories();
                if named.is_empty() { Err(error) } else { Ok(named) }
            }
            listed => listed,
        }
    }
}

/// What could be done about it.
fn hint(error: &CopyError) -> String {
    use crate::upstream::UpstreamError as E;
    let hint = match error.upstream() {
        Some(E::Unauthorized { .. }) => {
            "; give a login that may list all repositories, or name the repositories"
        }
        Some(E::NotFound { .. }) => "; it offers no list of its repositories: name them",
        _ => "",
    };
    format!("{error}{hint}")
}
