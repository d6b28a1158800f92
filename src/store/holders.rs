//! Which repositories link a blob: the question from the wrong end.
//!
//! Links lead from repositories to blobs, so this walks all of them. It is for what happens rarely, as when a blob has to
//! be fetched again and somebody must be known who may ask for it.
//!
//! Everything here blocks and belongs on a store thread.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::blob::present;
use super::layout::{Layout, LinkKind, StoredRepository};
use crate::oci::{Algorithm, Digest, REPOSITORY_NAME_LEN_MAX, RepositoryName};

/// A repository that links a blob, and as what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its name, as it is stored: in `cache` with the upstream's directory in front.
    pub repository: RepositoryName,
    /// As a manifest, or as a layer.
    pub kind: LinkKind,
}

impl Holder {
    /// Its place in the tree.
    pub fn stored(&self) -> StoredRepository {
        // The text is the place in either tree.
        StoredRepository::local(&self.repository)
    }
}

/// The repositories that link `digest`, at most `max`, in no order.
///
/// # Errors
/// A directory or a link cannot be read; what vanishes meanwhile is skipped.
pub fn holders(layout: &Layout, digest: &Digest, max: usize) -> io::Result<Vec<Holder>> {
    let mut found = Vec::new();
    let root = layout.repositories();
    let mut directories: Vec<PathBuf> = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        let Some(entries) = present(fs::read_dir(&directory))? else { continue };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            // Symbolic links could lead in circles; nothing that is listed is behind one.
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            match name {
                "_layers" if is_directory => {
                    note(&root, &directory, &entry.path(), LinkKind::Layer, digest, &mut found)?;
                }
                "_manifests" if is_directory => {
                    note(
                        &root,
                        &directory,
                        &entry.path().join("revisions"),
                        LinkKind::Manifest,
                        digest,
                        &mut found,
                    )?;
                }
                _ if name.starts_with('_') || !is_directory => {}
                _ if entry.path().as_os_str().len() - root.as_os_str().len()
                    > REPOSITORY_NAME_LEN_MAX + 1 => {}
                _ => directories.push(entry.path()),
            }
        }
        if found.len() >= max {
            found.truncate(max);
            break;
        }
    }
    Ok(found)
}

/// Notes the repository in `directory` if one of its `links` leads to `digest`.
fn note(
    root: &Path,
    directory: &Path,
    links: &Path,
    kind: LinkKind,
    digest: &Digest,
    found: &mut Vec<Holder>,
) -> io::Result<()> {
    let name = directory.strip_prefix(root).ok().and_then(Path::to_str).and_then(|name| name.parse().ok());
    let Some(repository) = name else { return Ok(()) };
    if leads_to(&links.join(digest.algorithm().as_str()).join(digest.hex()).join("link"), digest)?
        || is_aliased(links, digest)?
    {
        found.push(Holder { repository, kind });
    }
    Ok(())
}

/// Whether a link under another algorithm's digest leads to it: distribution keeps what was pushed as sha512 under its
/// sha256.
fn is_aliased(links: &Path, digest: &Digest) -> io::Result<bool> {
    for other in Algorithm::ALL.into_iter().filter(|other| *other != digest.algorithm()) {
        let Some(entries) = present(fs::read_dir(links.join(other.as_str())))? else { continue };
        for entry in entries {
            if leads_to(&entry?.path().join("link"), digest)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn leads_to(link: &Path, digest: &Digest) -> io::Result<bool> {
    let content = present(fs::read_to_string(link))?;
    Ok(content.is_some_and(|content| content.trim().parse() == Ok(*digest)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::durable::Durability;
    use crate::store::refs;

    #[test]
    fn every_repository_that_links_it_is_found_whatever_its_depth() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let [one, two] = [b"one", b"two"].map(|content| Digest::of(Algorithm::Sha256, content));
        let long = Digest::of(Algorithm::Sha512, b"one");
        let stored = |name: &str| StoredRepository::local(&name.parse().unwrap());
        for (name, kind, digest) in [
            ("a", LinkKind::Layer, &one),
            ("a/b/c", LinkKind::Manifest, &one),
            ("a/b", LinkKind::Layer, &two),
            ("d", LinkKind::Layer, &long),
        ] {
            refs::link(&layout, &stored(name), kind, digest, Durability::Relaxed).unwrap();
        }
        // As distribution keeps a push by sha512.
        let alias = layout.link(&stored("e/f"), LinkKind::Layer, &long);
        fs::create_dir_all(alias.parent().unwrap()).unwrap();
        fs::write(alias, one.to_string()).unwrap();
        // A power cut's empty link is none.
        let empty = layout.link(&stored("g"), LinkKind::Layer, &one);
        fs::create_dir_all(empty.parent().unwrap()).unwrap();
        fs::write(empty, "").unwrap();

        let mut found = holders(&layout, &one, 10).unwrap();
        found.sort_by(|one, other| one.repository.cmp(&other.repository));
        let holder = |name: &str, kind| Holder { repository: name.parse().unwrap(), kind };
        let expected = [
            holder("a", LinkKind::Layer),
            holder("a/b/c", LinkKind::Manifest),
            holder("e/f", LinkKind::Layer),
        ];
        assert_eq!(found, expected);
        assert_eq!(holders(&layout, &one, 1).unwrap().len(), 1);
        assert_eq!(holders(&layout, &long, 10).unwrap(), [holder("d", LinkKind::Layer)]);
        assert_eq!(holders(&layout, &Digest::of(Algorithm::Sha256, b"none"), 10).unwrap(), []);
        assert_eq!(holders(&Layout::new(root.path().join("none")), &one, 10).unwrap(), []);
    }
}
