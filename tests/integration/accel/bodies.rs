//! Bodies in both directions: streamed as they come, held nowhere, framed as each side understands it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;

use super::backend::{BODY, Backend, Told};
use super::front::{Files, Front, location};
use super::wire::{Wire, answering, application, field, peak_memory_bytes};
use crate::support::client::{Answer, End, Request, get};
use crate::support::listener::Listener;
use crate::support::plan::Gate;
use crate::support::{MIB, PATIENCE, eventually, noise};

const MEMORY_BYTES_MAX: u64 = 24 << 20;
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn front(backend: &Listener) -> Front {
    Front::before(&format!("http://{}", backend.addr()), "")
}

/// Reads a request's body, however it is framed; its trailers with it.
fn body_of(wire: &mut Wire, head: &[String]) -> Option<(Vec<u8>, Vec<String>)> {
    if field(head, "transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        return wire.chunked();
    }
    let len = field(head, "content-length").map_or(Some(0), |len| len.parse().ok())?;
    Some((wire.bytes(len).ok()?, Vec::new()))
}

/// An application that answers with the body that it was sent, framed likewise.
fn echo() -> Listener {
    application(|mut wire| {
        while let Some(head) = wire.head() {
            let Some((body, _)) = body_of(&mut wire, &head) else { return };
            let sized = field(&head, "content-length").is_some();
            let mut answer = if sized {
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes()
            } else {
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec()
            };
            for chunk in body.chunks(if sized { usize::MAX } else { 1000 }) {
                if !sized {
                    answer.extend(format!("{:x}\r\n", chunk.len()).bytes());
                }
                answer.extend(chunk);
                if !sized {
                    answer.extend(b"\r\n");
                }
            }
            if !sized {
                answer.extend(b"0\r\n\r\n");
            }
            if wire.send(answer).is_err() {
                return;
            }
        }
    })
}

#[test]
fn bodies_of_every_size_come_back() {
    let backend = echo();
    let front = front(&backend);
    for len in [0, 1, 2, 999, 1000, 1001, 65_535, 65_536, 65_537, 300_000, 5 * MIB + 3] {
        let bytes = noise(len as u64, len);
        let sized = Request::new("POST", "/").body(bytes.clone()).send(front.addr()).expect(200);
        assert_eq!(sized.header("content-length"), Some(&*len.to_string()));
        sized.expect_body(&bytes);
        for size in [1000, 70_000] {
            // A chunk each of a huge body is tried elsewhere.
            Request::new("PUT", "/")
                .chunked(bytes.clone(), size)
                .send(front.addr())
                .expect(200)
                .expect_body(&bytes);
        }
        // What has a body is up to the method's meaning, not to the front.
        for method in ["GET", "DELETE", "OPTIONS", "PROPFIND"] {
            Request::new(method, "/").body(bytes.clone()).send(front.addr()).expect(200).expect_body(&bytes);
        }
    }
}

#[test]
fn a_request_is_passed_on_while_it_is_sent() {
    let (came, coming) = mpsc::channel();
    let came = Mutex::new(came);
    let backend = application(move |mut wire| {
        let Some(head) = wire.head() else { return };
        if field(&head, "content-length").is_some() {
            for _ in 0..3 {
                let Ok(piece) = wire.bytes(5) else { return };
                came.lock().expect("not poisoned").send(piece).expect("the test waits");
            }
        } else {
            while let Some(chunk) = wire.chunk().filter(|chunk| !chunk.is_empty()) {
                came.lock().expect("not poisoned").send(chunk).expect("the test waits");
            }
            wire.head();
        }
        let _ = wire.send(OK);
    });
    let front = front(&backend);
    let mut sized = Wire::connect(front.addr());
    sized.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n").expect("sent");
    for _ in 0..3 {
        sized.send("piece").expect("sent");
        assert_eq!(coming.recv_timeout(PATIENCE).as_deref(), Ok(&b"piece"[..]), "a piece of a sized body");
    }
    assert!(sized.head().expect("an answer")[0].contains(" 200 "));
    let mut chunked = Wire::connect(front.addr());
    chunked.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").expect("sent");
    for _ in 0..3 {
        chunked.send("5\r\npiece\r\n").expect("sent");
        assert_eq!(coming.recv_timeout(PATIENCE).as_deref(), Ok(&b"piece"[..]), "a chunk");
    }
    chunked.send("0\r\n\r\n").expect("sent");
    assert!(chunked.head().expect("an answer")[0].contains(" 200 "));
}

#[test]
fn an_answer_is_passed_on_while_it_is_sent() {
    for framing in ["Content-Length: 15", "Transfer-Encoding: chunked", "Connection: close"] {
        let gates = [Gate::new(), Gate::new()];
        let waiting = gates.clone();
        let backend = application(move |mut wire| {
            wire.head();
            let piece = if framing.starts_with("Transfer") { "5\r\npiece\r\n" } else { "piece" };
            let _ = wire.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n"));
            for gate in &waiting {
                let _ = wire.send(piece);
                gate.pass();
            }
            let _ = wire.send(piece);
            if framing.starts_with("Transfer") {
                let _ = wire.send("0\r\n\r\n");
            }
        });
        let front = front(&backend);
        let mut exchange = Request::get("/").open(front.addr());
        let mut got = Vec::new();
        for (number, gate) in (1..).zip(&gates) {
            exchange.read_to(number * 5, &mut got).unwrap_or_else(|end| panic!("{framing}: {end:?}"));
            gate.open();
        }
        let rest = exchange.collect().expect(200);
        got.extend(&rest.body);
        assert_eq!(got, b"piecepiecepiece", "{framing}");
    }
}

#[test]
fn large_bodies_are_held_nowhere() {
    const LEN: u64 = 192 << 20;
    let held = Gate::new();
    let waiting = held.clone();
    let received = Arc::new(AtomicU64::new(0));
    let counting = received.clone();
    let backend = application(move |mut wire| {
        let Some(head) = wire.head() else { return };
        if head[0].starts_with("GET") {
            let _ = wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LEN}\r\n\r\n"));
            let piece = vec![b'x'; MIB];
            for _ in 0..LEN / MIB as u64 {
                let _ = wire.send(&piece);
            }
            return;
        }
        // As long as the application reads nothing, the client cannot go on.
        waiting.pass();
        for _ in 0..LEN / MIB as u64 {
            let Ok(piece) = wire.bytes(MIB) else { return };
            counting.fetch_add(piece.len() as u64, Ordering::SeqCst);
        }
        let _ = wire.send(OK);
    });
    let front = front(&backend);
    let before = peak_memory_bytes(&front.spliceway);
    let sent = AtomicU64::new(0);
    let mut wire = Wire::connect(front.addr());
    thread::scope(|scope| {
        let (sent, wire) = (&sent, &mut wire);
        let client = scope.spawn(move || {
            wire.send(format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {LEN}\r\n\r\n")).expect("sent");
            let piece = vec![b'x'; MIB];
            for _ in 0..LEN / MIB as u64 {
                wire.send(&piece).expect("sent");
                sent.fetch_add(MIB as u64, Ordering::SeqCst);
            }
            wire.head().expect("an answer")
        });
        held.wait_reached();
        // Until what is under way is in the buffers of two connections, and no more than that.
        let mut last = (u64::MAX, 0);
        eventually("the client to be held back", || {
            thread::sleep(std::time::Duration::from_millis(100));
            let now = sent.load(Ordering::SeqCst);
            last = if last.0 == now { (now, last.1 + 1) } else { (now, 0) };
            (last.1 == 5).then_some(())
        });
        assert!(last.0 < LEN, "the whole body was taken while the application read nothing of it");
        held.open();
        assert!(client.join().expect("the client does not panic")[0].contains(" 200 "));
    });
    assert_eq!(received.load(Ordering::SeqCst), LEN);
    // And the way back, to a client that reads nothing at first.
    let mut wire = Wire::connect(front.addr());
    wire.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("sent");
    wire.head().expect("an answer");
    thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(wire.count(), LEN);
    let grown = peak_memory_bytes(&front.spliceway) - before;
    assert!(grown < MEMORY_BYTES_MAX, "{grown} bytes more");
}

#[test]
fn a_request_body_has_a_limit_if_one_is_set() {
    let backend = echo();
    let front = Front::before(&format!("http://{}", backend.addr()), "body_bytes_max = \"64KiB\"");
    let addr = front.addr();
    let post = || Request::new("POST", "/");
    for len in [0, 1, 65_535, 65_536] {
        post().body(noise(1, len)).send(addr).expect(200).expect_body(&noise(1, len));
        post().chunked(noise(1, len), 1000).send(addr).expect(200).expect_body(&noise(1, len));
    }
    for len in [65_537, 10 * MIB] {
        assert_eq!(post().body(noise(1, len)).send(addr).status(), 413, "{len}");
        assert_eq!(post().chunked(noise(1, len), 1000).send(addr).status(), 413, "{len} in chunks");
    }
    // Refused before the client sends it.
    let mut wire = Wire::connect(addr);
    wire.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n")
        .expect("sent");
    assert!(wire.head().expect("an answer")[0].contains(" 413 "));
    get(addr, "/").expect(200);
}

#[test]
fn a_client_that_waits_for_100_gets_it() {
    let backend = echo();
    let front = front(&backend);
    let mut wire = Wire::connect(front.addr());
    for _ in 0..3 {
        wire.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
            .expect("sent");
        assert!(wire.head().expect("an interim answer")[0].contains(" 100 "));
        wire.send("body").expect("sent");
        let head = wire.head().expect("an answer");
        assert!(head[0].contains(" 200 "), "{head:?}");
        assert_eq!(wire.bytes(4).expect("a body"), b"body");
    }
    // An application that refuses at once: the client need not send anything.
    let refusing = application(|mut wire| {
        wire.head();
        let _ = wire.send("HTTP/1.1 401 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno");
    });
    let front = self::front(&refusing);
    let mut wire = Wire::connect(front.addr());
    wire.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        .expect("sent");
    let mut head = wire.head().expect("an answer");
    if head[0].contains(" 100 ") {
        wire.send("body").expect("sent");
        head = wire.head().expect("the final answer");
    }
    assert!(head[0].contains(" 401 "), "{head:?}");
}

#[test]
fn an_application_may_answer_before_the_body_came() {
    let early = application(|mut wire| {
        wire.head();
        let _ = wire.send("HTTP/1.1 403 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno");
        // Reads what comes, so that no reset overtakes the answer.
        let _ = wire.count();
    });
    let front = front(&early);
    let answer = Request::new("POST", "/").body(noise(1, 20 * MIB)).send(front.addr());
    assert_eq!(answer.status(), 403, "{answer}");
    // With a file likewise.
    let files = Files::new();
    let redirecting = application(|mut wire| {
        wire.head();
        let _ = wire
            .send("HTTP/1.1 200 OK\r\nX-Accel-Redirect: /protected/large.bin\r\nContent-Length: 0\r\n\r\n");
        let _ = wire.count();
    });
    // No timeout ends it: the client sends all before it reads anything, while the file waits for the client.
    let options = format!("stall_timeout = \"5m\"\n{}", location("/protected/", &files.root()));
    let front = Front::before(&format!("http://{}", redirecting.addr()), &options);
    let mut wire = Wire::connect(front.addr());
    let body = noise(1, 20 * MIB);
    wire.send(format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len())).expect("sent");
    wire.send(body).expect("the front takes a body that nobody asked for");
    assert!(wire.head().expect("an answer")[0].contains(" 200 "));
    let large = files.read("large.bin");
    assert!(wire.bytes(large.len()).expect("the whole file") == large);
}

#[test]
fn bodies_pass_both_ways_at_once() {
    let backend = application(|mut wire| {
        wire.head();
        let _ = wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        while let Some(chunk) = wire.chunk().filter(|chunk| !chunk.is_empty()) {
            let _ = wire.send(format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(&chunk)));
        }
        wire.head();
        let _ = wire.send("0\r\n\r\n");
    });
    let front = front(&backend);
    let mut wire = Wire::connect(front.addr());
    wire.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").expect("sent");
    assert!(wire.head().expect("an answer to what is not there yet")[0].contains(" 200 "));
    // A conversation: each side goes on when the other has said something.
    for number in 0..50 {
        let word = format!("word {number:02}");
        wire.send(format!("7\r\n{word}\r\n")).expect("sent");
        assert_eq!(wire.chunk().as_deref(), Some(word.as_bytes()));
    }
    wire.send("0\r\n\r\n").expect("sent");
    assert_eq!(wire.chunked(), Some((Vec::new(), Vec::new())));
}

#[test]
fn trailers_pass_both_ways() {
    let (came, coming) = mpsc::channel();
    let came = Mutex::new(came);
    let backend = application(move |mut wire| {
        while let Some(head) = wire.head() {
            if field(&head, "transfer-encoding").is_some() {
                let Some((_, trailers)) = wire.chunked() else { return };
                came.lock().expect("not poisoned").send(trailers).expect("the test waits");
            }
            let _ = wire.send(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
                 4\r\nbody\r\n0\r\nX-Sum: of the application\r\n\r\n",
            );
        }
    });
    let front = front(&backend);
    let mut wire = Wire::connect(front.addr());
    wire.send(
        "POST / HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n\
         4\r\nbody\r\n0\r\nX-Sum: of the client\r\n\r\n",
    )
    .expect("sent");
    let trailers = coming.recv_timeout(PATIENCE).expect("the body came");
    assert_eq!(field(&trailers, "x-sum"), Some("of the client"), "{trailers:?}");
    let head = wire.head().expect("an answer");
    assert!(field(&head, "transfer-encoding").is_some(), "{head:?}");
    let (body, trailers) = wire.chunked().expect("a whole body");
    assert_eq!((body.as_slice(), field(&trailers, "x-sum")), (&b"body"[..], Some("of the application")));
    // Who did not ask for them is not given any, and the connection goes on.
    for _ in 0..2 {
        get(front.addr(), "/").expect(200).expect_body(b"body");
    }
}

#[test]
fn a_client_of_http_1_0_is_served() {
    let files = Files::new();
    let backend = Backend::start();
    let front = Front::before(&backend.url(), &location("/protected/", &files.root()));
    let hello = Told::redirect("/protected/hello.txt").target();
    for (target, body) in [("/app", BODY.as_bytes()), (&hello, b"hello, world\n")] {
        let mut wire = Wire::connect(front.addr());
        wire.send(format!("GET {target} HTTP/1.0\r\n\r\n")).expect("sent");
        let head = wire.head().expect("an answer");
        assert!(head[0].contains(" 200 "), "{head:?}");
        assert_eq!(field(&head, "transfer-encoding"), None);
        assert_eq!(wire.rest().expect("the connection is closed in order"), body);
        let mut kept = Wire::connect(front.addr());
        for _ in 0..2 {
            kept.send(format!("GET {target} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")).expect("sent");
            let head = kept.head().expect("an answer");
            assert_eq!(field(&head, "content-length"), Some(&*body.len().to_string()), "{head:?}");
            assert_eq!(kept.bytes(body.len()).expect("a body"), body);
        }
    }
    // What has no length ends with the connection.
    let chunked = answering("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n");
    let front = self::front(&chunked);
    let mut wire = Wire::connect(front.addr());
    wire.send("GET / HTTP/1.0\r\n\r\n").expect("sent");
    let head = wire.head().expect("an answer");
    assert_eq!(field(&head, "transfer-encoding"), None, "{head:?}");
    assert_eq!(wire.rest().expect("the connection is closed in order"), b"body");
}

#[test]
fn a_client_that_leaves_ends_the_request_at_the_application() {
    let (ended, ending) = mpsc::channel();
    let ended = Mutex::new(ended);
    let asked = Gate::new();
    let asking = asked.clone();
    asked.open();
    let backend = application(move |mut wire| {
        let Some(head) = wire.head() else { return };
        if head[0].starts_with("POST /asked") {
            asking.pass();
        }
        if head[0].starts_with("GET /ok") {
            let _ = wire.send(OK);
            return;
        }
        if head[0].starts_with("GET") {
            let _ = wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
            while wire.send(&chunk).is_ok() {}
        } else {
            // The body is announced, and breaks off.
            assert!(wire.bytes(1000).is_err(), "more than the client sent");
        }
        ended.lock().expect("not poisoned").send(head[0].clone()).expect("the test waits");
    });
    let front = front(&backend);
    let mut uploading = Wire::connect(front.addr());
    uploading.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nsome text").expect("sent");
    drop(uploading);
    assert!(ending.recv_timeout(PATIENCE).expect("the application is told").starts_with("POST"));
    let mut chunked = Wire::connect(front.addr());
    chunked
        .send("PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n")
        .expect("sent");
    chunked.reset();
    assert!(ending.recv_timeout(PATIENCE).expect("the application is told").starts_with("PUT"));
    let mut downloading = Request::get("/").open(front.addr());
    downloading.next(1000).expect("some of it");
    drop(downloading);
    assert!(ending.recv_timeout(PATIENCE).expect("the application is told").starts_with("GET"));
    // Before there is an answer at all.
    let mut waiting = Wire::connect(front.addr());
    waiting.send("POST /asked HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n").expect("sent");
    asked.wait_reached();
    waiting.reset();
    assert!(ending.recv_timeout(PATIENCE).expect("the application is told").starts_with("POST"));
    let after: Answer = get(front.addr(), "/ok");
    assert_eq!(after.expect(200).end, End::Complete);
}
