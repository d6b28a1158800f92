//! A blob's bytes from upstream, in order, whatever upstream does on the way.
//!
//! A [`Download`] hides the stumbles of its source: a broken, stalled or short body is taken up again at the next byte
//! with `Range` and `If-Range` (RFC 9110 sections 14.2 and 13.1.5), from the next mirror, after a pause that doubles. An upstream
//! that ignores the range, or whose entity tag changed, sends everything again, and what the caller already has is
//! skipped: a blob is named by its content, so either the whole hashes right in the end or nothing is published.
//! Whatever happens is named in the log with the byte it happened at.
//!
//! Bounds: [`Source::retries`] failures in a row without `PROGRESS` bytes between them, `STUMBLES_MAX` in all. Dropping
//! a download closes or returns its connection. No future here is cancel safe: drop the download with it.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use tokio::sync::Semaphore;

use super::error::FillError;
use crate::metrics::Metrics;
use crate::oci::{Digest, RepositoryName};
use crate::store::ingest::Origin;
use crate::store::pump::Pieces;
use crate::upstream::{BlobBody, BlobRequest, BlobResponse, EndpointChoice, Upstream, UpstreamError};

/// Fetches from one upstream at once; further ones wait for their turn.
pub const TURNS: usize = 128;
/// Until upstream has answered, nobody has been sent a header: no further try begins after this time, because clients
/// turn to their next host rather than wait.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);
/// Until upstream has answered, a longer `Retry-After` than this is passed on instead of waited for.
const RETRY_AFTER_AT_FIRST: Duration = Duration::from_secs(2);
/// Failures of one download in all.
const STUMBLES_MAX: u32 = 100;
/// Bytes after which earlier failures are forgiven.
const PROGRESS: u64 = 64 * 1024;
/// The pause after the first failure; it doubles with each further one.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// The longest pause between two tries.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A `Retry-After` up to this is waited for; a longer one fails the download.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// Where a blob comes from.
#[derive(Clone)]
pub struct Source {
    /// The upstream registry.
    pub upstream: Arc<Upstream>,
    /// The repository's name there.
    pub repository: RepositoryName,
    /// Failures in a row that are overcome.
    pub retries: u32,
    /// A permit for each fetch that may be under way from this upstream: [`TURNS`].
    pub turns: Arc<Semaphore>,
    /// Where bytes received are counted.
    pub metrics: Metrics,
}

/// One blob, or a part of it, on its way from upstream.
pub struct Download {
    source: Source,
    digest: Digest,
    /// The next byte that the caller gets.
    next: u64,
    /// The byte behind the last one that the caller wants, if it wants a part.
    until: Option<u64>,
    origin: Origin,
    body: Option<BlobBody>,
    /// Where the body under way stands; `at <= next`: what lies between is skipped.
    at: u64,
    endpoint: EndpointChoice,
    /// Set once upstream refused a range: from then on everything is asked for.
    whole: bool,
    /// Whether the length is upstream's word, or only a manifest's.
    length_announced: bool,
    /// Whether upstream's headers have once fitted what is known.
    accepted: bool,
    failures: u32,
    stumbles: u32,
    since_failure: u64,
    received: Arc<AtomicU64>,
    uncached: Option<&'static str>,
    /// The length that a manifest says, for an upstream that announces none.
    expected: Option<u64>,
    /// The endpoint that answered last.
    answered_by: Option<usize>,
    begun: Instant,
}

impl Download {
    /// The blob from byte `from` on. `origin` is what is known already; `received` counts the bytes that come.
    pub fn new(source: Source, digest: Digest, from: u64, origin: Origin, received: Arc<AtomicU64>) -> Self {
        Self {
            source,
            digest,
            next: from,
            until: None,
            origin,
            body: None,
            at: from,
            endpoint: EndpointChoice::First,
            whole: false,
            length_announced: true,
            accepted: false,
            failures: 0,
            stumbles: 0,
            since_failure: 0,
            received,
            uncached: None,
            expected: None,
            answered_by: None,
            begun: Instant::now(),
        }
    }

    /// Stops before byte `until`. Such a download fails rather than skip a large part that it did not ask for.
    #[must_use]
    pub fn until(mut self, until: u64) -> Self {
        self.until = Some(until);
        self
    }

    /// Says why nothing of this download is kept, for the metrics.
    #[must_use]
    pub fn uncached(mut self, reason: &'static str) -> Self {
        self.uncached = Some(reason);
        self
    }

    /// What a manifest says about the length. It counts only if upstream announces none.
    #[must_use]
    pub fn expecting(mut self, length: Option<u64>) -> Self {
        self.expected = length;
        self
    }

    /// Begins with another endpoint than this one.
    #[must_use]
    pub fn avoiding(mut self, endpoint: Option<usize>) -> Self {
        if let Some(endpoint) = endpoint {
            self.endpoint = EndpointChoice::After(endpoint);
        }
        self
    }

    /// The endpoint that answered last.
    pub fn endpoint(&self) -> Option<usize> {
        self.answered_by
    }

    /// What upstream announced: without what only a manifest says.
    pub fn announced(&self) -> Origin {
        Origin {
            length: self.origin.length.filter(|_| self.length_announced),
            etag: self.origin.etag.clone(),
        }
    }

    /// What is known of the source; complete once [`Download::open`] has returned.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Asks upstream and waits for its headers.
    ///
    /// # Errors
    /// What is left after retries: upstream's refusal, or its last failure. If the first answer already contradicts what
    /// was known (another length, no such range), there is no retry: what was known may be wrong.
    pub async fn open(&mut self) -> Result<(), FillError> {
        while self.body.is_none() {
            let last = self.until.map(|until| until.saturating_sub(1));
            let ranged = (self.next > 0 || last.is_some()) && !self.whole;
            let if_range = self.origin.etag.clone().filter(|etag| self.next > 0 && etag.starts_with('"'));
            let request = BlobRequest {
                range: ranged.then_some((self.next, last)),
                if_range: if_range.filter(|_| ranged),
                endpoint: self.endpoint,
            };
            let answer = self.source.upstream.blob(&self.source.repository, &self.digest, request).await;
            match answer {
                Ok(response) => {
                    let endpoint = response.endpoint;
                    if let Err(error) = self.accept(response, ranged) {
                        self.stumble(error).await?;
                        self.endpoint = EndpointChoice::After(endpoint);
                    }
                }
                Err(error @ UpstreamError::RangeNotSatisfiable { .. }) => {
                    self.whole = true;
                    self.stumble(error.into()).await?;
                }
                Err(error) => self.stumble(error.into()).await?,
            }
        }
        Ok(())
    }

    /// The next bytes, in order; `None` at the end.
    ///
    /// # Errors
    /// As [`Download::open`]. After an error the download is over.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FillError> {
        loop {
            if self.end().is_some_and(|end| self.next >= end) {
                self.body = None;
                return Ok(None);
            }
            self.open().await?;
            let Some(body) = &mut self.body else { continue };
            match body.chunk().await {
                Ok(Some(chunk)) => {
                    if let Some(chunk) = self.take(chunk) {
                        return Ok(Some(chunk));
                    }
                }
                Ok(None) => {
                    self.body = None;
                    match self.end() {
                        Some(end) if self.next < end => {
                            self.stumble(FillError::Short { received: self.next, expected: end }).await?;
                        }
                        _ => return Ok(None),
                    }
                }
                Err(error) => {
                    self.body = None;
                    self.stumble(error.into()).await?;
                }
            }
        }
    }

    fn end(&self) -> Option<u64> {
        self.until.or(self.origin.length)
    }

    /// Checks an answer's headers against what is known, and makes its body the one under way.
    fn accept(&mut self, response: BlobResponse, ranged: bool) -> Result<(), FillError> {
        let BlobResponse { partial, length, etag, body, endpoint } = response;
        let (at, total) = match partial {
            Some(range) => (range.start, range.total),
            None => (0, length),
        };
        let empty = Digest::of(self.digest.algorithm(), &[]);
        if total == Some(0) && self.digest != empty {
            self.answered_by = Some(endpoint);
            return Err(FillError::digest(self.digest, empty));
        }
        if at > self.next || (partial.is_some() && !ranged) {
            return Err(FillError::Misplaced { asked: self.next, sent: at });
        }
        if let (Some(announced), Some(expected)) = (total, self.origin.length)
            && announced != expected
        {
            return Err(FillError::Length { announced, expected });
        }
        if ranged && partial.is_none() {
            if self.until.is_some() && self.next > PROGRESS {
                return Err(FillError::Misplaced { asked: self.next, sent: 0 });
            }
            let changed = etag.is_some() && self.origin.etag.is_some() && etag != self.origin.etag;
            let why = if changed { "its entity tag changed" } else { "it ignores Range" };
            tracing::warn!(
                digest = %self.digest, upstream = self.source.upstream.name(), offset = self.next,
                "upstream sends the blob from the start ({why}): skipping what is there already"
            );
        }
        self.endpoint = EndpointChoice::After(endpoint);
        self.at = at;
        if self.origin.length.is_none() {
            self.length_announced = total.is_some();
            // A manifest that calls a blob empty which is not cannot be right.
            self.origin.length = total.or(self.expected.filter(|length| *length > 0 || self.digest == empty));
        }
        self.answered_by = Some(endpoint);
        if etag.is_some() {
            self.origin.etag = etag;
        }
        self.body = Some(body);
        self.accepted = true;
        Ok(())
    }

    /// Counts what came and cuts away what the caller has already or does not want.
    fn take(&mut self, mut chunk: Bytes) -> Option<Bytes> {
        let len = chunk.len() as u64;
        self.received.fetch_add(len, Ordering::Relaxed);
        self.source.metrics.fetched(self.source.upstream.name(), len);
        if let Some(reason) = self.uncached {
            self.source.metrics.uncached_bytes(reason, len);
        }
        let skip = (self.next - self.at).min(len);
        self.at += len;
        chunk.advance(usize::try_from(skip).unwrap_or(chunk.len()));
        if let Some(end) = self.end() {
            let wanted = end - self.next;
            if chunk.len() as u64 > wanted {
                if self.until.is_none() {
                    tracing::warn!(
                        digest = %self.digest, upstream = self.source.upstream.name(), length = end,
                        "upstream sends more than it announced: the rest is ignored"
                    );
                }
                chunk.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
            }
        }
        if chunk.is_empty() {
            return None;
        }
        self.next += chunk.len() as u64;
        self.since_failure += chunk.len() as u64;
        if self.since_failure >= PROGRESS {
            self.failures = 0;
        }
        Some(chunk)
    }

    /// After a failure: gives up with it, or waits before the next try.
    async fn stumble(&mut self, error: FillError) -> Result<(), FillError> {
        self.failures += 1;
        self.stumbles += 1;
        self.since_failure = 0;
        let asked_to_wait = match &error {
            FillError::Upstream(UpstreamError::RateLimited { retry_after, .. }) => *retry_after,
            _ => None,
        };
        let refused = matches!(error, FillError::Upstream(UpstreamError::RangeNotSatisfiable { .. }));
        let contradicted = !self.accepted && (refused || matches!(error, FillError::Length { .. }));
        // A part of which upstream would send all from the start again: its reader has a better way.
        let unranged = self.until.is_some() && matches!(error, FillError::Misplaced { .. });
        let impatient = !self.accepted
            && (self.begun.elapsed() > OPEN_PATIENCE
                || asked_to_wait.is_some_and(|wait| wait > RETRY_AFTER_AT_FIRST));
        let hopeless = self.failures > self.source.retries
            || self.stumbles > STUMBLES_MAX
            || contradicted
            || unranged
            || impatient
            || asked_to_wait.is_some_and(|wait| wait > RETRY_AFTER_MAX)
            || !(error.is_retryable() || refused);
        if hopeless {
            return Err(error);
        }
        let backoff = BACKOFF_FIRST.saturating_mul(1 << (self.failures - 1).min(10)).min(BACKOFF_MAX);
        // Between half and the whole of it, so that fills that broke together do not come back together.
        let pause = asked_to_wait.unwrap_or_else(|| backoff.mul_f64(0.5 + fastrand::f64() / 2.0));
        tracing::warn!(
            digest = %self.digest, upstream = self.source.upstream.name(), offset = self.next,
            attempt = self.failures, reason = error.reason(), pause_ms = pause.as_millis(), %error,
            "upstream stumbled: going on from here"
        );
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

impl Pieces for Download {
    type Error = FillError;

    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, FillError>> {
        Self::next(self)
    }
}
