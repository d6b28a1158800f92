//! Requests of the raw HTTP/1.1 client, with every byte of the test's choosing.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::client::{Answer, Connection, End, Exchange, ended_by};

/// A request to be sent as it is; `Host` and what frames the body are added, nothing else.
#[derive(Clone)]
pub(crate) struct Request {
    method: &'static str,
    target: String,
    headers: Vec<(String, String)>,
    host: Option<String>,
    body: Payload,
}

/// The body of a request.
#[derive(Clone)]
enum Payload {
    /// None, and nothing is said about one.
    None,
    /// With Content-Length.
    Sized(Vec<u8>),
    /// In chunks of this size.
    Chunked(Vec<u8>, usize),
}

impl Request {
    pub(crate) fn new(method: &'static str, target: impl Into<String>) -> Self {
        Self { method, target: target.into(), headers: Vec::new(), host: None, body: Payload::None }
    }

    pub(crate) fn get(target: impl Into<String>) -> Self {
        Self::new("GET", target)
    }

    pub(crate) fn head(target: impl Into<String>) -> Self {
        Self::new("HEAD", target)
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// A body with its length.
    pub(crate) fn body(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.body = Payload::Sized(bytes.into());
        self
    }

    /// A body whose length the head does not say, in chunks of `size`.
    pub(crate) fn chunked(mut self, bytes: impl Into<Vec<u8>>, size: usize) -> Self {
        self.body = Payload::Chunked(bytes.into(), size);
        self
    }

    pub(crate) fn range(self, spec: &str) -> Self {
        self.header("Range", &format!("bytes={spec}"))
    }

    /// Opens a connection, sends the request and reads the head; the body is the caller's to read.
    #[track_caller]
    pub(crate) fn open(&self, addr: SocketAddr) -> Exchange {
        self.try_open(addr)
            .unwrap_or_else(|end| panic!("no head for {} {}: {end:?}", self.method, self.target))
    }

    /// As [`Request::open`], of a server that may be gone meanwhile.
    pub(crate) fn try_open(&self, addr: SocketAddr) -> Result<Exchange, End> {
        let mut connection = Connection::try_open(addr).map_err(|error| ended_by(&error))?;
        if let Err(error) = connection.write(&self.bytes(addr))
            && matches!(self.body, Payload::None)
        {
            return Err(ended_by(&error));
        }
        // A body may be refused before it was sent whole: the answer is there nevertheless.
        connection.exchange(self.method)
    }

    /// As [`Request::send`], of a server that may be gone meanwhile.
    pub(crate) fn try_send(&self, addr: SocketAddr) -> Option<Answer> {
        self.try_open(addr).ok().map(Exchange::collect)
    }

    /// Opens a connection, sends the request and reads the whole answer.
    #[track_caller]
    pub(crate) fn send(&self, addr: SocketAddr) -> Answer {
        self.open(addr).collect()
    }

    /// Another Host than the address that it is sent to.
    pub(crate) fn host(mut self, host: &str) -> Self {
        self.host = Some(host.into());
        self
    }

    pub(crate) fn method(&self) -> &'static str {
        self.method
    }

    pub(crate) fn bytes(&self, addr: SocketAddr) -> Vec<u8> {
        let host = self.host.clone().unwrap_or_else(|| addr.to_string());
        let mut text = format!("{} {} HTTP/1.1\r\nHost: {host}\r\n", self.method, self.target);
        for (name, value) in &self.headers {
            let _ = write!(text, "{name}: {value}\r\n");
        }
        match &self.body {
            Payload::None => text.push_str("\r\n"),
            Payload::Sized(body) => {
                let _ = write!(text, "Content-Length: {}\r\n\r\n", body.len());
            }
            Payload::Chunked(..) => text.push_str("Transfer-Encoding: chunked\r\n\r\n"),
        }
        let mut bytes = text.into_bytes();
        match &self.body {
            Payload::None => {}
            Payload::Sized(body) => bytes.extend(body),
            Payload::Chunked(body, size) => {
                for chunk in body.chunks(*size) {
                    bytes.extend(format!("{:x}\r\n", chunk.len()).bytes());
                    bytes.extend(chunk);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(b"0\r\n\r\n");
            }
        }
        bytes
    }
}

/// Shorthand for a plain GET.
pub(crate) fn get(addr: SocketAddr, target: &str) -> Answer {
    Request::get(target).send(addr)
}
