//! Request bodies, and where the next request begins behind them.

use std::fmt::Write as _;
use std::time::Duration;

use spliceway::server::ServerOptions;

use crate::client::Client;
use crate::harness::{Server, data_at};

fn sum(bytes: &[u8]) -> String {
    format!("{} {}", bytes.len(), bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>())
}

fn chunked(bytes: &[u8], size: usize) -> Vec<u8> {
    let mut framed = Vec::new();
    for chunk in bytes.chunks(size) {
        framed.extend(format!("{:x};name=\"value\"\r\n", chunk.len()).bytes());
        framed.extend_from_slice(chunk);
        framed.extend(b"\r\n");
    }
    framed.extend(b"0\r\nX-Trailer: a\r\n\r\n");
    framed
}

const CHUNKED_HEAD: &str = "POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn bodies_arrive_whole_and_requests_behind_them_are_found() {
    let server = Server::start();
    let body = data_at(0, 700_000);
    let mut requests = Vec::new();
    requests.extend(
        format!("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()).bytes(),
    );
    requests.extend(&body);
    requests.extend(CHUNKED_HEAD.bytes());
    requests.extend(chunked(&body, 60_000));
    requests.extend(CHUNKED_HEAD.bytes());
    requests.extend(chunked(b"", 1));
    requests.extend(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    requests.extend(b"\r\nGET /describe HTTP/1.1\r\nHost: a\r\n\r\n");
    for size in [requests.len(), 9973, 65_536] {
        let mut client = Client::connect(server.address);
        for piece in requests.chunks(size) {
            client.send(piece);
        }
        assert_eq!(client.response().text(), sum(&body));
        assert_eq!(client.response().text(), sum(&body));
        assert_eq!(client.response().text(), sum(b""));
        assert_eq!(client.response().text(), sum(b""));
        assert_eq!(client.response().text(), "GET /describe a");
    }
}

#[test]
fn a_chunked_body_may_be_cut_anywhere() {
    let server = Server::start();
    let mut request = CHUNKED_HEAD.as_bytes().to_vec();
    request.extend(chunked(b"hello, world", 7));
    let mut client = Client::connect(server.address);
    for cut in CHUNKED_HEAD.len()..request.len() {
        client.send(&request[..cut]);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(client.send(&request[cut..]).response().text(), sum(b"hello, world"), "cut at {cut}");
    }
}

#[test]
fn broken_chunks_end_the_connection() {
    let server = Server::start();
    let long_extension = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(300));
    let mut long_trailers = "0\r\n".to_owned();
    for number in 0..1000 {
        write!(long_trailers, "X-{number}: yyyyyyyyyy\r\n").unwrap();
    }
    long_trailers.push_str("\r\n");
    for body in [
        "5\nhello\n0\n\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "00000000000000005\r\nhello\r\n0\r\n\r\n",
        "5;a\0b\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nno colon\r\n\r\n",
        "5\r\nhello\r\n0\r\n X: y\r\n\r\n",
        "5\r\nhello\r\n0\r\nX: y\n\r\n",
        &long_extension,
        &long_trailers,
    ] {
        let mut client = Client::connect(server.address);
        client.send(format!("{CHUNKED_HEAD}{body}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"));
        let response = client.response();
        assert_eq!(response.status, 400, "{body:?}: {}", response.text());
        client.expect_end();
    }
    assert!(server.seen.targets().iter().all(|target| target == "/upload"), "{:?}", server.seen.targets());
}

#[test]
fn a_body_that_ends_early_is_an_error_to_the_service() {
    let server = Server::start();
    let mut client = Client::connect(server.address);
    client.send("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello").half_close();
    assert_eq!(client.response().status, 400);
    client.expect_end();
}

#[test]
fn a_body_that_stalls_is_an_error_to_the_service() {
    let options = ServerOptions { stall_timeout: Duration::from_millis(150), ..ServerOptions::default() };
    let server = Server::with(&options);
    let mut client = Client::connect(server.address);
    client.send("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello");
    assert_eq!(client.response().status, 400);
    client.expect_end();
}

#[test]
fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let server = Server::start();
    let body = data_at(0, 800_000);
    for head in [format!("Content-Length: {}", body.len()), "Transfer-Encoding: chunked".to_owned()] {
        for _ in 0..20 {
            let mut client = Client::connect(server.address);
            client.send(format!("POST /early HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n"));
            if head.starts_with('T') {
                client.send(chunked(&body, 100_000));
            } else {
                client.send(&body);
            }
            let response = client.response();
            assert_eq!((response.status, response.text()), (413, "too much"));
            client.expect_end();
        }
    }
}

#[test]
fn a_refused_head_with_a_body_behind_it_is_answered() {
    let server = Server::start();
    let body = data_at(0, 800_000);
    for _ in 0..20 {
        let mut client = Client::connect(server.address);
        client.send(format!("POST /upload HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len())).send(&body);
        assert_eq!(client.response().status, 400);
        client.expect_end();
    }
}

#[test]
fn a_discarded_body_leaves_the_connection_usable() {
    let server = Server::start();
    let mut client = Client::connect(server.address);
    client.send("GET /discard HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    let response = client.response();
    assert_eq!((response.status, response.text()), (400, "read: true"));
    client.send("GET /discard HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().text(), "read: true");
    let head = format!("POST /discard HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 2 << 20);
    assert_eq!(client.send(head).response().text(), "read: false");
    client.expect_end();
}

#[test]
fn the_library_says_continue_when_the_body_is_wanted_and_only_then() {
    let server = Server::start();
    let mut client = Client::connect(server.address);
    let head = |path: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    };
    assert_eq!(client.send(head("/upload")).response().status, 100);
    assert_eq!(client.send("hello").response().text(), sum(b"hello"));
    let mut client = Client::connect(server.address);
    assert_eq!(client.send(head("/early")).response().status, 413);
    client.expect_end();
    let mut client = Client::connect(server.address);
    assert_eq!(client.send(head("/discard")).response().text(), "read: false");
    client.expect_end();
}
