//! What root runs on the directory of another user, whom a server on it runs as.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::tree::{Copy, copy};
use super::{assert_exit, on};
use crate::support::images::Image;
use crate::support::process::{binary, entries};
use crate::support::push::Repository;
use crate::support::registry::Registry;
use crate::support::tools;

/// Nobody in particular.
const USER: u32 = 54_321;

/// A tree of that user, in a directory that only root searches; `None` if we are not root.
fn given_away() -> Option<Copy> {
    let copy = copy().again();
    give_away(&copy.root()).then_some(copy)
}

fn give_away(path: &Path) -> bool {
    let is_ours = std::os::unix::fs::lchown(path, Some(USER), Some(USER)).is_ok();
    let is_directory = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    is_ours && (!is_directory || entries(path).iter().all(|entry| give_away(entry)))
}

#[track_caller]
fn assert_given_away(path: &Path) {
    let meta = fs::symlink_metadata(path).expect("there");
    assert_eq!((meta.uid(), meta.gid()), (USER, USER), "{}", path.display());
    if meta.is_dir() {
        for entry in entries(path) {
            assert_given_away(&entry);
        }
    }
}

#[test]
fn what_root_makes_belongs_to_the_owner() {
    for arguments in [&["gc", "-v", "--grace", "0s"][..], &["rm", "-v", "one"], &["scrub", "-v"]] {
        let Some(copy) = given_away() else { return };
        let before = copy.tree();
        let finished = on(&copy.root(), arguments);
        assert_exit(&finished, 0);
        assert!(finished.stderr.contains("belongs to user 54321"), "{}", finished.stderr);
        assert_given_away(&copy.root());
        if arguments[0] != "scrub" {
            assert!(copy.tree() != before, "{arguments:?}: {}", finished.stdout);
        }
    }
}

#[test]
fn what_root_copies_belongs_to_the_owner() {
    let Some(copy) = given_away() else { return };
    let from = Registry::plain();
    Repository::new(from.addr(), "new/app").push_image("1", &Image::new(1, "amd64", &[100, 2_000_000]));
    let to = format!("dir:{}", copy.root().display());
    let mut command = std::process::Command::new(binary());
    tools::succeed(command.args(["replicate", "--from", &from.url(), "--to", &to]));
    assert!(copy.tree().repositories.contains_key("new/app"));
    assert_given_away(&copy.root());
}

#[test]
fn what_a_scrub_by_root_sets_aside_belongs_to_the_owner() {
    let Some(copy) = given_away() else { return };
    fs::write(copy.blob_path(&copy.names().first), b"something else").expect("our own directory");
    assert_exit(&on(&copy.root(), &["scrub"]), 1);
    assert!(copy.root().join("quarantine").exists());
    assert_given_away(&copy.root());
}

#[test]
fn dry_run_by_root_leaves_no_trace() {
    let Some(copy) = given_away() else { return };
    for arguments in [&["gc", "--grace", "0s", "--dry-run"][..], &["rm", "one", "--dry-run"]] {
        assert_exit(&on(&copy.root(), arguments), 0);
        assert_given_away(&copy.root());
    }
}
