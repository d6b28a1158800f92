//! Does what was planned: one thread, its runtime, and the signals that end it.

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use super::plan::{Place, Plan};
use super::show::Shows;
use crate::cli::login::Access;
use crate::cli::tree::{Unusable, become_owner};
use crate::replicate::{Address, Ended, Finders, Replication, Replicator, SourceOptions, Stop, Target};

use crate::store::{Layout, Store, StoreOptions};
use crate::sys::keep_freed_memory;

/// Threads for what blocks beside hashing: names, files, and the directory if that is the target. Each large blob has one
/// more for as long as it is under way, so that whoever waits for a name never waits for a blob, which may wait for it.
const BLOCKING_THREADS_MAX: usize = 8;
/// Blobs of the target directory that are kept open.
const HANDLES_MAX: usize = 256;
/// How long the end waits for what is being written to the directory.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there was no work.
pub(super) enum Error {
    /// What was asked for makes no sense.
    Usage(String),
    /// It makes sense, and cannot be.
    System(String),
}

/// Does it. Everything that happens is shown.
pub(super) fn run(plan: Plan, shows: &Shows) -> Result<Ended, Error> {
    keep_freed_memory();
    let from = plan.from.check("source", "from-").map_err(Error::Usage)?;
    let to = plan.to.check("target", "to-").map_err(Error::Usage)?;
    let target = target(&plan.target, &to)?;
    let threads = BLOCKING_THREADS_MAX + plan.options.blobs_at_once;
    let replication = Replication {
        finders: Finders::new(plan.finders, plan.defaults, plan.locals),
        options: source_options(from),
        replicator: Replicator::new(target, plan.selection, plan.options),
        interval: plan.interval,
    };
    let system =
        |what: &'static str| move |error: io::Error| Error::System(format!("cannot {what}: {error}"));
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(threads)
        .build()
        .map_err(system("start"))?;
    let stop = Stop::new();
    let ended = LocalSet::new().block_on(&runtime, async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let ending = async {
            for is_first in [true, false] {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if is_first {
                    tracing::warn!("ending: layers under way may arrive; a second signal ends it at once");
                    stop.after_blobs();
                } else {
                    stop.at_once();
                }
            }
            std::future::pending::<()>().await;
        };
        let tell = |event| shows.tell(&event);
        tokio::select! {
            ended = replication.run(&stop, &tell) => Ok(ended),
            () = ending => Ok(Ended::default()),
        }
    });
    runtime.shutdown_timeout(END_TIMEOUT);
    ended.map_err(system("handle signals"))
}

fn target(place: &Place, to: &Access) -> Result<Target, Error> {
    match place {
        Place::Registry(address) => {
            warn_if_plain(address, to);
            let options = to.options("target", address.url().as_str());
            Target::registry(address.to_string(), options).map_err(|error| Error::Usage(error.to_string()))
        }
        Place::Directory(path) => {
            if path.exists() && !path.is_dir() {
                return Err(Error::System(format!("cannot use {}: it is not a directory", path.display())));
            }
            if path.exists() {
                let trees = [Layout::new(path)];
                become_owner(trees.iter()).map_err(|error| match error {
                    Unusable::Usage(message) | Unusable::Missing(message) => Error::System(message),
                })?;
            }
            let handles_max = NonZeroUsize::new(HANDLES_MAX).unwrap_or(NonZeroUsize::MIN);
            let store = Store::open(path, StoreOptions { handles_max, evictable: false });
            let store = store.map_err(|error| {
                Error::System(format!("cannot use the directory {}: {error}", path.display()))
            })?;
            Ok(Target::tree(path.display().to_string(), Arc::new(store)))
        }
    }
}

fn source_options(from: Access) -> SourceOptions {
    Box::new(move |address| {
        warn_if_plain(address, &from);
        from.options("source", address.url().as_str())
    })
}

fn warn_if_plain(address: &Address, access: &Access) {
    if access.has_password() && !address.is_https() && !address.is_loopback() {
        tracing::warn!("the password travels to {address} unencrypted");
    }
}
