//! An upstream that stumbles, lies or is gone: what the client gets, what is on disk afterwards, and what the
//! upstream was asked.

use std::thread;
use std::time::Duration;

use crate::support::client::{Answer, End, Request, get};
use crate::support::origin::{Blob, Origin};
use crate::support::plan::{Gate, Plan};
use crate::support::process::Spliceway;
use crate::support::{KIB, MIB, noise};

/// Not a multiple of anything, and several times what is held back from readers.
const LEN: usize = 3 * MIB + 12_345;

/// Where a break is tried: at the ends, around sizes of pages, buffers and the tail held back, and in between.
fn offsets(len: u64) -> Vec<u64> {
    let mib = MIB as u64;
    vec![0, 1, 4096, 65_535, 65_536, mib - 1, mib, 2 * mib + 7, len - mib - 1, len - mib, len - 1]
}

#[track_caller]
fn assert_served(spliceway: &Spliceway, blob: &Blob, answer: Answer) {
    answer.expect(200).expect_body(&blob.bytes);
    spliceway.wait_published(&blob.digest);
    spliceway.assert_store_is_right();
}

/// Nothing is under the digest's name, and a healthy upstream is all that the next request needs.
#[track_caller]
fn assert_not_published_then_recovers(spliceway: &Spliceway, origin: &Origin, blob: &Blob) {
    assert!(!spliceway.is_published(&blob.digest), "something is published that upstream never sent whole");
    origin.heal();
    assert_served(spliceway, blob, get(spliceway.addr(), &blob.path));
}

/// Runs `plan` at every offset, each with a blob of its own; the answer must be right with exactly two requests
/// upstream, the second for what was missing.
fn break_is_invisible(io_uring: Option<&str>, plan: fn(u64) -> Plan) {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.origin(&origin);
        if let Some(mode) = io_uring {
            setup.io_uring(mode);
        }
    });
    thread::scope(|scope| {
        for (seed, offset) in (0..).zip(offsets(LEN as u64)) {
            let (origin, spliceway) = (&origin, &spliceway);
            scope.spawn(move || {
                let blob = origin.random_blob(seed, LEN);
                origin.script("GET", &blob.path, [plan(offset)]);
                get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
                spliceway.wait_published(&blob.digest);
                let seen = origin.seen("GET", &blob.path);
                assert_eq!(seen.len(), 2, "broken at {offset}");
                assert_eq!(seen[0].header("range"), None);
                let Some(range) = seen[1].header("range") else {
                    assert_eq!(offset, 0, "a break at {offset} makes the transfer start anew");
                    return;
                };
                let from: u64 = range
                    .strip_prefix("bytes=")
                    .and_then(|range| range.strip_suffix('-'))
                    .and_then(|from| from.parse().ok())
                    .unwrap_or_else(|| panic!("resumed with {range:?}"));
                // A reset may overtake bytes that were sent before it.
                assert!(from <= offset, "resumed at {from} after a break at {offset}");
                let etag = format!("\"{}\"", blob.digest);
                assert_eq!(seen[1].header("if-range"), Some(etag.as_str()));
                spliceway.wait_log(&[&blob.digest, &from.to_string()]);
            });
        }
    });
    spliceway.assert_store_is_right();
}

#[test]
fn connection_closed_at_any_offset_is_invisible() {
    break_is_invisible(None, Plan::cut);
}

#[test]
fn connection_closed_at_any_offset_is_invisible_without_io_uring() {
    break_is_invisible(Some("off"), Plan::cut);
}

#[test]
fn connection_reset_at_any_offset_is_invisible() {
    break_is_invisible(None, Plan::reset);
}

#[test]
fn breaks_in_a_row_are_invisible() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let blob = origin.random_blob(1, LEN);
    let breaks = [0, 100_000, 100_001, 2_000_000].map(Plan::cut);
    origin.script("GET", &blob.path, breaks);
    assert_served(&spliceway, &blob, get(spliceway.addr(), &blob.path));
    assert_eq!(origin.seen("GET", &blob.path).len(), 5);
}

#[test]
fn stall_is_overcome_on_a_new_connection() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.origin(&origin).set("stall_timeout", "1s").set("header_timeout", "1s");
    });
    let blobs = [origin.random_blob(1, LEN), origin.random_blob(2, LEN)];
    // One stalls in its body, the other before its head.
    origin.script("GET", &blobs[0].path, [Plan::stall(MIB as u64, &Gate::new())]);
    origin.script("GET", &blobs[1].path, [Plan::delayed(&Gate::new())]);
    for blob in &blobs {
        assert_served(&spliceway, blob, get(spliceway.addr(), &blob.path));
        assert_eq!(origin.seen("GET", &blob.path).len(), 2);
        spliceway.wait_log(&[&blob.digest]);
    }
    let resumed = origin.seen("GET", &blobs[0].path)[1].header("range").map(str::to_owned);
    assert_eq!(resumed, Some(format!("bytes={MIB}-")));
}

#[test]
fn corruption_anywhere_reaches_nobody_as_a_whole_body() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    thread::scope(|scope| {
        for (seed, offset) in (0..).zip(offsets(LEN as u64)) {
            let (origin, spliceway) = (&origin, &spliceway);
            scope.spawn(move || {
                let blob = origin.random_blob(seed, LEN);
                origin.always("GET", &blob.path, Plan::corrupt(offset));
                get(spliceway.addr(), &blob.path).expect_failure();
                // The tail is held back whatever part of it is asked for.
                Request::get(&blob.path).range("-1").send(spliceway.addr()).expect_failure();
                assert!(!spliceway.is_published(&blob.digest));
                spliceway.wait_log(&[&blob.digest, "sent something else"]);
            });
        }
    });
    assert!(spliceway.published().is_empty());
    origin.heal();
    for seed in 0..3 {
        let blob = origin.random_blob(seed, LEN);
        assert_served(&spliceway, &blob, get(spliceway.addr(), &blob.path));
    }
}

#[test]
fn body_that_breaks_ends_in_a_reset() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    // An orderly close is what a proxy or a lenient client may take for an end, above all behind a chunked body.
    for (seed, plan) in (0..).zip([Plan::corrupt(LEN as u64 - 1), Plan::corrupt(LEN as u64 - 1).chunked()]) {
        let blob = origin.random_blob(seed, LEN);
        origin.always("GET", &blob.path, plan);
        let answer = get(spliceway.addr(), &blob.path);
        assert_eq!((answer.status(), answer.end), (200, End::Reset));
    }
    // One that ends as it should does not.
    origin.heal();
    let blob = origin.random_blob(9, LEN);
    let answer = Request::get(&blob.path).header("Connection", "close").open(spliceway.addr());
    assert_eq!(answer.into_connection().drain(), (Vec::new(), End::Complete));
}

#[test]
fn small_corrupt_blob_is_an_error_not_a_body() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    for len in [1, 100, 4096, 64 * KIB] {
        let blob = origin.random_blob(len as u64, len);
        origin.always("GET", &blob.path, Plan::corrupt(len as u64 - 1));
        let answer = get(spliceway.addr(), &blob.path);
        answer.expect_failure();
        assert!(
            answer.status() >= 500,
            "a blob that is held back whole is answered after its verdict: {answer}"
        );
        assert_not_published_then_recovers(&spliceway, &origin, &blob);
    }
}

#[test]
fn other_content_of_any_length_is_refused() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let plans = [
        ("as long", Plan::instead(noise(99, LEN))),
        ("longer", Plan::instead(noise(99, LEN + 1))),
        ("shorter", Plan::instead(noise(99, LEN - 1))),
        ("empty", Plan::instead(Vec::new())),
    ];
    for (seed, (name, plan)) in (0..).zip(plans) {
        let blob = origin.random_blob(seed, LEN);
        origin.always("GET", &blob.path, plan.clone());
        get(spliceway.addr(), &blob.path).expect_failure();
        origin.always("GET", &blob.path, plan.chunked());
        get(spliceway.addr(), &blob.path).expect_failure();
        eprintln!("{name}: refused");
        assert_not_published_then_recovers(&spliceway, &origin, &blob);
    }
}

#[test]
fn wrong_content_length_is_refused() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.origin(&origin).set("retries", 2);
    });
    for (seed, claim) in (0..).zip([LEN - 1, LEN / 2, LEN + 1, LEN + MIB, 2 * LEN]) {
        let blob = origin.random_blob(seed, LEN);
        origin.always("GET", &blob.path, Plan::healthy().claim_length(claim as u64));
        get(spliceway.addr(), &blob.path).expect_failure();
        let seen = origin.seen("GET", &blob.path).len();
        assert!(seen <= 4, "a hopeless transfer is tried {seen} times");
        assert_not_published_then_recovers(&spliceway, &origin, &blob);
    }
}

#[test]
fn unknown_length_is_served_and_resumed() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    for (seed, len) in [(1, 0), (2, 1), (3, MIB), (4, MIB + 1), (5, LEN)] {
        let chunked = origin.random_blob(seed, len);
        origin.script("GET", &chunked.path, [Plan::healthy().chunked()]);
        assert_served(&spliceway, &chunked, get(spliceway.addr(), &chunked.path));
        let until_close = origin.random_blob(seed + 100, len);
        origin.script("GET", &until_close.path, [Plan::healthy().until_close()]);
        assert_served(&spliceway, &until_close, get(spliceway.addr(), &until_close.path));
    }
    // A chunked body that breaks off is visibly broken, and taken up again where it broke.
    let blob = origin.random_blob(50, LEN);
    origin.script("GET", &blob.path, [Plan::cut(2_000_000).chunked()]);
    assert_served(&spliceway, &blob, get(spliceway.addr(), &blob.path));
    let resumed = origin.seen("GET", &blob.path)[1].header("range").map(str::to_owned);
    assert_eq!(resumed.as_deref(), Some("bytes=2000000-"));
    // One that ends with its connection looks whole; only the digest tells.
    let blob = origin.random_blob(51, LEN);
    origin.always("GET", &blob.path, Plan::cut(2_000_000).until_close());
    get(spliceway.addr(), &blob.path).expect_failure();
    assert_not_published_then_recovers(&spliceway, &origin, &blob);
}

#[test]
fn retry_after_is_waited_for() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let blob = origin.random_blob(1, LEN);
    origin.script("GET", &blob.path, [Plan::status(429).header("Retry-After", "1")]);
    assert_served(&spliceway, &blob, get(spliceway.addr(), &blob.path));
    let seen = origin.seen("GET", &blob.path);
    assert_eq!(seen.len(), 2);
    let waited = seen[1].at - seen[0].at;
    assert!(waited >= Duration::from_secs(1), "came back after {waited:?}");
}

#[test]
fn long_retry_after_is_passed_on_at_once() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let blob = origin.random_blob(1, LEN);
    origin.always("GET", &blob.path, Plan::status(429).header("Retry-After", "3600"));
    let answer = get(spliceway.addr(), &blob.path);
    answer.expect_failure();
    assert_eq!(origin.seen("GET", &blob.path).len(), 1, "an upstream that says 3600 s is not asked again");
    assert_not_published_then_recovers(&spliceway, &origin, &blob);
}

#[test]
fn server_errors_are_retried_a_bounded_number_of_times() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.origin(&origin).set("retries", 2);
    });
    let blob = origin.random_blob(1, LEN);
    origin.script("GET", &blob.path, [Plan::status(500), Plan::status(503)]);
    assert_served(&spliceway, &blob, get(spliceway.addr(), &blob.path));
    assert_eq!(origin.seen("GET", &blob.path).len(), 3);

    let blob = origin.random_blob(2, LEN);
    origin.always("GET", &blob.path, Plan::status(502));
    get(spliceway.addr(), &blob.path).expect_failure();
    assert_eq!(origin.seen("GET", &blob.path).len(), 3);
    assert!(!spliceway.fill_path(&blob.digest).join("data").exists(), "a fill without a byte leaves nothing");
    assert_not_published_then_recovers(&spliceway, &origin, &blob);
}

#[test]
fn absent_blob_is_404_and_leaves_nothing() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let digest = crate::support::sha256(b"nobody has this");
    let path = format!("/v2/team/app/blobs/{digest}");
    let answer = get(spliceway.addr(), &path).expect(404);
    assert_eq!(answer.error_code(), "BLOB_UNKNOWN");
    assert!(
        answer.error_message().contains(&digest)
            || answer.json()["errors"][0]["detail"].to_string().contains(&digest)
    );
    assert!(!spliceway.fill_path(&digest).exists());
    Request::head(&path).send(spliceway.addr()).expect(404);
}

#[test]
fn redirect_to_another_host_does_not_take_the_password_along() {
    let (origin, storage) = (Origin::start(), Origin::start());
    let basic = format!("Basic {}", data_encoding::BASE64.encode(b"alice:secret"));
    origin.require_authorization(&basic);
    let spliceway = Spliceway::start(|setup| {
        setup.origin(&origin).set("username", "alice").set("password", "secret");
    });
    let blob = origin.random_blob(1, LEN);
    storage.blob(blob.bytes.clone());
    let elsewhere = format!("{}/v2/store/blobs/{}?signature=x%2Fy", storage.url(), blob.digest);
    origin.always("GET", &blob.path, Plan::redirect(&elsewhere));
    // It breaks there as well.
    let stored = format!("/v2/store/blobs/{}", blob.digest);
    storage.script("GET", &stored, [Plan::cut(1_500_000)]);
    assert_served(&spliceway, &blob, get(spliceway.addr(), &blob.path));
    let seen = storage.seen("GET", &stored);
    assert_eq!(seen.len(), 2);
    for request in &seen {
        assert_eq!(request.header("authorization"), None, "the password went to another host");
        assert_eq!(request.head.query, "signature=x%2Fy", "the signed address is used as it is");
    }
    assert_eq!(seen[1].header("range"), Some("bytes=1500000-"));
}

#[test]
fn redirects_are_followed_a_bounded_number_of_times() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.origin(&origin).set("retries", 0);
    });
    let blob = origin.random_blob(1, LEN);
    let relative = format!("/v2/moved/blobs/{}", blob.digest);
    origin.script("GET", &blob.path, [Plan::redirect(&relative)]);
    assert_served(&spliceway, &blob, get(spliceway.addr(), &blob.path));

    let blob = origin.random_blob(2, LEN);
    origin.always("GET", &blob.path, Plan::redirect(&blob.path));
    get(spliceway.addr(), &blob.path).expect_failure();
    let seen = origin.seen("GET", &blob.path).len();
    assert!(seen <= 20, "a circle of redirects is followed {seen} times");
}

#[test]
fn ignored_range_is_coped_with() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let blob = origin.random_blob(1, LEN);
    origin.script("GET", &blob.path, [Plan::cut(1_500_000), Plan::ignoring_range()]);
    assert_served(&spliceway, &blob, get(spliceway.addr(), &blob.path));
    assert_eq!(origin.seen("GET", &blob.path).len(), 2);
    spliceway.wait_log(&[&blob.digest, "ignores Range"]);
}

#[test]
fn changed_entity_tag_with_the_same_content_is_coped_with() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let blob = origin.random_blob(1, LEN);
    origin.script("GET", &blob.path, [Plan::cut(1_500_000), Plan::healthy().header("ETag", "\"other\"")]);
    assert_served(&spliceway, &blob, get(spliceway.addr(), &blob.path));
    spliceway.wait_log(&[&blob.digest, "entity tag changed"]);
}

#[test]
fn content_that_changes_in_mid_transfer_is_refused() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let blob = origin.random_blob(1, LEN);
    let other = Plan::instead(noise(9, LEN)).header("ETag", "\"other\"");
    origin.script("GET", &blob.path, [Plan::cut(1_500_000), other]);
    get(spliceway.addr(), &blob.path).expect_failure();
    assert_not_published_then_recovers(&spliceway, &origin, &blob);
}

#[test]
fn bytes_from_another_place_are_not_taken() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    for (seed, header) in (0..).zip([
        format!("bytes 1600000-{}/{LEN}", LEN - 1),
        format!("bytes 1500000-{}/{}", LEN - 1, LEN + 1),
        "bytes what-ever/x".to_owned(),
        "bytes 5-4/3".to_owned(),
        String::new(),
    ]) {
        let blob = origin.random_blob(seed, LEN);
        let lying = Plan::healthy().header("Content-Range", &header);
        origin.script("GET", &blob.path, [Plan::cut(1_500_000), lying]);
        // An answer that does not fit is a stumble like any other.
        assert_served(&spliceway, &blob, get(spliceway.addr(), &blob.path));
        assert_eq!(origin.seen("GET", &blob.path).len(), 3, "{header:?}");
    }
    // One that claims to begin where it could have is found out by the digest alone.
    let blob = origin.random_blob(99, LEN);
    let lying = Plan::healthy().header("Content-Range", &format!("bytes 0-{}/{LEN}", LEN - 1_500_001));
    origin.script("GET", &blob.path, [Plan::cut(1_500_000), lying]);
    let answer = get(spliceway.addr(), &blob.path);
    if answer.end == End::Complete {
        assert_served(&spliceway, &blob, answer);
    } else {
        assert_not_published_then_recovers(&spliceway, &origin, &blob);
    }
    assert!(!spliceway.log().contains("panicked"));
}

#[test]
fn slow_drip_is_not_a_stall() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.origin(&origin).set("stall_timeout", "1s");
    });
    let blob = origin.random_blob(1, 200 * KIB);
    origin.script("GET", &blob.path, [Plan::healthy().rate(100 * KIB as u64)]);
    assert_served(&spliceway, &blob, get(spliceway.addr(), &blob.path));
    assert_eq!(origin.seen("GET", &blob.path).len(), 1);
}

#[test]
fn upstream_that_is_gone_is_an_error_until_it_is_back() {
    let mut origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.origin(&origin).set("retries", 1);
    });
    let blob = origin.random_blob(1, LEN);
    origin.stop();
    let answer = get(spliceway.addr(), &blob.path);
    answer.expect_failure();
    assert!((502..=504).contains(&answer.status()), "{answer}");
    origin.restart();
    assert_served(&spliceway, &blob, get(spliceway.addr(), &blob.path));
    // What is held needs no upstream.
    origin.stop();
    assert_served(&spliceway, &blob, get(spliceway.addr(), &blob.path));
}

#[test]
fn mirrors_are_asked_in_order_and_take_over_in_mid_blob() {
    let (mut gone, mirror, origin) = (Origin::start(), Origin::start(), Origin::start());
    gone.stop();
    let spliceway = Spliceway::start(|setup| {
        setup.origin(&origin).set("mirrors", vec![gone.url(), mirror.url()]);
    });
    let blob = origin.random_blob(1, LEN);
    mirror.blob(blob.bytes.clone());
    assert_served(&spliceway, &blob, get(spliceway.addr(), &blob.path));
    assert_eq!(mirror.seen("GET", &blob.path).len(), 1);
    assert_eq!(origin.seen("GET", &blob.path).len(), 0, "a mirror that has it spares the origin");

    let blob = origin.random_blob(2, LEN);
    assert_served(&spliceway, &blob, get(spliceway.addr(), &blob.path));
    assert_eq!(origin.seen("GET", &blob.path).len(), 1, "what a mirror does not have comes from the origin");

    let blob = origin.random_blob(3, LEN);
    mirror.blob(blob.bytes.clone());
    mirror.script("GET", &blob.path, [Plan::cut(1_500_000)]);
    assert_served(&spliceway, &blob, get(spliceway.addr(), &blob.path));
    let asked: Vec<_> = [&mirror, &origin]
        .iter()
        .flat_map(|host| host.seen("GET", &blob.path))
        .filter_map(|seen| seen.header("range").map(str::to_owned))
        .collect();
    assert_eq!(asked, ["bytes=1500000-"], "the rest comes once, from the next one");
    assert_eq!(origin.seen("GET", &blob.path).len(), 1);
}
