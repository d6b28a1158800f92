//! The steps from which durable publication is made.
//!
//! Everything here blocks and belongs on a store thread. A function that returns `Ok` has its effect on the disk; after
//! an error the file in question is to be treated as absent, never to be written again through the same handle.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Makes `directory` and its missing parents, each made entry synced in the directory that holds it.
pub(crate) fn create_dir_all(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Ok(()) => sync_parent(directory),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = directory.parent().ok_or(error)?;
            create_dir_all(parent)?;
            match fs::create_dir(directory) {
                Ok(()) => sync_parent(directory),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

/// Syncs the entries of `directory`.
pub(crate) fn sync_dir(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Syncs the directory that holds `path`.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    }
}

/// Syncs the directory that holds `path`, and those above it up to `top`, which must be one of them.
pub(crate) fn sync_parents(path: &Path, top: &Path) -> io::Result<()> {
    for directory in path.ancestors().skip(1).take_while(|directory| directory.starts_with(top)) {
        sync_dir(directory)?;
    }
    Ok(())
}

/// Whether a write must survive a power cut before the call returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// It must: file and directory are synced.
    Synced,
    /// Losing it costs a question upstream, nothing more (links and tags of `cache`).
    Relaxed,
}

/// A file under a random name that removes itself unless it is given its real name.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    /// Makes an empty file in `directory`, which is made if it is missing.
    pub(crate) fn create(directory: &Path) -> io::Result<Self> {
        for _ in 0..16 {
            let path = directory.join(format!("{:016x}", fastrand::u64(..)));
            match OpenOptions::new().write(true).read(true).create_new(true).open(&path) {
                Ok(file) => return Ok(Self { path, file }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => create_dir_all(directory)?,
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, "no free name for a temporary file"))
    }

    /// Its random name.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends all that `source` still has.
    pub(crate) fn take_all(&mut self, source: &mut File) -> io::Result<u64> {
        io::copy(source, &mut self.file)
    }

    /// Another handle, with the file's lock, which both share.
    pub(crate) fn locked(&self) -> io::Result<File> {
        self.file.lock()?;
        self.file.try_clone()
    }

    /// Writes more of the content.
    pub(crate) fn write(&mut self, content: &[u8]) -> io::Result<()> {
        self.file.write_all(content)
    }

    /// Gives the file the name `path` in place of whatever has it (rename(2)).
    pub(crate) fn replace(self, path: &Path, durability: Durability) -> io::Result<()> {
        if durability == Durability::Synced {
            self.file.sync_data()?;
        }
        fs::rename(&self.path, path)?;
        if durability == Durability::Synced {
            sync_parent(path)?;
        }
        Ok(())
    }

    /// Syncs the content.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives the file the name `path` too, unless something has it already (link(2)). Says whether it did.
    pub(crate) fn link(&self, path: &Path) -> io::Result<bool> {
        link_new(&self.path, path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is nothing left under this name, which is the usual case.
        let _ = fs::remove_file(&self.path);
    }
}

/// Links `from` at `to`; `Ok(false)` if `to` exists already.
pub(crate) fn link_new(from: &Path, to: &Path) -> io::Result<bool> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes `content` at `path` atomically: a reader sees the old content or the new, never a part.
pub(crate) fn write_file(
    temporary: &Path,
    path: &Path,
    content: &[u8],
    durability: Durability,
) -> io::Result<()> {
    let mut file = Temporary::create(temporary)?;
    file.write(content)?;
    if let Some(parent) = path.parent() {
        match durability {
            Durability::Synced => create_dir_all(parent)?,
            Durability::Relaxed => fs::create_dir_all(parent)?,
        }
    }
    file.replace(path, durability)
}

/// Removes a file; one that is already gone is no error.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a file. Says whether there was one.
pub(crate) fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes whatever has this name in a directory of our own, a directory with its content included. Nothing there is no
/// error.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => fs::remove_dir_all(path),
        result => result,
    }
}
