//! System calls of a running program that fail, or at which it is killed: by strace, which has to be allowed to trace.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::NamedTempFile;

use super::process::Spliceway;
use super::{PATIENCE, eventually, tools};

/// What changes a disk, in the order in which a publication does it.
pub(crate) const STEPS: [&str; 6] = [
    "mkdir,mkdirat",
    "pwrite64,pwritev",
    "fsync,fdatasync",
    "link,linkat",
    "rename,renameat,renameat2",
    "unlink,unlinkat,rmdir",
];

/// What happens at a call.
#[derive(Clone, Copy)]
pub(crate) enum Fault {
    /// The process is killed before the call is made.
    Kill,
    /// The call fails with this error.
    Error(&'static str),
}

/// An strace that is attached as long as this lives.
pub(crate) struct Injection {
    child: Child,
    _log: NamedTempFile,
}

impl Injection {
    /// Attaches to `spliceway`: the `number`th of `calls` in each of its threads is the one that goes wrong.
    pub(crate) fn attach(spliceway: &Spliceway, calls: &str, number: u32, fault: Fault) -> Self {
        let log = NamedTempFile::new().expect("a temporary file");
        let fault = match fault {
            Fault::Kill => "signal=KILL".to_owned(),
            Fault::Error(error) => format!("error={error}"),
        };
        let child = Command::new("strace")
            .args(["-f", "-o", "/dev/null", "-p", &spliceway.pid().to_string()])
            .args(["-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={calls}:{fault}:when={number}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(log.path()).expect("a second handle"))
            .spawn()
            .expect("strace (Debian's package of that name) starts");
        let mut attached = Self { child, _log: log };
        let threads = || fs::read_dir(format!("/proc/{}/task", spliceway.pid())).map_or(0, Iterator::count);
        eventually("strace to be attached", || {
            assert!(attached.child.try_wait().expect("our own child").is_none(), "strace cannot attach");
            let traced = fs::read_dir(format!("/proc/{}/task", spliceway.pid()))
                .into_iter()
                .flatten()
                .flatten()
                .filter(|task| {
                    fs::read_to_string(task.path().join("status"))
                        .is_ok_and(|status| !status.contains("TracerPid:\t0\n"))
                })
                .count();
            (traced > 0 && traced == threads()).then_some(())
        });
        attached
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        // It detaches on SIGTERM, or ends by itself with what it traces.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        if tools::wait(&mut self.child, PATIENCE).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
