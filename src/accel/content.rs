//! What is sent instead of the backend's own body: a file of a location, or a blob of a registry.

use std::convert::Infallible;
use std::rc::Rc;
use std::time::SystemTime;

use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue,
    IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE,
    RETRY_AFTER,
};
use http::{HeaderName, Method, Request, Response, StatusCode, request};

use super::State;
use super::answer::{self as fields, Instead, Orders};
use super::backend::Outbound;
use super::files::Handle;
use super::front::{Asked, BackendHead, Front, at_rate};
use super::location::{self, Content, Named};
use super::options::StatusRule;
use super::pages::page;
use super::record::{Origin, Record};
use super::types::media_type;
use crate::body::Body;
use crate::http::answer::{Answer, answer, multipart};
use crate::http::conditional::Validators;
use crate::http::date;
use crate::http::range::{self, MAX_RANGES};
use crate::oci::{Digest, RepositoryName};
use crate::sys::BeneathError;

const BYTES: HeaderValue = HeaderValue::from_static("bytes");
/// What decides how much of the content is sent.
const CONDITIONS: [HeaderName; 6] =
    [RANGE, IF_RANGE, IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE];

/// Answers with what the backend names.
pub(super) async fn send(
    front: &Front,
    state: &Rc<State>,
    asked: &Asked,
    backend: Box<BackendHead>,
    record: &mut Record,
) -> Response<Body> {
    let BackendHead { status, mut headers, orders } = *backend;
    let orders = &orders;
    let head = content_head(asked, front.options.status, status);
    let sent = match find(front, orders) {
        Ok(Named { content: Content::Files(root), path }) => match state.open.find(root, &path).await {
            Ok(handle) => {
                record.origin = Origin::File;
                fields::keep(&mut headers, front.options.headers);
                if headers.get(CONTENT_TYPE).is_none_or(HeaderValue::is_empty) {
                    headers.insert(CONTENT_TYPE, media_type(&path));
                }
                orders.add_charset(&mut headers);
                Ok(file(&head, &handle, headers))
            }
            Err(error) => Err((no_file(&error), format!("{}: {error}", shown(&path)), headers)),
        },
        Ok(Named { content: Content::Blobs(registry), path }) => {
            // In a box, as it is large beside a file's.
            Box::pin(blob(front, state, asked, &head, (registry, &path), headers, orders, record)).await
        }
        Err((status, reason)) => Err((status, reason, headers)),
    };
    match sent {
        Ok(mut response) => {
            if keeps_status(front.options.status, status) {
                *response.status_mut() = status;
                // No range is obeyed with it.
                response.headers_mut().remove(ACCEPT_RANGES);
            }
            at_rate(response, orders)
        }
        Err((status, reason, mut headers)) => {
            let name = &*front.name;
            tracing::warn!(
                accel = name,
                status = status.as_u16(),
                reason,
                "the backend names what cannot be sent"
            );
            record.reason = Some(reason);
            fields::keep_for_error(&mut headers);
            let mut response = page(status);
            add(&mut headers, std::mem::take(response.headers_mut()));
            *response.headers_mut() = headers;
            response
        }
    }
}

/// Whether the answer has the backend's status: then it is about the whole content. 206 is about a part of a body that was
/// dropped.
fn keeps_status(rule: StatusRule, status: StatusCode) -> bool {
    rule == StatusRule::Backend && !matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT)
}

/// The request as one for the content: GET or HEAD, with the fields that say how much of it is wanted.
fn content_head(asked: &Asked, rule: StatusRule, status: StatusCode) -> request::Parts {
    let Outbound { method, target, headers, .. } = &asked.outbound;
    let mut request = Request::new(());
    *request.method_mut() = if *method == Method::HEAD { Method::HEAD } else { Method::GET };
    *request.uri_mut() = target.clone();
    *request.version_mut() = asked.version;
    if !keeps_status(rule, status) {
        let conditions = headers.iter().filter(|(name, _)| CONDITIONS.contains(name));
        for (name, value) in conditions.filter(|(name, value)| **name != RANGE || is_of_bytes(value)) {
            request.headers_mut().append(name.clone(), value.clone());
        }
    }
    request.into_parts().0
}

/// What names no unit, or another one, is ignored, as in nginx (RFC 9110 section 14.2).
fn is_of_bytes(range: &HeaderValue) -> bool {
    const UNIT: &[u8] = b"bytes=";
    let value = range.as_bytes().trim_ascii();
    value.len() >= UNIT.len() && value[..UNIT.len()].eq_ignore_ascii_case(UNIT)
}

fn find(front: &Front, orders: &Orders) -> Result<Named, (StatusCode, String)> {
    let nothing = || (StatusCode::NOT_FOUND, "nothing is named".to_owned());
    match orders.instead.as_ref().ok_or_else(nothing)? {
        Instead::Redirect(value) => front.locations.redirect(value.as_bytes()).ok_or_else(|| {
            (
                StatusCode::NOT_FOUND,
                format!("no location is meant by X-Accel-Redirect: {}", shown(value.as_bytes())),
            )
        }),
        Instead::Sendfile(value) => front.locations.sendfile(value.as_bytes()).ok_or_else(|| {
            (StatusCode::FORBIDDEN, format!("beneath no root lies X-Sendfile: {}", shown(value.as_bytes())))
        }),
    }
}

fn no_file(error: &BeneathError) -> StatusCode {
    match error {
        BeneathError::Absent => StatusCode::NOT_FOUND,
        BeneathError::Escapes | BeneathError::Denied | BeneathError::Directory | BeneathError::Special => {
            StatusCode::FORBIDDEN
        }
        BeneathError::Io(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        BeneathError::Io(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// A path or a value for the log.
fn shown(bytes: &[u8]) -> String {
    const MAX: usize = 200;
    format!("{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(MAX)]))
}

/// The answer with a file; `headers` are the backend's that are kept, Content-Type among them.
fn file(head: &request::Parts, handle: &Handle, mut headers: HeaderMap) -> Response<Body> {
    headers.insert(ACCEPT_RANGES, BYTES);
    // One entity tag and one date, the backend's first.
    let etag = headers.get(ETAG).unwrap_or(&handle.etag).clone();
    headers.insert(ETAG, etag.clone());
    let said = headers.get(LAST_MODIFIED).cloned();
    let modified = match &said {
        Some(said) => said.to_str().ok().and_then(date::parse),
        None => Some(handle.modified),
    };
    headers.insert(LAST_MODIFIED, said.unwrap_or_else(|| handle.last_modified.clone()));
    let validators = Validators { etag: etag.to_str().ok(), last_modified: modified };
    let len = handle.len;
    // Of nothing there is no part, so whoever asks for one gets all of it, as from other servers.
    let ranges_max = if len == 0 { 0 } else { MAX_RANGES };
    let wanted = answer(head, &validators, Some(len), ranges_max, SystemTime::now());
    let mut response = Response::new(Body::empty());
    match wanted {
        Answer::Whole => {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
            if head.method == Method::GET {
                *response.body_mut() = handle.body(None);
            }
        }
        Answer::Part(part) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            headers.insert(CONTENT_LENGTH, HeaderValue::from(part.len));
            insert(&mut headers, CONTENT_RANGE, part.content_range(len));
            *response.body_mut() = handle.body(Some(part));
        }
        Answer::Parts(parts) => {
            let media_type = headers.get(CONTENT_TYPE).cloned().unwrap_or(HeaderValue::from_static(""));
            let part = |part| Ok::<_, Infallible>(handle.body(Some(part)));
            let Ok((boundary, body)) = multipart(&parts, len, &media_type, part);
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            insert(&mut headers, CONTENT_TYPE, format!("multipart/byteranges; boundary={boundary}"));
            if let Some(size) = body.size() {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
            }
            *response.body_mut() = body;
        }
        Answer::NotModified => {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            fields::keep_for_not_modified(&mut headers);
        }
        Answer::PreconditionFailed => {
            response = page(StatusCode::PRECONDITION_FAILED);
            refused(&mut headers, &mut response);
        }
        Answer::Unsatisfiable(_) => {
            response = page(StatusCode::RANGE_NOT_SATISFIABLE);
            insert(response.headers_mut(), CONTENT_RANGE, range::unsatisfied_content_range(len));
            refused(&mut headers, &mut response);
        }
    }
    *response.headers_mut() = headers;
    response
}

/// Makes the fields those of a page.
fn refused(headers: &mut HeaderMap, page: &mut Response<Body>) {
    fields::keep_for_error(headers);
    add(headers, std::mem::take(page.headers_mut()));
}

/// The answer with a blob, which the application has authorised: the registry asks nobody about that.
#[expect(clippy::too_many_arguments, reason = "one call, of what one request has")]
async fn blob(
    front: &Front,
    state: &State,
    asked: &Asked,
    head: &request::Parts,
    (registry, path): (usize, &[u8]),
    mut headers: HeaderMap,
    orders: &Orders,
    record: &mut Record,
) -> Result<Response<Body>, (StatusCode, String, HeaderMap)> {
    let named = location::blob(path).and_then(|(name, digest)| {
        Some((name.parse::<RepositoryName>().ok()?, digest.parse::<Digest>().ok()?))
    });
    let (Some((name, digest)), Some(registry)) = (named, front.blobs.get(registry)) else {
        return Err((StatusCode::NOT_FOUND, format!("{} is no repository and digest", shown(path)), headers));
    };
    let answer = registry.authorised_blob(&state.files, head, asked.peer, &name, &digest).await;
    let mut response = match answer {
        Ok(response) => response,
        Err(error) => {
            let (status, reason) = (error.status(), format!("{name}@{digest}: {}", error.message()));
            let theirs = error.into_response();
            if let (StatusCode::RANGE_NOT_SATISFIABLE, Some(value)) =
                (status, theirs.headers().get(CONTENT_RANGE))
            {
                let mut response = page(status);
                response.headers_mut().insert(CONTENT_RANGE, value.clone());
                refused(&mut headers, &mut response);
                *response.headers_mut() = headers;
                return Ok(response);
            }
            // Why the registry would refuse a client is not said to one of the application's.
            let retry = theirs.headers().get(RETRY_AFTER);
            if let Some(retry) = retry {
                headers.insert(RETRY_AFTER, retry.clone());
            }
            return Err((status, reason, headers));
        }
    };
    record.origin = Origin::Blob;
    fields::keep(&mut headers, front.options.headers);
    let ours = response.headers_mut();
    // What the application says about who may keep it counts, and if it says nothing, nothing is said: what it authorised
    // for one client is not everybody's.
    ours.remove(CACHE_CONTROL);
    // The digest is the entity tag, as the conditions were held against it.
    headers.remove(ETAG);
    if response.status() == StatusCode::NOT_MODIFIED {
        fields::keep_for_not_modified(&mut headers);
    } else if is_multipart(&response) {
        headers.remove(CONTENT_TYPE);
    } else {
        orders.add_charset(&mut headers);
    }
    add(response.headers_mut(), headers);
    Ok(response)
}

fn is_multipart(response: &Response<Body>) -> bool {
    let media_type = response.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    media_type.starts_with(b"multipart/byteranges")
}

/// Adds fields; those that are there already are replaced.
fn add(headers: &mut HeaderMap, more: HeaderMap) {
    // It is what `Extend` does: of a name that comes several times all are kept.
    headers.extend(more);
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}
