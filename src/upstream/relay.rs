//! A server that is asked with a client's own header fields: the source of a Docker v1 mirror.
//!
//! Unlike an [`Upstream`] as a registry it has no mirrors and no logins: whoever asks is who the client says that it is.
//! Connections, TLS, timeouts and redirects are an [`Upstream`]'s. Until an answer's head is there, what is worth another
//! try is tried again, [`ATTEMPTS`] times at most; a body that breaks later is the caller's business.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio::time::{Duration, Instant};
use url::Url;

use super::blobs::BlobBody;
use super::endpoint::redacted;
use super::error::Attempt;
use super::exchange::{Answer, Success, document, field};
use super::options::{Operation, RequestObservation};
use super::{Upstream, UpstreamConfigError, UpstreamError, UpstreamOptions, headers};

/// Tries until the head of an answer is there.
const ATTEMPTS: u32 = 3;
/// No further try begins after this time, because clients turn to their next host rather than wait.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause before the second try; it doubles.
const BACKOFF: Duration = Duration::from_millis(100);
/// A document is to be there within this many times the stall timeout.
const DOCUMENT_STALLS: u32 = 4;

/// One server; `Send + Sync`, to be shared in an `Arc`.
#[derive(Debug)]
pub struct Relay {
    upstream: Upstream,
    /// Its path has no slash at the end.
    base: Url,
    label: String,
}

/// Why a relay gave no answer that can be used.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{error}")]
pub struct Refusal {
    /// What happened.
    pub error: UpstreamError,
    /// How the server asks to be logged in to, if it does (`WWW-Authenticate`).
    pub challenges: Vec<HeaderValue>,
}

impl From<UpstreamError> for Refusal {
    fn from(error: UpstreamError) -> Self {
        Self { error, challenges: Vec::new() }
    }
}

/// An answer: status 200, and without a coding of its content, or of the transfer but `chunked`.
#[derive(Debug)]
pub struct Relayed {
    response: Response<Incoming>,
    attempt: Attempt,
    stall_timeout: Duration,
}

impl Relay {
    /// The server at `options.url`, whose path is put before those that are asked for. Of the options, mirrors and
    /// credentials mean nothing here. Contacts nobody.
    pub fn new(options: UpstreamOptions) -> Result<Self, UpstreamConfigError> {
        let invalid = |reason: String| UpstreamConfigError::Url {
            upstream: options.name.clone(),
            key: "url",
            value: redacted(&options.url),
            reason,
        };
        let mut base = Url::parse(&options.url).map_err(|error| invalid(error.to_string()))?;
        let path = base.path().trim_end_matches('/').to_owned();
        base.set_path(&path);
        let upstream = Upstream::new(options)?;
        let label = upstream.endpoints.own().label.clone();
        Ok(Self { upstream, base, label })
    }

    /// Asks for `path`, which begins with a slash and needs no escaping, with `fields`; `query` as a client sent it.
    ///
    /// # Errors
    /// Any status but 200, an answer in a coding, or none after what was tried.
    pub async fn get(&self, path: &str, query: Option<&str>, fields: HeaderMap) -> Result<Relayed, Refusal> {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        url.set_query(query);
        let mut fields = fields;
        fields.insert(header::ACCEPT_ENCODING, field("identity"));
        let attempt = Attempt::new(&self.label, Operation::Relay, path);
        let begun = Instant::now();
        let mut tries = 0;
        loop {
            tries += 1;
            let refusal = match self.once(&url, fields.clone(), &attempt).await {
                Ok(relayed) => return Ok(relayed),
                Err(refusal) => refusal,
            };
            // What limits the rate wants to be asked less, and what took its time would take it again.
            let passing = refusal.error.is_retryable()
                && !matches!(
                    refusal.error,
                    UpstreamError::RateLimited { .. } | UpstreamError::Timeout { .. }
                );
            if !passing || tries >= ATTEMPTS || begun.elapsed() > PATIENCE {
                return Err(refusal);
            }
            tracing::debug!(error = %refusal.error, tries, "the source stumbled: asking again");
            tokio::time::sleep(BACKOFF * (1 << (tries - 1))).await;
        }
    }

    async fn once(&self, url: &Url, fields: HeaderMap, attempt: &Attempt) -> Result<Relayed, Refusal> {
        let upstream = &self.upstream;
        let began = Instant::now();
        let followed = upstream
            .follow(&Method::GET, url, fields, &Bytes::new(), attempt, began + upstream.header_timeout)
            .await;
        let elapsed = began.elapsed();
        let mut challenges = Vec::new();
        let result = match followed {
            Ok(followed) => {
                challenges.extend(followed.headers().get_all(header::WWW_AUTHENTICATE).iter().cloned());
                upstream
                    .judged(followed, Success::Content, attempt)
                    .await
                    .and_then(|answer| self.checked(answer))
            }
            Err(lost) => Err(lost.error),
        };
        upstream.observe(&RequestObservation {
            upstream: upstream.name(),
            endpoint: &self.label,
            operation: Operation::Relay,
            outcome: result.as_ref().map_or_else(UpstreamError::reason, |_| "ok"),
            elapsed,
            rate_limit_remaining: None,
        });
        result.map_err(|error| Refusal { error, challenges })
    }

    fn checked(&self, Answer { response, attempt }: Answer) -> Result<Relayed, UpstreamError> {
        if response.status() != StatusCode::OK {
            let what = format!("status {} without a Range asked", response.status().as_u16());
            return Err(UpstreamError::Malformed { attempt, what });
        }
        let fields = response.headers();
        if let Err(what) = headers::check_coding(fields).and_then(|()| headers::check_transfer_coding(fields))
        {
            return Err(UpstreamError::Malformed { attempt, what });
        }
        Ok(Relayed { response, attempt, stall_timeout: self.upstream.stall_timeout })
    }

    /// The name in messages and metrics.
    pub fn name(&self) -> &str {
        self.upstream.name()
    }
}

impl Relayed {
    /// The header fields.
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The length in bytes, if announced.
    pub fn length(&self) -> Option<u64> {
        headers::content_length(self.headers())
    }

    /// Whether a body that is cut off can be told from a whole one.
    pub fn has_end(&self) -> bool {
        self.length().is_some() || self.headers().contains_key(header::TRANSFER_ENCODING)
    }

    /// The body as it comes: one that ends before its announced length is an error.
    pub fn into_body(self) -> BlobBody {
        let length = self.length();
        BlobBody::new(self.response.into_body(), length, self.stall_timeout, self.attempt)
    }

    /// The whole body, which may have `limit` bytes.
    pub async fn document(self, limit: usize) -> Result<Bytes, UpstreamError> {
        if !self.has_end() {
            let what = "a document whose end cannot be told from a break".to_owned();
            return Err(UpstreamError::Malformed { attempt: self.attempt, what });
        }
        let (stall, total) = (self.stall_timeout, self.stall_timeout * DOCUMENT_STALLS);
        document(self.response, limit, stall, total, &self.attempt).await
    }
}
