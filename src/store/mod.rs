//! What is held on disk: blobs, the links that lead to them, fills in progress.
//!
//! **Owns** the trees `local` (what clients pushed) and `cache` (what was fetched), in distribution's layout
//! ([`layout`]). The filesystem is the database: everything can be derived by a scan, memory only accelerates
//! (`handles`). Two processes may share a directory on a local filesystem.
//!
//! **Runs at once**: lookups on every worker, through its ring; writes on store threads, which are each worker's
//! blocking pool. Publishing, linking and sweeping a digest exclude each other by flock on one of 256 shard files;
//! a fill is owned through a flock of its own ([`ingest`]).
//!
//! **Survives a crash**: a digest's name exists only for a whole, synced file; an interrupted fill is resumed.
//! [`recover`] sweeps what a crash left behind.

mod appended;
pub mod blob;
mod departing;
mod durable;
mod handles;
pub mod holders;
pub mod images;
pub mod ingest;
pub mod layout;
mod links;
pub mod listing;
pub mod pump;
mod push;
pub mod quarantine;
pub mod recover;
mod refs;
pub mod stale;
mod stamp;
pub(crate) mod sweeping;
pub mod upload;
mod usage;
pub mod walk;

use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

pub use blob::{Blob, Held, Labels, REVALIDATE_AFTER, generation, renew_generation};
use bytes::Bytes;
pub use departing::Departing;
pub use layout::{Layout, LinkKind, StoredRepository};
pub use links::{Looked, TagLink};
pub use listing::{Listings, Page};
pub use push::PushedManifest;
pub use usage::{Bucket, Reservation, Stored, Usage};

use self::durable::Durability;
use self::upload::{Opened, Unfinished, Upload, UploadId, UploadLimits};
use crate::oci::{Algorithm, Digest, Tag};
use crate::sys::files::Files;

/// Small contents kept in memory of a tree that is fetched into, in bytes: 9,000 blobs of 4 KiB. With what 5,000
/// connections take, the process stays within 100 MiB.
const CONTENT_BYTES_CACHE: u64 = 40 << 20;
/// Small contents kept in memory of a tree that is pushed to, in bytes: above all manifests.
const CONTENT_BYTES_LOCAL: u64 = 8 << 20;

/// What a tree needs to know.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Open files remembered at most.
    pub handles_max: NonZeroUsize,
    /// Whether content may be evicted: then the last use of a blob is recorded.
    pub evictable: bool,
}

impl StoreOptions {
    /// For work on a tree from which nothing is served.
    pub fn without_handles() -> Self {
        Self { handles_max: NonZeroUsize::MIN, evictable: false }
    }
}

/// One tree.
#[derive(Debug)]
pub struct Store {
    layout: Layout,
    handles: handles::Handles,
    options: StoreOptions,
    usage: Usage,
    listings: Listings,
}

impl Store {
    /// The tree below `root`. A tree that may be evicted from is Spliceway's own and is made if it is missing.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(root: &Path, options: StoreOptions) -> io::Result<Self> {
        let layout = Layout::new(root);
        if options.evictable {
            durable::create_dir_all(&layout.fills())?;
            durable::create_dir_all(&layout.locks())?;
        }
        Ok(Self::over(layout, options))
    }

    /// The tree with these paths, of which nothing is made or looked at yet.
    pub fn over(layout: Layout, options: StoreOptions) -> Self {
        let content_bytes = if options.evictable { CONTENT_BYTES_CACHE } else { CONTENT_BYTES_LOCAL };
        Self {
            handles: handles::Handles::new(options.handles_max, content_bytes),
            layout,
            options,
            usage: Usage::default(),
            listings: Listings::default(),
        }
    }

    /// The paths of this tree.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How much the tree takes.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// The blob that `repository` links under `digest`; `None` if it links none or the blob is not held.
    ///
    /// # Errors
    /// Reading the disk failed. Absence is not an error.
    pub async fn find(
        &self,
        files: &Files,
        repository: &StoredRepository,
        kind: LinkKind,
        digest: &Digest,
    ) -> io::Result<Looked<Option<Arc<Blob>>>> {
        let found = match self.handles.known(repository, kind, digest) {
            Some(found) => found,
            None => self.handles.linked(files, &self.layout, repository, kind, digest).await?,
        };
        self.used(kind, found.value.as_ref());
        Ok(found)
    }

    /// As [`Store::find`], but an absence that was seen before `since` does not count: another process may have taken a
    /// push after that, from a client that then asked this one. For who is about to say that there is nothing.
    pub async fn find_now(
        &self,
        files: &Files,
        repository: &StoredRepository,
        kind: LinkKind,
        digest: &Digest,
        since: Instant,
    ) -> io::Result<Looked<Option<Arc<Blob>>>> {
        let found = self.find(files, repository, kind, digest).await?;
        if found.value.is_some() || found.at >= since {
            return Ok(found);
        }
        self.handles.forget_link(repository, kind, digest);
        self.find(files, repository, kind, digest).await
    }

    /// The blob, whichever repository it belongs to: for a caller that has established the right to it otherwise.
    pub async fn blob(&self, files: &Files, digest: &Digest) -> io::Result<Option<Arc<Blob>>> {
        let blob = self.handles.blob(files, &self.layout, digest).await?.value;
        self.used(LinkKind::Layer, blob.as_ref());
        Ok(blob)
    }

    /// Records the use of what may be evicted, and of manifests, whose age can count from it.
    fn used(&self, kind: LinkKind, blob: Option<&Arc<Blob>>) {
        if let Some(blob) = blob
            && (self.options.evictable || kind == LinkKind::Manifest)
        {
            blob.touch(&self.layout);
        }
    }

    /// Whether `repository` links `digest`; of an absence see [`Store::find_now`].
    pub async fn is_linked(
        &self,
        files: &Files,
        repository: &StoredRepository,
        kind: LinkKind,
        digest: &Digest,
    ) -> io::Result<bool> {
        let begun = Instant::now();
        let link = self.handles.link(files, &self.layout, repository, kind, digest).await?;
        if link.value.is_some() || link.at >= begun {
            return Ok(link.value.is_some());
        }
        self.handles.forget_link(repository, kind, digest);
        Ok(self.handles.link(files, &self.layout, repository, kind, digest).await?.value.is_some())
    }

    /// What a tag points at.
    pub async fn tag(
        &self,
        files: &Files,
        repository: &StoredRepository,
        tag: &Tag,
    ) -> io::Result<Option<TagLink>> {
        self.handles.tag(files, &self.layout, repository, tag).await
    }

    /// Makes `digest` reachable through `repository` of `cache`; a power cut may take that back.
    pub async fn link(
        self: &Arc<Self>,
        repository: &StoredRepository,
        kind: LinkKind,
        digest: &Digest,
    ) -> io::Result<()> {
        let (repository, digest) = (repository.clone(), *digest);
        self.blocking(move |store| {
            let linked = refs::link(&store.layout, &repository, kind, &digest, store.durability());
            store.handles.forget_link(&repository, kind, &digest);
            linked
        })
        .await
    }

    /// Stores a fetched manifest whose digest the caller has verified, and links it.
    pub async fn put_manifest(
        self: &Arc<Self>,
        repository: &StoredRepository,
        digest: &Digest,
        content: Bytes,
    ) -> io::Result<()> {
        let (repository, digest) = (repository.clone(), *digest);
        self.blocking(move |store| {
            let added = ingest::publish_small(&store.layout, &digest, &content)?;
            store.usage.published(digest, added);
            let kind = LinkKind::Manifest;
            let linked = refs::link(&store.layout, &repository, kind, &digest, store.durability());
            store.handles.forget_link(&repository, LinkKind::Manifest, &digest);
            linked
        })
        .await
    }

    /// Points a tag of `cache` at a manifest, confirmed now.
    pub async fn set_tag(
        self: &Arc<Self>,
        repository: &StoredRepository,
        tag: &Tag,
        digest: &Digest,
    ) -> io::Result<()> {
        let (repository, tag, digest) = (repository.clone(), tag.clone(), *digest);
        self.blocking(move |store| {
            let result = refs::set_tag(&store.layout, &repository, &tag, &digest, store.durability());
            // Whatever came of it: a failure may have come after the change.
            store.handles.forget_tag(&repository, &tag);
            result
        })
        .await
    }

    /// Records that a tag was confirmed now.
    pub async fn confirm_tag(self: &Arc<Self>, repository: &StoredRepository, tag: &Tag) -> io::Result<()> {
        let (repository, tag) = (repository.clone(), tag.clone());
        self.blocking(move |store| {
            let result = refs::confirm_tag(&store.layout, &repository, &tag);
            // Whatever came of it: a failure may have come after the change.
            store.handles.forget_tag(&repository, &tag);
            result
        })
        .await
    }

    /// Removes a tag. Says whether there was one.
    pub async fn remove_tag(self: &Arc<Self>, repository: &StoredRepository, tag: &Tag) -> io::Result<bool> {
        let (repository, tag) = (repository.clone(), tag.clone());
        self.blocking(move |store| {
            let result = refs::remove_tag(&store.layout, &repository, &tag, None, store.durability());
            // Whatever came of it: a failure may have come after the change.
            store.handles.forget_tag(&repository, &tag);
            result
        })
        .await
    }

    /// Begins an upload into `repository`; `None` if it has too many.
    pub async fn begin_upload(
        self: &Arc<Self>,
        repository: &StoredRepository,
        algorithm: Algorithm,
        limits: UploadLimits,
    ) -> io::Result<Option<Box<Upload>>> {
        let repository = repository.clone();
        self.blocking(move |store| Upload::begin(&store.layout, &repository, algorithm, &limits)).await
    }

    /// Goes on with an upload.
    pub async fn open_upload(
        self: &Arc<Self>,
        repository: &StoredRepository,
        id: &UploadId,
        limits: UploadLimits,
    ) -> io::Result<Opened> {
        let (repository, id) = (repository.clone(), id.clone());
        self.blocking(move |store| Upload::open(&store.layout, &repository, &id, &limits)).await
    }

    /// Makes an upload a blob. Errors: see [`Unfinished`].
    pub async fn finish_upload(
        self: &Arc<Self>,
        repository: &StoredRepository,
        upload: Box<Upload>,
        digest: &Digest,
    ) -> Result<(), Unfinished> {
        let (repository, digest) = (repository.clone(), *digest);
        let finishing = self.blocking(move |store| {
            let finished = upload.finish(&digest);
            store.handles.forget_link(&repository, LinkKind::Layer, &digest);
            Ok(finished.map(|added| store.usage.published(digest, added)))
        });
        finishing.await?
    }

    /// Stores a small blob whose digest the caller has verified, and links it, durably.
    pub async fn put_blob(
        self: &Arc<Self>,
        repository: &StoredRepository,
        digest: &Digest,
        content: Bytes,
    ) -> io::Result<()> {
        let (repository, digest) = (repository.clone(), *digest);
        self.blocking(move |store| {
            let added = push::small_blob(&store.layout, &repository, &digest, &content);
            store.handles.forget_link(&repository, LinkKind::Layer, &digest);
            store.usage.published(digest, added?);
            Ok(())
        })
        .await
    }

    /// Links a blob that this tree holds into another repository, durably. `false`: it is not held.
    pub async fn link_held(
        self: &Arc<Self>,
        repository: &StoredRepository,
        kind: LinkKind,
        digest: &Digest,
    ) -> io::Result<bool> {
        let (repository, digest) = (repository.clone(), *digest);
        self.blocking(move |store| {
            let linked = push::link_held(&store.layout, &repository, kind, &digest);
            store.handles.forget_link(&repository, kind, &digest);
            linked
        })
        .await
    }

    /// Promises a client that the blob which `repository` links stays for a manifest that it is about to push. `false`:
    /// there is none, whatever was seen a moment ago.
    pub async fn promise(
        self: &Arc<Self>,
        repository: &StoredRepository,
        digest: &Digest,
    ) -> io::Result<bool> {
        let (repository, digest) = (repository.clone(), *digest);
        self.blocking(move |store| {
            let promised = push::promise(&store.layout, &repository, &digest);
            if !matches!(promised, Ok(true)) {
                store.handles.forget_link(&repository, LinkKind::Layer, &digest);
                store.forget(&digest);
            }
            promised
        })
        .await
    }

    /// Takes a blob over from another tree into `repository`, durably. `false`: it is not there.
    pub async fn adopt(
        self: &Arc<Self>,
        from: &Arc<Self>,
        repository: &StoredRepository,
        kind: LinkKind,
        digest: &Digest,
    ) -> io::Result<bool> {
        let (from, repository, digest) = (Arc::clone(from), repository.clone(), *digest);
        self.blocking(move |store| {
            let adopted = push::adopt(&store.layout, &from.layout, &repository, kind, &digest);
            store.handles.forget_link(&repository, kind, &digest);
            Ok(adopted?.map(|added| store.usage.published(digest, added)).is_some())
        })
        .await
    }

    /// Stores a pushed manifest with its tags, durably. `Ok(Err(…))`: so much of what it needs is not there.
    pub async fn push_manifest(
        self: &Arc<Self>,
        repository: &StoredRepository,
        pushed: PushedManifest,
    ) -> io::Result<Result<(), Vec<Digest>>> {
        let repository = repository.clone();
        self.blocking(move |store| {
            let result = push::manifest(&store.layout, &repository, &pushed);
            store.handles.forget_link(&repository, LinkKind::Manifest, &pushed.digest);
            for tag in &pushed.tags {
                store.handles.forget_tag(&repository, tag);
            }
            renew_generation();
            Ok(result?.map(|added| store.usage.published(pushed.digest, added)))
        })
        .await
    }

    /// Takes a blob from a repository, durably. Says whether it had it.
    pub async fn unlink_blob(
        self: &Arc<Self>,
        repository: &StoredRepository,
        digest: &Digest,
    ) -> io::Result<bool> {
        let (repository, digest) = (repository.clone(), *digest);
        self.blocking(move |store| {
            let result = refs::unlink(&store.layout, &repository, LinkKind::Layer, &digest);
            store.handles.forget_link(&repository, LinkKind::Layer, &digest);
            renew_generation();
            result
        })
        .await
    }

    /// Takes a manifest from a repository, with the tags that point at it, which it gives. `None`: it was not there.
    pub async fn remove_manifest(
        self: &Arc<Self>,
        repository: &StoredRepository,
        digest: &Digest,
        subject: Option<Digest>,
    ) -> io::Result<Option<Vec<Tag>>> {
        let (repository, digest) = (repository.clone(), *digest);
        self.blocking(move |store| {
            let result = push::remove_manifest(&store.layout, &repository, &digest, subject.as_ref());
            store.handles.forget_link(&repository, LinkKind::Manifest, &digest);
            for tag in result.iter().flatten().flatten() {
                store.handles.forget_tag(&repository, tag);
            }
            renew_generation();
            result
        })
        .await
    }

    /// The manifests of a repository that are known to have `subject` as their subject, in order, at most `max`.
    pub async fn referrers(
        self: &Arc<Self>,
        repository: &StoredRepository,
        subject: &Digest,
        max: usize,
    ) -> io::Result<Vec<Digest>> {
        let (repository, subject) = (repository.clone(), *subject);
        self.blocking(move |store| refs::referrers(&store.layout, &repository, &subject, max)).await
    }

    /// The first `n` tags of a repository after `last`; `None` if the tree does not know it.
    pub async fn tags(
        self: &Arc<Self>,
        repository: &StoredRepository,
        last: Option<&str>,
        n: usize,
    ) -> io::Result<Option<Page<Tag>>> {
        let (repository, last) = (repository.clone(), last.map(str::to_owned));
        self.blocking(move |store| store.listings.tags(&store.layout, &repository, last.as_deref(), n)).await
    }

    /// The first `n` repositories after `last` that have something to pull, of those below `below` if that is given.
    pub async fn repositories(
        self: &Arc<Self>,
        below: Option<&str>,
        last: Option<&str>,
        n: usize,
    ) -> io::Result<Page<String>> {
        let (below, last) = (below.map(str::to_owned), last.map(str::to_owned));
        self.blocking(move |store| {
            let (below, last) = (below.as_deref(), last.as_deref());
            // A page without what cannot be read would say that it does not exist.
            store.listings.repositories(&store.layout, below, last, n, &mut Err)
        })
        .await
    }

    /// Forgets an open blob, so that the next look goes to the disk.
    pub fn forget(&self, digest: &Digest) {
        self.handles.forget(digest);
    }

    /// Forgets where a link leads, which was removed.
    pub(crate) fn forget_link(&self, repository: &StoredRepository, kind: LinkKind, digest: &Digest) {
        self.handles.forget_link(repository, kind, digest);
        renew_generation();
    }

    /// Forgets what a tag points at, which was removed.
    pub(crate) fn forget_tag(&self, repository: &StoredRepository, tag: &Tag) {
        self.handles.forget_tag(repository, tag);
        renew_generation();
    }

    /// Forgets open blobs that were removed, by whomever. Blocks, briefly.
    pub fn forget_removed(&self) -> usize {
        self.handles.forget_removed()
    }

    /// Whether somebody in this process is sending this blob.
    pub fn is_in_use(&self, digest: &Digest) -> bool {
        self.handles.is_in_use(digest)
    }

    /// What is known of a blob's use beyond what is on disk: its last use in this process, in milliseconds since the epoch.
    pub fn last_use_ms(&self, digest: &Digest) -> u64 {
        self.handles.last_use_ms(digest)
    }

    /// What was pushed must last before the client hears of it; what was fetched can be fetched again.
    fn durability(&self) -> Durability {
        if self.options.evictable { Durability::Relaxed } else { Durability::Synced }
    }

    /// Runs `work` on a store thread. Dropping the future lets the work finish unobserved.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let store = Arc::clone(self);
        on_store_thread(move || work(&store)).await
    }
}

/// Runs `work` on a store thread. Dropping the future lets the work finish unobserved.
pub async fn on_store_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error)),
    }
}
