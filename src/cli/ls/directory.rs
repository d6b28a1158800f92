//! The images of trees on disk.

use std::io::{self, Write};
use std::path::Path;

use super::{Output, Unusable};
use crate::oci::RepositoryName;
use crate::store::{Layout, Listings, Page, StoredRepository};

/// Where distribution keeps everything, below its root directory.
const PLAIN: &str = "docker/registry/v2";

/// The trees of a data directory.
pub(super) fn data(directory: &Path) -> Result<Vec<Layout>, Unusable> {
    let trees: Vec<_> = ["local", "cache"].map(|tree| directory.join(tree)).into();
    let trees: Vec<_> = trees.into_iter().filter(|tree| tree.is_dir()).map(Layout::new).collect();
    if !trees.is_empty() {
        return Ok(trees);
    }
    let shown = directory.display();
    Err(Unusable::Missing(if !directory.is_dir() {
        format!("{shown} is not there; name the data directory with --data, or a registry's URL")
    } else if directory.join(PLAIN).is_dir() {
        format!("{shown} is a plain registry directory: use --local {shown}")
    } else {
        format!("{shown} holds neither local nor cache: it is no data directory")
    }))
}

/// The tree of a plain registry directory, or of what distribution made in it.
pub(super) fn plain(directory: &Path) -> Result<Vec<Layout>, Unusable> {
    if directory.join(PLAIN).is_dir() {
        return Ok(vec![Layout::new(directory)]);
    }
    if ["repositories", "blobs"].iter().any(|part| directory.join(part).is_dir()) {
        return Ok(vec![Layout::of_registry(directory)]);
    }
    let shown = directory.display();
    Err(Unusable::Missing(format!("{shown} is no registry directory: there is no {PLAIN} in it")))
}

/// Lists what the trees hold together.
///
/// # Errors
/// Writing failed.
pub(super) fn list(trees: &[Layout], output: &mut Output<impl Write>) -> io::Result<()> {
    let listings = Listings::default();
    let mut repositories: Vec<String> = Vec::new();
    for tree in trees {
        let mut report = |error: io::Error| {
            output.failed(error);
            Ok(())
        };
        let page = listings.repositories(tree, None, None, usize::MAX, &mut report)?;
        repositories.extend(page.entries);
    }
    repositories.sort_unstable();
    repositories.dedup();
    for repository in repositories {
        let Ok(name) = repository.parse::<RepositoryName>() else { continue };
        if !output.wants(&repository) {
            continue;
        }
        // The text is the place in either tree.
        let stored = StoredRepository::local(&name);
        let mut tags: Option<Page<_>> = None;
        for tree in trees {
            match listings.tags(tree, &stored, None, usize::MAX) {
                Ok(Some(page)) => {
                    tags = Some(match tags {
                        Some(known) => known.union(page, usize::MAX),
                        None => page,
                    });
                }
                Ok(None) => {}
                Err(error) => output.failed(format_args!("{repository}: {error}")),
            }
        }
        output.repository(&repository, &tags.map(|page| page.entries).unwrap_or_default())?;
    }
    Ok(())
}
