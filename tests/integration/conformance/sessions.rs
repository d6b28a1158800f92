//! Sessions: how far they are, who may go on with them, and what a client that leaves, stalls or is turned away finds.

use std::fs;
use std::thread;

use rustix::process::Signal;

use super::registry;
use super::uploads::assert_pushed;
use crate::support::client::{Answer, Connection, Request};
use crate::support::process::Spliceway;
use crate::support::push::{Repository, Session, assert_range, assert_upload, location, received};
use crate::support::{MIB, PATIENCE, eventually, noise, sha256};

#[test]
fn a_session_says_where_it_is() {
    let (_spliceway, repository) = registry();
    let answer = repository.post("").expect(202);
    assert_upload(&answer, 0);
    assert_eq!(answer.header("content-length"), Some("0"), "{answer}");
    let other = repository.post("").expect(202);
    assert_ne!(answer.header("docker-upload-uuid"), other.header("docker-upload-uuid"));
    let session = repository.session(&answer);
    assert!(session.path().starts_with("/v2/team/app/blobs/uploads/"), "{}", session.path());

    let bytes = noise(1, 400_000);
    let mut at = 0;
    // An empty chunk is one too. No chunk's size is a multiple of the hash's block.
    for len in [10, 0, 63, 64, 65, 1, 70_001, 0, 200_000] {
        let chunk = &bytes[at..at + len];
        at += len;
        assert_upload(&session.patch(chunk).expect(202), at);
        let status = session.status().expect(204);
        assert_upload(&status, at);
        assert!(status.body.is_empty());
    }
    // All through, the first Location did; and it does without its query.
    let session = session.without_query();
    assert_upload(&session.status().expect(204), at);
    assert_upload(&session.stream(&bytes[at..at + 50_000]).expect(202), at + 50_000);
    at += 50_000;
    let answer = session.finish(&sha256(&bytes), &bytes[at..]);
    assert_pushed(&repository, answer, &sha256(&bytes), &bytes);
}

#[test]
fn a_client_that_leaves_in_mid_chunk_goes_on_where_the_status_says() {
    let (_spliceway, repository) = registry();
    let bytes = noise(1, 4 * MIB);
    for (number, sent) in [0, 1, 70_000, MIB + 1, 3 * MIB].into_iter().enumerate() {
        let bytes = [&bytes[..], &[u8::try_from(number).expect("small")]].concat();
        for framing in ["Content-Length: 3145728", "Transfer-Encoding: chunked"] {
            let mut session = repository.begin();
            let kept = session.patch(&bytes[..MIB]).expect(202);
            session.follow(&kept);
            let (name, value) = framing.split_once(": ").expect("a header");
            let request = session.request("PATCH").header(name, value);
            let mut connection = Connection::open(repository.addr());
            connection.write(&request.bytes(repository.addr())).expect("the head is written");
            if name == "Transfer-Encoding" {
                connection.write(b"300000\r\n").expect("a chunk's head is written");
            }
            connection.write(&bytes[MIB..MIB + sent]).expect("a part is written");
            drop(connection);
            let status = session.status().expect(204);
            assert!((MIB..=MIB + sent).contains(&received(&status)), "{sent} bytes sent: {status}");
            session.resume(&bytes).expect(201);
            repository.blob(&sha256(&bytes)).expect(200).expect_body(&bytes);
        }
    }
}

#[test]
fn a_body_that_waits_for_leave_is_given_it() {
    let (_spliceway, repository) = registry();
    let bytes = noise(1, 100_000);
    let session = repository.begin();
    let request = session.request("PATCH").header("Expect", "100-continue");
    let mut connection = Connection::open(repository.addr());
    let head = request.header("Content-Length", "100000").bytes(repository.addr());
    connection.write(&head).expect("the head is written");
    assert!(connection.is_answered_within(PATIENCE), "no 100 Continue");
    connection.write(&bytes).expect("the body is written");
    let answer = connection.exchange("PATCH").expect("an answer").collect().expect(202);
    assert_upload(&answer, bytes.len());
    assert_pushed(&repository, session.finish(&sha256(&bytes), &[]), &sha256(&bytes), &bytes);
}

#[test]
fn one_connection_serves_a_whole_push() {
    let (_spliceway, repository) = registry();
    let bytes = noise(1, 200_000);
    let addr = repository.addr();
    let exchange = |connection: Connection, request: &Request| {
        connection.request(addr, request).expect("an answer").finish()
    };
    let begin = repository.request("POST", "blobs/uploads/").body([]);
    let (answer, connection) = exchange(Connection::open(addr), &begin);
    let session = repository.session(&answer);
    let (answer, connection) = exchange(connection, &session.patch_request(0, &bytes[..100_000]));
    answer.expect(202);
    let (answer, connection) = exchange(connection, &session.patch_request(100, &bytes[100..200]));
    answer.expect(416);
    let chunked = session.request("PATCH").chunked(&bytes[100_000..], 1000);
    let (answer, connection) = exchange(connection, &chunked);
    answer.expect(202);
    let (answer, connection) = exchange(connection, &session.finish_request(&sha256(&bytes), &[]));
    answer.expect(201);
    let path = format!("blobs/{}", sha256(&bytes));
    exchange(connection, &repository.request("GET", &path)).0.expect(200).expect_body(&bytes);
}

#[test]
fn a_session_that_nobody_began_is_unknown() {
    let (_spliceway, repository) = registry();
    let session = repository.begin();
    session.patch(b"hello").expect(202);
    let digest = sha256(b"hello");
    let path = "/v2/team/app/blobs/uploads/";
    let unknown = format!("{path}5c6c9a0e-4f5e-4f0a-9d1b-0123456789ab");
    for target in [unknown.as_str(), &format!("{path}..%2e"), &format!("{path}x"), &format!("{path}_uploads")]
    {
        for (method, query) in
            [("GET", ""), ("PATCH", ""), ("PUT", &*format!("?digest={digest}")), ("DELETE", "")]
        {
            let answer = Request::new(method, format!("{target}{query}")).body([]).send(repository.addr());
            if target == unknown {
                answer.expect_error(404, "BLOB_UPLOAD_UNKNOWN");
            } else {
                assert!(matches!(answer.status(), 400 | 404), "{method} {target}: {answer}");
                answer.error_code();
            }
        }
    }
    // Another repository's session is not this one's, whoever knows its name.
    let elsewhere = session.in_repository("team/other");
    elsewhere.status().expect_error(404, "BLOB_UPLOAD_UNKNOWN");
    elsewhere.patch(b" world").expect_error(404, "BLOB_UPLOAD_UNKNOWN");
    elsewhere.finish(&digest, &[]).expect_error(404, "BLOB_UPLOAD_UNKNOWN");
    elsewhere.cancel().expect_error(404, "BLOB_UPLOAD_UNKNOWN");
    session.finish(&digest, &[]).expect(201);
}

#[test]
fn a_session_can_be_cancelled() {
    let (spliceway, repository) = registry();
    let session = repository.begin();
    session.patch(&noise(1, 100_000)).expect(202);
    let directory = session.directory(&spliceway.data().join("local"));
    assert!(directory.join("data").exists(), "{} is where it is kept", directory.display());
    session.cancel().expect(204);
    assert!(!directory.exists(), "{} is left", directory.display());
    session.status().expect_error(404, "BLOB_UPLOAD_UNKNOWN");
    session.patch(b"more").expect_error(404, "BLOB_UPLOAD_UNKNOWN");
    session.finish(&sha256(&noise(1, 100_000)), &[]).expect_error(404, "BLOB_UPLOAD_UNKNOWN");
    session.cancel().expect_error(404, "BLOB_UPLOAD_UNKNOWN");
}

#[test]
fn of_chunks_at_once_one_wins() {
    let (_spliceway, repository) = registry();
    for round in 0..10 {
        let session = repository.begin();
        let chunks: Vec<Vec<u8>> = (0..6).map(|seed| noise(round * 10 + seed, 300_000)).collect();
        let answers: Vec<Answer> = thread::scope(|scope| {
            let clients: Vec<_> =
                chunks.iter().map(|chunk| scope.spawn(|| session.patch_at(0, chunk))).collect();
            clients.into_iter().map(|client| client.join().expect("no panic")).collect()
        });
        let winners: Vec<usize> =
            (0..chunks.len()).filter(|&number| answers[number].status() == 202).collect();
        assert_eq!(winners.len(), 1, "round {round}");
        for answer in answers {
            if answer.status() != 202 {
                let answer = answer.expect_error(416, "RANGE_INVALID");
                location(&answer);
                answer.header("range").expect("a Range");
            }
        }
        assert_range(&session.status().expect(204), 300_000);
        let won = &chunks[winners[0]];
        assert_pushed(&repository, session.finish(&sha256(won), &[]), &sha256(won), won);
    }
}

#[test]
fn a_second_chunk_is_refused_while_one_is_being_written() {
    let (spliceway, repository) = registry();
    let bytes = noise(1, 8 * MIB);
    let session = repository.begin();
    let request = session.request("PATCH").header("Content-Length", &bytes.len().to_string());
    let mut first = Connection::open(repository.addr());
    first.write(&request.bytes(repository.addr())).expect("the head is written");
    first.write(&bytes[..4 * MIB]).expect("half of it is written");
    let data = session.directory(&spliceway.data().join("local")).join("data");
    eventually("the first half to be written", || {
        fs::metadata(&data).is_ok_and(|data| data.len() > 0).then_some(())
    });
    for answer in [session.patch(b"second"), session.patch_at(0, b"third"), session.stream(b"fourth")] {
        let answer = answer.expect_error(416, "RANGE_INVALID");
        location(&answer);
    }
    let early = session.finish(&sha256(&bytes), &[]);
    assert!((400..500).contains(&early.status()), "{early}");
    first.write(&bytes[4 * MIB..]).expect("the rest is written");
    let answer = first.exchange("PATCH").expect("an answer").collect().expect(202);
    assert_upload(&answer, bytes.len());
    assert_pushed(&repository, session.finish(&sha256(&bytes), &[]), &sha256(&bytes), &bytes);
}

/// A chunk of which half has been received.
fn half_sent(spliceway: &Spliceway, repository: &Repository, bytes: &[u8]) -> (Session, Connection) {
    let session = repository.begin();
    let request = session.request("PATCH").header("Content-Length", &bytes.len().to_string());
    let mut connection = Connection::open(repository.addr());
    connection.write(&request.bytes(repository.addr())).expect("the head is written");
    connection.write(&bytes[..bytes.len() / 2]).expect("half of it is written");
    let data = session.directory(&spliceway.data().join("local")).join("data");
    eventually("a part of the chunk", || fs::metadata(&data).is_ok_and(|data| data.len() > 0).then_some(()));
    (session, connection)
}

#[test]
fn a_client_that_stalls_is_cut_off_and_its_session_stays() {
    let spliceway = Spliceway::start(|setup| {
        setup.server("stall_timeout", "1s");
    });
    let repository = Repository::new(spliceway.addr(), "team/app");
    let bytes = noise(1, 4 * MIB);
    let (mut session, stalled) = half_sent(&spliceway, &repository, &bytes);
    // It ends, whether with an answer or without.
    stalled.drain();
    assert!(received(&session.status().expect(204)) <= bytes.len() / 2);
    session.resume(&bytes).expect(201);
    repository.blob(&sha256(&bytes)).expect(200).expect_body(&bytes);
}

#[test]
fn a_chunk_under_way_is_received_before_the_server_ends() {
    let (mut spliceway, repository) = registry();
    let bytes = noise(1, 4 * MIB);
    let (session, mut connection) = half_sent(&spliceway, &repository, &bytes);
    spliceway.signal(Signal::TERM);
    eventually("the listener to be closed", || {
        Connection::try_open(repository.addr()).is_err().then_some(())
    });
    connection.write(&bytes[bytes.len() / 2..]).expect("the rest is written");
    let answer = connection.exchange("PATCH").expect("an answer").collect().expect(202);
    assert_upload(&answer, bytes.len());
    spliceway.wait_stopped();
    spliceway.restart(|_| ());
    let repository = repository.at(spliceway.addr());
    session.at(repository.addr()).finish(&sha256(&bytes), &[]).expect(201);
    repository.blob(&sha256(&bytes)).expect(200).expect_body(&bytes);
}

#[test]
fn a_session_goes_on_after_a_reload() {
    let (mut spliceway, repository) = registry();
    let bytes = noise(1, 4 * MIB);
    let (session, mut connection) = half_sent(&spliceway, &repository, &bytes);
    spliceway.reload(|setup| {
        setup.registry("ranges_max", 7);
    });
    spliceway.wait_log(&["reload"]);
    connection.write(&bytes[bytes.len() / 2..]).expect("the rest is written");
    let answer = connection.exchange("PATCH").expect("an answer").collect().expect(202);
    assert_upload(&answer, bytes.len());
    session.finish(&sha256(&bytes), &[]).expect(201);
    repository.blob(&sha256(&bytes)).expect(200).expect_body(&bytes);
}
