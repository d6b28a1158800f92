//! `rm`: what goes, what stays, and what is said about it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::pulls::{assert_pulled, assert_served};
use super::reference::{Tree, Unwanted};
use super::snapshot::Snapshot;
use super::tree::{Copy, copy, write};
use super::{assert_exit, command, done, exactly, on, refused};
use crate::support::process::Spliceway;
use crate::support::push::Repository;
use crate::support::tools;

/// See [`exactly`].
#[track_caller]
fn remove(copy: &Copy, arguments: &[&str], expected: &Tree) {
    exactly(copy, &[&["rm"], arguments].concat(), expected);
}

#[test]
fn repository_goes_whole_and_takes_no_other() {
    let original = copy();
    for name in original.tree().repositories.keys() {
        let copy = original.again();
        let expected = copy.tree().without(name, Unwanted::Everything);
        remove(&copy, &[name], &expected);
        assert!(!expected.repositories.contains_key(name));
        assert_served(&copy.root(), &expected);
    }
}

#[test]
fn what_repositories_share_goes_with_the_last_of_them() {
    let copy = copy();
    let mut tree = copy.tree();
    // Of which no manifest speaks: a push may be about to.
    let unnamed: BTreeSet<String> =
        tree.blobs.keys().filter(|digest| !tree.marked().contains(*digest)).cloned().collect();
    for name in tree.repositories.clone().keys() {
        let expected = tree.without(name, Unwanted::Everything);
        remove(&copy, &[name], &expected);
        tree = expected;
    }
    let left: BTreeSet<String> = copy.tree().blobs.into_keys().collect();
    assert_eq!(left, unnamed);
    assert_eq!(copy.tree().repositories.len(), 0);
    done(&copy.root(), &["gc", "--grace", "0s"]);
    assert_eq!(copy.tree(), Tree::default(), "nothing is left to be kept");
}

#[test]
fn tag_goes_with_what_nothing_else_reaches() {
    let original = copy();
    for (name, tag) in original.tree().tags() {
        let copy = original.again();
        let expected = copy.tree().without(&name, Unwanted::Tag(&tag));
        remove(&copy, &[&format!("{name}:{tag}")], &expected);
        assert!(!copy.tree().repository(&name).tags.contains_key(&tag));
    }
}

#[test]
fn what_goes_with_a_tag_in_words() {
    let original = copy();
    let names = original.names();
    let after = |image: &str| {
        let copy = original.again();
        done(&copy.root(), &["rm", image]);
        copy.tree()
    };
    // `latest` pointed at it once, so it stays.
    assert!(after("a:v1").repository("a").revisions.contains_key(&names.first));
    // Nothing but the history of `moved` knows it.
    assert!(!after("a/b:moved").repository("a/b").revisions.contains_key(&names.between));
    assert!(!after("a/b:moved").blobs.contains_key(&names.between));
    // A child of an index that stays keeps everything but its tag.
    let tree = after("a/b/c:amd64");
    assert_eq!(tree.blobs, original.tree().blobs);
    assert_eq!(tree.repository("a/b/c").revisions, original.tree().repository("a/b/c").revisions);
    // An index takes its children, less the one with a tag of its own.
    let tree = after("a/b/c:multi");
    assert_eq!(tree.repository("a/b/c").revisions.keys().collect::<Vec<_>>(), [&names.children[0]]);
    // Signatures, those of signatures and fallback tags go with what they are about.
    let tree = after("signed:v1");
    assert_eq!(tree.tags().iter().filter(|(name, _)| name == "signed").count(), 1);
    assert_eq!(tree.repository("signed").revisions.len(), 1);
    assert!(tree.repository("signed").referrers.is_empty());
    // Another repository has the same image.
    assert_eq!(after("two/of/it").blobs, original.tree().blobs);
    // A layer that docker-registry keeps under another name than manifests call it.
    let [theirs, ours] = &names.long_layers;
    let link = original.tree().repository("long").layers[theirs].clone();
    assert_ne!(&link, theirs);
    let tree = after("long:spliceway");
    assert!(tree.blobs.contains_key(&link), "a layer of a tag that stays is gone");
    // The manifest by sha512 names it.
    assert!(tree.blobs.contains_key(ours));
    assert!(!after("long:registry").blobs.contains_key(&link));
}

#[test]
fn manifest_goes_by_its_digest_unless_an_index_needs_it() {
    let original = copy();
    let tree = original.tree();
    let (mut removed, mut refusals) = (0, 0);
    for (name, digest, _) in tree.promises() {
        let copy = original.again();
        let expected = tree.without(&name, Unwanted::Digest(&digest));
        let image = format!("{name}@{digest}");
        let needed_by = tree.parents(&name, &digest);
        let staying =
            needed_by.iter().find(|index| expected.repository(&name).revisions.contains_key(*index));
        if staying.is_some() {
            let before = Snapshot::take(&copy.registry_path());
            let finished = on(&copy.root(), &["rm", &image]);
            assert_exit(&finished, 1);
            let said = &finished.stderr;
            assert!(
                needed_by.iter().any(|index| said.contains(index.as_str())),
                "not one of {needed_by:?}: {said}"
            );
            before.assert_same(&Snapshot::take(&copy.registry_path()), "a refused removal");
            refusals += 1;
        } else {
            remove(&copy, &[&image], &expected);
            assert!(!copy.tree().repository(&name).revisions.contains_key(&digest));
            removed += 1;
        }
    }
    assert!(removed > 10 && refusals > 5, "{removed} removed, {refusals} refused");
}

#[test]
fn untagged_manifests_go_and_nothing_else() {
    let original = copy();
    let names = original.names().clone();
    for name in original.tree().repositories.keys() {
        let copy = original.again();
        let tree = copy.tree();
        let expected = tree.without(name, Unwanted::Untagged);
        let arguments = [name.as_str(), "--untagged"];
        if expected.repository(name) == tree.repository(name) {
            let before = copy.tree();
            done(&copy.root(), &[&["rm"], &arguments[..]].concat());
            copy.tree().assert_is(&before, "there was nothing to remove");
        } else {
            remove(&copy, &arguments, &expected);
            assert_eq!(copy.tree().repository(name).tags.len(), tree.repository(name).tags.len());
            assert_served(&copy.root(), &expected);
        }
        if name == "a/b" {
            // The image, its signature, and what `moved` no longer points at.
            assert_eq!(tree.repository(name).revisions.len() - expected.repository(name).revisions.len(), 3);
            assert!(!copy.tree().blobs.contains_key(&names.untagged));
        }
    }
}

#[test]
fn pruning_leaves_no_empty_directory_and_the_root() {
    let original = copy();
    for arguments in [&["a"][..], &["a/b/c:multi"], &["a/b", "--untagged"], &["two/of/it"]] {
        let copy = original.again();
        let (name, tag) =
            arguments[0].split_once(':').map_or((arguments[0], None), |(name, tag)| (name, Some(tag)));
        let unwanted = match (tag, arguments.len()) {
            (Some(tag), _) => Unwanted::Tag(tag),
            (None, 1) => Unwanted::Everything,
            (None, _) => Unwanted::Untagged,
        };
        let expected = copy.tree().without(name, unwanted);
        let before = Snapshot::take(&copy.root());
        remove(&copy, &[arguments, &["--prune"]].concat(), &expected);
        let after = Snapshot::take(&copy.root());
        // What was empty before may be a program's that is at work there.
        let empty = before.empty_directories();
        let left: Vec<_> =
            after.empty_directories().into_iter().filter(|path| !empty.contains(path)).collect();
        assert!(left.is_empty(), "{arguments:?} leaves {left:?}");
        if matches!(unwanted, Unwanted::Everything) && name != "a" {
            assert!(!copy.repository_path(name).exists());
        }
        assert_served(&copy.root(), &expected);
    }
    // Nothing but the root is left of a tree of which everything goes.
    let copy = original.again();
    for name in copy.tree().repositories.keys().rev() {
        done(&copy.root(), &["rm", name, "--prune"]);
    }
    assert!(copy.registry_path().is_dir(), "the root is gone");
    assert!(!copy.repository_path("a").exists() && !copy.repository_path("two").exists());
}

#[test]
fn image_is_named_as_clients_name_it() {
    let original = copy();
    let expected = original.tree().without("a/b", Unwanted::Tag("moved"));
    for prefix in ["", "localhost:5000/", "127.0.0.1:5000/", "[::1]:5000/"] {
        let copy = original.again();
        remove(&copy, &[&format!("{prefix}a/b:moved")], &expected);
    }
    let digest = original.names().multi.clone();
    let expected = original.tree().without("a/b/c", Unwanted::Digest(&digest));
    for image in [format!("a/b/c@{digest}"), format!("localhost:5000/a/b/c@{digest}")] {
        remove(&original.again(), &[&image], &expected);
    }
    // Without a port it is a part of the name, though it could be a host: there or not, nothing else is meant.
    let copy = original.again();
    let shadow = copy.repository_path("localhost/a");
    fs::create_dir_all(copy.repository_path("localhost")).expect("our own directory");
    tools::succeed(std::process::Command::new("cp").arg("-a").arg(copy.repository_path("one")).arg(&shadow));
    let expected = copy.tree().without("localhost/a", Unwanted::Everything);
    remove(&copy, &["localhost/a"], &expected);
    assert!(copy.tree().repositories.contains_key("a"));
    for image in ["registry.example/a", "registry.example/a/b:moved"] {
        refused(&copy.root(), &["rm", image], &["no repository"]);
    }
    // Once more: what is left of it is empty.
    remove(&copy, &["localhost/a"], &expected);
    assert!(copy.tree().repositories.contains_key("a"));
}

#[test]
fn unknown_names_are_errors_and_remove_nothing() {
    let copy = copy();
    let root = copy.root();
    let before = Snapshot::take(&copy.registry_path());
    let absent = crate::support::sha256(b"nothing");
    let elsewhere = format!("one@{}", copy.names().first);
    for image in [
        "absent",
        "a:absent",
        "a/absent:v1",
        "b",
        "two",
        "two/of",
        "a/b/c/d",
        "localhost:5000/absent",
        "localhost:5000/a:absent",
        &format!("a@{absent}"),
        &elsewhere,
    ] {
        for flags in [&[][..], &["--dry-run"], &["--prune"]] {
            refused(&root, &[&["rm", image], flags].concat(), &["spliceway: "]);
        }
        let name = image.split(['@', ':']).next().unwrap_or_default();
        if !image.contains("localhost") && name.contains("absent") {
            refused(&root, &["rm", image], &[name]);
        }
    }
    for wrong in ["", "A", "a:", "a@", "a@sha256:00", "a:..", "../a", "a//b", "a:v1:v2", "/a"] {
        let finished = on(&root, &["rm", wrong]);
        assert!(
            matches!(finished.status.code(), Some(1 | 2)),
            "{wrong:?}: {}{}",
            finished.stdout,
            finished.stderr
        );
    }
    assert_exit(&on(&root, &["rm"]), 2);
    assert_exit(&on(&root, &["rm", "a:v1", "--untagged"]), 2);
    before.assert_same(&Snapshot::take(&copy.registry_path()), "a refused removal");
}

#[test]
fn tree_is_found_however_it_is_named() {
    let original = copy();
    let expected = original.tree().without("one", Unwanted::Everything);
    // The variable names the registry's directory itself.
    let copy = original.again();
    let finished = tools::run(command(&["rm", "one"]).env("REGISTRY_DATA_DIR", copy.registry_path()));
    assert_exit(&finished, 0);
    copy.tree().assert_is(&expected, "by REGISTRY_DATA_DIR");
    // `--data` is the directory that has it as `local`.
    let copy = original.again();
    fs::rename(copy.root(), copy.home().join("local")).expect("our own directory");
    let finished = tools::run(command(&["rm", "one", "--data"]).arg(copy.home()));
    assert_exit(&finished, 0);
    Tree::read(&copy.home().join("local")).assert_is(&expected, "by --data");
    // A directory that holds no tree is an error.
    let empty = tempfile::tempdir().expect("a temporary directory");
    refused(empty.path(), &["rm", "one"], &["spliceway: "]);
    refused(&empty.path().join("absent"), &["rm", "one"], &["spliceway: "]);
    assert!(
        !empty.path().join("absent").exists() && fs::read_dir(empty.path()).expect("there").next().is_none()
    );
}

#[test]
fn what_only_the_cache_has_is_said_to_be_there() {
    let spliceway = Spliceway::start(|_| ());
    let link = "cache/docker/registry/v2/repositories/origin/team/app/_manifests/tags/v1/current/link";
    write(&spliceway.data().join(link), crate::support::sha256(b"x").as_bytes());
    Repository::new(spliceway.addr(), "own").push(b"so that there is something");
    let finished = tools::run(command(&["rm", "origin/team/app:v1", "--data"]).arg(spliceway.data()));
    assert_exit(&finished, 1);
    assert!(finished.stderr.contains("cache"), "{}", finished.stderr);
    assert!(spliceway.data().join(link).exists());
}

#[test]
fn deletion_that_fails_is_reported_and_the_rest_goes_on() {
    let copy = copy();
    let before = copy.tree();
    let kept = copy.blob_path(&copy.names().between);
    let immutable =
        |flag: &str| tools::run(std::process::Command::new("chattr").arg(flag).arg(&kept)).status.success();
    if !immutable("+i") {
        eprintln!("files cannot be made immutable here: nothing is tested");
        return;
    }
    let finished = on(&copy.root(), &["rm", "a/b"]);
    let left = copy.tree();
    assert!(immutable("-i"));
    assert_exit(&finished, 1);
    assert!(finished.stderr.contains(&copy.names().between), "{}", finished.stderr);
    let mut expected = before.without("a/b", Unwanted::Everything);
    let between = copy.names().between.clone();
    expected.blobs.insert(between.clone(), left.blobs[&between].clone());
    left.assert_is(&expected, "all but what failed");
    done(&copy.root(), &["gc", "--grace", "0s"]);
    assert!(!copy.tree().blobs.contains_key(&between));
}

#[test]
fn removal_of_the_last_tag_leaves_a_usable_repository() {
    let copy = copy();
    done(&copy.root(), &["rm", "old:v1"]);
    assert_served(&copy.root(), &copy.tree());
    let root: &Path = &copy.root();
    let spliceway = Spliceway::start(|setup| {
        setup.registry("local", root.to_str().expect("UTF-8").to_owned());
    });
    let image = crate::support::images::Image::new(991, "amd64", &[100]);
    let repository = Repository::new(spliceway.addr(), "old");
    assert_eq!(repository.tag_names(""), Vec::<String>::new());
    repository.push_image("v2", &image);
    repository.assert_holds("v2", &image);
}

#[test]
fn server_forgets_at_once_what_was_removed() {
    let copy = copy();
    let root = copy.root();
    let spliceway = Spliceway::start(|setup| {
        setup.registry("local", root.to_str().expect("UTF-8").to_owned());
    });
    let repository = Repository::new(spliceway.addr(), "a/b");
    let digest = copy.names().between.clone();
    let manifest = repository.manifest(&digest).expect(200);
    let layer = manifest.json()["layers"][0]["digest"].as_str().expect("a digest").to_owned();
    for _ in 0..3 {
        repository.manifest("moved").expect(200);
        repository.blob(&layer).expect(200);
    }
    done(&root, &["rm", "a/b:moved"]);
    // Within the time for which it believes what it saw.
    let gone = |what: &str, status: &dyn Fn() -> u16| {
        crate::support::eventually(what, || (status() == 404).then_some(()));
    };
    gone("the tag to be gone", &|| repository.manifest("moved").status());
    gone("the manifest to be gone", &|| repository.manifest(&digest).status());
    gone("the layer to be gone", &|| repository.blob(&layer).status());
    repository.manifest("v1").expect(200);
    assert!(!repository.tag_names("").contains(&"moved".to_owned()));
}

#[test]
fn what_was_pushed_again_goes_as_well() {
    let spliceway = Spliceway::start(|_| ());
    let repository = Repository::new(spliceway.addr(), "team/app");
    let image = crate::support::images::Image::new(1, "amd64", &[300, 400]);
    repository.push_image("v1", &image);
    // Nothing of it is new.
    repository.push_image("v1", &image);
    let local = spliceway.data().join("local");
    let finished = tools::run(command(&["rm", "team/app:v1", "--data"]).arg(spliceway.data()));
    assert_exit(&finished, 0);
    assert_eq!(Tree::read(&local).blobs.len(), 0, "space is free at once: {}", finished.stdout);
}

#[test]
fn everything_left_is_pulled_by_skopeo() {
    let copy = copy();
    let mut tree = copy.tree();
    let removals = [
        ("a", Unwanted::Tag("latest")),
        ("a/b", Unwanted::Everything),
        ("a/b/c", Unwanted::Tag("amd64")),
        ("list", Unwanted::Tag("list")),
        ("one", Unwanted::Everything),
        ("signed", Unwanted::Tag("plain")),
    ];
    for (name, unwanted) in removals {
        let expected = tree.without(name, unwanted);
        let image = match unwanted {
            Unwanted::Tag(tag) => format!("{name}:{tag}"),
            _ => name.to_owned(),
        };
        remove(&copy, &[&image], &expected);
        tree = expected;
    }
    assert_served(&copy.root(), &tree);
    assert_pulled(&copy.root(), &tree, &copy.home().join("pulled"));
}
