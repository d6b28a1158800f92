//! Blobs: parts, lengths, and bodies that do not end as they should.

use super::*;
use crate::upstream::{BlobRequest, BlobResponse, ContentRange, UpstreamError};

async fn ask(upstream: &Upstream, range: Option<(u64, Option<u64>)>) -> Result<BlobResponse, UpstreamError> {
    let request = BlobRequest { range, ..BlobRequest::default() };
    upstream.blob(&repository(), &digest_of(b"hello"), request).await
}

async fn ask_once(reply: Reply, range: Option<(u64, Option<u64>)>) -> Result<BlobResponse, UpstreamError> {
    let server = Server::start(move |_| reply.clone());
    ask(&upstream(&server.url()), range).await
}

async fn read(response: &mut BlobResponse) -> Result<Vec<u8>, UpstreamError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.body.chunk().await? {
        bytes.extend(chunk);
    }
    Ok(bytes)
}

#[tokio::test]
async fn a_whole_blob() {
    let server = Server::start(|_| Reply::ok("hello").header("ETag", "\"e\""));
    let mut response = ask(&upstream(&server.url()), None).await.unwrap();
    assert_eq!((response.endpoint, response.partial, response.length), (0, None, Some(5)));
    assert_eq!(response.etag.as_deref(), Some("\"e\""));
    assert_eq!(read(&mut response).await.unwrap(), b"hello");
    assert_eq!(read(&mut response).await.unwrap(), b"", "the end stays the end");
    let seen = &server.seen()[0];
    assert_eq!(seen.target, format!("/v2/team/app/blobs/{}", digest_of(b"hello")));
    assert_eq!((seen.header("accept-encoding"), seen.header("range")), (Some("identity"), None));
}

#[tokio::test]
async fn lengths_of_whole_blobs() {
    let mut chunked = ask_once(Reply::ok("hello").chunked(), None).await.unwrap();
    assert_eq!(chunked.length, None);
    assert_eq!(read(&mut chunked).await.unwrap(), b"hello");
    let mut empty = ask_once(Reply::ok(""), None).await.unwrap();
    assert_eq!(empty.length, Some(0));
    assert_eq!(read(&mut empty).await.unwrap(), b"");
}

#[tokio::test]
async fn parts() {
    let part = Reply::status(206).header("Content-Range", "bytes 1-3/5").body("ell");
    let mut response = ask_once(part.clone(), Some((1, Some(3)))).await.unwrap();
    assert_eq!(response.partial, Some(ContentRange { start: 1, end_inclusive: 3, total: Some(5) }));
    assert_eq!(read(&mut response).await.unwrap(), b"ell");

    let mut ignored = ask_once(Reply::ok("hello"), Some((1, None))).await.unwrap();
    assert_eq!(ignored.partial, None, "a range may be ignored");
    assert_eq!(read(&mut ignored).await.unwrap(), b"hello");

    for (reply, range) in [
        (part.clone(), Some((2, None))),
        (part.clone(), None),
        (part.clone().body("el"), Some((1, None))),
        (Reply::status(206).body("ell"), Some((1, None))),
        (Reply::ok("hello").header("Content-Encoding", "gzip"), None),
    ] {
        let error = ask_once(reply, range).await.unwrap_err();
        assert!(matches!(error, UpstreamError::Malformed { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_range_beyond_the_end() {
    let reply = Reply::status(416).header("Content-Range", "bytes */5");
    let error = ask_once(reply, Some((9, None))).await.unwrap_err();
    assert!(matches!(error, UpstreamError::RangeNotSatisfiable { length: Some(5), .. }), "{error}");
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn a_cut_body_is_an_error_for_good() {
    for reply in [Reply::ok("hello").cut_after(3), Reply::ok("hello").chunked().cut_after(3)] {
        let mut response = ask_once(reply, None).await.unwrap();
        assert_eq!(response.body.chunk().await.unwrap().unwrap(), "hel");
        for _ in 0..3 {
            let error = response.body.chunk().await.unwrap_err();
            assert!(matches!(error, UpstreamError::Broken { .. }) && error.is_retryable(), "{error}");
        }
    }
}

#[tokio::test]
async fn a_stalled_body_is_a_timeout() {
    let server = Server::start(|_| Reply::ok("hello").stall_after(3));
    let mut options = options(&server.url());
    options.stall_timeout = Duration::from_millis(150);
    let mut response = ask(&Upstream::new(options).unwrap(), None).await.unwrap();
    assert_eq!(response.body.chunk().await.unwrap().unwrap(), "hel");
    // A call that is dropped does not set the clock back: with a clock of its own each of these would go on for ever.
    let mut dropped = 0;
    let error = loop {
        match tokio::time::timeout(Duration::from_millis(20), response.body.chunk()).await {
            Ok(result) => break result.unwrap_err(),
            Err(_) => dropped += 1,
        }
        assert!(dropped < 1000, "the wait has no bound");
    };
    assert!(dropped > 0);
    assert!(matches!(error, UpstreamError::Timeout { what: "body bytes", .. }), "{error}");
    assert!(response.body.chunk().await.is_err());
}

#[tokio::test]
async fn stalled_headers_are_a_timeout() {
    let server = Server::start(|_| Reply::stall_head());
    let mut options = options(&server.url());
    options.header_timeout = Duration::from_millis(150);
    let error = ask(&Upstream::new(options).unwrap(), None).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Timeout { what: "response headers", .. }), "{error}");
    assert_eq!(error.reason(), "timeout");
}

#[tokio::test]
async fn redirects_end() {
    let server = Server::start(|seen| Reply::redirect(format!("{}x", seen.target)));
    let error = ask(&upstream(&server.url()), None).await.unwrap_err();
    assert!(
        matches!(&error, UpstreamError::Unexpected { what, .. } if what.contains("redirects")),
        "{error}"
    );
    assert_eq!(server.seen().len(), 6, "the request and five redirects");
}

#[tokio::test]
async fn an_error_tells_what_the_registry_said() {
    let body = r#"{"errors":[{"code":"DENIED","message":"no \u001b[1maccess"}]}"#;
    let error = ask_once(Reply::status(403).body(body), None).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Denied { .. }));
    let text = error.to_string();
    assert!(text.contains("blob team/app@sha256:") && text.contains("127.0.0.1:"), "{text}");
    assert!(text.ends_with(r"DENIED: no \u{1b}[1maccess"), "{text}");
}

#[tokio::test]
async fn a_head_tells_the_length() {
    let server = Server::start(|_| Reply::ok("hello"));
    let head = upstream(&server.url()).blob_head(&repository(), &digest_of(b"hello")).await.unwrap();
    assert_eq!(head.length, Some(5));
    assert_eq!(server.seen()[0].method, "HEAD");
}

#[tokio::test]
async fn a_connection_closed_while_idle_is_no_error() {
    // Each connection answers one request and is closed when the next arrives.
    let server = Server::start(|seen| if seen.nth == 0 { Reply::ok("hello") } else { Reply::close() });
    let upstream = upstream(&server.url());
    for _ in 0..3 {
        assert_eq!(read(&mut ask(&upstream, None).await.unwrap()).await.unwrap(), b"hello");
    }
    assert!(server.seen().iter().any(|seen| seen.nth == 1), "a reused connection was tried");
}

#[tokio::test]
async fn a_fresh_connection_that_breaks_is_an_error() {
    let server = Server::start(|_| Reply::close());
    let error = ask(&upstream(&server.url()), None).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Broken { .. }), "{error}");
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn connections_stay_with_their_runtime() {
    let server = Server::start(|_| Reply::ok("hello"));
    let upstream = upstream(&server.url());
    let workers: Vec<_> =
        (0..2).map(|_| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()).collect();
    // While one worker runs, nobody drives the other's connections: a request on one of them would hang.
    for worker in [0, 1, 0, 1] {
        workers[worker].block_on(async {
            assert_eq!(read(&mut ask(&upstream, None).await.unwrap()).await.unwrap(), b"hello");
        });
    }
    let connections: Vec<_> = server.seen().iter().map(|seen| (seen.connection, seen.nth)).collect();
    assert_eq!(connections, [(0, 0), (1, 0), (0, 1), (1, 1)]);
}
