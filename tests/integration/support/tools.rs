//! Runs other programs: bounded in time, their output kept for the failure message.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::PATIENCE;

/// How a program ended and what it said.
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `command` to its end; a program that is missing or does not end fails the test.
pub(crate) fn run(command: &mut Command) -> Finished {
    // Files rather than pipes: a grandchild that keeps a pipe open cannot keep the test waiting.
    let (mut out, mut err) = (scratch_file(), scratch_file());
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone().expect("a second handle"))
        .stderr(err.try_clone().expect("a second handle"))
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let status = wait(&mut child, PATIENCE);
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let (stdout, stderr) = (text(&mut out), text(&mut err));
    let Some(status) = status else { panic!("{command:?} did not end; it said: {stdout}{stderr}") };
    Finished { status, stdout, stderr }
}

/// Runs `command`, which must succeed; its standard output.
pub(crate) fn succeed(command: &mut Command) -> String {
    let finished = run(command);
    assert!(
        finished.status.success(),
        "{command:?} failed with {}:\n{}{}",
        finished.status,
        finished.stdout,
        finished.stderr
    );
    finished.stdout
}

/// Waits for `child` at most `patience`.
pub(crate) fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().expect("our own child") {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A certificate authority made for one test, and a server certificate that it signed for 127.0.0.1 and localhost.
pub(crate) struct Authority {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    pub(crate) fn new(dir: &Path) -> Self {
        let ca_key = dir.join("ca.key");
        let made =
            Self { ca: dir.join("ca.pem"), certificate: dir.join("server.pem"), key: dir.join("server.key") };
        self_signed(&ca_key, &made.ca);
        let request = dir.join("server.csr");
        succeed(
            Command::new("openssl")
                .args(["req", "-newkey", "rsa:2048", "-nodes", "-sha256", "-subj", "/CN=localhost"])
                .arg("-keyout")
                .arg(&made.key)
                .arg("-out")
                .arg(&request),
        );
        let extensions = dir.join("server.ext");
        std::fs::write(
            &extensions,
            "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n\
             extendedKeyUsage=serverAuth\n",
        )
        .expect("our own directory");
        succeed(
            Command::new("openssl")
                .args(["x509", "-req", "-sha256", "-days", "2", "-CAcreateserial"])
                .arg("-in")
                .arg(&request)
                .arg("-CA")
                .arg(&made.ca)
                .arg("-CAkey")
                .arg(&ca_key)
                .arg("-extfile")
                .arg(&extensions)
                .arg("-out")
                .arg(&made.certificate),
        );
        made
    }
}

/// A key and the certificate that signs itself with it.
pub(crate) fn self_signed(key: &Path, certificate: &Path) {
    succeed(
        Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-sha256", "-days", "2"])
            .args(["-subj", "/CN=test CA"])
            .arg("-keyout")
            .arg(key)
            .arg("-out")
            .arg(certificate),
    );
}

fn scratch_file() -> File {
    tempfile::tempfile().expect("a temporary file")
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("our own file");
    String::from_utf8_lossy(&bytes).into_owned()
}
