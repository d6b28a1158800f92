//! `[[accel]]` from what was typed to what can be used.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use url::Url;

use super::error::{ConfigError, Origin};
use super::field::{Field, SECOND, SIZE_MAX, Source};
use super::raw::{self, Scalar, Setting, Texts};
use super::{AccelConfig, RegistryConfig, ServerConfig, name};
use crate::accel::{
    AccelOptions, BackendAddress, HeaderRule, Honour, LocationContent, LocationOptions, StatusRule, Symlinks,
};

/// The longest prefix of a location, in bytes.
const PREFIX_LEN_MAX: usize = 1024;

/// All fronts.
pub(super) fn check(
    source: &Source<'_>,
    server: &ServerConfig,
    registries: &[RegistryConfig],
    raw: Vec<Spanned<raw::Accel>>,
    warnings: &mut Vec<String>,
) -> Result<Vec<AccelConfig>, ConfigError> {
    let own = registries.iter().flat_map(|registry| registry.listen.iter().copied());
    let addresses = server.listen.iter().copied().chain(server.admin).chain(own).collect();
    let registries = registries.iter().map(|registry| registry.name.as_str()).collect();
    let mut seen = Seen { names: HashSet::new(), hosts: HashSet::new(), addresses };
    let mut fronts = Vec::with_capacity(raw.len());
    for table in raw {
        let front = Front { source, at: source.at(table.span().start), registries: &registries };
        fronts.push(front.check(table.into_inner(), &mut seen, warnings)?);
    }
    Ok(fronts)
}

/// What must not occur twice.
struct Seen {
    names: HashSet<String>,
    hosts: HashSet<String>,
    addresses: Vec<SocketAddr>,
}

/// One table being checked.
struct Front<'a> {
    source: &'a Source<'a>,
    at: Origin,
    registries: &'a Vec<&'a str>,
}

impl Front<'_> {
    fn check(
        &self,
        raw: raw::Accel,
        seen: &mut Seen,
        warnings: &mut Vec<String>,
    ) -> Result<AccelConfig, ConfigError> {
        let (source, at) = (self.source, &self.at);
        let name = self.name(raw.name, seen)?;
        let table = format!("accel {name:?}");
        let field = |key, setting: Setting<Scalar>| source.field(&table, at, key, setting);
        let texts = |key, setting: Setting<Texts>| source.field(&table, at, key, setting);
        let timeout = |key, setting, default| field(key, setting).timeout(default);

        let hosts_field = texts("hosts", raw.hosts);
        let hosts = hosts_field.own_hosts(&mut seen.hosts, "already selects a front")?;
        let listen = texts("listen", raw.listen).own_addresses(&mut seen.addresses)?;
        if hosts.is_empty() && listen.is_empty() {
            let remedy = "list the host names that clients use for it, or give it an address to `listen` on";
            return Err(hosts_field.bad_unshown("is missing: nothing would select this front", remedy));
        }
        let sendfile_roots = roots(&texts("sendfile_roots", raw.sendfile_roots))?;
        let honour = honour(&texts("honour", raw.honour), !sendfile_roots.is_empty())?;
        if honour.contains(Honour::SENDFILE) && sendfile_roots.is_empty() {
            warnings.push(format!(
                "accel {name:?}: X-Sendfile is honoured, but without `sendfile_roots` every file is refused"
            ));
        }
        let locations = self.locations(&name, raw.location)?;
        let sendfile_type = raw.sendfile_type.is_some_and(Spanned::into_inner);
        if sendfile_type && !locations.iter().any(|location| location.root().is_some()) {
            warnings.push(format!(
                "accel {name:?}: `sendfile_type` has no location with a `root` to tell the application of"
            ));
        }
        let body_bytes_max = field("body_bytes_max", raw.body_bytes_max).size(0, 0..=SIZE_MAX)?;
        let options = AccelOptions {
            backend: backend(&field("backend", raw.backend))?,
            ca_file: source.field(&table, at, "ca_file", raw.ca_file).path()?,
            connect_timeout: timeout("connect_timeout", raw.connect_timeout, 5 * SECOND)?,
            header_timeout: timeout("header_timeout", raw.header_timeout, Duration::from_mins(1))?,
            stall_timeout: timeout("stall_timeout", raw.stall_timeout, Duration::from_mins(1))?,
            body_bytes_max: (body_bytes_max > 0).then_some(body_bytes_max),
            keep_alive: field("keep_alive", raw.keep_alive).count(32, 0..=10_000)? as usize,
            honour,
            headers: field("headers", raw.headers).choice(
                HeaderRule::Keep,
                &[HeaderRule::Keep, HeaderRule::Nginx].map(|rule| (rule.as_str(), rule)),
            )?,
            status: field("status", raw.status).choice(
                StatusRule::File,
                &[StatusRule::File, StatusRule::Backend].map(|rule| (rule.as_str(), rule)),
            )?,
            symlinks: field("symlinks", raw.symlinks).choice(
                Symlinks::Beneath,
                &[Symlinks::Beneath, Symlinks::Deny].map(|rule| (rule.as_str(), rule)),
            )?,
            sendfile_roots,
            sendfile_type,
            locations,
            name,
        };
        Ok(AccelConfig { hosts, listen, options })
    }

    fn name(&self, setting: Setting<Scalar>, seen: &mut Seen) -> Result<String, ConfigError> {
        let field = self.source.field("[[accel]]", &self.at, "name", setting);
        let name = field.text().unwrap_or_else(|| "accel".to_owned());
        name::check_component(&name).map_err(|refusal| field.refused(&name, refusal))?;
        if !seen.names.insert(name.clone()) {
            return Err(field.bad(&name, "is already the name of another front", "choose another"));
        }
        Ok(name)
    }

    fn locations(
        &self,
        front: &str,
        raw: Vec<Spanned<raw::Location>>,
    ) -> Result<Vec<LocationOptions>, ConfigError> {
        let mut locations: Vec<LocationOptions> = Vec::with_capacity(raw.len());
        for table in raw {
            let at = self.source.at(table.span().start);
            let raw = table.into_inner();
            let table = format!("a location of accel {front:?}");
            let field = |key, setting: Setting<Scalar>| self.source.field(&table, &at, key, setting);
            let prefix_field = field("prefix", raw.prefix);
            let prefix = prefix(&prefix_field)?;
            if locations.iter().any(|location| location.prefix == prefix) {
                return Err(prefix_field.bad(&prefix, "is given twice", "give each prefix once"));
            }
            let root_field = self.source.field(&table, &at, "root", raw.root);
            let blobs_field = field("blobs", raw.blobs);
            let content = match (root_field.path()?, blobs_field.text()) {
                (Some(root), None) => LocationContent::Root(root),
                (None, Some(registry)) => {
                    if !self.registries.contains(&registry.as_str()) {
                        let remedy = format!("write the name of one: {}", self.registries.join(", "));
                        return Err(blobs_field.bad(registry, "is not the name of a registry", remedy));
                    }
                    LocationContent::Blobs(registry)
                }
                (Some(root), Some(_)) => {
                    let remedy = "a location is either of files or of blobs";
                    return Err(root_field.bad(root.display(), "is given beside `blobs`", remedy));
                }
                (None, None) => {
                    let remedy = "name a directory, or a registry by `blobs`";
                    return Err(root_field.bad_unshown("is missing", remedy));
                }
            };
            locations.push(LocationOptions { prefix, content });
        }
        Ok(locations)
    }
}

fn backend(field: &Field<'_, Scalar>) -> Result<BackendAddress, ConfigError> {
    let example = "write e.g. \"http://127.0.0.1:8000\" or \"unix:/run/app.sock\"";
    let Some(text) = field.text() else { return Err(field.bad_unshown("is missing", example)) };
    if let Some(path) = text.strip_prefix("unix:") {
        if !path.starts_with('/') || path.contains('\0') {
            return Err(field.bad(&text, "is not the path of a socket", "write \"unix:/path/to/socket\""));
        }
        return Ok(BackendAddress::Unix(path.into()));
    }
    let shown = name::redacted(&text);
    let url =
        Url::parse(&text).map_err(|error| field.bad(&shown, format!("is not a URL ({error})"), example))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(field.bad(&shown, "is neither an http or https URL nor a socket", example));
    }
    if !url.username().is_empty() || url.password().is_some() {
        let remedy = "leave them out: what clients send is passed on";
        return Err(field.bad(&shown, "contains credentials", remedy));
    }
    if url.query().is_some() || url.fragment().is_some() {
        let remedy = "leave out what follows \"?\" or \"#\"";
        return Err(field.bad(&shown, "has a query or a fragment", remedy));
    }
    Ok(BackendAddress::Url(url))
}

fn honour(field: &Field<'_, Texts>, with_sendfile: bool) -> Result<Honour, ConfigError> {
    let mut honour = if field.given.is_some() { Honour::NOTHING } else { Honour::ACCEL };
    if with_sendfile {
        honour = honour.with(Honour::SENDFILE);
    }
    for word in field.texts() {
        let Some(one) = Honour::from_word(word) else {
            let words: Vec<_> = Honour::ALL.words().collect();
            return Err(field.bad(
                word,
                "is not a header that can be honoured",
                format!("write {}", words.join(", ")),
            ));
        };
        honour = honour.with(one);
    }
    Ok(honour)
}

/// Directories beneath which X-Sendfile may name files.
fn roots(field: &Field<'_, Texts>) -> Result<Vec<PathBuf>, ConfigError> {
    let mut roots = Vec::new();
    for text in field.texts() {
        let path = Path::new(text);
        let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if !path.is_absolute() || !plain {
            let remedy = "write the directory from \"/\" on, without \"..\"";
            return Err(field.bad(text, "is not an absolute path", remedy));
        }
        // Without a slash at its end, and without double ones.
        roots.push(path.components().collect());
    }
    Ok(roots)
}

fn prefix(field: &Field<'_, Scalar>) -> Result<String, ConfigError> {
    let Some(prefix) = field.text() else {
        return Err(field.bad_unshown("is missing", "write e.g. \"/protected/\""));
    };
    // Without the slash at its end, "/files" would also take "/files-of-others".
    if !prefix.starts_with('/') || !prefix.ends_with('/') {
        let remedy = format!("write \"/{}/\"", prefix.trim_matches('/'));
        return Err(field.bad(&prefix, "does not begin and end with a slash", remedy));
    }
    let odd = prefix.split('/').any(|part| part == "..") || prefix.contains(['\0', '?']);
    if odd || prefix.len() > PREFIX_LEN_MAX {
        return Err(field.bad(
            &prefix,
            "is not a path as X-Accel-Redirect gives it",
            "write e.g. \"/protected/\"",
        ));
    }
    Ok(prefix)
}

#[cfg(test)]
mod tests;
