//! Copying registries: what a target lacks of what its sources have, and nothing else.
//!
//! **Owns** the way from "what is there" to "it is here": for each source its list of repositories, for each repository
//! its tags, for each selected tag a comparison, and of what is missing or differs the manifests, the blobs, and what
//! refers to them.
//!
//! **Order.** Blobs before the manifest that needs them, children before their list, the tag last; a manifest of which
//! anything failed is not pushed. So the target is whole at every moment, and a run that was cut off, however, is gone on
//! with by the next. Manifests are copied byte for byte.
//!
//! **What is verified.** Every blob is hashed on its way, and its upload finished only if the digest is right; every
//! manifest is checked against its digest. A blob that the target has in another repository is mounted instead of copied,
//! but only after the source has said that its repository has it: a manifest that names foreign content gains nothing.
//!
//! **Runs at once**, all on one thread but hashing and the disk: a few images, their blobs bounded together. A blob that
//! several images need is copied once. Nothing is stored between source and target: a blob's bytes are a bounded stream,
//! so memory does not grow with its size.
//!
//! **When something fails**, it is tried again with growing pauses. A source that breaks off in the middle of a blob is
//! asked for the rest while the upload waits; a target that breaks off is asked what it has, and gets the rest. What is given
//! up is told, and the run goes on with the rest.
//!
//! **Survives between runs** (in memory, for speed only): where the target has which blob, and which lists of referrers
//! were equal.
//!
//! **Around a run**: [`finder`] finds the sources, [`select`] says what is wanted of them, [`replication`] runs once or
//! again and again, and [`Narrator`] tells the log.
//!
//! # What a run without news costs
//!
//! A source: its catalog and each repository's tags in pages, one HEAD per selected tag, and where it keeps lists of
//! referrers one request per selected tag. A target registry: each repository's tags, one HEAD per tag; for a tag with
//! referrers one request for their list in the first run. No blob is asked about.
//!
//! # What bounds a run with news
//!
//! The target. distribution takes 12 ms of CPU for a small blob (HEAD 1.3, POST 3.2, PUT 4.1, GET at the source 3.7; a mount 2.5,
//! a manifest 4.4), we 0.6 ms. So what counts is how little is asked, and that something is always under way: 1 to 12 images at
//! once made no difference beyond the noise (`loadtest/run --workloads 'replicate_*'`; 0.45 × skopeo's time for 200 small
//! images, 0.8 × for one of 1 GiB, `loadtest/runs/2026-11-22-amd-epyc-2-cores-13`).

pub mod address;
mod blob;
mod copy;
mod delete;
mod error;
mod event;
pub mod finder;
mod flights;
mod hashing;
mod image;
mod narrate;
mod reader;
mod referrers;
pub mod replication;
mod repository;
mod retry;
mod run;
mod script;
pub mod select;
mod source;
mod stop;
mod tally;
mod target;
mod tree;
mod upload;
pub mod version;

pub use address::{Address, Defaults, Locals, Scheme};
pub use event::{BlobOutcome, Event, FAILURES_MAX, Failure, ImageName, ImageOutcome, Summary};
pub use finder::{Finder, Finders, Found};
pub use narrate::Narrator;
pub use replication::{Ended, Replication, SourceOptions};
pub use select::{PlatformPattern, Selection, pattern};
pub use source::Source;
pub use stop::Stop;
pub use target::Target;
pub use version::{Range, Version};

use std::sync::Arc;

/// How a run copies.
#[derive(Clone, Debug)]
pub struct Options {
    /// Write nothing; find out what would be copied. Default off.
    pub dry_run: bool,
    /// Copy what refers to the images that are copied (signatures, attestations, SBOMs). Default on.
    pub referrers: bool,
    /// Remove tags from the target that no source has, at most so many a run; if there are more, none at all, since then
    /// it is likely that a source is not what it should be. Default `None`: remove nothing.
    pub delete_max: Option<usize>,
    /// Images under way at once. Default 6.
    pub images_at_once: usize,
    /// Blobs under way at once, of all images together; of small ones, of at most 1 MiB, four times as many, since they
    /// are all waiting and no bytes. Default 4.
    pub blobs_at_once: usize,
    /// How often something is tried again before it is given up. Default 5.
    pub retries: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dry_run: false,
            referrers: true,
            delete_max: None,
            images_at_once: 6,
            blobs_at_once: 4,
            retries: 5,
        }
    }
}

/// Copies to one target, run after run.
#[derive(Debug)]
pub struct Replicator {
    target: Target,
    selection: Selection,
    options: Options,
    places: flights::Places,
    equal: referrers::Equal,
}

impl Replicator {
    /// Contacts nobody.
    pub fn new(target: Target, selection: Selection, options: Options) -> Self {
        let (places, equal) = Default::default();
        Self { target, selection, options, places, equal }
    }

    /// Whether nothing is to be written.
    fn is_dry_run(&self) -> bool {
        self.options.dry_run
    }

    /// Brings the target up to date with `sources`, and tells `events` what happens. Never fails as a whole: the summary,
    /// which is the last event too, says what did.
    ///
    /// The sources are replicas of one master, in the order of trust: for each tag the first that has it decides what it
    /// is, and the others are asked for what the first ones do not have, or fail to give.
    ///
    /// `before` is what failed on the way to the sources, which was told already: it counts as this run's, and for as long
    /// as there is any nothing is removed, since a source that is not among `sources` may have it.
    ///
    /// To be called on a current-thread runtime with I/O and timers. Dropping the call is like [`Stop::at_once`].
    pub async fn run(
        &self,
        sources: &[Arc<Source>],
        before: &[Failure],
        stop: &Stop,
        events: &dyn Fn(Event),
    ) -> Summary {
        run::run(self, sources, before, stop, events).await
    }
}
