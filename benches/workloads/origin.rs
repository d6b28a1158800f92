//! An upstream that never comes to an end: it sends the first half of everything and then stands still, so that a fill is
//! under way for as long as a bench looks at it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

/// Where it listens. Its threads end with the process, and its connections with their clients.
pub(crate) fn start(len: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // An error is a client that left.
            thread::spawn(move || serve(stream, len));
        }
    });
    address
}

fn serve(mut stream: TcpStream, len: usize) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n").as_bytes())?;
    stream.write_all(&vec![0; len / 2])?;
    // Until the client leaves.
    stream.read_exact(&mut [0])
}
