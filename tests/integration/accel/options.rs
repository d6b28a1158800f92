//! What the options of a front change.

use super::backend::{BODY, Backend, Told};
use super::front::{DIGITS, Files, Front, digits, location};
use crate::support::client::{Answer, Request, get};
use crate::support::process::Spliceway;

struct Fixture {
    files: Files,
    _backend: Backend,
    front: Front,
}

impl Fixture {
    fn start(options: &str) -> Self {
        let (files, backend) = (Files::new(), Backend::start());
        let front =
            Front::before(&backend.url(), &format!("{options}\n{}", location("/protected/", &files.root())));
        Self { files, _backend: backend, front }
    }

    fn send(&self, request: &Request) -> Answer {
        request.send(self.front.addr())
    }

    fn told(&self, told: &Told) -> Answer {
        get(self.front.addr(), &told.target())
    }
}

/// Every header that a front may obey, each with what it says in these tests.
const STEERING: [(&str, &str, &str); 5] = [
    ("redirect", "X-Accel-Redirect", "/protected/hello.txt"),
    ("expires", "X-Accel-Expires", "60"),
    ("limit-rate", "X-Accel-Limit-Rate", "100000000"),
    ("buffering", "X-Accel-Buffering", "no"),
    ("charset", "X-Accel-Charset", "utf-8"),
];

#[test]
fn what_is_not_honoured_is_a_header_like_others() {
    let told = STEERING.iter().fold(Told::default(), |told, (_, name, value)| told.header(name, value));
    let told = told.header("Content-Type", "text/html");
    for honoured in
        [&[][..], &["redirect"], &["expires", "charset"], &["redirect", "limit-rate", "buffering"]]
    {
        let fixture = Fixture::start(&format!("honour = {honoured:?}"));
        let answer = fixture.told(&told).expect(200);
        for (option, name, value) in STEERING {
            let passed = (!honoured.contains(&option)).then_some(value);
            assert_eq!(answer.header(name), passed, "{name} with honour = {honoured:?}");
        }
        let charset = if honoured.contains(&"charset") { "text/html; charset=utf-8" } else { "text/html" };
        assert_eq!(answer.header("content-type"), Some(charset), "{honoured:?}");
        let body = if honoured.contains(&"redirect") { "hello, world\n" } else { BODY };
        answer.expect_body(body.as_bytes());
    }
}

#[test]
fn a_path_is_not_obeyed_without_roots_for_it() {
    let fixture = Fixture::start("");
    let path = fixture.files.root().join("hello.txt").display().to_string();
    let answer =
        fixture.told(&Told::headers(&[("X-Sendfile", &path)])).expect(200).expect_body(BODY.as_bytes());
    assert_eq!(answer.header("x-sendfile"), Some(&*path), "it is a header like others");
}

#[test]
fn the_applications_status_survives_where_it_is_asked_for() {
    let (file, backend) = (Fixture::start("status = \"file\""), Fixture::start("status = \"backend\""));
    let plain = Told::redirect("/protected/digits.bin");
    for status in [201, 401, 403, 404, 410, 500, 503] {
        let told = plain.clone().status(status);
        file.told(&told).expect(200).expect_body(&digits());
        backend.told(&told).expect(status).expect_body(&digits());
        // It is that status's page, which no range or condition makes another one.
        for (name, value) in [("Range", "bytes=0-9"), ("If-None-Match", "*"), ("If-Match", "\"other\"")] {
            let request = Request::get(told.target()).header(name, value);
            backend.send(&request).expect(status).expect_body(&digits());
        }
        let head = backend.send(&Request::head(told.target())).expect(status);
        assert_eq!(head.header("content-length"), Some(&*DIGITS.to_string()));
        // A file that is not there is an error of its own.
        backend.told(&Told::redirect("/protected/missing.txt").status(status)).expect(404);
    }
    for fixture in [&file, &backend] {
        fixture.send(&Request::get(plain.target()).range("0-9")).expect(206).expect_body(&digits()[..10]);
        fixture.send(&Request::get(plain.target()).header("If-None-Match", "*")).expect(304);
        // What cannot have a body, or is about another answer, is not what the file is answered with.
        for status in [204, 304] {
            let answer = fixture.told(&plain.clone().status(status));
            assert!([200, status].contains(&answer.status()), "{answer}");
        }
    }
}

#[test]
fn hosts_choose_between_fronts_and_registries() {
    let files = Files::new();
    let (first, second) = (Backend::start(), Backend::start());
    let spliceway = Spliceway::start(|setup| {
        for (name, backend) in [("first", &first), ("second", &second)] {
            setup.more(&format!(
                "[[accel]]\nname = \"{name}\"\nhosts = [\"{name}.example\"]\nbackend = \"{}\"\n{}",
                backend.url(),
                location("/protected/", &files.root())
            ));
        }
    });
    let addr = spliceway.addr();
    let hello = Request::get(Told::redirect("/protected/hello.txt").target());
    for (host, backend) in [("first.example", &first), ("SECOND.example:8080", &second)] {
        backend.take_seen();
        hello.clone().host(host).send(addr).expect(200).expect_body(b"hello, world\n");
        // A registry's paths are none here.
        Request::get("/v2/").host(host).send(addr).expect(200).expect_body(BODY.as_bytes());
        let paths: Vec<_> = backend.take_seen().into_iter().map(|head| head.path).collect();
        assert_eq!(paths, ["/app", "/v2/"], "{host}");
    }
    for host in ["third.example", "localhost"] {
        hello.clone().host(host).send(addr).expect(404);
        let answer = Request::get("/v2/").host(host).send(addr).expect(200);
        assert_eq!(answer.header("docker-distribution-api-version"), Some("registry/2.0"));
    }
    assert!(
        first.take_seen().is_empty() && second.take_seen().is_empty(),
        "a front was asked for another host"
    );
}
