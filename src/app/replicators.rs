//! The replications of `[[registry.replicate]]`, each on a thread of its own, so that neither workers nor the main thread
//! notice how busy they are. They share the registry's store: what they bring is served at once.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::LocalSet;

use super::trees::{Trees, credentials, observer};
use super::{STORE_THREADS_MAX, STORE_WAIT_MAX, runtime};
use crate::config::{Config, RegistryConfig, ReplicateConfig};
use crate::metrics::{Metrics, ReplicateMetrics};
use crate::replicate::{
    Address, Defaults, Event, Finders, ImageOutcome, Locals, Narrator, Replication, Replicator, Scheme,
    SourceOptions, Stop, Target,
};
use crate::store::Store;
use crate::upstream::UpstreamOptions;

/// What runs, and how it is ended.
pub(super) struct Replicators {
    metrics: Metrics,
    stops: Vec<Stop>,
    /// Each thread holds a clone while it lives, and we hold one until everything is to end.
    life: Option<mpsc::Sender<Infallible>>,
    lives: mpsc::Receiver<Infallible>,
    previous: Vec<thread::JoinHandle<()>>,
}

impl Replicators {
    /// Nothing yet.
    pub(super) fn new(metrics: Metrics) -> Self {
        let (life, lives) = mpsc::channel(1);
        Self { metrics, stops: Vec::new(), life: Some(life), lives, previous: Vec::new() }
    }

    /// Does what a configuration says from now on. What an older one began ends with the blobs that are under way, and only
    /// then the new ones begin, which compare again. `listening` is where this process accepts connections.
    pub(super) fn set(&mut self, config: &Config, trees: &Trees, listening: &[SocketAddr]) {
        let Some(life) = &self.life else { return };
        for stop in self.stops.drain(..) {
            stop.after_blobs();
        }
        let all = config.registries.iter().flat_map(|registry| &registry.replicate);
        self.metrics.keep_replications(&all.map(|one| one.name.as_str()).collect::<Vec<_>>());
        let previous = std::mem::take(&mut self.previous);
        let mut work = Vec::new();
        for registry in &config.registries {
            let Some(store) = trees.local(&registry.local) else { continue };
            let locals = locals(registry, listening);
            for one in &registry.replicate {
                let stop = Stop::new();
                self.stops.push(stop.clone());
                work.push(Work {
                    registry: registry.name.clone(),
                    config: one.clone(),
                    manifest_bytes_max: registry.manifest_bytes_max,
                    locals: locals.clone(),
                    store: Arc::clone(&store),
                    metrics: self.metrics.clone(),
                    stop,
                    _life: life.clone(),
                });
            }
        }
        if previous.is_empty() && work.is_empty() {
            return;
        }
        // One thread waits for the older ones, so that reloading waits for nothing.
        let life = life.clone();
        let started = thread::Builder::new().name("replications".to_owned()).spawn(move || {
            let _life = life;
            for thread in previous {
                // One that panicked has said so.
                let _ = thread.join();
            }
            let threads: Vec<_> = work.into_iter().filter_map(Work::start).collect();
            for thread in threads {
                let _ = thread.join();
            }
        });
        match started {
            Ok(thread) => self.previous.push(thread),
            Err(error) => tracing::error!(%error, "cannot start the replications"),
        }
    }

    /// Ends everything with the blobs that are under way, or at once when so much time has passed. To be called inside of
    /// a `LocalSet`.
    pub(super) fn end(&mut self, after: Duration) {
        self.life = None;
        let stops = self.stops.clone();
        for stop in &stops {
            stop.after_blobs();
        }
        tokio::task::spawn_local(async move {
            tokio::time::sleep(after).await;
            for stop in stops {
                stop.at_once();
            }
        });
    }

    /// Ends everything at once.
    pub(super) fn cut(&self) {
        for stop in &self.stops {
            stop.at_once();
        }
    }

    /// Returns when everything has ended, which it does only after [`Replicators::end`]. Cancel-safe.
    pub(super) async fn ended(&mut self) {
        // Nothing is ever sent: this waits for the last sender to go.
        while self.lives.recv().await.is_some() {}
    }
}

/// One replication on its way to its thread.
struct Work {
    registry: String,
    config: ReplicateConfig,
    manifest_bytes_max: usize,
    /// Where the registry itself can be reached.
    locals: Vec<Address>,
    store: Arc<Store>,
    metrics: Metrics,
    stop: Stop,
    _life: mpsc::Sender<Infallible>,
}

impl Work {
    fn start(self) -> Option<thread::JoinHandle<()>> {
        let started = thread::Builder::new().name("replicate".to_owned()).spawn(move || self.run());
        started.inspect_err(|error| tracing::error!(%error, "cannot start a replication")).ok()
    }

    /// Until it is told to stop.
    fn run(self) {
        let name = self.config.name.as_str();
        // A thread for each large blob that is hashed, beside those for the store and names.
        let runtime = match runtime(STORE_THREADS_MAX + self.config.options.blobs_at_once) {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!(name, %error, "cannot start a replication"),
        };
        let span = tracing::info_span!("replicate", name);
        let _entered = span.enter();
        let counted = Counted {
            metrics: self.metrics.replicate(name),
            narrator: Narrator::default(),
            moved: Cell::new(0),
        };
        let tell = |event| counted.tell(&event);
        LocalSet::new().block_on(&runtime, self.replication().run(&self.stop, &tell));
        runtime.shutdown_timeout(STORE_WAIT_MAX);
    }

    fn replication(&self) -> Replication {
        let Self { config, .. } = self;
        let locals = self.locals.iter().chain(&config.local_addrs).cloned().collect();
        let target = Target::tree(self.registry.clone(), Arc::clone(&self.store));
        Replication {
            finders: Finders::new(config.finders.clone(), config.defaults, Locals::new(locals)),
            options: source_options(config, self.manifest_bytes_max, &self.metrics),
            replicator: Replicator::new(target, config.selection.clone(), config.options.clone()),
            interval: Some(config.interval),
        }
    }
}

/// Events go to the log and to the metrics.
struct Counted {
    metrics: ReplicateMetrics,
    narrator: Narrator,
    /// Bytes of this run that were told as they moved.
    moved: Cell<u64>,
}

impl Counted {
    fn tell(&self, event: &Event) {
        self.narrator.tell(event);
        match event {
            Event::RunStarted { .. } => self.moved.set(0),
            Event::BlobProgress { moved, .. } => {
                self.moved.set(self.moved.get().saturating_add(*moved));
                self.metrics.moved(*moved);
            }
            Event::ImageDone { outcome, .. } => self.metrics.image(match outcome {
                ImageOutcome::Present => "present",
                ImageOutcome::Copied => "copied",
                ImageOutcome::Updated => "updated",
            }),
            Event::Deleted { .. } => self.metrics.image("deleted"),
            Event::Failed(_) => self.metrics.failed(),
            Event::RunDone(summary) => {
                // What was sent without being told on the way.
                self.metrics.moved(summary.bytes_copied.saturating_sub(self.moved.get()));
                self.metrics.run_ended(summary.is_complete());
            }
            Event::Repository { .. }
            | Event::ImageStarted { .. }
            | Event::BlobDone { .. }
            | Event::Retrying { .. } => {}
        }
    }
}

/// Where the registry itself can be reached: its own listeners, and the common ones if they lead to it.
fn locals(registry: &RegistryConfig, listening: &[SocketAddr]) -> Vec<Address> {
    let defaults = Defaults { scheme: Some(Scheme::Http), port: 0 };
    // Which of the common ones lead to it depends on what clients call it: all of them count.
    let own = listening.iter().chain(&registry.listen).filter(|address| address.port() != 0);
    let plain = |address: &SocketAddr| match address.ip().to_canonical() {
        IpAddr::V4(ip) => format!("{ip}:{}", address.port()),
        IpAddr::V6(ip) => format!("[{ip}]:{}", address.port()),
    };
    own.filter_map(|address| Address::parse(&plain(address), defaults).ok()).collect()
}

fn source_options(config: &ReplicateConfig, manifest_bytes_max: usize, metrics: &Metrics) -> SourceOptions {
    let (name, credentials) = (config.name.clone(), credentials(&config.credentials));
    let (ca_file, auth_hosts) = (config.ca_file.clone(), config.auth_hosts.clone());
    let observer = observer(metrics);
    Box::new(move |address| UpstreamOptions {
        credentials: credentials.clone(),
        ca_file: ca_file.clone(),
        auth_hosts: auth_hosts.clone(),
        max_manifest_bytes: manifest_bytes_max,
        observer: Some(Arc::clone(&observer)),
        ..UpstreamOptions::new(name.as_str(), address.url().as_str())
    })
}
