//! The harness itself, without the program under test: what the other tests rely on holds.

use std::time::Duration;

use crate::support::client::{End, Request, get};
use crate::support::images::{Image, write_layout};
use crate::support::origin::Origin;
use crate::support::plan::{Gate, Plan};
use crate::support::push::Repository;
use crate::support::registry::{Registry, skopeo_copy};
use crate::support::relay::{Fault, Passed, Relay, Reply};
use crate::support::token::TokenServer;
use crate::support::tools::{self, Authority};
use crate::support::{eventually, noise, sha256};

#[test]
fn origin_serves_blobs_ranges_and_images() {
    let origin = Origin::start();
    let bytes = noise(1, 100_000);
    let path = format!("/v2/a/blobs/{}", origin.blob(bytes.clone()));
    get(origin.addr(), &path).expect(200).expect_body(&bytes);
    let part = Request::get(&path).range("10-19").send(origin.addr()).expect(206);
    assert_eq!(part.header("content-range"), Some("bytes 10-19/100000"));
    part.expect_body(&bytes[10..20]);
    Request::get(&path).range("100000-").send(origin.addr()).expect(416);
    get(origin.addr(), "/v2/a/blobs/sha256:00").expect(404);
    assert_eq!(origin.seen("GET", &path).len(), 3);

    let image = Image::new(2, "amd64", &[3000, 70_000]);
    image.hold(&origin, "team/app", "v1");
    let home = tempfile::tempdir().expect("a directory");
    tools::succeed(
        skopeo_copy()
            .arg("--src-tls-verify=false")
            .arg(format!("docker://{}/team/app:v1", origin.addr()))
            .arg(format!("dir:{}", home.path().display())),
    );
    let manifest = std::fs::read(home.path().join("manifest.json")).expect("skopeo wrote it");
    assert_eq!(sha256(&manifest), image.digest());
}

#[test]
fn origin_misbehaves_as_planned() {
    let mut origin = Origin::start();
    let bytes = noise(1, 200_000);
    let path = format!("/v2/a/blobs/{}", origin.blob(bytes.clone()));
    let gate = Gate::new();
    let plans = [
        Plan::cut(1000),
        Plan::reset(70_000),
        Plan::corrupt(5),
        Plan::status(503),
        Plan::healthy().chunked(),
        Plan::healthy().until_close(),
        Plan::healthy().claim_length(300_000),
        Plan::stall(100, &gate),
    ];
    origin.script("GET", &path, plans);
    let cut = get(origin.addr(), &path);
    assert_eq!((cut.body.len(), cut.end), (1000, End::Cut));
    assert_eq!(get(origin.addr(), &path).end, End::Reset);
    let corrupt = get(origin.addr(), &path).expect(200);
    assert_ne!(corrupt.body[5], bytes[5]);
    assert_eq!(corrupt.body[6..], bytes[6..]);
    get(origin.addr(), &path).expect(503);
    get(origin.addr(), &path).expect(200).expect_body(&bytes);
    get(origin.addr(), &path).expect(200).expect_body(&bytes);
    let short = get(origin.addr(), &path);
    assert_eq!((short.body.len(), short.end), (200_000, End::Cut));

    let mut stalled = Request::get(&path).open(origin.addr());
    gate.wait_reached();
    let mut got = Vec::new();
    stalled.read_to(100, &mut got).expect("what comes before the gate");
    gate.open();
    stalled.read_to(200_000, &mut got).expect("what comes after it");
    assert_eq!(got, bytes);

    let addr = origin.addr();
    origin.stop();
    // Not at once: a process that another test is just starting has the socket until it becomes its own program.
    eventually("a stopped origin to refuse", || std::net::TcpStream::connect(addr).is_err().then_some(()));
    origin.restart();
    get(addr, &path).expect(200).expect_body(&bytes);
}

#[test]
fn docker_registry_runs_in_every_variant() {
    let home = tempfile::tempdir().expect("a directory");
    let layout = home.path().join("layout");
    let images = [Image::new(1, "amd64", &[1000, 50_000]), Image::new(9, "arm64", &[2000])];
    write_layout(&layout, &images);
    let authority = Authority::new(home.path());
    let tokens = TokenServer::start(Duration::from_mins(1));
    let variants =
        [Registry::plain(), Registry::htpasswd(), Registry::token(&tokens), Registry::tls(&authority)];
    for (number, registry) in variants.iter().enumerate() {
        registry.push(&layout, "team/app:v1");
        let to = home.path().join(number.to_string());
        registry.pull("team/app:v1", &to);
        assert!(to.join(crate::support::hex(&sha256(images[1].layer(0)))).exists());
    }
    assert!(!tokens.seen().is_empty());
}

#[test]
fn relay_passes_on_what_comes() {
    let registry = Registry::plain();
    let relay = Relay::before(registry.addr());
    let repository = Repository::new(relay.addr(), "team/app");
    let image = Image::new(7, "amd64", &[3000, 300_000]);
    repository.push_image("v1", &image);
    repository.at(registry.addr()).assert_holds("v1", &image);
    repository.assert_holds("v1", &image);
    repository.head_manifest("v1").expect(200);
    // In chunks, as docker sends a layer; skopeo reads by the same way.
    let bytes = noise(8, 100_000);
    let mut session = repository.begin();
    session.follow(&session.stream(&bytes).expect(202));
    session.finish(&sha256(&bytes), &[]).expect(201);
    let home = tempfile::tempdir().expect("a directory");
    tools::succeed(
        skopeo_copy()
            .arg("--src-tls-verify=false")
            .arg(format!("docker://{}/team/app:v1", relay.addr()))
            .arg(format!("dir:{}", home.path().display())),
    );
    let uploads: u64 = relay.passed().iter().filter(|one| one.is_upload()).map(Passed::up).sum();
    assert_eq!(uploads, (image.blobs.iter().map(Vec::len).sum::<usize>() + bytes.len()) as u64);
    let layer = relay.seen("GET", &sha256(image.layer(1)));
    assert_eq!(layer[0].down(), image.layer(1).len() as u64);
    assert!(relay.downloads_at_once() >= 1 && relay.uploads_at_once() == 1);
}

#[test]
fn relay_misbehaves_as_told() {
    let registry = Registry::plain();
    let mut relay = Relay::before(registry.addr());
    let repository = Repository::new(relay.addr(), "team/app");
    let bytes = noise(9, 200_000);
    let digest = repository.push(&bytes);
    let gate = Gate::new();
    relay.script(
        "GET",
        &digest,
        [
            Fault::CutAnswer(1000),
            Fault::Flip(70_000),
            Fault::Answer(Reply::new(429, "{}").header("Retry-After", "1")),
            Fault::LoseAnswer,
            Fault::Pass,
            Fault::HoldAnswer(50_000, gate.clone()),
        ],
    );
    let blob = || Request::get(format!("/v2/team/app/blobs/{digest}"));
    let cut = blob().send(relay.addr());
    assert_eq!((cut.body.len(), cut.end), (1000, End::Cut));
    let flipped = repository.blob(&digest).expect(200);
    let differs: Vec<usize> = (0..bytes.len()).filter(|&at| flipped.body[at] != bytes[at]).collect();
    assert_eq!(differs, [70_000]);
    assert_eq!(repository.blob(&digest).expect(429).header("retry-after"), Some("1"));
    assert!(blob().try_open(relay.addr()).is_err());
    repository.blob(&digest).expect(200).expect_body(&bytes);
    let mut held = blob().open(relay.addr());
    let mut first = Vec::new();
    held.read_to(50_000, &mut first).expect("all before the gate");
    gate.wait_reached();
    relay.stop();
    assert!(blob().try_open(relay.addr()).is_err());
    gate.open();
    assert!(held.collect().end != End::Complete);
    relay.restart();
    repository.blob(&digest).expect(200).expect_body(&bytes);

    // What was cut of an upload is at the registry, and what was lost of an answer was carried out.
    let session = repository.begin();
    relay.script("PATCH", "/uploads/", [Fault::CutRequest(100_000)]);
    assert!(session.request("PATCH").body(bytes.clone()).try_send(relay.addr()).is_none());
    let lost = repository.begin();
    relay.script("PUT", "/uploads/", [Fault::LoseAnswer]);
    assert!(lost.finish_request(&sha256(b"lost"), b"lost").try_send(relay.addr()).is_none());
    repository.head_blob(&sha256(b"lost")).expect(200);
    assert_eq!(relay.seen("PATCH", "/uploads/")[0].up(), 100_000);
}
