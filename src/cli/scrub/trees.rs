//! Which trees are scrubbed, and where their content can be had again.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::app;
use crate::cli::tree::{Place, Trees, Unusable};
use crate::cli::{path_variable, text_variable};
use crate::config::{Config, Flags, RegistryConfig};
use crate::maintain::repair::{Sources, Tree};
use crate::store::{Layout, Store, StoreOptions};

/// Nothing is served from here.
const HANDLES_MAX: NonZeroUsize = NonZeroUsize::new(16).expect("not zero");

/// What the command line says.
pub(super) struct Given {
    pub(super) place: Place,
    pub(super) config: Option<PathBuf>,
    pub(super) upstream: Option<String>,
    pub(super) repair: bool,
}

/// A tree to be scrubbed.
pub(super) struct Target {
    pub(super) store: Arc<Store>,
    pub(super) tree: Tree,
    /// `None`: nothing is repaired.
    pub(super) sources: Option<Arc<Sources>>,
}

/// The trees that are meant, at least one.
pub(super) fn targets(given: Given) -> Result<Vec<Target>, Unusable> {
    let Given { place, config, upstream, repair } = given;
    let config = config.or_else(|| path_variable("SPLICEWAY_CONFIG"));
    let upstream = upstream.or_else(|| text_variable("SPLICEWAY_UPSTREAM")).filter(|_| repair);
    if repair && config.is_none() && upstream.is_none() {
        let message = "--repair needs to know where content comes from: name the server's configuration with --config \
                       FILE, or the registry with --upstream URL, as for `serve`";
        return Err(Unusable::Usage(message.to_owned()));
    }
    let within = place.local.clone().or_else(|| place.data.clone());
    let flags = Flags {
        config,
        data: place.data.clone().or_else(|| path_variable("SPLICEWAY_DATA")),
        upstream,
        ..Flags::default()
    };
    if let Some(file) = &flags.config {
        return configured(file, &flags, within.as_deref(), repair);
    }
    let trees = place.find()?;
    if !repair {
        return of_registry(trees, None, |_| true);
    }
    // A configuration always has a registry, which `--upstream` is about.
    load(&flags)?
        .registries
        .first()
        .map_or(Ok(Vec::new()), |registry| of_registry(trees, Some(registry), |_| true))
}

/// The trees of a configuration file, those within a directory only if one is given.
fn configured(
    file: &Path,
    flags: &Flags,
    within: Option<&Path>,
    repair: bool,
) -> Result<Vec<Target>, Unusable> {
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let inside = within.map(real);
    let is_meant = |root: &Path| inside.as_ref().is_none_or(|inside| real(root).starts_with(inside));
    let there = |root: &PathBuf| root.is_dir().then(|| Layout::new(root));
    let mut targets = Vec::new();
    for registry in &load(flags)?.registries {
        let trees = Trees { local: there(&registry.local), cache: there(&registry.cache) };
        targets.extend(of_registry(trees, repair.then_some(registry), is_meant)?);
    }
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

/// Those trees of a registry that are there and meant, to be repaired as `repaired` says, if it does.
fn of_registry(
    trees: Trees,
    repaired: Option<&RegistryConfig>,
    is_meant: impl Fn(&Path) -> bool,
) -> Result<Vec<Target>, Unusable> {
    let open = |layout, evictable| {
        Arc::new(Store::over(layout, StoreOptions { handles_max: HANDLES_MAX, evictable }))
    };
    let local = trees.local.map(|layout| open(layout, false));
    let cache = trees.cache.map(|layout| open(layout, true));
    let sources = match repaired {
        Some(registry) => Some(Arc::new(sources(registry, local.as_ref(), cache.as_ref())?)),
        None => None,
    };
    let stores = [local.map(|store| (store, Tree::Local)), cache.map(|store| (store, Tree::Cache))];
    let meant = stores.into_iter().flatten().filter(|(store, _)| is_meant(store.layout().root()));
    Ok(meant.map(|(store, tree)| Target { store, tree, sources: sources.clone() }).collect())
}

fn sources(
    registry: &RegistryConfig,
    local: Option<&Arc<Store>>,
    cache: Option<&Arc<Store>>,
) -> Result<Sources, Unusable> {
    // One of the two is there; without `local` nothing is ever brought back into it.
    let Some(local) = local.or(cache) else { return Err(Unusable::Missing("there is no tree".to_owned())) };
    let sources = app::sources(registry, Arc::clone(local), cache.cloned());
    sources.map_err(|error| Unusable::Usage(error.to_string()))
}
