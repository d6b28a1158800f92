//! Request heads: what is refused, what is not, and that a refusal takes its place in the order of answers.

use std::fmt::Write as _;
use std::time::Duration;

use spliceway::server::{Refusal, ServerOptions};

use crate::client::Client;
use crate::harness::Server;

/// A head, the status it must get, and the reason to be counted.
const REFUSED: &[(&str, u16, Refusal)] = &[
    ("GET / HTTP/1.1\nHost: a\n\n", 400, Refusal::LineEnd),
    ("GET / HTTP/1.1\r\nHost: a\n\r\n", 400, Refusal::LineEnd),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r2\r\n\r\n", 400, Refusal::LineEnd),
    ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, Refusal::LineEnd),
    ("\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, Refusal::RequestLine),
    ("GET /\r\nHost: a\r\n\r\n", 400, Refusal::RequestLine),
    ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400, Refusal::RequestLine),
    ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400, Refusal::RequestLine),
    ("GET / x HTTP/1.1\r\nHost: a\r\n\r\n", 400, Refusal::RequestLine),
    (" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, Refusal::RequestLine),
    ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400, Refusal::RequestLine),
    ("GET / http/1.1\r\nHost: a\r\n\r\n", 400, Refusal::RequestLine),
    ("GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400, Refusal::RequestLine),
    ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, Refusal::Version),
    ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505, Refusal::Version),
    ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, Refusal::Version),
    ("\x16\x03\x01\x02\x00\x01\x00", 400, Refusal::RequestLine),
    ("GET describe HTTP/1.1\r\nHost: a\r\n\r\n", 400, Refusal::Target),
    ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400, Refusal::Target),
    ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400, Refusal::Target),
    ("GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n", 400, Refusal::Target),
    ("GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n", 400, Refusal::Target),
    ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, Refusal::Target),
    ("GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", 400, Refusal::Target),
    ("GET http://u@a/x HTTP/1.1\r\nHost: a\r\n\r\n", 400, Refusal::Target),
    ("GET http://a:x/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, Refusal::Target),
    ("CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", 400, Refusal::Target),
    ("CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", 400, Refusal::Target),
    ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400, Refusal::FieldName),
    ("GET / HTTP/1.1\r\nHost: a\r\nX\t: a\r\n\r\n", 400, Refusal::FieldName),
    ("GET / HTTP/1.1\r\nHost: a\r\n: a\r\n\r\n", 400, Refusal::FieldName),
    ("GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400, Refusal::FieldName),
    ("GET / HTTP/1.1\r\nHost: a\r\nX(): a\r\n\r\n", 400, Refusal::FieldName),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400, Refusal::Fold),
    ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400, Refusal::Fold),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400, Refusal::FieldValue),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: a\x7fb\r\n\r\n", 400, Refusal::FieldValue),
    ("GET / HTTP/1.1\r\n\r\n", 400, Refusal::Host),
    ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, Refusal::Host),
    ("GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", 400, Refusal::Host),
    ("GET / HTTP/1.1\r\nHost:\r\n\r\n", 400, Refusal::Host),
    ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, Refusal::Host),
    ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, Refusal::Host),
    ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400, Refusal::Host),
    ("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400, Refusal::Host),
    ("GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", 400, Refusal::Host),
    ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400, Refusal::Host),
    ("GET / HTTP/1.1\r\nHost: [1.2.3.4]\r\n\r\n", 400, Refusal::Host),
    ("GET / HTTP/1.1\r\nHost: a%2\r\n\r\n", 400, Refusal::Host),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
        Refusal::ContentLength,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
        400,
        Refusal::ContentLength,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        400,
        Refusal::ContentLength,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        400,
        Refusal::ContentLength,
    ),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nx", 400, Refusal::ContentLength),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nx", 400, Refusal::ContentLength),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nx", 400, Refusal::ContentLength),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nx", 400, Refusal::ContentLength),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nx",
        400,
        Refusal::ContentLength,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        400,
        Refusal::TransferEncoding,
    ),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 400, Refusal::TransferEncoding),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
        400,
        Refusal::TransferEncoding,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
        Refusal::TransferEncoding,
    ),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n", 400, Refusal::FieldValue),
    ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400, Refusal::TransferEncoding),
];

#[test]
fn what_is_refused() {
    let server = Server::start();
    for (head, status, refusal) in REFUSED {
        let before = server.counters.refused_heads(*refusal);
        let mut client = Client::connect(server.address);
        let response = client.send(head).response();
        assert_eq!(response.status, *status, "{head:?}: {}", response.text());
        assert_eq!(response.field("connection"), Some("close"), "{head:?}");
        client.expect_end();
        assert_eq!(server.counters.refused_heads(*refusal) - before, 1, "{head:?}: {}", response.text());
    }
    assert_eq!(server.seen.targets(), [""; 0], "the service must not take a refused head for a request");
}

#[test]
fn what_is_taken() {
    let server = Server::start();
    for (head, described) in [
        ("GET /describe HTTP/1.1\r\nHost: a\r\n\r\n", "GET /describe a"),
        ("GET /describe HTTP/1.1\r\nhOST:a:5000\r\n\r\n", "GET /describe a:5000"),
        ("GET /describe HTTP/1.1\r\nHost: \t[::1]:5000 \r\n\r\n", "GET /describe [::1]:5000"),
        ("GET /describe HTTP/1.1\r\nHost: a_b.c-d:\r\n\r\n", "GET /describe a_b.c-d:"),
        ("GET /describe HTTP/1.1\r\nHost: x%41\r\n\r\n", "GET /describe x%41"),
        ("\r\n\r\nGET /describe HTTP/1.1\r\nHost: a\r\n\r\n", "GET /describe a"),
        ("GET /describe HTTP/1.0\r\n\r\n", "GET /describe -"),
        (
            "GET /describe?a[]=%20|b HTTP/1.1\r\nHost: a\r\nX: \u{e9}\tz\r\nY:\r\n\r\n",
            "GET /describe?a[]=%20|b a",
        ),
        ("GET http://b:80/describe?x HTTP/1.1\r\nHost: a\r\n\r\n", "GET /describe?x b:80"),
        ("GET HTTP://[::1]/describe HTTP/1.1\r\nHost: a\r\n\r\n", "GET /describe [::1]"),
        ("DELETE /describe HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "DELETE /describe a"),
    ] {
        let response = Client::connect(server.address).send(head).response();
        assert_eq!((response.status, response.text()), (200, described), "{head:?}");
    }
    for (head, target) in [
        ("GET http://b?x HTTP/1.1\r\nHost: a\r\n\r\n", "/?x"),
        ("GET http://b HTTP/1.1\r\nHost: a\r\n\r\n", "/"),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "*"),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", "a:443"),
    ] {
        assert_eq!(Client::connect(server.address).send(head).response().status, 404, "{head:?}");
        assert_eq!(server.seen.targets().last().map(String::as_str), Some(target), "{head:?}");
    }
}

#[test]
fn the_answer_to_a_refused_head_request_has_no_body() {
    let server = Server::start();
    let mut client = Client::connect(server.address);
    let response = client.send("HEAD / HTTP/1.1\r\n\r\n").response_without_body();
    assert_eq!(response.status, 400);
    client.expect_end();
}

#[test]
fn heads_up_to_the_limits_are_taken() {
    let server =
        Server::with(&ServerOptions { header_bytes: 1000, header_fields: 5, ..ServerOptions::default() });
    let mut client = Client::connect(server.address);
    let of_length = |len: usize| {
        let frame = "GET /describe HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n".len();
        format!("GET /describe HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(len - frame))
    };
    assert_eq!(client.send(of_length(1000)).response().status, 200);
    assert_eq!(client.send(of_length(1001)).response().status, 431);
    client.expect_end();

    let with_fields =
        |count: usize| format!("GET /describe HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(count - 1));
    let mut client = Client::connect(server.address);
    assert_eq!(client.send(with_fields(5)).response().status, 200);
    assert_eq!(client.send(with_fields(6)).response().status, 431);
    client.expect_end();
    assert_eq!(server.counters.refused_heads(Refusal::TooLarge), 1);
    assert_eq!(server.counters.refused_heads(Refusal::TooMany), 1);
}

#[test]
fn as_many_fields_as_are_allowed_by_default_are_taken() {
    let server = Server::start();
    let mut client = Client::connect(server.address);
    let fields = "X: y\r\n".repeat(99);
    assert_eq!(
        client.send(format!("GET /describe HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).response().status,
        200
    );
}

#[test]
fn large_limits_are_kept_too() {
    let options = ServerOptions { header_bytes: usize::MAX, header_fields: 500, ..ServerOptions::default() };
    let server = Server::with(&options);
    let mut client = Client::connect(server.address);
    let many = "X: y\r\n".repeat(499);
    assert_eq!(
        client.send(format!("GET /describe HTTP/1.1\r\nHost: a\r\n{many}\r\n")).response().status,
        200
    );
    let long = "y".repeat(60_000);
    assert_eq!(
        client.send(format!("GET /describe?{long} HTTP/1.1\r\nHost: a\r\n\r\n")).response().status,
        200
    );
    let longer = "y".repeat(66_000);
    assert_eq!(
        client.send(format!("GET /describe?{longer} HTTP/1.1\r\nHost: a\r\n\r\n")).response().status,
        431
    );
    client.expect_end();
}

#[test]
fn a_refusal_waits_its_turn_and_ends_the_connection() {
    let server = Server::start();
    let mut client = Client::connect(server.address);
    client.send(
        "GET /file/0/3000000 HTTP/1.1\r\nHost: a\r\n\r\n\
         GET /describe HTTP/1.1\r\nHost: b\r\n\r\n\
         GET /bad HTTP/1.1\r\n\r\n\
         GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    assert_eq!(client.response().body.len(), 3_000_000);
    assert_eq!(client.response().text(), "GET /describe b");
    assert_eq!(client.response().status, 400);
    client.expect_end();
    assert_eq!(server.seen.targets(), ["/file/0/3000000", "/describe"]);
    assert_eq!(server.counters.refused_heads(Refusal::Host), 1);
}

#[test]
fn a_head_may_be_cut_anywhere() {
    let server = Server::start();
    let request = "\r\nGET /describe?cut HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n";
    let mut client = Client::connect(server.address);
    for cut in 1..request.len() {
        client.send(&request[..cut]);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(client.send(&request[cut..]).response().text(), "GET /describe?cut a", "cut at {cut}");
    }
    for byte in request.as_bytes() {
        client.send([*byte]);
        std::thread::sleep(Duration::from_micros(200));
    }
    assert_eq!(client.response().status, 200);
}

#[test]
fn pipelined_heads_may_be_cut_anywhere_and_are_answered_in_order() {
    let server = Server::start();
    let mut client = Client::connect(server.address);
    let mut burst = String::new();
    for number in 0..100 {
        write!(burst, "GET /describe?{number} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    }
    for piece in burst.as_bytes().chunks(997) {
        client.send(piece);
        std::thread::sleep(Duration::from_millis(1));
    }
    for number in 0..100 {
        assert_eq!(client.response().text(), format!("GET /describe?{number} a"));
    }
}

#[test]
fn a_slow_head_is_answered_with_408() {
    let options = ServerOptions { header_timeout: Duration::from_millis(150), ..ServerOptions::default() };
    let server = Server::with(&options);
    let mut client = Client::connect(server.address);
    assert_eq!(client.get("/describe").status, 200);
    let response = client.send("GET /describe HTTP/1.1\r\nHo").response();
    assert_eq!((response.status, response.field("connection")), (408, Some("close")));
    client.expect_end();
    assert_eq!(server.counters.refused_heads(Refusal::TimedOut), 1);
    assert_eq!(server.seen.targets().len(), 1);
}

#[test]
fn an_empty_line_begins_no_head() {
    let options = ServerOptions { header_timeout: Duration::from_millis(150), ..ServerOptions::default() };
    let server = Server::with(&options);
    let mut client = Client::connect(server.address);
    client.send("\r");
    std::thread::sleep(Duration::from_millis(20));
    client.send("\n");
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(client.get("/describe").status, 200, "silence behind it is not a slow head");
}

#[test]
fn an_upgrade_is_ignored_and_loses_nothing() {
    let server = Server::start();
    // What the library would do here is close without flushing; see `head::mask_upgrade`.
    let mut client = Client::connect_small(server.address);
    client.send(
        "POST /file/0/16777216 HTTP/1.1\r\nHost: a\r\nConnection: close, upgrade\r\nUpgrade: h2c\r\n\
         Content-Length: 1000\r\n\r\n",
    );
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(client.response().body.len(), 16 << 20);
    client.expect_end();
}
