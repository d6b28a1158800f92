//! Taking things away, one at a time, each under its lock.
//!
//! # Why no push is ever broken
//!
//! A manifest is *broken* if it is linked and a blob that it names is gone. Whoever removes blobs looks at the whole tree
//! first, without any lock, and then removes what he found nothing to refer to. Between the two, others push. Three rules
//! keep them apart; all locks are flocks in the tree, so it makes no difference whether one process is at work or several.
//!
//! 1. *Whoever relies on a blob stamps it* with the time, under its digest's lock, having seen under that lock that it is
//!    there, and before he links it, or answers a client ([`stamp`](crate::store)). These are all who do: the end of an
//!    upload, whether the blob was new or there; a mount; taking a blob over from `cache`; HEAD of a blob by a client that
//!    may push; and PUT of a manifest, for each blob and manifest that it names and for itself, holding all their locks
//!    until its links and tags are written.
//! 2. *Whoever removes begins with* [`Began::now`], *then takes and releases every lock once*, then looks at the tree.
//! 3. *A blob is removed under its lock, and only if its stamp is older than that beginning* (and older than the grace, if
//!    there is one).
//!
//! So let there be a PUT of a manifest that names a blob which is removed after a look that did not see the manifest. Had it
//! stamped the blob after the beginning, rule 3 would have kept the blob: either the remover saw the stamp, or the PUT got the
//! lock after him, found the blob gone and refused the manifest. Had it stamped before the beginning, it would have held the
//! blob's lock at the beginning or have given it back before, and rule 2 would have waited for it: then its link was there
//! when the look began, and the look saw it. That holds for a PUT that was killed halfway too. A manifest that had been
//! linked when the look began, and is still linked when the blob goes, was seen: a look that cannot read something ends all.
//!
//! - *End of an upload, mount, taking over, HEAD, then PUT*: the first stamps the blob, so it stays for the grace, within
//!   which the PUT stamps it again; removal of an image by name leaves what was stamped after it was pushed. Should the
//!   client take longer, its PUT is refused as any that names an unknown blob, and it can push again.
//! - *PUT of an index* stamps the manifests that it names. A manifest is removed from a repository under its lock, and only
//!   if its stamp is older than the beginning; what it names stays then, too.
//! - *A tag* is set while its manifest's lock is held, which is stamped before. So a tag is removed under that lock, and only
//!   if the manifest's stamp is older than the beginning: the manifest may have been pushed again under the same tag.
//! - *The clock is set back* while this runs: stamps of now could look old. The clock is compared with one that cannot be
//!   set, and nothing is removed from then on.
//!
//! # What survives a crash
//!
//! Tags go first, then manifests, those that name others before these, then blobs; each kind is on disk before the next
//! goes. So a crash leaves garbage for the next run, and never a tag or a manifest that leads to nothing.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::Stop;
use crate::oci::{Digest, Tag};
use crate::store::ingest::open_lock;
use crate::store::upload::UploadId;
use crate::store::walk::WalkError;
use crate::store::{Layout, LinkKind, Store, StoredRepository, sweeping};

/// How much the clock may fall behind the one that cannot be set before it counts as set back, and its share of the time
/// that passed, as its divisor.
const SLACK: Duration = Duration::from_millis(1);
const SLACK_DIVISOR: u32 = 1000;

/// Why collecting, or removing, ended early.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// It is not known what the tree refers to: nothing may be removed.
    #[error("it is not known what is still needed: {0}")]
    Unknown(#[from] WalkError),
    /// The locks of the tree cannot be taken.
    #[error("{}: cannot be locked: {cause}", path.display())]
    Lock {
        /// The directory of locks.
        path: PathBuf,
        /// The system's word.
        cause: io::Error,
    },
    /// Another process collects garbage in this tree, or removes images from it.
    #[error("another process is collecting garbage here, or removing images")]
    Busy,
    /// It was asked to end.
    #[error("stopped before it was done")]
    Stopped,
    /// The clock was set back meanwhile, so that ages mean nothing.
    #[error("the clock was set back meanwhile: run it again")]
    ClockSetBack,
}

impl Stop {
    /// Whether to go on.
    pub(super) fn check(&self) -> Result<(), GcError> {
        if self.is_set() { Err(GcError::Stopped) } else { Ok(()) }
    }
}

/// What is told of a run while it is under way.
#[derive(Debug)]
pub enum Event {
    /// What begins now.
    Phase(&'static str),
    /// Something is gone, or would be.
    Removed(Removed),
    /// Something could not be removed; the rest goes on.
    Failed {
        /// What.
        what: Removed,
        /// The system's word.
        error: io::Error,
    },
}

/// Something that was removed, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// A tag of a repository, with its history.
    Tag(StoredRepository, Tag),
    /// A manifest of a repository. Its bytes are a blob.
    Manifest(StoredRepository, Digest),
    /// A repository's link to a blob.
    Link(StoredRepository, Digest),
    /// A blob.
    Blob {
        /// Its digest.
        digest: Digest,
        /// Its length.
        bytes: u64,
        /// Whether its file has another name, as in `cache`, so that its bytes stay.
        shared: bool,
    },
    /// An upload session that nobody went on with, and the bytes that it had received.
    Upload(StoredRepository, UploadId, u64),
    /// A file that a crash left behind, or a fill that nobody came back for.
    Leftover(PathBuf, u64),
    /// An empty directory.
    Directory(PathBuf),
}

impl Removed {
    /// The directory that it had to itself.
    fn place(&self, layout: &Layout) -> Option<PathBuf> {
        let path = match self {
            Self::Tag(repository, tag) => return Some(layout.tag(repository, tag)),
            Self::Upload(repository, id, _) => return Some(layout.upload(repository, id)),
            Self::Directory(path) => return Some(path.clone()),
            Self::Manifest(repository, digest) => layout.link(repository, LinkKind::Manifest, digest),
            Self::Link(repository, digest) => layout.link(repository, LinkKind::Layer, digest),
            Self::Blob { digest, .. } => layout.blob(digest),
            Self::Leftover(..) => return None,
        };
        path.parent().map(Path::to_owned)
    }
}

/// What a run removed, or would have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Tags.
    pub tags: u64,
    /// Manifests that were taken from a repository.
    pub manifests: u64,
    /// Links to blobs.
    pub links: u64,
    /// Blobs.
    pub blobs: u64,
    /// Upload sessions.
    pub uploads: u64,
    /// Files that crashes left behind.
    pub leftovers: u64,
    /// Empty directories.
    pub directories: u64,
    /// Bytes that this freed.
    pub bytes: u64,
    /// What could not be removed.
    pub failures: u64,
    /// Digests that something refers to.
    pub marked: u64,
    /// The most that knowing them took, in bytes.
    pub marks_bytes: u64,
}

impl Collected {
    fn count(&mut self, removed: &Removed) {
        let (counter, bytes) = match removed {
            Removed::Tag(..) => (&mut self.tags, 0),
            Removed::Manifest(..) => (&mut self.manifests, 0),
            Removed::Link(..) => (&mut self.links, 0),
            Removed::Blob { bytes, shared, .. } => (&mut self.blobs, if *shared { 0 } else { *bytes }),
            Removed::Upload(_, _, bytes) => (&mut self.uploads, *bytes),
            Removed::Leftover(_, bytes) => (&mut self.leftovers, *bytes),
            Removed::Directory(_) => (&mut self.directories, 0),
        };
        *counter += 1;
        self.bytes += bytes;
    }
}

/// When a run began, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Began {
    pub(super) at: SystemTime,
    steady: Instant,
}

impl Began {
    pub(super) fn now() -> Self {
        Self { at: SystemTime::now(), steady: Instant::now() }
    }

    /// Whether times of files that were set since could be before the beginning.
    pub(super) fn is_set_back(&self) -> bool {
        let passed = self.steady.elapsed();
        let slack = SLACK + passed / SLACK_DIVISOR;
        self.at.elapsed().map_or(true, |shown| shown + slack < passed)
    }
}

/// The lock of the one who collects garbage in a tree, or removes images from it; until it is dropped.
pub(super) fn hold(layout: &Layout) -> Result<File, GcError> {
    let path = layout.gc_lock();
    let failed = |cause| GcError::Lock { path: path.clone(), cause };
    fs::create_dir_all(layout.locks()).map_err(failed)?;
    let file = open_lock(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(GcError::Busy),
        Err(TryLockError::Error(cause)) => Err(failed(cause)),
    }
}

/// Waits until everybody has given back what locks of digests he has now.
pub(super) fn wait_for_others(layout: &Layout) -> Result<(), GcError> {
    let waited = (0..=u8::MAX).try_for_each(|shard| sweeping::lock_number(layout, shard).map(drop));
    waited.map_err(|cause| GcError::Lock { path: layout.locks(), cause })
}

/// Whether a manifest went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Went {
    /// It is gone, or would be.
    Yes,
    /// It was gone before.
    Absent,
    /// Somebody relies on it since the beginning.
    Relied,
    /// The disk failed.
    Failed,
}

/// Takes things away and tells of it; or only tells.
pub(super) struct Sweeper<'a> {
    pub(super) store: &'a Store,
    pub(super) dry_run: bool,
    pub(super) began: Began,
    pub(super) total: Collected,
    /// Whether all that went reached the disk when it had to: if not, nothing that depends on it may follow.
    pub(super) is_lasting: bool,
    /// The directories of what went, if somebody wants to know.
    pub(super) places: Option<HashSet<PathBuf>>,
    report: &'a mut dyn FnMut(Event),
}

impl<'a> Sweeper<'a> {
    pub(super) fn new(
        store: &'a Store,
        dry_run: bool,
        began: Began,
        report: &'a mut dyn FnMut(Event),
    ) -> Self {
        Self { store, dry_run, began, total: Collected::default(), is_lasting: true, places: None, report }
    }

    pub(super) fn phase(&mut self, what: &'static str) {
        (self.report)(Event::Phase(what));
    }

    pub(super) fn layout(&self) -> &'a Layout {
        self.store.layout()
    }

    pub(super) fn gone(&mut self, removed: Removed) {
        self.total.count(&removed);
        if let Some(places) = &mut self.places {
            places.extend(removed.place(self.store.layout()));
        }
        (self.report)(Event::Removed(removed));
    }

    pub(super) fn failed(&mut self, what: Removed, error: io::Error) {
        self.total.failures += 1;
        (self.report)(Event::Failed { what, error });
    }

    /// Removes a blob if `may` agrees to its stamp, nobody sends it, and nobody relies on it since the beginning.
    pub(super) fn blob(&mut self, digest: &Digest, may: impl FnOnce(sweeping::Stamped) -> bool) {
        let began = self.began;
        let is_old =
            |stamped: sweeping::Stamped| stamped.at < began.at && !began.is_set_back() && may(stamped);
        match sweeping::blob(self.store, digest, self.dry_run, is_old) {
            Ok(Some(meta)) => {
                let shared = meta.nlink() > 1;
                self.gone(Removed::Blob { digest: *digest, bytes: meta.len(), shared });
            }
            Ok(None) => {}
            Err(error) => self.failed(Removed::Blob { digest: *digest, bytes: 0, shared: false }, error),
        }
    }

    /// Takes a manifest from a repository unless somebody relies on it since the beginning. It lasts once
    /// the directory of the manifests is synced.
    pub(super) fn manifest(
        &mut self,
        repository: &StoredRepository,
        digest: &Digest,
        target: &Digest,
        subject: Option<&Digest>,
    ) -> Went {
        let began = self.began;
        let is_old = |stamped: sweeping::Stamped| stamped.at < began.at && !began.is_set_back();
        let taken = if self.dry_run {
            Ok(sweeping::Taken::Yes)
        } else {
            sweeping::manifest(self.store, repository, digest, target, subject, is_old)
        };
        match taken {
            Ok(sweeping::Taken::Yes) => {
                if let (Some(places), Some(subject)) = (&mut self.places, subject) {
                    let referrer = self.store.layout().referrer(repository, subject, digest);
                    places.extend(referrer.parent().map(Path::to_owned));
                }
                self.gone(Removed::Manifest(repository.clone(), *digest));
                Went::Yes
            }
            Ok(sweeping::Taken::Absent) => Went::Absent,
            Ok(sweeping::Taken::Refused) => Went::Relied,
            Err(error) => {
                self.failed(Removed::Manifest(repository.clone(), *digest), error);
                Went::Failed
            }
        }
    }

    /// Whether somebody relies on a manifest since the beginning, as far as can be seen without its lock.
    pub(super) fn is_relied_on(&self, target: &Digest) -> bool {
        let meta = fs::metadata(self.layout().blob(target));
        let stamped = meta.and_then(|meta| sweeping::stamped(&meta));
        stamped.is_ok_and(|stamped| stamped.at >= self.began.at) || self.began.is_set_back()
    }

    /// Brings what was removed from these directories to the disk. Says whether it is there.
    pub(super) fn sync(&mut self, directories: impl Iterator<Item = PathBuf>) -> bool {
        if self.dry_run {
            return true;
        }
        match sweeping::sync_directories(directories) {
            Ok(()) => true,
            Err(error) => {
                self.is_lasting = false;
                self.failed(Removed::Directory(self.layout().repositories()), error);
                false
            }
        }
    }

    /// Removes a tag if it still points at `digest`, unless somebody relies on that manifest since the beginning. Says
    /// whether the tag is as it should be afterwards: gone, or moved by somebody else. It lasts once the directory of the
    /// tags is synced.
    pub(super) fn tag(&mut self, repository: &StoredRepository, tag: &Tag, digest: &Digest) -> bool {
        let began = self.began;
        let is_old = |stamped: sweeping::Stamped| stamped.at < began.at && !began.is_set_back();
        let taken = if self.dry_run {
            Ok(sweeping::Taken::Yes)
        } else {
            sweeping::tag(self.store, repository, tag, digest, is_old)
        };
        match taken {
            Ok(sweeping::Taken::Yes) => self.gone(Removed::Tag(repository.clone(), tag.clone())),
            Ok(sweeping::Taken::Absent) => {}
            Ok(sweeping::Taken::Refused) => {
                tracing::info!(%repository, %tag, "a tag is kept: what it points at was pushed again meanwhile");
                return false;
            }
            Err(error) => {
                self.failed(Removed::Tag(repository.clone(), tag.clone()), error);
                return false;
            }
        }
        true
    }

    /// Removes a repository's link to a blob if `may` agrees to the blob's stamp; `None`: there is no such blob.
    pub(super) fn link(
        &mut self,
        repository: &StoredRepository,
        digest: &Digest,
        target: &Digest,
        may: impl FnOnce(Option<sweeping::Stamped>) -> bool,
    ) {
        match sweeping::link(self.store, (repository, LinkKind::Layer), (digest, target), self.dry_run, may) {
            Ok(true) => self.gone(Removed::Link(repository.clone(), *digest)),
            Ok(false) => {}
            Err(error) => self.failed(Removed::Link(repository.clone(), *digest), error),
        }
    }

    /// Ends the upload sessions of a repository that nobody went on with for so long.
    pub(super) fn uploads(&mut self, repository: &StoredRepository, expiry: Duration) -> io::Result<()> {
        let (layout, dry_run) = (self.layout().clone(), self.dry_run);
        sweeping::each_upload_over(&layout, repository, expiry, |id, bytes| {
            let removed = Removed::Upload(repository.clone(), id.clone(), bytes);
            match if dry_run { Ok(()) } else { sweeping::remove_session(&layout, repository, id) } {
                Ok(()) => self.gone(removed),
                Err(error) => self.failed(removed, error),
            }
        })
    }
}
