//! `X-Sendfile` beside lighttpd: a smaller table, over the same files.

use std::path::Path;

use super::backend::{Backend, Told};
use super::front::{CHANGED, Files, Front};
use super::lighttpd::lighttpd;
use super::table::{Aspects, Decision, Row, aspects, assert_rows_exist, differ, expected, judge};
use crate::support::client::Answer;
use crate::support::client::Request;

/// What says where a file is in a row: the root's path is another one each time.
struct At<'a>(&'a Path);

impl At<'_> {
    fn told(&self, name: &str) -> Told {
        Told::headers(&[("X-Sendfile", &format!("{}/{name}", self.0.display()))])
    }

    fn file(&self, name: &str) -> Row {
        Row::get(name, &self.told(name))
    }
}

/// As in the other table, but that a file's own `ETag` is a number in lighttpd, and time and length here.
fn compared(answer: &Answer) -> Aspects {
    let mut found = aspects(answer);
    if let Some(etag) = found.get_mut("etag") {
        let number = etag.trim_matches('"').bytes().all(|byte| byte.is_ascii_digit());
        if number || etag.starts_with("\"5e0be100-") {
            *etag = "the file's".into();
        }
    }
    found
}

#[track_caller]
fn replay(rows: impl FnOnce(&At<'_>) -> Vec<Row>, decisions: &[Decision]) {
    let files = Files::new();
    let backend = Backend::start();
    let root = files.root();
    let lighttpd = lighttpd(backend.addr(), &root);
    let front = Front::before(
        &backend.url(),
        &format!("status = \"backend\"\nsendfile_roots = [\"{}\"]", root.display()),
    );
    let mut wrong = String::new();
    let rows = rows(&At(&root));
    assert_rows_exist(decisions, &rows);
    for row in rows {
        let theirs = compared(&row.request.send(lighttpd.addr()));
        let ours = compared(&row.request.send(front.addr()));
        wrong += &judge(&row.name, expected(decisions, &row.name), &theirs, &ours);
    }
    assert!(wrong.is_empty(), "rows that are not as the table says (of what, there, here):\n{wrong}");
}

#[test]
fn sendfile_names() {
    replay(
        |at| {
            let mut rows: Vec<_> = [
                "hello.txt",
                "empty.txt",
                "large.bin",
                "sub/deep/er.txt",
                "with%20space.txt",
                "a+b.txt",
                "a%2Bb.txt",
                "100%25.txt",
                "a%2520b.txt",
                "what%3F.txt",
                "c%23.txt",
                "gr\u{fc}\u{df}e \u{1f600}.txt",
                "gr%C3%BC%C3%9Fe%20%F0%9F%98%80.txt",
                "a..b.txt",
                ".hidden",
                "missing.txt",
                "missing/file.txt",
                "../outside/secret.txt",
                "%2e%2e/outside/secret.txt",
                "sub/../../outside/secret.txt",
                "inside.lnk",
            ]
            .into_iter()
            .map(|name| at.file(name))
            .collect();
            rows.push(at.file("with space.txt"));
            rows.push(at.file("sub/../hello.txt"));
            rows.push(at.file("./hello.txt"));
            rows.push(at.file("/hello.txt"));
            rows.push(at.file("what?.txt"));
            rows.push(at.file("c#.txt"));
            rows.push(at.file("100%.txt"));
            rows.push(at.file("hello.txt?a=b"));
            rows.push(at.file("hello.txt%00"));
            rows.push(at.file("sub"));
            rows.push(at.file("sub/"));
            rows.push(at.file(""));
            rows.push(at.file("forbidden.txt"));
            rows.push(at.file("fifo"));
            rows.push(at.file("outside.lnk"));
            rows.push(at.file("dangling.lnk"));
            for path in ["hello.txt", "", "/etc/hostname", "/", "../hello.txt"] {
                rows.push(Row::get(format!("the path {path:?}"), &Told::headers(&[("X-Sendfile", path)])));
            }
            rows
        },
        &[
            differ("no path has a NUL, so none is permitted", &["hello.txt%00"], &[("status", "404", "403")]),
            differ(
                "a link must stay beneath the root",
                &["outside.lnk"],
                &[
                    ("accept-ranges", "bytes", "-"),
                    ("body", "of the outside", "-"),
                    ("content-length", "14", "-"),
                    ("content-type", "application/octet-stream", "-"),
                    ("etag", "the file's", "-"),
                    ("last-modified", CHANGED, "-"),
                    ("status", "200", "403"),
                ],
            ),
            differ(
                "who says where a file is and says nothing made a mistake",
                &["the path \"\""],
                &[
                    ("accept-ranges", "bytes", "-"),
                    ("body", "from the application", "-"),
                    ("content-length", "20", "-"),
                    ("status", "200", "403"),
                ],
            ),
        ],
    );
}

#[test]
fn sendfile_headers_survive() {
    replay(
        |at| {
            let mut rows = Vec::new();
            for (name, value) in [
                ("Content-Type", "application/pdf"),
                ("Content-Disposition", "attachment; filename=\"report.txt\""),
                ("Set-Cookie", "a=b"),
                ("Cache-Control", "private"),
                ("ETag", "\"of-the-application\""),
                ("Last-Modified", "Tue, 01 Jan 2019 00:00:00 GMT"),
                ("Content-Language", "de"),
                ("Link", "</a>; rel=next"),
                ("X-Custom", "value"),
                ("Vary", "Accept"),
                ("X-Accel-Expires", "1"),
            ] {
                rows.push(Row::get(format!("{name}: {value}"), &at.told("hello.txt").header(name, value)));
            }
            for status in [200, 201, 401, 403, 404, 500] {
                rows.push(Row::get(format!("status {status}"), &at.told("hello.txt").status(status)));
            }
            let own = at.told("digits.bin").header("ETag", "\"app\"").header("Last-Modified", CHANGED);
            for (name, value) in [
                ("If-None-Match", "\"app\""),
                ("If-None-Match", "\"other\""),
                ("If-Modified-Since", CHANGED),
                ("If-Modified-Since", "Tue, 31 Dec 2019 00:00:00 GMT"),
                ("Range", "bytes=0-9"),
            ] {
                rows.push(Row::get("validators of the application", &own).asking(name, value));
            }
            rows
        },
        &[
            differ(
                "headers that steer the front are not for clients",
                &["X-Accel-Expires: 1"],
                &[("x-accel-expires", "1", "-")],
            ),
            differ(
                "a file's validators are told with every status",
                &["status 201", "status 401", "status 403", "status 404", "status 500"],
                &[("etag", "-", "the file's"), ("last-modified", "-", CHANGED)],
            ),
            differ(
                "304 has no body whose type there would be to tell (RFC 9110 section 15.4.5)",
                &[
                    "validators of the application, If-None-Match: \"app\"",
                    "validators of the application, If-Modified-Since: Wed, 01 Jan 2020 00:00:00 GMT",
                ],
                &[("content-type", "application/octet-stream", "-")],
            ),
        ],
    );
}

const PARTS: &str = "[content-range: bytes 0-9/1000, content-type: application/octet-stream: 0000 0005 ]\
                     [content-range: bytes 20-29/1000, content-type: application/octet-stream: 0020 0025 ]";

#[test]
fn sendfile_ranges_and_methods() {
    replay(
        |at| {
            let mut rows = Vec::new();
            for range in [
                "bytes=0-9",
                "bytes=10-",
                "bytes=-10",
                "bytes=999-",
                "bytes=0-999",
                "bytes=990-2000",
                "bytes=1000-",
                "bytes=0-9,20-29",
                "bytes=0-9,5-14",
                "bytes=5-4",
                "lines=1-2",
            ] {
                rows.push(at.file("digits.bin").asking("Range", range));
            }
            for method in ["HEAD", "POST", "DELETE"] {
                let request = Request::new(method, at.told("hello.txt").target());
                // lighttpd wants to know how long a POST is.
                rows.push(Row::new(
                    method,
                    if method == "POST" { request.body("some text") } else { request },
                ));
            }
            rows.push(at.file("empty.txt").asking("Range", "bytes=0-0"));
            rows.push(at.file("digits.bin").asking("Range", "bytes=0-9").asking("If-Range", "\"other\""));
            rows
        },
        &[
            differ(
                "416 says how long the file is (RFC 9110 section 15.5.17)",
                &["digits.bin, Range: bytes=1000-", "digits.bin, Range: bytes=5-4"],
                &[("content-range", "-", "bytes */1000")],
            ),
            differ(
                "ranges that do not touch are not joined",
                &["digits.bin, Range: bytes=0-9,20-29"],
                &[
                    ("body", "0000 0005 0010 0015 0020 0025 ", PARTS),
                    ("content-length", "30", "-"),
                    ("content-range", "bytes 0-29/1000", "-"),
                    ("content-type", "application/octet-stream", "multipart/byteranges"),
                ],
            ),
            differ("every method becomes a GET", &["DELETE", "POST"], &[("accept-ranges", "-", "bytes")]),
        ],
    );
}
