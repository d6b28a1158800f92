//! A threaded HTTP/1.1 listener that can be stopped and started again on its port.
//!
//! The port stays reserved by a second, never listening socket while the listener is stopped: connections are
//! refused, and no parallel test is given the port meanwhile.

use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

/// What one connection is served by; it returns when the connection is done.
pub(crate) type Serve = Arc<dyn Fn(TcpStream) + Send + Sync>;

pub(crate) struct Listener {
    addr: SocketAddr,
    serve: Serve,
    running: Option<Running>,
    _reserved: Socket,
}

struct Running {
    stop: Arc<AtomicBool>,
    accepting: JoinHandle<()>,
    open: Open,
}

/// Second handles of the open connections, to be shut down with the listener.
type Open = Arc<Mutex<HashMap<u64, TcpStream>>>;

impl Listener {
    pub(crate) fn start(serve: Serve) -> Self {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), serve)
    }

    /// At an address of the test's choosing; port 0 is the kernel's choice.
    pub(crate) fn start_at(addr: SocketAddr, serve: Serve) -> Self {
        let reserved = socket(addr);
        let addr = reserved.local_addr().expect("bound").as_socket().expect("an IP address");
        let mut listener = Self { addr, serve, running: None, _reserved: reserved };
        listener.restart();
        listener
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends every connection and refuses new ones.
    pub(crate) fn stop(&mut self) {
        let Some(running) = self.running.take() else { return };
        running.stop.store(true, Ordering::SeqCst);
        running.accepting.join().expect("the accepting thread does not panic");
        for stream in running.open.lock().expect("not poisoned").values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Listens again on the same port.
    pub(crate) fn restart(&mut self) {
        assert!(self.running.is_none(), "the listener is running");
        let socket = socket(self.addr);
        socket.listen(1024).expect("listen");
        let listener = TcpListener::from(socket);
        listener.set_nonblocking(true).expect("non-blocking");
        let stop = Arc::new(AtomicBool::new(false));
        let open = Open::default();
        let accepting = {
            let (stop, open, serve) = (stop.clone(), open.clone(), self.serve.clone());
            std::thread::spawn(move || accept(&listener, &stop, &open, &serve))
        };
        self.running = Some(Running { stop, accepting, open });
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop();
    }
}

fn socket(addr: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).expect("socket");
    socket.set_reuse_address(true).expect("SO_REUSEADDR");
    socket.set_reuse_port(true).expect("SO_REUSEPORT");
    socket.bind(&addr.into()).expect("bind");
    socket
}

fn accept(listener: &TcpListener, stop: &AtomicBool, open: &Open, serve: &Serve) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    while !stop.load(Ordering::SeqCst) {
        let Ok((stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        stream.set_nonblocking(false).expect("blocking");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        if let Ok(second) = stream.try_clone() {
            open.lock().expect("not poisoned").insert(id, second);
        }
        let (open, serve) = (open.clone(), serve.clone());
        std::thread::spawn(move || {
            serve(stream);
            open.lock().expect("not poisoned").remove(&id);
        });
    }
}

/// The head of a request, as it came.
#[derive(Clone, Debug)]
pub(crate) struct RequestHead {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    headers: Vec<(String, String)>,
}

impl RequestHead {
    /// Reads one head, and its body away; `None` at the end of the connection.
    pub(crate) fn read(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Self>> {
        let Some(head) = Self::read_alone(reader)? else { return Ok(None) };
        let length = head.header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
        io::copy(&mut reader.take(length), &mut io::sink())?;
        Ok(Some(head))
    }

    /// Reads one head; its body is the caller's to read.
    pub(super) fn read_alone(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Self>> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let (Some(method), Some(target)) = (words.next(), words.next()) else {
            return Err(io::Error::other(format!("not a request line: {line:?}")));
        };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let headers = read_headers(reader)?;
        Ok(Some(Self { method: method.into(), path: path.into(), query: query.into(), headers }))
    }

    /// As it stood in the request line.
    pub(crate) fn target(&self) -> String {
        if self.query.is_empty() { self.path.clone() } else { format!("{}?{}", self.path, self.query) }
    }

    pub(super) fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The value of `key` in the query, percent-decoded where the tests need it (`:` and `/`).
    pub(crate) fn query_value(&self, key: &str) -> Option<String> {
        self.query_values(key).next()
    }

    /// The values of `key` in the query, which may be there several times.
    pub(crate) fn query_values(&self, key: &str) -> impl Iterator<Item = String> {
        self.query.split('&').filter_map(move |pair| {
            let (name, value) = pair.split_once('=')?;
            (name == key).then(|| {
                let decoded = percent_encoding::percent_decode_str(value).decode_utf8_lossy();
                decoded.replace('+', " ")
            })
        })
    }
}

/// Reads header lines, names in lower case, up to the empty line.
pub(super) fn read_headers(reader: &mut impl io::BufRead) -> io::Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(headers);
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
}
