//! What the front of an application does beside passing requests on: blobs of a registry, rates, hosts and listeners,
//! backends of every kind, reloads.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::front::Front;
use crate::support::client::{Answer, Connection, Request, get};
use crate::support::listener::{Listener, RequestHead};
use crate::support::origin::Origin;
use crate::support::process::{Setup, Spliceway};
use crate::support::tools::Authority;
use crate::support::{eventually, noise};

/// An application that gives every request the same answer, and remembers the requests.
struct Application {
    listener: Listener,
    seen: Arc<Mutex<Vec<RequestHead>>>,
}

impl Application {
    fn answering(answer: impl Into<String>) -> Self {
        let (answer, seen) = (answer.into(), Arc::<Mutex<Vec<RequestHead>>>::default());
        let noting = seen.clone();
        let listener = Listener::start(Arc::new(move |mut stream: TcpStream| {
            let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
            while let Ok(Some(head)) = RequestHead::read(&mut reader) {
                noting.lock().expect("not poisoned").push(head);
                if stream.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        }));
        Self { listener, seen }
    }

    /// With these fields and no body.
    fn saying(fields: &str) -> Self {
        Self::answering(format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 0\r\n\r\n"))
    }

    fn url(&self) -> String {
        format!("http://{}", self.listener.addr())
    }

    fn last(&self) -> RequestHead {
        self.seen.lock().expect("not poisoned").last().expect("a request").clone()
    }
}

/// A front `app` before `backend`, for the host `app.example`; `more` is the rest of its table.
fn front(setup: &mut Setup, backend: &str, more: &str) {
    setup.more(&format!(
        "\n[[accel]]\nname = \"app\"\nhosts = [\"app.example\"]\nbackend = \"{backend}\"\n{more}\n"
    ));
}

fn ask(spliceway: &Spliceway, request: Request) -> Answer {
    request.host("app.example").send(spliceway.addr())
}

fn location(prefix: &str, root: &Path) -> String {
    format!("[[accel.location]]\nprefix = \"{prefix}\"\nroot = \"{}\"\n", root.display())
}

fn directory_with(name: &str, content: &[u8]) -> TempDir {
    let directory = TempDir::with_prefix("accel-basics-").expect("a temporary directory");
    std::fs::write(directory.path().join(name), content).expect("our own directory");
    directory
}

#[test]
fn a_host_selects_the_front_on_the_common_listeners() {
    let application = Application::answering("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\napp");
    let spliceway = Spliceway::start(|setup| front(setup, &application.url(), ""));
    ask(&spliceway, Request::get("/v2/")).expect(200).expect_body(b"app");
    let own = get(spliceway.addr(), "/v2/").expect(200);
    assert_eq!(own.header("docker-distribution-api-version"), Some("registry/2.0"));
    let head = application.last();
    assert_eq!(head.header("host"), Some("app.example"));
    assert_eq!(head.header("x-forwarded-host"), Some("app.example"));
    assert_eq!(head.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(head.header("forwarded"), Some("for=127.0.0.1;host=\"app.example\";proto=http"));
    assert!(
        spliceway.metric("spliceway_accel_requests_total", &["front=\"app\"", "source=\"proxied\""]) >= 1.0
    );
    spliceway.wait_log(&["access", "path=\"/v2/\"", "accel=\"app\"", "source=\"proxied\"", "status=200"]);
}

#[test]
fn what_a_front_is_told_in_the_words_of_rack() {
    let directory = directory_with("a", b"");
    let application = Application::saying("");
    let spliceway = Spliceway::start(|setup| {
        front(
            setup,
            &application.url(),
            &format!("sendfile_type = true\n{}", location("/files/", directory.path())),
        );
    });
    let client =
        Request::get("/").header("X-Accel-Mapping", "/=/etc/").header("X-Sendfile-Type", "X-Sendfile");
    ask(&spliceway, client).expect(200);
    let head = application.last();
    assert_eq!(head.header("x-sendfile-type"), Some("X-Accel-Redirect"));
    let mapping = format!("{}/=/files/", directory.path().display());
    assert_eq!(head.header("x-accel-mapping"), Some(mapping.as_str()));
}

#[test]
fn a_blob_is_filled_for_whom_the_application_authorised() {
    let origin = Origin::start();
    let blob = origin.random_blob(3, 200_000);
    let bytes = noise(3, 200_000);
    let digest = &blob.digest;
    let fields = format!(
        "X-Accel-Redirect: /layers/team/app/{digest}\r\nContent-Type: application/x-layer\r\nLink: <x>\r\nETag: \"mine\"\r\n"
    );
    let application = Application::saying(&fields);
    let spliceway = Spliceway::start(|setup| {
        setup.origin(&origin);
        front(setup, &application.url(), "[[accel.location]]\nprefix = \"/layers/\"\nblobs = \"main\"");
    });
    let filled = ask(&spliceway, Request::get("/layer")).expect(200);
    assert_eq!(filled.header("content-type"), Some("application/x-layer"));
    assert_eq!(filled.header("link"), Some("<x>"));
    assert_eq!(filled.header_values("etag"), [format!("\"{digest}\"")], "what conditions are held against");
    assert_eq!(filled.header("cache-control"), None, "only the application can say who may keep it");
    filled.expect_body(&bytes);
    spliceway.wait_published(digest);
    let part = ask(&spliceway, Request::get("/layer").range("10-19")).expect(206);
    assert_eq!(part.header("content-range"), Some("bytes 10-19/200000"));
    part.expect_body(&bytes[10..20]);
    ask(&spliceway, Request::get("/layer").range("200000-")).expect(416);
    let etag = format!("\"{digest}\"");
    ask(&spliceway, Request::get("/layer").header("If-None-Match", &etag)).expect(304);
    let head = ask(&spliceway, Request::head("/layer")).expect(200);
    assert_eq!(head.header("content-length"), Some("200000"));
    ask(&spliceway, Request::new("POST", "/layer").body("x")).expect(200).expect_body(&bytes);
    assert_eq!(origin.seen("GET", &format!("/v2/team/app/blobs/{digest}")).len(), 1, "it was fetched once");

    let outside = ask(&spliceway, Request::get(format!("/layers/team/app/{digest}"))).expect(200);
    assert_eq!(
        application.last().path,
        format!("/layers/team/app/{digest}"),
        "the application was asked: {outside}"
    );
    assert!(spliceway.metric("spliceway_accel_requests_total", &["source=\"blob\""]) >= 5.0);
}

#[test]
fn a_blob_that_there_is_none_of_is_404() {
    let origin = Origin::start();
    let absent = format!("sha256:{}", "0".repeat(64));
    for path in
        [format!("team/app/{absent}"), absent.clone(), "team/app/latest".into(), format!("Team/{absent}")]
    {
        let application =
            Application::saying(&format!("X-Accel-Redirect: /layers/{path}\r\nSet-Cookie: a=b\r\n"));
        let spliceway = Spliceway::start(|setup| {
            setup.origin(&origin);
            front(setup, &application.url(), "[[accel.location]]\nprefix = \"/layers/\"\nblobs = \"main\"");
        });
        let answer = ask(&spliceway, Request::get("/")).expect(404);
        assert_eq!(answer.header("set-cookie"), Some("a=b"));
        answer.expect_body(b"404 Not Found\n");
    }
}

/// Bytes that come in about two seconds of an answer that has begun, and how long that really was.
fn taken(spliceway: &Spliceway) -> (u64, Duration) {
    let request = Request::get("/").host("app.example");
    let mut exchange =
        Connection::open(spliceway.addr()).request(spliceway.addr(), &request).expect("an answer");
    exchange.next(usize::MAX).expect("a first piece");
    let (begin, before) = (Instant::now(), exchange.received());
    while begin.elapsed() < Duration::from_secs(2) {
        exchange.next(usize::MAX).expect("more");
    }
    (exchange.received() - before, begin.elapsed())
}

/// How far `bytes` in `time` are from `rate`, in percent.
fn off(rate: u64, (bytes, time): (u64, Duration)) -> u64 {
    let right = u128::from(rate) * time.as_millis() / 1000;
    u64::try_from(u128::from(bytes).abs_diff(right) * 100 / right.max(1)).unwrap_or(u64::MAX)
}

#[test]
fn a_rate_is_kept() {
    let directory = directory_with("large", b"");
    let file = std::fs::File::options().write(true).open(directory.path().join("large")).expect("our own");
    file.set_len(1 << 30).expect("a sparse file");
    for rate in [10_000, 1_000_000, 100_000_000_u64] {
        let fields = format!("X-Accel-Redirect: /files/large\r\nX-Accel-Limit-Rate: {rate}\r\n");
        let redirecting = Application::saying(&fields);
        let spliceway = Spliceway::start(|setup| {
            front(setup, &redirecting.url(), &location("/files/", directory.path()));
        });
        // A machine that was busy in between gets another chance: what is exact is exact sooner or later.
        eventually(&format!("{rate} bytes/s"), || (off(rate, taken(&spliceway)) <= 5).then_some(()));
    }
}

#[test]
fn a_rate_holds_for_the_applications_own_body() {
    let body = "x".repeat(300_000);
    let application = Application::answering(format!(
        "HTTP/1.1 200 OK\r\nX-Accel-Limit-Rate: 100000\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    let spliceway = Spliceway::start(|setup| front(setup, &application.url(), ""));
    eventually("100000 bytes/s", || (off(100_000, taken(&spliceway)) <= 5).then_some(()));
    let answer = ask(&spliceway, Request::get("/")).expect(200);
    assert_eq!(answer.header("x-accel-limit-rate"), None);
    answer.expect_body(body.as_bytes());
}

#[test]
fn what_is_not_honoured_is_passed_on() {
    let application = Application::saying("X-Accel-Redirect: /files/a\r\nX-Accel-Expires: 5\r\n");
    let spliceway = Spliceway::start(|setup| front(setup, &application.url(), "honour = [\"expires\"]"));
    let answer = ask(&spliceway, Request::get("/")).expect(200).expect_body(b"");
    assert_eq!(answer.header("x-accel-redirect"), Some("/files/a"));
    assert_eq!(answer.header("x-accel-expires"), None);
}

#[test]
fn the_backends_status_survives_where_it_is_to() {
    let directory = directory_with("gone.html", b"it is gone");
    let fields = "HTTP/1.1 410 Gone\r\nX-Accel-Redirect: /errors/gone.html\r\nContent-Length: 0\r\n\r\n";
    let application = Application::answering(fields);
    for (status, wanted) in [("file", 206), ("backend", 410)] {
        let spliceway = Spliceway::start(|setup| {
            let more = format!("status = \"{status}\"\n{}", location("/errors/", directory.path()));
            front(setup, &application.url(), &more);
        });
        let answer = ask(&spliceway, Request::get("/").range("0-1")).expect(wanted);
        assert_eq!(answer.body.len(), if wanted == 206 { 2 } else { 10 });
    }
    // That of a part is about the body that is dropped.
    let application = Application::answering(
        "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-0/1\r\nX-Accel-Redirect: /errors/gone.html\r\n\
         Content-Length: 0\r\n\r\n",
    );
    let spliceway = Spliceway::start(|setup| {
        let more = format!("status = \"backend\"\n{}", location("/errors/", directory.path()));
        front(setup, &application.url(), &more);
    });
    ask(&spliceway, Request::get("/")).expect(200).expect_body(b"it is gone");
    let part = ask(&spliceway, Request::get("/").range("0-1")).expect(206);
    assert_eq!(part.header("content-range"), Some("bytes 0-1/10"), "{part}");
}

#[test]
fn an_application_may_listen_on_a_socket_of_the_filesystem() {
    let directory = directory_with("a.txt", b"from a file");
    let path = directory.path().join("app.sock");
    let listener = UnixListener::bind(&path).expect("our own directory");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|len| len > 2) {
                line.clear();
            }
            let answer = b"HTTP/1.1 200 OK\r\nX-Accel-Redirect: /files/a.txt\r\nConnection: close\r\n\r\n";
            stream.write_all(answer).expect("the front reads");
        }
    });
    let spliceway = Spliceway::start(|setup| {
        front(setup, &format!("unix:{}", path.display()), &location("/files/", directory.path()));
    });
    for _ in 0..2 {
        ask(&spliceway, Request::get("/")).expect(200).expect_body(b"from a file");
    }
}

/// `openssl s_server` that answers with the status of the connection.
struct Https(Child);

impl Drop for Https {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn https(authority: &Authority) -> (Https, SocketAddr) {
    let mut command = Command::new("openssl");
    command.args(["s_server", "-accept", "127.0.0.1:0", "-www"]);
    command.arg("-cert").arg(&authority.certificate).arg("-key").arg(&authority.key);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("openssl");
    let mut lines = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    let addr = loop {
        line.clear();
        assert!(lines.read_line(&mut line).expect("openssl talks") > 0, "openssl says where it listens");
        if let Some(addr) = line.trim().strip_prefix("ACCEPT ") {
            break addr.parse().expect("an address");
        }
    };
    std::thread::spawn(move || std::io::copy(&mut lines.by_ref(), &mut std::io::sink()));
    (Https(child), addr)
}

#[test]
fn an_https_backend_is_verified() {
    let home = TempDir::with_prefix("accel-basics-").expect("a temporary directory");
    let authority = Authority::new(home.path());
    let (_server, addr) = https(&authority);
    let backend = format!("https://localhost:{}", addr.port());
    let trusting = Spliceway::start(|setup| {
        front(setup, &backend, &format!("ca_file = \"{}\"", authority.ca.display()));
    });
    let answer = ask(&trusting, Request::get("/")).expect(200);
    assert!(String::from_utf8_lossy(&answer.body).contains("TLSv1.3"), "{answer}");
    let doubting = Spliceway::start(|setup| front(setup, &backend, ""));
    ask(&doubting, Request::get("/")).expect(502).expect_body(b"502 Bad Gateway\n");
    doubting.wait_log(&["WARN", "cannot be reached", "certificate"]);
}

#[test]
fn a_reload_changes_a_front_and_what_is_under_way_goes_on() {
    let directory = directory_with("large", &noise(5, 400_000));
    let old = Application::saying("X-Accel-Redirect: /files/large\r\nX-Accel-Limit-Rate: 200000\r\n");
    let new = Application::answering("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nnew");
    let mut spliceway =
        Spliceway::start(|setup| front(setup, &old.url(), &location("/files/", directory.path())));
    let request = Request::get("/").host("app.example");
    let mut under_way =
        Connection::open(spliceway.addr()).request(spliceway.addr(), &request).expect("an answer");
    let mut got = under_way.next(usize::MAX).expect("a first piece");

    let text = {
        let mut setup = Setup::default();
        front(&mut setup, &new.url(), "");
        setup.text()
    };
    spliceway.reload_text(&text);
    spliceway.wait_log(&["configuration reloaded"]);
    ask(&spliceway, Request::get("/")).expect(200).expect_body(b"new");
    under_way.read_to(400_000, &mut got).expect("the rest");
    assert!(got == noise(5, 400_000), "what was under way arrives whole");

    spliceway.reload_text("[[accel]]\nbackend = \"nonsense\"\nhosts = [\"x\"]\n");
    spliceway.wait_log(&["the old one stays"]);
    ask(&spliceway, Request::get("/")).expect(200).expect_body(b"new");
    spliceway.reload_text("");
    eventually("the front to be gone", || (ask(&spliceway, Request::get("/")).status() != 200).then_some(()));
    spliceway.stop();
}

/// Not to show what is behind another one to who reaches this one only.
#[test]
fn a_listener_stays_its_fronts_while_the_process_runs() {
    let application = Application::answering("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\napp");
    let front = Front::before(&application.url(), "");
    get(front.addr(), "/v2/").expect(200).expect_body(b"app");
    front.spliceway.reload_text("");
    front.spliceway.wait_log(&["configuration reloaded"]);
    get(front.addr(), "/v2/").expect(200).expect_body(b"app");
}

#[test]
fn a_drain_finishes_what_a_front_has_under_way() {
    let directory = directory_with("large", &noise(5, 300_000));
    let application = Application::saying("X-Accel-Redirect: /files/large\r\nX-Accel-Limit-Rate: 200000\r\n");
    let mut spliceway =
        Spliceway::start(|setup| front(setup, &application.url(), &location("/files/", directory.path())));
    let request = Request::get("/").host("app.example");
    let mut under_way =
        Connection::open(spliceway.addr()).request(spliceway.addr(), &request).expect("an answer");
    let mut got = under_way.next(usize::MAX).expect("a first piece");
    spliceway.signal(rustix::process::Signal::TERM);
    under_way.read_to(300_000, &mut got).expect("the rest");
    assert!(got == noise(5, 300_000), "it arrives whole");
    drop(under_way);
    spliceway.wait_stopped();
}
