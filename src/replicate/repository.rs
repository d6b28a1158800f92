//! One repository: its tags at the sources and at the target, compared.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::rc::Rc;

use futures_util::{StreamExt, future, stream};
use tokio::time::Instant;

use super::error::CopyError;
use super::event::{Event, ImageName, ImageOutcome};
use super::image::Job;
use super::run::Run;
use super::select::belongs_to_digest;
use super::source::{Holders, Source};
use super::target::fallback_tag;
use crate::oci::manifest::Kind;
use crate::oci::media_type::{DOCKER_LIST, DOCKER_SCHEMA1_SIGNED, OCI_INDEX};
use crate::oci::{Algorithm, Digest, Manifest, Reference, RepositoryName, Tag};
use crate::upstream::{ManifestHead, UpstreamError};

/// Tags of one repository under way at once; the run's own bounds hold beside it.
const TAGS_AT_ONCE: usize = 16;
/// How often tags are looked for that belong to digests found in the round before: a signature's own signature.
const COMPANION_ROUNDS: usize = 3;

/// One repository in a run.
struct Repository<'a> {
    name: Rc<RepositoryName>,
    /// The tags that the sources have, with the sources that have them.
    tags: BTreeMap<Tag, Holders<'a>>,
    /// The tags that the target has.
    there: BTreeSet<Tag>,
    /// Whether a tag of the sources that is not selected belongs to a digest.
    has_companions: bool,
    /// Manifests that were found or brought.
    digests: RefCell<HashSet<Digest>>,
}

/// What a look at a tag found.
enum Look {
    /// The target has it; an index, as far as the media type tells.
    Equal { digest: Digest, is_index: bool },
    /// It does not, or another; what the source has, if that was asked.
    Different(Option<Digest>),
}

impl<'a> Run<'a> {
    /// Brings the target's repository up to date. Whatever fails is told.
    pub(super) async fn repository(&self, name: Rc<RepositoryName>, holders: Holders<'a>, is_whole: bool) {
        let Some((tags, is_whole)) = self.source_tags(&name, &holders, is_whole).await else { return };
        for tag in self.selection.named_tags(&name).iter().filter(|tag| is_whole && !tags.contains_key(*tag))
        {
            self.tally.count(|summary| summary.images_failed += 1);
            self.failed(&format!("{name}:{tag}"), &"no source has such a tag");
        }
        let what = format!("the tags of {name} at the target");
        let listed = self.retrying(&what, &self.target.health, async || self.target.tags(&name).await);
        let there = match listed.await {
            Ok(there) => there.into_iter().collect(),
            Err(error) if error.is_stop() => return,
            Err(error) => return self.failed(&name, &error),
        };
        let selected = self.selection.tags(&name, tags.keys().cloned().collect());
        self.tally.count(|summary| summary.repositories += 1);
        self.tell(Event::Repository { repository: (*name).clone(), tags: selected.len() });
        let chosen: HashSet<&Tag> = selected.iter().collect();
        let has_companions = tags.keys().any(|tag| !chosen.contains(tag) && belongs_to_digest(tag.as_str()));
        let repository = Repository { name, tags, there, has_companions, digests: RefCell::default() };
        let brings_some = !selected.is_empty();
        self.tags(&repository, &selected).await;
        if self.options.referrers {
            self.companions(&repository, selected).await;
        }
        if is_whole && self.options.delete_max.is_some() && !repository.tags.is_empty() {
            self.note_superfluous(&repository, brings_some);
        }
    }

    /// The tags that the sources have, and whether all of them said so. `None`: told to stop, or there is nothing.
    async fn source_tags(
        &self,
        name: &RepositoryName,
        holders: &[&'a Source],
        mut is_whole: bool,
    ) -> Option<(BTreeMap<Tag, Holders<'a>>, bool)> {
        let lists = holders.iter().map(|source| async move {
            let what = format!("the tags of {name} at {}", source.name());
            let asking = self.retrying(&what, &source.health, async || {
                source.upstream.tags(name).await.map_err(CopyError::Source)
            });
            (*source, asking.await)
        });
        let mut tags: BTreeMap<Tag, Holders<'a>> = BTreeMap::new();
        let (mut absent, mut empty, mut missing) = (0, 0, None);
        for (source, list) in future::join_all(lists).await {
            match list {
                Ok(list) => {
                    empty += usize::from(list.is_empty());
                    for tag in list {
                        tags.entry(tag).or_default().push(source);
                    }
                }
                Err(error) if error.is_stop() => return None,
                Err(error) if error.is_absence() => {
                    absent += 1;
                    missing = Some(error);
                }
                Err(error) => {
                    is_whole = false;
                    self.failed(name, &error);
                }
            }
        }
        // distribution's catalog has repositories that its tag lists do not know: those without a manifest. But what was
        // asked for by name is to be there.
        if absent == holders.len() && self.selection.named_repositories().contains(name) {
            self.failed(name, &missing.unwrap_or(CopyError::Stopped));
        }
        // One that has the repository and none of its tags beside one that has some may have lost them.
        if absent + empty > 0 {
            is_whole = false;
            tracing::debug!(%name, absent, empty, "sources without its tags: none is removed");
        }
        Some((tags, is_whole))
    }

    async fn tags(&self, repository: &Repository<'a>, tags: &[Tag]) {
        let work = tags.iter().map(|tag| async move {
            let image =
                ImageName { repository: (*repository.name).clone(), reference: Reference::Tag(tag.clone()) };
            if self.stop.is_requested() {
                return;
            }
            match self.tag(repository, tag, &image).await {
                Err(error) if !error.is_stop() => {
                    self.tally.count(|summary| summary.images_failed += 1);
                    self.failed(&image, &error);
                }
                _ => {}
            }
        });
        stream::iter(work).buffer_unordered(TAGS_AT_ONCE).collect::<()>().await;
    }

    /// What belongs to images by the names of its tags, where no list of referrers tells it: `sha256-<hex>`, the list that
    /// clients keep themselves, and `sha256-<hex>.sig` and the like, which older signing tools use. It comes with its
    /// images, whatever patterns say.
    async fn companions(&self, repository: &Repository<'a>, selected: Vec<Tag>) {
        let mut done: HashSet<Tag> = selected.into_iter().collect();
        for _ in 0..COMPANION_ROUNDS {
            let names: HashSet<_> = repository
                .digests
                .borrow()
                .iter()
                .filter_map(fallback_tag)
                .map(|tag| tag.to_string())
                .collect();
            let belongs = |tag: &&Tag| {
                let name = tag.as_str().split('.').next().unwrap_or_default();
                names.contains(name) && !done.contains(*tag)
            };
            let found: Vec<Tag> = repository.tags.keys().filter(belongs).cloned().collect();
            if found.is_empty() {
                return;
            }
            self.tags(repository, &found).await;
            done.extend(found);
        }
    }

    async fn tag(&self, repository: &Repository<'a>, tag: &Tag, image: &ImageName) -> Result<(), CopyError> {
        let Some(holders) = repository.tags.get(tag) else { return Ok(()) };
        let is_there = repository.there.contains(tag);
        let look = if is_there {
            let _look = self.looks.acquire().await;
            self.look(repository, tag, image, holders).await?
        } else {
            Look::Different(None)
        };
        let name = &repository.name;
        match look {
            Look::Equal { digest, is_index } => {
                self.tally.count(|summary| summary.images_present += 1);
                self.tell(Event::ImageDone {
                    image: image.clone(),
                    digest,
                    outcome: ImageOutcome::Present,
                    bytes: 0,
                    elapsed_ms: 0,
                });
                self.refer(repository, &[digest], holders).await;
                // What is said of its children may have come since, or have failed when the index was copied.
                let is_asked =
                    repository.has_companions || holders.iter().any(|one| one.may_list_referrers());
                if self.options.referrers && is_index && is_asked && !is_fallback(tag) {
                    match self.descendants(name, &digest).await {
                        Ok(found) => self.refer(repository, &found, holders).await,
                        Err(error) if error.is_stop() => {}
                        Err(error) => self.failed(&format!("the referrers of {image}"), &error),
                    }
                }
                Ok(())
            }
            Look::Different(digest) => {
                let permit = self.images.acquire().await;
                if self.stop.is_requested() {
                    return Err(CopyError::Stopped);
                }
                let outcome = if is_there { ImageOutcome::Updated } else { ImageOutcome::Copied };
                let job = Job {
                    repository: name,
                    image,
                    tag: Some(tag),
                    digest,
                    holders,
                    is_new: repository.there.is_empty(),
                };
                let began = Instant::now();
                let copied = self.copy(&job).await?;
                self.tally.count(|summary| match outcome {
                    ImageOutcome::Updated => summary.images_updated += 1,
                    _ => summary.images_copied += 1,
                });
                self.tell(Event::ImageDone {
                    image: image.clone(),
                    digest: copied.digest,
                    outcome,
                    bytes: copied.bytes,
                    elapsed_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
                });
                drop(permit);
                self.refer(repository, &copied.digests, holders).await;
                Ok(())
            }
        }
    }

    /// Copies what refers to manifests, to each once, by however many tags it is found.
    async fn refer(&self, repository: &Repository<'a>, digests: &[Digest], holders: &[&'a Source]) {
        for digest in digests {
            let is_new = repository.digests.borrow_mut().insert(*digest);
            if is_new {
                self.referrers_of(&repository.name, digest, holders, 0).await;
            }
        }
    }

    /// Asks both sides what a tag is.
    async fn look(
        &self,
        repository: &Repository<'a>,
        tag: &Tag,
        image: &ImageName,
        holders: &[&'a Source],
    ) -> Result<Look, CopyError> {
        let name = &*repository.name;
        let there = self
            .retrying(image, &self.target.health, async || self.target.tagged(&self.files, name, tag).await);
        let wanted = self.ask(image, holders, async |source| head(source, name, &image.reference).await);
        let (there, wanted) = tokio::join!(there, wanted);
        let (ManifestHead { digest, media_type, .. }, source) = wanted?;
        let (Some(there), Some(digest)) = (there?, digest) else { return Ok(Look::Different(digest)) };
        let is_equal = there == digest
            || ((media_type.as_deref() == Some(DOCKER_SCHEMA1_SIGNED)
                || there.algorithm() != digest.algorithm())
                && self.is_named_as(source, image, &there).await?)
            || (is_fallback(tag) && self.covers_fallback(source, image).await?);
        if is_equal && self.is_whole(image, &there).await? {
            let kind = media_type.as_deref().map(|kind| kind.split(';').next().unwrap_or_default().trim());
            let is_index = kind.is_none_or(|kind| matches!(kind, OCI_INDEX | DOCKER_LIST));
            return Ok(Look::Equal { digest: there, is_index });
        }
        Ok(Look::Different(Some(digest)))
    }

    /// Whether a manifest that the source names otherwise is the one that the target has under the digest of its bytes: a
    /// signed one of schema 1, which is named by its payload, or one named by another algorithm.
    async fn is_named_as(
        &self,
        source: &'a Source,
        image: &ImageName,
        there: &Digest,
    ) -> Result<bool, CopyError> {
        let (fetched, _) = self.fetch(image, &[source], &image.reference).await?;
        Ok(Digest::of(there.algorithm(), &fetched.bytes) == *there)
    }

    /// Whether the target's list of referrers under a fallback tag has all that the source's has: it may have more, since
    /// it also has what the source lists otherwise.
    async fn covers_fallback(&self, source: &'a Source, image: &ImageName) -> Result<bool, CopyError> {
        let children = |bytes: &[u8], kind: Option<&str>| -> Option<HashSet<Digest>> {
            let index = Manifest::parse(bytes, kind).ok().filter(|index| index.kind == Kind::Index)?;
            Some(index.manifests.iter().map(|child| child.digest).collect())
        };
        let (ours, _) = self.fetch(image, &[source], &image.reference).await?;
        let there = self.at_target(image, &image.reference).await?;
        let Some((bytes, kind)) = there else { return Ok(false) };
        let (wanted, there) =
            (children(&ours.bytes, ours.media_type.as_deref()), children(&bytes, kind.as_deref()));
        Ok(wanted.zip(there).is_some_and(|(wanted, there)| wanted.is_subset(&there)))
    }

    /// Notes what may be removed, if something stays: a tag that was there, or one that was brought.
    fn note_superfluous(&self, repository: &Repository<'a>, brings_some: bool) {
        let own = repository.there.iter().filter(|tag| !is_fallback(tag));
        let (superfluous, stays): (Vec<&Tag>, Vec<&Tag>) = own.partition(|tag| {
            !repository.tags.contains_key(*tag) && self.selection.tag(&repository.name, tag)
        });
        if stays.is_empty() && !brings_some {
            return;
        }
        self.superfluous.borrow_mut().extend(superfluous.into_iter().map(|tag| ImageName {
            repository: (*repository.name).clone(),
            reference: Reference::Tag(tag.clone()),
        }));
    }
}

/// What a source says of a tag. Some registries do not answer HEAD, or not as the specification says: GET settles it.
async fn head(
    source: &Source,
    name: &RepositoryName,
    reference: &Reference,
) -> Result<ManifestHead, CopyError> {
    match source.upstream.manifest_head(name, reference).await {
        Ok(head) if head.digest.is_some() => return Ok(head),
        Ok(_) | Err(UpstreamError::Unexpected { .. } | UpstreamError::Malformed { .. }) => {}
        Err(error) => return Err(CopyError::Source(error)),
    }
    let fetched = source.upstream.manifest(name, reference).await.map_err(CopyError::Source)?;
    let length = Some(fetched.bytes.len() as u64);
    Ok(ManifestHead { digest: Some(fetched.digest), media_type: fetched.media_type, length })
}

/// Whether clients keep a list of referrers under this tag.
pub(super) fn is_fallback(tag: &Tag) -> bool {
    let Some((algorithm, hex)) = tag.as_str().split_once('-') else { return false };
    Algorithm::from_name(algorithm).is_some()
        && hex.len() == 64
        && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fallback_tags() {
        for algorithm in Algorithm::ALL {
            let tag = fallback_tag(&Digest::of(algorithm, b"")).unwrap();
            assert!(is_fallback(&tag), "{tag}");
            assert!(!is_fallback(&format!("{tag}.sig").parse().unwrap()));
        }
        for other in ["latest", "sha256-abc", "md5-0", "1.0"] {
            assert!(!is_fallback(&other.parse().unwrap()), "{other}");
        }
    }
}
