//! Two Spliceways on one directory, as behind a balancer that asks each in turn.

use std::fs;
use std::thread;
use std::time::Duration;

use super::{alternate, chunks_len, local};
use crate::support::client::{Answer, Connection};
use crate::support::images::{Image, OCI_MANIFEST};
use crate::support::process::Spliceway;
use crate::support::push::{Repository, Session, assert_tree_is_right, assert_upload};
use crate::support::{MIB, eventually, noise, sha256};

/// How long a process may believe what it has seen on the disk.
const STALE_AT_MOST: Duration = Duration::from_secs(1);

/// Two processes on one directory, and the same repository at each.
fn two() -> (Spliceway, Spliceway, Repository, Repository) {
    let first = Spliceway::start(|_| ());
    let second = first.sibling(|_| ());
    let at_first = Repository::new(first.addr(), "team/app");
    let at_second = at_first.at(second.addr());
    (first, second, at_first, at_second)
}

#[test]
fn chunks_alternate_between_two_processes() {
    let (first, _second, a, b) = two();
    let bytes = noise(1, chunks_len() + 1000);
    alternate(&a, |number| if number % 2 == 0 { b.clone() } else { a.clone() }, &b, &bytes);
    // Many at once, as behind a balancer.
    thread::scope(|scope| {
        for seed in 0..8 {
            let (a, b) = (&a, &b);
            scope.spawn(move || {
                let bytes = noise(100 + seed, chunks_len() + 5);
                alternate(a, |number| if number % 3 == 0 { a.clone() } else { b.clone() }, b, &bytes);
            });
        }
    });
    assert_tree_is_right(&local(&first));
}

#[test]
fn one_process_goes_on_when_the_other_is_killed() {
    let (mut first, second, a, b) = two();
    let bytes = noise(1, 4 * MIB);
    let session = a.begin();
    session.patch(&bytes[..MIB]).expect(202);
    // In the middle of a chunk.
    let request = session.request("PATCH").header("Content-Length", &(2 * MIB).to_string());
    let mut connection = Connection::open(a.addr());
    connection.write(&request.bytes(a.addr())).expect("the head is written");
    connection.write(&bytes[MIB..2 * MIB]).expect("a part is written");
    let data = session.directory(&local(&second)).join("data");
    eventually("a part of the chunk", || {
        fs::metadata(&data).is_ok_and(|data| data.len() > MIB as u64).then_some(())
    });
    first.kill9();
    let mut session = session.at(b.addr());
    session.resume(&bytes).expect(201);
    b.blob(&sha256(&bytes)).expect(200).expect_body(&bytes);
    assert_tree_is_right(&local(&second));
}

#[test]
fn deletions_are_seen_by_the_other_process() {
    let (first, _second, a, b) = two();
    for (round, (one, other)) in (0..).zip([(&a, &b), (&b, &a), (&a, &b)]) {
        let image = Image::new(round * 10, "amd64", &[100, 70_000]);
        one.push_image("v1", &image);
        one.push_image("v2", &image);
        // What one was given, the other has; both have looked, and may remember.
        for _ in 0..3 {
            for repository in [one, other] {
                repository.assert_holds("v1", &image);
                repository.assert_holds(&image.digest(), &image);
                assert_eq!(repository.tag_names(""), ["v1", "v2"]);
            }
        }
        let layer = sha256(image.layer(0));
        one.delete_manifest("v1").expect(202);
        one.delete_blob(&layer).expect(202);
        thread::sleep(STALE_AT_MOST);
        for repository in [one, other] {
            repository.manifest("v1").expect(404);
            repository.head_manifest("v1").expect(404);
            repository.blob(&layer).expect(404);
            repository.head_blob(&layer).expect(404);
            assert_eq!(repository.tag_names(""), ["v2"]);
            repository.manifest("v2").expect(200);
        }
        other.delete_manifest(&image.digest()).expect(202);
        thread::sleep(STALE_AT_MOST);
        one.manifest("v2").expect(404);
        one.manifest(&image.digest()).expect(404);
        // And a tag's move.
        let next = Image::new(round * 10 + 5, "amd64", &[300]);
        one.push_image("moved", &image);
        other.manifest("moved").expect(200).expect_body(&image.manifest);
        one.push_image("moved", &next);
        thread::sleep(STALE_AT_MOST);
        other.manifest("moved").expect(200).expect_body(&next.manifest);
        one.delete_manifest("moved").expect(202);
        thread::sleep(STALE_AT_MOST);
    }
    assert_tree_is_right(&local(&first));
}

#[test]
fn a_chunk_in_one_process_keeps_the_other_out() {
    let (first, _second, a, b) = two();
    let bytes = noise(1, 8 * MIB);
    let session = a.begin();
    let data = session.directory(&local(&first)).join("data");
    let request = session.request("PATCH").header("Content-Length", &bytes.len().to_string());
    let mut connection = Connection::open(a.addr());
    connection.write(&request.bytes(a.addr())).expect("the head is written");
    connection.write(&bytes[..4 * MIB]).expect("half of it is written");
    eventually("the first half", || fs::metadata(&data).is_ok_and(|data| data.len() > 0).then_some(()));
    let elsewhere = session.at(b.addr());
    for answer in [elsewhere.patch(b"x"), elsewhere.patch_at(0, b"y"), elsewhere.stream(b"z")] {
        assert_refused(answer);
    }
    connection.write(&bytes[4 * MIB..]).expect("the rest is written");
    let answer = connection.exchange("PATCH").expect("an answer").collect().expect(202);
    assert_upload(&answer, bytes.len());
    assert_upload(&elsewhere.status().expect(204), bytes.len());
    elsewhere.finish(&sha256(&bytes), &[]).expect(201);
    a.blob(&sha256(&bytes)).expect(200).expect_body(&bytes);
}

#[track_caller]
fn assert_refused(answer: Answer) {
    let answer = answer.expect_error(416, "RANGE_INVALID");
    assert!(answer.header("location").is_some() && answer.header("range").is_some(), "{answer}");
}

#[test]
fn of_two_processes_chunks_at_once_one_wins() {
    let (first, _second, a, b) = two();
    for round in 0..20 {
        let session = a.begin();
        let sessions: [Session; 2] = [session.clone(), session.at(b.addr())];
        let chunks: [Vec<u8>; 2] = [noise(round * 2, 200_000), noise(round * 2 + 1, 200_000)];
        let answers: Vec<Answer> = thread::scope(|scope| {
            let clients: Vec<_> = sessions
                .iter()
                .zip(&chunks)
                .map(|(session, chunk)| scope.spawn(|| session.patch_at(0, chunk)))
                .collect();
            clients.into_iter().map(|client| client.join().expect("no panic")).collect()
        });
        let won = answers.iter().position(|answer| answer.status() == 202).expect("one of them wins");
        for (number, answer) in answers.into_iter().enumerate() {
            if number != won {
                assert_refused(answer);
            }
        }
        sessions[1 - won].finish(&sha256(&chunks[won]), &[]).expect(201);
        a.blob(&sha256(&chunks[won])).expect(200).expect_body(&chunks[won]);
    }
    assert_tree_is_right(&local(&first));
}

#[test]
fn the_same_is_pushed_to_both_at_once() {
    let (first, _second, a, b) = two();
    for round in 0..5 {
        let image = Image::new(round * 10, "amd64", &[MIB, 300_000]);
        thread::scope(|scope| {
            for number in 0..8 {
                let repository = if number % 2 == 0 { &a } else { &b };
                let image = &image;
                scope.spawn(move || repository.push_image(&format!("v{}", number % 3), image));
            }
        });
        for repository in [&a, &b] {
            for tag in ["v0", "v1", "v2"] {
                eventually("the tag's move to be seen", || {
                    (repository.manifest(tag).body == image.manifest).then_some(())
                });
                repository.assert_holds(tag, &image);
            }
        }
    }
    assert_tree_is_right(&local(&first));
}

#[test]
fn a_tag_that_both_move_is_one_of_theirs() {
    let (first, _second, a, b) = two();
    let images = [Image::new(1, "amd64", &[100]), Image::new(11, "amd64", &[200])];
    for image in &images {
        a.push_blobs(image);
    }
    for _ in 0..30 {
        thread::scope(|scope| {
            for (repository, image) in [(&a, &images[0]), (&b, &images[1])] {
                scope.spawn(|| repository.put("v1", OCI_MANIFEST, &image.manifest).expect(201));
            }
        });
        let got = a.manifest("v1").expect(200).body;
        assert!(images.iter().any(|image| image.manifest == got));
    }
    assert_tree_is_right(&local(&first));
}

#[test]
fn what_one_process_deletes_while_the_other_pushes_it_is_whole_or_gone() {
    let (first, _second, a, b) = two();
    let image = Image::new(1, "amd64", &[100, 70_000]);
    for _ in 0..20 {
        a.push_image("v1", &image);
        thread::scope(|scope| {
            scope.spawn(|| b.put("v1", OCI_MANIFEST, &image.manifest));
            scope.spawn(|| a.delete_manifest(&image.digest()));
        });
        thread::sleep(Duration::from_millis(600));
        let statuses = [a.manifest("v1").status(), b.manifest("v1").status()];
        assert!(statuses == [200, 200] || statuses == [404, 404], "{statuses:?}");
        assert_tree_is_right(&local(&first));
    }
}

#[test]
fn what_one_process_was_given_the_other_has_at_once() {
    let (first, _second, a, b) = two();
    for round in 0..20 {
        let image = Image::new(round * 10, "amd64", &[100, 3000]);
        let tag = format!("v{round}");
        // As a client does it behind a balancer: asked here that it is missing, pushed there, named here.
        for blob in &image.blobs {
            let digest = sha256(blob);
            a.head_blob(&digest).expect(404);
            b.push(blob);
            a.head_blob(&digest).expect(200);
        }
        a.head_manifest(&tag).expect(404);
        b.head_manifest(&image.digest()).expect(404);
        a.put(&tag, OCI_MANIFEST, &image.manifest).expect(201);
        b.assert_holds(&image.digest(), &image);
        b.assert_holds(&tag, &image);
        // A tag that both know moves: at the latest when what was seen is too old to be believed.
        b.put("moving", OCI_MANIFEST, &image.manifest).expect(201);
        thread::sleep(if round % 10 == 0 { STALE_AT_MOST } else { Duration::ZERO });
        let seen = a.manifest("moving").expect(200);
        if round % 10 == 0 {
            seen.expect_body(&image.manifest);
        }
        a.named("other/app").post(&format!("?mount={}&from=team/app", sha256(image.layer(0)))).expect(201);
        b.named("other/app").head_blob(&sha256(image.layer(0))).expect(200);
    }
    assert_tree_is_right(&local(&first));
}
