//! Ranges (RFC 9110 section 14): one, several, from the end, open, unsatisfiable, malformed.

use std::thread;

use super::{Fixture, GATE, LEN};
use crate::support::client::{Answer, End, Request};
use crate::support::origin::{Blob, Origin};
use crate::support::plan::{Gate, Plan};
use crate::support::process::Spliceway;
use crate::support::{MIB, eventually};

enum Expected {
    Whole,
    Parts(Vec<(u64, u64)>),
    Unsatisfiable,
    Refused,
}

/// `Range` values on a blob of `len` bytes and what RFC 9110 section 14.2 says to them. Ends are inclusive.
fn ranges(len: u64) -> Vec<(String, Expected)> {
    use Expected::{Parts, Refused, Unsatisfiable, Whole};
    let last = len - 1;
    let one = |first, last| Parts(vec![(first, last)]);
    let mut table = vec![
        ("bytes=0-0".into(), one(0, 0)),
        ("bytes=0-".into(), one(0, last)),
        ("bytes=10-19".into(), one(10, 19)),
        ("BYTES=10-19".into(), one(10, 19)),
        ("bytes= 10-19 ".into(), one(10, 19)),
        ("bytes=-1".into(), one(last, last)),
        ("bytes=-100000".into(), one(len - 100_000, last)),
        (format!("bytes=-{}", len * 2), one(0, last)),
        ("bytes=-99999999999999999999".into(), one(0, last)),
        (format!("bytes={last}-"), one(last, last)),
        (format!("bytes={}-99999999999999999999999", len - 5), one(len - 5, last)),
        (format!("bytes=1000000-{}", GATE + 5), one(1_000_000, GATE + 5)),
        (format!("bytes={}-{last}", len - 20), one(len - 20, last)),
        ("bytes=0-9,100-199".into(), Parts(vec![(0, 9), (100, 199)])),
        ("bytes=0-9, ,100-199,".into(), Parts(vec![(0, 9), (100, 199)])),
        ("bytes=100-199,0-9".into(), Parts(vec![(100, 199), (0, 9)])),
        (format!("bytes=0-9,{}-{},-10", GATE - 5, GATE + 5), {
            Parts(vec![(0, 9), (GATE - 5, GATE + 5), (len - 10, last)])
        }),
        (format!("bytes={len}-,5-6"), one(5, 6)),
        (format!("bytes={len}-"), Unsatisfiable),
        (format!("bytes={}-{}", len + 1, len + 2), Unsatisfiable),
        ("bytes=-0".into(), Unsatisfiable),
        ("bytes=99999999999999999999-".into(), Unsatisfiable),
        ("pages=1-2".into(), Whole),
    ];
    for malformed in ["bytes=", "bytes=a-b", "bytes=5-4", "bytes=-", "bytes=1", "bytes=1-2-3", "bytes=0x1-2"]
    {
        table.push((malformed.into(), Refused));
    }
    table
}

#[track_caller]
fn check_range(blob: &Blob, spec: &str, expected: &Expected, answer: &Answer) {
    let len = blob.len();
    let slice =
        |first: u64, last: u64| &blob.bytes[usize::try_from(first).unwrap()..=usize::try_from(last).unwrap()];
    assert_eq!(answer.end, End::Complete, "{spec}: {answer}");
    match expected {
        Expected::Whole => {
            assert_eq!(answer.status(), 200, "{spec}: {answer}");
            assert!(answer.body == *blob.bytes, "{spec}: {answer}");
        }
        Expected::Parts(parts) if parts.len() == 1 => {
            let (first, last) = parts[0];
            assert_eq!(answer.status(), 206, "{spec}: {answer}");
            let content_range = format!("bytes {first}-{last}/{len}");
            assert_eq!(answer.header("content-range"), Some(content_range.as_str()), "{spec}");
            assert!(answer.body == slice(first, last), "{spec}: wrong bytes: {answer}");
        }
        Expected::Parts(parts) => {
            assert_eq!(answer.status(), 206, "{spec}: {answer}");
            assert_eq!(answer.header("content-range"), None, "{spec}");
            let got = multipart(answer);
            let got: Vec<_> = got.iter().map(|(range, bytes)| (range.as_str(), &bytes[..])).collect();
            let ranges: Vec<_> = parts.iter().map(|(a, b)| format!("bytes {a}-{b}/{len}")).collect();
            let want: Vec<_> =
                ranges.iter().zip(parts).map(|(range, &(a, b))| (range.as_str(), slice(a, b))).collect();
            assert!(
                got == want,
                "{spec}: parts differ: {:?}",
                got.iter().map(|part| part.0).collect::<Vec<_>>()
            );
        }
        Expected::Unsatisfiable => {
            assert_eq!(answer.status(), 416, "{spec}: {answer}");
            let content_range = format!("bytes */{len}");
            assert_eq!(answer.header("content-range"), Some(content_range.as_str()), "{spec}");
            assert_eq!(answer.error_code(), "RANGE_INVALID", "{spec}");
        }
        // RFC 9110 lets a server ignore what is malformed or refuse it.
        Expected::Refused if answer.status() == 200 => assert!(answer.body == *blob.bytes, "{spec}"),
        Expected::Refused => {
            assert!([400, 416].contains(&answer.status()), "{spec}: {answer}");
            let value = spec.trim_start_matches("bytes=");
            assert!(answer.error_message().contains(value), "{spec}: the value is quoted: {answer}");
        }
    }
}

/// The parts of a multipart/byteranges body (RFC 9110 section 14.6): Content-Range and bytes.
#[track_caller]
fn multipart(answer: &Answer) -> Vec<(String, Vec<u8>)> {
    let kind = answer.header("content-type").expect("a multipart body has a type");
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap_or_else(|| panic!("{kind}"));
    let boundary = boundary.trim_matches('"');
    let (delimiter, end) = (format!("--{boundary}\r\n"), format!("--{boundary}--"));
    let mut parts = Vec::new();
    let mut rest = &answer.body[..];
    if let Some(after) = rest.strip_prefix(b"\r\n") {
        rest = after;
    }
    loop {
        if rest.starts_with(end.as_bytes()) {
            let tail = &rest[end.len()..];
            assert!(tail.is_empty() || tail == b"\r\n", "bytes behind the last boundary");
            return parts;
        }
        rest = rest.strip_prefix(delimiter.as_bytes()).expect("a boundary");
        let head_len = rest.windows(4).position(|window| window == b"\r\n\r\n").expect("a part's head");
        let head = std::str::from_utf8(&rest[..head_len]).expect("ASCII");
        let field = |name: &str| {
            head.split("\r\n").find_map(|line| {
                let (known, value) = line.split_once(':')?;
                known.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        assert_eq!(field("content-type").as_deref(), Some("application/octet-stream"));
        let range = field("content-range").expect("each part says its range");
        let (first, last) =
            range[6..].split_once('/').and_then(|(range, _)| range.split_once('-')).expect("a range");
        let len = last.parse::<usize>().expect("a number") + 1 - first.parse::<usize>().expect("a number");
        rest = &rest[head_len + 4..];
        parts.push((range, rest[..len].to_vec()));
        rest = rest[len..].strip_prefix(b"\r\n").expect("a line's end behind a part");
    }
}

#[test]
fn ranges_of_a_stored_blob() {
    let fixture = Fixture::stored();
    for (spec, expected) in ranges(LEN as u64) {
        let answer = fixture.send(&fixture.get().header("Range", &spec));
        check_range(&fixture.blob, &spec, &expected, &answer);
    }
}

#[test]
fn ranges_of_a_blob_being_filled() {
    let fixture = Fixture::growing();
    // What lies below the watermark comes while the fill stands still.
    for spec in ["bytes=0-9", "bytes=700000-700009", "bytes=5-9,20-29"] {
        let (_, expected) = match spec {
            "bytes=0-9" => (spec, Expected::Parts(vec![(0, 9)])),
            "bytes=700000-700009" => (spec, Expected::Parts(vec![(700_000, 700_009)])),
            _ => (spec, Expected::Parts(vec![(5, 9), (20, 29)])),
        };
        check_range(&fixture.blob, spec, &expected, &fixture.send(&fixture.get().header("Range", spec)));
    }
    let unsatisfiable = fixture.send(&fixture.get().range(&format!("{LEN}-")));
    check_range(&fixture.blob, "beyond", &Expected::Unsatisfiable, &unsatisfiable);
    thread::scope(|scope| {
        let waiting: Vec<_> = ranges(LEN as u64)
            .into_iter()
            .map(|(spec, expected)| {
                let exchange = fixture.get().header("Range", &spec);
                let fixture = &fixture;
                let reader = scope.spawn(move || fixture.send(&exchange));
                (spec, expected, reader)
            })
            .collect();
        fixture.gate.open();
        for (spec, expected, reader) in waiting {
            check_range(&fixture.blob, &spec, &expected, &reader.join().expect("the reader does not panic"));
        }
    });
    let whole = fixture.origin.seen("GET", &fixture.blob.path);
    assert_eq!(whole.len(), 1, "ranges near the watermark wait for it");
}

#[test]
fn too_many_ranges_are_not_obeyed() {
    let fixture = Fixture::stored();
    let many = (0..1000).map(|at| format!("{0}-{0}", at * 2)).collect::<Vec<_>>().join(",");
    let answer = fixture.send(&fixture.get().range(&many));
    assert!([200, 400, 416].contains(&answer.status()), "{answer}");
    // Neither are ranges that together are more than the blob.
    let overlapping = ["0-"; 20].join(",");
    let answer = fixture.send(&fixture.get().range(&overlapping));
    assert!(answer.body.len() < 2 * LEN, "{answer}");
}

#[test]
fn parts_near_and_far_of_a_blob_being_filled() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.registry("far_range", "1MiB").origin(&origin).set("stall_timeout", "60s");
    });
    let blob = origin.random_blob(1, 8 * MIB);
    let gate = Gate::new();
    origin.script("GET", &blob.path, [Plan::stall(GATE, &gate)]);
    let first = Request::get(&blob.path).open(spliceway.addr());
    gate.wait_reached();
    let len = blob.len();
    let spec = "bytes=0-9,5000000-5000999,100-109";
    let expected = Expected::Parts(vec![(0, 9), (5_000_000, 5_000_999), (100, 109)]);
    check_range(
        &blob,
        spec,
        &expected,
        &Request::get(&blob.path).header("Range", spec).send(spliceway.addr()),
    );
    let ranges: Vec<_> = origin
        .seen("GET", &blob.path)
        .iter()
        .filter_map(|seen| seen.header("range").map(str::to_owned))
        .collect();
    assert_eq!(ranges, ["bytes=5000000-5000999"], "the far part alone is asked for");
    // With a part of the tail the answer waits for the verdict.
    let spec = "bytes=5-9,6000000-6000009,-7";
    let expected = Expected::Parts(vec![(5, 9), (6_000_000, 6_000_009), (len - 7, len - 1)]);
    let mut waiting = Request::get(&blob.path).header("Range", spec).open(spliceway.addr());
    waiting.next(1).expect("the first part's head");
    gate.open();
    let answer = waiting.collect();
    assert_eq!(answer.end, End::Complete);
    first.collect().expect_body(&blob.bytes);
    spliceway.wait_published(&blob.digest);
    check_range(
        &blob,
        spec,
        &expected,
        &Request::get(&blob.path).header("Range", spec).send(spliceway.addr()),
    );
}

#[test]
fn parts_of_a_corrupt_blob_never_show_its_tail() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.registry("far_range", "1MiB").origin(&origin);
    });
    let blob = origin.random_blob(1, 8 * MIB);
    origin.always("GET", &blob.path, Plan::corrupt(7 * MIB as u64).rate(16 * MIB as u64));
    thread::scope(|scope| {
        for spec in ["0-9,-1", "-5,0-9", "0-9,5000000-5000999,8388600-"] {
            let request = Request::get(&blob.path).range(spec);
            let addr = spliceway.addr();
            scope.spawn(move || {
                let answer = request.send(addr);
                assert!(answer.status() != 206 || answer.end != End::Complete, "{spec}: {answer}");
            });
        }
    });
    assert!(!spliceway.is_published(&blob.digest));
}

#[test]
fn far_range_that_upstream_fails_waits_for_the_fill() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.registry("far_range", "1MiB").origin(&origin).set("stall_timeout", "60s").set("retries", 1);
    });
    for (seed, plan) in (1..).zip([
        Plan::status(503),
        Plan::cut(5_000_500),
        Plan::ignoring_range(),
        Plan::healthy().header("Content-Range", "bytes 0-999/1000"),
    ]) {
        let blob = origin.random_blob(seed, 8 * MIB);
        let gate = Gate::new();
        origin.script("GET", &blob.path, [Plan::stall(GATE, &gate)]);
        let first = Request::get(&blob.path).open(spliceway.addr());
        gate.wait_reached();
        origin.always("GET", &blob.path, plan);
        let far = Request::get(&blob.path).range("5000000-5000999").open(spliceway.addr());
        assert_eq!(far.status(), 206);
        eventually("the question upstream", || (origin.seen("GET", &blob.path).len() > 1).then_some(()));
        gate.open();
        first.collect().expect_body(&blob.bytes);
        far.collect().expect(206).expect_body(&blob.bytes[5_000_000..5_001_000]);
    }
}
