//! Statuses and methods, and what is passed on when nothing is redirected.

use super::super::backend::Told;
use super::{Decision, Row, differ, replay};
use crate::support::client::Request;

#[test]
fn status_of_the_application_with_a_redirect() {
    let mut rows = Vec::new();
    for status in [200, 201, 202, 203, 204, 206, 301, 302, 304, 400, 401, 403, 404, 410, 416, 500, 502, 503] {
        let told = Told::redirect("/protected/hello.txt").status(status);
        rows.push(Row::get(format!("status {status}"), &told));
        let missing = Told::redirect("/protected/missing.txt").status(status);
        rows.push(Row::get(format!("status {status}, missing"), &missing));
    }
    replay(&rows, &[]);
}

#[test]
fn methods_with_a_redirect() {
    let mut rows = Vec::new();
    for path in
        ["/protected/hello.txt", "/protected/missing.txt", "/protected/empty.txt", "/protected/forbidden.txt"]
    {
        let target = Told::redirect(path).target();
        for method in ["HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"] {
            let name = format!("{method} {path}");
            rows.push(Row::new(name, Request::new(method, target.clone())));
        }
        for method in ["POST", "PUT"] {
            let request = Request::new(method, target.clone()).body(vec![b'x'; 100_000]);
            rows.push(Row::new(format!("{method} with a body, {path}"), request));
        }
    }
    replay(&rows, &[]);
}

const ERRORS: &[Decision] = &[differ(
    "what the application says to its client comes with this error as with others",
    &["412, If-Match: \"other\""],
    &[
        ("cache-control", "-", "no-store"),
        ("content-disposition", "-", "attachment"),
        ("expires", "-", "0"),
        ("set-cookie", "-", "a=b"),
    ],
)];

#[test]
fn what_an_error_keeps() {
    let mut rows = Vec::new();
    for path in ["/protected/missing.txt", "/protected/forbidden.txt"] {
        for (name, value) in [
            ("Set-Cookie", "a=b"),
            ("Cache-Control", "no-store"),
            ("Expires", "0"),
            ("Content-Disposition", "attachment"),
            ("ETag", "\"app\""),
            ("Last-Modified", "Tue, 01 Jan 2019 00:00:00 GMT"),
            ("X-Custom", "value"),
            ("Content-Encoding", "gzip"),
        ] {
            rows.push(Row::get(
                format!("{path}, {name}: {value}"),
                &Told::redirect(path).header(name, value),
            ));
        }
    }
    let told = Told::redirect("/protected/digits.bin")
        .header("Set-Cookie", "a=b")
        .header("Cache-Control", "no-store")
        .header("Expires", "0")
        .header("Content-Disposition", "attachment")
        .header("Content-Type", "application/pdf");
    rows.push(Row::get("304", &told).asking("If-None-Match", "\"5e0be100-3e8\""));
    rows.push(Row::get("412", &told).asking("If-Match", "\"other\""));
    rows.push(Row::get("416", &told).asking("Range", "bytes=1000-"));
    replay(&rows, ERRORS);
}

const PASSED_ON: &[Decision] = &[
    differ(
        "what a path means is up to the application",
        &["target /%2e%2e/"],
        &[("body", "-", "from the application"), ("content-length", "-", "20"), ("status", "400", "200")],
    ),
    differ(
        "internal locations do not exist outside",
        &["target /protected/hello.txt"],
        &[("body", "-", "from the application"), ("content-length", "-", "20"), ("status", "404", "200")],
    ),
];

#[test]
fn what_is_passed_on() {
    let mut rows = Vec::new();
    for status in [200, 201, 204, 206, 301, 304, 400, 401, 403, 404, 418, 500, 503] {
        rows.push(Row::get(format!("status {status}"), &Told::default().status(status)));
        let name = format!("HEAD, status {status}");
        rows.push(Row::new(name, Request::head(Told::default().status(status).target())));
    }
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "BREW"] {
        rows.push(Row::new(method, Request::new(method, "/app")));
        rows.push(Row::new(format!("{method} with a body"), Request::new(method, "/app").body("some text")));
    }
    for (name, value) in [
        ("ETag", "\"app\""),
        ("Last-Modified", "Tue, 01 Jan 2019 00:00:00 GMT"),
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Encoding", "gzip"),
        ("Set-Cookie", "a=b"),
        ("Cache-Control", "no-store"),
        ("Location", "/elsewhere"),
        ("Link", "</a>; rel=next"),
        ("X-Custom", "a"),
        ("Vary", "*"),
        ("Content-Range", "bytes 0-1/2"),
        ("Accept-Ranges", "bytes"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Authenticate", "Basic"),
        ("X-Obs", "\u{fc}"),
        ("X-Empty", ""),
    ] {
        rows.push(Row::get(format!("{name}: {value}"), &Told::headers(&[(name, value)])));
    }
    rows.push(Row::get("two cookies", &Told::headers(&[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])));
    for target in [
        "/",
        "/a/../b",
        "/a/./b",
        "//a",
        "/a//b",
        "/%2e%2e/",
        "/a%20b?c=%20d",
        "/?",
        "/a?b?c",
        "/protected/hello.txt",
    ] {
        rows.push(Row::new(format!("target {target}"), Request::get(target)));
    }
    replay(&rows, PASSED_ON);
}
