//! `gc` and `rm` as an operator runs them, on trees that docker-registry, skopeo and Spliceway wrote: what is left is
//! exactly what references say, whatever else happens meanwhile.
//!
//! What must be left is worked out by `reference`, which shares nothing with the program.

mod closed;
mod collect;
mod kills;
mod owners;
mod pulls;
mod races;
mod reference;
mod remove;
mod snapshot;
mod tree;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use self::reference::Tree;
use self::snapshot::Snapshot;
use self::tree::Copy;
use crate::support::process::binary;
use crate::support::tools::{self, Finished};

/// Variables that would name another tree.
const VARIABLES: [&str; 3] = ["REGISTRY_DATA_DIR", "SPLICEWAY_DATA", "SPLICEWAY_CONFIG"];

/// A temporary directory, in memory where that is possible: most of what is done here is making and removing small files.
fn temporary() -> TempDir {
    let home =
        TempDir::with_prefix_in("maintain-", "/dev/shm").or_else(|_| TempDir::with_prefix("maintain-"));
    home.expect("a temporary directory")
}

/// The program with these arguments, in an environment that says nothing of trees.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    command.args(arguments);
    command
}

/// Runs the program with these arguments on the plain directory `root`.
fn on(root: &Path, arguments: &[&str]) -> Finished {
    tools::run(command(arguments).arg("--local").arg(root))
}

/// As [`on`]; it must succeed.
#[track_caller]
fn done(root: &Path, arguments: &[&str]) -> String {
    let finished = on(root, arguments);
    assert_exit(&finished, 0);
    finished.stdout
}

/// As [`on`]; it must fail and say something that contains each of `words`.
#[track_caller]
fn refused(root: &Path, arguments: &[&str], words: &[&str]) {
    let finished = on(root, arguments);
    assert_exit(&finished, 1);
    for word in words {
        assert!(finished.stderr.contains(word), "{word:?} is not in: {}", finished.stderr);
    }
}

#[track_caller]
fn assert_exit(finished: &Finished, code: i32) {
    let Finished { status, stdout, stderr } = finished;
    assert_eq!(status.code(), Some(code), "it said:\n{stdout}{stderr}");
}

/// The lines of `--json`.
#[track_caller]
fn objects(stdout: &str) -> Vec<Value> {
    let object = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    stdout.lines().map(object).collect()
}

/// A dry run, which must change nothing, and the run, which must do what the dry run said, no more and no less; then the
/// tree holds what `expected` does.
#[track_caller]
fn exactly(copy: &Copy, arguments: &[&str], expected: &Tree) {
    let root = copy.root();
    let tree = copy.tree();
    // After the tree was read: reading it leaves traces.
    let before = Snapshot::take(&root);
    let dry = done(&root, &[arguments, &["--dry-run", "--json"]].concat());
    let said = done(&root, &[arguments, &["--dry-run"]].concat());
    assert!(!said.trim().is_empty(), "a person is told nothing");
    before.assert_same(&Snapshot::take(&root), "a dry run");
    let run = done(&root, &[arguments, &["--json"]].concat());
    assert_eq!(told(&dry), told(&run), "{arguments:?}: the dry run said something else than the run");
    let after = copy.tree();
    after.assert_is(expected, &format!("{arguments:?}"));
    after.assert_whole(&tree);
    assert_told(&told(&run), &tree, &after);
}

/// What is said, without what only one of a run and a dry run can say.
fn told(stdout: &str) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for mut object in objects(stdout) {
        if let Some(fields) = object.as_object_mut() {
            fields.remove("dry_run");
            fields.remove("seconds");
        }
        lines.insert(object.to_string());
    }
    lines
}

/// Each blob that went is named with its size, and none that stayed.
#[track_caller]
fn assert_told(told: &BTreeSet<String>, before: &Tree, after: &Tree) {
    for (digest, stored) in &before.blobs {
        let gone = !after.blobs.contains_key(digest);
        let said = told.iter().any(|line| {
            line.contains("\"blob\"")
                && line.contains(digest.as_str())
                && line.contains(&stored.bytes.to_string())
        });
        assert_eq!(gone, said, "{digest} of {} bytes: {told:#?}", stored.bytes);
    }
}
