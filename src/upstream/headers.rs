//! The response headers that we read, parsed: pure, no clock but the one passed in.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::blobs::ContentRange;
use super::exchange::quoted;
use crate::http::date;
use crate::http::range;

/// The longest wait that an upstream can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(1);

/// `Retry-After` in either form (RFC 9110 §10.2.3), at most one hour; a date in the past is zero, nonsense is `None`.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = text(headers, &header::RETRY_AFTER)?.trim();
    let wait = if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a u64 holds is a long time.
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        date::parse_at(value, now)?.duration_since(now).unwrap_or_default()
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

/// `Content-Range: bytes first-last/length` (RFC 9110 §14.4), with `first <= last < length`.
pub(super) fn content_range(value: &str) -> Option<ContentRange> {
    let (range, total) = range::parse_content_range(value.as_bytes())?;
    Some(ContentRange { start: range.start, end_inclusive: range.end() - 1, total })
}

/// The length in `Content-Range: bytes */length`, as a 416 carries it.
pub(super) fn unsatisfied_length(headers: &HeaderMap) -> Option<u64> {
    let (range, length) = bytes_unit(text(headers, &header::CONTENT_RANGE)?)?.split_once('/')?;
    (range.trim() == "*").then(|| number(length)).flatten()
}

/// `Content-Length`, for a HEAD too.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    number(text(headers, &header::CONTENT_LENGTH)?)
}

/// A digest names bytes without any coding, and we asked for none.
pub(super) fn check_coding(fields: &HeaderMap) -> Result<(), String> {
    match text(fields, &header::CONTENT_ENCODING) {
        Some(coding) if !coding.trim().is_empty() && !coding.trim().eq_ignore_ascii_case("identity") => {
            Err(format!("Content-Encoding {}, expected none", quoted(coding)))
        }
        _ => Ok(()),
    }
}

/// HTTP's own framing takes off `chunked` alone: of a body in any other transfer coding nothing tells the end, or what
/// comes is not what was meant.
pub(super) fn check_transfer_coding(fields: &HeaderMap) -> Result<(), String> {
    let unknown = |value: &&HeaderValue| !value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    match fields.get_all(header::TRANSFER_ENCODING).iter().find(unknown) {
        Some(coding) => {
            let coding = String::from_utf8_lossy(coding.as_bytes());
            Err(format!("Transfer-Encoding {}, expected chunked or none", quoted(&coding)))
        }
        None => Ok(()),
    }
}

/// How many requests the endpoint still allows (`ratelimit-remaining: 76;w=21600`, Docker Hub).
pub(super) fn rate_limit_remaining(headers: &HeaderMap) -> Option<u64> {
    number(text(headers, &HeaderName::from_static("ratelimit-remaining"))?.split(';').next()?)
}

/// The target of the first link with `rel=next` among the `Link` headers (RFC 8288 §3).
pub(super) fn next_link(headers: &HeaderMap) -> Option<String> {
    headers.get_all(header::LINK).iter().filter_map(|value| value.to_str().ok()).find_map(next_link_of_line)
}

/// A header's value as text; `None` if it is absent or not visible ASCII.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn next_link_of_line(line: &str) -> Option<String> {
    let mut rest = line;
    loop {
        let (_, after) = rest.split_once('<')?;
        let (target, after) = after.split_once('>')?;
        let (parameters, following) = split_at_unquoted_comma(after);
        if has_next_relation(parameters) {
            return Some(target.trim().to_owned());
        }
        rest = following;
    }
}

fn split_at_unquoted_comma(text: &str) -> (&str, &str) {
    let mut is_quoted = false;
    let mut is_escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b',' if !is_quoted => return (&text[..at], &text[at + 1..]),
            _ => {}
        }
    }
    (text, "")
}

/// `rel` holds relation types separated by spaces, compared without regard to case (RFC 8288 §3.3). A `;` inside a quoted
/// parameter only splits off pieces that are no `rel`.
fn has_next_relation(parameters: &str) -> bool {
    parameters.split(';').filter_map(|parameter| parameter.split_once('=')).any(|(name, value)| {
        name.trim().eq_ignore_ascii_case("rel")
            && value
                .trim()
                .trim_matches('"')
                .split_ascii_whitespace()
                .any(|kind| kind.eq_ignore_ascii_case("next"))
    })
}

fn bytes_unit(value: &str) -> Option<&str> {
    let (unit, rest) = value.trim().split_once(' ')?;
    unit.eq_ignore_ascii_case("bytes").then(|| rest.trim())
}

/// Digits only: `str::parse` would take a sign.
fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn retry_after_in_both_forms_and_bounded() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let wait = |value: &str| retry_after(&headers(&header::RETRY_AFTER, &[value]), now);
        assert_eq!(wait("121"), Some(Duration::from_secs(121)));
        assert_eq!(wait("3601"), Some(RETRY_AFTER_MAX));
        assert_eq!(wait("99999999999999999999999"), Some(RETRY_AFTER_MAX));
        assert_eq!(
            wait(&httpdate::fmt_http_date(now + Duration::from_secs(9))),
            Some(Duration::from_secs(9))
        );
        assert_eq!(wait("Thu, 01 Jan 1970 00:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(wait("soon"), None);
        assert_eq!(wait("-1"), None);
        assert_eq!(wait(""), None);
    }

    #[test]
    fn content_ranges() {
        let range = |start, end_inclusive, total| Some(ContentRange { start, end_inclusive, total });
        assert_eq!(content_range("bytes 0-0/1"), range(0, 0, Some(1)));
        assert_eq!(content_range("Bytes 5-9/*"), range(5, 9, None));
        for bad in [
            "bytes 0-1/1",
            "bytes 2-1/5",
            "bytes */5",
            "items 0-0/1",
            "bytes +1-2/5",
            "bytes -2/5",
            "bytes 1-2",
            "",
        ] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
        assert_eq!(unsatisfied_length(&headers(&header::CONTENT_RANGE, &["bytes */77"])), Some(77));
        assert_eq!(unsatisfied_length(&headers(&header::CONTENT_RANGE, &["bytes 0-1/77"])), None);
    }

    #[test]
    fn links() {
        let next = |values: &[&str]| next_link(&headers(&header::LINK, values));
        assert_eq!(
            next(&[r#"</v2/a/tags/list?last=x&n=2>; rel="next""#]).as_deref(),
            Some("/v2/a/tags/list?last=x&n=2")
        );
        assert_eq!(
            next(&[r#"<a>; rel=prev, <b,c>; title="x, <y>; rel=next"; REL="last Next""#]).as_deref(),
            Some("b,c")
        );
        assert_eq!(next(&["<a>; rel=prev", "<b>;rel=next"]).as_deref(), Some("b"));
        assert_eq!(next(&["<a>; rel=nextish", "<b", "c>; rel=next"]), None);
        assert_eq!(next(&[]), None);
    }

    #[test]
    fn rate_limits() {
        let name = HeaderName::from_static("ratelimit-remaining");
        assert_eq!(rate_limit_remaining(&headers(&name, &["76;w=21600"])), Some(76));
        assert_eq!(rate_limit_remaining(&headers(&name, &["many"])), None);
    }

    #[test]
    fn codings() {
        let with = |value: &'static str| {
            HeaderMap::from_iter([(header::CONTENT_ENCODING, HeaderValue::from_static(value))])
        };
        assert!(check_coding(&HeaderMap::new()).is_ok());
        assert!(check_coding(&with("Identity")).is_ok());
        assert!(check_coding(&with("gzip")).is_err());
    }

    #[test]
    fn transfer_codings() {
        let with = |values: &[&str]| check_transfer_coding(&headers(&header::TRANSFER_ENCODING, values));
        assert!(with(&[]).is_ok() && with(&["Chunked "]).is_ok());
        for values in [&["gzip"][..], &["gzip, chunked"], &["gzip", "chunked"], &["identity"], &[""]] {
            assert!(with(values).is_err(), "{values:?}");
        }
    }
}
