//! What a page of a long list takes: with the names in its directory kept, and read and sorted anew.

use std::fs;
use std::sync::LazyLock;
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

/// Made once: a directory that takes seconds.
static TREE: LazyLock<(TempDir, Layout)> = LazyLock::new(|| {
    let home = TempDir::with_prefix("spliceway-bench-").expect("a temporary directory");
    let layout = Layout::new(home.path());
    let tag = |repository: &str, tag: &str| {
        let current =
            layout.repositories().join(repository).join("_manifests/tags").join(tag).join("current");
        fs::create_dir_all(&current).expect("our own directory");
        fs::write(current.join("link"), "sha256:").expect("our own directory");
    };
    for number in 0..TAGS {
        tag("many", &format!("v{number}"));
    }
    for number in 0..REPOSITORIES {
        tag(&format!("app{number}"), "v1");
    }
    // What changed a moment ago is not kept.
    thread::sleep(Duration::from_millis(1500));
    (home, layout)
});

fn many() -> StoredRepository {
    StoredRepository::local(&"many".parse().expect("valid"))
}

#[divan::bench]
fn tags_kept(bencher: Bencher) {
    let (layout, listings, many) = (&TREE.1, Listings::default(), many());
    let page = || listings.tags(layout, &many, Some("v5"), PAGE).expect("our own directory");
    page();
    bencher.bench_local(page);
}

#[divan::bench(max_time = 2)]
fn tags_anew(bencher: Bencher) {
    let (layout, many) = (&TREE.1, many());
    bencher.bench_local(|| {
        Listings::default().tags(layout, &many, Some("v5"), PAGE).expect("our own directory")
    });
}

#[divan::bench]
fn repositories_kept(bencher: Bencher) {
    let (layout, listings) = (&TREE.1, Listings::default());
    let page =
        || listings.repositories(layout, None, Some("app5"), PAGE, &mut Err).expect("our own directory");
    page();
    bencher.bench_local(page);
}

#[divan::bench(max_time = 2)]
fn repositories_anew(bencher: Bencher) {
    let layout = &TREE.1;
    bencher.bench_local(|| {
        Listings::default()
            .repositories(layout, None, Some("app5"), PAGE, &mut Err)
            .expect("our own directory")
    });
}

/// The repository with many tags, whole: each tag is looked at.
#[divan::bench(max_time = 2)]
fn all_tags(bencher: Bencher) {
    let (layout, listings, many) = (&TREE.1, Listings::default(), many());
    bencher.bench_local(|| listings.tags(layout, &many, None, usize::MAX).expect("our own directory"));
}
