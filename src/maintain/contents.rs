//! What one repository has: its manifests, its tags, and how they need each other; and what of it stays if something goes.
//!
//! A manifest *needs* the manifests that it lists and its subject: while it stays, they stay. Those that have it as their
//! subject are its *referrers* (signatures, attestations): they go with it, unless something else keeps them. Clients
//! that do not know the referrers list keep it in a *fallback tag*, `sha256-<hex>`, which goes with what it is about.
//!
//! Read strictly, as for marking (`mark`): a manifest that cannot be understood could need any other.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::sweep::GcError;
use crate::oci::media_type::{
    DOCKER_LIST, DOCKER_MANIFEST, DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED, OCI_INDEX, OCI_MANIFEST, essence,
};
use crate::oci::{Descriptor, Digest, Tag};
use crate::store::walk::{self, Link, Place, Unknown, WalkError};
use crate::store::{Layout, StoredRepository};

/// How much of a digest's hash a fallback tag holds, in characters (OCI distribution spec 1.1, "Referrers Tag Schema").
const FALLBACK_LEN: usize = 64;

/// Whether a descriptor says that it is one of a manifest.
pub(super) fn is_manifest(descriptor: &Descriptor) -> bool {
    let known =
        [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST, DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED];
    let said = descriptor.media_type.as_deref().map_or("", essence);
    known.iter().any(|known| known.eq_ignore_ascii_case(said))
}

/// A manifest of the repository.
#[derive(Debug)]
pub(super) struct Revision {
    /// Where its link leads; nearly always what it is named by.
    pub(super) target: Digest,
    /// When it was pushed last.
    pub(super) pushed: SystemTime,
    /// When somebody relied on it last: it was pushed, or an index that names it.
    pub(super) relied_on: SystemTime,
    /// When it was pulled last, as far as that was recorded.
    pub(super) pulled: SystemTime,
    pub(super) subject: Option<Digest>,
    children: Vec<Digest>,
    /// Config and layers.
    pub(super) blobs: Vec<Digest>,
}

impl Revision {
    /// What stays while this stays.
    pub(super) fn needs(&self) -> impl Iterator<Item = &Digest> {
        self.children.iter().chain(&self.subject)
    }

    /// Every digest that it names, and its own.
    pub(super) fn named(&self) -> impl Iterator<Item = &Digest> {
        self.blobs.iter().chain(self.needs()).chain([&self.target])
    }
}

/// A tag of the repository.
#[derive(Debug)]
pub(super) struct Tagged {
    /// What it points at.
    pub(super) current: Digest,
    /// What it ever pointed at.
    history: Vec<Digest>,
}

/// What a repository has.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) revisions: BTreeMap<Digest, Revision>,
    pub(super) tags: BTreeMap<Tag, Tagged>,
    /// By their subjects.
    referrers: HashMap<Digest, Vec<Digest>>,
    /// What manifests are linked under, where it is not their digest.
    pub(super) names: HashMap<Digest, Digest>,
}

/// What is to go.
#[derive(Debug, Default)]
pub(super) struct Choice {
    pub(super) tags: BTreeSet<Tag>,
    pub(super) revisions: HashSet<Digest>,
}

impl Contents {
    pub(super) fn read(layout: &Layout, repository: &StoredRepository) -> Result<Self, GcError> {
        let mut contents = Self::default();
        walk::links(&layout.revisions(repository), Unknown::Refused, |place| contents.add(layout, place))?;
        walk::tags(layout, repository, |tag, current| -> Result<(), GcError> {
            let Some(Link { digest: current, .. }) = current else { return Ok(()) };
            let mut history = Vec::new();
            let directory = layout.tag_history(repository, &tag);
            walk::links(&directory, Unknown::Refused, |place| -> Result<(), WalkError> {
                history.extend(place.link()?.map(|link| link.digest));
                Ok(())
            })?;
            contents.tags.insert(tag, Tagged { current, history });
            Ok(())
        })?;
        Ok(contents)
    }

    fn add(&mut self, layout: &Layout, place: &Place<'_>) -> Result<(), GcError> {
        let Some(link) = place.link()? else { return Ok(()) };
        let Some(stored) = walk::manifest(layout, &link.digest)? else {
            // It may have been removed since its link was read.
            return match place.link()? {
                None => Ok(()),
                Some(_) => Err(WalkError::Dangling { path: place.path(), digest: link.digest }.into()),
            };
        };
        let manifest = stored.manifest;
        // What an index lists without calling it a manifest is a blob like a layer (`BuildKit`'s caches).
        let (children, blobs): (Vec<_>, Vec<_>) =
            manifest.manifests.iter().partition(|child| is_manifest(child));
        let blobs = manifest.config.iter().chain(&manifest.layers).chain(blobs);
        let atime = u64::try_from(stored.meta.atime()).unwrap_or(0);
        let revision = Revision {
            target: link.digest,
            pushed: link.modified,
            relied_on: stored.meta.modified().unwrap_or(link.modified),
            pulled: UNIX_EPOCH + Duration::from_secs(atime),
            subject: manifest.subject.map(|subject| subject.digest),
            children: children.into_iter().map(|child| child.digest).collect(),
            blobs: blobs.map(|blob| blob.digest).collect(),
        };
        if let Some(subject) = revision.subject {
            self.referrers.entry(subject).or_default().push(place.digest);
        }
        if revision.target != place.digest {
            self.names.insert(revision.target, place.digest);
        }
        self.revisions.insert(place.digest, revision);
        Ok(())
    }

    /// What a manifest is linked under here; `None` if it is not.
    pub(super) fn named(&self, digest: &Digest) -> Option<Digest> {
        if self.revisions.contains_key(digest) {
            return Some(*digest);
        }
        self.names.get(digest).copied()
    }

    /// Those that need it.
    pub(super) fn parents(&self, digest: &Digest) -> impl Iterator<Item = &Digest> {
        let needs = move |revision: &Revision| {
            revision.needs().any(|needed| self.named(needed).as_ref() == Some(digest))
        };
        self.revisions.iter().filter(move |(_, revision)| needs(revision)).map(|(digest, _)| digest)
    }

    /// Everything goes.
    pub(super) fn everything(&self) -> Choice {
        Choice {
            tags: self.tags.keys().cloned().collect(),
            revisions: self.revisions.keys().copied().collect(),
        }
    }

    /// A tag goes, with all that it points at or ever did, their children and referrers, except for what something that stays
    /// needs, or another tag points at or ever did.
    pub(super) fn tag(&self, tag: &Tag) -> Choice {
        let Some(tagged) = self.tags.get(tag) else { return Choice::default() };
        let asked_for: Vec<_> = tagged.all().filter_map(|digest| self.named(digest)).collect();
        self.asked_for(&asked_for, BTreeSet::from([tag.clone()]), Tagged::all)
    }

    /// A manifest goes, with the tags that point at it, its children and referrers, except for what something that stays
    /// needs. If that is itself, it is not in the choice.
    pub(super) fn manifest(&self, digest: &Digest) -> Choice {
        let points = |tagged: &Tagged| self.named(&tagged.current).as_ref() == Some(digest);
        let tags: BTreeSet<_> =
            self.tags.iter().filter(|(_, tagged)| points(tagged)).map(|(tag, _)| tag.clone()).collect();
        self.asked_for(&[*digest], tags, |tagged| {
            tagged.all().filter(|held| self.named(held).as_ref() != Some(digest))
        })
    }

    /// What goes with what was asked for; `held` says what a tag that stays keeps.
    fn asked_for<'a, I: Iterator<Item = &'a Digest>>(
        &'a self,
        asked_for: &[Digest],
        tags: BTreeSet<Tag>,
        held: impl Fn(&'a Tagged) -> I,
    ) -> Choice {
        let candidates = self.closure(asked_for, |digest, revision| {
            let mut next = revision.children.clone();
            next.extend(self.referrers.get(digest).into_iter().flatten());
            next.extend(self.fallback(digest).into_iter().flat_map(|(_, tagged)| tagged.all()));
            next
        });
        let about: HashSet<_> = candidates.iter().filter_map(fallback_tag).collect();
        let other_tags = self.tags.iter().filter(|(tag, _)| !tags.contains(tag) && !about.contains(tag));
        let mut roots: Vec<_> = other_tags.flat_map(|(_, tagged)| held(tagged).copied()).collect();
        roots.extend(self.revisions.keys().filter(|digest| !candidates.contains(digest)));
        let stays = self.staying(&roots, &tags, &asked_for.iter().copied().collect());
        self.rest(&stays, tags)
    }

    /// What no tag reaches goes, if it is not `young`.
    pub(super) fn untagged(&self, young: impl Fn(&Revision) -> bool) -> Choice {
        self.untagged_but(&Choice::default(), young)
    }

    fn untagged_but(&self, gone: &Choice, young: impl Fn(&Revision) -> bool) -> Choice {
        let about: HashSet<_> = self.revisions.keys().filter_map(fallback_tag).collect();
        let kept = self.tags.iter().filter(|(tag, _)| !about.contains(tag) && !gone.tags.contains(tag));
        let mut roots: Vec<_> = kept.map(|(_, tagged)| tagged.current).collect();
        let young = self.revisions.iter().filter(|(_, revision)| young(revision));
        roots.extend(young.map(|(digest, _)| *digest));
        let stays = self.staying(&roots, &BTreeSet::new(), &HashSet::new());
        self.rest(&stays, BTreeSet::new())
    }

    /// What is `expired` goes with its tags, unless something that is not needs it, or it refers to what stays; and, if
    /// `untagged` is given, what no tag reaches then and is not young by that.
    pub(super) fn expired(
        &self,
        expired: impl Fn(&Revision) -> bool,
        untagged: Option<&dyn Fn(&Revision) -> bool>,
    ) -> Choice {
        let current = self.revisions.iter().filter(|(_, revision)| !expired(revision));
        let roots: Vec<_> = current.map(|(digest, _)| *digest).collect();
        let stays = self.staying(&roots, &BTreeSet::new(), &HashSet::new());
        let mut choice = self.rest(&stays, BTreeSet::new());
        if let Some(young) = untagged {
            let more = self.untagged_but(&choice, young);
            choice.tags.extend(more.tags);
            choice.revisions.extend(more.revisions);
        }
        choice
    }

    /// What stays because `roots` stay: all that they need, and what refers to it; but not what was `asked_for` and only
    /// refers, nor for the sake of `tags`.
    fn staying(
        &self,
        roots: &[Digest],
        tags: &BTreeSet<Tag>,
        asked_for: &HashSet<Digest>,
    ) -> HashSet<Digest> {
        self.closure(roots, |digest, revision| {
            let mut next: Vec<_> = revision.needs().copied().collect();
            let referrers = self.referrers.get(digest).into_iter().flatten();
            next.extend(referrers.filter(|referrer| !asked_for.contains(referrer)));
            let fallback = self.fallback(digest).filter(|(tag, _)| !tags.contains(tag));
            next.extend(fallback.into_iter().flat_map(|(_, tagged)| tagged.all()));
            next
        })
    }

    /// The manifests that are reached from `roots` by `next`.
    fn closure(&self, roots: &[Digest], next: impl Fn(&Digest, &Revision) -> Vec<Digest>) -> HashSet<Digest> {
        let mut reached = HashSet::new();
        let mut todo = roots.to_vec();
        while let Some(digest) = todo.pop() {
            if let Some(name) = self.named(&digest)
                && let Some(revision) = self.revisions.get(&name)
                && reached.insert(name)
            {
                todo.extend(next(&name, revision));
            }
        }
        reached
    }

    /// All but what stays; with `tags`, and those that would lead to nothing.
    fn rest(&self, stays: &HashSet<Digest>, mut tags: BTreeSet<Tag>) -> Choice {
        let revisions: HashSet<_> =
            self.revisions.keys().filter(|digest| !stays.contains(digest)).copied().collect();
        for (tag, tagged) in &self.tags {
            if self.named(&tagged.current).is_some_and(|name| revisions.contains(&name)) {
                tags.insert(tag.clone());
            }
        }
        tags.extend(revisions.iter().filter_map(|digest| Some(self.fallback(digest)?.0.clone())));
        Choice { tags, revisions }
    }

    /// The fallback tag about a manifest, if there is one.
    fn fallback(&self, digest: &Digest) -> Option<(&Tag, &Tagged)> {
        self.tags.get_key_value(&fallback_tag(digest)?)
    }

    /// These manifests, those that need others before these.
    pub(super) fn parents_first(&self, chosen: &HashSet<Digest>) -> Vec<Digest> {
        let mut order = Vec::with_capacity(chosen.len());
        let mut seen = HashSet::new();
        for root in self.revisions.keys().filter(|digest| chosen.contains(digest)) {
            // On the way down a manifest is met, on the way up, after all that it needs, it is put into the list.
            let mut todo = vec![(*root, false)];
            while let Some((digest, is_done)) = todo.pop() {
                if is_done {
                    order.push(digest);
                } else if chosen.contains(&digest) && seen.insert(digest) {
                    todo.push((digest, true));
                    let needs = self.revisions.get(&digest).into_iter().flat_map(Revision::needs);
                    todo.extend(needs.filter_map(|needed| self.named(needed)).map(|name| (name, false)));
                }
            }
        }
        order.reverse();
        order
    }
}

impl Tagged {
    /// What it points at, and ever did.
    pub(super) fn all(&self) -> impl Iterator<Item = &Digest> {
        self.history.iter().chain([&self.current])
    }
}

/// The tag that clients keep a manifest's referrers in where a registry has no list of them.
pub(super) fn fallback_tag(digest: &Digest) -> Option<Tag> {
    let hex = digest.hex();
    let hex = hex.get(..FALLBACK_LEN).unwrap_or(&hex);
    format!("{}-{hex}", digest.algorithm()).parse().ok()
}

#[cfg(test)]
mod tests;
