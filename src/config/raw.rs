//! The configuration as it is typed: optional, unchecked, with the place of every value. [`super::check`] makes the
//! usable [`super::Config`] of it.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use toml::Spanned;

use super::credentials::Secret;

/// A value and its place in the file, if it was given at all.
pub(super) type Setting<T> = Option<Spanned<T>>;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub(super) server: Server,
    pub(super) maintenance: Option<Spanned<Maintenance>>,
    #[serde(default)]
    pub(super) registry: Vec<Spanned<Registry>>,
    #[serde(default)]
    pub(super) accel: Vec<Spanned<Accel>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Server {
    pub(super) listen: Setting<Texts>,
    pub(super) admin: Setting<Scalar>,
    pub(super) workers: Setting<Scalar>,
    pub(super) io_uring: Setting<Scalar>,
    pub(super) data: Setting<PathBuf>,
    pub(super) access_log: Setting<Scalar>,
    pub(super) connections: Setting<Scalar>,
    pub(super) header_bytes: Setting<Scalar>,
    pub(super) header_fields: Setting<Scalar>,
    pub(super) header_timeout: Setting<Scalar>,
    pub(super) idle_timeout: Setting<Scalar>,
    pub(super) stall_timeout: Setting<Scalar>,
    pub(super) drain_timeout: Setting<Scalar>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Maintenance {
    pub(super) gc: Setting<Scalar>,
    pub(super) gc_grace: Setting<Scalar>,
    pub(super) gc_untagged: Setting<Scalar>,
    pub(super) expire_manifests: Setting<Scalar>,
    pub(super) expire_from: Setting<Scalar>,
    pub(super) uploads: Setting<Scalar>,
    pub(super) scrub: Setting<Scalar>,
    pub(super) scrub_rate: Setting<Scalar>,
    pub(super) scrub_repair: Setting<Scalar>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Registry {
    pub(super) name: Setting<Scalar>,
    pub(super) hosts: Setting<Texts>,
    pub(super) listen: Setting<Texts>,
    pub(super) local: Setting<PathBuf>,
    pub(super) cache: Setting<PathBuf>,
    pub(super) max_size: Setting<Scalar>,
    pub(super) min_free: Setting<Scalar>,
    pub(super) pin: Setting<Texts>,
    pub(super) far_range: Setting<Scalar>,
    pub(super) ranges_max: Setting<Scalar>,
    pub(super) manifest_bytes_max: Setting<Scalar>,
    pub(super) handles_max: Setting<Scalar>,
    pub(super) blob_bytes_max: Setting<Scalar>,
    pub(super) uploads_max: Setting<Scalar>,
    pub(super) upload_expiry: Setting<Scalar>,
    pub(super) http_secret: Setting<Secret>,
    pub(super) access: Option<Spanned<Access>>,
    pub(super) v1: Option<Spanned<V1>>,
    #[serde(default)]
    pub(super) upstream: Vec<Spanned<Upstream>>,
    #[serde(default)]
    pub(super) replicate: Vec<Spanned<Replicate>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct V1 {
    pub(super) source: Setting<Scalar>,
    pub(super) source_index: Setting<Scalar>,
    pub(super) tags_cache_ttl: Setting<Scalar>,
    pub(super) storage_redirect: Setting<Scalar>,
    pub(super) ca_file: Setting<PathBuf>,
    pub(super) connect_timeout: Setting<Scalar>,
    pub(super) header_timeout: Setting<Scalar>,
    pub(super) stall_timeout: Setting<Scalar>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Upstream {
    pub(super) name: Setting<Scalar>,
    pub(super) aliases: Setting<Texts>,
    pub(super) url: Setting<Scalar>,
    pub(super) mirrors: Setting<Texts>,
    pub(super) default: Setting<bool>,
    pub(super) username: Setting<Scalar>,
    pub(super) password: Setting<Secret>,
    pub(super) password_file: Setting<PathBuf>,
    pub(super) docker_config: Setting<PathBuf>,
    pub(super) ca_file: Setting<PathBuf>,
    pub(super) auth_hosts: Setting<Texts>,
    pub(super) client_credentials: Setting<bool>,
    pub(super) tag_ttl: Setting<Scalar>,
    pub(super) negative_ttl: Setting<Scalar>,
    pub(super) connect_timeout: Setting<Scalar>,
    pub(super) header_timeout: Setting<Scalar>,
    pub(super) stall_timeout: Setting<Scalar>,
    pub(super) retries: Setting<Scalar>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Replicate {
    pub(super) name: Setting<Scalar>,
    pub(super) from: Setting<Texts>,
    pub(super) interval: Setting<Scalar>,
    pub(super) include: Setting<Texts>,
    pub(super) exclude: Setting<Texts>,
    pub(super) semver: Setting<Scalar>,
    pub(super) newest: Setting<Scalar>,
    pub(super) platforms: Setting<Texts>,
    pub(super) referrers: Setting<Scalar>,
    pub(super) delete: Setting<Scalar>,
    pub(super) delete_max: Setting<Scalar>,
    pub(super) concurrency: Setting<Scalar>,
    pub(super) scheme: Setting<Scalar>,
    pub(super) registry_port: Setting<Scalar>,
    pub(super) local_addrs: Setting<Texts>,
    pub(super) username: Setting<Scalar>,
    pub(super) password: Setting<Secret>,
    pub(super) password_file: Setting<PathBuf>,
    pub(super) docker_config: Setting<PathBuf>,
    pub(super) ca_file: Setting<PathBuf>,
    pub(super) auth_hosts: Setting<Texts>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Accel {
    pub(super) name: Setting<Scalar>,
    pub(super) hosts: Setting<Texts>,
    pub(super) listen: Setting<Texts>,
    pub(super) backend: Setting<Scalar>,
    pub(super) ca_file: Setting<PathBuf>,
    pub(super) connect_timeout: Setting<Scalar>,
    pub(super) header_timeout: Setting<Scalar>,
    pub(super) stall_timeout: Setting<Scalar>,
    pub(super) body_bytes_max: Setting<Scalar>,
    pub(super) keep_alive: Setting<Scalar>,
    pub(super) honour: Setting<Texts>,
    pub(super) headers: Setting<Scalar>,
    pub(super) status: Setting<Scalar>,
    pub(super) symlinks: Setting<Scalar>,
    pub(super) sendfile_roots: Setting<Texts>,
    pub(super) sendfile_type: Setting<bool>,
    #[serde(default)]
    pub(super) location: Vec<Spanned<Location>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Location {
    pub(super) prefix: Setting<Scalar>,
    pub(super) root: Setting<PathBuf>,
    pub(super) blobs: Setting<Scalar>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Access {
    pub(super) anonymous: Setting<Texts>,
    pub(super) anonymous_repositories: Setting<Texts>,
    pub(super) htpasswd: Setting<PathBuf>,
    #[serde(default)]
    pub(super) rules: Vec<Spanned<Rule>>,
    pub(super) token: Option<Spanned<Token>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    pub(super) users: Setting<Texts>,
    pub(super) repositories: Setting<Texts>,
    pub(super) actions: Setting<Texts>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Token {
    pub(super) realm: Setting<Scalar>,
    pub(super) service: Setting<Scalar>,
    pub(super) issuer: Setting<Scalar>,
    pub(super) keys: Setting<Texts>,
    pub(super) jwks: Setting<PathBuf>,
}

/// A string, an integer or a boolean. Flags and variables are always text; a file may say `workers = 4` or
/// `workers = "4"`, `access_log = "off"` or `access_log = false`.
#[derive(Clone, Debug)]
pub(super) enum Scalar {
    Boolean(bool),
    Integer(i64),
    Text(String),
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean(boolean) => write!(f, "{boolean}"),
            Self::Integer(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl Visitor<'_> for ScalarVisitor {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, an integer or a boolean")
    }

    fn visit_bool<E: de::Error>(self, boolean: bool) -> Result<Scalar, E> {
        Ok(Scalar::Boolean(boolean))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Scalar, E> {
        Ok(Scalar::Integer(number))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Scalar, E> {
        Ok(Scalar::Text(text.to_owned()))
    }
}

/// A list of strings; one string is a list of one.
#[derive(Clone, Debug, Default)]
pub(super) struct Texts(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextsVisitor)
    }
}

struct TextsVisitor;

impl<'de> Visitor<'de> for TextsVisitor {
    type Value = Texts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list of strings")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Texts, E> {
        Ok(Texts(vec![text.to_owned()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Texts, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = sequence.next_element()? {
            texts.push(text);
        }
        Ok(Texts(texts))
    }
}
