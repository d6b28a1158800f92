//! Repositories of `cache` that are never evicted.

use super::fingerprints::Fingerprints;
use crate::oci::Pattern;
use crate::store::walk::{self, Unknown, WalkError};
use crate::store::{Layout, StoredRepository};

/// What the names of Docker Hub's own images begin with, which its clients leave out.
const OFFICIAL: &str = "library/";

/// Which repositories are pinned, by the names under which they are pulled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    patterns: Vec<Pattern>,
    hubs: Vec<String>,
}

impl Pins {
    /// What fits one of these patterns, of names with the upstream's in front or without. `hubs` are the directories of the
    /// upstreams where a name of one component means `library/…`.
    pub fn new(patterns: &[String], hubs: Vec<String>) -> Self {
        // A port stands in a directory's name as it does in a pattern, but for the colon.
        let patterns = patterns.iter().map(|pattern| Pattern::new(&pattern.replace(':', "_"))).collect();
        Self { patterns, hubs }
    }

    /// Whether nothing is pinned.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Everything that a pinned repository links in this tree: blobs and manifests, of all its tags and of none.
    ///
    /// # Errors
    /// Something cannot be read: then it is not known what is pinned.
    pub fn held(&self, layout: &Layout) -> Result<Fingerprints, WalkError> {
        let mut held = Fingerprints::default();
        if self.is_empty() {
            return Ok(held);
        }
        walk::repositories(layout, |repository| {
            if !self.has(repository) {
                return Ok(());
            }
            for links in [layout.layers(repository), layout.revisions(repository)] {
                walk::links(&links, Unknown::Skipped, |place| {
                    // A link that a power cut left without content is none.
                    match place.link() {
                        Ok(Some(link)) => held.insert(&link.digest),
                        Ok(None) | Err(WalkError::NoLink { .. }) => {}
                        Err(error) => return Err(error),
                    }
                    Ok(())
                })?;
            }
            Ok(())
        })?;
        Ok(held)
    }

    fn has(&self, repository: &StoredRepository) -> bool {
        let stored = repository.as_str();
        let (directory, name) = stored.split_once('/').unwrap_or(("", stored));
        let is_pinned = |name: &str| self.patterns.iter().any(|pattern| pattern.fits_repository(name));
        let short = name.strip_prefix(OFFICIAL).filter(|_| self.hubs.iter().any(|hub| hub == directory));
        is_pinned(stored)
            || is_pinned(name)
            || short.is_some_and(|short| is_pinned(short) || is_pinned(&format!("{directory}/{short}")))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::oci::{Algorithm, Digest, RepositoryName};
    use crate::store::LinkKind;

    fn pins(patterns: &[&str]) -> Pins {
        let patterns: Vec<_> = patterns.iter().map(ToString::to_string).collect();
        Pins::new(&patterns, vec!["docker.io".to_owned()])
    }

    fn stored(upstream: &str, name: &str) -> StoredRepository {
        StoredRepository::cached(upstream, &name.parse::<RepositoryName>().unwrap())
    }

    #[test]
    fn a_repository_is_meant_by_every_name_under_which_it_can_be_pulled() {
        for (pattern, upstream, name, is_pinned) in [
            ("library/*", "docker.io", "library/alpine", true),
            ("docker.io/library/*", "docker.io", "library/alpine", true),
            ("alpine", "docker.io", "library/alpine", true),
            ("docker.io/alpine", "docker.io", "library/alpine", true),
            ("team/*", "docker.io", "library/alpine", false),
            ("alpine", "r_5000", "library/alpine", false),
            ("r:5000/a/*", "r_5000", "a/b/c", true),
            ("r_5000/*", "r_5000", "a/b/c", true),
            ("a/b", "r_5000", "a/b/c", false),
            ("b/c", "r_5000", "a/b/c", false),
            ("*", "gone", "a", true),
        ] {
            assert_eq!(
                pins(&[pattern]).has(&stored(upstream, name)),
                is_pinned,
                "{pattern} {upstream}/{name}"
            );
        }
        assert!(pins(&["none", "a"]).has(&stored("r_5000", "a")));
        assert!(!pins(&[]).has(&stored("r_5000", "a")));
    }

    #[test]
    fn layers_and_manifests_of_pinned_repositories_are_held_and_no_others() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let digest = |n: u8| Digest::of(Algorithm::Sha256, &[n]);
        let link = |name: &str, kind, n: u8, content: &str| {
            let path = layout.link(&stored("r_5000", name), kind, &digest(n));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        link("a/b", LinkKind::Layer, 1, &digest(1).to_string());
        link("a/b", LinkKind::Manifest, 2, &digest(2).to_string());
        link("a/b", LinkKind::Layer, 3, "");
        link("a", LinkKind::Layer, 4, &digest(4).to_string());
        let held = pins(&["a/*"]).held(&layout).unwrap();
        assert_eq!([1, 2, 3, 4].map(|n| held.contains(&digest(n))), [true, true, false, false]);
        assert!(pins(&[]).held(&layout).unwrap().is_empty());
        fs::remove_dir_all(layout.repositories()).unwrap();
        fs::write(layout.repositories(), "no directory").unwrap();
        assert!(pins(&["a/*"]).held(&layout).is_err(), "what is pinned is not known");
    }
}
