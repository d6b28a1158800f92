//! A registry's stand-in: HTTP/1.1 on a loopback port, on threads of its own, that records what it is asked and can
//! misbehave. Its threads end with the test's process.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A request as it came.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) method: String,
    /// Path and query.
    pub(super) target: String,
    headers: Vec<(String, String)>,
    pub(super) body: String,
    /// Which connection it came on, counted from 0.
    pub(super) connection: usize,
    /// Which request on this connection it is, counted from 0.
    pub(super) nth: usize,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    pub(super) fn authorization(&self) -> Option<&str> {
        self.header("authorization")
    }
}

/// What goes wrong with an answer.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// No byte of an answer; the connection stays open.
    StallHead,
    /// The body stops after so many bytes; the connection stays open.
    StallBody(usize),
    /// The body stops after so many bytes; the connection is closed.
    CutBody(usize),
    /// The connection is closed without an answer.
    Close,
}

/// An answer.
#[derive(Clone)]
pub(super) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    is_chunked: bool,
    fault: Fault,
}

impl Reply {
    pub(super) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, headers: Vec::new(), body: body.into(), is_chunked: false, fault: Fault::None }
    }

    pub(super) fn status(status: u16) -> Self {
        Self { status, ..Self::ok("") }
    }

    pub(super) fn redirect(location: impl Into<String>) -> Self {
        Self::status(307).header("Location", location)
    }

    pub(super) fn challenge(challenge: impl Into<String>) -> Self {
        Self::status(401).header("WWW-Authenticate", challenge).body("{}")
    }

    pub(super) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(super) fn body(self, body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..self }
    }

    pub(super) fn chunked(self) -> Self {
        Self { is_chunked: true, ..self }
    }

    pub(super) fn stall_head() -> Self {
        Self { fault: Fault::StallHead, ..Self::ok("") }
    }

    pub(super) fn close() -> Self {
        Self { fault: Fault::Close, ..Self::ok("") }
    }

    pub(super) fn stall_after(self, len: usize) -> Self {
        Self { fault: Fault::StallBody(len), ..self }
    }

    pub(super) fn cut_after(self, len: usize) -> Self {
        Self { fault: Fault::CutBody(len), ..self }
    }

    fn wire(&self, is_head: bool) -> Vec<u8> {
        let mut wire = format!("HTTP/1.1 {} x\r\n", self.status).into_bytes();
        for (name, value) in &self.headers {
            wire.extend(format!("{name}: {value}\r\n").bytes());
        }
        if self.is_chunked {
            wire.extend(b"Transfer-Encoding: chunked\r\n\r\n");
        } else {
            wire.extend(format!("Content-Length: {}\r\n\r\n", self.body.len()).bytes());
        }
        let sent = match self.fault {
            Fault::StallBody(len) | Fault::CutBody(len) => &self.body[..len],
            _ => &self.body[..],
        };
        if is_head {
            return wire;
        }
        if self.is_chunked {
            wire.extend(format!("{:x}\r\n", sent.len()).bytes());
            wire.extend(sent);
            wire.extend(b"\r\n");
            if self.fault == Fault::None {
                wire.extend(b"0\r\n\r\n");
            }
        } else {
            wire.extend(sent);
        }
        wire
    }
}

type Handler = Arc<dyn Fn(&Seen) -> Reply + Send + Sync>;

pub(super) struct Server {
    pub(super) addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    scheme: &'static str,
}

impl Server {
    pub(super) fn start(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0", handler)
    }

    pub(super) fn start_at(addr: &str, handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::run(addr, None, Arc::new(handler))
    }

    pub(super) fn start_tls(
        tls: Arc<ServerConfig>,
        handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::run("127.0.0.1:0", Some(tls), Arc::new(handler))
    }

    pub(super) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.addr)
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The paths asked for, in order.
    pub(super) fn paths(&self) -> Vec<String> {
        self.seen().iter().map(|seen| seen.path().to_owned()).collect()
    }

    fn run(addr: &str, tls: Option<Arc<ServerConfig>>, handler: Handler) -> Self {
        let listener = TcpListener::bind(addr).unwrap();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let server = Self {
            addr: listener.local_addr().unwrap(),
            seen: Arc::clone(&seen),
            scheme: if tls.is_some() { "https" } else { "http" },
        };
        thread::spawn(move || {
            for (connection, stream) in listener.incoming().enumerate() {
                let Ok(stream) = stream else { return };
                let (seen, handler, tls) = (Arc::clone(&seen), Arc::clone(&handler), tls.clone());
                // An I/O error ends the connection: the client has gone, or refused our certificate.
                thread::spawn(move || {
                    let _ = match tls {
                        Some(config) => {
                            let session = ServerConnection::new(config).unwrap();
                            serve(StreamOwned::new(session, stream), connection, &seen, &*handler)
                        }
                        None => serve(Plain(stream), connection, &seen, &*handler),
                    };
                });
            }
        });
        server
    }
}

/// A port of the loopback address where nobody listens.
pub(super) fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Reads and writes of one socket through one value, as `StreamOwned` offers them.
struct Plain(TcpStream);

impl Read for Plain {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Plain {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn serve<S: Read + Write>(
    stream: S,
    connection: usize,
    log: &Mutex<Vec<Seen>>,
    handler: &dyn Fn(&Seen) -> Reply,
) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    for nth in 0.. {
        let Some(seen) = read_request(&mut stream, connection, nth)? else { return Ok(()) };
        log.lock().unwrap().push(seen.clone());
        let reply = handler(&seen);
        match reply.fault {
            Fault::Close => return Ok(()),
            Fault::StallHead => {}
            _ => stream.get_mut().write_all(&reply.wire(seen.method == "HEAD"))?,
        }
        stream.get_mut().flush()?;
        match reply.fault {
            Fault::CutBody(_) => return Ok(()),
            Fault::StallHead | Fault::StallBody(_) => {
                // Until the client gives up.
                io::copy(&mut stream, &mut io::sink())?;
                return Ok(());
            }
            _ => {}
        }
    }
    Ok(())
}

fn read_request(stream: &mut impl BufRead, connection: usize, nth: usize) -> io::Result<Option<Seen>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let mut request_line = lines[0].split(' ').map(ToOwned::to_owned);
    let headers: Vec<_> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let mut body = vec![0; length.map_or(0, |(_, value)| value.parse().unwrap())];
    stream.read_exact(&mut body)?;
    Ok(Some(Seen {
        method: request_line.next().unwrap(),
        target: request_line.next().unwrap(),
        headers,
        body: String::from_utf8(body).unwrap(),
        connection,
        nth,
    }))
}
