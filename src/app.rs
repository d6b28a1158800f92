//! Wiring: from a configuration to running workers, and back to nothing.
//!
//! ```text
//! main thread     accepts connections, signals, admin endpoints, eviction
//! maintenance     one thread of the lowest priority, and a few of its own for what blocks: the schedule of jobs
//! replicate       one thread for each replication: see `replicators`
//! worker threads  one per core: a current-thread runtime, a ring, the connections handed to it,
//!                 the fills begun by them
//! ```
//!
//! The threads share the [`Site`] and the [`Fronts`] (replaced as a whole by a reload), the stores and fills, and the
//! metrics. SIGTERM or SIGINT drains: no connection is accepted any more, answers under way are finished, then the process
//! ends; a second signal ends it at once. SIGHUP reloads. A fill that is under way at the end is resumed at the next start.

mod maintenance;
mod replicators;
mod service;
mod trees;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use tokio::runtime::{self, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::LocalSet;

use crate::accel::{Accel, AccelError, Fronts};
use crate::admin::{self, Readiness};
use crate::config::{Config, ConfigError, ServerConfig};
use crate::metrics::Metrics;
use crate::registry::access::AccessError;
use crate::registry::{Handler, Site};
use crate::server::{self, Counters, Doors, Phase, Seat, ServerOptions, Worker};
use crate::store::renew_generation;
use crate::sys::files::Files;
use crate::sys::keep_freed_memory;
use crate::sys::listen_fds;
use crate::sys::ring::{self, Mode};
use crate::upstream::UpstreamConfigError;
use maintenance::Maintenance;
use replicators::Replicators;
use service::SiteService;
use trees::Trees;
pub use trees::sources;

/// Threads per worker that write, hash and sync for it (the store threads), or read where `io_uring` is not to be had.
const STORE_THREADS_MAX: usize = 16;

/// How long the end waits for what store threads are writing.
const STORE_WAIT_MAX: Duration = Duration::from_secs(5);

/// Why the server could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `--io-uring on`, and the kernel refuses.
    #[error("io_uring is asked for and cannot be used: {0}")]
    NoRing(String),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's word.
        cause: io::Error,
    },
    /// A directory cannot be made or used.
    #[error("cannot use the directory {}: {cause}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's word.
        cause: io::Error,
    },
    /// An upstream's configuration names what cannot be used.
    #[error(transparent)]
    Upstream(#[from] UpstreamConfigError),
    /// A file that access depends on cannot be used.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The front of an application cannot be set up.
    #[error(transparent)]
    Accel(#[from] AccelError),
    /// The system refused what every server needs.
    #[error("cannot {what}: {cause}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Its word.
        cause: io::Error,
    },
    /// A worker died; that is a bug.
    #[error("a worker ended unexpectedly")]
    WorkerDied,
}

impl Error {
    /// Whether the configuration is at fault rather than the system.
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::Upstream(_) | Self::Access(_) | Self::Accel(_))
    }

    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::System { what, cause }
    }
}

/// Serves until a signal ends it. `reload` loads the configuration again.
///
/// # Errors
/// It could not start, or a worker died. A drain that ran out of time is no error.
pub fn run(config: Config, reload: impl Fn() -> Result<Config, ConfigError>) -> Result<(), Error> {
    keep_freed_memory();
    let files_max = server::raise_open_files_limit().unwrap_or(1024);
    let use_ring = decide_on_ring(config.server.io_uring)?;
    let metrics = Metrics::new();
    let mut trees = Trees::default();
    let numbers = Numbers::new(&config);
    let (site, fronts) = trees.site(&config, &numbers, files_max, &metrics)?;
    let listeners = listeners(&config)?;
    let admin = config.server.admin.map(bind).transpose()?;

    let (phase, phases) = watch::channel(Phase::default());
    let (doors, seats) = server::doors(config.server.workers.get());
    let shared = Arc::new(RwLock::new(Arc::new(site)));
    let fronts = Arc::new(RwLock::new(Arc::new(fronts)));
    let (done, workers) = mpsc::unbounded_channel();
    let counters = Arc::<Counters>::default();
    let crew = Crew {
        site: Arc::clone(&shared),
        fronts: Arc::clone(&fronts),
        options: Arc::new(server_options(&config.server, files_max)),
        counters: Arc::clone(&counters),
        metrics: metrics.clone(),
        use_ring,
        phases,
        done,
    };
    let threads = crew.start(seats)?;
    let maintenance =
        Maintenance::start(metrics.clone()).map_err(Error::system("start the maintenance thread"))?;

    let replicators = Replicators::new(metrics.clone());
    let application = Application {
        config,
        numbers,
        files_max,
        metrics,
        trees,
        site: shared,
        fronts,
        doors: Arc::new(doors),
        phase,
        readiness: Readiness::default(),
        counters,
        maintenance,
        replicators,
        listening: Vec::new(),
    };
    let runtime = runtime(STORE_THREADS_MAX).map_err(Error::system("start the runtime"))?;
    let served = LocalSet::new().block_on(&runtime, application.run(listeners, admin, workers, reload));
    runtime.shutdown_background();
    served?;
    for thread in threads {
        thread.join().map_err(|_| Error::WorkerDied)?;
    }
    Ok(())
}

/// Whether files are read through `io_uring`; says once why not.
fn decide_on_ring(mode: Mode) -> Result<bool, Error> {
    match (mode, ring::probe()) {
        (Mode::Off, _) => Ok(false),
        (_, Ok(())) => Ok(true),
        (Mode::On, Err(reason)) => Err(Error::NoRing(reason)),
        (Mode::Auto, Err(reason)) => {
            tracing::warn!(reason, "io_uring cannot be used: reading files on a pool of threads instead");
            Ok(false)
        }
    }
}

fn server_options(config: &ServerConfig, files_max: u64) -> ServerOptions {
    ServerOptions {
        header_bytes: config.header_bytes,
        header_fields: config.header_fields,
        header_timeout: config.header_timeout,
        idle_timeout: config.idle_timeout,
        stall_timeout: config.stall_timeout,
        connections_max: config.connections_max(files_max),
        drain_timeout: config.drain_timeout,
        ..ServerOptions::default()
    }
}

/// The sockets to accept on: those that a supervisor passed on (systemd's `LISTEN_FDS`), else the configured addresses.
/// Behind them come those of single registries and of fronts, with the [numbers](Numbers) of these.
fn listeners(config: &Config) -> Result<Vec<(usize, TcpListener)>, Error> {
    let mut common =
        listen_fds::listen_fds().map_err(Error::system("take over the sockets of LISTEN_FDS"))?;
    for listener in &common {
        server::adopt(listener).map_err(Error::system("take over the sockets of LISTEN_FDS"))?;
    }
    if common.is_empty() {
        common = config.server.listen.iter().copied().map(bind).collect::<Result<_, _>>()?;
    }
    let mut listeners: Vec<_> = common.into_iter().map(|listener| (0, listener)).collect();
    for (number, address) in Numbers::new(config).addresses(config) {
        listeners.push((number, bind(address)?));
    }
    Ok(listeners)
}

/// The numbers of the listeners that are not common to all: a registry's or a front's own have one number together, from 1
/// on. They stay while the process runs.
struct Numbers {
    registries: Vec<String>,
    fronts: Vec<String>,
}

impl Numbers {
    fn new(config: &Config) -> Self {
        let registries = config.registries.iter().filter(|registry| !registry.listen.is_empty());
        let fronts = config.accel.iter().filter(|front| !front.listen.is_empty());
        Self {
            registries: registries.map(|registry| registry.name.clone()).collect(),
            fronts: fronts.map(|front| front.options.name.clone()).collect(),
        }
    }

    fn of_registry(&self, name: &str) -> Option<usize> {
        self.registries.iter().position(|known| known == name).map(|index| index + 1)
    }

    fn of_front(&self, name: &str) -> Option<usize> {
        let index = self.fronts.iter().position(|known| known == name)?;
        Some(self.registries.len() + index + 1)
    }

    /// All addresses that are not common, with their numbers, in order.
    fn addresses(&self, config: &Config) -> Vec<(usize, SocketAddr)> {
        let registries = config.registries.iter().map(|one| (self.of_registry(&one.name), &one.listen));
        let fronts = config.accel.iter().map(|one| (self.of_front(&one.options.name), &one.listen));
        let all = registries.chain(fronts).filter_map(|(number, addresses)| Some((number?, addresses)));
        all.flat_map(|(number, addresses)| addresses.iter().map(move |address| (number, *address))).collect()
    }
}

fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    server::bind(address).map_err(|cause| Error::Listen { address, cause })
}

fn runtime(blocking_threads_max: usize) -> io::Result<Runtime> {
    runtime::Builder::new_current_thread().enable_all().max_blocking_threads(blocking_threads_max).build()
}

/// What the worker threads are started with.
struct Crew {
    site: Arc<RwLock<Arc<Site>>>,
    fronts: Arc<RwLock<Arc<Fronts>>>,
    options: Arc<ServerOptions>,
    counters: Arc<Counters>,
    metrics: Metrics,
    use_ring: bool,
    phases: watch::Receiver<Phase>,
    /// Told by each worker when its last connection is gone.
    done: mpsc::UnboundedSender<()>,
}

impl Crew {
    fn start(self, seats: Vec<Seat>) -> Result<Vec<thread::JoinHandle<()>>, Error> {
        let crew = Arc::new(self);
        let start = |(index, seat)| {
            let crew = Arc::clone(&crew);
            let work = move || {
                let last = Last(crew.done.clone());
                if let Err(error) = crew.work(seat, last) {
                    tracing::error!(%error, "a worker cannot go on");
                }
            };
            thread::Builder::new().name(format!("worker-{index}")).spawn(work)
        };
        let threads = seats.into_iter().enumerate().map(start).collect::<io::Result<_>>();
        threads.map_err(Error::system("start a worker"))
    }

    /// One worker thread, from its runtime to the process's end. `last` is dropped when its last connection is gone.
    fn work(&self, seat: Seat, last: Last) -> io::Result<()> {
        let runtime = runtime(STORE_THREADS_MAX)?;
        let local = LocalSet::new();
        let files = local.block_on(&runtime, async {
            let files = Files::new(self.use_ring)?;
            let handler = Handler::new(Arc::clone(&self.site), files.clone(), self.metrics.clone());
            let fronts = Accel::new(Arc::clone(&self.fronts), files.clone());
            let service = Rc::new(SiteService { registries: handler, fronts });
            let (options, counters) = (Arc::clone(&self.options), Arc::clone(&self.counters));
            let mut phases = self.phases.clone();
            Worker { service, options, files: files.clone(), counters }.run(seat, phases.clone()).await;
            drop(last);
            // Other workers may still be sending what a fill of this one brings.
            let _ = phases.wait_for(|phase| *phase == Phase::Cut).await;
            io::Result::Ok(files)
        })?;
        // Fills under way end here, in a state that the next start resumes; then no operation may be left on the ring.
        drop(local);
        runtime.block_on(files.drain());
        // Hashing what was interrupted may take minutes, and nobody waits for it any more.
        runtime.shutdown_timeout(STORE_WAIT_MAX);
        Ok(())
    }
}

/// Tells, when it is dropped, that a worker has no connection any more, or that it died.
struct Last(mpsc::UnboundedSender<()>);

impl Drop for Last {
    fn drop(&mut self) {
        // Nobody listens once the main thread has given up itself.
        let _ = self.0.send(());
    }
}

/// What the main thread runs.
struct Application {
    config: Config,
    numbers: Numbers,
    files_max: u64,
    metrics: Metrics,
    trees: Trees,
    site: Arc<RwLock<Arc<Site>>>,
    fronts: Arc<RwLock<Arc<Fronts>>>,
    doors: Arc<Doors>,
    phase: watch::Sender<Phase>,
    readiness: Readiness,
    counters: Arc<Counters>,
    maintenance: Maintenance,
    replicators: Replicators,
    /// Where connections are accepted that any registry may be meant by.
    listening: Vec<SocketAddr>,
}

impl Application {
    async fn run(
        mut self,
        listeners: Vec<(usize, TcpListener)>,
        admin: Option<TcpListener>,
        mut workers: mpsc::UnboundedReceiver<()>,
        reload: impl Fn() -> Result<Config, ConfigError>,
    ) -> Result<(), Error> {
        let mut hangup = signal(SignalKind::hangup()).map_err(Error::system("handle signals"))?;
        let mut ending = Ending::new().map_err(Error::system("handle signals"))?;
        let slots = Arc::new(Semaphore::new(self.config.server.connections_max(self.files_max)));
        for (number, listener) in listeners {
            let address = listener.local_addr().map_err(Error::system("name a socket's address"))?;
            // A line for scripts, which wait for it and read the port from it.
            eprintln!("listening on http://{address}");
            if number == 0 {
                self.listening.push(address);
            }
            let (doors, slots, phases) =
                (Arc::clone(&self.doors), Arc::clone(&slots), self.phase.subscribe());
            tokio::task::spawn_local(async move {
                if let Err(error) = server::listen(listener, number, doors, slots, phases).await {
                    tracing::error!(%address, %error, "cannot accept connections");
                }
            });
        }
        if let Some(listener) = admin {
            let address = listener.local_addr().map_err(Error::system("name a socket's address"))?;
            eprintln!("admin on http://{address}");
            let (metrics, readiness) = (self.metrics.clone(), self.readiness.clone());
            let (doors, counters) = (Arc::clone(&self.doors), Arc::clone(&self.counters));
            tokio::task::spawn_local(async move {
                let sample = move |metrics: &Metrics| {
                    metrics.set_connections_open(doors.open_connections());
                    metrics.set_stalled_connections(counters.stalled_connections());
                    metrics.set_unmatched_regions(server::unmatched_regions());
                };
                if let Err(error) = admin::serve(listener, metrics, readiness, Rc::new(sample)).await {
                    tracing::error!(%address, %error, "the admin address does not answer");
                }
            });
        }
        self.maintenance.set(&self.config, &self.trees);
        self.replicators.set(&self.config, &self.trees, &self.listening);
        self.readiness.ready();
        let workers_at_start = self.config.server.workers;
        tracing::info!(workers = workers_at_start, version = env!("CARGO_PKG_VERSION"), "serving");
        let mut working = workers_at_start.get();
        let mut is_replicating = true;
        while working > 0 || is_replicating {
            tokio::select! {
                _ = hangup.recv() => self.reload(&reload),
                () = ending.signalled() => self.end(),
                () = self.replicators.ended(), if is_replicating => is_replicating = false,
                _ = workers.recv(), if working > 0 => {
                    if *self.phase.borrow() == Phase::Serve {
                        return Err(Error::WorkerDied);
                    }
                    working -= 1;
                }
            }
        }
        self.phase.send_replace(Phase::Cut);
        tracing::info!("ended");
        Ok(())
    }

    /// The first signal drains, a second one cuts.
    fn end(&mut self) {
        if *self.phase.borrow() == Phase::Serve {
            self.readiness.draining();
            let connections = self.doors.open_connections();
            tracing::info!(connections, "ending: answers under way are finished first");
            self.phase.send_replace(Phase::Drain);
            self.maintenance.end_jobs();
            self.replicators.end(self.config.server.drain_timeout);
        } else {
            tracing::warn!("a second signal: ending at once");
            self.phase.send_replace(Phase::Cut);
            self.replicators.cut();
        }
    }

    fn reload(&mut self, reload: &impl Fn() -> Result<Config, ConfigError>) {
        let config = match reload() {
            Ok(config) => config,
            Err(error) => {
                tracing::error!(%error, "the new configuration cannot be used: the old one stays");
                return;
            }
        };
        let (site, fronts) = match self.trees.site(&config, &self.numbers, self.files_max, &self.metrics) {
            Ok(site) => site,
            Err(error) => {
                tracing::error!(%error, "the new configuration cannot be used: the old one stays");
                return;
            }
        };
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        if restart_needed(&self.config.server, &config.server) {
            tracing::warn!("changes in [server] take effect after a restart");
        }
        let numbers = Numbers::new(&config);
        if self.numbers.addresses(&self.config) != numbers.addresses(&config) {
            tracing::warn!("changes of a registry's or a front's `listen` take effect after a restart");
        }
        let mut current = self.site.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(site.with_listeners_of(&current));
        drop(current);
        let mut current = self.fronts.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(fronts.with_listeners_of(&current));
        drop(current);
        renew_generation();
        self.config = Config { server: self.config.server.clone(), ..config };
        self.maintenance.set(&self.config, &self.trees);
        self.replicators.set(&self.config, &self.trees, &self.listening);
        tracing::info!("configuration reloaded");
    }
}

fn restart_needed(old: &ServerConfig, new: &ServerConfig) -> bool {
    // Every field of the section is read once, at start.
    format!("{old:?}") != format!("{new:?}")
}

/// The signals that end the process.
struct Ending {
    terminate: Signal,
    interrupt: Signal,
}

impl Ending {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one of them. Cancel safe.
    async fn signalled(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
