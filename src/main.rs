//! The program: parses its arguments, runs what they ask for, and ends with its exit code. See [`spliceway::cli`].

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    spliceway::cli::Cli::parse().run()
}
