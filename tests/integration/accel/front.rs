//! Spliceway as the front of an application, and the files that it serves.

use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

use crate::support::process::Spliceway;
use crate::support::{MIB, noise};

/// Runs a program without root's right to read what its mode forbids, so that a file without permissions is one.
pub(super) fn without_override() -> &'static [&'static str] {
    const WRAPPER: &[&str] = &["setpriv", "--bounding-set=-dac_override,-dac_read_search"];
    if rustix::process::geteuid().is_root() { WRAPPER } else { &[] }
}

/// Some fronts of one process, each at an address of its own.
pub(super) struct Front {
    pub(super) spliceway: Spliceway,
    addrs: Vec<SocketAddr>,
}

impl Front {
    /// One front before `backend`; `more` is the rest of its table, its locations among it.
    pub(super) fn before(backend: &str, more: &str) -> Self {
        Self::several(&[(backend, more)])
    }

    /// A front for each backend and the rest of its table.
    pub(super) fn several(fronts: &[(&str, &str)]) -> Self {
        let mut text = String::new();
        for (number, (backend, more)) in fronts.iter().enumerate() {
            let _ = write!(
                text,
                "\n[[accel]]\nname = \"front{number}\"\nlisten = [\"127.0.0.1:0\"]\nbackend = \"{backend}\"\n{more}\n"
            );
        }
        let spliceway = Spliceway::start(|setup| {
            setup.wrapper(without_override()).server("workers", 1).more(&text);
        });
        let listening = |line: &str| line.split_once("listening on http://").map(|(_, rest)| rest.to_owned());
        let addrs: Vec<SocketAddr> = spliceway
            .log()
            .lines()
            .filter_map(listening)
            .filter_map(|rest| rest.split_whitespace().next()?.parse().ok())
            .filter(|addr| *addr != spliceway.addr())
            .collect();
        assert_eq!(addrs.len(), fronts.len(), "each front says where it listens:\n{}", spliceway.log());
        Self { spliceway, addrs }
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addrs[0]
    }

    pub(super) fn addr_of(&self, number: usize) -> SocketAddr {
        self.addrs[number]
    }
}

/// An internal location of a front.
pub(super) fn location(prefix: &str, root: &Path) -> String {
    format!("[[accel.location]]\nprefix = \"{prefix}\"\nroot = \"{}\"\n", root.display())
}

/// When every file was changed: Wed, 01 Jan 2020 00:00:00 GMT.
pub(super) const CHANGED_S: u64 = 1_577_836_800;
pub(super) const CHANGED: &str = "Wed, 01 Jan 2020 00:00:00 GMT";
/// Bytes of `digits.bin`.
pub(super) const DIGITS: usize = 1000;

/// What is in no file that may be served.
pub(super) const SECRET: &str = "of the outside";

/// A directory of files of every kind, and one beside it that nothing may be served from.
pub(super) struct Files {
    home: TempDir,
}

impl Files {
    pub(super) fn new() -> Self {
        let files = Self { home: TempDir::with_prefix("accel-").expect("a temporary directory") };
        fs::create_dir(files.root()).expect("our own directory");
        fs::create_dir(files.outside()).expect("our own directory");
        for (name, content) in [
            ("hello.txt", &b"hello, world\n"[..]),
            ("empty.txt", b""),
            ("page.html", b"<p>page</p>\n"),
            ("noextension", b"no extension\n"),
            ("odd.unknown-extension", b"odd\n"),
            ("with space.txt", b"with space\n"),
            ("a+b.txt", b"plus\n"),
            ("100%.txt", b"percent\n"),
            ("a%20b.txt", b"percent 20\n"),
            ("what?.txt", b"question mark\n"),
            ("c#.txt", b"hash\n"),
            ("gr\u{fc}\u{df}e \u{1f600}.txt", b"UTF-8\n"),
            ("a..b.txt", b"dots\n"),
            ("...", b"three dots\n"),
            (".hidden", b"hidden\n"),
            ("back\\slash.txt", b"backslash\n"),
            ("semi;colon&amp=.txt", b"semicolon\n"),
            ("quo\"te'.txt", b"quote\n"),
            ("sub/deep/er.txt", b"deep\n"),
            ("sub/index.html", b"<p>index</p>\n"),
            ("noindex/file.txt", b"noindex\n"),
            ("forbidden.txt", b"forbidden\n"),
            ("locked/file.txt", b"locked\n"),
        ] {
            files.write(name, content);
        }
        files.write("digits.bin", &digits());
        files.write("large.bin", &noise(7, 3 * MIB + 5));
        files.write("../outside/secret.txt", SECRET.as_bytes());
        for (name, to) in [
            ("inside.lnk", PathBuf::from("hello.txt")),
            ("directory.lnk", PathBuf::from("sub")),
            ("absolute.lnk", files.root().join("hello.txt")),
            ("outside.lnk", PathBuf::from("../outside/secret.txt")),
            ("outside-absolute.lnk", files.outside().join("secret.txt")),
            ("outside-directory.lnk", PathBuf::from("../outside")),
            ("dangling.lnk", PathBuf::from("nothing")),
            ("cycle.lnk", PathBuf::from("cycle.lnk")),
            ("proc.lnk", PathBuf::from("/proc/self/status")),
            ("magic.lnk", PathBuf::from("/proc/self/root")),
        ] {
            symlink(to, files.root().join(name)).expect("our own directory");
        }
        let fifo = files.root().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o644), 0).expect("our own directory");
        fs::set_permissions(files.root().join("forbidden.txt"), Permissions::from_mode(0o000))
            .expect("our own");
        fs::set_permissions(files.root().join("locked"), Permissions::from_mode(0o000)).expect("our own");
        files
    }

    pub(super) fn root(&self) -> PathBuf {
        self.home.path().join("root")
    }

    pub(super) fn outside(&self) -> PathBuf {
        self.home.path().join("outside")
    }

    pub(super) fn write(&self, name: &str, content: &[u8]) {
        write_file(&self.root().join(name), content);
    }

    pub(super) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.root().join(name)).expect("our own file")
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // Who is not root could not remove it otherwise.
        let _ = fs::set_permissions(self.root().join("locked"), Permissions::from_mode(0o755));
    }
}

/// Writes a file that seems to have been changed at [`CHANGED_S`], with its directory.
pub(super) fn write_file(path: &Path, content: &[u8]) {
    fs::create_dir_all(path.parent().expect("below a directory")).expect("our own directory");
    fs::write(path, content).expect("our own directory");
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(CHANGED_S);
    File::options().write(true).open(path).and_then(|file| file.set_modified(changed)).expect("our own file");
}

/// `0000 0005 0010 …`: each place of it is told from the others.
pub(super) fn digits() -> Vec<u8> {
    let text: String = (0..DIGITS / 5).fold(String::new(), |mut text, at| {
        let _ = write!(text, "{:04} ", at * 5);
        text
    });
    text.into_bytes()
}
