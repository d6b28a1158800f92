//! Passwords: where they come from, and how they stay out of logs.
//!
//! A password file is read when the configuration is loaded, and again at each reload. A docker config is only checked
//! then: it holds logins for several hosts and changes on its own, so the upstream reads it.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use super::error::ConfigError;
use super::field::Field;
use super::raw::Scalar;

/// A text that is shown nowhere: `Debug` prints `<hidden>`, there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// What an upstream's registry and its token service are given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Nothing: what everybody may read is read.
    #[default]
    None,
    /// A user name and a password.
    Basic {
        /// The user name; never contains a colon (RFC 7617 section 2).
        username: String,
        /// The password or access token, from the configuration or the file that it names.
        password: Secret,
    },
    /// What `docker login` and its like stored for the host in this file.
    DockerConfig(PathBuf),
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

/// The settings of a login.
pub(super) struct Fields<'a> {
    pub(super) username: Field<'a, Scalar>,
    pub(super) password: Field<'a, Secret>,
    pub(super) password_file: Field<'a, PathBuf>,
    pub(super) docker_config: Field<'a, PathBuf>,
}

impl Fields<'_> {
    /// At most one source of a password, and a user name with a password that is written or named here. `host` is for the
    /// advice to log in there.
    pub(super) fn check(self, host: &str) -> Result<Credentials, ConfigError> {
        let Self { username, password, password_file: file, docker_config: docker } = self;
        if let Some(path) = docker.path()? {
            if username.given.is_some() || password.given.is_some() || file.given.is_some() {
                let problem = "stands beside another user name or password";
                return Err(docker.bad(path.display(), problem, "give one or the other"));
            }
            check_docker_config(&path).map_err(|problem| {
                let remedy = format!("run e.g. `skopeo login --authfile {} {host}`", path.display());
                docker.bad(path.display(), problem, remedy)
            })?;
            return Ok(Credentials::DockerConfig(path));
        }
        let secret = match (&password.given, file.path()?) {
            (Some(_), Some(path)) => {
                return Err(file.bad(path.display(), "stands beside `password`", "give one or the other"));
            }
            (Some(secret), None) if secret.expose().is_empty() => {
                return Err(password.bad_unshown("is empty", "leave out `username` and `password` for none"));
            }
            (Some(secret), None) => Some(secret.clone()),
            (None, Some(path)) => Some(read_password(&path).map_err(|problem| {
                let remedy = "name a readable file that holds the password and nothing else";
                file.bad(path.display(), problem, remedy)
            })?),
            (None, None) => None,
        };
        match (username.text(), secret) {
            (None, None) => Ok(Credentials::None),
            (None, Some(_)) => {
                Err(username.bad_unshown("is missing", "give the user that the password is for"))
            }
            (Some(user), None) => {
                Err(username.bad(user, "has no password", "add `password_file`, or leave the user name out"))
            }
            // RFC 7617 section 2: what follows the first colon is the password.
            (Some(user), Some(_)) if user.is_empty() || user.contains(':') => {
                Err(username.bad(user, "is not a user name", "it has at least one character and no colon"))
            }
            (Some(username), Some(password)) => Ok(Credentials::Basic { username, password }),
        }
    }
}

/// The most that is read of a password file or a docker config, in bytes; real ones have a few hundred.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The password that a file holds, without the line end that editors add.
pub(crate) fn read_password(path: &Path) -> Result<Secret, String> {
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

/// Whether `docker login`, `podman login` or `skopeo login` may have written the file; what is in it is looked up when
/// an upstream asks for credentials.
fn check_docker_config(path: &Path) -> Result<(), String> {
    // serde_json's messages repeat values: only the place is passed on.
    match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&read(path)?) {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(format!("is not a docker config (line {}, column {})", error.line(), error.column()))
        }
    }
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
        let credentials = Credentials::Basic { username: "u".into(), password: Secret::new("hunter2") };
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
    fn a_docker_config_is_a_json_object() {
        for text in ["{}", "{\"auths\":{\"h:5000\":{\"auth\":\"eA==\"}},\"credsStore\":\"desktop\"}"] {
            assert_eq!(check_docker_config(file(text).path()), Ok(()), "{text}");
        }
        for text in ["", "hunter2", "[]", "{\"auths\": hunter2}"] {
            let problem = check_docker_config(file(text).path()).unwrap_err();
            assert!(problem.contains("line") && !problem.contains("hunter2"), "{text}: {problem}");
        }
    }
}
