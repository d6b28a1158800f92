//! Every error → status and OCI code: one table.
//!
//! What a client sees and what the log says are two messages: an [`ApiError`] holds the client's. What only an operator
//! should see (paths, causes) is logged where the error is made.

use std::fmt;
use std::time::Duration;

use http::header::{
    ALLOW, CONNECTION, CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};

use crate::body::Body;
use crate::fill::FillError;
use crate::http::range;
use crate::oci::{
    Digest, ErrorCode, InvalidDigest, InvalidManifest, InvalidName, InvalidReference, InvalidTag, Reference,
    RepositoryName, error_body,
};
use crate::upstream::{Refusal, UpstreamError};

/// Every answer under `/v2` says which API it speaks.
pub(super) const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
/// The API's version.
pub(super) const API_VERSION_VALUE: HeaderValue = HeaderValue::from_static("registry/2.0");
/// The content's digest.
pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// The namespace that `ns=` named.
pub(super) const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

/// An answer that is not what was asked for.
#[derive(Clone, Debug)]
pub struct ApiError {
    status: StatusCode,
    code: ErrorCode,
    message: String,
    detail: Option<Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
    form: Form,
}

/// How an error is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `{"errors":[{"code","message","detail"}]}`
    Oci,
    /// `{"error":"…"}`, as the Docker v1 protocol has it.
    V1,
}

/// The status that a code has unless an error says otherwise (OCI distribution spec 1.1, "Error Codes").
fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::Unsupported => StatusCode::METHOD_NOT_ALLOWED,
        ErrorCode::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorCode::Denied => StatusCode::FORBIDDEN,
        ErrorCode::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::NameUnknown
        | ErrorCode::ManifestUnknown
        | ErrorCode::BlobUnknown
        | ErrorCode::BlobUploadUnknown
        | ErrorCode::BlobUploadInvalid => StatusCode::NOT_FOUND,
        ErrorCode::RangeInvalid => StatusCode::RANGE_NOT_SATISFIABLE,
        ErrorCode::SizeInvalid
        | ErrorCode::DigestInvalid
        | ErrorCode::NameInvalid
        | ErrorCode::TagInvalid
        | ErrorCode::ManifestInvalid
        | ErrorCode::ManifestBlobUnknown
        | ErrorCode::PaginationNumberInvalid => StatusCode::BAD_REQUEST,
        ErrorCode::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl ApiError {
    fn new(code: ErrorCode, message: impl fmt::Display) -> Self {
        let message = message.to_string();
        Self { status: status_of(code), code, message, detail: None, headers: Vec::new(), form: Form::Oci }
    }

    fn status_is(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    fn detail(mut self, detail: Value) -> Self {
        self.detail = Some(detail);
        self
    }

    fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The code in the answer's body.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// What the client is told.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The answer.
    pub fn into_response(self) -> Response<Body> {
        let body = match self.form {
            Form::Oci => error_body(self.code, &self.message, self.detail),
            Form::V1 => json!({ "error": self.message }).to_string().into(),
        };
        let mut response = Response::new(Body::bytes(body));
        *response.status_mut() = self.status;
        response.headers_mut().extend(self.headers);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }

    /// The same, written as the Docker v1 protocol has it.
    #[must_use]
    pub(super) fn in_v1(self) -> Self {
        Self { form: Form::V1, ..self }
    }

    /// The connection cannot be used further.
    #[must_use]
    pub fn closing(self) -> Self {
        self.header(CONNECTION, HeaderValue::from_static("close"))
    }

    // What the client did.

    /// The request's head was refused before it was understood.
    pub fn refused_head(status: StatusCode, reason: &str) -> Self {
        Self::new(ErrorCode::Unsupported, reason).status_is(status).closing()
    }

    pub(super) fn name_invalid(error: &InvalidName) -> Self {
        Self::new(ErrorCode::NameInvalid, error)
    }

    pub(super) fn path_invalid(path: &str, why: &str) -> Self {
        Self::new(ErrorCode::NameInvalid, format_args!("invalid path {:?}: {why}", shortened(path)))
    }

    pub(super) fn digest_invalid(error: &InvalidDigest) -> Self {
        Self::new(ErrorCode::DigestInvalid, error)
    }

    pub(super) fn reference_invalid(error: &InvalidReference) -> Self {
        let code = match error {
            InvalidReference::Tag(_) => ErrorCode::TagInvalid,
            InvalidReference::Digest(_) => ErrorCode::DigestInvalid,
        };
        Self::new(code, error)
    }

    pub(super) fn query_invalid(query: &str, why: &str) -> Self {
        Self::new(ErrorCode::Unsupported, format_args!("invalid query {:?}: {why}", shortened(query)))
            .status_is(StatusCode::BAD_REQUEST)
    }

    pub(super) fn page_size_invalid(value: &str) -> Self {
        let message = format!("invalid number of entries {:?}: n must be 0 or more", shortened(value));
        Self::new(ErrorCode::PaginationNumberInvalid, message)
    }

    pub(super) fn no_such_endpoint(path: &str) -> Self {
        Self::new(ErrorCode::Unsupported, format_args!("there is nothing at {:?}", shortened(path)))
            .status_is(StatusCode::NOT_FOUND)
    }

    pub(super) fn method_not_allowed(method: &http::Method, allowed: &'static str) -> Self {
        Self::new(
            ErrorCode::Unsupported,
            format_args!("method {:?} is not supported here", shortened(method.as_str())),
        )
        .header(ALLOW, HeaderValue::from_static(allowed))
    }

    /// What an invalid tag is to who asks for it: 404, with the reason.
    pub(super) fn absent_tag(self) -> Self {
        match self.code {
            ErrorCode::TagInvalid => Self::new(ErrorCode::ManifestUnknown, self.message),
            _ => self,
        }
    }

    /// Adds header fields.
    #[must_use]
    pub(super) fn headed(mut self, headers: HeaderMap) -> Self {
        let named = |(name, value): (Option<HeaderName>, HeaderValue)| Some((name?, value));
        self.headers.extend(headers.into_iter().filter_map(named));
        self
    }

    pub(super) fn push_denied(why: &str) -> Self {
        Self::new(ErrorCode::Denied, why)
    }

    /// The client stopped sending: it will hardly read this.
    pub(super) fn body_broken(error: &dyn fmt::Display) -> Self {
        Self::new(ErrorCode::SizeInvalid, format_args!("the request's body was cut off: {error}")).closing()
    }

    pub(super) fn digest_missing() -> Self {
        Self::new(ErrorCode::DigestInvalid, "the query has no digest")
    }

    pub(super) fn digest_differs(named: &Digest, actual: &Digest) -> Self {
        Self::new(ErrorCode::DigestInvalid, format_args!("the content has digest {actual}, not {named}"))
            .detail(json!({ "digest": named, "actual": actual }))
    }

    pub(super) fn algorithm_unknown(name: &str) -> Self {
        let message = format!("unknown digest algorithm {:?}: sha256 and sha512 are known", shortened(name));
        Self::new(ErrorCode::DigestInvalid, message)
    }

    pub(super) fn tag_invalid(error: &InvalidTag) -> Self {
        Self::new(ErrorCode::TagInvalid, error)
    }

    pub(super) fn size_invalid(why: &str) -> Self {
        Self::new(ErrorCode::SizeInvalid, why)
    }

    /// A chunk does not go on where the upload stands; the caller adds where that is.
    pub(super) fn upload_range(why: &str) -> Self {
        Self::new(ErrorCode::RangeInvalid, why)
    }

    pub(super) fn chunk_range_invalid(value: &[u8]) -> Self {
        let value = String::from_utf8_lossy(value);
        let message = format!("invalid Content-Range {:?}: it must be <first>-<last>", shortened(&value));
        Self::new(ErrorCode::RangeInvalid, message).status_is(StatusCode::BAD_REQUEST)
    }

    pub(super) fn upload_too_large(max: u64) -> Self {
        Self::new(ErrorCode::SizeInvalid, format_args!("a blob may have at most {max} bytes here"))
            .status_is(StatusCode::PAYLOAD_TOO_LARGE)
    }

    pub(super) fn too_many_uploads() -> Self {
        Self::new(ErrorCode::TooManyRequests, "the repository has too many uploads under way")
            .header(RETRY_AFTER, HeaderValue::from(60))
    }

    pub(super) fn manifest_too_large(max: usize) -> Self {
        Self::new(ErrorCode::ManifestInvalid, format_args!("a manifest may have at most {max} bytes here"))
            .status_is(StatusCode::PAYLOAD_TOO_LARGE)
    }

    pub(super) fn manifest_invalid(error: &InvalidManifest) -> Self {
        Self::new(ErrorCode::ManifestInvalid, error)
    }

    pub(super) fn manifest_blobs_unknown(missing: &[Digest]) -> Self {
        const SHOWN: usize = 20;
        let shown: Vec<_> = missing.iter().take(SHOWN).map(ToString::to_string).collect();
        let message =
            format!("the repository lacks {} that the manifest names: {}", missing.len(), shown.join(", "));
        Self::new(ErrorCode::ManifestBlobUnknown, message).detail(json!({ "digests": shown }))
    }

    /// The client must log in, or with something else than it did; `challenges` say how.
    pub(super) fn unauthorized(challenges: Vec<HeaderValue>) -> Self {
        let error = Self::new(ErrorCode::Unauthorized, "authentication required");
        challenges.into_iter().fold(error, |error, challenge| error.header(WWW_AUTHENTICATE, challenge))
    }

    /// The client may not do this, whatever it sends.
    pub(super) fn denied(message: &str) -> Self {
        Self::new(ErrorCode::Denied, message)
    }

    /// The client's logins were wrong too often, or too many are being verified.
    pub(super) fn too_many_logins(retry_after: Duration) -> Self {
        Self::new(ErrorCode::TooManyRequests, "too many logins at once, or too many that were wrong")
            .header(RETRY_AFTER, HeaderValue::from(retry_after.as_secs().max(1)))
    }

    pub(super) fn unexpected_body() -> Self {
        Self::new(ErrorCode::Unsupported, "this request takes no body").status_is(StatusCode::BAD_REQUEST)
    }

    pub(super) fn range_invalid(value: &[u8], why: impl fmt::Display, len: u64) -> Self {
        let message = format!("invalid range {:?}: {why}", shortened(&String::from_utf8_lossy(value)));
        let unsatisfied = HeaderValue::try_from(range::unsatisfied_content_range(len));
        let error = Self::new(ErrorCode::RangeInvalid, message).detail(json!({ "length": len }));
        match unsatisfied {
            Ok(unsatisfied) => error.header(CONTENT_RANGE, unsatisfied),
            Err(_) => error,
        }
    }

    pub(super) fn precondition_failed() -> Self {
        Self::new(ErrorCode::Unsupported, "a precondition of the request does not hold")
            .status_is(StatusCode::PRECONDITION_FAILED)
    }

    // What is not there.

    pub(super) fn namespace_unknown(namespace: &str) -> Self {
        let message = format!("no upstream is configured for namespace {:?}", shortened(namespace));
        Self::new(ErrorCode::NameUnknown, message)
    }

    pub(super) fn name_unknown(name: &RepositoryName) -> Self {
        Self::new(ErrorCode::NameUnknown, format_args!("repository {name} is not known here"))
            .detail(json!({ "name": name.as_str() }))
    }

    pub(super) fn blob_unknown(digest: &Digest) -> Self {
        Self::new(ErrorCode::BlobUnknown, format_args!("blob {digest} is not known to this repository"))
            .detail(json!({ "digest": digest }))
    }

    pub(super) fn upload_unknown(id: &dyn fmt::Display) -> Self {
        Self::new(ErrorCode::BlobUploadUnknown, format_args!("upload {id} is not known to this repository"))
    }

    pub(super) fn manifest_unknown(reference: &Reference) -> Self {
        Self::new(
            ErrorCode::ManifestUnknown,
            format_args!("manifest {reference} is not known to this repository"),
        )
        .detail(json!({ "reference": reference.to_string() }))
    }

    // The Docker v1 protocol, in docker-registry's words.

    pub(super) fn image_unknown() -> Self {
        Self::new(ErrorCode::BlobUnknown, "Image not found")
    }

    /// docker-registry is writing the image.
    pub(super) fn image_in_progress() -> Self {
        Self::new(ErrorCode::BlobUploadInvalid, "Image is being uploaded, retry later")
            .status_is(StatusCode::BAD_REQUEST)
    }

    pub(super) fn v1_repository_unknown() -> Self {
        Self::new(ErrorCode::NameUnknown, "Repository not found")
    }

    pub(super) fn v1_tag_unknown() -> Self {
        Self::new(ErrorCode::ManifestUnknown, "Tag not found")
    }

    /// What the source's refusal means to a client. `absent` is the answer if the source does not have it, or does not say
    /// what else keeps it from giving it.
    pub(super) fn source(refusal: &Refusal, absent: impl FnOnce() -> Self) -> Self {
        match &refusal.error {
            // The client's own credentials, or the want of them, were refused: it may have others.
            UpstreamError::Unauthorized { .. } => {
                let error = Self::new(ErrorCode::Unauthorized, "the source requires authentication");
                let challenges = refusal.challenges.iter().cloned();
                challenges.fold(error, |error, challenge| error.header(WWW_AUTHENTICATE, challenge))
            }
            UpstreamError::Denied { .. } => Self::new(ErrorCode::Denied, "the source denies access"),
            error @ (UpstreamError::Timeout { .. }
            | UpstreamError::Connect { .. }
            | UpstreamError::Broken { .. }
            | UpstreamError::Malformed { .. }
            | UpstreamError::TooLarge { .. }) => Self::upstream(error, absent),
            _ => absent(),
        }
    }

    /// What a failed fill of a layer means to a client that has not been sent anything yet.
    pub(super) fn layer(error: &FillError) -> Self {
        match error {
            // The client was admitted a moment ago, with what it has.
            FillError::Upstream(UpstreamError::Unauthorized { .. }) => {
                Self::new(ErrorCode::Denied, "the source refuses the layer")
            }
            FillError::Upstream(error) => Self::source(&error.clone().into(), Self::image_unknown),
            FillError::Disk { .. } => Self::internal(),
            FillError::NotKept(_) | FillError::OwnerStalls(_) | FillError::Busy | FillError::Abandoned => {
                Self::unavailable("the layer cannot be fetched now")
            }
            FillError::Length { .. }
            | FillError::Short { .. }
            | FillError::Misplaced { .. }
            | FillError::Unbounded
            | FillError::Digest { .. } => Self::source_senseless("something else than the layer"),
        }
    }

    /// The source sends what it should not.
    pub(super) fn source_senseless(what: &str) -> Self {
        Self::new(ErrorCode::Unavailable, format_args!("the source sends {what}"))
            .status_is(StatusCode::BAD_GATEWAY)
    }

    // What we, or those behind us, cannot do.

    pub(super) fn internal() -> Self {
        Self::new(ErrorCode::Unknown, "the registry failed; its log says how")
    }

    pub(super) fn disk_full() -> Self {
        Self::new(ErrorCode::Unknown, "the registry's disk is full")
            .status_is(StatusCode::INSUFFICIENT_STORAGE)
    }

    pub(super) fn unavailable(message: &str) -> Self {
        Self::new(ErrorCode::Unavailable, message)
    }

    /// What an upstream's failure means to a client. `absent` is the answer if upstream does not have it.
    pub(super) fn upstream(error: &UpstreamError, absent: impl FnOnce() -> Self) -> Self {
        match error {
            UpstreamError::NotFound { .. } => absent(),
            // Not 401: the client's credentials were not asked for, ours were refused.
            UpstreamError::Unauthorized { .. } | UpstreamError::Denied { .. } => {
                Self::new(ErrorCode::Denied, "upstream denies access")
            }
            UpstreamError::RateLimited { retry_after, .. } => {
                let limited = Self::new(ErrorCode::TooManyRequests, "upstream limits the rate of requests");
                let seconds = retry_after.unwrap_or(Duration::from_secs(1)).as_secs().max(1);
                limited.header(RETRY_AFTER, HeaderValue::from(seconds))
            }
            UpstreamError::ServerError { status, .. } => {
                Self::new(ErrorCode::Unavailable, format_args!("upstream answers {status}"))
                    .status_is(StatusCode::BAD_GATEWAY)
            }
            UpstreamError::Timeout { .. } => {
                Self::new(ErrorCode::Unavailable, "upstream does not answer in time")
                    .status_is(StatusCode::GATEWAY_TIMEOUT)
            }
            UpstreamError::Connect { .. } | UpstreamError::Broken { .. } => {
                Self::new(ErrorCode::Unavailable, "upstream cannot be reached")
                    .status_is(StatusCode::BAD_GATEWAY)
            }
            _ => Self::new(ErrorCode::Unavailable, "upstream sends what makes no sense")
                .status_is(StatusCode::BAD_GATEWAY),
        }
    }

    /// What a failed fill means to a client that has not been sent anything yet.
    pub(super) fn fill(error: &FillError, digest: &Digest) -> Self {
        match error {
            FillError::Upstream(error) => Self::upstream(error, || Self::blob_unknown(digest)),
            FillError::Disk { .. } => Self::internal(),
            FillError::NotKept(_) | FillError::OwnerStalls(_) | FillError::Busy | FillError::Abandoned => {
                Self::unavailable("the blob cannot be fetched now")
            }
            FillError::Length { .. }
            | FillError::Short { .. }
            | FillError::Misplaced { .. }
            | FillError::Unbounded
            | FillError::Digest { .. } => {
                Self::new(ErrorCode::Unavailable, "upstream sends something else than the blob")
                    .status_is(StatusCode::BAD_GATEWAY)
            }
        }
    }
}

/// A client's own words come back to it, not more of them than a person reads.
fn shortened(text: &str) -> &str {
    const MAX: usize = 100;
    let mut end = text.len().min(MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
