//! Manifests: GET with every type accepted, verified against its digest, and HEAD.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, header};
use tokio::time::Duration;

use super::Upstream;
use super::endpoint::{Endpoint, EndpointChoice};
use super::error::{Attempt, UpstreamError};
use super::exchange::{Answer, Call, Success, document, field, quoted};
use super::headers;
use super::options::Operation;
use crate::oci::media_type::{ALL_MANIFESTS_ACCEPT, DOCKER_SCHEMA1_SIGNED, essence};
use crate::oci::{Algorithm, Digest, Reference, RepositoryName, schema1};

/// A manifest's body has to be complete after this long.
const MANIFEST_TIMEOUT: Duration = Duration::from_mins(1);

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// A manifest as the upstream sent it, verified.
#[derive(Clone, Debug)]
pub struct FetchedManifest {
    /// Byte for byte what came.
    pub bytes: Bytes,
    /// `Content-Type` without parameters, if sent.
    pub media_type: Option<String>,
    /// The digest of `bytes`, by the reference's algorithm, or sha256 for a tag. The one exception is Docker's signed
    /// schema 1 (`media_type` is [`DOCKER_SCHEMA1_SIGNED`]), which is named by the digest of its payload, without the
    /// signatures.
    pub digest: Digest,
}

/// What HEAD tells of a manifest; unverified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestHead {
    /// `Docker-Content-Digest`, if sent.
    pub digest: Option<Digest>,
    /// `Content-Type` without parameters, if sent.
    pub media_type: Option<String>,
    /// `Content-Length` in bytes, if sent.
    pub length: Option<u64>,
}

impl Upstream {
    /// Fetches a manifest. It is verified against the reference, if that is a digest, and against
    /// `Docker-Content-Digest`, if sent; an endpoint whose manifest does not fit counts as failed, and the next is tried.
    ///
    /// Each attempt is bounded by the header timeout, then by the stall timeout and one minute for the body. Dropping
    /// the call closes the connection.
    pub async fn manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<FetchedManifest, UpstreamError> {
        let repository = self.canonical(repository);
        let mut walk = self.endpoints.walk(EndpointChoice::First);
        loop {
            match self.manifest_from(walk.endpoint(), &repository, reference).await {
                Ok(manifest) => return Ok(manifest),
                Err(error) => walk.next(error)?,
            }
        }
    }

    /// Asks which manifest a reference names. Docker Hub does not count it against the rate limit.
    ///
    /// Each attempt is bounded by the header timeout. Cancel-safe.
    pub async fn manifest_head(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<ManifestHead, UpstreamError> {
        let repository = self.canonical(repository);
        let mut walk = self.endpoints.walk(EndpointChoice::First);
        loop {
            let endpoint = walk.endpoint();
            let call = question(endpoint, Operation::ManifestHead, Method::HEAD, &repository, reference);
            match self.exchange(endpoint, &call).await.and_then(|answer| head(&answer)) {
                Ok(head) => return Ok(head),
                Err(error) => walk.next(error)?,
            }
        }
    }

    async fn manifest_from(
        &self,
        endpoint: &Endpoint,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<FetchedManifest, UpstreamError> {
        let call = question(endpoint, Operation::Manifest, Method::GET, repository, reference);
        let answer = self.exchange(endpoint, &call).await?;
        let ManifestHead { digest: announced, media_type, .. } = head(&answer)?;
        let Answer { response, attempt } = answer;
        let bytes =
            document(response, self.max_manifest_bytes, self.stall_timeout, MANIFEST_TIMEOUT, &attempt)
                .await?;
        let asked = match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(_) => None,
        };
        let digest = verify(&bytes, media_type.as_deref(), asked, announced, &attempt)?;
        Ok(FetchedManifest { bytes, media_type, digest })
    }
}

/// A request about a manifest, without a body or fields of its own.
pub(super) fn manifest_call<'a>(
    endpoint: &Endpoint,
    operation: Operation,
    method: Method,
    repository: &'a RepositoryName,
    reference: &Reference,
    success: Success,
) -> Call<'a> {
    let separator = if matches!(reference, Reference::Digest(_)) { '@' } else { ':' };
    Call {
        operation,
        repository: Some(repository),
        method,
        url: endpoint.url(&format!("{repository}/manifests/{reference}"), None),
        headers: HeaderMap::new(),
        body: Bytes::new(),
        success,
        subject: format!("{repository}{separator}{reference}"),
    }
}

/// The same for one that asks for the manifest, of whatever type.
fn question<'a>(
    endpoint: &Endpoint,
    operation: Operation,
    method: Method,
    repository: &'a RepositoryName,
    reference: &Reference,
) -> Call<'a> {
    let mut call = manifest_call(endpoint, operation, method, repository, reference, Success::Content);
    call.headers.insert(header::ACCEPT, field(ALL_MANIFESTS_ACCEPT));
    call.headers.insert(header::ACCEPT_ENCODING, field("identity"));
    call
}

fn head(answer: &Answer) -> Result<ManifestHead, UpstreamError> {
    let fields = answer.response.headers();
    let malformed = |what| UpstreamError::Malformed { attempt: answer.attempt.clone(), what };
    headers::check_coding(fields).map_err(malformed)?;
    let digest = match headers::text(fields, &CONTENT_DIGEST) {
        Some(text) => Some(
            text.trim().parse().map_err(|_| malformed(format!("Docker-Content-Digest {}", quoted(text))))?,
        ),
        None => None,
    };
    let media_type = headers::text(fields, &header::CONTENT_TYPE).map(|kind| essence(kind).to_owned());
    Ok(ManifestHead { digest, media_type, length: headers::content_length(fields) })
}

/// The manifest's digest, if it is the one asked for and the one announced.
fn verify(
    bytes: &[u8],
    media_type: Option<&str>,
    asked: Option<Digest>,
    announced: Option<Digest>,
    attempt: &Attempt,
) -> Result<Digest, UpstreamError> {
    let payload = match media_type {
        Some(DOCKER_SCHEMA1_SIGNED) => schema1::payload(bytes),
        _ => None,
    };
    let content = payload.as_deref().unwrap_or(bytes);
    for expected in asked.into_iter().chain(announced) {
        let actual = Digest::of(expected.algorithm(), content);
        if actual != expected {
            return Err(UpstreamError::DigestMismatch {
                attempt: attempt.clone(),
                expected: Box::new(expected),
                actual: Box::new(actual),
            });
        }
    }
    Ok(asked.unwrap_or_else(|| Digest::of(Algorithm::Sha256, content)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt() -> Attempt {
        Attempt::new("r.example", Operation::Manifest, "a:b")
    }

    #[test]
    fn a_manifest_must_be_what_was_asked_and_announced() {
        let sha256 = Digest::of(Algorithm::Sha256, b"{}");
        let sha512 = Digest::of(Algorithm::Sha512, b"{}");
        let other = Digest::of(Algorithm::Sha256, b"{ }");
        let verify = |asked, announced| verify(b"{}", None, asked, announced, &attempt());
        assert_eq!(verify(None, None).unwrap(), sha256);
        assert_eq!(verify(Some(sha512), Some(sha256)).unwrap(), sha512);
        assert_eq!(verify(None, Some(sha512)).unwrap(), sha256);
        for (asked, announced) in [(Some(other), None), (Some(sha256), Some(other)), (None, Some(other))] {
            match verify(asked, announced) {
                Err(UpstreamError::DigestMismatch { expected, actual, .. }) => {
                    assert_eq!((*expected, *actual), (other, sha256));
                }
                result => panic!("{result:?}"),
            }
        }
    }

    #[test]
    fn a_signed_manifest_is_named_by_its_payload() {
        let encode = |bytes: &[u8]| data_encoding::BASE64URL_NOPAD.encode(bytes);
        let payload = b"{\n   \"schemaVersion\": 1\n}";
        let protected =
            format!(r#"{{"formatLength":{},"formatTail":"{}"}}"#, payload.len() - 2, encode(b"\n}"));
        let signed = format!(
            "{},\n   \"signatures\": [{{\"protected\":\"{}\"}}]\n}}",
            std::str::from_utf8(&payload[..payload.len() - 2]).unwrap(),
            encode(protected.as_bytes())
        );
        let named = Digest::of(Algorithm::Sha256, payload);
        let kind = Some(DOCKER_SCHEMA1_SIGNED);
        assert_eq!(verify(signed.as_bytes(), kind, Some(named), Some(named), &attempt()).unwrap(), named);
        assert!(
            verify(signed.as_bytes(), None, Some(named), None, &attempt()).is_err(),
            "only for this media type"
        );
        assert_eq!(schema1::payload(br#"{"signatures":[{"protected":"e30"}]}"#), None);
        assert_eq!(schema1::payload(br#"{"signatures":[]}"#), None);
        let long = encode(br#"{"formatLength":999,"formatTail":""}"#);
        assert_eq!(
            schema1::payload(format!(r#"{{"signatures":[{{"protected":"{long}"}}]}}"#).as_bytes()),
            None
        );
    }
}
