//! Headers of an application's answer: which of them the front obeys, which survive, which nobody sees.

use super::super::backend::Told;
use super::{Decision, Row, differ, kept, replay};

fn with(headers: &[(&str, &str)]) -> Told {
    headers
        .iter()
        .fold(Told::redirect("/protected/hello.txt"), |told, (name, value)| told.header(name, value))
}

fn named(headers: &[(&str, &str)]) -> Row {
    let name: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    Row::get(name.join(", "), &with(headers))
}

#[test]
fn headers_that_survive_a_redirect_in_nginx() {
    let mut rows = Vec::new();
    for (name, value) in [
        ("Content-Type", "application/pdf"),
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Type", ""),
        ("Content-Disposition", "attachment; filename=\"report.txt\""),
        ("Content-Disposition", "attachment; filename*=UTF-8''gr%C3%BC%C3%9Fe.txt"),
        ("Content-Disposition", "attachment; filename=\"gr\u{fc}\u{df}e.txt\""),
        ("Set-Cookie", "session=1; Path=/; HttpOnly"),
        ("Cache-Control", "private, max-age=60"),
        ("Expires", "Wed, 01 Jan 2031 00:00:00 GMT"),
        ("Expires", "0"),
        ("Accept-Ranges", "bytes"),
    ] {
        rows.push(named(&[(name, value)]));
    }
    rows.push(named(&[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]));
    rows.push(named(&[("Cache-Control", "private"), ("Cache-Control", "max-age=60")]));
    replay(&rows, &[]);
}

const LOST: &[Decision] = &[
    kept(&["ETag: \"of-the-application\""], &[("etag", "\"5e0be100-d\"", "\"of-the-application\"")]),
    kept(&["ETag: W/\"weak\""], &[("etag", "\"5e0be100-d\"", "W/\"weak\"")]),
    kept(&["ETag: unquoted"], &[("etag", "\"5e0be100-d\"", "unquoted")]),
    kept(
        &["Last-Modified: Tue, 01 Jan 2019 00:00:00 GMT"],
        &[("last-modified", "Wed, 01 Jan 2020 00:00:00 GMT", "Tue, 01 Jan 2019 00:00:00 GMT")],
    ),
    kept(&["Last-Modified: rubbish"], &[("last-modified", "Wed, 01 Jan 2020 00:00:00 GMT", "rubbish")]),
    kept(&["Content-Encoding: gzip"], &[("content-encoding", "-", "gzip")]),
    kept(&["Content-Language: de"], &[("content-language", "-", "de")]),
    kept(
        &["Content-Security-Policy: default-src 'none'"],
        &[("content-security-policy", "-", "default-src 'none'")],
    ),
    kept(&["Link: </style.css>; rel=preload"], &[("link", "-", "</style.css>; rel=preload")]),
    kept(&["Vary: Accept"], &[("vary", "-", "Accept")]),
    kept(&["Location: /elsewhere"], &[("location", "-", "/elsewhere")]),
    kept(&["Refresh: 5"], &[("refresh", "-", "5")]),
    kept(&["WWW-Authenticate: Basic realm=\"x\""], &[("www-authenticate", "-", "Basic realm=\"x\"")]),
    kept(&["Access-Control-Allow-Origin: *"], &[("access-control-allow-origin", "-", "*")]),
    kept(&["X-Custom: value"], &[("x-custom", "-", "value")]),
    kept(&["Age: 10"], &[("age", "-", "10")]),
    kept(&["Content-MD5: Q2hlY2sgSW50ZWdyaXR5IQ=="], &[("content-md5", "-", "Q2hlY2sgSW50ZWdyaXR5IQ==")]),
];

#[test]
fn headers_that_nginx_loses() {
    let mut rows = Vec::new();
    for (name, value) in [
        ("ETag", "\"of-the-application\""),
        ("ETag", "W/\"weak\""),
        ("ETag", "unquoted"),
        ("Last-Modified", "Tue, 01 Jan 2019 00:00:00 GMT"),
        ("Last-Modified", "rubbish"),
        ("Content-Encoding", "gzip"),
        ("Content-Language", "de"),
        ("Content-Security-Policy", "default-src 'none'"),
        ("Link", "</style.css>; rel=preload"),
        ("Vary", "Accept"),
        ("Location", "/elsewhere"),
        ("Refresh", "5"),
        ("WWW-Authenticate", "Basic realm=\"x\""),
        ("Access-Control-Allow-Origin", "*"),
        ("X-Custom", "value"),
        ("Age", "10"),
        ("Trailer", "X-After"),
        ("Content-Range", "bytes 0-1/2"),
        ("Content-MD5", "Q2hlY2sgSW50ZWdyaXR5IQ=="),
        ("Keep-Alive", "timeout=5"),
        ("Upgrade", "h2c"),
    ] {
        rows.push(named(&[(name, value)]));
    }
    replay(&rows, LOST);
}

const STEERING: &[Decision] = &[
    differ(
        "text has a charset, and it need not be known",
        &["X-Accel-Charset: koi8-r"],
        &[("content-type", "text/plain", "text/plain; charset=koi8-r")],
    ),
    differ(
        "text has a charset, and it need not be known",
        &["proxied HTML, X-Accel-Charset: koi8-r"],
        &[("content-type", "text/html", "text/html; charset=koi8-r")],
    ),
    differ(
        "what is no text has no charset",
        &[
            "Content-Type: application/json, X-Accel-Charset: utf-8",
            "X-Accel-Charset: utf-8, Content-Type: application/json",
        ],
        &[("content-type", "application/json; charset=utf-8", "application/json")],
    ),
    kept(&["X-Accel-Unknown: value"], &[("x-accel-unknown", "-", "value")]),
    kept(&["X-Sendfile: value"], &[("x-sendfile", "-", "value")]),
    kept(&["X-Sendfile-Type: value"], &[("x-sendfile-type", "-", "value")]),
    kept(&["X-Accel-Mapping: value"], &[("x-accel-mapping", "-", "value")]),
];

#[test]
fn headers_that_steer_the_front() {
    let mut rows = Vec::new();
    for (name, value) in [
        ("X-Accel-Expires", "3600"),
        ("X-Accel-Expires", "0"),
        ("X-Accel-Expires", "@1893456000"),
        ("X-Accel-Expires", "junk"),
        ("X-Accel-Buffering", "yes"),
        ("X-Accel-Buffering", "no"),
        ("X-Accel-Buffering", "junk"),
        ("X-Accel-Charset", "utf-8"),
        ("X-Accel-Charset", "koi8-r"),
        ("X-Accel-Charset", ""),
        ("X-Accel-Limit-Rate", "0"),
        ("X-Accel-Limit-Rate", "1000000"),
        ("X-Accel-Limit-Rate", "100k"),
        ("X-Accel-Limit-Rate", "-1"),
        ("X-Accel-Limit-Rate", "junk"),
        ("X-Accel-Limit-Rate", ""),
    ] {
        rows.push(named(&[(name, value)]));
        rows.push(Row::get(format!("proxied, {name}: {value}"), &Told::headers(&[(name, value)])));
        let html = Told::headers(&[(name, value), ("Content-Type", "text/html")]);
        rows.push(Row::get(format!("proxied HTML, {name}: {value}"), &html));
    }
    for kind in
        ["text/html", "text/plain", "text/css", "application/javascript", "text/xml", "application/json"]
    {
        rows.push(named(&[("Content-Type", kind), ("X-Accel-Charset", "utf-8")]));
        rows.push(named(&[("X-Accel-Charset", "utf-8"), ("Content-Type", kind)]));
    }
    let charset = [("Content-Type", "text/html; charset=iso-8859-1"), ("X-Accel-Charset", "utf-8")];
    rows.push(named(&charset));
    rows.push(Row::get("proxied with a charset of its own", &Told::headers(&charset)));
    rows.push(Row::get(
        "page.html",
        &Told::redirect("/protected/page.html").header("X-Accel-Charset", "utf-8"),
    ));
    for name in ["X-Accel-Unknown", "X-Sendfile", "X-Sendfile-Type", "X-Accel-Mapping"] {
        rows.push(named(&[(name, "value")]));
        rows.push(Row::get(format!("proxied, {name}"), &Told::headers(&[(name, "value")])));
    }
    replay(&rows, STEERING);
}

#[test]
fn names_of_headers_have_no_case() {
    let rows = ["x-accel-redirect", "X-ACCEL-REDIRECT", "x-Accel-Redirect"]
        .map(|name| Row::get(name, &Told::headers(&[(name, "/protected/hello.txt")])));
    replay(&rows, &[]);
}
