use std::collections::BTreeSet;
use std::fs;
use std::sync::mpsc;
use std::thread;

use super::super::contents::fallback_tag;
use super::super::fixture::{LONG_AGO, Tree, at_once, digest, image, index, repository, set_modified, thing};
use super::*;
use crate::oci::Digest;
use crate::store::{Layout, LinkKind};

fn blobs(removed: &[Removed]) -> Vec<Digest> {
    let blob = |removed: &Removed| match removed {
        Removed::Blob { digest, .. } => Some(*digest),
        _ => None,
    };
    removed.iter().filter_map(blob).collect()
}

#[test]
fn what_nothing_refers_to_goes_and_the_rest_stays() {
    let tree = Tree::new();
    tree.image("team/app", Some("1"), &["config", "shared", "layer"]);
    let child = tree.image("a", None, &["config2", "shared"]);
    tree.index("a", Some("multi"), &[child]);
    let orphan = tree.blob("a", "orphan");
    tree.age();
    let before = tree.snapshot();
    let would = tree.gc(&GcOptions { dry_run: true, ..at_once() });
    tree.assert_unchanged(&before);
    assert!(!tree.layout().gc_lock().exists(), "a dry run locked something");
    let removed = tree.gc(&at_once());
    assert_eq!(removed, would);
    assert_eq!(blobs(&removed), [orphan]);
    assert!(!tree.has_link("a", &orphan) && tree.has_link("a", &digest(b"shared")));
    assert!(!tree.layout().blob(&orphan).parent().unwrap().exists());
    tree.assert_exact();
    assert_eq!(tree.gc(&at_once()), []);
}

#[test]
fn age_is_that_of_the_blob_or_of_a_link_to_it_whichever_is_less() {
    let tree = Tree::new();
    let blob = tree.blob("a", "blob");
    tree.age();
    tree.set_age(&blob, Duration::from_hours(23));
    assert_eq!(tree.gc(&GcOptions::default()), [], "younger than the grace");
    tree.set_age(&blob, Duration::from_hours(25));
    let link = tree.layout().link(&repository("a"), LinkKind::Layer, &blob);
    set_modified(&link, SystemTime::now() - Duration::from_hours(23));
    assert_eq!(tree.gc(&GcOptions::default()), [], "its link is younger, as distribution makes one");
    set_modified(&link, SystemTime::now() + LONG_AGO);
    assert_eq!(tree.gc(&GcOptions::default()), [], "a time to come is young");
    set_modified(&link, SystemTime::now() - Duration::from_hours(25));
    assert_eq!(blobs(&tree.gc(&GcOptions::default())), [blob]);
}

#[test]
fn whoever_relies_on_a_blob_renews_its_age() {
    let tree = Tree::new();
    let blob = tree.blob("a", "blob");
    for renew in [
        |tree: &Tree, blob: &Digest| assert!(tree.promise("a", blob)),
        |tree: &Tree, blob: &Digest| assert!(tree.mount("b", blob)),
        |tree: &Tree, blob: &Digest| assert_eq!(tree.blob("a", "blob"), *blob),
    ] {
        tree.age();
        renew(&tree, &blob);
        assert_eq!(tree.gc(&GcOptions::default()), []);
    }
    tree.age();
    assert!(!tree.promise("c", &blob), "a repository that does not have it");
    assert_eq!(blobs(&tree.gc(&GcOptions::default())), [blob]);
    assert!(!tree.promise("a", &blob) && !tree.mount("a", &blob));
    assert_eq!(tree.put("a", None, &image(&["blob"])), Err(vec![blob]));
}

#[test]
fn blob_that_had_its_name_late_is_young() {
    let tree = Tree::new();
    let content = tree.layout().root().join("content");
    fs::write(&content, b"blob").unwrap();
    set_modified(&content, SystemTime::now() - LONG_AGO);
    let other = Layout::new(tree.layout().root().join("cache"));
    let blob = digest(b"blob");
    fs::create_dir_all(other.blob(&blob).parent().unwrap()).unwrap();
    fs::hard_link(&content, other.blob(&blob)).unwrap();
    sweeping::adopt(tree.layout(), &other, &repository("a"), &blob).unwrap();
    assert_eq!(tree.gc(&GcOptions::default()), []);
    tree.age();
    let removed = tree.gc(&GcOptions::default());
    assert!(matches!(removed[..], [Removed::Blob { shared: true, .. }, Removed::Link(..)]), "{removed:?}");
    assert!(other.blob(&blob).exists());
}

/// Each of these pushes reuses a blob that is garbage when the run begins.
#[test]
fn push_at_any_moment_of_a_run_wins_or_is_refused() {
    type Push = fn(&Tree, &Digest) -> bool;
    let pushes: [(&str, Push); 4] = [
        ("HEAD", |tree, blob| tree.promise("a", blob) && tree.put("a", Some("1"), &image(&["blob"])).is_ok()),
        ("mount", |tree, blob| tree.mount("b", blob) && tree.put("b", Some("1"), &image(&["blob"])).is_ok()),
        ("upload", |tree, _| {
            tree.blob("a", "blob");
            tree.put("a", Some("1"), &image(&["blob"])).is_ok()
        }),
        ("manifest alone", |tree, _| tree.put("a", Some("1"), &image(&["blob"])).is_ok()),
    ];
    for (name, push) in pushes {
        for moment in
            ["looking at what is referred to", "looking again", "removing what nothing refers to", "gone"]
        {
            let tree = Tree::new();
            let blob = tree.blob("a", "blob");
            tree.blob("a", "other");
            tree.age();
            let mut pushed = None;
            let mut at = |what: &str| {
                if what == moment && pushed.is_none() {
                    pushed = Some(push(&tree, &blob));
                }
            };
            let collected = tree.gc_with(&at_once(), |event| match event {
                Event::Phase(what) => at(what),
                Event::Removed(Removed::Blob { .. }) => at("gone"),
                _ => {}
            });
            collected.expect("collected");
            tree.assert_whole();
            let has_tag = !tree.tags("a").is_empty() || !tree.tags("b").is_empty();
            assert_eq!(has_tag, pushed.expect("pushed"), "{name}, {moment}");
            assert!(has_tag || moment == "gone", "{name}, {moment}: refused though it was in time");
        }
    }
}

/// A manifest is put by somebody who has stamped its blob, holds its lock, and takes his time.
#[test]
fn push_under_way_when_a_run_begins_is_waited_for() {
    let tree = Tree::new();
    let blob = tree.blob("a", "blob");
    tree.age();
    let manifest = image(&["blob"]).to_string();
    let named = digest(manifest.as_bytes());
    let held = sweeping::lock_number(tree.layout(), blob.shard()).unwrap();
    // Stamped before the run began, by more than any margin.
    tree.set_age(&blob, Duration::from_mins(1));
    let layout = tree.layout().clone();
    let (began, begins) = mpsc::channel::<()>();
    let slow = thread::spawn(move || {
        let _ = begins.recv_timeout(Duration::from_millis(300));
        let path = layout.blob(&named);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &manifest).unwrap();
        let link = layout.link(&repository("a"), LinkKind::Manifest, &named);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        fs::write(&link, named.to_string()).unwrap();
        drop(held);
    });
    let collected = tree.gc_with(&at_once(), |_| {
        let _ = began.send(());
    });
    slow.join().unwrap();
    collected.expect("collected");
    assert!(tree.has_manifest("a", &named));
    tree.assert_whole();
}

#[test]
fn index_that_is_put_meanwhile_keeps_the_manifests_that_it_names() {
    for moment in ["looking at what is referred to", "removing manifests"] {
        let tree = Tree::new();
        let child = tree.image("a", None, &["config", "layer"]);
        let other = tree.image("a", None, &["config2"]);
        tree.age();
        let options = GcOptions { untagged: true, ..at_once() };
        let mut pushed = false;
        let collected = tree.gc_with(&options, |event| {
            if matches!(event, Event::Phase(what) if what == moment) {
                tree.put("a", Some("multi"), &index(&[child])).expect("all is there");
                pushed = true;
            }
        });
        collected.expect("collected");
        assert!(pushed && tree.has_manifest("a", &child) && !tree.has_manifest("a", &other), "{moment}");
        tree.assert_whole();
        assert!(tree.held().contains(&digest(b"layer")));
    }
}

#[test]
fn untagged_and_expired_manifests_go_with_their_blobs() {
    let tree = Tree::new();
    let first = tree.image("a", Some("1"), &["c1", "shared"]);
    let second = tree.image("a", Some("1"), &["c2", "shared"]);
    tree.age();
    let third = tree.image("a", None, &["c3"]);
    let options = GcOptions { untagged: true, ..GcOptions::default() };
    tree.gc(&options);
    assert!(!tree.has_manifest("a", &first) && tree.has_manifest("a", &second));
    assert!(tree.has_manifest("a", &third), "younger than the grace");
    tree.assert_exact();

    let options = GcOptions {
        expire_manifests: Some(Duration::from_hours(24)),
        expire_from: ExpireFrom::Pull,
        ..options
    };
    assert_eq!(tree.gc(&options), [], "its file was used today");
    let removed = tree.gc(&GcOptions { expire_from: ExpireFrom::Push, ..options });
    assert!(matches!(&removed[..2], [Removed::Tag(..), Removed::Manifest(_, gone)] if *gone == second));
    assert_eq!(tree.tags("a").len(), 0);
    tree.assert_exact();
}

#[test]
fn manifest_that_is_pushed_again_is_young() {
    let tree = Tree::new();
    let named = tree.image("a", Some("1"), &["c1"]);
    tree.age();
    tree.put("a", Some("1"), &image(&["c1"])).expect("all is there");
    let options = GcOptions { expire_manifests: Some(Duration::from_hours(24)), ..GcOptions::default() };
    assert_eq!(tree.gc(&options), []);
    assert!(tree.has_manifest("a", &named));
}

#[test]
fn image_that_is_pushed_again_during_a_run_keeps_its_tag() {
    for phase in ["looking at what is referred to", "removing manifests"] {
        let tree = Tree::new();
        let again = tree.image("a", Some("1"), &["c1"]);
        let other = tree.image("a", Some("2"), &["c2"]);
        tree.age();
        let options = GcOptions { expire_manifests: Some(Duration::from_hours(24)), ..GcOptions::default() };
        let collected = tree.gc_with(&options, |event| {
            if matches!(event, Event::Phase(now) if now == phase) {
                assert_eq!(tree.put("a", Some("1"), &image(&["c1"])), Ok(again));
            }
        });
        assert_eq!(collected.expect("collected").tags, 1);
        assert_eq!(tree.tags("a"), BTreeSet::from(["1".to_owned()]));
        assert!(tree.has_manifest("a", &again) && !tree.has_manifest("a", &other));
        tree.assert_exact();
    }
}

#[test]
fn what_refers_to_an_image_that_is_pushed_again_during_a_run_stays() {
    for phase in ["looking at what is referred to", "removing manifests"] {
        let tree = Tree::new();
        let again = tree.image("a", None, &["c1"]);
        let signature = tree.referrer("a", None, "s", &again);
        let countersignature = tree.referrer("a", None, "cs", &signature);
        let listed = tree.referrer("a", None, "l", &digest(b"nothing"));
        let list = tree.index("a", Some(fallback_tag(&again).unwrap().as_str()), &[listed]);
        tree.age();
        let options = GcOptions { untagged: true, ..GcOptions::default() };
        let collected = tree.gc_with(&options, |event| {
            if matches!(event, Event::Phase(now) if now == phase) {
                assert_eq!(tree.put("a", Some("1"), &image(&["c1"])), Ok(again));
            }
        });
        collected.expect("collected");
        for named in [again, signature, countersignature, listed, list] {
            assert!(tree.has_manifest("a", &named), "{phase}");
        }
        assert_eq!(tree.tags("a").len(), 2);
    }
}

#[test]
fn children_and_subjects_need_not_be_there() {
    let tree = Tree::new();
    let child = tree.image("a", None, &["c1"]);
    let named = tree.index("a", Some("sparse"), &[child]);
    tree.referrer("a", Some("sign"), "s", &digest(b"nothing"));
    // It names a layer as its subject, which is no manifest.
    tree.referrer("a", Some("odd"), "o", &digest(b"s"));
    fs::remove_dir_all(tree.layout().link(&repository("a"), LinkKind::Manifest, &child).parent().unwrap())
        .unwrap();
    tree.age();
    assert_eq!(tree.gc(&at_once()), [], "an index protects its child though that has no link");
    fs::remove_dir_all(tree.layout().blob(&child).parent().unwrap()).unwrap();
    let removed = tree.gc(&at_once());
    assert_eq!(blobs(&removed), [digest(b"c1")]);
    assert!(tree.has_manifest("a", &named));
}

#[test]
fn blob_that_is_named_by_another_algorithm_stays() {
    let tree = Tree::new();
    let stored = tree.blob("a", "layer");
    let name = Digest::of(crate::oci::Algorithm::Sha512, b"layer");
    let link = tree.layout().link(&repository("a"), LinkKind::Layer, &name);
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    fs::write(&link, stored.to_string()).unwrap();
    let mut manifest = image(&["config", "layer"]);
    manifest["layers"][0]["digest"] = name.to_string().into();
    tree.blob("a", "config");
    tree.put("a", Some("1"), &manifest).expect("all is there");
    tree.age();
    assert_eq!(tree.gc(&at_once()), []);
    assert!(tree.layout().blob(&stored).exists());
}

/// As registries of distribution before 2.3 left them.
#[test]
fn signatures_beside_a_manifest_stay_with_it() {
    let tree = Tree::new();
    let named = tree.image("a", Some("1"), &["c1"]);
    let (signature, other) = (tree.blob("b", "signature"), tree.blob("b", "other"));
    let beside = Layout::signatures(&tree.layout().link(&repository("a"), LinkKind::Manifest, &named));
    let link = beside.join("sha256").join(signature.hex()).join("link");
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    fs::write(&link, signature.to_string()).unwrap();
    tree.age();
    assert_eq!(blobs(&tree.gc(&at_once())), [other]);
    tree.rm("a:1");
    assert!(!beside.exists());
    tree.age();
    assert_eq!(blobs(&tree.gc(&at_once())), [signature]);
}

#[test]
fn what_is_not_understood_ends_a_run_before_anything_goes() {
    let tree = Tree::new();
    let named = tree.image("deep/er/repo", Some("1"), &["c1"]);
    let orphan = tree.blob("a", "orphan");
    tree.age();
    let name = repository("deep/er/repo");
    let layout = tree.layout();
    let revision = layout.link(&name, LinkKind::Manifest, &named);
    let current = layout.tag_current(&name, &"1".parse().unwrap());
    let options = GcOptions { untagged: true, expire_manifests: Some(Duration::from_secs(1)), ..at_once() };
    for (path, content) in [
        (&revision, &b""[..]),
        (&revision, b"sha256:0"),
        (&current, b""),
        (&current, b"latest"),
        (&layout.blob(&named), b"{}}"),
        // What docker-registry and clients read as layers.
        (&layout.blob(&named), b"{\"Layers\":[]}"),
        (&layout.blob(&named), b""),
    ] {
        let before = fs::read(path).unwrap();
        fs::write(path, content).unwrap();
        for options in [options, at_once(), GcOptions { dry_run: true, ..at_once() }] {
            let held = tree.held();
            let error = tree.gc_with(&options, |event| assert_eq!(thing(event), None)).unwrap_err();
            assert!(matches!(error, GcError::Unknown(_)), "{error}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
            assert_eq!(tree.held(), held);
        }
        fs::write(path, before).unwrap();
    }
    fs::rename(layout.blob(&named), layout.root().join("aside")).unwrap();
    assert!(matches!(tree.gc_with(&at_once(), |_| {}), Err(GcError::Unknown(_))), "a manifest is not there");
    fs::rename(layout.root().join("aside"), layout.blob(&named)).unwrap();
    tree.age();
    assert_eq!(blobs(&tree.gc(&at_once())), [orphan], "whole again");
}

#[test]
fn tree_without_repositories_is_not_taken_for_garbage() {
    let tree = Tree::new();
    tree.image("a", Some("1"), &["c1"]);
    tree.age();
    fs::rename(tree.layout().repositories(), tree.layout().root().join("elsewhere")).unwrap();
    assert!(matches!(tree.gc_with(&at_once(), |_| {}), Err(GcError::Unknown(_))));
    assert_eq!(tree.held().len(), 2);
}

#[test]
fn one_at_a_time_and_asked_to_stop() {
    let tree = Tree::new();
    tree.image("a", Some("1"), &["c1"]);
    let _held = hold(tree.layout()).expect("free");
    assert!(matches!(tree.gc_with(&at_once(), |_| {}), Err(GcError::Busy)));
    let stop = Stop::new();
    stop.stop();
    let options = GcOptions { dry_run: true, ..at_once() };
    assert!(matches!(run(&tree.store, &options, &stop, &mut |_| {}), Err(GcError::Stopped)));
}

#[test]
fn upload_that_nobody_goes_on_with_goes() {
    let tree = Tree::new();
    tree.blob("a", "blob");
    let id: crate::store::upload::UploadId = "01234567-0123-0123-0123-0123456789ab".parse().unwrap();
    let data = tree.layout().upload_data(&repository("a"), &id);
    fs::create_dir_all(data.parent().unwrap()).unwrap();
    fs::write(&data, b"12345").unwrap();
    assert_eq!(tree.gc(&GcOptions::default()), []);
    set_modified(&data, SystemTime::now() - Duration::from_hours(25));
    assert_eq!(tree.gc(&GcOptions { expire_uploads: None, ..GcOptions::default() }), []);
    let file = fs::File::open(&data).unwrap();
    file.lock().unwrap();
    assert_eq!(tree.gc(&GcOptions::default()), [], "somebody writes to it");
    drop(file);
    assert_eq!(tree.gc(&GcOptions::default()), [Removed::Upload(repository("a"), id, 5)]);
    assert!(!data.parent().unwrap().exists());
}

#[test]
fn clock_that_is_set_back_is_noticed() {
    let mut began = Began::now();
    assert!(!began.is_set_back());
    began.at += Duration::from_secs(10);
    assert!(began.is_set_back());
}
