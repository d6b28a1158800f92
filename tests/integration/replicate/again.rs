//! A second run: nothing moves, and little is asked.

use super::command::{copy, directory};
use super::content::{assert_all_same, fill, snapshot, tags};
use crate::support::images::{Image, OCI_MANIFEST};
use crate::support::process::Spliceway;
use crate::support::push::Repository;
use crate::support::registry::Registry;
use crate::support::relay::{Passed, Relay};
use crate::support::{MIB, sha512};

/// Of a manifest by its tag.
fn is_of_manifest(one: &Passed) -> bool {
    one.path().contains("/manifests/")
}

fn count(passed: &[Passed], fits: impl Fn(&Passed) -> bool) -> usize {
    passed.iter().filter(|one| fits(one)).count()
}

/// Only looks, at no blob, and at each tag at most twice at either side, and once for the referrers of a manifest; lists beside.
#[track_caller]
fn assert_is_cheap(passed: &[Passed], tags: usize, repositories: usize) {
    let lines: String = passed.iter().map(|one| one.line() + "\n").collect();
    let changes = count(passed, |one| !matches!(one.method(), "GET" | "HEAD"));
    assert_eq!(changes, 0, "a request that changes something:\n{lines}");
    assert_eq!(count(passed, |one| one.path().contains("/blobs/")), 0, "a blob is asked for:\n{lines}");
    let gets = count(passed, |one| one.method() == "GET" && is_of_manifest(one));
    assert_eq!(gets, 0, "a manifest is fetched:\n{lines}");
    assert!(count(passed, is_of_manifest) <= 2 * tags, "manifests are asked for too often:\n{lines}");
    let mut asked: Vec<_> =
        passed.iter().map(Passed::path).filter(|path| path.contains("/referrers/")).collect();
    let referrers = asked.len();
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(asked.len(), referrers, "what refers to a manifest is asked for twice:\n{lines}");
    let lists = count(passed, |one| one.path().ends_with("/tags/list") || one.path() == "/v2/_catalog");
    assert!(lists <= repositories + 1, "lists are asked for too often:\n{lines}");
    assert!(passed.len() <= 2 * tags + referrers + repositories + 2, "too many requests:\n{lines}");
}

/// A tag at a manifest that one side names by another algorithm than the other.
#[test]
fn a_manifest_that_is_named_by_sha512() {
    let from = Spliceway::start(|_| ());
    let theirs = Repository::new(from.addr(), "team/app");
    let image = Image::new(1501, "amd64", &[100]);
    theirs.push_blobs(&image);
    let named = sha512(&image.manifest);
    theirs.put(&format!("{named}?tag=1"), OCI_MANIFEST, &image.manifest).expect(201);
    let to = Registry::plain();
    let url = format!("http://{}", from.addr());
    for _ in 0..3 {
        copy(&url, &to.url(), &[]).succeeded();
    }
    Repository::new(to.addr(), "team/app").assert_holds("1", &image);
}

#[test]
fn nothing_moves_between_registries() {
    let from = Registry::plain();
    let images = fill(from.addr());
    let to = Registry::plain();
    let (source, target) = (Relay::before(from.addr()), Relay::before(to.addr()));
    copy(&source.url(), &target.url(), &[]).succeeded();
    assert_all_same(from.addr(), to.addr(), &images);
    let before = snapshot(&to.data());
    for relay in [&source, &target] {
        relay.forget();
    }
    copy(&source.url(), &target.url(), &[]).succeeded();
    let repositories = super::content::catalog(from.addr()).len();
    for relay in [&source, &target] {
        assert_is_cheap(&relay.passed(), images.len(), repositories);
    }
    assert!(snapshot(&to.data()) == before, "the target's directory has changed");
}

#[test]
fn nothing_moves_into_a_directory() {
    let from = Spliceway::start(|_| ());
    let images = fill(from.addr());
    let source = Relay::before(from.addr());
    let to = Spliceway::start(|_| ());
    let root = to.data().join("local");
    copy(&source.url(), &directory(&root), &[]).succeeded();
    let before = snapshot(&root);
    source.forget();
    copy(&source.url(), &directory(&root), &[]).succeeded();
    assert_is_cheap(&source.passed(), images.len(), super::content::catalog(from.addr()).len());
    assert!(snapshot(&root) == before, "the directory has changed");
}

/// Whatever the first run moved was moved once.
#[test]
fn the_first_run_moves_each_byte_once() {
    let from = Registry::plain();
    fill(from.addr());
    let to = Registry::plain();
    let (source, target) = (Relay::before(from.addr()), Relay::before(to.addr()));
    copy(&source.url(), &target.url(), &[]).succeeded();
    let downloads: Vec<Passed> = source.passed().into_iter().filter(Passed::is_download).collect();
    let mut digests: Vec<&str> =
        downloads.iter().map(|one| one.path().rsplit('/').next().expect("a digest")).collect();
    digests.sort_unstable();
    let all = digests.len();
    digests.dedup();
    assert_eq!(all, digests.len(), "a blob is fetched twice:\n{}", source.lines());
    let down: u64 = downloads.iter().map(Passed::down).sum();
    let up: u64 = target.passed().iter().filter(|one| one.is_upload()).map(Passed::up).sum();
    assert_eq!(up, down, "what is fetched is sent, once:\n{}", target.lines());
}

/// One image is new: it alone moves.
#[test]
fn only_what_is_new_moves() {
    let from = Registry::plain();
    let images = fill(from.addr());
    let to = Registry::plain();
    let (source, target) = (Relay::before(from.addr()), Relay::before(to.addr()));
    copy(&source.url(), &target.url(), &[]).succeeded();
    let image = super::content::small(from.addr(), "team/app", "new", 401);
    source.forget();
    copy(&source.url(), &target.url(), &[]).succeeded();
    Repository::new(to.addr(), "team/app").assert_holds("new", &image);
    assert_all_same(from.addr(), to.addr(), &images);
    let bytes: u64 = source.passed().iter().filter(|one| one.is_download()).map(Passed::down).sum();
    let whole: usize = image.blobs.iter().map(Vec::len).sum();
    assert_eq!(bytes, whole as u64, "{}", source.lines());
}

/// A target that has the blobs and lost the tag is given the tag.
#[test]
fn what_the_target_has_is_not_sent() {
    let from = Registry::plain();
    let image = super::content::small(from.addr(), "team/app", "1", 411);
    let to = Registry::plain();
    let ours = Repository::new(to.addr(), "team/app");
    ours.push_blobs(&image);
    let target = Relay::before(to.addr());
    let source = Relay::before(from.addr());
    copy(&source.url(), &target.url(), &[]).succeeded();
    ours.assert_holds("1", &image);
    assert_eq!(count(&target.passed(), Passed::is_upload), 0, "{}", target.lines());
    assert_eq!(count(&source.passed(), Passed::is_download), 0, "{}", source.lines());
    assert_eq!(tags(to.addr(), "team/app"), ["1"]);
}

/// No more at once than is asked for, at either side; of small ones, which are mostly waited for, four times as many.
#[test]
fn at_most_so_many_at_once() {
    for (size, times) in [(100_000, 4), (MIB + 1, 1)] {
        let from = Registry::plain();
        let images: Vec<(&str, Image)> = (0..)
            .zip(["a/app", "b/app", "c/app"])
            .map(|(number, name)| (name, Image::new(420 + 20 * number, "amd64", &[size; 6])))
            .collect();
        for (name, image) in &images {
            Repository::new(from.addr(), name).push_image("1", image);
        }
        for (flags, at_once) in
            [(&[][..], 4), (&["--concurrency", "1"][..], 1), (&["--concurrency", "2"][..], 2)]
        {
            let to = Registry::plain();
            for (name, image) in &images {
                // The configs are there, which are small whatever the layers are.
                Repository::new(to.addr(), name).push(&image.blobs[0]);
            }
            let (source, target) = (Relay::before(from.addr()), Relay::before(to.addr()));
            copy(&source.url(), &target.url(), flags).succeeded();
            let seen = (source.downloads_at_once(), target.uploads_at_once());
            let most = at_once * times;
            assert!(seen.0 <= most && seen.1 <= most, "{seen:?} of {size} bytes with {flags:?}");
        }
    }
}
