//! Killed at, or failed by, each call that changes the disk, one after the other.

use super::{again, assert_failed, assert_old_or_new, assert_tag, local, start, whole};
use crate::support::images::{Image, OCI_MANIFEST};
use crate::support::inject::{Fault, Injection, STEPS};
use crate::support::push::{OCTETS, assert_tree_is_right};
use crate::support::{noise, sha256};

/// Runs `round` with each step of [`STEPS`] going wrong at its first, second, … call, until it goes wrong no more.
/// `round` is given a number of its own and says whether anything went wrong.
fn at_every_step(mut round: impl FnMut(u64, &str, u32) -> bool) {
    let mut number = 0;
    let mut hit = 0;
    for calls in STEPS {
        for when in 1..=8 {
            number += 1;
            if !round(number, calls, when) {
                break;
            }
            hit += 1;
        }
    }
    eprintln!("something went wrong {hit} times");
    assert!(hit >= 3, "nothing that this does was ever hit: {hit}");
}

#[test]
fn killed_at_every_step_of_an_uploads_end() {
    let (mut spliceway, mut repository) = start();
    at_every_step(|number, calls, when| {
        let bytes = noise(number, 200_001);
        repository = repository.named(&format!("team/app{number}"));
        let session = repository.begin();
        session.patch(&bytes).expect(202);
        let injection = Injection::attach(&spliceway, calls, when, Fault::Kill);
        let answer = whole(session.finish_request(&sha256(&bytes), &[]).try_send(repository.addr()));
        spliceway.kill9();
        drop(injection);
        let acknowledged = answer.as_ref().is_some_and(|answer| answer.status() == 201);
        repository = again(&mut spliceway, &repository);
        assert_old_or_new(&repository, &session, &bytes, acknowledged);
        assert_tree_is_right(&local(&spliceway));
        answer.is_none()
    });
}

#[test]
fn killed_at_every_step_of_a_whole_upload() {
    let (mut spliceway, mut repository) = start();
    at_every_step(|number, calls, when| {
        let bytes = noise(number, 200_001);
        let digest = sha256(&bytes);
        repository = repository.named(&format!("team/app{number}"));
        let injection = Injection::attach(&spliceway, calls, when, Fault::Kill);
        let path = format!("blobs/uploads/?digest={digest}");
        let request = repository.request("POST", &path).header("Content-Type", OCTETS).body(&bytes[..]);
        let answer = whole(request.try_send(repository.addr()));
        spliceway.kill9();
        drop(injection);
        let acknowledged = answer.as_ref().is_some_and(|answer| answer.status() == 201);
        repository = again(&mut spliceway, &repository);
        let published = repository.head_blob(&digest).status() == 200;
        assert!(published || !acknowledged, "201 was answered, and it is gone");
        if published {
            repository.blob(&digest).expect(200).expect_body(&bytes);
        }
        repository.push(&bytes);
        repository.blob(&digest).expect(200).expect_body(&bytes);
        answer.is_none()
    });
}

#[test]
fn killed_at_every_step_of_a_manifests_put() {
    for tag in ["fresh", "moving"] {
        let (mut spliceway, mut repository) = start();
        let (old, mut seed) = (Image::new(1, "amd64", &[100]), 100);
        at_every_step(|number, calls, when| {
            repository = repository.named(&format!("team/app{number}"));
            repository.push_image("moving", &old);
            seed += 10;
            let image = Image::new(seed, "amd64", &[1000]);
            repository.push_blobs(&image);
            let injection = Injection::attach(&spliceway, calls, when, Fault::Kill);
            let request = repository.put_request(tag, OCI_MANIFEST, &image.manifest);
            let answer = whole(request.try_send(repository.addr()));
            spliceway.kill9();
            drop(injection);
            repository = again(&mut spliceway, &repository);
            if answer.as_ref().is_some_and(|answer| answer.status() == 201) {
                assert_tag(&repository, tag, &[&image], false);
            } else {
                let allowed = if tag == "moving" { &[&old, &image][..] } else { &[&image] };
                assert_tag(&repository, tag, allowed, tag == "fresh");
            }
            repository.put(tag, OCI_MANIFEST, &image.manifest).expect(201);
            repository.assert_holds(tag, &image);
            answer.is_none()
        });
    }
}

#[test]
fn killed_at_every_step_of_a_deletion() {
    let (mut spliceway, mut repository) = start();
    let image = Image::new(1, "amd64", &[100]);
    let by_digest = image.digest();
    for reference in ["v1", by_digest.as_str()] {
        let (mut number, mut hit) = (0, 0);
        for calls in ["unlink,unlinkat,rmdir", "rename,renameat,renameat2", "fsync,fdatasync"] {
            for when in 1..=6 {
                number += 1;
                repository = repository.named(&format!("team/app{number}"));
                for tag in ["v1", "v2", "v3"] {
                    repository.push_image(tag, &image);
                }
                let injection = Injection::attach(&spliceway, calls, when, Fault::Kill);
                let request = repository.request("DELETE", &format!("manifests/{reference}"));
                let answer = whole(request.try_send(repository.addr()));
                spliceway.kill9();
                drop(injection);
                // No tag leads to nothing, at any step.
                repository = again(&mut spliceway, &repository);
                for tag in repository.tag_names("") {
                    repository.assert_holds(&tag, &image);
                }
                if let Some(answer) = answer {
                    answer.expect(202);
                    repository.manifest(reference).expect(404);
                    break;
                }
                hit += 1;
                let again = repository.delete_manifest(reference);
                assert!(matches!(again.status(), 202 | 404), "{again}");
                repository.manifest(reference).expect(404);
            }
        }
        assert!(hit >= 1, "nothing that a deletion does was ever hit");
    }
}

#[test]
fn a_call_that_fails_at_any_step_of_an_upload_is_told() {
    for error in ["EIO", "ENOSPC"] {
        let (mut spliceway, mut repository) = start();
        at_every_step(|number, calls, when| {
            let bytes = noise(number, 200_001);
            let digest = sha256(&bytes);
            repository = repository.named(&format!("team/app{number}"));
            let mut session = repository.begin();
            let injection = Injection::attach(&spliceway, calls, when, Fault::Error(error));
            let answers =
                [session.patch_at(0, &bytes[..100_000]), session.finish(&digest, &bytes[100_000..])];
            drop(injection);
            let failed = answers.iter().find(|answer| !matches!(answer.status(), 201 | 202));
            let published = repository.head_blob(&digest).status() == 200;
            if answers[1].status() == 201 {
                assert!(published);
            }
            if let Some(answer) = failed {
                // A chunk that was dropped makes the end one of another content: that is told as such.
                if answers[0].status() == 202 || answer.status() != 400 {
                    assert_failed(answer);
                }
            }
            if !published {
                // With the fault gone, the session goes on, or a new one does all.
                if session.status().status() == 204 {
                    let answer = session.resume(&bytes);
                    assert!(matches!(answer.status(), 201 | 400), "{calls} {when}: {answer}");
                }
                repository.push(&bytes);
            }
            repository.blob(&digest).expect(200).expect_body(&bytes);
            assert_tree_is_right(&local(&spliceway));
            failed.is_some()
        });
        spliceway.stop();
    }
}

#[test]
fn a_call_that_fails_at_any_step_of_a_manifests_put_is_told() {
    for error in ["EIO", "ENOSPC"] {
        let (spliceway, mut repository) = start();
        let old = Image::new(1, "amd64", &[100]);
        at_every_step(|number, calls, when| {
            repository = repository.named(&format!("team/app{number}"));
            repository.push_image("v1", &old);
            let image = Image::new(number * 10, "amd64", &[1000]);
            repository.push_blobs(&image);
            let injection = Injection::attach(&spliceway, calls, when, Fault::Error(error));
            let answer = repository.put("v1", OCI_MANIFEST, &image.manifest);
            drop(injection);
            let failed = answer.status() != 201;
            if failed {
                assert_failed(&answer);
                assert_tag(&repository, "v1", &[&old, &image], false);
            } else {
                assert_tag(&repository, "v1", &[&image], false);
            }
            assert_tree_is_right(&local(&spliceway));
            repository.put("v1", OCI_MANIFEST, &image.manifest).expect(201);
            repository.assert_holds("v1", &image);
            failed
        });
    }
}
