//! Who may have what: repositories that upstream refuses, registries that share a process, names that change hands.

use std::thread;

use crate::support::client::{Answer, Request, get};
use crate::support::images::Image;
use crate::support::origin::{Blob, Origin};
use crate::support::plan::{Gate, Plan};
use crate::support::process::Spliceway;
use crate::support::{MIB, eventually, sha256};

const LEN: usize = 2 * MIB + 77;

fn path_in(repository: &str, blob: &Blob) -> String {
    format!("/v2/{repository}/blobs/{}", blob.digest)
}

/// An answer without content: 4xx or 5xx in OCI's form, and no invitation to log in.
#[track_caller]
fn assert_refused(answer: &Answer, status: &[u16]) {
    assert!(status.contains(&answer.status()), "{answer}");
    assert!(!answer.error_code().is_empty(), "{answer}");
    assert_eq!(answer.header("www-authenticate"), None, "{answer}");
}

#[test]
fn repository_that_upstream_refuses_gets_nothing_of_what_is_held() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let blob = origin.random_blob(1, LEN);
    get(spliceway.addr(), &blob.path).expect(200);
    spliceway.wait_published(&blob.digest);
    let refusals = [
        (401, &[403, 502][..]),
        (403, &[403]),
        (404, &[404]),
        (429, &[429, 502, 503]),
        (500, &[502, 503, 504]),
    ];
    for (number, (status, told)) in refusals.into_iter().enumerate() {
        let private = path_in(&format!("private/app{number}"), &blob);
        let mut plan = Plan::status(status);
        if status == 401 {
            plan = plan.header("WWW-Authenticate", "Basic realm=\"x\"");
        }
        origin.always("HEAD", &private, plan.clone());
        origin.always("GET", &private, plan);
        assert_refused(&get(spliceway.addr(), &private), told);
        assert_refused(&Request::get(&private).range("0-9").send(spliceway.addr()), told);
        let etag = format!("\"{}\"", blob.digest);
        let known = Request::get(&private).header("If-None-Match", &etag).send(spliceway.addr());
        assert_refused(&known, told);
        let head = Request::head(&private).send(spliceway.addr());
        assert!(told.contains(&head.status()) && head.header("etag").is_none(), "{status}: {head}");
        assert!(origin.seen("GET", &private).is_empty(), "permission costs a HEAD, not a transfer");
    }
}

#[test]
fn permission_is_asked_for_once() {
    let origin = Origin::start();
    let mut spliceway = Spliceway::before(&origin);
    let blob = origin.random_blob(1, LEN);
    get(spliceway.addr(), &blob.path).expect(200);
    spliceway.wait_published(&blob.digest);
    let other = path_in("other/app", &blob);
    for _ in 0..3 {
        get(spliceway.addr(), &other).expect(200).expect_body(&blob.bytes);
    }
    assert_eq!((origin.seen("HEAD", &other).len(), origin.seen("GET", &other).len()), (1, 0));
    // The yes is kept: it needs no upstream after a restart.
    spliceway.stop();
    origin.forget_seen();
    spliceway.restart(|_| ());
    get(spliceway.addr(), &other).expect(200).expect_body(&blob.bytes);
    assert!(origin.all_seen().is_empty(), "{:?}", origin.all_seen());
}

#[test]
fn repositories_share_one_fill_if_upstream_allows_both() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.origin(&origin).set("stall_timeout", "60s");
    });
    let blob = origin.random_blob(1, LEN);
    let gate = Gate::new();
    origin.script("GET", &blob.path, [Plan::stall(MIB as u64, &gate)]);
    let first = Request::get(&blob.path).open(spliceway.addr());
    gate.wait_reached();
    let other = path_in("other/app", &blob);
    let second = Request::get(&other).open(spliceway.addr());
    gate.open();
    first.collect().expect_body(&blob.bytes);
    second.collect().expect_body(&blob.bytes);
    assert_eq!((origin.seen("HEAD", &other).len(), origin.seen("GET", &other).len()), (1, 0));
}

#[test]
fn refusal_of_one_repository_does_not_fail_another_that_joined() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let blob = origin.random_blob(1, LEN);
    let private = path_in("private/app", &blob);
    let gate = Gate::new();
    origin.always("HEAD", &private, Plan::status(404));
    origin.always("GET", &private, Plan::status(404).delay(&gate));
    thread::scope(|scope| {
        let refused = scope.spawn(|| get(spliceway.addr(), &private));
        gate.wait_reached();
        let allowed = scope.spawn(|| get(spliceway.addr(), &blob.path));
        eventually("the question about the second", || {
            (!origin.seen("HEAD", &blob.path).is_empty()).then_some(())
        });
        gate.open();
        assert_refused(&refused.join().expect("the reader does not panic"), &[404]);
        allowed.join().expect("the reader does not panic").expect(200).expect_body(&blob.bytes);
    });
}

#[test]
fn registries_chosen_by_host_stay_apart() {
    let (first, second) = (Origin::start(), Origin::start());
    let one = Image::new(1, "amd64", &[3000]);
    let two = Image::new(2, "amd64", &[4000]);
    one.hold(&first, "app", "v1");
    two.hold(&second, "app", "v1");
    let shared = first.random_blob(7, LEN);
    second.blob(shared.bytes.clone());
    let spliceway = Spliceway::start(|setup| {
        setup.origin(&first);
        setup.more(&format!(
            "[[registry]]\nname = \"second\"\nhosts = [\"second.example\", \"other.example:5000\"]\n\
             [[registry.upstream]]\nname = \"origin\"\nurl = \"{}\"\ndefault = true\n",
            second.url()
        ));
    });
    let addr = spliceway.addr();
    let target = "/v2/app/manifests/v1";
    let manifest = |host: &str| Request::get(target).host(host).send(addr).expect(200).body;
    assert_eq!(manifest("registry.example"), one.manifest);
    for host in ["second.example", "SECOND.example", "second.example:1234", "other.example:5000"] {
        assert_eq!(manifest(host), two.manifest, "{host}");
    }
    assert_eq!(manifest("other.example:5001"), one.manifest);

    // A blob that one of them holds is not the other's: it asks its own upstream, and keeps its own.
    let path = shared.path.as_str();
    Request::get(path).host("a").send(addr).expect(200).expect_body(&shared.bytes);
    spliceway.wait_published(&shared.digest);
    let before = first.all_seen().len();
    let other = Request::get(path).host("second.example").send(addr).expect(200).expect_body(&shared.bytes);
    assert_eq!(other.header("docker-content-digest"), Some(shared.digest.as_str()));
    assert_eq!((second.seen("GET", path).len(), first.all_seen().len()), (1, before));
    let missing = format!("/v2/app/blobs/{}", sha256(one.layer(0)));
    Request::get(&missing).host("a").send(addr).expect(200).expect_body(one.layer(0));
    Request::get(&missing).host("second.example").send(addr).expect(404);
    assert_eq!(manifest("second.example"), two.manifest);
}

#[test]
fn reload_that_moves_an_upstream_lets_its_fill_end() {
    let (old, new) = (Origin::start(), Origin::start());
    let image = Image::new(1, "amd64", &[100]);
    image.hold(&new, "app", "v1");
    let mut spliceway = Spliceway::start(|setup| {
        setup.origin(&old).set("stall_timeout", "60s");
    });
    let blob = old.random_blob(1, 4 * MIB);
    new.blob(blob.bytes.clone());
    let gate = Gate::new();
    old.script("GET", &blob.path, [Plan::stall(2 * MIB as u64, &gate)]);
    let early = Request::get(&blob.path).open(spliceway.addr());
    gate.wait_reached();
    let addr = spliceway.addr();
    spliceway.reload(|setup| {
        setup.origin(&new).set("stall_timeout", "60s");
    });
    eventually("the new address", || (get(addr, "/v2/app/manifests/v1").status() == 200).then_some(()));
    // The fill goes on where it was begun; whoever comes now joins it.
    let late = Request::get(&blob.path).open(addr);
    gate.open();
    early.collect().expect_body(&blob.bytes);
    late.collect().expect_body(&blob.bytes);
    assert_eq!((old.seen("GET", &blob.path).len(), new.seen("GET", &blob.path).len()), (1, 0));
    // What is new comes from the new address.
    let next = new.random_blob(2, MIB);
    old.forget_seen();
    get(addr, &next.path).expect(200).expect_body(&next.bytes);
    assert!(old.all_seen().is_empty());
}
