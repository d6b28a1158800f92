//! Applications on real frameworks, unchanged behind nginx (or lighttpd), behind Spliceway, and alone: Rack with
//! `Rack::Sendfile`, Flask with `USE_X_SENDFILE`.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::front::{Files, Front, location};
use super::lighttpd::lighttpd;
use super::nginx::nginx;
use crate::support::client::{Answer, End, Request};

/// A running application.
struct Application {
    child: Child,
    addr: SocketAddr,
}

impl Application {
    /// Debian's `ruby` with `ruby-rack` and `ruby-webrick`.
    fn rack(root: &Path, variation: Option<&str>) -> Self {
        let mut command = Command::new("/usr/bin/ruby");
        command.arg(program("app.rb")).arg(root).args(variation);
        Self::start(command)
    }

    /// Debian's `python3-flask`, with Debian's Python.
    fn flask(root: &Path, variation: &str) -> Self {
        let mut command = Command::new("/usr/bin/python3");
        command.arg(program("app.py")).arg(root).arg(variation);
        Self::start(command)
    }

    fn start(mut command: Command) -> Self {
        let log = tempfile::tempfile().expect("a temporary file");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::try_clone(&log).expect("a second handle"))
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let port: u16 = line.trim().parse().unwrap_or_else(|_| {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{command:?} says no port but {line:?}: {}", text(log));
        });
        Self { child, addr: ([127, 0, 0, 1], port).into() }
    }

    fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program(name: &str) -> String {
    format!("{}/tests/integration/accel/applications/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn text(mut file: File) -> String {
    use std::io::{Read as _, Seek as _};
    let mut text = String::new();
    let _ = file.rewind().and_then(|()| file.read_to_string(&mut text));
    text
}

/// What a client sees of a download.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    status: u16,
    end: End,
    body: Vec<u8>,
    headers: Vec<(&'static str, Vec<String>)>,
}

impl Seen {
    const HEADERS: [&str; 6] = [
        "content-type",
        "content-length",
        "content-disposition",
        "content-range",
        "set-cookie",
        "cache-control",
    ];

    fn of(answer: Answer) -> Self {
        let values = |name| answer.header_values(name).into_iter().map(str::to_owned).collect();
        let headers = Self::HEADERS.map(|name| (name, values(name))).to_vec();
        let mut seen = Self { status: answer.status(), end: answer.end, headers, body: Vec::new() };
        if seen.status >= 400 {
            // A page about the error: everybody has an own one.
            seen.headers.retain(|(name, _)| !["content-type", "content-length"].contains(name));
        } else {
            seen.body = answer.body;
        }
        seen
    }
}

/// Names as they are on the disk and in a request.
const NAMES: [(&str, &str); 7] = [
    ("hello.txt", "hello.txt"),
    ("empty.txt", "empty.txt"),
    ("large.bin", "large.bin"),
    ("with space.txt", "with%20space.txt"),
    ("a+b.txt", "a+b.txt"),
    ("sub/deep/er.txt", "sub/deep/er.txt"),
    ("page.html", "page.html"),
];
/// Those that only a path in `X-Accel-Redirect` can say: in `X-Sendfile` they come undecoded, and are decoded once.
const ENCODED: [(&str, &str); 4] = [
    ("100%.txt", "100%25.txt"),
    ("a%20b.txt", "a%2520b.txt"),
    ("what?.txt", "what%3F.txt"),
    ("gr\u{fc}\u{df}e \u{1f600}.txt", "gr%C3%BC%C3%9Fe%20%F0%9F%98%80.txt"),
];

fn requests(target: &str) -> Vec<(String, Request)> {
    let get = || Request::get(target);
    let mut all = vec![("GET".to_owned(), get()), ("HEAD".to_owned(), Request::head(target))];
    for range in ["0-4", "3-", "-4", "0-1,4-5", "99999999-"] {
        // Of nothing there is nothing to cut: servers disagree about what that is.
        if target.ends_with("empty.txt") && !["0-4", "-4"].contains(&range) {
            continue;
        }
        all.push((format!("range {range}"), get().range(range)));
    }
    all
}

/// Whoever serves it, it is the same that the client gets.
#[track_caller]
fn assert_same(what: &str, request: &Request, theirs: SocketAddr, ours: SocketAddr) {
    let (theirs, ours) = (Seen::of(request.send(theirs)), Seen::of(request.send(ours)));
    let kind = ours.headers.first().and_then(|(_, values)| values.first());
    if kind.is_some_and(|kind| kind.starts_with("multipart/byteranges")) {
        // Boundaries differ, and lengths with them.
        assert_eq!((theirs.status, theirs.end), (ours.status, ours.end), "{what}");
        return;
    }
    assert!(theirs == ours, "{what}:\n    there {theirs:?}\n    here {ours:?}");
}

#[test]
fn rack_with_x_accel_redirect() {
    let files = Files::new();
    let root = files.root();
    let application = Application::rack(&root, Some("X-Accel-Redirect"));
    let alone = Application::rack(&root, None);
    let mapping = format!("proxy_set_header X-Accel-Mapping {}/=/protected/;", root.display());
    // The mapping is of the server's block: it has no effect beside other proxy_set_header in a location.
    let nginx = nginx(
        application.addr,
        &format!(
            "location /protected/ {{ internal; alias {}/; }}\n        location /files {{ proxy_pass http://application; \
             {mapping} }}\n        location /download {{ proxy_pass http://application; {mapping} }}",
            root.display()
        ),
    );
    let front = Front::before(
        &application.url(),
        &format!("sendfile_type = true\nheaders = \"nginx\"\n{}", location("/protected/", &root)),
    );
    for (name, encoded) in NAMES.into_iter().chain(ENCODED) {
        let target = format!("/download/{encoded}");
        for (what, request) in requests(&target) {
            assert_same(&format!("{what} of {target}"), &request, nginx.addr(), front.addr());
        }
        let answer = Request::get(&target).send(front.addr()).expect(200).expect_body(&files.read(name));
        let disposition = answer.header("content-disposition").expect("the application's");
        assert!(disposition.starts_with("attachment; filename*=UTF-8''"), "{disposition}");
        assert_eq!(answer.header("content-type"), Some("application/x-download"));
        // The application knows ranges of these itself, and its answer to them is passed on.
        let target = format!("/files/{encoded}");
        for (what, request) in requests(&target) {
            assert_same(&format!("{what} of {target}"), &request, nginx.addr(), front.addr());
        }
        Request::get(&target).send(front.addr()).expect(200).expect_body(&files.read(name));
        Request::get(&target).send(alone.addr).expect(200).expect_body(&files.read(name));
    }
    // That the files do come from the front: the application sends nothing of them.
    let sent = Request::get("/download/hello.txt")
        .header("X-Accel-Mapping", &format!("{}/=/protected/", root.display()))
        .send(application.addr)
        .expect(200);
    assert_eq!(sent.header("x-accel-redirect"), Some("/protected/hello.txt"));
    assert!(sent.body.is_empty());
    for target in ["/", "/download/missing.txt", "/files/missing.txt", "/files/../../etc/passwd"] {
        assert_same(target, &Request::get(target), nginx.addr(), front.addr());
    }
}

#[test]
fn rack_with_x_sendfile() {
    let files = Files::new();
    let root = files.root();
    let application = Application::rack(&root, Some("X-Sendfile"));
    let lighttpd = lighttpd(application.addr, &root);
    let front = Front::before(&application.url(), &format!("sendfile_roots = [\"{}\"]", root.display()));
    for (name, encoded) in NAMES {
        let target = format!("/download/{encoded}");
        // lighttpd joins ranges that do not touch, and forgets what the application said when it says 416.
        let unlike = |what: &str| ["range 0-1,4-5", "range 99999999-"].contains(&what);
        for (what, request) in requests(&target).into_iter().filter(|(what, _)| !unlike(what)) {
            assert_same(&format!("{what} of {target}"), &request, lighttpd.addr(), front.addr());
        }
        Request::get(&target).send(front.addr()).expect(200).expect_body(&files.read(name));
    }
}

#[test]
fn flask_with_x_accel_redirect() {
    let files = Files::new();
    let root = files.root();
    let application = Application::flask(&root, "X-Accel-Redirect");
    let nginx =
        nginx(application.addr, &format!("location /protected/ {{ internal; alias {}/; }}", root.display()));
    let compatible = format!("headers = \"nginx\"\n{}", location("/protected/", &root));
    let keeping = location("/protected/", &root);
    let front = Front::several(&[(&application.url(), &compatible), (&application.url(), &keeping)]);
    for (name, encoded) in NAMES.into_iter().chain(ENCODED) {
        for target in [format!("/download/{encoded}"), format!("/files/{encoded}")] {
            for (what, request) in requests(&target) {
                assert_same(&format!("{what} of {target}"), &request, nginx.addr(), front.addr());
            }
            Request::get(&target).send(front.addr()).expect(200).expect_body(&files.read(name));
        }
    }
    let answer = Request::get("/download/hello.txt").send(front.addr()).expect(200);
    let disposition = answer.header("content-disposition").expect("the application's");
    assert!(disposition.contains("filename*=UTF-8''Gr%C3%BC%C3%9Fe%20an%20alle.txt"), "{disposition}");
    // With the application's own validator, which it gives with `headers = "keep"`, a client has it confirmed.
    let addr = front.addr_of(1);
    let etag =
        Request::get("/files/hello.txt").send(addr).expect(200).header("etag").expect("Flask's").to_owned();
    assert_eq!(
        Request::head("/files/hello.txt").send(application.addr).header("etag"),
        Some(&*etag),
        "it is the application's"
    );
    Request::get("/files/hello.txt").header("If-None-Match", &etag).send(addr).expect(304);
    let range = Request::get("/files/hello.txt").range("0-4").header("If-Range", &etag);
    range.send(addr).expect(206).expect_body(b"hello");
    for target in ["/", "/files/missing.txt", "/nowhere"] {
        assert_same(target, &Request::get(target), nginx.addr(), front.addr());
    }
}

#[test]
fn flask_with_x_sendfile() {
    let files = Files::new();
    let root = files.root();
    let (application, alone) = (Application::flask(&root, "X-Sendfile"), Application::flask(&root, "none"));
    let lighttpd = lighttpd(application.addr, &root);
    let front = Front::before(&application.url(), &format!("sendfile_roots = [\"{}\"]", root.display()));
    for (name, encoded) in NAMES {
        for target in [format!("/download/{encoded}"), format!("/files/{encoded}")] {
            for what in [Request::get(&target), Request::head(&target)] {
                assert_same(&target, &what, lighttpd.addr(), front.addr());
            }
            // lighttpd cuts a range out of what the application says is one already; so without it.
            for (what, request) in requests(&target).into_iter().filter(|(what, _)| what.starts_with("range"))
            {
                if name != "empty.txt" && what != "range 0-1,4-5" {
                    assert_same(&format!("{what} of {target}"), &request, alone.addr, front.addr());
                }
            }
            Request::get(&target).send(front.addr()).expect(200).expect_body(&files.read(name));
        }
    }
}
