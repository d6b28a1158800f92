//! Pushing blobs: `POST`, `PATCH`, `PUT`, `GET`, `DELETE` on `/v2/<name>/blobs/uploads/` (OCI distribution spec 1.1,
//! "Pushing Blobs"), and `DELETE` of a blob.
//!
//! A session is named by its path alone, and any process on the directory goes on with it. A chunk without
//! `Content-Range` is appended; one with it must begin where the session stands, or the answer is 416 with where that is.
//! What a client that broke off had sent stays. Where the option `http_secret` is set, `Location` carries distribution's
//! `_state`, so that a distribution beside us can go on with the session too; we ourselves need no such word.
//!
//! `Location` is relative: it holds behind whatever proxy the client sees us through.

use std::sync::Arc;

use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderName, HeaderValue, LOCATION, RANGE};
use http::{HeaderMap, Response, StatusCode, request};
use serde_json::json;

use super::blobs::disk_error;
use super::handler::Worker;
use super::namespace::{Registry, Target};
use super::receive::{Payload, Received};
use super::respond::{ApiError, CONTENT_DIGEST};
use super::route::Query;
use crate::body::Body;
use crate::oci::{Algorithm, Digest, RepositoryName};
use crate::store::upload::{Opened, Unfinished, Upload, UploadId};
use crate::store::{LinkKind, StoredRepository, on_store_thread};

const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

impl Registry {
    /// `POST …/blobs/uploads/`: a mount, from where the client may read, a whole blob, or a new session.
    pub(super) async fn begin_upload(
        self: &Arc<Self>,
        worker: &Worker,
        target: &Target,
        query: &Query,
        payload: Option<Payload>,
    ) -> Result<Response<Body>, ApiError> {
        let repository = target.pushed_to()?;
        if let (Some(digest), Some(from)) = (&query.mount, &query.from)
            && self.mount(worker, repository, from, digest).await?
        {
            return Ok(created(&target.name, digest));
        }
        let algorithm = match &query.digest {
            Some(digest) => digest.algorithm(),
            None => query.digest_algorithm.unwrap_or(Algorithm::Sha256),
        };
        let begun = self.local.begin_upload(repository, algorithm, self.options.uploads).await;
        let upload = begun.map_err(|error| write_error("begin an upload", &error))?;
        let upload = upload.ok_or_else(ApiError::too_many_uploads)?;
        let whole = query.digest.filter(|digest| payload.is_some() || *digest == Digest::of(algorithm, b""));
        let Some(digest) = whole else {
            return Ok(self.accepted(target, &upload));
        };
        let id = upload.id().clone();
        let finished = async {
            let upload = match payload {
                Some(payload) => self.receive(target, upload, payload, None).await?,
                None => upload,
            };
            self.finish(repository, upload, &digest).await
        };
        match finished.await {
            Ok(()) => Ok(created(&target.name, &digest)),
            Err(error) => {
                // Nobody knows the session's name.
                if let Ok(Opened::Open(upload)) =
                    self.local.open_upload(repository, &id, self.options.uploads).await
                {
                    let _ = on_store_thread(move || upload.cancel()).await;
                }
                Err(error)
            }
        }
    }

    /// `PATCH`: one more chunk.
    pub(super) async fn patch_upload(
        &self,
        head: &request::Parts,
        target: &Target,
        id: &UploadId,
        payload: Option<Payload>,
    ) -> Result<Response<Body>, ApiError> {
        let upload = self.opened(target, id).await?;
        let upload = match payload {
            Some(payload) => self.chunk(head, target, upload, payload).await?,
            None => upload,
        };
        let upload = checkpointed(upload).await?;
        Ok(self.accepted(target, &upload))
    }

    /// `PUT`: the last chunk, if there is one, and the end.
    pub(super) async fn finish_upload(
        &self,
        head: &request::Parts,
        target: &Target,
        id: &UploadId,
        query: &Query,
        payload: Option<Payload>,
    ) -> Result<Response<Body>, ApiError> {
        let digest = query.digest.ok_or_else(ApiError::digest_missing)?;
        let mut upload = self.opened(target, id).await?;
        if let Some(payload) = payload {
            upload = self.chunk(head, target, upload, payload).await?;
        }
        self.finish(target.pushed_to()?, upload, &digest).await?;
        Ok(created(&target.name, &digest))
    }

    /// `GET`: how far the session is.
    pub(super) async fn upload_status(
        &self,
        target: &Target,
        id: &UploadId,
    ) -> Result<Response<Body>, ApiError> {
        let state = match self.look(target, id).await? {
            Opened::Open(upload) => self.state_of(target, &upload),
            Opened::Busy(size) => self.state(target, id, size, None),
            Opened::Absent => return Err(ApiError::upload_unknown(id)),
        };
        let mut response = empty(StatusCode::NO_CONTENT);
        response.headers_mut().extend(state);
        Ok(response)
    }

    /// `DELETE`: the session ends without a blob.
    pub(super) async fn cancel_upload(
        &self,
        target: &Target,
        id: &UploadId,
    ) -> Result<Response<Body>, ApiError> {
        let upload = self.opened(target, id).await?;
        on_store_thread(move || upload.cancel())
            .await
            .map_err(|error| disk_error("remove an upload", &error))?;
        Ok(empty(StatusCode::NO_CONTENT))
    }

    /// `DELETE` of a blob: its link goes; its bytes stay until nobody needs them.
    pub(super) async fn delete_blob(
        &self,
        target: &Target,
        digest: &Digest,
    ) -> Result<Response<Body>, ApiError> {
        let removed = self.local.unlink_blob(target.pushed_to()?, digest).await;
        if removed.map_err(|error| write_error("remove a blob", &error))? {
            Ok(empty(StatusCode::ACCEPTED))
        } else {
            Err(ApiError::blob_unknown(digest))
        }
    }

    /// Links a blob that another repository has. `false`: it has it not.
    async fn mount(
        self: &Arc<Self>,
        worker: &Worker,
        repository: &StoredRepository,
        from: &RepositoryName,
        digest: &Digest,
    ) -> Result<bool, ApiError> {
        let source = self.target(from, None)?.for_writing();
        let failed = |error| write_error("mount a blob", &error);
        if let Some(local) = &source.local
            && self.local.is_linked(&worker.files, local, LinkKind::Layer, digest).await.map_err(failed)?
        {
            return self.local.link_held(repository, LinkKind::Layer, digest).await.map_err(failed);
        }
        if let Some(remote) = &source.remote {
            let linked = self.cache.is_linked(&worker.files, &remote.stored, LinkKind::Layer, digest).await;
            if linked.map_err(failed)? {
                return self
                    .local
                    .adopt(&self.cache, repository, LinkKind::Layer, digest)
                    .await
                    .map_err(failed);
            }
        }
        Ok(false)
    }

    async fn look(&self, target: &Target, id: &UploadId) -> Result<Opened, ApiError> {
        let opened = self.local.open_upload(target.pushed_to()?, id, self.options.uploads).await;
        opened.map_err(|error| write_error("open an upload", &error))
    }

    async fn opened(&self, target: &Target, id: &UploadId) -> Result<Box<Upload>, ApiError> {
        match self.look(target, id).await? {
            Opened::Open(upload) => Ok(upload),
            Opened::Absent => Err(ApiError::upload_unknown(id)),
            Opened::Busy(size) => Err(ApiError::upload_range("another request is writing to this upload")
                .headed(self.state(target, id, size, None))),
        }
    }

    /// Receives a chunk that may say where it belongs.
    async fn chunk(
        &self,
        head: &request::Parts,
        target: &Target,
        upload: Box<Upload>,
        payload: Payload,
    ) -> Result<Box<Upload>, ApiError> {
        let range = head.headers.get(CONTENT_RANGE).map(chunk_range).transpose()?;
        if let Some((first, last)) = range {
            if first != upload.size() {
                let message = format!("the chunk begins at {first}, the upload stands at {}", upload.size());
                return Err(ApiError::upload_range(&message).headed(self.state_of(target, &upload)));
            }
            let len = last - first + 1;
            if payload.length.is_some_and(|length| length != len) {
                return Err(ApiError::size_invalid("Content-Length and Content-Range differ"));
            }
            return self.receive(target, upload, payload, Some(len)).await;
        }
        self.receive(target, upload, payload, None).await
    }

    /// Receives a body into the upload; `len` is what it must have.
    async fn receive(
        &self,
        target: &Target,
        upload: Box<Upload>,
        payload: Payload,
        len: Option<u64>,
    ) -> Result<Box<Upload>, ApiError> {
        let begun = upload.size();
        let room = self.options.uploads.bytes_max.saturating_sub(begun);
        if payload.length.or(len).is_some_and(|length| length > room) {
            return Err(ApiError::upload_too_large(self.options.uploads.bytes_max));
        }
        let received = payload.into_upload(upload, len.unwrap_or(room).min(room)).await;
        match received {
            Received::Whole(upload) if len.is_none_or(|len| upload.size() - begun == len) => {
                self.metrics.pushed(upload.size() - begun);
                Ok(upload)
            }
            Received::Whole(upload) => {
                rewound(upload, begun).await?;
                Err(ApiError::size_invalid("the chunk is shorter than Content-Range says"))
            }
            Received::TooLong(upload) => {
                rewound(upload, begun).await?;
                Err(if len.is_some_and(|len| len <= room) {
                    ApiError::size_invalid("the chunk is longer than Content-Range says")
                } else {
                    ApiError::upload_too_large(self.options.uploads.bytes_max)
                })
            }
            Received::Broken(upload, error) => {
                let size = upload.size();
                tracing::info!(repository = %target.name, upload = %upload.id(), size, %error, "a push was interrupted: it can go on from here");
                self.metrics.pushed(size - begun);
                checkpointed(upload).await?;
                Err(ApiError::body_broken(&error))
            }
            Received::DiskFailed(error) => Err(write_error("write an upload", &error)),
        }
    }

    async fn finish(
        &self,
        repository: &StoredRepository,
        upload: Box<Upload>,
        digest: &Digest,
    ) -> Result<(), ApiError> {
        match self.local.finish_upload(repository, upload, digest).await {
            Ok(()) => Ok(()),
            Err(Unfinished::Digest(actual)) => Err(ApiError::digest_differs(digest, &actual)),
            Err(Unfinished::Disk(error)) => Err(write_error("publish an upload", &error)),
        }
    }

    /// 202, and where the session stands.
    fn accepted(&self, target: &Target, upload: &Upload) -> Response<Body> {
        let mut response = empty(StatusCode::ACCEPTED);
        response.headers_mut().extend(self.state_of(target, upload));
        response
    }

    fn state_of(&self, target: &Target, upload: &Upload) -> HeaderMap {
        self.state(target, upload.id(), upload.size(), Some(upload.started()))
    }

    /// `Location`, `Range` and the session's name. Without the time of its beginning, `Location` is for us alone.
    fn state(&self, target: &Target, id: &UploadId, size: u64, started: Option<&str>) -> HeaderMap {
        let mut location = format!("/v2/{}/blobs/uploads/{id}", target.name);
        if let (Some(secret), Some(started)) = (&self.http_secret, started) {
            location.push_str("?_state=");
            location.push_str(&distribution_state(secret, &target.name, id, size, started));
        }
        // As distribution has it: nothing and one byte look alike.
        let range = format!("0-{}", size.saturating_sub(1));
        let fields = [(LOCATION, location), (RANGE, range), (UPLOAD_UUID, id.to_string())];
        let valid = |(name, value)| Some((name, HeaderValue::try_from(value).ok()?));
        fields.into_iter().filter_map(valid).collect()
    }
}

/// What distribution wants to be told of a session that it goes on with: base64url(HMAC-SHA256(secret, json) ‖ json).
fn distribution_state(
    secret: &ring::hmac::Key,
    name: &RepositoryName,
    id: &UploadId,
    size: u64,
    started: &str,
) -> String {
    let state = json!({ "Name": name.as_str(), "UUID": id.as_str(), "Offset": size, "StartedAt": started })
        .to_string();
    let mut signed = ring::hmac::sign(secret, state.as_bytes()).as_ref().to_vec();
    signed.extend_from_slice(state.as_bytes());
    data_encoding::BASE64URL.encode(&signed).replace('=', "%3D")
}

/// `<first>-<last>` of `Content-Range`, both inclusive: OCI's form, without "bytes".
fn chunk_range(value: &HeaderValue) -> Result<(u64, u64), ApiError> {
    let parsed = value.to_str().ok().and_then(parse_chunk_range);
    parsed.ok_or_else(|| ApiError::chunk_range_invalid(value.as_bytes()))
}

fn parse_chunk_range(text: &str) -> Option<(u64, u64)> {
    let (first, last) = text.trim().split_once('-')?;
    let number = |digits: &str| {
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u64>().ok()).flatten()
    };
    let (first, last) = (number(first)?, number(last)?);
    // The length must be a number too.
    (first <= last && last < u64::MAX).then_some((first, last))
}

async fn checkpointed(mut upload: Box<Upload>) -> Result<Box<Upload>, ApiError> {
    let noting = on_store_thread(move || upload.checkpoint().map(|()| upload)).await;
    noting.map_err(|error| write_error("note how far an upload is", &error))
}

async fn rewound(mut upload: Box<Upload>, size: u64) -> Result<(), ApiError> {
    let rewinding = on_store_thread(move || {
        upload.rewind(size)?;
        upload.checkpoint()
    });
    rewinding.await.map_err(|error| write_error("take back a chunk", &error))
}

/// 201 of a blob.
fn created(name: &RepositoryName, digest: &Digest) -> Response<Body> {
    let mut response = empty(StatusCode::CREATED);
    let headers = response.headers_mut();
    if let (Ok(location), Ok(digest)) = (
        HeaderValue::try_from(format!("/v2/{name}/blobs/{digest}")),
        HeaderValue::try_from(digest.to_string()),
    ) {
        headers.insert(LOCATION, location);
        headers.insert(CONTENT_DIGEST, digest);
    }
    response
}

pub(super) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    if status != StatusCode::NO_CONTENT {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(0));
    }
    response
}

/// What a failed write means to a client: a full disk is told, other causes only the log has.
pub(super) fn write_error(what: &'static str, error: &std::io::Error) -> ApiError {
    let answer = disk_error(what, error);
    if crate::fill::is_no_space(error) { ApiError::disk_full() } else { answer }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn chunk_ranges() {
        for (text, expected) in [
            ("0-0", Some((0, 0))),
            ("5-99", Some((5, 99))),
            (" 5-99 ", Some((5, 99))),
            ("5-4", None),
            ("-5", None),
            ("5-", None),
            ("", None),
            ("bytes 0-5/6", None),
            ("+1-5", None),
            ("0-18446744073709551615", None),
            ("0-18446744073709551614", Some((0, u64::MAX - 1))),
            ("1-99999999999999999999999", None),
        ] {
            assert_eq!(parse_chunk_range(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_chunk_range_is_read_as_it_was_written(first in 0..u64::MAX - 1, more in 0..u64::MAX) {
            let last = first.saturating_add(more).min(u64::MAX - 1);
            prop_assert_eq!(parse_chunk_range(&format!("{first}-{last}")), Some((first, last)));
        }

        #[test]
        fn no_text_breaks_the_reader(text in ".{0,40}") {
            if let Some((first, last)) = parse_chunk_range(&text) {
                prop_assert!(first <= last);
            }
        }
    }
}
