//! `spliceway serve`: the server.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tracing::{error, warn};

use super::{WRONG_USAGE, variable};
use crate::app;
use crate::config::{Config, Flags};
use crate::logging;

/// Serve container images, fetching from upstream registries what is not held
///
/// Without any flag this is a registry of what DATA holds, at 127.0.0.1:5000. Flags win over their variables, these
/// over the file, and the file over the defaults.
///
/// SIGTERM and SIGINT stop it: no new connections, answers under way may finish for `drain_timeout`; a second signal
/// ends it at once. SIGHUP reads the configuration again; one that cannot be used leaves the old one running.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[allow(clippy::doc_markdown)] // clap prints these comments as they are: backticks would show
pub(super) struct Serve {
    /// Configuration file, in TOML [env: SPLICEWAY_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Address of the registry, several by repeating the flag; port 0 picks one [env: SPLICEWAY_LISTEN, separated by
    /// commas] [default: 127.0.0.1:5000]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Vec<String>,

    /// Directory of what is stored: DIR/local and DIR/cache [env: SPLICEWAY_DATA] [default: ./spliceway-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Registry to fetch from, instead of those in the file; clients name it by its host, docker.io for Docker Hub's
    /// [env: SPLICEWAY_UPSTREAM]
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,

    /// Address of health, metrics and status, for the operator only [env: SPLICEWAY_ADMIN] [default: none]
    #[arg(long, value_name = "ADDR:PORT")]
    admin: Option<String>,

    /// Worker threads [env: SPLICEWAY_WORKERS] [default: one per core]
    #[arg(long, value_name = "N")]
    workers: Option<String>,

    /// Whether files are read through io_uring; auto: if the kernel allows it [env: SPLICEWAY_IO_URING] [default:
    /// auto]
    #[arg(long, value_name = "WHEN", value_parser = ["auto", "on", "off"])]
    io_uring: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  A cache of Docker Hub; then pull through it:
      spliceway serve --upstream https://registry-1.docker.io
      skopeo copy --src-tls-verify=false docker://127.0.0.1:5000/library/alpine:latest dir:alpine
  For other machines, with metrics for this one:
      spliceway serve --listen '[::]:5000' --admin 127.0.0.1:9090 --data /var/lib/spliceway \\
                      --upstream https://registry-1.docker.io
  Several upstreams, passwords, limits:
      spliceway serve --config /etc/spliceway.toml";

impl Serve {
    pub(super) fn run(self, logging: logging::Options) -> ExitCode {
        let flags = self.into_flags();
        let reload = move || Config::load(&flags, &variable);
        let config = match reload() {
            Ok(config) => config,
            Err(error) => {
                eprintln!("spliceway: {error}");
                return ExitCode::from(WRONG_USAGE);
            }
        };
        // Held to the end: dropping it writes what is still queued.
        let _guard = logging::start(logging, config.server.access_log);
        for warning in &config.warnings {
            warn!("{warning}");
        }
        match app::run(config, reload) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                error!("{}", with_causes(&error));
                if error.is_configuration() { ExitCode::from(WRONG_USAGE) } else { ExitCode::FAILURE }
            }
        }
    }

    fn into_flags(self) -> Flags {
        let Self { config, listen, data, upstream, admin, workers, io_uring } = self;
        Flags { config, listen, data, upstream, admin, workers, io_uring }
    }
}

/// The error and what caused it, in one line.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let error_text = error.to_string();
        // Many errors already repeat their cause.
        if !text.contains(&error_text) {
            text.push_str(": ");
            text.push_str(&error_text);
        }
        cause = error.source();
    }
    text
}
