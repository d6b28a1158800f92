//! `gc` and `rm` killed at every step, and at moments of the clock's choosing: no manifest and no tag ever leads to
//! something that is gone, and the next collection leaves exactly what references say.

use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::reference::Tree;
use super::tree::{Copy, copy};
use super::{command, done};
use crate::support::inject::STEPS;
use crate::support::process::binary;
use crate::support::{PATIENCE, tools};

/// At which calls of a kind: close together at first, then further apart.
const CALLS: [u32; 14] = [1, 2, 3, 4, 5, 7, 9, 12, 17, 24, 33, 47, 70, 110];

/// Runs the program until the `number`th call of that kind, which it does not make. Says whether it came so far.
fn killed_at(copy: &Copy, arguments: &[&str], calls: &str, number: u32) -> bool {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-o", "/dev/null", "-e", &format!("trace={calls}")]);
    strace.args(["-e", &format!("inject={calls}:signal=KILL:when={number}")]);
    strace.arg(binary()).args(arguments).arg("--local").arg(copy.root());
    for variable in super::VARIABLES {
        strace.env_remove(variable);
    }
    let finished = tools::run(&mut strace);
    // strace ends as what it traced did.
    let code = finished.status.code();
    assert!(matches!(code, None | Some(0)), "{arguments:?} ended with {code:?}: {}", finished.stderr);
    code.is_none()
}

/// What is left by a run that was cut short is whole, and the next collection makes it right.
#[track_caller]
fn assert_recovers(copy: &Copy, before: &Tree, what: &str) -> Tree {
    let left = copy.tree();
    left.assert_whole(before);
    done(&copy.root(), &["gc", "--grace", "0s", "--expire-uploads", "30d"]);
    let after = copy.tree();
    after.assert_is(&left.collected(), what);
    after.assert_whole(before);
    after
}

fn at_every_step(arguments: &[&str], check: impl Fn(&Copy, &Tree, &str)) {
    let original = copy();
    let before = original.tree();
    let mut hit = 0;
    for calls in STEPS {
        for number in CALLS {
            let copy = original.again();
            let was_hit = killed_at(&copy, arguments, calls, number);
            check(&copy, &before, &format!("{arguments:?} killed at {calls} {number}"));
            if !was_hit {
                break;
            }
            hit += 1;
        }
    }
    eprintln!("{arguments:?} was killed {hit} times");
    assert!(hit >= 3, "nothing that {arguments:?} does was ever hit: {hit}");
}

#[test]
fn collection_killed_at_every_step() {
    at_every_step(&["gc", "--grace", "0s", "--expire-uploads", "30d"], |copy, before, what| {
        let after = assert_recovers(copy, before, what);
        after.assert_is(&before.collected(), what);
    });
}

#[test]
fn collection_of_untagged_manifests_killed_at_every_step() {
    let arguments = ["gc", "--grace", "0s", "--untagged", "--expire-uploads", "30d"];
    at_every_step(&arguments, |copy, before, what| {
        assert_recovers(copy, before, what);
        done(&copy.root(), &arguments);
        copy.tree().assert_is(&before.collected_untagged(), what);
    });
}

#[test]
fn removal_of_a_repository_killed_at_every_step() {
    at_every_step(&["rm", "a/b", "--prune"], |copy, before, what| {
        assert_recovers(copy, before, what);
    });
}

#[test]
fn removal_of_an_index_killed_at_every_step() {
    at_every_step(&["rm", "a/b/c:multi"], |copy, before, what| {
        assert_recovers(copy, before, what);
    });
}

#[test]
fn removal_of_a_signed_image_killed_at_every_step() {
    at_every_step(&["rm", "signed:v1"], |copy, before, what| {
        assert_recovers(copy, before, what);
    });
}

#[test]
fn killed_at_any_moment() {
    let original = copy();
    let before = original.tree();
    let mut random = fastrand::Rng::with_seed(1);
    let runs: [&[&str]; 4] = [
        &["gc", "--grace", "0s", "--untagged", "--expire-uploads", "30d"],
        &["gc", "--grace", "0s", "--expire-uploads", "30d"],
        &["rm", "a/b"],
        &["rm", "signed:v1", "--prune"],
    ];
    let (mut cut, mut ended) = (0, 0);
    for (round, arguments) in (0..48).zip(runs.iter().cycle()) {
        let copy = original.again();
        let mut child = command(arguments)
            .arg("--local")
            .arg(copy.root())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        thread::sleep(Duration::from_micros(random.u64(..80_000)));
        child.kill().expect("our own child");
        let status = tools::wait(&mut child, PATIENCE).expect("SIGKILL ends it");
        if status.success() {
            ended += 1;
        } else {
            cut += 1;
        }
        assert_recovers(&copy, &before, &format!("round {round}"));
    }
    eprintln!("killed {cut} times, too late {ended} times");
}
