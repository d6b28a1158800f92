//! How fresh a tag is: kept for its time, asked again by HEAD, served stale when upstream fails and only then.

use std::thread;
use std::time::Duration;

use crate::support::client::{Answer, Connection, Request, get};
use crate::support::images::{DOCKER_LIST, DOCKER_MANIFEST, Image, OCI_INDEX, OCI_MANIFEST, index};
use crate::support::origin::Origin;
use crate::support::plan::{Gate, Plan};
use crate::support::process::Spliceway;
use crate::support::sha256;

const TAGGED: &str = "/v2/team/app/manifests/v1";
/// How long a tag is fresh in these tests.
const TTL: &str = "500ms";

/// Longer than [`TTL`].
fn outlive_ttl() {
    thread::sleep(Duration::from_millis(700));
}

fn start(origin: &Origin) -> Spliceway {
    Spliceway::start(|setup| {
        setup.origin(origin).set("tag_ttl", TTL).set("negative_ttl", TTL).set("retries", 1);
    })
}

fn image(origin: &Origin, seed: u64) -> Image {
    let image = Image::new(seed, "amd64", &[1000, 20_000]);
    image.hold(origin, "team/app", "v1");
    image
}

/// Pulls manifest and blobs, so that all is held.
fn pull(spliceway: &Spliceway, image: &Image) {
    get(spliceway.addr(), TAGGED).expect(200);
    pull_blobs(spliceway, image);
}

fn pull_blobs(spliceway: &Spliceway, image: &Image) {
    for blob in &image.blobs {
        let digest = sha256(blob);
        get(spliceway.addr(), &format!("/v2/team/app/blobs/{digest}")).expect(200).expect_body(blob);
        spliceway.wait_published(&digest);
    }
}

#[test]
fn fresh_tag_is_not_asked_for_again() {
    let origin = Origin::start();
    let image = image(&origin, 1);
    let spliceway = Spliceway::before(&origin);
    for _ in 0..5 {
        get(spliceway.addr(), TAGGED).expect(200).expect_body(&image.manifest);
        Request::head(TAGGED).send(spliceway.addr()).expect(200);
    }
    let by_tag = origin.seen("GET", TAGGED).len() + origin.seen("HEAD", TAGGED).len();
    let by_digest = origin.seen("GET", &format!("/v2/team/app/manifests/{}", image.digest())).len();
    assert!(by_tag <= 2 && by_digest <= 1, "{by_tag} by tag, {by_digest} by digest");
}

#[test]
fn tag_that_did_not_move_costs_a_head() {
    let origin = Origin::start();
    let image = image(&origin, 1);
    let spliceway = start(&origin);
    get(spliceway.addr(), TAGGED).expect(200);
    origin.forget_seen();
    outlive_ttl();
    get(spliceway.addr(), TAGGED).expect(200).expect_body(&image.manifest);
    let asked: Vec<_> = origin.all_seen().iter().map(|seen| seen.method().to_owned()).collect();
    assert_eq!(asked, ["HEAD"], "a HEAD is not counted against the upstream's rate limit, a GET is");
}

#[test]
fn moved_tag_is_followed_once_its_time_is_over() {
    let origin = Origin::start();
    let old = image(&origin, 1);
    let spliceway = start(&origin);
    get(spliceway.addr(), TAGGED).expect(200).expect_body(&old.manifest);
    let new = image(&origin, 2);
    outlive_ttl();
    let answer = get(spliceway.addr(), TAGGED).expect(200).expect_body(&new.manifest);
    assert_eq!(answer.header("docker-content-digest"), Some(new.digest().as_str()));
    // What a digest names stays.
    let path = format!("/v2/team/app/manifests/{}", old.digest());
    get(spliceway.addr(), &path).expect(200).expect_body(&old.manifest);
}

#[test]
fn concurrent_requests_for_a_tag_are_one_upstream() {
    let origin = Origin::start();
    let image = image(&origin, 1);
    let spliceway = start(&origin);
    for round in 0..2 {
        origin.forget_seen();
        let gate = Gate::new();
        origin.always("GET", TAGGED, Plan::delayed(&gate));
        origin.always("HEAD", TAGGED, Plan::delayed(&gate));
        thread::scope(|scope| {
            for _ in 0..32 {
                scope.spawn(|| get(spliceway.addr(), TAGGED).expect(200).expect_body(&image.manifest));
            }
            gate.wait_reached();
            // Time for the others to arrive: they could only make the test fail.
            thread::sleep(Duration::from_millis(300));
            gate.open();
        });
        let seen = origin.seen("GET", TAGGED).len().max(origin.seen("HEAD", TAGGED).len());
        assert!(origin.all_seen().len() <= 2 && seen == 1, "round {round}: {:?}", origin.all_seen());
        outlive_ttl();
    }
}

/// Every way in which an upstream fails, applied to what is asked of it about the tag.
fn failures() -> Vec<(&'static str, Option<Plan>)> {
    vec![
        ("500", Some(Plan::status(500))),
        ("503", Some(Plan::status(503))),
        ("429", Some(Plan::status(429).header("Retry-After", "3600"))),
        ("401", Some(Plan::status(401).header("WWW-Authenticate", "Basic realm=\"x\""))),
        ("403", Some(Plan::status(403))),
        ("gone", None),
    ]
}

fn with_failure(origin: &mut Origin, plan: Option<Plan>, test: impl FnOnce(&Origin)) {
    if let Some(plan) = plan {
        origin.always("GET", TAGGED, plan.clone());
        origin.always("HEAD", TAGGED, plan);
        test(origin);
        origin.heal();
    } else {
        origin.stop();
        test(origin);
        origin.restart();
    }
}

#[test]
fn stale_tag_is_served_while_upstream_fails() {
    let mut origin = Origin::start();
    let image = image(&origin, 1);
    let spliceway = start(&origin);
    pull(&spliceway, &image);
    for (name, plan) in failures() {
        outlive_ttl();
        with_failure(&mut origin, plan, |_| {
            let answer = get(spliceway.addr(), TAGGED).expect(200).expect_body(&image.manifest);
            assert_stale(&answer, name);
            assert_stale(&Request::head(TAGGED).send(spliceway.addr()).expect(200), name);
        });
    }
    spliceway.wait_log(&["stale", TAGGED]);
    // Upstream is back: the tag is fresh again.
    outlive_ttl();
    let moved = self::image(&origin, 7);
    let answer = get(spliceway.addr(), TAGGED).expect(200).expect_body(&moved.manifest);
    assert_eq!(answer.header("warning"), None);
}

#[track_caller]
fn assert_stale(answer: &Answer, name: &str) {
    let age = answer.header("age").and_then(|age| age.parse::<u64>().ok());
    assert!(age.is_some(), "{name}: a stale answer says its age: {answer}");
}

#[test]
fn stale_tag_is_not_served_when_its_blobs_are_not_held() {
    let mut origin = Origin::start();
    let image = image(&origin, 1);
    let spliceway = start(&origin);
    get(spliceway.addr(), TAGGED).expect(200);
    // All but one.
    let digest = sha256(&image.blobs[0]);
    get(spliceway.addr(), &format!("/v2/team/app/blobs/{digest}")).expect(200);
    for (name, plan) in failures() {
        outlive_ttl();
        with_failure(&mut origin, plan, |_| {
            let answer = get(spliceway.addr(), TAGGED);
            // Refused credentials of ours are 403: no client is asked for its own.
            let told = answer.status() == 403 || answer.status() >= 429;
            assert!(told, "{name}: the client must be told to go elsewhere: {answer}");
            assert!(!answer.error_code().is_empty());
        });
    }
}

#[test]
fn stale_index_is_served_if_one_of_its_images_is_held() {
    let mut origin = Origin::start();
    let images = [Image::new(1, "amd64", &[1000]), Image::new(2, "arm64", &[1000])];
    for image in &images {
        image.hold(&origin, "team/app", "unused");
    }
    let list = index(&images);
    origin.tag("team/app", "v1", &origin.manifest(OCI_INDEX, &list));
    let spliceway = start(&origin);
    get(spliceway.addr(), TAGGED).expect(200).expect_body(&list);
    origin.stop();
    outlive_ttl();
    assert!(get(spliceway.addr(), TAGGED).status() >= 500, "no image of it is held");
    origin.restart();
    get(spliceway.addr(), &format!("/v2/team/app/manifests/{}", images[1].digest())).expect(200);
    pull_blobs(&spliceway, &images[1]);
    origin.stop();
    outlive_ttl();
    get(spliceway.addr(), TAGGED).expect(200).expect_body(&list);
}

#[test]
fn stale_tag_survives_a_restart() {
    let mut origin = Origin::start();
    let image = image(&origin, 1);
    let mut spliceway = start(&origin);
    pull(&spliceway, &image);
    spliceway.stop();
    origin.stop();
    outlive_ttl();
    spliceway.restart(|_| ());
    get(spliceway.addr(), TAGGED).expect(200).expect_body(&image.manifest);
}

#[test]
fn absent_tag_is_remembered_briefly() {
    let origin = Origin::start();
    let spliceway = start(&origin);
    for _ in 0..5 {
        let answer = get(spliceway.addr(), TAGGED).expect(404);
        assert!(["MANIFEST_UNKNOWN", "NAME_UNKNOWN"].contains(&answer.error_code().as_str()), "{answer}");
    }
    assert!(origin.all_seen().len() <= 2, "{:?}", origin.all_seen());
    let image = image(&origin, 1);
    outlive_ttl();
    get(spliceway.addr(), TAGGED).expect(200).expect_body(&image.manifest);
}

#[test]
fn tag_deleted_upstream_is_gone() {
    let origin = Origin::start();
    let image = image(&origin, 1);
    let spliceway = start(&origin);
    pull(&spliceway, &image);
    origin.always("GET", TAGGED, Plan::status(404));
    origin.always("HEAD", TAGGED, Plan::status(404));
    outlive_ttl();
    get(spliceway.addr(), TAGGED).expect(404);
}

#[test]
fn manifest_that_is_not_what_its_digest_says_is_refused() {
    let origin = Origin::start();
    let image = image(&origin, 1);
    let spliceway = start(&origin);
    let path = format!("/v2/team/app/manifests/{}", image.digest());
    let other = Image::new(2, "amd64", &[10]);
    origin.always("GET", &path, Plan::instead(other.manifest.clone()));
    get(spliceway.addr(), &path).expect_failure();
    // By tag: the header names one digest, the body has another.
    origin.always("GET", TAGGED, Plan::instead(other.manifest));
    let answer = get(spliceway.addr(), TAGGED);
    assert!(answer.status() >= 500, "{answer}");
    assert!(spliceway.published().is_empty());
    origin.heal();
    get(spliceway.addr(), &path).expect(200).expect_body(&image.manifest);
}

#[test]
fn oversized_manifest_is_refused() {
    let origin = Origin::start();
    let spliceway = start(&origin);
    let huge = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","layers":[],"annotations":{{"x":"{}"}}}}"#,
        "y".repeat(17 * 1024 * 1024)
    );
    let digest = origin.manifest(OCI_MANIFEST, huge.as_bytes());
    origin.tag("team/app", "v1", &digest);
    get(spliceway.addr(), TAGGED).expect_failure();
    // Chunked, it cannot be refused by its length.
    origin.always("GET", TAGGED, Plan::healthy().chunked());
    outlive_ttl();
    get(spliceway.addr(), TAGGED).expect_failure();
    assert!(spliceway.published().is_empty());
}

#[test]
fn concurrent_requests_for_a_manifest_by_digest_are_one_upstream() {
    let origin = Origin::start();
    let image = image(&origin, 1);
    let spliceway = start(&origin);
    let path = format!("/v2/team/app/manifests/{}", image.digest());
    let gate = Gate::new();
    origin.always("GET", &path, Plan::delayed(&gate));
    thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| get(spliceway.addr(), &path).expect(200).expect_body(&image.manifest));
        }
        gate.wait_reached();
        // Time for the others to arrive: they could only make the test fail.
        thread::sleep(Duration::from_millis(300));
        gate.open();
    });
    assert_eq!(origin.seen("GET", &path).len(), 1);
}

#[test]
fn client_that_leaves_does_not_take_the_answer_from_others() {
    let origin = Origin::start();
    let image = image(&origin, 1);
    let spliceway = start(&origin);
    let gate = Gate::new();
    origin.always("HEAD", TAGGED, Plan::delayed(&gate));
    let mut leaving = Connection::open(spliceway.addr());
    leaving.write(&Request::get(TAGGED).bytes(spliceway.addr())).expect("a request is written");
    gate.wait_reached();
    thread::scope(|scope| {
        let staying = scope.spawn(|| get(spliceway.addr(), TAGGED));
        thread::sleep(Duration::from_millis(200));
        drop(leaving);
        thread::sleep(Duration::from_millis(200));
        gate.open();
        staying.join().expect("no panic").expect(200).expect_body(&image.manifest);
    });
    assert_eq!(origin.seen("HEAD", TAGGED).len(), 1);
}

#[test]
fn concurrent_lists_of_tags_are_one_upstream_and_kept_for_their_time() {
    const LIST: &str = "/v2/team/app/tags/list";
    let mut origin = Origin::start();
    let image = image(&origin, 1);
    let spliceway = start(&origin);
    let tags = |answer: Answer| answer.expect(200).json()["tags"].clone();
    let gate = Gate::new();
    origin.always("GET", LIST, Plan::delayed(&gate));
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert_eq!(tags(get(spliceway.addr(), LIST)), serde_json::json!(["v1"])));
        }
        gate.wait_reached();
        thread::sleep(Duration::from_millis(300));
        gate.open();
    });
    assert_eq!(origin.seen("GET", LIST).len(), 1);
    // A new tag is seen once the list's time is over.
    origin.tag("team/app", "v2", &image.digest());
    outlive_ttl();
    assert_eq!(tags(get(spliceway.addr(), LIST)), serde_json::json!(["v1", "v2"]));
    // Without upstream, what is held is listed.
    get(spliceway.addr(), TAGGED).expect(200);
    origin.stop();
    outlive_ttl();
    assert_eq!(tags(get(spliceway.addr(), LIST)), serde_json::json!(["v1"]));
}

#[test]
fn signed_manifest_of_schema_1_passes_through() {
    const SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let origin = Origin::start();
    let spliceway = start(&origin);
    let encode = |bytes: &[u8]| data_encoding::BASE64URL_NOPAD.encode(bytes);
    let payload = serde_json::json!({
        "schemaVersion": 1, "name": "team/app", "tag": "v1", "architecture": "amd64",
        "fsLayers": [{"blobSum": sha256(b"layer")}], "history": [{"v1Compatibility": "{}"}],
    });
    let payload = serde_json::to_string_pretty(&payload).expect("plain values").into_bytes();
    let protected = format!(r#"{{"formatLength":{},"formatTail":"{}"}}"#, payload.len() - 2, encode(b"\n}"));
    let mut signed = payload[..payload.len() - 2].to_vec();
    let rest = format!(",\n   \"signatures\": [{{\"protected\": \"{}\"}}]\n}}", encode(protected.as_bytes()));
    signed.extend(rest.into_bytes());
    // Its digest is the payload's, not its own.
    let digest = sha256(&payload);
    origin.manifest_as(&digest, SIGNED, &signed);
    origin.tag("team/app", "v1", &digest);
    let by_digest = format!("/v2/team/app/manifests/{digest}");
    for target in [TAGGED, &by_digest, &by_digest] {
        let answer = get(spliceway.addr(), target).expect(200).expect_body(&signed);
        assert_eq!(answer.header("content-type"), Some(SIGNED), "{target}");
        assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()), "{target}");
    }
    assert!(spliceway.published().is_empty(), "no file is named by what it does not hash to");
    // One whose payload is another is refused like any other lie.
    let lie = sha256(b"something else");
    origin.manifest_as(&lie, SIGNED, &signed);
    get(spliceway.addr(), &format!("/v2/team/app/manifests/{lie}")).expect_failure();
}

#[test]
fn upstream_is_asked_for_every_type_whatever_the_client_accepts() {
    let origin = Origin::start();
    let image = image(&origin, 1);
    let spliceway = start(&origin);
    let accept = Request::get(TAGGED).header("Accept", "text/html");
    accept.send(spliceway.addr()).expect(200).expect_body(&image.manifest);
    for seen in origin.all_seen() {
        let accepted = seen.header("accept").unwrap_or_default().to_owned();
        for kind in [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST] {
            assert!(accepted.contains(kind), "{} asks for {accepted:?}", seen.method());
        }
    }
}

#[test]
fn upstream_without_head_or_digest_header_is_coped_with() {
    let origin = Origin::start();
    let image = image(&origin, 1);
    let spliceway = start(&origin);
    for status in [405, 400] {
        origin.always("HEAD", TAGGED, Plan::status(status));
        outlive_ttl();
        let answer = get(spliceway.addr(), TAGGED).expect(200).expect_body(&image.manifest);
        assert_eq!(answer.header("docker-content-digest"), Some(image.digest().as_str()), "HEAD is {status}");
    }
    origin.heal();
    for method in ["GET", "HEAD"] {
        origin.always(method, TAGGED, Plan::healthy().header("Docker-Content-Digest", "").header("ETag", ""));
    }
    let moved = self::image(&origin, 2);
    outlive_ttl();
    get(spliceway.addr(), TAGGED).expect(200).expect_body(&moved.manifest);
}

#[test]
fn mirrors_are_asked_for_manifests_too() {
    let (mut mirror, origin) = (Origin::start(), Origin::start());
    let (old, new) = (image(&mirror, 1), image(&origin, 2));
    let spliceway = Spliceway::start(|setup| {
        setup.origin(&origin).set("mirrors", vec![mirror.url()]).set("tag_ttl", TTL).set("retries", 1);
    });
    get(spliceway.addr(), TAGGED).expect(200).expect_body(&old.manifest);
    assert!(origin.all_seen().is_empty(), "{:?}", origin.all_seen());
    mirror.stop();
    outlive_ttl();
    get(spliceway.addr(), TAGGED).expect(200).expect_body(&new.manifest);
}
