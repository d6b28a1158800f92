//! An application that answers as the request tells it: `/app?status=401&h=ETag:"x"&body=text`.
//!
//! So a row of a table says in one place what is asked and what the application says to it, and the same request can be
//! sent through any server to the same application.

use std::fmt::Write as _;
use std::io::{self, BufReader, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::support::PATIENCE;
use crate::support::listener::{Listener, RequestHead};

/// What the application sends where nothing else is told.
pub(super) const BODY: &str = "from the application";
/// Redirects to itself, for ever.
pub(super) const CYCLE: &str = "/cycle";

/// What the application is told to answer.
#[derive(Clone, Default)]
pub(super) struct Told {
    query: String,
}

impl Told {
    /// 200 with [`BODY`] and these headers.
    pub(super) fn headers(headers: &[(&str, &str)]) -> Self {
        headers.iter().fold(Self::default(), |told, (name, value)| told.header(name, value))
    }

    /// `X-Accel-Redirect` to `path`.
    pub(super) fn redirect(path: &str) -> Self {
        Self::headers(&[("X-Accel-Redirect", path)])
    }

    pub(super) fn header(self, name: &str, value: &str) -> Self {
        self.pair("h", &format!("{name}:{value}"))
    }

    pub(super) fn status(self, status: u16) -> Self {
        self.pair("status", &status.to_string())
    }

    /// The path and query to be asked for.
    pub(super) fn target(&self) -> String {
        format!("/app?{}", self.query)
    }

    fn pair(mut self, key: &str, value: &str) -> Self {
        let _ = write!(self.query, "{key}={}&", utf8_percent_encode(value, NON_ALPHANUMERIC));
        self
    }
}

pub(super) struct Backend {
    listener: Listener,
    seen: Arc<Mutex<Vec<RequestHead>>>,
}

impl Backend {
    pub(super) fn start() -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noting = seen.clone();
        let listener = Listener::start(Arc::new(move |stream| {
            // A connection that broke off is the server's business.
            let _ = serve(stream, &noting);
        }));
        Self { listener, seen }
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.listener.addr()
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// The requests that came since the last call.
    pub(super) fn take_seen(&self) -> Vec<RequestHead> {
        std::mem::take(&mut *self.seen.lock().expect("not poisoned"))
    }
}

fn serve(mut stream: TcpStream, seen: &Mutex<Vec<RequestHead>>) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(head) = RequestHead::read(&mut reader)? {
        let closes = head.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let answer = answer(&head);
        seen.lock().expect("not poisoned").push(head);
        stream.write_all(&answer)?;
        if closes {
            return stream.shutdown(Shutdown::Both);
        }
    }
    Ok(())
}

fn answer(head: &RequestHead) -> Vec<u8> {
    let (mut status, mut fields) = ("200".to_owned(), Vec::new());
    for pair in head.query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value: Vec<u8> = percent_decode_str(value).collect();
        match key {
            "h" => fields.push(value),
            "status" => status = String::from_utf8_lossy(&value).into_owned(),
            _ => {}
        }
    }
    if head.path == CYCLE {
        fields.push(format!("X-Accel-Redirect: {CYCLE}").into_bytes());
    }
    let mut bytes = format!("HTTP/1.1 {status} Told\r\n").into_bytes();
    for field in fields {
        bytes.extend(field);
        bytes.extend(b"\r\n");
    }
    let bodiless = ["204", "304"].contains(&status.as_str());
    if !bodiless {
        bytes.extend(format!("Content-Length: {}\r\n", BODY.len()).bytes());
    }
    bytes.extend(b"\r\n");
    if !bodiless && head.method != "HEAD" {
        bytes.extend(BODY.bytes());
    }
    bytes
}
