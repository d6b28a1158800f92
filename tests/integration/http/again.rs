//! What is asked for again and again is answered without the HTTP library from the third time on, and the answers must not
//! differ: not on one connection, not on others, not in the log and the metrics, and not when things change.

use std::fs;
use std::net::SocketAddr;

use super::conditions::CONDITIONS;
use crate::support::client::{Answer, Connection, Request, get};
use crate::support::images::Image;
use crate::support::origin::Origin;
use crate::support::plan::Plan;
use crate::support::process::Spliceway;
use crate::support::{MIB, eventually};

/// As often as a request is sent on each of two connections, of which each worker has one.
const TIMES: usize = 4;

/// The answers to a request that is sent often, all of them the same but for the date; one of them.
fn settled(spliceway: &Spliceway, request: &Request) -> Answer {
    let mut pair = Pair::open(spliceway);
    let first = pair.ask(request).swap_remove(0);
    for _ in 1..TIMES {
        for again in pair.ask(request) {
            assert!(again.header("date").is_some() || first.header("date").is_none());
            assert!(again.comparable() == first.comparable(), "{again} is not {first}");
        }
    }
    first
}

/// Two connections, which go to two workers.
struct Pair {
    addr: SocketAddr,
    connections: Vec<Connection>,
}

impl Pair {
    fn open(spliceway: &Spliceway) -> Self {
        let addr = spliceway.addr();
        Self { addr, connections: (0..2).map(|_| Connection::open(addr)).collect() }
    }

    fn ask(&mut self, request: &Request) -> Vec<Answer> {
        let mut answers = Vec::new();
        for connection in std::mem::take(&mut self.connections) {
            let (answer, connection) = connection.request(self.addr, request).expect("an answer").finish();
            answers.push(answer);
            self.connections.push(connection);
        }
        answers
    }
}

/// Ranges of all kinds on blobs that may be shorter.
const RANGES: [&str; 12] = [
    "bytes=0-0",
    "bytes=1-3",
    "bytes=-1",
    "bytes=-5000",
    "bytes=5-",
    "bytes=0-",
    "bytes=99999999-",
    "bytes=3-1",
    // Several at once have a boundary that is another one every time.
    "bytes=0-9,5-20",
    "bytes=4095-32768",
    "bytes=0-99999999999",
    "lines=1-2",
];

/// Below and above what is kept in memory, and what is given again from a file.
const LENGTHS: [usize; 7] = [0, 1, 4096, 32 * 1024, 32 * 1024 + 1, 256 * 1024 + 1, 4 * MIB];

#[test]
fn blobs_of_all_lengths_with_conditions_and_ranges() {
    let origin = Origin::start();
    for mode in ["auto", "off"] {
        let spliceway = Spliceway::start(|setup| {
            setup.io_uring(mode).origin(&origin);
        });
        for (seed, len) in LENGTHS.into_iter().enumerate() {
            let blob = origin.random_blob(seed as u64, len);
            get(spliceway.addr(), &blob.path).expect(200);
            spliceway.wait_published(&blob.digest);
            settled(&spliceway, &Request::get(&blob.path)).expect(200).expect_body(&blob.bytes);
            settled(&spliceway, &Request::head(&blob.path));
            for spec in RANGES {
                settled(&spliceway, &Request::get(&blob.path).header("Range", spec));
            }
            for (headers, _) in CONDITIONS {
                for method in ["GET", "HEAD"] {
                    let mut request = Request::new(method, &blob.path);
                    for (name, value) in headers {
                        request =
                            request.header(name, &value.replace("{etag}", &format!("\"{}\"", blob.digest)));
                    }
                    settled(&spliceway, &request);
                }
            }
        }
    }
}

#[test]
fn manifests_errors_and_other_endpoints() {
    let origin = Origin::start();
    let image = Image::new(2, "amd64", &[3000, 70_000]);
    image.hold(&origin, "team/app", "v1");
    let spliceway = Spliceway::before(&origin);
    for (path, status) in [
        (format!("/v2/team/app/manifests/{}", image.digest()), 200),
        ("/v2/team/app/manifests/v1".to_owned(), 200),
        ("/v2/team/app/tags/list".to_owned(), 200),
        ("/v2/".to_owned(), 200),
        (format!("/v2/team/app/blobs/sha256:{}", "0".repeat(64)), 404),
        ("/v2/team/app/blobs/sha256:0".to_owned(), 400),
    ] {
        // The first answers may come from upstream, and say so in their headers.
        get(spliceway.addr(), &path);
        get(spliceway.addr(), &path);
        assert_eq!(settled(&spliceway, &Request::get(&path)).status(), status, "{path}");
        settled(&spliceway, &Request::get(&path).header("Accept", "text/plain"));
    }
}

#[test]
fn every_answer_is_logged_and_counted() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let blob = origin.random_blob(1, 5000);
    get(spliceway.addr(), &blob.path).expect(200);
    spliceway.wait_published(&blob.digest);
    let labels = ["route=\"blob\"", "status=\"206\"", "cache=\"hit\""];
    settled(&spliceway, &Request::get(&blob.path).range("10-109"));
    let times = TIMES * 2;
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let (requests, bytes) = (times as f64, (times * 100) as f64);
    spliceway.wait_metric("spliceway_requests_total", &labels, |count| (count - requests).abs() < 0.5);
    spliceway
        .wait_metric("spliceway_served_bytes_total", &["cache=\"hit\""], |count| (count - bytes).abs() < 0.5);
    eventually("a line for each request", || {
        let log = spliceway.log();
        let lines = log.lines().filter(|line| line.contains("status=206") && line.contains("bytes=100"));
        let lines: Vec<&str> = lines.collect();
        (lines.len() == times).then(|| {
            for line in lines {
                for part in
                    ["method=\"GET\"", &blob.digest, "cache=\"hit\"", "client=127.0.0.1:", "duration_ms="]
                {
                    assert!(line.contains(part), "{part} in {line}");
                }
            }
        })
    });
}

#[test]
fn a_blob_that_is_gone_or_replaced_is_noticed_within_a_second() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    for len in [100, 100_000] {
        let blob = origin.random_blob(len as u64, len);
        get(spliceway.addr(), &blob.path).expect(200);
        spliceway.wait_published(&blob.digest);
        settled(&spliceway, &Request::get(&blob.path)).expect(200);
        origin.always("GET", &blob.path, Plan::status(404));
        origin.always("HEAD", &blob.path, Plan::status(404));
        fs::remove_file(spliceway.blob_path(&blob.digest)).expect("it is published");
        let mut pair = Pair::open(&spliceway);
        eventually("the blob is gone", || {
            let answers = pair.ask(&Request::get(&blob.path));
            assert!(answers.iter().all(|answer| answer.status() == 404 || answer.body == **blob.bytes));
            answers.iter().all(|answer| answer.status() == 404).then_some(())
        });
    }
}

#[test]
fn a_reload_ends_what_was_allowed_before_it() {
    let origin = Origin::start();
    let mut spliceway = Spliceway::before(&origin);
    let blob = origin.random_blob(1, 5000);
    get(spliceway.addr(), &blob.path).expect(200);
    spliceway.wait_published(&blob.digest);
    let mut pair = Pair::open(&spliceway);
    let request = Request::get(&blob.path);
    for _ in 0..TIMES {
        assert!(pair.ask(&request).iter().all(|answer| answer.status() == 200));
    }
    // A name without an upstream's means another one from now on, where nobody listens.
    spliceway.reload(|setup| {
        setup.upstream("other", "http://127.0.0.1:9").set("default", true);
        setup.upstream("origin", &origin.url()).set("default", false);
    });
    spliceway.wait_log(&["configuration reloaded"]);
    assert!(pair.ask(&request).iter().all(|answer| answer.status() >= 500));
}
