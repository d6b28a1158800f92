//! Links and tags of a repository: what makes content reachable.
//!
//! Everything here blocks and belongs on a store thread. In `cache` nothing here is synced: a link that a power cut takes
//! costs one question upstream. A link is written whole or not at all (rename), so a reader never sees half a digest.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::SystemTime;

use super::durable::{self, Durability};
use super::layout::{Layout, LinkKind, StoredRepository};
use crate::oci::{Digest, Tag};

/// Makes `digest` reachable through `repository`. Nothing happens if it is already.
pub(crate) fn link(
    layout: &Layout,
    repository: &StoredRepository,
    kind: LinkKind,
    digest: &Digest,
) -> io::Result<()> {
    point(layout, &layout.link(repository, kind, digest), digest)
}

/// Points `tag` at `digest`, confirmed now.
pub(crate) fn set_tag(
    layout: &Layout,
    repository: &StoredRepository,
    tag: &Tag,
    digest: &Digest,
) -> io::Result<()> {
    point(layout, &layout.tag_index(repository, tag, digest), digest)?;
    let (current, content) = (layout.tag_current(repository, tag), digest.to_string());
    durable::write_file(&layout.temporary(), &current, content.as_bytes(), Durability::Relaxed)
}

/// Makes `path` a link to `digest` unless it is one. A power cut may have left one without content.
fn point(layout: &Layout, path: &Path, digest: &Digest) -> io::Result<()> {
    let content = digest.to_string();
    if fs::read(path).is_ok_and(|held| held.trim_ascii() == content.as_bytes()) {
        return Ok(());
    }
    durable::write_file(&layout.temporary(), path, content.as_bytes(), Durability::Relaxed)
}

/// Records that `tag` was confirmed now.
pub(crate) fn confirm_tag(layout: &Layout, repository: &StoredRepository, tag: &Tag) -> io::Result<()> {
    File::options().write(true).open(layout.tag_current(repository, tag))?.set_modified(SystemTime::now())
}

/// Removes a tag with its history. One that is already gone is no error.
pub(crate) fn remove_tag(layout: &Layout, repository: &StoredRepository, tag: &Tag) -> io::Result<()> {
    // `current` first: from then on the tag does not exist, whatever happens to the rest.
    durable::remove_file(&layout.tag_current(repository, tag))?;
    match fs::remove_dir_all(layout.tag(repository, tag)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The tags of a repository, unordered; `None` if the tree does not know the repository.
pub(crate) fn tags(layout: &Layout, repository: &StoredRepository) -> io::Result<Option<Vec<Tag>>> {
    let entries = match fs::read_dir(layout.tags(repository)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let known = layout.repository(repository).join("_layers").try_exists()?;
            return Ok(known.then(Vec::new));
        }
        Err(error) => return Err(error),
    };
    let mut tags = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Some(tag) = entry.file_name().to_str().and_then(|name| name.parse::<Tag>().ok()) else {
            continue;
        };
        if entry.path().join("current/link").try_exists()? {
            tags.push(tag);
        }
    }
    Ok(Some(tags))
}
