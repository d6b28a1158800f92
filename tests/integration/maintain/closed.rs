//! Whatever cannot be read or understood stops `gc` and `rm` before they have changed anything: what it would have
//! protected is not known.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::snapshot::Snapshot;
use super::tree::{Copy, copy};
use super::{assert_exit, tools};
use crate::support::process::binary;
use crate::support::tools::Finished;

/// What is asked for in a damaged tree.
const COMMANDS: [&[&str]; 6] = [
    &["gc", "--grace", "0s"],
    &["gc", "--grace", "0s", "--untagged", "--expire-manifests", "1h"],
    &["gc", "--grace", "0s", "--dry-run"],
    &["rm", "a:latest", "--prune"],
    &["rm", "a/b"],
    &["rm", "one", "--dry-run"],
];

/// Runs the program as a user whom rights apply to.
fn as_anybody(root: &Path, arguments: &[&str]) -> Finished {
    let mut command = Command::new("setpriv");
    command.arg("--bounding-set=-dac_override,-dac_read_search").arg(binary()).args(arguments);
    for variable in super::VARIABLES {
        command.env_remove(variable);
    }
    tools::run(command.arg("--local").arg(root))
}

/// Nothing can be removed from a tree that `damage` was done to, which gives what has to be named.
#[track_caller]
fn nothing_goes(original: &Copy, what: &str, damage: impl FnOnce(&Copy) -> PathBuf) {
    let copy = original.again();
    let damaged = damage(&copy);
    let before = Snapshot::take(&copy.registry_path());
    let finished = COMMANDS.map(|arguments| (arguments, as_anybody(&copy.root(), arguments)));
    let said = || finished.iter().map(|(arguments, finished)| format!("{arguments:?}: {}", finished.stdout));
    let what_went = said().collect::<String>();
    before.assert_same(&Snapshot::take(&copy.registry_path()), &format!("{what}: {what_went}: one of them"));
    for (arguments, finished) in finished {
        assert_exit(&finished, 1);
        let named = damaged.file_name().and_then(|name| name.to_str()).expect("UTF-8");
        let parent = damaged.parent().and_then(Path::to_str).expect("UTF-8");
        let shown = finished.stderr.contains(named) || finished.stderr.contains(parent);
        // What is to be removed from may be what is damaged.
        assert!(
            shown || arguments[0] == "rm",
            "{what}: {arguments:?} does not name {}: {}",
            damaged.display(),
            finished.stderr
        );
    }
}

#[test]
fn manifest_that_is_not_whole() {
    let original = copy();
    let names = original.names();
    for (of, digest) in [
        ("an image", &names.first),
        ("an index", &names.multi),
        ("a child", &names.children[1]),
        ("an attestation", &names.children[3]),
        ("an image without a tag", &names.untagged),
        ("a subject", &names.subject),
        ("schema 1", &names.schema1),
    ] {
        nothing_goes(&original, &format!("{of} cut in half"), |copy| {
            let path = copy.blob_path(digest);
            let bytes = fs::read(&path).expect("a manifest");
            fs::write(&path, &bytes[..bytes.len() / 2]).expect("our own directory");
            path
        });
    }
    nothing_goes(&original, "an empty manifest", |copy| {
        let path = copy.blob_path(&names.multi);
        fs::write(&path, b"").expect("our own directory");
        path
    });
    nothing_goes(&original, "zeros, as a power cut leaves them", |copy| {
        let path = copy.blob_path(&names.multi);
        let len = fs::metadata(&path).expect("a manifest").len();
        fs::write(&path, vec![0; usize::try_from(len).expect("small")]).expect("our own directory");
        path
    });
    nothing_goes(&original, "a list instead of an object", |copy| {
        let path = copy.blob_path(&names.multi);
        fs::write(&path, b"[]").expect("our own directory");
        path
    });
    nothing_goes(&original, "a malformed digest in it", |copy| {
        let path = copy.blob_path(&names.first);
        let text = fs::read_to_string(&path).expect("a manifest").replacen("sha256:", "sha256:_", 2);
        fs::write(&path, text).expect("our own directory");
        path
    });
}

#[test]
fn manifest_that_is_not_there() {
    let original = copy();
    let names = original.names();
    for (of, digest) in
        [("an image", &names.first), ("an index", &names.multi), ("a child", &names.children[1])]
    {
        nothing_goes(&original, &format!("{of} is gone"), |copy| {
            let path = copy.blob_path(digest);
            fs::remove_file(&path).expect("our own directory");
            path.parent().expect("the digest's directory").to_owned()
        });
    }
}

#[test]
fn link_that_says_nothing() {
    let original = copy();
    let names = original.names().clone();
    let revision = |copy: &Copy| copy.revision_path("a/b/c", &names.multi);
    let tag = |copy: &Copy| copy.repository_path("signed/_manifests/tags/v1/current/link");
    for (what, content) in
        [("empty", &b""[..]), ("garbage", b"sha256:zz"), ("zeros", &[0; 71]), ("text", b"hello\n")]
    {
        for (of, path) in [("a revision's", &revision as &dyn Fn(&Copy) -> PathBuf), ("a tag's", &tag)] {
            nothing_goes(&original, &format!("{of} link is {what}"), |copy| {
                let path = path(copy);
                fs::write(&path, content).expect("our own directory");
                path
            });
        }
    }
}

#[test]
fn directory_that_cannot_be_read() {
    let original = copy();
    for directory in [
        "two",
        "two/of/it",
        "a/b",
        "a/b/c/_manifests",
        "signed/_manifests/revisions",
        "signed/_manifests/revisions/sha256",
        "list/_manifests/tags",
        "list/_manifests/tags/list",
        "list/_manifests/tags/list/current",
    ] {
        nothing_goes(&original, &format!("{directory} cannot be read"), |copy| {
            let path = copy.repository_path(directory);
            fs::set_permissions(&path, Permissions::from_mode(0o000)).expect("our own directory");
            path
        });
    }
}

#[test]
fn file_that_cannot_be_read() {
    let original = copy();
    let names = original.names().clone();
    let files: [&dyn Fn(&Copy) -> PathBuf; 3] =
        [&|copy| copy.blob_path(&names.multi), &|copy| copy.revision_path("a/b/c", &names.multi), &|copy| {
            copy.repository_path("signed/_manifests/tags/v1/current/link")
        }];
    for file in files {
        nothing_goes(&original, "a file cannot be read", |copy| {
            let path = file(copy);
            fs::set_permissions(&path, Permissions::from_mode(0o000)).expect("our own directory");
            path
        });
    }
}

#[test]
fn repositories_that_are_gone() {
    // As a disk looks that was not mounted.
    nothing_goes(&copy(), "there are no repositories", |copy| {
        let path = copy.registry_path().join("repositories");
        fs::rename(&path, copy.home().join("elsewhere")).expect("our own directory");
        path
    });
}

/// Were it not mounted, what is in it would seem to be gone.
#[test]
fn directory_of_another_filesystem() {
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            tools::succeed(Command::new("umount").arg(&self.0));
        }
    }

    let copy = copy();
    let at = copy.repository_path("elsewhere");
    fs::create_dir(&at).expect("our own directory");
    tools::succeed(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&at));
    let mounted = Mounted(at);
    fs::create_dir_all(mounted.0.join("app/_manifests")).expect("our own directory");
    let before = Snapshot::take(&copy.registry_path());
    for arguments in COMMANDS {
        let finished = as_anybody(&copy.root(), arguments);
        assert_exit(&finished, 1);
        // Single repositories of the tree itself can be looked at before the whole is.
        assert!(finished.stderr.contains("elsewhere: is on another filesystem"), "{}", finished.stderr);
    }
    before.assert_same(&Snapshot::take(&copy.registry_path()), "a directory is mounted");
}

#[test]
fn directory_that_is_none() {
    let original = copy();
    for directory in ["signed/_manifests", "signed/_manifests/revisions", "list/_manifests/tags/list/current"]
    {
        nothing_goes(&original, &format!("{directory} is a file"), |copy| {
            let path = copy.repository_path(directory);
            fs::remove_dir_all(&path).expect("our own directory");
            fs::write(&path, b"").expect("our own directory");
            path
        });
    }
    nothing_goes(&original, "a directory leads to itself", |copy| {
        let path = copy.repository_path("signed/_manifests/revisions/sha256");
        fs::remove_dir_all(&path).expect("our own directory");
        std::os::unix::fs::symlink(&path, &path).expect("our own directory");
        path
    });
}
