//! One run: whom to ask for what, repository by repository.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use futures_util::{StreamExt, future, stream};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::error::CopyError;
use super::event::{Event, Failure, ImageName, Summary};
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
    /// Where the target has which blob, or had it in an earlier run.
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
    before: &[Failure],
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
        tally: Tally::new(options.dry_run, before),
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
    replicator.places.begin_run();
    replicator.equal.begin_run();
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
        if let Some(why) = self.target.unusable() {
            return self.failed(&self.target.name(), &why);
        }
        let (repositories, is_whole) = self.repositories().await;
        let work = repositories.into_iter().map(|(repository, holders)| async move {
            if !self.stop.is_requested() {
                self.repository(Rc::new(repository), holders, is_whole).await;
            }
        });
        stream::iter(work).buffer_unordered(REPOSITORIES_AT_ONCE).collect::<()>().await;
        self.delete_superfluous().await;
    }

    /// The selected repositories with the sources that have them, and whether every source was found and gave its list.
    async fn repositories(&self) -> (BTreeMap<RepositoryName, Holders<'a>>, bool) {
        let lists = self.sources.iter().map(|source| async move { (&**source, self.catalog(source).await) });
        let mut found: BTreeMap<RepositoryName, Holders<'a>> = BTreeMap::new();
        // What failed before is a source that may have anything.
        let mut is_whole = !self.tally.has_failures();
        let lists = future::join_all(lists).await;
        let is_empty = |(_, (listed, error)): &(&Source, (Vec<RepositoryName>, Option<CopyError>))| {
            listed.is_empty() && error.is_none()
        };
        if lists.iter().any(is_empty) && !lists.iter().all(is_empty) {
            // It may have lost them: what only it had is not to be removed.
            is_whole = false;
            for (source, _) in lists.iter().filter(|list| is_empty(list)) {
                tracing::warn!(source = source.name(), "it lists no repository, other sources do");
            }
        }
        for (source, (listed, error)) in lists {
            for name in listed.into_iter().filter(|name| self.selection.repository(name)) {
                found.entry(name).or_default().push(source);
            }
            if let Some(error) = error {
                is_whole = false;
                if !error.is_stop() {
                    self.failed(&source.name(), &hint(&error));
                }
            }
        }
        (found, is_whole)
    }

    /// What a source may have, and why its list did not come. What patterns name need not be in the list: some registries
    /// have none (Docker Hub), or one of a part of what they have; and if everything is named, nobody is asked for it.
    async fn catalog(&self, source: &'a Source) -> (Vec<RepositoryName>, Option<CopyError>) {
        let named = self.selection.named_repositories();
        if self.selection.names_all() {
            return (named, None);
        }
        let what = format!("the repositories of {}", source.name());
        let asking = self.retrying(&what, &source.health, async || {
            source.upstream.catalog().await.map_err(CopyError::Source)
        });
        match asking.await {
            Ok(mut listed) => {
                let known: HashSet<_> = listed.iter().cloned().collect();
                listed.extend(named.into_iter().filter(|name| !known.contains(name)));
                (listed, None)
            }
            // One that is out of order has nothing else either, and has said so once.
            Err(error) if error.is_of_the_server() || error.is_stop() => (Vec::new(), Some(error)),
            Err(error) => (named, Some(error)),
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
