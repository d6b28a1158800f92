//! The images of trees on disk.

use std::io::{self, Write};

use super::Output;
use crate::oci::RepositoryName;
use crate::store::{Layout, Listings, Page, StoredRepository};

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
