//! `spliceway replicate` as a person runs it: with nothing of this process's environment, bounded in time.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::process::binary;
use crate::support::{PATIENCE, eventually, tools};

/// How a run ended and what it said.
pub(super) struct Finished {
    pub(super) status: ExitStatus,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Finished {
    /// Exit code 0.
    #[track_caller]
    pub(super) fn succeeded(self) -> Self {
        assert!(self.status.success(), "it ended with {}:\n{}", self.status, self.said());
        self
    }

    /// Exit code 1, and what failed is named by all of `words`.
    #[track_caller]
    pub(super) fn failed(self, words: &[&str]) -> Self {
        assert_eq!(self.status.code(), Some(1), "it ended with {}:\n{}", self.status, self.said());
        self.names(words)
    }

    /// Exit code 2, and what is wrong is named by all of `words`.
    #[track_caller]
    pub(super) fn refused(self, words: &[&str]) -> Self {
        assert_eq!(self.status.code(), Some(2), "it ended with {}:\n{}", self.status, self.said());
        self.names(words)
    }

    #[track_caller]
    fn names(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.said().contains(word), "{word:?} is not named:\n{}", self.said());
        }
        self
    }

    /// Both outputs.
    pub(super) fn said(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// The objects of `--json`, one a line and nothing else.
    #[track_caller]
    pub(super) fn events(&self) -> Vec<Value> {
        let event = |line: &str| match serde_json::from_str::<Value>(line) {
            Ok(event) if event.is_object() => event,
            other => panic!("{line:?} is no object ({other:?}); all of it:\n{}", self.said()),
        };
        self.stdout.lines().map(event).collect()
    }
}

/// Runs it to its end with these arguments.
pub(super) fn replicate<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Finished {
    Running::start(arguments).finish()
}

/// One run from one registry to one target, with further arguments.
pub(super) fn copy(from: &str, to: &str, more: &[&str]) -> Finished {
    replicate(["--from", from, "--to", to].iter().chain(more))
}

/// `dir:` and the path.
pub(super) fn directory(path: &Path) -> String {
    format!("dir:{}", path.to_str().expect("UTF-8"))
}

/// A run under way.
pub(super) struct Running {
    child: Child,
    /// Its home, and what it says.
    home: TempDir,
    ended: bool,
}

impl Running {
    pub(super) fn start<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Self {
        Self::start_by(Command::new(binary()), arguments)
    }

    /// By a command that becomes the program, or runs it.
    pub(super) fn start_by<A: AsRef<OsStr>>(
        mut command: Command,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        let home = TempDir::with_prefix("replicate-").expect("a temporary directory");
        let output = |name: &str| File::create(home.path().join(name)).expect("our own directory");
        command
            .arg("replicate")
            .args(arguments)
            .env_clear()
            .env("HOME", home.path())
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(output("stdout"))
            .stderr(output("stderr"));
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        Self { child, home, ended: false }
    }

    fn read(&self, name: &str) -> String {
        let bytes = fs::read(self.home.path().join(name)).expect("our own file");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Both outputs so far.
    pub(super) fn said(&self) -> String {
        self.read("stdout") + &self.read("stderr")
    }

    /// Waits until it has said `words`.
    #[track_caller]
    pub(super) fn wait_said(&self, words: &str) {
        eventually(&format!("it to say {words:?}"), || self.said().contains(words).then_some(()));
    }

    #[track_caller]
    pub(super) fn assert_runs(&mut self) {
        let status = self.child.try_wait().expect("our own child");
        assert!(status.is_none(), "it ended with {}:\n{}", status.expect("just seen"), self.said());
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our own child");
    }

    /// SIGKILL, and waits until it is gone.
    pub(super) fn kill9(mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
        self.ended = true;
    }

    /// Waits for its end.
    #[track_caller]
    pub(super) fn finish(mut self) -> Finished {
        // Several waits of those that it has itself, each bounded, may follow one another.
        let Some(status) = tools::wait(&mut self.child, PATIENCE * 2) else {
            panic!("it does not end; it said:\n{}", self.said());
        };
        self.ended = true;
        Finished { status, stdout: self.read("stdout"), stderr: self.read("stderr") }
    }

    /// The most that was ever resident, in KiB.
    pub(super) fn peak_memory_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it is running");
        let line =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line of every process");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
            eprintln!("--- what replicate said:\n{}---", self.said());
        }
    }
}
