//! The transport follows requests so that it can check their heads; hyper decodes them. Where the two put the boundaries
//! must be the same place, or a body could hide a request. So whatever framing takes as whole requests, hyper must take
//! as just those requests.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as _;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use proptest::prelude::*;
use spliceway::server::framing::{Framing, Step};
use spliceway::server::head::Limits;

const LIMITS: Limits = Limits { bytes: 4096, fields: 50 };

/// A connection whose peer has sent everything there is and then closed.
struct Recorded {
    input: Vec<u8>,
    at: usize,
}

impl Read for Recorded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        mut out: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let len = out.remaining().min(self.input.len() - self.at);
        out.put_slice(&self.input[self.at..self.at + len]);
        self.at += len;
        Poll::Ready(Ok(()))
    }
}

impl Write for Recorded {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Method, target and length of the decoded body of each request that hyper sees.
type Seen = Vec<(String, String, Result<usize, ()>)>;

fn seen_by_hyper(input: Vec<u8>) -> Seen {
    let seen = Rc::new(RefCell::new(Seen::new()));
    let log = Rc::clone(&seen);
    let service = service_fn(move |request: Request<Incoming>| {
        let log = Rc::clone(&log);
        async move {
            let (head, body) = request.into_parts();
            let mut body = pin!(body);
            let mut len = Ok(0);
            while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
                let Ok(frame) = frame else {
                    len = Err(());
                    break;
                };
                len = len.map(|len| len + frame.data_ref().map_or(0, Bytes::len));
            }
            log.borrow_mut().push((head.method.to_string(), head.uri.to_string(), len));
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    // Half-close, because the recorded peer has shut down its side from the start.
    let connection =
        http1::Builder::new().half_close(true).serve_connection(Recorded { input, at: 0 }, service);
    let _ = runtime.block_on(connection);
    seen.take()
}

/// The requests that framing takes as whole, and how many bytes they are.
fn followed(data: &[u8]) -> (usize, usize) {
    let mut framing = Framing::new(LIMITS);
    let (mut taken, mut requests, mut whole) = (0, 0, (0, 0));
    loop {
        match framing.step(&data[taken..]) {
            Step::Skip(len) | Step::Body(len) => taken += len,
            Step::Head(len, _) => {
                taken += len;
                requests += 1;
            }
            Step::More | Step::Refused(_) | Step::Malformed(_) => return whole,
        }
        if !framing.in_body() {
            whole = (requests, taken);
        }
    }
}

fn head() -> impl Strategy<Value = String> {
    let method = prop::sample::select(&["GET", "POST", "HEAD", "PUT", "X-Y"][..]);
    let target = prop::sample::select(&["/", "/a%20b?c=[d]|e", "http://a:1/x", "http://a?x", "/{", "//"][..]);
    let field = prop::sample::select(
        &[
            "X:y",
            "X: \u{e9}\t ",
            "Host: b",
            "Content-Length : 3",
            "content-length: 3",
            "Content-Length: 3, 3",
            "Transfer-Encoding: chunked",
            "Transfer-Encoding: gzip",
            "Expect: 100-continue",
            "Trailer: X",
            "~: ",
            " folded",
            "Connection: keep-alive",
        ][..],
    );
    (method, target, prop::collection::vec(field, 0..3), any::<bool>()).prop_map(
        |(method, target, fields, host)| {
            let host = if host { "Host: a\r\n" } else { "host:[::1]:5000 \r\n" };
            let fields: Vec<String> = fields.iter().map(|field| format!("{field}\r\n")).collect();
            format!("{method} {target} HTTP/1.1\r\n{host}{}", fields.concat())
        },
    )
}

fn body() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => Just("\r\n".to_owned()),
        2 => (0..20_usize).prop_map(|len| format!("Content-Length: {len}\r\n\r\n{}", "b".repeat(len))),
        4 => (prop::collection::vec((1..20_usize, any::<bool>()), 0..4), any::<bool>()).prop_map(|(chunks, trailer)| {
            let chunks: Vec<String> = chunks
                .iter()
                .map(|(len, extended)| {
                    let extension = if *extended { ";a=\"b\";c" } else { "" };
                    format!("{len:X}{extension}\r\n{}\r\n", "c".repeat(*len))
                })
                .collect();
            let trailer = if trailer { "X: y\r\n" } else { "" };
            format!("Transfer-Encoding: chunked\r\n\r\n{}0\r\n{trailer}\r\n", chunks.concat())
        }),
    ]
}

#[derive(Clone, Debug)]
enum Damage {
    Replace(usize, u8),
    Insert(usize, u8),
    Remove(usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let byte = prop_oneof![
        3 => prop::sample::select(&b"\r\n \t:;,0159Aa\0\xff+-"[..]),
        1 => any::<u8>(),
    ];
    (any::<usize>(), byte, 0..3).prop_map(|(at, byte, kind)| match kind {
        0 => Damage::Replace(at, byte),
        1 => Damage::Insert(at, byte),
        _ => Damage::Remove(at),
    })
}

fn damaged(requests: &[(String, String)], damages: &[Damage]) -> Vec<u8> {
    let mut data: Vec<u8> =
        requests.iter().flat_map(|(head, body)| [head.as_bytes(), body.as_bytes()].concat()).collect();
    for damage in damages {
        match damage {
            _ if data.is_empty() => {}
            Damage::Replace(at, byte) => {
                let at = at % data.len();
                data[at] = *byte;
            }
            Damage::Insert(at, byte) => data.insert(at % data.len(), *byte),
            Damage::Remove(at) => {
                data.remove(at % data.len());
            }
        }
    }
    data
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hyper_sees_the_requests_that_framing_sees(
        requests in prop::collection::vec((head(), body()), 1..4),
        damages in prop::collection::vec(damage(), 0..3),
    ) {
        let data = damaged(&requests, &damages);
        let (count, len) = followed(&data);
        let seen = seen_by_hyper(data[..len].to_vec());
        // A damaged version is the only way here to a request after which hyper closes.
        if !data[..len].windows(8).any(|window| window == b"HTTP/1.0") {
            prop_assert_eq!(seen.len(), count, "{:?} in {}", &seen, data[..len].escape_ascii());
        }
        prop_assert!(seen.iter().all(|(_, _, len)| len.is_ok()), "{:?} in {}", &seen, data[..len].escape_ascii());
    }
}

#[test]
fn undamaged_requests_are_seen_whole() {
    // So that the property above is not kept by following nothing.
    let data = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nX: y\r\n\r\n\
                 PUT /b HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabcd\r\nGET /c HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(followed(data), (3, data.len()));
    let seen = seen_by_hyper(data.to_vec());
    let of = |method: &str, target: &str, len| (method.to_owned(), target.to_owned(), Ok(len));
    assert_eq!(seen, [of("POST", "/a", 3), of("PUT", "/b", 4), of("GET", "/c", 0)]);
}
