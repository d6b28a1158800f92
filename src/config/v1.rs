//! `v1` of a `[[registry]]`, the Docker v1 mirror, from what was typed to what can be used.

use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use url::Url;

use super::error::ConfigError;
use super::field::{SECOND, Source};
use super::raw::{self, Scalar, Setting};
use super::upstream::{TTL_MAX, certificates};

/// What docker-registry says.
const TAGS_CACHE_TTL: Duration = Duration::from_hours(48);

/// `v1` of a `[[registry]]`: a mirror of a registry that speaks the Docker v1 protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V1Config {
    /// Where images and tags come from; its path, without a slash at its end unless it is `/`, goes before `/v1/`.
    pub source: Url,
    /// Where the index is: lists of a repository's images, and searches. Default: `source`.
    pub source_index: Url,
    /// How long tags are served without asking again. Default 48 h; 0 asks every time.
    pub tags_cache_ttl: Duration,
    /// Where clients are sent for layers that are held: `<URL>images/<id>/layer`. Its path ends in a slash. Default: they
    /// are not.
    pub storage_redirect: Option<Url>,
    /// PEM certificates that are trusted for the source beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Longest time for name resolution, connecting and TLS together. Default 5 s.
    pub connect_timeout: Duration,
    /// Longest time from a request to the head of its answer. Default 30 s.
    pub header_timeout: Duration,
    /// Longest time without a byte of an answer's body. Default 30 s.
    pub stall_timeout: Duration,
}

/// The mirror of one registry, if it has one.
pub(super) fn check(
    source: &Source<'_>,
    registry: &str,
    raw: Option<Spanned<raw::V1>>,
) -> Result<Option<V1Config>, ConfigError> {
    let Some(raw) = raw else { return Ok(None) };
    let at = source.at(raw.span().start);
    let raw = raw.into_inner();
    let table = format!("`v1` of {registry}");
    let field = |key, setting: Setting<Scalar>| source.field(&table, &at, key, setting);
    let url = |key, setting: Setting<Scalar>| {
        let field = field(key, setting);
        field.text().map(|text| field.url(&text).map(without_version)).transpose()
    };

    let Some(from) = url("source", raw.source)? else {
        let remedy = "write e.g. source = \"https://registry.example.org\"";
        return Err(field("source", None).bad_unshown("is missing", remedy));
    };
    let timeout = |key, setting, default| field(key, setting).timeout(default);
    Ok(Some(V1Config {
        source_index: url("source_index", raw.source_index)?.unwrap_or_else(|| from.clone()),
        source: from,
        tags_cache_ttl: field("tags_cache_ttl", raw.tags_cache_ttl)
            .duration(TAGS_CACHE_TTL, Duration::ZERO..=TTL_MAX)?,
        storage_redirect: url("storage_redirect", raw.storage_redirect)?.map(with_slash),
        ca_file: certificates(&source.field(&table, &at, "ca_file", raw.ca_file))?,
        connect_timeout: timeout("connect_timeout", raw.connect_timeout, 5 * SECOND)?,
        header_timeout: timeout("header_timeout", raw.header_timeout, 30 * SECOND)?,
        stall_timeout: timeout("stall_timeout", raw.stall_timeout, 30 * SECOND)?,
    }))
}

/// `/v1` at the end is what people add who know the protocol.
fn without_version(mut url: Url) -> Url {
    if let Some(path) = url.path().strip_suffix("/v1").map(str::to_owned) {
        url.set_path(&path);
    }
    url
}

fn with_slash(mut url: Url) -> Url {
    let path = format!("{}/", url.path().trim_end_matches('/'));
    url.set_path(&path);
    url
}
