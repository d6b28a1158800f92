//! Names: what a path in `X-Accel-Redirect` means, and what is found there.

use super::super::backend::Told;
use super::{Decision, Row, differ, replay};

#[test]
fn names_are_decoded_once() {
    let names = [
        "/protected/hello.txt",
        "/protected/empty.txt",
        "/protected/page.html",
        "/protected/noextension",
        "/protected/odd.unknown-extension",
        "/protected/sub/deep/er.txt",
        "/protected/sub%2Fdeep%2Fer.txt",
        "/protected/sub%2fdeep/er.txt",
        "/protected/with space.txt",
        "/protected/with%20space.txt",
        "/protected/with+space.txt",
        "/protected/a+b.txt",
        "/protected/a%2Bb.txt",
        "/protected/a%2bb.txt",
        "/protected/a%20b.txt",
        "/protected/a%2520b.txt",
        "/protected/100%25.txt",
        "/protected/what%3F.txt",
        "/protected/what?.txt",
        "/protected/hello.txt?",
        "/protected/hello.txt?name=value",
        "/protected/hello.txt?a/../b",
        "/protected/c%23.txt",
        "/protected/gr\u{fc}\u{df}e \u{1f600}.txt",
        "/protected/gr%C3%BC%C3%9Fe%20%F0%9F%98%80.txt",
        "/protected/gr%c3%bc\u{df}e%20\u{1f600}.txt",
        "/protected/a..b.txt",
        "/protected/...",
        "/protected/.hidden",
        "/protected/back\\slash.txt",
        "/protected/back%5Cslash.txt",
        "/protected/semi;colon&amp=.txt",
        "/protected/quo\"te'.txt",
        "/protected/%68%65%6c%6c%6f.txt",
        "/%70rotected/hello.txt",
        "/protected%2Fhello.txt",
        "/bare/deep/er.txt",
    ];
    let rows: Vec<_> = names.into_iter().map(Row::redirect).collect();
    replay(&rows, &[]);
}

const NOWHERE: &[Decision] = &[differ(
    "a path that no location has is a mistake of the application, which is not asked again",
    &["//127.0.0.1/protected/hello.txt", "/nowhere", "/", "/protected", "/PROTECTED/hello.txt", "/app"],
    &[("body", "from the application", "-"), ("content-length", "20", "-"), ("status", "200", "404")],
)];

#[test]
fn names_that_lead_nowhere() {
    let same = [
        "/protected/missing.txt",
        "/protected/missing/file.txt",
        "/protected/with%2520space.txt",
        "/protected/hello.txt%00",
        "/protected/%00",
        "/protected/hello.txt%00.html",
        "/protected/../protected/hello.txt",
        "/protected/sub/../hello.txt",
        "/protected/%2e%2e/outside/secret.txt",
        "/protected/.%2e/outside/secret.txt",
        "/protected/..%2Foutside/secret.txt",
        "/protected/sub/..",
        "/protected/..",
        "/protected/forbidden.txt",
        "/protected/locked/file.txt",
        "/protected/noindex/",
        "/protected/cycle.lnk",
        "/protected/dangling.lnk",
        "",
        "protected/hello.txt",
        "http://127.0.0.1/protected/hello.txt",
        "//127.0.0.1/protected/hello.txt",
        "?",
    ];
    let mut rows: Vec<_> = same.into_iter().map(Row::redirect).collect();
    let long = format!("/protected/{}", "n".repeat(300));
    let deep = format!("/protected/{}", "d/".repeat(1200));
    rows.extend([&*long, &*deep].map(Row::redirect));
    for path in ["/nowhere", "/", "/protected", "/PROTECTED/hello.txt", "/app"] {
        rows.push(Row::redirect(path));
    }
    replay(&rows, NOWHERE);
}

const KINDS: &[Decision] = &[
    differ(
        "what is no file is forbidden, whatever else it is",
        &["/protected/fifo"],
        &[("status", "404", "403")],
    ),
    differ(
        "a directory is forbidden: there are no index files",
        &["/protected/sub/"],
        &[
            ("accept-ranges", "bytes", "-"),
            ("body", "<p>index</p>\n", "-"),
            ("content-length", "13", "-"),
            ("content-type", "text/html", "-"),
            ("etag", "\"5e0be100-d\"", "-"),
            ("last-modified", "Wed, 01 Jan 2020 00:00:00 GMT", "-"),
            ("status", "200", "403"),
        ],
    ),
    differ(
        "a directory is forbidden; nginx tells the client its internal path",
        &["/protected/sub"],
        &[("location", "/protected/sub/", "-"), ("status", "301", "403")],
    ),
    differ(
        "a link must stay beneath the root; one that begins with a slash does not",
        &["/protected/absolute.lnk"],
        &[
            ("accept-ranges", "bytes", "-"),
            ("body", "hello, world\n", "-"),
            ("content-length", "13", "-"),
            ("content-type", "application/octet-stream", "-"),
            ("etag", "\"5e0be100-d\"", "-"),
            ("last-modified", "Wed, 01 Jan 2020 00:00:00 GMT", "-"),
            ("status", "200", "403"),
        ],
    ),
    differ(
        "a link must stay beneath the root; one that begins with a slash does not",
        &["/protected/outside.lnk", "/protected/outside-absolute.lnk"],
        &[
            ("accept-ranges", "bytes", "-"),
            ("body", "of the outside", "-"),
            ("content-length", "14", "-"),
            ("content-type", "application/octet-stream", "-"),
            ("etag", "\"5e0be100-e\"", "-"),
            ("last-modified", "Wed, 01 Jan 2020 00:00:00 GMT", "-"),
            ("status", "200", "403"),
        ],
    ),
    differ(
        "a link must stay beneath the root; one that begins with a slash does not",
        &["/protected/outside-directory.lnk/secret.txt"],
        &[
            ("accept-ranges", "bytes", "-"),
            ("body", "of the outside", "-"),
            ("content-length", "14", "-"),
            ("content-type", "text/plain", "-"),
            ("etag", "\"5e0be100-e\"", "-"),
            ("last-modified", "Wed, 01 Jan 2020 00:00:00 GMT", "-"),
            ("status", "200", "403"),
        ],
    ),
    differ(
        "a redirect leads to internal locations only",
        &["/public/hello.txt"],
        &[
            ("accept-ranges", "bytes", "-"),
            ("body", "hello, world\n", "-"),
            ("content-length", "13", "-"),
            ("content-type", "text/plain", "-"),
            ("etag", "\"5e0be100-d\"", "-"),
            ("last-modified", "Wed, 01 Jan 2020 00:00:00 GMT", "-"),
            ("status", "200", "404"),
        ],
    ),
    differ("there are no named locations", &["@nowhere"], &[("status", "500", "404")]),
    differ(
        "a percent sign that begins no escape is itself",
        &["/protected/100%.txt"],
        &[
            ("accept-ranges", "-", "bytes"),
            ("body", "-", "percent\n"),
            ("content-length", "-", "8"),
            ("content-type", "-", "text/plain"),
            ("etag", "-", "\"5e0be100-8\""),
            ("last-modified", "-", "Wed, 01 Jan 2020 00:00:00 GMT"),
            ("status", "404", "200"),
        ],
    ),
    differ("a redirect leads to a file, so there are no cycles", &["a cycle"], &[("status", "500", "404")]),
];

#[test]
fn files_of_every_kind() {
    let mut rows: Vec<_> =
        ["/protected/large.bin", "/protected/inside.lnk", "/protected/directory.lnk/deep/er.txt"]
            .into_iter()
            .map(Row::redirect)
            .collect();
    rows.push(Row::redirect("/protected/fifo"));
    rows.push(Row::redirect("/protected/sub/"));
    rows.push(Row::redirect("/protected/sub"));
    rows.push(Row::redirect("/protected/hello.txt/"));
    rows.push(Row::redirect("/protected//hello.txt"));
    rows.push(Row::redirect("/protected/./hello.txt"));
    for link in [
        "/protected/absolute.lnk",
        "/protected/outside.lnk",
        "/protected/outside-absolute.lnk",
        "/protected/outside-directory.lnk/secret.txt",
    ] {
        rows.push(Row::redirect(link));
    }
    rows.push(Row::redirect("/public/hello.txt"));
    rows.push(Row::redirect("@nowhere"));
    rows.push(Row::redirect("/protected/100%.txt"));
    rows.push(Row::redirect("/protected/c#.txt"));
    rows.push(Row::redirect("/protected/%zz.txt"));
    rows.push(Row::get(
        "two of them: the first",
        &Told::redirect("/protected/hello.txt").header("X-Accel-Redirect", "/protected/page.html"),
    ));
    rows.push(Row::new("a cycle", crate::support::client::Request::get(super::super::backend::CYCLE)));
    replay(&rows, KINDS);
}
