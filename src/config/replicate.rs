//! `[[registry.replicate]]` from what was typed to what can be used.

use std::collections::HashSet;
use std::fmt::Display;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;

use super::credentials::{self, Credentials};
use super::error::{ConfigError, Origin};
use super::field::{Field, Source};
use super::name;
use super::raw::{self, Scalar, Setting, Texts};
use super::upstream::certificates;
use crate::replicate::replication::{CONCURRENCY_MAX, DELETE_MAX, PORT};
use crate::replicate::{
    Address, Defaults, Finder, Options, PlatformPattern, Range, Scheme, Selection, pattern,
};

/// The pause between runs.
const INTERVAL: Duration = Duration::from_mins(5);

/// `[[registry.replicate]]`: what is copied from other registries into `local`, again and again.
#[derive(Clone, Debug)]
pub struct ReplicateConfig {
    /// Its name in logs and metrics: one component of a path, unique. Default `replicate`.
    pub name: String,
    /// Where registries to copy from are, or are found, as it was written: at least one.
    pub from: Vec<String>,
    /// The same, read.
    pub finders: Vec<Finder>,
    /// What addresses mean that do not say everything.
    pub defaults: Defaults,
    /// Where this registry can be reached besides the addresses that it listens on.
    pub local_addrs: Vec<Address>,
    /// The pause between runs. Default 5 min.
    pub interval: Duration,
    /// What is copied. Default everything.
    pub selection: Selection,
    /// How.
    pub options: Options,
    /// Given to every source.
    pub credentials: Credentials,
    /// PEM certificates that are trusted for the sources beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Hosts besides those on the sources' own domains whose token services are given the credentials.
    pub auth_hosts: Vec<String>,
}

/// The replications of one registry. `seen` are the names of all others.
pub(super) fn check(
    source: &Source<'_>,
    registry: &str,
    raw: Vec<Spanned<raw::Replicate>>,
    seen: &mut HashSet<String>,
    warnings: &mut Vec<String>,
) -> Result<Vec<ReplicateConfig>, ConfigError> {
    let place = format!("a replication of {registry}");
    let mut replications = Vec::with_capacity(raw.len());
    for table in raw {
        let at = source.at(table.span().start);
        let mut raw = table.into_inner();
        let field = source.field(&place, &at, "name", raw.name.take());
        let name = field.text().unwrap_or_else(|| "replicate".to_owned());
        name::check_component(&name).map_err(|refusal| field.refused(&name, refusal))?;
        if !seen.insert(name.clone()) {
            return Err(field.bad(&name, "is already the name of another replication", "choose another"));
        }
        let table = format!("replicate {name:?}");
        replications.push(Checking { source, at: &at, table: &table }.check(raw, name, warnings)?);
    }
    Ok(replications)
}

/// One table being checked.
struct Checking<'a> {
    source: &'a Source<'a>,
    at: &'a Origin,
    table: &'a str,
}

impl Checking<'_> {
    fn field<T>(&self, key: &'static str, setting: Setting<T>) -> Field<'_, T> {
        self.source.field(self.table, self.at, key, setting)
    }

    fn check(
        &self,
        mut raw: raw::Replicate,
        name: String,
        warnings: &mut Vec<String>,
    ) -> Result<ReplicateConfig, ConfigError> {
        let port =
            self.field("registry_port", raw.registry_port.take()).count(u32::from(PORT), 1..=0xFFFF)?;
        let scheme = one(&self.field("scheme", raw.scheme.take()), str::parse::<Scheme>)?;
        let defaults = Defaults { scheme, port: u16::try_from(port).unwrap_or(PORT) };
        let from = self.field("from", raw.from.take());
        let finders = all(&from, |text| Finder::parse(text, defaults))?;
        if finders.is_empty() {
            let remedy = "write e.g. from = \"https://registry.example.org\"";
            return Err(from.bad_unshown("is missing: there is nobody to copy from", remedy));
        }
        let local_addrs = self.field("local_addrs", raw.local_addrs.take());
        let login = credentials::Fields {
            username: self.field("username", raw.username.take()),
            password: self.field("password", raw.password.take()),
            password_file: self.field("password_file", raw.password_file.take()),
            docker_config: self.field("docker_config", raw.docker_config.take()),
        };
        let credentials = login.check("HOST")?;
        let is_open = |finder: &Finder| match finder {
            Finder::Literal(address) => !address.is_https() && !address.is_loopback(),
            _ => defaults.scheme == Some(Scheme::Http),
        };
        if matches!(credentials, Credentials::Basic { .. }) && finders.iter().any(is_open) {
            warnings.push(format!("{}: the password travels unencrypted where a source is http", self.table));
        }
        Ok(ReplicateConfig {
            name,
            from: from.texts().to_vec(),
            finders,
            defaults,
            local_addrs: all(&local_addrs, |text| Address::parse(text, defaults))?,
            interval: self
                .field("interval", raw.interval.take())
                .duration(INTERVAL, Duration::from_secs(1)..=Duration::from_hours(8766))?,
            selection: self.selection(&mut raw)?,
            options: self.options(&mut raw)?,
            credentials,
            ca_file: certificates(&self.field("ca_file", raw.ca_file.take()))?,
            auth_hosts: self.field("auth_hosts", raw.auth_hosts.take()).hosts()?,
        })
    }

    fn selection(&self, raw: &mut raw::Replicate) -> Result<Selection, ConfigError> {
        let newest = self.field("newest", raw.newest.take());
        let newest = if newest.given.is_some() { newest.count(1, 1..=1_000_000)? } else { 0 };
        Ok(Selection {
            include: all(&self.field("include", raw.include.take()), pattern)?,
            exclude: all(&self.field("exclude", raw.exclude.take()), pattern)?,
            versions: one(&self.field("semver", raw.semver.take()), str::parse::<Range>)?,
            newest: NonZeroUsize::new(newest as usize),
            platforms: all(&self.field("platforms", raw.platforms.take()), str::parse::<PlatformPattern>)?,
        })
    }

    fn options(&self, raw: &mut raw::Replicate) -> Result<Options, ConfigError> {
        const SWITCH: [(&str, bool); 2] = [("on", true), ("off", false)];
        let defaults = Options::default();
        let delete = self.field("delete", raw.delete.take()).choice(false, &SWITCH)?;
        let most = self.field("delete_max", raw.delete_max.take());
        let delete_max = most.count(DELETE_MAX, 1..=u32::MAX)?;
        if most.given.is_some() && !delete {
            let remedy = "add `delete = true`, or leave it out";
            return Err(most.bad(delete_max, "says how many tags may be removed, but none may", remedy));
        }
        let at_once = u32::try_from(defaults.blobs_at_once).unwrap_or(1);
        let concurrency = self.field("concurrency", raw.concurrency.take());
        Ok(Options {
            referrers: self.field("referrers", raw.referrers.take()).choice(true, &SWITCH)?,
            delete_max: delete.then_some(delete_max as usize),
            blobs_at_once: concurrency.count(at_once, 1..=CONCURRENCY_MAX)? as usize,
            ..defaults
        })
    }
}

/// The meaning of a text, if it is given.
fn one<T, E: Display>(
    field: &Field<'_, Scalar>,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<Option<T>, ConfigError> {
    let Some(text) = field.text() else { return Ok(None) };
    parse(&text).map(Some).map_err(|why| refused(field, &text, &why))
}

/// The meanings of texts, each by itself.
fn all<T, E: Display>(
    field: &Field<'_, Texts>,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Vec<T>, ConfigError> {
    let texts = field.texts().iter();
    texts.map(|text| parse(text).map_err(|why| refused(field, text, &why))).collect()
}

/// `why` says what is wrong and what would be right.
fn refused<T>(field: &Field<'_, T>, text: &str, why: &dyn Display) -> ConfigError {
    let why = why.to_string();
    let (problem, remedy) = why.rsplit_once("; ").unwrap_or((&why, "see the README"));
    field.bad(name::redacted(text), format!("cannot be used: {problem}"), remedy)
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Flags};
    use super::*;

    fn load(lines: &str) -> Result<Vec<ReplicateConfig>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("[[registry]]\n[[registry.replicate]]\n{lines}")).unwrap();
        let flags = Flags { config: Some(file.path().to_owned()), ..Flags::default() };
        let config = Config::load(&flags, &|_| None).map_err(|error| error.to_string())?;
        // What is printed means the same.
        std::fs::write(file.path(), config.summary()).unwrap();
        let again = Config::load(&flags, &|_| None).unwrap();
        let [one, again] = [config, again].map(|config| config.registries[0].replicate.clone());
        if one.iter().all(|one| matches!(one.credentials, Credentials::None)) {
            assert_eq!(format!("{one:?}"), format!("{again:?}"));
        }
        Ok(one)
    }

    #[test]
    fn the_least_that_is_said_means_everything() {
        let [one] = &load("from = \"https://m.example\"").unwrap()[..] else { panic!() };
        assert_eq!((one.name.as_str(), one.interval), ("replicate", INTERVAL));
        assert_eq!(one.selection, Selection::default());
        assert!(one.options.referrers && one.options.delete_max.is_none() && !one.options.dry_run);
    }

    #[test]
    fn every_key_is_read() {
        let text = r#"
            name = "master"
            from = ["service:m.example", "file:/etc/masters", "10.0.0.1"]
            interval = "30s"
            include = ["team/*"]
            exclude = "team/x:*-dev"
            semver = ">=1.2 <3"
            newest = 5
            platforms = "linux/amd64"
            referrers = false
            delete = true
            delete_max = 3
            concurrency = 8
            scheme = "http"
            registry_port = 5001
            local_addrs = ["10.0.0.9"]
            auth_hosts = ["auth.example"]
        "#;
        let [one] = &load(text).unwrap()[..] else { panic!() };
        assert_eq!((one.name.as_str(), one.interval), ("master", Duration::from_secs(30)));
        assert_eq!(one.finders[2].to_string(), "10.0.0.1:5001");
        assert_eq!(one.local_addrs[0].url().as_str(), "http://10.0.0.9:5001/");
        assert_eq!((one.selection.include.len(), one.selection.exclude.len()), (1, 1));
        assert!(one.selection.versions.is_some() && one.selection.newest == NonZeroUsize::new(5));
        assert!(one.selection.has_platforms() && !one.options.referrers);
        assert_eq!((one.options.delete_max, one.options.blobs_at_once), (Some(3), 8));
    }

    #[test]
    fn what_cannot_be_used_names_its_key() {
        for (lines, part) in [
            ("", "from in replicate \"replicate\" is missing"),
            ("from = []", "from in replicate \"replicate\" is missing"),
            ("from = \"http://u:hunter2@h\"", "from = \"http://…@h\""),
            ("from = \"service:\"", "service:NAME"),
            ("from = \"a\"\nsemver = \"soon\"", "semver = \"soon\""),
            ("from = \"a\"\nplatforms = [\"x\"]", "platforms = \"x\""),
            ("from = \"a\"\nscheme = \"ftp\"", "scheme = \"ftp\""),
            ("from = \"a\"\ninclude = \"\"", "include = \"\""),
            ("from = \"a\"\nnewest = 0", "newest = \"0\""),
            ("from = \"a\"\ndelete_max = 3", "delete_max = \"3\""),
            ("from = \"a\"\ninterval = 30", "interval = \"30\""),
            ("from = \"a\"\nnonsense = 1", "nonsense"),
            ("from = \"a\"\nname = \"A\"", "name = \"A\""),
            ("from = \"a\"\n[[registry.replicate]]\nfrom = \"b\"", "another replication"),
        ] {
            let error = load(lines).unwrap_err();
            assert!(error.contains(part) && !error.contains("hunter2"), "{part} in {error}");
        }
    }

    #[test]
    fn a_password_that_travels_openly_is_warned_about() {
        let login = "username = \"u\"\npassword = \"p\"\n";
        assert!(load(&format!("from = \"http://m.example\"\n{login}")).is_ok());
    }
}
