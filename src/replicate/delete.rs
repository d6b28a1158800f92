//! Tags that no source has any more, taken from the target.
//!
//! Nothing is removed unless every source gave all its lists, and nothing of a repository for which they were empty or that
//! would be left without a tag: a source that lost its storage looks like one whose images were deleted. If there is more to
//! remove than was allowed, nothing is; nor if anything of the same run failed, since what is to be removed may be the last
//! thing to be had in place of what could not be copied.
//!
//! distribution 2.8 removes no tag, only a manifest with all its tags. That is done only if nothing else in the repository
//! needs the manifest: no tag that stays points at it, and no tag at an index that contains it, however deep. What goes with
//! such an index goes after it.

use std::collections::HashSet;

use super::error::CopyError;
use super::event::{Event, ImageName};
use super::run::Run;
use super::target::{Kind, Target};
use crate::oci::{Digest, Manifest, Reference, RepositoryName, Tag};
use crate::store::StoredRepository;
use crate::upstream::UpstreamError;

/// Tags that a message names.
const SHOWN_MAX: usize = 3;
/// Manifests looked at, at most, to find out whether another one is needed.
const LOOKED_AT_MAX: usize = 10_000;

impl Run<'_> {
    /// Removes what was noted, unless it is too much.
    pub(super) async fn delete_superfluous(&self) {
        let superfluous = self.superfluous.take();
        let Some(max) = self.options.delete_max else { return };
        if superfluous.is_empty() || self.stop.is_requested() {
            return;
        }
        if self.tally.has_failures() {
            let why = format!("not everything could be copied: none of {} is", superfluous.len());
            return self.failed(&"removing tags", &why);
        }
        if superfluous.len() > max {
            let shown: Vec<_> = superfluous.iter().take(SHOWN_MAX).map(ToString::to_string).collect();
            let more = if superfluous.len() > SHOWN_MAX { ", …" } else { "" };
            let why = format!(
                "{} tags would be removed ({}{more}), and at most {max} may be: none is",
                superfluous.len(),
                shown.join(", ")
            );
            return self.failed(&"removing tags", &why);
        }
        let goes: HashSet<ImageName> = superfluous.iter().cloned().collect();
        let mut left = superfluous;
        // What another one of them needs goes after that.
        loop {
            let before = left.len();
            let Some(needed) = self.delete_all(left, &goes).await else { return };
            if needed.is_empty() || needed.len() == before {
                for (image, why) in needed {
                    self.failed(&image, &format!("not removed: {why}"));
                }
                return;
            }
            left = needed.into_iter().map(|(image, _)| image).collect();
        }
    }

    /// Removes each, but for those that something needs, and why. `None`: told to stop.
    async fn delete_all(
        &self,
        images: Vec<ImageName>,
        goes: &HashSet<ImageName>,
    ) -> Option<Vec<(ImageName, String)>> {
        let mut needed = Vec::new();
        for image in images {
            if self.stop.is_requested() {
                return None;
            }
            if !self.options.dry_run {
                let removing =
                    self.retrying(&image, &self.target.health, async || self.delete(&image, goes).await);
                match removing.await {
                    Ok(None) => {}
                    Ok(Some(why)) => {
                        needed.push((image, why));
                        continue;
                    }
                    Err(error) if error.is_stop() => return None,
                    Err(error) => {
                        self.failed(&image, &format!("not removed: {error}"));
                        continue;
                    }
                }
            }
            self.tally.count(|summary| summary.tags_deleted += 1);
            self.tell(Event::Deleted { image });
        }
        Some(needed)
    }

    /// Removes a tag; or says what needs the manifest that would have to go with it.
    async fn delete(
        &self,
        image: &ImageName,
        goes: &HashSet<ImageName>,
    ) -> Result<Option<String>, CopyError> {
        let Reference::Tag(tag) = &image.reference else { return Ok(None) };
        match &self.target.kind {
            Kind::Tree(store) => {
                let removed = store.remove_tag(&StoredRepository::local(&image.repository), tag).await;
                removed.map(|_| None).map_err(|error| self.target.disk("remove a tag", error))
            }
            Kind::Registry { upstream, .. } => {
                match upstream.delete_manifest(&image.repository, &image.reference).await {
                    Err(UpstreamError::Refused { status: 400 | 405, .. }) => {
                        self.delete_manifest(image, tag, goes).await
                    }
                    // It is gone, or there is no such request here.
                    Err(error) if error.is_absence() => self.delete_manifest(image, tag, goes).await,
                    done => done.map(|()| None).map_err(CopyError::Target),
                }
            }
        }
    }

    /// Removes the manifest that a tag points at, if nothing that stays needs it.
    async fn delete_manifest(
        &self,
        image: &ImageName,
        tag: &Tag,
        goes: &HashSet<ImageName>,
    ) -> Result<Option<String>, CopyError> {
        let (repository, target): (_, &Target) = (&image.repository, self.target);
        let Some(digest) = target.tagged(&self.files, repository, tag).await? else { return Ok(None) };
        for other in target.tags(repository).await? {
            let reference = Reference::Tag(other.clone());
            let is_needed = if target.tagged(&self.files, repository, &other).await? == Some(digest) {
                !goes.contains(&ImageName { repository: repository.clone(), reference })
            } else {
                self.needs(repository, &reference, &digest).await?
            };
            if is_needed {
                let why = "the target removes no tags, only manifests";
                return Ok(Some(format!("{why}, and {other} needs this one ({digest})")));
            }
        }
        let Kind::Registry { upstream, .. } = &target.kind else { return Ok(None) };
        let deleted = upstream.delete_manifest(repository, &Reference::Digest(digest)).await;
        deleted.map(|()| None).map_err(CopyError::Target)
    }

    /// Whether a manifest is another one, or contains it.
    async fn needs(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<bool, CopyError> {
        let mut seen: HashSet<Digest> = HashSet::new();
        let mut next = vec![reference.clone()];
        while let Some(reference) = next.pop() {
            let found = self.target.manifest(&self.files, repository, &reference).await?;
            let Some((bytes, media_type)) = found else { continue };
            if Digest::of(digest.algorithm(), &bytes) == *digest {
                return Ok(true);
            }
            // What cannot be read may need anything.
            let Ok(manifest) = Manifest::parse(&bytes, media_type.as_deref()) else { return Ok(true) };
            for child in manifest.manifests {
                if child.digest == *digest || seen.len() >= LOOKED_AT_MAX {
                    return Ok(true);
                }
                if seen.insert(child.digest) {
                    next.push(Reference::Digest(child.digest));
                }
            }
        }
        Ok(false)
    }
}
