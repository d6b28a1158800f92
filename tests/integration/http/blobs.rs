//! What a blob's answer says of it, for blobs of every size, and who may have it.

use std::sync::Arc;

use super::{Fixture, GATE, LEN};
use crate::support::client::{Connection, End, Request, get};
use crate::support::origin::Origin;
use crate::support::plan::{Gate, Plan};
use crate::support::process::Spliceway;
use crate::support::{MIB, eventually, noise, sha256};

#[test]
fn blob_headers_are_what_clients_rely_on() {
    for fixture in [Fixture::stored(), Fixture::growing()] {
        let answers = [
            Request::get(&fixture.blob.path)
                .header("Accept-Encoding", "gzip, zstd")
                .open(fixture.spliceway.addr()),
            Request::head(&fixture.blob.path).open(fixture.spliceway.addr()),
        ];
        for answer in &answers {
            assert_eq!(answer.status(), 200);
            let expected = [
                ("content-length", LEN.to_string()),
                ("content-type", "application/octet-stream".into()),
                ("docker-content-digest", fixture.blob.digest.clone()),
                ("docker-distribution-api-version", "registry/2.0".into()),
                ("etag", fixture.etag()),
                ("accept-ranges", "bytes".into()),
                ("cache-control", "max-age=31536000".into()),
            ];
            for (name, value) in expected {
                assert_eq!(answer.head.header(name), Some(value.as_str()), "{name}");
            }
            assert_eq!(answer.head.header("content-encoding"), None);
        }
        let part = fixture.get().range("0-1").open(fixture.spliceway.addr());
        for name in ["docker-content-digest", "etag", "accept-ranges", "docker-distribution-api-version"] {
            assert_eq!(part.head.header(name), answers[0].head.header(name), "{name} of a 206");
        }
        fixture.gate.open();
    }
}

#[test]
fn head_of_an_absent_blob_starts_no_fill() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let blob = origin.random_blob(1, LEN);
    let head = Request::head(&blob.path).send(spliceway.addr()).expect(200);
    assert_eq!(head.header("content-length"), Some(LEN.to_string().as_str()));
    assert_eq!(head.header("docker-content-digest"), Some(blob.digest.as_str()));
    let methods: Vec<_> = origin.all_seen().iter().map(|seen| seen.method().to_owned()).collect();
    assert_eq!(methods, ["HEAD"]);
    assert!(!spliceway.fill_path(&blob.digest).exists());
}

#[test]
fn blob_of_unknown_length_is_chunked_and_ignores_ranges_until_it_is_stored() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.origin(&origin).set("stall_timeout", "60s");
    });
    let blob = origin.random_blob(1, LEN);
    let gate = Gate::new();
    origin.script("GET", &blob.path, [Plan::stall(GATE, &gate).chunked()]);
    let first = Request::get(&blob.path).open(spliceway.addr());
    assert_eq!(first.head.header("content-length"), None);
    assert_eq!(first.head.header("transfer-encoding"), Some("chunked"));
    let ranged = Request::get(&blob.path).range("5-9").open(spliceway.addr());
    assert_eq!(ranged.status(), 200);
    let head = Request::head(&blob.path).send(spliceway.addr());
    assert_eq!(head.status(), 200);
    gate.open();
    first.collect().expect_body(&blob.bytes);
    ranged.collect().expect_body(&blob.bytes);
    spliceway.wait_published(&blob.digest);
    eventually("the stored blob", || {
        let answer = Request::get(&blob.path).range("5-9").send(spliceway.addr());
        (answer.status() == 206).then(|| answer.expect_body(&blob.bytes[5..10]))
    });
    let answer = get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
    assert_eq!(answer.header("content-length"), Some(LEN.to_string().as_str()));
}

#[test]
fn reader_of_http_1_0_gets_unknown_length_only_whole() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let raw = |path: &str| {
        let mut connection = Connection::open(spliceway.addr());
        let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", spliceway.addr());
        connection.write(request.as_bytes()).expect("a request is written");
        connection.drain()
    };
    let body = |bytes: &[u8]| {
        let head = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
        bytes[head + 4..].to_vec()
    };
    let good = origin.random_blob(1, LEN);
    origin.script("GET", &good.path, [Plan::healthy().chunked()]);
    let (bytes, end) = raw(&good.path);
    assert_eq!(end, End::Complete);
    assert!(body(&bytes) == *good.bytes);
    // For such a client an orderly close is the end of a whole body.
    let bad = origin.random_blob(2, LEN);
    origin.always("GET", &bad.path, Plan::corrupt(LEN as u64 - 1).chunked());
    let (bytes, _) = raw(&bad.path);
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(20)]).into_owned();
    assert_eq!(text.split(' ').nth(1), Some("502"), "nothing of it may come before the verdict: {text}");
}

#[test]
fn reader_of_http_1_0_follows_a_fill_of_known_length() {
    let fixture = Fixture::growing();
    let addr = fixture.spliceway.addr();
    let mut connection = Connection::open(addr);
    let request = format!("GET {} HTTP/1.0\r\nHost: {addr}\r\n\r\n", fixture.blob.path);
    connection.write(request.as_bytes()).expect("a request is written");
    // It begins before the end is there: the length tells this reader a cut from an end.
    assert!(connection.is_answered_within(crate::support::PATIENCE));
    fixture.gate.open();
    let (bytes, end) = connection.drain();
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
    assert!(
        text.contains(&format!("content-length: {LEN}")) && !text.contains("transfer-encoding"),
        "{text}"
    );
    assert_eq!(end, End::Complete);
    assert!(bytes[head + 4..] == **fixture.blob.bytes);
}

#[test]
fn connection_is_kept_or_closed_as_asked() {
    let fixture = Fixture::stored();
    let addr = fixture.spliceway.addr();
    let mut connection = Connection::open(addr);
    for _ in 0..3 {
        let exchange = connection.request(addr, &fixture.get()).expect("an answer");
        connection = exchange.into_connection();
    }
    let request = fixture.get().range("0-9").header("Connection", "close");
    let exchange = connection.request(addr, &request).expect("an answer");
    assert_eq!(exchange.head.header("connection"), Some("close"));
    assert_eq!(exchange.into_connection().drain(), (Vec::new(), End::Complete));
}

#[test]
fn empty_and_one_byte_blobs() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let empty = Arc::new(Vec::new());
    let path = format!("/v2/team/app/blobs/{}", origin.blob(empty));
    for _ in 0..2 {
        let answer = get(spliceway.addr(), &path).expect(200).expect_body(b"");
        assert_eq!(answer.header("content-length"), Some("0"));
        eventually("publication", || spliceway.is_published(&sha256(b"")).then_some(()));
        for spec in ["0-", "0-0", "-1"] {
            let answer = Request::get(&path).range(spec).send(spliceway.addr()).expect(416);
            assert_eq!(answer.header("content-range"), Some("bytes */0"));
        }
    }
    let blob = origin.random_blob(1, 1);
    get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
    Request::get(&blob.path).range("-1").send(spliceway.addr()).expect(206).expect_body(&blob.bytes);
}

#[test]
fn sizes_around_the_thresholds_are_served_cold_and_warm() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    // Small blobs in memory, pages, the held back tail, windows of the sender.
    for around in [4096, 32 * 1024, 256 * 1024, MIB, 2 * MIB, 4 * MIB] {
        for len in [around - 1, around, around + 1] {
            let blob = origin.random_blob(len as u64, len);
            for _ in 0..2 {
                get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
                spliceway.wait_published(&blob.digest);
            }
            assert_eq!(origin.seen("GET", &blob.path).len(), 1);
        }
    }
}

#[test]
fn sha512_blob_is_verified_and_kept() {
    use sha2::{Digest as _, Sha512};
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let bytes = noise(1, LEN);
    let digest = format!("sha512:{}", data_encoding::HEXLOWER.encode(&Sha512::digest(&bytes)));
    let path = format!("/v2/team/app/blobs/{digest}");
    origin.blob_as(&digest, noise(2, LEN));
    get(spliceway.addr(), &path).expect_failure();
    origin.blob_as(&digest, bytes.clone());
    get(spliceway.addr(), &path).expect(200).expect_body(&bytes);
    eventually("a second answer without upstream", || {
        let before = origin.all_seen().len();
        get(spliceway.addr(), &path).expect(200).expect_body(&bytes);
        (origin.all_seen().len() == before).then_some(())
    });
}

#[test]
fn blob_of_another_repository_costs_a_head_and_leaks_nothing() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let blob = origin.random_blob(1, LEN);
    get(spliceway.addr(), &blob.path).expect(200);
    spliceway.wait_published(&blob.digest);
    // A repository that has it too.
    let other = format!("/v2/other/app/blobs/{}", blob.digest);
    get(spliceway.addr(), &other).expect(200).expect_body(&blob.bytes);
    let asked: Vec<_> = origin.all_seen().iter().filter(|seen| seen.path() == other).cloned().collect();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].method(), "HEAD");
    // A repository that may not have it.
    let private = format!("/v2/private/app/blobs/{}", blob.digest);
    origin.always("HEAD", &private, Plan::status(404));
    origin.always("GET", &private, Plan::status(404));
    get(spliceway.addr(), &private).expect(404);
    Request::get(&private).range("0-9").send(spliceway.addr()).expect(404);
    Request::head(&private).send(spliceway.addr()).expect(404);
}

#[test]
fn repositories_are_told_apart_while_the_blob_is_being_filled() {
    let fixture = Fixture::growing();
    let private = format!("/v2/private/app/blobs/{}", fixture.blob.digest);
    fixture.origin.always("HEAD", &private, Plan::status(404));
    fixture.origin.always("GET", &private, Plan::status(404));
    get(fixture.spliceway.addr(), &private).expect(404);
    fixture.gate.open();
}
