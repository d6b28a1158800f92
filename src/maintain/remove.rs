//! Removing an image by name from `local`: a tag with its history, a manifest, a repository, or what of one has no tag.
//!
//! ```text
//! choose   what goes, and what of it must stay because something else needs it (read only)
//! look     at all that the rest of the tree refers to; an error ends it, and nothing was removed
//! remove   tags, then manifests, each kind on disk before the next
//! free     the links of the repository to what it has no use for any more, and the blobs that nothing refers to now
//! prune    directories that are empty, if asked for
//! ```
//!
//! The blobs whose last reference this took away are freed at once, without a grace: that is for what no manifest has
//! referred to yet. So a blob stays that somebody was promised after the removed manifests were pushed (it was mounted
//! elsewhere, or a client that may push asked for it): garbage collection decides on it later. The repository's link to it
//! stays too, for the usual grace: what is promised will be named in a manifest of this repository, which is refused without
//! the link. What somebody relies on since the look stays as well, with all that it needs; if that shows before anything was
//! removed, the look is repeated. Why no push is broken by this is written down in `sweep`; what a crash leaves, too.
//!
//! **Runs at once** with servers on the tree; one at a time collects or removes (flock on `locks/gc`). A dry run makes the
//! same plan, takes no lock and changes nothing. Blocks; asked to stop, it ends between two steps.

mod prune;

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::Stop;
use super::contents::{Choice, Contents};
use super::gc::{GRACE, UPLOAD_AGE, age};
use super::mark::{Gone, Marks};
use super::plan::{self, Carried, Plan};
use super::sweep::{Began, Collected, Event, GcError, Removed, Sweeper, hold, wait_for_others};
use crate::oci::{Digest, ImageName, Tag};
use crate::store::sweeping::{Stamp, Stamped};
use crate::store::walk::{self, Unknown, WalkError};
use crate::store::{Layout, LinkKind, Store, StoredRepository};

/// How often the tree is looked at anew because somebody pushed meanwhile, before what was pushed simply stays.
const LOOKS_MAX: usize = 5;

/// What is to be removed.
#[derive(Clone, Debug)]
pub struct RemoveOptions {
    /// The image, or the repository.
    pub image: ImageName,
    /// Of a repository, only what no tag reaches.
    pub untagged: bool,
    /// Directories of the repository that are empty afterwards go, and those above it.
    pub prune: bool,
    /// Nothing is removed; it is only told what would be.
    pub dry_run: bool,
    /// The tree of what was fetched, to say so if it is only there.
    pub cache: Option<Layout>,
}

/// Why nothing, or not everything, was removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(&'static str),
    /// There is no such repository.
    #[error("there is no repository {0}")]
    NoRepository(String),
    /// It came from an upstream, which `rm` does not touch.
    #[error(
        "{0} was fetched and is only in the cache, which frees itself: least recently used first, or as max_size says"
    )]
    OnlyInCache(String),
    /// The repository has no such tag.
    #[error("repository {0} has no tag {1}")]
    NoTag(StoredRepository, Tag),
    /// The repository has no such manifest.
    #[error("repository {0} has no manifest {1}")]
    NoManifest(StoredRepository, Digest),
    /// The tag is that of another manifest.
    #[error("tag {1} of repository {0} points at {2}")]
    OtherTag(StoredRepository, Tag, Digest),
    /// Something that stays needs the manifest.
    #[error(transparent)]
    Needed(Box<Needed>),
    /// As when garbage is collected.
    #[error(transparent)]
    Gc(#[from] GcError),
}

/// A manifest that is needed.
#[derive(Debug, thiserror::Error)]
#[error("manifest {digest} of repository {repository} is needed by {by}, which stays: remove that first")]
pub struct Needed {
    /// Where.
    pub repository: StoredRepository,
    /// What.
    pub digest: Digest,
    /// By which manifest of the repository.
    pub by: Digest,
}

impl From<WalkError> for RemoveError {
    fn from(error: WalkError) -> Self {
        Self::Gc(error.into())
    }
}

/// Removes an image. `report` hears of each thing that went, or would go, and of each that could not be removed, which does
/// not end it.
///
/// # Errors
/// Nothing was removed, unless it was stopped or the clock was set back.
pub fn run(
    store: &Store,
    options: &RemoveOptions,
    stop: &Stop,
    report: &mut dyn FnMut(Event),
) -> Result<Collected, RemoveError> {
    if options.untagged && (options.image.tag.is_some() || options.image.digest.is_some()) {
        return Err(RemoveError::Usage("--untagged is about a repository: name it without a tag or digest"));
    }
    let layout = store.layout();
    let _lock = if options.dry_run { None } else { Some(hold(layout)?) };
    let mut looks = 1;
    loop {
        let began = Began::now();
        if !options.dry_run {
            wait_for_others(layout)?;
        }
        let mut sweeper = Sweeper::new(store, options.dry_run, began, report);
        sweeper.places = options.prune.then(Default::default);
        let removal = Removal::plan(&mut sweeper, options, stop)?;
        if looks < LOOKS_MAX && !options.dry_run && removal.plan.is_out_of_date(&sweeper) {
            looks += 1;
            continue;
        }
        removal.carry_out(&mut sweeper, options, stop)?;
        return if began.is_set_back() { Err(GcError::ClockSetBack.into()) } else { Ok(sweeper.total) };
    }
}

/// What of the repository goes, and what the rest of the tree refers to.
struct Removal {
    repository: StoredRepository,
    plan: Plan,
    marks: Marks,
    /// Links of the repository to blobs: what they are named by, and where they lead.
    links: BTreeMap<Digest, Digest>,
    /// The whole repository goes.
    is_whole: bool,
}

impl Removal {
    fn plan(sweeper: &mut Sweeper<'_>, options: &RemoveOptions, stop: &Stop) -> Result<Self, RemoveError> {
        let layout = sweeper.layout();
        let repository = find(layout, options)?;
        sweeper.phase("looking at the repository");
        let contents = Contents::read(layout, &repository)?;
        let choice = choose(&repository, &contents, options)?;
        let plan = Plan::new(&repository, contents, &choice);
        let mut gone = Gone::default();
        plan.note(&mut gone);
        sweeper.phase("looking at what is referred to");
        let mut marks = Marks::default();
        marks.look(layout, &gone, SystemTime::now(), stop)?;
        sweeper.total.marked = marks.len() as u64;
        sweeper.total.marks_bytes = marks.bytes() as u64;
        let is_whole = is_whole(options);
        let links = links(layout, &repository, &plan, is_whole)?;
        Ok(Self { repository, plan, marks, links, is_whole })
    }

    fn carry_out(
        self,
        sweeper: &mut Sweeper<'_>,
        options: &RemoveOptions,
        stop: &Stop,
    ) -> Result<(), RemoveError> {
        stop.check()?;
        sweeper.phase("removing");
        let plans = std::slice::from_ref(&self.plan);
        let mut carried = plan::carry_out(plans, sweeper, stop)?.pop().unwrap_or_default();
        // A blob that the repository has under another name goes by its own.
        for (digest, target) in self.links.iter().filter(|(digest, target)| digest != target) {
            if let Some(newest) = carried.released.get(digest).copied() {
                carried.released.insert(*target, newest);
            }
            if carried.kept.contains(digest) {
                carried.kept.insert(*target);
            }
        }
        self.unlink(sweeper, &carried, stop)?;
        self.free(sweeper, &carried, stop)?;
        if self.is_whole
            && let Err(error) = sweeper.uploads(&self.repository, UPLOAD_AGE)
        {
            sweeper.failed(Removed::Directory(sweeper.layout().uploads(&self.repository)), error);
        }
        if options.prune {
            prune::repository(sweeper, &self.repository);
        }
        Ok(())
    }

    fn unlink(&self, sweeper: &mut Sweeper<'_>, carried: &Carried, stop: &Stop) -> Result<(), GcError> {
        let began = sweeper.began;
        for (digest, target) in &self.links {
            stop.check()?;
            if carried.kept.contains(digest) {
                continue;
            }
            // What somebody was promised, or relies on since the look, he will name in a manifest of this repository.
            let newest = carried.released.get(target).copied();
            sweeper.link(&self.repository, digest, target, |stamped| {
                stamped.is_none_or(|stamped| {
                    let is_old = stamped.at < began.at && !began.is_set_back();
                    is_old && !(is_promise(stamped, newest) && age(stamped.at) <= GRACE)
                })
            });
        }
        Ok(())
    }

    fn free(&self, sweeper: &mut Sweeper<'_>, carried: &Carried, stop: &Stop) -> Result<(), GcError> {
        for (digest, newest) in &carried.released {
            stop.check()?;
            if self.marks.has(digest) || carried.kept.contains(digest) {
                continue;
            }
            sweeper.blob(digest, |stamped| !is_promise(stamped, Some(*newest)));
        }
        Ok(())
    }
}

/// Whether somebody was promised a blob after the last of those manifests was pushed that named it and are removed.
fn is_promise(stamped: Stamped, newest: Option<SystemTime>) -> bool {
    stamped.how == Stamp::Promised && newest.is_none_or(|newest| stamped.at > newest)
}

/// The repository that is meant.
fn find(layout: &Layout, options: &RemoveOptions) -> Result<StoredRepository, RemoveError> {
    let is_there = |layout: &Layout, repository: &StoredRepository| {
        let path = layout.repository(repository);
        ["_manifests", "_layers", "_uploads"].iter().any(|part| path.join(part).is_dir())
    };
    let repository = StoredRepository::local(&options.image.repository);
    if is_there(layout, &repository) {
        return Ok(repository);
    }
    if options.cache.as_ref().is_some_and(|cache| is_there(cache, &repository)) {
        return Err(RemoveError::OnlyInCache(repository.to_string()));
    }
    Err(RemoveError::NoRepository(repository.to_string()))
}

fn is_whole(options: &RemoveOptions) -> bool {
    !options.untagged && options.image.tag.is_none() && options.image.digest.is_none()
}

/// What of the repository is to go.
fn choose(
    repository: &StoredRepository,
    contents: &Contents,
    options: &RemoveOptions,
) -> Result<Choice, RemoveError> {
    let ImageName { tag, digest, .. } = &options.image;
    if let Some(tag) = tag {
        let Some(tagged) = contents.tags.get(tag) else {
            return Err(unknown_tag(repository, tag, options));
        };
        match digest {
            Some(digest) if tagged.current != *digest => {
                return Err(RemoveError::OtherTag(repository.clone(), tag.clone(), tagged.current));
            }
            Some(_) => {}
            None => return Ok(contents.tag(tag)),
        }
    }
    if let Some(digest) = digest {
        let Some(name) = contents.named(digest) else {
            return Err(RemoveError::NoManifest(repository.clone(), *digest));
        };
        let choice = contents.manifest(&name);
        if choice.revisions.contains(&name) {
            return Ok(choice);
        }
        let by = contents.parents(&name).find(|parent| !choice.revisions.contains(parent));
        let (repository, by) = (repository.clone(), by.copied().unwrap_or(name));
        return Err(RemoveError::Needed(Box::new(Needed { repository, digest: *digest, by })));
    }
    Ok(if options.untagged { contents.untagged(|_| false) } else { contents.everything() })
}

/// The tag may have come from an upstream of the same name.
fn unknown_tag(repository: &StoredRepository, tag: &Tag, options: &RemoveOptions) -> RemoveError {
    let in_cache = |cache: &Layout| cache.tag_current(repository, tag).exists();
    if options.cache.as_ref().is_some_and(in_cache) {
        return RemoveError::OnlyInCache(format!("{repository}:{tag}"));
    }
    RemoveError::NoTag(repository.clone(), tag.clone())
}

/// The links to blobs that the repository has no use for any more.
fn links(
    layout: &Layout,
    repository: &StoredRepository,
    plan: &Plan,
    is_whole: bool,
) -> Result<BTreeMap<Digest, Digest>, WalkError> {
    let mut links = BTreeMap::new();
    let own = |digest: &Digest| walk::link(&layout.link(repository, LinkKind::Layer, digest));
    if is_whole {
        walk::links(&layout.layers(repository), Unknown::Skipped, |place| -> Result<(), WalkError> {
            if let Some(link) = place.link()? {
                links.insert(place.digest, link.digest);
            }
            Ok(())
        })?;
    } else {
        for digest in plan.orphans() {
            let Some(link) = own(&digest)? else { continue };
            links.insert(digest, link.digest);
            // distribution links a blob that was pushed by another algorithm under its own name, too.
            if link.digest != digest
                && !plan.keeps(&link.digest)
                && let Some(second) = own(&link.digest)?
            {
                links.insert(link.digest, second.digest);
            }
        }
    }
    Ok(links)
}

#[cfg(test)]
mod tests;
