//! Manifests and lists of tags.

use super::*;
use crate::oci::media_type::{ALL_MANIFESTS_ACCEPT, OCI_MANIFEST};
use crate::upstream::UpstreamError;

#[tokio::test]
async fn a_manifest_by_tag_and_by_digest() {
    let server = Server::start(|_| {
        Reply::ok("{}")
            .header("Content-Type", format!("{OCI_MANIFEST}; charset=utf-8"))
            .header("Docker-Content-Digest", digest_of(b"{}").to_string())
    });
    let upstream = upstream(&server.url());
    for reference in [tag(), Reference::Digest(digest_of(b"{}"))] {
        let manifest = upstream.manifest(&repository(), &reference).await.unwrap();
        assert_eq!((&manifest.bytes[..], manifest.digest), (&b"{}"[..], digest_of(b"{}")));
        assert_eq!(manifest.media_type.as_deref(), Some(OCI_MANIFEST));
        let head = upstream.manifest_head(&repository(), &reference).await.unwrap();
        assert_eq!((head.digest, head.length), (Some(digest_of(b"{}")), Some(2)));
        assert_eq!(head.media_type.as_deref(), Some(OCI_MANIFEST));
    }
    for seen in server.seen() {
        assert_eq!(seen.header("accept"), Some(ALL_MANIFESTS_ACCEPT));
    }
    assert_eq!(server.seen()[1].method, "HEAD");
}

#[tokio::test]
async fn a_manifest_without_any_header_but_its_length() {
    let server = Server::start(|_| Reply::ok("{}"));
    let upstream = upstream(&server.url());
    let manifest = upstream.manifest(&repository(), &tag()).await.unwrap();
    assert_eq!((manifest.media_type, manifest.digest), (None, digest_of(b"{}")));
    let head = upstream.manifest_head(&repository(), &tag()).await.unwrap();
    assert_eq!((head.digest, head.media_type), (None, None));
}

#[tokio::test]
async fn a_mirror_with_another_manifest_is_passed_over() {
    let mirror = Server::start(|_| Reply::ok("{ }"));
    let server = Server::start(|_| Reply::ok("{}"));
    let reference = Reference::Digest(digest_of(b"{}"));
    let manifest =
        with_mirror(&mirror.url(), &server.url()).manifest(&repository(), &reference).await.unwrap();
    assert_eq!(manifest.bytes, "{}");
    assert_eq!(mirror.seen().len(), 1);

    let error = upstream(&mirror.url()).manifest(&repository(), &reference).await.unwrap_err();
    let UpstreamError::DigestMismatch { expected, actual, .. } = &error else { panic!("{error}") };
    assert_eq!((**expected, **actual), (digest_of(b"{}"), digest_of(b"{ }")));
}

#[tokio::test]
async fn announced_digests_are_checked() {
    for announced in [digest_of(b"other").to_string(), "nonsense".to_owned()] {
        let server = Server::start(move |_| Reply::ok("{}").header("Docker-Content-Digest", &announced));
        let error = upstream(&server.url()).manifest(&repository(), &tag()).await.unwrap_err();
        assert!(
            matches!(error, UpstreamError::DigestMismatch { .. } | UpstreamError::Malformed { .. }),
            "{error}"
        );
    }
}

#[tokio::test]
async fn the_size_of_a_manifest_is_bounded() {
    for (len, is_chunked) in [(100, false), (100, true), (101, false), (101, true)] {
        let server = Server::start(move |_| {
            let reply = Reply::ok(vec![b' '; len]);
            if is_chunked { reply.chunked() } else { reply }
        });
        let mut options = options(&server.url());
        options.max_manifest_bytes = 100;
        let result = Upstream::new(options).unwrap().manifest(&repository(), &tag()).await;
        match result {
            Ok(manifest) => assert_eq!((manifest.bytes.len(), len), (100, 100)),
            Err(error) => {
                assert_eq!(len, 101);
                assert!(matches!(error, UpstreamError::TooLarge { limit: 100, .. }), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn a_cut_or_stalled_manifest_is_an_error() {
    let server = Server::start(|_| Reply::ok("{}").cut_after(1));
    let error = upstream(&server.url()).manifest(&repository(), &tag()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Broken { .. }), "{error}");

    let server = Server::start(|_| Reply::ok("{}").stall_after(1));
    let mut options = options(&server.url());
    options.stall_timeout = Duration::from_millis(150);
    let error = Upstream::new(options).unwrap().manifest(&repository(), &tag()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Timeout { what: "body bytes", .. }), "{error}");
}

#[tokio::test]
async fn all_pages_of_tags() {
    let server = Server::start(|seen| match seen.target.as_str() {
        "/v2/team/app/tags/list?n=1000" => Reply::ok(r#"{"name":"team/app","tags":["b","a","-invalid"]}"#)
            .header("Link", "</v2/team/app/tags/list?last=b&n=2>; rel=\"next\""),
        "/v2/team/app/tags/list?last=b&n=2" => {
            Reply::ok(r#"{"tags":["b","c"]}"#).header("Link", "<?last=c>; rel=next")
        }
        "/v2/team/app/tags/list?last=c" => Reply::ok(r#"{"tags":null}"#),
        _ => Reply::status(404),
    });
    let tags = upstream(&server.url()).tags(&repository()).await.unwrap();
    assert_eq!(tags.iter().map(crate::oci::Tag::as_str).collect::<Vec<_>>(), ["a", "b", "c"]);
}

#[tokio::test]
async fn pages_do_not_lead_elsewhere_or_on_for_ever() {
    let elsewhere = Server::start(|_| Reply::ok(r#"{"tags":["stolen"]}"#));
    let link = format!("<{}/v2/team/app/tags/list>; rel=next", elsewhere.url());
    let server = Server::start(move |_| Reply::ok(r#"{"tags":["a"]}"#).header("Link", &link));
    let error = upstream(&server.url()).tags(&repository()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Malformed { .. }), "{error}");
    assert_eq!(elsewhere.seen().len(), 0);

    let server = Server::start(|seen| {
        Reply::ok(r#"{"tags":["a"]}"#).header("Link", format!("<{}1>; rel=next", seen.target))
    });
    let error = upstream(&server.url()).tags(&repository()).await.unwrap_err();
    assert!(matches!(&error, UpstreamError::Unexpected { what, .. } if what.contains("pages")), "{error}");
    assert_eq!(server.seen().len(), 1000);
}
