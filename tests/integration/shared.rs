//! Two processes on one data directory.

use std::thread;

use crate::support::client::{Request, get};
use crate::support::origin::Origin;
use crate::support::plan::{Gate, Plan};
use crate::support::process::Spliceway;
use crate::support::{MIB, eventually};

fn start(origin: &Origin) -> Spliceway {
    Spliceway::start(|setup| {
        setup.origin(origin).set("stall_timeout", "60s");
    })
}

#[test]
fn one_cold_blob_is_fetched_once_by_two_processes() {
    let origin = Origin::start();
    let first = start(&origin);
    let second = first.sibling(|_| ());
    let blob = origin.random_blob(1, 6 * MIB);
    let gate = Gate::new();
    origin.script("GET", &blob.path, [Plan::stall(4 * MIB as u64, &gate)]);
    thread::scope(|scope| {
        let of_first = scope.spawn(|| get(first.addr(), &blob.path));
        gate.wait_reached();
        // The follower's reader sees what the leader has got so far.
        let mut of_second = Request::get(&blob.path).open(second.addr());
        let mut body = Vec::new();
        of_second.read_to(2 * MIB as u64, &mut body).expect("what is there so far");
        gate.open();
        of_second.read_to(blob.len(), &mut body).expect("the rest");
        assert!(body == *blob.bytes);
        of_first.join().expect("the client does not panic").expect(200).expect_body(&blob.bytes);
    });
    assert_eq!(origin.seen("GET", &blob.path).len(), 1);
    first.wait_published(&blob.digest);
    first.assert_store_is_right();
    // What one brought, the other has.
    let before = origin.seen("GET", &blob.path).len();
    get(second.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
    assert_eq!(origin.seen("GET", &blob.path).len(), before);
}

#[test]
fn repository_is_asked_about_though_another_process_fills() {
    let origin = Origin::start();
    let first = start(&origin);
    let second = first.sibling(|_| ());
    let blob = origin.random_blob(1, 6 * MIB);
    let gate = Gate::new();
    origin.script("GET", &blob.path, [Plan::stall(4 * MIB as u64, &gate)]);
    let reader = Request::get(&blob.path).open(first.addr());
    gate.wait_reached();
    let (private, other) =
        (blob.path.replace("team/app", "private/app"), blob.path.replace("team/app", "other/app"));
    for method in ["HEAD", "GET"] {
        origin.always(method, &private, Plan::status(404));
    }
    get(second.addr(), &private).expect(404);
    let allowed = Request::get(&other).open(second.addr());
    get(second.addr(), &private).expect(404);
    gate.open();
    reader.collect().expect_body(&blob.bytes);
    allowed.collect().expect_body(&blob.bytes);
    assert_eq!((origin.seen("HEAD", &other).len(), origin.seen("GET", &other).len()), (1, 0));
}

#[test]
fn second_process_takes_over_when_the_first_is_killed() {
    let origin = Origin::start();
    for (seed, offset) in [(1, 0), (2, 100), (3, MIB), (4, 3 * MIB), (5, 6 * MIB - 1)] {
        let mut first = start(&origin);
        let second = first.sibling(|_| ());
        let blob = origin.random_blob(seed, 6 * MIB);
        origin.script("GET", &blob.path, [Plan::stall(offset as u64, &Gate::new())]);
        thread::scope(|scope| {
            let addr = first.addr();
            let path = &blob.path;
            let of_first = scope.spawn(move || {
                let mut connection = crate::support::client::Connection::open(addr);
                connection.write(&Request::get(path).bytes(addr)).expect("a request is written");
                connection.exchange("GET").map(crate::support::client::Exchange::collect)
            });
            eventually("the first process's request", || {
                (!origin.seen("GET", path).is_empty()).then_some(())
            });
            let of_second: Vec<_> = (0..3).map(|_| scope.spawn(|| get(second.addr(), &blob.path))).collect();
            let data = first.fill_path(&blob.digest).join("data");
            eventually("what was sent", || {
                (offset == 0 || std::fs::metadata(&data).is_ok_and(|data| data.len() == offset as u64))
                    .then_some(())
            });
            first.kill9();
            let lost = of_first.join().expect("the client does not panic");
            assert!(
                lost.is_err() || lost.is_ok_and(|answer| answer.end != crate::support::client::End::Complete)
            );
            for reader in of_second {
                reader.join().expect("the client does not panic").expect(200).expect_body(&blob.bytes);
            }
        });
        let seen = origin.seen("GET", &blob.path);
        assert_eq!(seen.len(), 2, "killed at {offset}");
        if offset > 0 {
            assert_eq!(seen[1].header("range"), Some(format!("bytes={offset}-").as_str()));
        }
        second.wait_published(&blob.digest);
        second.assert_store_is_right();
    }
}

#[test]
fn many_blobs_are_fetched_once_each_by_two_processes() {
    let origin = Origin::start();
    let first = start(&origin);
    let second = first.sibling(|_| ());
    let blobs: Vec<_> =
        (1..25).zip(1..).map(|(seed, size)| origin.random_blob(seed, 100_000 * size)).collect();
    thread::scope(|scope| {
        for blob in &blobs {
            for process in [&first, &second, &first, &second] {
                scope.spawn(|| get(process.addr(), &blob.path).expect(200).expect_body(&blob.bytes));
            }
        }
    });
    for blob in &blobs {
        assert_eq!(origin.seen("GET", &blob.path).len(), 1, "{}", blob.digest);
        first.wait_published(&blob.digest);
    }
    first.assert_store_is_right();
}

#[test]
fn corrupt_blob_fails_in_both_processes() {
    let origin = Origin::start();
    let first = start(&origin);
    let second = first.sibling(|_| ());
    let blob = origin.random_blob(1, 4 * MIB);
    let gate = Gate::new();
    origin.always("GET", &blob.path, Plan::corrupt(blob.len() - 1).gate(2 * MIB as u64, &gate));
    thread::scope(|scope| {
        let readers: Vec<_> = [&first, &second, &second]
            .map(|process| scope.spawn(|| get(process.addr(), &blob.path)))
            .into_iter()
            .collect();
        gate.wait_reached();
        gate.open();
        for reader in readers {
            reader.join().expect("the client does not panic").expect_failure();
        }
    });
    assert!(!first.is_published(&blob.digest));
    origin.heal();
    get(second.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
}
