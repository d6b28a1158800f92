//! Links that a crash left empty, and blobs that are gone from under their links: absent to who reads, made good by who
//! pushes again.

use std::fs;
use std::path::{Path, PathBuf};

use super::{local, start};
use crate::support::images::{Image, OCI_MANIFEST};
use crate::support::process::entries;
use crate::support::push::{assert_tree_is_right, blob_path};
use crate::support::sha256;

/// What such a file may hold that is no digest, or one of nothing.
const WRONG: [&[u8]; 6] = [
    b"",
    b"\0\0\0\0",
    b"sha256:",
    b"sha256:xyz",
    b"\xff\xfe",
    b"sha256:0000000000000000000000000000000000000000000000000000000000000000",
];

/// All links below `directory` whose path has `part` in it.
fn links(directory: &Path, part: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in entries(directory) {
        if entry.is_dir() {
            found.extend(links(&entry, part));
        } else if entry.ends_with("link") && entry.to_string_lossy().contains(part) {
            found.push(entry);
        }
    }
    found
}

#[test]
fn a_link_that_is_none_is_absent_until_it_is_pushed_again() {
    let (mut spliceway, mut repository) = start();
    let image = Image::new(1, "amd64", &[100, 70_000]);
    repository.push_image("v1", &image);
    let root = local(&spliceway);
    for wrong in WRONG {
        for part in ["/_layers/", "/revisions/", "/current/", "/index/"] {
            let damaged = links(&root, part);
            assert!(!damaged.is_empty(), "no link with {part}");
            spliceway.stop();
            for link in damaged {
                fs::write(link, wrong).expect("our own directory");
            }
            spliceway.restart(|_| ());
            repository = repository.at(spliceway.addr());
            match part {
                "/_layers/" => {
                    repository.head_blob(&sha256(image.layer(0))).expect(404);
                    repository.blob(&sha256(image.layer(0))).expect(404);
                    let answer = repository.put("v2", OCI_MANIFEST, &image.manifest);
                    answer.expect_error(400, "MANIFEST_BLOB_UNKNOWN");
                }
                "/revisions/" => {
                    repository.manifest(&image.digest()).expect(404);
                }
                "/current/" => {
                    repository.manifest("v1").expect(404);
                    repository.assert_holds(&image.digest(), &image);
                }
                _ => repository.assert_holds("v1", &image),
            }
            assert!(matches!(repository.tags("").status(), 200 | 404));
            repository.push_image("v1", &image);
            repository.assert_holds("v1", &image);
            repository.assert_holds(&image.digest(), &image);
            assert_tree_is_right(&root);
        }
    }
    // What is none can be deleted, or is not there to be.
    for wrong in WRONG {
        repository.push_image("v1", &image);
        fs::write(&links(&root, "/current/")[0], wrong).expect("our own directory");
        let answer = repository.delete_manifest("v1");
        assert!(matches!(answer.status(), 202 | 404), "{answer}");
        repository.manifest("v1").expect(404);
    }
    assert!(!spliceway.log().contains("panicked"));
}

#[test]
fn a_blob_that_is_gone_is_absent_until_it_is_pushed_again() {
    let (mut spliceway, mut repository) = start();
    let image = Image::new(1, "amd64", &[100, 70_000]);
    let root = local(&spliceway);
    repository.push_image("v1", &image);
    for digest in image.blobs.iter().map(|blob| sha256(blob)).chain([image.digest()]) {
        for whole in [false, true] {
            spliceway.stop();
            let data = blob_path(&root, &digest);
            if whole {
                fs::remove_dir_all(data.parent().expect("a directory")).expect("it was there");
            } else {
                fs::remove_file(&data).expect("it was there");
            }
            spliceway.restart(|_| ());
            repository = repository.at(spliceway.addr());
            if digest == image.digest() {
                repository.manifest("v1").expect(404);
                repository.manifest(&digest).expect(404);
            } else {
                repository.head_blob(&digest).expect(404);
                repository.blob(&digest).expect(404);
                let answer = repository.put("v2", OCI_MANIFEST, &image.manifest);
                answer.expect_error(400, "MANIFEST_BLOB_UNKNOWN");
                // A mount cannot bring it back either.
                let query = format!("?mount={digest}&from=team/app");
                assert_eq!(repository.named("other/app").post(&query).status(), 202);
            }
            repository.push_image("v1", &image);
            repository.assert_holds("v1", &image);
            assert_tree_is_right(&root);
        }
    }
}
