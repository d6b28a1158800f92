//! Who gets which `Authorization`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;

use super::*;
use crate::upstream::{BlobRequest, Credentials, UpstreamError};

const MANIFEST: &str = "/v2/team/app/manifests/1.0";

/// Registry and token server in one: tokens are `t1`, `t2`, …; `accepts` says which are good.
fn token_registry(expires_in: u32, accepts: impl Fn(&str) -> bool + Send + Sync + 'static) -> Server {
    let issued = AtomicUsize::new(0);
    Server::start(move |seen| {
        if seen.path() == "/token" {
            let token = issued.fetch_add(1, Ordering::SeqCst) + 1;
            return Reply::ok(format!(r#"{{"token":"t{token}","expires_in":{expires_in}}}"#));
        }
        match seen.authorization().and_then(|value| value.strip_prefix("Bearer ")) {
            Some(token) if accepts(token) => Reply::ok("{}"),
            _ => challenge(&format!("http://{}/token?kept=1", seen.header("host").unwrap())),
        }
    })
}

fn challenge(realm: &str) -> Reply {
    Reply::challenge(format!(
        r#"Bearer realm="{realm}",service="the service",scope="repository:team/app:pull registry:x:*""#
    ))
    // Longer than one read, so that it has to be drained for the connection to be used again.
    .body(vec![b' '; 60_000])
}

fn basic(url: &str) -> UpstreamOptions {
    let mut options = options(url);
    options.credentials = Credentials::Basic { username: "user".into(), password: "hunter2".into() };
    options
}

const BASIC: &str = "Basic dXNlcjpodW50ZXIy";

fn authorizations(server: &Server) -> Vec<Option<String>> {
    server.seen().iter().map(|seen| seen.authorization().map(ToOwned::to_owned)).collect()
}

#[tokio::test]
async fn an_anonymous_token_is_fetched_once_and_kept() {
    let server = token_registry(300, |_| true);
    let upstream = upstream(&server.url());
    for _ in 0..2 {
        upstream.manifest(&repository(), &tag()).await.unwrap();
    }
    upstream.blob_head(&repository(), &digest_of(b"")).await.unwrap();
    let blob = format!("/v2/team/app/blobs/{}", digest_of(b""));
    assert_eq!(server.paths(), [MANIFEST, "/token", MANIFEST, MANIFEST, &blob]);
    let t1 = || Some("Bearer t1".to_owned());
    assert_eq!(authorizations(&server), [None, None, t1(), t1(), t1()]);
    let token = &server.seen()[1].target;
    assert_eq!(
        token,
        "/token?kept=1&service=the+service&scope=repository%3Ateam%2Fapp%3Apull&scope=registry%3Ax%3A*"
    );
    assert!(server.seen().iter().all(|seen| seen.connection == 0), "a 401 and a token cost no connection");
    assert!(server.seen().iter().all(|seen| seen.header("user-agent").unwrap().starts_with("spliceway/")));
}

#[tokio::test]
async fn tokens_are_per_repository() {
    let server = token_registry(300, |_| true);
    let upstream = upstream(&server.url());
    upstream.manifest(&repository(), &tag()).await.unwrap();
    upstream.manifest(&"other/app".parse().unwrap(), &tag()).await.unwrap();
    let sent: Vec<_> = authorizations(&server).into_iter().flatten().collect();
    assert_eq!(sent, ["Bearer t1", "Bearer t2"]);
}

#[tokio::test]
async fn a_refused_token_is_renewed_once() {
    let is_revoked = Arc::new(AtomicUsize::new(0));
    let revoked = Arc::clone(&is_revoked);
    let server = token_registry(300, move |token| {
        let revoked = revoked.load(Ordering::SeqCst);
        token.strip_prefix('t').unwrap().parse::<usize>().unwrap() > revoked
    });
    let upstream = upstream(&server.url());
    upstream.manifest(&repository(), &tag()).await.unwrap();
    is_revoked.store(1, Ordering::SeqCst);
    upstream.manifest(&repository(), &tag()).await.unwrap();
    assert_eq!(server.paths(), [MANIFEST, "/token", MANIFEST, MANIFEST, "/token", MANIFEST]);

    is_revoked.store(usize::MAX, Ordering::SeqCst);
    let error = upstream.manifest(&repository(), &tag()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Unauthorized { .. }), "{error}");
    assert_eq!(server.paths()[6..], [MANIFEST, "/token", MANIFEST], "with t2, then with t3, then no more");
}

#[tokio::test]
async fn an_expired_token_is_renewed_before_it_is_refused() {
    let server = token_registry(0, |_| true);
    let upstream = upstream(&server.url());
    upstream.manifest(&repository(), &tag()).await.unwrap();
    upstream.manifest(&repository(), &tag()).await.unwrap();
    assert_eq!(server.paths(), [MANIFEST, "/token", MANIFEST, "/token", MANIFEST]);
}

#[tokio::test]
async fn concurrent_requests_share_one_token() {
    let server = token_registry(300, |_| true);
    let upstream = upstream(&server.url());
    let (repository, tag) = (repository(), tag());
    for result in join_all((0..16).map(|_| upstream.manifest(&repository, &tag))).await {
        result.unwrap();
    }
    assert_eq!(server.paths().iter().filter(|path| *path == "/token").count(), 1);
}

#[tokio::test]
async fn concurrent_requests_share_a_failing_token_server() {
    const REQUESTS: usize = 16;
    let refused = Arc::new(AtomicUsize::new(0));
    let server = Server::start(move |seen| {
        if seen.path() == "/token" {
            // Fails when all have been told to come here, and after time for them to do so.
            while refused.load(Ordering::SeqCst) < REQUESTS {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(300));
            return Reply::status(503);
        }
        refused.fetch_add(1, Ordering::SeqCst);
        challenge(&format!("http://{}/token", seen.header("host").unwrap()))
    });
    let upstream = upstream(&server.url());
    let (repository, tag) = (repository(), tag());
    for result in join_all((0..REQUESTS).map(|_| upstream.manifest(&repository, &tag))).await {
        let error = result.unwrap_err();
        assert!(matches!(error, UpstreamError::ServerError { status: 503, .. }), "{error}");
        assert!(error.to_string().contains("token repository:team/app:pull"), "{error}");
    }
    let asked = server.paths().iter().filter(|path| *path == "/token").count();
    assert!(asked < REQUESTS / 2, "{asked} requests to the token server");
}

#[tokio::test]
async fn who_waits_for_a_token_goes_on_when_its_fetcher_is_dropped() {
    let asked = AtomicUsize::new(0);
    let server = Server::start(move |seen| match (seen.path(), seen.authorization()) {
        ("/token", _) if asked.fetch_add(1, Ordering::SeqCst) == 0 => Reply::stall_head(),
        ("/token", _) => Reply::ok(r#"{"token":"t"}"#),
        (_, Some("Bearer t")) => Reply::ok("{}"),
        _ => challenge(&format!("http://{}/token", seen.header("host").unwrap())),
    });
    let upstream = upstream(&server.url());
    let (repository, tag) = (repository(), tag());
    let mut first = Box::pin(upstream.manifest(&repository, &tag));
    let mut second = Box::pin(upstream.manifest(&repository, &tag));
    while !server.paths().contains(&"/token".to_owned()) {
        assert!(tokio::time::timeout(Duration::from_millis(5), &mut first).await.is_err());
    }
    // It waits for the first one's token, without a request of its own.
    assert!(tokio::time::timeout(Duration::from_millis(5), &mut second).await.is_err());
    drop(first);
    second.await.unwrap();
    assert_eq!(server.paths(), [MANIFEST, "/token", MANIFEST, "/token", MANIFEST]);
}

#[tokio::test]
async fn a_token_server_of_the_same_host_gets_the_credentials() {
    let server = token_registry(300, |_| true);
    let upstream = Upstream::new(basic(&server.url())).unwrap();
    upstream.manifest(&repository(), &tag()).await.unwrap();
    assert_eq!(authorizations(&server), [None, Some(BASIC.into()), Some("Bearer t1".into())]);
    assert!(server.seen()[1].target.contains("account=user"));
}

#[tokio::test]
async fn a_foreign_token_server_is_asked_anonymously_unless_it_is_named() {
    for (auth_hosts, expected) in [(vec![], None), (vec!["127.0.0.2".to_owned()], Some(BASIC.to_owned()))] {
        let tokens = Server::start_at("127.0.0.2:0", |_| Reply::ok(r#"{"access_token":"t"}"#));
        let realm = tokens.url();
        let server = Server::start(move |seen| match seen.authorization() {
            Some("Bearer t") => Reply::ok("{}"),
            _ => challenge(&realm),
        });
        let mut options = basic(&server.url());
        options.auth_hosts = auth_hosts;
        let upstream = Upstream::new(options).unwrap();
        upstream.manifest(&repository(), &tag()).await.unwrap();
        assert_eq!(authorizations(&tokens), [expected]);
    }
}

#[tokio::test]
async fn credentials_do_not_follow_a_token_servers_redirect() {
    let elsewhere = Server::start(|_| Reply::ok(r#"{"token":"t"}"#));
    let location = elsewhere.url();
    let server = Server::start(move |seen| match (seen.path(), seen.authorization()) {
        ("/token", _) => Reply::redirect(&location),
        (_, Some("Bearer t")) => Reply::ok("{}"),
        _ => challenge(&format!("http://{}/token", seen.header("host").unwrap())),
    });
    let upstream = Upstream::new(basic(&server.url())).unwrap();
    upstream.manifest(&repository(), &tag()).await.unwrap();
    assert_eq!(server.seen()[1].authorization(), Some(BASIC));
    assert_eq!(authorizations(&elsewhere), [None]);
}

#[tokio::test]
async fn basic_is_sent_when_asked_for_and_then_unasked() {
    let server = Server::start(|seen| match seen.authorization() {
        Some(BASIC) => Reply::ok("{}"),
        _ => Reply::challenge("Basic realm=\"x\""),
    });
    let upstream = Upstream::new(basic(&server.url())).unwrap();
    upstream.manifest(&repository(), &tag()).await.unwrap();
    upstream.manifest(&repository(), &tag()).await.unwrap();
    assert_eq!(authorizations(&server), [None, Some(BASIC.into()), Some(BASIC.into())]);

    let mut wrong = options(&server.url());
    wrong.credentials = Credentials::Basic { username: "user".into(), password: "wrong-secret".into() };
    let upstream = Upstream::new(wrong).unwrap();
    for _ in 0..2 {
        let error = upstream.manifest(&repository(), &tag()).await.unwrap_err();
        assert!(matches!(error, UpstreamError::Unauthorized { .. }), "{error}");
        assert!(!error.to_string().contains("wrong-secret"));
    }
    assert_eq!(server.seen().len(), 3 + 2 + 1, "a refused password is not sent again for the same request");
}

#[tokio::test]
async fn a_mirror_gets_neither_credentials_nor_the_other_endpoints_token() {
    let mirror = Server::start(|_| Reply::challenge("Basic realm=\"x\""));
    let server = token_registry(300, |_| true);
    let mut options = basic(&server.url());
    options.mirrors = vec![mirror.url()];
    let upstream = Upstream::new(options).unwrap();
    upstream.manifest(&repository(), &tag()).await.unwrap();
    upstream.manifest(&repository(), &tag()).await.unwrap();
    assert_eq!(authorizations(&mirror), [None, None]);
    assert!(authorizations(&server).contains(&Some("Bearer t1".into())));
}

#[tokio::test]
async fn docker_config_has_an_entry_per_endpoint() {
    let answer = |seen: &Seen| match seen.authorization() {
        None => Reply::challenge("Basic"),
        Some(_) => Reply::status(404),
    };
    let (mirror, server) = (Server::start(answer), Server::start(answer));
    let file = tempfile::NamedTempFile::new().unwrap();
    let entries = format!(
        r#"{{"auths":{{"{}":{{"username":"user","password":"hunter2"}},"http://{}/v1/":{{"auth":"bTpw"}}}}}}"#,
        server.addr, mirror.addr
    );
    std::fs::write(file.path(), entries).unwrap();
    let mut options = options(&server.url());
    options.mirrors = vec![mirror.url()];
    options.credentials = Credentials::DockerConfig(file.path().to_owned());
    let upstream = Upstream::new(options).unwrap();
    assert!(upstream.manifest(&repository(), &tag()).await.unwrap_err().is_absence());
    assert_eq!(authorizations(&mirror), [None, Some("Basic bTpw".into())]);
    assert_eq!(authorizations(&server), [None, Some(BASIC.into())]);
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let server = Server::start(|seen| match (seen.method.as_str(), seen.authorization()) {
        ("POST", _) => Reply::ok(r#"{"access_token":"t"}"#),
        (_, Some("Bearer t")) => Reply::ok("{}"),
        _ => challenge(&format!("http://{}/token", seen.header("host").unwrap())),
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    let entry = format!(r#"{{"auths":{{"{}":{{"identitytoken":"re&fresh"}}}}}}"#, server.addr);
    std::fs::write(file.path(), entry).unwrap();
    let mut options = options(&server.url());
    options.credentials = Credentials::DockerConfig(file.path().to_owned());
    Upstream::new(options).unwrap().manifest(&repository(), &tag()).await.unwrap();
    let post = &server.seen()[1];
    assert_eq!(post.target, "/token", "no secret in the URL");
    assert_eq!(post.header("content-type"), Some("application/x-www-form-urlencoded"));
    for pair in ["grant_type=refresh_token", "refresh_token=re%26fresh", "service=the+service"] {
        assert!(post.body.split('&').any(|given| given == pair), "{pair}: {}", post.body);
    }
}

#[tokio::test]
async fn what_token_servers_refuse_is_no_absence() {
    for (status, body) in [(404, ""), (403, ""), (401, ""), (200, "{}"), (200, "nonsense")] {
        let server = Server::start(move |seen| match seen.path() {
            "/token" => Reply::status(status).body(body),
            _ => challenge(&format!("http://{}/token", seen.header("host").unwrap())),
        });
        let error = upstream(&server.url()).manifest(&repository(), &tag()).await.unwrap_err();
        assert!(!error.is_absence() && !error.is_retryable(), "{status}: {error}");
    }
}

#[tokio::test]
async fn authorization_stays_at_its_origin() {
    // registry → cdn (another port) → back to the registry: once away, the header is gone for good.
    let back = Arc::new(std::sync::Mutex::new(String::new()));
    let location = Arc::clone(&back);
    let cdn = Server::start(move |_| Reply::redirect(location.lock().unwrap().clone()));
    let target = cdn.url() + "/layer?signature=secret";
    let server = Server::start(move |seen| match (seen.path(), seen.authorization()) {
        ("/back", _) => Reply::status(206).header("Content-Range", "bytes 2-4/5").body("llo"),
        ("/same-origin", Some(BASIC)) => Reply::redirect(&target),
        (_, Some(BASIC)) => Reply::redirect("/same-origin"),
        _ => Reply::challenge("Basic"),
    });
    *back.lock().unwrap() = server.url() + "/back";
    let upstream = Upstream::new(basic(&server.url())).unwrap();
    let request =
        BlobRequest { range: Some((2, None)), if_range: Some("\"tag\"".into()), ..BlobRequest::default() };
    let mut response = upstream.blob(&repository(), &digest_of(b"hello"), request).await.unwrap();
    assert_eq!(response.body.chunk().await.unwrap().unwrap(), "llo");
    assert_eq!(authorizations(&cdn), [None]);
    assert_eq!(authorizations(&server), [None, Some(BASIC.into()), Some(BASIC.into()), None]);
    for seen in server.seen().iter().chain(&cdn.seen()) {
        assert_eq!((seen.header("range"), seen.header("if-range")), (Some("bytes=2-"), Some("\"tag\"")));
    }
}
