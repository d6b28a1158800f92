use std::collections::BTreeSet;
use std::fs;

use super::super::fixture::{LONG_AGO, Tree, digest, fallback, image, index, removing, repository};
use super::*;

fn refused(tree: &Tree, image: &str) -> RemoveError {
    let before = tree.snapshot();
    let refused = tree.rm_with(&removing(image), |event| {
        assert!(matches!(event, Event::Phase(_)), "{event:?}");
    });
    tree.assert_unchanged(&before);
    refused.expect_err(image)
}

fn tags(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn tag_goes_with_what_only_it_needs() {
    let tree = Tree::new();
    tree.image("a", Some("1"), &["c1", "shared", "l1"]);
    let old = tree.image("a", Some("2"), &["c2", "shared", "l2"]);
    let new = tree.image("a", Some("2"), &["c3", "shared", "l3"]);
    let elsewhere = tree.image("a/b", Some("1"), &["c4", "l3"]);
    let signature = tree.referrer("a", None, "s", &new);
    tree.rm("host:5000/a:2");
    assert_eq!(tree.tags("a"), tags(&["1"]));
    for gone in [old, new, signature] {
        assert!(!tree.has_manifest("a", &gone), "{gone}");
    }
    assert!(tree.has_manifest("a/b", &elsewhere));
    assert!(tree.has_link("a", &digest(b"shared")) && !tree.has_link("a", &digest(b"l3")));
    assert!(tree.held().contains(&digest(b"l3")), "another repository has it");
    tree.assert_exact();
}

#[test]
fn blobs_go_with_the_last_of_those_that_share_them() {
    let tree = Tree::new();
    tree.image("a", Some("1"), &["c1", "shared"]);
    tree.image("b", Some("1"), &["c2", "shared"]);
    tree.image("b", Some("2"), &["c2", "shared"]);
    for image in ["b:2", "b:1"] {
        tree.rm(image);
        tree.assert_exact();
    }
    assert!(tree.held().contains(&digest(b"shared")));
    tree.rm("a:1");
    assert_eq!(tree.held(), BTreeSet::new(), "though others named it later than this one");
    assert!(tree.layout().repositories().exists());
    assert_eq!(fs::read_dir(tree.layout().repositories()).unwrap().count(), 0);
}

#[test]
fn repository_goes_and_those_below_it_stay() {
    let tree = Tree::new();
    tree.image("a", Some("1"), &["c1", "shared"]);
    tree.blob("a", "never named");
    tree.set_age(&digest(b"never named"), LONG_AGO);
    tree.image("a/b", Some("1"), &["c2", "shared"]);
    tree.image("ab", Some("1"), &["c3"]);
    tree.rm("a");
    assert_eq!(tree.tags("a"), tags(&[]));
    assert!(!tree.has_link("a", &digest(b"never named")));
    assert!(tree.held().contains(&digest(b"never named")), "no manifest has named it yet: that is for gc");
    let left = |name: &str| tree.layout().repository(&repository(name));
    assert_eq!(fs::read_dir(left("a")).unwrap().count(), 1);
    tree.assert_whole();
    tree.rm("a/b");
    assert!(!left("a").exists() && left("ab").exists());
    assert!(matches!(refused(&tree, "a/b"), RemoveError::NoRepository(_)));
}

#[test]
fn upload_in_use_keeps_its_repository() {
    let tree = Tree::new();
    tree.image("a", Some("1"), &["c1"]);
    let session = tree.layout().uploads(&repository("a")).join("01234567-0123-0123-0123-0123456789ab");
    fs::create_dir_all(&session).unwrap();
    fs::write(session.join("data"), b"12345").unwrap();
    tree.rm("a");
    assert!(session.join("data").exists());
}

#[test]
fn manifest_goes_with_its_tags_unless_it_is_needed() {
    let tree = Tree::new();
    let child = tree.image("a", Some("child"), &["c1", "l1"]);
    let other = tree.image("a", None, &["c2"]);
    let list = tree.index("a", Some("multi"), &[child, other]);
    match refused(&tree, &format!("a@{child}")) {
        RemoveError::Needed(needed) => assert_eq!((needed.digest, needed.by), (child, list)),
        error => panic!("{error}"),
    }
    assert!(matches!(refused(&tree, &format!("a:child@{list}")), RemoveError::OtherTag(..)));
    tree.rm(&format!("a:multi@{list}"));
    assert!(tree.has_manifest("a", &child) && !tree.has_manifest("a", &other));
    assert_eq!(tree.tags("a"), tags(&["child"]));
    tree.assert_exact();
    tree.rm(&format!("a@{child}"));
    assert_eq!(tree.held(), BTreeSet::new());
}

#[test]
fn untagged_of_a_repository() {
    let tree = Tree::new();
    tree.image("a", Some("1"), &["c1", "shared"]);
    tree.image("a", Some("1"), &["c2", "shared"]);
    let child = tree.image("a", None, &["c3"]);
    tree.index("a", Some("multi"), &[child]);
    tree.image("b", None, &["c1"]);
    tree.rm("a untagged");
    assert_eq!(tree.tags("a"), tags(&["1", "multi"]));
    tree.assert_exact();
    assert!(tree.held().contains(&digest(b"c1")), "another repository has it");
    assert!(matches!(refused(&tree, "a:1 untagged"), RemoveError::Usage(_)));
}

#[test]
fn fallback_tag_goes_with_its_image() {
    let tree = Tree::new();
    let image = tree.image("a", Some("1"), &["c1"]);
    let signature = tree.referrer("a", None, "s", &image);
    tree.index("a", Some(fallback(&image).as_str()), &[signature]);
    tree.rm("a:1");
    assert_eq!((tree.held(), tree.tags("a")), (BTreeSet::new(), tags(&[])));
}

#[test]
fn what_is_not_there_is_said_and_nothing_goes() {
    let tree = Tree::new();
    tree.image("a/b", Some("1"), &["c1"]);
    assert!(matches!(refused(&tree, "a"), RemoveError::NoRepository(_)));
    assert!(matches!(refused(&tree, "a/b:2"), RemoveError::NoTag(..)));
    assert!(matches!(refused(&tree, &format!("a/b@{}", digest(b"c1"))), RemoveError::NoManifest(..)));
    let cache = Tree::new();
    cache.image("hub/library/x", Some("1"), &["c2"]);
    let options = RemoveOptions { cache: Some(cache.layout().clone()), ..removing("hub/library/x:1") };
    let error = tree.rm_with(&options, |_| {}).unwrap_err();
    assert!(matches!(error, RemoveError::OnlyInCache(_)), "{error}");
}

#[test]
fn what_is_not_understood_ends_it_before_anything_goes() {
    let tree = Tree::new();
    let broken = tree.image("b", Some("1"), &["c2"]);
    tree.image("a", Some("1"), &["c1"]);
    fs::write(tree.layout().blob(&broken), b"no manifest").unwrap();
    for image in ["a:1", "a", "b:1", "b"] {
        assert!(matches!(refused(&tree, image), RemoveError::Gc(GcError::Unknown(_))), "{image}");
    }
}

#[test]
fn promise_that_is_newer_than_the_image_keeps_a_blob_for_later() {
    for promise in [
        |tree: &Tree| assert!(tree.promise("a", &digest(b"shared"))),
        |tree: &Tree| assert!(tree.mount("b", &digest(b"shared"))),
        |tree: &Tree| assert_eq!(tree.blob("b", "shared"), digest(b"shared")),
    ] {
        let tree = Tree::new();
        tree.image("a", Some("1"), &["c1", "shared"]);
        promise(&tree);
        tree.rm("a:1");
        assert_eq!(tree.held(), BTreeSet::from([digest(b"shared")]));
    }
}

#[test]
fn push_that_began_before_a_removal_goes_on_after_it() {
    for removed in ["a:1", "a"] {
        let tree = Tree::new();
        tree.image("a", Some("1"), &["c1", "base"]);
        assert!(tree.promise("a", &digest(b"base")));
        tree.blob("a", "c2");
        tree.blob("a", "new");
        tree.rm(removed);
        assert_eq!(tree.tags("a"), tags(&[]));
        assert!(!tree.has_link("a", &digest(b"c1")));
        tree.put("a", Some("2"), &image(&["c2", "base", "new"])).expect(removed);
        tree.assert_exact();
    }
}

#[test]
fn push_while_an_image_is_removed_is_not_broken() {
    type Push = fn(&Tree) -> bool;
    let pushes: [(&str, Push); 5] = [
        ("same image", |tree| tree.put("a", Some("2"), &image(&["c1", "shared"])).is_ok()),
        ("index", |tree| {
            let child = digest(image(&["c1", "shared"]).to_string().as_bytes());
            tree.put("a", Some("multi"), &index(&[child])).is_ok()
        }),
        ("HEAD", |tree| {
            tree.promise("a", &digest(b"shared")) && tree.put("a", Some("2"), &image(&["shared"])).is_ok()
        }),
        ("upload", |tree| {
            tree.blob("b", "shared");
            tree.put("b", Some("2"), &image(&["shared"])).is_ok()
        }),
        ("mount", |tree| {
            tree.mount("b", &digest(b"shared")) && tree.put("b", Some("2"), &image(&["shared"])).is_ok()
        }),
    ];
    for (name, push) in pushes {
        // In the order in which things happen; and each thing that is removed.
        for moment in 0..12 {
            let tree = Tree::new();
            tree.image("a", Some("1"), &["c1", "shared"]);
            let (mut pushed, mut at) = (None, 0);
            let removed = tree.rm_with(&removing("a"), |_| {
                if at == moment {
                    pushed = Some(push(&tree));
                }
                at += 1;
            });
            removed.expect("removed");
            tree.assert_whole();
            let (in_a, in_b) = (tree.tags("a"), tree.tags("b"));
            // A tag that is set while the repository goes may go with it; what it needs is not torn apart then either.
            if pushed == Some(true) && moment >= 3 {
                assert!(!in_a.is_empty() || !in_b.is_empty(), "{name}, {moment}");
            }
        }
    }
}

#[test]
fn image_that_is_pushed_during_the_look_is_looked_at_again() {
    let tree = Tree::new();
    let child = tree.image("a", Some("1"), &["c1", "shared"]);
    let mut looks = 0;
    let removed = tree.rm_with(&removing("a:1"), |event| {
        if matches!(event, Event::Phase("looking at what is referred to")) {
            looks += 1;
            if looks == 1 {
                tree.put("a", Some("multi"), &index(&[child])).expect("all is there");
            }
        }
    });
    removed.expect("removed");
    assert_eq!(looks, 2);
    assert_eq!(tree.tags("a"), tags(&["multi"]));
    assert!(tree.has_manifest("a", &child));
    tree.assert_exact();
}

/// Whatever is pushed and removed in whatever order: what is left is what is referred to.
#[test]
fn any_sequence_of_pushes_and_removals_leaves_exactly_what_is_referred_to() {
    let mut random = fastrand::Rng::with_seed(6);
    for round in 0..6 {
        let tree = Tree::new();
        for step in 0..25 {
            let name = ["a", "a/b", "c"][random.usize(0..3)];
            let tag = ["1", "2", "3"][random.usize(0..3)];
            let blobs: Vec<_> = (0..3).map(|_| format!("b{}", random.u8(0..5))).collect();
            let blobs: Vec<_> = blobs.iter().map(String::as_str).collect();
            match random.u8(0..7) {
                0 | 1 => {
                    tree.image(name, Some(tag), &blobs);
                }
                2 => {
                    let children = [tree.image(name, None, &blobs), tree.image(name, Some("3"), &blobs[1..])];
                    tree.index(name, Some(tag), &children);
                }
                3 => {
                    let subject = tree.image(name, Some(tag), &blobs);
                    tree.referrer(name, None, "signature", &subject);
                }
                4 if tree.tags(name).contains(tag) => drop(tree.rm(&format!("{name}:{tag}"))),
                5 if !tree.tags(name).is_empty() => drop(tree.rm(&format!("{name} untagged"))),
                6 if !tree.tags(name).is_empty() => drop(tree.rm(name)),
                _ => {}
            }
            assert_eq!(tree.held(), tree.referred_to(), "round {round}, step {step}");
        }
    }
}
