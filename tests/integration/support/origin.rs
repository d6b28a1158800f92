//! An upstream registry in memory that misbehaves on demand, and remembers what it was asked.
//!
//! What it holds is always right; a [`Plan`] says how one answer goes wrong. Plans are given per path and used up
//! one per matching request, so a test says "the first GET of this blob is cut at 100, the second is healthy".

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write as _;
use std::io::{self, BufReader, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::listener::{Listener, RequestHead};
use super::plan::{Event, Framing, Gate, Plan};
use super::{PATIENCE, noise, sha256};

/// Written at once; the unit between two looks at a plan.
const PIECE: u64 = 16 * 1024;

/// A blob that an origin holds.
#[derive(Clone)]
pub(crate) struct Blob {
    pub(crate) bytes: Arc<Vec<u8>>,
    pub(crate) digest: String,
    /// Where it is asked for, at the origin and through Spliceway alike.
    pub(crate) path: String,
}

impl Blob {
    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// One request that the origin saw.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) head: RequestHead,
    pub(crate) at: Instant,
    sent: Arc<AtomicU64>,
}

impl Seen {
    pub(crate) fn method(&self) -> &str {
        &self.head.method
    }

    pub(crate) fn path(&self) -> &str {
        &self.head.path
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// Body bytes handed to the socket so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }
}

struct Rule {
    method: &'static str,
    path: String,
    plans: VecDeque<Plan>,
    then: Option<Plan>,
}

type Held = (String, Arc<Vec<u8>>);

/// Content at a path of its own, whatever protocol it belongs to.
#[derive(Clone)]
pub(crate) struct Document {
    pub(crate) bytes: Arc<Vec<u8>>,
    /// Beside the usual ones, or instead of them.
    pub(crate) headers: Vec<(String, String)>,
    /// A header that a request must have, else it is 401.
    pub(crate) requires: Option<(String, String)>,
}

impl Document {
    pub(crate) fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: Arc::new(bytes.into()), headers: Vec::new(), requires: None }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn requires(mut self, name: &str, value: &str) -> Self {
        self.requires = Some((name.into(), value.into()));
        self
    }
}

#[derive(Default)]
struct State {
    blobs: Mutex<HashMap<String, Arc<Vec<u8>>>>,
    /// Media type and bytes by digest.
    manifests: Mutex<HashMap<String, Held>>,
    tags: Mutex<BTreeMap<(String, String), String>>,
    documents: Mutex<HashMap<String, Document>>,
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<Seen>>,
    authorization: Mutex<Option<String>>,
    down: AtomicBool,
}

pub(crate) struct Origin {
    listener: Listener,
    state: Arc<State>,
    gates: Mutex<Vec<Gate>>,
}

impl Origin {
    pub(crate) fn start() -> Self {
        let state = Arc::new(State::default());
        let serving = state.clone();
        let listener = Listener::start(Arc::new(move |stream| {
            // An answer that broke off, on purpose or because the peer left, is not the origin's failure.
            let _ = serve(&serving, stream);
        }));
        Self { listener, state, gates: Mutex::default() }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.listener.addr()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// Refuses connections from now on and closes the open ones.
    pub(crate) fn stop(&mut self) {
        self.state.down.store(true, Ordering::SeqCst);
        self.listener.stop();
    }

    /// Listens again, at the same address.
    pub(crate) fn restart(&mut self) {
        self.state.down.store(false, Ordering::SeqCst);
        self.listener.restart();
    }

    /// Every request must carry this Authorization from now on; others are 401 Basic.
    pub(crate) fn require_authorization(&self, value: &str) {
        *self.state.authorization.lock().expect("not poisoned") = Some(value.into());
    }

    /// Holds `bytes` as a blob of every repository; its digest.
    pub(crate) fn blob(&self, bytes: impl Into<Arc<Vec<u8>>>) -> String {
        let bytes = bytes.into();
        let digest = sha256(&bytes);
        self.state.blobs.lock().expect("not poisoned").insert(digest.clone(), bytes);
        digest
    }

    /// Holds a random blob of `len` bytes, different for every seed.
    pub(crate) fn random_blob(&self, seed: u64, len: usize) -> Blob {
        let bytes = Arc::new(noise(seed, len));
        let digest = self.blob(bytes.clone());
        let path = format!("/v2/team/app/blobs/{digest}");
        Blob { bytes, digest, path }
    }

    /// Holds `bytes` as a blob under a digest that is not necessarily its own (sha512, or a lie).
    pub(crate) fn blob_as(&self, digest: &str, bytes: Vec<u8>) {
        self.state.blobs.lock().expect("not poisoned").insert(digest.into(), Arc::new(bytes));
    }

    /// Holds a manifest, of every repository; its digest.
    pub(crate) fn manifest(&self, media_type: &str, bytes: &[u8]) -> String {
        let digest = sha256(bytes);
        self.manifest_as(&digest, media_type, bytes);
        digest
    }

    /// Holds a manifest under a digest that is not necessarily that of its bytes.
    pub(crate) fn manifest_as(&self, digest: &str, media_type: &str, bytes: &[u8]) {
        let held = (media_type.to_owned(), Arc::new(bytes.to_vec()));
        self.state.manifests.lock().expect("not poisoned").insert(digest.to_owned(), held);
    }

    /// Holds a document at `path`, instead of what is there.
    pub(crate) fn document(&self, path: &str, document: Document) {
        self.state.documents.lock().expect("not poisoned").insert(path.into(), document);
    }

    /// Forgets the document at `path`.
    pub(crate) fn forget_document(&self, path: &str) {
        self.state.documents.lock().expect("not poisoned").remove(path);
    }

    pub(crate) fn tag(&self, repository: &str, tag: &str, digest: &str) {
        let key = (repository.to_owned(), tag.to_owned());
        self.state.tags.lock().expect("not poisoned").insert(key, digest.to_owned());
    }

    /// The next requests of `method` for `path` go by `plans`, one each; later ones are healthy.
    pub(crate) fn script(&self, method: &'static str, path: &str, plans: impl IntoIterator<Item = Plan>) {
        self.rule(method, path, plans.into_iter().collect(), None);
    }

    /// Every request of `method` for `path` goes by `plan`.
    pub(crate) fn always(&self, method: &'static str, path: &str, plan: Plan) {
        self.rule(method, path, VecDeque::new(), Some(plan));
    }

    /// Forgets all plans; gates that answers stand at are opened.
    pub(crate) fn heal(&self) {
        self.state.rules.lock().expect("not poisoned").clear();
        self.open_gates();
    }

    /// All requests of `method` for `path`, in their order.
    pub(crate) fn seen(&self, method: &str, path: &str) -> Vec<Seen> {
        let seen = self.state.seen.lock().expect("not poisoned");
        seen.iter().filter(|seen| seen.method() == method && seen.path() == path).cloned().collect()
    }

    pub(crate) fn all_seen(&self) -> Vec<Seen> {
        self.state.seen.lock().expect("not poisoned").clone()
    }

    pub(crate) fn forget_seen(&self) {
        self.state.seen.lock().expect("not poisoned").clear();
    }

    fn rule(&self, method: &'static str, path: &str, plans: VecDeque<Plan>, then: Option<Plan>) {
        {
            let mut gates = self.gates.lock().expect("not poisoned");
            for plan in plans.iter().chain(&then) {
                gates.extend(plan.gates());
            }
        }
        let mut rules = self.state.rules.lock().expect("not poisoned");
        rules.retain(|rule| rule.method != method || rule.path != path);
        rules.push(Rule { method, path: path.into(), plans, then });
    }

    fn open_gates(&self) {
        self.gates.lock().expect("not poisoned").drain(..).for_each(|gate| gate.open());
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.state.down.store(true, Ordering::SeqCst);
        self.open_gates();
    }
}

fn serve(state: &State, mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(head) = RequestHead::read(&mut reader)? {
        let plan = state.plan(&head);
        let content = state.content(&head);
        let sent = Arc::new(AtomicU64::new(0));
        let mut reply = Reply::new(&head, &plan, content);
        if plan.status.is_none() && state.is_closed_to(&head) {
            let challenge = ("WWW-Authenticate".into(), "Basic realm=\"documents\"".into());
            reply = Reply::failure(&head, 401, &[challenge]);
        }
        if let Some(required) = &*state.authorization.lock().expect("not poisoned")
            && head.header("authorization") != Some(required)
        {
            reply =
                Reply::failure(&head, 401, &[("WWW-Authenticate".into(), "Basic realm=\"origin\"".into())]);
        }
        let seen = Seen { head, at: Instant::now(), sent: sent.clone() };
        state.seen.lock().expect("not poisoned").push(seen);
        if let Some(gate) = &plan.delay {
            gate.pass();
        }
        reply.send(&plan, &mut stream, &sent, &state.down)?;
        if reply.closes {
            return stream.shutdown(Shutdown::Both);
        }
    }
    Ok(())
}

impl State {
    fn plan(&self, head: &RequestHead) -> Plan {
        let mut rules = self.rules.lock().expect("not poisoned");
        let rule = rules.iter_mut().find(|rule| rule.method == head.method && rule.path == head.path);
        rule.and_then(|rule| rule.plans.pop_front().or_else(|| rule.then.clone())).unwrap_or_default()
    }

    /// Whether `head` lacks what the document that it asks for requires.
    fn is_closed_to(&self, head: &RequestHead) -> bool {
        let documents = self.documents.lock().expect("not poisoned");
        let required = documents.get(&head.path).and_then(|document| document.requires.as_ref());
        required.is_some_and(|(name, value)| head.header(name) != Some(value))
    }

    /// Media type, digest and bytes of what `head` asks for.
    fn content(&self, head: &RequestHead) -> Option<Content> {
        if let Some(document) = self.documents.lock().expect("not poisoned").get(&head.path).cloned() {
            let media_type = "application/json".into();
            let Document { bytes, headers, .. } = document;
            return Some(Content { media_type, digest: None, bytes, headers });
        }
        let path = head.path.strip_prefix("/v2/")?;
        let json = "application/json".to_owned();
        if path.is_empty() {
            return Some(Content::new(json, None, Arc::new(b"{}".to_vec())));
        }
        if let Some((_, digest)) = path.split_once("/blobs/") {
            let bytes = self.blobs.lock().expect("not poisoned").get(digest)?.clone();
            let media_type = "application/octet-stream".into();
            return Some(Content::new(media_type, Some(digest.into()), bytes));
        }
        if let Some((repository, reference)) = path.split_once("/manifests/") {
            let tagged = self
                .tags
                .lock()
                .expect("not poisoned")
                .get(&(repository.to_owned(), reference.to_owned()))
                .cloned();
            let digest = tagged.unwrap_or_else(|| reference.to_owned());
            let (media_type, bytes) = self.manifests.lock().expect("not poisoned").get(&digest)?.clone();
            return Some(Content::new(media_type, Some(digest), bytes));
        }
        let repository = path.strip_suffix("/tags/list")?;
        let tags = self.tags.lock().expect("not poisoned");
        let names: Vec<_> =
            tags.keys().filter(|(known, _)| known == repository).map(|(_, tag)| tag.clone()).collect();
        if names.is_empty() {
            return None;
        }
        let list = serde_json::json!({"name": repository, "tags": names});
        Some(Content::new(json, None, Arc::new(list.to_string().into_bytes())))
    }
}

struct Content {
    media_type: String,
    digest: Option<String>,
    bytes: Arc<Vec<u8>>,
    headers: Vec<(String, String)>,
}

impl Content {
    fn new(media_type: String, digest: Option<String>, bytes: Arc<Vec<u8>>) -> Self {
        Self { media_type, digest, bytes, headers: Vec::new() }
    }
}

/// An answer ready to be sent: head, and the part of the content that is its body.
struct Reply {
    head: String,
    bytes: Arc<Vec<u8>>,
    /// The body: `bytes[start..end]`.
    start: u64,
    end: u64,
    chunked: bool,
    closes: bool,
    bodiless: bool,
}

impl Reply {
    fn new(request: &RequestHead, plan: &Plan, content: Option<Content>) -> Self {
        if let Some(status) = plan.status {
            return Self::failure(request, status, &plan.headers);
        }
        let Some(content) = content else {
            return Self::failure(request, 404, &[]);
        };
        let bytes = plan.body.clone().unwrap_or(content.bytes);
        let total = bytes.len() as u64;
        let etag = content.digest.as_ref().map(|digest| format!("\"{digest}\""));
        let etag_sent = plan
            .headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case("etag"))
            .map(|(_, value)| value.clone())
            .or(etag);
        let if_range = request.header("if-range");
        let range = request
            .header("range")
            .filter(|_| !plan.ignore_range && (if_range.is_none() || if_range == etag_sent.as_deref()))
            .and_then(|value| parse_range(value, total));
        let (status, start, end) = match range {
            None => (200, 0, total),
            Some(Some((start, end))) => (206, start, end),
            Some(None) => {
                let headers = [("Content-Range".to_owned(), format!("bytes */{total}"))];
                return Self::failure(request, 416, &headers);
            }
        };
        let mut headers: Vec<(String, String)> = vec![
            ("Content-Type".into(), content.media_type),
            ("Accept-Ranges".into(), "bytes".into()),
            ("Docker-Distribution-Api-Version".into(), "registry/2.0".into()),
        ];
        headers.extend(content.digest.map(|digest| ("Docker-Content-Digest".to_owned(), digest)));
        headers.extend(etag_sent.map(|etag| ("ETag".to_owned(), etag)));
        if status == 206 {
            headers.push(("Content-Range".into(), format!("bytes {start}-{}/{total}", end - 1)));
        }
        let mut closes = false;
        match plan.framing {
            Framing::Honest => headers.push(("Content-Length".into(), (end - start).to_string())),
            Framing::Claim(length) => {
                headers.push(("Content-Length".into(), length.to_string()));
                closes = true;
            }
            Framing::Chunked => headers.push(("Transfer-Encoding".into(), "chunked".into())),
            Framing::UntilClose => {
                headers.push(("Connection".into(), "close".into()));
                closes = true;
            }
        }
        for (name, value) in content.headers.iter().chain(&plan.headers) {
            headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
            headers.push((name.clone(), value.clone()));
        }
        // An empty value withholds the header.
        headers.retain(|(_, value)| !value.is_empty());
        let bodiless = request.method == "HEAD";
        let chunked = plan.framing == Framing::Chunked;
        Self { head: head(status, &headers), bytes, start, end, chunked, closes, bodiless }
    }

    fn failure(request: &RequestHead, status: u16, headers: &[(String, String)]) -> Self {
        let body = format!("the origin says {status}\n").into_bytes();
        let mut all = headers.to_vec();
        all.push(("Content-Type".into(), "text/plain".into()));
        all.push(("Content-Length".into(), body.len().to_string()));
        Self {
            head: head(status, &all),
            start: 0,
            end: body.len() as u64,
            bytes: Arc::new(body),
            chunked: false,
            closes: false,
            bodiless: request.method == "HEAD",
        }
    }

    fn send(
        &self,
        plan: &Plan,
        stream: &mut TcpStream,
        sent: &AtomicU64,
        down: &AtomicBool,
    ) -> io::Result<()> {
        stream.write_all(self.head.as_bytes())?;
        if self.bodiless {
            return Ok(());
        }
        // Events before the answer's first byte belong to a part that this answer does not have.
        let first_whole = self.start == 0;
        let mut events = plan
            .events
            .iter()
            .filter(|(offset, _)| plan.status.is_none() && (first_whole || *offset >= self.start))
            .peekable();
        let began = Instant::now();
        let mut at = self.start;
        loop {
            while let Some((_, event)) = events.next_if(|(offset, _)| *offset <= at) {
                match event {
                    Event::Wait(gate) => gate.pass(),
                    Event::Cut => {
                        stream.shutdown(Shutdown::Both)?;
                        return Err(io::Error::other("cut as planned"));
                    }
                    Event::Reset => {
                        reset(stream)?;
                        return Err(io::Error::other("reset as planned"));
                    }
                }
                if down.load(Ordering::SeqCst) {
                    return Err(io::Error::other("the origin is down"));
                }
            }
            if at >= self.end {
                break;
            }
            let until_event = events.peek().map_or(u64::MAX, |(offset, _)| *offset);
            let end = self.end.min(at + PIECE).min(until_event);
            self.piece(plan, at, end, stream)?;
            sent.fetch_add(end - at, Ordering::SeqCst);
            at = end;
            if let Some(rate) = plan.rate {
                let due = Duration::from_micros((at - self.start) * 1_000_000 / rate);
                std::thread::sleep(due.saturating_sub(began.elapsed()));
            }
        }
        if self.chunked {
            stream.write_all(b"0\r\n\r\n")?;
        }
        Ok(())
    }

    fn piece(&self, plan: &Plan, at: u64, end: u64, stream: &mut TcpStream) -> io::Result<()> {
        let range = index(at)..index(end);
        let mut piece = self.bytes[range].to_vec();
        if let Some(flip) = plan.flip
            && (at..end).contains(&flip)
        {
            piece[index(flip - at)] ^= 0xff;
        }
        if self.chunked {
            stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
            piece.extend(b"\r\n");
        }
        stream.write_all(&piece)
    }
}

/// Sends RST now. A linger time of 0 would do so only when the last of several handles closes; connecting to
/// no address dissolves the connection at once.
fn reset(stream: &TcpStream) -> io::Result<()> {
    rustix::net::connect_unspec(stream).map_err(io::Error::from)
}

fn head(status: u16, headers: &[(String, String)]) -> String {
    let mut text = format!("HTTP/1.1 {status} Planned\r\n");
    for (name, value) in headers {
        let _ = write!(text, "{name}: {value}\r\n");
    }
    text.push_str("\r\n");
    text
}

/// One range of `total` bytes: `None` if it is to be ignored, `Some(None)` if it cannot be satisfied.
#[allow(clippy::option_option)] // three outcomes, used once
fn parse_range(value: &str, total: u64) -> Option<Option<(u64, u64)>> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    let (start, end) = if first.is_empty() {
        (total.saturating_sub(last.parse().ok()?), total)
    } else {
        let end =
            if last.is_empty() { total } else { last.parse::<u64>().ok()?.saturating_add(1).min(total) };
        (first.parse().ok()?, end)
    };
    Some((start < end).then_some((start, end)))
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("64-bit")
}
