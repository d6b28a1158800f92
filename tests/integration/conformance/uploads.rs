//! Pushing blobs: the ways to do it, the order of chunks, mounts.

use std::thread;

use super::{WAYS, Way, registry};
use crate::support::client::Answer;
use crate::support::push::{
    OCTETS, Repository, Session, assert_range, assert_tree_is_right, assert_upload, received,
};
use crate::support::{MIB, noise, sha256, sha512};

/// Pushes `bytes` as `digest`; the last answer, whatever it is, and the session if there is one.
#[track_caller]
pub(super) fn upload(
    repository: &Repository,
    way: Way,
    query: &str,
    digest: &str,
    bytes: &[u8],
) -> (Answer, Option<Session>) {
    if matches!(way, Way::Post) {
        let path = format!("blobs/uploads/?digest={digest}");
        let request = repository.request("POST", &path).header("Content-Type", OCTETS).body(bytes);
        return (repository.send(&request), None);
    }
    let mut session = repository.begin_by(query);
    let mut at = 0;
    if matches!(way, Way::Chunks | Way::ChunksAndPut) && !bytes.is_empty() {
        let size = bytes.len() / 3 + 1;
        let chunks: Vec<&[u8]> = bytes.chunks(size).collect();
        let patched = chunks.len() - usize::from(matches!(way, Way::ChunksAndPut));
        for chunk in &chunks[..patched] {
            let answer = session.patch_at(at, chunk).expect(202);
            at += chunk.len();
            assert_upload(&answer, at);
            session.follow(&answer);
        }
    }
    if matches!(way, Way::Stream) {
        let answer = session.stream(bytes).expect(202);
        assert_upload(&answer, bytes.len());
        session.follow(&answer);
        at = bytes.len();
    }
    let rest = &bytes[at..];
    let mut request = session.finish_request(digest, rest);
    if matches!(way, Way::ChunksAndPut) && !rest.is_empty() {
        request = request.header("Content-Range", &format!("{at}-{}", bytes.len() - 1));
    }
    (session.send(&request), Some(session))
}

/// The answer says that the blob is there, and it is.
#[track_caller]
pub(super) fn assert_pushed(repository: &Repository, answer: Answer, digest: &str, bytes: &[u8]) {
    let answer = answer.expect(201);
    assert_eq!(answer.header("docker-content-digest"), Some(digest), "{answer}");
    assert_eq!(answer.header("content-length"), Some("0"), "{answer}");
    repository.assert_location(&answer, bytes);
    let head = repository.head_blob(digest).expect(200);
    assert_eq!(head.header("content-length"), Some(bytes.len().to_string().as_str()));
    assert_eq!(head.header("docker-content-digest"), Some(digest));
    repository.blob(digest).expect(200).expect_body(bytes);
}

#[test]
fn every_way_of_pushing_a_blob() {
    let (_spliceway, repository) = registry();
    let mut seed = 0;
    for way in WAYS {
        for len in [0, 1, 2, 512, 65_536, 3 * MIB - 5] {
            seed += 1;
            let bytes = noise(seed, len);
            let digest = sha256(&bytes);
            if len > 1 {
                repository.blob(&digest).expect_error(404, "BLOB_UNKNOWN");
            }
            let (answer, session) = upload(&repository, way, "", &digest, &bytes);
            assert_pushed(&repository, answer, &digest, &bytes);
            // What is finished is no session any more.
            if let Some(session) = session {
                session.status().expect_error(404, "BLOB_UPLOAD_UNKNOWN");
                session.finish(&digest, &[]).expect_error(404, "BLOB_UPLOAD_UNKNOWN");
            }
        }
    }
}

#[test]
fn every_way_of_pushing_a_blob_by_sha512() {
    let (_spliceway, repository) = registry();
    let mut seed = 100;
    for query in ["", "?digest-algorithm=sha512", "?digest-algorithm=sha256"] {
        for way in WAYS {
            for len in [0, 1, 512, MIB + 5] {
                seed += 1;
                let bytes = noise(seed, len);
                let digest = sha512(&bytes);
                let (answer, _) = upload(&repository, way, query, &digest, &bytes);
                assert_pushed(&repository, answer, &digest, &bytes);
            }
        }
    }
    // What was begun for sha512 may still end as sha256.
    let bytes = noise(99, 100_000);
    let session = repository.begin_by("?digest-algorithm=sha512");
    session.patch(&bytes[..70_000]).expect(202);
    let answer = session.finish(&sha256(&bytes), &bytes[70_000..]);
    assert_pushed(&repository, answer, &sha256(&bytes), &bytes);
}

#[test]
fn an_algorithm_that_nobody_knows_is_refused() {
    let (_spliceway, repository) = registry();
    let session = repository.begin();
    session.patch(b"hello").expect(202);
    for digest in ["md5:5d41402abc4b2a76b9719d911017c592", "sha256:short", "sha256:", "hello", ""] {
        session.finish(digest, &[]).expect_error(400, "DIGEST_INVALID");
        if !digest.is_empty() {
            repository.post(&format!("?digest={digest}")).expect_error(400, "DIGEST_INVALID");
        }
    }
    // No digest at all.
    session.send(&session.request("PUT").body([])).expect_error(400, "DIGEST_INVALID");
    session.finish(&sha256(b"hello"), &[]).expect(201);
    let refused = repository.post("?digest-algorithm=md5").expect(400);
    assert!(!refused.error_code().is_empty(), "{refused}");
}

#[test]
fn a_wrong_digest_is_refused_in_every_way_and_the_session_stays() {
    let (_spliceway, repository) = registry();
    let mut seed = 200;
    for wrong in [sha256 as fn(&[u8]) -> String, sha512] {
        for way in WAYS {
            seed += 1;
            let bytes = noise(seed, 300_000);
            let digest = wrong(b"something else");
            let (answer, session) = upload(&repository, way, "", &digest, &bytes);
            let answer = answer.expect_error(400, "DIGEST_INVALID");
            assert!(answer.header("docker-content-digest").is_none(), "{answer}");
            repository.head_blob(&digest).expect(404);
            repository.head_blob(&sha256(&bytes)).expect(404);
            let Some(mut session) = session else { continue };
            // What came with the refused PUT may be kept or dropped: the status says which.
            let status = session.status().expect(204);
            assert!(received(&status) <= bytes.len(), "{status}");
            let answer = session.resume(&bytes);
            assert_pushed(&repository, answer, &sha256(&bytes), &bytes);
        }
    }
}

#[test]
fn chunks_out_of_order_are_refused_with_where_to_go_on() {
    let (_spliceway, repository) = registry();
    let bytes = noise(1, 3 * MIB - 5);
    let size = MIB;
    let session = repository.begin();
    let refused = |answer: Answer, len: usize| {
        let answer = answer.expect_error(416, "RANGE_INVALID");
        assert_upload(&answer, len);
    };
    // Ahead of the first byte, and by one.
    refused(session.patch_at(size, &bytes[size..2 * size]), 0);
    refused(session.patch_at(1, &bytes[1..size]), 0);
    assert_upload(&session.status().expect(204), 0);
    assert_upload(&session.patch_at(0, &bytes[..size]).expect(202), size);
    // The same again; within; ahead; far beyond any number that makes sense.
    refused(session.patch_at(0, &bytes[..size]), size);
    refused(session.patch_at(size - 1, &bytes[size - 1..2 * size]), size);
    refused(session.patch_at(2 * size, &bytes[2 * size..]), size);
    let far = session.request("PATCH").header("Content-Range", "9000000000000000000-9000000000000000009");
    refused(session.send(&far.body(&bytes[..10])), size);
    assert_upload(&session.patch_at(size, &bytes[size..2 * size]).expect(202), 2 * size);
    // The last chunk too, with PUT.
    let digest = sha256(&bytes);
    let early = session.finish_request(&digest, &bytes[..size]);
    refused(session.send(&early.header("Content-Range", &format!("0-{}", size - 1))), 2 * size);
    repository.head_blob(&digest).expect(404);
    let last = session.finish_request(&digest, &bytes[2 * size..]);
    let last = last.header("Content-Range", &format!("{}-{}", 2 * size, bytes.len() - 1));
    assert_pushed(&repository, session.send(&last), &digest, &bytes);
}

#[test]
fn a_chunk_of_unknown_length_may_say_its_place() {
    let (_spliceway, repository) = registry();
    let bytes = noise(1, 500_000);
    let session = repository.begin();
    let stream = |first: usize, range: &str| {
        let request = session.request("PATCH").header("Content-Range", range);
        session.send(&request.chunked(&bytes[first..first + 250_000], 10_000))
    };
    assert_upload(&stream(0, "0-249999").expect(202), 250_000);
    stream(0, "0-249999").expect_error(416, "RANGE_INVALID");
    assert_upload(&stream(250_000, "250000-499999").expect(202), 500_000);
    assert_pushed(&repository, session.finish(&sha256(&bytes), &[]), &sha256(&bytes), &bytes);
}

#[test]
fn a_content_range_that_does_not_fit_changes_nothing_wrongly() {
    let (_spliceway, repository) = registry();
    let bytes = noise(1, 1000);
    for range in ["", "x", "0", "-", "0-", "-9", "9-0", "0-9-9", "0-99999999999999999999999", "a-b", "0 - 9"]
    {
        let session = repository.begin();
        session.patch(&bytes[..100]).expect(202);
        let request = session.request("PATCH").header("Content-Range", range);
        let answer = session.send(&request.body(&bytes[100..200]));
        assert!(matches!(answer.status(), 400 | 416), "{range:?}: {answer}");
        assert!(!answer.error_code().is_empty(), "{range:?}: {answer}");
        assert_range(&session.status().expect(204), 100);
    }
    // A length that is another than the range's.
    for range in ["100-198", "100-200", "100-100"] {
        let session = repository.begin();
        session.patch(&bytes[..100]).expect(202);
        let request = session.request("PATCH").header("Content-Range", range);
        let answer = session.send(&request.body(&bytes[100..200]));
        assert!(matches!(answer.status(), 400 | 416), "{range:?}: {answer}");
        let code = answer.error_code();
        assert!(matches!(code.as_str(), "SIZE_INVALID" | "RANGE_INVALID"), "{range:?}: {answer}");
        assert_range(&session.status().expect(204), 100);
        let answer = session.finish(&sha256(&bytes), &bytes[100..]);
        assert_pushed(&repository, answer, &sha256(&bytes), &bytes);
    }
}

#[test]
fn a_blob_is_mounted_from_a_repository_that_has_it() {
    let (_spliceway, repository) = registry();
    let other = repository.named("other/app");
    for digest in [sha256 as fn(&[u8]) -> String, sha512] {
        let bytes = noise(7, 300_000);
        let digest = digest(&bytes);
        repository.push_as(&bytes, &digest);
        let query = format!("?mount={}&from=team%2Fapp", digest.replace(':', "%3A"));
        assert_pushed(&other, other.post(&query), &digest, &bytes);
        // A second time, and into itself.
        assert_pushed(&other, other.post(&query), &digest, &bytes);
        assert_pushed(&repository, repository.post(&query), &digest, &bytes);
        // It stays when it goes where it came from.
        repository.delete_blob(&digest).expect(202);
        other.blob(&digest).expect(200).expect_body(&bytes);
    }
}

#[test]
fn what_cannot_be_mounted_begins_an_upload() {
    let (_spliceway, repository) = registry();
    let bytes = noise(7, 300_000);
    let digest = repository.push(&bytes);
    let missing = sha256(b"nobody has this");
    let other = repository.named("other/app");
    let queries = [
        format!("?mount={missing}&from=team/app"),
        format!("?mount={digest}&from=no/such"),
        format!("?mount={digest}&from=other/app"),
        format!("?mount={missing}"),
    ];
    for query in queries {
        let answer = other.post(&query).expect(202);
        assert_upload(&answer, 0);
        other.head_blob(&digest).expect(404);
        let session = other.session(&answer);
        let own = [query.as_bytes(), &bytes].concat();
        assert_pushed(&other, session.finish(&sha256(&own), &own), &sha256(&own), &own);
    }
    for query in [format!("?mount={digest}&from=../app"), "?mount=sha256:1&from=team/app".to_owned()] {
        let answer = other.post(&query);
        assert!(matches!(answer.status(), 202 | 400), "{query}: {answer}");
    }
    // The source is optional (the registry may look for it), but then what is said must be so.
    let answer = repository.named("third/app").post(&format!("?mount={digest}"));
    if answer.status() == 201 {
        repository.named("third/app").blob(&digest).expect(200).expect_body(&bytes);
    } else {
        assert_upload(&answer.expect(202), 0);
        repository.named("third/app").head_blob(&digest).expect(404);
    }
}

#[test]
fn eight_clients_push_the_same_blob_at_once() {
    let (spliceway, repository) = registry();
    for (round, way) in (0..).zip(WAYS) {
        let bytes = noise(round, 2 * MIB);
        let digest = sha256(&bytes);
        thread::scope(|scope| {
            for number in 0..8 {
                // Half of them into another repository.
                let repository = repository.named(if number % 2 == 0 { "team/app" } else { "other/app" });
                let (bytes, digest) = (&bytes, &digest);
                scope.spawn(move || {
                    let (answer, _) = upload(&repository, way, "", digest, bytes);
                    assert_pushed(&repository, answer, digest, bytes);
                });
            }
        });
    }
    assert_tree_is_right(&spliceway.data().join("local"));
}
