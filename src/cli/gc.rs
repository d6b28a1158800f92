//! `spliceway gc`: what nothing in `local` refers to goes.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use humantime_serde::re::humantime;

use super::ending;
use super::removals::{self, Output};
use super::tree::{self, Place, Trees, Unusable};
use crate::logging;
use crate::maintain::gc::{self, ExpireFrom, GcOptions};
use crate::maintain::{Collected, Event, GcError, Stop};
use crate::store::{Store, StoreOptions};

/// Free what no image refers to, also while servers run on the directory
///
/// Looks at all tags and manifests of all repositories, twice, and removes the blobs that none of them refers to and that
/// are older than the grace, links to nothing, uploads that nobody goes on with, and files that crashes left. Anything that
/// cannot be read or understood ends it before a blob is removed, and is named. Prints a line for each thing that went.
///
/// Only what was pushed is looked at; of what was fetched (DIR/cache) only files that crashes left are removed: its size is
/// kept by `serve`. docker-registry must not write to the directory meanwhile. Run by root, it goes on as the user to whom the
/// directory belongs. Exits with 1 if anything failed.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[allow(clippy::doc_markdown)] // clap prints these comments as they are: backticks would show
pub(super) struct Gc {
    #[command(flatten)]
    place: Place,

    /// Remove nothing, and print exactly what would go
    #[arg(long)]
    dry_run: bool,

    /// How long a blob stays that no manifest refers to: an image that is being pushed needs it
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration, env = "SPLICEWAY_GRACE", hide_env_values = true)]
    grace: Duration,

    /// Remove manifests, too, that no tag leads to and that are older than the grace
    #[arg(long)]
    untagged: bool,

    /// Remove manifests, too, that are older than this, with their tags, unless a younger one needs them [default: none]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, env = "SPLICEWAY_EXPIRE_MANIFESTS", hide_env_values = true)]
    expire_manifests: Option<Duration>,

    /// What a manifest's age counts from: the last push, or the last push or pull
    #[arg(
        long,
        value_enum,
        value_name = "EVENT",
        default_value = "push",
        env = "SPLICEWAY_EXPIRE_FROM",
        hide_env_values = true
    )]
    expire_from: From,

    /// How old an upload is that nobody will go on with, or off
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration_or_off, env = "SPLICEWAY_EXPIRE_UPLOADS", hide_env_values = true)]
    expire_uploads: OrOff,

    /// Print an object a line
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  What would go, and how much space would that free?
      spliceway gc --data /var/lib/spliceway --dry-run
  Everything that has no tag, and everything that nobody pulled for 90 days:
      spliceway gc --data /var/lib/spliceway --untagged --expire-manifests 90d --expire-from pull
  A docker-registry's directory, while it is stopped or read-only:
      spliceway gc --local /var/lib/docker-registry
  How much was freed, for a script:
      spliceway gc --data /var/lib/spliceway --json | jq 'select(.kind == \"total\").bytes'";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum From {
    /// The last push
    Push,
    /// The last push or pull
    Pull,
}

#[derive(Clone, Copy, Debug)]
struct OrOff(Option<Duration>);

fn duration_or_off(text: &str) -> Result<OrOff, humantime::DurationError> {
    if text == "off" { Ok(OrOff(None)) } else { humantime::parse_duration(text).map(Some).map(OrOff) }
}

impl Gc {
    pub(super) fn run(self, logging: logging::Options) -> ExitCode {
        // Held to the end: dropping it writes what is still queued.
        let _guard = logging::start(logging, false);
        let options = GcOptions {
            grace: self.grace,
            untagged: self.untagged,
            expire_manifests: self.expire_manifests,
            expire_from: match self.expire_from {
                From::Push => ExpireFrom::Push,
                From::Pull => ExpireFrom::Pull,
            },
            expire_uploads: self.expire_uploads.0,
            dry_run: self.dry_run,
        };
        let trees = match self.place.find() {
            Ok(trees) => trees,
            Err(error) => return removals::unusable(&error),
        };
        // A data directory's own tree decides.
        if !self.dry_run
            && let Err(error) = tree::become_owner(trees.all().take(1))
        {
            return removals::unusable(&error);
        }
        let stop = match ending::in_background() {
            Ok(stop) => stop,
            Err(error) => return removals::unusable(&Unusable::Missing(format!("cannot begin: {error}"))),
        };
        let mut output = Output::new(self.json, self.dry_run);
        let collected = collect(&trees, &options, &stop, &mut |event| output.event(&event));
        output.end(collected)
    }
}

fn collect(
    trees: &Trees,
    options: &GcOptions,
    stop: &Stop,
    report: &mut dyn FnMut(Event),
) -> Result<Collected, GcError> {
    let mut total = Collected::default();
    if let Some(local) = &trees.local {
        let store = Store::over(local.clone(), StoreOptions::without_handles());
        let collecting = || gc::run(&store, options, stop, report);
        total = removals::in_turn(collecting, |error| matches!(error, GcError::Busy))?;
    }
    if let Some(cache) = &trees.cache {
        let left = gc::leftovers(cache, options.dry_run, report)?;
        total.leftovers += left.leftovers;
        total.bytes += left.bytes;
        total.failures += left.failures;
    }
    Ok(total)
}
