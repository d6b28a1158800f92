//! Ranges of a file that an application redirects to (RFC 9110 section 14).

use super::super::backend::Told;
use super::super::front::DIGITS;
use super::{Decision, Row, differ, kept, replay};

fn ranged(file: &str, range: &str) -> Row {
    Row::redirect(&format!("/protected/{file}")).asking("Range", range)
}

const ONE_RANGE: &[Decision] = &[
    differ(
        "of an empty file every range is the whole",
        &["/protected/empty.txt, Range: bytes=1-"],
        &[
            ("accept-ranges", "-", "bytes"),
            ("body", "-", ""),
            ("content-length", "-", "0"),
            ("content-range", "bytes */0", "-"),
            ("content-type", "-", "text/plain"),
            ("etag", "-", "\"5e0be100-0\""),
            ("last-modified", "-", "Wed, 01 Jan 2020 00:00:00 GMT"),
            ("status", "416", "200"),
        ],
    ),
    differ(
        "a malformed range is refused",
        &["/protected/digits.bin, Range: bytes="],
        &[
            ("accept-ranges", "bytes", "-"),
            ("body", "1000 bytes, sha256:8a966203", "-"),
            ("content-length", "1000", "-"),
            ("content-range", "-", "bytes */1000"),
            ("content-type", "application/octet-stream", "-"),
            ("etag", "\"5e0be100-3e8\"", "-"),
            ("last-modified", "Wed, 01 Jan 2020 00:00:00 GMT", "-"),
            ("status", "200", "416"),
        ],
    ),
    differ(
        "a malformed range is refused",
        &["/protected/digits.bin, Range: bytes=0 - 9"],
        &[
            ("body", "0000 0005 ", "-"),
            ("content-length", "10", "-"),
            ("content-range", "bytes 0-9/1000", "bytes */1000"),
            ("content-type", "application/octet-stream", "-"),
            ("etag", "\"5e0be100-3e8\"", "-"),
            ("last-modified", "Wed, 01 Jan 2020 00:00:00 GMT", "-"),
            ("status", "206", "416"),
        ],
    ),
    differ(
        "a last position beyond the end is the end, however large it is",
        &["/protected/digits.bin, Range: bytes=0-99999999999999999999"],
        &[
            ("body", "-", "1000 bytes, sha256:8a966203"),
            ("content-length", "-", "1000"),
            ("content-range", "bytes */1000", "bytes 0-999/1000"),
            ("content-type", "-", "application/octet-stream"),
            ("etag", "-", "\"5e0be100-3e8\""),
            ("last-modified", "-", "Wed, 01 Jan 2020 00:00:00 GMT"),
            ("status", "416", "206"),
        ],
    ),
];

#[test]
fn one_range() {
    let mut rows: Vec<_> = [
        "bytes=0-0",
        "bytes=0-9",
        "bytes=10-19",
        "bytes=0-",
        "bytes=999-",
        "bytes=-1",
        "bytes=-1000",
        "bytes=-1001",
        "bytes=-99999999",
        "bytes=0-999",
        "bytes=0-1000",
        "bytes=990-99999999",
        "bytes=1000-",
        "bytes=1000-1001",
        "bytes=99999-",
        "bytes=-0",
        "BYTES=0-9",
        "lines=0-9",
        "bytes 0-9",
        "0-9",
        "",
    ]
    .into_iter()
    .map(|range| ranged("digits.bin", range))
    .collect();
    for malformed in
        ["bytes=", "bytes=-", "bytes=5-4", "bytes=a-b", "bytes=0-9x", "bytes=1", "bytes=0x1-2", "bytes=--1"]
    {
        rows.push(ranged("digits.bin", malformed));
    }
    for range in [
        "bytes= 0-9",
        "bytes=0 - 9",
        "bytes=0-9 ",
        "bytes=99999999999999999999-",
        "bytes=0-99999999999999999999",
    ] {
        rows.push(ranged("digits.bin", range));
    }
    for range in ["bytes=0-0", "bytes=-1", "bytes=0-", "bytes=1-"] {
        rows.push(ranged("empty.txt", range));
    }
    for range in ["bytes=0-4", "bytes=-7", "bytes=13-"] {
        rows.push(ranged("hello.txt", range));
    }
    replay(&rows, ONE_RANGE);
}

const SEVERAL_RANGES: &[Decision] = &[
    differ(
        "ranges that overlap are joined (RFC 9110 section 15.3.7.2)",
        &["/protected/digits.bin, Range: bytes=0-499,0-499"],
        &[
            (
                "body",
                "[content-range: bytes 0-499/1000, content-type: application/octet-stream: 500 bytes, sha256:a3017092][content-range: bytes 0-499/1000, content-type: application/octet-stream: 500 bytes, sha256:a3017092]",
                "500 bytes, sha256:a3017092",
            ),
            ("content-length", "-", "500"),
            ("content-range", "-", "bytes 0-499/1000"),
            ("content-type", "multipart/byteranges", "application/octet-stream"),
        ],
    ),
    differ(
        "ranges that overlap are joined (RFC 9110 section 15.3.7.2)",
        &["/protected/digits.bin, Range: bytes=0-9,5-14"],
        &[
            (
                "body",
                "[content-range: bytes 0-9/1000, content-type: application/octet-stream: 0000 0005 ][content-range: bytes 5-14/1000, content-type: application/octet-stream: 0005 0010 ]",
                "0000 0005 0010 ",
            ),
            ("content-length", "-", "15"),
            ("content-range", "-", "bytes 0-14/1000"),
            ("content-type", "multipart/byteranges", "application/octet-stream"),
        ],
    ),
    differ(
        "ranges that overlap are joined (RFC 9110 section 15.3.7.2)",
        &["/protected/digits.bin, Range: bytes=0-9,0-9"],
        &[
            (
                "body",
                "[content-range: bytes 0-9/1000, content-type: application/octet-stream: 0000 0005 ][content-range: bytes 0-9/1000, content-type: application/octet-stream: 0000 0005 ]",
                "0000 0005 ",
            ),
            ("content-length", "-", "10"),
            ("content-range", "-", "bytes 0-9/1000"),
            ("content-type", "multipart/byteranges", "application/octet-stream"),
        ],
    ),
    differ(
        "empty elements of a list are ignored (RFC 9110 section 5.6.1.2)",
        &["/protected/digits.bin, Range: bytes=0-9,,20-29"],
        &[
            (
                "body",
                "-",
                "[content-range: bytes 0-9/1000, content-type: application/octet-stream: 0000 0005 ][content-range: bytes 20-29/1000, content-type: application/octet-stream: 0020 0025 ]",
            ),
            ("content-range", "bytes */1000", "-"),
            ("content-type", "-", "multipart/byteranges"),
            ("etag", "-", "\"5e0be100-3e8\""),
            ("last-modified", "-", "Wed, 01 Jan 2020 00:00:00 GMT"),
            ("status", "416", "206"),
        ],
    ),
    differ(
        "empty elements of a list are ignored (RFC 9110 section 5.6.1.2)",
        &["/protected/digits.bin, Range: bytes=,0-9", "/protected/digits.bin, Range: bytes=0-9,"],
        &[
            ("body", "-", "0000 0005 "),
            ("content-length", "-", "10"),
            ("content-range", "bytes */1000", "bytes 0-9/1000"),
            ("content-type", "-", "application/octet-stream"),
            ("etag", "-", "\"5e0be100-3e8\""),
            ("last-modified", "-", "Wed, 01 Jan 2020 00:00:00 GMT"),
            ("status", "416", "206"),
        ],
    ),
    differ(
        "a malformed range is refused",
        &["/protected/digits.bin, Range: bytes=0-9,9-8"],
        &[
            ("body", "0000 0005 ", "-"),
            ("content-length", "10", "-"),
            ("content-range", "bytes 0-9/1000", "bytes */1000"),
            ("content-type", "application/octet-stream", "-"),
            ("etag", "\"5e0be100-3e8\"", "-"),
            ("last-modified", "Wed, 01 Jan 2020 00:00:00 GMT", "-"),
            ("status", "206", "416"),
        ],
    ),
    differ(
        "more than 64 ranges are ignored",
        &["200 ranges"],
        &[
            ("accept-ranges", "-", "bytes"),
            ("body", "200 parts, sha256:8ca86f03", "1000 bytes, sha256:8a966203"),
            ("content-length", "-", "1000"),
            ("content-type", "multipart/byteranges", "application/octet-stream"),
            ("status", "206", "200"),
        ],
    ),
];

#[test]
fn several_ranges() {
    let mut rows: Vec<_> = [
        "bytes=0-9,20-29",
        "bytes=20-29,0-9",
        "bytes=0-9, 20-29",
        "bytes=0-9,-10",
        "bytes=0-9,990-",
        "bytes=0-9,1000-",
        "bytes=1000-,0-9",
        "bytes=1000-,2000-",
        "bytes=0-499,500-999",
        "bytes=0-499,0-499",
        "bytes=0-499,500-",
        "bytes=0-,0-",
        "bytes=0-599,400-999",
        "bytes=0-9,5-14",
        "bytes=0-9,0-9",
        "bytes=0-9,10-19",
    ]
    .into_iter()
    .map(|range| ranged("digits.bin", range))
    .collect();
    for range in ["bytes=0-9,,20-29", "bytes=,0-9", "bytes=0-9,", "bytes=0-9,x", "bytes=0-9,9-8"] {
        rows.push(ranged("digits.bin", range));
    }
    rows.push(ranged("hello.txt", "bytes=0-1,3-4"));
    let few: Vec<_> = (0..50).map(|at| format!("{0}-{0}", at * 10)).collect();
    rows.push(ranged("digits.bin", &format!("bytes={}", few.join(","))).called("50 ranges"));
    let many: Vec<_> = (0..200).map(|at| format!("{0}-{0}", at * 2)).collect();
    rows.push(ranged("digits.bin", &format!("bytes={}", many.join(","))).called("200 ranges"));
    replay(&rows, SEVERAL_RANGES);
}

const IF_RANGE: &[Decision] = &[
    kept(
        &["an ETag of the application, Range: bytes=0-9, If-Range: \"of-the-application\""],
        &[
            ("accept-ranges", "bytes", "-"),
            ("body", "1000 bytes, sha256:8a966203", "0000 0005 "),
            ("content-length", "1000", "10"),
            ("content-range", "-", "bytes 0-9/1000"),
            ("etag", "\"5e0be100-3e8\"", "\"of-the-application\""),
            ("status", "200", "206"),
        ],
    ),
    kept(
        &["an ETag of the application, Range: bytes=0-9, If-Range: \"5e0be100-3e8\""],
        &[
            ("accept-ranges", "-", "bytes"),
            ("body", "0000 0005 ", "1000 bytes, sha256:8a966203"),
            ("content-length", "10", "1000"),
            ("content-range", "bytes 0-9/1000", "-"),
            ("etag", "\"5e0be100-3e8\"", "\"of-the-application\""),
            ("status", "206", "200"),
        ],
    ),
];

#[test]
fn if_range() {
    let etag = format!("\"5e0be100-{DIGITS:x}\"");
    let mut rows: Vec<_> = [
        &*etag,
        "\"other\"",
        "W/\"5e0be100-3e8\"",
        "Wed, 01 Jan 2020 00:00:00 GMT",
        "Tue, 31 Dec 2019 23:59:59 GMT",
        "Wed, 01 Jan 2020 00:00:01 GMT",
        "rubbish",
    ]
    .into_iter()
    .map(|validator| ranged("digits.bin", "bytes=0-9").asking("If-Range", validator))
    .collect();
    // The application's validators, if it gave some.
    let told = Told::redirect("/protected/digits.bin").header("ETag", "\"of-the-application\"");
    for validator in ["\"of-the-application\"", &*etag] {
        rows.push(
            Row::get("an ETag of the application", &told)
                .asking("Range", "bytes=0-9")
                .asking("If-Range", validator),
        );
    }
    rows.push(Row::redirect("/protected/digits.bin").asking("If-Range", "\"other\""));
    replay(&rows, IF_RANGE);
}

const OF_THE_APPLICATION: &[Decision] = &[differ(
    "what the application said of its own answer is not so of the file",
    &["Accept-Ranges: none, Range: bytes=0-9", "Accept-Ranges: none, Range: bytes=0-9,20-29"],
    &[("accept-ranges", "none", "-")],
)];

#[test]
fn ranges_and_the_application() {
    let told = |name: &str, value: &str| Told::redirect("/protected/digits.bin").header(name, value);
    let mut rows = Vec::new();
    for (name, value) in [
        ("Content-Type", "text/plain"),
        ("Accept-Ranges", "none"),
        ("Accept-Ranges", "bytes"),
        ("Content-Range", "bytes 0-4/5"),
        ("Content-Disposition", "attachment; filename=\"d.bin\""),
        ("Set-Cookie", "a=b"),
    ] {
        let name_of_row = format!("{name}: {value}");
        rows.push(Row::get(&name_of_row, &told(name, value)).asking("Range", "bytes=0-9"));
        rows.push(Row::get(&name_of_row, &told(name, value)).asking("Range", "bytes=0-9,20-29"));
        rows.push(Row::get(&name_of_row, &told(name, value)).asking("Range", "bytes=1000-"));
    }
    for status in [206, 404, 416] {
        rows.push(
            Row::get(format!("status {status}"), &Told::redirect("/protected/digits.bin").status(status))
                .asking("Range", "bytes=0-9"),
        );
    }
    replay(&rows, OF_THE_APPLICATION);
}
