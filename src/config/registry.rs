//! `[[registry]]` from what was typed to what can be used.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;

use super::error::{ConfigError, Origin};
use super::field::{Field, GIB, MIB, SIZE_MAX, Source, nonzero};
use super::raw::{self, Scalar, Setting};
use super::{RegistryConfig, ServerConfig, access, name, replicate, upstream, v1};

/// All registries: those of the file, or the one that there is without any. `shorthand` is the URL of `--upstream`;
/// `exposed` is where others than this machine can connect, if anywhere.
pub(super) fn check(
    source: &Source<'_>,
    server: &ServerConfig,
    exposed: Option<&str>,
    raw: Vec<Spanned<raw::Registry>>,
    mut shorthand: Option<(Origin, String)>,
    warnings: &mut Vec<String>,
) -> Result<Vec<RegistryConfig>, ConfigError> {
    let mut tables: Vec<_> =
        raw.into_iter().map(|table| (source.at(table.span().start), table.into_inner())).collect();
    if tables.is_empty() {
        tables.push((Origin::Default, raw::Registry::default()));
    }
    let addresses = server.listen.iter().copied().chain(server.admin).collect();
    let mut seen = Seen { data: server.data.clone(), addresses, ..Seen::default() };
    let mut registries = Vec::with_capacity(tables.len());
    for (at, table) in tables {
        let registry = Registry { source, at, exposed, first: registries.is_empty() };
        // `take`: the flag is about the first registry.
        registries.push(registry.check(table, shorthand.take(), &mut seen, warnings)?);
    }
    Ok(registries)
}

/// What must not occur twice among the registries, and where they keep what they store.
#[derive(Default)]
struct Seen {
    data: PathBuf,
    names: HashSet<String>,
    hosts: HashSet<String>,
    addresses: Vec<SocketAddr>,
    trees: Vec<PathBuf>,
    replications: HashSet<String>,
}

/// One table being checked.
struct Registry<'a> {
    source: &'a Source<'a>,
    at: Origin,
    exposed: Option<&'a str>,
    first: bool,
}

impl Registry<'_> {
    fn check(
        &self,
        raw: raw::Registry,
        shorthand: Option<(Origin, String)>,
        seen: &mut Seen,
        warnings: &mut Vec<String>,
    ) -> Result<RegistryConfig, ConfigError> {
        let (source, at) = (self.source, &self.at);
        let name = self.name(raw.name, seen)?;
        let table = format!("registry {name:?}");
        let field = |key, setting: Setting<Scalar>| source.field(&table, at, key, setting);

        let hosts_field = source.field(&table, at, "hosts", raw.hosts);
        let hosts = hosts_field.own_hosts(&mut seen.hosts, "already selects a registry")?;
        let listen = source.field(&table, at, "listen", raw.listen).own_addresses(&mut seen.addresses)?;
        if hosts.is_empty() && listen.is_empty() && !self.first {
            let problem = "is missing: nothing would select this registry";
            let remedy = "list the host names that clients use for it, or give it an address to `listen` on";
            return Err(hosts_field.bad_unshown(problem, remedy));
        }
        let base = if self.first { seen.data.clone() } else { seen.data.join(&name) };
        let local = source.field(&table, at, "local", raw.local);
        let local = tree(&local, base.join("local"), &mut seen.trees)?;
        let cache = source.field(&table, at, "cache", raw.cache);
        let cache = tree(&cache, base.join("cache"), &mut seen.trees)?;
        let upstreams = match shorthand {
            Some((origin, url)) => vec![upstream::shorthand(source, origin, &url, warnings)?],
            None => upstream::check(source, &table, raw.upstream, warnings)?,
        };
        let replicate = replicate::check(source, &table, raw.replicate, &mut seen.replications, warnings)?;
        let own = listen.iter().find(|address| !address.ip().to_canonical().is_loopback());
        let exposed = self.exposed.map(str::to_owned).or_else(|| own.map(ToString::to_string));
        let place = access::Place { source, name: &name, exposed: exposed.as_deref(), upstreams: &upstreams };
        let access = access::check(&place, at, raw.access, warnings)?;
        Ok(RegistryConfig {
            access,
            v1: v1::check(source, &table, raw.v1)?,
            name,
            hosts,
            listen,
            local,
            cache,
            max_size: field("max_size", raw.max_size).size_if_given(MIB..=SIZE_MAX)?,
            min_free: field("min_free", raw.min_free).size(GIB, 0..=SIZE_MAX)?,
            pin: source.field(&table, at, "pin", raw.pin).repository_patterns()?,
            far_range: field("far_range", raw.far_range).size(32 * MIB, 0..=SIZE_MAX)?,
            ranges_max: field("ranges_max", raw.ranges_max).count(64, 1..=1024)? as usize,
            manifest_bytes_max: field("manifest_bytes_max", raw.manifest_bytes_max)
                .small_size(4 * MIB, 4 * MIB..=16 * MIB)?,
            blob_bytes_max: field("blob_bytes_max", raw.blob_bytes_max).size(64 * GIB, MIB..=SIZE_MAX)?,
            uploads_max: field("uploads_max", raw.uploads_max).count(1000, 1..=100_000)? as usize,
            upload_expiry: field("upload_expiry", raw.upload_expiry).duration(
                Duration::from_hours(24),
                Duration::from_secs(1)..=Duration::from_hours(24 * 365),
            )?,
            http_secret: raw.http_secret.map(Spanned::into_inner),
            handles_max: nonzero(field("handles_max", raw.handles_max).count(0, 0..=1_000_000)?),
            replicate,
            upstreams,
        })
    }

    fn name(&self, setting: Setting<Scalar>, seen: &mut Seen) -> Result<String, ConfigError> {
        let field = self.source.field("[[registry]]", &self.at, "name", setting);
        let name = match field.text() {
            Some(name) => name,
            None if self.first => "main".to_owned(),
            None => {
                return Err(field.bad_unshown("is missing", "give every registry but the first a `name`"));
            }
        };
        name::check_component(&name).map_err(|refusal| field.refused(&name, refusal))?;
        if !seen.names.insert(name.clone()) {
            return Err(field.bad(&name, "is already the name of another registry", "choose another"));
        }
        Ok(name)
    }
}

/// The directory of a tree, which no other tree may contain or be contained in: what is swept in one is not the other's.
fn tree(
    field: &Field<'_, PathBuf>,
    default: PathBuf,
    seen: &mut Vec<PathBuf>,
) -> Result<PathBuf, ConfigError> {
    let path = field.path()?.unwrap_or(default);
    let whole = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
    let real = std::fs::canonicalize(&whole).unwrap_or(whole);
    if let Some(other) = seen.iter().find(|other| other.starts_with(&real) || real.starts_with(other)) {
        let problem = format!("lies in, or around, {}", other.display());
        let remedy = "give `local` and `cache` of each registry a directory of its own";
        return Err(field.bad(path.display(), problem, remedy));
    }
    seen.push(real);
    Ok(path)
}
