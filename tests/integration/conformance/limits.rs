//! What the registry bounds, and how it says so: the size of a blob, the number of uploads, their age.

use std::thread;
use std::time::Duration;

use crate::support::client::Answer;
use crate::support::process::Spliceway;
use crate::support::push::{OCTETS, Repository, assert_range};
use crate::support::{MIB, noise, sha256};

fn limited(key: &'static str, value: &'static str) -> (Spliceway, Repository) {
    let spliceway = Spliceway::start(|setup| {
        setup.registry(key, value);
    });
    let repository = Repository::new(spliceway.addr(), "team/app");
    (spliceway, repository)
}

#[track_caller]
fn assert_too_large(answer: &Answer) {
    assert_eq!(answer.status(), 413, "{answer}");
    assert_eq!(answer.error_code(), "SIZE_INVALID", "{answer}");
}

#[test]
fn a_blob_may_be_as_large_as_the_limit_and_no_larger() {
    let (_spliceway, repository) = limited("blob_bytes_max", "2MiB");
    let bytes = noise(1, 2 * MIB + 1);
    let session = repository.begin();
    // By what is announced, and by what comes.
    assert_too_large(&session.patch(&bytes));
    assert_too_large(&session.stream(&bytes));
    assert_too_large(&session.finish(&sha256(&bytes), &bytes));
    assert_too_large(&session.patch_at(0, &bytes));
    assert_range(&session.status().expect(204), 0);
    // Together with what is there already.
    session.patch(&bytes[..MIB]).expect(202);
    assert_too_large(&session.patch(&bytes[MIB..]));
    assert_too_large(&session.stream(&bytes[MIB..]));
    assert_range(&session.status().expect(204), MIB);
    let path = format!("blobs/uploads/?digest={}", sha256(&bytes));
    let single = repository.request("POST", &path).header("Content-Type", OCTETS);
    assert_too_large(&repository.send(&single.clone().body(&bytes[..])));
    assert_too_large(&repository.send(&single.chunked(&bytes[..], 10_000)));
    repository.head_blob(&sha256(&bytes)).expect(404);
    let all = &bytes[..2 * MIB];
    session.finish(&sha256(all), &all[MIB..]).expect(201);
    repository.blob(&sha256(all)).expect(200).expect_body(all);
}

#[test]
fn a_repository_has_so_many_uploads_at_once() {
    let (_spliceway, repository) = limited("uploads_max", "3");
    let sessions = [repository.begin(), repository.begin(), repository.begin()];
    let refused = repository.post("").expect_error(429, "TOOMANYREQUESTS");
    assert!(refused.header("retry-after").is_some(), "{refused}");
    // Another repository has its own.
    repository.named("other/app").push(b"content");
    sessions[0].cancel().expect(204);
    let fourth = repository.begin();
    repository.post("").expect(429);
    fourth.finish(&sha256(b"x"), b"x").expect(201);
    repository.push(b"y");
    for session in &sessions[1..] {
        session.finish(&sha256(b"z"), b"z").expect(201);
    }
}

#[test]
fn an_upload_that_nobody_goes_on_with_is_over() {
    let (spliceway, repository) = limited("upload_expiry", "1s");
    let session = repository.begin();
    session.patch(b"content").expect(202);
    let directory = session.directory(&spliceway.data().join("local"));
    thread::sleep(Duration::from_millis(1100));
    session.status().expect_error(404, "BLOB_UPLOAD_UNKNOWN");
    session.finish(&sha256(b"content"), &[]).expect_error(404, "BLOB_UPLOAD_UNKNOWN");
    assert!(!directory.exists(), "{} is left", directory.display());
}
