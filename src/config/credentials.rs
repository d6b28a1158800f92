//! Passwords: where they come from, and how they stay out of logs.
//!
//! A password file is read when the configuration is loaded, and again at each reload. A docker config is only checked
//! then: it holds logins for several hosts and changes on its own, so the upstream reads it.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

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
pub(super) fn check_docker_config(path: &Path) -> Result<(), String> {
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
