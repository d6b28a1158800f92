//! `gc`: what is garbage, and for how long it is not yet.

use std::fs::{self, File};
use std::time::Duration;

use super::pulls::{assert_pulled, assert_served};
use super::reference::Tree;
use super::snapshot::Snapshot;
use super::tree::{Copy, age, copy, renew, write};
use super::{done, exactly};
use crate::support::push::Repository;
use crate::support::{hex, sha256};

/// The arguments of a collection that spares nothing for its youth.
const NOW: [&str; 3] = ["gc", "--grace", "0s"];

/// What a collection with the usual options leaves: uploads that are older than a day go as well.
fn collected(tree: &Tree) -> Tree {
    without_uploads(tree.collected())
}

fn without_uploads(mut tree: Tree) -> Tree {
    for kept in tree.repositories.values_mut() {
        kept.uploads.clear();
    }
    tree
}

#[test]
fn what_no_manifest_needs_goes_and_nothing_else() {
    let copy = copy();
    let tree = copy.tree();
    let expected = collected(&tree);
    assert!(
        !expected.blobs.contains_key(&copy.names().garbage) && expected.blobs.len() + 4 == tree.blobs.len()
    );
    exactly(&copy, &NOW, &expected);
    assert_served(&copy.root(), &expected);
    assert_pulled(&copy.root(), &expected, &copy.home().join("pulled"));
    // Links to what is gone went as well, in every repository.
    assert!(!copy.tree().repository("a").layers.contains_key(&copy.names().garbage));
    // There is no more to be done.
    let before = Snapshot::take(&copy.root());
    done(&copy.root(), &NOW);
    copy.tree().assert_is(&expected, "a second time");
    assert!(before.files_gone(&Snapshot::take(&copy.root())).is_empty());
    // What is left of a digest that is gone is not even a directory.
    let garbage = copy.blob_path(&copy.names().garbage);
    assert!(!garbage.parent().expect("the digest's directory").exists());
}

#[test]
fn tree_of_a_registry_is_collected_as_it_is_named() {
    let original = copy();
    let expected = collected(&original.tree());
    let copy = original.again();
    let mut by_variable = super::command(&NOW);
    let finished = crate::support::tools::run(by_variable.env("REGISTRY_DATA_DIR", copy.registry_path()));
    super::assert_exit(&finished, 0);
    copy.tree().assert_is(&expected, "by REGISTRY_DATA_DIR");
    let copy = original.again();
    fs::rename(copy.root(), copy.home().join("local")).expect("our own directory");
    let finished = crate::support::tools::run(super::command(&NOW).arg("--data").arg(copy.home()));
    super::assert_exit(&finished, 0);
    Tree::read(&copy.home().join("local")).assert_is(&expected, "by --data");
}

#[test]
fn young_blobs_and_young_links_protect() {
    let original = copy();
    let tree = original.tree();
    let garbage = original.names().garbage.clone();
    let with_garbage = |expected: &Tree, copy: &Copy| {
        let mut expected = expected.clone();
        let tree = copy.tree();
        expected.blobs.insert(garbage.clone(), tree.blobs[&garbage].clone());
        for name in ["a", "parts"] {
            let link = tree.repository(name).layers[&garbage].clone();
            expected.repositories.get_mut(name).expect("there").layers.insert(garbage.clone(), link);
        }
        expected
    };
    let link = |copy: &Copy, name: &str| {
        copy.repository_path(name).join("_layers/sha256").join(hex(&garbage)).join("link")
    };
    // Everything is older than the day that is the default.
    let copy = original.again();
    exactly(&copy, &["gc"], &collected(&tree));
    // The blob, or any link to it, is young.
    let younger: [fn(&Copy, &str) -> std::path::PathBuf; 3] = [
        |copy, _| copy.blob_path(&copy.names().garbage),
        |copy, hex| linked(copy, "a", hex),
        |copy, hex| linked(copy, "parts", hex),
    ];
    for path in younger {
        let copy = original.again();
        renew(&path(&copy, hex(&garbage)));
        exactly(&copy, &["gc"], &with_garbage(&collected(&tree), &copy));
        exactly(&copy, &["gc", "--grace", "1h"], &with_garbage(&collected(&tree), &copy));
        age(&path(&copy, hex(&garbage)), Duration::from_hours(2));
        exactly(&copy, &["gc", "--grace", "1h"], &collected(&tree));
    }
    // A time that is still to come is no great age.
    let copy = original.again();
    let future = std::time::SystemTime::now() + Duration::from_hours(1000);
    File::open(copy.blob_path(&garbage))
        .and_then(|file| file.set_modified(future))
        .expect("our own directory");
    exactly(&copy, &["gc", "--grace", "1h"], &with_garbage(&collected(&tree), &copy));
    assert!(link(&copy, "a").exists());
    // A grace that is longer than everything is old.
    let copy = original.again();
    exactly(&copy, &["gc", "--grace", "30d"], &without_uploads(tree));
}

fn linked(copy: &Copy, name: &str, hex: &str) -> std::path::PathBuf {
    copy.repository_path(name).join("_layers/sha256").join(hex).join("link")
}

#[test]
fn untagged_manifests_go_when_that_is_asked_for() {
    let original = copy();
    let tree = original.tree();
    let expected = without_uploads(tree.collected_untagged());
    let copy = original.again();
    exactly(&copy, &["gc", "--untagged", "--grace", "0s"], &expected);
    assert_served(&copy.root(), &expected);
    assert_pulled(&copy.root(), &expected, &copy.home().join("pulled"));
    for gone in [&original.names().untagged, &original.names().between] {
        assert!(!expected.blobs.contains_key(gone));
    }
    assert!(expected.repository("signed").revisions.len() > 3, "signatures have no tag and are reached");
    // A young one stays, with all that it needs.
    let copy = original.again();
    renew(&copy.revision_path("a/b", &original.names().between));
    done(&copy.root(), &["gc", "--untagged", "--grace", "1h"]);
    let left = copy.tree();
    left.assert_whole(&tree);
    assert!(left.repository("a/b").revisions.contains_key(&original.names().between));
    assert!(!left.repository("a/b").revisions.contains_key(&original.names().untagged));
    assert_served(&copy.root(), &left);
}

#[test]
fn manifests_expire_with_their_tags() {
    let original = copy();
    let names = original.names();
    // Young are an index, of which the children are old, and an image, of which the signatures are.
    let young = [("a/b/c", &names.multi), ("signed", &names.subject), ("a", &names.first)];
    let refresh = |copy: &Copy| young.map(|(name, digest)| renew(&copy.revision_path(name, digest)));
    let copy = original.again();
    refresh(&copy);
    let tree = copy.tree();
    done(&copy.root(), &["gc", "--expire-manifests", "1h", "--grace", "0s"]);
    let left = copy.tree();
    left.assert_whole(&tree);
    let revisions = |name: &str| left.repository(name).revisions.len();
    assert_eq!(revisions("a/b/c"), 1 + names.children.len());
    assert_eq!(revisions("a"), 1);
    let signed = left.repository("signed");
    let stays = |digest: &String| signed.revisions.contains_key(digest);
    assert!(stays(&names.subject) && tree.referrers_of("signed", &names.subject).iter().all(stays));
    for name in ["a/b", "list", "one", "two/of/it", "long", "old", "sparse", "build"] {
        assert_eq!((revisions(name), left.repository(name).tags.len()), (0, 0), "{name}");
    }
    assert!(
        left.repository("a").tags.contains_key("v1") && !left.repository("a").tags.contains_key("latest")
    );
    left.collected().assert_is(&left, "blobs went with the manifests");
    assert_served(&copy.root(), &left);
    // Nothing is that old.
    let copy = original.again();
    exactly(&copy, &["gc", "--expire-manifests", "30d", "--grace", "0s"], &collected(&original.tree()));
    // What was pulled an hour ago counts as young from then.
    let pulled = |copy: &Copy| {
        refresh(copy);
        let blob = copy.blob_path(&sha256_of(copy, "one"));
        let now = fs::FileTimes::new().set_accessed(std::time::SystemTime::now());
        File::open(&blob).and_then(|file| file.set_times(now)).expect("our own directory");
    };
    let (pushed, copy) = (original.again(), original.again());
    pulled(&pushed);
    pulled(&copy);
    let expire = ["gc", "--expire-manifests", "1h", "--grace", "0s", "--expire-from"];
    done(&copy.root(), &[&expire[..], &["pull"]].concat());
    let left = copy.tree();
    let tags = |name: &str| left.repository(name).tags.into_keys().collect::<Vec<_>>();
    assert!(tags("one").contains(&"v1".to_owned()), "{:?}", tags("one"));
    assert!(tags("list").is_empty() && tags("a/b").is_empty(), "{:?} {:?}", tags("list"), tags("a/b"));
    left.assert_whole(&tree);
    done(&pushed.root(), &[&expire[..], &["push"]].concat());
    assert!(pushed.tree().repository("one").tags.is_empty());
}

/// What `v1` of a repository points at.
fn sha256_of(copy: &Copy, name: &str) -> String {
    copy.tree().repository(name).tags["v1"].current.clone().expect("a tag")
}

#[test]
fn uploads_expire_unless_somebody_writes_to_them() {
    let original = copy();
    let tree = original.tree();
    let uploads: Vec<String> = tree.repository("parts").uploads.iter().cloned().collect();
    assert_eq!(uploads.len(), 2);
    let data = |copy: &Copy, id: &str| copy.repository_path("parts").join("_uploads").join(id).join("data");
    let left = |copy: &Copy| copy.tree().repository("parts").uploads.into_iter().collect::<Vec<_>>();
    let copy = original.again();
    exactly(&copy, &["gc", "--expire-uploads", "30d", "--grace", "0s"], &tree.collected());
    // One was written to a moment ago.
    let copy = original.again();
    renew(&data(&copy, &uploads[0]));
    done(&copy.root(), &["gc"]);
    assert_eq!(left(&copy), uploads[..1]);
    age(&data(&copy, &uploads[0]), Duration::from_hours(2));
    done(&copy.root(), &["gc", "--expire-uploads", "1h"]);
    assert!(left(&copy).is_empty());
    // One is in use: its writer holds the lock.
    let copy = original.again();
    let held = File::options().write(true).open(data(&copy, &uploads[1])).expect("an upload");
    held.lock().expect("the lock is free");
    done(&copy.root(), &["gc"]);
    assert_eq!(left(&copy), uploads[1..]);
    drop(held);
    done(&copy.root(), &["gc"]);
    assert!(left(&copy).is_empty());
}

#[test]
fn links_to_nothing_go() {
    let copy = copy();
    let absent = sha256(b"evicted by hand");
    let link = copy.repository_path("one").join("_layers/sha256").join(hex(&absent)).join("link");
    write(&link, absent.as_bytes());
    age(&link, Duration::from_hours(100));
    let mut expected = collected(&copy.tree());
    expected.repositories.get_mut("one").expect("there").layers.remove(&absent);
    exactly(&copy, &NOW, &expected);
    assert!(!link.exists());
}

#[test]
fn what_a_crash_left_goes() {
    let copy = copy();
    let left = copy.root().join("fills/tmp/0123456789abcdef");
    write(&left, b"half of something");
    age(&left, Duration::from_hours(100));
    done(&copy.root(), &NOW);
    assert!(!left.exists());
    // A digest's directory without its file.
    let empty = copy.blob_path(&sha256(b"nothing"));
    fs::create_dir_all(empty.parent().expect("a directory")).expect("our own directory");
    age(empty.parent().expect("a directory"), Duration::from_hours(100));
    done(&copy.root(), &NOW);
    assert!(!empty.parent().expect("a directory").exists());
}

#[test]
fn repository_that_is_elsewhere_protects_its_blobs() {
    let copy = copy();
    let tree = copy.tree();
    // On another disk, as an operator moved it there.
    let elsewhere = copy.home().join("elsewhere");
    fs::rename(copy.repository_path("one"), &elsewhere).expect("our own directory");
    std::os::unix::fs::symlink(&elsewhere, copy.repository_path("one")).expect("our own directory");
    fs::rename(copy.repository_path("two"), copy.home().join("two")).expect("our own directory");
    // Following and refusing are both right; not seeing what is there is not.
    let finished = super::on(&copy.root(), &NOW);
    assert!(matches!(finished.status.code(), Some(0 | 1)), "{}", finished.stderr);
    for digest in tree.repository("one").revisions.keys() {
        assert!(copy.blob_path(digest).exists(), "{digest} is gone: {}", finished.stdout);
    }
    copy.tree().assert_whole(&tree);
}

#[test]
fn empty_tree_is_collected() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let root = home.path().join("data");
    fs::create_dir_all(root.join("docker/registry/v2")).expect("our own directory");
    done(&root, &NOW);
    for part in ["repositories", "blobs"] {
        fs::create_dir_all(root.join("docker/registry/v2").join(part)).expect("our own directory");
        done(&root, &NOW);
    }
    super::refused(&home.path().join("absent"), &NOW, &["absent"]);
    assert!(!home.path().join("absent").exists());
}

#[test]
fn running_server_forgets_what_was_collected() {
    let copy = copy();
    let root = copy.root();
    let spliceway = crate::support::process::Spliceway::start(|setup| {
        setup.registry("local", root.to_str().expect("UTF-8").to_owned());
    });
    let repository = Repository::new(spliceway.addr(), "parts");
    let garbage = copy.names().garbage.clone();
    repository.blob(&garbage).expect(200);
    done(&root, &["gc", "--grace", "1h"]);
    crate::support::eventually("the blob to be gone", || {
        (repository.blob(&garbage).status() == 404).then_some(())
    });
    // And takes it again.
    let bytes = crate::support::noise(401, 5000);
    assert_eq!(repository.push(&bytes), garbage);
    repository.blob(&garbage).expect(200).expect_body(&bytes);
    // A HEAD by a client that may push is a promise.
    let blob = crate::support::push::blob_path(&root, &garbage);
    age(&blob, Duration::from_hours(100));
    age(&linked(&copy, "parts", hex(&garbage)), Duration::from_hours(100));
    for _ in 0..2 {
        repository.head_blob(&garbage).expect(200);
        done(&root, &["gc", "--grace", "1h"]);
        repository.blob(&garbage).expect(200).expect_body(&bytes);
        assert!(blob.exists());
    }
}
