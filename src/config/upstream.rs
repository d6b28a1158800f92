//! `[[registry.upstream]]` from what was typed to what can be used.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use url::Url;

use super::credentials::{self, Credentials};
use super::error::{ConfigError, Origin};
use super::field::{Field, SECOND, Source};
use super::raw::{self, Scalar, Setting};
use super::{UpstreamConfig, name};

/// Answers do not stay true for longer.
pub(super) const TTL_MAX: Duration = Duration::from_hours(366 * 24);

/// The upstreams of one registry.
pub(super) fn check(
    source: &Source<'_>,
    registry: &str,
    raw: Vec<Spanned<raw::Upstream>>,
    warnings: &mut Vec<String>,
) -> Result<Vec<UpstreamConfig>, ConfigError> {
    let only = raw.len() == 1;
    let place = format!("an upstream of {registry}");
    let mut seen = Seen::default();
    let mut upstreams = Vec::with_capacity(raw.len());
    for table in raw {
        let at = source.at(table.span().start);
        let mut raw = table.into_inner();
        let name_field = source.field(&place, &at, "name", raw.name.take());
        let Some(name) = name_field.text() else {
            let remedy = "write the name that clients use, such as \"docker.io\"";
            return Err(name_field.bad_unshown("is missing", remedy));
        };
        name::check_upstream_name(&name).map_err(|refusal| name_field.refused(&name, refusal))?;
        let table = format!("upstream {name:?}");
        let upstream = Upstream { source, at: &at, table: &table };

        let url_field = upstream.field("url", raw.url.take());
        let Some(url) = url_field.text() else {
            return Err(
                url_field.bad_unshown("is missing", "write e.g. url = \"https://registry-1.docker.io\"")
            );
        };
        let url = url_field.url(&url)?;
        let aliases = upstream.aliases(&mut raw, &name)?;
        seen.take_names(&name_field, &name, &aliases)?;
        let default = source.field(&table, &at, "default", raw.default.take());
        let default = seen.take_default(&default, only)?;
        upstreams.push(upstream.check(raw, Named { name, aliases, url, default }, warnings)?);
    }
    Ok(upstreams)
}

/// The upstream that `--upstream URL` stands for: named after its host, the default one, the rest as if not given.
pub(super) fn shorthand(
    source: &Source<'_>,
    origin: Origin,
    text: &str,
    warnings: &mut Vec<String>,
) -> Result<UpstreamConfig, ConfigError> {
    let field = Field { table: "[[registry.upstream]]", key: "url", origin, given: Some(()) };
    let url = field.url(text)?;
    let (name, aliases) = name::name_of(&url);
    let table = format!("upstream {name:?}");
    let upstream = Upstream { source, at: &field.origin, table: &table };
    upstream.check(raw::Upstream::default(), Named { name, aliases, url, default: true }, warnings)
}

/// What must not occur twice among the upstreams of a registry.
#[derive(Default)]
struct Seen {
    spellings: HashSet<String>,
    directories: HashSet<String>,
    default: bool,
}

impl Seen {
    /// Takes name and aliases as used.
    fn take_names<T>(
        &mut self,
        field: &Field<'_, T>,
        name: &str,
        aliases: &[String],
    ) -> Result<(), ConfigError> {
        for spelling in std::iter::once(name).chain(aliases.iter().map(String::as_str)) {
            if !self.spellings.insert(spelling.to_owned()) {
                let problem = "already means another upstream";
                return Err(field.bad(spelling, problem, "let each name and alias mean one upstream"));
            }
        }
        if !self.directories.insert(name::directory_of(name)) {
            let problem = "would share its directory with another upstream, as \":\" is stored as \"_\"";
            return Err(field.bad(name, problem, "choose another name"));
        }
        Ok(())
    }

    /// Whether this is the default upstream: the one that says so, or the only one.
    fn take_default(&mut self, field: &Field<'_, bool>, only: bool) -> Result<bool, ConfigError> {
        let default = field.given.unwrap_or(only);
        if default && self.default {
            return Err(field.bad(true, "is so for two upstreams", "let one be the default"));
        }
        self.default |= default;
        Ok(default)
    }
}

/// What is known of an upstream before the rest is looked at.
struct Named {
    name: String,
    aliases: Vec<String>,
    url: Url,
    default: bool,
}

/// One table being checked.
struct Upstream<'a> {
    source: &'a Source<'a>,
    at: &'a Origin,
    table: &'a str,
}

impl Upstream<'_> {
    fn field<T>(&self, key: &'static str, setting: Setting<T>) -> Field<'_, T> {
        self.source.field(self.table, self.at, key, setting)
    }

    fn check(
        &self,
        mut raw: raw::Upstream,
        named: Named,
        warnings: &mut Vec<String>,
    ) -> Result<UpstreamConfig, ConfigError> {
        let ttl = |key, setting: Setting<Scalar>, default| {
            self.field(key, setting).duration(default, Duration::ZERO..=TTL_MAX)
        };
        let timeout = |key, setting: Setting<Scalar>, default| self.field(key, setting).timeout(default);

        let login = credentials::Fields {
            username: self.field("username", raw.username.take()),
            password: self.field("password", raw.password.take()),
            password_file: self.field("password_file", raw.password_file.take()),
            docker_config: self.field("docker_config", raw.docker_config.take()),
        };
        let credentials = login.check(&name::authority(&named.url))?;
        let Named { name, aliases, url, default } = named;
        if credentials != Credentials::None && url.scheme() == "http" && !is_loopback(&url) {
            warnings.push(format!("{}: the password travels unencrypted, as the url is http", self.table));
        }
        let mirrors = self.field("mirrors", raw.mirrors);
        let ca_file = self.field("ca_file", raw.ca_file);
        Ok(UpstreamConfig {
            directory: name::directory_of(&name),
            docker_hub: name == name::DOCKER_HUB || url.host_str() == Some(name::DOCKER_HUB_HOST),
            name,
            aliases,
            url,
            mirrors: mirrors.texts().iter().map(|text| mirrors.url(text)).collect::<Result<_, _>>()?,
            default,
            credentials,
            ca_file: certificates(&ca_file)?,
            auth_hosts: self.field("auth_hosts", raw.auth_hosts).hosts()?,
            client_credentials: self
                .field("client_credentials", raw.client_credentials)
                .given
                .unwrap_or(false),
            tag_ttl: ttl("tag_ttl", raw.tag_ttl, 60 * SECOND)?,
            negative_ttl: ttl("negative_ttl", raw.negative_ttl, 10 * SECOND)?,
            connect_timeout: timeout("connect_timeout", raw.connect_timeout, 5 * SECOND)?,
            header_timeout: timeout("header_timeout", raw.header_timeout, 30 * SECOND)?,
            stall_timeout: timeout("stall_timeout", raw.stall_timeout, 30 * SECOND)?,
            retries: self.field("retries", raw.retries).count(5, 0..=100)?,
        })
    }

    /// The aliases, without the name itself and without repetitions.
    fn aliases(&self, raw: &mut raw::Upstream, name: &str) -> Result<Vec<String>, ConfigError> {
        let mut aliases = self.field("aliases", raw.aliases.take()).hosts()?;
        if name == name::DOCKER_HUB {
            aliases.push(name::DOCKER_HUB_HOST.to_owned());
        }
        let mut own = HashSet::from([name.to_owned()]);
        aliases.retain(|alias| own.insert(alias.clone()));
        Ok(aliases)
    }
}

/// A file of certificates that can be read.
pub(super) fn certificates(field: &Field<'_, PathBuf>) -> Result<Option<PathBuf>, ConfigError> {
    let path = field.path()?;
    if let Some(path) = &path {
        credentials::check_certificates(path).map_err(|problem| {
            field.bad(path.display(), problem, "name a readable file of PEM certificates")
        })?;
    }
    Ok(path)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(domain)) => domain == "localhost",
        None => false,
    }
}
