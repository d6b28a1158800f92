//! One end of a connection, by hand: an application that misbehaves, or a client that is more than a request.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;

use crate::support::PATIENCE;
use crate::support::listener::Listener;
use crate::support::process::Spliceway;

/// A connection read by lines and by lengths.
pub(super) struct Wire {
    reader: BufReader<TcpStream>,
}

impl Wire {
    pub(super) fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        Self { reader: BufReader::new(stream) }
    }

    pub(super) fn connect(addr: SocketAddr) -> Self {
        Self::new(TcpStream::connect(addr).expect("the server accepts"))
    }

    /// The same connection, to be written to from another thread.
    pub(super) fn second(&self) -> Self {
        Self::new(self.reader.get_ref().try_clone().expect("a second handle"))
    }

    pub(super) fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes.as_ref())
    }

    /// Says that nothing more comes.
    pub(super) fn finish(&mut self) {
        let _ = self.reader.get_ref().shutdown(Shutdown::Write);
    }

    /// Has the connection reset when it is dropped.
    pub(super) fn reset(self) {
        let socket = socket2::SockRef::from(self.reader.get_ref());
        socket.set_linger(Some(std::time::Duration::ZERO)).expect("SO_LINGER");
    }

    /// The next line without its end; `None` at the end of the connection.
    pub(super) fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        match self.reader.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned()),
        }
    }

    /// The lines of a head, or of trailers; `None` at the end of the connection.
    pub(super) fn head(&mut self) -> Option<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            match self.line()? {
                line if line.is_empty() => return Some(lines),
                line => lines.push(line),
            }
        }
    }

    /// Exactly so many bytes.
    pub(super) fn bytes(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// The next chunk of a chunked body (RFC 9112 section 7.1); empty is the last, whose trailers are still to be read.
    pub(super) fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = usize::from_str_radix(self.line()?.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(Vec::new());
        }
        let bytes = self.bytes(size).ok()?;
        self.line()?;
        Some(bytes)
    }

    /// A whole chunked body and its trailers.
    pub(super) fn chunked(&mut self) -> Option<(Vec<u8>, Vec<String>)> {
        let mut body = Vec::new();
        loop {
            match self.chunk()? {
                chunk if chunk.is_empty() => return Some((body, self.head()?)),
                chunk => body.extend(chunk),
            }
        }
    }

    /// Everything until the other side closes.
    pub(super) fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest)?;
        Ok(rest)
    }

    /// How many bytes come until the other side closes or resets, none of which are kept.
    pub(super) fn count(&mut self) -> u64 {
        let mut buffer = vec![0; 1 << 20];
        let mut len = 0;
        loop {
            match self.reader.read(&mut buffer) {
                Ok(0) | Err(_) => return len,
                Ok(read) => len += read as u64,
            }
        }
    }
}

/// The value of a header in the lines of a head.
pub(super) fn field<'a>(head: &'a [String], name: &str) -> Option<&'a str> {
    head.iter().find_map(|line| {
        let (known, value) = line.split_once(':')?;
        known.trim().eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// An application that does with each connection what `serve` says.
pub(super) fn application(serve: impl Fn(Wire) + Send + Sync + 'static) -> Listener {
    Listener::start(Arc::new(move |stream| serve(Wire::new(stream))))
}

/// An application that reads each head and sends `answer`, then closes.
pub(super) fn answering(answer: impl Into<Vec<u8>>) -> Listener {
    let answer = answer.into();
    application(move |mut wire| {
        if wire.head().is_some() {
            // A front that has enough of it closes first.
            let _ = wire.send(&answer);
        }
    })
}

/// The most memory that the process ever had resident.
pub(super) fn peak_memory_bytes(spliceway: &Spliceway) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", spliceway.pid())).expect("it is running");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line of the kernel's");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
}
