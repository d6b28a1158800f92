//! The configuration as it will be used, written as TOML. Passwords are left out; the rest can be loaded again.

use std::fmt::{Display, Write};
use std::path::Path;
use std::time::Duration;

use toml::Value;

use super::field::{OFF, duration_text, size_text};
use super::{
    AccelConfig, Config, Credentials, MaintenanceConfig, RegistryConfig, ReplicateConfig, ServerConfig,
    UpstreamConfig, V1Config,
};
use crate::accel::LocationContent;
use crate::registry::access::{AccessOptions, Rights};
use crate::replicate::Address;

/// See [`Config::summary`].
pub(super) fn summary(config: &Config) -> String {
    let mut table = Table::default();
    server(&mut table, &config.server);
    maintenance(&mut table, &config.maintenance);
    for one in &config.registries {
        registry(&mut table, one);
        access(&mut table, &one.access);
        if let Some(mirror) = &one.v1 {
            v1(&mut table, mirror);
        }
        for one in &one.upstreams {
            upstream(&mut table, one);
        }
        for one in &one.replicate {
            replicate(&mut table, one);
        }
    }
    for one in &config.accel {
        accel(&mut table, one);
    }
    table.text
}

fn server(table: &mut Table, server: &ServerConfig) {
    table.start("[server]");
    table.list("listen", &server.listen);
    if let Some(admin) = server.admin {
        table.text("admin", admin);
    }
    table.plain("workers", server.workers);
    table.text("io_uring", server.io_uring);
    table.path("data", &server.data);
    table.text("access_log", if server.access_log { "on" } else { "off" });
    table.plain("connections", server.connections.map_or(0, Into::into));
    table.size("header_bytes", server.header_bytes as u64);
    table.plain("header_fields", server.header_fields);
    table.duration("header_timeout", server.header_timeout);
    table.duration("idle_timeout", server.idle_timeout);
    table.duration("stall_timeout", server.stall_timeout);
    table.duration("drain_timeout", server.drain_timeout);
}

fn maintenance(table: &mut Table, maintenance: &MaintenanceConfig) {
    table.start("\n[maintenance]");
    table.duration_or_off("gc", maintenance.gc);
    table.duration("gc_grace", maintenance.gc_grace);
    table.plain("gc_untagged", maintenance.gc_untagged);
    table.duration_or_off("expire_manifests", maintenance.expire_manifests);
    table.text("expire_from", maintenance.expire_from_word());
    table.duration_or_off("uploads", maintenance.uploads);
    table.duration_or_off("scrub", maintenance.scrub);
    table.size("scrub_rate", maintenance.scrub_rate);
    table.plain("scrub_repair", maintenance.scrub_repair);
}

fn registry(table: &mut Table, registry: &RegistryConfig) {
    table.start("\n[[registry]]");
    table.text("name", &registry.name);
    table.list("hosts", &registry.hosts);
    table.list("listen", &registry.listen);
    table.path("local", &registry.local);
    table.path("cache", &registry.cache);
    if let Some(bytes) = registry.max_size {
        table.size("max_size", bytes);
    }
    table.size("min_free", registry.min_free);
    table.list("pin", &registry.pin);
    table.size("far_range", registry.far_range);
    table.plain("ranges_max", registry.ranges_max);
    table.size("manifest_bytes_max", registry.manifest_bytes_max as u64);
    table.size("blob_bytes_max", registry.blob_bytes_max);
    table.plain("uploads_max", registry.uploads_max);
    table.duration("upload_expiry", registry.upload_expiry);
    if registry.http_secret.is_some() {
        table.text("http_secret", "(set)");
    }
    table.plain("handles_max", registry.handles_max.map_or(0, Into::into));
}

fn access(table: &mut Table, access: &AccessOptions) {
    let words = |rights: Rights| rights.words().collect::<Vec<_>>();
    table.start("\n[registry.access]");
    table.list("anonymous", &words(access.anonymous.rights));
    if !access.anonymous.is_everywhere() {
        table.list("anonymous_repositories", &access.anonymous.repositories);
    }
    if let Some(path) = &access.htpasswd {
        table.path("htpasswd", path);
    }
    for rule in &access.rules {
        table.start("\n[[registry.access.rules]]");
        table.list("users", &rule.users);
        table.list("repositories", &rule.grant.repositories);
        table.list("actions", &words(rule.grant.rights));
    }
    if let Some(token) = &access.token {
        table.start("\n[registry.access.token]");
        table.text("realm", &token.realm);
        table.text("service", &token.service);
        table.text("issuer", &token.issuer);
        let keys: Vec<_> = token.keys.iter().map(|path| path.display()).collect();
        table.list("keys", &keys);
        if let Some(path) = &token.jwks {
            table.path("jwks", path);
        }
    }
}

fn v1(table: &mut Table, mirror: &V1Config) {
    table.start("\n[registry.v1]");
    table.text("source", &mirror.source);
    table.text("source_index", &mirror.source_index);
    table.duration("tags_cache_ttl", mirror.tags_cache_ttl);
    if let Some(url) = &mirror.storage_redirect {
        table.text("storage_redirect", url);
    }
    if let Some(path) = &mirror.ca_file {
        table.path("ca_file", path);
    }
    table.duration("connect_timeout", mirror.connect_timeout);
    table.duration("header_timeout", mirror.header_timeout);
    table.duration("stall_timeout", mirror.stall_timeout);
}

fn upstream(table: &mut Table, upstream: &UpstreamConfig) {
    table.start("\n[[registry.upstream]]");
    table.text("name", &upstream.name);
    table.list("aliases", &upstream.aliases);
    table.text("url", &upstream.url);
    table.list("mirrors", &upstream.mirrors);
    table.plain("default", upstream.default);
    table.credentials(&upstream.credentials);
    if let Some(path) = &upstream.ca_file {
        table.path("ca_file", path);
    }
    table.list("auth_hosts", &upstream.auth_hosts);
    table.plain("client_credentials", upstream.client_credentials);
    table.duration("tag_ttl", upstream.tag_ttl);
    table.duration("negative_ttl", upstream.negative_ttl);
    table.duration("connect_timeout", upstream.connect_timeout);
    table.duration("header_timeout", upstream.header_timeout);
    table.duration("stall_timeout", upstream.stall_timeout);
    table.plain("retries", upstream.retries);
}

fn replicate(table: &mut Table, replicate: &ReplicateConfig) {
    let (selection, options) = (&replicate.selection, &replicate.options);
    table.start("\n[[registry.replicate]]");
    table.text("name", &replicate.name);
    table.list("from", &replicate.from);
    table.duration("interval", replicate.interval);
    table.list("include", &selection.include);
    table.list("exclude", &selection.exclude);
    if let Some(range) = &selection.versions {
        table.text("semver", range);
    }
    if let Some(count) = selection.newest {
        table.plain("newest", count);
    }
    table.list("platforms", &selection.platforms);
    table.plain("referrers", options.referrers);
    table.plain("delete", options.delete_max.is_some());
    if let Some(count) = options.delete_max {
        table.plain("delete_max", count);
    }
    table.plain("concurrency", options.blobs_at_once);
    if let Some(scheme) = replicate.defaults.scheme {
        table.text("scheme", scheme.as_str());
    }
    table.plain("registry_port", replicate.defaults.port);
    let local: Vec<_> = replicate.local_addrs.iter().map(Address::url).collect();
    table.list("local_addrs", &local);
    table.credentials(&replicate.credentials);
    if let Some(path) = &replicate.ca_file {
        table.path("ca_file", path);
    }
    table.list("auth_hosts", &replicate.auth_hosts);
}

fn accel(table: &mut Table, accel: &AccelConfig) {
    let options = &accel.options;
    table.start("\n[[accel]]");
    table.text("name", &options.name);
    table.list("hosts", &accel.hosts);
    table.list("listen", &accel.listen);
    table.text("backend", &options.backend);
    if let Some(path) = &options.ca_file {
        table.path("ca_file", path);
    }
    table.duration("connect_timeout", options.connect_timeout);
    table.duration("header_timeout", options.header_timeout);
    table.duration("stall_timeout", options.stall_timeout);
    table.size("body_bytes_max", options.body_bytes_max.unwrap_or(0));
    table.plain("keep_alive", options.keep_alive);
    table.list("honour", &options.honour.words().collect::<Vec<_>>());
    table.text("headers", options.headers.as_str());
    table.text("status", options.status.as_str());
    table.text("symlinks", options.symlinks.as_str());
    let roots: Vec<_> = options.sendfile_roots.iter().map(|root| root.display()).collect();
    table.list("sendfile_roots", &roots);
    table.plain("sendfile_type", options.sendfile_type);
    for location in &options.locations {
        table.start("\n[[accel.location]]");
        table.text("prefix", &location.prefix);
        match &location.content {
            LocationContent::Root(root) => table.path("root", root),
            LocationContent::Blobs(registry) => table.text("blobs", registry),
        }
    }
}

#[derive(Default)]
struct Table {
    text: String,
}

impl Table {
    fn start(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn plain(&mut self, key: &str, value: impl Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{key} = {value}");
    }

    fn text(&mut self, key: &str, value: impl Display) {
        self.plain(key, Value::String(format!("{value}")));
    }

    fn path(&mut self, key: &str, path: &Path) {
        self.text(key, path.display());
    }

    fn size(&mut self, key: &str, bytes: u64) {
        self.text(key, size_text(bytes));
    }

    fn duration(&mut self, key: &str, duration: Duration) {
        self.text(key, duration_text(duration));
    }

    fn duration_or_off(&mut self, key: &str, duration: Option<Duration>) {
        self.text(key, duration.map_or_else(|| OFF.to_owned(), duration_text));
    }

    fn credentials(&mut self, credentials: &Credentials) {
        match credentials {
            Credentials::None => {}
            Credentials::Basic { username, .. } => {
                self.start(&format!("# username {username:?}, with a password"));
            }
            Credentials::DockerConfig(path) => self.path("docker_config", path),
        }
    }

    fn list<T: ToString>(&mut self, key: &str, values: &[T]) {
        let values = values.iter().map(|value| Value::String(value.to_string())).collect();
        self.plain(key, Value::Array(values));
    }
}
