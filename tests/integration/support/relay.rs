//! A relay in front of a registry: it passes requests and answers on as they are, remembers them, and misbehaves on
//! demand. So a real registry becomes one that fails now and then, whichever side of a copy it is on.
//!
//! One thread a client's connection, one connection to the registry for each; a request is over before the next is read.
//! Bytes are counted as bodies, without their framing.

mod body;

use std::cell::Cell;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use self::body::{Body, BodyFault, Broken, Framing};
use super::PATIENCE;
use super::listener::{Listener, RequestHead, read_headers};
use super::plan::Gate;

/// How one request goes wrong. Offsets are those of the body meant.
#[derive(Clone)]
pub(crate) enum Fault {
    /// None.
    Pass,
    /// The relay answers; the registry sees nothing of it.
    Answer(Reply),
    /// The request waits at the gate before anything of it is passed on.
    Hold(Gate),
    /// The connections are closed before this byte of the answer's body.
    CutAnswer(u64),
    /// The connections are closed before this byte of the request's body.
    CutRequest(u64),
    /// The request is passed on and carried out, and the client hears nothing of it.
    LoseAnswer,
    /// The request is carried out, and the answer to it waits at the gate.
    HoldHead(Gate),
    /// The answer's body waits at the gate before this byte.
    HoldAnswer(u64, Gate),
    /// The request's body waits at the gate before this byte.
    HoldRequest(u64, Gate),
    /// This byte of the answer's body is another one.
    Flip(u64),
}

/// An answer of the relay's own.
#[derive(Clone)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: vec![("Content-Type".into(), "application/json".into())], body: body.into() }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    fn bytes(&self, method: &str) -> Vec<u8> {
        let length = ("Content-Length".to_owned(), self.body.len().to_string());
        let headers = self.headers.iter().chain([&length]);
        let mut bytes = head_bytes(&format!("HTTP/1.1 {} Relayed\r\n", self.status), headers);
        if method != "HEAD" {
            bytes.extend(&self.body);
        }
        bytes
    }
}

/// A head: its first line, and its fields.
fn head_bytes<'a>(line: &str, headers: impl IntoIterator<Item = &'a (String, String)>) -> Vec<u8> {
    let fields = headers.into_iter().flat_map(|(name, value)| [name, ": ", value, "\r\n"]);
    [line].into_iter().chain(fields).chain(["\r\n"]).collect::<String>().into_bytes()
}

/// One request that came through.
#[derive(Clone)]
pub(crate) struct Passed {
    pub(crate) head: RequestHead,
    pub(crate) at: Instant,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    status: AtomicU16,
    up: AtomicU64,
    down: AtomicU64,
}

impl Passed {
    pub(crate) fn method(&self) -> &str {
        &self.head.method
    }

    pub(crate) fn path(&self) -> &str {
        &self.head.path
    }

    /// The answer's; 0 as long as there is none.
    pub(crate) fn status(&self) -> u16 {
        self.counts.status.load(Ordering::SeqCst)
    }

    /// Bytes of the request's body.
    pub(crate) fn up(&self) -> u64 {
        self.counts.up.load(Ordering::SeqCst)
    }

    /// Bytes of the answer's body.
    pub(crate) fn down(&self) -> u64 {
        self.counts.down.load(Ordering::SeqCst)
    }

    /// A blob's content is asked for.
    pub(crate) fn is_download(&self) -> bool {
        self.method() == "GET" && self.path().contains("/blobs/sha256:")
    }

    /// A blob's content is sent.
    pub(crate) fn is_upload(&self) -> bool {
        matches!(self.method(), "POST" | "PATCH" | "PUT") && self.path().contains("/blobs/uploads/")
    }

    /// Method, path and status, for messages.
    pub(crate) fn line(&self) -> String {
        format!(
            "{} {} {} (up {}, down {})",
            self.method(),
            self.head.target(),
            self.status(),
            self.up(),
            self.down()
        )
    }
}

type Choose = Box<dyn FnMut(&RequestHead) -> Option<Fault> + Send>;

struct State {
    registry: SocketAddr,
    rules: Mutex<Vec<Choose>>,
    gates: Mutex<Vec<Gate>>,
    passed: Mutex<Vec<Passed>>,
    downloads: Gauge,
    uploads: Gauge,
    /// Gates lead nowhere any more.
    ended: AtomicBool,
}

/// How many are under way, and the most that ever were.
#[derive(Default)]
struct Gauge {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Gauge {
    fn enter(&self) {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
    }

    fn leave(&self) {
        self.now.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(crate) struct Relay {
    listener: Listener,
    state: Arc<State>,
}

impl Relay {
    /// In front of the registry at `registry`, on a port of its own.
    pub(crate) fn before(registry: SocketAddr) -> Self {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)), registry)
    }

    /// The same, at an address of the test's choosing.
    pub(crate) fn at(addr: SocketAddr, registry: SocketAddr) -> Self {
        let state = Arc::new(State {
            registry,
            rules: Mutex::default(),
            gates: Mutex::default(),
            passed: Mutex::default(),
            downloads: Gauge::default(),
            uploads: Gauge::default(),
            ended: AtomicBool::new(false),
        });
        let serving = state.clone();
        let listener = Listener::start_at(
            addr,
            Arc::new(move |stream| {
                // What broke off, on purpose or because a peer left, is not the relay's failure.
                let _ = serve(&serving, &stream);
                let _ = stream.shutdown(Shutdown::Both);
            }),
        );
        Self { listener, state }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.listener.addr()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// The registry is gone: connections are closed, new ones refused.
    pub(crate) fn stop(&mut self) {
        self.listener.stop();
    }

    /// It is back, at the same address.
    pub(crate) fn restart(&mut self) {
        self.listener.restart();
    }

    /// The next requests of `method` whose target contains `part` go by `faults`, one each.
    pub(crate) fn script(&self, method: &'static str, part: &str, faults: impl IntoIterator<Item = Fault>) {
        let faults: Vec<Fault> = faults.into_iter().collect();
        self.remember_gates(&faults);
        let mut faults = faults.into_iter();
        let part = part.to_owned();
        self.rule(move |head| if fits(head, method, &part) { faults.next() } else { None });
    }

    /// Every request of `method` whose target contains `part` goes by `fault`.
    pub(crate) fn always(&self, method: &'static str, part: &str, fault: Fault) {
        self.remember_gates(std::slice::from_ref(&fault));
        let part = part.to_owned();
        self.rule(move |head| fits(head, method, &part).then(|| fault.clone()));
    }

    /// Requests for which `choose` has a fault go by it.
    pub(crate) fn rule(&self, choose: impl FnMut(&RequestHead) -> Option<Fault> + Send + 'static) {
        self.state.rules.lock().expect("not poisoned").push(Box::new(choose));
    }

    /// Forgets all faults; what stands at a gate goes on.
    pub(crate) fn heal(&self) {
        self.state.rules.lock().expect("not poisoned").clear();
        self.open_gates();
    }

    /// All requests so far, in their order.
    pub(crate) fn passed(&self) -> Vec<Passed> {
        self.state.passed.lock().expect("not poisoned").clone()
    }

    /// Those of `method` whose target contains `part`.
    pub(crate) fn seen(&self, method: &str, part: &str) -> Vec<Passed> {
        let mut passed = self.passed();
        passed.retain(|one| fits(&one.head, method, part));
        passed
    }

    /// Forgets the requests so far.
    pub(crate) fn forget(&self) {
        self.state.passed.lock().expect("not poisoned").clear();
    }

    /// The most blobs that were ever asked for at once.
    pub(crate) fn downloads_at_once(&self) -> usize {
        self.state.downloads.most.load(Ordering::SeqCst)
    }

    /// The most requests that ever sent a blob's content at once.
    pub(crate) fn uploads_at_once(&self) -> usize {
        self.state.uploads.most.load(Ordering::SeqCst)
    }

    /// All requests, a line each, for messages.
    pub(crate) fn lines(&self) -> String {
        self.passed().iter().map(|one| one.line() + "\n").collect()
    }

    fn remember_gates(&self, faults: &[Fault]) {
        let gates = faults.iter().filter_map(|fault| match fault {
            Fault::Hold(gate)
            | Fault::HoldHead(gate)
            | Fault::HoldAnswer(_, gate)
            | Fault::HoldRequest(_, gate) => Some(gate.clone()),
            _ => None,
        });
        self.state.gates.lock().expect("not poisoned").extend(gates);
    }

    fn open_gates(&self) {
        self.state.gates.lock().expect("not poisoned").drain(..).for_each(|gate| gate.open());
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        self.open_gates();
        if std::thread::panicking() {
            eprintln!("--- what came through the relay before {}:\n{}---", self.state.registry, self.lines());
        }
    }
}

fn fits(head: &RequestHead, method: &str, part: &str) -> bool {
    head.method == method && head.target().contains(part)
}

fn serve(state: &State, client: &TcpStream) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut client = Side::new(client.try_clone()?)?;
    let mut registry = None;
    while let Some(head) = RequestHead::read_alone(&mut client.reader)? {
        let counts = Arc::new(Counts::default());
        let passed = Passed { head: head.clone(), at: Instant::now(), counts };
        state.passed.lock().expect("not poisoned").push(passed.clone());
        let gauge = match (passed.is_download(), passed.is_upload()) {
            (true, _) => Some(&state.downloads),
            (_, true) if head.method != "POST" => Some(&state.uploads),
            _ => None,
        };
        if let Some(gauge) = gauge {
            gauge.enter();
        }
        let place = Place { gauge, is_left: Cell::new(false) };
        if !relay(state, &passed, &place, &mut client, &mut registry)? {
            break;
        }
    }
    Ok(())
}

/// A place among those under way: left before the client can know that it is, or it would seem to be there twice.
struct Place<'a> {
    gauge: Option<&'a Gauge>,
    is_left: Cell<bool>,
}

impl Place<'_> {
    fn leave(&self) {
        if let Some(gauge) = self.gauge
            && !self.is_left.replace(true)
        {
            gauge.leave();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// One request and its answer; whether the connections can be used again.
fn relay(
    state: &State,
    passed: &Passed,
    place: &Place<'_>,
    client: &mut Side,
    registry: &mut Option<Side>,
) -> io::Result<bool> {
    let head = &passed.head;
    let fault = state.fault(head);
    let up = Body {
        framing: Framing::of_request(head),
        fault: BodyFault::of_request(&fault),
        count: &passed.counts.up,
        place: None,
    };
    match &fault {
        Fault::Answer(reply) => {
            // What is left unread would be a reset that eats the answer.
            up.pass(&mut client.reader, &mut io::sink())?;
            passed.counts.status.store(reply.status, Ordering::SeqCst);
            client.stream.write_all(&reply.bytes(&head.method))?;
            return Ok(true);
        }
        Fault::Hold(gate) => gate.pass(),
        _ => {}
    }
    if state.ended.load(Ordering::SeqCst) {
        return Ok(false);
    }
    if registry.is_none() {
        *registry = Some(Side::new(TcpStream::connect_timeout(&state.registry, PATIENCE)?)?);
    }
    let registry = registry.as_mut().expect("just connected");
    let line = format!("{} {} HTTP/1.1\r\n", head.method, head.target());
    registry.stream.write_all(&head_bytes(&line, head.headers()))?;
    match up.pass(&mut client.reader, &mut registry.stream) {
        Ok(()) => {}
        Err(Broken::Source(error)) => return Err(error),
        // A registry that has heard enough may have answered.
        Err(Broken::Target(_)) => registry.stream.shutdown(Shutdown::Write).unwrap_or(()),
    }
    answer(passed, place, &fault, client, registry)
}

fn answer(
    passed: &Passed,
    place: &Place<'_>,
    fault: &Fault,
    client: &mut Side,
    registry: &mut Side,
) -> io::Result<bool> {
    let (status, line, headers) = loop {
        let mut line = String::new();
        if registry.reader.read_line(&mut line)? == 0 {
            return Ok(false);
        }
        let headers = read_headers(&mut registry.reader)?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("not a status line: {line:?}")))?;
        if status >= 200 {
            break (status, line, headers);
        }
    };
    passed.counts.status.store(status, Ordering::SeqCst);
    let find = |name: &str| headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let framing = if passed.method() == "HEAD" || status == 204 || status == 304 {
        Framing::None
    } else if find("transfer-encoding").is_some() {
        Framing::Chunked
    } else {
        find("content-length")
            .and_then(|length| length.parse().ok())
            .map_or(Framing::UntilClose, Framing::Length)
    };
    let closes = find("connection") == Some("close") || framing == Framing::UntilClose;
    if !passed.is_download() {
        place.leave();
    }
    let (fault_of_body, count) = (BodyFault::of_answer(fault), &passed.counts.down);
    let down = Body { framing, fault: fault_of_body, count, place: Some(place) };
    match fault {
        Fault::LoseAnswer => {
            down.pass(&mut registry.reader, &mut io::sink())?;
            return Ok(false);
        }
        Fault::HoldHead(gate) => gate.pass(),
        _ => {}
    }
    client.stream.write_all(&head_bytes(&line, &headers))?;
    down.pass(&mut registry.reader, &mut client.stream)?;
    Ok(!closes)
}

impl State {
    fn fault(&self, head: &RequestHead) -> Fault {
        let mut rules = self.rules.lock().expect("not poisoned");
        rules.iter_mut().find_map(|choose| choose(head)).unwrap_or(Fault::Pass)
    }
}

/// One end of the relay.
struct Side {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Side {
    fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let reader = BufReader::with_capacity(64 * 1024, stream.try_clone()?);
        Ok(Self { stream, reader })
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
