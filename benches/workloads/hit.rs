//! A blob that is held, from the client's request to its last byte, over loopback: the program as built, with one worker
//! and without an access log, and a client that does nothing but read.
//!
//! The times are those of a round trip: the client's system calls and the kernel's wake-ups are in them, for small blobs
//! more of those than of ours. `repeated` is the same request in the same words, which is answered without the HTTP
//! library from the third time on (but for once in 500 ms); bodies above 4 MiB are not. In `ordinary` a header differs
//! every time.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use divan::Bencher;
use divan::counter::BytesCount;
use spliceway::oci::Digest;
use spliceway::store::Layout;
use tempfile::TempDir;

use crate::worker::{blob_path, hold};
use crate::{KIB, MIB, Size, noise};

#[divan::bench(args = [Size(4 * KIB), Size(64 * KIB), Size(256 * KIB)], min_time = 0.5)]
fn repeated(bencher: Bencher, size: Size) {
    let server = Server::holding(&noise(size.0));
    let mut client = server.client();
    let request = server.request("");
    for _ in 0..3 {
        client.get(&request, size.0);
    }
    bencher.counter(BytesCount::new(size.0)).bench_local(|| client.get(&request, size.0));
}

#[divan::bench(args = [Size(4 * KIB), Size(64 * KIB), Size(256 * KIB), Size(MIB)], min_time = 0.5)]
fn ordinary(bencher: Bencher, size: Size) {
    let server = Server::holding(&noise(size.0));
    let mut client = server.client();
    let mut number = 0_u64;
    let mut get = || {
        number += 1;
        client.get(&server.request(&format!("X-Request: {number}\r\n")), size.0);
    };
    get();
    bencher.counter(BytesCount::new(size.0)).bench_local(get);
}

/// The program, ended when this is dropped.
struct Server {
    child: Child,
    address: SocketAddr,
    digest: Digest,
    _home: TempDir,
}

impl Server {
    /// Serves one blob, as if it had been pushed.
    fn holding(bytes: &[u8]) -> Self {
        let home = TempDir::with_prefix("spliceway-bench-").expect("a temporary directory");
        let digest = hold(&Layout::new(home.path().join("data/local")), bytes);
        let config = home.path().join("spliceway.toml");
        fs::write(&config, "[server]\nworkers = 1\naccess_log = \"off\"\n").expect("our own directory");
        let mut child = Command::new(env!("CARGO_BIN_EXE_spliceway"))
            .args(["serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(&config)
            .arg("--data")
            .arg(home.path().join("data"))
            .stderr(Stdio::piped())
            .spawn()
            .expect("it was built");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("listening on http://")?.parse().ok())
            .expect("it says where it listens");
        // Whatever else it says is of no interest, but it must be able to.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { child, address, digest, _home: home }
    }

    fn client(&self) -> Client {
        let stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        Client { stream, buffer: vec![0; 2 * MIB] }
    }

    fn request(&self, fields: &str) -> Vec<u8> {
        let path = blob_path(&self.digest);
        format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{fields}\r\n", self.address).into_bytes()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection that is kept.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    /// Sends the request and reads the answer, whose body has `len` bytes.
    fn get(&mut self, request: &[u8], len: usize) {
        self.stream.write_all(request).expect("it reads");
        let mut read = 0;
        let head = loop {
            read += self.read(read);
            let end = self.buffer[..read].windows(4).position(|window| window == b"\r\n\r\n");
            if let Some(end) = end {
                break end + 4;
            }
        };
        assert!(self.buffer.starts_with(b"HTTP/1.1 200 "));
        while read < head + len {
            read += self.read(read);
        }
        assert_eq!(read, head + len);
    }

    fn read(&mut self, at: usize) -> usize {
        let read = self.stream.read(&mut self.buffer[at..]).expect("it answers");
        assert!(read > 0, "it closed the connection");
        read
    }
}
