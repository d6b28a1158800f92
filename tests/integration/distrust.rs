//! What was believed and turns out wrong: data of an interrupted fill, a manifest's word about a size, an endpoint,
//! another repository's fill.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread;

use serde_json::json;

use crate::support::client::{End, Request, get};
use crate::support::origin::{Blob, Origin};
use crate::support::plan::{Gate, Plan};
use crate::support::process::Spliceway;
use crate::support::{MIB, eventually, noise};

/// An interrupted fill that holds wrong bytes, and a state that fits it.
fn leave_wrong_fill(spliceway: &Spliceway, blob: &Blob, len: usize) {
    let fill = spliceway.fill_path(&blob.digest);
    fs::create_dir_all(&fill).expect("our own directory");
    fs::write(fill.join("data"), noise(77, len)).expect("our own directory");
    let inode = fs::metadata(fill.join("data")).expect("our own file").ino();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot");
    // The state of the hash before the first byte.
    let mut hash = Vec::new();
    for word in [
        0x6a09_e667_u32,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
        0x510e_527f,
        0x9b05_688c,
        0x1f83_d9ab,
        0x5be0_cd19,
    ] {
        hash.extend(word.to_le_bytes());
    }
    hash.resize(104, 0);
    let state = json!({
        "version": 1, "digest": blob.digest, "offset": 0, "hash": data_encoding::BASE64.encode(&hash),
        "inode": inode, "boot": boot.trim(), "length": blob.len(), "etag": null,
    });
    fs::write(fill.join("state.json"), state.to_string()).expect("our own directory");
}

/// Two processes, the first of which begins the fill anew while the second's client has read of the old file.
fn followed_fill_begins_anew(answer: Plan) {
    let origin = Origin::start();
    let mut first = Spliceway::before(&origin);
    let second = first.sibling(|_| ());
    let blob = origin.random_blob(1, 6 * MIB);
    first.stop();
    leave_wrong_fill(&first, &blob, 3 * MIB);
    first.restart(|_| ());
    let gate = Gate::new();
    origin.script("GET", &blob.path, [answer.delay(&gate)]);
    thread::scope(|scope| {
        let of_first = scope.spawn(|| get(first.addr(), &blob.path));
        gate.wait_reached();
        // The second process follows, and shows what is in the file so far.
        let mut of_second = Request::get(&blob.path).open(second.addr());
        let mut body = Vec::new();
        of_second.read_to(2 * MIB as u64, &mut body).expect("what is there so far");
        gate.open();
        let rest = of_second.collect();
        assert_ne!(rest.end, End::Complete, "wrong bytes look whole to the follower's client");
        let answer = of_first.join().expect("the client does not panic");
        if answer.end == End::Complete && answer.status() == 200 {
            answer.expect_body(&blob.bytes);
        }
    });
    for spliceway in [&first, &second] {
        get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
    }
    first.assert_store_is_right();
}

#[test]
fn follower_never_sees_a_file_change_when_the_fill_begins_anew() {
    followed_fill_begins_anew(Plan::status(416));
}

#[test]
fn follower_never_sees_a_file_change_when_the_content_is_wrong() {
    followed_fill_begins_anew(Plan::healthy());
}

#[test]
fn manifest_that_lies_about_sizes_harms_nobody() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    for (seed, size) in [(1, 0), (2, 1), (3, 999), (4, u64::MAX / 2)] {
        let blob = origin.random_blob(seed, 500_000);
        let config = origin.random_blob(seed + 100, 10);
        let layer = |digest: &str, size: u64| json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": layer(&config.digest, 10), "layers": [layer(&blob.digest, size)],
        });
        let digest =
            origin.manifest("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
        get(spliceway.addr(), &format!("/v2/team/app/manifests/{digest}")).expect(200);
        get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
        // Without a length from upstream the manifest's word counts once, and then no more.
        let chunked = origin.random_blob(seed + 200, 500_000);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": layer(&config.digest, 10), "layers": [layer(&chunked.digest, size)],
        });
        let digest =
            origin.manifest("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
        get(spliceway.addr(), &format!("/v2/team/app/manifests/{digest}")).expect(200);
        origin.always("GET", &chunked.path, Plan::healthy().chunked());
        let first = get(spliceway.addr(), &chunked.path);
        if first.end == End::Complete && first.status() == 200 {
            first.expect_body(&chunked.bytes);
        }
        get(spliceway.addr(), &chunked.path).expect(200).expect_body(&chunked.bytes);
    }
    spliceway.assert_store_is_right();
}

#[test]
fn announced_length_beyond_the_manifests_does_not_free_the_last_bytes() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let blob = origin.random_blob(1, 2 * MIB);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": blob.digest, "size": blob.len() },
        "layers": [],
    });
    let digest =
        origin.manifest("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
    get(spliceway.addr(), &format!("/v2/team/app/manifests/{digest}")).expect(200);
    // As many wrong bytes, and many more announced.
    let mut wrong = noise(9, 4 * MIB);
    wrong[..MIB].copy_from_slice(&blob.bytes[..MIB]);
    origin.always("GET", &blob.path, Plan::instead(wrong));
    let range = format!("0-{}", blob.len() - 1);
    let answer = Request::get(&blob.path).range(&range).send(spliceway.addr());
    assert!(answer.status() != 206 || answer.end != End::Complete, "an unverified blob left whole");
}

#[test]
fn another_repositorys_failing_fill_is_not_ours() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.origin(&origin).set("retries", 0).set("stall_timeout", "60s");
    });
    let blob = origin.random_blob(1, 3 * MIB);
    let ours = blob.path.replace("team/app", "other/app");
    let gate = Gate::new();
    origin.always("GET", &blob.path, Plan::status(500).delay(&gate));
    thread::scope(|scope| {
        let failing = scope.spawn(|| get(spliceway.addr(), &blob.path));
        gate.wait_reached();
        let joined = scope.spawn(|| get(spliceway.addr(), &ours));
        eventually("the question for permission", || (origin.seen("HEAD", &ours).len() == 1).then_some(()));
        gate.open();
        failing.join().expect("no panic").expect_failure();
        joined.join().expect("no panic").expect(200).expect_body(&blob.bytes);
    });
}

#[test]
fn permission_is_asked_for_once_however_many_ask_and_its_refusal_is_remembered() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let blob = origin.random_blob(1, MIB);
    get(spliceway.addr(), &blob.path).expect(200);
    spliceway.wait_published(&blob.digest);
    let (allowed, refused) =
        (blob.path.replace("team/app", "other/app"), blob.path.replace("team/app", "private/app"));
    let gate = Gate::new();
    origin.script("HEAD", &allowed, [Plan::healthy().delay(&gate)]);
    origin.always("HEAD", &refused, Plan::status(404));
    thread::scope(|scope| {
        let readers: Vec<_> = (0..16).map(|_| scope.spawn(|| get(spliceway.addr(), &allowed))).collect();
        gate.wait_reached();
        // Most of them are there before the answer is; who is not finds the link that it left.
        eventually("the connections", || {
            (spliceway.metric("spliceway_connections_open", &[]) >= 16.0).then_some(())
        });
        gate.open();
        for reader in readers {
            reader.join().expect("no panic").expect(200).expect_body(&blob.bytes);
        }
    });
    assert_eq!(origin.seen("HEAD", &allowed).len(), 1);
    for _ in 0..3 {
        get(spliceway.addr(), &refused).expect(404);
    }
    assert_eq!(origin.seen("HEAD", &refused).len(), 1);
}

#[test]
fn empty_link_is_written_again() {
    let origin = Origin::start();
    let mut spliceway = Spliceway::before(&origin);
    let blob = origin.random_blob(1, MIB);
    get(spliceway.addr(), &blob.path).expect(200);
    spliceway.wait_published(&blob.digest);
    spliceway.stop();
    // As a power cut may leave one.
    let hex = crate::support::hex(&blob.digest);
    let repository = spliceway.data().join("cache/docker/registry/v2/repositories/origin/team/app");
    let link = repository.join("_layers/sha256").join(hex).join("link");
    fs::write(&link, "").expect("our own file");
    spliceway.restart(|_| ());
    origin.forget_seen();
    for _ in 0..2 {
        get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
    }
    assert_eq!(origin.seen("HEAD", &blob.path).len(), 1);
    assert_eq!(fs::read_to_string(link).expect("our own file"), blob.digest);
}
