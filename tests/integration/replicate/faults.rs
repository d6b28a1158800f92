//! Registries that fail now and then, and come back.

use std::time::Duration;

use super::command::{Running, copy, directory};
use super::content::{assert_all_same, catalog, fill, small, status, tags};
use crate::support::images::Image;
use crate::support::plan::Gate;
use crate::support::process::Spliceway;
use crate::support::push::{Repository, assert_comes_to_be_right, assert_tree_is_right};
use crate::support::registry::Registry;
use crate::support::relay::{Fault, Passed, Relay, Reply};
use crate::support::{MIB, sha256};

/// An image with one layer of 4 MiB at a new docker-registry; the layer's digest.
fn large(seed: u64) -> (Registry, Image, String) {
    let registry = Registry::plain();
    let image = Image::new(seed, "amd64", &[4 * MIB]);
    Repository::new(registry.addr(), "team/app").push_image("1", &image);
    let layer = sha256(image.layer(0));
    (registry, image, layer)
}

/// Both kinds of target, each empty.
fn targets() -> (Registry, Spliceway) {
    (Registry::plain(), Spliceway::start(|_| ()))
}

/// A source dies in the middle of a blob, is gone for a while, and comes back: it is asked for the rest.
#[test]
fn a_source_that_dies_midway_and_comes_back() {
    let (from, image, layer) = large(1001);
    let (registry, spliceway) = targets();
    let root = spliceway.data().join("local");
    for (to, addr) in [(registry.url(), registry.addr()), (directory(&root), spliceway.addr())] {
        let mut source = Relay::before(from.addr());
        let gate = Gate::new();
        source.script("GET", &layer, [Fault::HoldAnswer(2 * MIB as u64, gate.clone())]);
        let running = Running::start(["--from", &source.url(), "--to", &to]);
        gate.wait_reached();
        source.stop();
        gate.open();
        // So that it meets a source that is not there, too; nothing hangs on how long.
        std::thread::sleep(Duration::from_millis(300));
        source.restart();
        running.finish().succeeded();
        Repository::new(addr, "team/app").assert_holds("1", &image);
        let asked = source.seen("GET", &layer);
        let rest = asked.last().expect("it is asked for again");
        let range = rest.head.header("range").unwrap_or_default();
        assert!(
            range.starts_with("bytes=") && range != "bytes=0-",
            "not from its beginning:\n{}",
            source.lines()
        );
        let moved: u64 = asked.iter().map(Passed::down).sum();
        assert!(moved < 5 * MIB as u64, "{moved} bytes for 4 MiB:\n{}", source.lines());
    }
}

/// One cut after another, each a little further on.
#[test]
fn a_source_that_is_cut_again_and_again() {
    let (from, image, layer) = large(1011);
    let (registry, spliceway) = targets();
    let root = spliceway.data().join("local");
    for (to, addr) in [(registry.url(), registry.addr()), (directory(&root), spliceway.addr())] {
        let source = Relay::before(from.addr());
        source.script("GET", &layer, [0, 1, MIB as u64, 700_000].map(Fault::CutAnswer));
        copy(&source.url(), &to, &[]).succeeded();
        Repository::new(addr, "team/app").assert_holds("1", &image);
        assert!(source.seen("GET", &layer).len() >= 4, "{}", source.lines());
    }
}

/// A source that knows no ranges is asked from the beginning again, and what arrives is right.
#[test]
fn a_source_that_knows_no_ranges() {
    let from = crate::support::origin::Origin::start();
    let image = Image::new(1021, "amd64", &[4 * MIB]);
    image.hold(&from, "team/app", "1");
    let path = format!("/v2/team/app/blobs/{}", sha256(image.layer(0)));
    let (registry, spliceway) = targets();
    let root = spliceway.data().join("local");
    for (to, addr) in [(registry.url(), registry.addr()), (directory(&root), spliceway.addr())] {
        use crate::support::plan::Plan;
        from.script("GET", &path, [Plan::cut(MIB as u64), Plan::ignoring_range(), Plan::ignoring_range()]);
        copy(&from.url(), &to, &["--include", "team/app:1"]).succeeded();
        Repository::new(addr, "team/app").assert_holds("1", &image);
        from.heal();
    }
}

/// Who wants to be left alone for longer than anybody waits is left alone by everybody.
#[test]
fn a_target_that_wants_to_be_left_alone() {
    let from = Registry::plain();
    for number in 0..20 {
        small(from.addr(), "team/app", &format!("{number}"), 1031 + number);
    }
    let to = Registry::plain();
    let target = Relay::before(to.addr());
    let reply = Reply::new(429, "{}").header("Retry-After", "7200");
    target.always("POST", "/blobs/uploads/", Fault::Answer(reply));
    copy(&from.url(), &target.url(), &["--concurrency", "1"]).failed(&["team/app:0", "team/app:19"]);
    // Those that were under way; 40 blobs were to be sent.
    let asked = target.seen("POST", "").len();
    assert!((1..=8).contains(&asked), "{}", target.lines());
}

/// One source that does, beside one that does not: everything comes from the other one.
#[test]
fn a_source_that_wants_to_be_left_alone() {
    let (resting, other) = (Registry::plain(), Registry::plain());
    let to = Registry::plain();
    for number in 0..10 {
        for addr in [resting.addr(), other.addr()] {
            small(addr, "team/app", &format!("{number}"), 1071 + number);
        }
    }
    let source = Relay::before(resting.addr());
    let reply = Reply::new(429, "{}").header("Retry-After", "7200");
    source.always("GET", "/blobs/", Fault::Answer(reply));
    let flags = ["--from", &other.url(), "--concurrency", "1", "--no-referrers"];
    copy(&source.url(), &to.url(), &flags).succeeded();
    let asked = source.seen("GET", "/blobs/").len();
    assert!((1..=8).contains(&asked), "{}", source.lines());
    assert_eq!(tags(to.addr(), "team/app").len(), 10);
}

/// A target that makes something else of what it is sent does not have the image.
#[test]
fn a_target_that_converts() {
    let from = Registry::plain();
    let image = small(from.addr(), "team/app", "1", 1061);
    let to = Registry::plain();
    let target = Relay::before(to.addr());
    let other = sha256(b"something else");
    let reply = Reply::new(201, "").header("Docker-Content-Digest", &other);
    target.always("PUT", "/manifests/", Fault::Answer(reply));
    copy(&from.url(), &target.url(), &[]).failed(&["team/app:1", &other, &image.digest()]);
}

/// Every few requests are answered by an error, at the source and at the target, whatever they are.
#[test]
fn errors_now_and_then() {
    let from = Registry::plain();
    let images = fill(from.addr());
    let (registry, spliceway) = targets();
    for addr in [registry.addr(), spliceway.addr()] {
        for failing_status in [500, 503] {
            let (source, target) = (Relay::before(from.addr()), Relay::before(addr));
            for relay in [&source, &target] {
                let mut number = 0;
                relay.rule(move |_| {
                    number += 1;
                    (number % 7 == 0).then(|| Fault::Answer(Reply::new(failing_status, "{}")))
                });
            }
            copy(&source.url(), &target.url(), &[]).succeeded();
            assert_all_same(from.addr(), addr, &images);
        }
    }
}

/// Requests that the target carries out and whose answers are lost are asked again without harm.
#[test]
fn answers_that_are_lost() {
    let from = Registry::plain();
    let images = fill(from.addr());
    let (registry, spliceway) = targets();
    for addr in [registry.addr(), spliceway.addr()] {
        let target = Relay::before(addr);
        let mut number = 0;
        target.rule(move |head| {
            if head.method == "GET" || head.method == "HEAD" {
                return None;
            }
            number += 1;
            (number % 5 == 0).then_some(Fault::LoseAnswer)
        });
        copy(&from.url(), &target.url(), &[]).succeeded();
        assert_all_same(from.addr(), addr, &images);
    }
}

/// The target cuts an upload in its middle: it goes on where the target says, or from the beginning.
#[test]
fn an_upload_that_is_cut() {
    let (from, image, layer) = large(1031);
    let (registry, spliceway) = targets();
    for addr in [registry.addr(), spliceway.addr()] {
        let (source, target) = (Relay::before(from.addr()), Relay::before(addr));
        let mut left = vec![0, MIB as u64, 2_500_000];
        target.rule(move |head| {
            let sends =
                matches!(head.method.as_str(), "PATCH" | "PUT") && head.path.contains("/blobs/uploads/");
            let is_large = head.header("content-length").is_none_or(|length| length.len() > 5);
            (sends && is_large).then(|| left.pop().map(Fault::CutRequest))?
        });
        copy(&source.url(), &target.url(), &[]).succeeded();
        Repository::new(addr, "team/app").assert_holds("1", &image);
        assert!(!source.seen("GET", &layer).is_empty());
    }
    assert_comes_to_be_right(&registry.data());
    assert_tree_is_right(&spliceway.data().join("local"));
}

/// A target that loses the upload's session midway.
#[test]
fn an_upload_that_is_forgotten() {
    let (from, image, _) = large(1041);
    let (registry, spliceway) = targets();
    for addr in [registry.addr(), spliceway.addr()] {
        let target = Relay::before(addr);
        let mut left = 1;
        target.rule(move |head| {
            let finishes = head.method == "PUT" && head.path.contains("/blobs/uploads/");
            if !finishes || left == 0 {
                return None;
            }
            left -= 1;
            let body =
                r#"{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"blob upload unknown to registry"}]}"#;
            Some(Fault::Answer(Reply::new(404, body)))
        });
        copy(&from.url(), &target.url(), &[]).succeeded();
        Repository::new(addr, "team/app").assert_holds("1", &image);
    }
}

/// Who says when to come back is asked no sooner; in seconds, or by a date, which has no fractions of one.
#[test]
fn rate_limits_are_honoured() {
    let from = Registry::plain();
    let image = small(from.addr(), "team/app", "1", 1051);
    let layer = sha256(image.layer(0));
    let ways: [(fn() -> String, Duration); 2] =
        [(|| "2".into(), Duration::from_secs(2)), (|| date_in(3), Duration::from_millis(1900))];
    for (after, least) in ways {
        let registry = Registry::plain();
        let (source, target) = (Relay::before(from.addr()), Relay::before(registry.addr()));
        for (relay, method, part) in
            [(&source, "GET", layer.clone()), (&target, "PUT", "/manifests/".to_owned())]
        {
            let mut left = 1;
            relay.rule(move |head| {
                if head.method != method || !head.path.contains(&part) || left == 0 {
                    return None;
                }
                left -= 1;
                Some(Fault::Answer(Reply::new(429, "{}").header("Retry-After", &after())))
            });
        }
        copy(&source.url(), &target.url(), &[]).succeeded();
        Repository::new(registry.addr(), "team/app").assert_holds("1", &image);
        for asked in [source.seen("GET", &layer), target.seen("PUT", "/manifests/")] {
            assert_eq!(asked[0].status(), 429);
            assert!(asked.len() >= 2, "it is asked again");
            // A bound from below: however slow this machine is, it holds.
            let waited = asked[1].at.duration_since(asked[0].at);
            assert!(waited >= least, "asked again after {waited:?}, told {}", after());
        }
    }
}

/// This many seconds from now, as HTTP writes it.
fn date_in(seconds: u64) -> String {
    let at = std::time::SystemTime::now() + Duration::from_secs(seconds);
    httpdate::fmt_http_date(at)
}

/// A limit that never ends is a failure, not a wait for ever.
#[test]
fn a_limit_without_end() {
    let from = Registry::plain();
    small(from.addr(), "team/app", "1", 1061);
    let to = Registry::plain();
    let source = Relay::before(from.addr());
    for after in ["1", "86400"] {
        source.heal();
        source.forget();
        let limit = Reply::new(429, "{}").header("Retry-After", after);
        source.always("GET", "/manifests/", Fault::Answer(limit));
        copy(&source.url(), &to.url(), &[]).failed(&["team/app:1", "429"]);
        assert!(source.seen("GET", "/manifests/").len() < 20, "{}", source.lines());
        assert_eq!(tags(to.addr(), "team/app"), [""; 0]);
    }
}

/// One image cannot be pushed, whatever is tried: it is named, its manifest is not pushed, the others are copied.
#[test]
fn a_target_that_refuses_one_image() {
    let from = Registry::plain();
    let bad = small(from.addr(), "bad/app", "1", 1071);
    let good = small(from.addr(), "good/app", "1", 1072);
    let to = Registry::plain();
    let target = Relay::before(to.addr());
    let refused = Reply::new(403, r#"{"errors":[{"code":"DENIED","message":"no room for the bad"}]}"#);
    target.always("POST", "/v2/bad/app/", Fault::Answer(refused));
    copy(&from.url(), &target.url(), &[]).failed(&["bad/app:1", "403"]);
    Repository::new(to.addr(), "good/app").assert_holds("1", &good);
    let ours = Repository::new(to.addr(), "bad/app");
    assert_eq!(status(&ours, "1"), 404);
    assert!(target.seen("PUT", "/v2/bad/app/manifests/").is_empty(), "{}", target.lines());
    // What was refused once is copied when it is not refused any more.
    target.heal();
    copy(&from.url(), &target.url(), &[]).succeeded();
    ours.assert_holds("1", &bad);
}

/// A blob of one layer fails for ever: neither the manifest nor the index that needs it is pushed, by tag or digest.
#[test]
fn what_needs_a_blob_that_fails_is_not_pushed() {
    let from = Registry::plain();
    let theirs = Repository::new(from.addr(), "team/app");
    let children = super::content::attested(&theirs, "1", 1081);
    let child = super::content::manifest(&theirs, &children[0]).expect(200).json();
    let layer = child["layers"][0]["digest"].as_str().expect("a digest").to_owned();
    let good = small(from.addr(), "good/app", "1", 1091);
    let (registry, spliceway) = targets();
    let root = spliceway.data().join("local");
    for (to, addr) in [(registry.url(), registry.addr()), (directory(&root), spliceway.addr())] {
        let source = Relay::before(from.addr());
        source.always("GET", &layer, Fault::Answer(Reply::new(404, "{}")));
        copy(&source.url(), &to, &[]).failed(&["team/app:1", &layer]);
        let ours = theirs.at(addr);
        assert_eq!(status(&ours, "1"), 404);
        assert_eq!(status(&ours, &children[0]), 404);
        Repository::new(addr, "good/app").assert_holds("1", &good);
    }
}

/// A source that is gone is a failure that is named.
#[test]
fn a_source_that_is_not_there() {
    let mut from = Registry::plain();
    let to = Registry::plain();
    from.stop();
    copy(&from.url(), &to.url(), &[]).failed(&[&from.addr().to_string()]);
    assert_eq!(catalog(to.addr()), [""; 0]);
}

/// So is a target.
#[test]
fn a_target_that_is_not_there() {
    let from = Registry::plain();
    small(from.addr(), "team/app", "1", 1101);
    let mut to = Registry::plain();
    to.stop();
    copy(&from.url(), &to.url(), &[]).failed(&["team/app", &to.addr().to_string()]);
}

/// And a directory that cannot be written.
#[test]
fn a_directory_that_is_a_file() {
    let from = Registry::plain();
    small(from.addr(), "team/app", "1", 1111);
    let home = super::content::temporary();
    let file = home.path().join("file");
    std::fs::write(&file, "not a directory").expect("our own directory");
    let finished = copy(&from.url(), &directory(&file), &[]);
    assert_eq!(finished.status.code(), Some(1), "{}", finished.said());
    assert!(finished.said().contains(file.to_str().expect("UTF-8")), "{}", finished.said());
}

/// A repository whose list of tags fails does not keep the others from being copied.
#[test]
fn a_list_that_fails() {
    let from = Registry::plain();
    small(from.addr(), "bad/app", "1", 1121);
    let good = small(from.addr(), "good/app", "1", 1122);
    let to = Registry::plain();
    let source = Relay::before(from.addr());
    source.always("GET", "/v2/bad/app/tags/list", Fault::Answer(Reply::new(500, "{}")));
    copy(&source.url(), &to.url(), &[]).failed(&["bad/app"]);
    Repository::new(to.addr(), "good/app").assert_holds("1", &good);
    assert_eq!(catalog(to.addr()), ["good/app"]);
}
