//! Answers that are given again without the HTTP library: the same bytes, to the same bytes only.

use std::sync::atomic::Ordering;
use std::time::Duration;

use spliceway::server::{Phase, ServerOptions};

use crate::client::{Client, Response};
use crate::harness::{Server, data_at, eventually};

/// More than the kernel takes for a client that was made small; the longest body that is given again.
const LONG: usize = 4 << 20;

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: test\r\nAccept: */*\r\n\r\n")
}

/// Everything but the date, which may move on.
fn without_date(mut response: Response) -> (u16, Vec<(String, String)>, Vec<u8>) {
    response.fields.retain(|(name, _)| name != "date");
    (response.status, response.fields, response.body)
}

/// How often the service was asked for `path`.
fn asked(server: &Server, path: &str) -> usize {
    server.seen.targets().iter().filter(|target| *target == path).count()
}

/// How many answers to `path` were given again.
fn given_again(server: &Server, path: &str) -> usize {
    let again = format!("again {path}");
    server.seen.outcomes().iter().filter(|(target, _)| *target == again).count()
}

/// A connection on which the answer to `path` was learnt.
fn learnt(server: &Server, path: &str) -> Client {
    let mut client = Client::connect_small(server.address);
    for _ in 0..2 {
        client.send(request(path)).response();
    }
    client
}

#[test]
fn an_answer_is_given_again_as_it_was() {
    for server in Server::in_all_modes() {
        for (path, body) in [
            ("/again/bytes/4096", data_at(0, 4096)),
            ("/again/bytes/0", Vec::new()),
            ("/again/file/17/262144", data_at(17, 262_144)),
            ("/again/file/5000/1", data_at(5000, 1)),
            ("/again/file/4000000/4194304", data_at(4_000_000, 4 << 20)),
        ] {
            let mut client = Client::connect(server.address);
            let first = client.send(request(path)).response();
            assert_eq!(first.body, body, "{path}");
            assert!(first.field("date").is_some_and(|date| date.len() == 29 && date.ends_with(" GMT")));
            let first = without_date(first);
            for _ in 0..5 {
                let again = client.send(request(path)).response();
                assert!(again.field("date").is_some_and(|date| date.len() == 29 && date.ends_with(" GMT")));
                assert_eq!(without_date(again), first, "{path}");
            }
            eventually(|| (given_again(&server, path) == 4).then_some(()));
            assert_eq!(asked(&server, path), 2, "{path}");
            let outcome = server.seen.outcome(&format!("again {path}"));
            assert_eq!((outcome.bytes, outcome.completed), (body.len() as u64, true), "{path}");
        }
    }
}

#[test]
fn heads_and_other_answers_take_turns_on_a_connection() {
    let server = Server::start();
    let mut client = learnt(&server, "/again/bytes/100");
    for _ in 0..3 {
        assert_eq!(client.send(request("/again/bytes/100")).response().body, data_at(0, 100));
        assert_eq!(client.get("/bytes/50").body, data_at(0, 50));
        client.send("HEAD /again/bytes/100 HTTP/1.1\r\nHost: test\r\n\r\n");
        let head = client.response_without_body();
        assert_eq!((head.status, head.field("content-length")), (200, Some("100")));
        client.send("GET /again/notmodified HTTP/1.1\r\nHost: test\r\n\r\n");
        assert_eq!(client.response_without_body().status, 304);
    }
    assert_eq!(asked(&server, "/again/notmodified"), 2);
    assert_eq!(asked(&server, "/again/bytes/100"), 2 + 2, "two of GET, two of HEAD");
}

#[test]
fn what_is_too_long_or_not_all_there_is_asked_for_every_time() {
    let server = Server::start();
    for path in ["/again/file/0/4194305", "/again/chunked", "/again/temporary"] {
        let mut client = Client::connect(server.address);
        let first = without_date(client.send(request(path)).response());
        for _ in 0..3 {
            assert_eq!(without_date(client.send(request(path)).response()), first, "{path}");
        }
        assert_eq!(asked(&server, path), 4, "{path}");
    }
}

#[test]
fn an_unusual_request_takes_the_ordinary_way() {
    let server = Server::start();
    let path = "/again/bytes/10";
    let expected = data_at(0, 10);
    // Each closes the connection, or says something of a body.
    for unusual in [
        format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"),
        format!("GET {path} HTTP/1.0\r\nHost: test\r\n\r\n"),
        format!("GET {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\nx"),
        format!("GET {path} HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\n\r\n"),
        format!("GET {path} HTTP/1.1\r\nHost: test\r\nUpgrade: h2c\r\n\r\n"),
        format!("GET {path} HTTP/1.1\r\nHost: test\r\nX-Long: {}\r\n\r\n", "x".repeat(1024)),
    ] {
        let before = asked(&server, path);
        for _ in 0..4 {
            // Connections alternate between the workers; four are two for each.
            assert_eq!(
                Client::connect(server.address).send(&unusual).response().body,
                expected,
                "{unusual:?}"
            );
        }
        assert_eq!(asked(&server, path) - before, 4, "{unusual:?}");
    }
    assert_eq!(given_again(&server, path), 0);
}

#[test]
fn pieces_and_pipelined_requests_are_answered_in_order() {
    let server = Server::start();
    let path = "/again/bytes/30";
    let mut client = learnt(&server, path);
    let head = request(path);
    client.send(&head[..20]);
    std::thread::sleep(Duration::from_millis(50));
    client.send(&head[20..]);
    assert_eq!(client.response().body, data_at(0, 30));
    client.send([head.as_str(), &request("/again/bytes/40"), head.as_str(), head.as_str()].concat());
    for len in [30, 40, 30, 30] {
        assert_eq!(client.response().body, data_at(0, len));
    }
    assert_eq!(client.send(&head).response().body, data_at(0, 30));
    // The last one at least came alone.
    eventually(|| (given_again(&server, path) >= 1).then_some(()));
}

#[test]
fn an_answer_that_is_not_current_is_asked_for_again() {
    let server = Server::start();
    let path = "/again/bytes/20";
    let mut client = learnt(&server, path);
    client.send(request(path)).response();
    assert_eq!(asked(&server, path), 2);
    server.seen.outdated.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        client.send(request(path)).response();
    }
    assert_eq!(asked(&server, path), 5);
    server.seen.outdated.store(false, Ordering::Relaxed);
    client.send(request(path)).response();
    assert_eq!(asked(&server, path), 5, "it was learnt anew");
}

#[test]
fn a_peer_that_leaves_is_told_as_such() {
    for server in Server::in_all_modes() {
        let path = "/again/file/0/4194304";
        let mut client = learnt(&server, path);
        client.send(request(path));
        client.head().unwrap();
        drop(client);
        let outcome = server.seen.outcome(&format!("again {path}"));
        assert!(!outcome.completed && outcome.bytes < LONG as u64, "{outcome:?}");
    }
}

#[test]
fn a_peer_that_takes_nothing_is_cut_off_by_a_reset() {
    let options = ServerOptions { stall_timeout: Duration::from_millis(300), ..ServerOptions::default() };
    let server = Server::with(&options);
    let path = "/again/file/0/4194304";
    let mut client = learnt(&server, path);
    client.send(request(path));
    let outcome = server.seen.outcome(&format!("again {path}"));
    assert!(!outcome.completed, "{outcome:?}");
    eventually(|| (server.doors.open_connections() == 0).then_some(()));
    let mut received = 0;
    let error = loop {
        match client.read_some() {
            Ok(bytes) if bytes.is_empty() => panic!("a clean end after {received} bytes"),
            Ok(bytes) => received += bytes.len(),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_drain_waits_for_an_answer_that_is_being_given_again() {
    let server = Server::start();
    let path = "/again/file/0/4194304";
    let mut client = learnt(&server, path);
    client.send(request(path));
    client.head().unwrap();
    server.enter(Phase::Drain);
    std::thread::sleep(Duration::from_millis(100));
    let mut body = Vec::new();
    loop {
        let some = client.read_some().unwrap();
        if some.is_empty() {
            break;
        }
        body.extend(some);
    }
    assert_eq!(body, data_at(0, LONG), "whole, and then a clean end");
    server.join();
}

#[test]
fn a_connection_that_is_answered_again_is_not_idle() {
    let options = ServerOptions { idle_timeout: Duration::from_secs(2), ..ServerOptions::default() };
    let server = Server::with(&options);
    let path = "/again/bytes/20";
    let mut client = learnt(&server, path);
    for _ in 0..6 {
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(client.send(request(path)).response().status, 200);
    }
    assert!(client.read_some().unwrap().is_empty(), "then it is, and is closed");
}
