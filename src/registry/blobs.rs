//! `GET` and `HEAD /v2/<name>/blobs/<digest>`.
//!
//! A blob that the repository links and that is held is a hit. One that is held, or being filled, for another repository
//! costs one HEAD upstream: upstream decides whether this repository may have it, and a link remembers the yes. What is
//! absent is filled, and the answer follows the fill. A HEAD starts no fill.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, Version, request};

use super::access_log::{CacheState, Record};
use super::deliver::{Content, Part, deliver};
use super::handler::Worker;
use super::namespace::{Registry, Remote, Target};
use super::respond::ApiError;
use crate::body::Body;
use crate::fill::body::{DISK_FULL, Wanted, growing, passed_through, verified_by_itself};
use crate::fill::fetch::Download;
use crate::fill::{FillError, Flight, Role, Spill};
use crate::oci::{Digest, media_type};
use crate::store::{Blob, LinkKind};
use crate::upstream::UpstreamError;
use crate::watermark::{HELD_BACK, Progress};

/// A fill of another repository that is refused upstream is taken over by this one; bounded, as every loop.
const FLIGHTS_MAX: usize = 4;

impl Registry {
    pub(super) async fn blob(
        &self,
        worker: &Worker,
        head: &request::Parts,
        target: &Target,
        digest: &Digest,
        record: &mut Record,
    ) -> Result<Response<Body>, ApiError> {
        if let Some(local) = &target.local {
            let found = self.local.find(&worker.files, local, LinkKind::Layer, digest).await;
            if let Some(blob) = found.map_err(|error| disk_error("find a blob", &error))? {
                record.cache = CacheState::Hit;
                return self.send_stored(head, &blob);
            }
        }
        let Some(remote) = &target.remote else { return Err(ApiError::blob_unknown(digest)) };
        let found = self.cache.find(&worker.files, &remote.stored, LinkKind::Layer, digest).await;
        if let Some(blob) = found.map_err(|error| disk_error("find a blob", &error))? {
            record.cache = CacheState::Hit;
            return self.send_stored(head, &blob);
        }
        self.absent_blob(worker, head, remote, digest, record).await
    }

    /// The blob is not here, or not for this repository.
    async fn absent_blob(
        &self,
        worker: &Worker,
        head: &request::Parts,
        remote: &Remote,
        digest: &Digest,
        record: &mut Record,
    ) -> Result<Response<Body>, ApiError> {
        let held = self.cache.blob(&worker.files, digest).await;
        if let Some(blob) = held.map_err(|error| disk_error("find a blob", &error))? {
            self.ask_for_link(remote, digest).await?;
            record.cache = CacheState::Hit;
            return self.send_stored(head, &blob);
        }
        if head.method == Method::HEAD {
            return self.head_absent(head, remote, digest, record).await;
        }
        let mut permitted = false;
        for _ in 0..FLIGHTS_MAX {
            let source = remote.source(&self.metrics);
            let length = self.expected_size(digest);
            let (flight, role) = self.fills.join(*digest, remote.stored.clone(), source, length);
            match role {
                Role::Leader => {
                    record.cache = CacheState::Miss;
                    record.received = Some(Arc::clone(&flight.received));
                }
                Role::Joined => {
                    record.cache = CacheState::Join;
                    if flight.repository != remote.stored && !permitted {
                        self.ask_for_link(remote, digest).await?;
                        permitted = true;
                    }
                }
            }
            match flight.started().await {
                Progress::Failed(FillError::NoSpace(spill)) => {
                    return self.send_uncached(head, remote, digest, &spill, record).await;
                }
                Progress::Failed(FillError::Upstream(error))
                    if flight.repository != remote.stored && is_refusal(&error) => {}
                Progress::Failed(error) => return Err(ApiError::fill(&error, digest)),
                _ => return self.send_growing(head, remote, &flight, record).await,
            }
        }
        Err(ApiError::blob_unknown(digest))
    }

    fn send_stored(&self, head: &request::Parts, blob: &Arc<Blob>) -> Result<Response<Body>, ApiError> {
        let content = self.blob_content(&blob.digest, Some(blob.len));
        deliver(head, &content, |part| Ok(stored_body(blob, part)))
    }

    async fn send_growing(
        &self,
        head: &request::Parts,
        remote: &Remote,
        flight: &Arc<Flight>,
        record: &mut Record,
    ) -> Result<Response<Body>, ApiError> {
        let mut progress = flight.progress();
        let nothing_before_the_verdict = match progress.length() {
            // A reader would only wait; and an empty body has no byte that could be held back.
            Some(length) => length <= HELD_BACK,
            // The end of the connection would be the only end: it must not be mistaken for one before the verdict.
            None => head.version < Version::HTTP_11,
        };
        if nothing_before_the_verdict {
            progress = flight.ended().await;
        }
        if let Progress::Failed(error) = &progress {
            return match error {
                FillError::NoSpace(spill) => {
                    self.send_uncached(head, remote, &flight.digest, spill, record).await
                }
                error => Err(ApiError::fill(error, &flight.digest)),
            };
        }
        let content = self.blob_content(&flight.digest, progress.length());
        let own = Arc::new(AtomicU64::new(0));
        record.also_received = Some(Arc::clone(&own));
        deliver(head, &content, |part| Ok(growing(flight, wanted(part), self.options.far_range, &own)))
    }

    /// The disk is full: this reader is served straight from upstream.
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
        let origin = spill.origin.clone();
        let mut opened = Download::new(source.clone(), *digest, spill.written, origin, Arc::clone(&own))
            .uncached(DISK_FULL);
        opened.open().await.map_err(|error| ApiError::fill(&error, digest))?;
        let origin = opened.origin().clone();
        let mut opened = Some(opened);
        let content = self.blob_content(digest, origin.length);
        deliver(head, &content, |part| {
            let download = |from| {
                Download::new(source.clone(), *digest, from, origin.clone(), Arc::clone(&own))
                    .uncached(DISK_FULL)
            };
            Ok(match (part, origin.length) {
                (Part::Range(range), Some(length)) if range.end() <= length.saturating_sub(HELD_BACK) => {
                    passed_through(download(range.start).until(range.end()), range.len)
                }
                (part, length) => {
                    let download = opened.take().unwrap_or_else(|| download(spill.written));
                    verified_by_itself(*digest, download, spill, wanted(part), length)
                }
            })
        })
    }

    /// HEAD of a blob that is not held: upstream's answer, unless a fill of this repository knows better.
    async fn head_absent(
        &self,
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
            let answer = remote.via.upstream.blob_head(&remote.name, digest).await;
            answer.map_err(|error| refused(&error, digest))?.length
        };
        deliver(head, &self.blob_content(digest, len), |_| Ok(Body::empty()))
    }

    /// Asks upstream whether the repository may have the blob, and links it if so.
    async fn ask_for_link(&self, remote: &Remote, digest: &Digest) -> Result<(), ApiError> {
        let answer = remote.via.upstream.blob_head(&remote.name, digest).await;
        answer.map_err(|error| refused(&error, digest))?;
        if let Err(error) = self.cache.link(&remote.stored, LinkKind::Layer, digest).await {
            tracing::warn!(%digest, repository = %remote.stored, %error, "cannot link the blob: it will be asked for again");
        }
        Ok(())
    }

    fn blob_content<'a>(&self, digest: &'a Digest, len: Option<u64>) -> Content<'a> {
        let media_type = HeaderValue::from_static(media_type::OCTET_STREAM);
        Content { digest, media_type, len, ranges_max: self.options.ranges_max, immutable: true }
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
    match &blob.small {
        Some(small) => Body::bytes(small_part(small, start, len)),
        None => Body::file(Arc::clone(&blob.file), start, len),
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

fn refused(error: &UpstreamError, digest: &Digest) -> ApiError {
    if !error.is_absence() {
        tracing::warn!(%digest, reason = error.reason(), %error, "upstream does not answer for a blob");
    }
    ApiError::upstream(error, || ApiError::blob_unknown(digest))
}

/// Upstream's word about one repository says nothing about another.
fn is_refusal(error: &UpstreamError) -> bool {
    error.is_absence() || matches!(error, UpstreamError::Unauthorized { .. } | UpstreamError::Denied { .. })
}
