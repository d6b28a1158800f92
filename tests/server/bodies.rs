//! Response bodies, byte for byte, in every way of serving.

use std::fmt::Write as _;
use std::time::Duration;

use spliceway::server::unmatched_regions;

use crate::client::Client;
use crate::harness::{DATA_BYTES, PARTS, Server, data, data_at};

/// Around every threshold: nothing, a page, one `sendfile` call, one region, one cold window, many regions.
const SIZES: [u64; 13] = [
    0,
    1,
    4096,
    (256 << 10),
    (256 << 10) + 1,
    (1 << 20) - 1,
    1 << 20,
    (1 << 20) + 1,
    (2 << 20) + 1,
    (4 << 20) - 1,
    4 << 20,
    (4 << 20) + 1,
    64 << 20,
];

#[test]
fn regions_arrive_byte_for_byte() {
    for server in Server::in_all_modes() {
        let mut client = Client::connect(server.address);
        for size in SIZES {
            for offset in [0, 1] {
                let path = format!("/file/{offset}/{size}");
                let response = client.get(&path);
                assert_eq!(response.field("content-length"), Some(size.to_string().as_str()));
                assert!(response.body == data_at(offset, usize::try_from(size).unwrap()), "{path} differs");
                let outcome = server.seen.outcome(&path);
                assert_eq!((outcome.bytes, outcome.completed, outcome.error), (size, true, None), "{path}");
            }
        }
        assert_eq!(server.seen.outcomes().len(), 2 * SIZES.len(), "each end is told once");
    }
    assert_eq!(unmatched_regions(), 0);
}

#[test]
fn slow_readers_get_the_same() {
    for server in Server::in_all_modes() {
        let mut client = Client::connect_small(server.address);
        client.send(format!("GET /file/1/{} HTTP/1.1\r\nHost: a\r\n\r\n", DATA_BYTES - 1));
        let (status, _) = client.head().unwrap();
        assert_eq!(status, 200);
        let mut offset = 1;
        let mut reads = 0;
        while offset < DATA_BYTES {
            let some = client.read_some().unwrap();
            assert!(!some.is_empty(), "ended at {offset}");
            assert!(some == data_at(offset, some.len()), "differs at {offset}");
            offset += some.len() as u64;
            reads += 1;
            if reads % 32 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        assert_eq!(client.get("/describe").status, 200, "the connection can be used again");
    }
}

#[test]
fn regions_and_bytes_keep_their_order() {
    let mut expected = Vec::new();
    for (offset, len) in PARTS {
        expected.extend(format!("part {offset}+{len}\r\n").bytes());
        expected.extend(data_at(offset, usize::try_from(len).unwrap()));
    }
    expected.extend(b"the end");
    for server in Server::in_all_modes() {
        let mut client = Client::connect(server.address);
        for _ in 0..3 {
            let response = client.get("/multipart");
            assert_eq!(response.field("content-length"), Some(expected.len().to_string().as_str()));
            assert!(response.body == expected);
        }
    }
    assert_eq!(unmatched_regions(), 0);
}

#[test]
fn bodies_of_unknown_length_are_chunked() {
    for server in Server::in_all_modes() {
        let mut client = Client::connect(server.address);
        for size in [0, 1, 100_000, 100_007, 5_000_000] {
            let response = client.get(&format!("/chunked/{size}"));
            assert_eq!(response.field("transfer-encoding"), Some("chunked"));
            assert!(response.body == data_at(0, size));
        }
    }
    assert_eq!(unmatched_regions(), 0);
}

#[test]
fn http_1_0_gets_unknown_lengths_until_the_end() {
    let server = Server::start();
    let mut client = Client::connect(server.address);
    let response = client.send("GET /chunked/1000000 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").response();
    assert_eq!(response.field("transfer-encoding"), None);
    assert!(response.body == data_at(0, 1_000_000));
}

#[test]
fn pipelined_regions_do_not_mix() {
    for server in Server::in_all_modes() {
        let mut client = Client::connect(server.address);
        let sizes: Vec<usize> = (0..40).map(|turn| [1, 70_000, 0, 4096, 300_000][turn % 5] + turn).collect();
        let mut burst = String::new();
        for size in &sizes {
            write!(burst, "GET /file/{size}/{size} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        }
        client.send(burst);
        for size in sizes {
            assert!(client.response().body == data_at(size as u64, size), "{size}");
        }
    }
    assert_eq!(unmatched_regions(), 0);
}

#[test]
fn two_hundred_connections_at_once() {
    for server in Server::in_all_modes() {
        let address = server.address;
        let clients: Vec<_> = (0..200_u64)
            .map(|number| {
                std::thread::spawn(move || {
                    let mut client = Client::connect(address);
                    for turn in 0..5 {
                        let (offset, len) = (number * 1000 + turn, 300_000 + number);
                        let response = client.get(&format!("/file/{offset}/{len}"));
                        assert!(response.body == data_at(offset, usize::try_from(len).unwrap()));
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
    }
    assert_eq!(unmatched_regions(), 0);
}

#[test]
fn head_and_not_modified_keep_their_length() {
    let server = Server::start();
    let mut client = Client::connect(server.address);
    let response = client.send("HEAD /length-only/200 HTTP/1.1\r\nHost: a\r\n\r\n").response_without_body();
    assert_eq!((response.status, response.field("content-length")), (200, Some("12345")));
    let response = client.send("HEAD /file/0/70000 HTTP/1.1\r\nHost: a\r\n\r\n").response_without_body();
    assert_eq!(response.status, 200);
    let response = client.get("/length-only/304");
    assert_eq!(response.status, 304);
    assert_eq!(client.get("/length-only/204").status, 204);
    assert_eq!(client.get("/describe").text(), "GET /describe test", "nothing was left in between");
}

#[test]
fn a_peer_that_shut_down_its_side_still_gets_its_answers() {
    let server = Server::start();
    let mut client = Client::connect_small(server.address);
    client.send("GET /file/0/16777216 HTTP/1.1\r\nHost: a\r\n\r\nGET /describe HTTP/1.1\r\nHost: a\r\n\r\n");
    client.half_close();
    assert!(client.response().body == data_at(0, 16 << 20));
    assert_eq!(client.response().status, 200);
    client.expect_end();
}

#[test]
fn an_announced_length_is_kept() {
    let server = Server::start();
    let mut client = Client::connect(server.address);
    assert_eq!(client.get("/announced/500000/500000").body.len(), 500_000);
    // A body that says it is empty is not asked, and is no less complete for it.
    assert_eq!(client.get("/announced/0/0").body.len(), 0);
    assert!(server.seen.outcome("/announced/0/0").completed);
    assert_eq!(client.get("/contradiction").status, 500);
    client.expect_end();
}

#[test]
fn what_is_not_in_memory_is_brought_in() {
    for server in Server::in_all_modes() {
        let mut client = Client::connect(server.address);
        for target in ["/file/1/67108864", "/file/3000000/5000001"] {
            evict();
            let response = client.get(target);
            let (offset, len) =
                if target.contains("67108864") { (1, 64 << 20) } else { (3_000_000, 5_000_001) };
            assert!(response.body == data_at(offset, len), "{target}");
        }
        evict();
        let cold = client.get("/multipart").body;
        assert!(cold == client.get("/multipart").body);
        evict();
        assert!(client.get("/chunked/5000000").body == data_at(0, 5_000_000));
    }
}

/// Drops the data from the page cache, where its filesystem can.
fn evict() {
    let file = data();
    file.sync_all().unwrap();
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    if spliceway::sys::is_resident(file, 20 << 20) != Some(false) {
        eprintln!("the test's data cannot be evicted");
    }
}
