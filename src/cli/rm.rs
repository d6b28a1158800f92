//! `spliceway rm`: an image or a repository of `local` goes.

use std::process::ExitCode;

use clap::Args;

use super::removals::{self, Output};
use super::tree::{self, Place, Unusable};
use super::{WRONG_USAGE, ending};
use crate::logging;
use crate::maintain::GcError;
use crate::maintain::remove::{self, RemoveError, RemoveOptions};
use crate::oci::ImageName;
use crate::store::{Store, StoreOptions};

/// Remove an image, also while servers run on the directory, and free its space at once
///
/// Without a tag the whole repository goes (team/app does not take team/app/test). With a tag: the tag, and what it points at
/// and ever pointed at, with the platforms of a multi-platform image and what refers to it (signatures), unless another tag
/// or manifest needs it. With a digest: that manifest with its tags; refused while a manifest that stays needs it. Blobs go
/// that nothing in any repository refers to then.
///
/// Only what was pushed can be removed; what was fetched (DIR/cache) frees itself. Everything is looked at before anything is
/// removed: what is not there, or cannot be read or understood, ends it. Run by root, it goes on as the user to whom the
/// directory belongs. Exits with 1 if anything failed.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[allow(clippy::doc_markdown)] // clap prints these comments as they are: backticks would show
#[allow(clippy::struct_excessive_bools)] // each is a flag
pub(super) struct Rm {
    /// Image or repository, as `ls` prints it: [HOST:PORT/]REPOSITORY[:TAG][@DIGEST]. A host without a port is taken for
    /// a part of the repository's name
    #[arg(value_name = "IMAGE")]
    image: ImageName,

    #[command(flatten)]
    place: Place,

    /// Remove nothing, and print exactly what would go
    #[arg(long)]
    dry_run: bool,

    /// Of a repository, remove only the manifests that no tag leads to
    #[arg(long)]
    untagged: bool,

    /// Remove the directories, too, that are empty afterwards
    #[arg(long)]
    prune: bool,

    /// Print an object a line
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  What would go with this image, and how much space would that free?
      spliceway rm registry.example:5000/team/app:1.0 --data /var/lib/spliceway --dry-run
  A repository with all that is in it, out of a docker-registry's directory that Spliceway serves:
      spliceway rm team/app --local /var/lib/docker-registry --prune
  What moved tags have left behind in it:
      spliceway rm team/app --untagged --data /var/lib/spliceway";

impl Rm {
    pub(super) fn run(self, logging: logging::Options) -> ExitCode {
        // Held to the end: dropping it writes what is still queued.
        let _guard = logging::start(logging, false);
        let trees = match self.place.find() {
            Ok(trees) => trees,
            Err(error) => return removals::unusable(&error),
        };
        let options = RemoveOptions {
            image: self.image,
            untagged: self.untagged,
            prune: self.prune,
            dry_run: self.dry_run,
            cache: trees.cache.clone(),
        };
        let Some(local) = trees.local else {
            let message = "nothing was pushed to this directory: it holds no local".to_owned();
            return removals::unusable(&Unusable::Missing(message));
        };
        if !self.dry_run
            && let Err(error) = tree::become_owner([&local].into_iter())
        {
            return removals::unusable(&error);
        }
        let store = Store::over(local, StoreOptions::without_handles());
        let stop = match ending::in_background() {
            Ok(stop) => stop,
            Err(error) => return removals::unusable(&Unusable::Missing(format!("cannot begin: {error}"))),
        };
        let mut output = Output::new(self.json, self.dry_run);
        let removing = || remove::run(&store, &options, &stop, &mut |event| output.event(&event));
        let removed = removals::in_turn(removing, |error| matches!(error, RemoveError::Gc(GcError::Busy)));
        if let Err(error @ RemoveError::Usage(_)) = &removed {
            eprintln!("spliceway: {error}");
            return ExitCode::from(WRONG_USAGE);
        }
        output.end(removed)
    }
}
