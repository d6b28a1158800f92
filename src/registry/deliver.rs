//! From content to a response: preconditions, ranges, headers (RFC 9110 sections 13 and 14).
//!
//! The same steps serve stored blobs, blobs under fill and manifests: a [`Content`] says what it is, and a closure makes
//! the body of the part that is to be sent. Content whose length is not known is sent whole, whatever range is asked
//! for (RFC 9110 section 14.2 allows it), as no range of it could be described.

use std::time::SystemTime;

use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue,
    RANGE,
};
use http::{Method, Response, StatusCode, request};

use super::respond::{ApiError, CONTENT_DIGEST};
use crate::body::Body;
use crate::http::answer::{self, Answer};
use crate::http::conditional::Validators;
use crate::http::range::ByteRange;
use crate::store::Labels;

/// Content that never changes under its name: a year, as distribution says.
const FOREVER: HeaderValue = HeaderValue::from_static("max-age=31536000");
const BYTES: HeaderValue = HeaderValue::from_static("bytes");
/// Header fields that an answer has at most, the library's date included: room for them is made once.
const FIELDS: usize = 12;

/// What is to be sent.
pub(super) struct Content<'a> {
    /// Its digest and its entity tag.
    pub(super) labels: &'a Labels,
    /// Its media type.
    pub(super) media_type: HeaderValue,
    /// Its length in bytes, if known.
    pub(super) len: Option<u64>,
    /// More ranges than this are answered by the whole. 0: ranges are not supported.
    pub(super) ranges_max: usize,
    /// Whether the URL names this very content, so that it may be kept for good.
    pub(super) immutable: bool,
}

/// The part of the content that a body is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    Range(ByteRange),
}

/// Answers a GET or HEAD for `content`.
///
/// # Errors
/// 412 and 416 as the request's header fields ask for, and what `body` fails with.
pub(super) fn deliver(
    head: &request::Parts,
    content: &Content<'_>,
    body: impl FnMut(Part) -> Result<Body, ApiError>,
) -> Result<Response<Body>, ApiError> {
    let Labels { digest, etag } = content.labels;
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.reserve(FIELDS);
    headers.insert(CONTENT_DIGEST, digest.clone());
    headers.insert(ETAG, etag.clone());
    if content.immutable {
        headers.insert(CACHE_CONTROL, FOREVER);
    }
    let plain = Plain {
        validators: Validators { etag: etag.to_str().ok(), last_modified: None },
        media_type: &content.media_type,
        len: content.len,
        ranges_max: content.ranges_max,
    };
    deliver_plain(head, response, &plain, body)
}

/// What is to be sent, as far as HTTP alone is concerned.
pub(super) struct Plain<'a> {
    /// What preconditions are compared with.
    pub(super) validators: Validators<'a>,
    /// See [`Content::media_type`].
    pub(super) media_type: &'a HeaderValue,
    /// See [`Content::len`].
    pub(super) len: Option<u64>,
    /// See [`Content::ranges_max`].
    pub(super) ranges_max: usize,
}

/// As [`deliver`], into a `response` that has the header fields that the content is known by.
pub(super) fn deliver_plain(
    head: &request::Parts,
    mut response: Response<Body>,
    content: &Plain<'_>,
    mut body: impl FnMut(Part) -> Result<Body, ApiError>,
) -> Result<Response<Body>, ApiError> {
    if content.ranges_max > 0 {
        response.headers_mut().insert(ACCEPT_RANGES, BYTES);
    }
    let answer =
        answer::answer(head, &content.validators, content.len, content.ranges_max, SystemTime::now());
    let media_type = content.media_type.clone();
    match (answer, content.len) {
        (Answer::NotModified, _) => *response.status_mut() = StatusCode::NOT_MODIFIED,
        (Answer::PreconditionFailed, _) => return Err(ApiError::precondition_failed()),
        (Answer::Unsatisfiable(why), len) => {
            let value = head.headers.get(RANGE).map(HeaderValue::as_bytes).unwrap_or_default();
            return Err(ApiError::range_invalid(value, why, len.unwrap_or(0)));
        }
        (Answer::Part(range), Some(len)) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, media_type);
            headers.insert(CONTENT_LENGTH, HeaderValue::from(range.len));
            insert(headers, CONTENT_RANGE, range.content_range(len));
            *response.body_mut() = body(Part::Range(range))?;
        }
        (Answer::Parts(ranges), Some(len)) => {
            let part = |range| body(Part::Range(range));
            let (boundary, multipart) = answer::multipart(&ranges, len, &media_type, part)?;
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let headers = response.headers_mut();
            insert(headers, CONTENT_TYPE, format!("multipart/byteranges; boundary={boundary}"));
            if let Some(size) = multipart.size() {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
            }
            *response.body_mut() = multipart;
        }
        (_, len) => {
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, media_type);
            if let Some(len) = len {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
            }
            if head.method == Method::GET {
                *response.body_mut() = body(Part::Whole)?;
            }
        }
    }
    Ok(response)
}

fn insert(headers: &mut HeaderMap, name: http::HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}
