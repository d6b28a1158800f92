//! A raw HTTP/1.1 client that sees what a library would hide: the head's bytes, and how the body ended.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use super::PATIENCE;
pub(crate) use super::request::{Request, get};

/// How a body ended, as the peer saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// All bytes that the framing promised arrived (for a body until close: an orderly close).
    Complete,
    /// The connection was closed in order before the framing's end.
    Cut,
    /// The connection was reset.
    Reset,
    /// Nothing came for [`PATIENCE`].
    TimedOut,
    /// The framing itself is wrong.
    Malformed,
}

/// A connection, kept between requests by tests of the framing.
pub(crate) struct Connection {
    stream: TcpStream,
    /// Bytes received and not consumed: `pending[at..]`.
    pending: Vec<u8>,
    at: usize,
}

impl Connection {
    pub(crate) fn open(addr: SocketAddr) -> Self {
        Self::try_open(addr).expect("the server accepts")
    }

    /// As [`Connection::open`], to a server that may be gone meanwhile.
    pub(crate) fn try_open(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        Ok(Self { stream, pending: Vec::new(), at: 0 })
    }

    /// As [`Connection::open`], with a receive buffer so small that the sender feels a slow reader at once.
    pub(crate) fn open_narrow(addr: SocketAddr) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None)
            .expect("socket");
        socket.set_recv_buffer_size(16 * 1024).expect("SO_RCVBUF");
        socket.connect(&addr.into()).expect("the server accepts");
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self { stream, pending: Vec::new(), at: 0 }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    pub(crate) fn request(self, addr: SocketAddr, request: &Request) -> Result<Exchange, End> {
        let mut connection = self;
        connection.write(&request.bytes(addr)).map_err(|error| ended_by(&error))?;
        connection.exchange(request.method())
    }

    /// Reads the next head, skipping 1xx, as the answer to a request of `method`.
    pub(crate) fn exchange(mut self, method: &str) -> Result<Exchange, End> {
        loop {
            let head = self.head()?;
            if head.status >= 200 {
                let framing = framing(&head, method);
                return Ok(Exchange { connection: self, head, framing, received: 0 });
            }
        }
    }

    fn head(&mut self) -> Result<Head, End> {
        loop {
            let unread = &self.pending[self.at..];
            if let Some(len) = unread.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = Head::parse(&unread[..len]).ok_or(End::Malformed)?;
                self.at += len + 4;
                return Ok(head);
            }
            if self.fill().map_err(|error| ended_by(&error))? == 0 {
                return Err(End::Cut);
            }
        }
    }

    /// Receives more; 0 is the end.
    fn fill(&mut self) -> io::Result<usize> {
        if self.at == self.pending.len() {
            self.pending.clear();
            self.at = 0;
        }
        let known = self.pending.len();
        self.pending.resize(known + 64 * 1024, 0);
        let result = self.stream.read(&mut self.pending[known..]);
        self.pending.truncate(known + *result.as_ref().unwrap_or(&0));
        result
    }

    fn line(&mut self) -> Result<String, End> {
        loop {
            let unread = &self.pending[self.at..];
            if let Some(len) = unread.windows(2).position(|window| window == b"\r\n") {
                let line = String::from_utf8_lossy(&unread[..len]).into_owned();
                self.at += len + 2;
                return Ok(line);
            }
            if self.fill().map_err(|error| ended_by(&error))? == 0 {
                return Err(End::Cut);
            }
        }
    }

    /// Takes at most `most` bytes of what arrived, waiting for the first.
    fn take(&mut self, most: u64) -> Result<Vec<u8>, End> {
        if self.at == self.pending.len() && self.fill().map_err(|error| ended_by(&error))? == 0 {
            return Err(End::Cut);
        }
        let unread = &self.pending[self.at..];
        let len = unread.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        let taken = unread[..len].to_vec();
        self.at += len;
        Ok(taken)
    }

    /// Whether anything comes within `time`; the test goes on waiting afterwards as before.
    pub(crate) fn is_answered_within(&mut self, time: std::time::Duration) -> bool {
        self.stream.set_read_timeout(Some(time)).expect("a timeout");
        let came = self.stream.peek(&mut [0]).is_ok();
        self.stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        came
    }

    /// Everything until the peer closes, and how it closed.
    pub(crate) fn drain(mut self) -> (Vec<u8>, End) {
        let mut all = Vec::new();
        loop {
            match self.take(u64::MAX) {
                Ok(bytes) => all.extend(bytes),
                Err(End::Cut) => return (all, End::Complete),
                Err(end) => return (all, end),
            }
        }
    }
}

/// The head of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
}

impl Head {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut lines = text.split("\r\n");
        let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
        let headers = lines
            .map(|line| {
                let (name, value) = line.split_once(':')?;
                Some((name.to_ascii_lowercase(), value.trim().to_owned()))
            })
            .collect::<Option<_>>()?;
        Some(Self { status, headers })
    }

    /// The value of the header `name`; a second one of the same name fails the test.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let name = name.to_ascii_lowercase();
        let mut values = self.headers.iter().filter(|(known, _)| *known == name);
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} comes twice: {:?}", self.headers);
        value
    }
}

enum Framing {
    /// The bytes still to come.
    Length(u64),
    /// The bytes still to come of the current chunk; 0 before a chunk's size line.
    Chunked {
        left: u64,
        first: bool,
    },
    UntilClose,
    Ended(End),
}

fn framing(head: &Head, method: &str) -> Framing {
    if method == "HEAD" || head.status == 204 || head.status == 304 {
        return Framing::Ended(End::Complete);
    }
    if head.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        return Framing::Chunked { left: 0, first: true };
    }
    match head.header("content-length").map(str::parse) {
        Some(Ok(0)) => Framing::Ended(End::Complete),
        Some(Ok(length)) => Framing::Length(length),
        Some(Err(_)) => Framing::Ended(End::Malformed),
        None => Framing::UntilClose,
    }
}

/// One answer under way.
pub(crate) struct Exchange {
    connection: Connection,
    pub(crate) head: Head,
    framing: Framing,
    received: u64,
}

impl Exchange {
    pub(crate) fn status(&self) -> u16 {
        self.head.status
    }

    /// Body bytes received so far.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// The next body bytes as they come, at most `most` of them, or how the body ended.
    pub(crate) fn next(&mut self, most: usize) -> Result<Vec<u8>, End> {
        let bytes = self.step(most as u64).inspect_err(|&end| self.framing = Framing::Ended(end))?;
        self.received += bytes.len() as u64;
        Ok(bytes)
    }

    fn step(&mut self, most: u64) -> Result<Vec<u8>, End> {
        match self.framing {
            Framing::Ended(end) => Err(end),
            Framing::UntilClose => match self.connection.take(most) {
                Err(End::Cut) => Err(End::Complete),
                other => other,
            },
            Framing::Length(left) => {
                let bytes = self.connection.take(left.min(most))?;
                let left = left - bytes.len() as u64;
                self.framing = if left == 0 { Framing::Ended(End::Complete) } else { Framing::Length(left) };
                Ok(bytes)
            }
            Framing::Chunked { left: 0, first } => {
                if !first && !self.connection.line()?.is_empty() {
                    return Err(End::Malformed);
                }
                let size = self.connection.line()?;
                let size = size.split(';').next().unwrap_or_default().trim();
                let left = u64::from_str_radix(size, 16).map_err(|_| End::Malformed)?;
                if left == 0 {
                    while !self.connection.line()?.is_empty() {}
                    return Err(End::Complete);
                }
                self.framing = Framing::Chunked { left, first: false };
                self.step(most)
            }
            Framing::Chunked { left, first } => {
                let bytes = self.connection.take(left.min(most))?;
                self.framing = Framing::Chunked { left: left - bytes.len() as u64, first };
                Ok(bytes)
            }
        }
    }

    /// Reads on until `len` body bytes were received in all, or the body ended.
    pub(crate) fn read_to(&mut self, len: u64, into: &mut Vec<u8>) -> Result<(), End> {
        while self.received < len {
            let most = usize::try_from(len - self.received).unwrap_or(usize::MAX);
            into.extend(self.next(most)?);
        }
        Ok(())
    }

    /// Reads to the end, comparing instead of keeping: true if all that came is a prefix of `expected`.
    pub(crate) fn compare(mut self, expected: &[u8]) -> Compared {
        let mut same = true;
        loop {
            let at = usize::try_from(self.received).expect("64-bit");
            match self.next(1024 * 1024) {
                Ok(bytes) => same &= expected.get(at..at + bytes.len()) == Some(&bytes[..]),
                Err(end) => return Compared { same, len: self.received, end },
            }
        }
    }

    pub(crate) fn collect(self) -> Answer {
        self.finish().0
    }

    /// The whole answer, and the connection for the next request.
    pub(crate) fn finish(mut self) -> (Answer, Connection) {
        let mut body = Vec::new();
        loop {
            match self.next(usize::MAX) {
                Ok(bytes) => body.extend(bytes),
                Err(end) => return (Answer { head: self.head, body, end }, self.connection),
            }
        }
    }

    /// The connection for the next request, once the body has been read.
    pub(crate) fn into_connection(mut self) -> Connection {
        while self.next(usize::MAX).is_ok() {}
        self.connection
    }
}

/// What [`Exchange::compare`] saw.
#[derive(Debug)]
pub(crate) struct Compared {
    pub(crate) same: bool,
    pub(crate) len: u64,
    pub(crate) end: End,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) end: End,
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.head.status
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// The values of all headers called `name`, those of a list apart.
    pub(crate) fn header_values(&self, name: &str) -> Vec<&str> {
        let of_name = self.head.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        of_name.flat_map(|(_, value)| value.split(',')).map(str::trim).collect()
    }

    /// The answer has `status` and an OCI error with `code`.
    #[track_caller]
    pub(crate) fn expect_error(self, status: u16, code: &str) -> Self {
        let answer = self.expect(status);
        assert_eq!(answer.error_code(), code, "{answer}");
        answer
    }

    /// All that must not differ between two answers to the same request.
    pub(crate) fn comparable(&self) -> (u16, Vec<&(String, String)>, &[u8], End) {
        let mut headers: Vec<_> = self.head.headers.iter().filter(|(name, _)| name != "date").collect();
        headers.sort();
        (self.head.status, headers, &self.body, self.end)
    }

    /// The answer has `status` and came whole.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert!(
            self.head.status == status && self.end == End::Complete,
            "wanted a whole {status}, got {self}"
        );
        self
    }

    /// The body came whole and is `expected`; a difference is located rather than printed.
    #[track_caller]
    pub(crate) fn expect_body(self, expected: &[u8]) -> Self {
        let differs = self.body.iter().zip(expected).position(|(got, want)| got != want);
        assert!(
            self.end == End::Complete && differs.is_none() && self.body.len() == expected.len(),
            "wanted {} bytes, got {self}, first difference at {differs:?}",
            expected.len()
        );
        self
    }

    /// No content was served as if it were right: a server's error in OCI's form, or a body that visibly broke.
    #[track_caller]
    pub(crate) fn expect_failure(&self) {
        if self.end == End::Complete {
            assert!(self.status() >= 500 || self.status() == 429, "wanted a failure, got {self}");
            assert!(!self.error_code().is_empty(), "the failure has no OCI error: {self}");
        } else {
            assert!(matches!(self.end, End::Cut | End::Reset), "wanted a broken body, got {self}");
        }
    }

    /// The code of the first OCI error in the body.
    #[track_caller]
    pub(crate) fn error_code(&self) -> String {
        self.first_error()["code"].as_str().unwrap_or_default().to_owned()
    }

    /// The message of the first OCI error in the body.
    #[track_caller]
    pub(crate) fn error_message(&self) -> String {
        self.first_error()["message"].as_str().unwrap_or_default().to_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {self}"))
    }

    #[track_caller]
    fn first_error(&self) -> serde_json::Value {
        assert!(
            self.header("content-type").is_some_and(|kind| kind.starts_with("application/json")),
            "an OCI error is JSON: {self}"
        );
        self.json()["errors"][0].clone()
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.body[..self.body.len().min(300)];
        let shown = if self.body.len() > 2000 { "…".into() } else { String::from_utf8_lossy(shown) };
        write!(f, "{:?}, {} body bytes, then {:?}: {shown}", self.head, self.body.len(), self.end)
    }
}

pub(super) fn ended_by(error: &io::Error) -> End {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => End::TimedOut,
        _ => End::Reset,
    }
}
