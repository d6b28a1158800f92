//! Disks that fill up, caches that have a size, ranges that are too far ahead to wait for.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::client::{Connection, End, Request, get};
use crate::support::disk::SmallDisk;
use crate::support::origin::{Blob, Origin};
use crate::support::plan::{Gate, Plan};
use crate::support::process::Spliceway;
use crate::support::{MIB, eventually, tools};

fn on_small_disk(origin: &Origin, disk: &SmallDisk) -> Spliceway {
    Spliceway::start(|setup| {
        setup.data(disk.path()).registry("min_free", 0);
        setup.origin(origin).set("stall_timeout", "60s");
    })
}

#[test]
fn blob_that_could_never_fit_is_passed_through_and_costs_nothing_that_is_held() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.registry("min_free", 0).registry("max_size", "4MiB").origin(&origin);
    });
    let held = origin.random_blob(1, MIB);
    get(spliceway.addr(), &held.path).expect(200).expect_body(&held.bytes);
    spliceway.wait_published(&held.digest);
    let large = origin.random_blob(2, 6 * MIB);
    for _ in 0..2 {
        get(spliceway.addr(), &large.path).expect(200).expect_body(&large.bytes);
    }
    // An upstream may announce anything.
    let liar = origin.random_blob(3, MIB);
    origin.always("GET", &liar.path, Plan::healthy().claim_length(1 << 50));
    get(spliceway.addr(), &liar.path).expect_failure();
    spliceway.wait_metric("spliceway_fill_failures_total", &["too_large"], |count| count >= 3.0);
    assert!(spliceway.is_published(&held.digest), "what was held had to go for nothing");
    assert_eq!(spliceway.published().len(), 1);
    spliceway.assert_store_is_right();
}

#[test]
fn full_disk_is_invisible_to_readers_and_keeps_nothing() {
    let disk = SmallDisk::mount("8m");
    let origin = Origin::start();
    let spliceway = on_small_disk(&origin, &disk);
    let blob = origin.random_blob(1, 20 * MIB);
    let addr = spliceway.addr();
    thread::scope(|scope| {
        let readers: Vec<_> = [None, None, Some("0-999"), Some("9000000-12000000"), Some("-5")]
            .into_iter()
            .map(|range| {
                let mut request = Request::get(&blob.path);
                if let Some(range) = range {
                    request = request.range(range);
                }
                (range, scope.spawn(move || request.send(addr)))
            })
            .collect();
        for (range, reader) in readers {
            let answer = reader.join().expect("the reader does not panic");
            let len = 20 * MIB;
            match range {
                None => drop(answer.expect(200).expect_body(&blob.bytes)),
                Some("0-999") => drop(answer.expect(206).expect_body(&blob.bytes[..1000])),
                Some("9000000-12000000") => {
                    drop(answer.expect(206).expect_body(&blob.bytes[9_000_000..=12_000_000]));
                }
                // The tail of what nobody hashes is not given away.
                _ if answer.status() == 206 => drop(answer.expect_body(&blob.bytes[len - 5..])),
                _ => assert_eq!(answer.status(), 503, "{answer}"),
            }
        }
    });
    spliceway.wait_log(&["full", &blob.digest]);
    spliceway.wait_metric("spliceway_uncached_bytes_total", &["disk_full"], |bytes| bytes > 0.0);
    spliceway.wait_metric("spliceway_fill_failures_total", &["disk_full"], |count| count > 0.0);
    assert!(!spliceway.is_published(&blob.digest));
    // Space is free again: what fits is kept.
    let small = origin.random_blob(2, MIB);
    get(spliceway.addr(), &small.path).expect(200).expect_body(&small.bytes);
    spliceway.wait_published(&small.digest);
    spliceway.assert_store_is_right();
}

#[test]
fn corrupt_blob_stays_unseen_on_a_full_disk() {
    let disk = SmallDisk::mount("8m");
    let origin = Origin::start();
    let spliceway = on_small_disk(&origin, &disk);
    let blob = origin.random_blob(1, 20 * MIB);
    for offset in [5, 5 * MIB, 15 * MIB, 20 * MIB - 1] {
        origin.always("GET", &blob.path, Plan::corrupt(offset as u64));
        let answer = get(spliceway.addr(), &blob.path);
        answer.expect_failure();
        Request::get(&blob.path).range("-5").send(spliceway.addr()).expect_failure();
    }
    assert!(!spliceway.is_published(&blob.digest));
}

#[test]
fn far_range_does_not_wait_for_the_fill() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.registry("far_range", "1MiB").origin(&origin).set("stall_timeout", "60s");
    });
    let blob = origin.random_blob(1, 8 * MIB);
    let gate = Gate::new();
    origin.script("GET", &blob.path, [Plan::stall(65_536, &gate)]);
    let first = Request::get(&blob.path).open(spliceway.addr());
    gate.wait_reached();
    let answer = Request::get(&blob.path).range("4194304-5242879").send(spliceway.addr()).expect(206);
    assert_eq!(
        answer.header("content-range"),
        Some(format!("bytes 4194304-5242879/{}", blob.len()).as_str())
    );
    answer.expect_body(&blob.bytes[4_194_304..5_242_880]);
    let ranges: Vec<_> = origin
        .seen("GET", &blob.path)
        .iter()
        .filter_map(|seen| seen.header("range").map(str::to_owned))
        .collect();
    assert_eq!(ranges, ["bytes=4194304-5242879"]);
    spliceway.wait_metric("spliceway_uncached_bytes_total", &["far_range"], |bytes| bytes > 1e6);

    // The last bytes wait for the verdict, however they are asked for.
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let tail = scope.spawn(|| {
            let answer = Request::get(&blob.path).range("-1000").send(spliceway.addr());
            done.store(true, Ordering::SeqCst);
            answer
        });
        // Time for a wrong answer to come; a right one cannot.
        thread::sleep(Duration::from_millis(500));
        assert!(!done.load(Ordering::SeqCst), "the tail left before the verdict");
        gate.open();
        tail.join()
            .expect("the reader does not panic")
            .expect(206)
            .expect_body(&blob.bytes[blob.bytes.len() - 1000..]);
    });
    first.collect().expect_body(&blob.bytes);
    spliceway.wait_published(&blob.digest);
}

#[test]
fn far_range_of_a_corrupt_blob_never_shows_its_tail() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.registry("far_range", "1MiB").origin(&origin);
    });
    let blob = origin.random_blob(1, 8 * MIB);
    origin.always("GET", &blob.path, Plan::corrupt(7 * MIB as u64).rate(8 * MIB as u64));
    thread::scope(|scope| {
        scope.spawn(|| get(spliceway.addr(), &blob.path).expect_failure());
        eventually("the fill", || (!origin.all_seen().is_empty()).then_some(()));
        for range in ["-1", "-2097152", "6291456-", "4194304-8388607"] {
            let (spliceway, blob) = (&spliceway, &blob);
            scope.spawn(move || {
                let answer = Request::get(&blob.path).range(range).send(spliceway.addr());
                assert!(answer.status() != 206 || answer.end != End::Complete, "{range}: {answer}");
            });
        }
    });
}

/// Sets when a blob was last used, in hours ago.
pub(crate) fn used(path: &Path, hours: u32) {
    tools::succeed(Command::new("touch").args(["-a", "-d", &format!("{hours} hours ago")]).arg(path));
}

pub(crate) fn fetch(spliceway: &Spliceway, blob: &Blob) -> PathBuf {
    get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
    spliceway.wait_published(&blob.digest);
    spliceway.blob_path(&blob.digest)
}

#[test]
fn least_recently_used_goes_first_also_after_a_restart() {
    let origin = Origin::start();
    let mut spliceway = Spliceway::start(|setup| {
        setup.registry("min_free", 0).origin(&origin);
    });
    let blobs: Vec<_> = (0..4).map(|seed| origin.random_blob(seed, MIB)).collect();
    let paths: Vec<_> = blobs.iter().map(|blob| fetch(&spliceway, blob)).collect();
    spliceway.stop();
    for (path, hours) in paths.iter().zip([30, 50, 10, 20]) {
        used(path, hours);
    }
    spliceway.restart(|setup| {
        setup.registry("max_size", "3500KiB");
    });
    eventually("the oldest to go", || (!paths[1].exists()).then_some(()));
    let left = |paths: &[PathBuf]| paths.iter().map(|path| path.exists()).collect::<Vec<_>>();
    assert_eq!(left(&paths), [true, false, true, true]);
    spliceway.wait_metric("spliceway_stored_bytes", &["tree=\"cache\""], |bytes| bytes < 3500.0 * 1024.0);
    spliceway.wait_metric("spliceway_evicted_blobs_total", &[], |blobs| blobs >= 1.0);

    // A new blob displaces the next oldest; what was evicted comes back from upstream.
    let new = fetch(&spliceway, &origin.random_blob(9, MIB));
    eventually("the next oldest to go", || (!paths[0].exists()).then_some(()));
    assert!(new.exists());
    origin.forget_seen();
    fetch(&spliceway, &blobs[1]);
    assert_eq!(origin.seen("GET", &blobs[1].path).len(), 1);
    spliceway.assert_store_is_right();
}

#[test]
fn cache_never_stays_above_its_size() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.registry("min_free", 0).registry("max_size", "6MiB").origin(&origin);
    });
    for seed in 0..20 {
        let blob = origin.random_blob(seed, MIB);
        get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
    }
    eventually("the cache within its size", || {
        let held: u64 = spliceway
            .published()
            .iter()
            .filter_map(|digest| std::fs::metadata(spliceway.blob_path(digest)).ok())
            .map(|blob| blob.len())
            .sum();
        (held > 0 && held <= 6 * MIB as u64).then_some(())
    });
}

#[test]
fn free_space_is_kept() {
    let disk = SmallDisk::mount("16m");
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.data(disk.path()).registry("min_free", "8MiB");
        setup.origin(&origin);
    });
    for seed in 0..16 {
        let blob = origin.random_blob(seed, MIB);
        get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
    }
    let held = || -> u64 {
        let sizes = spliceway
            .published()
            .into_iter()
            .filter_map(|digest| std::fs::metadata(spliceway.blob_path(&digest)).ok().map(|blob| blob.len()));
        sizes.sum()
    };
    eventually("the space to be free", || (held() > 0 && held() <= 8 * MIB as u64).then_some(()));
    spliceway.assert_store_is_right();
}

#[test]
fn blob_that_is_being_read_is_not_evicted() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.registry("min_free", 0).registry("max_size", "20MiB").origin(&origin);
    });
    let blob = origin.random_blob(1, 16 * MIB);
    fetch(&spliceway, &blob);
    let mut connection = Connection::open_narrow(spliceway.addr());
    connection.write(&Request::get(&blob.path).bytes(spliceway.addr())).expect("a request is written");
    let exchange = connection.exchange("GET").expect("a head");
    for seed in 2..12 {
        // What is being read stays, so these may go as soon as they are published.
        let other = origin.random_blob(seed, 4 * MIB);
        get(spliceway.addr(), &other.path).expect(200).expect_body(&other.bytes);
    }
    spliceway.wait_metric("spliceway_evicted_blobs_total", &[], |blobs| blobs >= 3.0);
    assert!(spliceway.is_published(&blob.digest), "a blob that is being read is evicted");
    let late = exchange.compare(&blob.bytes);
    assert!(late.same && late.end == End::Complete, "{late:?}");
}

#[test]
fn pushed_content_is_not_evicted() {
    let origin = Origin::start();
    let mut spliceway = Spliceway::start(|setup| {
        setup.registry("min_free", 0).registry("max_size", "3MiB").origin(&origin);
    });
    spliceway.stop();
    // As docker-registry would have stored it: Spliceway serves such a directory.
    let blob = origin.random_blob(1, 2 * MIB);
    let hex = crate::support::hex(&blob.digest);
    let local = spliceway.data().join("local/docker/registry/v2");
    let data = local.join("blobs/sha256").join(&hex[..2]).join(hex);
    std::fs::create_dir_all(&data).expect("our own directory");
    std::fs::write(data.join("data"), &*blob.bytes).expect("our own directory");
    let link = local.join("repositories/mine/_layers/sha256").join(hex);
    std::fs::create_dir_all(&link).expect("our own directory");
    std::fs::write(link.join("link"), &blob.digest).expect("our own directory");
    used(&data.join("data"), 1000);
    spliceway.restart(|_| ());
    for seed in 2..8 {
        fetch(&spliceway, &origin.random_blob(seed, MIB));
    }
    spliceway.wait_metric("spliceway_evicted_blobs_total", &[], |blobs| blobs >= 3.0);
    assert!(data.join("data").exists());
    let target = format!("/v2/mine/blobs/{}", blob.digest);
    get(spliceway.addr(), &target).expect(200).expect_body(&blob.bytes);
    assert!(origin.seen("GET", &target).is_empty());
}
