//! What a tree refers to, found by a strict walk: for those who remove what nothing refers to.
//!
//! A listing may leave out what it cannot read; a collector may not, or it would take for garbage what only an unreadable
//! manifest names. So here everything that is not understood is an error that names the file and says what can be done
//! about it: directories that cannot be read, links that hold no digest, manifests that do not parse, symbolic links in
//! place of directories. Only absence is none, as others may remove things meanwhile, and distribution leaves empty
//! directories. A symbolic link that leads nowhere is not absence: what it led to may only be a disk that is not mounted.
//!
//! Names are told one at a time, as the kernel gives them; nothing is kept but the names of the directory that is being
//! descended from. Files are opened with `O_NOATIME` where that is allowed (they are ours, or we are root), so that a walk
//! is no use of anything. Nothing waits for a lock. Everything here blocks and belongs on a store thread.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, openat, statat};
use rustix::io::Errno;

use super::blob::present;
use super::layout::{Layout, StoredRepository};
use crate::oci::{Algorithm, Digest, InvalidManifest, Manifest, REPOSITORY_NAME_LEN_MAX, Tag};

/// What the kernel is asked for at a time when a directory is read, in bytes.
const READ_BUFFER: usize = 32 << 10;
/// A link's content is a digest; anything longer is not a link, in bytes.
const LINK_MAX: u64 = 512;
/// What there is room for at first, in bytes: a link of the usual algorithm has 71.
const LINK_USUAL: usize = 128;
/// How much of what is no link an error shows, in characters.
const HELD_SHOWN: usize = 80;
/// The largest manifest that is read, in bytes: sixteen times what registries take.
pub const MANIFEST_MAX: u64 = 64 << 20;
/// What `mkfs` leaves where a filesystem is mounted.
const LOST_AND_FOUND: &str = "lost+found";

/// Why it is not known what a tree refers to.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// The system does not let us read it.
    #[error("{}: cannot be read: {cause}", path.display())]
    Unreadable {
        /// What cannot be read.
        path: PathBuf,
        /// The system's word.
        cause: io::Error,
    },
    /// A link holds no digest: a crash may have left it empty.
    #[error("{}: is no link: it holds {held:?}; push the image again, or remove the file if that is given up", path.display())]
    NoLink {
        /// The file.
        path: PathBuf,
        /// Its content, cut.
        held: String,
    },
    /// A manifest's link leads to nothing.
    #[error("{}: leads to {digest}, which is not there; push the manifest again, or remove the file if that is given up", path.display())]
    Dangling {
        /// The link.
        path: PathBuf,
        /// What it names.
        digest: Digest,
    },
    /// What should be a manifest is none.
    #[error("{}: {cause}; push it again, or remove what links it if that is given up", path.display())]
    NoManifest {
        /// The blob's file.
        path: PathBuf,
        /// What is wrong with it.
        cause: InvalidManifest,
    },
    /// A manifest is larger than any.
    #[error("{}: has {len} bytes, which is too much for a manifest", path.display())]
    TooLarge {
        /// The blob's file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
    /// A symbolic link, which could lead in circles or to another tree.
    #[error("{}: is a symbolic link, which is not followed here: keep the whole tree in one place", path.display())]
    Symlink {
        /// The link.
        path: PathBuf,
    },
    /// A directory of another filesystem: were that not mounted, its repositories would seem to be gone.
    #[error("{}: is on another filesystem, which may be mounted or not: keep the whole tree on one", path.display())]
    Mounted {
        /// The directory.
        path: PathBuf,
    },
    /// Something that no registry makes.
    #[error("{}: has no place in a registry's directory; move it away", path.display())]
    Misplaced {
        /// What is there.
        path: PathBuf,
    },
    /// There are blobs and no repositories.
    #[error("{}: is not there, though there are blobs; make it if none of them is wanted", path.display())]
    NoRepositories {
        /// Where the repositories should be.
        path: PathBuf,
    },
}

impl WalkError {
    fn unreadable(path: &Path, cause: io::Error) -> Self {
        Self::Unreadable { path: path.to_owned(), cause }
    }
}

/// A link that was read.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// What it leads to.
    pub digest: Digest,
    /// When it was written.
    pub modified: SystemTime,
}

/// A manifest as it is stored.
#[derive(Debug)]
pub struct StoredManifest {
    /// What it says.
    pub manifest: Manifest,
    /// About its file.
    pub meta: Metadata,
}

/// The place of a link, `<alg>/<hex>/link`, below a directory of links. There need not be one.
pub struct Place<'a> {
    /// The digest that the place is named by, which is not always the one that the link holds.
    pub digest: Digest,
    directory: &'a Directory,
    name: &'a str,
}

impl Place<'_> {
    /// The link; `None` if the directory is empty, as distribution leaves it after a removal.
    ///
    /// # Errors
    /// It cannot be read, or is no link.
    pub fn link(&self) -> Result<Option<Link>, WalkError> {
        self.directory.link(&format!("{}/link", self.name))
    }

    /// The link's path.
    pub fn path(&self) -> PathBuf {
        self.directory.path.join(self.name).join("link")
    }
}

/// What is done with a directory of links that is not named by a known algorithm and a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// It may lead to something: an error.
    Refused,
    /// It leads to nothing that is wanted.
    Skipped,
}

/// Calls `visit` for every repository, of any depth, in no order.
///
/// # Errors
/// See the module; and what `visit` returns.
pub fn repositories<E: From<WalkError>>(
    layout: &Layout,
    mut visit: impl FnMut(&StoredRepository) -> Result<(), E>,
) -> Result<(), E> {
    let root = layout.repositories();
    let Some(directory) = Directory::open(&root)? else {
        return match Directory::open(&layout.blobs())? {
            None => Ok(()),
            Some(_) => Err(WalkError::NoRepositories { path: root }.into()),
        };
    };
    descend(&directory, &mut String::new(), &mut visit)
}

fn descend<E: From<WalkError>>(
    directory: &Directory,
    name: &mut String,
    visit: &mut dyn FnMut(&StoredRepository) -> Result<(), E>,
) -> Result<(), E> {
    let mut below = Vec::new();
    let mut is_repository = false;
    directory.each(|entry, kind| -> Result<(), E> {
        if entry.starts_with('_') {
            is_repository |= matches!(entry, "_layers" | "_manifests" | "_uploads");
            if matches!(entry, "_layers" | "_manifests") {
                // What is neither a directory nor a symbolic link cannot be opened as a directory either.
                directory.is_directory(entry, kind)?;
            }
        } else if entry != LOST_AND_FOUND && directory.is_directory(entry, kind)? {
            below.push(entry.to_owned());
        }
        Ok(())
    })?;
    if is_repository && !name.is_empty() {
        visit(&StoredRepository::found(name))?;
    }
    for entry in below {
        let len = name.len();
        if len > 0 {
            name.push('/');
        }
        name.push_str(&entry);
        let path = directory.path.join(&entry);
        if name.len() > REPOSITORY_NAME_LEN_MAX {
            return Err(WalkError::Misplaced { path }.into());
        }
        // It may have been pruned by now.
        if let Some(below) = Directory::open(&path)? {
            if below.device()? != directory.device()? {
                return Err(WalkError::Mounted { path }.into());
            }
            descend(&below, name, visit)?;
        }
        name.truncate(len);
    }
    Ok(())
}

/// Calls `visit` for every place of a link below `directory`: a repository's manifests, its layers, a tag's history.
///
/// # Errors
/// See the module; and what `visit` returns.
pub fn links<E: From<WalkError>>(
    directory: &Path,
    unknown: Unknown,
    mut visit: impl FnMut(&Place<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let Some(algorithms) = Directory::open(directory)? else { return Ok(()) };
    algorithms.each(|algorithm, kind| {
        if !algorithms.is_directory(algorithm, kind)? {
            return Ok(());
        }
        let path = directory.join(algorithm);
        let Some(known) = Algorithm::from_name(algorithm) else {
            return unknown.refuse(path).map_err(E::from);
        };
        let Some(places) = Directory::open(&path)? else { return Ok(()) };
        places.each(|hex, kind| {
            if !places.is_directory(hex, kind)? {
                return Ok(());
            }
            match Digest::from_hex(known, hex) {
                Some(digest) => visit(&Place { digest, directory: &places, name: hex }),
                None => unknown.refuse(path.join(hex)).map_err(E::from),
            }
        })
    })
}

impl Unknown {
    fn refuse(self, path: PathBuf) -> Result<(), WalkError> {
        match self {
            Self::Refused => Err(WalkError::Misplaced { path }),
            Self::Skipped => Ok(()),
        }
    }
}

/// Calls `visit` for every tag of a repository, with what it points at; `None` if it does not exist any more.
///
/// # Errors
/// See the module; and what `visit` returns.
pub fn tags<E: From<WalkError>>(
    layout: &Layout,
    repository: &StoredRepository,
    mut visit: impl FnMut(Tag, Option<Link>) -> Result<(), E>,
) -> Result<(), E> {
    let path = layout.tags(repository);
    let Some(directory) = Directory::open(&path)? else { return Ok(()) };
    directory.each(|name, kind| {
        if !directory.is_directory(name, kind)? {
            return Ok(());
        }
        let Ok(tag) = name.parse::<Tag>() else {
            return Err(WalkError::Misplaced { path: path.join(name) }.into());
        };
        let current = directory.link(&format!("{name}/current/link"))?;
        visit(tag, current)
    })
}

/// Calls `visit` for the directory of every blob, which may be empty. What is not named by a digest is nobody's blob, and
/// is left out.
///
/// # Errors
/// A directory cannot be read; and what `visit` returns.
pub fn blobs<E: From<WalkError>>(
    layout: &Layout,
    mut visit: impl FnMut(&Digest) -> Result<(), E>,
) -> Result<(), E> {
    for algorithm in Algorithm::ALL {
        let Some(prefixes) = Directory::open(&layout.blobs().join(algorithm.as_str()))? else { continue };
        prefixes.each(|prefix, kind| {
            if !prefixes.is_directory(prefix, kind)? {
                return Ok(());
            }
            let Some(directory) = Directory::open(&prefixes.path.join(prefix))? else { return Ok(()) };
            directory.each(|hex, _| match Digest::from_hex(algorithm, hex) {
                Some(digest) if hex.starts_with(prefix) => visit(&digest),
                _ => Ok(()),
            })
        })?;
    }
    Ok(())
}

/// A manifest; `None` if the tree does not hold it.
///
/// # Errors
/// It cannot be read, or is none.
pub fn manifest(layout: &Layout, digest: &Digest) -> Result<Option<StoredManifest>, WalkError> {
    let path = layout.blob(digest);
    let failed = |cause| WalkError::unreadable(&path, cause);
    let opened = open(CWD, &path, OFlags::empty());
    let Some(mut file) = present(opened).map_err(failed)? else { return Ok(None) };
    let meta = file.metadata().map_err(failed)?;
    if meta.len() > MANIFEST_MAX {
        return Err(WalkError::TooLarge { path, len: meta.len() });
    }
    let mut content = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0));
    (&mut file).take(MANIFEST_MAX).read_to_end(&mut content).map_err(failed)?;
    match Manifest::parse_strict(&content, None) {
        Ok(manifest) => Ok(Some(StoredManifest { manifest, meta })),
        Err(cause) => Err(WalkError::NoManifest { path, cause }),
    }
}

/// A directory that is open.
struct Directory {
    file: File,
    path: PathBuf,
}

impl Directory {
    /// `None` if nothing has this name.
    fn open(path: &Path) -> Result<Option<Self>, WalkError> {
        let failed = |cause| WalkError::unreadable(path, cause);
        match open(CWD, path, OFlags::DIRECTORY) {
            Ok(file) => Ok(Some(Self { file, path: path.to_owned() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match present(fs::symlink_metadata(path)).map_err(failed)? {
                    Some(meta) if meta.is_symlink() => Err(WalkError::Symlink { path: path.to_owned() }),
                    // Or it was made a moment ago.
                    _ => Ok(None),
                }
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// The filesystem that it is on.
    fn device(&self) -> Result<u64, WalkError> {
        let meta = self.file.metadata().map_err(|cause| WalkError::unreadable(&self.path, cause))?;
        Ok(meta.dev())
    }

    /// Tells `visit` each name, and of what kind it is.
    fn each<E: From<WalkError>>(
        &self,
        mut visit: impl FnMut(&str, FileType) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut buffer = Vec::with_capacity(READ_BUFFER);
        let mut entries = RawDir::new(self.file.as_fd(), buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // It was removed since it was opened, so it was empty.
                Err(Errno::NOENT) => return Ok(()),
                Err(error) => return Err(WalkError::unreadable(&self.path, error.into()).into()),
            };
            match entry.file_name().to_str() {
                Ok("." | "..") => {}
                Ok(name) => visit(name, entry.file_type())?,
                Err(_) => {
                    let path = self.path.join(entry.file_name().to_string_lossy().as_ref());
                    return Err(WalkError::Misplaced { path }.into());
                }
            }
        }
        Ok(())
    }

    /// Whether `name` is a directory.
    fn is_directory(&self, name: &str, kind: FileType) -> Result<bool, WalkError> {
        let kind = match kind {
            // Some filesystems do not tell.
            FileType::Unknown => self.kind(name, AtFlags::SYMLINK_NOFOLLOW)?.unwrap_or(FileType::Unknown),
            kind => kind,
        };
        // One that leads nowhere may lead to a directory again once something is mounted.
        if kind.is_symlink() && self.kind(name, AtFlags::empty())?.is_none_or(FileType::is_dir) {
            return Err(WalkError::Symlink { path: self.path.join(name) });
        }
        Ok(kind.is_dir())
    }

    /// What `path` in this directory is; `None` if nothing has this name.
    fn kind(&self, path: &str, flags: AtFlags) -> Result<Option<FileType>, WalkError> {
        let stat = present(statat(&self.file, path, flags).map_err(io::Error::from));
        let stat = stat.map_err(|cause| WalkError::unreadable(&self.path.join(path), cause))?;
        Ok(stat.map(|stat| FileType::from_raw_mode(stat.st_mode)))
    }

    /// Reads the link at `path` in this directory; `None` if there is none.
    fn link(&self, path: &str) -> Result<Option<Link>, WalkError> {
        let link = read_link(&self.file, Path::new(path), || self.path.join(path))?;
        if link.is_none() {
            self.is_absent(path)?;
        }
        Ok(link)
    }

    /// Makes sure that what was not found at `path` in this directory is not there, rather than out of reach.
    fn is_absent(&self, path: &str) -> Result<(), WalkError> {
        for end in path.match_indices('/').map(|(at, _)| at).chain([path.len()]) {
            match self.kind(&path[..end], AtFlags::SYMLINK_NOFOLLOW)? {
                None => return Ok(()),
                Some(FileType::Symlink) => {
                    return Err(WalkError::Symlink { path: self.path.join(&path[..end]) });
                }
                Some(FileType::Directory) => {}
                Some(_) if end < path.len() => {
                    let cause = io::ErrorKind::NotADirectory.into();
                    return Err(WalkError::unreadable(&self.path.join(&path[..end]), cause));
                }
                // It was made a moment ago.
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// Reads a link; `None` if there is none.
///
/// # Errors
/// It cannot be read, or is no link.
pub fn link(path: &Path) -> Result<Option<Link>, WalkError> {
    read_link(CWD, path, || path.to_owned())
}

fn read_link(
    directory: impl AsFd,
    path: &Path,
    whole: impl Fn() -> PathBuf,
) -> Result<Option<Link>, WalkError> {
    let failed = |cause| WalkError::Unreadable { path: whole(), cause };
    let opened = open(directory, path, OFlags::empty());
    let Some(file) = present(opened).map_err(failed)? else { return Ok(None) };
    let modified = file.metadata().and_then(|meta| meta.modified()).map_err(failed)?;
    let mut content = Vec::with_capacity(LINK_USUAL);
    file.take(LINK_MAX).read_to_end(&mut content).map_err(failed)?;
    if let Some(digest) = std::str::from_utf8(&content).ok().and_then(|text| text.trim_end().parse().ok()) {
        return Ok(Some(Link { digest, modified }));
    }
    let held = String::from_utf8_lossy(&content).chars().take(HELD_SHOWN).collect();
    Err(WalkError::NoLink { path: whole(), held })
}

/// Opens a file for reading without making that a use of it, where we may.
fn open(directory: impl AsFd, path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let open = |flags| openat(directory.as_fd(), path, flags, Mode::empty());
    let opened = match open(flags | OFlags::NOATIME) {
        Err(Errno::PERM) => open(flags),
        opened => opened,
    };
    Ok(opened.map(File::from)?)
}

#[cfg(test)]
mod tests;
