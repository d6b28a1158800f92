//! A directory, byte for byte and time for time, to tell whether anything at all was changed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::support::process::entries;
use crate::support::sha256;

/// Everything below a directory, and the directory.
#[derive(PartialEq)]
pub(super) struct Snapshot(BTreeMap<PathBuf, Entry>);

#[derive(Debug, PartialEq)]
struct Entry {
    mode: u32,
    inode: u64,
    links: u64,
    modified: (i64, i64),
    /// Of files: when they were last read, and what they contain.
    read: Option<(i64, i64, String)>,
}

impl Snapshot {
    /// Takes one without leaving a trace on files.
    pub(super) fn take(root: &Path) -> Self {
        let mut found = BTreeMap::new();
        let mut open = vec![root.to_owned()];
        while let Some(path) = open.pop() {
            let meta = fs::symlink_metadata(&path).expect("listed");
            let read = meta.is_file().then(|| (meta.atime(), meta.atime_nsec(), sha256(&content(&path))));
            if meta.is_dir() {
                open.extend(entries(&path));
            }
            let entry = Entry {
                mode: meta.mode(),
                inode: meta.ino(),
                links: meta.nlink(),
                modified: (meta.mtime(), meta.mtime_nsec()),
                read,
            };
            found.insert(path, entry);
        }
        Self(found)
    }

    /// Nothing differs in `later`; the first differences are named.
    #[track_caller]
    pub(super) fn assert_same(&self, later: &Self, what: &str) {
        let paths = self.0.keys().chain(later.0.keys()).collect::<std::collections::BTreeSet<_>>();
        let differing: Vec<String> = paths
            .into_iter()
            .filter(|path| self.0.get(*path) != later.0.get(*path))
            .take(10)
            .map(|path| format!("{}: {:?} became {:?}", path.display(), self.0.get(path), later.0.get(path)))
            .collect();
        assert!(differing.is_empty(), "{what} changed the tree:\n{}", differing.join("\n"));
    }

    /// The files that are here and no longer in `later`.
    pub(super) fn files_gone(&self, later: &Self) -> Vec<PathBuf> {
        let gone = self.0.iter().filter(|(path, entry)| entry.read.is_some() && !later.0.contains_key(*path));
        gone.map(|(path, _)| path.clone()).collect()
    }

    /// The directories without anything in them.
    pub(super) fn empty_directories(&self) -> Vec<PathBuf> {
        let parents: std::collections::BTreeSet<&Path> =
            self.0.keys().filter_map(|path| path.parent()).collect();
        let empty =
            self.0.iter().filter(|(path, entry)| entry.read.is_none() && !parents.contains(path.as_path()));
        empty.map(|(path, _)| path.clone()).collect()
    }
}

fn content(path: &Path) -> Vec<u8> {
    read_without_trace(path).expect("listed")
}

/// A file's content; its access time stays what it is, since that says when it was pulled.
pub(super) fn read_without_trace(path: &Path) -> io::Result<Vec<u8>> {
    let without_trace = OpenOptions::new().read(true).custom_flags(libc::O_NOATIME).open(path);
    let mut bytes = Vec::new();
    without_trace.or_else(|_| File::open(path))?.read_to_end(&mut bytes)?;
    Ok(bytes)
}
