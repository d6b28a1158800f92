//! Conditional requests (RFC 9110 section 13), in the order of section 13.2.2.

use super::Fixture;
use crate::support::client::Request;

/// Conditions of RFC 9110 section 13.2.2 in their order, and the status that they lead to. `{etag}` is the blob's.
pub(super) const CONDITIONS: [(&[(&str, &str)], u16); 22] = [
    (&[("If-None-Match", "{etag}")], 304),
    (&[("If-None-Match", "W/{etag}")], 304),
    (&[("If-None-Match", "*")], 304),
    (&[("If-None-Match", "\"other\", {etag}")], 304),
    (&[("If-None-Match", "\"other\"")], 200),
    (&[("If-Match", "{etag}")], 200),
    (&[("If-Match", "*")], 200),
    (&[("If-Match", "\"other\"")], 412),
    (&[("If-Match", "W/{etag}")], 412),
    (&[("If-Match", "\"other\", {etag}")], 200),
    (&[("If-Match", "{etag}"), ("If-None-Match", "{etag}")], 304),
    (&[("If-Match", "\"other\""), ("If-None-Match", "{etag}")], 412),
    // A date counts only where the entity tag's condition is absent.
    (&[("If-Match", "{etag}"), ("If-Unmodified-Since", "Thu, 01 Jan 1970 00:00:00 GMT")], 200),
    (&[("If-None-Match", "\"other\""), ("If-Modified-Since", "Fri, 31 Dec 9999 00:00:00 GMT")], 200),
    (&[("If-None-Match", "{etag}"), ("If-Modified-Since", "Thu, 01 Jan 1970 00:00:00 GMT")], 304),
    (&[("If-Modified-Since", "not a date")], 200),
    // Conditions come before ranges.
    (&[("If-None-Match", "{etag}"), ("Range", "bytes=0-1")], 304),
    (&[("If-Match", "\"other\""), ("Range", "bytes=0-1")], 412),
    (&[("If-Range", "{etag}"), ("Range", "bytes=0-1")], 206),
    (&[("If-Range", "\"other\""), ("Range", "bytes=0-1")], 200),
    (&[("If-Range", "W/{etag}"), ("Range", "bytes=0-1")], 200),
    (&[("If-Range", "\"other\""), ("Range", "bytes=99999999-")], 200),
];

fn conditions(fixture: &Fixture) {
    for (headers, status) in CONDITIONS {
        for method in ["GET", "HEAD"] {
            let status = match (method, status) {
                // Range is for GET alone.
                ("HEAD", 206) => 200,
                _ => status,
            };
            let mut request = Request::new(method, &fixture.blob.path);
            for (name, value) in headers {
                request = request.header(name, &value.replace("{etag}", &fixture.etag()));
            }
            let exchange = request.open(fixture.spliceway.addr());
            assert_eq!(exchange.status(), status, "{method} {headers:?}");
            if status == 304 {
                assert_eq!(exchange.head.header("etag"), Some(fixture.etag().as_str()));
                assert!(exchange.collect().body.is_empty());
            }
        }
    }
}

#[test]
fn conditions_on_a_stored_blob() {
    conditions(&Fixture::stored());
}

#[test]
fn conditions_on_a_blob_being_filled() {
    let fixture = Fixture::growing();
    conditions(&fixture);
    fixture.gate.open();
}

#[test]
fn last_modified_agrees_with_its_conditions() {
    let fixture = Fixture::stored();
    let head = fixture.send(&Request::head(&fixture.blob.path));
    let Some(date) = head.header("last-modified") else { return };
    let status =
        |name: &str, value: &str| fixture.get().header(name, value).open(fixture.spliceway.addr()).status();
    assert_eq!(status("If-Modified-Since", date), 304);
    assert_eq!(status("If-Modified-Since", "Thu, 01 Jan 1970 00:00:01 GMT"), 200);
    assert_eq!(status("If-Unmodified-Since", date), 200);
    assert_eq!(status("If-Unmodified-Since", "Thu, 01 Jan 1970 00:00:00 GMT"), 412);
}
