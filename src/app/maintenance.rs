//! The work in the background: one evictor per registry on the main thread, everything else on the maintenance thread.

use std::io;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_local};

use super::trees::Trees;
use crate::config::{Config, MaintenanceConfig, RegistryConfig};
use crate::maintain::background::Threads;
use crate::maintain::evict::{self, EvictionOptions};
use crate::maintain::gc::GcOptions;
use crate::maintain::jobs::{Settings, Site};
use crate::maintain::pins::Pins;
use crate::maintain::schedule::{self, Plan};
use crate::metrics::Metrics;

/// What is under way. Dropping it ends all of it, jobs at their next step.
pub(super) struct Maintenance {
    threads: Threads,
    plan: watch::Sender<Plan>,
    evictors: Vec<Evictor>,
    metrics: Metrics,
}

/// Keeps one cache within its bounds, until it is dropped.
struct Evictor {
    registry: String,
    cache: PathBuf,
    options: EvictionOptions,
    task: JoinHandle<()>,
}

impl Drop for Evictor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Maintenance {
    /// Starts the threads, which have nothing to do yet.
    pub(super) fn start(metrics: Metrics) -> io::Result<Self> {
        let (plan, plans) = watch::channel(Plan::default());
        let threads = Threads::start(move || schedule::run(plans))?;
        Ok(Self { threads, plan, evictors: Vec::new(), metrics })
    }

    /// Does what a configuration says from now on. What it does not change goes on. To be called inside of a `LocalSet`.
    pub(super) fn set(&mut self, config: &Config, trees: &Trees) {
        let mut plan = Plan::default();
        let mut before = std::mem::take(&mut self.evictors);
        for registry in &config.registries {
            let open =
                (trees.local(&registry.local), trees.fills(&registry.cache), trees.sources(&registry.name));
            let (Some(local), Some(fills), Some(sources)) = open else { continue };
            plan.stores.extend([Arc::clone(&local), Arc::clone(fills.store())]);
            let site = Site {
                registry: registry.name.clone(),
                local,
                cache: Arc::clone(fills.store()),
                sources,
                settings: settings(&config.maintenance, registry),
                metrics: self.metrics.maintenance(&registry.name),
            };
            plan.jobs.extend(site.jobs());

            let options = eviction(registry);
            let is_same = |evictor: &Evictor| {
                let known = (&evictor.registry, &evictor.cache, &evictor.options);
                known == (&registry.name, &registry.cache, &options)
            };
            let evictor = match before.iter().position(is_same) {
                Some(at) => before.swap_remove(at),
                None => Evictor {
                    registry: registry.name.clone(),
                    cache: registry.cache.clone(),
                    task: spawn_local(evict::run(
                        site.cache,
                        options.clone(),
                        self.threads.background(),
                        site.metrics,
                    )),
                    options,
                },
            };
            self.evictors.push(evictor);
        }
        self.plan.send_replace(plan);
    }

    /// Ends jobs at their next step. The caches are kept within their bounds.
    pub(super) fn end_jobs(&self) {
        self.plan.send_modify(|plan| plan.jobs.clear());
    }
}

fn eviction(registry: &RegistryConfig) -> EvictionOptions {
    let hubs = registry.upstreams.iter().filter(|upstream| upstream.docker_hub);
    let hubs = hubs.map(|upstream| upstream.directory.clone()).collect();
    EvictionOptions {
        max_size: registry.max_size,
        min_free: registry.min_free,
        pins: Pins::new(&registry.pin, hubs),
    }
}

fn settings(maintenance: &MaintenanceConfig, registry: &RegistryConfig) -> Settings {
    let gc = GcOptions {
        grace: maintenance.gc_grace,
        untagged: maintenance.gc_untagged,
        expire_manifests: maintenance.expire_manifests,
        expire_from: maintenance.expire_from,
        // They have a job of their own, which knows the registry's `upload_expiry`.
        expire_uploads: None,
        dry_run: false,
    };
    Settings {
        gc: maintenance.gc.map(|every| (every, gc)),
        uploads: maintenance.uploads,
        upload_expiry: registry.upload_expiry,
        scrub: maintenance.scrub,
        // The configuration allows no 0.
        scrub_rate: NonZeroU64::new(maintenance.scrub_rate).unwrap_or(NonZeroU64::MIN),
        scrub_repair: maintenance.scrub_repair,
    }
}
