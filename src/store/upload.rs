//! Upload sessions: a blob that clients push, chunk by chunk, through any process on the directory.
//!
//! A session is a directory in its repository, as distribution has it, so that either can go on with the other's:
//!
//! ```text
//! _uploads/<uuid>/data                         what was received
//! _uploads/<uuid>/startedat                    RFC 3339
//! _uploads/<uuid>/hashstates/<alg>/<offset>    Go's hash state over the first <offset> bytes
//! ```
//!
//! **Who may write.** Whoever holds the flock on `data`; a second one at the same time is turned away. distribution knows
//! no such lock, and is not to be given the same session at the same moment.
//!
//! **What survives.** At the end of each chunk, and every `STATE_EVERY` bytes of a long one, the data is synced, then the
//! hash state written: so a state never speaks of data that a power cut could take. One that distribution wrote is not
//! known to be of that kind, and nothing tells whose it is; so states older than the machine's start are not believed,
//! and the data before them is hashed again, what lies behind them dropped. A state that is missing or does not fit costs
//! the same. Should a digest not match though the hash went on from a state, everything is hashed once more before the
//! client is blamed.
//!
//! **Publication** ([`Upload::finish`]): the data is synced, then, under the digest's lock, linked to the blob's name; the
//! blob's directories and the content of the repository's link are synced together; then the link is renamed to its place,
//! its directories synced together. Only then the session goes. A crash in between leaves the session, and a client that asks again gets the same answer.
//!
//! Everything here blocks and belongs on a store thread. Dropping an [`Upload`] leaves the session as it is on disk.

mod states;

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use humantime_serde::re::humantime;
use ring::rand::{SecureRandom, SystemRandom};

use super::appended::Appended;
use super::durable::{self, Syncs};
use super::ingest::{link_blob, lock_shard};
use super::layout::{Layout, LinkKind, StoredRepository};
use super::pump::Sink;
use super::refs;
use super::stamp::{Stamp, stamp};
use crate::oci::{Algorithm, Digest, Hasher};
use states::States;

/// How much of one chunk is written between two hash states on disk, in bytes.
const STATE_EVERY: u64 = 64 << 20;

/// The bounds of upload sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadLimits {
    /// Sessions that a repository may have at once.
    pub sessions_max: usize,
    /// A session that nothing was written to for so long is over.
    pub expiry: Duration,
    /// The largest blob, in bytes.
    pub bytes_max: u64,
}

/// The name of a session: a UUID (RFC 9562, version 4) that nobody can guess.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UploadId(Arc<str>);

impl UploadId {
    /// A new one.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 16];
        SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("no random numbers"))?;
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let hex = data_encoding::HEXLOWER.encode(&bytes);
        let text = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
        Ok(Self(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UploadId {
    type Err = ();

    /// Takes a UUID of any version, in lower case: other names are no sessions.
    fn from_str(text: &str) -> Result<Self, ()> {
        let groups: Vec<_> = text.split('-').map(str::len).collect();
        let hex = |byte: u8| byte == b'-' || matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if groups == [8, 4, 4, 4, 12] && text.bytes().all(hex) { Ok(Self(text.into())) } else { Err(()) }
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What [`Upload::open`] found.
#[derive(Debug)]
pub enum Opened {
    /// There is no such session.
    Absent,
    /// Somebody is writing to it; so many bytes are there.
    Busy(u64),
    /// It is ours until it is dropped.
    Open(Box<Upload>),
}

/// Why an upload is not a blob.
#[derive(Debug)]
pub enum Unfinished {
    /// What was received has another digest; the session stays.
    Digest(Digest),
    /// The disk failed; the session stays as far as it can.
    Disk(io::Error),
}

impl From<io::Error> for Unfinished {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

/// A session that this caller may write to.
#[derive(Debug)]
pub struct Upload {
    layout: Layout,
    repository: StoredRepository,
    id: UploadId,
    data: Appended,
    started: String,
    /// Where the newest state on disk stands.
    state_at: Option<u64>,
    /// The hash went on from a state, not from the data.
    believed: bool,
}

impl Upload {
    /// Begins a session; `None` if the repository has too many.
    ///
    /// # Errors
    /// The disk's.
    pub fn begin(
        layout: &Layout,
        repository: &StoredRepository,
        algorithm: Algorithm,
        limits: &UploadLimits,
    ) -> io::Result<Option<Box<Self>>> {
        let uploads = layout.uploads(repository);
        let is_full = || {
            durable::while_directories_vanish(|| {
                // What is made here is part of the way to later links, which must not lose it.
                durable::create_dir_all(&uploads)?;
                Ok(fs::read_dir(&uploads)?.take(limits.sessions_max).count() == limits.sessions_max)
            })
        };
        if is_full()? {
            sweep(layout, repository, limits.expiry)?;
            if is_full()? {
                return Ok(None);
            }
        }
        let id = UploadId::random()?;
        durable::while_directories_vanish(|| {
            durable::create_dir_all(&uploads)?;
            fs::create_dir(layout.upload(repository, &id))
        })?;
        let started = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        fs::write(layout.upload_started(repository, &id), &started)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(layout.upload_data(repository, &id))?;
        file.lock()?;
        let data = Appended::new(file, Hasher::new(algorithm));
        let mut upload = Self::new(layout, repository, id, data, started);
        upload.write_state()?;
        Ok(Some(Box::new(upload)))
    }

    /// Goes on with a session, wherever it was begun.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(
        layout: &Layout,
        repository: &StoredRepository,
        id: &UploadId,
        limits: &UploadLimits,
    ) -> io::Result<Opened> {
        let path = layout.upload_data(repository, id);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if is_absence(&error) => return Ok(Opened::Absent),
            Err(error) => return Err(error),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Opened::Busy(file.metadata()?.len())),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let meta = file.metadata()?;
        // Whoever had the lock may have ended the session.
        if fs::metadata(&path).map(|named| named.ino()).ok() != Some(meta.ino()) {
            return Ok(Opened::Absent);
        }
        if meta.modified().is_ok_and(|modified| is_over(modified, limits.expiry)) {
            remove_session(layout, repository, id)?;
            return Ok(Opened::Absent);
        }
        let started = match fs::read_to_string(layout.upload_started(repository, id)) {
            Ok(started) => started.trim().to_owned(),
            Err(error) if is_absence(&error) => return Ok(Opened::Absent),
            Err(error) => return Err(error),
        };
        let file = if meta.nlink() > 1 { parted(layout, file, &path)? } else { file };
        let states = States::read(layout, repository, id)?;
        let data = Appended::new(file, Hasher::new(states.algorithm));
        let mut upload = Self::new(layout, repository, id.clone(), data, started);
        upload.catch_up(states, meta.len())?;
        Ok(Opened::Open(Box::new(upload)))
    }

    /// A session about whose states nothing is known yet.
    fn new(
        layout: &Layout,
        repository: &StoredRepository,
        id: UploadId,
        data: Appended,
        started: String,
    ) -> Self {
        let (layout, repository) = (layout.clone(), repository.clone());
        Self { layout, repository, id, data, started, state_at: None, believed: false }
    }

    /// Brings the hash to where the data ends.
    fn catch_up(&mut self, mut states: States, size: u64) -> io::Result<()> {
        self.cut(&mut states, size)?;
        let newest = states.newest_up_to(size);
        let mut end = size;
        if let Some(state) = &newest {
            if state.of_this_boot {
                if let Some(hasher) = states.hasher(state) {
                    self.believed = state.offset > 0;
                    self.state_at = Some(state.offset);
                    self.data.set_hasher(hasher);
                }
            } else if state.offset > 0 {
                // What lies behind was not synced, and the machine has been down since.
                end = state.offset;
                self.cut(&mut states, end)?;
            }
        }
        self.data.hash_up_to(end)
    }

    /// The session's name.
    pub fn id(&self) -> &UploadId {
        &self.id
    }

    /// When it was begun, as it stands on disk (RFC 3339).
    pub fn started(&self) -> &str {
        &self.started
    }

    /// Bytes received so far.
    pub fn size(&self) -> u64 {
        self.data.written()
    }

    /// Ends a chunk: what was received is synced, then the hash state. What a failed write left behind is cut off.
    ///
    /// # Errors
    /// The disk's: then nothing since the last checkpoint is certain.
    pub fn checkpoint(&mut self) -> io::Result<()> {
        self.cut_off_failed()?;
        if self.state_at == Some(self.size()) {
            return Ok(());
        }
        self.data.file().sync_data()?;
        self.write_state()
    }

    /// Takes back what was received behind `size`.
    ///
    /// # Errors
    /// The disk's.
    pub fn rewind(&mut self, size: u64) -> io::Result<()> {
        let states = States::read(&self.layout, &self.repository, &self.id)?;
        self.data.set_hasher(Hasher::new(self.data.hasher().algorithm()));
        self.state_at = None;
        self.catch_up(states, size)
    }

    /// Cuts off what a failed write left behind what counts as written.
    fn cut_off_failed(&mut self) -> io::Result<()> {
        if self.data.file().metadata()?.len() == self.size() {
            return Ok(());
        }
        let mut states = States::read(&self.layout, &self.repository, &self.id)?;
        self.cut(&mut states, self.size())
    }

    /// Cuts the data off behind `size`; before that, the states that speak of more: once other data has grown to where they
    /// stand, they would be taken for its own, and the upload for a blob that it is not.
    fn cut(&mut self, states: &mut States, size: u64) -> io::Result<()> {
        states.remove_behind(size)?;
        self.state_at = self.state_at.filter(|at| *at <= size);
        if self.data.file().metadata()?.len() == size {
            // Its time of modification is the session's age.
            return Ok(());
        }
        self.data.file().set_len(size)
    }

    fn write_state(&mut self) -> io::Result<()> {
        let (algorithm, size) = (self.data.hasher().algorithm(), self.size());
        let path = |offset| self.layout.upload_state(&self.repository, &self.id, algorithm, offset);
        let state = self.data.hasher().hashstate();
        durable::write_relaxed(&self.layout.temporary(), &path(size), &state)?;
        // distribution keeps them all, and needs the newest; the one of offset 0 it makes itself.
        if let Some(before) = self.state_at.filter(|before| *before > 0 && *before != size) {
            durable::remove_file(&path(before))?;
        }
        self.state_at = Some(size);
        Ok(())
    }

    /// Makes the upload the blob `digest`, reachable through its repository, durably, and ends the session. The bytes that
    /// this added to the tree.
    pub fn finish(mut self: Box<Self>, digest: &Digest) -> Result<u64, Unfinished> {
        let size = self.size();
        self.cut_off_failed()?;
        let mut actual = self.digest(digest.algorithm())?;
        if actual != *digest && self.believed {
            // Before the client is blamed, the state that the hash went on from is doubted.
            self.data.set_hasher(Hasher::new(self.data.hasher().algorithm()));
            self.data.hash_up_to(size)?;
            self.believed = false;
            actual = self.digest(digest.algorithm())?;
        }
        if actual != *digest {
            return Err(Unfinished::Digest(actual));
        }
        self.data.file().sync_data()?;
        let data = self.layout.upload_data(&self.repository, &self.id);
        let _shard = lock_shard(&self.layout, digest)?;
        let (made, published) = publish_linked(&self.layout, &data, digest, Stamp::Promised)?;
        refs::link_after(published, &self.layout, &self.repository, LinkKind::Layer, digest)?;
        remove_session(&self.layout, &self.repository, &self.id)?;
        Ok(if made { size } else { 0 })
    }

    /// The digest of what was received, by an algorithm that need not be the one it was hashed with.
    fn digest(&self, algorithm: Algorithm) -> io::Result<Digest> {
        if algorithm == self.data.hasher().algorithm() {
            return Ok(self.data.hasher().clone().finish());
        }
        let mut data = Appended::new(self.data.file().try_clone()?, Hasher::new(algorithm));
        data.hash_up_to(self.size())?;
        Ok(data.hasher().clone().finish())
    }

    /// Ends the session without a blob.
    ///
    /// # Errors
    /// The disk's.
    pub fn cancel(self: Box<Self>) -> io::Result<()> {
        remove_session(&self.layout, &self.repository, &self.id)
    }
}

impl Sink for Upload {
    fn append(&mut self, pieces: &[Bytes]) -> io::Result<()> {
        self.data.append(pieces)?;
        if self.size() - self.state_at.unwrap_or(0) >= STATE_EVERY {
            self.checkpoint()?;
        }
        Ok(())
    }

    fn written(&self) -> u64 {
        self.size()
    }
}

/// A session that was interrupted between publication and its own end shares its file with a blob, which nobody may
/// change: it goes on with a copy.
fn parted(layout: &Layout, mut shared: File, path: &Path) -> io::Result<File> {
    let mut copy = durable::Temporary::create(&layout.temporary())?;
    copy.take_all(&mut shared)?;
    // Locked before it has the session's name: whoever opens it by that finds the session taken.
    let file = copy.locked()?;
    copy.sync()?;
    copy.replace(path)?;
    durable::sync_parent(path)?;
    Ok(file)
}

/// Gives a synced file its blob's name, under the digest's lock. Says whether the name was free; in any case the blob's age
/// begins anew, as its file may be older than its name. The blob is there for good once what is returned has run.
pub(super) fn publish_linked(
    layout: &Layout,
    data: &Path,
    digest: &Digest,
    how: Stamp,
) -> io::Result<(bool, Syncs)> {
    let target = layout.blob(digest);
    let (made, published) = link_blob(layout, &target, || durable::link_new(data, &target))?;
    stamp(&target, how)?;
    Ok((made, published))
}

/// Removes the sessions of a repository that are over. How many.
///
/// # Errors
/// The directory cannot be read; a session that cannot be removed is logged and left.
pub fn sweep(layout: &Layout, repository: &StoredRepository, expiry: Duration) -> io::Result<usize> {
    let mut removed = 0;
    each_over(layout, repository, expiry, |id, _| match remove_session(layout, repository, id) {
        Ok(()) => removed += 1,
        Err(error) => tracing::warn!(%repository, upload = %id, %error, "cannot remove an upload"),
    })?;
    Ok(removed)
}

/// Calls `visit` for each session of a repository that is over, which nobody can go on with meanwhile, with the bytes that
/// it takes.
///
/// # Errors
/// The directory cannot be read.
pub(crate) fn each_over(
    layout: &Layout,
    repository: &StoredRepository,
    expiry: Duration,
    mut visit: impl FnMut(&UploadId, u64),
) -> io::Result<()> {
    let entries = match fs::read_dir(layout.uploads(repository)) {
        Ok(entries) => entries,
        Err(error) if is_absence(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<UploadId>().ok()) else { continue };
        // Held until it was visited.
        let file = OpenOptions::new().write(true).open(layout.upload_data(repository, &id));
        let over = match &file {
            Ok(file) => match file.metadata() {
                Ok(meta) if meta.modified().is_ok_and(|at| is_over(at, expiry)) => {
                    // What shares its file with a blob frees nothing.
                    file.try_lock().is_ok().then_some(if meta.nlink() > 1 { 0 } else { meta.len() })
                }
                _ => None,
            },
            // Without data it is none; it may be about to get some.
            Err(error) if is_absence(error) => fs::metadata(layout.upload(repository, &id))
                .and_then(|meta| meta.modified())
                .is_ok_and(|at| is_over(at, expiry))
                .then_some(0),
            Err(_) => None,
        };
        if let Some(bytes) = over {
            visit(&id, bytes);
        }
    }
    Ok(())
}

/// A clock that stepped back makes a session young.
fn is_over(modified: SystemTime, expiry: Duration) -> bool {
    SystemTime::now().duration_since(modified).is_ok_and(|age| age > expiry)
}

/// Ends a session that nobody is writing to.
pub(crate) fn remove_session(
    layout: &Layout,
    repository: &StoredRepository,
    id: &UploadId,
) -> io::Result<()> {
    // The data first: from then on there is no session, whatever happens to the rest.
    durable::remove_file(&layout.upload_data(repository, id))?;
    match fs::remove_dir_all(layout.upload(repository, id)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests;
