//! What an application names, whoever chose the name, never leads out of the roots, and what is served is a file or
//! nothing: no directory, no device, nothing to wait for.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::backend::{BODY, Backend, Told};
use super::front::{Files, Front, SECRET, location};
use super::nginx::nginx;
use crate::support::client::{Answer, Request, get};
use crate::support::process::binary;
use crate::support::{eventually, tools};

/// What the machine's own files say that are known to be there: `/etc/passwd`, `/proc/self/status`, `/proc/self/environ`.
const OF_THE_MACHINE: [&str; 3] = ["root:", "VmPeak:", "PATH="];

struct Fixture {
    files: Files,
    backend: Backend,
    front: Front,
}

impl Fixture {
    fn start(more: &str) -> Self {
        let (files, backend) = (Files::new(), Backend::start());
        let root = files.root();
        let locations = [
            location("/protected/", &root),
            location("/bare/", &root.join("sub")),
            location("/process/", Path::new("/proc/self")),
            location("/devices/", Path::new("/dev")),
        ];
        let text = format!("sendfile_roots = [\"{}\"]\n{more}\n{}", root.display(), locations.concat());
        let front = Front::before(&backend.url(), &text);
        Self { files, backend, front }
    }

    fn send(&self, told: &Told) -> Answer {
        get(self.front.addr(), &told.target())
    }

    #[track_caller]
    fn assert_serves(&self) {
        self.send(&Told::redirect("/protected/hello.txt")).expect(200).expect_body(b"hello, world\n");
    }
}

/// The answer is an error, and nothing of a file is in it.
#[track_caller]
fn assert_refused(what: &str, answer: &Answer) {
    assert!([400, 403, 404, 502].contains(&answer.status()), "{what}: {answer}");
    let text = String::from_utf8_lossy(&answer.body);
    for secret in OF_THE_MACHINE.into_iter().chain([SECRET, BODY]) {
        assert!(!text.contains(secret), "{what}: {answer}");
    }
    assert!(answer.header("location").is_none(), "{what}: discloses a path: {answer}");
}

/// Ways up, in every spelling that some program has ever taken for one.
fn ways_up() -> Vec<String> {
    let dots = [
        "..",
        "%2e%2e",
        ".%2e",
        "%2E.",
        "%252e%252e",
        "..;",
        "..%00",
        "%c0%ae%c0%ae",
        "\u{ff0e}\u{ff0e}",
        "...",
    ];
    let slashes = ["/", "%2f", "%2F", "\\", "%5c", "//", "/./", "%252f", "%c0%af"];
    let mut ways = Vec::new();
    for dots in dots {
        for slash in slashes {
            for depth in [1, 2, 12] {
                let up = format!("{dots}{slash}").repeat(depth);
                ways.push(format!("{up}outside{slash}secret.txt"));
                ways.push(format!("{up}etc{slash}passwd"));
            }
        }
    }
    ways
}

#[test]
fn no_spelling_leads_out_of_a_root() {
    let fixture = Fixture::start("");
    let root = fixture.files.root();
    for way in ways_up() {
        for prefix in ["/protected/", "/protected/sub/", "/protected", "/bare", "/bare/", "", "/"] {
            let told = Told::redirect(&format!("{prefix}{way}"));
            assert_refused(&format!("X-Accel-Redirect: {prefix}{way}"), &fixture.send(&told));
        }
        for path in [format!("{}/{way}", root.display()), format!("{}{way}", root.display())] {
            let told = Told::headers(&[("X-Sendfile", &path)]);
            assert_refused(&format!("X-Sendfile: {path}"), &fixture.send(&told));
        }
    }
    fixture.assert_serves();
}

#[test]
fn what_is_no_path_beneath_a_root_is_refused() {
    let fixture = Fixture::start("");
    let (root, outside) = (fixture.files.root(), fixture.files.outside());
    // A directory whose name begins as the root's does.
    let beside = root.with_file_name("root-beside");
    super::front::write_file(&beside.join("secret.txt"), SECRET.as_bytes());
    for path in [
        "/etc/passwd",
        "//etc/passwd",
        "/proc/self/status",
        "file:///etc/passwd",
        &format!("/protected/{}", outside.join("secret.txt").display()),
        &format!("/protected{}", outside.join("secret.txt").display()),
        "/protected/hello.txt%00",
        "/protected/%00hello.txt",
        "/protected/hello.txt%00/../../outside/secret.txt",
        "/protected/hello.txt%0d%0aX-Injected: yes%0d%0a%0d%0a",
        "/protected/%0aroot:",
        "/protected/",
        "/protected/.",
        "/protected/./",
        "/protected//",
        "/protected/sub",
        "/bare",
        "/bare/",
        "/bare..",
        "/bare../outside/secret.txt",
        "/bare../../outside/secret.txt",
        "/bare%2e%2e/hello.txt",
    ] {
        assert_refused(path, &fixture.send(&Told::redirect(path)));
    }
    for path in [
        "/etc/passwd",
        "etc/passwd",
        "",
        "/",
        &root.display().to_string(),
        &format!("{}/", root.display()),
        &format!("{}/.", root.display()),
        &format!("{}/sub", root.display()),
        &beside.join("secret.txt").display().to_string(),
        &outside.join("secret.txt").display().to_string(),
        &format!("{}//../outside/secret.txt", root.display()),
        &format!("{}/hello.txt%00", root.display()),
    ] {
        assert_refused(path, &fixture.send(&Told::headers(&[("X-Sendfile", path)])));
    }
    fixture.assert_serves();
}

#[test]
fn links_stay_beneath_the_root_or_are_refused() {
    let outside = [
        "outside.lnk",
        "outside-absolute.lnk",
        "outside-directory.lnk/secret.txt",
        "proc.lnk",
        "magic.lnk/etc/passwd",
        "dangling.lnk",
        "cycle.lnk",
    ];
    let inside = ["inside.lnk", "directory.lnk/deep/er.txt"];
    for mode in ["beneath", "deny"] {
        let fixture = Fixture::start(&format!("symlinks = \"{mode}\""));
        let root = fixture.files.root();
        let by_path = |name: &str| Told::headers(&[("X-Sendfile", &format!("{}/{name}", root.display()))]);
        let by_location = |name: &str| Told::redirect(&format!("/protected/{name}"));
        for name in outside {
            assert_refused(name, &fixture.send(&by_location(name)));
            assert_refused(name, &fixture.send(&by_path(name)));
        }
        for name in inside {
            for told in [by_location(name), by_path(name)] {
                let answer = fixture.send(&told);
                if mode == "deny" {
                    assert_refused(name, &answer);
                } else {
                    answer.expect(200).expect_body(&fixture.files.read(name));
                }
            }
        }
        // The kernel's own links lead anywhere.
        for name in
            ["root/etc/passwd", "cwd/Cargo.toml", "exe", "fd/0", "fd/1", "fd/2", "task/self/root/etc/passwd"]
        {
            assert_refused(name, &fixture.send(&Told::redirect(&format!("/process/{name}"))));
        }
        fixture.assert_serves();
    }
}

#[test]
fn what_is_no_file_is_refused_without_waiting_for_it() {
    let fixture = Fixture::start("");
    let root = fixture.files.root();
    let _listener = UnixListener::bind(root.join("socket")).expect("our own directory");
    symlink("fifo", root.join("fifo.lnk")).expect("our own directory");
    thread::scope(|scope| {
        for _ in 0..8 {
            let fixture = &fixture;
            scope.spawn(move || {
                for path in [
                    "/protected/fifo",
                    "/protected/fifo.lnk",
                    "/protected/fifo/file",
                    "/protected/socket",
                    "/protected/sub",
                    "/protected/sub/",
                    "/protected/hello.txt/",
                    "/protected/hello.txt/file",
                    "/devices/null",
                    "/devices/zero",
                    "/devices/full",
                    "/devices/random",
                    "/devices/tty",
                    "/devices/ptmx",
                    "/devices/stdin",
                    "/devices/fd/0",
                    "/devices/shm",
                ] {
                    assert_refused(path, &fixture.send(&Told::redirect(path)));
                }
                fixture.assert_serves();
            });
        }
    });
}

#[test]
fn internal_locations_do_not_exist_outside() {
    let fixture = Fixture::start("");
    fixture.backend.take_seen();
    for target in ["/protected/hello.txt", "/protected/", "/bare/deep/er.txt", "/protected/%2e%2e/secret.txt"]
    {
        get(fixture.front.addr(), target).expect(200).expect_body(BODY.as_bytes());
        let seen = fixture.backend.take_seen();
        assert_eq!(seen.len(), 1, "{target}");
        assert_eq!(seen[0].path, target, "it is passed on as it came");
    }
    // Absolute form, and a Host that is a path.
    let addr = fixture.front.addr();
    Request::get(format!("http://{addr}/protected/hello.txt")).send(addr).expect_body(BODY.as_bytes());
}

#[test]
fn a_client_cannot_speak_as_the_application() {
    for (more, own) in [("", false), ("sendfile_type = true", true)] {
        let fixture = Fixture::start(more);
        let path = fixture.files.root().join("hello.txt").display().to_string();
        let request = [
            ("X-Accel-Redirect", "/protected/hello.txt"),
            ("X-Accel-Limit-Rate", "1"),
            ("X-Accel-Expires", "1"),
            ("X-Accel-Buffering", "no"),
            ("X-Accel-Charset", "utf-8"),
            ("X-Accel-Mapping", "/=/protected/"),
            ("X-Sendfile", &path),
            ("X-Sendfile-Type", "X-Sendfile"),
            ("x-sendfile-type", "X-Lighttpd-Send-File"),
            // Application servers make variables of headers, in which a dash and an underscore are the same.
            ("X_Accel_Mapping", "/=/protected/"),
            ("X_Sendfile_Type", "X-Sendfile"),
        ]
        .into_iter()
        .fold(Request::get("/app"), |request, (name, value)| request.header(name, value));
        fixture.backend.take_seen();
        request.send(fixture.front.addr()).expect(200).expect_body(BODY.as_bytes());
        let seen = fixture.backend.take_seen();
        for name in [
            "x-accel-redirect",
            "x-accel-limit-rate",
            "x-accel-expires",
            "x-accel-buffering",
            "x-accel-charset",
            "x-sendfile",
            "x_accel_mapping",
            "x_sendfile_type",
        ] {
            assert_eq!(seen[0].header(name), None, "{name}");
        }
        if own {
            assert_eq!(seen[0].header("x-sendfile-type"), Some("X-Accel-Redirect"));
            let mapping = seen[0].header("x-accel-mapping").expect("it is set");
            let root = fixture.files.root();
            assert!(
                mapping.contains(&format!("{}", root.display())) && mapping.contains("/protected/"),
                "{mapping}"
            );
        } else {
            assert_eq!(seen[0].header("x-sendfile-type"), None);
            assert_eq!(seen[0].header("x-accel-mapping"), None);
        }
    }
}

#[test]
fn a_prefix_that_is_no_directory_is_refused() {
    // `/files../secret` would lead out of what `/files` is an alias of, as it does in other servers.
    let home = tempfile::tempdir().expect("a directory");
    let config = home.path().join("spliceway.toml");
    for (prefix, right) in
        [("/files/", true), ("/files", false), ("files/", false), ("", false), ("/a/../b/", false)]
    {
        let text = format!(
            "[[registry]]\n[[accel]]\nlisten = \"127.0.0.1:0\"\nbackend = \"http://127.0.0.1:1\"\n{}",
            location(prefix, home.path())
        );
        fs::write(&config, text).expect("our own directory");
        let checked = tools::run(Command::new(binary()).arg("check-config").arg(&config));
        assert_eq!(checked.status.success(), right, "{prefix:?}: {}{}", checked.stdout, checked.stderr);
        assert!(right || checked.stderr.contains("prefix"), "{prefix:?}: {}", checked.stderr);
    }
}

/// Swaps a directory and a link to the outside again and again until told to stop.
fn swap(root: &Path, stop: &AtomicBool) {
    let (directory, link) = (root.join("swapped"), root.join("swapped.lnk"));
    while !stop.load(Ordering::Relaxed) {
        renameat_with(CWD, &directory, CWD, &link, RenameFlags::EXCHANGE).expect("both are there");
    }
}

#[test]
fn a_directory_swapped_for_a_link_shows_nothing_of_the_outside() {
    const INSIDE: &[u8] = b"of the inside";
    const REQUESTS: usize = 1000;
    let fixture = Fixture::start("");
    let root = fixture.files.root();
    for at in ["swapped", "swapped/more"] {
        fixture.files.write(&format!("{at}/secret.txt"), INSIDE);
    }
    fs::create_dir(fixture.files.outside().join("more")).expect("our own directory");
    fs::write(fixture.files.outside().join("more/secret.txt"), SECRET).expect("our own directory");
    symlink("../outside", root.join("swapped.lnk")).expect("our own directory");
    let nginx = nginx(
        fixture.backend.addr(),
        &format!("location /protected/ {{ internal; alias {}/; }}", root.display()),
    );
    let (stop, served, refused) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let ask = |told: &Told| {
        let answer = fixture.send(told);
        assert!(!answer.body.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()), "{answer}");
        match answer.status() {
            200 => {
                answer.expect_body(INSIDE);
                served.fetch_add(1, Ordering::Relaxed);
            }
            403 | 404 | 503 => {
                refused.fetch_add(1, Ordering::Relaxed);
            }
            _ => panic!("{answer}"),
        }
    };
    thread::scope(|scope| {
        let swapping = scope.spawn(|| swap(&root, &stop));
        let clients: Vec<_> = ["swapped/secret.txt", "swapped/more/secret.txt"]
            .into_iter()
            .flat_map(|name| {
                let path = format!("{}/{name}", root.display());
                [Told::redirect(&format!("/protected/{name}")), Told::headers(&[("X-Sendfile", &path)])]
            })
            .map(|told| scope.spawn(move || (0..REQUESTS).for_each(|_| ask(&told))))
            .collect();
        let failed = clients.into_iter().filter_map(|client| client.join().err()).count();
        // That the swap does lead out at times: nginx follows it.
        let leak = Told::redirect("/protected/swapped/secret.txt").target();
        eventually("a server that does not look to be led out", || {
            (get(nginx.addr(), &leak).body == SECRET.as_bytes()).then_some(())
        });
        stop.store(true, Ordering::Relaxed);
        swapping.join().expect("the swapping thread does not panic");
        assert_eq!(failed, 0, "clients that saw what they must not");
    });
    assert!(served.load(Ordering::Relaxed) > 0, "not one request found the file");
    assert!(refused.load(Ordering::Relaxed) > 0, "not one request met the link");
    File::open(root.join("hello.txt")).expect("still there");
    fixture.assert_serves();
}
