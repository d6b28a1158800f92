//! What a person and a script are told, and what it costs in memory.

use serde_json::Value;

use super::command::{Running, copy, directory, replicate};
use super::content::{assert_all_same, catalog, fill, small, snapshot, tags, temporary, write_sparse};
use crate::support::images::Image;
use crate::support::plan::Gate;
use crate::support::process::Spliceway;
use crate::support::push::Repository;
use crate::support::registry::Registry;
use crate::support::relay::{Fault, Passed, Relay, Reply};
use crate::support::{MIB, eventually, sha256};

/// The most that may be resident.
const MEMORY_KIB_MAX: u64 = 100 * 1024;
/// More than any memory bound, and quick enough.
const LARGE: u64 = 256 << 20;

fn last(events: &[Value]) -> &Value {
    let last = events.last().expect("events");
    assert_eq!(last["event"], "run_done", "{last}");
    last
}

#[test]
fn events() {
    let from = Registry::plain();
    let images = fill(from.addr());
    let bad = small(from.addr(), "bad/app", "1", 1401);
    let to = Registry::plain();
    let source = Relay::before(from.addr());
    source.always("GET", &sha256(bad.layer(0)), Fault::Answer(Reply::new(404, "{}")));
    let finished = copy(&source.url(), &to.url(), &["--json"]).failed(&["bad/app:1"]);
    let events = finished.events();
    assert_eq!(events[0]["event"], "run_started");
    let done = last(&events);
    let number = |key: &str| done[key].as_u64().unwrap_or_else(|| panic!("{key} is no number: {done}"));
    assert_eq!(number("images_copied"), images.len() as u64);
    assert_eq!((number("images_failed"), number("failures_total")), (1, 1));
    let failure = &done["failures"][0];
    assert_eq!(failure["what"], "bad/app:1");
    assert!(failure["why"].as_str().is_some_and(|why| why.contains("404")), "{failure}");
    let moved: u64 = source.passed().iter().filter(|one| one.is_download()).map(Passed::down).sum();
    // What the relay sent for the blob that failed is the error's own body.
    assert!((moved - 20..=moved).contains(&number("bytes_copied")), "{moved} {done}");
    for (repository, tag) in &images {
        let name = format!("{repository}:{tag}");
        let told = events.iter().filter(|event| event["event"] == "image_done" && event["image"] == *name);
        assert_eq!(told.count(), 1, "{name}");
    }
    // Requests are counted as they are.
    assert_eq!(number("requests_source"), source.passed().len() as u64, "{}", source.lines());

    // Again, with nothing to do.
    source.heal();
    copy(&source.url(), &to.url(), &[]).succeeded();
    let finished = copy(&source.url(), &to.url(), &["--json"]).succeeded();
    let events = finished.events();
    let done = last(&events);
    assert_eq!(done["images_present"], (images.len() + 1) as u64);
    assert_eq!((&done["bytes_copied"], &done["images_copied"]), (&Value::from(0), &Value::from(0)));
}

/// Nothing is written, and it is said what would be: the same as what is, then.
#[test]
fn a_dry_run() {
    let from = Registry::plain();
    let images = fill(from.addr());
    let registry = Registry::plain();
    let spliceway = Spliceway::start(|_| ());
    let root = spliceway.data().join("local");
    for addr in [registry.addr(), spliceway.addr()] {
        // One image moves, one stays, one would be deleted.
        Repository::new(addr, "team/app").push_image("v1", &Image::new(1411, "amd64", &[10]));
        Repository::new(addr, "team/app").push_image("v2", &Image::new(2, "amd64", &[70_000, 0]));
        Repository::new(addr, "team/app").push_image("stale", &Image::new(1412, "amd64", &[10]));
    }
    let target = Relay::before(registry.addr());
    for (to, addr, data) in
        [(target.url(), registry.addr(), registry.data()), (directory(&root), spliceway.addr(), root.clone())]
    {
        let before = snapshot(&data);
        let source = Relay::before(from.addr());
        // A layer of the image that stays is mounted there, or copied if the other repository comes first.
        let run = |more: &[&str]| {
            let flags = ["--delete", "--exclude", "team/app/deeper/*"];
            copy(&source.url(), &to, &[&flags, more].concat()).succeeded()
        };
        let finished = run(&["--dry-run", "--json"]);
        let events = finished.events();
        let would = last(&events).clone();
        assert_eq!(would["dry_run"], true);
        assert!(snapshot(&data) == before, "a dry run changes something");
        let changes = target.passed().iter().any(|one| !matches!(one.method(), "GET" | "HEAD"));
        assert!(!changes, "{}", target.lines());
        assert!(!source.passed().iter().any(Passed::is_download), "{}", source.lines());
        let text = run(&["--dry-run"]).said();
        for words in ["team/app:v1", "team/app:latest", "docker:1", "team/app:stale"] {
            assert!(text.contains(words), "{words} is not named:\n{text}");
        }
        // As it was said, it is done.
        let finished = run(&["--json"]);
        let events = finished.events();
        let did = last(&events);
        for key in ["images_copied", "images_updated", "images_present", "tags_deleted", "bytes_copied"] {
            assert_eq!(would[key], did[key], "{key}: would {would}, did {did}");
        }
        assert!(did["bytes_copied"].as_u64().is_some_and(|bytes| bytes > 0));
        copy(&source.url(), &to, &[]).succeeded();
        assert_all_same(from.addr(), addr, &images);
        assert!(!tags(addr, "team/app").contains(&"stale".to_owned()));
        target.forget();
    }
}

/// A dry run into a directory that is not there makes none.
#[test]
fn a_dry_run_makes_no_directory() {
    let from = Registry::plain();
    fill(from.addr());
    let home = temporary();
    let root = home.path().join("data");
    copy(&from.url(), &directory(&root), &["--dry-run"]).succeeded();
    assert!(!root.exists());
}

/// Plain lines where nobody looks at a terminal: what was copied, what failed and why, and a summary.
#[test]
fn lines_in_a_log() {
    let from = Registry::plain();
    small(from.addr(), "team/app", "1", 1421);
    let bad = small(from.addr(), "bad/app", "1", 1422);
    let to = Registry::plain();
    let source = Relay::before(from.addr());
    source.always("GET", &sha256(bad.layer(0)), Fault::Answer(Reply::new(404, "{}")));
    let finished = copy(&source.url(), &to.url(), &[]).failed(&["team/app:1", "bad/app:1", "404"]);
    let said = finished.said();
    assert!(!said.contains('\u{1b}') && !said.contains('\r'), "no terminal, no control characters: {said:?}");
    assert!(said.lines().count() < 40, "{said}");
}

/// A log file gets what the log would.
#[test]
fn a_log_file() {
    let from = Registry::plain();
    small(from.addr(), "team/app", "1", 1431);
    let to = Registry::plain();
    let home = temporary();
    let log = home.path().join("replicate.log");
    let path = log.to_str().expect("UTF-8");
    copy(&from.url(), &to.url(), &["--log-file", path]).succeeded();
    let text = std::fs::read_to_string(&log).expect("it is written");
    assert!(text.contains("team/app:1"), "{text}");
    // A second run goes on where the first ended.
    small(from.addr(), "team/app", "2", 1432);
    copy(&from.url(), &to.url(), &["--log-file", path]).succeeded();
    let more = std::fs::read_to_string(&log).expect("it is written");
    assert!(more.starts_with(&text) && more.contains("team/app:2"), "{more}");
    let nowhere = home.path().join("not/there/replicate.log");
    let nowhere = nowhere.to_str().expect("UTF-8");
    let finished = copy(&from.url(), &to.url(), &["--log-file", nowhere]);
    assert!(!finished.status.success() && finished.said().contains(nowhere), "{}", finished.said());
}

/// Memory does not grow with a blob, between registries.
#[test]
fn memory_between_registries() {
    let home = temporary();
    let layer = write_sparse(home.path(), "large/app", "1", LARGE);
    let from = Registry::on(home.path(), "of a source");
    let to = Registry::plain();
    let target = Relay::before(to.addr());
    let gate = Gate::new();
    target.always("PUT", "/manifests/", Fault::Hold(gate.clone()));
    let running = Running::start(["--from", &from.url(), "--to", &target.url()]);
    gate.wait_reached();
    let peak = running.peak_memory_kib();
    assert!(peak < MEMORY_KIB_MAX, "{peak} KiB were resident");
    gate.open();
    running.finish().succeeded();
    let ours = Repository::new(to.addr(), "large/app");
    assert_eq!(ours.head_blob(&layer).expect(200).header("content-length"), Some(LARGE.to_string().as_str()));
}

/// Nor into a directory.
#[test]
fn memory_into_a_directory() {
    let home = temporary();
    let layer = write_sparse(home.path(), "large/app", "1", LARGE);
    let from = Registry::on(home.path(), "of a source");
    let to = Spliceway::start(|_| ());
    let root = to.data().join("local");
    let running = Running::start(["--from", &from.url(), "--to", &directory(&root), "--interval", "1h"]);
    eventually("the image", || (tags(to.addr(), "large/app") == ["1"]).then_some(()));
    let peak = running.peak_memory_kib();
    assert!(peak < MEMORY_KIB_MAX, "{peak} KiB were resident");
    running.signal(rustix::process::Signal::TERM);
    running.finish().succeeded();
    let ours = Repository::new(to.addr(), "large/app");
    assert_eq!(ours.head_blob(&layer).expect(200).header("content-length"), Some(LARGE.to_string().as_str()));
}

/// A target that takes its time holds the source back: what is under way does not pile up.
#[test]
fn a_slow_target_holds_the_source_back() {
    let from = Registry::plain();
    let theirs = Repository::new(from.addr(), "team/app");
    let image = Image::new(1441, "amd64", &[32 * MIB]);
    theirs.push_image("1", &image);
    let to = Registry::plain();
    let (source, target) = (Relay::before(from.addr()), Relay::before(to.addr()));
    let gate = Gate::new();
    for method in ["PATCH", "PUT"] {
        target.always(method, "/blobs/uploads/", Fault::HoldRequest(MIB as u64, gate.clone()));
    }
    let running = Running::start(["--from", &source.url(), "--to", &target.url()]);
    gate.wait_reached();
    // Until nothing moves any more.
    let layer = sha256(image.layer(0));
    let received = || source.seen("GET", &layer).iter().map(Passed::down).sum::<u64>();
    let mut before = 0;
    eventually("the source to stand still", || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let now = received();
        let stands = now > 0 && now == before;
        before = now;
        stands.then_some(())
    });
    // What the kernel's buffers hold is in it, on each of the ways.
    assert!(received() < 24 * MIB as u64, "{} bytes came with 1 MiB taken", received());
    gate.open();
    running.finish().succeeded();
    theirs.at(to.addr()).assert_holds("1", &image);
}

/// What was typed wrongly is code 2, and help names every flag.
#[test]
fn usage() {
    replicate(["--from", "127.0.0.1:1", "--to", "http://127.0.0.1:2", "--no-such-flag"])
        .refused(&["--no-such-flag"]);
    let help = replicate(["--help"]).succeeded().stdout;
    for flag in [
        "--from",
        "--to",
        "--config",
        "--once",
        "--interval",
        "--dry-run",
        "--json",
        "--delete",
        "--delete-max",
        "--include",
        "--exclude",
        "--semver",
        "--newest",
        "--platform",
        "--no-referrers",
        "--local-addr",
        "--registry-port",
        "--scheme",
        "--concurrency",
        "--log-file",
        "--from-username",
        "--from-password-file",
        "--from-docker-config",
        "--from-ca-file",
        "--from-auth-host",
        "--to-username",
        "--to-password-file",
        "--to-docker-config",
        "--to-ca-file",
        "--to-auth-host",
    ] {
        assert!(help.contains(flag), "{flag} is not in the help:\n{help}");
    }
    assert_eq!(catalog(Registry::plain().addr()), [""; 0]);
}
