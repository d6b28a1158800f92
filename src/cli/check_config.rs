//! `spliceway check-config`: whether a file can be used, and what it amounts to.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::WRONG_USAGE;
use crate::config::{Config, Flags};

/// Check a configuration file and print what it amounts to
///
/// Prints the configuration as `serve --config FILE` would use it, every default filled in, without passwords. Reads
/// the files with passwords and certificates that it names, so run it as the user that will serve. Flags and variables
/// of `serve` are left out of it. Exits with 2 if the file cannot be used, and says where and why.
#[derive(Debug, Args)]
pub(super) struct CheckConfig {
    /// The TOML file
    file: PathBuf,
}

impl CheckConfig {
    pub(super) fn run(self) -> ExitCode {
        let flags = Flags { config: Some(self.file), ..Flags::default() };
        let config = match Config::load(&flags, &|_| None) {
            Ok(config) => config,
            Err(error) => {
                eprintln!("spliceway: {error}");
                return ExitCode::from(WRONG_USAGE);
            }
        };
        for warning in &config.warnings {
            eprintln!("spliceway: warning: {warning}");
        }
        match io::stdout().write_all(config.summary().as_bytes()) {
            // The reader of a pipe has seen enough.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                eprintln!("spliceway: cannot write to standard output: {error}");
                ExitCode::FAILURE
            }
            _ => ExitCode::SUCCESS,
        }
    }
}
