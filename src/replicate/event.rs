//! What a run tells while it goes on, and in the end.
//!
//! Events are plain values, told in the order in which things happen, on the thread that runs; whoever is told must not
//! block. They serialise to one JSON object each, `{"event":"image_done",…}`; keys and values of these objects are for
//! scripts, so they only ever become more.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::oci::{Digest, Reference, RepositoryName};

/// Failures that a summary lists; more are counted only.
pub const FAILURES_MAX: usize = 1000;

/// A manifest with all that it needs, as it is named: `repository:tag` or `repository@digest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageName {
    /// Where it is, at the source as at the target.
    pub repository: RepositoryName,
    /// Its tag; or its digest, if it is there for another one's sake (a referrer).
    pub reference: Reference,
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if matches!(self.reference, Reference::Digest(_)) { '@' } else { ':' };
        write!(f, "{}{separator}{}", self.repository, self.reference)
    }
}

impl Serialize for ImageName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One thing that happened. In a dry run, what would have.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The first of a run.
    RunStarted {
        /// The sources' names, in the order in which they are asked.
        sources: Vec<String>,
        /// The target's name.
        target: String,
        /// Nothing is written.
        dry_run: bool,
    },
    /// A repository's tags are known.
    Repository {
        /// Its name.
        repository: RepositoryName,
        /// How many of its tags are selected.
        tags: usize,
    },
    /// An image is not at the target, or is another one there; what it consists of is known.
    ImageStarted {
        /// Which.
        image: ImageName,
        /// Its manifest.
        digest: Digest,
        /// The source that has it.
        source: String,
        /// Its blobs, each once, without what the target is known to hold.
        blobs: usize,
        /// What these have together, where the manifests say it.
        bytes: u64,
    },
    /// Bytes of a blob arrived at the target.
    BlobProgress {
        /// For which image it is copied.
        image: ImageName,
        /// Which blob.
        digest: Digest,
        /// How many bytes arrived since the last such event.
        moved: u64,
        /// How many of the blob are there. May fall, when what was sent is lost.
        done: u64,
        /// The blob's length, if it is known.
        size: Option<u64>,
    },
    /// A blob is at the target.
    BlobDone {
        /// For which image.
        image: ImageName,
        /// Which blob.
        digest: Digest,
        /// Its length, if it is known.
        size: Option<u64>,
        /// How it came there.
        how: BlobOutcome,
    },
    /// An image is at the target, with all that it needs.
    ImageDone {
        /// Which.
        image: ImageName,
        /// Its manifest.
        digest: Digest,
        /// How it came there.
        outcome: ImageOutcome,
        /// Bytes of blobs that were moved for it.
        bytes: u64,
        /// How long that took. 0 if it was there.
        elapsed_ms: u64,
    },
    /// Something is tried again.
    Retrying {
        /// What: an image, a blob of it, a list.
        what: String,
        /// What went wrong.
        why: String,
        /// Which try failed, from 1.
        attempt: u32,
        /// How long is waited before the next.
        after_ms: u64,
    },
    /// Something was given up. The run goes on with the rest.
    Failed(Failure),
    /// A tag that the source no longer has was removed from the target.
    Deleted {
        /// Which.
        image: ImageName,
    },
    /// The last of a run.
    RunDone(Summary),
}

/// How a blob came to be where it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BlobOutcome {
    /// Its bytes were sent.
    Copied,
    /// The target had it in another repository, and made it part of this one.
    Mounted,
    /// The target's repository had it.
    Present,
}

/// How an image came to be at the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageOutcome {
    /// It was there.
    Present,
    /// The tag was not there.
    Copied,
    /// The tag was at another image.
    Updated,
}

/// What was given up, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// `repository:tag`, a repository, or a source.
    pub what: String,
    /// What went wrong, the last time that it was tried.
    pub why: String,
}

/// A run, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Nothing was written: what is counted as copied, mounted and deleted would have been.
    pub dry_run: bool,
    /// Repositories looked at.
    pub repositories: u64,
    /// Selected tags that were right already.
    pub images_present: u64,
    /// Tags that the target did not have.
    pub images_copied: u64,
    /// Tags that moved.
    pub images_updated: u64,
    /// Tags that are not what they should be.
    pub images_failed: u64,
    /// Manifests that came for the sake of their subject: signatures, attestations, SBOMs.
    pub referrers_copied: u64,
    /// Manifests written, children, lists and referrers included.
    pub manifests_copied: u64,
    /// Blobs whose bytes were sent.
    pub blobs_copied: u64,
    /// Blobs that another repository of the target had.
    pub blobs_mounted: u64,
    /// Blobs that the target's repository had, of images that were copied.
    pub blobs_present: u64,
    /// Layers that are not for registries to hand out, and were left out.
    pub blobs_foreign: u64,
    /// Bytes of blobs sent, those that were lost on the way and sent again included.
    pub bytes_copied: u64,
    /// Tags removed.
    pub tags_deleted: u64,
    /// How often something was tried again.
    pub retries: u64,
    /// Requests to the sources, those for tokens included.
    pub requests_source: u64,
    /// Requests to the target, those for tokens included; 0 for a directory.
    pub requests_target: u64,
    /// How many things were given up.
    pub failures_total: u64,
    /// The first [`FAILURES_MAX`] of them.
    pub failures: Vec<Failure>,
    /// Told to stop before everything was looked at.
    pub stopped: bool,
    /// From the first request to the last.
    pub elapsed_ms: u64,
}

impl Summary {
    /// Whether the target has all that it was to have.
    pub fn is_complete(&self) -> bool {
        self.failures_total == 0 && !self.stopped
    }
}
