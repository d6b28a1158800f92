//! Pushed content beside what was fetched: it wins, it is whole without the cache, and it is never evicted.

use std::fs;
use std::path::Path;
use std::thread;

use serde_json::json;

use crate::support::client::get;
use crate::support::disk::SmallDisk;
use crate::support::images::{Image, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, descriptor, index};
use crate::support::origin::Origin;
use crate::support::plan::Plan;
use crate::support::process::Spliceway;
use crate::support::push::{Repository, assert_tree_is_right, blob_path};
use crate::support::{MIB, noise, sha256};

#[test]
fn what_was_pushed_wins_over_upstreams_tag() {
    let mut origin = Origin::start();
    let theirs = Image::new(1, "amd64", &[100, 50_000]);
    theirs.hold(&origin, "team/app", "v1");
    let mut spliceway = Spliceway::start(|setup| {
        setup.origin(&origin).set("tag_ttl", "1ms").set("retries", 0);
    });
    let repository = Repository::new(spliceway.addr(), "team/app");
    // Pulled through first, so that `cache` holds the layers that the new image shares.
    repository.assert_holds("v1", &theirs);
    for blob in &theirs.blobs {
        spliceway.wait_published(&sha256(blob));
    }
    let config = br#"{"architecture":"amd64","os":"linux","ours":true}"#.to_vec();
    let mut manifest: serde_json::Value = serde_json::from_slice(&theirs.manifest).expect("JSON");
    manifest["config"] = descriptor(OCI_CONFIG, &config);
    let manifest = manifest.to_string().into_bytes();
    let ours =
        Image { blobs: [std::slice::from_ref(&config), &theirs.blobs[1..]].concat(), manifest, ..theirs };

    // As a client does it: what is there needs no upload.
    for blob in &ours.blobs[1..] {
        repository.head_blob(&sha256(blob)).expect(200);
    }
    repository.push(&config);
    repository.put("v1", OCI_MANIFEST, &ours.manifest).expect(201);
    repository.assert_holds("v1", &ours);
    spliceway.wait_log(&["team/app", "v1", "push"]);
    // A later move of upstream's tag changes nothing.
    let later = Image::new(9, "amd64", &[77]);
    later.hold(&origin, "team/app", "v1");
    repository.assert_holds("v1", &ours);
    assert!(repository.head_manifest("v1").expect(200).header("docker-content-digest").is_some());

    // All of it is in `local`: neither the cache nor upstream is needed any more.
    let local = spliceway.data().join("local");
    for blob in &ours.blobs {
        assert!(blob_path(&local, &sha256(blob)).exists(), "a blob of a pushed manifest is not in `local`");
    }
    assert_tree_is_right(&local);
    origin.stop();
    spliceway.stop();
    fs::remove_dir_all(spliceway.data().join("cache")).expect("our own directory");
    spliceway.restart(|_| ());
    repository.at(spliceway.addr()).assert_holds("v1", &ours);
    // Once the pushed tag is deleted, upstream's counts again.
    origin.restart();
    let repository = repository.at(spliceway.addr());
    repository.delete_manifest("v1").expect(202);
    repository.manifest("v1").expect(200).expect_body(&later.manifest);
}

#[test]
fn a_blob_that_is_pushed_while_it_is_filled_is_both() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let repository = Repository::new(spliceway.addr(), "team/app");
    for seed in 0..5 {
        let blob = origin.random_blob(seed, 3 * MIB);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes));
            }
            scope.spawn(|| repository.push(&blob.bytes));
            scope.spawn(|| repository.named("other/app").push(&blob.bytes));
        });
        repository.blob(&blob.digest).expect(200).expect_body(&blob.bytes);
        repository.named("other/app").blob(&blob.digest).expect(200).expect_body(&blob.bytes);
    }
    spliceway.assert_store_is_right();
    assert_tree_is_right(&spliceway.data().join("local"));
}

#[test]
fn pushing_asks_no_upstream_and_needs_none() {
    let mut origin = Origin::start();
    let image = Image::new(1, "amd64", &[100, 70_000]);
    let spliceway = Spliceway::before(&origin);
    let repository = Repository::new(spliceway.addr(), "team/app");
    repository.push_blobs(&image);
    assert!(origin.all_seen().iter().all(|seen| seen.method() == "HEAD"), "{:?}", origin.all_seen());
    origin.stop();
    repository.push_image("v1", &image);
    repository.assert_holds("v1", &image);
    let other = repository.named("fresh/app");
    other.push_image("v1", &image);
    other.assert_holds("v1", &image);
    // A mount of what `cache` alone could have had is no reason to wait for upstream.
    let answer = other.post(&format!("?mount={}&from=cached/app", sha256(b"x")));
    assert_eq!(answer.status(), 202, "{answer}");
}

#[test]
fn a_mount_from_a_repository_that_only_upstream_allows_is_not_given_away() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let blob = origin.random_blob(1, 300_000);
    get(spliceway.addr(), &blob.path).expect(200);
    spliceway.wait_published(&blob.digest);
    // Upstream says no to this repository, although the blob is held.
    let private = format!("/v2/private/app/blobs/{}", blob.digest);
    for method in ["HEAD", "GET"] {
        origin.always(method, &private, Plan::status(404));
    }
    let repository = Repository::new(spliceway.addr(), "our/app");
    let mounted = repository.post(&format!("?mount={}&from=private/app", blob.digest));
    assert_eq!(mounted.status(), 202, "{mounted}");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, &blob.bytes), "layers": [],
    });
    let private = repository.named("private/app");
    let answer = private.put("v1", OCI_MANIFEST, manifest.to_string().as_bytes());
    answer.expect_error(400, "MANIFEST_BLOB_UNKNOWN");
    private.head_blob(&blob.digest).expect(404);
}

#[test]
fn below_an_upstreams_name_nothing_can_be_pushed() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let repository = Repository::new(spliceway.addr(), "origin/app");
    repository.post("").expect_error(403, "DENIED");
    let image = Image::new(1, "amd64", &[]);
    repository.put("v1", OCI_MANIFEST, &image.manifest).expect_error(403, "DENIED");
}

/// Pulls an index of two images through `spliceway`, so that `cache` holds all of it; the index.
fn fetched_index(origin: &Origin, repository: &Repository, images: &[Image]) -> Vec<u8> {
    for image in images {
        image.hold(origin, "team/app", "unused");
    }
    let top = index(images);
    origin.tag("team/app", "v1", &origin.manifest(OCI_INDEX, &top));
    repository.manifest("v1").expect(200).expect_body(&top);
    for image in images {
        repository.assert_holds(&image.digest(), image);
    }
    top
}

#[test]
fn an_index_that_is_pushed_brings_its_children_out_of_the_cache() {
    let mut origin = Origin::start();
    let mut spliceway = Spliceway::before(&origin);
    let repository = Repository::new(spliceway.addr(), "team/app");
    let images = [Image::new(1, "amd64", &[100, 50_000]), Image::new(11, "arm64", &[MIB])];
    let top = fetched_index(&origin, &repository, &images);
    for image in &images {
        for blob in &image.blobs {
            spliceway.wait_published(&sha256(blob));
        }
    }
    repository.put("ours", OCI_INDEX, &top).expect(201);
    assert_tree_is_right(&spliceway.data().join("local"));
    origin.stop();
    spliceway.stop();
    fs::remove_dir_all(spliceway.data().join("cache")).expect("our own directory");
    spliceway.restart(|_| ());
    let repository = repository.at(spliceway.addr());
    repository.manifest("ours").expect(200).expect_body(&top);
    for image in &images {
        repository.assert_holds(&image.digest(), image);
    }
}

#[test]
fn what_cache_holds_is_copied_where_local_is_another_filesystem() {
    let disk = SmallDisk::mount("64m");
    let mut origin = Origin::start();
    let local = disk.path().join("local");
    let mut spliceway = Spliceway::start(|setup| {
        setup.registry("local", local.to_str().expect("UTF-8").to_owned()).origin(&origin);
    });
    let repository = Repository::new(spliceway.addr(), "team/app");
    let images = [Image::new(1, "amd64", &[100, 5 * MIB]), Image::new(11, "arm64", &[MIB])];
    let top = fetched_index(&origin, &repository, &images);
    for blob in images.iter().flat_map(|image| &image.blobs) {
        spliceway.wait_published(&sha256(blob));
    }
    repository.put("ours", OCI_INDEX, &top).expect(201);
    let mounted = sha256(images[0].layer(1));
    repository.named("other/app").post(&format!("?mount={mounted}&from=team/app")).expect(201);
    assert_tree_is_right(&local);
    origin.stop();
    spliceway.stop();
    fs::remove_dir_all(spliceway.data().join("cache")).expect("our own directory");
    spliceway.restart(|_| ());
    let repository = repository.at(spliceway.addr());
    for image in &images {
        repository.assert_holds(&image.digest(), image);
    }
    repository.named("other/app").blob(&mounted).expect(200).expect_body(images[0].layer(1));
}

#[test]
fn what_was_pushed_is_never_evicted() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.registry("min_free", 0).registry("max_size", "6MiB").origin(&origin);
    });
    let repository = Repository::new(spliceway.addr(), "team/app");
    // More than the cache may have, and counted apart from it.
    let pushed = Image::new(1, "amd64", &[3 * MIB, 4 * MIB, 5 * MIB]);
    repository.push_image("v1", &pushed);
    let adopted = Image::new(11, "amd64", &[MIB]);
    adopted.hold(&origin, "team/app", "fetched");
    repository.assert_holds("fetched", &adopted);
    spliceway.wait_published(&sha256(adopted.layer(0)));
    repository.put("kept", OCI_MANIFEST, &adopted.manifest).expect(201);
    for seed in 0..20 {
        let blob = origin.random_blob(100 + seed, MIB);
        get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
        spliceway.wait_published(&blob.digest);
    }
    spliceway.wait_metric("spliceway_evicted_blobs_total", &[], |count| count >= 10.0);
    repository.assert_holds("v1", &pushed);
    repository.assert_holds("kept", &adopted);
    assert_tree_is_right(&spliceway.data().join("local"));
}

#[test]
fn a_blob_that_is_held_is_pushed_again_by_who_may_not_read_it() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let repository = Repository::new(spliceway.addr(), "private/app");
    let bytes = noise(1, 300_000);
    let digest = repository.push(&bytes);
    // Another repository does not learn that it is there: it pushes all of it, and has it then.
    let other = repository.named("other/app");
    other.head_blob(&digest).expect(404);
    other.begin().finish(&digest, &[]).expect_error(400, "DIGEST_INVALID");
    other.head_blob(&digest).expect(404);
    other.push(&bytes);
    other.blob(&digest).expect(200).expect_body(&bytes);
    assert_one_file(&spliceway.data().join("local"), &digest);
}

/// The blob is stored once, however often it was pushed.
#[track_caller]
fn assert_one_file(root: &Path, digest: &str) {
    assert!(blob_path(root, digest).exists());
    let links =
        std::os::unix::fs::MetadataExt::nlink(&fs::metadata(blob_path(root, digest)).expect("the blob"));
    assert_eq!(links, 1, "no session keeps the blob's file");
}

#[test]
fn what_only_upstream_has_is_fetched_for_a_manifest_that_names_it() {
    let mut origin = Origin::start();
    let mut spliceway = Spliceway::before(&origin);
    let repository = Repository::new(spliceway.addr(), "team/app");
    let image = Image::new(1, "amd64", &[100, 3 * MIB]);
    for blob in &image.blobs {
        origin.blob(blob.clone());
    }
    // What a client that pushes asks first; it is told that it need not send the blobs.
    for blob in &image.blobs {
        repository.head_blob(&sha256(blob)).expect(200);
    }
    repository.put("mine", OCI_MANIFEST, &image.manifest).expect(201);
    origin.stop();
    spliceway.stop();
    fs::remove_dir_all(spliceway.data().join("cache")).expect("our own directory");
    spliceway.restart(|_| ());
    Repository::new(spliceway.addr(), "team/app").assert_holds("mine", &image);
}
