//! Directories that are empty once an image is gone.
//!
//! Only directories that a registry makes again when it needs them: those of links and tags, the repository's own, those
//! above it (never the root), and those of two digits above blobs. A directory is removed by rmdir(2), which refuses one
//! that is not empty; whoever makes a directory to put something into it does so again if it is gone (`store::durable`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::super::sweep::{Removed, Sweeper};
use crate::store::{StoredRepository, sweeping};

/// Removes what is empty of a repository, above it, and above the blobs that went.
pub(super) fn repository(sweeper: &mut Sweeper<'_>, repository: &StoredRepository) {
    let layout = sweeper.layout();
    let directory = layout.repository(repository);
    for part in ["_manifests", "_layers"] {
        tree(sweeper, &directory.join(part));
    }
    // A session begins with an empty directory.
    alone(sweeper, &layout.uploads(repository));
    let root = layout.repositories();
    for directory in directory.ancestors().take_while(|directory| **directory != root) {
        if !alone(sweeper, directory) {
            break;
        }
    }
    blobs(sweeper);
}

/// Removes a directory and those in it that are empty. Says whether it is gone.
fn tree(sweeper: &mut Sweeper<'_>, directory: &Path) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return false };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !is_gone(sweeper, &entry.path()) {
            tree(sweeper, &entry.path());
        }
    }
    alone(sweeper, directory)
}

/// Removes a directory if there is nothing in it. Says whether it is gone.
fn alone(sweeper: &mut Sweeper<'_>, directory: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(directory) else { return false };
    if entries.any(|entry| !entry.is_ok_and(|entry| is_gone(sweeper, &entry.path()))) {
        return false;
    }
    remove(sweeper, directory)
}

/// The directories of two digits above the blobs that went.
fn blobs(sweeper: &mut Sweeper<'_>) {
    let layout = sweeper.layout();
    let places = sweeper.places.iter().flatten();
    let mut above: Vec<PathBuf> = places
        .filter(|place| place.starts_with(layout.blobs()))
        .filter_map(|place| place.parent().map(Path::to_owned))
        .collect();
    above.sort_unstable();
    above.dedup();
    for directory in above {
        let name = directory.file_name().and_then(|name| name.to_str());
        let Some(shard) = name.and_then(|name| u8::from_str_radix(name, 16).ok()) else { continue };
        // Whoever publishes a blob there makes the directory under this lock.
        let lock = if sweeper.dry_run { None } else { Some(sweeping::lock_number(layout, shard)) };
        match lock.transpose() {
            Ok(_lock) => {
                alone(sweeper, &directory);
            }
            Err(error) => sweeper.failed(Removed::Directory(directory), error),
        }
    }
}

/// Whether it went, or would have.
fn is_gone(sweeper: &Sweeper<'_>, path: &Path) -> bool {
    sweeper.dry_run && sweeper.places.as_ref().is_some_and(|places| places.contains(path))
}

fn remove(sweeper: &mut Sweeper<'_>, directory: &Path) -> bool {
    match if sweeper.dry_run { Ok(()) } else { fs::remove_dir(directory) } {
        Ok(()) => {
            sweeper.gone(Removed::Directory(directory.to_owned()));
            true
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
            false
        }
        Err(error) => {
            sweeper.failed(Removed::Directory(directory.to_owned()), error);
            false
        }
    }
}
