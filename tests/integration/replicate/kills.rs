//! Runs that end in their middle: killed, or told to end.

use rustix::process::Signal;

use super::command::{Running, copy, directory};
use super::content::{assert_all_same, fill, small, status, tags};
use crate::support::images::Image;
use crate::support::plan::Gate;
use crate::support::process::Spliceway;
use crate::support::push::{Repository, assert_comes_to_be_right, assert_tree_is_right};
use crate::support::registry::Registry;
use crate::support::relay::{Fault, Relay};
use crate::support::{MIB, eventually, sha256};

/// Killed at this request of the source; the rest of a second run is as if there had been no first.
fn killed_at(method: &'static str, part: &str, offset: u64) {
    let from = Registry::plain();
    let images = fill(from.addr());
    let large = Image::new(1301, "amd64", &[3 * MIB, 500_000]);
    Repository::new(from.addr(), "large/app").push_image("1", &large);
    let layer = sha256(large.layer(0));
    let part = if part.is_empty() { layer.as_str() } else { part };
    let registry = Registry::plain();
    let spliceway = Spliceway::start(|_| ());
    let root = spliceway.data().join("local");
    for (to, addr) in [(registry.url(), registry.addr()), (directory(&root), spliceway.addr())] {
        let source = Relay::before(from.addr());
        let gate = Gate::new();
        source.script(method, part, [Fault::HoldAnswer(offset, gate.clone())]);
        let running = Running::start(["--from", &source.url(), "--to", &to]);
        gate.wait_reached();
        running.kill9();
        source.heal();
        // What is there is right, and whole.
        assert_tree_is_right(&root);
        assert_comes_to_be_right(&registry.data());
        copy(&source.url(), &to, &[]).succeeded();
        assert_all_same(from.addr(), addr, &images);
        Repository::new(addr, "large/app").assert_holds("1", &large);
    }
    assert_tree_is_right(&root);
    assert_comes_to_be_right(&registry.data());
}

#[test]
fn killed_in_the_middle_of_a_blob() {
    killed_at("GET", "", 2 * MIB as u64);
}

#[test]
fn killed_at_the_beginning_of_a_blob() {
    killed_at("GET", "", 0);
}

#[test]
fn killed_at_a_manifest() {
    killed_at("GET", "/attested/manifests/", 10);
}

/// Killed with everything there but the last manifest, which the target may have or not.
#[test]
fn killed_at_the_last_step() {
    let from = Registry::plain();
    let image = small(from.addr(), "team/app", "1", 1311);
    for hold in [Fault::Hold, Fault::HoldHead] {
        let to = Registry::plain();
        let target = Relay::before(to.addr());
        let gate = Gate::new();
        target.script("PUT", "/manifests/", [hold(gate.clone())]);
        let running = Running::start(["--from", &from.url(), "--to", &target.url()]);
        gate.wait_reached();
        running.kill9();
        target.heal();
        copy(&from.url(), &target.url(), &[]).succeeded();
        Repository::new(to.addr(), "team/app").assert_holds("1", &image);
    }
}

/// Two runs at once into one directory, and into one registry: both succeed.
#[test]
fn two_at_once() {
    let from = Registry::plain();
    let images = fill(from.addr());
    let registry = Registry::plain();
    let spliceway = Spliceway::start(|_| ());
    let root = spliceway.data().join("local");
    for (to, addr) in [(registry.url(), registry.addr()), (directory(&root), spliceway.addr())] {
        let both = [(); 2].map(|()| Running::start(["--from", &from.url(), "--to", &to]));
        for running in both {
            running.finish().succeeded();
        }
        assert_all_same(from.addr(), addr, &images);
    }
    assert_tree_is_right(&root);
}

/// Told to end in the middle of a blob: that blob arrives, and no other begins.
#[test]
fn told_to_end() {
    let from = Registry::plain();
    // Large ones, of which only one is under way here.
    let images = [1321, 1331].map(|seed| Image::new(seed, "amd64", &[2 * MIB]));
    for (name, image) in ["a/app", "b/app"].iter().zip(&images) {
        Repository::new(from.addr(), name).push_image("1", image);
    }
    let layers = images.each_ref().map(|image| sha256(image.layer(0)));
    for signal in [Signal::TERM, Signal::INT] {
        let to = Registry::plain();
        let source = Relay::before(from.addr());
        let gates = [Gate::new(), Gate::new()];
        for (layer, gate) in layers.iter().zip(&gates) {
            source.script("GET", layer, [Fault::HoldAnswer(MIB as u64, gate.clone())]);
        }
        let mut running = Running::start(["--from", &source.url(), "--to", &to.url(), "--concurrency", "1"]);
        // Whichever is the first.
        let first = eventually("a blob to be under way", || {
            (0..2).find(|&one| source.seen("GET", &layers[one]).iter().any(|asked| asked.down() > 0))
        });
        gates[first].wait_reached();
        running.signal(signal);
        running.wait_said("ending");
        running.assert_runs();
        gates[first].open();
        let finished = running.finish();
        assert!(finished.status.code().is_some(), "it ends by itself: {}", finished.said());
        let names = ["a/app", "b/app"].map(|name| Repository::new(to.addr(), name));
        names[first].blob(&layers[first]).expect(200).expect_body(images[first].layer(0));
        assert!(source.seen("GET", &layers[1 - first]).is_empty(), "{}", source.lines());
        assert_eq!(status(&names[1 - first], "1"), 404);
        // And what is left comes later.
        copy(&from.url(), &to.url(), &[]).succeeded();
        for (name, image) in names.iter().zip(&images) {
            name.assert_holds("1", image);
        }
    }
}

/// Told twice: at once, whatever is under way.
#[test]
fn told_twice_to_end() {
    let from = Registry::plain();
    let image = Image::new(1341, "amd64", &[2 * MIB]);
    Repository::new(from.addr(), "team/app").push_image("1", &image);
    let spliceway = Spliceway::start(|_| ());
    let root = spliceway.data().join("local");
    let registry = Registry::plain();
    for (to, addr) in [(registry.url(), registry.addr()), (directory(&root), spliceway.addr())] {
        let source = Relay::before(from.addr());
        let gate = Gate::new();
        source.script("GET", &sha256(image.layer(0)), [Fault::HoldAnswer(MIB as u64, gate.clone())]);
        let running = Running::start(["--from", &source.url(), "--to", &to]);
        gate.wait_reached();
        running.signal(Signal::TERM);
        running.wait_said("ending");
        running.signal(Signal::TERM);
        // The gate stays closed: it does not wait for what is under way.
        let finished = running.finish();
        assert!(!finished.status.success(), "it was not done: {}", finished.said());
        source.heal();
        assert_eq!(tags(addr, "team/app"), [""; 0]);
        copy(&source.url(), &to, &[]).succeeded();
        Repository::new(addr, "team/app").assert_holds("1", &image);
    }
    assert_tree_is_right(&root);
}

/// A run that goes on copies what is new, and ends with 0 when it is told to between two rounds.
#[test]
fn a_run_that_goes_on() {
    let from = Registry::plain();
    small(from.addr(), "team/app", "1", 1351);
    let to = Registry::plain();
    let mut running = Running::start(["--from", &from.url(), "--to", &to.url(), "--interval", "1s"]);
    eventually("the first image", || (tags(to.addr(), "team/app") == ["1"]).then_some(()));
    let second = small(from.addr(), "team/app", "2", 1352);
    eventually("the second image", || (tags(to.addr(), "team/app") == ["1", "2"]).then_some(()));
    // A moved tag, too.
    let moved = small(from.addr(), "team/app", "1", 1353);
    let ours = Repository::new(to.addr(), "team/app");
    eventually("the moved tag", || {
        (ours.head_manifest("1").header("docker-content-digest") == Some(&moved.digest())).then_some(())
    });
    ours.assert_holds("1", &moved);
    ours.assert_holds("2", &second);
    running.assert_runs();
    running.signal(Signal::TERM);
    running.finish().succeeded();
}

/// A source that is gone for a round of many is asked again in the next.
#[test]
fn a_run_that_goes_on_without_its_source() {
    let from = Registry::plain();
    small(from.addr(), "team/app", "1", 1361);
    let to = Registry::plain();
    let mut source = Relay::before(from.addr());
    let mut running = Running::start(["--from", &source.url(), "--to", &to.url(), "--interval", "1s"]);
    eventually("the first image", || (tags(to.addr(), "team/app") == ["1"]).then_some(()));
    source.stop();
    running.wait_said("connect");
    small(from.addr(), "team/app", "2", 1362);
    source.restart();
    eventually("the second image", || (tags(to.addr(), "team/app") == ["1", "2"]).then_some(()));
    running.assert_runs();
    running.signal(Signal::TERM);
    running.finish();
}
