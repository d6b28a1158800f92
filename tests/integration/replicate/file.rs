//! The JSON configuration, with the keys of the tool that this replaces.

use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::command::{Running, replicate};
use super::content::{small, tags, temporary};
use crate::support::eventually;
use crate::support::push::Repository;
use crate::support::registry::{PASSWORD, Registry, USERNAME};
use crate::support::relay::Relay;

fn write(home: &TempDir, config: &Value) -> String {
    let path = home.path().join("replicate.json");
    fs::write(&path, config.to_string()).expect("our own directory");
    path.to_str().expect("UTF-8").to_owned()
}

fn host(registry: &Registry) -> String {
    registry.addr().to_string()
}

/// Runs on, as the old tool did; until the tag is there.
#[track_caller]
fn copies(config: &Value, to: &Registry, repository: &str) {
    let home = temporary();
    let mut running = Running::start(["--config", &write(&home, config)]);
    eventually("the image", || (tags(to.addr(), repository) == ["1"]).then_some(()));
    running.assert_runs();
    running.signal(Signal::TERM);
    running.finish().succeeded();
}

#[test]
fn old_keys() {
    let (from, to) = (Registry::plain(), Registry::plain());
    let image = small(from.addr(), "team/app", "1", 1501);
    // A list, and a string.
    for addrs in [json!([host(&from)]), json!(host(&from))] {
        let to = Registry::plain();
        copies(&json!({"addrs": addrs, "local-addr": host(&to), "interval": 1}), &to, "team/app");
        Repository::new(to.addr(), "team/app").assert_holds("1", &image);
    }
    // The port of those that name none, on either side; and the local registry is among the found ones.
    let config = json!({
        "addrs": ["127.0.0.1", host(&to)],
        "local-addr": host(&to),
        "registry-port": from.addr().port(),
        "scheme": "http",
        "interval": 1,
    });
    copies(&config, &to, "team/app");
    Repository::new(to.addr(), "team/app").assert_holds("1", &image);
}

/// service before script before file before addrs.
#[test]
fn precedence() {
    let home = temporary();
    let from: Vec<Registry> = (0..4).map(|_| Registry::plain()).collect();
    for (seed, (registry, name)) in (1511..).zip(from.iter().zip(["service", "script", "file", "addrs"])) {
        small(registry.addr(), &format!("by/{name}"), "1", seed);
    }
    let file = home.path().join("masters");
    fs::write(&file, host(&from[2])).expect("our own directory");
    let script: PathBuf = home.path().join("find");
    fs::write(&script, format!("#!/bin/sh\necho {}\n", host(&from[1]))).expect("our own directory");
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("our own file");
    // Every way to find registries is there; one after the other is taken away.
    let mut config = json!({
        "service": "localhost",
        "script": script,
        "file": file,
        "addrs": [host(&from[3])],
        "registry-port": from[0].addr().port(),
        "interval": 1,
    });
    for key in ["service", "script", "file", "addrs"] {
        let to = Registry::plain();
        config["local-addr"] = json!(host(&to));
        copies(&config, &to, &format!("by/{key}"));
        for other in ["service", "script", "file", "addrs"].iter().filter(|other| **other != key) {
            assert_eq!(tags(to.addr(), &format!("by/{other}")), [""; 0], "{key} goes before {other}");
        }
        config.as_object_mut().expect("an object").remove(key);
    }
}

/// The flags' names are keys too.
#[test]
fn new_keys() {
    let from = Registry::htpasswd();
    let view = super::content::plain_view(&from);
    let image = small(view.addr(), "team/app", "1", 1521);
    small(view.addr(), "other/app", "1", 1522);
    let to = Registry::plain();
    let home = temporary();
    let password = home.path().join("password");
    fs::write(&password, PASSWORD).expect("our own directory");
    let log = home.path().join("log");
    let config = json!({
        "from": [from.url()],
        "to": to.url(),
        "once": true,
        "include": ["team/*"],
        "from-username": USERNAME,
        "from-password-file": password,
        "log-file": log,
        "concurrency": 2,
        "dry-run": false,
    });
    replicate(["--config", &write(&home, &config)]).succeeded();
    Repository::new(to.addr(), "team/app").assert_holds("1", &image);
    assert_eq!(tags(to.addr(), "other/app"), [""; 0]);
    assert!(fs::read_to_string(log).expect("it is written").contains("team/app:1"));
}

/// A flag beside the file wins.
#[test]
fn flags_beside_the_file() {
    let from = Registry::plain();
    let image = small(from.addr(), "team/app", "1", 1531);
    let to = Registry::plain();
    let home = temporary();
    let path = write(&home, &json!({"addrs": host(&from), "local-addr": host(&to)}));
    replicate(["--config", &path, "--once"]).succeeded();
    Repository::new(to.addr(), "team/app").assert_holds("1", &image);
}

/// What is wrong is named: key, value, and what would be right. Nothing is asked.
#[test]
fn wrong_files() {
    let from = Registry::plain();
    let source = Relay::before(from.addr());
    let to = Registry::plain();
    let right = json!({"addrs": source.addr().to_string(), "local-addr": host(&to)});
    let home = temporary();
    let wrong = [
        ("addres", json!("x"), &["addres"][..]),
        ("registry-port", json!("many"), &["registry-port", "many"]),
        ("registry-port", json!(70_000), &["registry-port", "70000"]),
        ("interval", json!("soon"), &["interval", "soon"]),
        ("interval", json!(-1), &["interval", "-1"]),
        ("scheme", json!("gopher"), &["scheme", "gopher"]),
        ("addrs", json!(7), &["addrs", "7"]),
        ("addrs", json!([7]), &["addrs", "7"]),
        ("addrs", json!([]), &["source"]),
        ("log-level", json!("loud"), &["log-level", "loud"]),
        ("delete", json!("yes"), &["delete", "yes"]),
    ];
    for (key, value, words) in wrong {
        let mut config = right.clone();
        config[key] = value;
        replicate(["--config", &write(&home, &config), "--once"]).refused(words);
    }
    for text in ["", "{", "[]", "null"] {
        let path = home.path().join("replicate.json");
        fs::write(&path, text).expect("our own directory");
        let path = path.to_str().expect("UTF-8");
        let finished = replicate(["--config", path, "--once"]);
        assert_eq!(finished.status.code(), Some(2), "{text}: {}", finished.said());
    }
    let missing = home.path().join("missing.json");
    let missing = missing.to_str().expect("UTF-8");
    let finished = replicate(["--config", missing]);
    assert!(!finished.status.success() && finished.said().contains(missing), "{}", finished.said());
    assert_eq!(source.passed().len(), 0);
}
