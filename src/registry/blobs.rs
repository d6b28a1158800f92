//! `GET` and `HEAD /v2/<name>/blobs/<digest>`.
//!
//! A blob that the repository links and that is held is a hit. One that is held, or being filled, for another repository
//! costs one HEAD upstream: upstream decides whether this repository may have it, and a link remembers the yes. What is
//! absent is filled, and the answer follows the fill. A HEAD starts no fill.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, Version, request};

use super::access::{Action, Wish};
use super::access_log::{CacheState, Record};
use super::deliver::{Content, Part, deliver};
use super::handler::Worker;
use super::manifests::gave_up;
use super::namespace::{Registry, Remote, Target};
use super::respond::ApiError;
use crate::body::Body;
use crate::fill::body::{Wanted, growing, passed_through, verified_by_itself};
use crate::fill::fetch::Download;
use crate::fill::{FillError, Flight, Role, Spill};
use crate::oci::{Digest, Reference, RepositoryName, media_type};
use crate::store::ingest::Origin;
use crate::store::{Blob, Held, Labels, LinkKind};
use crate::sys::Files;
use crate::upstream::BlobHead;
use crate::watermark::{HELD_BACK, Progress};

/// Fills of other repositories that fail before this one leads its own; bounded, as every loop.
const FLIGHTS_MAX: usize = 4;

impl Registry {
    /// A blob of a repository for a client that somebody else has authorised: nothing is asked about that here. Else the
    /// same as GET and HEAD of it.
    ///
    /// # Errors
    /// As a client of the API would be told.
    pub async fn authorised_blob(
        self: &Arc<Self>,
        files: &Files,
        head: &request::Parts,
        peer: SocketAddr,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<Response<Body>, ApiError> {
        let target = self.target(name, None)?;
        let mut record = Record::new(&head.method, &head.uri, peer, Instant::now());
        self.blob(&Worker { files: files.clone() }, head, &target, digest, &mut record).await
    }

    pub(super) async fn blob(
        self: &Arc<Self>,
        worker: &Worker,
        head: &request::Parts,
        target: &Target,
        digest: &Digest,
        record: &mut Record,
    ) -> Result<Response<Body>, ApiError> {
        let begun = Instant::now();
        let mut looked_at = begun;
        if let Some(local) = &target.local {
            let found = self.local.find(&worker.files, local, LinkKind::Layer, digest).await;
            let found = found.map_err(|error| disk_error("find a blob", &error))?;
            looked_at = looked_at.min(found.at);
            if let Some(blob) = found.value {
                record.hit(looked_at);
                return self.send_stored(head, &blob);
            }
        }
        if let Some(remote) = &target.remote {
            let found = self.cache.find(&worker.files, &remote.stored, LinkKind::Layer, digest).await;
            let found = found.map_err(|error| disk_error("find a blob", &error))?;
            if let Some(blob) = found.value {
                record.hit(looked_at.min(found.at));
                return self.send_stored(head, &blob);
            }
        }
        if let Some(local) = &target.local {
            let found = self.local.find_now(&worker.files, local, LinkKind::Layer, digest, begun).await;
            if let Some(blob) = found.map_err(|error| disk_error("find a blob", &error))?.value {
                record.cache = CacheState::Hit;
                return self.send_stored(head, &blob);
            }
        }
        let Some(remote) = &target.remote else { return Err(ApiError::blob_unknown(digest)) };
        self.absent_blob(worker, head, remote, digest, record).await
    }

    /// Whether the answer to this HEAD of a blob is a promise: whoever may push here looks for a blob to know whether to
    /// send it, and names it in a manifest later. So the blob's age begins anew before the answer. Not for the hot lane.
    pub(super) async fn promises(
        self: &Arc<Self>,
        worker: &Worker,
        head: &request::Parts,
        peer: SocketAddr,
        target: &Target,
        digest: &Digest,
    ) -> bool {
        let Ok(repository) = target.pushed_to() else { return false };
        let held = self.local.find(&worker.files, repository, LinkKind::Layer, digest).await;
        if !held.is_ok_and(|held| held.value.is_some()) {
            return false;
        }
        let wish = Wish { repository: Some(&target.name), action: Action::Push };
        if self.access.permit(&head.headers, peer, &[wish]).await.is_err() {
            return false;
        }
        match self.local.promise(repository, digest).await {
            Ok(promised) => promised,
            Err(error) => {
                // A push would fail in the same way, and says so; who only wants to know is answered.
                static TOLD: AtomicBool = AtomicBool::new(false);
                // In a directory of another user it is so for every blob.
                if TOLD.swap(true, Ordering::Relaxed) {
                    tracing::debug!(%digest, %repository, %error, "cannot renew a blob's age");
                } else {
                    tracing::warn!(
                        %digest, %repository, %error,
                        "cannot renew the age of a blob that a client may count on (from now on this is told at -v only)"
                    );
                }
                true
            }
        }
    }

    /// The blob is not here, or not for this repository.
    async fn absent_blob(
        self: &Arc<Self>,
        worker: &Worker,
        head: &request::Parts,
        remote: &Remote,
        digest: &Digest,
        record: &mut Record,
    ) -> Result<Response<Body>, ApiError> {
        if self.is_known_absent(remote, LinkKind::Layer, &Reference::Digest(*digest)) {
            return Err(ApiError::blob_unknown(digest));
        }
        let held = self.cache.blob(&worker.files, digest).await;
        if let Some(blob) = held.map_err(|error| disk_error("find a blob", &error))? {
            self.ask_for_link(worker, remote, digest).await?;
            record.cache = CacheState::Hit;
            return self.send_stored(head, &blob);
        }
        if head.method == Method::HEAD {
            return self.head_absent(head, remote, digest, record).await;
        }
        let mut permitted = false;
        for _ in 0..FLIGHTS_MAX {
            let (flight, role) =
                self.fills.join(*digest, remote.stored.clone(), remote.source(&self.metrics));
            let ours = flight.repository == remote.stored;
            match role {
                Role::Leader => {
                    record.cache = CacheState::Miss;
                    record.received = Some(Arc::clone(&flight.received));
                }
                Role::Joined => {
                    record.cache = CacheState::Join;
                    if !ours && !permitted {
                        self.ask_for_link(worker, remote, digest).await?;
                        permitted = true;
                    }
                }
            }
            match self.answer(head, remote, &flight, record).await? {
                Some(response) => return Ok(response),
                // Upstream's word to another repository, or another upstream's failure, says nothing about ours.
                None if !ours => {}
                None => break,
            }
        }
        Err(ApiError::unavailable("the blob cannot be fetched now"))
    }

    /// The answer that follows `flight`. `None`: it is another repository's, and failed there.
    async fn answer(
        self: &Arc<Self>,
        head: &request::Parts,
        remote: &Remote,
        flight: &Arc<Flight>,
        record: &mut Record,
    ) -> Result<Option<Response<Body>>, ApiError> {
        let digest = &flight.digest;
        let mut progress = flight.started().await;
        let nothing_before_the_verdict = match &progress {
            // A reader would only wait; and an empty body has no byte that could be held back.
            Progress::Growing { length: Some(length), .. } => *length <= HELD_BACK,
            // The end of the connection would be the only end: it must not be mistaken for one before the verdict.
            Progress::Growing { length: None, .. } => head.version < Version::HTTP_11,
            _ => false,
        };
        if nothing_before_the_verdict {
            progress = flight.ended().await;
        }
        match progress {
            Progress::Failed(FillError::NotKept(spill)) => {
                self.send_uncached(head, remote, digest, &spill, record).await.map(Some)
            }
            Progress::Failed(_) if flight.repository != remote.stored => Ok(None),
            Progress::Failed(error) => {
                if matches!(&error, FillError::Upstream(error) if error.is_absence()) {
                    self.remember_absent(remote, LinkKind::Layer, &Reference::Digest(*digest));
                }
                Err(ApiError::fill(&error, digest))
            }
            progress => self.send_growing(head, flight, progress.length(), record).map(Some),
        }
    }

    fn send_stored(&self, head: &request::Parts, blob: &Arc<Blob>) -> Result<Response<Body>, ApiError> {
        let content = self.blob_content(&blob.labels, Some(blob.len));
        deliver(head, &content, |part| Ok(stored_body(blob, part)))
    }

    fn send_growing(
        &self,
        head: &request::Parts,
        flight: &Arc<Flight>,
        length: Option<u64>,
        record: &mut Record,
    ) -> Result<Response<Body>, ApiError> {
        let labels = Labels::new(&flight.digest);
        let content = self.blob_content(&labels, length);
        let own = Arc::new(AtomicU64::new(0));
        record.also_received = Some(Arc::clone(&own));
        // Of several ranges one may cost a request of its own; the others wait for the fill.
        let mut far = self.options.far_range;
        deliver(head, &content, |part| {
            let (body, short_way) = growing(flight, wanted(part), far, &own);
            if short_way {
                far = u64::MAX;
            }
            Ok(body)
        })
    }

    /// The blob cannot be kept: this reader is served straight from upstream.
    async fn send_uncached(
        &self,
        head: &request::Parts,
        remote: &Remote,
        digest: &Digest,
        spill: &Arc<Spill>,
        record: &mut Record,
    ) -> Result<Response<Body>, ApiError> {
        record.cache = CacheState::Pass;
        let own = Arc::new(AtomicU64::new(0));
        record.also_received = Some(Arc::clone(&own));
        let source = remote.source(&self.metrics);
        let download = |from, origin: &Origin| {
            let download = Download::new(source.clone(), *digest, from, origin.clone(), Arc::clone(&own));
            download.uncached(spill.cause.as_str())
        };
        let mut opened = download(spill.written, &spill.origin);
        opened.open().await.map_err(|error| ApiError::fill(&error, digest))?;
        let origin = opened.origin().clone();
        if origin.length.is_none() && head.version < Version::HTTP_11 {
            return Err(ApiError::unavailable(
                "the blob's length is not known, and HTTP/1.0 cannot tell its end",
            ));
        }
        let mut opened = Some(opened);
        // Each part costs a request upstream: more than one are answered by the whole.
        let labels = Labels::new(digest);
        let content = Content { ranges_max: 1, ..self.blob_content(&labels, origin.length) };
        deliver(head, &content, |part| {
            Ok(match (part, origin.length) {
                (Part::Range(range), Some(length)) if range.end() <= length.saturating_sub(HELD_BACK) => {
                    passed_through(download(range.start, &origin).until(range.end()), range.len)
                }
                (part, length) => {
                    let download = opened.take().unwrap_or_else(|| download(spill.written, &origin));
                    verified_by_itself(*digest, download, spill, wanted(part), length)
                }
            })
        })
    }

    /// HEAD of a blob that is not held: upstream's answer, unless a fill of this repository knows better.
    async fn head_absent(
        self: &Arc<Self>,
        head: &request::Parts,
        remote: &Remote,
        digest: &Digest,
        record: &mut Record,
    ) -> Result<Response<Body>, ApiError> {
        let current = self.fills.current(digest).filter(|flight| flight.repository == remote.stored);
        let known = current.and_then(|flight| flight.progress().length());
        let len = if let Some(len) = known {
            record.cache = CacheState::Join;
            Some(len)
        } else {
            record.cache = CacheState::Pass;
            self.ask_for_blob(remote, digest).await?.length
        };
        deliver(head, &self.blob_content(&Labels::new(digest), len), |_| Ok(Body::empty()))
    }

    /// Makes sure that upstream lets the repository have the blob: asks, unless a link remembers the answer.
    pub(super) async fn ask_for_link(
        self: &Arc<Self>,
        worker: &Worker,
        remote: &Remote,
        digest: &Digest,
    ) -> Result<(), ApiError> {
        let (registry, files, asked, digest) =
            (Arc::clone(self), worker.files.clone(), remote.clone(), *digest);
        // Look, question and link are one: who comes when the answer is there finds the link as well.
        let ask = || async move { registry.make_linked(&files, &asked, &digest).await };
        let (answer, _) = self.links_asked.answer((remote.stored.clone(), digest), ask).await;
        answer.unwrap_or_else(|| Err(ApiError::unavailable("upstream could not be asked for the blob")))
    }

    async fn make_linked(
        self: &Arc<Self>,
        files: &Files,
        remote: &Remote,
        digest: &Digest,
    ) -> Result<(), ApiError> {
        let linked = self.cache.is_linked(files, &remote.stored, LinkKind::Layer, digest).await;
        if linked.map_err(|error| disk_error("find a link", &error))? {
            return Ok(());
        }
        self.ask_for_blob(remote, digest).await?;
        if let Err(error) = self.cache.link(&remote.stored, LinkKind::Layer, digest).await {
            tracing::warn!(%digest, repository = %remote.stored, %error, "cannot link the blob: it will be asked for again");
        }
        Ok(())
    }

    /// Upstream's answer to HEAD, one for all who ask at the same time; an absence is remembered.
    async fn ask_for_blob(self: &Arc<Self>, remote: &Remote, digest: &Digest) -> Result<BlobHead, ApiError> {
        let (asked, digest) = (remote.clone(), *digest);
        let ask = || async move { asked.via.upstream.blob_head(&asked.name, &digest).await };
        let (answer, _) = self.blobs_asked.answer((remote.stored.clone(), digest), ask).await;
        answer.unwrap_or_else(|| Err(gave_up(remote))).map_err(|error| {
            if error.is_absence() {
                self.remember_absent(remote, LinkKind::Layer, &Reference::Digest(digest));
            } else {
                tracing::warn!(%digest, reason = error.reason(), %error, "upstream does not answer for a blob");
            }
            ApiError::upstream(&error, || ApiError::blob_unknown(&digest))
        })
    }

    fn blob_content<'a>(&self, labels: &'a Labels, len: Option<u64>) -> Content<'a> {
        let media_type = HeaderValue::from_static(media_type::OCTET_STREAM);
        Content { labels, media_type, len, ranges_max: self.options.ranges_max, immutable: true }
    }
}

fn wanted(part: Part) -> Wanted {
    match part {
        Part::Whole => Wanted::Whole,
        Part::Range(range) => Wanted::Part(range),
    }
}

/// The body of a part of a stored blob.
pub(super) fn stored_body(blob: &Blob, part: Part) -> Body {
    let (start, len) = match part {
        Part::Whole => (0, blob.len),
        Part::Range(range) => (range.start, range.len),
    };
    match &blob.held {
        Held::Memory(content) => Body::bytes(small_part(content, start, len)),
        Held::File(file) => Body::file(Arc::clone(file), start, len),
    }
}

fn small_part(small: &Bytes, start: u64, len: u64) -> Bytes {
    let start = usize::try_from(start).unwrap_or(usize::MAX).min(small.len());
    let end = start.saturating_add(usize::try_from(len).unwrap_or(usize::MAX)).min(small.len());
    small.slice(start..end)
}

/// A disk that fails is the operator's business; the client learns that it did.
pub(super) fn disk_error(operation: &'static str, error: &std::io::Error) -> ApiError {
    tracing::error!(%error, "cannot {operation}");
    ApiError::internal()
}
