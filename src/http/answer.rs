//! How much of a representation a GET or HEAD is answered with: preconditions first, then ranges (RFC 9110 sections 13
//! and 14), and the body of several ranges.

use std::fmt::Write;
use std::time::SystemTime;

use ::http::header::{HeaderMap, RANGE};
use ::http::{HeaderValue, Method, request};
use bytes::Bytes;

use super::conditional::{self, Precondition, Validators};
use super::range::{self, ByteRange, InvalidRange, Selection};
use crate::body::Body;

/// What a part's head and the trailer have beside the boundary and the media type, in bytes, at most.
const PART_HEAD_BYTES: usize = 128;

/// What the request's header fields amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 200, with all of it.
    Whole,
    /// 206, with one part.
    Part(ByteRange),
    /// 206, with several parts: see [`multipart`]. At least two.
    Parts(Vec<ByteRange>),
    /// 304.
    NotModified,
    /// 412.
    PreconditionFailed,
    /// 416, and why.
    Unsatisfiable(String),
}

/// Decides about a GET or HEAD for a representation of `len` bytes, if that is known: of one whose length is not, all is
/// sent, as no range of it could be described (section 14.2 allows it). More ranges than `ranges_max` are answered by the
/// whole; 0: ranges are not supported.
pub fn answer(
    head: &request::Parts,
    validators: &Validators<'_>,
    len: Option<u64>,
    ranges_max: usize,
    now: SystemTime,
) -> Answer {
    match conditional::evaluate(true, &head.headers, validators, now) {
        Precondition::Proceed => {}
        Precondition::NotModified => return Answer::NotModified,
        Precondition::Failed => return Answer::PreconditionFailed,
    }
    match len {
        Some(len) if head.method == Method::GET && ranges_max > 0 => {
            selected(&head.headers, validators, len, ranges_max)
        }
        _ => Answer::Whole,
    }
}

/// What a Range field asks for.
fn selected(headers: &HeaderMap, validators: &Validators<'_>, len: u64, ranges_max: usize) -> Answer {
    let mut values = headers.get_all(RANGE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Answer::Whole };
    if !conditional::range_applies(headers, validators) {
        return Answer::Whole;
    }
    let specs = match range::parse(value.as_bytes()) {
        Ok(Some(specs)) if specs.len() <= ranges_max => specs,
        Ok(_) | Err(InvalidRange::TooMany) => return Answer::Whole,
        Err(error) => return Answer::Unsatisfiable(error.to_string()),
    };
    match range::select(&specs, len) {
        Selection::Whole => Answer::Whole,
        Selection::Parts(parts) => match parts.as_slice() {
            [part] => Answer::Part(*part),
            _ => Answer::Parts(parts),
        },
        Selection::Unsatisfiable => Answer::Unsatisfiable(format!("the content has {len} bytes")),
    }
}

/// The body of an answer with several parts of a representation of `len` bytes, and its boundary (section 14.6).
///
/// # Errors
/// What `body` fails with.
pub fn multipart<E>(
    ranges: &[ByteRange],
    len: u64,
    media_type: &HeaderValue,
    mut body: impl FnMut(ByteRange) -> Result<Body, E>,
) -> Result<(String, Body), E> {
    // Unguessable, so that content cannot be made to contain it.
    let boundary = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
    let media_type = String::from_utf8_lossy(media_type.as_bytes());
    // One piece of memory for all heads and the trailer.
    let head_len_max = boundary.len() + media_type.len() + PART_HEAD_BYTES;
    let mut text = String::with_capacity((ranges.len() + 1) * head_len_max);
    let mut ends = Vec::with_capacity(ranges.len());
    for range in ranges {
        let content_range = range.content_range(len);
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "\r\n--{boundary}\r\nContent-Type: {media_type}\r\nContent-Range: {content_range}\r\n\r\n"
        );
        ends.push(text.len());
    }
    let _ = write!(text, "\r\n--{boundary}--\r\n");
    let text = Bytes::from(text);
    let (mut parts, mut start) = (Vec::with_capacity(ranges.len()), 0);
    for (range, end) in ranges.iter().zip(ends) {
        parts.push((text.slice(start..end), body(*range)?));
        start = end;
    }
    Ok((boundary, Body::multipart(parts, text.slice(start..))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(lines: &[(&'static str, &str)]) -> Answer {
        let mut request = ::http::Request::new(());
        for (name, value) in lines {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        let validators = Validators { etag: Some("\"a\""), last_modified: None };
        answer(&request.into_parts().0, &validators, Some(10), 2, SystemTime::now())
    }

    #[test]
    fn conditions_come_before_ranges() {
        let part = |start, len| ByteRange { start, len };
        assert_eq!(asked(&[]), Answer::Whole);
        assert_eq!(asked(&[("range", "bytes=2-3")]), Answer::Part(part(2, 2)));
        assert_eq!(asked(&[("range", "bytes=0-0,9-")]), Answer::Parts(vec![part(0, 1), part(9, 1)]));
        assert_eq!(asked(&[("range", "bytes=0-0,2-2,9-")]), Answer::Whole, "too many");
        assert!(matches!(asked(&[("range", "bytes=10-")]), Answer::Unsatisfiable(_)));
        assert!(matches!(asked(&[("range", "bytes=x")]), Answer::Unsatisfiable(_)));
        assert_eq!(asked(&[("range", "bytes=2-3"), ("if-none-match", "\"a\"")]), Answer::NotModified);
        assert_eq!(asked(&[("range", "bytes=2-3"), ("if-match", "\"b\"")]), Answer::PreconditionFailed);
        assert_eq!(asked(&[("range", "bytes=2-3"), ("if-range", "\"b\"")]), Answer::Whole);
        assert_eq!(asked(&[("range", "bytes=2-3"), ("range", "bytes=2-3")]), Answer::Whole);
    }
}
