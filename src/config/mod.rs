//! The configuration: one TOML file, the flags of `serve` and their variables, checked before anything runs.
//!
//! It is read in two steps. [`Flags`] and `raw` hold what was typed, optional and unchecked; [`Config`] holds what is
//! ready to use: every default filled in, every name, address, URL, size and duration parsed, every password read from
//! its file. A [`Config`] is never half right: what cannot be used is a [`ConfigError`] that names place, key, value
//! and remedy, and exit code 2.
//!
//! What was given more strongly wins: a flag, then its `SPLICEWAY_…` variable (an empty one counts as unset), then the
//! file, then the default. Reloading is loading again with the same flags; the rooms take over what they can change
//! while they run. A relative path, wherever it is written, starts at the directory that the program was started in.

mod accel;
mod access;
mod check;
mod credentials;
mod error;
mod field;
mod maintenance;
mod name;
mod raw;
mod registry;
mod replicate;
mod summary;
#[cfg(test)]
mod tests;
mod upstream;
mod v1;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

pub(crate) use self::credentials::read_password;
pub use self::credentials::{Credentials, Secret};
pub use self::error::{BadValue, ConfigError, Origin};
pub use self::maintenance::MaintenanceConfig;
pub use self::replicate::ReplicateConfig;
pub use self::v1::V1Config;
use crate::accel::AccelOptions;
use crate::registry::access::AccessOptions;
use crate::sys::Mode;

/// What `serve` was given on its command line, as it was typed.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--config`, or `SPLICEWAY_CONFIG`: the TOML file. Without it the defaults apply.
    pub config: Option<PathBuf>,
    /// `--listen`, or `SPLICEWAY_LISTEN` (several separated by commas). Replaces the file's list if not empty.
    pub listen: Vec<String>,
    /// `--data`, or `SPLICEWAY_DATA`.
    pub data: Option<PathBuf>,
    /// `--upstream`, or `SPLICEWAY_UPSTREAM`: replaces the upstreams of the first registry by this one, as its default.
    pub upstream: Option<String>,
    /// `--admin`, or `SPLICEWAY_ADMIN`.
    pub admin: Option<String>,
    /// `--workers`, or `SPLICEWAY_WORKERS`.
    pub workers: Option<String>,
    /// `--io-uring`, or `SPLICEWAY_IO_URING`.
    pub io_uring: Option<String>,
}

/// Everything that a running Spliceway needs to know, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// What concerns the process and its sockets.
    pub server: ServerConfig,
    /// What is done in the background, and how often.
    pub maintenance: MaintenanceConfig,
    /// The registries, at least one; the first answers for every host that no other one claims.
    pub registries: Vec<RegistryConfig>,
    /// The fronts of applications; none is usual.
    pub accel: Vec<AccelConfig>,
    /// What can be used but is hardly meant, a sentence each: for the log and for `check-config`.
    pub warnings: Vec<String>,
}

/// `[server]`: the process, its sockets and their bounds.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Addresses of the registry API, at least one, no two alike. Port 0 lets the system choose. Default `127.0.0.1:5000`.
    pub listen: Vec<SocketAddr>,
    /// Address of health, metrics and status page; off unless given. It answers everybody who reaches it.
    pub admin: Option<SocketAddr>,
    /// Worker threads, each with a runtime and a ring of its own. Default: one per core.
    pub workers: NonZeroUsize,
    /// Whether files are read through `io_uring`. Default `auto`: if the kernel allows it.
    pub io_uring: Mode,
    /// Where registries keep what they store unless they say otherwise. Default `./spliceway-data`.
    pub data: PathBuf,
    /// Whether each request is logged. Default on.
    pub access_log: bool,
    /// Connections at once; further ones wait in the kernel's queue. `None` (0 in the file): see
    /// [`ServerConfig::connections_max`].
    pub connections: Option<NonZeroUsize>,
    /// Longest head of a request, in bytes; a longer one is answered 431. Default 32 KiB.
    pub header_bytes: usize,
    /// Most header fields of a request; more are answered 431. Default 100.
    pub header_fields: usize,
    /// Longest time from the first byte of a request's head to its end; then 408. Default 10 s.
    pub header_timeout: Duration,
    /// How long a connection may wait for its next request. Default 75 s.
    pub idle_timeout: Duration,
    /// How long a client may take no byte of an answer, or send none of a body, before it is cut. Default 60 s.
    pub stall_timeout: Duration,
    /// How long answers under way may take after a signal to stop. Default 30 s.
    pub drain_timeout: Duration,
}

/// `[[registry]]`: an isolated namespace, with directories and upstreams of its own.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// Its name in logs and paths: one component of a path, unique. Default `main`.
    pub name: String,
    /// Values of `Host`, in lower case, with a port perhaps, that select it. A value without a port stands for every
    /// port. Empty for the first registry is usual: it is the default.
    pub hosts: Vec<String>,
    /// Addresses of its own: what comes in there is for it, whatever the host. Default none.
    pub listen: Vec<SocketAddr>,
    /// What clients pushed; never evicted. Default `DATA/local`, of further registries `DATA/NAME/local`.
    pub local: PathBuf,
    /// What was fetched; evicted when space is short. Default `DATA/cache`, of further registries `DATA/NAME/cache`.
    pub cache: PathBuf,
    /// Most bytes that `cache` may hold. Default: no limit but the disk's.
    pub max_size: Option<u64>,
    /// Bytes to be left free on the filesystem of `cache`. Default 1 GiB.
    pub min_free: u64,
    /// Repositories of `cache` that are never evicted: names as they are pulled, with or without the upstream's in front,
    /// in which `*` stands for any text and `?` for any character. Default none.
    pub pin: Vec<String>,
    /// A range that starts more than this many bytes ahead of a fill is fetched from upstream by itself. Default 32 MiB.
    pub far_range: u64,
    /// Most ranges of one request; more are answered by the whole blob. Default 64.
    pub ranges_max: usize,
    /// Largest manifest that is accepted, from clients and from upstream, in bytes. Default 4 MiB, at most 16 MiB.
    pub manifest_bytes_max: usize,
    /// Largest blob that clients may push, in bytes. Default 64 GiB.
    pub blob_bytes_max: u64,
    /// Uploads that a repository may have under way. Default 1000.
    pub uploads_max: usize,
    /// How long after its last chunk an upload can be gone on with. Default 24 h.
    pub upload_expiry: Duration,
    /// What a distribution that shares `local` signs the state of uploads with (its `http.secret`), so that it can go on
    /// with ours. `None`: it cannot.
    pub http_secret: Option<Secret>,
    /// Open blobs kept for the next request. `None`: see [`RegistryConfig::handles`].
    pub handles_max: Option<NonZeroUsize>,
    /// Who may do what. Default: everything is open to anybody if only this machine can connect, else pulling is; nothing
    /// is, once there is something to log in to.
    pub access: AccessOptions,
    /// The Docker v1 protocol, as a mirror. Default: it is not spoken.
    pub v1: Option<V1Config>,
    /// Where content comes from that is not held; names and aliases are unique, at most one is the default.
    pub upstreams: Vec<UpstreamConfig>,
    /// What is copied from other registries into `local`. Default nothing.
    pub replicate: Vec<ReplicateConfig>,
}

/// `[[registry.upstream]]`: a registry that content is fetched from.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    /// Its name, as in `?ns=` and as the first component of a repository's path: a host, with a port perhaps.
    pub name: String,
    /// The component of a path under which `cache` keeps its repositories: the name, with `_` for a port's `:`.
    /// Unique within the registry.
    pub directory: String,
    /// Further values of `?ns=` that mean it, in lower case.
    pub aliases: Vec<String>,
    /// Scheme, host, port, and a path perhaps, without a slash at its end unless it is `/`: one that begins with `/v2/`
    /// is a project of a registry, any other goes before `/v2/`.
    pub url: Url,
    /// Asked in this order before `url`; the same form.
    pub mirrors: Vec<Url>,
    /// Whether repositories that name no upstream are looked for here.
    pub default: bool,
    /// Whether it is Docker Hub, where a name of one component means `library/…`.
    pub docker_hub: bool,
    /// Sent to the host of `url` and to its token service only; a docker config may have logins for `mirrors` too.
    pub credentials: Credentials,
    /// PEM certificates that are trusted for this upstream beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Hosts besides those on the registrable domain of `url` whose token services are given the credentials.
    pub auth_hosts: Vec<String>,
    /// Whether its content is served only to clients whose own login, or want of one, it accepts. Default no.
    pub client_credentials: bool,
    /// How long a tag is served without asking again. Default 60 s; 0 asks every time.
    pub tag_ttl: Duration,
    /// How long "not found" is remembered. Default 10 s; 0 not at all.
    pub negative_ttl: Duration,
    /// Longest time for name resolution, connecting and TLS together. Default 5 s.
    pub connect_timeout: Duration,
    /// Longest time from a request to the head of its answer. Default 30 s.
    pub header_timeout: Duration,
    /// Longest time without a byte of an answer's body. Default 30 s.
    pub stall_timeout: Duration,
    /// Failures in a row, without progress between them, that a fetch overcomes. Default 5; 0: the first one ends it.
    pub retries: u32,
}

/// `[[accel]]`: the front of an application that answers with `X-Accel-Redirect` or `X-Sendfile`.
#[derive(Clone, Debug)]
pub struct AccelConfig {
    /// Values of `Host`, in lower case, with a port perhaps, that select it on the common listeners, before any registry.
    /// Default none.
    pub hosts: Vec<String>,
    /// Addresses of its own: what comes in there is for it, whatever the host. Default none; it has hosts or addresses.
    pub listen: Vec<SocketAddr>,
    /// What it does.
    pub options: AccelOptions,
}

impl Config {
    /// Reads, merges and checks everything. `variable` looks one up in the environment.
    ///
    /// Blocks on the files it reads: the configuration, and those with passwords and certificates that it names.
    pub fn load(flags: &Flags, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, ConfigError> {
        check::load(flags, variable)
    }

    /// The configuration as it will be used, in TOML, defaults filled in and without passwords.
    pub fn summary(&self) -> String {
        summary::summary(self)
    }
}

impl ServerConfig {
    /// Connections at once for a process that may have `files` open: the configured number, or half of them.
    pub fn connections_max(&self, files: u64) -> usize {
        let half = usize::try_from(files / 2).unwrap_or(usize::MAX).max(1);
        self.connections.map_or(half, NonZeroUsize::get)
    }
}

impl RegistryConfig {
    /// Open blobs to keep for a process that may have `files` open: the configured number, or a quarter of them and at
    /// most 16,384, which this registry shares with `registries - 1` others.
    pub fn handles(&self, files: u64, registries: usize) -> usize {
        let quarter = usize::try_from(files / 4).unwrap_or(usize::MAX).min(HANDLES_MAX);
        let share = (quarter / registries.max(1)).max(1);
        self.handles_max.map_or(share, NonZeroUsize::get)
    }

    /// The upstream of repositories that name none.
    pub fn default_upstream(&self) -> Option<&UpstreamConfig> {
        self.upstreams.iter().find(|upstream| upstream.default)
    }
}

/// Open blobs that are kept when no number is configured, however many the process may open.
const HANDLES_MAX: usize = 16_384;
