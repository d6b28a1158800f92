//! The whole file, its flags and variables, and `[server]`, from what was typed to what can be used.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use super::error::{ConfigError, Origin};
use super::field::{Field, KIB, SECOND, Source, nonzero};
use super::raw::{self, Scalar, Setting, Texts};
use super::{Config, Flags, ServerConfig, accel, maintenance, name, registry};
use crate::sys::Mode;

type Variables<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// See [`Config::load`].
pub(super) fn load(flags: &Flags, variables: Variables<'_>) -> Result<Config, ConfigError> {
    let given = Given { flags, variables };
    let path = given.path(flags.config.as_deref(), "--config", "SPLICEWAY_CONFIG").map(|(_, path)| path);
    let text = match &path {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.clone(), source })?,
        None => String::new(),
    };
    let path = path.unwrap_or_default();
    let source = Source { path: &path, text: &text };
    let file: raw::File = toml::from_str(&text).map_err(|error| ConfigError::Syntax {
        origin: error.span().map_or(Origin::File(path.clone(), None), |span| source.at(span.start)),
        message: error.message().trim_end().to_owned(),
    })?;

    let mut warnings = Vec::new();
    let server = check_server(&source, &given, file.server)?;
    let maintenance = maintenance::check(&source, file.maintenance, &mut warnings)?;
    let upstream = given.text(flags.upstream.as_ref(), "--upstream", "SPLICEWAY_UPSTREAM");
    let exposed = given.exposed(&server.listen);
    let registries =
        registry::check(&source, &server, exposed.as_deref(), file.registry, upstream, &mut warnings)?;
    let accel = accel::check(&source, &server, &registries, file.accel, &mut warnings)?;
    Ok(Config { server, maintenance, registries, accel, warnings })
}

/// Flags and variables, which win over the file.
struct Given<'a> {
    flags: &'a Flags,
    variables: Variables<'a>,
}

impl Given<'_> {
    fn variable(&self, name: &str) -> Option<OsString> {
        (self.variables)(name).filter(|value| !value.is_empty())
    }

    fn path(
        &self,
        flag: Option<&Path>,
        flag_name: &'static str,
        variable: &'static str,
    ) -> Option<(Origin, PathBuf)> {
        match flag {
            Some(path) => Some((Origin::Flag(flag_name), path.to_owned())),
            None => self.variable(variable).map(|path| (Origin::Variable(variable), path.into())),
        }
    }

    fn text(
        &self,
        flag: Option<&String>,
        flag_name: &'static str,
        variable: &'static str,
    ) -> Option<(Origin, String)> {
        match flag {
            Some(text) => Some((Origin::Flag(flag_name), text.clone())),
            // What is not UTF-8 is no address, number or URL: the replacement characters get it refused and shown.
            None => self
                .variable(variable)
                .map(|text| (Origin::Variable(variable), text.to_string_lossy().into_owned())),
        }
    }

    fn scalar(
        &self,
        flag: Option<&String>,
        flag_name: &'static str,
        variable: &'static str,
    ) -> Option<(Origin, Scalar)> {
        self.text(flag, flag_name, variable).map(|(origin, text)| (origin, Scalar::Text(text)))
    }

    /// Where others than this machine can connect, for a reader; `None` if only this one can.
    fn exposed(&self, listen: &[SocketAddr]) -> Option<String> {
        if self.variable(PASSED_SOCKETS).is_some() {
            return Some(format!("the sockets of {PASSED_SOCKETS}"));
        }
        let foreign = listen.iter().find(|address| !address.ip().to_canonical().is_loopback());
        foreign.map(ToString::to_string)
    }

    fn listen(&self) -> Option<(Origin, Texts)> {
        if !self.flags.listen.is_empty() {
            return Some((Origin::Flag("--listen"), Texts(self.flags.listen.clone())));
        }
        self.text(None, "--listen", "SPLICEWAY_LISTEN")
            .map(|(origin, text)| (origin, Texts(text.split(',').map(|one| one.trim().to_owned()).collect())))
    }
}

/// See [`Given::exposed`]; what systemd passes on is not known before it is taken over.
const PASSED_SOCKETS: &str = "LISTEN_FDS";

fn check_server(
    source: &Source<'_>,
    given: &Given<'_>,
    raw: raw::Server,
) -> Result<ServerConfig, ConfigError> {
    let at = Origin::Default;
    let field = |key, setting: Setting<Scalar>| source.field("[server]", &at, key, setting);
    let flags = given.flags;

    let listen = source.field("[server]", &at, "listen", raw.listen).or_rather(given.listen());
    let admin =
        field("admin", raw.admin).or_rather(given.scalar(flags.admin.as_ref(), "--admin", "SPLICEWAY_ADMIN"));
    let workers = field("workers", raw.workers).or_rather(given.scalar(
        flags.workers.as_ref(),
        "--workers",
        "SPLICEWAY_WORKERS",
    ));
    let io_uring = field("io_uring", raw.io_uring).or_rather(given.scalar(
        flags.io_uring.as_ref(),
        "--io-uring",
        "SPLICEWAY_IO_URING",
    ));
    let data = source.field("[server]", &at, "data", raw.data).or_rather(given.path(
        flags.data.as_deref(),
        "--data",
        "SPLICEWAY_DATA",
    ));

    let listen = check_listen(&listen)?;
    let admin = check_admin(&admin, &listen)?;
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(1024));
    let cores = u32::try_from(cores).unwrap_or(1);
    let timeout = |key, setting, default| field(key, setting).timeout(default);
    Ok(ServerConfig {
        listen,
        admin,
        workers: nonzero(workers.count(cores, 1..=1024)?).unwrap_or(NonZeroUsize::MIN),
        io_uring: io_uring
            .choice(Mode::Auto, &[Mode::Auto, Mode::On, Mode::Off].map(|mode| (mode.as_str(), mode)))?,
        data: data.path()?.unwrap_or_else(|| PathBuf::from("./spliceway-data")),
        access_log: field("access_log", raw.access_log).choice(true, &[("on", true), ("off", false)])?,
        connections: nonzero(field("connections", raw.connections).count(0, 0..=10_000_000)?),
        header_bytes: field("header_bytes", raw.header_bytes).small_size(32 * KIB, 4 * KIB..=60 * KIB)?,
        header_fields: field("header_fields", raw.header_fields).count(100, 16..=1024)? as usize,
        header_timeout: timeout("header_timeout", raw.header_timeout, 10 * SECOND)?,
        idle_timeout: timeout("idle_timeout", raw.idle_timeout, 75 * SECOND)?,
        stall_timeout: timeout("stall_timeout", raw.stall_timeout, 60 * SECOND)?,
        drain_timeout: timeout("drain_timeout", raw.drain_timeout, 30 * SECOND)?,
    })
}

fn check_listen(field: &Field<'_, Texts>) -> Result<Vec<SocketAddr>, ConfigError> {
    let Some(Texts(texts)) = &field.given else { return Ok(vec![SocketAddr::from(([127, 0, 0, 1], 5000))]) };
    let mut addresses: Vec<SocketAddr> = Vec::with_capacity(texts.len());
    for text in texts {
        let address = name::parse_listen(text).map_err(|refusal| field.refused(text, refusal))?;
        if address.port() != 0 && addresses.contains(&address) {
            return Err(field.bad(text, "is listed twice", "name each address once"));
        }
        addresses.push(address);
    }
    if addresses.is_empty() {
        let remedy = "leave the key out for \"127.0.0.1:5000\", or name one";
        return Err(field.bad("[]", "names no address", remedy));
    }
    Ok(addresses)
}

fn check_admin(field: &Field<'_, Scalar>, listen: &[SocketAddr]) -> Result<Option<SocketAddr>, ConfigError> {
    let Some(text) = field.text() else { return Ok(None) };
    let address = name::parse_listen(&text).map_err(|refusal| field.refused(&text, refusal))?;
    if address.port() != 0 && listen.contains(&address) {
        return Err(field.bad(&text, "is also an address of the registry", "choose another port"));
    }
    Ok(Some(address))
}
