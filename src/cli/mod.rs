//! The command line, one file per subcommand.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, which includes a configuration that cannot be used. Messages go to
//! standard error; what a command was asked for goes to standard output.

mod check_config;
mod ending;
mod gc;
mod login;
mod ls;
mod removals;
mod replicate;
mod rm;
mod scrub;
mod serve;
mod tree;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::logging::{self, Color, Format};

/// A configuration or an argument that cannot be used; clap exits with the same code.
const WRONG_USAGE: u8 = 2;

/// A front cache for container registries.
///
/// Serves container images from the disk at the speed of the network, and fetches what it does not hold from upstream
/// registries: each layer once, whatever number of clients ask, and verified before any client has all of it.
#[derive(Debug, Parser)]
#[command(name = "spliceway", version, propagate_version = true, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    logging: LoggingArgs,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  A cache of Docker Hub on port 5000 of this machine:
      spliceway serve --upstream https://registry-1.docker.io
  The same for every machine of the network, in two lines:
      export SPLICEWAY_LISTEN='[::]:5000' SPLICEWAY_DATA=/var/lib/spliceway
      spliceway serve --upstream https://registry-1.docker.io
  Is this file right, and what does it amount to?
      spliceway check-config /etc/spliceway.toml
  Which images are there?
      spliceway ls localhost:5000
  What would go with this one, and how much space would that free?
      spliceway rm team/app:1.0 --data /var/lib/spliceway --dry-run
  Is everything that is stored still right?
      spliceway scrub --data /var/lib/spliceway
  Copy another registry's images to this one:
      spliceway replicate --from registry.example:5000 --to localhost:5000

Every flag can be given as a variable, named beside it. Exit codes: 0 done, 1 failed, 2 wrong usage.";

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    CheckConfig(check_config::CheckConfig),
    Ls(ls::Ls),
    Rm(rm::Rm),
    Gc(gc::Gc),
    Scrub(scrub::Scrub),
    Replicate(Box<replicate::Replicate>),
}

/// Flags that every subcommand takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Messages")]
#[allow(clippy::doc_markdown)] // clap prints these comments as they are: backticks would show
struct LoggingArgs {
    /// Say more: -v what is done and why, -vv every step and what the libraries do
    #[arg(short, long, global = true, action = ArgAction::Count, env = "SPLICEWAY_VERBOSE", hide_env_values = true)]
    verbose: u8,

    /// Say less: -q warnings and errors only, and no line per request; -qq errors only
    #[arg(short, long, global = true, action = ArgAction::Count, env = "SPLICEWAY_QUIET", hide_env_values = true)]
    quiet: u8,

    /// Form of log lines, which go to standard error with times in UTC
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        env = "SPLICEWAY_LOG_FORMAT",
        hide_env_values = true,
        value_name = "FORMAT"
    )]
    log_format: Format,

    /// Whether text log lines are coloured; auto: on a terminal, unless NO_COLOR is set
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        env = "SPLICEWAY_COLOR",
        hide_env_values = true,
        value_name = "WHEN"
    )]
    color: Color,
}

impl Cli {
    /// Does what was asked; returns when it is done.
    pub fn run(self) -> ExitCode {
        let logging = logging::Options {
            verbosity: i16::from(self.logging.verbose) - i16::from(self.logging.quiet),
            format: self.logging.log_format,
            color: self.logging.color,
        };
        match self.command {
            Command::Serve(serve) => serve.run(logging),
            Command::CheckConfig(check_config) => check_config.run(),
            Command::Ls(ls) => ls.run(logging),
            Command::Rm(rm) => rm.run(logging),
            Command::Gc(gc) => gc.run(logging),
            Command::Scrub(scrub) => scrub.run(logging),
            Command::Replicate(replicate) => replicate.run(logging),
        }
    }
}

/// Looks a variable up in the environment of this process.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// A variable that is set, and not to nothing.
fn set_variable(name: &str) -> Option<OsString> {
    variable(name).filter(|value| !value.is_empty())
}

fn path_variable(name: &str) -> Option<PathBuf> {
    set_variable(name).map(PathBuf::from)
}

fn text_variable(name: &str) -> Option<String> {
    set_variable(name).map(|value| value.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_of_the_flags_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_for_messages_stand_before_or_after_the_subcommand() {
        let before = Cli::try_parse_from(["spliceway", "-vv", "--log-format", "json", "serve"]).unwrap();
        let after = Cli::try_parse_from(["spliceway", "serve", "-vv", "--log-format", "json"]).unwrap();
        for cli in [before, after] {
            assert_eq!((cli.logging.verbose, cli.logging.log_format), (2, Format::Json));
        }
    }
}
