//! From a configuration to the registries of a [`Site`]: trees, fills, upstreams.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::sync::Semaphore;
use url::Url;

use super::{Error, Numbers};
use crate::accel::Fronts;
use crate::config::{self, Config, RegistryConfig, Secret, UpstreamConfig, V1Config};
use crate::fill::Fills;
use crate::fill::fetch::TURNS;
use crate::maintain::repair::Sources;
use crate::metrics::Metrics;
use crate::registry::access::{Access, Gate};
use crate::registry::{Mirror, MirrorOptions, Registry, RegistryOptions, RegistryUpstream, Site};
use crate::store::upload::UploadLimits;
use crate::store::{Store, StoreOptions};
use crate::upstream::{Credentials, Observer, Relay, Upstream, UpstreamOptions};

/// The trees that are open, by directory: a reload goes on with them, and with the fills into them.
#[derive(Default)]
pub(super) struct Trees {
    local: HashMap<PathBuf, Arc<Store>>,
    cache: HashMap<PathBuf, Arc<Fills>>,
    /// Where what the registries of the newest configuration hold can be had again, by their names.
    sources: HashMap<String, Arc<Sources>>,
}

impl Trees {
    /// The fills into a cache that is open.
    pub(super) fn fills(&self, cache: &Path) -> Option<Arc<Fills>> {
        self.cache.get(cache).cloned()
    }

    /// What was pushed, of a tree that is open.
    pub(super) fn local(&self, local: &Path) -> Option<Arc<Store>> {
        self.local.get(local).cloned()
    }

    /// Where what a registry holds can be had again.
    pub(super) fn sources(&self, registry: &str) -> Option<Arc<Sources>> {
        self.sources.get(registry).cloned()
    }

    /// The registries and the fronts of a configuration; `numbers` says which of them have listeners of their own. Over
    /// trees that are open already where it names the same directories.
    pub(super) fn site(
        &mut self,
        config: &Config,
        numbers: &Numbers,
        files_max: u64,
        metrics: &Metrics,
    ) -> Result<(Site, Fronts), Error> {
        let mut named = Vec::with_capacity(config.registries.len());
        let mut hosts = Vec::new();
        let mut listeners = Vec::new();
        let mut default = None;
        for registry in &config.registries {
            let handles = registry.handles(files_max, config.registries.len());
            let built = Arc::new(self.registry(registry, handles, config.server.workers.get(), metrics)?);
            hosts.extend(registry.hosts.iter().map(|host| (host.clone(), Arc::clone(&built))));
            if let Some(number) = numbers.of_registry(&registry.name) {
                listeners.push((number, Arc::clone(&built)));
            }
            named.push((registry.name.clone(), Arc::clone(&built)));
            default.get_or_insert(built);
        }
        // The configuration has at least one registry; without one there is nothing to serve.
        let default = default.ok_or(Error::WorkerDied)?;
        let mut fronts = Fronts::default();
        for front in &config.accel {
            let number = numbers.of_front(&front.options.name);
            fronts.add(front.options.clone(), &front.hosts, number, &named, metrics)?;
        }
        self.sources =
            named.iter().map(|(name, registry)| (name.clone(), Arc::new(registry.sources()))).collect();
        Ok((Site { hosts, listeners, default }, fronts))
    }

    fn registry(
        &mut self,
        config: &RegistryConfig,
        handles: usize,
        workers: usize,
        metrics: &Metrics,
    ) -> Result<Registry, Error> {
        let handles_max = NonZeroUsize::new(handles).unwrap_or(NonZeroUsize::MIN);
        let local = match self.local.get(&config.local) {
            Some(local) => Arc::clone(local),
            None => open(&config.local, StoreOptions { handles_max, evictable: false })?,
        };
        let fills = if let Some(fills) = self.cache.get(&config.cache) {
            Arc::clone(fills)
        } else {
            let cache = open(&config.cache, StoreOptions { handles_max, evictable: true })?;
            Arc::new(Fills::new(cache, metrics.clone()))
        };
        let upstreams = upstreams(config, workers, metrics)?;
        let access = Access::new(config.access.clone())?;
        let options = RegistryOptions {
            far_range: config.far_range,
            ranges_max: config.ranges_max,
            manifest_bytes_max: config.manifest_bytes_max,
            uploads: UploadLimits {
                sessions_max: config.uploads_max,
                expiry: config.upload_expiry,
                bytes_max: config.blob_bytes_max,
            },
        };
        self.local.insert(config.local.clone(), Arc::clone(&local));
        self.cache.insert(config.cache.clone(), Arc::clone(&fills));
        let secret = config.http_secret.as_ref().map(Secret::expose);
        let mirror = match &config.v1 {
            Some(v1) => {
                let options = mirror(v1, workers, metrics)?;
                Some(Mirror::new(options, Arc::clone(&local), Arc::clone(&fills), metrics.clone())?)
            }
            None => None,
        };
        let registry = Registry::new(options, access, local, fills, upstreams, secret, metrics.clone());
        Ok(registry.with_mirror(mirror))
    }
}

fn open(path: &Path, options: StoreOptions) -> Result<Arc<Store>, Error> {
    let store = Store::open(path, options);
    store.map(Arc::new).map_err(|cause| Error::Directory { path: path.to_owned(), cause })
}

/// Where the content of a registry's trees can be had again, for a program that does not serve it: `local`, and `cache`
/// through the fills into it unless there is none. Contacts nobody.
///
/// # Errors
/// The configuration of an upstream names what cannot be used.
pub fn sources(
    config: &RegistryConfig,
    local: Arc<Store>,
    cache: Option<Arc<Store>>,
) -> Result<Sources, Error> {
    let metrics = Metrics::new();
    let suppliers = upstreams(config, 1, &metrics)?.iter().map(RegistryUpstream::supplier).collect();
    let fills = cache.map(|cache| Arc::new(Fills::new(cache, metrics.clone())));
    Ok(Sources::new(local, fills, suppliers, metrics))
}

fn upstreams(
    config: &RegistryConfig,
    workers: usize,
    metrics: &Metrics,
) -> Result<Vec<RegistryUpstream>, Error> {
    let upstreams = config.upstreams.iter();
    upstreams.map(|upstream| connect(upstream, config.manifest_bytes_max, workers, metrics)).collect()
}

/// The clients of a Docker v1 mirror. Contacts nobody.
fn mirror(config: &V1Config, workers: usize, metrics: &Metrics) -> Result<MirrorOptions, Error> {
    let relay = |name: &str, url: &Url| {
        Relay::new(UpstreamOptions {
            ca_file: config.ca_file.clone(),
            connect_timeout: config.connect_timeout,
            header_timeout: config.header_timeout,
            stall_timeout: config.stall_timeout,
            workers,
            observer: Some(observer(metrics)),
            ..UpstreamOptions::new(name, url.as_str())
        })
    };
    Ok(MirrorOptions {
        source: relay("v1-source", &config.source)?,
        index: relay("v1-index", &config.source_index)?,
        tags_cache_ttl: config.tags_cache_ttl,
        storage_redirect: config.storage_redirect.clone(),
    })
}

pub(super) fn observer(metrics: &Metrics) -> Observer {
    let metrics = metrics.clone();
    Arc::new(move |seen| {
        let seconds = seen.elapsed.as_secs_f64();
        metrics.upstream_request(seen.upstream, seen.operation.as_str(), seen.outcome, seconds);
    })
}

/// A login as the client takes it.
pub(super) fn credentials(configured: &config::Credentials) -> Credentials {
    match configured {
        config::Credentials::None => Credentials::None,
        config::Credentials::Basic { username, password } => {
            Credentials::Basic { username: username.clone(), password: password.expose().to_owned() }
        }
        config::Credentials::DockerConfig(path) => Credentials::DockerConfig(path.clone()),
    }
}

/// The client of one upstream. Contacts nobody.
fn connect(
    config: &UpstreamConfig,
    manifest_bytes_max: usize,
    workers: usize,
    metrics: &Metrics,
) -> Result<RegistryUpstream, Error> {
    let options = UpstreamOptions {
        mirrors: config.mirrors.iter().map(ToString::to_string).collect(),
        credentials: credentials(&config.credentials),
        ca_file: config.ca_file.clone(),
        auth_hosts: config.auth_hosts.clone(),
        connect_timeout: config.connect_timeout,
        header_timeout: config.header_timeout,
        stall_timeout: config.stall_timeout,
        max_manifest_bytes: manifest_bytes_max,
        docker_hub: config.docker_hub,
        workers,
        observer: Some(observer(metrics)),
        ..UpstreamOptions::new(config.directory.as_str(), config.url.as_str())
    };
    Ok(RegistryUpstream {
        upstream: Arc::new(Upstream::new(options)?),
        name: config.name.clone(),
        aliases: config.aliases.clone(),
        directory: config.directory.clone(),
        default: config.default,
        tag_ttl: config.tag_ttl,
        negative_ttl: config.negative_ttl,
        retries: config.retries,
        turns: Arc::new(Semaphore::new(TURNS)),
        gate: config.client_credentials.then(Gate::new).transpose()?,
        failed: Mutex::new(None),
    })
}
