//! What refers to an image: signatures, attestations, SBOMs, found by the source's list of referrers.
//!
//! Where a source has no such list, the fallback tags of its clients are copied as tags are (see `repository`). Where the
//! target has none, the fallback tag is kept here, as the specification asks of clients (OCI distribution spec 1.1,
//! "Pushing Manifests with Subject").

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::pin::Pin;
use std::rc::Rc;

use serde_json::json;
use tokio::time::Instant;

use super::error::CopyError;
use super::event::{Event, ImageName, ImageOutcome};
use super::image::{Job, Node};
use super::run::Run;
use super::source::Source;
use super::target::fallback_tag;
use crate::oci::{Digest, Reference, RepositoryName, media_type};

/// How far referrers of referrers are followed; that there are more is a failure.
const DEPTH_MAX: usize = 8;
/// Lists of which it is remembered that they were equal: 50,000 take about 10 MiB.
const EQUAL_MAX: usize = 50_000;

/// The lists of referrers that the target was seen to have all of.
#[derive(Debug, Default)]
pub(super) struct Equal(RefCell<HashMap<Digest, BTreeSet<Digest>>>);

impl Equal {
    fn has(&self, subject: &Digest, listed: &BTreeSet<Digest>) -> bool {
        self.0.borrow().get(subject).is_some_and(|known| known == listed)
    }

    fn note(&self, subject: &Digest, listed: BTreeSet<Digest>) {
        let mut known = self.0.borrow_mut();
        if known.len() < EQUAL_MAX || known.contains_key(subject) {
            known.insert(*subject, listed);
        }
    }

    /// Something else was written over what the target had.
    fn forget(&self, subject: &Digest) {
        self.0.borrow_mut().remove(subject);
    }
}

impl<'a> Run<'a> {
    /// Copies what refers to a manifest, and what refers to that. Whatever fails is told.
    pub(super) async fn referrers_of(
        &self,
        repository: &Rc<RepositoryName>,
        subject: &Digest,
        holders: &[&'a Source],
        depth: usize,
    ) {
        if !self.options.referrers || self.stop.is_requested() {
            return;
        }
        let image = ImageName { repository: (**repository).clone(), reference: Reference::Digest(*subject) };
        let listed = match self.listed(&image, subject, holders).await {
            Ok(listed) if listed.is_empty() => return,
            Ok(listed) => listed,
            Err(error) if error.is_stop() => return,
            Err(error) => return self.failed(&format!("the referrers of {image}"), &error),
        };
        if depth == 0 && self.equal.has(subject, &listed) {
            return;
        }
        if depth >= DEPTH_MAX {
            let why = format!("they refer to each other more than {DEPTH_MAX} deep: the rest is left out");
            return self.failed(&format!("the referrers of {image}"), &why);
        }
        let asking = self.retrying(&image, &self.target.health, async || {
            self.target.referrers(&self.files, repository, subject).await
        });
        let there: HashSet<Digest> = match asking.await {
            Ok(there) => there.into_iter().collect(),
            Err(error) if error.is_stop() => return,
            Err(error) => return self.failed(&format!("the referrers of {image}"), &error),
        };
        let mut is_equal = true;
        for referrer in listed.iter().filter(|referrer| !there.contains(referrer)) {
            is_equal &= self.referrer(repository, referrer, holders, depth).await;
        }
        if is_equal && !self.options.dry_run {
            self.equal.note(subject, listed);
        }
    }

    /// What the source lists; nothing if it has no such list.
    async fn listed(
        &self,
        image: &ImageName,
        subject: &Digest,
        holders: &[&'a Source],
    ) -> Result<BTreeSet<Digest>, CopyError> {
        let able: Vec<_> = holders.iter().copied().filter(|source| source.may_list_referrers()).collect();
        if able.is_empty() {
            return Ok(BTreeSet::new());
        }
        let asking = self.ask(image, &able, async |source| {
            match source.upstream.referrers(&image.repository, subject).await {
                Err(error) if error.is_absence() => {
                    source.lists_no_referrers();
                    Ok(Vec::new())
                }
                listed => listed.map_err(CopyError::Source),
            }
        });
        let (listed, _) = asking.await?;
        Ok(listed.into_iter().map(|descriptor| descriptor.digest).collect())
    }

    /// Copies one. Whether it is at the target now.
    async fn referrer(
        &self,
        repository: &Rc<RepositoryName>,
        digest: &Digest,
        holders: &[&'a Source],
        depth: usize,
    ) -> bool {
        let image = ImageName { repository: (**repository).clone(), reference: Reference::Digest(*digest) };
        let job = Job { repository, image: &image, tag: None, digest: Some(*digest), holders, is_new: false };
        let began = Instant::now();
        let copied = {
            let _permit = self.images.acquire().await;
            if self.stop.is_requested() {
                return false;
            }
            self.copy(&job).await
        };
        match copied {
            Ok(copied) => {
                self.tally.count(|summary| summary.referrers_copied += 1);
                self.tell(Event::ImageDone {
                    image: image.clone(),
                    digest: *digest,
                    outcome: ImageOutcome::Copied,
                    bytes: copied.bytes,
                    elapsed_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
                });
                // In a box, because the future would contain itself.
                let deeper: Pin<Box<dyn Future<Output = ()> + '_>> =
                    Box::pin(self.referrers_of(repository, digest, holders, depth + 1));
                deeper.await;
                true
            }
            Err(error) => {
                if !error.is_stop() {
                    self.failed(&image, &error);
                }
                false
            }
        }
    }

    /// Adds a manifest to the fallback list of its subject, at a target that keeps no list of its own.
    pub(super) async fn list_as_referrer(&self, job: &Job<'_, 'a>, node: &Node) -> Result<(), CopyError> {
        let Some(subject) = &node.subject else { return Ok(()) };
        if job.tag.is_some() && job.tag == fallback_tag(subject).as_ref() {
            // The list itself is what is being copied.
            self.equal.forget(subject);
            return Ok(());
        }
        let _flight = self.fallbacks.enter(subject).await;
        self.retrying(job.image, &self.target.health, async || {
            let mut listed = self.target.fallback(&self.files, job.repository, subject).await?;
            if listed.iter().any(|known| known.digest == node.digest) {
                return Ok(());
            }
            listed.push(node.described.clone());
            let index =
                json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": listed });
            let index = serde_json::to_vec(&index).unwrap_or_default();
            self.target.put_fallback(job.repository, subject, index.into()).await
        })
        .await
    }
}
