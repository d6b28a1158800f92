//! A source whose content is not what its name says: nothing wrong arrives.

use std::fs;

use super::command::{copy, directory};
use super::content::{attested, manifest, small, status};
use crate::support::images::Image;
use crate::support::process::Spliceway;
use crate::support::push::{Repository, assert_comes_to_be_right, assert_tree_is_right, blob_path};
use crate::support::registry::Registry;
use crate::support::relay::{Fault, Relay, Reply};
use crate::support::{MIB, sha256};

/// Damages what is stored at the source, copies, and looks that the image `bad/app:1` has not come and `good/app:1` has.
fn damaged(damage: impl Fn(&mut Vec<u8>), size: usize) {
    let from = Registry::plain();
    let bad = Image::new(1201, "amd64", &[100, size]);
    Repository::new(from.addr(), "bad/app").push_image("1", &bad);
    let good = small(from.addr(), "good/app", "1", 1211);
    let layer = sha256(bad.layer(1));
    let path = blob_path(&from.data(), &layer);
    let mut bytes = fs::read(&path).expect("it was pushed");
    damage(&mut bytes);
    fs::write(&path, bytes).expect("our own directory");

    let registry = Registry::plain();
    let spliceway = Spliceway::start(|_| ());
    let other = Spliceway::start(|_| ());
    let root = spliceway.data().join("local");
    for (to, addr) in [
        (registry.url(), registry.addr()),
        (directory(&root), spliceway.addr()),
        (format!("http://{}", other.addr()), other.addr()),
    ] {
        copy(&from.url(), &to, &[]).failed(&["bad/app:1", &layer]);
        let ours = Repository::new(addr, "bad/app");
        for reference in ["1", &bad.digest()] {
            assert_eq!(status(&ours, reference), 404, "{reference} needs what is wrong");
        }
        ours.head_blob(&layer).expect(404);
        ours.named("good/app").assert_holds("1", &good);
    }
    for root in [registry.data(), root, other.data().join("local")] {
        assert_tree_is_right(&root);
    }
}

#[test]
fn a_flipped_byte() {
    damaged(|bytes| bytes[70_000] ^= 1, 100_000);
    damaged(|bytes| *bytes.last_mut().expect("bytes") ^= 0x80, 3 * MIB);
    damaged(|bytes| bytes[0] ^= 1, 10);
}

#[test]
fn a_file_that_is_too_short() {
    damaged(|bytes| bytes.truncate(70_000), 100_000);
    damaged(Vec::clear, 1000);
}

#[test]
fn a_file_that_is_too_long() {
    damaged(|bytes| bytes.extend([0; 1000]), 100_000);
}

/// A byte that flips on the way once: what arrives is right, or nothing does.
#[test]
fn a_byte_that_flips_on_the_way() {
    let from = Registry::plain();
    let image = Image::new(1221, "amd64", &[2 * MIB]);
    Repository::new(from.addr(), "team/app").push_image("1", &image);
    let layer = sha256(image.layer(0));
    for at in [0, 1_000_000, image.layer(0).len() as u64 - 1] {
        let to = Registry::plain();
        let source = Relay::before(from.addr());
        source.script("GET", &layer, [Fault::Flip(at)]);
        let finished = copy(&source.url(), &to.url(), &[]);
        let ours = Repository::new(to.addr(), "team/app");
        if finished.status.success() {
            ours.assert_holds("1", &image);
        } else {
            finished.failed(&["team/app:1", &layer]);
            assert_eq!(status(&ours, "1"), 404);
        }
        assert_comes_to_be_right(&to.data());
    }
}

/// Two sources, of which one is damaged and gives a part only: the blob comes from the other one.
#[test]
fn a_part_from_a_source_that_is_damaged() {
    let (bad, good) = (Registry::plain(), Registry::plain());
    let image = Image::new(1225, "amd64", &[3 * MIB]);
    for source in [&bad, &good] {
        Repository::new(source.addr(), "team/app").push_image("1", &image);
    }
    let layer = sha256(image.layer(0));
    let path = blob_path(&bad.data(), &layer);
    let mut bytes = fs::read(&path).expect("it was pushed");
    bytes[100] ^= 1;
    fs::write(&path, bytes).expect("our own directory");
    let registry = Registry::plain();
    let spliceway = Spliceway::start(|_| ());
    let root = spliceway.data().join("local");
    for (to, addr) in [(registry.url(), registry.addr()), (directory(&root), spliceway.addr())] {
        let source = Relay::before(bad.addr());
        let absent = || Fault::Answer(Reply::new(404, "{}"));
        source.script("GET", &layer, [Fault::CutAnswer(2 * MIB as u64), absent()]);
        copy(&source.url(), &to, &["--from", &good.url()]).succeeded();
        Repository::new(addr, "team/app").assert_holds("1", &image);
        assert!(source.seen("GET", &layer).len() >= 2, "{}", source.lines());
    }
    assert_tree_is_right(&root);
}

/// On the way to the target: its own check, or ours, keeps the manifest away.
#[test]
fn a_manifest_that_is_not_what_its_digest_says() {
    let from = Registry::plain();
    let theirs = Repository::new(from.addr(), "team/app");
    let children = attested(&theirs, "1", 1231);
    let good = small(from.addr(), "good/app", "1", 1241);
    let registry = Registry::plain();
    let spliceway = Spliceway::start(|_| ());
    let root = spliceway.data().join("local");
    let child = manifest(&theirs, &children[1]).expect(200).body;
    // A letter of the annotations or of a digest: still JSON, another manifest.
    let at = child.iter().rposition(u8::is_ascii_digit).expect("a size") as u64;
    for (to, addr) in [(registry.url(), registry.addr()), (directory(&root), spliceway.addr())] {
        let source = Relay::before(from.addr());
        source.always("GET", &format!("/manifests/{}", children[1]), Fault::Flip(at));
        copy(&source.url(), &to, &[]).failed(&["team/app:1"]);
        let ours = theirs.at(addr);
        assert_eq!(status(&ours, "1"), 404);
        assert_eq!(status(&ours, &children[1]), 404);
        Repository::new(addr, "good/app").assert_holds("1", &good);
    }
}

/// A manifest that is none: not pushed, named, and no reason to stop.
#[test]
fn what_is_no_manifest() {
    let from = Registry::plain();
    small(from.addr(), "bad/app", "1", 1251);
    let good = small(from.addr(), "good/app", "1", 1252);
    let bodies: [&[u8]; 5] =
        [b"", b"not JSON", b"[]", b"{\"schemaVersion\":2,\"layers\":[{\"digest\":\"x\"}]}", b"\0\0"];
    for body in bodies {
        let to = Registry::plain();
        let source = Relay::before(from.addr());
        // Under its own digest, or none would look at it.
        let digest = sha256(body);
        for method in ["GET", "HEAD"] {
            let reply = Reply::new(200, body)
                .header("Content-Type", crate::support::images::OCI_MANIFEST)
                .header("Docker-Content-Digest", &digest);
            source.always(method, "/v2/bad/app/manifests/", Fault::Answer(reply));
        }
        copy(&source.url(), &to.url(), &[]).failed(&["bad/app:1"]);
        assert_eq!(status(&Repository::new(to.addr(), "bad/app"), "1"), 404);
        Repository::new(to.addr(), "good/app").assert_holds("1", &good);
    }
}

/// A manifest without end is not read without end.
#[test]
fn a_manifest_that_is_too_large() {
    let from = Registry::plain();
    small(from.addr(), "bad/app", "1", 1261);
    let good = small(from.addr(), "good/app", "1", 1262);
    let to = Registry::plain();
    let source = Relay::before(from.addr());
    let body = format!("{{\"schemaVersion\":2,\"x\":\"{}\"}}", "x".repeat(40 * MIB));
    source.always("GET", "/v2/bad/app/manifests/", Fault::Answer(Reply::new(200, body)));
    copy(&source.url(), &to.url(), &[]).failed(&["bad/app:1"]);
    Repository::new(to.addr(), "good/app").assert_holds("1", &good);
}
