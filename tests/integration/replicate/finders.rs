//! Where sources are: names, scripts, files, literal addresses, several of them.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::command::{Finished, Running, replicate};
use super::content::{catalog, small, tags, temporary};
use crate::support::eventually;
use crate::support::images::Image;
use crate::support::process::binary;
use crate::support::push::Repository;
use crate::support::registry::Registry;
use crate::support::relay::Relay;

/// A registry with one image, in a repository of its own.
fn source(repository: &str, seed: u64) -> (Registry, Image) {
    let registry = Registry::plain();
    let image = small(registry.addr(), repository, "1", seed);
    (registry, image)
}

fn script(at: &Path, text: &str) -> PathBuf {
    let path = at.join("find");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("our own directory");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("our own file");
    path
}

fn run(from: &[&str], to: &Registry, more: &[&str]) -> Finished {
    let mut arguments = vec!["--to".to_owned(), to.url()];
    for from in from {
        arguments.extend(["--from".to_owned(), (*from).to_owned()]);
    }
    arguments.extend(more.iter().map(|&argument| argument.to_owned()));
    replicate(arguments)
}

#[test]
fn a_file_names_sources() {
    let (one, two, to) = (source("one/app", 501), source("two/app", 502), Registry::plain());
    let home = temporary();
    let file = home.path().join("masters");
    let text = format!("\n  {}  \r\n\n# a comment\n\thttp://{}/\n\n", one.0.addr(), two.0.addr());
    fs::write(&file, text).expect("our own directory");
    run(&[&format!("file:{}", file.display())], &to, &[]).succeeded();
    assert_eq!(catalog(to.addr()), ["one/app", "two/app"]);
    Repository::new(to.addr(), "one/app").assert_holds("1", &one.1);
    Repository::new(to.addr(), "two/app").assert_holds("1", &two.1);
}

/// The port and the scheme of those that say none.
#[test]
fn what_an_address_leaves_out() {
    let (one, to) = (source("one/app", 511), Registry::plain());
    let home = temporary();
    let file = home.path().join("masters");
    fs::write(&file, "127.0.0.1\n").expect("our own directory");
    let port = one.0.addr().port().to_string();
    let finder = format!("file:{}", file.display());
    run(&[&finder], &to, &["--registry-port", &port, "--scheme", "http"]).succeeded();
    Repository::new(to.addr(), "one/app").assert_holds("1", &one.1);
    // One that says https is spoken to so.
    let url = format!("https://{}", one.0.addr());
    run(&[&url], &Registry::plain(), &["--scheme", "http"]).failed(&[&one.0.addr().to_string()]);
}

#[test]
fn a_script_names_sources() {
    let (one, two, to) = (source("one/app", 521), source("two/app", 522), Registry::plain());
    let home = temporary();
    let path = script(home.path(), &format!("echo {}; echo; echo ' {} '", one.0.addr(), two.0.addr()));
    run(&[&format!("script:{}", path.display())], &to, &[]).succeeded();
    assert_eq!(catalog(to.addr()), ["one/app", "two/app"]);
}

/// A finder that fails is a failure that is named, and stops no other.
#[test]
fn a_finder_that_fails() {
    let (one, home) = (source("one/app", 531), temporary());
    let failing = script(home.path(), "echo 127.0.0.1:1; echo 'no masters today' >&2; exit 3");
    let failing = format!("script:{}", failing.display());
    let missing = home.path().join("nowhere");
    let others = [
        failing,
        format!("script:{}", missing.display()),
        format!("file:{}", missing.display()),
        // A directory is no list.
        format!("file:{}", home.path().display()),
        "service:no-such-name.invalid".to_owned(),
    ];
    for finder in &others {
        let to = Registry::plain();
        let name = finder.split_once(':').expect("a finder").1;
        run(&[finder, &one.0.addr().to_string()], &to, &[]).failed(&[name]);
        Repository::new(to.addr(), "one/app").assert_holds("1", &one.1);
    }
}

/// A script that never ends is ended, with what it started.
#[test]
fn a_script_that_hangs() {
    let (one, to, home) = (source("one/app", 541), Registry::plain(), temporary());
    let pids = home.path().join("pids");
    let text = format!("echo $$ >{0}\nsleep 1000 & echo $! >>{0}\nwait", pids.display());
    let hanging = format!("script:{}", script(home.path(), &text).display());
    run(&[&hanging, &one.0.addr().to_string()], &to, &[]).failed(&["find"]);
    Repository::new(to.addr(), "one/app").assert_holds("1", &one.1);
    let pids = fs::read_to_string(pids).expect("the script wrote it");
    assert_eq!(pids.lines().count(), 2);
    for pid in pids.lines() {
        let is_gone = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
            // What has ended and was not waited for is gone too.
            stat.map_or(true, |stat| stat.contains(") Z ")).then_some(())
        };
        eventually("the script to be gone", is_gone);
    }
}

/// Output that never ends, or is no text.
#[test]
fn a_script_that_says_too_much() {
    let (one, home) = (source("one/app", 551), temporary());
    for text in ["exec yes 127.0.0.1:1", "printf '\\377\\376\\n'", "echo 'not a registry!'"] {
        let to = Registry::plain();
        let finder = format!("script:{}", script(home.path(), text).display());
        run(&[&finder, &one.0.addr().to_string()], &to, &[]).failed(&["find"]);
        Repository::new(to.addr(), "one/app").assert_holds("1", &one.1);
    }
}

/// Nothing of what the script's parent was given is the script's business, nor does it wait for input.
#[test]
fn a_script_that_reads_its_input() {
    let (one, to, home) = (source("one/app", 561), Registry::plain(), temporary());
    let path = script(home.path(), &format!("cat; echo {}", one.0.addr()));
    run(&[&format!("script:{}", path.display())], &to, &[]).succeeded();
    assert_eq!(catalog(to.addr()), ["one/app"]);
}

/// A command that sees `hosts` as /etc/hosts, in a mount namespace of its own.
fn with_hosts(hosts: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command.arg("mount --bind \"$0\" /etc/hosts && exec \"$@\"").arg(hosts).arg(binary());
    command
}

/// Relays before three registries, on three addresses and one port.
fn three(registries: [SocketAddr; 3]) -> [Relay; 3] {
    let first = Relay::at("127.0.0.2:0".parse().expect("an address"), registries[0]);
    let port = first.addr().port();
    let second = Relay::at(SocketAddr::from(([127, 0, 0, 3], port)), registries[1]);
    let third = Relay::at(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port)), registries[2]);
    [first, second, third]
}

/// Every address of a name, IPv4 and IPv6.
#[test]
fn a_service_is_all_its_addresses() {
    let (one, two, three_) = (source("one/app", 571), source("two/app", 572), source("three/app", 573));
    let relays = three([one.0.addr(), two.0.addr(), three_.0.addr()]);
    let home = temporary();
    let hosts = home.path().join("hosts");
    let text = "127.0.0.1 localhost\n127.0.0.2 masters.test\n127.0.0.3 masters.test\n::1 masters.test\n";
    fs::write(&hosts, text).expect("our own directory");
    let to = Registry::plain();
    let port = relays[0].addr().port().to_string();
    let arguments =
        ["--from", "service:masters.test", "--registry-port", &port, "--scheme", "http", "--to", &to.url()];
    Running::start_by(with_hosts(&hosts), arguments).finish().succeeded();
    assert_eq!(catalog(to.addr()), ["one/app", "three/app", "two/app"]);
    for (repository, image) in [("one/app", &one.1), ("two/app", &two.1), ("three/app", &three_.1)] {
        Repository::new(to.addr(), repository).assert_holds("1", image);
    }
}

/// A run that goes on asks for names again, and keeps what it knew when they are gone.
#[test]
fn a_service_is_resolved_again() {
    let (one, two) = (source("one/app", 581), source("two/app", 582));
    let relays = three([one.0.addr(), two.0.addr(), two.0.addr()]);
    let home = temporary();
    let hosts = home.path().join("hosts");
    // In its place: it is this file that is mounted.
    let write = |text: &str| fs::write(&hosts, format!("127.0.0.1 localhost\n{text}")).expect("our own file");
    write("127.0.0.2 masters.test\n");
    let to = Registry::plain();
    let port = relays[0].addr().port().to_string();
    let mut arguments = vec!["--from", "service:masters.test", "--registry-port", &port, "--scheme", "http"];
    let url = to.url();
    arguments.extend(["--to", &url, "--interval", "1s"]);
    let mut running = Running::start_by(with_hosts(&hosts), arguments);
    eventually("the first source", || (tags(to.addr(), "one/app") == ["1"]).then_some(()));
    write("127.0.0.2 masters.test\n127.0.0.3 masters.test\n");
    eventually("the second source", || (tags(to.addr(), "two/app") == ["1"]).then_some(()));
    running.assert_runs();
    // Nobody knows the name any more.
    write("");
    running.wait_said("masters.test");
    small(one.0.addr(), "one/app", "later", 583);
    eventually("what is new at a source", || (tags(to.addr(), "one/app") == ["1", "later"]).then_some(()));
    running.signal(rustix::process::Signal::TERM);
    running.finish();
}

/// What a file says is read again, and a file that is gone is no reason to forget what it said.
#[test]
fn a_file_is_read_again() {
    let (one, two, to, home) =
        (source("one/app", 591), source("two/app", 592), Registry::plain(), temporary());
    let file = home.path().join("masters");
    fs::write(&file, format!("{}\n", one.0.addr())).expect("our own directory");
    let finder = format!("file:{}", file.display());
    let url = to.url();
    let mut running = Running::start(["--from", &finder, "--to", &url, "--interval", "1s"]);
    eventually("the first source", || (tags(to.addr(), "one/app") == ["1"]).then_some(()));
    fs::write(&file, format!("{}\n{}\n", one.0.addr(), two.0.addr())).expect("our own file");
    eventually("the second source", || (tags(to.addr(), "two/app") == ["1"]).then_some(()));
    fs::remove_file(&file).expect("our own file");
    running.wait_said("masters");
    small(two.0.addr(), "two/app", "later", 593);
    eventually("what is new at a source", || (tags(to.addr(), "two/app") == ["1", "later"]).then_some(()));
    running.assert_runs();
    running.signal(rustix::process::Signal::TERM);
    running.finish();
}

/// Several sources are replicas of one master: of each tag the first that has it decides, and one that is gone stops
/// nothing.
#[test]
fn several_sources() {
    let (one, two, three_) = (Registry::plain(), Registry::plain(), Registry::plain());
    let first = small(one.addr(), "team/app", "both", 601);
    small(two.addr(), "team/app", "both", 602);
    let second = small(two.addr(), "team/app", "second", 603);
    let third = small(three_.addr(), "other/app", "third", 604);
    let to = Registry::plain();
    let sources = [one.addr(), two.addr(), three_.addr()].map(|addr| addr.to_string());
    let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
    for _ in 0..2 {
        run(&sources, &to, &[]).succeeded();
        let ours = Repository::new(to.addr(), "team/app");
        ours.assert_holds("both", &first);
        ours.assert_holds("second", &second);
        ours.named("other/app").assert_holds("third", &third);
    }
    // The first is gone: the others are copied, and the run has failed.
    let mut one = one;
    let new = small(three_.addr(), "other/app", "new", 605);
    one.stop();
    run(&sources, &to, &[]).failed(&[sources[0]]);
    Repository::new(to.addr(), "other/app").assert_holds("new", &new);
}

/// One source cannot give a blob that another has.
#[test]
fn another_source_helps_out() {
    let (one, two, to) = (Registry::plain(), Registry::plain(), Registry::plain());
    let image = small(one.addr(), "team/app", "1", 611);
    Repository::new(two.addr(), "team/app").push_image("1", &image);
    let broken = Relay::before(one.addr());
    let digest = crate::support::sha256(image.layer(0));
    let reply = crate::support::relay::Reply::new(500, "{}");
    broken.always("GET", &format!("/blobs/{digest}"), crate::support::relay::Fault::Answer(reply));
    let finished = run(&[&broken.addr().to_string(), &two.addr().to_string()], &to, &[]);
    assert!(finished.status.code().is_some_and(|code| code < 2), "{}", finished.said());
    Repository::new(to.addr(), "team/app").assert_holds("1", &image);
}

/// What is no source is refused before anything is asked.
#[test]
fn what_is_no_source() {
    let to = Registry::plain();
    for wrong in
        ["ftp://127.0.0.1", "http://", "service:", "script:", "file:", "", "http://user:pw@127.0.0.1:1"]
    {
        let finished = run(&[wrong], &to, &[]).refused(&[]);
        assert!(!finished.said().contains("pw@"), "{}", finished.said());
    }
    replicate(["--to", &to.url()]).refused(&["--from"]);
    replicate(["--from", "127.0.0.1:1"]).refused(&["--to"]);
    replicate(["--from", "127.0.0.1:1", "--to", "dir:"]).refused(&[]);
    replicate(["--from", "127.0.0.1:1", "--to", "ftp://127.0.0.1"]).refused(&[]);
}
