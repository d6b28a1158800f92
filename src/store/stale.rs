//! Links of `cache` that have led to nothing for long.
//!
//! A link outlives the blob that eviction took: it remembers that upstream let the repository have it, so that the next
//! request fetches it without asking first. That costs an inode or two for each, for good, and upstream may have thought
//! better of it. So [`sweep`] removes those that are older than [`STALE_AFTER`] and lead to nothing: links to layers and
//! manifests, tags whose manifest is gone with what they pointed at before, and directories of blobs that a crash left
//! empty. The next request costs a HEAD upstream.
//!
//! **Runs at once** beside everything: each is looked at again under its digest's lock before it goes, and what a fill is
//! about to publish stays. Links are written without that lock in `cache`: one that is written at the same moment may go,
//! which costs a HEAD.
//!
//! **Survives a crash**: there is nothing to survive. Everything here blocks and belongs on a thread in the background.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::Store;
use super::durable::Durability;
use super::ingest::lock_shard;
use super::layout::{LinkKind, StoredRepository};
use super::refs;
use super::walk::{self, Link, Place, Unknown, WalkError};
use crate::oci::{Digest, Tag};

/// A link that leads to nothing is kept for so long after it was written, and a tag after it was last confirmed.
pub const STALE_AFTER: Duration = Duration::from_hours(30 * 24);

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Links to layers and manifests, and those that remember what a tag pointed at.
    pub links: u64,
    /// Tags.
    pub tags: u64,
    /// Empty directories of blobs.
    pub directories: u64,
    /// Whether it came to the end; else it was told to stop.
    pub complete: bool,
}

/// Why the sweep ended early.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("told to stop")]
    Stopped,
    #[error(transparent)]
    Walk(#[from] WalkError),
}

/// Removes what is stale, until `is_stopped` says so.
///
/// # Errors
/// Something cannot be read. What cannot be removed is logged and left.
pub fn sweep(store: &Store, is_stopped: &dyn Fn() -> bool) -> Result<Swept, WalkError> {
    let mut sweep = Sweep { store, is_stopped, swept: Swept::default() };
    match sweep.tree() {
        Ok(()) => sweep.swept.complete = true,
        Err(End::Stopped) => {}
        Err(End::Walk(error)) => return Err(error),
    }
    Ok(sweep.swept)
}

struct Sweep<'a> {
    store: &'a Store,
    is_stopped: &'a dyn Fn() -> bool,
    swept: Swept,
}

impl Sweep<'_> {
    fn tree(&mut self) -> Result<(), End> {
        let layout = self.store.layout();
        walk::repositories(layout, |repository| {
            self.links(repository, &layout.layers(repository), Some(LinkKind::Layer))?;
            self.links(repository, &layout.revisions(repository), Some(LinkKind::Manifest))?;
            walk::tags(layout, repository, |tag, current| {
                self.links(repository, &layout.tag_history(repository, &tag), None)?;
                self.tag(repository, &tag, current)
            })
        })?;
        walk::blobs(layout, |digest| self.directory(digest))
    }

    /// The links below a directory, of this kind or of a tag's history.
    fn links(
        &mut self,
        repository: &StoredRepository,
        directory: &Path,
        kind: Option<LinkKind>,
    ) -> Result<(), End> {
        walk::links(directory, Unknown::Skipped, |place| {
            self.go_on()?;
            if !self.is_stale(place)? {
                return Ok(());
            }
            let removed = self.remove(place);
            if let Some(kind) = kind {
                self.store.handles.forget_link(repository, kind, &place.digest);
            }
            self.swept.links += count(removed, &place.path());
            Ok(())
        })
    }

    /// Whether a link leads to nothing and has been there for long.
    fn is_stale(&self, place: &Place<'_>) -> Result<bool, WalkError> {
        match place.link() {
            Ok(Some(link)) => Ok(is_old(link.modified) && !self.is_held(&link.digest)),
            Ok(None) => Ok(false),
            // A power cut left it without content: it never led to anything.
            Err(WalkError::NoLink { path, .. }) => {
                Ok(fs::metadata(path).and_then(|meta| meta.modified()).is_ok_and(is_old))
            }
            Err(error) => Err(error),
        }
    }

    fn remove(&self, place: &Place<'_>) -> io::Result<bool> {
        let _shard = lock_shard(self.store.layout(), &place.digest)?;
        if !self.is_stale(place).map_err(io::Error::other)? {
            return Ok(false);
        }
        let path = place.path();
        fs::remove_file(&path)?;
        if let Some(directory) = path.parent() {
            // Somebody may be writing the link anew.
            let _ = fs::remove_dir(directory);
        }
        Ok(true)
    }

    fn tag(&mut self, repository: &StoredRepository, tag: &Tag, current: Option<Link>) -> Result<(), End> {
        self.go_on()?;
        let Some(link) = current else { return Ok(()) };
        if !is_old(link.modified) || self.is_held(&link.digest) {
            return Ok(());
        }
        let layout = self.store.layout();
        let removed = refs::remove_tag(layout, repository, tag, Some(&link.digest), Durability::Relaxed);
        self.store.handles.forget_tag(repository, tag);
        self.swept.tags += count(removed, &layout.tag(repository, tag));
        Ok(())
    }

    /// The directory of a blob, if there is none in it.
    fn directory(&mut self, digest: &Digest) -> Result<(), End> {
        self.go_on()?;
        let path = self.store.layout().blob(digest);
        let Some(directory) = path.parent() else { return Ok(()) };
        if path.exists() {
            return Ok(());
        }
        let remove = || {
            // Whoever publishes makes it and fills it under this lock.
            let _shard = lock_shard(self.store.layout(), digest)?;
            match fs::remove_dir(directory) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
                removed => removed.map(|()| true),
            }
        };
        self.swept.directories += count(remove(), directory);
        Ok(())
    }

    fn go_on(&self) -> Result<(), End> {
        if (self.is_stopped)() { Err(End::Stopped) } else { Ok(()) }
    }

    /// Whether a blob is there, or on its way.
    fn is_held(&self, digest: &Digest) -> bool {
        let layout = self.store.layout();
        // What cannot be told counts as held.
        [layout.blob(digest), layout.fill(digest)].iter().any(|path| path.try_exists().unwrap_or(true))
    }
}

/// A time to come is no age: the clock was set back.
fn is_old(modified: SystemTime) -> bool {
    SystemTime::now().duration_since(modified).is_ok_and(|age| age > STALE_AFTER)
}

/// How many were removed: one, or none.
fn count(removed: io::Result<bool>, path: &Path) -> u64 {
    match removed {
        Ok(removed) => u64::from(removed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot remove what leads to nothing");
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::num::NonZeroUsize;

    use super::*;
    use crate::oci::Algorithm;
    use crate::store::StoreOptions;

    fn digest(n: u8) -> Digest {
        Digest::of(Algorithm::Sha256, &[n])
    }

    fn grow_old(path: &Path) {
        let past = SystemTime::now() - STALE_AFTER - Duration::from_mins(1);
        File::options().write(true).open(path).unwrap().set_modified(past).unwrap();
    }

    #[test]
    fn what_is_old_and_leads_to_nothing_goes_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let options = StoreOptions { handles_max: NonZeroUsize::MIN, evictable: true };
        let store = Store::open(root.path(), options).unwrap();
        let layout = store.layout();
        let repository = StoredRepository::cached("up", &"a/b".parse().unwrap());
        let tag = |name: &str| name.parse::<Tag>().unwrap();
        for n in 1..=6 {
            for kind in [LinkKind::Layer, LinkKind::Manifest] {
                refs::link(layout, &repository, kind, &digest(n), Durability::Relaxed).unwrap();
                if n != 2 {
                    grow_old(&layout.link(&repository, kind, &digest(n)));
                }
            }
        }
        // 1 and 6 lead to nothing; 2 is young; 3 is held; 4 is on its way; 5 is without content, and so is 6.
        fs::create_dir_all(layout.blob(&digest(3)).parent().unwrap()).unwrap();
        fs::write(layout.blob(&digest(3)), [3]).unwrap();
        fs::create_dir_all(layout.fill(&digest(4))).unwrap();
        let [young, old] = [5, 6].map(|n| layout.link(&repository, LinkKind::Layer, &digest(n)));
        fs::write(&young, "").unwrap();
        fs::write(&old, "").unwrap();
        grow_old(&old);
        fs::create_dir_all(layout.blob(&digest(9)).parent().unwrap()).unwrap();
        for (name, before, now, age) in [("gone", 1, 1, true), ("held", 1, 3, true), ("young", 3, 1, false)] {
            for n in [before, now] {
                refs::set_tag(layout, &repository, &tag(name), &digest(n), Durability::Relaxed).unwrap();
                grow_old(&layout.tag_index(&repository, &tag(name), &digest(n)));
            }
            if age {
                grow_old(&layout.tag_current(&repository, &tag(name)));
            }
        }

        assert_eq!(sweep(&store, &|| true).unwrap(), Swept::default());
        let swept = sweep(&store, &|| false).unwrap();
        let is_linked = |kind, n| layout.link(&repository, kind, &digest(n)).exists();
        assert_eq!(
            [1, 2, 3, 4, 5, 6].map(|n| is_linked(LinkKind::Layer, n)),
            [false, true, true, true, true, false]
        );
        assert_eq!(
            [1, 2, 3, 4, 5, 6].map(|n| is_linked(LinkKind::Manifest, n)),
            [false, true, true, true, false, false]
        );
        assert!(!layout.link(&repository, LinkKind::Layer, &digest(1)).parent().unwrap().exists());
        assert_eq!(
            ["gone", "held", "young"].map(|name| layout.tag_current(&repository, &tag(name)).exists()),
            [false, true, true]
        );
        assert!(!layout.tag(&repository, &tag("gone")).exists());
        assert!(layout.tag_index(&repository, &tag("held"), &digest(3)).exists());
        assert!(!layout.tag_index(&repository, &tag("held"), &digest(1)).exists());
        assert!(!layout.blob(&digest(9)).parent().unwrap().exists());
        // 2 layers, 3 manifests, and what three tags remember of 1.
        assert_eq!(swept, Swept { links: 2 + 3 + 3, tags: 1, directories: 1, complete: true });
        assert_eq!(sweep(&store, &|| false).unwrap(), Swept { complete: true, ..Swept::default() });
    }
}
