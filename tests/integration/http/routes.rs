//! What is no blob: lists of tags, invalid names, methods and paths.

use super::Fixture;
use crate::support::client::{Answer, Request, get};
use crate::support::images::OCI_MANIFEST;
use crate::support::origin::Origin;
use crate::support::process::Spliceway;
use crate::support::sha256;

#[test]
fn tags_are_listed_in_pages() {
    let origin = Origin::start();
    let digest = origin.manifest(OCI_MANIFEST, b"{\"schemaVersion\":2}");
    for tag in ["a", "b", "c", "d", "e"] {
        origin.tag("team/app", tag, &digest);
    }
    let spliceway = Spliceway::before(&origin);
    let list = |query: &str| get(spliceway.addr(), &format!("/v2/team/app/tags/list{query}"));
    let tags = |answer: &Answer| answer.json()["tags"].clone();
    let all = list("").expect(200);
    assert_eq!(all.json(), serde_json::json!({"name": "team/app", "tags": ["a", "b", "c", "d", "e"]}));
    assert_eq!(all.header("link"), None);
    let first = list("?n=2").expect(200);
    assert_eq!(tags(&first), serde_json::json!(["a", "b"]));
    let link = first.header("link").expect("there is more").to_owned();
    let next = link.strip_prefix('<').and_then(|rest| rest.split_once('>')).expect("a link");
    assert_eq!(next.1, "; rel=\"next\"");
    let second = get(spliceway.addr(), next.0).expect(200);
    assert_eq!(tags(&second), serde_json::json!(["c", "d"]));
    let last = list("?n=2&last=d").expect(200);
    assert_eq!((tags(&last), last.header("link")), (serde_json::json!(["e"]), None));
    let none = list("?n=0").expect(200);
    assert_eq!((tags(&none), none.header("link")), (serde_json::json!([]), None));
    for bad in ["-1", "x", "1.5", "99999999999999999999999"] {
        let answer = list(&format!("?n={bad}")).expect(400);
        assert_eq!(answer.error_code(), "PAGINATION_NUMBER_INVALID");
        assert!(answer.error_message().contains(bad), "the value is quoted: {answer}");
    }
}

#[test]
fn invalid_names_tags_and_digests_are_quoted() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let long = "x".repeat(256);
    let digest = sha256(b"x");
    let upper = digest.to_uppercase().replace("SHA256", "sha256");
    let cases = [
        ("/v2/UPPER/manifests/v1".into(), "NAME_INVALID", "UPPER"),
        ("/v2/a__b___c/tags/list".into(), "NAME_INVALID", "a__b___c"),
        (format!("/v2/{long}/tags/list"), "NAME_INVALID", "xxxx"),
        ("/v2/a%2Fb/manifests/v1".into(), "NAME_INVALID", ""),
        ("/v2/a%00b/manifests/v1".into(), "NAME_INVALID", ""),
        (format!("/v2/-a/blobs/{digest}"), "NAME_INVALID", "-a"),
        ("/v2/app/manifests/-v1".into(), "MANIFEST_UNKNOWN", "-v1"),
        (format!("/v2/app/manifests/{}", "t".repeat(129)), "MANIFEST_UNKNOWN", "tttt"),
        ("/v2/app/manifests/sha256:12".into(), "DIGEST_INVALID", "sha256:12"),
        ("/v2/app/blobs/sha256:12".into(), "DIGEST_INVALID", "sha256:12"),
        ("/v2/app/blobs/v1".into(), "DIGEST_INVALID", "v1"),
        (format!("/v2/app/blobs/{}", digest.replace("sha256", "md5")), "DIGEST_INVALID", "md5"),
        (format!("/v2/app/blobs/{upper}"), "DIGEST_INVALID", upper.as_str()),
    ];
    for (target, code, quoted) in cases {
        let answer = get(spliceway.addr(), &target);
        // What cannot be a tag is not there, as the OCI conformance tests want it.
        let status = if code == "MANIFEST_UNKNOWN" { 404 } else { 400 };
        assert_eq!((answer.status(), answer.error_code().as_str()), (status, code), "{target}: {answer}");
        assert!(answer.error_message().contains(quoted), "{target}: the value is quoted: {answer}");
        assert_eq!(answer.header("docker-distribution-api-version"), Some("registry/2.0"));
    }
    assert!(
        origin.all_seen().is_empty(),
        "what is invalid is not asked for upstream: {:?}",
        origin.all_seen()
    );
    // An encoded colon is one.
    let blob = origin.random_blob(1, 10);
    get(spliceway.addr(), &blob.path.replace(':', "%3A")).expect(200).expect_body(&blob.bytes);
}

#[test]
fn methods_and_routes() {
    let fixture = Fixture::stored();
    let base = get(fixture.spliceway.addr(), "/v2/").expect(200);
    assert_eq!(base.header("docker-distribution-api-version"), Some("registry/2.0"));
    for (method, target) in [
        ("PUT", fixture.blob.path.as_str()),
        ("POST", fixture.blob.path.as_str()),
        ("TRACE", "/v2/"),
        ("DELETE", "/v2/"),
        ("PATCH", "/v2/team/app/manifests/v1"),
        ("PUT", "/v2/team/app/tags/list"),
    ] {
        let answer = fixture.send(&Request::new(method, target).header("Content-Length", "0"));
        assert_eq!(answer.status(), 405, "{method} {target}: {answer}");
        let allow = answer.header("allow").unwrap_or_else(|| panic!("{method} {target}: 405 without Allow"));
        assert!(allow.contains("GET") && allow.contains("HEAD"), "{allow}");
        assert!(!allow.contains(method), "{method} {target}: {allow}");
        assert_eq!(answer.error_code(), "UNSUPPORTED");
    }
    assert_eq!(fixture.send(&Request::new("OPTIONS", "*")).status(), 204);
    for target in ["/v3/", "/v2/team/app", "/v2/team/app/blobs", "/nothing"] {
        let answer = get(fixture.spliceway.addr(), target);
        assert_eq!(answer.status(), 404, "{target}: {answer}");
    }
    // The authority of an absolute target is not an address to go to.
    let foreign = format!("http://registry.example{}", fixture.blob.path);
    fixture.send(&Request::get(foreign)).expect(200).expect_body(&fixture.blob.bytes);
}
