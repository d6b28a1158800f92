//! Power cuts: the data directory is on a filesystem of its own, and what its image holds at some instant, without a
//! sync, is what the next start finds.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::support::client::{End, Request, get};
use crate::support::disk::{Disk, Journal, write_back};
use crate::support::images::Image;
use crate::support::origin::{Blob, Origin};
use crate::support::plan::{Gate, Plan};
use crate::support::process::{Setup, Spliceway, entries};
use crate::support::{MIB, eventually, sha256};

const JOURNALS: [Journal; 2] = [Journal::Ordered, Journal::LengthFirst];

fn start(disk: &Disk, origin: &Origin) -> Spliceway {
    Spliceway::start(|setup| configure(setup, disk, origin))
}

fn configure(setup: &mut Setup, disk: &Disk, origin: &Origin) {
    setup.data(&disk.path()).registry("min_free", 0);
    setup.origin(origin).set("stall_timeout", "60s").set("retries", 1);
}

/// The disk as it is after a power cut now, and the machine's next boot.
fn cut(spliceway: &Spliceway, disk: &Disk) -> Disk {
    let copy = spliceway.frozen(|| disk.after_power_cut());
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot id");
    for fill in entries(&copy.path().join("cache/fills/sha256")) {
        // A state that did not reach the disk whole has no boot to change.
        if let Ok(state) = fs::read_to_string(fill.join("state.json")) {
            let other = state.replace(boot.trim(), "00000000-0000-4000-8000-000000000000");
            fs::write(fill.join("state.json"), other).expect("our own directory");
        }
    }
    copy
}

/// Waits until nothing of the fill is left: its blob is published durably.
fn wait_durable(spliceway: &Spliceway, blob: &Blob) {
    spliceway.wait_published(&blob.digest);
    eventually("the fill to be cleared away", || {
        (!spliceway.fill_path(&blob.digest).join("data").exists()).then_some(())
    });
}

/// Starts on what a power cut left, without upstream and then with it: nothing wrong is there or is served, `durable` is
/// there without being fetched again, and in the end everything is.
#[track_caller]
fn assert_comes_back(disk: &Disk, mut origin: Origin, blobs: &[Blob], durable: &[&Blob]) {
    origin.heal();
    origin.stop();
    let spliceway = start(disk, &origin);
    spliceway.assert_store_is_right();
    for blob in durable {
        assert!(spliceway.is_published(&blob.digest), "{} was published and is gone", blob.digest);
    }
    for blob in blobs {
        let answer = get(spliceway.addr(), &blob.path);
        if answer.end == End::Complete && answer.status() == 200 {
            answer.expect_body(&blob.bytes);
        } else {
            answer.expect_failure();
        }
        let tail = Request::get(&blob.path).range("-100").send(spliceway.addr());
        if tail.end == End::Complete && tail.status() == 206 {
            tail.expect_body(&blob.bytes[blob.bytes.len() - 100..]);
        }
    }

    origin.restart();
    origin.forget_seen();
    for blob in blobs {
        // From where pages may be missing.
        for at in [1_000_000, 25_000_000] {
            if let Some(part) = blob.bytes.get(at..at + 100_000) {
                let range = format!("{at}-{}", at + 99_999);
                let answer = Request::get(&blob.path).range(&range).send(spliceway.addr());
                answer.expect(206).expect_body(part);
            }
        }
        get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
        spliceway.wait_published(&blob.digest);
    }
    for blob in durable {
        assert!(origin.seen("GET", &blob.path).is_empty(), "{} was held and is fetched again", blob.digest);
    }
    spliceway.assert_store_is_right();

    // What upstream has confirmed once needs it no more.
    origin.stop();
    for blob in blobs {
        get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
    }
    assert!(!spliceway.log().contains("panicked"));
}

/// Long enough that a hash state is written that covers data, and stopped where some data lies behind it.
const LARGE: usize = 44 * MIB;

/// A fill is interrupted after `written_back` was called for the directory of the fill, with the transfer at 20 MiB and
/// again at 40 MiB.
fn in_mid_fill(written_back: fn(&Path, u64)) {
    for journal in JOURNALS {
        let disk = Disk::new(journal);
        let origin = Origin::start();
        let spliceway = start(&disk, &origin);
        let held = origin.random_blob(1, 300_000);
        get(spliceway.addr(), &held.path).expect(200);
        wait_durable(&spliceway, &held);
        let blob = origin.random_blob(2, LARGE);
        let gates = [(20 * MIB as u64, Gate::new()), (40 * MIB as u64, Gate::new())];
        let plan = gates.iter().fold(Plan::healthy(), |plan, (at, gate)| plan.gate(*at, gate));
        origin.script("GET", &blob.path, [plan]);
        let _reader = Request::get(&blob.path).open(spliceway.addr());
        let fill = spliceway.fill_path(&blob.digest);
        for (at, gate) in &gates {
            gate.wait_reached();
            eventually("what was sent", || {
                fs::metadata(fill.join("data")).is_ok_and(|data| data.len() == *at).then_some(())
            });
            written_back(&fill, *at);
            if *at == 20 * MIB as u64 {
                gate.open();
            }
        }
        let after = cut(&spliceway, &disk);
        drop(spliceway);
        assert_comes_back(&after, origin, &[held.clone(), blob], &[&held]);
    }
}

#[test]
fn in_mid_fill_with_nothing_on_disk() {
    in_mid_fill(|_, _| ());
}

#[test]
fn in_mid_fill_with_all_of_it_on_disk() {
    in_mid_fill(|fill, _| {
        write_back(&fill.join("data"));
        write_back(&fill.join("state.json"));
        write_back(fill);
    });
}

#[test]
fn in_mid_fill_with_a_state_newer_than_its_data() {
    in_mid_fill(|fill, at| {
        if at == 20 * MIB as u64 {
            write_back(&fill.join("data"));
        }
        write_back(&fill.join("state.json"));
    });
}

#[test]
fn when_the_blob_gets_its_name() {
    let disk = Disk::new(Journal::LengthFirst);
    let mut done: Vec<Blob> = Vec::new();
    for round in 0..8 {
        let origin = Origin::start();
        let spliceway = start(&disk, &origin);
        let blob = origin.random_blob(round, 2 * MIB);
        let gate = Gate::new();
        origin.script("GET", &blob.path, [Plan::stall(blob.len() - 1, &gate)]);
        let reader = Request::get(&blob.path).open(spliceway.addr());
        gate.wait_reached();
        gate.open();
        if round % 2 == 0 {
            while !spliceway.is_published(&blob.digest) {
                thread::yield_now();
            }
        } else {
            thread::sleep(Duration::from_micros(round * 400));
        }
        let after = cut(&spliceway, &disk);
        reader.collect().expect_body(&blob.bytes);
        wait_durable(&spliceway, &blob);
        drop(spliceway);
        let earlier: Vec<&Blob> = done.iter().collect();
        for blob in &done {
            origin.blob(blob.bytes.clone());
        }
        let mut all = done.clone();
        all.push(blob.clone());
        assert_comes_back(&after, origin, &all, &earlier);
        done.push(blob);
    }
}

#[test]
fn once_the_blob_is_published() {
    for journal in JOURNALS {
        let disk = Disk::new(journal);
        let origin = Origin::start();
        let spliceway = start(&disk, &origin);
        // One whose directories are new, one whose first directory is there: every entry on the way must be synced.
        let blobs: Vec<_> =
            [(1, 1), (2, 70_000), (3, 5 * MIB)].map(|(seed, len)| origin.random_blob(seed, len)).into();
        for (number, blob) in blobs.iter().enumerate() {
            get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
            wait_durable(&spliceway, blob);
            let after = cut(&spliceway, &disk);
            for blob in &blobs[..=number] {
                let hex = crate::support::hex(&blob.digest);
                let name =
                    after.path().join("cache/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex);
                let bytes = fs::read(name.join("data"));
                assert!(
                    bytes.is_ok_and(|bytes| bytes == *blob.bytes),
                    "{journal:?}: blob {number} is not whole"
                );
            }
        }
        let after = cut(&spliceway, &disk);
        drop(spliceway);
        let held: Vec<&Blob> = blobs.iter().collect();
        assert_comes_back(&after, origin, &blobs, &held);
    }
}

#[test]
fn once_manifest_and_tag_are_stored() {
    for journal in JOURNALS {
        let disk = Disk::new(journal);
        let mut origin = Origin::start();
        let image = Image::new(1, "amd64", &[1000, 200_000]);
        let digest = image.hold(&origin, "team/app", "v1");
        let spliceway = start(&disk, &origin);
        let by_tag = "/v2/team/app/manifests/v1";
        let by_digest = format!("/v2/team/app/manifests/{digest}");
        get(spliceway.addr(), by_tag).expect(200).expect_body(&image.manifest);
        let early = cut(&spliceway, &disk);
        let layers: Vec<_> = image.blobs.iter().map(|bytes| (sha256(bytes), bytes)).collect();
        for (layer, bytes) in &layers {
            get(spliceway.addr(), &format!("/v2/team/app/blobs/{layer}")).expect(200).expect_body(bytes);
            spliceway.wait_published(layer);
        }
        spliceway.wait_metric("spliceway_fills_in_flight", &[], |count| count < 0.5);
        // The journal has links and tags by now, whose content nobody synced.
        let late = cut(&spliceway, &disk);
        drop(spliceway);

        for (after, blobs_held) in [(early, false), (late, true)] {
            origin.stop();
            let spliceway = start(&after, &origin);
            spliceway.assert_store_is_right();
            assert!(spliceway.is_published(&digest), "{journal:?}: the manifest was stored and is gone");
            for target in [by_tag, &by_digest] {
                let answer = get(spliceway.addr(), target);
                if answer.status() == 200 {
                    answer.expect(200).expect_body(&image.manifest);
                } else {
                    answer.expect_failure();
                }
            }
            origin.restart();
            origin.forget_seen();
            for target in [by_tag, &by_digest] {
                get(spliceway.addr(), target).expect(200).expect_body(&image.manifest);
            }
            for (layer, bytes) in &layers {
                let target = format!("/v2/team/app/blobs/{layer}");
                get(spliceway.addr(), &target).expect(200).expect_body(bytes);
                assert!(
                    !blobs_held || origin.seen("GET", &target).is_empty(),
                    "a held layer is fetched again"
                );
                spliceway.wait_published(layer);
            }
            spliceway.wait_metric("spliceway_fills_in_flight", &[], |count| count < 0.5);
            // All of it was confirmed upstream: from now on it is there without.
            origin.stop();
            for target in [by_tag, &by_digest] {
                get(spliceway.addr(), target).expect(200).expect_body(&image.manifest);
            }
            for (layer, bytes) in &layers {
                let target = format!("/v2/team/app/blobs/{layer}");
                get(spliceway.addr(), &target).expect(200).expect_body(bytes);
            }
            origin.restart();
        }
    }
}

#[test]
fn during_several_fills() {
    for journal in JOURNALS {
        let disk = Disk::new(journal);
        let origin = Origin::start();
        let spliceway = start(&disk, &origin);
        let blobs: Vec<_> = (0..8)
            .map(|seed| {
                let blob = origin.random_blob(seed, 4 * MIB + 1000 * usize::try_from(seed).expect("small"));
                origin.script("GET", &blob.path, [Plan::healthy().rate((seed + 2) * 1024 * 1024)]);
                blob
            })
            .collect();
        let mut cuts = Vec::new();
        thread::scope(|scope| {
            for blob in &blobs {
                let spliceway = &spliceway;
                scope.spawn(move || get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes));
            }
            for _ in 0..4 {
                thread::sleep(Duration::from_millis(300));
                let durable: Vec<&Blob> = blobs
                    .iter()
                    .filter(|blob| {
                        // In this order: the fill goes away after the publication is on disk.
                        spliceway.is_published(&blob.digest)
                            && !spliceway.fill_path(&blob.digest).join("data").exists()
                    })
                    .collect();
                cuts.push((cut(&spliceway, &disk), durable));
            }
        });
        drop(spliceway);
        for (after, durable) in cuts {
            let origin = Origin::start();
            for blob in &blobs {
                origin.blob(blob.bytes.clone());
            }
            assert_comes_back(&after, origin, &blobs, &durable);
        }
    }
}
