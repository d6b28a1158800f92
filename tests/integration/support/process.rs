//! The program under test: started on a fresh directory, watched through its log, ended by its process id.

use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use toml::{Table, Value};

use super::client::get;
use super::origin::Origin;
use super::{PATIENCE, eventually, hex, sha256, tools};

/// Names the modes that `SPLICEWAY_TEST_IO_URING` can ask the whole suite to run in.
const IO_URING_VARIABLE: &str = "SPLICEWAY_TEST_IO_URING";
/// Names another build of the program to be tested.
const BINARY_VARIABLE: &str = "SPLICEWAY_TEST_BINARY";

/// The program under test.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os(BINARY_VARIABLE).map_or_else(|| env!("CARGO_BIN_EXE_spliceway").into(), PathBuf::from)
}

/// The configuration of one start.
#[derive(Clone, Default)]
pub(crate) struct Setup {
    server: Table,
    registry: Table,
    upstreams: Vec<Upstream>,
    arguments: Vec<String>,
    data: Option<PathBuf>,
    more: String,
    wrapper: Vec<String>,
}

#[derive(Clone)]
pub(crate) struct Upstream(Table);

impl Upstream {
    pub(crate) fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.0.insert(key.into(), value.into());
        self
    }
}

impl Setup {
    pub(crate) fn server(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.server.insert(key.into(), value.into());
        self
    }

    pub(crate) fn registry(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.registry.insert(key.into(), value.into());
        self
    }

    /// An upstream, or the one of that name again; the first is the default one. It gives up soon unless the test
    /// says otherwise.
    pub(crate) fn upstream(&mut self, name: &str, url: &str) -> &mut Upstream {
        let known = self.upstreams.iter().position(|known| known.0["name"].as_str() == Some(name));
        let at = known.unwrap_or_else(|| {
            let mut table = Table::new();
            table.insert("name".into(), name.into());
            table.insert("default".into(), self.upstreams.is_empty().into());
            for (key, value) in [("connect_timeout", "2s"), ("header_timeout", "5s"), ("stall_timeout", "2s")]
            {
                table.insert(key.into(), value.into());
            }
            self.upstreams.push(Upstream(table));
            self.upstreams.len() - 1
        });
        self.upstreams[at].set("url", url)
    }

    pub(crate) fn origin(&mut self, origin: &Origin) -> &mut Upstream {
        self.upstream("origin", &origin.url())
    }

    pub(crate) fn argument(&mut self, argument: &str) -> &mut Self {
        self.arguments.push(argument.into());
        self
    }

    /// `auto`, `on` or `off`, whatever the suite runs in.
    pub(crate) fn io_uring(&mut self, mode: &str) -> &mut Self {
        self.argument("--io-uring").argument(mode)
    }

    /// Another data directory than the fresh one.
    pub(crate) fn data(&mut self, path: &Path) -> &mut Self {
        self.data = Some(path.into());
        self
    }

    /// Text for the end of the configuration file: further registries.
    pub(crate) fn more(&mut self, text: &str) -> &mut Self {
        self.more.push_str(text);
        self
    }

    /// A command that the program is started by, and becomes.
    pub(crate) fn wrapper(&mut self, command: &[&str]) -> &mut Self {
        self.wrapper = command.iter().map(ToString::to_string).collect();
        self
    }

    /// The configuration file's text.
    pub(crate) fn text(&self) -> String {
        let mut registry = self.registry.clone();
        registry.entry("name").or_insert_with(|| "main".into());
        let upstreams = self.upstreams.iter().map(|upstream| Value::Table(upstream.0.clone())).collect();
        registry.insert("upstream".into(), Value::Array(upstreams));
        let mut all = Table::new();
        all.insert("server".into(), Value::Table(self.server.clone()));
        all.insert("registry".into(), Value::Array(vec![Value::Table(registry)]));
        toml::to_string(&all).expect("plain values") + &self.more
    }
}

/// A running (or killed) Spliceway and its data directory, which lives as long as the last that shares it.
pub(crate) struct Spliceway {
    home: Arc<TempDir>,
    setup: Setup,
    child: Option<Child>,
    addr: SocketAddr,
    admin: SocketAddr,
    log: Log,
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl Log {
    fn text(&self) -> String {
        self.0.lock().expect("not poisoned").clone()
    }
}

impl Spliceway {
    /// Starts the program as `configure` says and waits until it is ready.
    pub(crate) fn start(configure: impl FnOnce(&mut Setup)) -> Self {
        let home = Arc::new(TempDir::with_prefix("spliceway-test-").expect("a temporary directory"));
        let mut setup = Setup::default();
        configure(&mut setup);
        Self::launch(home, setup)
    }

    /// In front of `origin`, as configured otherwise by default.
    pub(crate) fn before(origin: &Origin) -> Self {
        Self::start(|setup| {
            setup.origin(origin);
        })
    }

    /// Another process on the same data directory, configured alike.
    pub(crate) fn sibling(&self, change: impl FnOnce(&mut Setup)) -> Self {
        let mut setup = self.setup.clone();
        change(&mut setup);
        Self::launch(self.home.clone(), setup)
    }

    /// Starts again after [`Spliceway::stop`] or [`Spliceway::kill9`], on the same data directory.
    pub(crate) fn restart(&mut self, change: impl FnOnce(&mut Setup)) {
        assert!(self.child.is_none(), "it is running");
        change(&mut self.setup);
        let (child, addr, admin) = spawn(&self.home, &self.setup, &self.log);
        (self.child, self.addr, self.admin) = (Some(child), addr, admin);
        self.wait_ready();
    }

    fn launch(home: Arc<TempDir>, setup: Setup) -> Self {
        let log = Log::default();
        let (child, addr, admin) = spawn(&home, &setup, &log);
        let mut started = Self { home, setup, child: Some(child), addr, admin, log };
        started.wait_ready();
        started
    }

    fn wait_ready(&mut self) {
        let admin = self.admin;
        let child = self.child.as_mut().expect("just started");
        let log = &self.log;
        eventually("readiness", || {
            if let Some(status) = child.try_wait().expect("our own child") {
                panic!("it ended with {status} instead of getting ready:\n{}", log.text());
            }
            (get(admin, "/readyz").status() == 200).then_some(())
        });
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it is running").id()
    }

    /// Everything that it has written to standard error, over all its starts.
    pub(crate) fn log(&self) -> String {
        self.log.text()
    }

    /// Waits until a line of the log contains all of `words`; that line.
    #[track_caller]
    pub(crate) fn wait_log(&self, words: &[&str]) -> String {
        eventually(&format!("a log line with {words:?}"), || {
            let text = self.log.text();
            text.lines().find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
        })
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it is running");
        kill_process(Pid::from_child(child), signal).expect("our own child");
    }

    /// Stops all of its threads, does `work`, and lets them go on.
    pub(crate) fn frozen<T>(&self, work: impl FnOnce() -> T) -> T {
        self.signal(Signal::STOP);
        let tasks = PathBuf::from(format!("/proc/{}/task", self.pid()));
        eventually("all threads to stop", || {
            let stopped = |task: &PathBuf| {
                // A thread that is gone is as good as stopped. The name in parentheses may contain anything.
                fs::read_to_string(task.join("stat"))
                    .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
                    || !task.exists()
            };
            entries(&tasks).iter().all(stopped).then_some(())
        });
        let result = work();
        self.signal(Signal::CONT);
        result
    }

    /// SIGTERM; it must end with 0 once its connections are served.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        self.wait_stopped();
    }

    #[track_caller]
    pub(crate) fn wait_stopped(&mut self) {
        let mut child = self.child.take().expect("it is running");
        let status = tools::wait(&mut child, PATIENCE);
        if status.is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let status = status.expect("SIGTERM ends it");
        assert!(status.success(), "SIGTERM ended it with {status}");
    }

    /// SIGKILL, and waits until the process is gone.
    pub(crate) fn kill9(&mut self) {
        let mut child = self.child.take().expect("it is running");
        child.kill().expect("our own child");
        child.wait().expect("our own child");
    }

    /// Writes the configuration anew as `change` says and sends SIGHUP; the caller waits for the effect.
    pub(crate) fn reload(&mut self, change: impl FnOnce(&mut Setup)) {
        change(&mut self.setup);
        fs::write(config_path(&self.home), self.setup.text()).expect("our own directory");
        self.signal(Signal::HUP);
    }

    /// Replaces the configuration by `text` and sends SIGHUP.
    pub(crate) fn reload_text(&self, text: &str) {
        fs::write(config_path(&self.home), text).expect("our own directory");
        self.signal(Signal::HUP);
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        data_path(&self.home, &self.setup)
    }

    /// Where `cache` keeps the content of `digest`.
    pub(crate) fn blob_path(&self, digest: &str) -> PathBuf {
        let hex = hex(digest);
        self.blobs().join(&hex[..2]).join(hex).join("data")
    }

    /// Where the fill of `digest` keeps its data and state.
    pub(crate) fn fill_path(&self, digest: &str) -> PathBuf {
        self.data().join("cache/fills/sha256").join(hex(digest))
    }

    pub(crate) fn is_published(&self, digest: &str) -> bool {
        self.blob_path(digest).exists()
    }

    #[track_caller]
    pub(crate) fn wait_published(&self, digest: &str) {
        eventually("publication", || self.is_published(digest).then_some(()));
    }

    /// Every published blob hashes to its name.
    #[track_caller]
    pub(crate) fn assert_store_is_right(&self) {
        for digest in self.published() {
            let bytes = match fs::read(self.blob_path(&digest)) {
                Ok(bytes) => bytes,
                // Evicted since it was listed.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => panic!("a published blob cannot be read: {error}"),
            };
            assert_eq!(sha256(&bytes), digest, "a published blob is not what its name says");
        }
    }

    /// The digests published in `cache`.
    pub(crate) fn published(&self) -> Vec<String> {
        let mut found = Vec::new();
        for shard in entries(&self.blobs()) {
            for blob in entries(&shard) {
                if blob.join("data").exists() {
                    let name = blob.file_name().expect("a listed name").to_string_lossy().into_owned();
                    found.push(format!("sha256:{name}"));
                }
            }
        }
        found
    }

    fn blobs(&self) -> PathBuf {
        self.data().join("cache/docker/registry/v2/blobs/sha256")
    }

    /// The sum of all samples of `name` whose labels contain each of `labels` (as `key="value"`).
    #[track_caller]
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let answer = get(self.admin, "/metrics").expect(200);
        let text = String::from_utf8(answer.body).expect("UTF-8");
        let mut sum = 0.0;
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let (known, set) = series.split_once('{').unwrap_or((series, ""));
            if known == name && labels.iter().all(|label| set.contains(label)) {
                sum += value.parse::<f64>().expect("a number");
            }
        }
        sum
    }

    #[track_caller]
    pub(crate) fn wait_metric(&self, name: &str, labels: &[&str], accept: impl Fn(f64) -> bool) {
        eventually(&format!("{name}{labels:?}"), || accept(self.metric(name, labels)).then_some(()));
    }
}

impl Drop for Spliceway {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- what spliceway said:\n{}---", self.log.text());
        }
    }
}

/// The paths in `directory`; none if it does not exist.
pub(crate) fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().map(|entry| entry.expect("listed").path()).collect()
}

fn config_path(home: &TempDir) -> PathBuf {
    home.path().join("spliceway.toml")
}

fn data_path(home: &TempDir, setup: &Setup) -> PathBuf {
    setup.data.clone().unwrap_or_else(|| home.path().join("data"))
}

fn spawn(home: &TempDir, setup: &Setup, log: &Log) -> (Child, SocketAddr, SocketAddr) {
    fs::write(config_path(home), setup.text()).expect("our own directory");
    let mut command = match setup.wrapper.split_first() {
        Some((wrapper, rest)) => {
            let mut command = Command::new(wrapper);
            command.args(rest).arg(binary());
            command
        }
        None => Command::new(binary()),
    };
    command.arg("serve").arg("--config").arg(config_path(home));
    command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    command.arg("--data").arg(data_path(home, setup));
    if !setup.arguments.iter().any(|argument| argument == "--io-uring")
        && let Ok(mode) = std::env::var(IO_URING_VARIABLE)
    {
        command.args(["--io-uring", &mode]);
    }
    command.args(&setup.arguments);
    let known = log.text().len();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
    let writing = log.clone();
    std::thread::spawn(move || {
        let mut line = Vec::new();
        while stderr.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
            writing.0.lock().expect("not poisoned").push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    });
    let announced = |prefix: &str, child: &mut Child| {
        eventually(prefix, || {
            let text = log.text();
            let found = text[known..].lines().find_map(|line| {
                let rest = &line[line.find(prefix)? + prefix.len()..];
                rest.split_whitespace().next()?.parse().ok()
            });
            if found.is_none()
                && let Some(status) = child.try_wait().expect("our own child")
            {
                panic!("it ended with {status} instead of saying {prefix:?}:\n{}", log.text());
            }
            found
        })
    };
    let addr = announced("listening on http://", &mut child);
    let admin = announced("admin on http://", &mut child);
    (child, addr, admin)
}
