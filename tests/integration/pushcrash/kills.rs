//! Killed at instants of the clock's choosing, in the middle of chunks and around the ends of uploads and of manifests.

use std::thread;
use std::time::Duration;

use super::{again, assert_old_or_new, assert_tag, local, start, whole};
use crate::support::client::Connection;
use crate::support::images::{Image, OCI_MANIFEST};
use crate::support::push::{assert_tree_is_right, received};
use crate::support::{MIB, noise, sha256};

#[test]
fn killed_in_mid_chunk_the_session_goes_on() {
    let (mut spliceway, mut repository) = start();
    let sizes = [0, 1, 4096, 65_537, MIB, MIB + 777, 3 * MIB];
    for (round, sent) in (0..).zip(sizes.into_iter().flat_map(|size| [size, size])) {
        let bytes = noise(round, 5 * MIB + 13);
        // Every other session has a chunk that was acknowledged.
        let known = if round % 2 == 0 { 0 } else { MIB + 5 };
        let session = repository.begin();
        if known > 0 {
            session.patch(&bytes[..known]).expect(202);
        }
        let length = (bytes.len() - known).to_string();
        let request = session.request("PATCH").header("Content-Length", &length);
        let mut connection = Connection::open(repository.addr());
        connection.write(&request.bytes(repository.addr())).expect("the head is written");
        connection.write(&bytes[known..known + sent]).expect("a part is written");
        thread::sleep(Duration::from_micros(round * 700));
        spliceway.kill9();
        repository = again(&mut spliceway, &repository);
        let mut session = session.at(repository.addr());
        let status = session.status().expect(204);
        assert!((known..=known + sent).contains(&received(&status)), "{known} + {sent}: {status}");
        session.resume(&bytes).expect(201);
        repository.blob(&sha256(&bytes)).expect(200).expect_body(&bytes);
        assert!(!session.directory(&local(&spliceway)).exists(), "the session is left");
    }
}

#[test]
fn killed_around_the_end_of_an_upload() {
    let (mut spliceway, mut repository) = start();
    let (mut before, mut after) = (0, 0);
    for round in 0..24 {
        let bytes = noise(round, 2 * MIB + 1);
        // Each into a repository of its own, whose directories are new.
        repository = repository.named(&format!("team/app{round}"));
        let session = repository.begin();
        session.patch(&bytes).expect(202);
        let request = session.finish_request(&sha256(&bytes), &[]);
        let addr = repository.addr();
        let client = thread::spawn(move || request.try_send(addr));
        thread::sleep(Duration::from_micros(round * 150));
        spliceway.kill9();
        let answer = whole(client.join().expect("the client does not panic"));
        let acknowledged = answer.is_some_and(|answer| answer.status() == 201);
        repository = again(&mut spliceway, &repository);
        if assert_old_or_new(&repository, &session, &bytes, acknowledged) {
            after += 1;
        } else {
            before += 1;
        }
        assert_tree_is_right(&local(&spliceway));
    }
    eprintln!("killed {before} times before publication, {after} times after");
}

#[test]
fn killed_around_the_put_of_a_manifest() {
    let (mut spliceway, mut repository) = start();
    let images = [Image::new(1, "amd64", &[100, 70_000]), Image::new(11, "amd64", &[300])];
    for image in &images {
        repository.push_blobs(image);
    }
    repository.put("moving", OCI_MANIFEST, &images[0].manifest).expect(201);
    for round in 0..24_u64 {
        let image = &images[usize::try_from((round + 1) % 2).expect("small")];
        let fresh = format!("fresh{round}");
        let tag = if round % 3 == 0 { fresh.as_str() } else { "moving" };
        let request = repository.put_request(tag, OCI_MANIFEST, &image.manifest);
        let addr = repository.addr();
        let client = thread::spawn(move || request.try_send(addr));
        thread::sleep(Duration::from_micros(round * 120));
        spliceway.kill9();
        let answer = whole(client.join().expect("the client does not panic"));
        let acknowledged = answer.is_some_and(|answer| answer.status() == 201);
        repository = again(&mut spliceway, &repository);
        if acknowledged {
            assert_tag(&repository, tag, &[image], false);
        } else {
            let old_or_new = [&images[0], &images[1]];
            let allowed = if tag == "moving" { &old_or_new[..] } else { &[image] };
            assert_tag(&repository, tag, allowed, tag != "moving");
        }
        assert_tag(&repository, "moving", &[&images[0], &images[1]], false);
        repository.put(tag, OCI_MANIFEST, &image.manifest).expect(201);
        assert_tag(&repository, tag, &[image], false);
    }
}
