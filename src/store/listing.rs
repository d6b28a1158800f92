//! What a tree holds, in the order of the names' bytes, a page at a time.
//!
//! **Order.** A walk of directories sorted by name is not in the order of the repositories' whole names: `a-b` and `a.b`
//! come before `a/b`, because `-` and `.` come before `/`. So a directory `a` stands in its parent's list twice: as `a`,
//! the repository, and as `a/`, all that is below it. Every name below begins with `a/` and no other name does, so the
//! sorted list of these entries is the order of the whole names. A page begins by a binary search on each level of the
//! name that it goes on after, and ends with its last entry; nothing before or after it is looked at.
//!
//! **What is listed.** A repository, if it has something to pull: a tag, or a manifest by digest. distribution also lists
//! repositories all of whose manifests were deleted, and those that only ever got a layer; whoever goes through a
//! catalog would get nothing from them. A tag, if it points somewhere: links that are empty (a power cut) do not count.
//! Names that the API does not allow cannot be asked for and are left out. So are parts of repositories' names that are
//! symbolic links, which could lead in circles.
//!
//! **Cost.** A directory's names come from the kernel unsorted and all at once, so a page would cost reading and sorting
//! all of them. [`Listings`] keeps the sorted names of large directories, 8 MiB in all, for as long as the directory is the
//! same: its inode's times and size are looked at for each page. Those times tick, so names are kept only of a directory
//! that rested for a second; one that changes all the time is read for each page. Whether a tag points somewhere, and
//! whether a repository has anything to pull, is asked for a page's own entries only, and for what it passes over.
//!
//! | a page of 100 out of the middle | names kept | read and sorted anew |
//! |---|---|---|
//! | of 100,000 tags | 0.13 ms | 45 ms |
//! | of 10,000 repositories in one directory | 1.3 ms | 7.1 ms |
//! | all 100,000 tags at once, each looked at | 172 ms | |
//!
//! (`cargo bench -- listing` at `opt-level` 2; the fastest of each; ext4, warm, on a machine with other work.)
//!
//! Nothing here waits for a lock of the store or changes anything: what is pushed or deleted meanwhile is in the page or
//! not, and a page always begins after the name that it was asked for, whether that still exists or not. All of it blocks
//! and belongs on a store thread.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use lru::LruCache;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, openat, statat};

use super::blob::present;
use super::layout::{Layout, StoredRepository};
use super::links::lock;
use crate::oci::{REPOSITORY_NAME_LEN_MAX, RepositoryName, Tag};
use crate::sys::files::Stat;

/// Names kept of a tree's directories, in bytes: some 400,000 tags.
const KEPT_BYTES_MAX: usize = 8 << 20;
/// Directories with fewer names are read for each page: that takes as long as looking whether they changed.
const KEPT_NAMES_MIN: usize = 256;
/// The most that is read of one directory, in bytes of names: some 4 million tags. Reading more fails.
const DIRECTORY_BYTES_MAX: usize = 64 << 20;
/// Directories whose own size is larger than this are read one at a time, so that many requests at once neither read
/// the same names nor hold many times [`DIRECTORY_BYTES_MAX`]. In bytes.
const LARGE_DIRECTORY: u64 = 256 << 10;
/// A directory that changed less than this long ago may change again without its times showing it: they tick.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
/// What the kernel is asked for at a time when a directory is read, in bytes.
const READ_BUFFER: usize = 64 << 10;
/// Deleted manifests leave empty directories. A repository with more of them than this, and nothing else seen so far, is
/// listed rather than searched.
const REMAINS_MAX: usize = 1000;

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// In the order of the names' bytes, each once.
    pub entries: Vec<T>,
    /// Whether there are entries after these.
    pub more: bool,
}

/// What is remembered of a tree's directories so that a page does not cost reading all of them.
#[derive(Debug)]
pub struct Listings {
    kept: Mutex<Kept>,
    /// Held while a large directory is read.
    reading: Mutex<()>,
}

impl Default for Listings {
    fn default() -> Self {
        Self {
            kept: Mutex::new(Kept { directories: LruCache::unbounded(), bytes: 0 }),
            reading: Mutex::new(()),
        }
    }
}

impl Listings {
    /// The first `n` tags of a repository after `last`; `None` if the tree does not know the repository.
    ///
    /// # Errors
    /// Reading the disk failed. Absence is not an error.
    pub fn tags(
        &self,
        layout: &Layout,
        repository: &StoredRepository,
        last: Option<&str>,
        n: usize,
    ) -> io::Result<Option<Page<Tag>>> {
        let mut page = Page::empty();
        let Some(listed) = self.read(&layout.tags(repository), Entries::Tags)? else {
            let directory = layout.repository(repository);
            let known =
                directory.join("_manifests").try_exists()? || directory.join("_layers").try_exists()?;
            return Ok(known.then_some(page));
        };
        for name in listed.names.after(last) {
            if page.entries.len() >= n {
                // Of no entries, the first is not the next.
                page.more = n > 0;
                break;
            }
            if let Ok(tag) = name.parse()
                && is_link(&listed.directory, &format!("{name}/current/link"))?
            {
                page.entries.push(tag);
            }
        }
        Ok(Some(page))
    }

    /// The first `n` repositories after `last`, of those below `below` if that is given; the names are whole in any case.
    ///
    /// What cannot be read is told to `on_unreadable`, which ends the walk with its error or lets it go on without.
    ///
    /// # Errors
    /// What `on_unreadable` returns. Absence is not an error: there are no repositories then.
    pub fn repositories(
        &self,
        layout: &Layout,
        below: Option<&str>,
        last: Option<&str>,
        n: usize,
        on_unreadable: &mut dyn FnMut(io::Error) -> io::Result<()>,
    ) -> io::Result<Page<String>> {
        let mut directory = layout.repositories();
        let mut name = String::new();
        if let Some(below) = below {
            directory.push(below);
            name.extend([below, "/"]);
        }
        let after = match last {
            Some(last) if last.starts_with(&name) => Some(&last[name.len()..]),
            Some(last) if last > name.as_str() => return Ok(Page::empty()),
            _ => None,
        };
        if n == 0 {
            return Ok(Page::empty());
        }
        let mut walk = Walk { listings: self, found: Vec::new(), max: n.saturating_add(1), on_unreadable };
        walk.directory(&mut directory, &mut name, after)?;
        let more = walk.found.len() > n;
        walk.found.truncate(n);
        Ok(Page { entries: walk.found, more })
    }

    /// The sorted names in a directory; `None` if it is not there.
    fn read(&self, path: &Path, entries: Entries) -> io::Result<Option<Listed>> {
        let Some(directory) = open(path)? else { return Ok(None) };
        let now = SystemTime::now();
        let failed = |error| named(path, &error);
        let stat = Stat::from(&directory.metadata().map_err(failed)?);
        let state = State::from(&stat);
        if let Some(names) = lock(&self.kept).get(&state) {
            return Ok(Some(Listed { directory, names }));
        }
        let turn = (stat.len > LARGE_DIRECTORY).then(|| lock(&self.reading));
        if turn.is_some()
            && let Some(names) = lock(&self.kept).get(&state)
        {
            return Ok(Some(Listed { directory, names }));
        }
        let names = Arc::new(Names::read(&directory, entries).map_err(failed)?);
        // The state is from before the names were read: what changed since then will show.
        let is_settled = now.duration_since(stat.ctime).is_ok_and(|since| since > SETTLED_AFTER);
        if is_settled && names.len() >= KEPT_NAMES_MIN {
            lock(&self.kept).keep(state, Arc::clone(&names));
        }
        Ok(Some(Listed { directory, names }))
    }
}

impl<T> Page<T> {
    fn empty() -> Self {
        Self { entries: Vec::new(), more: false }
    }
}

impl<T: Ord + Clone> Page<T> {
    /// The page after `last` of a list that is sorted and in memory.
    pub fn of(sorted: &[T], last: Option<&str>, n: usize) -> Self
    where
        T: AsRef<str>,
    {
        let start = last.map_or(0, |last| sorted.partition_point(|entry| entry.as_ref() <= last));
        let end = start + n.min(sorted.len() - start);
        Self { entries: sorted[start..end].to_vec(), more: n > 0 && end < sorted.len() }
    }

    /// The page of two lists together, given the pages of `n` entries of each. What is in both is there once.
    #[must_use]
    pub fn union(mut self, other: Self, n: usize) -> Self {
        self.entries.extend(other.entries);
        self.entries.sort_unstable();
        self.entries.dedup();
        let more = self.more || other.more || self.entries.len() > n;
        self.entries.truncate(n);
        Self { entries: self.entries, more }
    }
}

/// A walk over repositories, in order, until there are enough.
struct Walk<'a> {
    listings: &'a Listings,
    found: Vec<String>,
    max: usize,
    on_unreadable: &'a mut dyn FnMut(io::Error) -> io::Result<()>,
}

impl Walk<'_> {
    /// What is below `directory`, where all names begin with `name`: the repositories whose further name is after `after`.
    ///
    /// As deep as a name has components: [`REPOSITORY_NAME_LEN_MAX`] bounds that.
    fn directory(
        &mut self,
        directory: &mut PathBuf,
        name: &mut String,
        after: Option<&str>,
    ) -> io::Result<()> {
        let names = match self.listings.read(directory, Entries::Repositories) {
            Ok(Some(listed)) => listed.names,
            Ok(None) => return Ok(()),
            Err(error) => return (self.on_unreadable)(error),
        };
        let mut start = names.index_after(after);
        let mut inside = None;
        // Nothing sorts between `a/` and a name that begins with it: it is the last entry that is not after the name.
        if let Some(before) = start.checked_sub(1)
            && let Some(after) = after
            && names.get(before).ends_with('/')
            && let Some(rest) = after.strip_prefix(names.get(before))
        {
            (start, inside) = (before, Some(rest));
        }
        for at in start..names.len() {
            if self.found.len() >= self.max {
                return Ok(());
            }
            let entry = names.get(at);
            let (component, is_below) =
                entry.strip_suffix('/').map_or((entry, false), |component| (component, true));
            let len = name.len();
            if len + component.len() > REPOSITORY_NAME_LEN_MAX {
                continue;
            }
            directory.push(component);
            name.push_str(entry);
            let walked = if is_below {
                self.directory(directory, name, inside.take())
            } else {
                self.repository(directory, name)
            };
            name.truncate(len);
            directory.pop();
            walked?;
        }
        Ok(())
    }

    fn repository(&mut self, directory: &Path, name: &str) -> io::Result<()> {
        match is_pullable(directory) {
            Ok(true) => self.found.push(name.to_owned()),
            Ok(false) => {}
            Err(error) => return (self.on_unreadable)(error),
        }
        Ok(())
    }
}

/// Whether a repository has a tag or a manifest.
fn is_pullable(repository: &Path) -> io::Result<bool> {
    let manifests = repository.join("_manifests");
    let lists = [("tags", "current/link"), ("revisions/sha256", "link"), ("revisions/sha512", "link")];
    for (list, link) in lists {
        let path = manifests.join(list);
        let Some(directory) = open(&path)? else { continue };
        let mut looked_at = 0;
        let mut found = false;
        each(&directory, |name, _| {
            looked_at += 1;
            found = looked_at > REMAINS_MAX || is_link(&directory, &format!("{name}/{link}"))?;
            Ok(!found)
        })
        .map_err(|error| named(&path, &error))?;
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether there is a link at `path` in `directory`: a file with content.
fn is_link(directory: &File, path: &str) -> io::Result<bool> {
    let stat = present(statat(directory, path, AtFlags::empty()).map_err(io::Error::from))?;
    Ok(stat.is_some_and(|stat| stat.st_size > 0 && FileType::from_raw_mode(stat.st_mode).is_file()))
}

/// Which entries of a directory are of interest.
#[derive(Clone, Copy)]
enum Entries {
    /// Those whose names are tags.
    Tags,
    /// Directories whose names are components of repositories' names: as `a`, and as `a/`.
    Repositories,
}

/// A directory and the names in it.
struct Listed {
    directory: File,
    names: Arc<Names>,
}

/// Sorted names, one after the other.
#[derive(Debug, Default)]
struct Names {
    text: Box<str>,
    /// Where each name ends.
    ends: Box<[u32]>,
}

impl Names {
    fn read(directory: &File, entries: Entries) -> io::Result<Self> {
        let mut text = String::new();
        // Start and end of each in `text`.
        let mut spans = Vec::<(usize, usize)>::new();
        let mut add = |name: &str, end: &str| {
            let start = text.len();
            text.extend([name, end]);
            spans.push((start, text.len()));
            if text.len() > DIRECTORY_BYTES_MAX {
                let most = format!("the names in it take more than {DIRECTORY_BYTES_MAX} bytes");
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, most));
            }
            Ok(true)
        };
        each(directory, |name, kind| match entries {
            Entries::Tags if name.parse::<Tag>().is_ok() => add(name, ""),
            Entries::Repositories
                if name.parse::<RepositoryName>().is_ok() && is_directory(directory, name, kind)? =>
            {
                add(name, "")?;
                add(name, "/")
            }
            _ => Ok(true),
        })?;
        spans.sort_unstable_by(|a, b| text[a.0..a.1].cmp(&text[b.0..b.1]));
        let mut sorted = String::with_capacity(text.len());
        let mut ends = Vec::with_capacity(spans.len());
        for (start, end) in spans {
            sorted.push_str(&text[start..end]);
            // DIRECTORY_BYTES_MAX is far below.
            ends.push(u32::try_from(sorted.len()).map_err(io::Error::other)?);
        }
        Ok(Self { text: sorted.into(), ends: ends.into() })
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    /// What they take, in bytes.
    fn bytes(&self) -> usize {
        self.text.len() + size_of_val(&*self.ends)
    }

    fn get(&self, at: usize) -> &str {
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[start as usize..self.ends[at] as usize]
    }

    /// Where those begin that are after `last`.
    fn index_after(&self, last: Option<&str>) -> usize {
        let Some(last) = last else { return 0 };
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.get(middle) <= last {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    fn after(&self, last: Option<&str>) -> impl Iterator<Item = &str> {
        (self.index_after(last)..self.len()).map(|at| self.get(at))
    }
}

/// A directory as it was; if it is the same again, so are the names in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    device: u64,
    inode: u64,
    len: u64,
    mtime: SystemTime,
    ctime: SystemTime,
}

impl From<&Stat> for State {
    fn from(stat: &Stat) -> Self {
        Self { device: stat.dev, inode: stat.ino, len: stat.len, mtime: stat.mtime, ctime: stat.ctime }
    }
}

/// The names that are kept.
#[derive(Debug)]
struct Kept {
    /// By device and inode.
    directories: LruCache<(u64, u64), (State, Arc<Names>)>,
    /// Of all names; at most [`KEPT_BYTES_MAX`].
    bytes: usize,
}

impl Kept {
    fn get(&mut self, state: &State) -> Option<Arc<Names>> {
        let (known, names) = self.directories.get(&(state.device, state.inode))?;
        (known == state).then(|| Arc::clone(names))
    }

    fn keep(&mut self, state: State, names: Arc<Names>) {
        let bytes = names.bytes();
        if bytes > KEPT_BYTES_MAX {
            return;
        }
        self.bytes += bytes;
        if let Some((_, (_, old))) = self.directories.push((state.device, state.inode), (state, names)) {
            self.bytes -= old.bytes();
        }
        while self.bytes > KEPT_BYTES_MAX
            && let Some((_, (_, old))) = self.directories.pop_lru()
        {
            self.bytes -= old.bytes();
        }
    }
}

/// Opens a directory; `None` if there is none.
fn open(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = present(openat(CWD, path, flags, Mode::empty()).map_err(io::Error::from));
    Ok(opened.map_err(|error| named(path, &error))?.map(File::from))
}

/// Tells `visit` each name in a directory that is UTF-8, and of what kind it is, until it returns `false`.
fn each(directory: &File, mut visit: impl FnMut(&str, FileType) -> io::Result<bool>) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(READ_BUFFER);
    let mut entries = RawDir::new(directory.as_fd(), buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if let Ok(name) = entry.file_name().to_str()
            && !matches!(name, "." | "..")
            && !visit(name, entry.file_type())?
        {
            break;
        }
    }
    Ok(())
}

fn is_directory(parent: &File, name: &str, kind: FileType) -> io::Result<bool> {
    if kind != FileType::Unknown {
        return Ok(kind.is_dir());
    }
    // Some filesystems do not tell.
    let stat = present(statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from))?;
    Ok(stat.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir()))
}

/// The error with the path that it is about.
fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
