//! Everything at once: clients of all kinds on blobs of all sizes while some of them are being fetched, pages are evicted
//! from the page cache and files vanish. Every byte that arrives is compared with what the digest stands for.
//!
//! What is asked for, and how, follows from the client's number alone; how the threads meet does not, so a failure names
//! client, turn and request. Nothing here depends on how fast anything is.

use std::borrow::Cow;
use std::fs::{self, File};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use rustix::fs::{Advice, fadvise};

use crate::support::client::{Connection, End, Exchange, Head, Request, get};
use crate::support::origin::{Blob, Origin};
use crate::support::plan::{Gate, Plan};
use crate::support::process::Spliceway;
use crate::support::{KIB, MIB, eventually};

const CLIENTS: usize = 12;
/// Requests of each client, those that it repeats not counted.
const TURNS: usize = 40;
/// How often a client says the same again; from the third time on the answer is given again.
const REPEATS: usize = 5;

/// Lengths of the blobs that are stored before it begins: at and beside what is kept in memory (32 KiB) and what is given
/// again or sent without a look at the page cache (256 KiB), then several windows of read-ahead.
const STORED: [usize; 10] =
    [1, 2, 4 * KIB, 32 * KIB, 32 * KIB + 1, 64 * KIB, 256 * KIB, 256 * KIB + 1, MIB, 24 * MIB + 4321];
/// Lengths of those that are not: one at and one beside the end that is held back from readers (64 KiB).
const COLD: [usize; 5] = [64 * KIB, 64 * KIB + 1, 700_001, 3 * MIB, 12 * MIB + 5];
/// The rate at which the origin sends, in bytes a second, so that readers meet fills under way.
const RATE: u64 = 24 * MIB as u64;
/// All clients join the fill of one more blob, which waits for them here.
const JOINED: usize = 6 * MIB;
const GATE: usize = 2 * MIB;

/// What a client asks for.
#[derive(Clone, Debug)]
enum Ask {
    Whole,
    Part(Range<usize>),
    /// Several that are disjoint, in any order.
    Parts(Vec<Range<usize>>),
    Head,
    NotModified,
}

/// How it asks, and takes the answer.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Once,
    /// In the same words, each when the last answer is there.
    Again,
    /// In the same words, all of them before the first answer is read.
    Pipelined,
    /// With a small window, and pauses.
    Slow,
    /// Leaves after so many bytes of the body.
    Leaves(usize),
}

impl Ask {
    fn random(rng: &mut fastrand::Rng, len: usize) -> Self {
        match rng.u8(..10) {
            0..=2 => Self::Whole,
            3..=5 => {
                let start = rng.usize(..len);
                Self::Part(start..rng.usize(start + 1..=len))
            }
            6 | 7 if len >= KIB => {
                let mut cuts: Vec<_> = (0..rng.usize(2..6) * 2).map(|_| rng.usize(..len)).collect();
                cuts.sort_unstable();
                cuts.dedup();
                let mut parts: Vec<_> = cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
                rng.shuffle(&mut parts);
                // Cuts that coincide may leave a single one, which has another answer.
                if parts.len() > 1 { Self::Parts(parts) } else { Self::Whole }
            }
            8 => Self::NotModified,
            _ => Self::Head,
        }
    }

    fn request(&self, blob: &Blob) -> Request {
        let spec = |part: &Range<usize>| format!("{}-{}", part.start, part.end - 1);
        let request = Request::get(&blob.path);
        match self {
            Self::Whole => request,
            Self::Part(part) => request.range(&spec(part)),
            Self::Parts(parts) => request.range(&parts.iter().map(spec).collect::<Vec<_>>().join(",")),
            Self::Head => Request::head(&blob.path),
            Self::NotModified => request.header("If-None-Match", &format!("\"{}\"", blob.digest)),
        }
    }

    fn method(&self) -> &'static str {
        if matches!(self, Self::Head) { "HEAD" } else { "GET" }
    }

    /// Checks the head of an answer; the body that must follow.
    fn expected<'a>(&self, blob: &'a Blob, head: &Head) -> Cow<'a, [u8]> {
        let total = blob.bytes.len();
        let status = match self {
            Self::Whole | Self::Head => 200,
            Self::Part(_) | Self::Parts(_) => 206,
            Self::NotModified => 304,
        };
        assert_eq!(head.status, status, "{head:?}");
        assert_eq!(head.header("etag"), Some(format!("\"{}\"", blob.digest).as_str()));
        let (body, length) = match self {
            Self::Whole => (Cow::from(&blob.bytes[..]), total),
            Self::Part(part) => {
                let range = format!("bytes {}-{}/{total}", part.start, part.end - 1);
                assert_eq!(head.header("content-range"), Some(range.as_str()));
                (Cow::from(&blob.bytes[part.clone()]), part.len())
            }
            Self::Parts(parts) => {
                let body = multipart(blob, parts, head);
                let length = body.len();
                (Cow::from(body), length)
            }
            Self::Head => (Cow::from(&[][..]), total),
            Self::NotModified => return Cow::from(&[][..]),
        };
        assert_eq!(head.header("content-length"), Some(length.to_string().as_str()));
        body
    }
}

/// The body of several parts, under the boundary that `head` announces.
fn multipart(blob: &Blob, parts: &[Range<usize>], head: &Head) -> Vec<u8> {
    let kind = head.header("content-type").expect("a content type");
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").expect("several parts");
    let mut body = Vec::new();
    for part in parts {
        let range = format!("{}-{}/{}", part.start, part.end - 1, blob.bytes.len());
        let between = format!(
            "\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {range}\r\n\r\n"
        );
        body.extend_from_slice(between.as_bytes());
        body.extend_from_slice(&blob.bytes[part.clone()]);
    }
    body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    body
}

impl Manner {
    fn random(rng: &mut fastrand::Rng, len: usize) -> Self {
        match rng.u8(..12) {
            0..=2 if len <= MIB => Self::Again,
            3 if len <= MIB => Self::Pipelined,
            4 => Self::Slow,
            5 => Self::Leaves(rng.usize(..len)),
            _ => Self::Once,
        }
    }
}

/// One client and its connection, on which requests of all kinds take turns.
struct Client<'a> {
    spliceway: &'a Spliceway,
    connection: Option<Connection>,
}

impl Client<'_> {
    fn ask(&mut self, blob: &Blob, ask: &Ask, manner: Manner) {
        match manner {
            Manner::Once => self.ask_times(blob, ask, 1),
            Manner::Again => {
                for _ in 0..REPEATS {
                    self.ask_times(blob, ask, 1);
                }
            }
            Manner::Pipelined => self.ask_times(blob, ask, REPEATS),
            Manner::Slow => {
                let exchange = self.exchange(Connection::open_narrow(self.spliceway.addr()), blob, ask);
                let expected = ask.expected(blob, &exchange.head);
                take(exchange, &expected, 16 * KIB, || thread::sleep(Duration::from_millis(1)));
            }
            Manner::Leaves(after) => {
                let connection = self.connection();
                let mut exchange = self.exchange(connection, blob, ask);
                let expected = ask.expected(blob, &exchange.head);
                let mut received = Vec::new();
                // A shorter body ends before.
                let _ = exchange.read_to(after as u64, &mut received);
                assert_same(&received, 0, &expected);
            }
        }
    }

    /// Sends the request so many times, then takes as many answers.
    fn ask_times(&mut self, blob: &Blob, ask: &Ask, times: usize) {
        let mut connection = self.connection();
        let request = ask.request(blob).bytes(self.spliceway.addr());
        connection.write(&request.repeat(times)).expect("the server reads");
        for _ in 0..times {
            let exchange = connection.exchange(ask.method()).expect("a head");
            let expected = ask.expected(blob, &exchange.head);
            connection = take(exchange, &expected, 256 * KIB, || ());
        }
        self.connection = Some(connection);
    }

    fn exchange(&self, mut connection: Connection, blob: &Blob, ask: &Ask) -> Exchange {
        connection.write(&ask.request(blob).bytes(self.spliceway.addr())).expect("the server reads");
        connection.exchange(ask.method()).expect("a head")
    }

    fn connection(&mut self) -> Connection {
        self.connection.take().unwrap_or_else(|| Connection::open(self.spliceway.addr()))
    }
}

/// Takes a whole body, at most `most` bytes at a time with a `pause` after each; the connection for the next one.
fn take(mut exchange: Exchange, expected: &[u8], most: usize, pause: impl Fn()) -> Connection {
    let mut at = 0;
    loop {
        match exchange.next(most) {
            Ok(bytes) => {
                assert_same(&bytes, at, expected);
                at += bytes.len();
                pause();
            }
            Err(end) => {
                assert_eq!((end, at), (End::Complete, expected.len()));
                return exchange.into_connection();
            }
        }
    }
}

/// `bytes` are those at `at` of what is expected.
fn assert_same(bytes: &[u8], at: usize, expected: &[u8]) {
    let right = expected.get(at..at + bytes.len()).expect("no more than the body");
    if bytes != right {
        let first = bytes.iter().zip(right).position(|(byte, right)| byte != right);
        panic!("wrong bytes from offset {} of the body on", at + first.unwrap_or(0));
    }
}

/// Panics tell who was at what.
struct Context {
    client: usize,
    turn: usize,
    doing: String,
}

impl Drop for Context {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("client {} in turn {}: {}", self.client, self.turn, self.doing);
        }
    }
}

fn run_client(number: usize, spliceway: &Spliceway, blobs: &[Blob]) {
    let mut client = Client { spliceway, connection: None };
    let mut rng = fastrand::Rng::with_seed(number as u64);
    for turn in 0..TURNS {
        let blob = &blobs[rng.usize(..blobs.len())];
        let ask = Ask::random(&mut rng, blob.bytes.len());
        let manner = Manner::random(&mut rng, blob.bytes.len());
        let doing = format!("{manner:?} {ask:?} of {} bytes, {}", blob.len(), blob.digest);
        let _context = Context { client: number, turn, doing };
        client.ask(blob, &ask, manner);
    }
}

/// The origin, and the blobs: some are stored when it begins, the last one is held back at [`GATE`].
fn prepare(origin: &Origin, spliceway: &Spliceway, gate: &Gate) -> Vec<Blob> {
    let lengths = STORED.iter().chain(&COLD).chain([&JOINED]);
    let blobs: Vec<_> = lengths.zip(1..).map(|(&len, seed)| origin.random_blob(seed, len)).collect();
    for (number, blob) in blobs.iter().enumerate() {
        if number < STORED.len() {
            get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
            spliceway.wait_published(&blob.digest);
        }
        origin.always("GET", &blob.path, Plan::healthy().rate(RATE));
    }
    let joined = &blobs[blobs.len() - 1];
    origin.script("GET", &joined.path, [Plan::stall(GATE as u64, gate)]);
    blobs
}

/// Evicts what is published from the page cache, and removes one blob after the other from the disk, until the clients are
/// done. How often each blob was removed.
fn disturb(spliceway: &Spliceway, blobs: &[Blob], clients: &[ScopedJoinHandle<'_, ()>]) -> Vec<usize> {
    let mut removed = vec![0; blobs.len()];
    let mut round = 0;
    while !clients.iter().all(ScopedJoinHandle::is_finished) {
        for blob in blobs {
            // It may not be there at the moment.
            if let Ok(file) = File::open(spliceway.blob_path(&blob.digest)) {
                fadvise(&file, 0, None, Advice::DontNeed).expect("advice about a file");
            }
        }
        if round % 4 == 0 {
            let number = (round / 4 * 7) % blobs.len();
            if fs::remove_file(spliceway.blob_path(&blobs[number].digest)).is_ok() {
                removed[number] += 1;
            }
        }
        round += 1;
        thread::sleep(Duration::from_millis(20));
    }
    removed
}

fn every_byte_is_right_under_load(io_uring: Option<&str>) {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.registry("far_range", "4MiB").origin(&origin).set("stall_timeout", "60s");
        if let Some(mode) = io_uring {
            setup.io_uring(mode);
        }
    });
    let gate = Gate::new();
    let blobs = prepare(&origin, &spliceway, &gate);
    let joined = AtomicUsize::new(0);
    let removed = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (spliceway, blobs, joined) = (&spliceway, &blobs, &joined);
                scope.spawn(move || {
                    let blob = &blobs[blobs.len() - 1];
                    let exchange = Request::get(&blob.path).open(spliceway.addr());
                    let expected = Ask::Whole.expected(blob, &exchange.head);
                    joined.fetch_add(1, Ordering::Relaxed);
                    take(exchange, &expected, 256 * KIB, || ());
                    run_client(number, spliceway, blobs);
                })
            })
            .collect();
        eventually("all clients in one fill", || (joined.load(Ordering::Relaxed) == CLIENTS).then_some(()));
        gate.open();
        disturb(&spliceway, &blobs, &clients)
    });

    // Those whose clients left go on.
    spliceway.wait_metric("spliceway_fills_in_flight", &[], |fills| fills < 0.5);
    for (blob, removed) in blobs.iter().zip(removed) {
        let asked = origin.seen("GET", &blob.path);
        let whole = asked.iter().filter(|seen| seen.header("range").is_none()).count();
        assert!(
            (1..=1 + removed).contains(&whole),
            "{} bytes, removed {removed} times, were fetched {whole} times",
            blob.len()
        );
    }
    for none in ["spliceway_unmatched_regions_total", "spliceway_fill_failures_total"] {
        assert!(spliceway.metric(none, &[]) < 0.5, "{none}");
    }
    spliceway.assert_store_is_right();
    for line in spliceway.log().lines() {
        assert!(!line.contains(" ERROR ") && !line.contains("panicked"), "{line}");
    }
}

#[test]
fn every_byte_is_right() {
    every_byte_is_right_under_load(None);
}

#[test]
fn every_byte_is_right_without_io_uring() {
    every_byte_is_right_under_load(Some("off"));
}
