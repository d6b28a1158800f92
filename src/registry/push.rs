//! `PUT` and `DELETE /v2/<name>/manifests/<reference>` (OCI distribution spec 1.1, "Pushing Manifests", "Deleting").
//!
//! A manifest is stored byte for byte, under the digest of its bytes. What it names must be in the repository: blobs and,
//! of an index, manifests; only foreign layers and the `subject` need not be. Of these, what the repository has in `cache`
//! alone is taken over into `local`, so that what was pushed never depends on what may be evicted; and what only upstream
//! has is fetched for that: a client that was told by HEAD that it is there has not pushed it.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, LOCATION};
use http::{Response, StatusCode, request};

use super::handler::Worker;
use super::namespace::{Registry, Remote, Target};
use super::receive::Payload;
use super::respond::{ApiError, CONTENT_DIGEST};
use super::route::Query;
use super::uploads::{empty, write_error};
use crate::body::Body;
use crate::fill::FillError;
use crate::oci::{Algorithm, Digest, Manifest, Reference, Tag};
use crate::store::{LinkKind, PushedManifest, StoredRepository};
use crate::watermark::Progress;

const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");

/// How often, and after which pause each time, it is looked whether a blob that was fetched has its name.
const PUBLISHED_LOOKS: usize = 200;
const PUBLISHED_PAUSE: Duration = Duration::from_millis(20);
/// How deep indexes may be nested that are taken over from `cache`.
const DEPTH_MAX: usize = 8;

impl Registry {
    pub(super) async fn put_manifest(
        self: &Arc<Self>,
        worker: &Worker,
        head: &request::Parts,
        target: &Target,
        reference: &Reference,
        query: &Query,
        payload: Option<Payload>,
    ) -> Result<Response<Body>, ApiError> {
        let repository = target.pushed_to()?;
        let max = self.options.manifest_bytes_max;
        let content = match payload {
            Some(payload) => payload.whole(max, || ApiError::manifest_too_large(max)).await?,
            None => Bytes::new(),
        };
        let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let manifest = Manifest::parse_strict(&content, content_type)
            .map_err(|error| ApiError::manifest_invalid(&error))?;
        let digest = match reference {
            Reference::Digest(named) => {
                let actual = Digest::of(named.algorithm(), &content);
                if actual != *named {
                    return Err(ApiError::digest_differs(named, &actual));
                }
                actual
            }
            Reference::Tag(_) => Digest::of(Algorithm::Sha256, &content),
        };
        let needed = self.complete(worker, target, repository, &manifest, DEPTH_MAX).await?;
        let mut tags = query.tags.clone();
        if let Reference::Tag(tag) = reference {
            tags.insert(0, tag.clone());
        }
        let subject = manifest.subject.as_ref().map(|subject| subject.digest);
        let pushed = PushedManifest { digest, content: content.clone(), needed, subject, tags };
        let stored = self.local.push_manifest(repository, pushed.clone()).await;
        let stored = stored.map_err(|error| write_error("store a manifest", &error))?;
        stored.map_err(|missing| ApiError::manifest_blobs_unknown(&missing))?;
        self.metrics.pushed(content.len() as u64);
        if let Some(remote) = &target.remote {
            self.note_precedence(worker, remote, &pushed.tags, &digest).await;
        }
        let mut response = empty(StatusCode::CREATED);
        let headers = response.headers_mut();
        let value = |text: String| HeaderValue::try_from(text).map_err(|_| ApiError::internal());
        headers.insert(LOCATION, value(format!("/v2/{}/manifests/{digest}", target.name))?);
        headers.insert(CONTENT_DIGEST, value(digest.to_string())?);
        if let Some(subject) = subject {
            headers.insert(OCI_SUBJECT, value(subject.to_string())?);
        }
        for tag in &query.tags {
            headers.append(OCI_TAG, value(tag.to_string())?);
        }
        Ok(response)
    }

    /// What the repository must link for this manifest, after what only `cache` holds of it was taken over.
    async fn complete(
        self: &Arc<Self>,
        worker: &Worker,
        target: &Target,
        repository: &StoredRepository,
        manifest: &Manifest,
        depth: usize,
    ) -> Result<Vec<(LinkKind, Digest)>, ApiError> {
        let mut needed = HashSet::new();
        let mut missing = Vec::new();
        let blobs = manifest.blobs().map(|blob| (LinkKind::Layer, blob.digest));
        let children = manifest.manifests.iter().map(|child| (LinkKind::Manifest, child.digest));
        for (kind, digest) in blobs.chain(children) {
            if needed.contains(&(kind, digest)) {
                continue;
            }
            if self.has(worker, target, repository, kind, &digest, depth).await? {
                needed.insert((kind, digest));
            } else if !missing.contains(&digest) {
                missing.push(digest);
            }
        }
        if missing.is_empty() {
            Ok(needed.into_iter().collect())
        } else {
            Err(ApiError::manifest_blobs_unknown(&missing))
        }
    }

    /// Whether the repository has this in `local`, if need be from now on.
    async fn has(
        self: &Arc<Self>,
        worker: &Worker,
        target: &Target,
        repository: &StoredRepository,
        kind: LinkKind,
        digest: &Digest,
        depth: usize,
    ) -> Result<bool, ApiError> {
        let failed = |error| write_error("look for what a manifest needs", &error);
        let held = self.local.find_now(&worker.files, repository, kind, digest, Instant::now()).await;
        if held.map_err(failed)?.value.is_some() {
            return Ok(true);
        }
        let Some(remote) = &target.remote else { return Ok(false) };
        let mut cached =
            self.cache.find(&worker.files, &remote.stored, kind, digest).await.map_err(failed)?;
        if cached.value.is_none() {
            self.bring(worker, remote, kind, digest).await;
            cached = self.cache.find(&worker.files, &remote.stored, kind, digest).await.map_err(failed)?;
        }
        let Some(blob) = cached.value else { return Ok(false) };
        if kind == LinkKind::Manifest {
            let Some(depth) = depth.checked_sub(1) else { return Ok(false) };
            let Some(child) = self.parsed(worker, &blob).await else { return Ok(false) };
            // In a box, because the future would contain itself.
            let completing: Pin<Box<dyn Future<Output = _>>> =
                Box::pin(self.complete(worker, target, repository, &child, depth));
            match completing.await {
                Ok(_) => {}
                Err(error) if error.status() == StatusCode::BAD_REQUEST => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.local.adopt(&self.cache, repository, kind, digest).await.map_err(failed)
    }

    /// Has `cache` hold what only upstream may have: a client that was told by HEAD that it is there has not pushed it.
    async fn bring(self: &Arc<Self>, worker: &Worker, remote: &Remote, kind: LinkKind, digest: &Digest) {
        let reference = Reference::Digest(*digest);
        if self.is_known_absent(remote, kind, &reference) {
            return;
        }
        if kind == LinkKind::Manifest {
            if let (Err(error), _) = self.fetch_manifest(remote, digest).await
                && error.is_absence()
            {
                self.remember_absent(remote, kind, &reference);
            }
            return;
        }
        if matches!(self.cache.blob(&worker.files, digest).await, Ok(Some(_))) {
            let _ = self.ask_for_link(worker, remote, digest).await;
            return;
        }
        let (flight, _) = self.fills.join(*digest, remote.stored.clone(), remote.source(&self.metrics));
        if flight.repository != remote.stored && self.ask_for_link(worker, remote, digest).await.is_err() {
            return;
        }
        match flight.ended().await {
            Progress::Verified { .. } => {
                // Readers have the verdict before the blob has its name.
                for _ in 0..PUBLISHED_LOOKS {
                    if matches!(self.cache.blob(&worker.files, digest).await, Ok(Some(_))) {
                        break;
                    }
                    tokio::time::sleep(PUBLISHED_PAUSE).await;
                }
            }
            Progress::Failed(FillError::Upstream(error)) if error.is_absence() => {
                self.remember_absent(remote, kind, &reference);
            }
            _ => {}
        }
    }

    /// Says in the log where a pushed tag hides one that came from upstream.
    async fn note_precedence(&self, worker: &Worker, remote: &Remote, tags: &[Tag], digest: &Digest) {
        for tag in tags {
            if let Ok(Some(link)) = self.cache.tag(&worker.files, &remote.stored, tag).await
                && link.digest != *digest
            {
                tracing::info!(
                    repository = %remote.stored, %tag, pushed = %digest, fetched = %link.digest,
                    "what was pushed is served instead of upstream's tag of the same name"
                );
            }
        }
    }

    /// `DELETE`: of a tag, or of a manifest with all tags that point at it.
    pub(super) async fn delete_manifest(
        self: &Arc<Self>,
        worker: &Worker,
        target: &Target,
        reference: &Reference,
    ) -> Result<Response<Body>, ApiError> {
        let repository = target.pushed_to()?;
        let failed = |error| write_error("remove a manifest", &error);
        let removed = match reference {
            Reference::Tag(tag) => self.local.remove_tag(repository, tag).await.map_err(failed)?,
            Reference::Digest(digest) => {
                let found = self.local.find(&worker.files, repository, LinkKind::Manifest, digest).await;
                let manifest = match found.map_err(failed)?.value {
                    Some(blob) => self.parsed(worker, &blob).await,
                    None => None,
                };
                let subject = manifest.and_then(|manifest| manifest.subject).map(|subject| subject.digest);
                let removed = self.local.remove_manifest(repository, digest, subject).await;
                removed.map_err(failed)?.is_some()
            }
        };
        if removed { Ok(empty(StatusCode::ACCEPTED)) } else { Err(ApiError::manifest_unknown(reference)) }
    }
}
