//! What the backend's answer asks for, and which of its fields an answer with a file has. Pure.

use std::num::NonZeroU64;

use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, EXPIRES, HeaderMap, HeaderName, HeaderValue, SET_COOKIE, TRAILER,
};

use super::options::{HeaderRule, Honour};

const REDIRECT: HeaderName = HeaderName::from_static("x-accel-redirect");
const EXPIRES_IN: HeaderName = HeaderName::from_static("x-accel-expires");
const LIMIT_RATE: HeaderName = HeaderName::from_static("x-accel-limit-rate");
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
const CHARSET: HeaderName = HeaderName::from_static("x-accel-charset");
const SENDFILE: HeaderName = HeaderName::from_static("x-sendfile");

/// What nginx lets through of the backend's answer in front of a file.
const NGINX_KEEPS: [HeaderName; 5] = [CONTENT_TYPE, CONTENT_DISPOSITION, SET_COOKIE, CACHE_CONTROL, EXPIRES];

/// What the backend wants to be done with its answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Orders {
    /// Send something else instead.
    pub(super) instead: Option<Instead>,
    /// At most so many bytes a second.
    pub(super) limit_rate: Option<NonZeroU64>,
    /// The character set of a text that names none.
    pub(super) charset: Option<HeaderValue>,
}

/// What to send instead of the backend's own body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Instead {
    /// The value of X-Accel-Redirect.
    Redirect(HeaderValue),
    /// The value of X-Sendfile.
    Sendfile(HeaderValue),
}

impl Orders {
    /// Takes the fields that are honoured out of an answer. Of several ones with the same name the first counts.
    ///
    /// X-Accel-Expires steers nginx's cache, and X-Accel-Buffering its buffers; there is neither here, so both are only
    /// taken out: nothing of a proxied answer is kept, and nothing is held back.
    pub(super) fn take(headers: &mut HeaderMap, honour: Honour) -> Self {
        let mut take =
            |field, name: HeaderName| if honour.contains(field) { headers.remove(name) } else { None };
        let redirect = take(Honour::REDIRECT, REDIRECT).map(Instead::Redirect);
        let sendfile = take(Honour::SENDFILE, SENDFILE).map(Instead::Sendfile);
        let limit_rate = take(Honour::LIMIT_RATE, LIMIT_RATE);
        let charset = take(Honour::CHARSET, CHARSET);
        take(Honour::EXPIRES, EXPIRES_IN);
        take(Honour::BUFFERING, BUFFERING);
        Self {
            instead: redirect.or(sendfile),
            limit_rate: limit_rate.and_then(|value| rate(value.as_bytes())),
            charset: charset.filter(|charset| !charset.is_empty() && charset != "off"),
        }
    }

    /// Adds the character set to the media type of a text that names none.
    pub(super) fn add_charset(&self, headers: &mut HeaderMap) {
        let (Some(charset), Some(media_type)) = (&self.charset, headers.get(CONTENT_TYPE)) else { return };
        if is_text(media_type.as_bytes())
            && let Ok(both) =
                HeaderValue::from_bytes(&[media_type.as_bytes(), b"; charset=", charset.as_bytes()].concat())
        {
            headers.insert(CONTENT_TYPE, both);
        }
    }
}

/// Bytes a second; anything but digits, and 0, is no limit, as in nginx.
fn rate(value: &[u8]) -> Option<NonZeroU64> {
    let text = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    NonZeroU64::new(text?.parse().ok()?)
}

/// Whether a media type is one of a text, and names no character set.
fn is_text(media_type: &[u8]) -> bool {
    let lower = media_type.to_ascii_lowercase();
    let essence = lower.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let text = essence.starts_with(b"text/")
        || [&b"application/javascript"[..], b"application/rss+xml"].contains(&essence);
    text && !lower.windows(8).any(|part| part == b"charset=")
}

/// Takes out of the backend's fields what describes its own body rather than the file that is sent instead, and what
/// `rule` does not let through.
pub(super) fn keep(headers: &mut HeaderMap, rule: HeaderRule) {
    match rule {
        HeaderRule::Nginx => retain(headers, &NGINX_KEEPS),
        HeaderRule::Keep => {
            for name in [CONTENT_LENGTH, CONTENT_RANGE, ACCEPT_RANGES, TRAILER] {
                headers.remove(name);
            }
        }
    }
}

/// What is left of the backend's fields beside an answer of ours that is no content: as in nginx.
pub(super) fn keep_for_error(headers: &mut HeaderMap) {
    retain(headers, &NGINX_KEEPS[1..]);
}

/// What is left of them when there is nothing new to send.
pub(super) fn keep_for_not_modified(headers: &mut HeaderMap) {
    for name in [CONTENT_TYPE, CONTENT_ENCODING] {
        headers.remove(name);
    }
}

fn retain(headers: &mut HeaderMap, kept: &[HeaderName]) {
    let others: Vec<_> = headers.keys().filter(|name| !kept.contains(name)).cloned().collect();
    for name in others {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    const EVERY: [(&str, &str); 8] = [
        ("x-accel-redirect", "/a"),
        ("x-accel-redirect", "/b"),
        ("x-accel-expires", "@0"),
        ("x-accel-limit-rate", "100"),
        ("x-accel-buffering", "no"),
        ("x-accel-charset", "utf-8"),
        ("x-sendfile", "/c"),
        ("x-accel-other", "stays"),
    ];

    #[test]
    fn what_is_honoured_is_taken_out() {
        let mut all = headers(&EVERY);
        let orders = Orders::take(&mut all, Honour::ALL);
        assert_eq!(orders.instead, Some(Instead::Redirect(HeaderValue::from_static("/a"))));
        assert_eq!(orders.limit_rate.map(NonZeroU64::get), Some(100));
        assert_eq!(all.len(), 1);

        let mut none = headers(&EVERY);
        assert_eq!(Orders::take(&mut none, Honour::NOTHING), Orders::default());
        assert_eq!(none.len(), EVERY.len());

        let mut some = headers(&EVERY);
        let orders = Orders::take(&mut some, Honour::SENDFILE);
        assert_eq!(orders.instead, Some(Instead::Sendfile(HeaderValue::from_static("/c"))));
        assert_eq!(some.len(), EVERY.len() - 1);
    }

    #[test]
    fn rates_are_digits() {
        assert_eq!(rate(b"100000").map(NonZeroU64::get), Some(100_000));
        for odd in ["0", "", "100k", "-1", "+1", "junk", "99999999999999999999999"] {
            assert_eq!(rate(odd.as_bytes()), None, "{odd}");
        }
    }

    #[test]
    fn texts_without_a_character_set_get_one() {
        let orders = Orders { charset: Some(HeaderValue::from_static("utf-8")), ..Orders::default() };
        for (before, after) in [
            ("text/html", "text/html; charset=utf-8"),
            ("Text/Plain;x=y", "Text/Plain;x=y; charset=utf-8"),
            ("text/html; Charset=latin1", "text/html; Charset=latin1"),
            ("image/png", "image/png"),
        ] {
            let mut headers = headers(&[("content-type", before)]);
            orders.add_charset(&mut headers);
            assert_eq!(headers["content-type"], after);
        }
    }

    #[test]
    fn fields_that_survive() {
        let lines = [
            ("content-type", "text/plain"),
            ("content-length", "7"),
            ("content-range", "bytes 0-6/7"),
            ("set-cookie", "a"),
            ("set-cookie", "b"),
            ("etag", "\"x\""),
            ("link", "<x>"),
        ];
        let mut kept = headers(&lines);
        keep(&mut kept, HeaderRule::Keep);
        assert_eq!((kept.len(), kept.contains_key("link")), (5, true));
        keep(&mut kept, HeaderRule::Nginx);
        assert_eq!(kept.len(), 3);
        keep_for_error(&mut kept);
        assert_eq!(kept.get_all("set-cookie").iter().count(), 2);
        assert_eq!(kept.len(), 2);
    }
}
