//! What an image consists of, and what of it the target lacks.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::error::CopyError;
use super::event::ImageName;
use super::run::Run;
use super::source::Source;
use crate::oci::manifest::Kind;
use crate::oci::{Descriptor, Digest, Manifest, Reference, RepositoryName, Tag};
use crate::store::LinkKind;
use crate::upstream::FetchedManifest;

/// How deep indexes may be nested.
const DEPTH_MAX: usize = 8;
/// The manifests of one image that are copied at once, in bytes.
const MANIFESTS_BYTES_MAX: usize = 16 << 20;
/// Manifests of one image that are fetched at once.
const FETCHES_AT_ONCE: usize = 4;

/// An image that is to be at the target.
pub(super) struct Job<'r, 'a> {
    pub(super) repository: &'r Rc<RepositoryName>,
    pub(super) image: &'r ImageName,
    /// What is to point at it.
    pub(super) tag: Option<&'r Tag>,
    /// What it is, if that is known.
    pub(super) digest: Option<Digest>,
    /// Who has it.
    pub(super) holders: &'r [&'a Source],
    /// The target's repository is empty, as far as is known.
    pub(super) is_new: bool,
}

/// A manifest that is to be pushed.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) digest: Digest,
    pub(super) media_type: String,
    pub(super) bytes: Bytes,
    /// What has to be in the repository for it.
    pub(super) needed: Vec<(LinkKind, Digest)>,
    pub(super) subject: Option<Digest>,
    /// How a list of referrers describes it.
    pub(super) described: Descriptor,
    blobs: Vec<Blob>,
}

/// A blob that a manifest needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    /// As the manifest says; schema 1 says nothing.
    pub(super) size: Option<u64>,
}

/// What an image consists of, without what the target has already.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// In the order in which they are pushed: children first, the image itself last.
    pub(super) nodes: Vec<Node>,
    /// Each once.
    pub(super) blobs: Vec<Blob>,
    /// Layers that are not for registries to hand out.
    pub(super) foreign: u64,
    /// Some children are left out because of their platform.
    pub(super) is_sparse: bool,
    /// All manifests, those that the target has included.
    pub(super) digests: Vec<Digest>,
    /// Who gave the image's own manifest.
    pub(super) source: &'a Source,
}

impl Plan<'_> {
    /// The image's own manifest.
    pub(super) fn root(&self) -> Result<&Node, CopyError> {
        self.nodes.last().ok_or_else(|| CopyError::Unfit("an image without a manifest".to_owned()))
    }

    /// What the blobs have together, as far as the manifests say.
    pub(super) fn bytes(&self) -> u64 {
        self.blobs.iter().filter_map(|blob| blob.size).fold(0, u64::saturating_add)
    }
}

impl<'a> Run<'a> {
    /// Fetches the manifests of an image. Children that the target has are left out, unless it is not to be trusted.
    pub(super) async fn plan(&self, job: &Job<'_, 'a>, trusts_target: bool) -> Result<Plan<'a>, CopyError> {
        let reference = job.digest.map_or_else(|| job.image.reference.clone(), Reference::Digest);
        let (root, source) = self.understood(job, &reference).await?;
        if job.digest.is_some_and(|digest| digest != root.0.digest) {
            let what = format!("it calls {} what is {}", reference, root.0.digest);
            return Err(CopyError::Content { source_name: source.name().to_owned(), what });
        }
        let mut plan = Plan {
            nodes: Vec::new(),
            blobs: Vec::new(),
            foreign: 0,
            is_sparse: false,
            digests: Vec::new(),
            source,
        };
        let root_digest = root.0.digest;
        let mut nodes: HashMap<Digest, Node> = HashMap::new();
        let mut seen: HashSet<Digest> = HashSet::from([root_digest]);
        let mut bytes = 0;
        let mut level = vec![root];
        for _ in 0..=DEPTH_MAX {
            let mut children = Vec::new();
            for (node, manifest) in level {
                bytes += node.bytes.len();
                if bytes > MANIFESTS_BYTES_MAX {
                    let max = MANIFESTS_BYTES_MAX >> 20;
                    return Err(CopyError::Unfit(format!("its manifests have more than {max} MiB together")));
                }
                plan.foreign += manifest.layers.iter().filter(|layer| layer.is_foreign()).count() as u64;
                let chosen = self.chosen(&manifest);
                if chosen.is_empty() && !manifest.manifests.is_empty() && node.digest == root_digest {
                    return Err(CopyError::Unfit("none of its platforms is selected".to_owned()));
                }
                plan.is_sparse |= chosen.len() < manifest.manifests.len();
                children.extend(chosen.into_iter().filter(|child| seen.insert(*child)));
                nodes.insert(node.digest, node);
            }
            plan.digests.extend(&children);
            let fetched = children.into_iter().map(|child| self.child(job, child, trusts_target));
            let fetched = stream::iter(fetched).buffer_unordered(FETCHES_AT_ONCE);
            level = fetched.try_filter_map(|found| async move { Ok(found) }).try_collect().await?;
            if level.is_empty() {
                plan.digests.push(root_digest);
                plan.order(&root_digest, &mut nodes);
                plan.gather_blobs();
                return Ok(plan);
            }
        }
        Err(CopyError::Unfit(format!("its indexes are nested more than {DEPTH_MAX} deep")))
    }

    /// A child's manifest; `None` if the target has it.
    async fn child(
        &self,
        job: &Job<'_, 'a>,
        child: Digest,
        trusts_target: bool,
    ) -> Result<Option<(Node, Manifest)>, CopyError> {
        if trusts_target && !job.is_new {
            let has = self.retrying(job.image, &self.target.health, async || {
                self.target.has_manifest(&self.files, job.repository, &child).await
            });
            if has.await? {
                return Ok(None);
            }
        }
        let (found, _) = self.understood(job, &Reference::Digest(child)).await?;
        Ok(Some(found))
    }

    /// A manifest from one of its sources.
    pub(super) async fn fetch(
        &self,
        image: &ImageName,
        holders: &[&'a Source],
        reference: &Reference,
    ) -> Result<(FetchedManifest, &'a Source), CopyError> {
        let fetching = self.ask(image, holders, async |source| {
            source.upstream.manifest(&image.repository, reference).await.map_err(CopyError::Source)
        });
        fetching.await
    }

    /// A manifest that the target has, and its media type, if that is told.
    pub(super) async fn at_target(
        &self,
        image: &ImageName,
        reference: &Reference,
    ) -> Result<Option<(Bytes, Option<String>)>, CopyError> {
        let asking = self.retrying(image, &self.target.health, async || {
            self.target.manifest(&self.files, &image.repository, reference).await
        });
        asking.await
    }

    async fn understood(
        &self,
        job: &Job<'_, 'a>,
        reference: &Reference,
    ) -> Result<((Node, Manifest), &'a Source), CopyError> {
        let (fetched, source) = self.fetch(job.image, job.holders, reference).await?;
        let manifest = Manifest::parse_strict(&fetched.bytes, fetched.media_type.as_deref());
        let manifest = manifest.map_err(|error| CopyError::Content {
            source_name: source.name().to_owned(),
            what: format!("{reference}: {error}"),
        })?;
        let node = self.node(fetched.digest, fetched.bytes, &manifest);
        Ok(((node, manifest), source))
    }

    fn node(&self, digest: Digest, bytes: Bytes, manifest: &Manifest) -> Node {
        let blobs: Vec<_> =
            manifest.blobs().map(|blob| Blob { digest: blob.digest, size: blob.size }).collect();
        let children = self.chosen(manifest).into_iter().map(|child| (LinkKind::Manifest, child));
        let layers = blobs.iter().map(|blob| (LinkKind::Layer, blob.digest));
        let mut seen = HashSet::new();
        let needed = layers.chain(children).filter(|needed| seen.insert(*needed)).collect();
        let described = Descriptor {
            media_type: Some(manifest.media_type.clone()),
            size: Some(bytes.len() as u64),
            artifact_type: manifest.referrer_type().map(str::to_owned),
            annotations: manifest.annotations.clone(),
            ..Descriptor::new(digest)
        };
        Node {
            digest,
            media_type: manifest.media_type.clone(),
            bytes,
            needed,
            subject: manifest.subject.as_ref().map(|subject| subject.digest),
            described,
            blobs,
        }
    }

    /// The children of an index that are selected by their platform; an attestation goes with the child that it is about.
    pub(super) fn chosen(&self, manifest: &Manifest) -> Vec<Digest> {
        if manifest.kind == Kind::Image || !self.selection.has_platforms() {
            return manifest.manifests.iter().map(|child| child.digest).collect();
        }
        let by_platform = |child: &&Descriptor| {
            attested(child).is_none()
                && child.platform.as_ref().is_none_or(|platform| self.selection.platform(platform))
        };
        let chosen: HashSet<_> =
            manifest.manifests.iter().filter(by_platform).map(|child| child.digest).collect();
        let is_chosen = |child: &&Descriptor| {
            chosen.contains(&child.digest) || attested(child).is_some_and(|about| chosen.contains(&about))
        };
        manifest.manifests.iter().filter(is_chosen).map(|child| child.digest).collect()
    }

    /// Whether the target has the selected children of a manifest that it has: an index that came while fewer platforms
    /// were selected has them not.
    pub(super) async fn is_whole(&self, image: &ImageName, digest: &Digest) -> Result<bool, CopyError> {
        if !self.target.takes_sparse_indexes() {
            return Ok(true);
        }
        let found = self.at_target(image, &Reference::Digest(*digest)).await?;
        let Some((bytes, _)) = found else { return Ok(false) };
        let Ok(manifest) = Manifest::parse(&bytes, None) else { return Ok(true) };
        for child in self.chosen(&manifest) {
            if !self.target.has_manifest(&self.files, &image.repository, &child).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Plan<'_> {
    /// Moves a manifest behind its children, and these behind theirs. No deeper than they were fetched.
    fn order(&mut self, digest: &Digest, nodes: &mut HashMap<Digest, Node>) {
        let Some(node) = nodes.remove(digest) else { return };
        for (kind, child) in &node.needed {
            if *kind == LinkKind::Manifest {
                self.order(child, nodes);
            }
        }
        self.nodes.push(node);
    }

    fn gather_blobs(&mut self) {
        let mut seen = HashSet::new();
        let blobs = self.nodes.iter().flat_map(|node| &node.blobs);
        self.blobs = blobs.filter(|blob| seen.insert(blob.digest)).copied().collect();
    }
}

/// Which manifest of the same index an attestation is about (buildkit's "Attestation Storage").
fn attested(child: &Descriptor) -> Option<Digest> {
    child.annotations.get("vnd.docker.reference.digest")?.parse().ok()
}
