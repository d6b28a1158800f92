//! Pushing: sessions, streams, and what registries answer.

use bytes::Bytes;

use super::*;
use crate::upstream::{Mount, NotTaken, UpstreamError};

const UPLOADS: &str = "/v2/team/app/blobs/uploads/";

fn pushing(url: &str) -> Upstream {
    Upstream::new(UpstreamOptions { pushes: true, ..options(url) }).unwrap()
}

/// Answers as a registry that begins sessions at `…/1?s=0`, and names another place after each chunk.
fn registry() -> Server {
    Server::start(|seen| match (seen.method.as_str(), seen.target.contains("mount=")) {
        ("POST", true) | ("PUT", _) => Reply::status(201),
        ("POST", false) => {
            Reply::status(202).header("Location", format!("{UPLOADS}1?s=0")).header("Range", "0-0")
        }
        ("PATCH" | "GET", _) => Reply::status(204).header("Location", "1?s=5").header("Range", "0-4"),
        _ => Reply::status(204),
    })
}

#[tokio::test]
async fn a_blob_at_hand_takes_two_requests() {
    let server = registry();
    let upstream = pushing(&server.url());
    let digest = digest_of(b"hello");
    let session = upstream.begin_upload(&repository(), &digest).await.unwrap();
    assert_eq!(session.received(), 0);
    upstream.upload(&repository(), &session, &digest, Bytes::from_static(b"hello")).await.unwrap();
    let seen = server.seen();
    assert_eq!((seen[0].method.as_str(), seen[0].target.as_str()), ("POST", UPLOADS));
    assert_eq!(seen[0].header("content-length"), Some("0"));
    let digest = digest.to_string().replace(':', "%3A");
    assert_eq!(seen[1].target, format!("{UPLOADS}1?s=0&digest={digest}"), "the session's query is kept");
    assert_eq!((seen[1].body.as_str(), seen[1].header("content-range")), ("hello", None));
}

#[tokio::test]
async fn a_stream_is_appended_and_the_upload_ended_where_it_then_is() {
    let server = registry();
    let upstream = pushing(&server.url());
    let digest = digest_of(b"hello");
    let session = upstream.begin_upload(&repository(), &digest).await.unwrap();
    let (sender, stream) = upstream.piece_stream(Some(5));
    let feed = async {
        sender.send(Bytes::from_static(b"he")).await.unwrap();
        sender.send(Bytes::from_static(b"llo")).await.unwrap();
        let _ = sender.end().await;
    };
    let repository = repository();
    let appending = upstream.append(&repository, &digest, &session, Some(5), stream);
    let (session, ()) = tokio::join!(appending, feed);
    let session = session.unwrap();
    assert_eq!(session.received(), 5);
    upstream.upload(&repository, &session, &digest, Bytes::new()).await.unwrap();
    let seen = server.seen();
    assert_eq!((seen[1].method.as_str(), seen[1].body.as_str()), ("PATCH", "hello"));
    assert_eq!(seen[1].header("content-length"), Some("5"));
    assert!(seen[2].target.starts_with(&format!("{UPLOADS}1?s=5&digest=")), "{}", seen[2].target);
}

/// Other clients never look at what a registry says of a stream that it took; some say nothing.
#[tokio::test]
async fn a_registry_that_does_not_say_what_it_has_took_what_was_sent() {
    let server = Server::start(|seen| match seen.method.as_str() {
        "PATCH" => Reply::status(202).header("Location", "1"),
        _ => Reply::status(202).header("Location", format!("{UPLOADS}1")),
    });
    let upstream = pushing(&server.url());
    let (repository, digest) = (repository(), digest_of(b"hello"));
    for length in [Some(5), None] {
        let session = upstream.begin_upload(&repository, &digest).await.unwrap();
        let (sender, stream) = upstream.piece_stream(length);
        let feed = async {
            sender.send(Bytes::from_static(b"hello")).await.unwrap();
            let _ = sender.end().await;
        };
        let appending = upstream.append(&repository, &digest, &session, length, stream);
        let (session, ()) = tokio::join!(appending, feed);
        assert_eq!(session.unwrap().received(), 5, "{length:?}");
    }
}

#[tokio::test]
async fn what_goes_on_behind_a_break_says_where() {
    let server = registry();
    let upstream = pushing(&server.url());
    let digest = digest_of(b"hello world");
    let session = upstream.begin_upload(&repository(), &digest).await.unwrap();
    let session = upstream.upload_status(&repository(), &digest, &session).await.unwrap();
    assert_eq!(session.received(), 5);
    upstream.upload(&repository(), &session, &digest, Bytes::from_static(b" world")).await.unwrap();
    assert_eq!(server.seen()[2].header("content-range"), Some("5-10"));
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_no_whole_body() {
    let server = registry();
    let upstream = pushing(&server.url());
    let digest = digest_of(b"hello");
    let session = upstream.begin_upload(&repository(), &digest).await.unwrap();
    let (sender, stream) = upstream.piece_stream(Some(5));
    sender.send(Bytes::from_static(b"he")).await.unwrap();
    drop(sender);
    let error = upstream.append(&repository(), &digest, &session, Some(5), stream).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert_eq!(server.seen().len(), 1, "the server has not seen a request to its end");
}

#[tokio::test]
async fn who_feeds_a_stream_learns_that_the_server_has_answered() {
    let server = Server::start(|seen| match seen.method.as_str() {
        "POST" => Reply::status(202).header("Location", "1"),
        _ => Reply::status(201),
    });
    let upstream = pushing(&server.url());
    let (repository, digest) = (repository(), digest_of(b"hello"));
    let session = upstream.begin_upload(&repository, &digest).await.unwrap();
    let (sender, stream) = upstream.piece_stream(Some(2));
    let feed = async {
        sender.send(Bytes::from_static(b"he")).await.unwrap();
        loop {
            if let Err(error) = sender.send(Bytes::from_static(b"x")).await {
                return error;
            }
        }
    };
    let append = upstream.append(&repository, &digest, &session, Some(2), stream);
    let (appended, error) = tokio::join!(append, feed);
    appended.unwrap();
    assert_eq!(error, NotTaken::Over);
}

#[tokio::test]
async fn a_mount_is_one_request_or_begins_an_upload() {
    let server = registry();
    let upstream = pushing(&server.url());
    let (digest, from) = (digest_of(b""), "other/app".parse().unwrap());
    assert!(matches!(upstream.mount(&repository(), &digest, &from).await.unwrap(), Mount::Mounted));
    assert_eq!(server.seen()[0].target, format!("{UPLOADS}?mount={digest}&from=other/app"));

    let unwilling = Server::start(|_| Reply::status(202).header("Location", "1"));
    let upstream = pushing(&unwilling.url());
    assert!(matches!(upstream.mount(&repository(), &digest, &from).await.unwrap(), Mount::Session(_)));
}

#[tokio::test]
async fn what_a_registry_says_to_a_manifest() {
    let digest = digest_of(b"{}");
    let server = Server::start(move |seen| match seen.path().rsplit('/').next().unwrap() {
        "1.0" => Reply::status(201).header("OCI-Subject", digest_of(b"x").to_string()),
        "missing" => Reply::status(400)
            .body(r#"{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown to registry"}]}"#),
        "busy" => Reply::status(503).header("Retry-After", "7"),
        _ => Reply::status(201).header("Docker-Content-Digest", digest_of(b"other").to_string()),
    });
    let upstream = pushing(&server.url());
    let (repository, bytes) = (repository(), Bytes::from_static(b"{}"));
    let put = async |reference: Reference| {
        upstream.put_manifest(&repository, &reference, "application/x", bytes.clone()).await
    };
    assert!(put(tag()).await.unwrap().knows_subject);
    let seen = &server.seen()[0];
    assert_eq!((seen.body.as_str(), seen.header("content-type")), ("{}", Some("application/x")));
    match put("missing".parse().unwrap()).await.unwrap_err() {
        UpstreamError::Refused { status: 400, detail: Some(detail), .. } => {
            assert!(detail.starts_with("MANIFEST_BLOB_UNKNOWN"), "{detail}");
        }
        error => panic!("{error}"),
    }
    let busy = put("busy".parse().unwrap()).await.unwrap_err();
    assert_eq!((busy.is_retryable(), busy.retry_after()), (true, Some(Duration::from_secs(7))));
    let changed = put(Reference::Digest(digest)).await.unwrap_err();
    assert!(matches!(changed, UpstreamError::Malformed { .. }), "{changed}");
}

#[tokio::test]
async fn removal_is_refused_or_done() {
    let server = Server::start(|seen| match seen.path().rsplit('/').next().unwrap() {
        "1.0" => Reply::status(405),
        _ => Reply::status(202),
    });
    let upstream = pushing(&server.url());
    let error = upstream.delete_manifest(&repository(), &tag()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Refused { status: 405, .. }), "{error}");
    upstream.delete_manifest(&repository(), &Reference::Digest(digest_of(b""))).await.unwrap();
}

/// A token that says what it was asked for.
fn tokens(seen: &Seen) -> String {
    seen.target.rsplit("scope=").next().unwrap().replace("%3A", "-").replace("%2F", ".").replace("%2C", ".")
}

#[tokio::test]
async fn one_token_does_for_all_of_a_repository() {
    let server = Server::start(|seen| {
        if seen.path() == "/token" {
            return Reply::ok(format!(r#"{{"token":"{}","expires_in":300}}"#, tokens(seen)));
        }
        let needed = match seen.method.as_str() {
            "DELETE" => "delete",
            "GET" | "HEAD" => "pull",
            _ => "pull,push",
        };
        let known = seen.authorization().unwrap_or_default();
        if needed.split(',').all(|action| known.contains(action)) {
            return Reply::status(202).header("Location", "1");
        }
        let host = seen.header("host").unwrap();
        Reply::challenge(format!(
            r#"Bearer realm="http://{host}/token",scope="repository:team/app:{needed}""#
        ))
    });
    let upstream = pushing(&server.url());
    let digest = digest_of(b"");
    upstream.blob_head(&repository(), &digest).await.unwrap_err(); // 202 is no answer to that
    upstream.begin_upload(&repository(), &digest).await.unwrap();
    upstream.delete_manifest(&repository(), &tag()).await.unwrap();
    upstream.begin_upload(&repository(), &digest).await.unwrap();
    let asked: Vec<_> = server.seen().iter().filter(|seen| seen.path() == "/token").map(tokens).collect();
    assert_eq!(asked, ["repository-team.app-pull.push", "repository-team.app-pull.push.delete"]);
}

#[tokio::test]
async fn another_server_that_an_upload_goes_on_at_gets_no_login() {
    let store = Server::start(|_| Reply::status(201));
    let to = store.url();
    let server = Server::start(move |seen| match seen.authorization() {
        Some(_) => Reply::status(202).header("Location", format!("{to}/elsewhere?sig=x")),
        None => Reply::challenge("Basic realm=x"),
    });
    let mut options = options(&server.url());
    let (username, password) = ("user".to_owned(), "hunter2".to_owned());
    options.credentials = crate::upstream::Credentials::Basic { username, password };
    let upstream = Upstream::new(options).unwrap();
    let digest = digest_of(b"x");
    let session = upstream.begin_upload(&repository(), &digest).await.unwrap();
    upstream.upload(&repository(), &session, &digest, Bytes::from_static(b"x")).await.unwrap();
    let seen = &store.seen()[0];
    assert_eq!((seen.path(), seen.authorization()), ("/elsewhere", None));
}
