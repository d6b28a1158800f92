//! Preconditions on a file that an application redirects to (RFC 9110 section 13).

use super::super::backend::Told;
use super::super::front::CHANGED;
use super::{Decision, Row, differ, kept, replay};
use crate::support::client::Request;

const ETAG: &str = "\"5e0be100-3e8\"";
const BEFORE: &str = "Tue, 31 Dec 2019 23:59:59 GMT";
const AFTER: &str = "Wed, 01 Jan 2020 00:00:01 GMT";

fn asking(conditions: &[(&str, &str)]) -> Row {
    let row = Row::redirect("/protected/digits.bin");
    conditions.iter().fold(row, |row, (name, value)| row.asking(name, value))
}

const NOT_MODIFIED: &[Decision] = &[
    differ(
        "not modified since a later date either (RFC 9110 section 13.1.3)",
        &["/protected/digits.bin, If-Modified-Since: Wed, 01 Jan 2020 00:00:01 GMT"],
        &[
            ("accept-ranges", "bytes", "-"),
            ("body", "1000 bytes, sha256:8a966203", ""),
            ("content-length", "1000", "-"),
            ("content-type", "application/octet-stream", "-"),
            ("status", "200", "304"),
        ],
    ),
    differ(
        "If-None-Match alone counts (RFC 9110 section 13.2.2)",
        &[
            "/protected/digits.bin, If-None-Match: \"5e0be100-3e8\", If-Modified-Since: Tue, 31 Dec 2019 23:59:59 GMT",
        ],
        &[
            ("accept-ranges", "bytes", "-"),
            ("body", "1000 bytes, sha256:8a966203", ""),
            ("content-length", "1000", "-"),
            ("content-type", "application/octet-stream", "-"),
            ("status", "200", "304"),
        ],
    ),
    differ(
        "a list may come in several fields (RFC 9110 section 5.3)",
        &["/protected/digits.bin, If-None-Match: \"other\", If-None-Match: \"5e0be100-3e8\""],
        &[
            ("body", "-", ""),
            ("etag", "-", "\"5e0be100-3e8\""),
            ("last-modified", "-", "Wed, 01 Jan 2020 00:00:00 GMT"),
            ("status", "400", "304"),
        ],
    ),
];

#[test]
fn if_none_match_and_if_modified_since() {
    let weak = format!("W/{ETAG}");
    let listed = format!("\"a\", {ETAG}, \"b\"");
    let mut rows = Vec::new();
    for value in [ETAG, &weak, &listed, "*", "\"other\"", "", "5e0be100-3e8", "rubbish, more"] {
        rows.push(asking(&[("If-None-Match", value)]));
    }
    for value in [
        CHANGED,
        BEFORE,
        AFTER,
        "Wednesday, 01-Jan-20 00:00:00 GMT",
        "Wed Jan  1 00:00:00 2020",
        "rubbish",
        "0",
    ] {
        rows.push(asking(&[("If-Modified-Since", value)]));
    }
    for (etag, date) in [(ETAG, CHANGED), (ETAG, BEFORE), ("\"other\"", CHANGED), ("\"other\"", BEFORE)] {
        rows.push(asking(&[("If-None-Match", etag), ("If-Modified-Since", date)]));
    }
    rows.push(asking(&[("If-None-Match", "\"other\""), ("If-None-Match", ETAG)]));
    replay(&rows, NOT_MODIFIED);
}

const PRECONDITIONS: &[Decision] = &[
    differ(
        "what is no date is ignored (RFC 9110 section 13.1.4)",
        &["/protected/digits.bin, If-Unmodified-Since: rubbish"],
        &[
            ("accept-ranges", "-", "bytes"),
            ("body", "-", "1000 bytes, sha256:8a966203"),
            ("content-length", "-", "1000"),
            ("content-type", "-", "application/octet-stream"),
            ("etag", "-", "\"5e0be100-3e8\""),
            ("last-modified", "-", "Wed, 01 Jan 2020 00:00:00 GMT"),
            ("status", "412", "200"),
        ],
    ),
    differ(
        "If-Match alone counts (RFC 9110 section 13.2.2)",
        &[
            "/protected/digits.bin, If-Match: \"5e0be100-3e8\", If-Unmodified-Since: Tue, 31 Dec 2019 23:59:59 GMT",
        ],
        &[
            ("accept-ranges", "-", "bytes"),
            ("body", "-", "1000 bytes, sha256:8a966203"),
            ("content-length", "-", "1000"),
            ("content-type", "-", "application/octet-stream"),
            ("etag", "-", "\"5e0be100-3e8\""),
            ("last-modified", "-", "Wed, 01 Jan 2020 00:00:00 GMT"),
            ("status", "412", "200"),
        ],
    ),
];

#[test]
fn if_match_and_if_unmodified_since() {
    let mut rows = Vec::new();
    for value in [ETAG, "*", "\"other\"", "\"a\", \"5e0be100-3e8\"", "W/\"5e0be100-3e8\"", ""] {
        rows.push(asking(&[("If-Match", value)]));
    }
    for value in [CHANGED, BEFORE, AFTER, "rubbish"] {
        rows.push(asking(&[("If-Unmodified-Since", value)]));
    }
    for (etag, date) in [(ETAG, CHANGED), (ETAG, BEFORE), ("\"other\"", CHANGED), ("\"other\"", BEFORE)] {
        rows.push(asking(&[("If-Match", etag), ("If-Unmodified-Since", date)]));
    }
    replay(&rows, PRECONDITIONS);
}

#[test]
fn several_conditions() {
    let mut rows = Vec::new();
    for first in [("If-Match", ETAG), ("If-Match", "\"other\""), ("If-Unmodified-Since", BEFORE)] {
        for second in
            [("If-None-Match", ETAG), ("If-None-Match", "\"other\""), ("If-Modified-Since", CHANGED)]
        {
            rows.push(asking(&[first, second]));
        }
    }
    for condition in [
        ("If-None-Match", ETAG),
        ("If-None-Match", "\"other\""),
        ("If-Match", "\"other\""),
        ("If-Modified-Since", CHANGED),
        ("If-Unmodified-Since", BEFORE),
    ] {
        rows.push(asking(&[("Range", "bytes=0-9"), condition]));
        rows.push(asking(&[("Range", "bytes=1000-"), condition]));
        rows.push(asking(&[("Range", "bytes=0-9"), ("If-Range", "\"other\""), condition]));
    }
    replay(&rows, &[]);
}

const OTHER_METHODS: &[Decision] = &[differ(
    "ranges are of GET alone (RFC 9110 section 14.2)",
    &["HEAD, Range: bytes=0-9"],
    &[
        ("accept-ranges", "-", "bytes"),
        ("content-length", "10", "1000"),
        ("content-range", "bytes 0-9/1000", "-"),
        ("status", "206", "200"),
    ],
)];

#[test]
fn conditions_with_other_methods() {
    let target = Told::redirect("/protected/digits.bin").target();
    let mut rows = Vec::new();
    for method in ["HEAD", "POST", "PUT", "DELETE"] {
        for (name, value) in [
            ("If-None-Match", ETAG),
            ("If-Modified-Since", CHANGED),
            ("If-Match", "\"other\""),
            ("Range", "bytes=0-9"),
        ] {
            rows.push(Row::new(method, Request::new(method, target.clone())).asking(name, value));
        }
    }
    replay(&rows, OTHER_METHODS);
}

const VALIDATORS: &[Decision] = &[
    kept(
        &["ETag: \"app\", If-None-Match: \"app\""],
        &[
            ("accept-ranges", "bytes", "-"),
            ("body", "1000 bytes, sha256:8a966203", ""),
            ("content-length", "1000", "-"),
            ("content-type", "application/octet-stream", "-"),
            ("etag", "\"5e0be100-3e8\"", "\"app\""),
            ("status", "200", "304"),
        ],
    ),
    kept(
        &["ETag: W/\"app\", If-None-Match: \"app\""],
        &[
            ("accept-ranges", "bytes", "-"),
            ("body", "1000 bytes, sha256:8a966203", ""),
            ("content-length", "1000", "-"),
            ("content-type", "application/octet-stream", "-"),
            ("etag", "\"5e0be100-3e8\"", "W/\"app\""),
            ("status", "200", "304"),
        ],
    ),
    kept(
        &["ETag: \"app\", If-None-Match: \"5e0be100-3e8\""],
        &[
            ("accept-ranges", "-", "bytes"),
            ("body", "", "1000 bytes, sha256:8a966203"),
            ("content-length", "-", "1000"),
            ("content-type", "-", "application/octet-stream"),
            ("etag", "\"5e0be100-3e8\"", "\"app\""),
            ("status", "304", "200"),
        ],
    ),
    kept(
        &["ETag: W/\"app\", If-None-Match: \"5e0be100-3e8\""],
        &[
            ("accept-ranges", "-", "bytes"),
            ("body", "", "1000 bytes, sha256:8a966203"),
            ("content-length", "-", "1000"),
            ("content-type", "-", "application/octet-stream"),
            ("etag", "\"5e0be100-3e8\"", "W/\"app\""),
            ("status", "304", "200"),
        ],
    ),
    kept(
        &["ETag: \"app\", If-Match: \"app\""],
        &[
            ("accept-ranges", "-", "bytes"),
            ("body", "-", "1000 bytes, sha256:8a966203"),
            ("content-length", "-", "1000"),
            ("content-type", "-", "application/octet-stream"),
            ("etag", "-", "\"app\""),
            ("last-modified", "-", "Wed, 01 Jan 2020 00:00:00 GMT"),
            ("status", "412", "200"),
        ],
    ),
    kept(
        &["ETag: \"app\", If-Match: \"5e0be100-3e8\"", "ETag: W/\"app\", If-Match: \"5e0be100-3e8\""],
        &[
            ("accept-ranges", "bytes", "-"),
            ("body", "1000 bytes, sha256:8a966203", "-"),
            ("content-length", "1000", "-"),
            ("content-type", "application/octet-stream", "-"),
            ("etag", "\"5e0be100-3e8\"", "-"),
            ("last-modified", "Wed, 01 Jan 2020 00:00:00 GMT", "-"),
            ("status", "200", "412"),
        ],
    ),
    kept(
        &["Last-Modified, If-Modified-Since: Tue, 31 Dec 2019 23:59:59 GMT"],
        &[
            ("accept-ranges", "bytes", "-"),
            ("body", "1000 bytes, sha256:8a966203", ""),
            ("content-length", "1000", "-"),
            ("content-type", "application/octet-stream", "-"),
            ("last-modified", "Wed, 01 Jan 2020 00:00:00 GMT", "Tue, 31 Dec 2019 23:59:59 GMT"),
            ("status", "200", "304"),
        ],
    ),
    kept(
        &[
            "Last-Modified, If-Modified-Since: Wed, 01 Jan 2020 00:00:00 GMT",
            "Last-Modified, If-Unmodified-Since: Wed, 01 Jan 2020 00:00:00 GMT",
        ],
        &[("last-modified", "Wed, 01 Jan 2020 00:00:00 GMT", "Tue, 31 Dec 2019 23:59:59 GMT")],
    ),
    kept(
        &["Last-Modified, If-Unmodified-Since: Tue, 31 Dec 2019 23:59:59 GMT"],
        &[
            ("accept-ranges", "-", "bytes"),
            ("body", "-", "1000 bytes, sha256:8a966203"),
            ("content-length", "-", "1000"),
            ("content-type", "-", "application/octet-stream"),
            ("etag", "-", "\"5e0be100-3e8\""),
            ("last-modified", "-", "Tue, 31 Dec 2019 23:59:59 GMT"),
            ("status", "412", "200"),
        ],
    ),
];

#[test]
fn the_applications_validators() {
    let mut rows = Vec::new();
    let etag = Told::redirect("/protected/digits.bin").header("ETag", "\"app\"");
    let weak = Told::redirect("/protected/digits.bin").header("ETag", "W/\"app\"");
    let date = Told::redirect("/protected/digits.bin").header("Last-Modified", BEFORE);
    for (name, value) in
        [("If-None-Match", "\"app\""), ("If-None-Match", ETAG), ("If-Match", "\"app\""), ("If-Match", ETAG)]
    {
        rows.push(Row::get("ETag: \"app\"", &etag).asking(name, value));
        rows.push(Row::get("ETag: W/\"app\"", &weak).asking(name, value));
    }
    for (name, value) in [
        ("If-Modified-Since", BEFORE),
        ("If-Modified-Since", CHANGED),
        ("If-Unmodified-Since", BEFORE),
        ("If-Unmodified-Since", CHANGED),
    ] {
        rows.push(Row::get("Last-Modified", &date).asking(name, value));
    }
    // What is passed on is not the front's to judge.
    let proxied = Told::headers(&[("ETag", "\"app\""), ("Last-Modified", BEFORE)]);
    for (name, value) in [("If-None-Match", "\"app\""), ("If-Modified-Since", AFTER), ("Range", "bytes=0-3")]
    {
        rows.push(Row::get("proxied", &proxied).asking(name, value));
    }
    replay(&rows, VALIDATORS);
}
