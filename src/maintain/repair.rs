//! Repair: what was set aside is fetched again from where it came from, and whole scrubs with repair.
//!
//! **Where a blob comes from.** In `cache` the repositories that link it say so: they are named after their upstreams. A
//! blob of `local` was pushed; it can be had from this machine's `cache` if that has it right, in another file than the
//! wrong one; from an upstream through which `cache` knows it; or from the default upstream, if that has it in the
//! repository of the same name. A blob that no repository links is needed by nobody.
//!
//! **How.** Blobs by an ordinary fill ([`crate::fill`]): one fetch, whoever else wants the blob, in this process or
//! another; verified; durable. Manifests by their digests. What is fetched for `local` goes through `cache`, and without
//! one straight into `local`.
//!
//! **What is missing.** A blob that could not be fetched stays in quarantine, and in `local` nobody else will bring it
//! back. So each scrub begins with what was set aside of `local` earlier and is still needed and not there, whatever
//! became of the process that set it aside.
//!
//! **Runs at once**: repairs of one scrub one after the other, on the runtime of whoever asked; the scrub goes on meanwhile
//! on a blocking thread, 64 events ahead at most. Dropping a repair lets a fill under way come to its end.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};

use super::Stop;
use super::scrub::{self, Event, Finding, Outcome, ScrubError, ScrubOptions, Scrubbed};
use crate::fill::Fills;
use crate::fill::fetch::Source;
use crate::metrics::Metrics;
use crate::oci::{Digest, Reference, RepositoryName};
use crate::store::holders::{Holder, holders};
use crate::store::{LinkKind, Store, StoredRepository, quarantine};
use crate::upstream::Upstream;
use crate::watermark::Progress;

/// How far a scrub may be ahead of the repairs of what it found.
const EVENTS_MAX: usize = 64;
/// Repositories that link a blob, looked up at most: one that may have it is enough.
const HOLDERS_MAX: usize = 64;
/// Places that are asked for one blob at most.
const ATTEMPTS_MAX: usize = 8;

/// Which of a registry's trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tree {
    /// What was pushed.
    Local,
    /// What was fetched.
    Cache,
}

/// Where the content of one registry can be had again.
pub struct Sources {
    local: Arc<Store>,
    /// Into `cache`, or straight into `local`.
    fills: Arc<Fills>,
    upstreams: Vec<Supplier>,
    metrics: Metrics,
}

/// An upstream as repair uses it.
#[derive(Clone)]
pub struct Supplier {
    /// The client.
    pub upstream: Arc<Upstream>,
    /// The component under which `cache` keeps its repositories.
    pub directory: String,
    /// Whether repositories that name no upstream are looked for here.
    pub default: bool,
    /// Failures in a row that a fetch overcomes.
    pub retries: u32,
    /// A permit for each fetch that may be under way ([`crate::fill::fetch::TURNS`]).
    pub turns: Arc<Semaphore>,
}

/// How a blob came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repaired {
    /// `cache` had it right.
    FromCache,
    /// This upstream sent it.
    FromUpstream {
        /// The upstream's name.
        upstream: String,
        /// The repository there.
        repository: RepositoryName,
    },
    /// Nothing links it, so it is not needed.
    NotNeeded,
}

/// Why a blob did not come back.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// Nobody is known who may have it.
    #[error("no upstream is known that may have it")]
    NoSource,
    /// Those who may have it did not give it.
    #[error("{}", .0.join("; "))]
    Refused(Vec<String>),
    /// This machine's disk.
    #[error("cannot {operation}: {error}")]
    Disk {
        /// What was tried.
        operation: &'static str,
        /// The system's word.
        error: io::Error,
    },
}

/// What happens in a scrub with repair.
#[derive(Debug)]
pub enum Step {
    /// In the scrub itself.
    Scrub(Event),
    /// This was set aside earlier, is needed, and is not there.
    Missing(Digest),
    /// It is there again, or nobody needs it.
    Repaired(Digest, Repaired),
    /// It is needed, and not there.
    NotRepaired(Digest, RepairError),
}

/// What a scrub with repair came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// The scrub.
    pub scrubbed: Scrubbed,
    /// Blobs that were set aside by earlier scrubs, are needed, and were not there when this one began.
    pub missing: u64,
    /// Blobs that are there again, or that nobody needs.
    pub repaired: u64,
    /// Blobs that were set aside, now or earlier, and are not there.
    pub unrepaired: u64,
}

impl Mended {
    /// Whether everything was looked at, and is right now.
    pub fn is_right(&self) -> bool {
        let Scrubbed { left, unchecked, complete, .. } = self.scrubbed;
        complete && self.unrepaired == 0 && left == 0 && unchecked == 0
    }
}

/// A place to ask for a blob.
struct Attempt {
    supplier: Supplier,
    /// The repository's name there.
    repository: RepositoryName,
    /// Its place in the tree that is filled.
    stored: StoredRepository,
    kind: LinkKind,
}

/// Scrubs a tree, and fetches what was wrong, or is missing since an earlier scrub, again from `sources`; without them it is
/// only told. To be called inside of a `LocalSet`.
///
/// Dropping the future ends the scrub, and whatever else goes by `stop`.
///
/// # Errors
/// Those of the scrub. What cannot be repaired is told and counted.
pub async fn scrub(
    store: &Arc<Store>,
    tree: Tree,
    sources: Option<&Sources>,
    options: ScrubOptions,
    stop: &Stop,
    report: &mut dyn FnMut(Step),
) -> Result<Mended, ScrubError> {
    let mut job = Job { store, tree, sources, report, mended: Mended::default() };
    let unread = if tree == Tree::Local { job.missing(stop).await } else { 0 };
    let (sender, mut events) = mpsc::channel(EVENTS_MAX);
    let scrubbing = tokio::task::spawn_blocking({
        let (store, stop) = (Arc::clone(store), stop.clone());
        move || {
            let mut tell = |event| {
                // Nobody is interested any more.
                if sender.blocking_send(event).is_err() {
                    stop.stop();
                }
            };
            scrub::run(&store, &options, &stop, &mut tell)
        }
    });
    while let Some(event) = events.recv().await {
        job.heard(event, stop).await;
    }
    let scrubbed = scrubbing.await.unwrap_or_else(|panic| {
        let (path, error) = (store.layout().root().to_owned(), io::Error::other(panic));
        Err(ScrubError::Lock { path, error })
    })?;
    job.mended.scrubbed = Scrubbed { unchecked: scrubbed.unchecked + unread, ..scrubbed };
    Ok(job.mended)
}

/// A scrub with repair under way.
struct Job<'a> {
    store: &'a Arc<Store>,
    tree: Tree,
    sources: Option<&'a Sources>,
    report: &'a mut dyn FnMut(Step),
    mended: Mended,
}

impl Job<'_> {
    async fn heard(&mut self, event: Event, stop: &Stop) {
        let found = match &event {
            Event::Found(Finding { digest, outcome: Outcome::SetAside(_), .. }) => Some(*digest),
            _ => None,
        };
        (self.report)(Step::Scrub(event));
        // What is in quarantine is repaired by the next scrub.
        match (found, self.sources.filter(|_| !stop.is_set())) {
            (Some(digest), Some(sources)) => self.repair(sources, &digest).await,
            (Some(_), None) => self.mended.unrepaired += 1,
            (None, _) => {}
        }
    }

    /// What earlier scrubs set aside. How many directories could not be read.
    async fn missing(&mut self, stop: &Stop) -> u64 {
        let missing = match self.store.blocking(|store| quarantine::missing(store.layout())).await {
            Ok(missing) => missing,
            Err(error) => {
                let path = self.store.layout().root().to_owned();
                (self.report)(Step::Scrub(Event::Unchecked { path, error }));
                return 1;
            }
        };
        for digest in missing {
            if stop.is_set() {
                break;
            }
            // What cannot be told counts as needed.
            if holders_of(self.store, &digest).await.is_ok_and(|holders| holders.is_empty()) {
                continue;
            }
            self.mended.missing += 1;
            (self.report)(Step::Missing(digest));
            match self.sources {
                Some(sources) => self.repair(sources, &digest).await,
                None => self.mended.unrepaired += 1,
            }
        }
        0
    }

    async fn repair(&mut self, sources: &Sources, digest: &Digest) {
        let step = match sources.repair(self.tree, digest).await {
            Ok(repaired) => {
                self.mended.repaired += 1;
                Step::Repaired(*digest, repaired)
            }
            Err(error) => {
                self.mended.unrepaired += 1;
                Step::NotRepaired(*digest, error)
            }
        };
        (self.report)(step);
    }
}

impl Sources {
    /// For a registry's `local`, and its `cache` through the fills into it, if it has one.
    pub fn new(
        local: Arc<Store>,
        cache: Option<Arc<Fills>>,
        upstreams: Vec<Supplier>,
        metrics: Metrics,
    ) -> Self {
        let fills = cache.unwrap_or_else(|| Arc::new(Fills::new(Arc::clone(&local), metrics.clone())));
        Self { local, fills, upstreams, metrics }
    }

    /// Brings a blob back that was set aside. To be called inside of a `LocalSet`.
    ///
    /// # Errors
    /// It is not there, and why not. It may be another time.
    pub async fn repair(&self, tree: Tree, digest: &Digest) -> Result<Repaired, RepairError> {
        match tree {
            Tree::Cache => self.repair_cached(digest).await,
            Tree::Local => self.repair_local(digest).await,
        }
    }

    async fn repair_cached(&self, digest: &Digest) -> Result<Repaired, RepairError> {
        let holders = holders_of(self.fills.store(), digest).await?;
        if holders.is_empty() {
            return Ok(Repaired::NotNeeded);
        }
        self.fetch(digest, holders.iter().filter_map(|holder| self.attempt_as_cached(holder))).await
    }

    async fn repair_local(&self, digest: &Digest) -> Result<Repaired, RepairError> {
        let holders = holders_of(&self.local, digest).await?;
        let Some(holder) = holders.first() else { return Ok(Repaired::NotNeeded) };
        if !self.has_cache() {
            return self.fetch(digest, self.attempts_as_pushed(&holders)).await;
        }
        if self.is_right_in_cache(digest).await && self.adopt(holder, digest).await? {
            return Ok(Repaired::FromCache);
        }
        let cached = holders_of(self.fills.store(), digest).await?;
        let cached = cached.iter().filter_map(|holder| self.attempt_as_cached(holder));
        let fetched = self.fetch(digest, cached.chain(self.attempts_as_pushed(&holders))).await?;
        if self.adopt(holder, digest).await? {
            return Ok(fetched);
        }
        Err(RepairError::Refused(vec!["it was evicted before it could be taken over".to_owned()]))
    }

    fn has_cache(&self) -> bool {
        !Arc::ptr_eq(&self.local, self.fills.store())
    }

    /// Whether `cache` holds it right. What is wrong there is set aside as well: it may be the same file.
    async fn is_right_in_cache(&self, digest: &Digest) -> bool {
        let digest = *digest;
        let look = self.fills.store().blocking(move |cache| {
            Ok(match scrub::is_right(cache, &digest)? {
                Some((true, _)) => true,
                Some((false, seen)) => {
                    quarantine::set_aside(cache, &digest, seen)?;
                    false
                }
                None => false,
            })
        });
        look.await.unwrap_or_else(|error| {
            tracing::warn!(%digest, %error, "cannot tell whether the cache has a blob right");
            false
        })
    }

    async fn adopt(&self, holder: &Holder, digest: &Digest) -> Result<bool, RepairError> {
        let adopted = self.local.adopt(self.fills.store(), &holder.stored(), holder.kind, digest).await;
        adopted.map_err(|error| RepairError::Disk { operation: "take it over from the cache", error })
    }

    /// Upstream, as the place in `cache` says.
    fn attempt_as_cached(&self, holder: &Holder) -> Option<Attempt> {
        let (directory, name) = holder.repository.as_str().split_once('/')?;
        let supplier = self.upstreams.iter().find(|supplier| supplier.directory == directory)?;
        let repository = name.parse().ok()?;
        Some(Attempt { supplier: supplier.clone(), repository, stored: holder.stored(), kind: holder.kind })
    }

    /// The default upstream, in the repositories of the same names.
    fn attempts_as_pushed(&self, holders: &[Holder]) -> impl Iterator<Item = Attempt> {
        let default = self.upstreams.iter().find(|supplier| supplier.default);
        holders.iter().filter_map(move |holder| {
            let supplier = default?.clone();
            let repository = supplier.upstream.canonical(&holder.repository);
            let stored = if self.has_cache() {
                StoredRepository::cached(&supplier.directory, &repository)
            } else {
                holder.stored()
            };
            Some(Attempt { supplier, repository, stored, kind: holder.kind })
        })
    }

    /// Asks one after the other until the tree that is filled holds the blob.
    async fn fetch(
        &self,
        digest: &Digest,
        attempts: impl Iterator<Item = Attempt>,
    ) -> Result<Repaired, RepairError> {
        let mut refusals = Vec::new();
        for attempt in attempts.take(ATTEMPTS_MAX) {
            match self.fetch_from(&attempt, digest).await {
                Ok(()) => {
                    let upstream = attempt.supplier.upstream.name().to_owned();
                    return Ok(Repaired::FromUpstream { upstream, repository: attempt.repository });
                }
                Err(refusal) => refusals.push(refusal),
            }
        }
        Err(if refusals.is_empty() { RepairError::NoSource } else { RepairError::Refused(refusals) })
    }

    async fn fetch_from(&self, attempt: &Attempt, digest: &Digest) -> Result<(), String> {
        let store = self.fills.store();
        match attempt.kind {
            LinkKind::Manifest => {
                let reference = Reference::Digest(*digest);
                let fetched = attempt.supplier.upstream.manifest(&attempt.repository, &reference).await;
                let content = fetched.map_err(|error| error.to_string())?.bytes;
                let put = store.put_manifest(&attempt.stored, digest, content).await;
                put.map_err(|error| format!("it cannot be stored: {error}"))?;
            }
            LinkKind::Layer => {
                let (flight, _) = self.fills.join(*digest, attempt.stored.clone(), self.source(attempt));
                if let Progress::Failed(error) = self.fills.landed(&flight).await {
                    return Err(error.to_string());
                }
            }
        }
        let path = store.layout().blob(digest);
        let held = store.blocking(move |_| path.try_exists()).await;
        if held.unwrap_or(false) { Ok(()) } else { Err("it was fetched and could not be kept".to_owned()) }
    }

    fn source(&self, attempt: &Attempt) -> Source {
        Source {
            upstream: Arc::clone(&attempt.supplier.upstream),
            repository: attempt.repository.clone(),
            retries: attempt.supplier.retries,
            turns: Arc::clone(&attempt.supplier.turns),
            metrics: self.metrics.clone(),
        }
    }
}

async fn holders_of(store: &Arc<Store>, digest: &Digest) -> Result<Vec<Holder>, RepairError> {
    let digest = *digest;
    let looked = store.blocking(move |store| holders(store.layout(), &digest, HOLDERS_MAX)).await;
    looked.map_err(|error| RepairError::Disk { operation: "find out which repository needs it", error })
}

impl Step {
    /// Puts it into the log, as of the tree below `root`: what an operator has to know as a warning or an error.
    pub fn log(&self, root: &Path) {
        let root = root.display();
        match self {
            Self::Scrub(Event::Reached(_)) => {}
            Self::Scrub(Event::Found(Finding { digest, len, cause, outcome })) => match outcome {
                Outcome::SetAside(path) => {
                    tracing::error!(%root, %digest, len, %cause, path = %path.display(), "a blob is corrupt: set aside");
                }
                Outcome::Rescued(path) => {
                    let path = path.display();
                    tracing::error!(%root, %digest, len, %cause, %path, "a blob is corrupt on disk: written again from memory");
                }
                Outcome::Left(error) => {
                    tracing::error!(%root, %digest, len, %cause, %error, "a blob is corrupt and cannot be set aside");
                }
            },
            Self::Scrub(Event::Transient { digest, cause }) => {
                tracing::warn!(%root, %digest, %cause, "a blob was read wrong once, and right the second time: check disk and memory");
            }
            Self::Scrub(Event::Unchecked { path, error }) => {
                tracing::error!(%root, path = %path.display(), %error, "cannot be scrubbed");
            }
            Self::Missing(digest) => {
                tracing::warn!(%root, %digest, "a blob that was set aside earlier is still missing");
            }
            Self::Repaired(digest, repaired) => tracing::info!(%root, %digest, "repaired: {repaired}"),
            Self::NotRepaired(digest, error) => {
                tracing::error!(%root, %digest, %error, "cannot be repaired: push it again, or remove what needs it");
            }
        }
    }
}

impl fmt::Display for Repaired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FromCache => f.write_str("taken over from the cache"),
            Self::FromUpstream { upstream, repository } => {
                write!(f, "fetched again from {upstream}/{repository}")
            }
            Self::NotNeeded => f.write_str("no repository needs it"),
        }
    }
}
