//! Connections as such: how many, how long, and how they end with the server.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use spliceway::server::{Phase, ServerOptions, bind, unmatched_regions};

use crate::client::Client;
use crate::harness::{Server, eventually};

#[test]
fn a_silent_connection_is_closed() {
    let options = ServerOptions { idle_timeout: Duration::from_millis(600), ..ServerOptions::default() };
    let server = Server::with(&options);
    let mut fresh = Client::connect(server.address);
    let mut used = Client::connect(server.address);
    assert_eq!(used.get("/describe").status, 200);
    used.expect_end();
    fresh.expect_end();
    eventually(|| (server.doors.open_connections() == 0).then_some(()));
}

/// Longer than a connection goes on with the library when there is nothing to do.
const REST: Duration = Duration::from_millis(400);

#[test]
fn a_connection_that_rested_goes_on_as_before() {
    for server in Server::in_all_modes() {
        let mut client = Client::connect(server.address);
        assert_eq!(client.get("/bytes/100").body.len(), 100);
        std::thread::sleep(REST);
        client.send("GET /describe HTTP/1.1\r\nHo");
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(client.send("st: a\r\n\r\n").response().text(), "GET /describe a");
        std::thread::sleep(REST);
        client
            .send("GET /file/0/3000000 HTTP/1.1\r\nHost: a\r\n\r\nGET /describe HTTP/1.1\r\nHost: b\r\n\r\n");
        assert_eq!(client.response().body.len(), 3_000_000);
        assert_eq!(client.response().text(), "GET /describe b");
        std::thread::sleep(REST);
        assert_eq!(client.send("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n").response().status, 400);
        client.expect_end();

        let mut idle = Client::connect(server.address);
        assert_eq!(idle.get("/bytes/1").status, 200);
        let mut leaving = Client::connect(server.address);
        assert_eq!(leaving.get("/bytes/1").status, 200);
        std::thread::sleep(REST);
        leaving.half_close().expect_end();
        server.enter(Phase::Drain);
        idle.expect_end();
        server.join();
    }
}

#[test]
fn a_waiting_request_is_not_silence() {
    let options = ServerOptions { idle_timeout: Duration::from_millis(300), ..ServerOptions::default() };
    let server = Server::with(&options);
    let mut client = Client::connect(server.address);
    client.send("GET /hang HTTP/1.1\r\nHost: a\r\n\r\n");
    std::thread::sleep(Duration::from_millis(900));
    server.seen.release.open();
    assert_eq!(client.response().text(), "released");
}

#[test]
fn a_drain_closes_idle_connections_and_lets_the_others_finish() {
    let server = Server::start();
    let address = server.address;
    let mut fresh = Client::connect(address);
    let mut idle = Client::connect(address);
    assert_eq!(idle.get("/describe").status, 200);
    let mut busy = Client::connect(address);
    busy.send("GET /hang HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut sending = Client::connect_small(address);
    sending.send("GET /file/0/16777216 HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut typing = Client::connect(address);
    typing.send("GET /describe HTTP/1.1\r\nHos");
    eventually(|| (server.seen.targets().len() == 3).then_some(()));
    eventually(|| (server.doors.open_connections() == 5).then_some(()));
    std::thread::sleep(Duration::from_millis(50));

    server.enter(Phase::Drain);
    idle.expect_end();
    fresh.expect_end();
    assert_eq!(typing.send("t: a\r\n\r\n").response().field("connection"), Some("close"));
    typing.expect_end();
    server.seen.release.open();
    let response = busy.response();
    assert_eq!((response.text(), response.field("connection")), ("released", Some("close")));
    busy.expect_end();
    assert_eq!(sending.response().body.len(), 16 << 20);
    sending.expect_end();
    server.join();
    let refused = std::net::TcpStream::connect(address).expect_err("the listener is closed");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn what_outlives_the_drain_is_cut() {
    let options = ServerOptions { drain_timeout: Duration::from_millis(200), ..ServerOptions::default() };
    let server = Server::with(&options);
    let mut stalled = Client::connect_small(server.address);
    stalled.send("GET /file/0/67108864 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(stalled.head().unwrap().0, 200);
    let mut hanging = Client::connect(server.address);
    hanging.send("GET /hang HTTP/1.1\r\nHost: a\r\n\r\n");
    eventually(|| (server.seen.targets().len() == 2).then_some(()));
    let seen = Arc::clone(&server.seen);
    server.enter(Phase::Drain);
    server.join();
    assert!(!seen.outcome("/file/0/67108864").completed);
    stalled.expect_reset();
    assert!(hanging.try_response(true).is_err());
}

#[test]
fn a_cut_does_not_wait() {
    let options = ServerOptions { drain_timeout: Duration::from_hours(1), ..ServerOptions::default() };
    let server = Server::with(&options);
    let mut hanging = Client::connect(server.address);
    hanging.send("GET /hang HTTP/1.1\r\nHost: a\r\n\r\n");
    eventually(|| (server.seen.targets().len() == 1).then_some(()));
    server.enter(Phase::Drain);
    server.enter(Phase::Cut);
    server.join();
    assert!(hanging.try_response(true).is_err());
}

#[test]
fn connections_beyond_the_limit_wait() {
    let server = Server::with(&ServerOptions { connections_max: 2, ..ServerOptions::default() });
    let mut first = Client::connect(server.address);
    let mut second = Client::connect(server.address);
    assert_eq!(first.get("/describe").status, 200);
    assert_eq!(second.get("/describe").status, 200);
    let mut third = Client::connect(server.address);
    third.send("GET /describe?third HTTP/1.1\r\nHost: a\r\n\r\n");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(server.seen.targets().len(), 2, "the third must not be served yet");
    assert_eq!(server.doors.open_connections(), 2);
    drop(first);
    assert_eq!(third.response().text(), "GET /describe?third a");
}

#[test]
fn connections_are_spread_over_the_workers() {
    let server = Server::start();
    let mut clients: Vec<_> = (0..10).map(|_| Client::connect(server.address)).collect();
    for client in &mut clients {
        assert_eq!(client.get("/describe").status, 200);
    }
    assert_eq!(server.doors.open_connections(), 10);
    drop(clients);
    eventually(|| (server.doors.open_connections() == 0).then_some(()));
}

#[test]
fn both_families_reach_the_unspecified_address() {
    let Ok(listener) = bind("[::]:0".parse().unwrap()) else {
        eprintln!("without IPv6");
        return;
    };
    let port = listener.local_addr().unwrap().port();
    let server = Server::on(listener, &Arc::new(ServerOptions::default()), false);
    for host in ["127.0.0.1", "[::1]"] {
        let Ok(address) = format!("{host}:{port}").parse() else { continue };
        assert_eq!(Client::connect(address).get("/describe").status, 200, "{host}");
    }
    drop(server);
}

#[test]
fn keep_alive_follows_the_version() {
    let server = Server::start();
    let mut client = Client::connect(server.address);
    assert_eq!(client.send("GET /describe HTTP/1.0\r\n\r\n").response().status, 200);
    client.expect_end();
    let mut client = Client::connect(server.address);
    for _ in 0..2 {
        let response = client.send("GET /describe HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").response();
        assert_eq!(response.status, 200);
    }
    let response = client.send("GET /describe HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").response();
    assert_eq!(response.field("connection"), Some("close"));
    client.expect_end();
}

#[test]
fn a_request_behind_a_closing_one_does_not_spoil_its_answer() {
    let server = Server::start();
    for _ in 0..50 {
        let mut client = Client::connect(server.address);
        client.send(
            "GET /file/0/300000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n\
             GET /describe HTTP/1.1\r\nHost: a\r\n\r\n",
        );
        assert_eq!(client.response().body.len(), 300_000);
        client.expect_end();
    }
}

#[test]
fn clients_that_vanish_leave_nothing_behind() {
    let server = Server::start();
    let address = server.address;
    let clients: Vec<_> = (0..300_usize)
        .map(|number| {
            std::thread::spawn(move || {
                let mut client = Client::connect(address);
                match number % 6 {
                    0 => drop(client.send("GET /describe HTTP/1.1\r\nHo")),
                    1 => drop(
                        client.send("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhello"),
                    ),
                    2 => drop(
                        client
                            .send("GET /file/0/30000000 HTTP/1.1\r\nHost: a\r\n\r\n")
                            .exactly(number * 7000),
                    ),
                    3 => drop(
                        client.send("GET /chunked/3000000 HTTP/1.1\r\nHost: a\r\n\r\n").exactly(number * 700),
                    ),
                    4 => drop(client.get(&format!("/file/{number}/{}", number * 1000))),
                    _ => drop(client.send("GET /hang HTTP/1.1\r\nHost: a\r\n\r\n")),
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    eventually(|| (server.seen.targets().len() == 250).then_some(()));
    server.seen.release.open();
    eventually(|| (server.doors.open_connections() == 0).then_some(()));
    assert_eq!(server.seen.outcomes().len(), 250, "every response has one end");
    assert_eq!(unmatched_regions(), 0);
}
