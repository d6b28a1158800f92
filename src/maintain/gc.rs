//! Collecting garbage in `local`: what nothing refers to goes; and, if asked for, manifests that are old or have no tag.
//!
//! ```text
//! choose     what manifests expire, or are reached by no tag (read only)
//! look       at all that the rest of the tree refers to; an error ends it, and nothing was removed
//! expire     those tags and manifests go
//! look again which only adds
//! sweep      uploads that are over, files that crashes left, blobs that neither look found, links to nothing
//! ```
//!
//! A blob goes if nothing refers to it and it is older than the grace: since it was pushed, mounted, asked for by a client
//! that may push, named by a manifest, or given to a repository, whichever was last. Why that never breaks a push is
//! written down in `sweep`; what a crash leaves, too. A clock that stepped back makes everything young.
//!
//! **Runs at once** with servers and other commands on the tree; one at a time collects or removes (flock on `locks/gc`).
//! docker-registry takes no locks: it must not write to the tree meanwhile, and what it wrote less than the grace ago is
//! safe. Memory: see `mark`. Blocks; asked to stop, it ends between two steps.

use std::time::{Duration, SystemTime};

use super::Stop;
use super::contents::{Contents, Revision};
use super::mark::{Gone, Marks};
use super::plan::{self, Plan};
use super::sweep::{Began, Sweeper, hold, wait_for_others};
pub use super::sweep::{Collected, Event, GcError, Removed};
use crate::store::recover::{self, FILL_AGE};
use crate::store::sweeping::Stamped;
use crate::store::walk::{self, Unknown};
use crate::store::{Layout, Store, StoreOptions, StoredRepository, sweeping};

/// Stamps may be so much older than the moment of which they are, where others set them.
const MARGIN: Duration = Duration::from_secs(2);
/// How old an upload is that nobody will go on with, unless something else is said.
pub const UPLOAD_AGE: Duration = Duration::from_hours(24);
/// How long a blob stays that no manifest refers to, unless something else is said.
pub const GRACE: Duration = Duration::from_hours(24);

/// From when the age of a manifest counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExpireFrom {
    /// From when it was pushed last.
    #[default]
    Push,
    /// From when it was pushed or pulled last.
    Pull,
}

/// What is to be collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GcOptions {
    /// How long what nothing refers to stays.
    pub grace: Duration,
    /// Manifests go that no tag reaches and that are older than the grace.
    pub untagged: bool,
    /// Manifests older than this go with their tags.
    pub expire_manifests: Option<Duration>,
    /// From when their age counts.
    pub expire_from: ExpireFrom,
    /// Upload sessions that nobody went on with for so long go.
    pub expire_uploads: Option<Duration>,
    /// Nothing is removed; it is only told what would be.
    pub dry_run: bool,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self {
            grace: GRACE,
            untagged: false,
            expire_manifests: None,
            expire_from: ExpireFrom::Push,
            expire_uploads: Some(UPLOAD_AGE),
            dry_run: false,
        }
    }
}

/// Collects garbage once. `report` hears of each thing that went, or would go, and of each that could not be removed,
/// which does not end the run.
///
/// # Errors
/// The run ended early. What is told to `report` is gone all the same.
pub fn run(
    store: &Store,
    options: &GcOptions,
    stop: &Stop,
    report: &mut dyn FnMut(Event),
) -> Result<Collected, GcError> {
    let _lock = if options.dry_run { None } else { Some(hold(store.layout())?) };
    let began = Began::now();
    if !options.dry_run {
        wait_for_others(store.layout())?;
    }
    let sweeper = Sweeper::new(store, options.dry_run, began, report);
    Run { sweeper, options, stop, marks: Marks::default(), gone: Gone::default() }.all()
}

/// Removes what crashes left behind in a tree that is not collected otherwise, such as a `cache`.
///
/// # Errors
/// See [`run`].
pub fn leftovers(
    layout: &Layout,
    dry_run: bool,
    report: &mut dyn FnMut(Event),
) -> Result<Collected, GcError> {
    let store = Store::over(layout.clone(), StoreOptions::without_handles());
    let mut sweeper = Sweeper::new(&store, dry_run, Began::now(), report);
    sweep_leftovers(&mut sweeper);
    Ok(sweeper.total)
}

struct Run<'a> {
    sweeper: Sweeper<'a>,
    options: &'a GcOptions,
    stop: &'a Stop,
    marks: Marks,
    gone: Gone,
}

impl Run<'_> {
    fn all(mut self) -> Result<Collected, GcError> {
        let plans = self.choose()?;
        self.sweeper.phase("looking at what is referred to");
        self.look()?;
        if !plans.is_empty() {
            self.sweeper.phase("removing manifests");
        }
        plan::carry_out(&plans, &mut self.sweeper, self.stop)?;
        if !self.sweeper.is_lasting {
            // A power cut would bring back manifests whose blobs are gone.
            return Ok(self.sweeper.total);
        }
        if !self.options.dry_run {
            // What could not be removed counts.
            self.gone = Gone::default();
        }
        self.sweeper.phase("looking again");
        self.look()?;
        self.sweeper.total.marked = self.marks.len() as u64;
        self.sweeper.total.marks_bytes = self.marks.bytes() as u64;
        self.sweeper.phase("removing what nothing refers to");
        self.uploads()?;
        sweep_leftovers(&mut self.sweeper);
        self.blobs()?;
        self.links()?;
        if self.sweeper.began.is_set_back() { Err(GcError::ClockSetBack) } else { Ok(self.sweeper.total) }
    }

    /// What manifests are to go.
    fn choose(&mut self) -> Result<Vec<Plan>, GcError> {
        let mut plans = Vec::new();
        if !self.options.untagged && self.options.expire_manifests.is_none() {
            return Ok(plans);
        }
        self.sweeper.phase("looking for manifests to remove");
        let (options, layout) = (self.options, self.sweeper.layout().clone());
        walk::repositories(&layout, |repository| -> Result<(), GcError> {
            self.stop.check()?;
            let contents = Contents::read(&layout, repository)?;
            let young = |revision: &Revision| age(revision.pushed.max(revision.relied_on)) <= options.grace;
            let expired = |revision: &Revision| {
                let from = match options.expire_from {
                    ExpireFrom::Push => revision.pushed,
                    ExpireFrom::Pull => revision.pushed.max(revision.pulled),
                };
                options.expire_manifests.is_some_and(|limit| age(from) > limit)
            };
            let choice = contents.expired(expired, options.untagged.then_some(&young));
            let plan = Plan::new(repository, contents, &choice).without_blobs();
            if !plan.is_empty() {
                plan.note(&mut self.gone);
                plans.push(plan);
            }
            Ok(())
        })?;
        Ok(plans)
    }

    fn look(&mut self) -> Result<(), GcError> {
        let young_since = self.cutoff();
        self.marks.look(self.sweeper.layout(), &self.gone, young_since, self.stop)
    }

    /// What is not older than this stays.
    fn cutoff(&self) -> SystemTime {
        let of_age = SystemTime::now().checked_sub(self.options.grace).unwrap_or(SystemTime::UNIX_EPOCH);
        of_age.min(self.sweeper.began.at.checked_sub(MARGIN).unwrap_or(SystemTime::UNIX_EPOCH))
    }

    fn uploads(&mut self) -> Result<(), GcError> {
        let Some(expiry) = self.options.expire_uploads else { return Ok(()) };
        let layout = self.sweeper.layout().clone();
        walk::repositories(&layout, |repository| {
            self.stop.check()?;
            if let Err(error) = self.sweeper.uploads(repository, expiry) {
                self.sweeper.failed(Removed::Directory(layout.uploads(repository)), error);
            }
            Ok(())
        })
    }

    /// Removes the blobs that neither look found.
    fn blobs(&mut self) -> Result<(), GcError> {
        let layout = self.sweeper.layout().clone();
        walk::blobs(&layout, |digest| {
            if self.marks.has(digest) || self.marks.is_young(digest) {
                return Ok(());
            }
            self.stop.check()?;
            if self.sweeper.began.is_set_back() {
                return Err(GcError::ClockSetBack);
            }
            let cutoff = self.cutoff();
            self.sweeper.blob(digest, |stamped| stamped.at < cutoff);
            Ok(())
        })
    }

    /// Removes links to nothing, and the empty directories that removals leave.
    fn links(&mut self) -> Result<(), GcError> {
        let layout = self.sweeper.layout().clone();
        walk::repositories(&layout, |repository| {
            self.stop.check()?;
            walk::links(&layout.layers(repository), Unknown::Skipped, |place| self.link(repository, place))?;
            walk::links(&layout.revisions(repository), Unknown::Skipped, |place| match place.link()? {
                None => self.empty_place(place),
                Some(_) => Ok(()),
            })
        })
    }

    fn link(&mut self, repository: &StoredRepository, place: &walk::Place<'_>) -> Result<(), GcError> {
        if self.marks.has(&place.digest) {
            return Ok(());
        }
        let Some(link) = place.link()? else { return self.empty_place(place) };
        if self.marks.has(&link.digest) || self.marks.is_young(&link.digest) {
            return Ok(());
        }
        let (cutoff, dry_run) = (self.cutoff(), self.options.dry_run);
        let is_gone = |stamped: Option<Stamped>| match stamped {
            None => true,
            // It would be gone.
            Some(stamped) => dry_run && stamped.at < cutoff,
        };
        self.sweeper.link(repository, &place.digest, &link.digest, is_gone);
        Ok(())
    }

    fn empty_place(&mut self, place: &walk::Place<'_>) -> Result<(), GcError> {
        if !self.options.dry_run {
            let emptied = sweeping::empty_place(self.sweeper.layout(), &place.digest, &place.path());
            emptied.map_err(|cause| GcError::Lock { path: self.sweeper.layout().locks(), cause })?;
        }
        Ok(())
    }
}

fn sweep_leftovers(sweeper: &mut Sweeper<'_>) {
    let (layout, dry_run) = (sweeper.layout().clone(), sweeper.dry_run);
    let swept = recover::sweep_each(&layout, FILL_AGE, dry_run, |path, bytes| {
        sweeper.gone(Removed::Leftover(path.to_owned(), bytes));
    });
    if let Err(error) = swept {
        sweeper.failed(Removed::Leftover(layout.fills(), 0), error);
    }
}

/// A clock that stepped back makes everything young.
pub(super) fn age(time: SystemTime) -> Duration {
    SystemTime::now().duration_since(time).unwrap_or_default()
}

#[cfg(test)]
mod tests;
