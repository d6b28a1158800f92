//! The steps from which durable publication is made.
//!
//! Everything here blocks and belongs on a store thread. A function that returns `Ok` has its effect on the disk; after
//! an error the file in question is to be treated as absent, never to be written again through the same handle.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;

/// How often a directory may be pruned between its making and its use, before that is an error.
const PRUNED_MAX: usize = 16;

/// Makes `directory` and its missing parents, each made entry synced in the directory that holds it.
pub(crate) fn create_dir_all(directory: &Path) -> io::Result<()> {
    let mut made = Syncs::default();
    made.create_dir_all(directory)?;
    made.run()
}

/// Syncs the entries of `directory`.
pub(crate) fn sync_dir(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Syncs the directory that holds `path`.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    sync_dir(parent(path))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What is to be on disk before the next step, in whatever order: synced at once, so that the disk is waited for once.
///
/// What follows a pushed blob's data took 16 waits one after the other in a new repository, 12 in another; so it takes two.
#[derive(Debug, Default)]
#[must_use = "nothing is synced before it runs"]
pub(crate) struct Syncs(Vec<File>);

impl Syncs {
    /// Makes `directory` and its missing parents. The entries that were made are still to be synced.
    pub(crate) fn create_dir_all(&mut self, directory: &Path) -> io::Result<()> {
        let made = match fs::create_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.create_dir_all(directory.parent().ok_or(error)?)?;
                fs::create_dir(directory)
            }
            made => made,
        };
        match made {
            Ok(()) => self.add(File::open(parent(directory))?),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The directory that holds `path`, and those above it up to `top`, which must be one of them.
    ///
    /// Those above too, because somebody may have made one of them a moment ago and not have come to syncing it yet. What
    /// is on disk already costs next to nothing.
    pub(crate) fn parents(&mut self, path: &Path, top: &Path) -> io::Result<()> {
        for directory in path.ancestors().skip(1).take_while(|directory| directory.starts_with(top)) {
            self.add(File::open(directory)?);
        }
        Ok(())
    }

    /// What `other` is to sync.
    fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// A file's content, or a directory's entries.
    pub(crate) fn add(&mut self, file: File) {
        self.0.push(file);
    }

    /// Syncs all of it. After an error, any part of it may be missing on disk.
    pub(crate) fn run(self) -> io::Result<()> {
        let Some((first, others)) = self.0.split_first() else { return Ok(()) };
        thread::scope(|scope| {
            let begun: Vec<_> = others
                .iter()
                // A system that has no threads left syncs one after the other.
                .map(|file| thread::Builder::new().spawn_scoped(scope, || file.sync_all()).map_err(|_| file))
                .collect();
            let mut result = first.sync_all();
            for syncing in begun {
                let synced = match syncing {
                    Ok(thread) => thread.join().unwrap_or_else(|_| Err(io::Error::other("a sync panicked"))),
                    Err(file) => file.sync_all(),
                };
                result = result.and(synced);
            }
            result
        })
    }
}

/// Whether a write must survive a power cut before the call returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// It must: the file and its directories are synced.
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

    /// Gives the file the name `path` in place of whatever has it (rename(2)); nothing of it is synced here.
    pub(crate) fn replace(self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)
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

/// Writes `content` at `path` atomically: a reader sees the old content or the new, never a part. It need not survive a
/// power cut.
pub(crate) fn write_relaxed(temporary: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = Temporary::create(temporary)?;
    file.write(content)?;
    while_directories_vanish(|| {
        fs::create_dir_all(parent(path))?;
        fs::rename(file.path(), path)
    })
}

/// Writes `content` at `path` atomically, after all of `before` is on disk; when the call returns, so are `path` and the
/// directories that lead to it from `top`.
pub(crate) fn write_after(
    before: Syncs,
    temporary: &Path,
    path: &Path,
    top: &Path,
    content: &[u8],
) -> io::Result<()> {
    let mut file = Temporary::create(temporary)?;
    file.write(content)?;
    let mut before = Some(before);
    while_directories_vanish(|| {
        let mut made = Syncs::default();
        made.create_dir_all(parent(path))?;
        // Once only: after an error nothing is known of what was to be synced.
        if let Some(mut before) = before.take() {
            before.append(made);
            before.add(file.file.try_clone()?);
            before.run()?;
        } else {
            made.run()?;
        }
        fs::rename(file.path(), path)
    })?;
    let mut directories = Syncs::default();
    directories.parents(path, top)?;
    directories.run()
}

/// Does what makes directories and puts something into them; again, a bounded number of times, if one of them was removed
/// in between: whoever prunes removes directories that are empty.
pub(crate) fn while_directories_vanish<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..PRUNED_MAX {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
    }
    attempt()
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
