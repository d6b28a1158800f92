//! Applications that are down, silent, broken or gone: the client is told, and a broken answer never looks whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::backend::{BODY, Backend, Told};
use super::front::{Files, Front, location};
use super::nginx::Reserved;
use super::wire::{Wire, answering, application, field};
use crate::support::client::{Answer, Connection, End, Request, get};
use crate::support::listener::Listener;
use crate::support::{KIB, MIB, eventually};

fn front(backend: &Listener) -> Front {
    Front::before(&format!("http://{}", backend.addr()), "")
}

/// One that does not wait for long: for applications that say nothing.
fn impatient(backend: &Listener) -> Front {
    let timeouts = "header_timeout = \"500ms\"\nstall_timeout = \"500ms\"";
    Front::before(&format!("http://{}", backend.addr()), timeouts)
}

/// An error of the front's own: a page in plain text, whose text is that of the status.
#[track_caller]
fn assert_page(what: &str, status: u16, answer: &Answer) {
    assert_eq!((answer.status(), answer.end), (status, End::Complete), "{what}: {answer}");
    assert!(
        answer.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")),
        "{what}: {answer}"
    );
    let text = String::from_utf8_lossy(&answer.body);
    assert!(text.starts_with(&status.to_string()), "{what}: {answer}");
}

/// The head came and the body visibly broke.
#[track_caller]
fn assert_broken(what: &str, answer: &Answer) {
    assert_eq!(answer.status(), 200, "{what}: {answer}");
    assert!(matches!(answer.end, End::Cut | End::Reset), "{what}: looks whole: {answer}");
}

#[test]
fn an_application_that_is_down_is_502_until_it_is_up() {
    let nobody = Reserved::new();
    let front = Front::before(&format!("http://{}", nobody.addr), "");
    assert_page("refused", 502, &get(front.addr(), "/"));
    assert_page("refused", 502, &Request::new("POST", "/").body("some text").send(front.addr()));
    assert!(Request::head("/").send(front.addr()).expect(502).body.is_empty());

    let mut backend = answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let front = self::front(&backend);
    for _ in 0..3 {
        get(front.addr(), "/").expect(200).expect_body(b"ok");
        backend.stop();
        eventually("502", || (get(front.addr(), "/").status() == 502).then_some(()));
        backend.restart();
        eventually("200", || (get(front.addr(), "/").status() == 200).then_some(()));
    }
    let missing = Front::before("unix:/nowhere/at/all.sock", "");
    assert_page("no socket", 502, &get(missing.addr(), "/"));
}

#[test]
fn an_application_that_says_nothing_is_504() {
    let silent = application(|mut wire| {
        wire.head();
        // Until the front has enough of it.
        wire.line();
    });
    let front = impatient(&silent);
    assert_page("silent", 504, &get(front.addr(), "/"));
    assert_page("silent", 504, &Request::new("PUT", "/").body("some text").send(front.addr()));
    let half = application(|mut wire| {
        wire.head();
        let _ = wire.send("HTTP/1.1 200 OK\r\nContent-Le");
        wire.line();
    });
    assert_page("half a head", 504, &get(impatient(&half).addr(), "/"));
}

#[test]
fn what_is_no_answer_is_502() {
    let huge = format!("HTTP/1.1 200 OK\r\nX-Huge: {}\r\nContent-Length: 0\r\n\r\n", "x".repeat(2 * MIB));
    let many = format!("HTTP/1.1 200 OK\r\n{}Content-Length: 0\r\n\r\n", "X-Many: x\r\n".repeat(20_000));
    for answer in [
        "",
        "garbage\r\n\r\n",
        "\r\n\r\n",
        "HTTP/1.1 abc\r\n\r\n",
        "HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 1000 High\r\nContent-Length: 0\r\n\r\n",
        "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/1.1 200 OK\r\nContent-Le",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1x\r\n\r\nx",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\nx",
        "HTTP/1.1 200 OK\r\nBad Name: x\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX-Nul: a\0b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        &huge,
        &many,
    ] {
        let backend = answering(answer);
        let front = front(&backend);
        let shown = &answer[..answer.len().min(60)];
        assert_page(&format!("{shown:?}"), 502, &get(front.addr(), "/"));
        assert_page(&format!("{shown:?}"), 502, &Request::new("POST", "/").body("x").send(front.addr()));
    }
}

#[test]
fn a_head_of_some_size_passes() {
    let large =
        format!("HTTP/1.1 200 OK\r\nX-Large: {}\r\nContent-Length: 2\r\n\r\nok", "x".repeat(12 * KIB));
    let backend = answering(large);
    let front = front(&backend);
    let answer = get(front.addr(), "/").expect(200).expect_body(b"ok");
    assert_eq!(answer.header("x-large").map(str::len), Some(12 * KIB));
}

#[test]
fn a_body_that_breaks_off_is_broken_for_the_client() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let sized = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n";
    for answer in [
        format!("{sized}ten bytes."),
        sized.into(),
        format!("{chunked}a\r\nten bytes.\r\n"),
        format!("{chunked}a\r\nten "),
        format!("{chunked}a\r\nten bytes.\r\nzz\r\nnot a size"),
        format!("{chunked}a\r\nten bytes.XX5\r\n"),
        format!("{chunked}fffffffffffffffffff\r\nten bytes."),
        format!("{chunked}0\r\nX-Trailer"),
        chunked.into(),
    ] {
        let backend = answering(answer.clone());
        let front = front(&backend);
        // A reset may overtake even the head.
        let Ok(exchange) = Request::get("/").try_open(front.addr()) else { continue };
        let (broken, mut connection) = exchange.finish();
        assert_broken(&answer, &broken);
        let _ = connection.write(&Request::get("/").bytes(front.addr()));
        assert!(
            connection.exchange("GET").is_err(),
            "{answer:?}: the broken connection serves another request"
        );
    }
}

#[test]
fn a_body_that_is_reset_or_stalls_is_broken_for_the_client() {
    let reset = application(|mut wire| {
        wire.head();
        let _ = wire.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nten bytes.");
        wire.reset();
    });
    let answer = Request::get("/").try_send(front(&reset).addr());
    // A reset may overtake the head.
    if let Some(answer) = answer.filter(|answer| answer.status() != 502) {
        assert_broken("reset", &answer);
    }
    let stalled = application(|mut wire| {
        wire.head();
        let _ = wire.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nten bytes.");
        wire.line();
    });
    assert_broken("stalled", &get(impatient(&stalled).addr(), "/"));
}

#[test]
fn a_body_until_the_end_of_the_connection_is_whole() {
    for head in
        ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\n", "HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n"]
    {
        let backend = answering(format!("{head}until the end"));
        let front = front(&backend);
        for _ in 0..2 {
            get(front.addr(), "/").expect(200).expect_body(b"until the end");
        }
    }
    // And kept, if an HTTP/1.0 application asks for that.
    let kept = application(|mut wire| {
        while wire.head().is_some() {
            let _ = wire.send("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let front = front(&kept);
    for _ in 0..3 {
        get(front.addr(), "/").expect(200).expect_body(b"ok");
    }
}

#[test]
fn answers_that_have_no_body_are_framed() {
    let backend = application(|mut wire| {
        while let Some(head) = wire.head() {
            let path = head[0].split(' ').nth(1).unwrap_or_default().to_owned();
            let answer = match path.as_str() {
                "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
                "/304" => "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 1000\r\n\r\n",
                "/interim" => {
                    "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
                     HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
                }
                _ if head[0].starts_with("HEAD") => "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
                _ => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            };
            let _ = wire.send(answer);
        }
    });
    let front = front(&backend);
    let addr = front.addr();
    // Over one connection: what follows shows where each answer ended.
    let mut connection = Connection::open(addr);
    for _ in 0..3 {
        for (request, status, body) in [
            (Request::get("/204"), 204, &b""[..]),
            (Request::get("/304"), 304, b""),
            (Request::head("/head"), 200, b""),
            (Request::get("/interim"), 200, b"ok"),
            (Request::get("/ok"), 200, b"ok"),
        ] {
            let (answer, kept) = connection.request(addr, &request).expect("an answer").finish();
            answer.expect(status).expect_body(body);
            connection = kept;
        }
    }
    let length = Request::head("/head").send(addr);
    assert_eq!(length.header("content-length"), Some("1000000"));
}

/// An application that drops a connection in the way that `manner` says when a second request comes over it; and how many
/// POSTs it was sent in all.
fn forgetful(manner: fn(&mut Wire, usize) -> bool) -> (Listener, Arc<AtomicUsize>) {
    let posts = Arc::new(AtomicUsize::new(0));
    let counting = posts.clone();
    let backend = application(move |mut wire| {
        for number in 0.. {
            if number > 0 && !manner(&mut wire, number) {
                return;
            }
            let Some(head) = wire.head() else { return };
            let posted = head[0].starts_with("POST");
            if posted {
                counting.fetch_add(1, Ordering::SeqCst);
                let len = field(&head, "content-length").and_then(|len| len.parse().ok()).unwrap_or(0);
                let _ = wire.bytes(len);
            }
            let dropped = number > 0 && posted && head[0].contains("/dropped");
            if dropped || wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
                return;
            }
        }
    });
    (backend, posts)
}

#[test]
fn a_kept_connection_that_the_application_closed_costs_no_request() {
    // Closed at once behind the answer, without having said so.
    let (backend, _) = forgetful(|_, _| false);
    let front = front(&backend);
    let addr = front.addr();
    let mut connection = Connection::open(addr);
    for number in 0..50 {
        let request =
            if number % 5 == 4 { Request::new("POST", "/").body("some text") } else { Request::get("/") };
        let (answer, kept) = connection.request(addr, &request).expect("an answer").finish();
        // A POST that met the close halfway may not be sent again: nobody knows whether it was obeyed.
        if request.method() == "GET" || answer.status() != 502 {
            answer.expect(200).expect_body(b"ok");
        }
        connection = kept;
    }
    // Closed when the next request has come.
    let (backend, _) = forgetful(|wire, number| number < 1 || wire.head().is_none());
    let front = self::front(&backend);
    for _ in 0..20 {
        get(front.addr(), "/").expect(200).expect_body(b"ok");
    }
}

#[test]
fn a_post_is_never_sent_twice() {
    let (backend, posts) = forgetful(|_, _| true);
    let front = front(&backend);
    for round in 1..=10 {
        get(front.addr(), "/").expect(200);
        let before = posts.load(Ordering::SeqCst);
        let answer = Request::new("POST", "/dropped").body("some text").send(front.addr());
        assert!([200, 502].contains(&answer.status()), "round {round}: {answer}");
        assert_eq!(posts.load(Ordering::SeqCst) - before, 1, "round {round}: {answer}");
    }
}

#[test]
fn an_application_that_answers_twice_is_not_believed() {
    let backend = application(|mut wire| {
        while wire.head().is_some() {
            let twice = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned()
                + "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nnever";
            if wire.send(twice).is_err() {
                return;
            }
        }
    });
    let front = front(&backend);
    for _ in 0..20 {
        let answer = get(front.addr(), "/");
        assert!(answer.body != b"never", "an answer that nobody asked for is given to a client");
    }
}

#[test]
fn a_redirect_drops_the_body_however_large_and_however_broken() {
    let files = Files::new();
    let endless = application(|mut wire| {
        wire.head();
        let head =
            "HTTP/1.1 200 OK\r\nX-Accel-Redirect: /protected/hello.txt\r\nTransfer-Encoding: chunked\r\n\r\n";
        let _ = wire.send(head);
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
        while wire.send(&chunk).is_ok() {}
    });
    let announced = "HTTP/1.1 200 OK\r\nX-Accel-Redirect: /protected/hello.txt\r\n";
    let cut = answering(format!("{announced}Content-Length: 1000\r\n\r\nten bytes."));
    let garbage = answering(format!("{announced}Transfer-Encoding: chunked\r\n\r\nzz\r\n"));
    let until_close = answering(format!("{announced}\r\nuntil the end"));
    // Flask announces the file's length and sends nothing.
    let never = application(|mut wire| {
        wire.head();
        let head =
            "HTTP/1.1 200 OK\r\nX-Accel-Redirect: /protected/hello.txt\r\nContent-Length: 1000\r\n\r\n";
        let _ = wire.send(head);
        wire.line();
    });
    for backend in [endless, cut, garbage, until_close, never] {
        let url = format!("http://{}", backend.addr());
        let front = Front::before(&url, &location("/protected/", &files.root()));
        for _ in 0..3 {
            get(front.addr(), "/").expect(200).expect_body(b"hello, world\n");
        }
    }
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let (files, backend) = (Files::new(), Backend::start());
    let front = Front::before(&backend.url(), &location("/protected/", &files.root()));
    let addr = front.addr();
    let hello = Told::redirect("/protected/hello.txt").target();
    let large = Told::redirect("/protected/large.bin").target();
    let missing = Told::redirect("/protected/missing.txt").target();
    let requests: Vec<_> = (0..60)
        .map(|number| match number % 6 {
            0 => (Request::get(&hello), 200, b"hello, world\n".to_vec()),
            1 => (Request::get("/app"), 200, BODY.into()),
            2 => (Request::head(&hello), 200, Vec::new()),
            3 => (Request::get(&missing), 404, b"404".to_vec()),
            4 => (Request::get(&large), 200, files.read("large.bin")),
            _ => (Request::new("POST", "/app").body("some text"), 200, BODY.into()),
        })
        .collect();
    let mut connection = Connection::open(addr);
    let all: Vec<u8> = requests.iter().flat_map(|(request, ..)| request.bytes(addr)).collect();
    connection.write(&all).expect("requests are written");
    for (request, status, body) in requests {
        let (answer, kept) = connection.exchange(request.method()).expect("an answer").finish();
        let answer = answer.expect(status);
        if status == 200 {
            answer.expect_body(&body);
        } else {
            assert!(answer.body.starts_with(&body), "{answer}");
        }
        connection = kept;
    }
}
