//! What no client should send: one clear refusal, never two answers, and the next request unharmed.

use std::process::Command;
use std::time::Duration;

use crate::support::client::{Connection, End, Request, get};
use crate::support::origin::Origin;
use crate::support::process::{Spliceway, binary};
use crate::support::tools;

/// Sends `bytes` and reads until the server closes: everything it said.
fn say(spliceway: &Spliceway, bytes: &[u8]) -> (String, End) {
    let mut connection = Connection::open(spliceway.addr());
    // The server may close before it has read everything.
    let _ = connection.write(bytes);
    let (answer, end) = connection.drain();
    (String::from_utf8_lossy(&answer).into_owned(), end)
}

fn answers(text: &str) -> usize {
    // A message may quote the request, so a status belongs to it.
    (0..10).map(|digit| text.matches(&format!("HTTP/1.1 {digit}")).count()).sum()
}

#[test]
fn ambiguous_heads_are_answered_400_and_closed() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let smuggled = "GET /v2/ HTTP/1.1\r\nHost: smuggled\r\n\r\n";
    let cases = [
        (
            "length and coding",
            "POST /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        ("two lengths", "GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n"),
        (
            "equal lengths twice",
            "GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
        ),
        ("a list of lengths", "GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 0\r\n\r\n"),
        ("a signed length", "GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: +0\r\n\r\n"),
        (
            "a coding besides chunked",
            "GET /v2/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        ),
        ("an unknown coding", "GET /v2/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n"),
        (
            "chunked twice",
            "GET /v2/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        ("bare LF", "GET /v2/ HTTP/1.1\nHost: a\n\n"),
        ("a bare LF among CRLF", "GET /v2/ HTTP/1.1\r\nHost: a\nX: y\r\n\r\n"),
        ("a bare CR in a value", "GET /v2/ HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n"),
        ("a space before the colon", "GET /v2/ HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n"),
        ("a folded line", "GET /v2/ HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n"),
        ("no Host", "GET /v2/ HTTP/1.1\r\n\r\n"),
        ("two Hosts", "GET /v2/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        ("an invalid Host", "GET /v2/ HTTP/1.1\r\nHost: a b/c\r\n\r\n"),
        ("a NUL", "GET /v2/ HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n"),
        ("no version", "GET /v2/\r\n\r\n"),
        ("another protocol", "SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    ];
    for (name, head) in cases {
        let (text, end) = say(&spliceway, format!("{head}{smuggled}").as_bytes());
        assert!(text.starts_with("HTTP/1.1 400 "), "{name}: {text:?} then {end:?}");
        assert_eq!(answers(&text), 1, "{name}: {text:?}");
        assert!(matches!(end, End::Complete | End::Reset), "{name}: {end:?}");
    }
    get(spliceway.addr(), "/v2/").expect(200);
    assert!(!spliceway.log().contains("panicked"));
}

#[test]
fn connect_is_refused() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let target = origin.addr();
    let (text, _) = say(
        &spliceway,
        format!(
            "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\n\r\n"
        )
        .as_bytes(),
    );
    assert!(text.starts_with("HTTP/1.1 405 "), "{text:?}");
    assert!(origin.all_seen().is_empty());
}

#[test]
fn body_where_none_belongs_does_not_become_a_request() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let blob = origin.random_blob(1, 1000);
    get(spliceway.addr(), &blob.path).expect(200);
    let hidden = "GET /v2/hidden/tags/list HTTP/1.1\r\nHost: a\r\n\r\n";
    let bodies = [
        format!("Content-Length: {}\r\n\r\n{hidden}", hidden.len()),
        format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len()),
    ];
    for body in bodies {
        let mut connection = Connection::open(spliceway.addr());
        let text = format!("GET {} HTTP/1.1\r\nHost: a\r\n{body}", blob.path);
        connection.write(text.as_bytes()).expect("a request is written");
        let refused = connection.exchange("GET").expect("an answer");
        assert!([400, 413].contains(&refused.status()), "{}", refused.status());
        let closes =
            refused.head.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let mut connection = refused.into_connection();
        let next = Request::get(&blob.path).header("Connection", "close").bytes(spliceway.addr());
        if connection.write(&next).is_ok() && !closes {
            let answer = connection.exchange("GET").expect("the connection was kept").collect();
            answer.expect(200).expect_body(&blob.bytes);
        }
    }
    assert!(!origin.all_seen().iter().any(|seen| seen.path().contains("hidden")));
    assert!(!spliceway.log().contains("/v2/hidden"));
}

#[test]
fn large_body_where_none_belongs_is_not_read_forever() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let mut connection = Connection::open(spliceway.addr());
    let head = "GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000\r\n\r\n";
    connection.write(head.as_bytes()).expect("a head is written");
    let piece = vec![b'x'; 64 * 1024];
    let mut sent = 0;
    // 64 MiB are more than every buffer on the way and more than is drained.
    while sent < 64 << 20 && connection.write(&piece).is_ok() {
        sent += piece.len();
    }
    assert!(sent < 64 << 20, "the server goes on reading");
    get(spliceway.addr(), "/v2/").expect(200);
}

#[test]
fn several_requests_at_once_are_answered_in_order() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let blobs = [origin.random_blob(1, 100), origin.random_blob(2, 2_000_000), origin.random_blob(3, 3)];
    let mut connection = Connection::open(spliceway.addr());
    let requests: Vec<u8> =
        blobs.iter().flat_map(|blob| Request::get(&blob.path).bytes(spliceway.addr())).collect();
    connection.write(&requests).expect("the requests are written");
    for blob in &blobs {
        let mut exchange = connection.exchange("GET").expect("an answer");
        let mut body = Vec::new();
        exchange.read_to(blob.len(), &mut body).expect("the body");
        assert!(body == *blob.bytes);
        connection = exchange.into_connection();
    }
}

#[test]
fn oversized_head_is_refused() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let long_value = format!("GET /v2/ HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(1 << 20));
    let many_fields = format!("GET /v2/ HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(2000));
    let long_target = format!("GET /v2/{} HTTP/1.1\r\nHost: a\r\n\r\n", "y".repeat(1 << 20));
    let endless = "y".repeat(1 << 20);
    for head in [long_value, many_fields, long_target, endless] {
        let (text, _) = say(&spliceway, head.as_bytes());
        // A reset may overtake the answer while the client still sends.
        let refused =
            ["400", "414", "431"].iter().any(|status| text.starts_with(&format!("HTTP/1.1 {status} ")));
        assert!(text.is_empty() || refused, "{text:?}");
        assert!(answers(&text) <= 1);
    }
    get(spliceway.addr(), "/v2/").expect(200);
}

#[test]
fn head_beyond_a_bound_is_431() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.server("header_bytes", 4096).server("header_fields", 20).origin(&origin);
    });
    // So little beyond that the whole of it is read before the answer.
    let head = |fields: &str| format!("GET /v2/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n");
    let cases = [
        (head(&format!("X: {}\r\n", "y".repeat(3900))), "200"),
        (head(&format!("X: {}\r\n", "y".repeat(4096))), "431"),
        (head(&"X: y\r\n".repeat(18)), "200"),
        (head(&"X: y\r\n".repeat(19)), "431"),
    ];
    for (bytes, status) in cases {
        let (text, end) = say(&spliceway, bytes.as_bytes());
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text:?} then {end:?}");
        assert_eq!(answers(&text), 1);
    }
}

#[test]
fn body_that_never_comes_is_not_waited_for() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    for framing in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
        let (text, end) =
            say(&spliceway, format!("GET /v2/ HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n").as_bytes());
        assert!(text.starts_with("HTTP/1.1 4"), "{framing}: {text:?} then {end:?}");
        assert_ne!(end, End::TimedOut, "{framing}");
        assert_eq!(answers(&text), 1, "{framing}: {text:?}");
    }
}

#[test]
fn broken_chunks_end_the_connection() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    for chunks in ["zz\r\n", "-1\r\n", "5\r\nabcdeX", "ffffffffffffffffff\r\n", "1\nA\n0\n\n"] {
        let head = "GET /v2/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let next = "GET /v2/hidden/tags/list HTTP/1.1\r\nHost: a\r\n\r\n";
        let (text, end) = say(&spliceway, format!("{head}{chunks}{next}").as_bytes());
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 4"), "{chunks:?}: {text:?}");
        assert!(answers(&text) <= 1 && end != End::TimedOut, "{chunks:?}: {text:?} then {end:?}");
    }
    assert!(!spliceway.log().contains("/v2/hidden"));
    get(spliceway.addr(), "/v2/").expect(200);
}

#[test]
fn slow_head_is_cut_off() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.server("header_timeout", "500ms").origin(&origin);
    });
    for begun in ["G", "GET /v2/ HTTP/1.1\r\nHost: a\r\nX"] {
        let (text, end) = say(&spliceway, begun.as_bytes());
        assert!(text.starts_with("HTTP/1.1 408 "), "{text:?}");
        assert_ne!(end, End::TimedOut);
    }
    // A byte now and then does not extend the time.
    let mut connection = Connection::open(spliceway.addr());
    let mut alive = 0;
    while alive < 100 && connection.write(b"G").is_ok() {
        std::thread::sleep(Duration::from_millis(100));
        alive += 1;
    }
    assert!(alive < 100, "a dripping head is waited for");
}

#[test]
fn idle_connection_is_closed() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.server("idle_timeout", "500ms").origin(&origin);
    });
    let connection = Connection::open(spliceway.addr());
    let exchange = connection.request(spliceway.addr(), &Request::get("/v2/")).expect("an answer");
    let (rest, end) = exchange.into_connection().drain();
    assert_eq!((rest.len(), end), (0, End::Complete));
}

#[test]
fn reader_that_takes_nothing_is_cut_off() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.server("stall_timeout", "1s").origin(&origin);
    });
    let blob = origin.random_blob(1, 16 << 20);
    get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
    let mut connection = Connection::open_narrow(spliceway.addr());
    connection.write(&Request::get(&blob.path).bytes(spliceway.addr())).expect("a request is written");
    std::thread::sleep(Duration::from_secs(4));
    let answer = connection.exchange("GET").expect("a head").compare(&blob.bytes);
    assert!(answer.end != End::Complete && answer.same, "{answer:?}");
}

#[test]
fn wrong_configuration_names_key_value_and_remedy_and_exits_2() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let file = home.path().join("spliceway.toml");
    let serve = |text: &str| {
        std::fs::write(&file, text).expect("our own directory");
        tools::run(
            Command::new(binary()).arg("serve").arg("--config").arg(&file).args(["--listen", "127.0.0.1:0"]),
        )
    };
    let upstream = |line: &str| {
        format!(
            "[[registry]]\nname = \"main\"\n[[registry.upstream]]\nname = \"x\"\nurl = \"http://127.0.0.1:1\"\n{line}\n"
        )
    };
    let cases = [
        ("[server]\nadmin = \"nowhere\"\n".to_owned(), "admin", "nowhere", "spliceway.toml:2"),
        ("[server]\nworkers = \"many\"\n".into(), "workers", "many", "spliceway.toml:2"),
        ("[server]\nio_uring = \"maybe\"\n".into(), "io_uring", "maybe", "auto"),
        ("[server]\nworkerz = 1\n".into(), "workerz", "", "workers"),
        (upstream("tag_ttl = \"soon\""), "tag_ttl", "soon", "spliceway.toml:6"),
        (upstream("url2 = 1"), "url2", "", "url"),
        (upstream("ca_file = \"/nowhere/ca.pem\""), "ca_file", "/nowhere/ca.pem", ""),
        ("[[registry]]\nname = \"main\"\nmax_size = \"huge\"\n".into(), "max_size", "huge", ""),
        ("[server\n".into(), "spliceway.toml", "", "1"),
    ];
    for (text, key, value, also) in &cases {
        let finished = serve(text);
        assert_eq!(finished.status.code(), Some(2), "{text}: {}", finished.stderr);
        for word in [key, value, also] {
            assert!(finished.stderr.contains(word), "{text}: {word:?} is missing in {}", finished.stderr);
        }
    }
    let flag = tools::run(Command::new(binary()).args(["serve", "--listen", "nowhere"]));
    assert_eq!(flag.status.code(), Some(2), "{}", flag.stderr);
    assert!(flag.stderr.contains("nowhere") && flag.stderr.contains("listen"), "{}", flag.stderr);
    let unknown = tools::run(Command::new(binary()).args(["serve", "--no-such-flag"]));
    assert_eq!(unknown.status.code(), Some(2));
}
