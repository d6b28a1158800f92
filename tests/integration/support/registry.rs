//! Debian's docker-registry as the central registry, in the variants that datacenters run.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;
use tempfile::TempDir;

use super::token::TokenServer;
use super::{eventually, tools};

/// The account that htpasswd and token registries know.
pub(crate) const USERNAME: &str = "alice";
pub(crate) const PASSWORD: &str = "open sesame";

pub(crate) struct Registry {
    home: TempDir,
    child: Option<Child>,
    addr: SocketAddr,
    scheme: &'static str,
    /// Given to skopeo when it pushes here.
    credentials: bool,
}

impl Registry {
    /// Without any authentication.
    pub(crate) fn plain() -> Self {
        Self::start("http", false, |_, _| ())
    }

    /// Basic authentication.
    pub(crate) fn htpasswd() -> Self {
        Self::start("http", true, |config, home| {
            let line = tools::succeed(Command::new("htpasswd").args(["-Bbn", USERNAME, PASSWORD]));
            let file = home.join("htpasswd");
            fs::write(&file, line).expect("our own directory");
            config["auth"] = json!({"htpasswd": {"realm": "central", "path": file}});
        })
    }

    /// Bearer tokens from `tokens`.
    pub(crate) fn token(tokens: &TokenServer) -> Self {
        Self::start("http", true, |config, _| {
            config["auth"] = json!({"token": {
                "realm": tokens.realm(),
                "service": TokenServer::SERVICE,
                "issuer": TokenServer::ISSUER,
                "rootcertbundle": tokens.certificate(),
            }});
        })
    }

    /// HTTPS with the certificate of `authority`.
    pub(crate) fn tls(authority: &tools::Authority) -> Self {
        Self::start("https", false, |config, _| {
            config["http"]["tls"] = json!({"certificate": authority.certificate, "key": authority.key});
        })
    }

    /// Over the directory `root` (which holds `docker/registry/v2`), without authentication. `secret` signs the state of
    /// its uploads.
    pub(crate) fn on(root: &Path, secret: &str) -> Self {
        Self::start("http", false, |config, _| {
            config["storage"]["filesystem"]["rootdirectory"] = json!(root);
            config["http"]["secret"] = json!(secret);
        })
    }

    /// Without authentication, with the configuration changed by `configure`.
    pub(crate) fn configured(configure: impl FnOnce(&mut serde_json::Value)) -> Self {
        Self::start("http", false, |config, _| configure(config))
    }

    fn start(
        scheme: &'static str,
        credentials: bool,
        configure: impl FnOnce(&mut serde_json::Value, &Path),
    ) -> Self {
        let home = TempDir::with_prefix("registry-test-").expect("a temporary directory");
        let mut config = json!({
            "version": "0.1",
            "log": {"level": "info"},
            "storage": {
                "filesystem": {"rootdirectory": home.path().join("data")},
                "delete": {"enabled": true},
            },
            "http": {"addr": "127.0.0.1:0", "secret": "of these tests"},
        });
        configure(&mut config, home.path());
        // JSON is YAML.
        fs::write(home.path().join("config.yml"), config.to_string()).expect("our own directory");
        let log_path = home.path().join("log");
        let log = fs::File::create(&log_path).expect("our own directory");
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(home.path().join("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("docker-registry (Debian's package of that name) starts");
        let addr = eventually("docker-registry's address", || {
            let text = fs::read_to_string(&log_path).expect("our own file");
            if let Some(status) = child.try_wait().expect("our own child") {
                panic!("docker-registry ended with {status}:\n{text}");
            }
            let (_, rest) = text.split_once("listening on ")?;
            rest.split(['"', ',', ' ']).next()?.parse().ok()
        });
        Self { home, child: Some(child), addr, scheme, credentials }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.addr)
    }

    /// Its root directory, which holds `docker/registry/v2`.
    pub(crate) fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// Ends the process; its address refuses connections from then on.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
        }
    }

    /// What it has logged, its access log included.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }

    /// Pushes what is at `layout` (an OCI layout, every platform of it) as `name`.
    pub(crate) fn push(&self, layout: &Path, name: &str) {
        let mut command = skopeo_copy();
        command.arg("--dest-tls-verify=false");
        if self.credentials {
            command.arg(format!("--dest-creds={USERNAME}:{PASSWORD}"));
        }
        command.arg(format!("oci:{}", layout.display())).arg(format!("docker://{}/{name}", self.addr));
        tools::succeed(&mut command);
    }

    /// Pulls `name` directly into the directory `to`.
    pub(crate) fn pull(&self, name: &str, to: &Path) {
        fs::create_dir_all(to).expect("a directory of our own");
        let mut command = skopeo_copy();
        command.arg("--src-tls-verify=false");
        if self.credentials {
            command.arg(format!("--src-creds={USERNAME}:{PASSWORD}"));
        }
        command.arg(format!("docker://{}/{name}", self.addr)).arg(format!("dir:{}", to.display()));
        tools::succeed(&mut command);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("--- what docker-registry said:\n{}---", self.log());
        }
    }
}

/// `skopeo copy --all` without the machine's policy.
pub(crate) fn skopeo_copy() -> Command {
    let mut command = Command::new("skopeo");
    command.args(["--insecure-policy", "copy", "--all", "--preserve-digests"]);
    command
}
