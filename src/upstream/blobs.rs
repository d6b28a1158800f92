//! Blobs: GET of the whole or of a range, HEAD, and the body as it arrives.
//!
//! Nothing is verified here: whoever hashes the bytes decides. What is checked is that the answer fits the question:
//! the range, the length, no content coding.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Duration, Instant, timeout_at};

use super::Upstream;
use super::endpoint::{Endpoint, EndpointChoice};
use super::error::{Attempt, UpstreamError, causes};
use super::exchange::{Answer, Call, Success, field, quoted};
use super::headers;
use super::options::Operation;
use crate::oci::{Digest, RepositoryName};

/// Which part of a blob, and from whom.
#[derive(Clone, Debug, Default)]
pub struct BlobRequest {
    /// First byte and last byte (inclusive; `None`: to the end). `None`: the whole blob.
    pub range: Option<(u64, Option<u64>)>,
    /// The entity tag that the range is meant for: if it changed, the whole blob comes instead (RFC 9110 §13.1.5).
    pub if_range: Option<String>,
    /// Which endpoint to begin with.
    pub endpoint: EndpointChoice,
}

/// The head of a blob's answer, and its body.
#[derive(Debug)]
pub struct BlobResponse {
    /// The endpoint that answered, for [`EndpointChoice::After`].
    pub endpoint: usize,
    /// Which part this is (206); `None`: the whole blob (200), also when a range was asked and not honoured.
    pub partial: Option<ContentRange>,
    /// The length of this body in bytes, if announced.
    pub length: Option<u64>,
    /// The entity tag, quotes included.
    pub etag: Option<String>,
    /// The bytes.
    pub body: BlobBody,
}

/// `Content-Range` of a 206 (RFC 9110 §14.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// First byte.
    pub start: u64,
    /// Last byte; at least `start`.
    pub end_inclusive: u64,
    /// The whole blob's length, if told; more than `end_inclusive`.
    pub total: Option<u64>,
}

impl ContentRange {
    /// The part's length in bytes; at least 1.
    pub fn length(&self) -> u64 {
        // Saturating: 0..=u64::MAX would be one byte more than a u64 counts.
        (self.end_inclusive - self.start).saturating_add(1)
    }
}

/// What HEAD tells of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobHead {
    /// Its length in bytes, if announced.
    pub length: Option<u64>,
}

impl Upstream {
    /// Fetches a blob or a part of it: the response's head and a body to read. Endpoints are tried in turn until one
    /// answers; a body that breaks later is the caller's to resume, with [`EndpointChoice::After`].
    ///
    /// Each attempt is bounded by the header timeout. Dropping the call or the body closes the connection.
    pub async fn blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        request: BlobRequest,
    ) -> Result<BlobResponse, UpstreamError> {
        let repository = self.canonical(repository);
        let mut walk = self.endpoints.walk(request.endpoint);
        loop {
            match self.blob_from(walk.endpoint(), &repository, digest, &request).await {
                Ok(response) => return Ok(response),
                Err(error) => walk.next(error)?,
            }
        }
    }

    /// Asks whether a blob exists in a repository, and how long it is.
    ///
    /// Each attempt is bounded by the header timeout. Cancel-safe.
    pub async fn blob_head(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<BlobHead, UpstreamError> {
        let repository = self.canonical(repository);
        let mut walk = self.endpoints.walk(EndpointChoice::First);
        loop {
            let endpoint = walk.endpoint();
            let call = blob_call(endpoint, Operation::BlobHead, Method::HEAD, &repository, digest);
            match self.exchange(endpoint, &call).await {
                Ok(answer) => {
                    return Ok(BlobHead { length: headers::content_length(answer.response.headers()) });
                }
                Err(error) => walk.next(error)?,
            }
        }
    }

    async fn blob_from(
        &self,
        endpoint: &Endpoint,
        repository: &RepositoryName,
        digest: &Digest,
        request: &BlobRequest,
    ) -> Result<BlobResponse, UpstreamError> {
        let mut call = blob_call(endpoint, Operation::Blob, Method::GET, repository, digest);
        if let Some(range) = request.range {
            call.headers.insert(header::RANGE, range_header(range));
            // An entity tag that is not fit for a header cannot have come from one.
            if let Some(etag) = request.if_range.as_deref().and_then(|etag| HeaderValue::from_str(etag).ok())
            {
                call.headers.insert(header::IF_RANGE, etag);
            }
        }
        let Answer { response, attempt } = self.exchange(endpoint, &call).await?;
        let malformed = |what| UpstreamError::Malformed { attempt: attempt.clone(), what };
        headers::check_coding(response.headers()).map_err(malformed)?;
        let partial = if response.status() == StatusCode::PARTIAL_CONTENT {
            Some(part(response.headers(), request.range).map_err(malformed)?)
        } else {
            None
        };
        let length = headers::content_length(response.headers());
        if let (Some(part), Some(length)) = (partial, length)
            && part.length() != length
        {
            return Err(malformed(format!("a part of {} bytes with Content-Length {length}", part.length())));
        }
        let etag = headers::text(response.headers(), &header::ETAG).map(ToOwned::to_owned);
        let expected = length.or(partial.map(|part| part.length()));
        let body = BlobBody::new(response.into_body(), expected, self.stall_timeout, attempt.clone());
        Ok(BlobResponse { endpoint: endpoint.index, partial, length, etag, body })
    }
}

/// A blob's bytes as they arrive. Dropping it before its end closes the connection.
#[derive(Debug)]
pub struct BlobBody {
    incoming: Incoming,
    /// The announced length, if any: a body that ends elsewhere is broken.
    expected: Option<u64>,
    received: u64,
    stall_timeout: Duration,
    /// Since when the next bytes are waited for.
    waiting_since: Option<Instant>,
    end: Option<Result<(), UpstreamError>>,
    attempt: Attempt,
}

impl BlobBody {
    pub(super) fn new(
        incoming: Incoming,
        expected: Option<u64>,
        stall_timeout: Duration,
        attempt: Attempt,
    ) -> Self {
        Self { incoming, expected, received: 0, stall_timeout, waiting_since: None, end: None, attempt }
    }

    /// The next bytes, never empty; `None` after the last. An error is final: it comes again at every further call, never
    /// `None`. A body that ends before its announced length is an error.
    ///
    /// Cancel-safe: no bytes are lost by dropping the call. The stall timeout runs from the first call of a wait; a
    /// dropped call does not set it back.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        if let Some(end) = &self.end {
            return end.clone().map(|()| None);
        }
        let result = self.next().await;
        self.waiting_since = None;
        match &result {
            Ok(Some(_)) => {}
            Ok(None) => self.end = Some(Ok(())),
            Err(error) => self.end = Some(Err(error.clone())),
        }
        result
    }

    async fn next(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let attempt = &self.attempt;
        let broken = |cause| UpstreamError::Broken { attempt: attempt.clone(), cause };
        loop {
            // Bytes that are there already win over a deadline that has passed: the frame is polled first.
            let frame =
                timeout_at(since + self.stall_timeout, self.incoming.frame()).await.map_err(|_| {
                    UpstreamError::Timeout {
                        attempt: attempt.clone(),
                        what: "body bytes",
                        after: self.stall_timeout,
                    }
                })?;
            match frame {
                None => {
                    return match self.expected {
                        Some(expected) if expected != self.received => {
                            let cause = format!("the body ended after {} of {expected} bytes", self.received);
                            Err(broken(cause.into()))
                        }
                        _ => Ok(None),
                    };
                }
                Some(Err(error)) => return Err(broken(causes(&error))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        self.received += data.len() as u64;
                        if self.expected.is_some_and(|expected| self.received > expected) {
                            return Err(broken("the body is longer than announced".into()));
                        }
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

fn blob_call<'a>(
    endpoint: &Endpoint,
    operation: Operation,
    method: Method,
    repository: &'a RepositoryName,
    digest: &Digest,
) -> Call<'a> {
    let mut fields = HeaderMap::new();
    fields.insert(header::ACCEPT_ENCODING, field("identity"));
    Call {
        operation,
        repository: Some(repository),
        method,
        url: endpoint.url(&format!("{repository}/blobs/{digest}"), None),
        headers: fields,
        body: Bytes::new(),
        success: Success::Content,
        subject: format!("{repository}@{digest}"),
    }
}

fn range_header((start, end_inclusive): (u64, Option<u64>)) -> HeaderValue {
    let end = end_inclusive.map(|end| end.to_string()).unwrap_or_default();
    HeaderValue::try_from(format!("bytes={start}-{end}"))
        .expect("letters, digits, = and - are fit for a header")
}

/// The part that a 206 carries: it begins where we asked, and ends there or before (at the blob's end).
fn part(fields: &HeaderMap, asked: Option<(u64, Option<u64>)>) -> Result<ContentRange, String> {
    let (start, end) = asked.ok_or("status 206 without a Range asked")?;
    let value = headers::text(fields, &header::CONTENT_RANGE).ok_or("status 206 without Content-Range")?;
    let part = headers::content_range(value).ok_or_else(|| format!("Content-Range {}", quoted(value)))?;
    if part.start != start || end.is_some_and(|end| part.end_inclusive > end) {
        let end = end.map(|end| end.to_string()).unwrap_or_default();
        return Err(format!("Content-Range {}, asked bytes={start}-{end}", quoted(value)));
    }
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part_of(value: &'static str, asked: Option<(u64, Option<u64>)>) -> Result<ContentRange, String> {
        let mut fields = HeaderMap::new();
        fields.insert(header::CONTENT_RANGE, field(value));
        part(&fields, asked)
    }

    #[test]
    fn a_part_must_be_what_was_asked() {
        assert_eq!(part_of("bytes 5-9/10", Some((5, None))).unwrap().length(), 5);
        assert!(part_of("bytes 5-9/10", Some((5, Some(20)))).is_ok(), "cut at the blob's end");
        assert!(part_of("bytes 5-9/10", Some((5, Some(8)))).is_err());
        assert!(part_of("bytes 4-9/10", Some((5, None))).is_err());
        assert!(part_of("bytes 0-9/10", None).is_err());
        assert!(part_of("bytes */10", Some((5, None))).is_err());
        let whole = ContentRange { start: 0, end_inclusive: u64::MAX, total: None };
        assert_eq!(whole.length(), u64::MAX);
    }

    #[test]
    fn range_headers() {
        assert_eq!(range_header((0, None)), "bytes=0-");
        assert_eq!(range_header((7, Some(9))), "bytes=7-9");
    }
}
