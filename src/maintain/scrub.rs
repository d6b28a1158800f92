//! Scrubbing: everything that is stored is read again, and what is no longer what its name says loses the name.
//!
//! Disks lose bits without saying so. A blob was verified when it was stored and is served for years after that without
//! anybody hashing it again; clients would notice, and could do nothing. [`run`] reads every blob of a tree in the order
//! of the digests, from the disk rather than from memory ([`uncached`](crate::sys::uncached)), at a bounded rate, and
//! hashes it. What does not fit, or cannot be read, is read again; if it is still wrong, it is set aside
//! ([`quarantine`]): from then on nobody is sent it, a cache fetches it again when it is asked for, and
//! [`repair`](super::repair) fetches it again at once. If memory still has it right, a copy of that takes its place.
//!
//! **What is not an error**: a blob that is evicted or removed meanwhile; one that is being written under its name, as
//! docker-registry does with manifests (it is looked at again when it has settled, and let alone if it still changes); a
//! signed schema 1 manifest, whose digest is that of its payload. Layers of the Docker v1 protocol have no digest: nothing
//! can be said about them.
//!
//! **When to stop.** A hundred wrong blobs in a row are the machine's fault (its memory, its disk, a wrong mount) rather
//! than theirs: then nothing more is moved.
//!
//! **Runs at once**: one scrub in the background per tree (flock on `locks/scrub`), beside servers, fills, pushes and other
//! maintenance, and beside a scrub that somebody asked for. It takes no lock while it reads; a blob is set aside under its
//! digest's lock and only if it is the file that was read. What is hard-linked into two trees is read in each.
//!
//! **Survives a crash**: how far a scrub in the background has come (`progress`). A scrub that finds nothing writes
//! nothing else.
//!
//! Memory: one piece, and the names in one of 256 directories. Everything here blocks and belongs on a thread of its own.

mod pace;
mod progress;
mod reader;
mod report;

use std::fs::{self, File, Metadata};
use std::io;
use std::num::NonZeroU64;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use self::progress::{Progress, SAVE_EVERY};
use self::reader::{Reader, Reading, is_signed};
pub use self::report::{Cause, Event, Finding, Outcome, Reached, ScrubError, Scrubbed};
use super::Stop;
use crate::oci::{Algorithm, Digest};
use crate::store::Store;
use crate::store::ingest::open_lock;
use crate::store::quarantine::{self, FileIdentity};
use crate::sys::uncached::{Uncached, Way};

/// A file that changed less than this long ago may be about to change again.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
/// How often a blob is looked at that changes meanwhile.
const LOOKS_MAX: usize = 3;
/// Wrong blobs in a row after which it is not the blobs.
const WRONG_IN_A_ROW_MAX: u32 = 100;
/// How often it is told how far a scrub is.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// What a scrub needs to know.
#[derive(Clone, Copy, Debug)]
pub struct ScrubOptions {
    /// Bytes to be read per second at most.
    pub rate: NonZeroU64,
    /// Who wants it.
    pub run: Run,
}

/// Who wants a scrub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// A schedule: it goes on where the last one was interrupted, and there is one at a time.
    Background,
    /// Somebody who waits for it: everything is read, whoever else is at it.
    Foreground,
}

/// Reads everything that `store` holds, and sets aside what is wrong.
///
/// # Errors
/// It could not begin, or had to end early. What cannot be looked at, or not be set aside, is told and no error.
pub fn run(
    store: &Store,
    options: &ScrubOptions,
    stop: &Stop,
    report: &mut dyn FnMut(Event),
) -> Result<Scrubbed, ScrubError> {
    let _lock = match options.run {
        Run::Background => Some(lock(store)?),
        Run::Foreground => None,
    };
    if let Err(error) = quarantine::trim(store) {
        tracing::warn!(root = %store.layout().root().display(), %error, "cannot remove old files from quarantine");
    }
    let known = if options.run == Run::Background { Progress::load(store.layout()) } else { None };
    let progress = known.unwrap_or_else(Progress::beginning);
    let now = Instant::now();
    let done = Scrubbed { blobs: progress.blobs, bytes: progress.bytes, ..Scrubbed::default() };
    let reader = Reader::new(options.rate, stop);
    let mut scrub = Scrub {
        store,
        run: options.run,
        stop,
        report,
        reader,
        progress,
        done,
        in_a_row: 0,
        saved: now,
        told: now,
    };
    scrub.tell(scrub.share());
    let complete = scrub.tree()?;
    scrub.done.complete = complete;
    scrub.tell(if complete { 1.0 } else { scrub.share() });
    scrub.end(complete);
    Ok(scrub.done)
}

/// Whether the blob is what its name says; `None`: it is not held.
///
/// # Errors
/// It cannot be looked at. What the disk cannot give is wrong.
pub fn is_right(store: &Store, digest: &Digest) -> io::Result<Option<(bool, FileIdentity)>> {
    let path = store.layout().blob(digest);
    let file = match Uncached::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let identity = FileIdentity::from(&file.file().metadata()?);
    let stop = Stop::new();
    let mut reader = Reader::new(NonZeroU64::MAX, &stop);
    let reading = reader.read(file, digest)?;
    let right = matches!(reading, Reading::Right) || is_signed(&path, digest);
    Ok(Some((right, identity)))
}

/// One scrub under way.
struct Scrub<'a> {
    store: &'a Store,
    run: Run,
    stop: &'a Stop,
    report: &'a mut dyn FnMut(Event),
    reader: Reader<'a>,
    progress: Progress,
    done: Scrubbed,
    /// Wrong blobs since the last right one.
    in_a_row: u32,
    saved: Instant,
    told: Instant,
}

impl Scrub<'_> {
    /// Everything, in order. `false`: it was told to end.
    fn tree(&mut self) -> Result<bool, ScrubError> {
        let blobs = self.store.layout().blobs();
        for algorithm in Algorithm::ALL {
            let directory = blobs.join(algorithm.as_str());
            for prefix in self.names(&directory, 2) {
                let directory = directory.join(&prefix);
                let names = self.names(&directory, algorithm.hex_len());
                for name in names.iter().filter(|name| name.starts_with(&prefix)) {
                    let Ok(digest) = format!("{algorithm}:{name}").parse() else { continue };
                    if self.progress.last.is_some_and(|last| digest <= last) {
                        continue;
                    }
                    if self.stop.is_set() || !self.blob(&digest)? {
                        return Ok(false);
                    }
                    self.passed(digest);
                }
            }
        }
        Ok(true)
    }

    /// The entries of a directory that have this many hexadecimal digits, sorted.
    fn names(&mut self, directory: &Path, digits: usize) -> Vec<String> {
        let list = || -> io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in fs::read_dir(directory)? {
                if let Some(name) = entry?.file_name().to_str()
                    && name.len() == digits
                    && name.bytes().all(|byte| byte.is_ascii_hexdigit())
                {
                    names.push(name.to_owned());
                }
            }
            names.sort_unstable();
            Ok(names)
        };
        match list() {
            Ok(names) => names,
            Err(error) => {
                if !is_absence(&error) {
                    self.unchecked(directory, error);
                }
                Vec::new()
            }
        }
    }

    /// One blob. `false`: the scrub was told to end before it knew.
    fn blob(&mut self, digest: &Digest) -> Result<bool, ScrubError> {
        let path = self.store.layout().blob(digest);
        match self.look(&path, digest) {
            Ok(Look::Right) => self.in_a_row = 0,
            Ok(Look::Stopped) => return Ok(false),
            Ok(Look::Transient(cause)) => {
                self.in_a_row = 0;
                self.done.transient += 1;
                (self.report)(Event::Transient { digest: *digest, cause });
            }
            Ok(Look::Wrong(wrong)) => self.wrong(digest, wrong)?,
            // Its directory is what is left of it: nothing was read.
            Err(error) if is_absence(&error) => return Ok(true),
            Err(error) => self.unchecked(&path, error),
        }
        self.done.blobs += 1;
        Ok(true)
    }

    /// Reads a blob until it is either right or wrong, not about to change.
    fn look(&mut self, path: &Path, digest: &Digest) -> io::Result<Look> {
        for _ in 0..LOOKS_MAX {
            if let Some(look) = self.look_once(path, digest)? {
                return Ok(look);
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "it keeps being written"))
    }

    /// Reads a blob, and if that shows something wrong again: the same way, then what memory has of it. `None`: somebody
    /// writes to it.
    fn look_once(&mut self, path: &Path, digest: &Digest) -> io::Result<Option<Look>> {
        let file = Uncached::open(path)?;
        let (before, way) = (file.file().metadata()?, file.way());
        if !before.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let cause = match self.reader.read(file, digest)? {
            Reading::Right => return Ok(Some(Look::Right)),
            Reading::Stopped => return Ok(Some(Look::Stopped)),
            Reading::Wrong(cause) => cause,
        };
        if is_signed(path, digest) {
            return Ok(Some(Look::Right));
        }
        if is_young(&before) && !self.reader.wait(SETTLED_AFTER) {
            return Ok(Some(Look::Stopped));
        }
        let again = self.reader.read(Uncached::open(path)?, digest)?;
        let seen = fs::metadata(path)?;
        if !is_same(&before, &seen) {
            return Ok(None);
        }
        match again {
            Reading::Right => return Ok(Some(Look::Transient(cause))),
            Reading::Stopped => return Ok(Some(Look::Stopped)),
            Reading::Wrong(_) => {}
        }
        let in_memory = way == Way::Direct
            && matches!(self.reader.read(Uncached::open_buffered(path)?, digest)?, Reading::Right);
        Ok(Some(Look::Wrong(Wrong { seen, cause, in_memory })))
    }

    fn wrong(&mut self, digest: &Digest, wrong: Wrong) -> Result<(), ScrubError> {
        let Wrong { seen, cause, in_memory } = wrong;
        let identity = FileIdentity::from(&seen);
        let rescued = if in_memory { quarantine::rescue(self.store, digest, identity) } else { Ok(None) };
        let outcome = match rescued {
            Ok(Some(path)) => Outcome::Rescued(path),
            // A disk that takes no copy may still rename.
            Ok(None) | Err(_) => match quarantine::set_aside(self.store, digest, identity) {
                Ok(Some(path)) => Outcome::SetAside(path),
                // Evicted, removed or replaced a moment ago.
                Ok(None) => return Ok(()),
                Err(error) => Outcome::Left(error),
            },
        };
        self.done.wrong += 1;
        match &outcome {
            Outcome::SetAside(_) => {}
            Outcome::Rescued(_) => self.done.rescued += 1,
            Outcome::Left(_) => self.done.left += 1,
        }
        (self.report)(Event::Found(Finding { digest: *digest, len: seen.len(), cause, outcome }));
        self.in_a_row += 1;
        if self.in_a_row >= WRONG_IN_A_ROW_MAX {
            return Err(ScrubError::TooMany(*digest));
        }
        Ok(())
    }

    fn unchecked(&mut self, path: &Path, error: io::Error) {
        self.done.unchecked += 1;
        (self.report)(Event::Unchecked { path: path.to_owned(), error });
    }

    /// This blob is done with.
    fn passed(&mut self, digest: Digest) {
        self.progress.last = Some(digest);
        self.done.bytes += std::mem::take(&mut self.reader.bytes);
        if self.told.elapsed() >= TELL_EVERY {
            self.tell(self.share());
        }
        if self.saved.elapsed() >= SAVE_EVERY {
            self.save();
        }
    }

    fn share(&self) -> f64 {
        match &self.progress.last {
            Some(last) if last.algorithm() == Algorithm::Sha256 => {
                let bytes = last.bytes();
                f64::from(u16::from_be_bytes([bytes[0], bytes[1]])) / 65536.0
            }
            // Hardly anybody has any.
            Some(_) => 1.0,
            None => 0.0,
        }
    }

    fn tell(&mut self, share: f64) {
        self.told = Instant::now();
        let Scrubbed { blobs, bytes, .. } = self.done;
        (self.report)(Event::Reached(Reached { blobs, bytes, share }));
    }

    fn save(&mut self) {
        self.saved = Instant::now();
        if self.run == Run::Foreground {
            return;
        }
        self.progress.blobs = self.done.blobs;
        self.progress.bytes = self.done.bytes;
        if let Err(error) = self.progress.save(self.store.layout()) {
            tracing::warn!(%error, "cannot note how far a scrub is: after a restart it begins anew");
        }
    }

    fn end(&mut self, complete: bool) {
        if !complete {
            return self.save();
        }
        if self.run == Run::Background
            && let Err(error) = Progress::forget(self.store.layout())
        {
            tracing::warn!(%error, "cannot remove the note of how far a scrub is: the next one may begin at its end");
        }
    }
}

/// What looking at a blob showed.
enum Look {
    Right,
    Transient(Cause),
    Wrong(Wrong),
    Stopped,
}

/// A blob that was wrong twice.
struct Wrong {
    seen: Metadata,
    cause: Cause,
    /// Whether the page cache has it right.
    in_memory: bool,
}

/// Takes the lock of scrubs in the background; it goes with the file.
fn lock(store: &Store) -> Result<File, ScrubError> {
    let path = store.layout().job_lock("scrub");
    let locked = || {
        fs::create_dir_all(store.layout().locks())?;
        let file = open_lock(&path)?;
        Ok(file.try_lock().map(|()| file))
    };
    match locked() {
        Ok(Ok(file)) => Ok(file),
        Ok(Err(fs::TryLockError::WouldBlock)) => Err(ScrubError::Busy(store.layout().root().to_owned())),
        Ok(Err(fs::TryLockError::Error(error))) | Err(error) => Err(ScrubError::Lock { path, error }),
    }
}

fn is_absence(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// Whether nobody wrote to it in between. A look at it alone, or another link to it, does not count.
fn is_same(one: &Metadata, other: &Metadata) -> bool {
    FileIdentity::from(one) == FileIdentity::from(other)
        && one.len() == other.len()
        && one.modified().ok() == other.modified().ok()
}

fn is_young(meta: &Metadata) -> bool {
    let age = meta.modified().ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
    // A time to come is as young as can be.
    age.is_none_or(|age| age < SETTLED_AFTER)
}

#[cfg(test)]
mod tests;
