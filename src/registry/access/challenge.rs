//! How a client is asked to log in: the `WWW-Authenticate` field, word for word as distribution writes it. Pure.

use std::fmt::Write;

use http::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue};

use super::{Action, Wish};

/// Where our own tokens are given out.
pub(in crate::registry) const TOKEN_PATH: &str = "/v2/token";
/// What our own tokens are said to be for; nobody looks at it.
const TOKEN_SERVICE: &str = "spliceway";

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// What was wrong with the credentials, if there were any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Complaint {
    None,
    InvalidToken,
    InsufficientScope,
}

impl Complaint {
    /// About a client without a login: about none, or about the token that stands for none, as containerd asks for that
    /// again and again unless it is told.
    pub(super) fn of_nobody(headers: &HeaderMap) -> Self {
        if headers.contains_key(AUTHORIZATION) { Self::InsufficientScope } else { Self::None }
    }
}

/// `Basic realm="…"`.
pub(super) fn basic(realm: &str) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("Basic realm={}", quoted(realm))).ok()
}

/// `Bearer realm="…",service="…",scope="repository:a/b:pull,push"`.
pub(super) fn bearer(
    realm: &str,
    service: &str,
    wishes: &[Wish<'_>],
    complaint: Complaint,
) -> Option<HeaderValue> {
    let mut text = format!("Bearer realm={},service={}", quoted(realm), quoted(service));
    let scope = scope(wishes);
    if !scope.is_empty() {
        // Writing to a String cannot fail.
        let _ = write!(text, ",scope={}", quoted(&scope));
    }
    match complaint {
        Complaint::None => {}
        Complaint::InvalidToken => text.push_str(",error=\"invalid_token\""),
        Complaint::InsufficientScope => text.push_str(",error=\"insufficient_scope\""),
    }
    HeaderValue::try_from(text).ok()
}

/// The challenge that leads to our own tokens; `None` if the request does not tell by which URL the client reaches us.
pub(super) fn own_bearer(
    headers: &HeaderMap,
    wishes: &[Wish<'_>],
    complaint: Complaint,
) -> Option<HeaderValue> {
    bearer(&format!("{}{TOKEN_PATH}", base_url(headers)?), TOKEN_SERVICE, wishes, complaint)
}

/// One entry for each repository, in the order of the wishes, and its actions in the usual order.
fn scope(wishes: &[Wish<'_>]) -> String {
    let mut entries: Vec<(String, [bool; 3])> = Vec::new();
    let mut rest = Vec::new();
    for wish in wishes {
        let actions = match wish.action {
            Action::Pull => [true, false, false],
            Action::Push => [true, true, false],
            Action::Delete => [false, false, true],
            Action::Catalog => {
                rest.push("registry:catalog:*".to_owned());
                continue;
            }
            Action::Ping => continue,
        };
        let Some(name) = wish.repository else { continue };
        match entries.iter_mut().find(|(known, _)| known == name.as_str()) {
            Some((_, known)) => known.iter_mut().zip(actions).for_each(|(known, wanted)| *known |= wanted),
            None => entries.push((name.as_str().to_owned(), actions)),
        }
    }
    let text = |(name, wanted): (String, [bool; 3])| {
        let words = ["pull", "push", "delete"].into_iter().zip(wanted);
        let words: Vec<_> = words.filter_map(|(word, wanted)| wanted.then_some(word)).collect();
        format!("repository:{name}:{}", words.join(","))
    };
    entries.into_iter().map(text).chain(rest).collect::<Vec<_>>().join(" ")
}

/// Scheme and host as the client knows them: what a proxy says (RFC 7239, or the older fields; the first entry is the
/// outermost proxy's), else the Host field and no TLS. A client that makes them up deceives itself.
fn base_url(headers: &HeaderMap) -> Option<String> {
    let field = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let first = |name| field(name).and_then(|list| list.split(',').next()).map(str::trim);
    let forwarded = |key: &str| {
        let pairs = first(FORWARDED)?.split(';').filter_map(|pair| pair.trim().split_once('='));
        let mut found = pairs.filter(|(name, _)| name.eq_ignore_ascii_case(key));
        found.next().map(|(_, value)| value.trim_matches('"'))
    };
    let scheme = forwarded("proto").or_else(|| first(FORWARDED_PROTO)).unwrap_or("http").to_ascii_lowercase();
    let host = forwarded("host").or_else(|| first(FORWARDED_HOST)).or_else(|| field(HOST))?;
    let is_of_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    let is_valid = matches!(&*scheme, "http" | "https") && !host.is_empty() && host.bytes().all(is_of_host);
    is_valid.then(|| format!("{scheme}://{host}"))
}

/// A quoted string (RFC 9110 section 5.6.4).
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::RepositoryName;

    fn name(text: &str) -> RepositoryName {
        text.parse().expect("a valid name")
    }

    #[test]
    fn challenges_are_those_of_distribution() {
        let (a, b) = (name("a/b"), name("c"));
        let wish = |name, action| Wish { repository: Some(name), action };
        let ping = Wish { repository: None, action: Action::Ping };
        let catalog = Wish { repository: None, action: Action::Catalog };
        for (wishes, complaint, rest) in [
            (&[ping][..], Complaint::None, ""),
            (&[wish(&a, Action::Pull)], Complaint::None, ",scope=\"repository:a/b:pull\""),
            (
                &[wish(&a, Action::Push)],
                Complaint::InvalidToken,
                ",scope=\"repository:a/b:pull,push\",error=\"invalid_token\"",
            ),
            (
                &[wish(&a, Action::Delete)],
                Complaint::InsufficientScope,
                ",scope=\"repository:a/b:delete\",error=\"insufficient_scope\"",
            ),
            (&[catalog], Complaint::None, ",scope=\"registry:catalog:*\""),
            (
                &[wish(&a, Action::Push), wish(&b, Action::Pull)],
                Complaint::None,
                ",scope=\"repository:a/b:pull,push repository:c:pull\"",
            ),
            (
                &[wish(&a, Action::Delete), wish(&a, Action::Pull)],
                Complaint::None,
                ",scope=\"repository:a/b:pull,delete\"",
            ),
        ] {
            let value =
                bearer("https://auth.example/token", "reg \"1\"", wishes, complaint).expect("a value");
            let expected =
                format!("Bearer realm=\"https://auth.example/token\",service=\"reg \\\"1\\\"\"{rest}");
            assert_eq!(value, expected);
        }
        assert_eq!(basic("main").expect("a value"), "Basic realm=\"main\"");
    }

    #[test]
    fn our_own_realm_is_where_the_client_reaches_us() {
        for (fields, url) in [
            (&[("host", "r.example:5000")][..], Some("http://r.example:5000")),
            (
                &[("host", "a"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "b, c")],
                Some("https://b"),
            ),
            (
                &[("host", "a"), ("forwarded", "for=1.2.3.4;proto=HTTPS;Host=\"b:1\", proto=http")],
                Some("https://b:1"),
            ),
            (&[("host", "[::1]:5000")], Some("http://[::1]:5000")),
            (&[("host", "a\"b")], None),
            (&[("host", "a"), ("x-forwarded-proto", "ftp")], None),
            (&[], None),
        ] {
            let headers = fields
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            assert_eq!(base_url(&headers.collect()).as_deref(), url, "{fields:?}");
        }
    }
}
