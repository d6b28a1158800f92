//! Which directories a command is about: `--data`, `--local`, and the variables that stand for them.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::process::geteuid;

use super::path_variable;
use crate::store::Layout;
use crate::sys;

/// Where a data directory is if nothing says so: as `serve` has it.
const DATA_DEFAULT: &str = "./spliceway-data";
/// Where distribution keeps everything, below its root directory.
const PLAIN: &str = "docker/registry/v2";

/// Why there is nothing to work on.
#[derive(Debug)]
pub(super) enum Unusable {
    /// What was asked for makes no sense.
    Usage(String),
    /// It makes sense, and is not there.
    Missing(String),
}

/// The flags that say where they are.
#[derive(Clone, Debug, Default, Args)]
#[allow(clippy::doc_markdown)] // clap prints these comments as they are: backticks would show
pub(super) struct Place {
    /// Data directory: DIR/local and DIR/cache [env: SPLICEWAY_DATA] [default: ./spliceway-data]
    #[arg(long, value_name = "DIR", conflicts_with = "local")]
    pub(super) data: Option<PathBuf>,

    /// Plain registry directory, which holds docker/registry/v2 [env: REGISTRY_DATA_DIR, which names
    /// docker/registry/v2 itself]
    #[arg(long, value_name = "DIR")]
    pub(super) local: Option<PathBuf>,
}

impl Place {
    /// The trees that are meant; see [`find`].
    pub(super) fn find(self) -> Result<Trees, Unusable> {
        find(self.data, self.local)
    }
}

/// The trees that a command is about.
#[derive(Debug)]
pub(super) struct Trees {
    /// What clients pushed.
    pub(super) local: Option<Layout>,
    /// What was fetched.
    pub(super) cache: Option<Layout>,
}

impl Trees {
    /// Both, as far as they are there.
    pub(super) fn all(&self) -> impl Iterator<Item = &Layout> {
        self.local.iter().chain(&self.cache)
    }
}

/// The trees that the flags name, or else the variables `SPLICEWAY_DATA` and `REGISTRY_DATA_DIR`, or else the default.
pub(super) fn find(data: Option<PathBuf>, local: Option<PathBuf>) -> Result<Trees, Unusable> {
    if let Some(local) = local {
        plain(&local)
    } else if let Some(data) = data.or_else(|| path_variable("SPLICEWAY_DATA")) {
        of_data(&data)
    } else if let Some(registry) = path_variable("REGISTRY_DATA_DIR") {
        plain(&registry)
    } else {
        of_data(DATA_DEFAULT.as_ref())
    }
}

/// The trees of a data directory.
fn of_data(directory: &Path) -> Result<Trees, Unusable> {
    let tree = |name| Some(directory.join(name)).filter(|tree| tree.is_dir()).map(Layout::new);
    let trees = Trees { local: tree("local"), cache: tree("cache") };
    if trees.all().next().is_some() {
        return Ok(trees);
    }
    let shown = directory.display();
    Err(Unusable::Missing(if let Some(error) = refusal(directory) {
        format!("{shown} cannot be read: {error}")
    } else if !directory.is_dir() {
        format!("{shown} is not there; name a data directory with --data, or a registry's own with --local")
    } else if directory.join(PLAIN).is_dir() {
        format!("{shown} is a plain registry directory: use --local {shown}")
    } else {
        format!("{shown} holds neither local nor cache: it is no data directory")
    }))
}

/// The tree of a plain registry directory, or of what distribution made in it.
fn plain(directory: &Path) -> Result<Trees, Unusable> {
    if directory.join(PLAIN).is_dir() {
        return Ok(Trees { local: Some(Layout::new(directory)), cache: None });
    }
    if ["repositories", "blobs"].iter().any(|part| directory.join(part).is_dir()) {
        // Locks are beside what they are for, where a server on the same tree looks for them.
        let root = directory.ends_with(PLAIN).then(|| directory.ancestors().nth(3)).flatten();
        let root = root.map(|root| if root.as_os_str().is_empty() { Path::new(".") } else { root });
        return Ok(Trees {
            local: Some(root.map_or_else(|| Layout::of_registry(directory), Layout::new)),
            cache: None,
        });
    }
    let shown = directory.display();
    Err(Unusable::Missing(match refusal(directory) {
        Some(error) => format!("{shown} cannot be read: {error}"),
        None => format!("{shown} is no registry directory: there is no {PLAIN} in it"),
    }))
}

/// Why nothing in it can be seen, if that is for want of rights.
fn refusal(directory: &Path) -> Option<io::Error> {
    fs::metadata(directory.join(PLAIN)).err().filter(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// As root, makes the process one of the user to whom these trees belong, before anything in them is opened: a server of
/// that user could not use what root makes in them, such as locks.
pub(super) fn become_owner<'a>(trees: impl Iterator<Item = &'a Layout>) -> Result<(), Unusable> {
    let mut first: Option<(&Path, Metadata)> = None;
    for root in trees.map(Layout::root) {
        let meta = fs::metadata(root);
        let meta = meta.map_err(|error| Unusable::Missing(format!("{}: {error}", root.display())))?;
        match &first {
            None => first = Some((root, meta)),
            Some((other, owned)) if geteuid().is_root() && owned.uid() != meta.uid() => {
                let (root, other) = (root.display(), other.display());
                let message =
                    format!("{root} and {other} belong to different users: name one of them at a time");
                return Err(Unusable::Missing(message));
            }
            Some(_) => {}
        }
    }
    let Some((root, owned)) = first.filter(|(_, owned)| sys::is_anothers(owned)) else { return Ok(()) };
    let (root, user, group) = (root.display(), owned.uid(), owned.gid());
    tracing::debug!("{root} belongs to user {user} and group {group}: this goes on as these");
    sys::become_owner(&owned).map_err(|error| {
        Unusable::Missing(format!(
            "{root} belongs to user {user}, and this cannot go on as that: {error}; run it so"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_that_distribution_made_is_found_from_inside_with_the_locks_of_its_root() {
        let home = tempfile::tempdir().unwrap();
        let inside = home.path().join(PLAIN);
        fs::create_dir_all(inside.join("blobs")).unwrap();
        for given in [home.path(), &inside] {
            let local = plain(given).unwrap().local.unwrap();
            assert_eq!(local.root(), home.path());
            assert_eq!(local.blobs(), inside.join("blobs"));
        }
        let elsewhere = home.path().join("elsewhere");
        fs::create_dir_all(elsewhere.join("repositories")).unwrap();
        assert_eq!(plain(&elsewhere).unwrap().local.unwrap().root(), elsewhere);
        assert!(matches!(plain(&home.path().join("docker")), Err(Unusable::Missing(_))));
    }

    #[test]
    fn data_directory_has_one_tree_at_least() {
        let home = tempfile::tempdir().unwrap();
        assert!(matches!(of_data(home.path()), Err(Unusable::Missing(_))));
        fs::create_dir(home.path().join("cache")).unwrap();
        let trees = of_data(home.path()).unwrap();
        assert!(trees.local.is_none() && trees.cache.is_some());
    }
}
