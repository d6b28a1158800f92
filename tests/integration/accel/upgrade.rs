//! Connections that become something else (RFC 9110 section 7.8), of which a websocket is one: both sides talk through
//! the front as if it were not there.

use std::thread;
use std::time::Duration;

use super::front::Front;
use super::wire::{Wire, answering, application, field};
use crate::support::client::{Request, get};
use crate::support::listener::Listener;
use crate::support::{MIB, noise};

const ASK: &str = "GET /socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// An application that agrees, sends `first` behind its head and then what it is sent.
fn echo(first: &'static str) -> Listener {
    application(move |mut wire| {
        let Some(head) = wire.head() else { return };
        let asked = field(&head, "upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
            && field(&head, "connection").is_some_and(|value| value.to_ascii_lowercase().contains("upgrade"))
            && field(&head, "sec-websocket-key").is_some();
        if !asked {
            let _ = wire.send("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 3\r\n\r\nask");
            return;
        }
        if wire.send(format!("{SWITCH}{first}")).is_err() {
            return;
        }
        while let Ok(byte) = wire.bytes(1) {
            if wire.send(byte).is_err() {
                return;
            }
        }
    })
}

fn front(backend: &Listener) -> Front {
    Front::before(&format!("http://{}", backend.addr()), "")
}

/// A client that has its connection upgraded.
#[track_caller]
fn upgraded(front: &Front, early: &str) -> Wire {
    let mut wire = Wire::connect(front.addr());
    wire.send(format!("{ASK}{early}")).expect("sent");
    let head = wire.head().expect("an answer");
    assert!(head[0].contains(" 101 "), "{head:?}");
    assert_eq!(field(&head, "sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert!(field(&head, "upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")), "{head:?}");
    assert!(
        field(&head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("upgrade")),
        "{head:?}"
    );
    wire
}

#[test]
fn both_sides_talk() {
    let backend = echo("welcome");
    let front = front(&backend);
    // Without waiting for the answer, as a client may that knows what it gets.
    for early in ["", "early"] {
        let mut wire = upgraded(&front, early);
        assert_eq!(wire.bytes(7).expect("what came behind the head"), b"welcome");
        assert_eq!(wire.bytes(early.len()).expect("what was sent behind the head"), early.as_bytes());
        for word in ["a", "longer", "\0\u{1}\u{ff}", "GET / HTTP/1.1\r\n\r\n"] {
            wire.send(word).expect("sent");
            assert_eq!(wire.bytes(word.len()).expect("an echo"), word.as_bytes());
        }
        // Half closed: what is under way still comes.
        wire.send("last").expect("sent");
        wire.finish();
        assert_eq!(wire.rest().expect("an orderly end"), b"last");
    }
    get(front.addr(), "/").expect(426);
}

#[test]
fn much_goes_both_ways_at_once() {
    const LEN: usize = 8 * MIB;
    let backend = application(|mut wire| {
        wire.head();
        let _ = wire.send(SWITCH);
        let bytes = noise(2, LEN);
        thread::scope(|scope| {
            let mut writer = wire.second();
            scope.spawn(move || writer.send(&bytes));
            let came = wire.bytes(LEN).expect("what the client sends");
            assert!(came == noise(1, LEN));
        });
        let _ = wire.send("done");
    });
    let front = front(&backend);
    let mut wire = upgraded(&front, "");
    thread::scope(|scope| {
        let mut writer = wire.second();
        scope.spawn(move || writer.send(noise(1, LEN)).expect("sent"));
        assert!(wire.bytes(LEN).expect("what the application sends") == noise(2, LEN));
    });
    assert_eq!(wire.rest().expect("an orderly end"), b"done");
}

#[test]
fn either_side_may_end_it() {
    // The application does.
    let leaving = application(|mut wire| {
        wire.head();
        let _ = wire.send(format!("{SWITCH}bye"));
    });
    let before_leaving = front(&leaving);
    let mut wire = upgraded(&before_leaving, "");
    assert_eq!(wire.rest().expect("an orderly end"), b"bye");
    // The client does: the application's connection ends too.
    let (gone, going) = std::sync::mpsc::channel();
    let gone = std::sync::Mutex::new(gone);
    let staying = application(move |mut wire| {
        wire.head();
        let _ = wire.send(SWITCH);
        let _ = wire.count();
        gone.lock().expect("not poisoned").send(()).expect("the test waits");
    });
    let front = front(&staying);
    drop(upgraded(&front, ""));
    going.recv_timeout(crate::support::PATIENCE).expect("the application is told");
    upgraded(&front, "").reset();
    going.recv_timeout(crate::support::PATIENCE).expect("the application is told of a reset");
    get(front.spliceway.admin(), "/readyz").expect(200);
}

#[test]
fn an_application_may_refuse_it() {
    for status in ["200 OK", "400 Bad Request", "401 Unauthorized", "404 Not Found"] {
        let refusing = answering(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno"));
        let front = front(&refusing);
        let mut wire = Wire::connect(front.addr());
        for _ in 0..2 {
            // The connection is HTTP as before.
            wire.send(ASK).expect("sent");
            let head = wire.head().expect("an answer");
            assert!(head[0].contains(status), "{head:?}");
            assert_eq!(wire.bytes(2).expect("a body"), b"no");
        }
    }
}

#[test]
fn nothing_is_upgraded_that_did_not_ask_for_it() {
    let eager = answering(SWITCH);
    let front = front(&eager);
    let answer = Request::get("/").send(front.addr());
    assert_eq!(answer.status(), 502, "{answer}");
    // The field without the option is not a question (RFC 9110 section 7.8), a request with a body cannot change the
    // protocol before that is over, and in `h2c` the front would see no further request.
    let backend = application(|mut wire| {
        let Some(head) = wire.head() else { return };
        let length = field(&head, "content-length").map_or(0, |length| length.parse().expect("a number"));
        let _ = wire.bytes(length);
        let fields = ["upgrade", "ignored", "connection"].map(|name| field(&head, name));
        let seen = format!("{fields:?}");
        let _ = wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{seen}", seen.len()));
    });
    let front = self::front(&backend);
    for request in [
        Request::get("/").header("Upgrade", "websocket"),
        Request::new("POST", "/").header("Connection", "Upgrade").header("Upgrade", "websocket").body("text"),
        Request::get("/").header("Connection", "Upgrade, HTTP2-Settings").header("Upgrade", "h2c"),
    ] {
        request.send(front.addr()).expect(200).expect_body(b"[None, None, None]");
    }
}

#[test]
fn an_upgraded_connection_may_be_quiet() {
    let backend = echo("");
    let front = front(&backend);
    let mut wire = upgraded(&front, "");
    // Longer than any answer may take, shorter than an idle connection may last.
    thread::sleep(Duration::from_secs(2));
    wire.send("still here").expect("sent");
    assert_eq!(wire.bytes(10).expect("an echo"), b"still here");
}
