//! The only place that builds paths below a tree.
//!
//! A tree (`local` or `cache`) holds CNCF distribution's layout, so that distribution can serve what Spliceway wrote and
//! the reverse:
//!
//! ```text
//! docker/registry/v2/blobs/<alg>/<hex[0:2]>/<hex>/data
//! docker/registry/v2/repositories/<repository>/_layers/<alg>/<hex>/link
//! docker/registry/v2/repositories/<repository>/_manifests/revisions/<alg>/<hex>/link
//! docker/registry/v2/repositories/<repository>/_manifests/tags/<tag>/current/link
//! docker/registry/v2/repositories/<repository>/_manifests/tags/<tag>/index/<alg>/<hex>/link
//! docker/registry/v2/repositories/<repository>/_uploads/<uuid>/{data,startedat,hashstates/<alg>/<offset>}
//! ```
//!
//! and beside it what is Spliceway's own:
//!
//! ```text
//! docker/registry/v2/repositories/<repository>/_manifests/referrers/<alg>/<hex>/<alg>/<hex>/link
//!                                         which manifests have the first digest as their subject
//! fills/<alg>/<hex>/{data,state.json}     a fill in progress (or interrupted)
//! fills/v1/<image>/{data,state.json}      the same of a layer of the Docker v1 protocol (see `images`)
//! fills/tmp/<random>                      a small file on its way to its name; swept at start
//! locks/<00..ff>                          one of 256 shards: publishing, linking and sweeping a digest or an image
//! locks/tags-<00..ff>                     one of 256 shards: setting and removing a tag of `local`
//! locks/evict                             held by the one process that evicts
//! locks/{uploads,stale}                   held by the one process that does this job; when it was done last
//! locks/gc                                held by the one process that collects garbage or removes images
//! locks/scrub, locks/scrub.json           held by the one process that scrubs in the background; how far it has come
//! quarantine/<alg>/<hex>.<seconds>        a blob that was not what its name says, and when it was set aside (see
//!                                         `quarantine`)
//! ```
//!
//! What the Docker v1 protocol has is stored as docker-registry 0.9 stores it, at the root of the tree (the first and the
//! third line; the second and the fourth are Spliceway's own):
//!
//! ```text
//! images/<image>/{layer,json,ancestry,_checksum,_inprogress}
//! images/<image>/{_public,_size}                         who may have it; what its source says its layer has
//! repositories/<namespace>/<repository>/{tag_<tag>,_index_images,json}
//! repositories/<namespace>/<repository>/{_tags.json,_tag_<tag>.json}     answers of the source, kept
//! ```

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::images::{ImageFile, ImageId};
use super::upload::UploadId;
use crate::oci::{Algorithm, Digest, RepositoryName, Tag};

/// A repository as it is stored: in `local` under its own name, in `cache` as `<upstream>/<canonical repository>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoredRepository(Arc<str>);

impl StoredRepository {
    /// A repository of the `local` tree.
    pub fn local(name: &RepositoryName) -> Self {
        Self(name.shared())
    }

    /// A repository of the `cache` tree. `upstream` is one path component: the configuration checks that.
    pub fn cached(upstream: &str, canonical: &RepositoryName) -> Self {
        debug_assert!(!upstream.contains('/') && upstream != ".." && !upstream.is_empty());
        Self(Arc::from([upstream, "/", canonical.as_str()].concat()))
    }

    /// A repository that was found on disk, whose name need not be one that the API takes.
    pub(crate) fn found(path: &str) -> Self {
        Self(path.into())
    }

    /// The path below `repositories/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StoredRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a link in a repository stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkKind {
    /// `_layers`: a blob that the repository may hand out.
    Layer,
    /// `_manifests/revisions`: a manifest of the repository.
    Manifest,
}

/// The paths of one tree.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
    registry: PathBuf,
}

impl Layout {
    /// The layout below `root`, the directory named `local` or `cache`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        let registry = root.join("docker/registry/v2");
        Self { root, registry }
    }

    /// The layout whose `blobs/` and `repositories/` are in `registry`, whatever that is called: distribution alone may
    /// have written it, so nothing of Spliceway's own is beside it.
    pub fn of_registry(registry: impl Into<PathBuf>) -> Self {
        let registry = registry.into();
        Self { root: registry.clone(), registry }
    }

    /// The directory that holds everything of this tree.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `blobs/`, which holds one directory per algorithm.
    pub fn blobs(&self) -> PathBuf {
        self.registry.join("blobs")
    }

    /// The directory of the blobs whose hash begins with the byte `shard`, one directory each.
    pub fn blobs_of(&self, algorithm: Algorithm, shard: u8) -> PathBuf {
        self.blobs().join(algorithm.as_str()).join(format!("{shard:02x}"))
    }

    /// A blob's file.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let mut path = self.blobs();
        path.extend([digest.algorithm().as_str(), &hex[..2], &hex, "data"]);
        path
    }

    /// `repositories/`.
    pub fn repositories(&self) -> PathBuf {
        self.registry.join("repositories")
    }

    /// The directory of one repository.
    pub fn repository(&self, repository: &StoredRepository) -> PathBuf {
        self.repositories().join(repository.as_str())
    }

    /// The link that makes `digest` reachable through `repository`.
    pub fn link(&self, repository: &StoredRepository, kind: LinkKind, digest: &Digest) -> PathBuf {
        let mut path = self.repository(repository);
        match kind {
            LinkKind::Layer => path.push("_layers"),
            LinkKind::Manifest => path.extend(["_manifests", "revisions"]),
        }
        path.extend([digest.algorithm().as_str(), &digest.hex(), "link"]);
        path
    }

    /// The directory that holds one directory per tag.
    pub fn tags(&self, repository: &StoredRepository) -> PathBuf {
        let mut path = self.repository(repository);
        path.extend(["_manifests", "tags"]);
        path
    }

    /// The directory of one tag.
    pub fn tag(&self, repository: &StoredRepository, tag: &Tag) -> PathBuf {
        self.tags(repository).join(tag.as_str())
    }

    /// The link that says what a tag points at now. Its modification time says when that was last confirmed upstream.
    pub fn tag_current(&self, repository: &StoredRepository, tag: &Tag) -> PathBuf {
        let mut path = self.tag(repository, tag);
        path.extend(["current", "link"]);
        path
    }

    /// The link that remembers that a tag once pointed at `digest`.
    pub fn tag_index(&self, repository: &StoredRepository, tag: &Tag, digest: &Digest) -> PathBuf {
        let mut path = self.tag(repository, tag);
        path.extend(["index", digest.algorithm().as_str(), &digest.hex(), "link"]);
        path
    }

    /// Where a repository's upload sessions live.
    pub fn uploads(&self, repository: &StoredRepository) -> PathBuf {
        self.repository(repository).join("_uploads")
    }

    /// The directory of one session.
    pub fn upload(&self, repository: &StoredRepository, id: &UploadId) -> PathBuf {
        self.uploads(repository).join(id.as_str())
    }

    /// What a session has received.
    pub fn upload_data(&self, repository: &StoredRepository, id: &UploadId) -> PathBuf {
        self.upload(repository, id).join("data")
    }

    /// When a session was begun.
    pub fn upload_started(&self, repository: &StoredRepository, id: &UploadId) -> PathBuf {
        self.upload(repository, id).join("startedat")
    }

    /// The directory of a session's hash states, each named by its offset.
    pub fn upload_states(
        &self,
        repository: &StoredRepository,
        id: &UploadId,
        algorithm: Algorithm,
    ) -> PathBuf {
        let mut path = self.upload(repository, id);
        path.extend(["hashstates", algorithm.as_str()]);
        path
    }

    /// A session's hash state over its first `offset` bytes.
    pub fn upload_state(
        &self,
        repository: &StoredRepository,
        id: &UploadId,
        algorithm: Algorithm,
        offset: u64,
    ) -> PathBuf {
        self.upload_states(repository, id, algorithm).join(offset.to_string())
    }

    /// The blobs that a repository hands out, one directory per algorithm.
    pub fn layers(&self, repository: &StoredRepository) -> PathBuf {
        self.repository(repository).join("_layers")
    }

    /// The digests that a tag ever pointed at, one directory per algorithm.
    pub fn tag_history(&self, repository: &StoredRepository, tag: &Tag) -> PathBuf {
        self.tag(repository, tag).join("index")
    }

    /// The manifests of a repository, one directory per algorithm.
    pub fn revisions(&self, repository: &StoredRepository) -> PathBuf {
        let mut path = self.repository(repository);
        path.extend(["_manifests", "revisions"]);
        path
    }

    /// Where distribution before 2.3 kept links to the signatures of the schema 1 manifest that `link` leads to.
    pub fn signatures(link: &Path) -> PathBuf {
        link.with_file_name("signatures")
    }

    /// The directory that remembers which manifests of a repository refer to `subject`.
    pub fn referrers(&self, repository: &StoredRepository, subject: &Digest) -> PathBuf {
        let mut path = self.repository(repository);
        path.extend(["_manifests", "referrers", subject.algorithm().as_str(), &subject.hex()]);
        path
    }

    /// The link that says that `referrer` refers to `subject`.
    pub fn referrer(&self, repository: &StoredRepository, subject: &Digest, referrer: &Digest) -> PathBuf {
        let mut path = self.referrers(repository, subject);
        path.extend([referrer.algorithm().as_str(), &referrer.hex(), "link"]);
        path
    }

    /// Where fills in progress live, one directory per algorithm.
    pub fn fills(&self) -> PathBuf {
        self.root.join("fills")
    }

    /// The directory of one fill.
    pub fn fill(&self, digest: &Digest) -> PathBuf {
        let mut path = self.fills();
        path.extend([digest.algorithm().as_str(), &digest.hex()]);
        path
    }

    /// Where layers of the Docker v1 protocol are filled, one directory per image.
    pub fn layer_fills(&self) -> PathBuf {
        self.fills().join("v1")
    }

    /// The directory of one layer's fill.
    pub fn layer_fill(&self, image: &ImageId) -> PathBuf {
        self.layer_fills().join(image.as_str())
    }

    /// The images of the Docker v1 protocol, one directory each.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// A file of an image.
    pub fn image(&self, image: &ImageId, file: ImageFile) -> PathBuf {
        let mut path = self.images();
        path.extend([image.as_str(), file.as_str()]);
        path
    }

    /// The repositories of the Docker v1 protocol, one directory per namespace.
    pub fn v1_repositories(&self) -> PathBuf {
        self.root.join("repositories")
    }

    /// The lock file of an image's shard, which it shares with digests.
    pub fn image_lock(&self, image: &ImageId) -> PathBuf {
        self.locks().join(&image.as_str()[..2])
    }

    /// Small files on their way to their name.
    pub fn temporary(&self) -> PathBuf {
        self.fills().join("tmp")
    }

    /// The lock file of a digest's shard.
    pub fn lock(&self, digest: &Digest) -> PathBuf {
        self.shard_lock(digest.shard())
    }

    /// The lock file of a shard of tags.
    pub fn tag_lock(&self, shard: u8) -> PathBuf {
        self.locks().join(format!("tags-{shard:02x}"))
    }

    /// The lock that the one who collects garbage or removes images holds.
    pub fn gc_lock(&self) -> PathBuf {
        self.locks().join("gc")
    }

    /// The lock file of a shard, by its number.
    pub fn shard_lock(&self, shard: u8) -> PathBuf {
        self.locks().join(format!("{shard:02x}"))
    }

    /// The lock that the one evictor of this directory holds.
    pub fn evict_lock(&self) -> PathBuf {
        self.locks().join("evict")
    }

    /// The lock of a job of maintenance, of which one at a time runs on this tree; its time of modification is when it ran
    /// last.
    pub fn job_lock(&self, job: &str) -> PathBuf {
        self.locks().join(job)
    }

    /// How far the scrub in the background has come.
    pub fn scrub_progress(&self) -> PathBuf {
        self.locks().join("scrub.json")
    }

    /// Where blobs are that were not what their names say, one directory per algorithm.
    pub fn quarantine(&self, algorithm: Algorithm) -> PathBuf {
        self.root.join("quarantine").join(algorithm.as_str())
    }

    /// The blob that was set aside that many seconds after 1970.
    pub fn quarantined(&self, digest: &Digest, seconds: u64) -> PathBuf {
        self.quarantine(digest.algorithm()).join(format!("{}.{seconds}", digest.hex()))
    }

    /// The directory of lock files.
    pub fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }
}
