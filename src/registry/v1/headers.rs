//! What is passed on of a client's header fields, and of a source's.
//!
//! What a source goes by when it decides who asks is its own business: `Authorization` and cookies as a rule, but it may be
//! a key in another field, an address that a proxy put into one, or a signature in the query. So everything counts as
//! credentials that is not known to say nothing about who asks; and nobody is somebody without any of it.

use http::header::{
    ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, CACHE_CONTROL, CONNECTION,
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, DATE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue,
    IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LOCATION, PRAGMA,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, RANGE, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    USER_AGENT, WWW_AUTHENTICATE,
};
use http::request;

use crate::registry::access::{Trace, Tracer};

/// The hosts that have a repository's images: of a mirror it is itself.
pub(super) const ENDPOINTS: HeaderName = HeaderName::from_static("x-docker-endpoints");
/// A token that stands for a right; as a request's field, `true` asks for one.
const TOKEN: HeaderName = HeaderName::from_static("x-docker-token");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Fields of a request that are between the client and us.
const OURS: [HeaderName; 21] = [
    HOST,
    LOCATION,
    CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    EXPECT,
    CONTENT_LENGTH,
    CONTENT_ENCODING,
    ACCEPT_ENCODING,
    // What the cache is filled with is whole.
    RANGE,
    IF_RANGE,
    IF_MATCH,
    IF_NONE_MATCH,
    IF_MODIFIED_SINCE,
    IF_UNMODIFIED_SINCE,
];

/// Fields of a request that say nothing about who asks.
const HARMLESS: [HeaderName; 9] = [
    ACCEPT,
    ACCEPT_CHARSET,
    ACCEPT_LANGUAGE,
    CACHE_CONTROL,
    CONTENT_TYPE,
    DATE,
    PRAGMA,
    USER_AGENT,
    HeaderName::from_static("dnt"),
];

/// A client as a source is to see it.
pub(super) struct Asker {
    /// The header fields that are passed on.
    pub(super) fields: HeaderMap,
    /// The query that is passed on.
    pub(super) query: Option<String>,
    /// A keyed hash of what may be credentials, if it has any.
    pub(super) trace: Option<Trace>,
}

impl Asker {
    /// The client of a request. `Authorization` is left out if it is meant for us.
    pub(super) fn of(head: &request::Parts, tracer: &Tracer, authorization_is_ours: bool) -> Self {
        let mut fields = head.headers.clone();
        let named: Vec<HeaderName> = head
            .headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .collect();
        for name in OURS.iter().chain(&named) {
            fields.remove(name);
        }
        if authorization_is_ours {
            fields.remove(AUTHORIZATION);
        }
        let query = head.uri.query().filter(|query| !query.is_empty()).map(str::to_owned);
        let credentials = credentials(&fields, query.as_deref());
        let trace = (!credentials.is_empty()).then(|| tracer.trace_of(&credentials));
        Self { fields, query, trace }
    }

    /// The fields that are passed on of somebody without credentials.
    pub(super) fn fields_of_nobody(&self) -> HeaderMap {
        let harmless = self.fields.iter().filter(|(name, _)| HARMLESS.contains(name));
        harmless.map(|(name, value)| (name.clone(), value.clone())).collect()
    }
}

/// What may say who somebody is, in an order that does not depend on that of the fields.
fn credentials<'a>(fields: &'a HeaderMap, query: Option<&'a str>) -> Vec<&'a [u8]> {
    let mut found: Vec<_> = fields
        .iter()
        .filter(|(name, _)| !HARMLESS.contains(name))
        .filter(|(name, value)| *name != TOKEN || !value.as_bytes().eq_ignore_ascii_case(b"true"))
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    found.sort_unstable();
    let fields = found.into_iter().flat_map(|(name, value)| [name.as_bytes(), value]);
    fields.chain(query.map(str::as_bytes)).collect()
}

/// The fields of a source's answer that go on to the client that it was given to.
pub(super) fn passed_on(answer: &HeaderMap, host: Option<&HeaderValue>) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for (name, value) in answer {
        let is_passed = name.as_str().starts_with("x-docker-")
            || [CONTENT_TYPE, SET_COOKIE, WWW_AUTHENTICATE].contains(name);
        if is_passed && *name != ENDPOINTS {
            fields.append(name, value.clone());
        }
    }
    if answer.contains_key(ENDPOINTS)
        && let Some(host) = host
    {
        fields.insert(ENDPOINTS, host.clone());
    }
    fields
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn asker(fields: &[(&'static str, &'static str)], ours: bool) -> Asker {
        asker_of("/v1/x", fields, ours)
    }

    fn asker_of(target: &str, fields: &[(&'static str, &'static str)], ours: bool) -> Asker {
        let mut request = http::Request::get(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        let tracer = Tracer::new(Path::new("/dev/urandom")).expect("random numbers");
        Asker::of(&head, &tracer, ours)
    }

    #[test]
    fn what_is_between_the_client_and_us_is_not_passed_on() {
        let asker = asker(
            &[
                ("host", "us"),
                ("range", "bytes=0-1"),
                ("if-modified-since", "x"),
                ("connection", "close, X-Hop"),
                ("x-hop", "1"),
                ("cookie", "a=b"),
                ("x-docker-token", "true"),
                ("user-agent", "docker/1.5"),
            ],
            false,
        );
        let mut names: Vec<_> = asker.fields.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["cookie", "user-agent", "x-docker-token"]);
        let names: Vec<_> = asker.fields_of_nobody().keys().map(|name| name.as_str().to_owned()).collect();
        assert_eq!(names, ["user-agent"]);
    }

    #[test]
    fn who_has_credentials_has_a_trace() {
        assert!(asker(&[("x-docker-token", "true")], false).trace.is_none());
        assert!(asker(&[("x-docker-token", "signature=x")], false).trace.is_some());
        assert!(asker(&[("cookie", "a=b")], true).trace.is_some());
        assert!(asker(&[("authorization", "Token x")], false).trace.is_some());
        let ours = asker(&[("authorization", "Basic x")], true);
        assert!(ours.trace.is_none() && ours.fields.is_empty());
        assert!(asker(&[("accept", "*/*"), ("user-agent", "x")], false).trace.is_none());
        for fields in [[("x-api-key", "1")], [("x-forwarded-for", "10.0.0.1")], [("from", "a@b")]] {
            let asker = asker(&fields, false);
            assert!(asker.trace.is_some() && asker.fields_of_nobody().is_empty(), "{fields:?}");
        }
        let signed = asker_of("/v1/x?signature=1", &[], false);
        assert!(signed.trace.is_some() && signed.query.as_deref() == Some("signature=1"));
        assert!(asker_of("/v1/x?", &[], false).trace.is_none());
    }
}
