//! What eviction takes, what it lets alone, and what it counts: pins, open readers, several processes, crashes, large
//! trees.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::bounds::{fetch, used};
use crate::support::client::{Connection, End, Request, get};
use crate::support::disk::SmallDisk;
use crate::support::origin::{Blob, Origin};
use crate::support::process::{Spliceway, entries};
use crate::support::{MIB, eventually, hex, noise, sha256};

const KEPT: &str = "tree=\"cache\"";

/// The bytes of the blobs that have a name in `cache`.
fn held(spliceway: &Spliceway) -> u64 {
    let blobs = spliceway.published().into_iter();
    blobs.filter_map(|digest| fs::metadata(spliceway.blob_path(&digest)).ok()).map(|blob| blob.len()).sum()
}

/// Whether a metric's value is this whole number.
fn is(value: f64, expected: u64) -> bool {
    value.to_string() == expected.to_string()
}

/// A reader of the fill of `blob` that has taken nothing of its body yet; the fill is published.
fn slow_reader(spliceway: &Spliceway, blob: &Blob) -> Connection {
    let mut connection = Connection::open_narrow(spliceway.addr());
    connection.write(&Request::get(&blob.path).bytes(spliceway.addr())).expect("a request is written");
    spliceway.wait_published(&blob.digest);
    connection
}

#[test]
fn pinned_repositories_are_not_evicted() {
    let origin = Origin::start();
    let mut spliceway = Spliceway::start(|setup| {
        setup.registry("min_free", 0).registry("pin", vec!["base/*".to_owned(), "origin/exact".to_owned()]);
        setup.origin(&origin);
    });
    let in_repository = |seed, repository: &str| {
        let mut blob = origin.random_blob(seed, MIB);
        blob.path = blob.path.replace("team/app", repository);
        blob
    };
    let names = ["base/os", "exact", "base", "exact/not"];
    let blobs: Vec<_> = names.iter().zip(1..).map(|(name, seed)| in_repository(seed, name)).collect();
    let paths: Vec<_> = blobs.iter().map(|blob| fetch(&spliceway, blob)).collect();
    let manifest =
        br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[]}"#;
    let digest = origin.manifest("application/vnd.oci.image.manifest.v1+json", manifest);
    get(spliceway.addr(), &format!("/v2/base/os/manifests/{digest}")).expect(200).expect_body(manifest);
    spliceway.stop();
    for path in paths.iter().chain([&spliceway.blob_path(&digest)]) {
        used(path, 1000);
    }
    spliceway.restart(|setup| {
        setup.registry("max_size", "4MiB");
    });
    for seed in 10..14 {
        fetch(&spliceway, &origin.random_blob(seed, MIB));
    }
    eventually("the cache within its size", || (held(&spliceway) <= 4 * MIB as u64).then_some(()));
    assert_eq!(paths.iter().map(|path| path.exists()).collect::<Vec<_>>(), [true, true, false, false]);
    assert!(spliceway.is_published(&digest), "a manifest of a pinned repository is evicted");

    // Without the pin it is what was used longest ago.
    spliceway.reload(|setup| {
        setup.registry("pin", Vec::<String>::new()).registry("max_size", "1MiB");
    });
    eventually("what was pinned to go", || (!paths[0].exists() && !paths[1].exists()).then_some(()));
}

#[test]
fn evicted_bytes_count_until_the_last_reader_has_them() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.registry("min_free", 0).registry("max_size", "20MiB").server("stall_timeout", "1h");
        setup.origin(&origin);
    });
    let blob = origin.random_blob(1, 16 * MIB);
    let reader = slow_reader(&spliceway, &blob);
    used(&spliceway.blob_path(&blob.digest), 1000);
    for seed in 2..8 {
        fetch(&spliceway, &origin.random_blob(seed, MIB));
    }
    eventually("the oldest to go", || (!spliceway.is_published(&blob.digest)).then_some(()));
    let departing = |bytes| {
        spliceway.wait_metric("spliceway_departing_bytes", &[KEPT], |departing| is(departing, bytes));
    };
    departing(blob.len());
    assert!(is(spliceway.metric("spliceway_evicted_bytes_total", &[]), 0), "read and free at once");
    let taken = held(&spliceway) + blob.len();
    spliceway.wait_metric("spliceway_stored_bytes", &[KEPT], |bytes| is(bytes, taken));
    // One large blob made all the room that was needed: nothing else goes in its place.
    assert!(
        is(spliceway.metric("spliceway_evicted_blobs_total", &[]), 1),
        "evicted for the same bytes twice"
    );

    let late = reader.exchange("GET").expect("a head").compare(&blob.bytes);
    assert!(late.same && late.end == End::Complete, "{late:?}");
    departing(0);
    spliceway.wait_metric("spliceway_evicted_bytes_total", &[], |bytes| is(bytes, blob.len()));
    spliceway.wait_metric("spliceway_stored_bytes", &[KEPT], |bytes| is(bytes, held(&spliceway)));
}

#[test]
fn full_disk_makes_room_for_what_comes_next() {
    let disk = SmallDisk::mount("8m");
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.data(disk.path()).registry("min_free", 0);
        setup.origin(&origin);
    });
    let old = origin.random_blob(1, MIB);
    let old = fetch(&spliceway, &old);
    used(&old, 1000);
    for seed in 2..20 {
        // Whether there is room for it or not.
        let blob = origin.random_blob(seed, MIB);
        get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
    }
    eventually("the oldest to go", || (!old.exists()).then_some(()));
    let last = origin.random_blob(99, MIB);
    eventually("room for another one", || {
        get(spliceway.addr(), &last.path).expect(200).expect_body(&last.bytes);
        spliceway.is_published(&last.digest).then_some(())
    });
    spliceway.assert_store_is_right();
}

#[test]
fn processes_on_one_directory_evict_together_and_let_go_of_what_the_other_removed() {
    let origin = Origin::start();
    let first = Spliceway::start(|setup| {
        setup.registry("min_free", 0).registry("max_size", "8MiB").origin(&origin);
    });
    let second = first.sibling(|_| ());
    let deleted = |of: &Spliceway| {
        let open = entries(Path::new(&format!("/proc/{}/fd", of.pid())));
        let targets = open.into_iter().filter_map(|fd| fs::read_link(fd).ok());
        targets.filter(|target| target.to_string_lossy().ends_with("/data (deleted)")).count()
    };
    // Both have these open, as their next request may come.
    let blobs: Vec<_> = (0..4).map(|seed| origin.random_blob(seed, MIB)).collect();
    for blob in &blobs {
        fetch(&first, blob);
        get(second.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
    }
    thread::scope(|scope| {
        for (process, seeds) in [(&first, 100..120), (&second, 200..220)] {
            let origin = &origin;
            scope.spawn(move || {
                for seed in seeds {
                    let blob = origin.random_blob(seed, MIB);
                    get(process.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
                }
            });
        }
    });
    eventually("the cache within its size", || {
        let held = held(&first);
        (held > 0 && held <= 8 * MIB as u64).then_some(())
    });
    assert!(held(&first) >= 4 * MIB as u64, "the same bytes were evicted twice");
    eventually("files without a name to be closed", || {
        (deleted(&first) + deleted(&second) == 0).then_some(())
    });
    for process in [&first, &second] {
        process.wait_metric("spliceway_departing_bytes", &[KEPT], |bytes| is(bytes, 0));
    }
    first.assert_store_is_right();
}

/// A cache of `count` blobs of `len` bytes, made by hand. Their sum.
fn tree(cache: &Path, count: usize, len: usize) -> u64 {
    let mut bytes = noise(7, len);
    for n in 0..count as u64 {
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        let digest = sha256(&bytes);
        let hex = hex(&digest);
        let directory = cache.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex);
        fs::create_dir_all(&directory).expect("our own directory");
        fs::write(directory.join("data"), &bytes).expect("our own directory");
    }
    (count * len) as u64
}

#[test]
fn sum_is_exact_after_a_kill_during_eviction() {
    let origin = Origin::start();
    let mut spliceway = Spliceway::start(|setup| {
        setup.registry("min_free", 0).origin(&origin);
    });
    spliceway.stop();
    let (count, len) = (3000, 4096);
    let sum = tree(&spliceway.data().join("cache"), count, len);
    for part in [4, 3, 2] {
        let most = sum / 5 * part;
        spliceway.restart(|setup| {
            setup.registry("max_size", i64::try_from(most.max(MIB as u64)).expect("small"));
        });
        eventually("eviction to begin", || (held(&spliceway) < sum / 5 * (part + 1)).then_some(()));
        spliceway.kill9();
        spliceway.restart(|setup| {
            setup.registry("max_size", "1GiB");
        });
        let left = held(&spliceway);
        spliceway.wait_metric("spliceway_stored_bytes", &[KEPT], |bytes| is(bytes, left));
        assert_eq!(held(&spliceway), left);
        spliceway.stop();
    }
}

#[test]
fn large_tree_is_counted_while_the_server_answers() {
    let disk = SmallDisk::mount("1000m");
    let origin = Origin::start();
    let (count, len) = (100_000, 64);
    let sum = tree(&disk.path().join("cache"), count, len);
    let spliceway = Spliceway::start(|setup| {
        setup.data(disk.path()).registry("min_free", 0);
        setup.origin(&origin);
    });
    // It is ready and serves; a fill that ends meanwhile counts once.
    let blob = origin.random_blob(1, MIB);
    get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
    assert!(
        !is(spliceway.metric("spliceway_stored_bytes", &[KEPT]), sum),
        "all was counted before it was ready"
    );
    spliceway.wait_published(&blob.digest);
    let all = sum + blob.len();
    spliceway.wait_metric("spliceway_stored_bytes", &[KEPT], |bytes| is(bytes, all));
    thread::sleep(Duration::from_millis(300));
    assert!(is(spliceway.metric("spliceway_stored_bytes", &[KEPT]), all));
}

#[test]
fn what_a_push_took_over_is_not_evicted_for_free_space() {
    let disk = SmallDisk::mount("16m");
    let origin = Origin::start();
    let mut spliceway = Spliceway::start(|setup| {
        setup.data(disk.path()).registry("min_free", 0);
        setup.origin(&origin);
    });
    let [both, one] = [1, 2].map(|seed| fetch(&spliceway, &origin.random_blob(seed, 2 * MIB)));
    spliceway.stop();
    // The same file in both trees: its bytes stay whatever happens to one name.
    let local = spliceway.data().join("local/taken");
    fs::create_dir_all(local.parent().expect("a parent")).expect("our own directory");
    fs::hard_link(&both, &local).expect("one filesystem");
    used(&both, 1000);
    used(&one, 10);
    spliceway.restart(|setup| {
        setup.registry("min_free", "13MiB");
    });
    eventually("what takes space of its own to go", || (!one.exists()).then_some(()));
    assert!(both.exists(), "evicted for nothing");
}
