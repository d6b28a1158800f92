//! `spliceway scrub`: whether what is stored is still what its names say, and what is not again.
//!
//! Which trees, and where their content comes from, is found out in `trees`; what is said about it in `output`. A server
//! may run on the trees meanwhile.

mod output;
mod trees;

use std::io;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::process::ExitCode;

use bytesize::ByteSize;
use clap::Args;
use tokio::runtime;
use tokio::task::LocalSet;

use self::output::Output;
use self::trees::Given;
use super::tree::{self, Place, Unusable};
use super::{WRONG_USAGE, ending};
use crate::logging;
use crate::maintain::scrub::{Run, ScrubOptions};
use crate::maintain::{Stop, repair};
use crate::sys::lower_priority;

/// Threads that read, write and hash.
const BLOCKING_THREADS_MAX: usize = 8;

/// Read everything that is stored again, set aside what is corrupt, and fetch that again
///
/// Every blob is read from the disk and hashed. One that is not what its name says any more is moved to the tree's
/// directory `quarantine`, so that nobody is sent it; a cache then fetches it again when it is asked for. With --repair it
/// is fetched again at once: what is in a cache from the upstream it came from; what was pushed from this machine's
/// cache, from an upstream that the cache had it from, or from the default upstream's repository of the same name.
///
/// What was pushed and could not be had again stays in quarantine: it is told by every scrub until it is pushed again, a
/// repair succeeds, or its file is removed from quarantine.
///
/// Servers may run meanwhile; pages that they have in memory stay there. Run by root, it goes on as the user to whom the
/// directory belongs. Exits with 0 if everything is right or is again,
/// 1 if something is corrupt, missing or could not be read.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[allow(clippy::doc_markdown)] // clap prints these comments as they are: backticks would show
pub(super) struct Scrub {
    #[command(flatten)]
    place: Place,

    /// The server's configuration file: the trees of all its registries, or of those in DIR, and their upstreams [env:
    /// SPLICEWAY_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Registry to fetch from, as of `serve` [env: SPLICEWAY_UPSTREAM]
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,

    /// Fetch again what is corrupt; needs --config or --upstream
    #[arg(long)]
    repair: bool,

    /// Read at most so much per second
    #[arg(long, value_name = "SIZE", default_value = "100MiB", env = "SPLICEWAY_RATE", hide_env_values = true, value_parser = rate)]
    rate: NonZeroU64,

    /// Print what happens as an object a line
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  Is everything still right?
      spliceway scrub --data /var/lib/spliceway
  All registries of a server, repaired, and quickly:
      spliceway scrub --config /etc/spliceway.toml --repair --rate 1GiB
  A cache of Docker Hub that was started without a file:
      spliceway scrub --data /var/lib/spliceway --upstream https://registry-1.docker.io --repair
  What is corrupt in a docker-registry's directory:
      spliceway scrub --local /var/lib/docker-registry --json | jq -r 'select(.event == \"corrupt\").digest'";

fn rate(text: &str) -> Result<NonZeroU64, &'static str> {
    let size = text.trim().parse::<ByteSize>().ok().and_then(|size| NonZeroU64::new(size.as_u64()));
    size.ok_or("give a number of bytes, or a size such as \"100MiB\"")
}

impl Scrub {
    pub(super) fn run(self, logging: logging::Options) -> ExitCode {
        // Held to the end: dropping it writes what is still queued.
        let _guard = logging::start(logging, false);
        let given =
            Given { place: self.place, config: self.config, upstream: self.upstream, repair: self.repair };
        let meant = trees::targets(given).and_then(|targets| {
            tree::become_owner(targets.iter().map(|target| target.store.layout()))?;
            Ok(targets)
        });
        let targets = match meant {
            Ok(targets) => targets,
            Err(Unusable::Usage(message)) => {
                eprintln!("spliceway: {message}");
                return ExitCode::from(WRONG_USAGE);
            }
            Err(Unusable::Missing(message)) => {
                eprintln!("spliceway: {message}");
                return ExitCode::FAILURE;
            }
        };
        let options = ScrubOptions { rate: self.rate, run: Run::Foreground };
        match scrub(&targets, options, Output::new(self.json, self.repair)) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("spliceway: cannot begin: {error}");
                ExitCode::FAILURE
            }
        }
    }
}

/// One tree after the other. Whether everything is right in the end.
fn scrub(targets: &[trees::Target], options: ScrubOptions, mut output: Output) -> io::Result<bool> {
    // Servers beside us go first; threads take it over from this one.
    lower_priority();
    let mut building = runtime::Builder::new_current_thread();
    let runtime = building.enable_all().max_blocking_threads(BLOCKING_THREADS_MAX).build()?;
    let stop = Stop::new();
    LocalSet::new().block_on(&runtime, async {
        tokio::task::spawn_local(ending::on_signals(stop.clone())?);
        let mut right = true;
        for target in targets {
            if stop.is_set() {
                return Ok(false);
            }
            let root = target.store.layout().root();
            output.begin(root);
            let sources = target.sources.as_deref();
            let mut report = |step: repair::Step| output.step(&step, &stop);
            match repair::scrub(&target.store, target.tree, sources, options, &stop, &mut report).await {
                Ok(mended) => {
                    right &= mended.is_right();
                    output.end(&mended, &stop);
                }
                Err(error) => {
                    right = false;
                    output.failed(&error);
                }
            }
        }
        Ok(right)
    })
}
