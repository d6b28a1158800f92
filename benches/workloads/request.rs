//! From a request's bytes to the head of its answer.
//!
//! `answer` is all that the registry does for a blob that it holds: route, link, file, preconditions, ranges, headers, the
//! log's and the metrics' part; the HTTP library's parsing and writing come on top, and the switch into the runtime, a few
//! hundred nanoseconds that only the bench needs, is in it.

use std::fmt;

use divan::{Bencher, black_box};
use http::header::{HeaderMap, HeaderValue, IF_NONE_MATCH, RANGE};
use spliceway::http::range;
use spliceway::oci::{Algorithm, Digest};
use spliceway::registry::Route;
use spliceway::server::framing::{Framing, Step};
use spliceway::server::head::{self, Limits, Scan};

use crate::worker::{Worker, blob_path, get};
use crate::{KIB, MIB, noise};

/// As the program sets them by default.
const LIMITS: Limits = Limits { bytes: 32 * KIB, fields: 100 };

/// Whose words a request is in.
#[derive(Clone, Copy, Debug)]
enum Words {
    Wrk,
    Containerd,
    /// With a bearer token of 1.5 KiB, as some token services give.
    Token,
}

impl Words {
    fn head(self) -> Vec<u8> {
        let path = blob_path(&digest(Algorithm::Sha256));
        let fields = match self {
            Self::Wrk => String::new(),
            Self::Containerd => {
                "User-Agent: containerd/1.7.24\r\nAccept: application/vnd.docker.image.rootfs.diff.tar.gzip, \
                 */*\r\nAccept-Encoding: zstd;q=1.0, gzip;q=0.8, deflate;q=0.5\r\n"
                    .to_owned()
            }
            Self::Token => {
                format!(
                    "User-Agent: docker/27.3.1\r\nAuthorization: Bearer {}\r\nAccept-Encoding: identity\r\n",
                    "x".repeat(1536)
                )
            }
        };
        format!("GET {path} HTTP/1.1\r\nHost: registry.example:5000\r\n{fields}\r\n").into_bytes()
    }
}

fn digest(algorithm: Algorithm) -> Digest {
    Digest::of(algorithm, b"layer")
}

/// Finding a head's end and judging it, before the HTTP library sees it.
#[divan::bench(args = [Words::Wrk, Words::Containerd, Words::Token])]
fn check_head(bencher: Bencher, words: Words) {
    let bytes = words.head();
    bencher.bench_local(|| {
        let Scan::Complete { len } = head::scan(black_box(&bytes), 0, LIMITS) else { panic!("a whole head") };
        head::check(&bytes[..len], LIMITS).expect("a good head")
    });
}

/// The same where it comes in pieces of 64 bytes.
#[divan::bench]
fn check_head_in_pieces(bencher: Bencher) {
    let bytes = Words::Containerd.head();
    bencher.bench_local(|| {
        let mut framing = Framing::new(LIMITS);
        let mut there = 0;
        loop {
            there = (there + 64).min(bytes.len());
            match framing.step(black_box(&bytes[..there])) {
                Step::More => {}
                Step::Head(len, head) => break (len, head),
                step => panic!("{step:?} of a good head"),
            }
        }
    });
}

/// What a path asks for.
#[divan::bench]
fn find_route(bencher: Bencher) {
    let path = blob_path(&digest(Algorithm::Sha256));
    bencher.bench_local(|| Route::parse(black_box(&path)).is_ok());
}

#[divan::bench(args = [Algorithm::Sha256, Algorithm::Sha512])]
fn parse_digest(bencher: Bencher, algorithm: Algorithm) {
    let text = digest(algorithm).to_string();
    bencher.bench_local(|| black_box(&text).parse::<Digest>().expect("a digest"));
}

#[divan::bench(args = [Algorithm::Sha256, Algorithm::Sha512])]
fn print_digest(bencher: Bencher, algorithm: Algorithm) {
    let digest = digest(algorithm);
    bencher.bench_local(|| black_box(&digest).to_string());
}

/// Reading a Range field, and finding out what it means in a layer of 256 MiB.
#[divan::bench(args = [1, 3, 64])]
fn parse_ranges(bencher: Bencher, count: usize) {
    let specs: Vec<_> =
        (0..count).map(|number| format!("{}-{}", number << 20, (number << 20) + 999)).collect();
    let field = format!("bytes={}", specs.join(", ")).into_bytes();
    bencher.bench_local(|| {
        let specs = range::parse(black_box(&field)).expect("a good field").expect("of bytes");
        range::select(&specs, 256 << 20)
    });
}

/// What is asked of a blob that is held.
#[derive(Clone, Copy)]
enum Asked {
    /// In memory.
    Small,
    /// In a file.
    Large,
    Range,
    ThreeRanges,
    /// With the entity tag that it has.
    NotModified,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Small => "whole 4 KiB",
            Self::Large => "whole 1 MiB",
            Self::Range => "range of 64 KiB",
            Self::ThreeRanges => "3 ranges of 16 KiB",
            Self::NotModified => "not modified",
        })
    }
}

/// The registry's part of a hit: from a parsed head to the answer's head and a body ready to be sent.
#[divan::bench(
    args = [Asked::Small, Asked::Large, Asked::Range, Asked::ThreeRanges, Asked::NotModified],
    min_time = 0.2,
)]
fn answer(bencher: Bencher, asked: Asked) {
    let worker = Worker::alone();
    let digest = worker.hold(&noise(if matches!(asked, Asked::Small) { 4 * KIB } else { MIB }));
    let (field, status) = match asked {
        Asked::Small | Asked::Large => (None, 200),
        Asked::Range => (Some((RANGE, "bytes=65536-131071".to_owned())), 206),
        Asked::ThreeRanges => (Some((RANGE, "bytes=0-16383,65536-81919,262144-278527".to_owned())), 206),
        Asked::NotModified => (Some((IF_NONE_MATCH, format!("\"{digest}\""))), 304),
    };
    let fields: HeaderMap =
        field.into_iter().map(|(name, value)| (name, HeaderValue::try_from(value).expect("text"))).collect();
    let head = get(&digest, fields);
    bencher.with_inputs(|| head.clone()).bench_local_values(|head| {
        let response = worker.block_on(worker.respond(head));
        assert_eq!(response.status(), status);
        response
    });
}
