//! The front's own answers: one line of plain text.

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};

use crate::body::Body;

/// `404 Not Found`, and a line feed.
pub(super) fn page(status: StatusCode) -> Response<Body> {
    let text = format!("{} {}\n", status.as_str(), status.canonical_reason().unwrap_or("Error"));
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
    *response.body_mut() = Body::bytes(text);
    response
}

/// The same, after which the connection closes: the request's body is not going to be read.
pub(super) fn last_page(status: StatusCode) -> Response<Body> {
    let mut response = page(status);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
