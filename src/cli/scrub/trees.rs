//! Which trees are scrubbed, and where their content can be had again.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use crate::app;
use crate::cli::tree::{self, Unusable};
use crate::cli::{path_variable, text_variable};
use crate::config::{Config, Flags, RegistryConfig};
use crate::maintain::repair::{Sources, Tree};
use crate::store::{Layout, Store, StoreOptions};

/// Nothing is served from here.
const HANDLES_MAX: NonZeroUsize = NonZeroUsize::new(16).expect("not zero");

/// What the command line says.
pub(super) struct Given {
    pub(super) data: Option<PathBuf>,
    pub(super) local: Option<PathBuf>,
    pub(super) config: Option<PathBuf>,
    pub(super) upstream: Option<String>,
    pub(super) repair: bool,
}

/// A tree to be scrubbed.
pub(super) struct Target {
    pub(super) store: Arc<Store>,
    pub(super) tree: Tree,
    /// `None`: nothing is repaired.
    pub(super) sources: Option<Rc<Sources>>,
}

/// The trees that are meant, at least one.
pub(super) fn targets(given: Given) -> Result<Vec<Target>, Unusable> {
    let Given { data, local, config, upstream, repair } = given;
    let config = config.or_else(|| path_variable("SPLICEWAY_CONFIG"));
    let upstream = upstream.or_else(|| text_variable("SPLICEWAY_UPSTREAM")).filter(|_| repair);
    if repair && config.is_none() && upstream.is_none() {
        let message = "--repair needs to know where content comes from: name the server's configuration with --config \
                       FILE, or the registry with --upstream URL, as for `serve`";
        return Err(Unusable::Usage(message.to_owned()));
    }
    let within = local.clone().or_else(|| data.clone());
    let data = data.or_else(|| path_variable("SPLICEWAY_DATA"));
    let flags = Flags { config, data, upstream, ..Flags::default() };
    if let Some(file) = &flags.config {
        return configured(file, &flags, within.as_deref(), repair);
    }
    let registry = local.or_else(|| path_variable("REGISTRY_DATA_DIR").filter(|_| flags.data.is_none()));
    if let Some(registry) = registry {
        return plain(&registry, &flags, repair);
    }
    // Says what is wrong with the directory, if something is.
    tree::of_data(flags.data.as_deref().unwrap_or(tree::DATA_DEFAULT.as_ref()))?;
    of_registries(&load(&flags)?.registries, None, repair)
}

/// The trees of a configuration file, those within a directory only if one is given.
fn configured(
    file: &Path,
    flags: &Flags,
    within: Option<&Path>,
    repair: bool,
) -> Result<Vec<Target>, Unusable> {
    let targets = of_registries(&load(flags)?.registries, within, repair)?;
    if targets.is_empty() {
        let within = within.map(|directory| format!(" in {}", directory.display())).unwrap_or_default();
        return Err(Unusable::Missing(format!("no registry of {} keeps anything{within}", file.display())));
    }
    Ok(targets)
}

fn load(flags: &Flags) -> Result<Config, Unusable> {
    // Variables that are about serving do not matter here.
    Config::load(flags, &|_| None).map_err(|error| Unusable::Usage(error.to_string()))
}

/// The trees of registries that are there, those in one directory only if it is given.
fn of_registries(
    registries: &[RegistryConfig],
    within: Option<&Path>,
    repair: bool,
) -> Result<Vec<Target>, Unusable> {
    let within = within.map(real);
    let is_meant =
        |path: &Path| path.is_dir() && within.as_ref().is_none_or(|within| real(path).starts_with(within));
    let mut targets = Vec::new();
    for registry in registries {
        let (local, cache) = (is_meant(&registry.local), is_meant(&registry.cache));
        if !local && !cache {
            continue;
        }
        let local_store = store(Layout::new(&registry.local), false);
        // What is fetched again goes through the cache, which is made if it is missing.
        let cache_store = if repair {
            let options = StoreOptions { handles_max: HANDLES_MAX, evictable: true };
            let opened = Store::open(&registry.cache, options);
            Arc::new(opened.map_err(|error| {
                Unusable::Missing(format!("cannot use {}: {error}", registry.cache.display()))
            })?)
        } else {
            store(Layout::new(&registry.cache), true)
        };
        let sources = repair.then(|| sources(registry, &local_store, Some(&cache_store))).transpose()?;
        if local {
            targets.push(Target { store: local_store, tree: Tree::Local, sources: sources.clone() });
        }
        if cache {
            targets.push(Target { store: cache_store, tree: Tree::Cache, sources });
        }
    }
    Ok(targets)
}

/// A directory that holds one tree of what was pushed.
fn plain(path: &Path, flags: &Flags, repair: bool) -> Result<Vec<Target>, Unusable> {
    let Some(layout) = tree::plain(path)?.local else { return Ok(Vec::new()) };
    let store = store(layout, false);
    let sources = match load(flags)?.registries.first() {
        Some(registry) if repair => Some(sources(registry, &store, None)?),
        _ => None,
    };
    Ok(vec![Target { store, tree: Tree::Local, sources }])
}

fn sources(
    registry: &RegistryConfig,
    local: &Arc<Store>,
    cache: Option<&Arc<Store>>,
) -> Result<Rc<Sources>, Unusable> {
    let sources = app::sources(registry, Arc::clone(local), cache.cloned());
    sources.map(Rc::new).map_err(|error| Unusable::Usage(error.to_string()))
}

/// The tree with these paths; makes nothing.
fn store(layout: Layout, evictable: bool) -> Arc<Store> {
    Arc::new(Store::over(layout, StoreOptions { handles_max: HANDLES_MAX, evictable }))
}

fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}
