//! A table of requests, each sent through nginx and through Spliceway to the same application over the same files. The
//! answers are equal, or differ as the row says; a difference that is no more fails the test just as a new one does.

mod answers;
mod conditions;
mod headers;
mod names;
mod ranges;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::backend::{Backend, Told};
use super::front::{Files, Front, location};
use super::nginx::{Peer, nginx};
use crate::support::client::{Answer, End, Request};
use crate::support::sha256;

/// Not compared: of the connection, or of who answers.
const UNCOMPARED: [&str; 5] = ["date", "server", "connection", "keep-alive", "transfer-encoding"];

/// What is compared of an answer, by name.
pub(super) type Aspects = BTreeMap<String, String>;

/// What differs between two answers: what is compared, as the other server has it, as Spliceway has it. A header that is
/// not there is `-`.
pub(super) type Changes = &'static [(&'static str, &'static str, &'static str)];

/// What a row expects of Spliceway's answer, beside the other server's. A row that no decision names is the same.
#[derive(Clone, Copy)]
pub(super) enum Expect {
    Same,
    /// Always, and this is the reason.
    Differs {
        here: Changes,
        why: &'static str,
    },
    /// With `headers = "keep"`, where the application's headers survive; with `headers = "nginx"` it is the same.
    Kept {
        here: Changes,
    },
}

/// Rows that differ, all in the same way.
pub(super) struct Decision {
    rows: &'static [&'static str],
    expect: Expect,
}

/// These rows differ so, for this reason.
pub(super) const fn differ(why: &'static str, rows: &'static [&'static str], here: Changes) -> Decision {
    Decision { rows, expect: Expect::Differs { here, why } }
}

/// In these rows headers of the application survive that nginx loses.
pub(super) const fn kept(rows: &'static [&'static str], here: Changes) -> Decision {
    Decision { rows, expect: Expect::Kept { here } }
}

/// What the decisions say of a row.
pub(super) fn expected(decisions: &[Decision], name: &str) -> Expect {
    let mut named = decisions.iter().filter(|decision| decision.rows.contains(&name));
    let expect = named.next().map_or(Expect::Same, |decision| decision.expect);
    assert!(named.next().is_none(), "two decisions about {name}");
    expect
}

/// Every decision is about a row that there is.
#[track_caller]
pub(super) fn assert_rows_exist(decisions: &[Decision], rows: &[Row]) {
    for name in decisions.iter().flat_map(|decision| decision.rows) {
        assert!(rows.iter().any(|row| row.name == *name), "a decision about {name:?}, which is no row");
    }
}

/// One request.
pub(super) struct Row {
    pub(super) name: String,
    pub(super) request: Request,
}

impl Row {
    pub(super) fn new(name: impl Into<String>, request: Request) -> Self {
        Self { name: name.into(), request }
    }

    /// GET of what makes the application say `told`.
    pub(super) fn get(name: impl Into<String>, told: &Told) -> Self {
        Self::new(name, Request::get(told.target()))
    }

    /// GET of what makes the application redirect to `path`.
    pub(super) fn redirect(path: &str) -> Self {
        Self::get(path, &Told::redirect(path))
    }

    /// The same with a header of the client's.
    pub(super) fn asking(mut self, name: &str, value: &str) -> Self {
        let _ = write!(self.name, ", {name}: {value}");
        self.request = self.request.header(name, value);
        self
    }

    /// The same by a shorter name.
    pub(super) fn called(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }
}

/// The application, its files, nginx and Spliceway.
struct Fixture {
    _files: Files,
    _backend: Backend,
    nginx: Peer,
    front: Front,
}

impl Fixture {
    fn start() -> Self {
        let files = Files::new();
        let backend = Backend::start();
        let root = files.root();
        let nginx = nginx(
            backend.addr(),
            &format!(
                "location /protected/ {{ internal; alias {0}/; }}\n        \
                 location /bare/ {{ internal; alias {0}/sub/; }}\n        \
                 location /public/ {{ alias {0}/; }}\n        \
                 location /unused/ {{ charset utf-8; }}",
                root.display()
            ),
        );
        let (protected, bare) = (location("/protected/", &root), location("/bare/", &root.join("sub")));
        let url = backend.url();
        let [keep, compatible] =
            ["keep", "nginx"].map(|headers| format!("headers = \"{headers}\"\n{protected}{bare}"));
        let front = Front::several(&[(&url, &keep), (&url, &compatible)]);
        Self { _files: files, _backend: backend, nginx, front }
    }
}

/// Replays `rows` against nginx and against Spliceway in both of its modes.
#[track_caller]
fn replay(rows: &[Row], decisions: &[Decision]) {
    assert_rows_exist(decisions, rows);
    let fixture = Fixture::start();
    let mut wrong = String::new();
    for row in rows {
        let theirs = aspects(&row.request.send(fixture.nginx.addr()));
        for (number, mode) in [(0, "keep"), (1, "nginx")] {
            let expect = match expected(decisions, &row.name) {
                Expect::Kept { .. } if mode == "nginx" => Expect::Same,
                expect => expect,
            };
            let ours = aspects(&row.request.send(fixture.front.addr_of(number)));
            wrong += &judge(&format!("{} (headers = {mode:?})", row.name), expect, &theirs, &ours);
        }
    }
    assert!(wrong.is_empty(), "rows that are not as the table says (of what, there, here):\n{wrong}");
}

/// What is wrong with a row, in a form that the table has; nothing if it is as expected.
pub(super) fn judge(name: &str, expect: Expect, theirs: &Aspects, ours: &Aspects) -> String {
    let (expected, why) = match expect {
        Expect::Same => (&[][..], "the same"),
        Expect::Differs { here, why } => (here, why),
        Expect::Kept { here } => (here, "the application's headers survive"),
    };
    let found = differences(theirs, ours);
    let same = found.len() == expected.len()
        && found
            .iter()
            .zip(expected)
            .all(|((what, there, here), want)| (&**what, &**there, &**here) == *want);
    if same {
        return String::new();
    }
    let mut text = format!("{name}\n    wanted, {why}:\n");
    for change in expected {
        let _ = writeln!(text, "        {change:?},");
    }
    text.push_str("    found:\n");
    for change in &found {
        let _ = writeln!(text, "        {change:?},");
    }
    text
}

fn differences(theirs: &Aspects, ours: &Aspects) -> Vec<(String, String, String)> {
    let mut names: Vec<_> = theirs.keys().chain(ours.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let of = |side: &Aspects, name: &String| side.get(name).cloned().unwrap_or("-".into());
    names
        .into_iter()
        .map(|name| (name.clone(), of(theirs, name), of(ours, name)))
        .filter(|(_, there, here)| there != here)
        .collect()
}

/// What two servers' answers are compared by.
pub(super) fn aspects(answer: &Answer) -> Aspects {
    let (status, headers, body, end) = answer.comparable();
    let mut found = Aspects::new();
    for (name, value) in headers.into_iter().filter(|(name, _)| !UNCOMPARED.contains(&name.as_str())) {
        let all: &mut String = found.entry(name.clone()).or_default();
        if !all.is_empty() {
            all.push_str(" | ");
        }
        all.push_str(value);
    }
    found.insert("status".into(), status.to_string());
    if end != End::Complete {
        found.insert("end".into(), format!("{end:?}"));
    }
    // nginx says it twice if the application says it too, and not at all with what is not the whole file; here it comes
    // once with all of them.
    if found.get("accept-ranges").is_some_and(|value| value == "bytes | bytes") {
        found.insert("accept-ranges".into(), "bytes".into());
    }
    if [206, 304].contains(&status) && found.get("accept-ranges").is_some_and(|value| value == "bytes") {
        found.remove("accept-ranges");
    }
    // Whatever port the server has.
    if let Some((_, path)) =
        found.get("location").and_then(|at| at.strip_prefix("http://127.0.0.1:")?.split_once('/'))
    {
        let path = format!("/{path}");
        found.insert("location".into(), path);
    }
    let kind = found.get("content-type").cloned().unwrap_or_default();
    if let Some(boundary) = kind.strip_prefix("multipart/byteranges; boundary=") {
        found.insert("content-type".into(), "multipart/byteranges".into());
        // As long as its boundaries are.
        found.remove("content-length");
        found.insert("body".into(), parts(body, boundary.trim_matches('"')));
    } else if is_page(status, body) {
        for of_the_page in ["content-type", "content-length"] {
            found.remove(of_the_page);
        }
    } else {
        found.insert("body".into(), label(body));
    }
    found
}

/// Whether a body is a server's own about an error, or was asked for by HEAD: it is HTML elsewhere and plain text here.
fn is_page(status: u16, body: &[u8]) -> bool {
    let text = format!("{status} ");
    let begins = ["<html>", "<?xml", &text].iter().any(|start| body.starts_with(start.as_bytes()));
    status >= 300 && status != 304 && (body.is_empty() || begins)
}

/// The parts of a multipart/byteranges body (RFC 9110 section 14.6).
fn parts(body: &[u8], boundary: &str) -> String {
    let body = format!("\r\n{}", String::from_utf8_lossy(body).trim_start_matches("\r\n"));
    let mut pieces: Vec<_> = body.split(&format!("\r\n--{boundary}")).collect();
    let last = pieces.pop().unwrap_or_default();
    if pieces.first() != Some(&"") || !["--", "--\r\n"].contains(&last) {
        return format!("no parts: {body:?}");
    }
    let part = |piece: &&str| {
        let (head, content) = piece.trim_start().split_once("\r\n\r\n").unwrap_or(("no head", piece));
        let mut head: Vec<_> = head.split("\r\n").map(str::to_ascii_lowercase).collect();
        head.sort_unstable();
        format!("[{}: {}]", head.join(", "), label(content.as_bytes()))
    };
    let all: String = pieces[1..].iter().map(part).collect();
    match pieces.len() - 1 {
        ..=3 => all,
        many => format!("{many} parts, {}", &sha256(all.as_bytes())[..15]),
    }
}

/// A short body as it is, a long one by its hash.
fn label(body: &[u8]) -> String {
    match std::str::from_utf8(body) {
        Ok(text) if text.len() <= 200 => text.into(),
        _ => format!("{} bytes, {}", body.len(), &sha256(body)[..15]),
    }
}
