//! A page of a list as an answer: its JSON, and the `Link` to the next page (OCI distribution spec 1.1, "Listing Tags").

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LINK};
use http::{Method, Response, request};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::respond::ApiError;
use super::route::Query;
use crate::body::Body;

/// What need not be escaped in a query's value.
pub(super) const QUERY_VALUE: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The answer with `list`, a page of at most `count` entries of the list at `path`. `last` is its last entry if further
/// ones follow it.
///
/// A page of no entries has no next one: `n=0` asks for an empty list, and going on with it would never end.
pub(super) fn page(
    head: &request::Parts,
    path: &str,
    list: &Value,
    query: &Query,
    count: usize,
    last: Option<&str>,
) -> Result<Response<Body>, ApiError> {
    let body = serde_json::to_vec(list).map_err(|_| ApiError::internal())?;
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    if let Some(last) = last {
        let escaped = |text: &str| utf8_percent_encode(text, QUERY_VALUE).to_string();
        let namespace =
            query.namespace.as_deref().map(|ns| format!("&ns={}", escaped(ns))).unwrap_or_default();
        let link = format!("<{path}?last={}&n={count}{namespace}>; rel=\"next\"", escaped(last));
        if let Ok(link) = HeaderValue::try_from(link) {
            headers.insert(LINK, link);
        }
    }
    if head.method == Method::GET {
        *response.body_mut() = Body::bytes(body);
    }
    Ok(response)
}
