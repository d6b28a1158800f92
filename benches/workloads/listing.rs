//! What a page of a long list takes: with the names in its directory kept, and read and sorted anew.
//!
//! Trees are made below `$TMPDIR`, which has to be the filesystem in question.

use std::fs;
use std::os::unix::fs::symlink;
use std::thread;
use std::time::Duration;

use divan::Bencher;
use spliceway::store::{Layout, Listings, StoredRepository};
use tempfile::TempDir;

/// Only whether it works is of interest in a debug build.
const SHARE: usize = if cfg!(debug_assertions) { 100 } else { 1 };
const TAGS: usize = 100_000 / SHARE;
const REPOSITORIES: usize = 10_000 / SHARE;
const PAGE: usize = 100;

/// `many` with all the tags, and all the other repositories with one. What they have is the same and there once: making a
/// hundred thousand directories and removing them would take minutes.
fn tree(tags: usize, repositories: usize) -> (TempDir, Layout) {
    let home = TempDir::with_prefix("spliceway-bench-").expect("a temporary directory");
    let layout = Layout::new(home.path());
    let manifests = layout.repositories().join("many/_manifests");
    let current = manifests.join("tags/v/current");
    fs::create_dir_all(&current).expect("our own directory");
    fs::write(current.join("link"), "sha256:").expect("our own directory");
    for number in 0..tags {
        symlink("v", manifests.join(format!("tags/v{number}"))).expect("our own directory");
    }
    for number in 0..repositories {
        let repository = layout.repositories().join(format!("app{number}"));
        fs::create_dir(&repository).expect("our own directory");
        symlink(&manifests, repository.join("_manifests")).expect("our own directory");
    }
    // What changed a moment ago is not kept.
    thread::sleep(Duration::from_millis(1500));
    (home, layout)
}

fn many() -> StoredRepository {
    StoredRepository::local(&"many".parse().expect("valid"))
}

#[divan::bench]
fn tags_kept(bencher: Bencher) {
    let ((_home, layout), listings, many) = (tree(TAGS, 0), Listings::default(), many());
    let page = || listings.tags(&layout, &many, Some("v5"), PAGE).expect("our own directory");
    page();
    bencher.bench_local(page);
}

#[divan::bench(max_time = 2)]
fn tags_anew(bencher: Bencher) {
    let ((_home, layout), many) = (tree(TAGS, 0), many());
    let page = || Listings::default().tags(&layout, &many, Some("v5"), PAGE);
    bencher.bench_local(|| page().expect("our own directory"));
}

/// The whole list: each tag is looked at.
#[divan::bench(max_time = 2)]
fn tags_all(bencher: Bencher) {
    let ((_home, layout), listings, many) = (tree(TAGS, 0), Listings::default(), many());
    let page = || listings.tags(&layout, &many, None, usize::MAX);
    bencher.bench_local(|| page().expect("our own directory"));
}

#[divan::bench]
fn repositories_kept(bencher: Bencher) {
    let ((_home, layout), listings) = (tree(1, REPOSITORIES), Listings::default());
    let page = || listings.repositories(&layout, None, Some("app5"), PAGE, &mut Err);
    page().expect("our own directory");
    bencher.bench_local(|| page().expect("our own directory"));
}

#[divan::bench(max_time = 2)]
fn repositories_anew(bencher: Bencher) {
    let (_home, layout) = tree(1, REPOSITORIES);
    let page = || Listings::default().repositories(&layout, None, Some("app5"), PAGE, &mut Err);
    bencher.bench_local(|| page().expect("our own directory"));
}
