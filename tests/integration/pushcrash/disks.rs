//! Disks that fill up during a push, and disks as a power cut leaves them.

use std::path::Path;
use std::thread;
use std::time::Duration;

use super::{age, assert_failed, local};
use crate::support::disk::{Disk, Journal, SmallDisk};
use crate::support::images::{Image, OCI_MANIFEST};
use crate::support::process::Spliceway;
use crate::support::push::{OCTETS, Repository, Session, assert_tree_is_right, blob_path, received};
use crate::support::{MIB, noise, sha256, sha512};

fn on_disk(path: &Path) -> (Spliceway, Repository) {
    let spliceway = Spliceway::start(|setup| {
        setup.data(path).registry("min_free", 0);
    });
    let repository = Repository::new(spliceway.addr(), "team/app");
    (spliceway, repository)
}

/// Nothing of what did not fit shows, and with room it goes on.
#[track_caller]
fn assert_goes_on(
    repository: &Repository,
    disk: &SmallDisk,
    root: &Path,
    session: &mut Session,
    bytes: &[u8],
) {
    let digest = sha256(bytes);
    repository.head_blob(&digest).expect(404);
    assert!(!blob_path(root, &digest).exists());
    assert_tree_is_right(root);
    let status = session.status().expect(204);
    assert!(received(&status) < bytes.len(), "{status}");
    disk.free_up();
    session.resume(bytes).expect(201);
    repository.blob(&digest).expect(200).expect_body(bytes);
}

#[test]
fn a_disk_that_fills_up_during_a_chunk() {
    for chunked in [false, true] {
        let disk = SmallDisk::mount("8m");
        let (spliceway, repository) = on_disk(disk.path());
        let bytes = noise(1, 14 * MIB);
        let mut session = repository.begin();
        let kept = session.patch(&bytes[..MIB]).expect(202);
        session.follow(&kept);
        let rest = &bytes[MIB..];
        let answer = if chunked { session.stream(rest) } else { session.patch(rest) };
        assert_failed(&answer);
        assert!(received(&session.status().expect(204)) >= MIB, "what was acknowledged is kept");
        assert_goes_on(&repository, &disk, &local(&spliceway), &mut session, &bytes);
    }
}

#[test]
fn a_disk_that_fills_up_during_the_last_put() {
    let disk = SmallDisk::mount("8m");
    let (spliceway, repository) = on_disk(disk.path());
    let bytes = noise(1, 14 * MIB);
    let mut session = repository.begin();
    session.patch(&bytes[..MIB]).expect(202);
    assert_failed(&session.finish(&sha256(&bytes), &bytes[MIB..]));
    assert_goes_on(&repository, &disk, &local(&spliceway), &mut session, &bytes);
}

#[test]
fn a_disk_that_fills_up_during_a_single_post() {
    let disk = SmallDisk::mount("8m");
    let (spliceway, repository) = on_disk(disk.path());
    let bytes = noise(1, 14 * MIB);
    let path = format!("blobs/uploads/?digest={}", sha256(&bytes));
    let request = repository.request("POST", &path).header("Content-Type", OCTETS).body(&bytes[..]);
    assert_failed(&repository.send(&request));
    repository.head_blob(&sha256(&bytes)).expect(404);
    assert_tree_is_right(&local(&spliceway));
    // Nobody was told of a session: what came is dropped, so that a small one fits.
    let small = noise(2, 6 * MIB);
    repository.push(&small);
    repository.blob(&sha256(&small)).expect(200).expect_body(&small);
    disk.free_up();
    repository.send(&request).expect(201);
    repository.blob(&sha256(&bytes)).expect(200).expect_body(&bytes);
}

#[test]
fn a_full_disk_keeps_the_old_tag() {
    let disk = SmallDisk::mount("16m");
    let (spliceway, repository) = on_disk(disk.path());
    let (old, new) = (Image::new(1, "amd64", &[100]), Image::new(11, "amd64", &[200]));
    repository.push_image("v1", &old);
    repository.push_blobs(&new);
    let session = repository.begin();
    disk.fill_up();
    for tag in ["v1", "v2"] {
        assert_failed(&repository.put(tag, OCI_MANIFEST, &new.manifest));
        assert_tree_is_right(&local(&spliceway));
    }
    repository.assert_holds("v1", &old);
    repository.manifest("v2").expect(404);
    assert_failed(&session.patch(&noise(1, 100_000)));
    assert_eq!(repository.tag_names(""), ["v1"]);
    // Where there is no room, deleting still works.
    repository.delete_manifest("v1").expect(202);
    repository.manifest("v1").expect(404);
    disk.free_up();
    repository.put("v1", OCI_MANIFEST, &new.manifest).expect(201);
    repository.assert_holds("v1", &new);
    session.at(repository.addr()).resume(&noise(1, 100_000)).expect(201);
}

/// What a power cut now would leave, to be started on.
fn cut(spliceway: &Spliceway, disk: &Disk, name: &str) -> (Disk, Spliceway, Repository) {
    let copy = spliceway.frozen(|| disk.after_power_cut());
    let (started, repository) = on_disk(&copy.path());
    (copy, started, repository.named(name))
}

const JOURNALS: [Journal; 2] = [Journal::Ordered, Journal::LengthFirst];

#[test]
fn what_was_answered_with_201_survives_a_power_cut() {
    for journal in JOURNALS {
        let disk = Disk::new(journal);
        let (spliceway, repository) = on_disk(&disk.path());
        let image = Image::new(1, "amd64", &[100, 3 * MIB]);
        // Into a tree without any directory yet.
        let config = repository.push(&image.blobs[0]);
        {
            let (_copy, _started, repository) = cut(&spliceway, &disk, "team/app");
            repository.blob(&config).expect(200).expect_body(&image.blobs[0]);
        }
        let session = repository.begin();
        for chunk in image.blobs[2].chunks(MIB) {
            session.patch(chunk).expect(202);
        }
        session.finish(&sha256(&image.blobs[2]), &[]).expect(201);
        repository.push(&image.blobs[1]);
        {
            let (_copy, _started, repository) = cut(&spliceway, &disk, "team/app");
            for blob in &image.blobs {
                repository.blob(&sha256(blob)).expect(200).expect_body(blob);
            }
        }
        repository.put("v1", OCI_MANIFEST, &image.manifest).expect(201);
        {
            let (copy, _started, repository) = cut(&spliceway, &disk, "team/app");
            repository.assert_holds("v1", &image);
            assert_tree_is_right(&copy.path().join("local"));
        }
        // A mount, a tag that moves, several tags, the other algorithm: each into the cut at once.
        let other = repository.named("other/app");
        for blob in &image.blobs {
            other.post(&format!("?mount={}&from=team/app", sha256(blob))).expect(201);
        }
        let reference = format!("{}?tag=a&tag=b", image.digest());
        other.put(&reference, OCI_MANIFEST, &image.manifest).expect(201);
        let next = Image::new(11, "amd64", &[500]);
        repository.push_image("v1", &next);
        let long = noise(5, 100_000);
        repository.push_as(&long, &sha512(&long));
        let (copy, _started, repository) = cut(&spliceway, &disk, "team/app");
        repository.assert_holds("v1", &next);
        repository.assert_holds(&image.digest(), &image);
        repository.blob(&sha512(&long)).expect(200).expect_body(&long);
        for tag in ["a", "b"] {
            repository.named("other/app").assert_holds(tag, &image);
        }
        assert_tree_is_right(&copy.path().join("local"));
    }
}

#[test]
fn a_power_cut_at_any_instant_of_a_push_leaves_nothing_wrong() {
    for journal in JOURNALS {
        let disk = Disk::new(journal);
        let (spliceway, repository) = on_disk(&disk.path());
        let old = Image::new(1, "amd64", &[100]);
        repository.push_image("v1", &old);
        for round in 0..6_u64 {
            let image = Image::new(100 + 10 * round, "amd64", &[2 * MIB, 300]);
            let copy = thread::scope(|scope| {
                let client = scope.spawn(|| {
                    repository.push_image("v1", &image);
                    repository.push_image(&format!("fresh{round}"), &image);
                });
                thread::sleep(Duration::from_millis(round * 8));
                let copy = spliceway.frozen(|| disk.after_power_cut());
                client.join().expect("the client does not panic");
                copy
            });
            let root = copy.path().join("local");
            let (_started, at_copy) = on_disk(&copy.path());
            assert_tree_is_right(&root);
            for tag in at_copy.tag_names("") {
                let manifest = at_copy.manifest(&tag).expect(200).json();
                let named = manifest["layers"].as_array().into_iter().flatten();
                for blob in named.chain([&manifest["config"]]) {
                    let digest = blob["digest"].as_str().expect("a digest");
                    let bytes = at_copy.blob(digest).expect(200).body;
                    assert_eq!(sha256(&bytes), digest);
                }
            }
            at_copy.push_image("after", &image);
            at_copy.assert_holds("after", &image);
        }
    }
}

#[test]
fn a_session_after_a_power_cut_never_ends_in_a_wrong_blob() {
    for journal in JOURNALS {
        let disk = Disk::new(journal);
        let (spliceway, repository) = on_disk(&disk.path());
        let bytes = noise(1, 9 * MIB + 5);
        let session = repository.begin();
        for (number, chunk) in bytes.chunks(2 * MIB).enumerate() {
            session.patch(chunk).expect(202);
            let copy = spliceway.frozen(|| disk.after_power_cut());
            let directory = session.directory(&copy.path().join("local"));
            if directory.join("data").exists() {
                age(&directory);
            }
            let (_started, at_copy) = on_disk(&copy.path());
            let mut session = session.at(at_copy.addr());
            let sent = bytes.len().min((number + 1) * 2 * MIB);
            let status = session.status();
            if status.status() == 204 {
                assert!(received(&status) <= sent, "{status}");
                let answer = session.resume(&bytes);
                assert!(matches!(answer.status(), 201 | 400), "{answer}");
                if answer.status() == 201 {
                    at_copy.blob(&sha256(&bytes)).expect(200).expect_body(&bytes);
                } else {
                    at_copy.head_blob(&sha256(&bytes)).expect(404);
                }
            }
            at_copy.push(&bytes);
            at_copy.blob(&sha256(&bytes)).expect(200).expect_body(&bytes);
            assert_tree_is_right(&copy.path().join("local"));
        }
    }
}
