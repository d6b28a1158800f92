//! What is chosen: repositories, tags, versions, platforms.

use super::command::{copy, directory};
use super::content::{assert_same, attested, catalog, manifest, small, status, tags, temporary};
use crate::support::images::{Image, OCI_MANIFEST};
use crate::support::process::Spliceway;
use crate::support::push::Repository;
use crate::support::registry::Registry;
use crate::support::relay::Relay;
use crate::support::sha256;

/// A registry with these tags, of one image each repository.
fn holding(images: &[(&str, &[&str])]) -> Registry {
    let registry = Registry::plain();
    for (seed, (repository, tags)) in (801..).zip(images) {
        let image = Image::new(seed, "amd64", &[100]);
        let repository = Repository::new(registry.addr(), repository);
        repository.push_blobs(&image);
        for tag in *tags {
            repository.put(tag, OCI_MANIFEST, &image.manifest).expect(201);
        }
    }
    registry
}

/// All `repository:tag` of a registry, in their order.
fn all(registry: &Registry) -> Vec<String> {
    let mut images = Vec::new();
    for repository in catalog(registry.addr()) {
        images.extend(tags(registry.addr(), &repository).iter().map(|tag| format!("{repository}:{tag}")));
    }
    images.sort();
    images
}

#[track_caller]
fn chosen(from: &Registry, flags: &[&str], expected: &[&str]) {
    let to = Registry::plain();
    copy(&from.url(), &to.url(), flags).succeeded();
    assert_eq!(all(&to), expected, "{flags:?}");
}

#[test]
fn by_patterns() {
    let from = holding(&[
        ("team/app", &["v1", "v2", "v10"]),
        ("team/tool/sub", &["v1", "latest"]),
        ("other", &["v1"]),
        ("teammate/x", &["v1"]),
    ]);
    chosen(&from, &["--include", "team/app"], &["team/app:v1", "team/app:v10", "team/app:v2"]);
    chosen(&from, &["--include", "team/*:v?"], &["team/app:v1", "team/app:v2", "team/tool/sub:v1"]);
    chosen(&from, &["--include", "other", "--include", "*:latest"], &["other:v1", "team/tool/sub:latest"]);
    chosen(&from, &["--exclude", "team/*", "--exclude", "*:v10"], &["other:v1", "teammate/x:v1"]);
    chosen(&from, &["--include", "*:v1", "--exclude", "team*"], &["other:v1"]);
    chosen(&from, &["--include", "team/app", "--exclude", "team/app:v*"], &[]);
}

/// What is asked for by its very name is to be there; and what no image can be called is no pattern.
#[test]
fn names_that_nothing_has() {
    let from = holding(&[("team/app", &["v1"])]);
    let to = Registry::plain();
    let run = |pattern: &str| copy(&from.url(), &to.url(), &["--include", pattern]);
    run("team/app:v2").failed(&["team/app:v2", "no source"]);
    run("team/nothing").failed(&["team/nothing"]);
    let digest = format!("team/app@{}", sha256(b"x"));
    for pattern in [&digest, "/team/app", "team/", "team//app", "Team/*", "docker://team/app"] {
        run(pattern).refused(&[pattern]);
    }
    run("team/app:v1").succeeded();
    assert_eq!(all(&to), ["team/app:v1"]);
}

/// A list of which nothing is chosen is nothing to point a tag at.
#[test]
fn platforms_that_an_image_has_not() {
    let from = Registry::plain();
    let theirs = Repository::new(from.addr(), "team/app");
    attested(&theirs, "1", 851);
    small(from.addr(), "team/tool", "1", 861);
    let to = Spliceway::start(|_| ());
    let root = directory(&to.data().join("local"));
    copy(&from.url(), &root, &["--platform", "linux/riscv64"]).failed(&["team/app:1", "platforms"]);
    assert_eq!(status(&theirs.at(to.addr()), "1"), 404);
    assert_eq!(tags(to.addr(), "team/tool"), ["1"]);
}

/// What is not chosen is not even asked for its tags.
#[test]
fn what_is_left_out_is_not_asked_for() {
    let from = holding(&[("team/app", &["v1"]), ("secret/app", &["v1"])]);
    let source = Relay::before(from.addr());
    let to = Registry::plain();
    copy(&source.url(), &to.url(), &["--include", "team/*"]).succeeded();
    assert!(!source.lines().contains("secret"), "{}", source.lines());
    assert_eq!(all(&to), ["team/app:v1"]);
}

#[test]
fn by_versions() {
    let from = holding(&[(
        "app",
        &["1.2.3", "v1.9.0", "1.10.0", "2.0.0", "2.0.0-rc1", "1.10.0-alpine", "latest", "nightly", "1.2"],
    )]);
    chosen(&from, &["--semver", ">=1.9, <2"], &["app:1.10.0", "app:1.10.0-alpine", "app:v1.9.0"]);
    chosen(&from, &["--semver", "^2"], &["app:2.0.0"]);
    chosen(
        &from,
        &["--newest", "2", "--exclude", "*:latest", "--exclude", "*:nightly"],
        &["app:2.0.0", "app:2.0.0-rc1"],
    );
    chosen(&from, &["--semver", "^1", "--newest", "1"], &["app:1.10.0"]);
    chosen(&from, &["--semver", "^7"], &[]);
}

/// Newest is of each repository, and of numbers as numbers.
#[test]
fn the_newest_of_each() {
    let from = holding(&[("a", &["9", "10", "8"]), ("b", &["build-9", "build-10"])]);
    chosen(&from, &["--newest", "1"], &["a:10", "b:build-10"]);
    chosen(&from, &["--newest", "100"], &["a:10", "a:8", "a:9", "b:build-10", "b:build-9"]);
}

/// Of an index, unchanged, only what runs on the chosen machines: where the target takes it so.
#[test]
fn by_platform() {
    let from = Registry::plain();
    let theirs = Repository::new(from.addr(), "team/app");
    let [amd64, of_amd64, arm, of_arm] =
        <[String; 4]>::try_from(attested(&theirs, "1", 811)).expect("two platforms, with attestations");
    let single = small(from.addr(), "team/single", "1", 821);
    let to = Spliceway::start(|_| ());
    let root = to.data().join("local");
    copy(&from.url(), &directory(&root), &["--platform", "linux/arm/v7"]).succeeded();
    let ours = theirs.at(to.addr());
    let index = manifest(&theirs, "1").expect(200).body;
    manifest(&ours, "1").expect(200).expect_body(&index);
    assert_same(&theirs, &ours, &arm);
    assert_eq!(status(&ours, &amd64), 404, "nobody asked for it");
    // Attestations belong to their image.
    assert_eq!((status(&ours, &of_amd64), status(&ours, &of_arm)), (404, 200));
    // What says no platform in an index is no matter of platforms.
    ours.named("team/single").assert_holds("1", &single);
    // More of it later.
    copy(&from.url(), &directory(&root), &["--platform", "linux/arm/v7", "--platform", "linux/amd64"])
        .succeeded();
    assert_same(&theirs, &ours, "1");
}

/// A registry that wants all children says so, and is not given a changed index.
#[test]
fn by_platform_where_all_children_are_wanted() {
    let from = Registry::plain();
    let theirs = Repository::new(from.addr(), "team/app");
    attested(&theirs, "1", 831);
    let to = Registry::plain();
    copy(&from.url(), &to.url(), &["--platform", "linux/amd64"]).failed(&["team/app:1"]);
    assert_eq!(status(&theirs.at(to.addr()), "1"), 404);
}

/// Wrong choices are refused before anything is asked.
#[test]
fn what_makes_no_choice() {
    let from = holding(&[("app", &["1"])]);
    let source = Relay::before(from.addr());
    let home = temporary();
    for wrong in [
        ["--semver", "not a range"],
        ["--newest", "0"],
        ["--newest", "x"],
        ["--platform", "linux"],
        ["--platform", ""],
        ["--concurrency", "0"],
        ["--interval", "soon"],
        ["--delete-max", "many"],
        ["--registry-port", "0"],
        ["--scheme", "ftp"],
    ] {
        copy(&source.url(), &directory(home.path()), &wrong).refused(&[wrong[0]]);
    }
    assert_eq!(source.passed().len(), 0);
}
