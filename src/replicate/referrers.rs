//! What refers to an image: signatures, attestations, SBOMs, found by the source's list of referrers.
//!
//! They come and go while the image stays as it is, and one that could not be copied is missing beside an image that is
//! whole. So each run asks for those of every manifest, of an index's children and of referrers too, whether anything was
//! copied or not.
//!
//! Where a source has no such list, the fallback tags of its clients are copied as tags are (see `repository`). Where the
//! target has none, the fallback tag is kept here, as the specification asks of clients (OCI distribution spec 1.1,
//! "Pushing Manifests with Subject").

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::pin::Pin;
use std::rc::Rc;

use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use super::error::CopyError;
use super::event::{Event, ImageName, ImageOutcome};
use super::flights::Flight;
use super::image::{Job, Node};
use super::run::Run;
use super::source::Source;
use super::target::{Put, fallback_tag};
use crate::oci::media_type::{DOCKER_LIST, OCI_INDEX};
use crate::oci::{Algorithm, Digest, Manifest, Reference, RepositoryName, Tag};
use crate::store::LinkKind;

/// How far referrers of referrers are followed; that there are more is a failure.
const DEPTH_MAX: usize = 8;
/// Lists of which it is remembered that they were equal: 50,000 take about 15 MiB.
const EQUAL_MAX: usize = 50_000;
/// How long that is believed: what somebody removed from the target comes back after so long.
const EQUAL_FOR: Duration = Duration::from_hours(1);
/// Indexes of which it is remembered what they contain: 10,000 of ten take about 10 MiB.
const DESCENDANTS_MAX: usize = 10_000;
/// Indexes in one image of which it is looked at what they contain.
const INDEXES_MAX: usize = 100;

/// A manifest in a repository: what refers to it in another one is another list.
type Place = (RepositoryName, Digest);

/// What the target was seen to have, so that later runs need not ask it again.
#[derive(Debug, Default)]
pub(super) struct Equal {
    /// The lists of referrers of which it has all.
    lists: RefCell<HashMap<Place, BTreeSet<Digest>>>,
    /// Since when.
    since: Cell<Option<Instant>>,
    /// What its indexes contain, which never changes.
    descendants: RefCell<HashMap<Place, Vec<Digest>>>,
}

impl Equal {
    /// What was seen too long ago is looked at again.
    pub(super) fn begin_run(&self) {
        if self.since.get().is_none_or(|since| since.elapsed() >= EQUAL_FOR) {
            self.since.set(Some(Instant::now()));
            self.lists.borrow_mut().clear();
        }
    }

    fn descendants(&self, index: &Place) -> Option<Vec<Digest>> {
        self.descendants.borrow().get(index).cloned()
    }

    fn note_descendants(&self, index: Place, found: &[Digest]) {
        let mut known = self.descendants.borrow_mut();
        if known.len() < DESCENDANTS_MAX {
            known.insert(index, found.to_vec());
        }
    }

    fn has(&self, place: &Place, listed: &BTreeSet<Digest>) -> bool {
        self.lists.borrow().get(place).is_some_and(|known| known == listed)
    }

    fn note(&self, place: Place, listed: BTreeSet<Digest>) {
        let mut known = self.lists.borrow_mut();
        if known.len() < EQUAL_MAX || known.contains_key(&place) {
            known.insert(place, listed);
        }
    }

    /// Something else was written over what the target had.
    fn forget(&self, place: &Place) {
        self.lists.borrow_mut().remove(place);
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
        let place = ((**repository).clone(), *subject);
        if depth >= DEPTH_MAX {
            let why = format!("they refer to each other more than {DEPTH_MAX} deep: the rest is left out");
            return self.failed(&format!("the referrers of {image}"), &why);
        }
        let there: HashSet<Digest> = if self.equal.has(&place, &listed) {
            listed.iter().copied().collect()
        } else {
            let asking = self.retrying(&image, &self.target.health, async || {
                self.target.referrers(&self.files, repository, subject).await
            });
            match asking.await {
                Ok(there) => there.into_iter().collect(),
                Err(error) if error.is_stop() => return,
                Err(error) => return self.failed(&format!("the referrers of {image}"), &error),
            }
        };
        let mut is_equal = true;
        for referrer in &listed {
            if there.contains(referrer) {
                // What refers to it may have come since, or have failed when it was copied.
                self.deeper(repository, referrer, holders, depth).await;
            } else {
                is_equal &= self.referrer(repository, referrer, holders, depth).await;
            }
        }
        if is_equal && !self.options.dry_run {
            self.equal.note(place, listed);
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
                listed => listed.inspect(|_| source.lists_referrers()).map_err(CopyError::Source),
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
                self.deeper(repository, digest, holders, depth).await;
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

    /// What refers to one that refers. In a box, because the future would contain itself.
    fn deeper<'s>(
        &'s self,
        repository: &'s Rc<RepositoryName>,
        digest: &'s Digest,
        holders: &'s [&'a Source],
        depth: usize,
    ) -> Pin<Box<dyn Future<Output = ()> + 's>> {
        Box::pin(self.referrers_of(repository, digest, holders, depth + 1))
    }

    /// What an index that the target has contains, as far as it is selected, however deep.
    pub(super) async fn descendants(
        &self,
        repository: &RepositoryName,
        index: &Digest,
    ) -> Result<Vec<Digest>, CopyError> {
        let place = (repository.clone(), *index);
        if let Some(known) = self.equal.descendants(&place) {
            return Ok(known);
        }
        let (mut found, mut next, mut looked_at) = (Vec::new(), vec![*index], 0);
        while let Some(digest) = next.pop() {
            looked_at += 1;
            if looked_at > INDEXES_MAX {
                return Err(CopyError::Unfit(format!("it consists of more than {INDEXES_MAX} indexes")));
            }
            let reference = Reference::Digest(digest);
            let image = ImageName { repository: repository.clone(), reference: reference.clone() };
            let Some((bytes, media_type)) = self.at_target(&image, &reference).await? else { continue };
            // What cannot be read has been copied as it is.
            let Ok(manifest) = Manifest::parse(&bytes, media_type.as_deref()) else { continue };
            let indexes = manifest.manifests.iter().filter(|child| {
                child.media_type.as_deref().is_some_and(|kind| matches!(kind, OCI_INDEX | DOCKER_LIST))
            });
            let indexes: HashSet<Digest> = indexes.map(|child| child.digest).collect();
            let chosen = self.chosen(&manifest);
            next.extend(chosen.iter().filter(|child| indexes.contains(child)));
            found.extend(chosen);
        }
        self.equal.note_descendants(place, &found);
        Ok(found)
    }

    /// Pushes the list of a manifest's referrers that a source has under a fallback tag. What the target's list has beyond
    /// it stays: it is what was signed there, or came from elsewhere.
    pub(super) async fn put_list(&self, job: &Job<'_, 'a>, node: &Node, tag: &Tag) -> Result<Put, CopyError> {
        let _list = self.enter_list(job, Some(tag)).await;
        let reference = Reference::Tag(tag.clone());
        let there = self.at_target(job.image, &reference).await?;
        let more = match (there, children(&node.bytes)) {
            (Some((theirs, _)), Some(ours)) => {
                let Some(theirs) = children(&theirs) else {
                    // Written over, it would be lost.
                    let why = format!("what the target has under {tag} is no list of referrers");
                    return Err(CopyError::Unfit(why));
                };
                let ours: HashSet<Digest> = ours.into_iter().map(|(digest, _)| digest).collect();
                theirs.into_iter().filter(|(digest, _)| !ours.contains(digest)).collect()
            }
            _ => Vec::new(),
        };
        let mut kept = Vec::new();
        for (digest, descriptor) in more {
            let has = self.retrying(job.image, &self.target.health, async || {
                self.target.has_manifest(&self.files, job.repository, &digest).await
            });
            if has.await? {
                kept.push((digest, descriptor));
            }
        }
        match joined(node, kept) {
            Some(joined) => self.put(job, &joined, Some(tag)).await,
            None => self.put(job, node, Some(tag)).await,
        }
    }

    /// The right to change the list under a fallback tag.
    async fn enter_list(&self, job: &Job<'_, 'a>, tag: Option<&Tag>) -> Flight<'_> {
        let name = format!("{}:{}", job.repository, tag.map(Tag::as_str).unwrap_or_default());
        self.fallbacks.enter(&Digest::of(Algorithm::Sha256, name.as_bytes())).await
    }

    /// Adds a manifest to the fallback list of its subject, at a target that keeps no list of its own.
    pub(super) async fn list_as_referrer(&self, job: &Job<'_, 'a>, node: &Node) -> Result<(), CopyError> {
        let Some(subject) = &node.subject else { return Ok(()) };
        if job.tag.is_some() && job.tag == fallback_tag(subject).as_ref() {
            // The list itself is what is being copied.
            self.equal.forget(&((**job.repository).clone(), *subject));
            return Ok(());
        }
        let _list = self.enter_list(job, fallback_tag(subject).as_ref()).await;
        self.retrying(job.image, &self.target.health, async || {
            let mut listed = self.target.fallback(&self.files, job.repository, subject).await?;
            if listed.iter().any(|known| known.digest == node.digest) {
                return Ok(());
            }
            listed.push(node.described.clone());
            let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed });
            let index = serde_json::to_vec(&index).unwrap_or_default();
            self.target.put_fallback(job.repository, subject, index.into()).await
        })
        .await
    }
}

/// The manifests in an index, with their descriptors as they are written. `None`: it is no index.
fn children(index: &[u8]) -> Option<Vec<(Digest, Value)>> {
    let index: Value = serde_json::from_slice(index).ok()?;
    let listed = index.get("manifests")?.as_array()?;
    let digest = |one: &Value| one.get("digest")?.as_str()?.parse().ok();
    listed.iter().map(|one| Some((digest(one)?, one.clone()))).collect()
}

/// An index with more in it; `None` if there is no more.
fn joined(node: &Node, more: Vec<(Digest, Value)>) -> Option<Node> {
    if more.is_empty() {
        return None;
    }
    let mut index: Value = serde_json::from_slice(&node.bytes).ok()?;
    let listed = index.get_mut("manifests")?.as_array_mut()?;
    let mut joined = node.clone();
    for (digest, descriptor) in more {
        listed.push(descriptor);
        joined.needed.push((LinkKind::Manifest, digest));
    }
    joined.bytes = serde_json::to_vec(&index).ok()?.into();
    joined.digest = Digest::of(node.digest.algorithm(), &joined.bytes);
    Some(joined)
}
