//! What of one repository goes: tags first, then manifests, those that need others before these.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::SystemTime;

use super::Stop;
use super::contents::{Choice, Contents, Revision, fallback_tag};
use super::mark::Gone;
use super::sweep::{GcError, Sweeper, Went};
use crate::oci::{Algorithm, Digest, Tag};
use crate::store::StoredRepository;

/// How far it is looked at what a manifest refers to, and that refers to.
const SUBJECTS_MAX: usize = 16;

/// What of one repository goes.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) repository: StoredRepository,
    /// With what they were seen to point at.
    tags: Vec<(Tag, Digest)>,
    /// In this order.
    revisions: Vec<(Digest, Revision)>,
    /// Where each of them is.
    places: HashMap<Digest, usize>,
    /// What manifests are linked under, where it is not their digest.
    names: HashMap<Digest, Digest>,
    /// What manifests that stay name as their blobs.
    kept_blobs: HashSet<Digest>,
}

/// What went, and what of the plan did not.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// What the removed manifests named, and their own digests, with the newest time at which one of those was pushed.
    pub(super) released: BTreeMap<Digest, SystemTime>,
    /// What the others name that were to be removed.
    pub(super) kept: HashSet<Digest>,
}

impl Plan {
    pub(super) fn new(repository: &StoredRepository, mut contents: Contents, choice: &Choice) -> Self {
        let order = contents.parents_first(&choice.revisions);
        let tag = |tag: &Tag| Some((tag.clone(), contents.tags.get(tag)?.current));
        let tags = choice.tags.iter().filter_map(tag).collect();
        let taken = |digest: Digest| contents.revisions.remove(&digest).map(|revision| (digest, revision));
        let revisions: Vec<_> = order.into_iter().filter_map(taken).collect();
        let places = revisions.iter().enumerate().map(|(at, (digest, _))| (*digest, at)).collect();
        let staying = contents.revisions.into_values();
        Self {
            repository: repository.clone(),
            tags,
            revisions,
            places,
            names: contents.names,
            kept_blobs: staying.flat_map(|revision| revision.blobs).collect(),
        }
    }

    /// The same for who sweeps blobs by other means: without what is known of them.
    pub(super) fn without_blobs(mut self) -> Self {
        self.kept_blobs = HashSet::new();
        for (_, revision) in &mut self.revisions {
            revision.blobs = Vec::new();
        }
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tags.is_empty() && self.revisions.is_empty()
    }

    /// The same as something that a look at the tree takes for done.
    pub(super) fn note(&self, gone: &mut Gone) {
        let gone = gone.of(&self.repository);
        gone.tags.extend(self.tags.iter().map(|(tag, _)| tag.clone()));
        gone.revisions.extend(self.revisions.iter().map(|(digest, _)| *digest));
    }

    /// Whether somebody relies on a part of it since it was made, as far as can be seen without locks.
    pub(super) fn is_out_of_date(&self, sweeper: &Sweeper<'_>) -> bool {
        self.revisions.iter().any(|(_, revision)| sweeper.is_relied_on(&revision.target))
    }

    /// The blobs that no manifest of the repository names any more once this is done.
    pub(super) fn orphans(&self) -> BTreeSet<Digest> {
        let blobs = self.revisions.iter().flat_map(|(_, revision)| &revision.blobs);
        blobs.filter(|digest| !self.kept_blobs.contains(digest)).copied().collect()
    }

    /// Whether a manifest that stays names this blob.
    pub(super) fn keeps(&self, digest: &Digest) -> bool {
        self.kept_blobs.contains(digest)
    }

    /// Removes the tags. What those lead to that could not be removed, or were set again meanwhile.
    fn remove_tags(&self, sweeper: &mut Sweeper<'_>) -> HashSet<Digest> {
        let mut stays = HashSet::new();
        let about: HashMap<Tag, &Digest> =
            self.revisions.iter().filter_map(|(digest, _)| Some((fallback_tag(digest)?, digest))).collect();
        for (tag, current) in &self.tags {
            let is_wanted = about.get(tag).is_some_and(|digest| self.is_relied_on(sweeper, digest));
            if is_wanted || !sweeper.tag(&self.repository, tag, current) {
                stays.insert(self.name(current));
            }
        }
        stays
    }

    /// Removes the manifests but for those that stay and what these need.
    fn remove_manifests(&self, sweeper: &mut Sweeper<'_>, mut stays: HashSet<Digest>) -> Carried {
        let mut carried = Carried::default();
        for (digest, revision) in &self.revisions {
            // What refers to a manifest goes before it, and is lost if that stays.
            let is_wanted = |subject| self.is_relied_on(sweeper, subject);
            let went = if stays.contains(digest) || revision.subject.as_ref().is_some_and(is_wanted) {
                Went::Relied
            } else {
                let subject = revision.subject.as_ref();
                sweeper.manifest(&self.repository, digest, &revision.target, subject)
            };
            if matches!(went, Went::Relied | Went::Failed) {
                stays.extend(revision.needs().map(|needed| self.name(needed)));
                carried.kept.extend(revision.named());
                continue;
            }
            for named in revision.named() {
                let newest = carried.released.entry(*named).or_insert(revision.pushed);
                *newest = revision.pushed.max(*newest);
            }
        }
        carried
    }

    /// Whether somebody relies on a manifest of this plan, or on what that refers to, since it was made; as far as can be
    /// seen without locks.
    fn is_relied_on(&self, sweeper: &Sweeper<'_>, digest: &Digest) -> bool {
        let mut next = Some(*digest);
        for _ in 0..SUBJECTS_MAX {
            let Some(name) = next.map(|digest| self.name(&digest)) else { break };
            let Some(at) = self.places.get(&name) else { break };
            let (_, revision) = &self.revisions[*at];
            if sweeper.is_relied_on(&revision.target) {
                return true;
            }
            next = revision.subject;
        }
        false
    }

    /// It is not known what is on disk: nothing that depends on it may follow.
    fn given_up(&self) -> Carried {
        let kept = self.revisions.iter().flat_map(|(_, revision)| revision.named()).copied().collect();
        Carried { released: BTreeMap::new(), kept }
    }

    fn name(&self, digest: &Digest) -> Digest {
        self.names.get(digest).copied().unwrap_or(*digest)
    }
}

/// Does what is planned: all tags, then all manifests, each kind on disk before the next begins. What somebody relies on
/// meanwhile, and what cannot be removed, stays, with all that it needs. What came of each plan.
pub(super) fn carry_out(
    plans: &[Plan],
    sweeper: &mut Sweeper<'_>,
    stop: &Stop,
) -> Result<Vec<Carried>, GcError> {
    let layout = sweeper.layout();
    let mut stay = Vec::with_capacity(plans.len());
    for plan in plans {
        stop.check()?;
        stay.push(plan.remove_tags(sweeper));
    }
    let tagged = plans.iter().filter(|plan| !plan.tags.is_empty());
    if !sweeper.sync(tagged.map(|plan| layout.tags(&plan.repository))) {
        return Ok(plans.iter().map(Plan::given_up).collect());
    }
    let mut carried = Vec::with_capacity(plans.len());
    for (plan, stays) in plans.iter().zip(stay) {
        stop.check()?;
        carried.push(plan.remove_manifests(sweeper, stays));
    }
    let algorithms = |plan: &Plan| {
        let revisions = layout.revisions(&plan.repository);
        Algorithm::ALL.map(|algorithm| revisions.join(algorithm.as_str()))
    };
    if !sweeper.sync(plans.iter().flat_map(algorithms)) {
        return Ok(plans.iter().map(Plan::given_up).collect());
    }
    Ok(carried)
}
