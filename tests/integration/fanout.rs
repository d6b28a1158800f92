//! Many readers of one fill, at their own times, speeds and ranges: every complete body is right, and upstream is
//! asked once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::client::{Connection, End, Request, get};
use crate::support::origin::{Blob, Origin};
use crate::support::plan::{Gate, Plan};
use crate::support::process::Spliceway;
use crate::support::{KIB, MIB, eventually};

const LEN: usize = 64 * MIB + 4321;
const READERS: usize = 64;
/// The origin's rate: the fill lasts about two seconds, which the readers' arrivals are spread over.
const RATE: u64 = 32 * MIB as u64;

/// What one reader does, by its number.
#[derive(Clone, Copy, Debug)]
enum Reader {
    Whole,
    /// A small receive buffer and pauses.
    Slow,
    /// Leaves after so many bytes.
    Leaves(u64),
    /// `first..end`, its spelling left to [`Reader::spec`].
    Part(u64, u64),
    Suffix(u64),
}

impl Reader {
    fn of(number: usize) -> Self {
        let len = LEN as u64;
        let mut rng = fastrand::Rng::with_seed(number as u64);
        match number % 8 {
            0..=2 => Self::Whole,
            3 => Self::Slow,
            4 => Self::Leaves(rng.u64(1..len)),
            5 | 6 => {
                let first = rng.u64(..len);
                Self::Part(first, rng.u64(first + 1..=len))
            }
            _ => Self::Suffix(rng.u64(1..len)),
        }
    }

    /// The range that is asked for and the bytes that are to come.
    fn spec(self) -> Option<(String, u64, u64)> {
        let len = LEN as u64;
        match self {
            Self::Whole | Self::Slow | Self::Leaves(_) => None,
            Self::Part(first, end) if end == len => Some((format!("{first}-"), first, len)),
            Self::Part(first, end) => Some((format!("{first}-{}", end - 1), first, end)),
            Self::Suffix(count) => Some((format!("-{count}"), len - count, len)),
        }
    }

    /// Reads; how it ended, and whether all that came was right.
    fn read(self, spliceway: &Spliceway, blob: &Blob) -> (End, bool) {
        let mut request = Request::get(&blob.path);
        let (mut first, mut end) = (0, LEN as u64);
        if let Some((spec, from, to)) = self.spec() {
            request = request.range(&spec);
            (first, end) = (from, to);
        }
        let connection = match self {
            Self::Slow => Connection::open_narrow(spliceway.addr()),
            _ => Connection::open(spliceway.addr()),
        };
        let Ok(mut exchange) = connection.request(spliceway.addr(), &request) else {
            return (End::Reset, true);
        };
        if exchange.status() >= 500 {
            return (End::Cut, true);
        }
        let status = if self.spec().is_some() { 206 } else { 200 };
        assert_eq!(exchange.status(), status, "{self:?}");
        let expected = &blob.bytes[usize::try_from(first).unwrap()..usize::try_from(end).unwrap()];
        let mut right = true;
        loop {
            let at = usize::try_from(exchange.received()).unwrap();
            if matches!(self, Self::Leaves(after) if at as u64 >= after) {
                return (End::Cut, right);
            }
            match exchange.next(256 * KIB) {
                Ok(bytes) => right &= expected.get(at..at + bytes.len()) == Some(&bytes[..]),
                Err(end) => return (end, right && (end != End::Complete || at == expected.len())),
            }
            if matches!(self, Self::Slow) && at % (4 * MIB) < 64 * KIB {
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// All readers at once on one blob; how many got a complete body.
fn crowd(spliceway: &Spliceway, blob: &Blob) -> usize {
    let complete = AtomicUsize::new(0);
    thread::scope(|scope| {
        for number in 0..READERS {
            let (spliceway, blob, complete) = (&spliceway, &blob, &complete);
            scope.spawn(move || {
                let reader = Reader::of(number);
                thread::sleep(Duration::from_millis(
                    fastrand::Rng::with_seed(number as u64 + 500).u64(..2000),
                ));
                let (end, right) = reader.read(spliceway, blob);
                assert!(right, "{reader:?} (number {number}) got wrong bytes, then {end:?}");
                if end == End::Complete {
                    complete.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    complete.into_inner()
}

fn readers_share_one_fill(io_uring: Option<&str>) {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.registry("far_range", "1GiB").origin(&origin);
        if let Some(mode) = io_uring {
            setup.io_uring(mode);
        }
    });
    let blob = origin.random_blob(1, LEN);
    origin.script("GET", &blob.path, [Plan::healthy().rate(RATE)]);
    let complete = crowd(&spliceway, &blob);
    assert_eq!(complete, READERS - READERS / 8, "all but those who left");
    assert_eq!(origin.all_seen().len(), 1, "{:?}", origin.all_seen());
    spliceway.wait_published(&blob.digest);
    spliceway.assert_store_is_right();
    assert!(!spliceway.fill_path(&blob.digest).join("data").exists(), "the fill is cleared away");
    let resident = spliceway.metric("process_resident_memory_bytes", &[]);
    assert!(resident < 100.0 * 1024.0 * 1024.0, "{resident} bytes resident");
}

#[test]
fn sixty_four_readers_share_one_fill() {
    readers_share_one_fill(None);
}

#[test]
fn sixty_four_readers_share_one_fill_without_io_uring() {
    readers_share_one_fill(Some("off"));
}

#[test]
fn far_ranges_of_a_crowd_are_right_and_the_whole_is_fetched_once() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.registry("far_range", "4MiB").origin(&origin);
    });
    let blob = origin.random_blob(1, LEN);
    origin.script("GET", &blob.path, [Plan::healthy().rate(RATE)]);
    let complete = crowd(&spliceway, &blob);
    assert_eq!(complete, READERS - READERS / 8, "all but those who left");
    let whole = origin.all_seen().iter().filter(|seen| seen.header("range").is_none()).count();
    assert_eq!(whole, 1);
    spliceway.wait_published(&blob.digest);
    spliceway.assert_store_is_right();
}

#[test]
fn nobody_in_a_crowd_gets_the_tail_of_a_corrupt_blob() {
    for far in ["1GiB", "4MiB"] {
        let origin = Origin::start();
        let spliceway = Spliceway::start(|setup| {
            setup.registry("far_range", far).origin(&origin);
        });
        let blob = origin.random_blob(1, LEN);
        origin.always("GET", &blob.path, Plan::corrupt(LEN as u64 - 2 * MIB as u64).rate(2 * RATE));
        // The corrupt byte lies before the tail: who asks for what does not contain it may see right bytes only, and
        // nobody sees the blob's end.
        thread::scope(|scope| {
            for number in 0..READERS {
                let (spliceway, blob) = (&spliceway, &blob);
                scope.spawn(move || {
                    let reader = Reader::of(number);
                    let to_the_end = reader.spec().is_none_or(|(_, _, end)| end == LEN as u64);
                    thread::sleep(Duration::from_millis(number as u64 * 15));
                    let (end, _) = reader.read(spliceway, blob);
                    assert!(!to_the_end || end != End::Complete, "{reader:?} got a complete body");
                });
            }
        });
        assert!(!spliceway.is_published(&blob.digest));
        spliceway.wait_log(&["sent something else"]);
        origin.heal();
        get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
    }
}

#[test]
fn client_that_leaves_does_not_stop_the_fill() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.origin(&origin).set("stall_timeout", "60s");
    });
    let blob = origin.random_blob(1, 8 * MIB);
    let gate = Gate::new();
    origin.script("GET", &blob.path, [Plan::stall(3 * MIB as u64, &gate)]);
    let mut only = Request::get(&blob.path).open(spliceway.addr());
    only.next(1000).expect("a beginning");
    drop(only);
    gate.open();
    spliceway.wait_published(&blob.digest);
    spliceway.assert_store_is_right();
    assert_eq!(origin.all_seen().len(), 1);
}

#[test]
fn client_that_stands_still_does_not_hold_the_fill_up() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let blob = origin.random_blob(1, 32 * MIB);
    let mut connection = Connection::open_narrow(spliceway.addr());
    connection.write(&Request::get(&blob.path).bytes(spliceway.addr())).expect("a request is written");
    spliceway.wait_published(&blob.digest);
    get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
    let late = connection.exchange("GET").expect("a head").compare(&blob.bytes);
    assert!(late.same && late.end == End::Complete && late.len == blob.len(), "{late:?}");
}

#[test]
fn different_blobs_are_filled_side_by_side() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.origin(&origin).set("stall_timeout", "60s");
    });
    let gate = Gate::new();
    let stuck = origin.random_blob(1, 4 * MIB);
    origin.script("GET", &stuck.path, [Plan::stall(MIB as u64, &gate)]);
    let waiting = Request::get(&stuck.path).open(spliceway.addr());
    gate.wait_reached();
    thread::scope(|scope| {
        for seed in 2..12 {
            let blob = origin.random_blob(seed, 2 * MIB);
            let spliceway = &spliceway;
            scope.spawn(move || get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes));
        }
    });
    gate.open();
    waiting.collect().expect_body(&stuck.bytes);
    eventually("the end of all fills", || {
        (spliceway.metric("spliceway_fills_in_flight", &[]) < 0.5).then_some(())
    });
}
