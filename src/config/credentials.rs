//! Passwords: where they come from, and how they stay out of logs.
//!
//! Files that hold one are read when the configuration is loaded, and again at each reload; what an upstream is given
//! is always a user name and a [`Secret`].

use std::fmt;
use std::io::{self, Read};
use std::path::Path;

use data_encoding::BASE64;
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

/// A text that is shown nowhere: `Debug` prints `<hidden>`, there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// What an upstream's registry and its token service are given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The user name; never contains a colon (RFC 7617 section 2).
    pub username: String,
    /// The password or access token.
    pub password: Secret,
}

impl Secret {
    /// Wraps a password.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The password itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<hidden>")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SecretVisitor)
    }
}

/// Accepts strings. Everything else is refused here and not by serde's defaults, which would repeat the value.
struct SecretVisitor;

impl Visitor<'_> for SecretVisitor {
    type Value = Secret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Secret, E> {
        Ok(Secret::new(text))
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Secret, E> {
        Err(E::custom(NOT_TEXT))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Secret, E> {
        Err(E::custom(NOT_TEXT))
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Secret, E> {
        Err(E::custom(NOT_TEXT))
    }
}

const NOT_TEXT: &str = "a password is a string: put it in quotation marks";

/// The most that is read of a password file or a docker config, in bytes; real ones have a few hundred.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The password that a file holds, without the line end that editors add.
pub(super) fn read_password(path: &Path) -> Result<Secret, String> {
    let text = read(path)?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    match password {
        "" => Err("is empty".to_owned()),
        _ if password.contains('\n') => Err("has more than one line".to_owned()),
        _ => Ok(Secret::new(password)),
    }
}

/// The start of a file that must hold PEM certificates; only whether it does is of interest here.
pub(super) fn check_certificates(path: &Path) -> Result<(), String> {
    if !read(path)?.contains("-----BEGIN CERTIFICATE-----") {
        return Err("holds no PEM certificate".to_owned());
    }
    Ok(())
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: std::collections::BTreeMap<String, DockerAuth>,
    #[serde(default, rename = "credsStore")]
    creds_store: Option<String>,
    #[serde(default, rename = "credHelpers")]
    cred_helpers: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<Secret>,
    #[serde(rename = "identitytoken")]
    identity_token: Option<Secret>,
}

/// What `docker login`, `podman login` or `skopeo login` stored for any of `hosts` in the file at `path`.
pub(super) fn read_docker_config(path: &Path, hosts: &[&str]) -> Result<Credentials, String> {
    // serde_json's messages say line and column, and repeat values: only the place is passed on.
    let config: DockerConfig = serde_json::from_str(&read(path)?).map_err(|error| {
        format!("is not a docker config (line {}, column {})", error.line(), error.column())
    })?;
    let Some((key, auth)) = config.auths.into_iter().find(|(key, _)| hosts.contains(&docker_host(key)))
    else {
        let helped = config.cred_helpers.keys().any(|key| hosts.contains(&docker_host(key)));
        if helped || config.creds_store.is_some() {
            return Err("keeps its passwords in a credential helper, which is not supported".to_owned());
        }
        return Err(format!("has no login for {}", hosts.join(" or ")));
    };
    if auth.identity_token.is_some_and(|token| !token.expose().is_empty()) {
        return Err(format!("has an identity token for {key}, which is not supported"));
    }
    if let (Some(username), Some(password)) = (auth.username, auth.password) {
        return Ok(Credentials { username, password });
    }
    auth.auth.as_deref().and_then(decode_auth).ok_or_else(|| {
        format!(
            "has neither `auth` nor a user name and password for {key} (a credential helper may hold them)"
        )
    })
}

/// `base64(user:password)`, as in the `auth` of a docker config.
fn decode_auth(auth: &str) -> Option<Credentials> {
    let decoded = String::from_utf8(BASE64.decode(auth.as_bytes()).ok()?).ok()?;
    // docker pads with NULs what it once encrypted in place.
    let (username, password) = decoded.trim_end_matches('\0').split_once(':')?;
    if username.is_empty() || password.is_empty() {
        return None;
    }
    Some(Credentials { username: username.to_owned(), password: Secret::new(password) })
}

/// The host that a key of `auths` is about: keys are hosts, or URLs such as `https://index.docker.io/v1/`.
fn docker_host(key: &str) -> &str {
    let host = key.split_once("://").map_or(key, |(_, rest)| rest);
    host.split_once('/').map_or(host, |(host, _)| host)
}

fn read(path: &Path) -> Result<String, String> {
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is longer than {FILE_BYTES_MAX} bytes"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn a_secret_is_not_shown() {
        let credentials = Credentials { username: "u".into(), password: Secret::new("hunter2") };
        let shown = format!("{credentials:?} {credentials:#?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("<hidden>"), "{shown}");
    }

    #[test]
    fn password_files_lose_one_line_end_and_nothing_else() {
        for (text, password) in
            [("p", "p"), ("p\n", "p"), ("p\r\n", "p"), (" p ", " p "), ("pässwörd\n", "pässwörd")]
        {
            assert_eq!(read_password(file(text).path()).unwrap().expose(), password);
        }
        for text in ["", "\n", "a\nb\n", "p\n\n"] {
            assert!(read_password(file(text).path()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_login_is_found_under_every_spelling_of_its_host() {
        let login = BASE64.encode(b"user:pass:word");
        for key in ["index.docker.io", "https://index.docker.io/v1/", "http://index.docker.io"] {
            let config = file(&format!(r#"{{"auths":{{"x":{{}},"{key}":{{"auth":"{login}"}}}},"other":1}}"#));
            let found =
                read_docker_config(config.path(), &["registry-1.docker.io", "index.docker.io"]).unwrap();
            assert_eq!((found.username.as_str(), found.password.expose()), ("user", "pass:word"));
        }
    }

    #[test]
    fn a_docker_config_without_a_usable_login_says_why() {
        for (text, part) in [
            ("{}", "no login for h:5000"),
            ("{\"auths\":{\"h\":{}}}", "no login for h:5000"),
            ("{\"auths\":{\"h:5000\":{}}}", "neither `auth`"),
            ("{\"auths\":{\"h:5000\":{\"auth\":\"!\"}}}", "neither `auth`"),
            ("{\"auths\":{\"h:5000\":{\"identitytoken\":\"t\"}}}", "identity token"),
            ("{\"credsStore\":\"desktop\"}", "credential helper"),
            ("{\"credHelpers\":{\"h:5000\":\"ecr\"}}", "credential helper"),
            ("{\"auths\":{\"h:5000\":{\"password\":12345}}}", "line 1"),
            ("nonsense", "line 1"),
        ] {
            let problem = read_docker_config(file(text).path(), &["h:5000"]).unwrap_err();
            assert!(problem.contains(part), "{text}: {problem}");
            assert!(!problem.contains("12345"), "{problem}");
        }
    }
}
