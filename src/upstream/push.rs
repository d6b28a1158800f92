//! The push side: uploads of blobs, manifests, and their removal (OCI distribution spec 1.1, "Push", "Content Management").
//!
//! Everything goes to the upstream's own URL. An upload is a session at the registry, which its `Location` names; the
//! registry forgets it after a while, so one that is left behind harms nobody. A blob that is at hand goes with the request
//! that ends the session ([`Upstream::upload`]); any other is a stream ([`Upstream::append`]) that can break off, whereupon
//! [`Upstream::upload_status`] says where to go on.
//!
//! Nothing is verified here but that the registry says what it should: whoever hashes the bytes decides whether an upload
//! is finished.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use tokio::time::{Duration, Instant};
use url::Url;

use super::Upstream;
use super::auth::Need;
use super::challenge::challenges;
use super::client::drain;
use super::endpoint::{Endpoint, Origin};
use super::error::{Attempt, UpstreamError};
use super::exchange::{Answer, Call, Followed, Success, field, quoted};
use super::headers;
use super::manifests::manifest_call;
use super::options::{Operation, RequestObservation};
use super::payload::{self, Payload, PieceSender, PieceStream};
use crate::oci::{Digest, Reference, RepositoryName, media_type};

/// How long a registry may take to make an upload a blob: on object storage it copies it.
const COMMIT_TIMEOUT: Duration = Duration::from_mins(5);
/// How long one stream may last; that it goes on is watched by whoever feeds it.
const STREAM_TIMEOUT: Duration = Duration::from_hours(24);

const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// An upload that a registry has begun. Every answer may name another place for what follows, so the newest counts.
#[derive(Clone, Debug)]
pub struct UploadSession {
    url: Url,
    /// Bytes that the registry has.
    received: u64,
    /// The request that told.
    attempt: Attempt,
}

impl UploadSession {
    /// Bytes that the registry said it has.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// What errors about it name.
    pub fn attempt(&self) -> &Attempt {
        &self.attempt
    }
}

/// What came of asking for a blob of another repository.
#[derive(Debug)]
pub enum Mount {
    /// The repository has it now.
    Mounted,
    /// The registry would not, and has begun an upload instead.
    Session(UploadSession),
}

/// What a registry says to a manifest that it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestTaken {
    /// What it calls the manifest, if it says so: another name than that of the bytes that were sent, if it converted them.
    pub digest: Option<Digest>,
    /// It keeps the list of the subject's referrers (`OCI-Subject`); else whoever pushes does, under a fallback tag.
    pub knows_subject: bool,
}

impl Upstream {
    /// Begins an upload. Each request here and below is bounded by the header timeout unless it says otherwise.
    pub async fn begin_upload(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<UploadSession, UpstreamError> {
        match self.start(repository, digest, None).await? {
            Mount::Session(session) => Ok(session),
            // 201 without anything sent: it has the blob, but who asked cannot know that.
            Mount::Mounted => {
                let attempt =
                    Attempt::new(&self.endpoints.own().label, Operation::Upload, digest.to_string());
                let what = "status 201 to the beginning of an upload".to_owned();
                Err(UpstreamError::Unexpected { attempt, what })
            }
        }
    }

    /// Asks that a blob of the repository `from` be one of `repository` too, which begins an upload where it cannot be.
    pub async fn mount(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        from: &RepositoryName,
    ) -> Result<Mount, UpstreamError> {
        self.start(repository, digest, Some(from)).await
    }

    async fn start(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        from: Option<&RepositoryName>,
    ) -> Result<Mount, UpstreamError> {
        let (endpoint, repository) = (self.endpoints.own(), self.canonical(repository));
        let query = from.map(|from| format!("mount={digest}&from={}", self.canonical(from)));
        let url = endpoint.url(&format!("{repository}/blobs/uploads/"), query.as_deref());
        let call = upload_call(Method::POST, url, &repository, digest);
        let answer = self.exchange(endpoint, &call).await?;
        if answer.response.status() == StatusCode::CREATED {
            drain(answer.response).await;
            return Ok(Mount::Mounted);
        }
        let session = session_of(endpoint, &call.url, &answer, 0)?;
        drain(answer.response).await;
        Ok(Mount::Session(session))
    }

    /// Ends an upload with the bytes that it lacks, all of them if it was just begun: `digest` is the whole blob's.
    ///
    /// Bounded by five minutes. What becomes of the session when this fails is uncertain: the blob may be there.
    pub async fn upload(
        &self,
        repository: &RepositoryName,
        session: &UploadSession,
        digest: &Digest,
        bytes: Bytes,
    ) -> Result<(), UpstreamError> {
        let (endpoint, repository) = (self.endpoints.own(), self.canonical(repository));
        let mut url = session.url.clone();
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let mut call = upload_call(Method::PUT, url, &repository, digest);
        if !bytes.is_empty() {
            call.headers.insert(header::CONTENT_TYPE, field(media_type::OCTET_STREAM));
            if session.received > 0 {
                call.headers.insert(header::CONTENT_RANGE, part(session.received, bytes.len() as u64));
            }
        }
        call.body = bytes;
        let Answer { response, .. } = self.exchange_within(endpoint, &call, COMMIT_TIMEOUT).await?;
        drain(response).await;
        Ok(())
    }

    /// A stream of `length` bytes, if that is known, for [`Upstream::append`].
    pub fn piece_stream(&self, length: Option<u64>) -> (PieceSender, PieceStream) {
        payload::stream(length, self.stall_timeout)
    }

    /// Sends a stream behind what an upload has; `length` is the stream's, if it is known. Returns the session as it goes
    /// on from there.
    ///
    /// That the registry takes what is sent is bounded by who feeds the stream; its answer has to come within the header
    /// timeout from then on. After a failure the registry may have any part of it. To be read while the stream is fed; if
    /// this returns first, the stream is closed, and this says why.
    pub async fn append(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        session: &UploadSession,
        length: Option<u64>,
        stream: PieceStream,
    ) -> Result<UploadSession, UpstreamError> {
        let (endpoint, repository) = (self.endpoints.own(), self.canonical(repository));
        let mut call = upload_call(Method::PATCH, session.url.clone(), &repository, digest);
        call.headers.insert(header::CONTENT_TYPE, field(media_type::OCTET_STREAM));
        if let Some(length) = length.filter(|length| session.received > 0 && *length > 0) {
            call.headers.insert(header::CONTENT_RANGE, part(session.received, length));
        }
        let attempt = Attempt::new(&endpoint.label, call.operation, &call.subject);
        let (began, sent) = (Instant::now(), stream.sent());
        let result = self.streamed(endpoint, &call, stream, &attempt).await;
        self.observe(&RequestObservation {
            upstream: self.name(),
            endpoint: &endpoint.label,
            operation: call.operation,
            outcome: result.as_ref().map_or_else(UpstreamError::reason, |_| "ok"),
            elapsed: began.elapsed(),
            rate_limit_remaining: None,
        });
        let answer = result?;
        // Who does not say what it has is taken at its word that it took all: the digest will tell.
        let all = session.received.saturating_add(sent.load(Ordering::Relaxed));
        let session = session_of(endpoint, &call.url, &answer, all)?;
        drain(answer.response).await;
        Ok(session)
    }

    async fn streamed(
        &self,
        endpoint: &Endpoint,
        call: &Call<'_>,
        mut stream: PieceStream,
        attempt: &Attempt,
    ) -> Result<Answer, UpstreamError> {
        let deadline = Instant::now() + self.header_timeout;
        let is_own = Origin::of(&call.url).as_ref() == Some(&endpoint.origin);
        let need = Need { upstream: self, endpoint, repository: call.repository, deadline };
        let known = if is_own { self.auth.known(need).await? } else { None };
        let mut fields = call.headers.clone();
        if let Some(known) = &known {
            fields.insert(header::AUTHORIZATION, known.header().clone());
        }
        let taken = stream.on_taken();
        let late = async {
            match taken.await {
                Ok(()) => tokio::time::sleep(self.header_timeout).await,
                // It broke off, and the connection with it.
                Err(_) => std::future::pending().await,
            }
        };
        let body = Payload::Stream(Box::new(stream));
        let sending =
            self.client.send(&call.method, &call.url, &fields, body, Instant::now() + STREAM_TIMEOUT);
        let response = tokio::select! {
            sent = sending => sent.map_err(|error| self.failed(error, attempt))?,
            () = late => {
                let (attempt, after) = (attempt.clone(), self.header_timeout);
                return Err(UpstreamError::Timeout { attempt, what: "response headers", after });
            }
        };
        if response.status() == StatusCode::UNAUTHORIZED && is_own {
            // The bytes are gone; whoever tries again has a token by then.
            let asked = challenges(response.headers());
            drain(response).await;
            let need = Need { deadline: Instant::now() + self.header_timeout, ..need };
            if self.auth.answer(need, asked, known.as_ref()).await?.is_some() {
                let cause = "the token was refused in the middle of an upload".into();
                return Err(UpstreamError::Broken { attempt: attempt.clone(), cause });
            }
            let detail = "the server answers 401 to an upload that it had begun".into();
            return Err(UpstreamError::Unauthorized { attempt: attempt.clone(), detail });
        }
        self.judged(Followed::directly(response), call.success, attempt).await
    }

    /// Asks what a registry has of an upload.
    pub async fn upload_status(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        session: &UploadSession,
    ) -> Result<UploadSession, UpstreamError> {
        let (endpoint, repository) = (self.endpoints.own(), self.canonical(repository));
        let call = upload_call(Method::GET, session.url.clone(), &repository, digest);
        let answer = self.exchange(endpoint, &call).await?;
        let session = session_of(endpoint, &call.url, &answer, 0)?;
        drain(answer.response).await;
        Ok(session)
    }

    /// Gives an upload up, so that the registry need not keep it.
    pub async fn cancel_upload(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        session: &UploadSession,
    ) -> Result<(), UpstreamError> {
        let (endpoint, repository) = (self.endpoints.own(), self.canonical(repository));
        let call = upload_call(Method::DELETE, session.url.clone(), &repository, digest);
        drain(self.exchange(endpoint, &call).await?.response).await;
        Ok(())
    }

    /// Stores a manifest byte for byte, under its tag or its digest.
    pub async fn put_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<ManifestTaken, UpstreamError> {
        let (endpoint, repository) = (self.endpoints.own(), self.canonical(repository));
        let mut call = manifest_call(
            endpoint,
            Operation::ManifestPut,
            Method::PUT,
            &repository,
            reference,
            Success::Done,
        );
        let content_type = HeaderValue::try_from(media_type);
        call.headers.insert(header::CONTENT_TYPE, content_type.unwrap_or(field(media_type::OCTET_STREAM)));
        call.body = bytes;
        let answer = self.exchange_within(endpoint, &call, COMMIT_TIMEOUT).await?;
        let fields = answer.response.headers();
        if let (Reference::Digest(sent), Some(named)) = (reference, headers::text(fields, &CONTENT_DIGEST))
            && named.trim() != sent.to_string()
        {
            let what = format!("a manifest stored as {}, sent as {sent}", quoted(named));
            return Err(UpstreamError::Malformed { attempt: answer.attempt, what });
        }
        let taken = ManifestTaken {
            digest: headers::text(fields, &CONTENT_DIGEST).and_then(|named| named.trim().parse().ok()),
            knows_subject: fields.contains_key(OCI_SUBJECT),
        };
        drain(answer.response).await;
        Ok(taken)
    }

    /// Removes a manifest, by digest with every tag that points at it, or a tag alone, which not every registry does.
    pub async fn delete_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<(), UpstreamError> {
        let (endpoint, repository) = (self.endpoints.own(), self.canonical(repository));
        let call = manifest_call(
            endpoint,
            Operation::ManifestDelete,
            Method::DELETE,
            &repository,
            reference,
            Success::Done,
        );
        drain(self.exchange(endpoint, &call).await?.response).await;
        Ok(())
    }
}

/// The session that an answer speaks of. Without a `Range` it has `unsaid`; of nothing and of one byte distribution
/// says `0-0` alike, and is asked again about neither.
fn session_of(
    endpoint: &Endpoint,
    asked: &Url,
    answer: &Answer,
    unsaid: u64,
) -> Result<UploadSession, UpstreamError> {
    let fields = answer.response.headers();
    let malformed = |what| UpstreamError::Malformed { attempt: answer.attempt.clone(), what };
    let url = match headers::text(fields, &header::LOCATION) {
        Some(location) => session_url(&endpoint.origin, asked, location).map_err(malformed)?,
        None if asked.path().ends_with("/blobs/uploads/") => {
            return Err(malformed(format!("status {} without Location", answer.response.status().as_u16())));
        }
        None => asked.clone(),
    };
    let received = match headers::text(fields, &header::RANGE) {
        Some(range) => received(range).ok_or_else(|| malformed(format!("Range {}", quoted(range))))?,
        None => unsaid,
    };
    Ok(UploadSession { url, received, attempt: answer.attempt.clone() })
}

fn upload_call<'a>(method: Method, url: Url, repository: &'a RepositoryName, digest: &Digest) -> Call<'a> {
    Call {
        operation: Operation::Upload,
        repository: Some(repository),
        method,
        url,
        headers: HeaderMap::new(),
        body: Bytes::new(),
        success: Success::Done,
        subject: format!("{repository}@{digest}"),
    }
}

/// `Content-Range` of a part of an upload: without a unit, the last byte included (OCI distribution spec, "Pushing a blob
/// in chunks").
fn part(start: u64, length: u64) -> HeaderValue {
    HeaderValue::try_from(format!("{start}-{}", start + length.saturating_sub(1)))
        .expect("digits and - are fit for a header")
}

/// How many bytes `Range: 0-<last>` speaks of; some write the unit in front. `0-0` is nothing: see [`session_of`].
fn received(range: &str) -> Option<u64> {
    let range = range.trim();
    let (first, last) = range.strip_prefix("bytes=").unwrap_or(range).split_once('-')?;
    let last: u64 = last.trim().parse().ok()?;
    if first.trim() != "0" {
        return None;
    }
    if last == 0 { Some(0) } else { last.checked_add(1) }
}

/// Where an upload goes on. A registry behind a proxy that does TLS may think that it is asked over plain HTTP: what it
/// names on its own host is meant as it is reached. To another host it may lead, but not away from TLS.
fn session_url(own: &Origin, asked: &Url, location: &str) -> Result<Url, String> {
    let shown = || quoted(location.split('?').next().unwrap_or_default());
    let mut url = asked.join(location).map_err(|error| format!("Location {}: {error}", shown()))?;
    let origin = Origin::of(&url).ok_or_else(|| format!("Location {}, neither http nor https", shown()))?;
    if own.is_https && !origin.is_https {
        let moved = origin.host == own.host
            && url.set_scheme("https").is_ok()
            && url.set_port(Some(own.port)).is_ok();
        if !moved {
            return Err(format!("Location {} leads from https to http", shown()));
        }
    }
    // User information is not ours to send; it fails only for URLs that cannot have any.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_fragment(None);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_uploads() {
        for (range, expected) in [
            ("0-0", Some(0)),
            ("0-9", Some(10)),
            ("bytes=0-9", Some(10)),
            (" 0-9 ", Some(10)),
            ("1-9", None),
            ("0", None),
            ("0-", None),
            ("0-18446744073709551615", None),
        ] {
            assert_eq!(received(range), expected, "{range}");
        }
        assert_eq!(part(10, 5), "10-14");
    }

    #[test]
    fn places_of_uploads() {
        let to = |own: &str, location: &str| {
            let own: Url = own.parse().unwrap();
            let origin = Origin::of(&own).unwrap();
            session_url(&origin, &own, location).map(String::from)
        };
        let plain = "http://r.example:5000/v2/a/blobs/uploads/";
        let secure = "https://r.example/v2/a/blobs/uploads/";
        assert_eq!(to(plain, "/v2/a/blobs/uploads/1?_state=x").unwrap(), format!("{plain}1?_state=x"));
        assert_eq!(to(plain, "1").unwrap(), format!("{plain}1"));
        assert_eq!(to(secure, "http://r.example/v2/a/blobs/uploads/1").unwrap(), format!("{secure}1"));
        assert_eq!(to(secure, "http://r.example:80/v2/a/blobs/uploads/1").unwrap(), format!("{secure}1"));
        assert_eq!(
            to(secure, "https://u:p@store.example/x?sig=1#f").unwrap(),
            "https://store.example/x?sig=1"
        );
        let error = to(secure, "http://store.example/x?sig=1").unwrap_err();
        assert!(!error.contains("sig"), "{error}");
        assert!(to(plain, "ftp://r.example/x").is_err());
    }
}
