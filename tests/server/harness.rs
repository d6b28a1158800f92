//! A server with a service that answers with whatever a test asks for by its path.

use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_LENGTH, HOST, HeaderValue};
use http_body::Body as _;
use spliceway::body::{Body, BodyError, Chunk, Region};
use spliceway::server::{
    self, Counters, Doors, Outcome, Phase, Repeat, Repeatable, Request, ResponseEnd, Sender, ServerOptions,
    Service, Worker, doors,
};
use spliceway::sys::Files;
use tokio::sync::{Semaphore, watch};

/// Length of the file that regions are of.
pub(crate) const DATA_BYTES: u64 = (64 << 20) + 1;

/// The file that regions are of. No two of its kilobytes are alike.
pub(crate) fn data() -> &'static Arc<File> {
    static DATA: OnceLock<Arc<File>> = OnceLock::new();
    DATA.get_or_init(|| {
        let mut file = tempfile::tempfile().unwrap();
        let mut block = Vec::with_capacity(1 << 20);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut left = usize::try_from(DATA_BYTES).unwrap();
        while left > 0 {
            block.clear();
            while block.len() < (1 << 20) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                block.extend_from_slice(&state.to_le_bytes());
            }
            block.truncate(left);
            file.write_all(&block).unwrap();
            left -= block.len();
        }
        Arc::new(file)
    })
}

pub(crate) fn data_at(offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    data().read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

/// Ways to serve that must not differ.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mode {
    pub(crate) ring: bool,
    pub(crate) sender: Sender,
}

/// All ways that work on this machine.
pub(crate) fn modes() -> Vec<Mode> {
    let senders = [Sender::Sendfile, Sender::Splice, Sender::Copy];
    let mut modes: Vec<Mode> = senders.iter().map(|&sender| Mode { ring: false, sender }).collect();
    match spliceway::sys::probe() {
        Ok(()) => {
            modes.extend(senders.map(|sender| Mode { ring: true, sender }));
        }
        Err(reason) => eprintln!("without io_uring: {reason}"),
    }
    modes
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Seen>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) doors: Arc<Doors>,
    phase: watch::Sender<Phase>,
    threads: Vec<JoinHandle<()>>,
}

/// What the service saw.
#[derive(Default)]
pub(crate) struct Seen {
    targets: Mutex<Vec<String>>,
    outcomes: Mutex<Vec<(String, Outcome)>>,
    /// No answer may be given again.
    pub(crate) outdated: AtomicBool,
    /// `/hang` answers when this is closed.
    pub(crate) release: Gate,
}

pub(crate) struct Gate(Semaphore);

impl Default for Gate {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

impl Gate {
    pub(crate) fn open(&self) {
        self.0.close();
    }
}

impl Seen {
    pub(crate) fn targets(&self) -> Vec<String> {
        self.targets.lock().unwrap().clone()
    }

    /// The end of the first response to `target`, awaited.
    pub(crate) fn outcome(&self, target: &str) -> Outcome {
        eventually(|| {
            let outcomes = self.outcomes.lock().unwrap();
            outcomes.iter().find(|(seen, _)| seen == target).map(|(_, outcome)| outcome.clone())
        })
    }

    pub(crate) fn outcomes(&self) -> Vec<(String, Outcome)> {
        self.outcomes.lock().unwrap().clone()
    }
}

/// Waits for something that must come.
pub(crate) fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..3000 {
        if let Some(found) = look() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it never came");
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::with(&ServerOptions::default())
    }

    /// One server for each way of serving.
    pub(crate) fn in_all_modes() -> impl Iterator<Item = Self> {
        modes().into_iter().map(|mode| Self::with_mode(&ServerOptions::default(), mode))
    }

    pub(crate) fn with(options: &ServerOptions) -> Self {
        Self::with_mode(options, Mode { ring: false, sender: Sender::default() })
    }

    pub(crate) fn with_mode(options: &ServerOptions, mode: Mode) -> Self {
        let options = Arc::new(ServerOptions { sender: mode.sender, ..options.clone() });
        let listener = server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self::on(listener, &options, mode.ring)
    }

    pub(crate) fn on(listener: TcpListener, options: &Arc<ServerOptions>, ring: bool) -> Self {
        let address = listener.local_addr().unwrap();
        let (phase, phases) = watch::channel(Phase::Serve);
        let (doors, seats) = doors(2);
        let doors = Arc::new(doors);
        let seen = Arc::new(Seen::default());
        let counters = Arc::new(Counters::default());
        let mut threads = Vec::new();
        for seat in seats {
            let (options, phases) = (Arc::clone(options), phases.clone());
            let (seen, counters) = (Arc::clone(&seen), Arc::clone(&counters));
            threads.push(std::thread::spawn(move || {
                on_runtime(async move {
                    let files = Files::new(ring).unwrap();
                    let service = Rc::new(TestService { seen });
                    let worker = Worker { service, options, files: files.clone(), counters };
                    worker.run(seat, phases).await;
                    files.drain().await;
                });
            }));
        }
        let slots = Arc::new(Semaphore::new(options.connections_max));
        let listening = server::listen(listener, 0, Arc::clone(&doors), slots, phases);
        threads.push(std::thread::spawn(move || on_runtime(async move { listening.await.unwrap() })));
        Self { address, seen, counters, doors, phase, threads }
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.send(phase).unwrap();
    }

    /// Waits until the server has ended by itself.
    pub(crate) fn join(mut self) {
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.phase.send(Phase::Cut);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a thread of the server panicked");
        }
    }
}

fn on_runtime(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future);
}

struct TestService {
    seen: Arc<Seen>,
}

/// Leave to give an answer of `/again/…` again.
struct Again {
    seen: Arc<Seen>,
    target: String,
}

impl Repeat for Again {
    fn is_current(&self, _now: Instant) -> bool {
        !self.seen.outdated.load(Ordering::Relaxed)
    }

    fn ended(&self, _peer: SocketAddr, _received: Instant, outcome: &Outcome) {
        self.seen.outcomes.lock().unwrap().push((format!("again {}", self.target), outcome.clone()));
    }
}

impl Service for TestService {
    fn call(&self, request: Request) -> impl Future<Output = http::Response<Body>> + 'static {
        let seen = Arc::clone(&self.seen);
        async move {
            let target = request.head.uri.to_string();
            let repeats = request.repeats && target.starts_with("/again/");
            let rejected = request.rejected.is_some();
            if !rejected {
                seen.targets.lock().unwrap().push(target.clone());
            }
            let mut response = match request.rejected {
                Some(error) => answer(error.status.as_u16(), Body::bytes(error.reason)),
                None => respond(target.strip_prefix("/again").unwrap_or(&target), request, &seen).await,
            };
            if target.starts_with("/again/")
                && response.status() == 200
                && let Some(size) = response.body().size()
            {
                response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(size));
            }
            if repeats {
                let again = Again { seen: Arc::clone(&seen), target: target.clone() };
                response.extensions_mut().insert(Repeatable(Arc::new(again)));
            }
            let target = if rejected { "rejected".to_owned() } else { target };
            let end = ResponseEnd::new(move |outcome: &Outcome| {
                seen.outcomes.lock().unwrap().push((target, outcome.clone()));
            });
            response.extensions_mut().insert(end);
            response
        }
    }
}

fn answer(status: u16, body: Body) -> http::Response<Body> {
    let mut response = http::Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
    response
}

async fn respond(target: &str, request: Request, seen: &Seen) -> http::Response<Body> {
    let path = target.split('?').next().unwrap();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let number = |at: usize| parts.get(at).and_then(|part| part.parse::<u64>().ok()).unwrap_or(0);
    match parts[0] {
        "describe" => {
            let host = request.head.headers.get(HOST).and_then(|value| value.to_str().ok()).unwrap_or("-");
            answer(200, Body::bytes(format!("{} {target} {host}", request.head.method)))
        }
        "bytes" => answer(200, Body::bytes(data_at(0, usize::try_from(number(1)).unwrap()))),
        "notmodified" => answer(304, Body::empty()),
        "temporary" => {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(b"temporary").unwrap();
            answer(200, Body::file(Arc::new(file), 0, 9))
        }
        "file" => answer(200, Body::file(Arc::clone(data()), number(1), number(2))),
        "multipart" => answer(200, multipart()),
        "chunked" => answer(200, Body::stream(stream::iter(mixed(number(1))), None)),
        "announced" => {
            let mut response = answer(200, Body::stream(stream::iter(mixed(number(2))), None));
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(number(1)));
            response
        }
        "fail" => {
            let failure = Err(BodyError::new("the digest does not match"));
            let items = stream::iter(mixed(number(2)).into_iter().chain([failure]));
            let len = (parts[1] == "length").then(|| number(2) + 1);
            answer(200, Body::stream(items, len))
        }
        "contradiction" => {
            let mut response = answer(200, Body::bytes("four"));
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(5));
            response
        }
        "length-only" => {
            let mut response = answer(u16::try_from(number(1)).unwrap(), Body::empty());
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(12345));
            response
        }
        "upload" => upload(request).await,
        "discard" => {
            let read =
                server::discard(&request.head.headers, request.body, 1 << 20, Duration::from_secs(2)).await;
            answer(400, Body::bytes(format!("read: {read}")))
        }
        "early" => answer(413, Body::bytes("too much")),
        "hang" => {
            let _ = seen.release.0.acquire().await;
            answer(200, Body::bytes("released"))
        }
        "panic" => panic!("as asked"),
        _ => answer(404, Body::bytes("no such path")),
    }
}

/// `len` bytes of the data in regions and byte strings of odd sizes.
fn mixed(len: u64) -> Vec<Result<Chunk, BodyError>> {
    let mut chunks = Vec::new();
    let (mut offset, mut turn) = (0_u64, 0_usize);
    while offset < len {
        let size = [100_000_u64, 7, 1, 300_001, 4096, 65_537][turn % 6].min(len - offset);
        let size_usize = usize::try_from(size).unwrap();
        chunks.push(Ok(if turn % 2 == 0 {
            Chunk::Region(Region { file: Arc::clone(data()), offset, len: size_usize, recent: false })
        } else {
            Chunk::Bytes(data_at(offset, size_usize).into())
        }));
        offset += size;
        turn += 1;
    }
    chunks
}

/// Offsets and lengths of the regions in `/multipart`.
pub(crate) const PARTS: [(u64, u64); 5] =
    [(0, 1), (4095, 4097), (1 << 20, (4 << 20) + 1), (0, 0), (7, 70_000)];

fn multipart() -> Body {
    let parts = PARTS
        .iter()
        .map(|(offset, len)| {
            let header = Bytes::from(format!("part {offset}+{len}\r\n"));
            (header, Body::file(Arc::clone(data()), *offset, *len))
        })
        .collect();
    Body::multipart(parts, Bytes::from_static(b"the end"))
}

/// Answers with how many bytes came and their sum.
async fn upload(request: Request) -> http::Response<Body> {
    let mut body = std::pin::pin!(request.body);
    let (mut len, mut sum) = (0_usize, 0_u64);
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        match frame {
            Ok(frame) => {
                if let Some(data) = frame.data_ref() {
                    len += data.len();
                    sum += data.iter().map(|byte| u64::from(*byte)).sum::<u64>();
                }
            }
            Err(error) => return answer(400, Body::bytes(format!("bad body: {error}"))),
        }
    }
    answer(200, Body::bytes(format!("{len} {sum}")))
}
