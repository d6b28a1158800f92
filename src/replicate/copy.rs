//! An image copied: its blobs, then its manifests, then what refers to it.

use std::cell::Cell;

use futures_util::{StreamExt, stream};

use super::error::CopyError;
use super::event::Event;
use super::image::{Job, Node, Plan};
use super::repository::is_fallback;
use super::run::Run;
use super::target::Put;
use crate::oci::{Digest, Tag};
use crate::store::LinkKind;

/// How often an image is looked at because the target had lost something of it in the meantime.
const ROUNDS: u32 = 5;
/// Blobs of one image that are looked at; of these the run's bound decides how many are under way.
const BLOBS_AT_ONCE: usize = 16;

/// An image that is at the target.
pub(super) struct Copied {
    pub(super) digest: Digest,
    /// All its manifests.
    pub(super) digests: Vec<Digest>,
    /// Bytes of blobs that were moved for it.
    pub(super) bytes: u64,
}

impl<'a> Run<'a> {
    /// Copies an image. After a failure the target has some of its blobs, perhaps some of its children, and not the image.
    pub(super) async fn copy(&self, job: &Job<'_, 'a>) -> Result<Copied, CopyError> {
        let (mut bytes, mut refusal) = (0, String::new());
        for round in 1..=ROUNDS {
            let plan = self.plan(job, round == 1).await?;
            let root = plan.root()?.digest;
            if round == 1 {
                self.tally.count(|summary| summary.blobs_foreign += plan.foreign);
                self.tell(Event::ImageStarted {
                    image: job.image.clone(),
                    digest: root,
                    source: plan.source.name().to_owned(),
                    blobs: plan.blobs.len(),
                    bytes: plan.bytes(),
                });
            }
            bytes += self.copy_blobs(job, &plan).await?;
            let missing = if self.options.dry_run { None } else { self.push(job, &plan).await? };
            let Some(missing) = missing else {
                return Ok(Copied { digest: root, digests: plan.digests, bytes });
            };
            if plan.is_sparse && !self.target.takes_sparse_indexes() {
                return Err(CopyError::Unfit(format!(
                    "the target refuses an index without all of its children: select all platforms of {}",
                    job.image
                )));
            }
            refusal.clone_from(&missing);
            for blob in &plan.blobs {
                self.places.forget(&blob.digest);
            }
            if round < ROUNDS {
                self.look_again(job.image, missing, round).await?;
            }
        }
        let said = format!("the target refused it {ROUNDS} times though it was given all: {refusal}");
        Err(CopyError::Unfit(said))
    }

    /// Has the target's repository have all blobs. The bytes that were moved.
    async fn copy_blobs(&self, job: &Job<'_, 'a>, plan: &Plan<'a>) -> Result<u64, CopyError> {
        let is_lost = Cell::new(false);
        let work = plan.blobs.iter().map(|blob| {
            let is_lost = &is_lost;
            async move {
                // What is under way arrives, and need not be sent again the next time.
                if is_lost.get() {
                    return Ok(0);
                }
                let result = Box::pin(self.blob(job, blob)).await;
                is_lost.set(is_lost.get() || result.is_err());
                result
            }
        });
        let results: Vec<_> = stream::iter(work).buffer_unordered(BLOBS_AT_ONCE).collect().await;
        let mut bytes = 0;
        let mut first = None;
        for result in results {
            match result {
                Ok(moved) => bytes += moved,
                // That we were told to stop says less than what failed before.
                Err(error) if first.as_ref().is_none_or(CopyError::is_stop) => first = Some(error),
                Err(_) => {}
            }
        }
        first.map_or(Ok(bytes), Err)
    }

    pub(super) async fn put(
        &self,
        job: &Job<'_, 'a>,
        node: &Node,
        tag: Option<&Tag>,
    ) -> Result<Put, CopyError> {
        let putting = self.retrying(job.image, &self.target.health, async || {
            self.target.put(job.repository, node, tag).await
        });
        putting.await
    }

    /// Pushes the manifests. What the target said, if it lacks something that they need.
    async fn push(&self, job: &Job<'_, 'a>, plan: &Plan<'a>) -> Result<Option<String>, CopyError> {
        let last = plan.nodes.len().saturating_sub(1);
        for (at, node) in plan.nodes.iter().enumerate() {
            let tag = job.tag.filter(|_| at == last);
            // distribution writes its links in place: whoever reads one at that moment, because it checks the children of an
            // index, finds it empty.
            let children = node.needed.iter().filter(|(kind, _)| *kind == LinkKind::Manifest);
            let names = children.map(|(_, digest)| *digest).chain([node.digest]);
            let entered = self.manifests.enter_all(names).await;
            let put = match tag.filter(|tag| is_fallback(tag)) {
                Some(tag) => self.put_list(job, node, tag).await?,
                None => self.put(job, node, tag).await?,
            };
            drop(entered);
            match put {
                Put::Done { knows_subject } => {
                    self.tally.count(|summary| summary.manifests_copied += 1);
                    if !knows_subject {
                        self.list_as_referrer(job, node).await?;
                    }
                }
                Put::Missing(what) => return Ok(Some(what)),
            }
        }
        Ok(None)
    }
}
