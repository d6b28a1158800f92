//! Content management: what deleting takes away, and what it leaves.

use std::thread;

use super::registry;
use crate::support::images::{Image, OCI_INDEX, OCI_MANIFEST, index};
use crate::support::push::{assert_tree_is_right, strings};
use crate::support::{sha256, sha512};

#[test]
fn a_deleted_tag_is_gone_and_nothing_else() {
    let (spliceway, repository) = registry();
    let image = Image::new(1, "amd64", &[100]);
    repository.push_image("v1", &image);
    repository.push_image("v2", &image);
    repository.delete_manifest("v1").expect(202);
    repository.manifest("v1").expect_error(404, "MANIFEST_UNKNOWN");
    repository.head_manifest("v1").expect(404);
    repository.delete_manifest("v1").expect_error(404, "MANIFEST_UNKNOWN");
    repository.delete_manifest("never").expect_error(404, "MANIFEST_UNKNOWN");
    assert_eq!(repository.tag_names(""), ["v2"]);
    repository.assert_holds("v2", &image);
    repository.assert_holds(&image.digest(), &image);
    // The last one: the repository stays, without tags.
    repository.delete_manifest("v2").expect(202);
    let list = repository.tags("").expect(200).json();
    assert!(strings(&list["tags"]).is_empty(), "{list}");
    repository.assert_holds(&image.digest(), &image);
    // It can come back.
    repository.put("v1", OCI_MANIFEST, &image.manifest).expect(201);
    repository.assert_holds("v1", &image);
    assert_tree_is_right(&spliceway.data().join("local"));
}

#[test]
fn a_deleted_manifest_takes_its_tags_along() {
    let (spliceway, repository) = registry();
    let (image, other) = (Image::new(1, "amd64", &[100]), Image::new(5, "amd64", &[100]));
    for tag in ["a", "b", "c"] {
        repository.push_image(tag, &image);
    }
    repository.push_image("other", &other);
    // A tag that has moved on is not the manifest's any more; one that has moved to it is.
    repository.push_image("moved", &image);
    repository.put("moved", OCI_MANIFEST, &other.manifest).expect(201);
    repository.push_image("came", &other);
    repository.put("came", OCI_MANIFEST, &image.manifest).expect(201);
    repository.named("twin/app").push_image("a", &image);

    repository.delete_manifest(&image.digest()).expect(202);
    for reference in ["a", "b", "c", "came", &image.digest()] {
        repository.manifest(reference).expect_error(404, "MANIFEST_UNKNOWN");
        repository.head_manifest(reference).expect(404);
    }
    assert_eq!(repository.tag_names(""), ["moved", "other"]);
    repository.delete_manifest(&image.digest()).expect_error(404, "MANIFEST_UNKNOWN");
    repository.assert_holds("moved", &other);
    repository.named("twin/app").assert_holds("a", &image);
    assert_tree_is_right(&spliceway.data().join("local"));
    repository.put("a", OCI_MANIFEST, &image.manifest).expect(201);
    repository.assert_holds("a", &image);
}

#[test]
fn a_deleted_blob_is_gone_from_its_repository_alone() {
    let (_spliceway, repository) = registry();
    let image = Image::new(1, "amd64", &[100, 70_000]);
    repository.push_image("v1", &image);
    let other = repository.named("other/app");
    other.push_image("v1", &image);
    repository.delete_manifest(&image.digest()).expect(202);
    for blob in &image.blobs {
        let digest = sha256(blob);
        repository.delete_blob(&digest).expect(202);
        repository.blob(&digest).expect_error(404, "BLOB_UNKNOWN");
        repository.head_blob(&digest).expect(404);
        repository.delete_blob(&digest).expect_error(404, "BLOB_UNKNOWN");
    }
    other.assert_holds("v1", &image);
    // What was deleted cannot be named by a manifest, and can be pushed again.
    repository.put("v1", OCI_MANIFEST, &image.manifest).expect_error(400, "MANIFEST_BLOB_UNKNOWN");
    repository.push_image("v1", &image);
    repository.assert_holds("v1", &image);
}

#[test]
fn what_is_not_there_cannot_be_deleted() {
    let (_spliceway, repository) = registry();
    for digest in [sha256(b"nothing"), sha512(b"nothing")] {
        for repository in [&repository, &repository.named("no/such")] {
            let answer = repository.delete_blob(&digest).expect(404);
            assert!(matches!(answer.error_code().as_str(), "BLOB_UNKNOWN" | "NAME_UNKNOWN"), "{answer}");
            let answer = repository.delete_manifest(&digest).expect(404);
            assert!(matches!(answer.error_code().as_str(), "MANIFEST_UNKNOWN" | "NAME_UNKNOWN"), "{answer}");
        }
        repository.push_image("v1", &Image::new(1, "amd64", &[100]));
    }
    repository.delete_blob("sha256:short").expect_error(400, "DIGEST_INVALID");
    repository.delete_manifest("sha256:short").expect_error(400, "DIGEST_INVALID");
}

#[test]
fn blobs_of_either_algorithm_are_deleted() {
    let (_spliceway, repository) = registry();
    let bytes = b"the same bytes".to_vec();
    let (short, long) = (sha256(&bytes), sha512(&bytes));
    repository.push_as(&bytes, &short);
    repository.push_as(&bytes, &long);
    repository.delete_blob(&long).expect(202);
    repository.blob(&long).expect(404);
    repository.blob(&short).expect(200).expect_body(&bytes);
    repository.delete_blob(&short).expect(202);
    repository.blob(&short).expect(404);
}

#[test]
fn an_index_is_deleted_without_its_children() {
    let (_spliceway, repository) = registry();
    let images = [Image::new(1, "amd64", &[100]), Image::new(2, "arm64", &[200])];
    for image in &images {
        repository.push_blobs(image);
        repository.put(&image.digest(), OCI_MANIFEST, &image.manifest).expect(201);
    }
    let top = index(&images);
    repository.put("v1", OCI_INDEX, &top).expect(201);
    repository.delete_manifest(&sha256(&top)).expect(202);
    repository.manifest("v1").expect(404);
    for image in &images {
        repository.assert_holds(&image.digest(), image);
    }
}

#[test]
fn deletions_outlive_a_restart() {
    let (mut spliceway, repository) = registry();
    let image = Image::new(1, "amd64", &[100]);
    repository.push_image("v1", &image);
    repository.push_image("v2", &image);
    let blob = repository.push(b"a blob of its own");
    repository.delete_manifest("v1").expect(202);
    repository.delete_blob(&blob).expect(202);
    spliceway.kill9();
    spliceway.restart(|_| ());
    let repository = repository.at(spliceway.addr());
    repository.manifest("v1").expect(404);
    repository.blob(&blob).expect(404);
    assert_eq!(repository.tag_names(""), ["v2"]);
    repository.assert_holds("v2", &image);
}

#[test]
fn a_tag_that_moves_while_its_old_manifest_is_deleted_stays() {
    let (spliceway, repository) = registry();
    let (old, new) = (Image::new(1, "amd64", &[100]), Image::new(5, "amd64", &[100]));
    repository.push_image("new", &new);
    for round in 0..100 {
        repository.push_image("v1", &old);
        thread::scope(|scope| {
            scope.spawn(|| repository.delete_manifest(&old.digest()).expect(202));
            scope.spawn(|| repository.put("v1", OCI_MANIFEST, &new.manifest).expect(201));
        });
        let answer = repository.manifest("v1");
        assert!(answer.status() == 200, "round {round}: the tag was moved, and is gone: {answer}");
        answer.expect_body(&new.manifest);
    }
    assert_tree_is_right(&spliceway.data().join("local"));
}
