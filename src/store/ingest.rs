//! One blob on its way to its name: claimed, written, hashed, published.
//!
//! **Who may write.** A fill lives in `fills/<alg>/<hex>/` and belongs to whoever holds the flock on its `data` file;
//! [`claim`] takes it or says who has it. The lock goes with the handle, so a process that dies releases it, and a
//! follower takes over.
//!
//! **What survives a crash.** Data is appended and hashed in order, so the file's length says how far it got. At the
//! start and every `STATE_EVERY` bytes the hash state is written beside it (`state.json`). After a restart in the same
//! boot the kernel still holds every byte that was written: the state is believed if it fits the file (inode,
//! length), and what lies behind it is hashed. After a reboot nothing is believed, because data was never synced on the
//! way and pages may be zeros under a right state: the data up to the state is hashed again, and kept only if it
//! leads to the very same state; what lies behind it cannot be checked before the end, and goes. A fill whose state fits
//! neither way is dropped. So what a resumed fill shows its readers is what upstream sent.
//!
//! **Publication** ([`Ingest::publish`]): fdatasync of the data, then, under the digest's shard lock, link(2) to the final
//! name and fsync of the directory and of each one newly made. A crash at any instant leaves nothing under the
//! digest's name, or the whole blob.
//!
//! Everything here blocks and belongs on a store thread. Dropping an [`Ingest`] keeps its files for whoever resumes.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use rustix::fs::{Timespec, Timestamps};
use serde::{Deserialize, Serialize};

use super::appended::{Appended, REHASH_BUFFER};
use super::durable::{self, Syncs};
use super::layout::Layout;
use super::pump::Sink;
use crate::oci::{Digest, Hasher};

/// How much is written between two hash states on disk, in bytes: what a restart must hash again at most.
const STATE_EVERY: u64 = 32 << 20;
/// A state file larger than this is not one of ours, in bytes.
const STATE_MAX: u64 = 64 << 10;
const UTIME_NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
const UTIME_OMIT: Timespec = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
/// How often a claim looks again when the fill's directory changes under it.
const CLAIM_ATTEMPTS: usize = 16;

/// What [`claim`] found.
#[derive(Debug)]
pub enum Claim {
    /// The blob is published already.
    Stored,
    /// The fill is ours: new, or resumed where it stopped.
    Leader(Box<Ingest>),
    /// Another process is at it.
    Follower(Follower),
}

/// What is known of the source of a fill, kept so that it can be resumed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Total length in bytes, if upstream announced it.
    pub length: Option<u64>,
    /// Upstream's entity tag.
    pub etag: Option<String>,
}

/// Takes the fill of `digest`, or says that it is stored or taken.
pub fn claim(layout: &Layout, digest: &Digest) -> io::Result<Claim> {
    let path = layout.fill(digest).join("data");
    for _ in 0..CLAIM_ATTEMPTS {
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(layout.fill(digest))?;
                continue;
            }
            Err(error) => return Err(error),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let inode = file.metadata()?.ino();
                let file = Arc::new(file);
                return Ok(Claim::Follower(Follower {
                    layout: layout.clone(),
                    digest: *digest,
                    file,
                    inode,
                    origin: OnceLock::new(),
                }));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // The one who had the lock may have removed the file while we waited for it.
        let inode = file.metadata()?.ino();
        if fs::metadata(&path).map(|named| named.ino()).ok() != Some(inode) {
            continue;
        }
        let ingest = Ingest::new(layout.clone(), *digest, file, inode);
        if layout.blob(digest).try_exists()? {
            ingest.discard()?;
            return Ok(Claim::Stored);
        }
        if let Some(ingest) = ingest.resumed()? {
            return Ok(Claim::Leader(Box::new(ingest)));
        }
    }
    Err(io::Error::other(format!("the fill of {digest} kept changing hands")))
}

/// A fill that this process owns.
#[derive(Debug)]
pub struct Ingest {
    layout: Layout,
    digest: Digest,
    data: Appended,
    inode: u64,
    origin: Origin,
    /// Bytes hashed when the state was last put on disk; `state_at <= data.written()`.
    state_at: u64,
}

/// A hash state as it stands in `state.json`.
#[derive(Serialize, Deserialize)]
struct State {
    version: u32,
    digest: Digest,
    /// Bytes hashed.
    offset: u64,
    /// sha2's serialised state, base64.
    hash: String,
    inode: u64,
    boot: String,
    #[serde(flatten)]
    origin: Origin,
}

impl State {
    const VERSION: u32 = 1;
}

impl Sink for Ingest {
    /// See `Appended::append`.
    fn append(&mut self, pieces: &[Bytes]) -> io::Result<()> {
        self.data.append(pieces)?;
        if self.written() - self.state_at >= STATE_EVERY {
            self.save_state();
        }
        Ok(())
    }

    fn written(&self) -> u64 {
        self.data.written()
    }
}

impl Ingest {
    fn new(layout: Layout, digest: Digest, file: File, inode: u64) -> Self {
        let data = Appended::new(file, Hasher::new(digest.algorithm()));
        Self { layout, digest, data, inode, origin: Origin::default(), state_at: 0 }
    }

    /// Goes on where an interrupted fill stopped: the state if it can be believed, then hashing what lies behind it.
    /// `None`: what is there cannot become the blob, and is gone. A fresh start is a new file, never the same one
    /// written again: others may be reading this one.
    fn resumed(mut self) -> io::Result<Option<Self>> {
        let size = self.data.file().metadata()?.len();
        if size == 0 {
            // A state without data is of another file, whatever it says.
            durable::remove(&self.state_path())?;
            return Ok(Some(self));
        }
        let believed = match read_state(&self.layout, &self.digest) {
            Some(state) if state.inode == self.inode && state.offset <= size => self.believe(state, size)?,
            _ => false,
        };
        if !believed || self.origin.length.is_some_and(|length| self.written() > length) {
            tracing::info!(digest = %self.digest, "an interrupted fill cannot be trusted: it is dropped");
            self.discard()?;
            return Ok(None);
        }
        Ok(Some(self))
    }

    /// Takes over from a state of this very file what can be believed, and says whether it can.
    fn believe(&mut self, state: State, size: u64) -> io::Result<bool> {
        let hash = data_encoding::BASE64.decode(state.hash.as_bytes()).unwrap_or_default();
        let hasher = Hasher::restore(self.digest.algorithm(), &hash);
        let Some(hasher) = hasher.filter(|hasher| hasher.len() == state.offset) else { return Ok(false) };
        self.origin = state.origin;
        if state.boot == boot_id() {
            self.data.set_hasher(hasher);
            self.state_at = state.offset;
            self.data.hash_up_to(size)?;
            return Ok(true);
        }
        self.data.hash_up_to(state.offset)?;
        if self.data.hasher().state() != hasher.state() {
            return Ok(false);
        }
        // Nobody has seen what lies behind: followers go by a state of this boot, and this is the first.
        self.data.file().set_len(state.offset)?;
        self.save_state();
        Ok(true)
    }

    /// The digest that this fill is to have.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Bytes written and hashed so far.
    pub fn written(&self) -> u64 {
        self.data.written()
    }

    /// The growing file, for readers.
    pub fn file(&self) -> Arc<File> {
        Arc::clone(self.data.file())
    }

    /// The hash over what is written, to go on without this file.
    pub fn hasher(&self) -> Hasher {
        self.data.hasher().clone()
    }

    /// What was known of the source when the fill was interrupted.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Notes what is known of the source, for a later resumption.
    pub fn set_origin(&mut self, origin: Origin) {
        if self.origin != origin {
            self.origin = origin;
            self.save_state();
        }
    }

    /// Puts the hash state on disk, for whoever resumes. Without it the fill begins anew, so a failure is only logged.
    pub fn save_state(&mut self) {
        self.state_at = self.written();
        if let Err(error) = self.write_state() {
            tracing::warn!(digest = %self.digest, %error, "cannot save how far a fill is: if it is interrupted, it begins anew");
        }
    }

    fn write_state(&self) -> io::Result<()> {
        let state = State {
            version: State::VERSION,
            digest: self.digest,
            offset: self.written(),
            hash: data_encoding::BASE64.encode(&self.data.hasher().state()),
            inode: self.inode,
            boot: boot_id().to_owned(),
            origin: self.origin.clone(),
        };
        let json = serde_json::to_vec(&state)?;
        durable::write_relaxed(&self.layout.temporary(), &self.state_path(), &json)
    }

    /// Whether what is written has the digest that it should have, and if not, which it has.
    pub fn verify(&self) -> Result<(), Digest> {
        let actual = self.data.hasher().clone().finish();
        if actual == self.digest { Ok(()) } else { Err(actual) }
    }

    /// Publishes a verified fill under its digest, durably, and removes the fill. The bytes it added to the tree.
    ///
    /// # Errors
    /// Any step's; nothing or the whole blob is under the digest's name then. If the data could not be synced the fill is
    /// gone: the kernel reports such a failure once, and calls the pages clean afterwards. Otherwise it is left as it is.
    pub fn publish(self) -> io::Result<u64> {
        if let Err(actual) = self.verify() {
            return Err(io::Error::other(format!("{} has digest {actual}", self.digest)));
        }
        if let Err(error) = self.data.file().sync_data() {
            self.discard()?;
            return Err(error);
        }
        // Being fetched is being used; eviction looks at the access time.
        let now = Timestamps { last_access: UTIME_NOW, last_modification: UTIME_OMIT };
        if let Err(error) = rustix::fs::futimens(self.data.file(), &now) {
            tracing::debug!(digest = %self.digest, %error, "cannot set a blob's access time");
        }
        let target = self.layout.blob(&self.digest);
        let data = self.data_path();
        let made =
            link_under_lock(&self.layout, &self.digest, &target, || durable::link_new(&data, &target))?;
        let (len, digest) = (self.written(), self.digest);
        if let Err(error) = self.discard() {
            tracing::warn!(%digest, %error, "cannot remove a fill whose blob is published");
        }
        Ok(if made { len } else { 0 })
    }

    /// Removes the fill's files. Readers that have the file open keep it.
    pub fn discard(self) -> io::Result<()> {
        // The state first: without its data it could be taken for that of a later file with the same inode number.
        durable::remove(&self.state_path())?;
        durable::remove(&self.data_path())?;
        // Another claimant may be making its own data file in there: then the directory stays.
        let _ = fs::remove_dir(self.layout.fill(&self.digest));
        Ok(())
    }

    fn data_path(&self) -> PathBuf {
        self.layout.fill(&self.digest).join("data")
    }

    fn state_path(&self) -> PathBuf {
        self.layout.fill(&self.digest).join("state.json")
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        // Readers share the open file, and with it the lock: without this a slow reader would keep the fill claimed.
        let _ = self.data.file().unlock();
    }
}

/// A fill that another process owns, seen from outside.
#[derive(Debug)]
pub struct Follower {
    layout: Layout,
    digest: Digest,
    file: Arc<File>,
    inode: u64,
    /// What the owner noted of the source; noted once, when upstream has answered.
    origin: OnceLock<Origin>,
}

/// How a followed fill stands.
#[derive(Debug)]
pub enum Followed {
    /// `written` bytes are there; `length` is what the owner knows of the total.
    Growing {
        /// Bytes written so far.
        written: u64,
        /// The announced total, if the owner has noted one.
        origin: Option<Origin>,
    },
    /// It is published: the file that we read is whole.
    Published {
        /// Total length in bytes.
        len: u64,
    },
    /// The owner died; the fill is ours now, at the same file.
    TakenOver(Box<Ingest>),
    /// The owner gave up and removed the fill.
    Removed,
}

impl Follower {
    /// The growing file, for readers.
    pub fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Looks once. Blocks only while it takes over (hashing what lies behind the last state).
    pub fn look(&self) -> io::Result<Followed> {
        let published =
            || fs::metadata(self.layout.blob(&self.digest)).is_ok_and(|blob| blob.ino() == self.inode);
        if published() {
            return Ok(Followed::Published { len: self.file.metadata()?.len() });
        }
        match self.file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let written = self.file.metadata()?.len();
                if self.origin.get().is_none()
                    && let Some(state) = read_state(&self.layout, &self.digest)
                    && state.inode == self.inode
                    && state.boot == boot_id()
                {
                    let _ = self.origin.set(state.origin);
                }
                return Ok(Followed::Growing { written, origin: self.origin.get().cloned() });
            }
            Err(TryLockError::Error(error)) => return Err(error),
            Ok(()) => {}
        }
        if published() {
            self.file.unlock()?;
            return Ok(Followed::Published { len: self.file.metadata()?.len() });
        }
        let named = fs::metadata(self.layout.fill(&self.digest).join("data")).map(|named| named.ino()).ok();
        if named != Some(self.inode) {
            return Ok(Followed::Removed);
        }
        let file = self.file.try_clone()?; // the same open file description: the lock is shared
        let ingest = Ingest::new(self.layout.clone(), self.digest, file, self.inode);
        Ok(ingest.resumed()?.map_or(Followed::Removed, |ingest| Followed::TakenOver(Box::new(ingest))))
    }

    /// What the owner left in the file, hashed, and what it noted of the source: to go on without the file's name.
    pub fn salvage(&self) -> io::Result<(Hasher, Origin)> {
        let mut hasher = Hasher::new(self.digest.algorithm());
        let mut buffer = vec![0; REHASH_BUFFER];
        loop {
            match self.file.read_at(&mut buffer, hasher.len())? {
                0 => return Ok((hasher, self.origin.get().cloned().unwrap_or_default())),
                read => hasher.update(&buffer[..read]),
            }
        }
    }
}

/// The exclusive lock of a digest's shard; released on drop.
#[derive(Debug)]
pub struct ShardLock {
    _file: File,
}

/// Waits for the lock under which `digest` is published, linked or swept. Held for the time of a few system calls.
pub fn lock_shard(layout: &Layout, digest: &Digest) -> io::Result<ShardLock> {
    lock_file(layout, &layout.lock(digest))
}

/// Waits for a lock.
pub(super) fn lock_file(layout: &Layout, path: &Path) -> io::Result<ShardLock> {
    let file = match open_lock(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(layout.locks())?;
            open_lock(path)?
        }
        opened => opened?,
    };
    file.lock()?;
    Ok(ShardLock { _file: file })
}

/// Opens a file that is there to be locked, and makes it if it is not there. Whoever may read it may lock it, so one that
/// another user made serves as well.
pub(crate) fn open_lock(path: &Path) -> io::Result<File> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            OpenOptions::new().write(true).create(true).truncate(false).open(path)
        }
        opened => opened,
    }
}

/// Publishes a small, already verified file under its digest, durably. The bytes it added to the tree.
pub fn publish_small(layout: &Layout, digest: &Digest, content: &[u8]) -> io::Result<u64> {
    let target = layout.blob(digest);
    if target.try_exists()? {
        return Ok(0);
    }
    let mut temporary = durable::Temporary::create(&layout.temporary())?;
    temporary.write(content)?;
    temporary.sync()?;
    let made = link_under_lock(layout, digest, &target, || temporary.link(&target))?;
    Ok(if made { content.len() as u64 } else { 0 })
}

/// Makes the directory of `target`, links into it by `link`, and syncs it: all under the digest's lock, so that nobody
/// removes the directory in between, and whoever finds the name taken finds it durable.
fn link_under_lock(
    layout: &Layout,
    digest: &Digest,
    target: &Path,
    link: impl FnOnce() -> io::Result<bool>,
) -> io::Result<bool> {
    let _shard = lock_shard(layout, digest)?;
    let (made, linked) = link_blob(layout, target, link)?;
    linked.run()?;
    Ok(made)
}

/// Makes the directory of the blob `target` and links into it by `link`, which says whether the name was free. It is there
/// for good once what is returned has run. The caller has the digest's lock.
pub(super) fn link_blob(
    layout: &Layout,
    target: &Path,
    link: impl FnOnce() -> io::Result<bool>,
) -> io::Result<(bool, Syncs)> {
    let mut linked = Syncs::default();
    if let Some(directory) = target.parent() {
        linked.create_dir_all(directory)?;
    }
    let made = link()?;
    linked.parents(target, &layout.blobs())?;
    Ok((made, linked))
}

fn read_state(layout: &Layout, digest: &Digest) -> Option<State> {
    let path = layout.fill(digest).join("state.json");
    if fs::metadata(&path).ok()?.len() > STATE_MAX {
        return None;
    }
    let state: State = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (state.version == State::VERSION && state.digest == *digest).then_some(state)
}

/// Identifies the running kernel's boot; empty (which no state carries twice) where it cannot be read.
fn boot_id() -> &'static str {
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(|| match fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Ok(id) => id.trim().to_owned(),
        Err(_) => format!("unknown-{:016x}", fastrand::u64(..)),
    })
}

#[cfg(test)]
mod tests;
