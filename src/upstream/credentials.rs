//! Which login an endpoint gets: none, the options' own, or the entry for its host in Docker's `config.json`.
//!
//! The file is read when the upstream is made, where a fault is an error, and looked at again at most every few seconds,
//! when a fault only keeps the old entries. Reading happens on a blocking thread. `auths` is understood; credential
//! helpers (`credsStore`, `credHelpers`) are programs that we do not run, and a warning says so.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use data_encoding::BASE64;
use http::HeaderValue;
use serde::Deserialize;
use tokio::time::Instant;

use super::endpoint::{Endpoint, Origin};

/// How often the config file's modification time is looked at.
const CHECK_EVERY: Duration = Duration::from_secs(3);
/// The longest config file that is read, in bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Docker Hub in normalised keys.
const DOCKER_HUB_KEY: &str = "docker.io";

/// What is presented to a registry or its token server. Debug shows no secret.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    /// HTTP Basic.
    Basic {
        /// For the token server's `account=`; not secret.
        username: String,
        /// `Basic …`, marked sensitive.
        header: HeaderValue,
    },
    /// An OAuth 2 refresh token (`identitytoken`), for token servers only.
    Refresh(String),
}

impl Login {
    /// The error says what is wrong with the user name (RFC 7617 §2).
    pub(super) fn basic(username: &str, password: &str) -> Result<Self, &'static str> {
        if username.contains(':') {
            return Err("must not contain a colon");
        }
        if username.chars().chain(password.chars()).any(char::is_control) {
            return Err("neither it nor the password may contain control characters");
        }
        let value = format!("Basic {}", BASE64.encode(format!("{username}:{password}").as_bytes()));
        let mut header = HeaderValue::try_from(value).map_err(|_| "cannot be sent in a header")?;
        header.set_sensitive(true);
        Ok(Self::Basic { username: username.to_owned(), header })
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { username, .. } => write!(f, "Basic({username:?}, ***)"),
            Self::Refresh(_) => f.write_str("Refresh(***)"),
        }
    }
}

/// Hands out logins by endpoint.
pub(super) enum CredentialStore {
    None,
    /// For the upstream's own origin alone.
    Own {
        origin: Origin,
        login: Login,
    },
    Config(ConfigFile),
}

impl CredentialStore {
    /// Logins by the entries of a config file, which is read. The error names the cause.
    pub(super) fn config(path: &Path) -> Result<Self, String> {
        ConfigFile::open(path, CHECK_EVERY).map(Self::Config)
    }

    /// The login for an endpoint.
    ///
    /// Cancel-safe: a dropped call may leave the config file's change unnoticed until the next look at it.
    pub(super) async fn login(&self, endpoint: &Endpoint) -> Option<Login> {
        match self {
            Self::None => None,
            Self::Own { origin, login } => (*origin == endpoint.origin).then(|| login.clone()),
            Self::Config(file) => {
                let logins = file.current().await;
                keys_of(endpoint).iter().find_map(|key| logins.get(key)).cloned()
            }
        }
    }
}

/// The keys under which an endpoint's entry may stand.
fn keys_of(endpoint: &Endpoint) -> Vec<String> {
    if endpoint.is_docker_hub() {
        return vec![DOCKER_HUB_KEY.into()];
    }
    vec![endpoint.origin.authority(), endpoint.origin.authority_with_port()]
}

type Logins = Arc<HashMap<String, Login>>;

/// A `config.json` and what it held when last read.
pub(super) struct ConfigFile {
    path: PathBuf,
    check_every: Duration,
    state: Mutex<ConfigState>,
}

struct ConfigState {
    logins: Logins,
    stamp: Stamp,
    checked: Instant,
}

/// A file that has these unchanged is taken to be unchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    modified: Option<SystemTime>,
    len: u64,
}

impl ConfigFile {
    fn open(path: &Path, check_every: Duration) -> Result<Self, String> {
        let stamp = stamp(path)?;
        let logins = read(path, stamp)?;
        let state = Mutex::new(ConfigState { logins, stamp, checked: Instant::now() });
        Ok(Self { path: path.to_owned(), check_every, state })
    }

    async fn current(&self) -> Logins {
        let known = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.checked.elapsed() < self.check_every {
                return Arc::clone(&state.logins);
            }
            // Taken before the look, so that one call looks and the others go on with what is known.
            state.checked = Instant::now();
            state.stamp
        };
        let path = self.path.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let stamp = stamp(&path)?;
            Ok::<_, String>((stamp != known).then(|| (stamp, read(&path, stamp))))
        })
        .await;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match looked {
            Ok(Ok(Some((stamp, read)))) => {
                // Also when it is malformed: one warning per version of the file.
                state.stamp = stamp;
                match read {
                    Ok(logins) => state.logins = logins,
                    Err(error) => self.warn(&error),
                }
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => self.warn(&error),
            Err(error) => self.warn(&error.to_string()),
        }
        Arc::clone(&state.logins)
    }

    fn warn(&self, error: &str) {
        tracing::warn!(file = %self.path.display(), error, "keeping the credentials read before");
    }
}

fn stamp(path: &Path) -> Result<Stamp, String> {
    let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("is not a regular file".into());
    }
    Ok(Stamp { modified: metadata.modified().ok(), len: metadata.len() })
}

fn read(path: &Path, stamp: Stamp) -> Result<Logins, String> {
    if stamp.len > CONFIG_BYTES_MAX {
        return Err(format!("is {} bytes long, more than {CONFIG_BYTES_MAX}", stamp.len));
    }
    let text = fs::read(path).map_err(|error| error.to_string())?;
    let (logins, warnings) = parse(&text)?;
    for warning in warnings {
        tracing::warn!(file = %path.display(), "{warning}");
    }
    Ok(Arc::new(logins))
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    auths: HashMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    cred_helpers: HashMap<String, String>,
    #[serde(default, rename = "credsStore")]
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
}

impl Entry {
    fn login(&self) -> Result<Option<Login>, &'static str> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Login::Refresh(self.identitytoken.clone())));
        }
        if !self.auth.is_empty() {
            let decoded = BASE64.decode(self.auth.trim().as_bytes()).map_err(|_| "auth is not base64")?;
            let decoded = String::from_utf8(decoded).map_err(|_| "auth is not UTF-8")?;
            let (username, password) = decoded.split_once(':').ok_or("auth holds no user:password")?;
            // Docker pads with NUL.
            return Login::basic(username, password.trim_end_matches('\0')).map(Some);
        }
        if self.username.is_empty() {
            return Ok(None);
        }
        Login::basic(&self.username, &self.password).map(Some)
    }
}

/// The logins by normalised key, and what the user should know. No message quotes a value: it may be a secret.
fn parse(text: &[u8]) -> Result<(HashMap<String, Login>, Vec<String>), String> {
    let config: Config = serde_json::from_slice(text).map_err(|error| {
        format!("is not a Docker config.json: line {}, column {}", error.line(), error.column())
    })?;
    let mut warnings = Vec::new();
    if let Some(helper) = config.creds_store.filter(|helper| !helper.is_empty()) {
        warnings.push(format!(
            "credsStore {helper:?} is not supported: logins that it keeps are not used; put them into auths"
        ));
    }
    for host in config.cred_helpers.keys() {
        warnings.push(format!("credHelpers for {host:?} is not supported: put the login into auths"));
    }
    let mut logins = HashMap::new();
    for (key, entry) in &config.auths {
        let Some(host) = normalise(key) else {
            warnings.push(format!(
                "auths entry {key:?} is for a part of a registry, which is not supported: ignored"
            ));
            continue;
        };
        match entry.login() {
            Ok(Some(login)) => {
                logins.insert(host, login);
            }
            Ok(None) => {}
            Err(reason) => warnings.push(format!("auths entry {key:?}: {reason}: ignored")),
        }
    }
    Ok((logins, warnings))
}

/// `host[:port]` of a key, which may be a URL with Docker's `/v1/` or `/v2/`; `None` for a key with any other path.
fn normalise(key: &str) -> Option<String> {
    let rest = key.trim();
    let rest = rest.strip_prefix("https://").or_else(|| rest.strip_prefix("http://")).unwrap_or(rest);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if !matches!(path.trim_end_matches('/'), "" | "v1" | "v2") {
        return None;
    }
    let host = host.to_ascii_lowercase();
    Some(match host.as_str() {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => {
            DOCKER_HUB_KEY.into()
        }
        _ => host,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Login {
        Login::basic(username, password).unwrap()
    }

    #[test]
    fn the_forms_of_an_entry() {
        let text = br#"{
            "auths": {
                "https://index.docker.io/v1/": {"auth": "dTpwOnE="},
                "quay.io": {"username": "a", "password": "b"},
                "http://LOCAL:5000": {"auth": "dTpwAAA="},
                "https://tok.example/v2/": {"auth": "PHRva2VuPjo=", "identitytoken": "refresh"},
                "quay.io/org": {"auth": "dTpwOnE="},
                "bad.example": {"auth": "%%%"},
                "empty.example": {}
            },
            "credsStore": "desktop", "credHelpers": {"gcr.io": "gcloud"}, "HttpHeaders": {}
        }"#;
        let (logins, warnings) = parse(text).unwrap();
        assert_eq!(logins["docker.io"], basic("u", "p:q"));
        assert_eq!(logins["quay.io"], basic("a", "b"));
        assert_eq!(logins["local:5000"], basic("u", "p"));
        assert_eq!(logins["tok.example"], Login::Refresh("refresh".into()));
        assert_eq!(logins.len(), 4);
        for expected in ["desktop", "gcr.io", "quay.io/org", "bad.example"] {
            assert!(warnings.iter().any(|warning| warning.contains(expected)), "{expected}: {warnings:?}");
        }
    }

    #[test]
    fn an_endpoint_finds_its_entry() {
        let keys = |url: &str| keys_of(&Endpoint::parse(0, url).unwrap());
        assert_eq!(keys("https://docker.io"), ["docker.io"]);
        assert_eq!(keys("https://registry-1.docker.io/"), ["docker.io"]);
        assert_eq!(keys("https://quay.io/x"), ["quay.io", "quay.io:443"]);
        assert_eq!(keys("http://127.0.0.1:5000"), ["127.0.0.1:5000", "127.0.0.1:5000"]);
    }

    #[test]
    fn secrets_are_not_printed() {
        assert!(
            !format!("{:?}{:?}", basic("u", "hunter2"), Login::Refresh("hunter2".into())).contains("hunter2")
        );
        let error = parse(br#"{"auths": {"x": {"password": hunter2}}}"#).unwrap_err();
        assert!(error.contains("line 1") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn unusable_user_names() {
        assert!(Login::basic("a:b", "c").is_err());
        assert!(Login::basic("a\r\n", "c").is_err());
        assert!(Login::basic("ä", "ö").is_ok(), "UTF-8 (RFC 7617 §2.1)");
    }

    #[tokio::test]
    async fn the_file_is_read_again_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        assert!(ConfigFile::open(&path, Duration::ZERO).is_err(), "missing");
        fs::write(&path, r#"{"auths":{"a.example":{"username":"one","password":"x"}}}"#).unwrap();
        let file = ConfigFile::open(&path, Duration::ZERO).unwrap();
        assert_eq!(file.current().await["a.example"], basic("one", "x"));
        fs::write(&path, r#"{"auths":{"a.example":{"username":"three","password":"x"}}}"#).unwrap();
        assert_eq!(file.current().await["a.example"], basic("three", "x"));
        fs::write(&path, "{").unwrap();
        assert_eq!(file.current().await["a.example"], basic("three", "x"), "a broken file changes nothing");
        fs::remove_file(&path).unwrap();
        assert_eq!(file.current().await["a.example"], basic("three", "x"), "nor does a missing one");
    }
}
