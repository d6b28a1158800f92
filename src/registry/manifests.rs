//! `GET` and `HEAD /v2/<name>/manifests/<reference>`.
//!
//! **By digest** a manifest never changes: once held and linked it is served without asking. **By tag** the answer is kept
//! for the upstream's `tag_ttl`; then upstream is asked by HEAD, which registries do not count against rate limits,
//! and only a tag that moved costs a GET. Concurrent requests share one question. When upstream fails (network, 5xx,
//! 429, refused credentials), the last answer is served with its age, provided that what the manifest names is held:
//! clients turn to their next host for a manifest, not for a blob. An upstream that says 404 has answered: the tag is gone.
//!
//! The bytes are served as stored, whatever the client accepts; except that a client of Docker's schema 2 which knows no
//! lists gets the linux/amd64 child of a Docker list, as from distribution.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::header::{ACCEPT, AGE, HeaderValue, VARY, WARNING};
use http::{Response, request};

use super::access_log::{CacheState, Record};
use super::blobs::{disk_error, stored_body};
use super::deliver::{Content, Part, deliver};
use super::handler::Worker;
use super::namespace::{Registry, Remote, Target};
use super::respond::ApiError;
use crate::body::Body;
use crate::oci::{Accept, Descriptor, Digest, Kind, Manifest, Reference, Tag, media_type};
use crate::store::{Blob, Labels, LinkKind, Looked, Store, StoredRepository, TagLink};
use crate::sys::files::Files;
use crate::upstream::{Attempt, FetchedManifest, Operation, UpstreamError};

/// RFC 9111 section 5.5; obsolete, and still what people look for.
const STALE: HeaderValue = HeaderValue::from_static("110 spliceway \"Response is Stale\"");

/// How long upstream may take to confirm a tag that could be served as it was last seen.
const TAG_PATIENCE: Duration = Duration::from_secs(5);

/// What upstream says about a tag.
pub(super) type TagAnswer = Result<Resolved, UpstreamError>;

/// What a tag points at, and its manifest if it had to be fetched.
#[derive(Clone, Debug)]
pub(super) struct Resolved {
    digest: Digest,
    fetched: Option<Arc<FetchedManifest>>,
}

/// A manifest that was found.
pub(super) enum Found {
    Stored(Arc<Blob>),
    Fetched(Arc<FetchedManifest>),
}

/// What a tag led to.
pub(super) struct Tagged {
    pub(super) found: Found,
    /// How long ago that was confirmed upstream; `None`: it is ours, or was fetched just now.
    age: Option<Duration>,
    stale: bool,
}

impl Registry {
    pub(super) async fn manifest(
        self: &Arc<Self>,
        worker: &Worker,
        head: &request::Parts,
        target: &Target,
        reference: &Reference,
        record: &mut Record,
    ) -> Result<Response<Body>, ApiError> {
        let tag = match reference {
            Reference::Digest(digest) => {
                let found = self.manifest_by_digest(worker, target, digest, record).await?;
                return self.send_manifest(worker, head, target, found, true).await;
            }
            Reference::Tag(tag) => tag,
        };
        let Tagged { found, age, stale } = self.manifest_by_tag(worker, target, tag, record).await?;
        let found = self.negotiated(worker, head, target, found, record).await?;
        let mut response = self.send_manifest(worker, head, target, found, false).await?;
        // A Docker list is answered by one of its children to who knows no lists.
        response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
        if let Some(age) = age {
            response.headers_mut().insert(AGE, HeaderValue::from(age.as_secs()));
        }
        if stale {
            response.headers_mut().insert(WARNING, STALE);
        }
        Ok(response)
    }

    async fn manifest_by_digest(
        self: &Arc<Self>,
        worker: &Worker,
        target: &Target,
        digest: &Digest,
        record: &mut Record,
    ) -> Result<Found, ApiError> {
        let begun = Instant::now();
        let mut looked_at = begun;
        if let Some(local) = &target.local {
            let found = look(&self.local, worker, local, digest).await?;
            looked_at = looked_at.min(found.at);
            if let Some(blob) = found.value {
                record.hit(looked_at);
                return Ok(Found::Stored(blob));
            }
        }
        let reference = Reference::Digest(*digest);
        if let Some(remote) = &target.remote {
            let found = look(&self.cache, worker, &remote.stored, digest).await?;
            if let Some(blob) = found.value {
                record.hit(looked_at.min(found.at));
                return Ok(Found::Stored(blob));
            }
        }
        if let Some(local) = &target.local {
            let found = self.local.find_now(&worker.files, local, LinkKind::Manifest, digest, begun).await;
            if let Some(blob) = found.map_err(|error| disk_error("find a manifest", &error))?.value {
                record.cache = CacheState::Hit;
                return Ok(Found::Stored(blob));
            }
        }
        let Some(remote) = &target.remote else { return Err(ApiError::manifest_unknown(&reference)) };
        if self.is_known_absent(remote, LinkKind::Manifest, &reference) {
            return Err(ApiError::manifest_unknown(&reference));
        }
        let (fetched, joined) = self.fetch_manifest(remote, digest).await;
        let fetched = fetched.map_err(|error| self.refused(remote, &reference, &error))?;
        record.fetched(joined, fetched.bytes.len());
        Ok(Found::Fetched(fetched))
    }

    pub(super) async fn manifest_by_tag(
        self: &Arc<Self>,
        worker: &Worker,
        target: &Target,
        tag: &Tag,
        record: &mut Record,
    ) -> Result<Tagged, ApiError> {
        let reference = Reference::Tag(tag.clone());
        if let Some(local) = &target.local
            && let Some(link) = tag_link(&self.local, worker, local, tag).await?
        {
            let (files, begun) = (&worker.files, Instant::now());
            let found = self.local.find_now(files, local, LinkKind::Manifest, &link.digest, begun).await;
            if let Some(blob) = found.map_err(|error| disk_error("find a manifest", &error))?.value {
                record.cache = CacheState::Hit;
                return Ok(Tagged { found: Found::Stored(blob), age: None, stale: false });
            }
        }
        let Some(remote) = &target.remote else { return Err(ApiError::manifest_unknown(&reference)) };
        let link = tag_link(&self.cache, worker, &remote.stored, tag).await?;
        if let Some(link) = link
            && age(&link) < remote.via.tag_ttl
            && let Some(blob) = find(&self.cache, worker, &remote.stored, &link.digest).await?
        {
            record.cache = CacheState::Hit;
            return Ok(Tagged { found: Found::Stored(blob), age: Some(age(&link)), stale: false });
        }
        if link.is_none() && self.is_known_absent(remote, LinkKind::Manifest, &reference) {
            return Err(ApiError::manifest_unknown(&reference));
        }
        if link.is_some()
            && let Some(error) = remote.via.just_failed()
        {
            return self.stale(worker, remote, tag, link, &error, record).await;
        }
        let (answer, joined) = self.ask_for_tag(worker, remote, tag, link).await;
        match answer {
            Ok(Resolved { fetched: Some(fetched), .. }) => {
                record.fetched(joined, fetched.bytes.len());
                Ok(Tagged { found: Found::Fetched(fetched), age: None, stale: false })
            }
            Ok(Resolved { digest, fetched: None }) => {
                let found = self.manifest_by_digest(worker, target, &digest, record).await?;
                // It follows from upstream's word as well.
                record.rests_on = None;
                Ok(Tagged { found, age: Some(Duration::ZERO), stale: false })
            }
            Err(error) if error.is_absence() => Err(self.refused(remote, &reference, &error)),
            Err(error) => self.stale(worker, remote, tag, link, &error, record).await,
        }
    }

    /// Upstream fails: the last answer, if what it names is held.
    async fn stale(
        self: &Arc<Self>,
        worker: &Worker,
        remote: &Remote,
        tag: &Tag,
        link: Option<TagLink>,
        error: &UpstreamError,
        record: &mut Record,
    ) -> Result<Tagged, ApiError> {
        let reference = Reference::Tag(tag.clone());
        let Some(link) = link else { return Err(self.refused(remote, &reference, error)) };
        let held = find(&self.cache, worker, &remote.stored, &link.digest).await?;
        let Some(blob) = held else { return Err(self.refused(remote, &reference, error)) };
        if !self.holds_what_is_named(worker, remote, &blob).await {
            tracing::warn!(
                repository = %remote.stored, %tag, reason = error.reason(), %error,
                "upstream fails, and the tag's content is not held: the client is sent on"
            );
            return Err(ApiError::upstream(error, || ApiError::manifest_unknown(&reference)));
        }
        let age = age(&link);
        tracing::warn!(
            repository = %remote.stored, %tag, age_seconds = age.as_secs(), reason = error.reason(), %error,
            "upstream fails: serving the tag as it was last seen"
        );
        record.cache = CacheState::Stale;
        self.metrics.stale_served();
        Ok(Tagged { found: Found::Stored(blob), age: Some(age), stale: true })
    }

    /// The manifest that this client is to get: of a Docker list the linux/amd64 child, if it knows no lists.
    async fn negotiated(
        self: &Arc<Self>,
        worker: &Worker,
        head: &request::Parts,
        target: &Target,
        found: Found,
        record: &mut Record,
    ) -> Result<Found, ApiError> {
        let accept = Accept::parse(head.headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok()));
        let knows_lists = accept.names_any(&[media_type::DOCKER_LIST, media_type::OCI_INDEX]);
        if knows_lists || !accept.names_any(&[media_type::DOCKER_MANIFEST]) {
            return Ok(found);
        }
        let manifest = match &found {
            Found::Stored(blob) if self.media_type(worker, target, blob).await == media_type::DOCKER_LIST => {
                self.parsed(worker, blob).await
            }
            Found::Stored(_) => None,
            Found::Fetched(fetched) => {
                parse(fetched).filter(|manifest| manifest.media_type == media_type::DOCKER_LIST)
            }
        };
        let Some(manifest) = manifest else { return Ok(found) };
        let is_default = |child: &&Descriptor| {
            child
                .platform
                .as_ref()
                .is_some_and(|platform| platform.os == "linux" && platform.architecture == "amd64")
        };
        match manifest.manifests.iter().find(is_default) {
            Some(child) => self.manifest_by_digest(worker, target, &child.digest, record).await,
            None => Ok(found),
        }
    }

    /// Asks upstream for a manifest by digest and keeps it. The flag: another request's question was joined.
    pub(super) async fn fetch_manifest(
        self: &Arc<Self>,
        remote: &Remote,
        digest: &Digest,
    ) -> (Result<Arc<FetchedManifest>, UpstreamError>, bool) {
        let key = (remote.stored.clone(), *digest);
        let (registry, asked, digest) = (Arc::clone(self), remote.clone(), *digest);
        let (answer, joined) = self
            .manifests_asked
            .answer(key, || async move { registry.get_and_keep(&asked, &Reference::Digest(digest)).await })
            .await;
        (answer.unwrap_or_else(|| Err(gave_up(remote))), joined)
    }

    async fn ask_for_tag(
        self: &Arc<Self>,
        worker: &Worker,
        remote: &Remote,
        tag: &Tag,
        link: Option<TagLink>,
    ) -> (TagAnswer, bool) {
        let key = (remote.stored.clone(), tag.clone());
        let (registry, asked, tag, files) =
            (Arc::clone(self), remote.clone(), tag.clone(), worker.files.clone());
        let (answer, joined) = self
            .tags_asked
            .answer(key, || async move { registry.resolve(&files, &asked, &tag, link).await })
            .await;
        (answer.unwrap_or_else(|| Err(gave_up(remote))), joined)
    }

    /// What the tag points at upstream now; what had to be fetched for that is kept.
    async fn resolve(
        self: &Arc<Self>,
        files: &Files,
        remote: &Remote,
        tag: &Tag,
        link: Option<TagLink>,
    ) -> TagAnswer {
        let reference = Reference::Tag(tag.clone());
        let asking = remote.via.upstream.manifest_head(&remote.name, &reference);
        let head = match link {
            None => asking.await,
            // There is an answer at hand: nobody waits long for a better one.
            Some(_) => {
                tokio::time::timeout(TAG_PATIENCE, asking).await.unwrap_or_else(|_| Err(too_slow(remote)))
            }
        };
        remote.via.note(head.as_ref().err());
        let pointed_at = match head {
            Ok(head) => head.digest,
            Err(error) if error.is_absence() => {
                if let Err(error) = self.cache.remove_tag(&remote.stored, tag).await {
                    tracing::warn!(repository = %remote.stored, %tag, %error, "cannot remove a tag that upstream has no more");
                }
                return Err(error);
            }
            // Some registries do not answer HEAD, or not as the specification says: GET settles it.
            Err(
                UpstreamError::Unexpected { .. }
                | UpstreamError::Malformed { .. }
                | UpstreamError::ServerError { status: 501, .. },
            ) => None,
            Err(error) => return Err(error),
        };
        let fetched = match pointed_at {
            Some(digest) if self.holds_manifest(files, remote, &digest).await => None,
            Some(digest) => Some(self.fetch_manifest(remote, &digest).await.0?),
            None => Some(self.get_and_keep(remote, &reference).await?),
        };
        let Some(digest) = fetched.as_ref().map(|fetched| fetched.digest).or(pointed_at) else {
            return Err(gave_up(remote));
        };
        let unmoved = link.is_some_and(|link| link.digest == digest);
        let kept = if unmoved {
            self.cache.confirm_tag(&remote.stored, tag).await
        } else {
            self.cache.set_tag(&remote.stored, tag, &digest).await
        };
        if let Err(error) = kept {
            tracing::warn!(repository = %remote.stored, %tag, %error, "cannot keep a tag: it will be asked for again");
        }
        Ok(Resolved { digest, fetched })
    }

    /// Whether the manifest is held; upstream has just said that the repository has it, so it may be linked.
    async fn holds_manifest(&self, files: &Files, remote: &Remote, digest: &Digest) -> bool {
        if !matches!(self.cache.blob(files, digest).await, Ok(Some(_))) {
            return false;
        }
        match self.cache.link(&remote.stored, LinkKind::Manifest, digest).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(repository = %remote.stored, %digest, %error, "cannot link a manifest");
                false
            }
        }
    }

    async fn get_and_keep(
        self: &Arc<Self>,
        remote: &Remote,
        reference: &Reference,
    ) -> Result<Arc<FetchedManifest>, UpstreamError> {
        let fetched = remote.via.upstream.manifest(&remote.name, reference).await?;
        self.metrics.fetched(remote.via.upstream.name(), fetched.bytes.len() as u64);
        if let Some(manifest) = parse(&fetched) {
            self.remember_sizes(&remote.stored, &manifest);
        }
        // A signed schema 1 manifest is named by its payload, not by its bytes: it has no place among files that are
        // named by theirs, and is fetched each time.
        if Digest::of(fetched.digest.algorithm(), &fetched.bytes) != fetched.digest {
            return Ok(Arc::new(fetched));
        }
        let kept = self.cache.put_manifest(&remote.stored, &fetched.digest, fetched.bytes.clone()).await;
        if let Err(error) = kept {
            // It is verified and in memory: the client gets it all the same.
            tracing::error!(repository = %remote.stored, digest = %fetched.digest, %error, "cannot keep a manifest");
            self.cache.usage().need(fetched.bytes.len() as u64);
        }
        Ok(Arc::new(fetched))
    }

    /// Whether a client that is given this manifest can be given what it names: of an index, one child whole.
    async fn holds_what_is_named(&self, worker: &Worker, remote: &Remote, blob: &Arc<Blob>) -> bool {
        let Some(manifest) = self.parsed(worker, blob).await else { return false };
        if manifest.kind != Kind::Index {
            return self.holds_blobs(worker, remote, &manifest).await;
        }
        for child in &manifest.manifests {
            let found =
                self.cache.find(&worker.files, &remote.stored, LinkKind::Manifest, &child.digest).await;
            if let Ok(Looked { value: Some(child), .. }) = found
                && let Some(child) = self.parsed(worker, &child).await
                && self.holds_blobs(worker, remote, &child).await
            {
                return true;
            }
        }
        manifest.manifests.is_empty()
    }

    async fn holds_blobs(&self, worker: &Worker, remote: &Remote, manifest: &Manifest) -> bool {
        for descriptor in manifest.blobs() {
            let digest = &descriptor.digest;
            let found = self.cache.find(&worker.files, &remote.stored, LinkKind::Layer, digest).await;
            if !matches!(found, Ok(Looked { value: Some(_), .. })) {
                return false;
            }
        }
        true
    }

    /// The blob as a manifest; `None` if it is none. Reads and parses it each time: only its media type is kept.
    pub(super) async fn parsed(&self, worker: &Worker, blob: &Blob) -> Option<Manifest> {
        let limit = self.options.manifest_bytes_max as u64;
        let content = blob.content(&worker.files, limit).await.ok()?;
        Manifest::parse(&content, None).ok()
    }

    /// The media type of a stored manifest.
    async fn media_type(&self, worker: &Worker, target: &Target, blob: &Blob) -> HeaderValue {
        if let Some(known) = blob.media_type.get() {
            return known.clone();
        }
        let manifest = self.parsed(worker, blob).await;
        if let (Some(manifest), Some(remote)) = (&manifest, &target.remote) {
            self.remember_sizes(&remote.stored, manifest);
        }
        blob.media_type.get_or_init(|| header_of(manifest.as_ref())).clone()
    }

    async fn send_manifest(
        &self,
        worker: &Worker,
        head: &request::Parts,
        target: &Target,
        found: Found,
        immutable: bool,
    ) -> Result<Response<Body>, ApiError> {
        match found {
            Found::Stored(blob) => {
                let media_type = self.media_type(worker, target, &blob).await;
                let (labels, len) = (&blob.labels, Some(blob.len));
                let content = Content { labels, media_type, len, ranges_max: 0, immutable };
                deliver(head, &content, |_| Ok(stored_body(&blob, Part::Whole)))
            }
            Found::Fetched(fetched) => {
                let media_type = header_of(parse(&fetched).as_ref());
                let (labels, len) = (&Labels::new(&fetched.digest), Some(fetched.bytes.len() as u64));
                let content = Content { labels, media_type, len, ranges_max: 0, immutable };
                deliver(head, &content, |_| Ok(Body::bytes(fetched.bytes.clone())))
            }
        }
    }

    /// The answer after upstream's refusal, which is remembered if it is an absence.
    fn refused(&self, remote: &Remote, reference: &Reference, error: &UpstreamError) -> ApiError {
        if error.is_absence() {
            self.remember_absent(remote, LinkKind::Manifest, reference);
        } else {
            tracing::warn!(repository = %remote.stored, %reference, reason = error.reason(), %error, "upstream does not give a manifest");
        }
        ApiError::upstream(error, || ApiError::manifest_unknown(reference))
    }
}

async fn find(
    store: &Arc<Store>,
    worker: &Worker,
    repository: &StoredRepository,
    digest: &Digest,
) -> Result<Option<Arc<Blob>>, ApiError> {
    Ok(look(store, worker, repository, digest).await?.value)
}

async fn look(
    store: &Arc<Store>,
    worker: &Worker,
    repository: &StoredRepository,
    digest: &Digest,
) -> Result<Looked<Option<Arc<Blob>>>, ApiError> {
    let found = store.find(&worker.files, repository, LinkKind::Manifest, digest).await;
    found.map_err(|error| disk_error("find a manifest", &error))
}

async fn tag_link(
    store: &Arc<Store>,
    worker: &Worker,
    repository: &StoredRepository,
    tag: &Tag,
) -> Result<Option<TagLink>, ApiError> {
    let link = store.tag(&worker.files, repository, tag).await;
    link.map_err(|error| disk_error("read a tag", &error))
}

fn parse(fetched: &FetchedManifest) -> Option<Manifest> {
    Manifest::parse(&fetched.bytes, fetched.media_type.as_deref()).ok()
}

/// A clock that stepped back makes a tag young, never an error.
fn age(link: &TagLink) -> Duration {
    SystemTime::now().duration_since(link.confirmed).unwrap_or_default()
}

fn header_of(manifest: Option<&Manifest>) -> HeaderValue {
    let media_type = manifest.and_then(|manifest| HeaderValue::from_str(&manifest.media_type).ok());
    media_type.unwrap_or(HeaderValue::from_static(media_type::OCTET_STREAM))
}

fn too_slow(remote: &Remote) -> UpstreamError {
    let attempt = Attempt::new(remote.via.upstream.name(), Operation::ManifestHead, remote.name.as_str());
    UpstreamError::Timeout { attempt, what: "response headers", after: TAG_PATIENCE }
}

/// The task that asked upstream was ended: the worker is shutting down.
pub(super) fn gave_up(remote: &Remote) -> UpstreamError {
    let attempt = Attempt::new(remote.via.upstream.name(), Operation::Manifest, remote.name.as_str());
    UpstreamError::Broken { attempt, cause: "the question was abandoned".into() }
}
