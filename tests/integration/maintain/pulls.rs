//! Everything that a tree promises is served from it, by docker-registry and to skopeo.

use std::path::Path;

use super::reference::Tree;
use super::tree::copy;
use crate::support::push::{Repository, pull};
use crate::support::registry::Registry;
use crate::support::{sha256, sha512};

/// Repositories of which docker-registry 2.8 does not serve the manifests: it knows schema 1 only where that is enabled.
const NOT_THEIRS: [&str; 1] = ["old"];
/// Repositories that skopeo does not copy whole: nor can it copy sha512, what is not there, or what is no image.
const NOT_COPIED: [&str; 4] = ["old", "long", "sparse", "build"];

/// docker-registry, started on the tree now, serves every manifest and every blob of `expected`, whole and right.
#[track_caller]
pub(super) fn assert_served(root: &Path, expected: &Tree) {
    let registry = Registry::on(root, "of these tests");
    for (name, revision, blobs) in expected.promises() {
        let repository = Repository::new(registry.addr(), &name);
        if !NOT_THEIRS.contains(&name.as_str()) {
            let answer = repository.manifest(&revision).expect(200);
            assert_eq!(digest_like(&revision, &answer.body), revision, "{name}: {answer}");
        }
        for blob in blobs {
            let answer = repository.blob(&blob).expect(200);
            assert_eq!(digest_like(&blob, &answer.body), blob, "{name}: {answer}");
        }
    }
    for (name, tag) in expected.tags() {
        if !NOT_THEIRS.contains(&name.as_str()) {
            Repository::new(registry.addr(), &name).manifest(&tag).expect(200);
        }
    }
}

/// skopeo pulls every tag of `expected`, all platforms of it, from docker-registry on the tree.
#[track_caller]
pub(super) fn assert_pulled(root: &Path, expected: &Tree, into: &Path) {
    let registry = Registry::on(root, "of these tests");
    for (name, tag) in expected.tags() {
        if !NOT_COPIED.contains(&name.as_str()) {
            pull(registry.addr(), &format!("{name}:{tag}"), &into.join(&name).join(&tag));
        }
    }
}

fn digest_like(named: &str, bytes: &[u8]) -> String {
    if named.starts_with("sha512:") { sha512(bytes) } else { sha256(bytes) }
}

/// Before anything is removed: what the other tests rely on holds.
#[test]
fn tree_holds_what_the_tests_are_about() {
    let copy = copy();
    let tree = copy.tree();
    tree.assert_whole(&Tree::default().with_absent(&["sparse"]));
    assert_eq!(tree.repositories.len(), 12);
    let unmarked = tree.blobs.len() - tree.marked().len();
    assert_eq!(unmarked, 4, "two blobs, and of a deleted image its manifest and configuration");
    assert_served(&copy.root(), &tree);
    assert_pulled(&copy.root(), &tree, &copy.home().join("pulled"));
}
