//! Which endpoint is asked, and whose answer counts.

use std::sync::{Arc, Mutex};

use super::server::closed_port;
use super::*;
use crate::upstream::{BlobRequest, EndpointChoice, Operation, UpstreamConfigError, UpstreamError};

fn always(status: u16) -> Server {
    Server::start(move |_| Reply::status(status))
}

#[tokio::test]
async fn mirrors_come_first_in_their_order() {
    let (first, second, own) = (always(404), Server::start(|_| Reply::ok("{}")), always(500));
    let mut options = options(&own.url());
    options.mirrors = vec![first.url(), second.url()];
    Upstream::new(options).unwrap().manifest(&repository(), &tag()).await.unwrap();
    assert_eq!((first.seen().len(), second.seen().len(), own.seen().len()), (1, 1, 0));
}

#[tokio::test]
async fn the_upstreams_own_url_has_the_last_word() {
    for status in [401, 403, 404, 418, 429, 500] {
        let (mirror, own) = (always(status), always(404));
        let error = with_mirror(&mirror.url(), &own.url()).manifest(&repository(), &tag()).await.unwrap_err();
        assert!(error.is_absence(), "{status}: {error}");
        assert_eq!((mirror.seen().len(), own.seen().len()), (1, 1));
    }
    let (mirror, own) = (always(404), always(500));
    let error = with_mirror(&mirror.url(), &own.url()).manifest(&repository(), &tag()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::ServerError { status: 500, .. }), "no proof of absence: {error}");
}

#[tokio::test]
async fn rate_limits() {
    let own = Server::start(|_| {
        Reply::status(429).header("Retry-After", "7").body(r#"{"errors":[{"code":"TOOMANYREQUESTS"}]}"#)
    });
    let error = upstream(&own.url()).manifest(&repository(), &tag()).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("TOOMANYREQUESTS"), "{error}");
    let UpstreamError::RateLimited { retry_after, .. } = error else { panic!("{error}") };
    assert_eq!(retry_after, Some(Duration::from_secs(7)));
}

#[tokio::test]
async fn a_mirror_that_is_down_is_passed_over_for_a_while() {
    let addr = closed_port();
    let own = Server::start(|_| Reply::ok("{}"));
    let upstream = with_mirror(&format!("http://{addr}"), &own.url());
    upstream.manifest(&repository(), &tag()).await.unwrap();
    let mirror = Server::start_at(&addr.to_string(), |_| Reply::ok("{}"));
    upstream.manifest(&repository(), &tag()).await.unwrap();
    assert_eq!((mirror.seen().len(), own.seen().len()), (0, 2));
}

#[tokio::test]
async fn a_mirror_that_does_not_react_is_passed_over_for_a_while() {
    let (mirror, own) = (Server::start(|_| Reply::stall_head()), Server::start(|_| Reply::ok("{}")));
    let mut options = options(&own.url());
    options.mirrors = vec![mirror.url()];
    options.header_timeout = Duration::from_millis(300);
    let upstream = Upstream::new(options).unwrap();
    upstream.manifest(&repository(), &tag()).await.unwrap();
    upstream.manifest(&repository(), &tag()).await.unwrap();
    assert_eq!((mirror.seen().len(), own.seen().len()), (1, 2));
}

#[tokio::test]
async fn when_all_are_down_all_are_asked() {
    let addr = closed_port();
    let upstream = upstream(&format!("http://{addr}"));
    let error = upstream.manifest(&repository(), &tag()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Connect { .. }) && error.is_retryable(), "{error}");
    assert!(error.to_string().to_lowercase().contains("connection refused"), "{error}");
    let _server = Server::start_at(&addr.to_string(), |_| Reply::ok("{}"));
    upstream.manifest(&repository(), &tag()).await.unwrap();
}

#[tokio::test]
async fn a_broken_redirect_target_does_not_mark_its_registry_down() {
    let target = format!("http://{}/", closed_port());
    let mirror = Server::start(move |_| Reply::redirect(&target));
    let own = Server::start(|_| Reply::ok("{}"));
    let upstream = with_mirror(&mirror.url(), &own.url());
    upstream.manifest(&repository(), &tag()).await.unwrap();
    upstream.manifest(&repository(), &tag()).await.unwrap();
    assert_eq!((mirror.seen().len(), own.seen().len()), (2, 2));
}

#[tokio::test]
async fn a_download_goes_on_at_the_next_endpoint() {
    let servers: Vec<_> = (0..3).map(|_| Server::start(|_| Reply::ok("hello"))).collect();
    let mut options = options(&servers[2].url());
    options.mirrors = vec![servers[0].url(), servers[1].url()];
    let upstream = Upstream::new(options).unwrap();
    for (after, expected) in [(0, 1), (1, 2), (2, 0), (usize::MAX, 0)] {
        let request = BlobRequest { endpoint: EndpointChoice::After(after), ..BlobRequest::default() };
        let response = upstream.blob(&repository(), &digest_of(b"hello"), request).await.unwrap();
        assert_eq!(response.endpoint, expected);
    }
    assert_eq!(upstream.endpoint_count(), 3);
}

#[tokio::test]
async fn every_attempt_is_observed() {
    let mirror = always(503);
    let own = Server::start(|_| Reply::ok("{}").header("RateLimit-Remaining", "76;w=21600"));
    let observed = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&observed);
    let mut options = options(&own.url());
    options.mirrors = vec![mirror.url()];
    options.observer = Some(Arc::new(move |seen| {
        assert_eq!((seen.upstream, seen.operation), ("test", Operation::Manifest));
        log.lock().unwrap().push((seen.endpoint.to_owned(), seen.outcome, seen.rate_limit_remaining));
    }));
    Upstream::new(options).unwrap().manifest(&repository(), &tag()).await.unwrap();
    let expected = [(mirror.addr.to_string(), "server_error", None), (own.addr.to_string(), "ok", Some(76))];
    assert_eq!(*observed.lock().unwrap(), expected);
}

#[tokio::test]
async fn prefixes_of_urls() {
    for (prefix, expected) in [
        ("/", "/v2/team/app/manifests/1.0"),
        ("/mirror/", "/mirror/v2/team/app/manifests/1.0"),
        ("/v2/project", "/v2/project/team/app/manifests/1.0"),
        ("/v2", "/v2/team/app/manifests/1.0"),
    ] {
        let server = Server::start(|_| Reply::ok("{}"));
        upstream(&(server.url() + prefix)).manifest(&repository(), &tag()).await.unwrap();
        assert_eq!(server.paths(), [expected]);
    }
}

#[test]
fn docker_hub_has_a_library() {
    let canonical = |upstream: &Upstream, name: &str| upstream.canonical(&name.parse().unwrap()).to_string();
    let hub = upstream("https://docker.io");
    assert_eq!(hub.host(), "registry-1.docker.io");
    assert_eq!(canonical(&hub, "alpine"), "library/alpine");
    assert_eq!(canonical(&hub, "grafana/loki"), "grafana/loki");
    let long = "a".repeat(255);
    assert_eq!(canonical(&hub, &long), long);
    assert_eq!(canonical(&upstream("https://quay.io"), "alpine"), "alpine");
    let mut options = options("https://hub.corp.example");
    options.docker_hub = true;
    assert_eq!(canonical(&Upstream::new(options).unwrap(), "alpine"), "library/alpine");
}

#[test]
fn options_that_cannot_be_meant() {
    for url in [
        "",
        "registry.example",
        "ftp://x",
        "https://u:hunter2@x",
        "https://x/?y",
        "http://",
        "https://x:99999",
    ] {
        let error = Upstream::new(options(url)).unwrap_err();
        let UpstreamConfigError::Url { key: "url", .. } = error else { panic!("{url}: {error}") };
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
    for name in ["", "a/b", "..", "A"] {
        let error = Upstream::new(UpstreamOptions::new(name, "https://x")).unwrap_err();
        assert!(matches!(error, UpstreamConfigError::Name { .. }), "{error}");
    }
    let mut missing = options("https://x");
    missing.ca_file = Some("/nonexistent/ca.pem".into());
    let error = Upstream::new(missing).unwrap_err().to_string();
    assert!(error.contains("ca_file /nonexistent/ca.pem"), "{error}");
}
