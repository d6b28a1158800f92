//! Finders: where the registries are that are copied from.
//!
//! | text | means |
//! |---|---|
//! | `service:NAME[:PORT]` | every address, IPv4 and IPv6, that the system's resolver has for the name now |
//! | `script:PATH` | each line that the program writes |
//! | `file:PATH` | each line of the file |
//! | anything else | that registry: `HOST[:PORT]`, `http://…`, `https://…` |
//!
//! Lines are trimmed; empty ones and those that begin with `#` are skipped. A service that is spoken to through TLS is one
//! source, the name itself: its certificate is for the name, and the client tries the name's addresses one after the other.
//!
//! **Runs at once**: nothing by itself; [`Finders::refresh`] asks all finders at once, each within a bound of time and
//! size. A finder that fails keeps what it found last, and says so when it begins to fail, when it fails otherwise, and
//! when it is well again. Dropping a refresh kills the scripts that it runs, with their children.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use url::Host;

use super::address::{Address, Defaults, Locals, Scheme, resolve};
use super::narrate::TARGET;
use super::script;

/// How often finders are asked while a replication runs on.
pub const REFRESH_EVERY: Duration = Duration::from_secs(10);
/// The most that a script may write, or that is read of a file, in bytes.
pub(super) const TEXT_BYTES_MAX: usize = 64 << 10;
/// Registries that all finders together may find.
const FOUND_MAX: usize = 1024;

/// One way to find registries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finder {
    /// Every address of a name.
    Service {
        /// The name.
        name: String,
        /// The port; `None`: the default one.
        port: Option<u16>,
    },
    /// What a program writes.
    Script(PathBuf),
    /// What a file holds.
    File(PathBuf),
    /// A registry that needs no finding.
    Literal(Address),
}

impl Finder {
    /// Reads a finder; `defaults` complete an address. The error says what is wrong and repeats no password.
    pub fn parse(text: &str, defaults: Defaults) -> Result<Self, String> {
        let text = text.trim();
        match text.split_once(':') {
            Some(("service", name)) => Self::service(name),
            Some(("script" | "file", "")) => {
                Err("it names no path; write script:PATH or file:PATH".to_owned())
            }
            Some(("script", path)) => Ok(Self::Script(path.into())),
            Some(("file", path)) if !path.starts_with("//") => Ok(Self::File(path.into())),
            _ => Address::parse(text, defaults).map(Self::Literal),
        }
    }

    fn service(text: &str) -> Result<Self, String> {
        let expected = "write service:NAME, or service:NAME:PORT";
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => match port.parse::<u16>() {
                Ok(number) if number > 0 => (name, Some(number)),
                _ => return Err(format!("{port:?} is no port; {expected}")),
            },
            None => (text, None),
        };
        match Host::parse(name) {
            Ok(Host::Domain(name)) => Ok(Self::Service { name, port }),
            Ok(_) => Err(format!("{name} is an address and no name; write it without \"service:\"")),
            Err(_) => Err(format!("{name:?} is no name; {expected}")),
        }
    }

    /// What there is now.
    async fn find(&self, defaults: Defaults) -> Result<Vec<Address>, String> {
        match self {
            Self::Literal(address) => Ok(vec![address.clone()]),
            Self::Service { name, port } => {
                let port = port.unwrap_or(defaults.port);
                let whole = Address::parse(&format!("{name}:{port}"), defaults)?;
                if whole.is_https() {
                    return Ok(vec![whole]);
                }
                let ips = resolve(name, port).await?;
                ips.into_iter().map(|ip| Address::of_ip(ip, port, Scheme::Http)).collect()
            }
            Self::Script(path) => addresses(&script::run(path).await?, defaults),
            Self::File(path) => addresses(&read(path.clone()).await?, defaults),
        }
    }
}

impl fmt::Display for Finder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service { name, port: None } => write!(f, "service:{name}"),
            Self::Service { name, port: Some(port) } => write!(f, "service:{name}:{port}"),
            Self::Script(path) => write!(f, "script:{}", path.display()),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Literal(address) => address.fmt(f),
        }
    }
}

/// The registries that lines name. One wrong line is an error: what it should have named would seem to be gone.
fn addresses(text: &str, defaults: Defaults) -> Result<Vec<Address>, String> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|(number, line)| {
            Address::parse(line, defaults).map_err(|why| format!("line {number} names no registry: {why}"))
        })
        .collect()
}

async fn read(path: PathBuf) -> Result<String, String> {
    let read = move || {
        use io::Read;
        let mut text = Vec::new();
        std::fs::File::open(&path)?.take(TEXT_BYTES_MAX as u64 + 1).read_to_end(&mut text)?;
        io::Result::Ok(text)
    };
    let text = tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())?;
    text_of(text.map_err(|error| format!("cannot be read: {error}"))?)
}

/// What was read, if it is a text that is not too long.
pub(super) fn text_of(bytes: Vec<u8>) -> Result<String, String> {
    if bytes.len() > TEXT_BYTES_MAX {
        return Err(format!("gives more than {TEXT_BYTES_MAX} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "gives what is no UTF-8".to_owned())
}

/// What finders found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The registries to copy from, each once, in the order of the finders; without local ones.
    pub sources: Vec<Address>,
    /// The finders that failed. What they found before is among the sources.
    pub failures: Vec<FinderFailure>,
    /// Whether something was found that is the target itself.
    pub has_local: bool,
}

/// A finder that could not find anything now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinderFailure {
    /// Which, as the operator wrote it.
    pub finder: String,
    /// What went wrong.
    pub why: String,
    /// Whether it found something before, which is used on.
    pub is_bridged: bool,
}

/// All finders of one replication, and what each found last.
#[derive(Debug)]
pub struct Finders {
    watched: Vec<Watched>,
    defaults: Defaults,
    locals: Locals,
    last: Option<Found>,
}

#[derive(Debug)]
struct Watched {
    finder: Finder,
    known: Vec<Address>,
    failure: Option<String>,
}

impl Finders {
    /// Finders that have found nothing yet. `locals` are never among what they find.
    pub fn new(finders: Vec<Finder>, defaults: Defaults, locals: Locals) -> Self {
        let watched = finders.into_iter().map(|finder| Watched { finder, known: Vec::new(), failure: None });
        Self { watched: watched.collect(), defaults, locals, last: None }
    }

    /// Asks all finders at once. What has changed is logged.
    pub async fn refresh(&mut self) -> Found {
        let defaults = self.defaults;
        join_all(self.watched.iter_mut().map(|watched| watched.refresh(defaults))).await;
        let mut seen = HashSet::new();
        let all: Vec<_> = self.watched.iter().flat_map(|watched| &watched.known).cloned().collect();
        let mut all: Vec<_> = all.into_iter().filter(|address| seen.insert(address.clone())).collect();
        let mut failures: Vec<_> = self.watched.iter().filter_map(Watched::failure).collect();
        if all.len() > FOUND_MAX {
            let why = format!("{} were found: those after the first {FOUND_MAX} are left out", all.len());
            failures.push(FinderFailure { finder: "sources".to_owned(), why, is_bridged: false });
            all.truncate(FOUND_MAX);
        }
        let found_all = all.len();
        let sources = self.locals.without(all).await;
        let found = Found { has_local: sources.len() < found_all, failures, sources };
        let none = Vec::new();
        if self.last.as_ref().map_or(&none, |last| &last.sources) != &found.sources {
            let names: Vec<_> = found.sources.iter().map(ToString::to_string).collect();
            tracing::info!(target: TARGET, sources = names.join(","), "sources found");
        }
        self.last = Some(found.clone());
        found
    }

    /// Asks the finders now, and again and again, `every` so often ([`REFRESH_EVERY`]), until the future that comes with
    /// what they find is dropped or nobody wants to know any more.
    pub async fn watch(mut self, every: Duration) -> (watch::Receiver<Arc<Found>>, impl Future<Output = ()>) {
        let (sender, receiver) = watch::channel(Arc::new(self.refresh().await));
        let refreshing = async move {
            // Literals stay what they are; but their names, and this machine's addresses, may change.
            loop {
                tokio::select! {
                    () = tokio::time::sleep(every) => {}
                    () = sender.closed() => return,
                }
                let found = Arc::new(self.refresh().await);
                sender.send_if_modified(|known| {
                    let is_new = **known != *found;
                    *known = found;
                    is_new
                });
            }
        };
        (receiver, refreshing)
    }
}

impl Watched {
    fn failure(&self) -> Option<FinderFailure> {
        let (finder, is_bridged) = (self.finder.to_string(), !self.known.is_empty());
        self.failure.clone().map(|why| FinderFailure { finder, why, is_bridged })
    }

    async fn refresh(&mut self, defaults: Defaults) {
        match self.finder.find(defaults).await {
            Ok(found) => {
                if self.failure.take().is_some() {
                    tracing::info!(target: TARGET, finder = %self.finder, "finds sources again");
                }
                self.known = found;
            }
            Err(why) => {
                // A failure that leaves nothing is its user's to tell.
                if self.failure.as_ref() != Some(&why) && !self.known.is_empty() {
                    let kept = self.known.len();
                    tracing::warn!(target: TARGET, finder = %self.finder, why, kept, "cannot find sources: those that are known stay");
                }
                self.failure = Some(why);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A name that no resolver needs to ask anybody about: its label is too long.
    const UNKNOWN: &str = "a-name-that-is-longer-than-any-label-of-the-domain-name-system-may-be.example";
    const DEFAULTS: Defaults = Defaults { scheme: Some(Scheme::Http), port: 5000 };

    fn finder(text: &str) -> Finder {
        Finder::parse(text, DEFAULTS).expect(text)
    }

    fn names(found: &Found) -> Vec<String> {
        found.sources.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn finders_are_told_apart() {
        assert_eq!(
            finder("service:R.example:81"),
            Finder::Service { name: "r.example".into(), port: Some(81) }
        );
        assert_eq!(finder("script:/a b"), Finder::Script("/a b".into()));
        assert_eq!(finder("file:list"), Finder::File("list".into()));
        assert!(matches!(finder(" r.example:5001 "), Finder::Literal(_)));
        assert!(matches!(finder("script.example:5001"), Finder::Literal(_)));
        for text in [
            "service:",
            "service:a b",
            "service:a:x",
            "service:a:0",
            "service:1.2.3.4",
            "script:",
            "file:",
            "",
            "a b",
        ] {
            assert!(Finder::parse(text, DEFAULTS).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_file_has_a_line_each() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        fs::write(&path, "# masters\n\n  a.example  \r\nb.example:5001\n[2001:db8::1]\na.example:5000\n")
            .unwrap();
        let texts = [format!("file:{}", path.display()), "c.example".to_owned()];
        let list = texts.iter().map(|text| finder(text)).collect();
        let mut finders = Finders::new(list, DEFAULTS, Locals::default());
        let found = finders.refresh().await;
        assert_eq!(
            names(&found),
            ["a.example:5000", "b.example:5001", "[2001:db8::1]:5000", "c.example:5000"]
        );
        assert!(found.failures.is_empty());

        for wrong in ["d.example\nftp://x\n", "\u{0}\n", &"x\n".repeat(TEXT_BYTES_MAX)] {
            fs::write(&path, wrong).unwrap();
            let kept = finders.refresh().await;
            assert_eq!(kept.sources, found.sources, "what is known stays");
            assert_eq!(kept.failures.len(), 1);
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(finders.refresh().await.sources, found.sources);
        fs::write(&path, "").unwrap();
        let emptied = finders.refresh().await;
        assert_eq!((names(&emptied), emptied.failures.len()), (vec!["c.example:5000".to_owned()], 0));
    }

    #[tokio::test]
    async fn a_service_is_every_address_or_with_tls_its_name() {
        let service = || vec![finder("service:localhost:5001")];
        let found = Finders::new(service(), DEFAULTS, Locals::default()).refresh().await;
        assert!(
            names(&found).iter().any(|name| name == "127.0.0.1:5001" || name == "[::1]:5001"),
            "{found:?}"
        );
        let tls = Defaults { scheme: Some(Scheme::Https), port: 5000 };
        let found = Finders::new(service(), tls, Locals::default()).refresh().await;
        assert_eq!(names(&found), ["localhost:5001"]);
        let missing = vec![finder(&format!("service:{UNKNOWN}"))];
        let found = Finders::new(missing, DEFAULTS, Locals::default()).refresh().await;
        assert!(found.sources.is_empty() && found.failures.len() == 1, "{found:?}");
    }

    #[tokio::test]
    async fn the_target_is_no_source() {
        let texts = ["service:localhost", "127.0.0.1:5000", "[::1]", "r.example"];
        let list = texts.iter().map(|text| finder(text)).collect();
        let local = Address::parse("localhost", DEFAULTS).unwrap();
        let found = Finders::new(list, DEFAULTS, Locals::new(vec![local])).refresh().await;
        assert_eq!((names(&found), found.has_local), (vec!["r.example:5000".to_owned()], true));
    }

    #[tokio::test]
    async fn what_is_found_is_refreshed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        fs::write(&path, "192.0.2.1\n").unwrap();
        let list = vec![finder(&format!("file:{}", path.display()))];
        let (mut found, refreshing) =
            Finders::new(list, DEFAULTS, Locals::default()).watch(Duration::from_millis(1)).await;
        assert_eq!(names(&found.borrow_and_update()), ["192.0.2.1:5000"]);
        fs::write(&path, "192.0.2.2\n").unwrap();
        let changed = async {
            found.changed().await.unwrap();
            assert_eq!(names(&found.borrow()), ["192.0.2.2:5000"]);
        };
        tokio::select! {
            () = changed => {}
            () = refreshing => panic!("ended although somebody listens"),
        }
    }
}
