//! What goes wrong must look wrong to the peer: a body that failed never ends cleanly.

use std::time::Duration;

use spliceway::server::ServerOptions;

use crate::client::Client;
use crate::harness::{Server, data_at, modes};

#[test]
fn a_failed_body_ends_in_a_reset() {
    for server in Server::in_all_modes() {
        for (target, version, connection) in [
            ("/fail/length/0", "1.1", "keep-alive"),
            ("/fail/length/2000000", "1.1", "keep-alive"),
            ("/fail/length/100000", "1.0", "close"),
            ("/fail/chunked/0", "1.1", "keep-alive"),
            ("/fail/chunked/2000000", "1.1", "close"),
            ("/fail/chunked/2000001", "1.0", "close"),
        ] {
            let mut client = Client::connect(server.address);
            client
                .send(format!("GET {target} HTTP/{version}\r\nHost: a\r\nConnection: {connection}\r\n\r\n"));
            client.expect_reset();
            let outcome = server.seen.outcome(target);
            assert!(!outcome.completed, "{target}: {outcome:?}");
            assert_eq!(outcome.error.as_deref(), Some("the digest does not match"), "{target}");
        }
    }
}

#[test]
fn a_body_that_breaks_its_announced_length_ends_in_a_reset() {
    let server = Server::start();
    for target in ["/announced/500000/499999", "/announced/500000/500001", "/announced/1/0"] {
        let mut client = Client::connect(server.address);
        client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        client.expect_reset();
        assert!(!server.seen.outcome(target).completed, "{target}");
    }
}

#[test]
fn a_truncated_file_ends_in_a_reset() {
    let past_end = crate::harness::DATA_BYTES - 1_000_000;
    for server in Server::in_all_modes() {
        let target = format!("/file/{past_end}/8000000");
        let mut client = Client::connect(server.address);
        client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        client.expect_reset();
        let outcome = server.seen.outcome(&target);
        assert!(!outcome.completed && outcome.bytes <= 1_000_000, "{outcome:?}");
    }
}

#[test]
fn a_reader_that_stalls_is_cut() {
    for mode in modes() {
        let options = ServerOptions { stall_timeout: Duration::from_millis(300), ..ServerOptions::default() };
        let server = Server::with_mode(&options, mode);
        let mut client = Client::connect_small(server.address);
        client.send("GET /file/0/67108864 HTTP/1.1\r\nHost: a\r\n\r\n");
        let outcome = server.seen.outcome("/file/0/67108864");
        assert!(!outcome.completed && outcome.bytes < 67_108_864, "{outcome:?}");
        client.expect_reset();
    }
}

#[test]
fn a_reader_that_only_is_slow_is_not_cut() {
    let options = ServerOptions { stall_timeout: Duration::from_millis(1500), ..ServerOptions::default() };
    let server = Server::with(&options);
    let mut client = Client::connect_small(server.address);
    client.send("GET /file/0/8388608 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.head().unwrap().0, 200);
    // Longer than the timeout in all, but never without progress for as long.
    for turn in 0..20 {
        std::thread::sleep(Duration::from_millis(100));
        assert!(client.exactly(200_000).unwrap() == data_at(turn * 200_000, 200_000));
    }
    assert_eq!(client.exactly(8_388_608 - 4_000_000).unwrap().len(), 4_388_608);
}

#[test]
fn a_reader_that_goes_away_is_noticed() {
    let server = Server::start();
    let mut client = Client::connect_small(server.address);
    client.send("GET /file/0/67108864 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.head().unwrap().0, 200);
    drop(client);
    let outcome = server.seen.outcome("/file/0/67108864");
    assert!(!outcome.completed && outcome.error.is_none(), "{outcome:?}");
}

#[test]
fn a_panic_takes_only_its_connection_down() {
    let server = Server::start();
    let mut other = Client::connect(server.address);
    assert_eq!(other.get("/describe").status, 200);
    let mut client = Client::connect(server.address);
    client.send("GET /panic HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(client.try_response(true).is_err());
    assert_eq!(other.get("/describe").status, 200);
}
