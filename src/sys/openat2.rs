//! Files beneath a directory, found by the kernel: `openat2(2)` with `RESOLVE_BENEATH` (5.6).
//!
//! The kernel walks the path as one operation and refuses any step out of the directory, be it by `..`, by a symbolic
//! link, absolute or not, or by a magic link of `/proc`; a directory that is exchanged for a link while the path is being
//! walked makes no difference, as it would to any check that comes before an open. What is opened is a regular file or
//! nothing: the path is first opened with `O_PATH`, which has no effect on what it names, and looked at, so that no device
//! is ever opened and no FIFO waited for; what the path names after that must be the same file.
//!
//! Safe calls only; it is here because it is the seam to the kernel that everything above relies on.

use std::ffi::CStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{Mode, OFlags, ResolveFlags, fcntl_setfl, openat2};
use rustix::io::Errno;

/// How often a path that changes while it is opened is tried again: `openat2` says so (`EAGAIN`) when something was
/// renamed meanwhile, whether or not it mattered.
const TRIES: u32 = 64;

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum BeneathError {
    /// Nothing has that name, or what should be a directory is a file.
    #[error("no such file")]
    Absent,
    /// The path leads out of the directory, or over a symbolic link that must not be followed.
    #[error("the path leads out of its root, or over a symbolic link that is not followed")]
    Escapes,
    /// The process may not read it.
    #[error("permission denied")]
    Denied,
    /// It is a directory.
    #[error("is a directory")]
    Directory,
    /// It is a device, a FIFO or a socket.
    #[error("is no regular file")]
    Special,
    /// The system failed otherwise.
    #[error(transparent)]
    Io(io::Error),
}

impl From<Errno> for BeneathError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG => Self::Absent,
            Errno::XDEV | Errno::LOOP => Self::Escapes,
            Errno::ACCESS | Errno::PERM => Self::Denied,
            errno => Self::Io(errno.into()),
        }
    }
}

/// Opens the regular file at `path`, relative, beneath the directory `root`, for reading. With `follow` symbolic links are
/// followed as long as they stay beneath it, else none is.
///
/// With `at_once` gives up (`None`) where the kernel would have to wait for the disk.
pub(super) fn open_beneath(
    root: &File,
    path: &CStr,
    follow: bool,
    at_once: bool,
) -> Option<Result<File, BeneathError>> {
    let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    if !follow {
        resolve |= ResolveFlags::NO_SYMLINKS;
    }
    if at_once {
        resolve |= ResolveFlags::CACHED;
    }
    match open_regular(root, path, resolve) {
        // The kernel would have to wait, or is older than the flag.
        Err(BeneathError::Io(error)) if at_once && would_wait(&error) => None,
        result => Some(result),
    }
}

fn open_regular(root: &File, path: &CStr, resolve: ResolveFlags) -> Result<File, BeneathError> {
    for _ in 0..TRIES {
        let named = open(root, path, OFlags::PATH, resolve)?;
        let seen = named.metadata().map_err(BeneathError::Io)?;
        check(&seen)?;
        // Not to wait for the writer of a FIFO that has just taken the file's place.
        let file = open(root, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, resolve)?;
        let opened = file.metadata().map_err(BeneathError::Io)?;
        if (opened.dev(), opened.ino()) == (seen.dev(), seen.ino()) {
            // Whoever reads must not take the flag to mean that reads do not wait either.
            fcntl_setfl(&file, OFlags::empty())?;
            return Ok(file);
        }
    }
    Err(BeneathError::Io(Errno::AGAIN.into()))
}

fn open(root: &File, path: &CStr, flags: OFlags, resolve: ResolveFlags) -> Result<File, BeneathError> {
    let mut tries = 0;
    loop {
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Ok(file) => return Ok(file.into()),
            Err(Errno::AGAIN) if !resolve.contains(ResolveFlags::CACHED) && tries < TRIES => tries += 1,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn check(seen: &Metadata) -> Result<(), BeneathError> {
    if seen.is_file() {
        Ok(())
    } else if seen.is_dir() {
        Err(BeneathError::Directory)
    } else {
        Err(BeneathError::Special)
    }
}

fn would_wait(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::AGAIN | Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::io::Read;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use rustix::fs::{CWD, FileType, mknodat};

    use super::*;

    /// `root/{file,empty/,fifo,in,out,up,abs,magic,loop}` and `outside` beside it.
    fn tree() -> (tempfile::TempDir, File) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("empty")).unwrap();
        std::fs::write(root.join("file"), "inside").unwrap();
        std::fs::write(dir.path().join("outside"), "secret").unwrap();
        mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let link = |target: &Path, name: &str| symlink(target, root.join(name)).unwrap();
        link(Path::new("empty/../file"), "in");
        link(Path::new("../outside"), "out");
        link(Path::new(".."), "up");
        link(&dir.path().join("outside"), "abs");
        link(Path::new("/proc/self/root"), "magic");
        link(Path::new("loop"), "loop");
        let opened = File::open(&root).unwrap();
        (dir, opened)
    }

    fn outcome(root: &File, path: &str, follow: bool) -> String {
        let path = CString::new(path).unwrap();
        let opened =
            open_beneath(root, &path, follow, true).or_else(|| open_beneath(root, &path, follow, false));
        match opened.expect("waiting is allowed") {
            Ok(mut file) => {
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                text
            }
            Err(error) => format!("{error:?}"),
        }
    }

    #[test]
    fn only_regular_files_beneath_the_root_are_opened() {
        let (_dir, root) = tree();
        for (path, follow, expected) in [
            ("file", true, "inside"),
            ("file", false, "inside"),
            ("empty/../file", true, "inside"),
            ("in", true, "inside"),
            ("in", false, "Escapes"),
            ("out", true, "Escapes"),
            ("abs", true, "Escapes"),
            ("up/outside", true, "Escapes"),
            ("magic/etc/passwd", true, "Escapes"),
            ("loop", true, "Escapes"),
            ("../outside", true, "Escapes"),
            ("/etc/passwd", true, "Escapes"),
            ("empty/../../outside", true, "Escapes"),
            ("empty", true, "Directory"),
            ("empty/", true, "Directory"),
            (".", true, "Directory"),
            ("fifo", true, "Special"),
            ("file/", true, "Absent"),
            ("file/x", true, "Absent"),
            ("absent", true, "Absent"),
            ("", true, "Absent"),
        ] {
            assert_eq!(outcome(&root, path, follow), expected, "{path:?} {follow}");
        }
        let long = "x".repeat(300);
        assert_eq!(outcome(&root, &long, true), "Absent");
    }
}
