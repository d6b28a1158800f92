//! The front of an application that answers with `X-Accel-Redirect` or `X-Sendfile`: what nginx does with `proxy_pass`
//! and `internal` locations.
//!
//! # The life of a request
//!
//! ```text
//! Fronts::…       by listener or Host: is it for a front at all?
//! front.rs        one request, from its head to its answer
//!  ├ forward      its fields as the backend gets them; payload: its body, as it comes
//!  ├ backend      over a connection that was kept, or a new one
//!  ├ answer       what the backend's fields ask for
//!  ├ proxied      nothing: its body as it comes, with the fields that concern the client
//!  └ content.rs   something else instead:
//!     ├ location  a path, decoded once → a root or a registry, and what lies beneath
//!     ├ files     a root: the file, opened beneath it by the kernel (types: its media type)
//!     └ registry  the blob, filled from upstream if it is absent
//! limit           what goes out no faster than the backend said
//! record          the log and the metrics at the end
//! ```
//!
//! Internal locations exist only for the backend's answers: a request is never looked up in them, so they cannot be
//! reached from outside. Nothing of an answer or of a request's body is kept: both are passed on as they come, at the pace
//! of who takes them.
//!
//! **What runs at once.** Each worker has its own connections to the backend and its own open files; the threads share
//! the [`Fronts`], which a reload replaces as a whole: what is under way goes on with those it began with. Nothing
//! survives the process, and nothing needs to.
//!
//! **What it costs.** A redirect to a held file of 4 KiB took 22 to 24 µs of CPU where nginx took 20 (lighttpd 56; smallest of
//! five interleaved rounds, one core), 70 % of it in the kernel: two receives, a write to the backend, one to the client.
//! The rest is 40,000 instructions, of which the library's client takes a third (parsing and header maps above all) and
//! its server as much; it had been 86,000 before the futures were made small (40 KB were copied a request) and the
//! connection to the backend lost its own task. From 256 MiB on the transport alone counts, as for the registry.

mod answer;
mod backend;
mod content;
mod files;
mod forward;
mod front;
mod limit;
mod location;
mod options;
mod pages;
mod payload;
mod proxied;
mod record;
mod timer;
mod types;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Response, StatusCode, request};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;

use crate::body::Body;
use crate::http::host;
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::sys::Files;
use crate::upstream::{Tls, read_ca_file};

use self::backend::{Address, Pool};
use self::files::OpenFiles;
use self::forward::{Clients, Introduction};
use self::front::Front;
pub use self::location::fuzz_entry as fuzz_location;
use self::location::{Content, Locations};
pub use self::options::{
    AccelOptions, BackendAddress, HeaderRule, Honour, LocationContent, LocationOptions, StatusRule, Symlinks,
};
pub use self::record::Ending;

/// Why a front cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum AccelError {
    /// Its backend's address cannot be used.
    #[error("accel {front:?}: the backend's address cannot be used: {reason}")]
    Backend {
        /// The front.
        front: String,
        /// Why.
        reason: String,
    },
    /// Its certificates cannot be used.
    #[error("accel {front:?}: ca_file {}: {reason}", path.display())]
    CaFile {
        /// The front.
        front: String,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A location is of blobs of a registry that there is none.
    #[error("accel {front:?}: there is no registry {registry:?}")]
    Registry {
        /// The front.
        front: String,
        /// What it is said to be called.
        registry: String,
    },
}

/// The fronts that this process has, and what selects them.
#[derive(Default)]
pub struct Fronts {
    hosts: Vec<(String, Arc<Front>)>,
    listeners: Vec<(usize, Arc<Front>)>,
}

impl Fronts {
    /// Adds a front for `hosts` on the common listeners, and for whatever comes through the listener of this number.
    /// Contacts nobody. `registries` are those that there are, by name.
    pub fn add(
        &mut self,
        options: AccelOptions,
        hosts: &[String],
        listener: Option<usize>,
        registries: &[(String, Arc<Registry>)],
        metrics: &Metrics,
    ) -> Result<(), AccelError> {
        let front = Arc::new(front(options, registries, metrics)?);
        self.hosts.extend(hosts.iter().map(|host| (host.clone(), Arc::clone(&front))));
        self.listeners.extend(listener.map(|number| (number, front)));
        Ok(())
    }

    /// These, and those of `old` for the listeners that no front is for any more: the listeners stay while the process
    /// runs, and what is behind another one is not to be reached through them all at once.
    #[must_use]
    pub fn with_listeners_of(mut self, old: &Self) -> Self {
        for (number, front) in &old.listeners {
            if !self.listeners.iter().any(|(known, _)| known == number) {
                self.listeners.push((*number, Arc::clone(front)));
            }
        }
        self
    }

    fn is_empty(&self) -> bool {
        self.hosts.is_empty() && self.listeners.is_empty()
    }

    fn iter(&self) -> impl Iterator<Item = &Arc<Front>> {
        self.hosts.iter().map(|(_, front)| front).chain(self.listeners.iter().map(|(_, front)| front))
    }

    /// The front that is meant. 0 is the number of the common listeners.
    fn select(&self, headers: &HeaderMap, listener: usize) -> Option<&Arc<Front>> {
        if listener == 0 {
            return host::select(&self.hosts, headers);
        }
        self.listeners.iter().find(|(number, _)| *number == listener).map(|(_, front)| front)
    }
}

fn front(
    options: AccelOptions,
    registries: &[(String, Arc<Registry>)],
    metrics: &Metrics,
) -> Result<Front, AccelError> {
    let name = || options.name.clone();
    let certificates = match &options.ca_file {
        Some(path) => read_ca_file(path).map_err(|reason| AccelError::CaFile {
            front: name(),
            path: path.clone(),
            reason,
        })?,
        None => Vec::new(),
    };
    let address = Address::new(&options.backend, Arc::new(Tls::new(certificates)), options.connect_timeout);
    let unusable = |reason: String| AccelError::Backend { front: name(), reason };
    let address = address.map_err(|error| unusable(error.to_string()))?;
    let host = HeaderValue::try_from(backend::authority(&options.backend));

    let mut roots: Vec<PathBuf> = Vec::new();
    let mut blobs: Vec<Arc<Registry>> = Vec::new();
    let mut prefixes = Vec::new();
    let mut root = |path: &PathBuf| {
        roots.push(path.clone());
        // As many tables as no configuration has.
        u16::try_from(roots.len() - 1).unwrap_or(u16::MAX)
    };
    for location in &options.locations {
        let content = match &location.content {
            LocationContent::Root(path) => Content::Files(root(path)),
            LocationContent::Blobs(wanted) => {
                let found = registries.iter().find(|(name, _)| name == wanted);
                let (_, registry) =
                    found.ok_or_else(|| AccelError::Registry { front: name(), registry: wanted.clone() })?;
                blobs.push(Arc::clone(registry));
                Content::Blobs(blobs.len() - 1)
            }
        };
        prefixes.push((location.prefix.clone().into_bytes(), content));
    }
    let sendfile: Vec<_> = options.sendfile_roots.iter().map(|path| (path.clone(), root(path))).collect();
    let pairs =
        options.locations.iter().filter_map(|location| Some((location.root()?.to_str()?, &*location.prefix)));
    let mapping = if options.sendfile_type { forward::mapping(pairs) } else { None };
    let introduction = Introduction { host: host.map_err(|error| unusable(error.to_string()))?, mapping };
    Ok(Front {
        name: options.name.as_str().into(),
        metrics: metrics.accel(&options.name),
        locations: Locations::new(prefixes, &sendfile),
        address,
        introduction,
        roots,
        blobs,
        options,
    })
}

/// A request as it arrived.
pub struct Arrived {
    /// Its head.
    pub head: request::Parts,
    /// Its body.
    pub body: Incoming,
    /// The client.
    pub peer: SocketAddr,
    /// When its first byte was there.
    pub received_at: Instant,
    /// What the client would rather speak, if anything.
    pub upgrade: Option<HeaderValue>,
    /// Not even the head could be read, and the head given is a stand-in: the status to answer with, and why.
    pub refused: Option<(StatusCode, String)>,
}

/// An answer.
pub struct Answered {
    /// Its head and body.
    pub response: Response<Body>,
    /// To be told how it ended.
    pub ending: Ending,
    /// Set with 101: what the client's connection is to be joined with, and for how long nothing may pass.
    pub switch: Option<(TokioIo<Upgraded>, Duration)>,
}

/// What one worker has of all fronts.
pub struct Accel {
    /// Replaced as a whole on reload.
    fronts: Arc<RwLock<Arc<Fronts>>>,
    files: Files,
    states: RefCell<Vec<(Arc<Front>, Rc<State>)>>,
}

/// What one worker has of one front.
struct State {
    pool: Rc<Pool>,
    open: Rc<OpenFiles>,
    clients: Clients,
    files: Files,
}

impl Accel {
    /// For one worker, over fronts that all workers share.
    pub fn new(fronts: Arc<RwLock<Arc<Fronts>>>, files: Files) -> Self {
        Self { fronts, files, states: RefCell::default() }
    }

    /// The front that a request is for, if it is for one: `listener` is the number of the listener that it came through.
    pub fn select(&self, headers: &HeaderMap, listener: usize) -> Option<Selected> {
        let fronts = self.fronts.read().unwrap_or_else(PoisonError::into_inner);
        let mut states = self.states.borrow_mut();
        if fronts.is_empty() {
            states.clear();
        }
        let front = fronts.select(headers, listener)?;
        if let Some((front, state)) = states.iter().find(|(known, _)| Arc::ptr_eq(known, front)) {
            return Some(Selected { front: Arc::clone(front), state: Rc::clone(state) });
        }
        // What is under way still has those of before a reload.
        states.retain(|(known, _)| fronts.iter().any(|front| Arc::ptr_eq(known, front)));
        let follow = front.options.symlinks == Symlinks::Beneath;
        let state = Rc::new(State {
            pool: Rc::new(Pool::new(front.options.keep_alive)),
            open: Rc::new(OpenFiles::new(self.files.clone(), front.roots.clone(), follow)),
            clients: Clients::default(),
            files: self.files.clone(),
        });
        states.push((Arc::clone(front), Rc::clone(&state)));
        Some(Selected { front: Arc::clone(front), state })
    }
}

/// A front as one worker has it.
pub struct Selected {
    front: Arc<Front>,
    state: Rc<State>,
}

impl Selected {
    /// Answers a request. The log and the metrics hear of it when the [`Ending`] is told how the answer went.
    pub fn respond(self, arrived: Arrived) -> impl Future<Output = Answered> {
        front::respond(self.front, self.state, arrived)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How large what `make` would return is.
    fn size_of<T>(_make: impl FnOnce() -> T) -> usize {
        std::mem::size_of::<T>()
    }

    /// A future is copied, as large as it is, whenever it is handed on.
    #[test]
    #[expect(unreachable_code, reason = "it is about types")]
    fn the_future_of_a_request_is_small() {
        let size = size_of(|| front::respond(unreachable!(), unreachable!(), unreachable!()));
        assert!(size <= 2048, "{size} bytes");
    }
}
