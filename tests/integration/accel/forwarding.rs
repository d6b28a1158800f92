//! Requests as the application gets them: who asks, what concerns one connection only, and that both sides agree where a
//! request ends, whatever the client says about that (RFC 9112 section 11.2).

use std::sync::{Arc, Mutex};

use super::backend::Backend;
use super::front::Front;
use super::wire::{Wire, application, field};
use crate::support::client::{End, Request, get};
use crate::support::listener::Listener;

/// What an application was sent: the lines of each head, and its body.
type Requests = Arc<Mutex<Vec<(Vec<String>, Vec<u8>)>>>;

/// An application that keeps what it is sent, reads bodies as their heads say, and answers `ok`.
fn keeping() -> (Listener, Requests) {
    let requests = Requests::default();
    let kept = requests.clone();
    let backend = application(move |mut wire| {
        while let Some(head) = wire.head() {
            let chunked = field(&head, "transfer-encoding").is_some();
            let body = if chunked {
                wire.chunked().map(|(body, _)| body)
            } else {
                let len = field(&head, "content-length").map_or(Ok(0), str::parse);
                len.ok().and_then(|len| wire.bytes(len).ok())
            };
            // A body that breaks off is not a whole request.
            let Some(body) = body else { return };
            kept.lock().expect("not poisoned").push((head, body));
            if wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
                return;
            }
        }
    });
    (backend, requests)
}

fn take(requests: &Requests) -> Vec<(Vec<String>, Vec<u8>)> {
    std::mem::take(&mut *requests.lock().expect("not poisoned"))
}

/// All values of a field, in the order in which they came.
fn values<'a>(head: &'a [String], name: &str) -> Vec<&'a str> {
    let pairs = head.iter().filter_map(|line| line.split_once(':'));
    pairs.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
}

#[test]
fn no_request_hides_in_another() {
    const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n";
    let (backend, requests) = keeping();
    let front = Front::before(&format!("http://{}", backend.addr()), "");
    let len = HIDDEN.len();
    for fields in [
        format!("Content-Length: {len}\r\nTransfer-Encoding: chunked"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {len}"),
        format!("Content-Length: 0\r\nContent-Length: {len}"),
        format!("Content-Length: 0, {len}"),
        format!("Content-Length: {len}\r\nTransfer-Encoding : chunked"),
        format!("Content-Length: {len}\r\nTransfer-Encoding:\u{b}chunked"),
        format!("Content-Length: {len}\r\nX: y\r\n Transfer-Encoding: chunked"),
        format!("Content-Length: {len}\r\nConnection: content-length"),
        format!("Content-Length: {len}\r\nConnection: Content-Length, close"),
        format!("Content_Length: 0\r\nContent-Length: {len}"),
        "Content-Length: +5".into(),
        "Content-Length: 0x5".into(),
        "Content-Length: -5".into(),
        "Content-Length: ".into(),
        "Content-Length: 18446744073709551616".into(),
        "Transfer-Encoding: chunked\r\nConnection: transfer-encoding".into(),
        "Transfer-Encoding: chunked, identity".into(),
        "Transfer-Encoding: identity".into(),
        "Transfer-Encoding: identity, chunked".into(),
        "Transfer-Encoding: xchunked".into(),
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity".into(),
        "Transfer-Encoding: gzip, chunked".into(),
        "Transfer-Encoding: \"chunked\"".into(),
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk".into(),
    ] {
        for method in ["GET", "POST"] {
            for body in
                [HIDDEN.to_owned(), format!("0\r\n\r\n{HIDDEN}"), format!("5\r\nhello\r\n0\r\n\r\n{HIDDEN}")]
            {
                let mut wire = Wire::connect(front.addr());
                let asked = format!("{method} /outer HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n{body}");
                wire.send(&asked).expect("sent");
                wire.finish();
                // All that comes; a reset is an answer as well.
                let mut answers = 0;
                while let Some(head) = wire.head() {
                    answers += usize::from(head.first().is_some_and(|line| line.starts_with("HTTP/1.1 ")));
                    let len = field(&head, "content-length").and_then(|len| len.parse().ok()).unwrap_or(0);
                    if wire.bytes(len).is_err() {
                        break;
                    }
                }
                let seen = take(&requests);
                // What the application saw as a request is one that the client was answered.
                assert!(seen.len() <= answers.max(1), "{asked:?}: {answers} answers to {seen:?}");
                for (head, _) in &seen {
                    let sizes =
                        values(head, "content-length").len() + values(head, "transfer-encoding").len();
                    assert!(sizes <= 1, "{asked:?}: two lengths: {head:?}");
                    assert!(
                        values(head, "transfer-encoding").iter().all(|coding| *coding == "chunked"),
                        "{head:?}"
                    );
                }
            }
        }
    }
    get(front.addr(), "/").expect(200).expect_body(b"ok");
}

#[test]
fn what_connection_names_is_not_passed_on_but_what_is_needed_is() {
    let (backend, requests) = keeping();
    let front = Front::before(&format!("http://{}", backend.addr()), "");
    let named =
        "close, X-Mine, Host, Content-Length, X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, Cookie";
    let request = Request::new("POST", "/")
        .header("Connection", named)
        .header("Keep-Alive", "timeout=5")
        .header("Proxy-Connection", "keep-alive")
        .header("TE", "gzip")
        .header("X-Mine", "of this connection")
        .header("X-Other", "of the request")
        .body("some text");
    request.send(front.addr()).expect(200);
    let seen = take(&requests);
    let (head, body) = &seen[0];
    assert_eq!(body, b"some text", "{head:?}");
    for name in ["x-mine", "keep-alive", "proxy-connection", "te", "upgrade", "expect"] {
        assert!(values(head, name).is_empty(), "{name}: {head:?}");
    }
    assert_eq!(values(head, "x-other"), ["of the request"]);
    assert_eq!(values(head, "host").len(), 1, "{head:?}");
    assert_eq!(values(head, "content-length"), ["9"]);
    // What the front says of the client is there, whatever the client wants to be dropped.
    assert_eq!(values(head, "x-forwarded-for"), ["127.0.0.1"], "{head:?}");
    assert_eq!(values(head, "x-forwarded-proto"), ["http"]);
}

#[test]
fn what_a_client_says_passes_as_it_is() {
    let (backend, requests) = keeping();
    let front = Front::before(&format!("http://{}", backend.addr()), "");
    for target in [
        "/",
        "/a//b/../c/./d",
        "/%2e%2e/%2F%00%ff",
        "/?",
        "/a?b=c&d=%20+e?f",
        "/a;b=c",
        "//x/y",
        "/:80@z",
        "/?q={a|b}`^",
    ] {
        get(front.addr(), target).expect(200);
        let seen = take(&requests);
        assert_eq!(seen[0].0[0], format!("GET {target} HTTP/1.1"));
    }
    let request = Request::get("/")
        .host("files.example:8080")
        .header("Cookie", "a=1")
        .header("Cookie", "b=2")
        .header("Accept-Encoding", "br, gzip")
        .header("Authorization", "Basic Zm9vOmJhcg==")
        .header("Range", "bytes=0-4")
        .header("If-None-Match", "\"x\"")
        .header("X-Latin", "gr\u{fc}n")
        .header("X-Empty", "");
    request.send(front.addr()).expect(200);
    let seen = take(&requests);
    let head = &seen[0].0;
    for (name, wanted) in [
        ("host", &["files.example:8080"][..]),
        ("cookie", &["a=1", "b=2"]),
        ("accept-encoding", &["br, gzip"]),
        ("authorization", &["Basic Zm9vOmJhcg=="]),
        ("range", &["bytes=0-4"]),
        ("if-none-match", &["\"x\""]),
        ("x-latin", &["gr\u{fc}n"]),
        ("x-empty", &[""]),
    ] {
        assert_eq!(values(head, name), wanted, "{name}: {head:?}");
    }
}

#[test]
fn proxies_before_the_front_are_named_in_their_order() {
    let (backend, requests) = keeping();
    let front = Front::before(&format!("http://{}", backend.addr()), "");
    get(front.addr(), "/").expect(200);
    Request::get("/")
        .header("X-Forwarded-For", "192.0.2.1, 198.51.100.2")
        .header("X-Forwarded-Proto", "https")
        .header("Forwarded", "for=192.0.2.1;proto=https")
        .send(front.addr())
        .expect(200);
    let seen = take(&requests);
    let direct = &seen[0].0;
    assert_eq!(values(direct, "x-forwarded-for"), ["127.0.0.1"]);
    let all = values(&seen[1].0, "x-forwarded-for").join(", ");
    assert_eq!(all, "192.0.2.1, 198.51.100.2, 127.0.0.1", "who asked comes last");
    let forwarded = values(&seen[1].0, "forwarded").join(", ");
    assert!(
        forwarded.starts_with("for=192.0.2.1;proto=https") && forwarded.contains("for=127.0.0.1"),
        "{forwarded}"
    );
}

#[test]
fn methods_and_targets_that_are_no_requests_for_something() {
    let backend = Backend::start();
    let front = Front::before(&backend.url(), "");
    for (line, status) in [
        ("TRACE / HTTP/1.1\r\nHost: x", "405"),
        ("CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443", "405"),
        ("OPTIONS * HTTP/1.1\r\nHost: x", "200"),
        ("OPTIONS /app HTTP/1.1\r\nHost: x", "200"),
        ("GET /app HTTP/1.1", "400"),
        ("GET /app HTTP/1.1\r\nHost: x\r\nHost: y", "400"),
        ("GET app HTTP/1.1\r\nHost: x", "400"),
        ("GET  /app HTTP/1.1\r\nHost: x", "400"),
        ("G(T /app HTTP/1.1\r\nHost: x", "400"),
        ("GET /app HTTP/3.0\r\nHost: x", "505"),
    ] {
        backend.take_seen();
        let mut wire = Wire::connect(front.addr());
        wire.send(format!("{line}\r\nConnection: close\r\n\r\n")).expect("sent");
        let head = wire.head().unwrap_or_else(|| panic!("{line:?}: no answer"));
        assert_eq!(head[0].split(' ').nth(1), Some(status), "{line:?}: {head:?}");
        assert_eq!(backend.take_seen().len(), usize::from(status == "200"), "{line:?}");
    }
}

#[test]
fn a_head_that_is_too_large_is_431() {
    let backend = Backend::start();
    let front = Front::before(&backend.url(), "");
    let large = Request::get("/app").header("X-Large", &"x".repeat(16 * 1024)).send(front.addr());
    assert_eq!((large.expect(200).end, backend.take_seen().len()), (End::Complete, 1));
    for request in [
        Request::get("/app").header("X-Huge", &"x".repeat(100_000)),
        (0..300).fold(Request::get("/app"), |request, _| request.header("X-Many", "x")),
        Request::get(format!("/app?{}", "x".repeat(100_000))),
    ] {
        let status = request.send(front.addr()).status();
        assert!([414, 431].contains(&status), "{status}");
        assert!(backend.take_seen().is_empty());
    }
}
