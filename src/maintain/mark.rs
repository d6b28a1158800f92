//! What a tree refers to: the digests that must not be removed, found by a look at every repository.
//!
//! **What counts.** Every manifest that a repository links and every tag's current one, with all that they name: config,
//! layers (foreign ones too, should they be there), the manifests of lists and indexes, recursively, and the subject. What
//! an index lists without calling it a manifest (`BuildKit`'s caches) is marked and not read. A child or a subject need not
//! be there; once it is there it counts with all that it names. A layer's link may lead to another digest than its name
//! says; then both are marked. The signatures that distribution before 2.3 kept beside a schema 1 manifest count as the
//! manifest does.
//!
//! **It is all or nothing**: what cannot be read or understood ends the look with an error, and then nothing may be removed.
//!
//! **Memory.** The marked digests are kept as 64-bit fingerprints under a key that is chosen at random for each run: 8 bytes
//! in a table that is between 7/16 and 7/8 full, so 10 to 21 bytes for each digest, half as much again while it grows. Two
//! digests with one fingerprint only keep garbage until the next run, and nobody who pushes can choose them. The manifests
//! that were read are kept whole (80 to 160 bytes each), since here a confusion would lose what a manifest names. With
//! 10,000 images of ten layers that makes 29 bytes for each of 120,000 digests. There is no list of what could be removed:
//! whoever sweeps walks over the blobs and asks.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::SystemTime;

use super::Stop;
use super::contents::is_manifest;
use super::fingerprints::Fingerprints;
use super::sweep::GcError;
use crate::oci::{Algorithm, Digest, Manifest, Tag};
use crate::store::walk::{self, Place, Unknown, WalkError};
use crate::store::{Layout, StoredRepository};

/// What is to be taken for removed already, though it may be on disk.
#[derive(Debug, Default)]
pub(super) struct Gone(HashMap<StoredRepository, GoneOf>);

/// What of one repository is to be taken for removed.
#[derive(Debug, Default)]
pub(super) struct GoneOf {
    pub(super) revisions: HashSet<Digest>,
    pub(super) tags: HashSet<Tag>,
}

impl Gone {
    pub(super) fn of(&mut self, repository: &StoredRepository) -> &mut GoneOf {
        self.0.entry(repository.clone()).or_default()
    }

    fn revision(&self, repository: &StoredRepository, digest: &Digest) -> bool {
        self.0.get(repository).is_some_and(|gone| gone.revisions.contains(digest))
    }

    fn tag(&self, repository: &StoredRepository, tag: &Tag) -> bool {
        self.0.get(repository).is_some_and(|gone| gone.tags.contains(tag))
    }
}

/// The digests that looks have found so far.
#[derive(Debug, Default)]
pub(super) struct Marks {
    marked: Fingerprints,
    /// Those that nothing refers to and a repository was given lately.
    young: Fingerprints,
    /// Manifests that were read, all they name being marked.
    read: HashSet<Digest>,
}

/// Why a digest is looked at, and so what is expected of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Named {
    /// By an index or a tag as a manifest; need not be there.
    Manifest,
    /// As a subject; need not be there, nor a manifest.
    Subject,
}

impl Marks {
    /// Looks at all repositories once; adds, and never takes away. Links to blobs that nothing refers to and that were made
    /// after `young_since` make those blobs young.
    pub(super) fn look(
        &mut self,
        layout: &Layout,
        gone: &Gone,
        young_since: SystemTime,
        stop: &Stop,
    ) -> Result<(), GcError> {
        walk::repositories(layout, |repository| {
            stop.check()?;
            walk::links(&layout.revisions(repository), Unknown::Refused, |place| -> Result<(), GcError> {
                if gone.revision(repository, &place.digest) {
                    return Ok(());
                }
                self.revision(layout, place)
            })?;
            walk::tags(layout, repository, |tag, current| match current {
                Some(link) if !gone.tag(repository, &tag) => {
                    self.reach(layout, vec![(Named::Manifest, link.digest)])
                }
                _ => Ok(()),
            })?;
            // After the manifests, so that what they name is known.
            walk::links(&layout.layers(repository), Unknown::Skipped, |place| self.layer(place, young_since))
        })
    }

    /// Whether anything refers to it.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.marked.contains(digest)
    }

    /// Whether a repository was given it lately.
    pub(super) fn is_young(&self, digest: &Digest) -> bool {
        self.young.contains(digest)
    }

    /// How many digests are marked.
    pub(super) fn len(&self) -> usize {
        self.marked.len()
    }

    /// About what the marks take, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let read = self.read.capacity() * (size_of::<Digest>() + 1) * 8 / 7;
        self.marked.bytes() + self.young.bytes() + read
    }

    fn revision(&mut self, layout: &Layout, place: &Place<'_>) -> Result<(), GcError> {
        let Some(link) = place.link()? else { return Ok(()) };
        self.mark(&place.digest);
        self.mark(&link.digest);
        self.signatures(&place.path())?;
        if self.read.contains(&link.digest) {
            return Ok(());
        }
        match walk::manifest(layout, &link.digest)? {
            Some(stored) => {
                let named = self.note(&link.digest, &stored.manifest);
                self.reach(layout, named)
            }
            // It may have been removed since its link was read.
            None if place.link()?.is_none() => Ok(()),
            None => Err(WalkError::Dangling { path: place.path(), digest: link.digest }.into()),
        }
    }

    /// Marks what lies beside a manifest's link.
    fn signatures(&mut self, link: &Path) -> Result<(), GcError> {
        walk::links(&Layout::signatures(link), Unknown::Refused, |place| -> Result<(), GcError> {
            self.mark(&place.digest);
            if let Some(link) = place.link()? {
                self.mark(&link.digest);
            }
            Ok(())
        })
    }

    /// Marks these manifests and all that they name.
    fn reach(&mut self, layout: &Layout, mut named: Vec<(Named, Digest)>) -> Result<(), GcError> {
        while let Some((expected, digest)) = named.pop() {
            self.mark(&digest);
            if self.read.contains(&digest) {
                continue;
            }
            match walk::manifest(layout, &digest) {
                Ok(Some(stored)) => named.extend(self.note(&digest, &stored.manifest)),
                Ok(None) => {}
                // Whoever pushes may name anything as a subject.
                Err(WalkError::NoManifest { .. } | WalkError::TooLarge { .. })
                    if expected == Named::Subject => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Marks the blobs of a manifest, and gives the manifests that it names.
    fn note(&mut self, digest: &Digest, manifest: &Manifest) -> Vec<(Named, Digest)> {
        self.read.insert(*digest);
        for blob in manifest.config.iter().chain(&manifest.layers) {
            self.mark(&blob.digest);
        }
        let mut named = Vec::new();
        for child in &manifest.manifests {
            if is_manifest(child) {
                named.push((Named::Manifest, child.digest));
            } else {
                self.mark(&child.digest);
            }
        }
        if let Some(subject) = &manifest.subject {
            if is_manifest(subject) {
                named.push((Named::Subject, subject.digest));
            } else {
                self.mark(&subject.digest);
            }
        }
        named
    }

    fn layer(&mut self, place: &Place<'_>, young_since: SystemTime) -> Result<(), GcError> {
        let is_marked = self.has(&place.digest);
        // A link that is named by the usual algorithm leads to where its name says.
        if is_marked && place.digest.algorithm() == Algorithm::Sha256 {
            return Ok(());
        }
        let Some(link) = place.link()? else { return Ok(()) };
        if is_marked {
            self.mark(&link.digest);
        } else if link.modified >= young_since {
            self.young.insert(&link.digest);
        }
        Ok(())
    }

    fn mark(&mut self, digest: &Digest) {
        self.marked.insert(digest);
    }
}
