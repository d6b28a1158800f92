//! A client that knows exactly what it writes, and that takes nothing on trust of what it reads.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// A test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    /// Bytes read behind what was asked for.
    ahead: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).unwrap())
    }

    /// A client whose kernel takes little ahead of it.
    pub(crate) fn connect_small(address: SocketAddr) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        socket.connect(&address.into()).unwrap();
        Self::over(socket.into())
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, ahead: Vec::new() }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.stream.write_all(bytes.as_ref()).unwrap();
        self
    }

    pub(crate) fn get(&mut self, path: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"));
        self.response()
    }

    pub(crate) fn half_close(&mut self) -> &mut Self {
        self.stream.shutdown(Shutdown::Write).unwrap();
        self
    }

    /// Reads some bytes; an empty result is a clean end.
    pub(crate) fn read_some(&mut self) -> io::Result<Vec<u8>> {
        if !self.ahead.is_empty() {
            return Ok(std::mem::take(&mut self.ahead));
        }
        let mut buf = vec![0; 64 * 1024];
        let len = loop {
            match self.stream.read(&mut buf) {
                // A socket with a timeout is not read again by itself when something wakes the thread.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        buf.truncate(len);
        Ok(buf)
    }

    /// Reads a head; returns status and fields.
    pub(crate) fn head(&mut self) -> io::Result<(u16, Vec<(String, String)>)> {
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
            let some = self.read_some()?;
            if some.is_empty() {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("ended in a head: {text:?}"),
                ));
            }
            bytes.extend(some);
        };
        self.ahead = bytes.split_off(end + 4);
        let text = String::from_utf8(bytes).unwrap();
        let mut lines = text.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let fields = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        Ok((status, fields))
    }

    pub(crate) fn response(&mut self) -> Response {
        self.try_response(true).unwrap()
    }

    /// The response to a HEAD.
    pub(crate) fn response_without_body(&mut self) -> Response {
        self.try_response(false).unwrap()
    }

    pub(crate) fn try_response(&mut self, has_body: bool) -> io::Result<Response> {
        let (status, fields) = self.head()?;
        let mut response = Response { status, fields, body: Vec::new() };
        if !has_body || matches!(status, 100 | 204 | 304) {
            return Ok(response);
        }
        response.body = if response.field("transfer-encoding") == Some("chunked") {
            self.chunked()?
        } else if let Some(len) = response.field("content-length") {
            self.exactly(len.parse().unwrap())?
        } else {
            self.until_end()?
        };
        Ok(response)
    }

    pub(crate) fn exactly(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = std::mem::take(&mut self.ahead);
        while bytes.len() < len {
            let some = self.read_some()?;
            if some.is_empty() {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("{} of {len} bytes", bytes.len()),
                ));
            }
            bytes.extend(some);
        }
        self.ahead = bytes.split_off(len);
        Ok(bytes)
    }

    fn chunked(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let mut line = Vec::new();
            while !line.ends_with(b"\r\n") {
                line.extend(self.exactly(1)?);
            }
            let size = std::str::from_utf8(&line).unwrap().trim_end();
            let size = usize::from_str_radix(size, 16).unwrap();
            body.extend(self.exactly(size)?);
            assert_eq!(self.exactly(2)?, b"\r\n");
            if size == 0 {
                return Ok(body);
            }
        }
    }

    fn until_end(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        loop {
            let some = self.read_some()?;
            if some.is_empty() {
                return Ok(bytes);
            }
            bytes.extend(some);
        }
    }

    /// Whether the connection ends here, cleanly and without another byte.
    pub(crate) fn expect_end(&mut self) {
        let rest = self.read_some().unwrap();
        assert!(rest.is_empty(), "more came: {:?}", String::from_utf8_lossy(&rest));
    }

    /// How the connection ends, whatever comes before.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        self.until_end().map(drop)
    }

    pub(crate) fn expect_reset(&mut self) {
        let end = self.end();
        let error = end.expect_err("a clean end where a reset must be");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    }
}
