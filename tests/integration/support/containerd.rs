//! containerd as a client of registries.

use std::fs;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::{eventually, tools};

/// A containerd of our own: nothing of it outside its directory.
pub(crate) struct Containerd {
    home: TempDir,
    child: Child,
}

impl Containerd {
    pub(crate) fn start() -> Self {
        let home = TempDir::with_prefix("ctrd-").expect("a temporary directory");
        let at = home.path().display();
        let config = format!(
            "version = 2\nroot = \"{at}/root\"\nstate = \"{at}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{at}/sock\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{at}/opt\"\n"
        );
        fs::write(home.path().join("config.toml"), config).expect("our own directory");
        let log = fs::File::create(home.path().join("log")).expect("our own directory");
        let child = Command::new("containerd")
            .arg("--config")
            .arg(home.path().join("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("containerd (Debian's package of that name) starts");
        let started = Self { home, child };
        eventually("containerd", || tools::run(started.ctr().arg("version")).status.success().then_some(()));
        started
    }

    /// Its client.
    pub(crate) fn ctr(&self) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.home.path().join("sock"));
        command
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
            eprintln!("--- what containerd said:\n{log}---");
        }
    }
}
