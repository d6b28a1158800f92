//! What is copied to: a registry, or the tree of one on disk.
//!
//! Both take the same steps, told apart here and where a blob's bytes are sent. A tree is written as a server's own pushes
//! are, under the same locks, so one may run on it meanwhile, and so may whoever collects garbage: a manifest is stored only
//! if what it needs is there at that moment.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::error::CopyError;
use super::image::Node;
use super::retry::Health;
use super::source::counted;
use crate::oci::manifest::Kind as ManifestKind;
use crate::oci::{Descriptor, Digest, Manifest, Reference, RepositoryName, Tag, media_type};
use crate::store::{LinkKind, PushedManifest, Store, StoredRepository};
use crate::sys::files::Files;
use crate::upstream::{ManifestTaken, Upstream, UpstreamConfigError, UpstreamError, UpstreamOptions};

/// The longest manifest that is read from a tree, in bytes.
const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Referrers of one manifest that are looked at.
const REFERRERS_MAX: usize = 10_000;

/// Where images go. Keeps its connections and tokens as long as it lives.
#[derive(Debug)]
pub struct Target {
    name: String,
    pub(super) kind: Kind,
    pub(super) health: Health,
}

#[derive(Debug)]
pub(super) enum Kind {
    Registry { upstream: Box<Upstream>, requests: Arc<AtomicU64> },
    Tree(Arc<Store>),
}

/// What became of a manifest.
#[derive(Debug)]
pub(super) enum Put {
    /// It is there. Whether the target itself keeps the list of its subject's referrers.
    Done { knows_subject: bool },
    /// Not without what it needs, some of which the target no longer has; in its words.
    Missing(String),
}

impl Target {
    /// The registry that `options` lead to, mirrors apart. `name` is for messages: as the operator wrote it. Contacts
    /// nobody.
    pub fn registry(
        name: impl Into<String>,
        mut options: UpstreamOptions,
    ) -> Result<Self, UpstreamConfigError> {
        options.pushes = true;
        options.mirrors.clear();
        let (options, requests) = counted(options);
        let upstream = Box::new(Upstream::new(options)?);
        Ok(Self::of(name.into(), Kind::Registry { upstream, requests }))
    }

    /// A tree that is not evicted from, on which a server may run meanwhile, in this process or in another.
    pub fn tree(name: impl Into<String>, store: Arc<Store>) -> Self {
        Self::of(name.into(), Kind::Tree(store))
    }

    fn of(name: String, kind: Kind) -> Self {
        Self { health: Health::of(format!("target {name}")), name, kind }
    }

    /// The name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Why nothing can be written there, where that is plain before anything is asked.
    pub(super) fn unusable(&self) -> Option<String> {
        let Kind::Tree(store) = &self.kind else { return None };
        let root = store.layout().root();
        let is_file = std::fs::metadata(root).is_ok_and(|meta| !meta.is_dir());
        is_file.then(|| format!("cannot use {}: not a directory", root.display()))
    }

    /// The disk did not do `what`.
    pub(super) fn disk(&self, what: &'static str, cause: io::Error) -> CopyError {
        CopyError::Disk { target: self.name.clone(), what, cause: Arc::new(cause) }
    }

    /// Requests made so far.
    pub(super) fn requests(&self) -> u64 {
        match &self.kind {
            Kind::Registry { requests, .. } => requests.load(Ordering::Relaxed),
            Kind::Tree(_) => 0,
        }
    }

    /// The tags of a repository; none if it does not exist.
    pub(super) async fn tags(&self, repository: &RepositoryName) -> Result<Vec<Tag>, CopyError> {
        match &self.kind {
            Kind::Registry { upstream, .. } => match upstream.tags(repository).await {
                Err(error) if error.is_absence() => Ok(Vec::new()),
                tags => tags.map_err(CopyError::Target),
            },
            Kind::Tree(store) => {
                let listed = store.tags(&StoredRepository::local(repository), None, usize::MAX).await;
                let listed = listed.map_err(|error| self.disk("list tags", error))?;
                Ok(listed.map(|page| page.entries).unwrap_or_default())
            }
        }
    }

    /// The manifest that a tag points at.
    pub(super) async fn tagged(
        &self,
        files: &Files,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<Option<Digest>, CopyError> {
        match &self.kind {
            Kind::Registry { upstream, .. } => {
                let reference = Reference::Tag(tag.clone());
                let head = match upstream.manifest_head(repository, &reference).await {
                    Err(error) if error.is_absence() => return Ok(None),
                    head => head.map_err(CopyError::Target)?,
                };
                if let Some(digest) = head.digest {
                    return Ok(Some(digest));
                }
                match upstream.manifest(repository, &reference).await {
                    Err(error) if error.is_absence() => Ok(None),
                    fetched => Ok(Some(fetched.map_err(CopyError::Target)?.digest)),
                }
            }
            Kind::Tree(store) => {
                let link = store.tag(files, &StoredRepository::local(repository), tag).await;
                Ok(link.map_err(|error| self.disk("read a tag", error))?.map(|link| link.digest))
            }
        }
    }

    /// Whether a manifest is there.
    pub(super) async fn has_manifest(
        &self,
        files: &Files,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<bool, CopyError> {
        match &self.kind {
            Kind::Registry { upstream, .. } => {
                match upstream.manifest_head(repository, &Reference::Digest(*digest)).await {
                    Ok(_) => Ok(true),
                    Err(error) if error.is_absence() => Ok(false),
                    Err(error) => Err(CopyError::Target(error)),
                }
            }
            Kind::Tree(store) => {
                let repository = StoredRepository::local(repository);
                let found = store.find_now(files, &repository, LinkKind::Manifest, digest, Instant::now());
                let found = found.await.map_err(|error| self.disk("look for a manifest", error))?;
                Ok(found.value.is_some())
            }
        }
    }

    /// A manifest's bytes and media type, if that is told; `None` if it is not there.
    pub(super) async fn manifest(
        &self,
        files: &Files,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Option<(bytes::Bytes, Option<String>)>, CopyError> {
        match &self.kind {
            Kind::Registry { upstream, .. } => match upstream.manifest(repository, reference).await {
                Ok(fetched) => Ok(Some((fetched.bytes, fetched.media_type))),
                Err(error) if error.is_absence() => Ok(None),
                Err(error) => Err(CopyError::Target(error)),
            },
            Kind::Tree(store) => {
                let digest = match reference {
                    Reference::Digest(digest) => Some(*digest),
                    Reference::Tag(tag) => self.tagged(files, repository, tag).await?,
                };
                let Some(digest) = digest else { return Ok(None) };
                let failed = |error| self.disk("read a manifest", error);
                let repository = StoredRepository::local(repository);
                let found = store.find_now(files, &repository, LinkKind::Manifest, &digest, Instant::now());
                let Some(blob) = found.await.map_err(failed)?.value else { return Ok(None) };
                let bytes = blob.content(files, MANIFEST_BYTES_MAX).await.map_err(failed)?;
                Ok(Some((bytes, None)))
            }
        }
    }

    /// Whether a repository has a blob. In a tree it is as young as a new one then.
    pub(super) async fn has_blob(
        &self,
        files: &Files,
        repository: &RepositoryName,
        digest: &Digest,
        renew: bool,
    ) -> Result<bool, CopyError> {
        match &self.kind {
            Kind::Registry { upstream, .. } => match upstream.blob_head(repository, digest).await {
                Ok(_) => Ok(true),
                Err(error) if error.is_absence() => Ok(false),
                Err(error) => Err(CopyError::Target(error)),
            },
            Kind::Tree(store) => {
                let repository = StoredRepository::local(repository);
                let failed = |error| self.disk("look for a blob", error);
                let kind = LinkKind::Layer;
                let is_linked = store.is_linked(files, &repository, kind, digest).await.map_err(failed)?;
                if !is_linked || !renew {
                    return Ok(is_linked && store.blob(files, digest).await.map_err(failed)?.is_some());
                }
                store.link_held(&repository, kind, digest).await.map_err(failed)
            }
        }
    }

    /// Stores a manifest, and points `tag` at it.
    pub(super) async fn put(
        &self,
        repository: &RepositoryName,
        node: &Node,
        tag: Option<&Tag>,
    ) -> Result<Put, CopyError> {
        match &self.kind {
            Kind::Registry { upstream, .. } => {
                let reference = tag.map_or(Reference::Digest(node.digest), |tag| Reference::Tag(tag.clone()));
                let put = upstream.put_manifest(repository, &reference, &node.media_type, node.bytes.clone());
                match put.await {
                    // The name of a signed schema 1 manifest is that of its payload, or of all its bytes.
                    Ok(ManifestTaken { digest: Some(named), .. })
                        if named != Digest::of(named.algorithm(), &node.bytes)
                            && node.media_type != media_type::DOCKER_SCHEMA1_SIGNED =>
                    {
                        let sent = node.digest;
                        Err(CopyError::Unfit(format!("the target made {named} of it, which was sent {sent}")))
                    }
                    Ok(taken) => Ok(Put::Done { knows_subject: taken.knows_subject }),
                    Err(error) if lacks_blobs(&error) => Ok(Put::Missing(error.to_string())),
                    Err(error) => Err(CopyError::Target(error)),
                }
            }
            Kind::Tree(store) => {
                let pushed = PushedManifest {
                    // The name under which a signed schema 1 manifest is stored is that of all its bytes, as of any other.
                    digest: Digest::of(node.digest.algorithm(), &node.bytes),
                    content: node.bytes.clone(),
                    needed: node.needed.clone(),
                    subject: node.subject,
                    tags: tag.cloned().into_iter().collect(),
                };
                let put = store.push_manifest(&StoredRepository::local(repository), pushed).await;
                match put.map_err(|error| self.disk("store a manifest", error))? {
                    Ok(()) => Ok(Put::Done { knows_subject: true }),
                    Err(missing) => {
                        let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
                        Ok(Put::Missing(format!("{} lacks {}", self.name, missing.join(", "))))
                    }
                }
            }
        }
    }

    /// The manifests that have `subject` as their subject; of a registry that keeps no such list, those under its fallback
    /// tag.
    pub(super) async fn referrers(
        &self,
        files: &Files,
        repository: &RepositoryName,
        subject: &Digest,
    ) -> Result<Vec<Digest>, CopyError> {
        match &self.kind {
            Kind::Registry { upstream, .. } => match upstream.referrers(repository, subject).await {
                Ok(found) => Ok(found.into_iter().map(|descriptor| descriptor.digest).collect()),
                Err(error) if error.is_absence() => {
                    let listed = self.fallback(files, repository, subject).await?;
                    Ok(listed.into_iter().map(|descriptor| descriptor.digest).collect())
                }
                Err(error) => Err(CopyError::Target(error)),
            },
            Kind::Tree(store) => {
                let found =
                    store.referrers(&StoredRepository::local(repository), subject, REFERRERS_MAX).await;
                found.map_err(|error| self.disk("list referrers", error))
            }
        }
    }

    /// What the fallback tag of `subject` lists. Fails if that is nothing that lists anything.
    pub(super) async fn fallback(
        &self,
        files: &Files,
        repository: &RepositoryName,
        subject: &Digest,
    ) -> Result<Vec<Descriptor>, CopyError> {
        let Some(tag) = fallback_tag(subject) else { return Ok(Vec::new()) };
        let Some((bytes, media_type)) = self.manifest(files, repository, &Reference::Tag(tag)).await? else {
            return Ok(Vec::new());
        };
        match Manifest::parse(&bytes, media_type.as_deref()) {
            Ok(index) if index.kind == ManifestKind::Index => Ok(index.manifests),
            // Written over, it would be lost.
            _ => {
                Err(CopyError::Unfit(format!("the target's list of the referrers of {subject} is no index")))
            }
        }
    }

    /// Stores the list of `subject`'s referrers under its fallback tag.
    pub(super) async fn put_fallback(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
        index: bytes::Bytes,
    ) -> Result<(), CopyError> {
        let Kind::Registry { upstream, .. } = &self.kind else { return Ok(()) };
        let Some(tag) = fallback_tag(subject) else { return Ok(()) };
        let tag = Reference::Tag(tag);
        let put = upstream.put_manifest(repository, &tag, media_type::OCI_INDEX, index);
        put.await.map(|_| ()).map_err(CopyError::Target)
    }

    /// Whether it takes an index of whose children it has only some.
    pub(super) fn takes_sparse_indexes(&self) -> bool {
        matches!(self.kind, Kind::Tree(_))
    }
}

/// The tag under which clients keep the list of a manifest's referrers where the registry does not: `sha256-<hex>`, cut to
/// a tag's length (OCI distribution spec 1.1, "Referrers Tag Schema").
pub(super) fn fallback_tag(subject: &Digest) -> Option<Tag> {
    let hex = subject.hex();
    format!("{}-{}", subject.algorithm(), hex.get(..64).unwrap_or(&hex)).parse().ok()
}

/// What registries answer to a manifest when something that it needs is not there: 400, or 404 by the specification. That
/// its own digest is wrong, which it is not, says distribution of an index if a child was just being written.
fn lacks_blobs(error: &UpstreamError) -> bool {
    let (UpstreamError::Refused { detail, .. } | UpstreamError::NotFound { detail, .. }) = error else {
        return false;
    };
    let codes = ["MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_UNKNOWN", "DIGEST_INVALID"];
    detail.as_deref().is_some_and(|detail| codes.iter().any(|code| detail.starts_with(code)))
}
