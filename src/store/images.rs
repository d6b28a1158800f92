//! Images of the Docker v1 protocol: their files, and a layer on its way to its name.
//!
//! An image is a directory, `images/<id>/`, as docker-registry 0.9 has it. Its `json` and `ancestry` are small and written
//! at once; its `layer` is filled, and has no digest to be known by.
//!
//! **Who may write.** A layer's fill lives in `fills/v1/<id>/` and belongs to whoever holds the flock on its `data` file;
//! [`claim`] takes it or says who has it. The lock goes with the handle, so a process that dies releases it. Other
//! processes follow the file ([`LayerFollower`]), which is written once, from front to end.
//!
//! **What survives a crash.** Published files. An interrupted fill is dropped, by the next claim or at start: without a digest
//! nothing says that what a source sends later is the rest of what it sent before.
//!
//! **Publication** ([`LayerIngest::publish`]): fdatasync of the data, then, under the lock of the image's shard, link(2)
//! to the final name and fsync of the directory and of each one newly made. A crash at any instant leaves no layer, or
//! the whole.
//!
//! Everything here blocks and belongs on a store thread, but [`look`].

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use serde::{Deserialize, Serialize};

use super::appended::Appended;
use super::blob::present;
use super::durable::{self, Syncs};
use super::ingest::{ShardLock, lock_file};
use super::layout::Layout;
use super::pump::Sink;
use crate::oci::{Digest, Hasher};
use crate::sys::files::{Files, Stat};

/// How many bytes an image's layer has.
pub const SIZE: HeaderName = HeaderName::from_static("x-docker-size");
/// The checksum of an image's json and layer.
pub const CHECKSUM_PAYLOAD: HeaderName = HeaderName::from_static("x-docker-checksum-payload");
const PAYLOAD_CHECKSUM: HeaderName = HeaderName::from_static("x-docker-payload-checksum");
/// How often a claim looks again when the fill's directory changes under it.
const CLAIM_ATTEMPTS: usize = 16;
/// A state file larger than this is not one of ours, in bytes.
const STATE_MAX: u64 = 4 << 10;
/// The last use of a layer is put on disk at most this often, in milliseconds.
const TOUCH_EVERY_MS: u64 = 180_000;

/// The id of an image: 16 or 64 hexadecimal digits, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageId(Arc<str>);

impl ImageId {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// It is not 16 or 64 hexadecimal digits in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the id of an image: 16 or 64 hexadecimal digits in lower case")]
pub struct InvalidImageId;

impl FromStr for ImageId {
    type Err = InvalidImageId;

    fn from_str(text: &str) -> Result<Self, InvalidImageId> {
        let is_hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if matches!(text.len(), 16 | 64) && is_hex { Ok(Self(text.into())) } else { Err(InvalidImageId) }
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an image's directory may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImageFile {
    /// Its own filesystem changes: a tar archive, compressed perhaps.
    Layer,
    /// What it is.
    Json,
    /// The list of its ancestors, itself first.
    Ancestry,
    /// A JSON list of checksums of json and layer.
    Checksum,
    /// It is being written: by docker-registry, which has no better way.
    InProgress,
    /// Empty: its source gives it to clients without credentials.
    Public,
    /// How many bytes the source says that the layer has, as decimal digits.
    Size,
}

impl ImageFile {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Layer => "layer",
            Self::Json => "json",
            Self::Ancestry => "ancestry",
            Self::Checksum => "_checksum",
            Self::InProgress => "_inprogress",
            Self::Public => "_public",
            Self::Size => "_size",
        }
    }
}

/// Opens a file, if it is there and is a file. Waits for no disk itself.
pub async fn look(files: &Files, path: &Path) -> io::Result<Option<(Arc<File>, Stat)>> {
    let Some(file) = present(files.open(path).await)? else { return Ok(None) };
    let stat = Stat::from(&file.metadata()?);
    Ok(stat.is_file.then(|| (Arc::new(file), stat)))
}

/// Whether there is something under this name. Waits for no disk itself.
pub async fn exists(files: &Files, path: &Path) -> io::Result<bool> {
    Ok(present(files.stat(path).await)?.is_some())
}

/// Waits for the lock under which the layer of an image is published or removed.
pub fn lock(layout: &Layout, image: &ImageId) -> io::Result<ShardLock> {
    lock_file(layout, &layout.image_lock(image))
}

/// Writes a small file of an image atomically, in place of what has its name; and durably, unless losing it costs only a
/// question to the source.
pub fn put(layout: &Layout, image: &ImageId, file: ImageFile, content: &[u8]) -> io::Result<()> {
    let path = layout.image(image, file);
    match file {
        // Whole, lost or empty: all of them do.
        ImageFile::Public | ImageFile::Size => durable::write_relaxed(&layout.temporary(), &path, content),
        _ => durable::write_after(Syncs::default(), &layout.temporary(), &path, &layout.images(), content),
    }
}

/// Writes the checksum of an image's json and layer, as docker-registry does.
pub fn put_checksum(layout: &Layout, image: &ImageId, checksum: &Digest) -> io::Result<()> {
    put(layout, image, ImageFile::Checksum, format!("[\"{checksum}\"]").as_bytes())
}

/// The checksum of json and layer in what a source says of an image: `X-Docker-Checksum-Payload`, or as some releases of
/// docker-registry have it, `X-Docker-Payload-Checksum`; a field for each checksum that it knows.
pub fn checksum_in(headers: &HeaderMap) -> Option<Digest> {
    let values = [CHECKSUM_PAYLOAD, PAYLOAD_CHECKSUM].map(|name| headers.get_all(name).into_iter());
    values.into_iter().flatten().find_map(|value| checksum_of(value.as_bytes()))
}

/// The first SHA-256 in a checksum file or header field: a JSON list as a rule, one of its items alone in old ones. There
/// are others beside it (`tarsum+sha256:…`), which are of something else.
pub fn checksum_of(text: &[u8]) -> Option<Digest> {
    let text = std::str::from_utf8(text).ok()?;
    let mut items = text.split(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | '[' | ']'));
    items.find(|item| item.starts_with("sha256:")).and_then(|item| item.parse().ok())
}

/// How many bytes the layer has by what a source says of an image (`X-Docker-Size`).
pub fn size_in(headers: &HeaderMap) -> Option<u64> {
    let size = headers.get(SIZE)?.to_str().ok()?.trim();
    size.bytes().all(|byte| byte.is_ascii_digit()).then(|| size.parse().ok()).flatten()
}

/// Keeps an answer about a repository, at `path` below [`Layout::v1_repositories`]: atomically, and durably, since nothing
/// would tell a part of it from the whole.
pub fn keep_answer(layout: &Layout, path: &Path, content: &[u8]) -> io::Result<()> {
    let top = layout.v1_repositories();
    durable::write_after(Syncs::default(), &layout.temporary(), path, &top, content)
}

/// Removes such a file; one that is gone is no error.
pub fn forget_answer(path: &Path) -> io::Result<()> {
    durable::remove_file(path)
}

/// Records on disk that a layer was used now, unless that was done lately. Returns at once; losing it is harmless.
pub fn touch(file: &Arc<File>, stat: &Stat) {
    let now = std::time::SystemTime::now();
    if now.duration_since(stat.atime).is_ok_and(|since| since.as_millis() < u128::from(TOUCH_EVERY_MS)) {
        return;
    }
    let file = Arc::clone(file);
    // Off the event loop: setting a time starts a journal transaction, which can wait for one under way.
    tokio::task::spawn_blocking(move || set_used(&file));
}

fn set_used(file: &File) {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    };
    if let Err(error) = rustix::fs::futimens(file, &times) {
        tracing::debug!(%error, "cannot record a layer's last use");
    }
}

/// What [`claim`] found.
#[derive(Debug)]
pub enum LayerClaim {
    /// The layer is published already.
    Stored,
    /// The fill is ours, from the start.
    Leader(Box<LayerIngest>),
    /// Another process is at it.
    Follower(LayerFollower),
}

/// Takes the fill of an image's layer, or says that it is stored or taken. The layer is hashed behind what `before` has
/// seen.
pub fn claim(layout: &Layout, image: &ImageId, before: &Hasher) -> io::Result<LayerClaim> {
    let path = layout.layer_fill(image).join("data");
    for _ in 0..CLAIM_ATTEMPTS {
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(layout.layer_fill(image))?;
                continue;
            }
            opened => opened?,
        };
        let inode = file.metadata()?.ino();
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let (layout, image, file) = (layout.clone(), image.clone(), Arc::new(file));
                return Ok(LayerClaim::Follower(LayerFollower { layout, image, file, inode }));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // The one who had the lock may have removed the file before we got it.
        if fs::metadata(&path).map(|named| named.ino()).ok() != Some(inode) {
            continue;
        }
        let data = Appended::behind(file, before.clone());
        let ingest = LayerIngest { layout: layout.clone(), image: image.clone(), data, inode };
        if layout.image(image, ImageFile::Layer).try_exists()? {
            ingest.discard()?;
            return Ok(LayerClaim::Stored);
        }
        let len = ingest.data.file().metadata()?.len();
        if len > 0 {
            // Others may be reading it: a fresh start is a new file, never the same one written again.
            tracing::info!(%image, bytes = len, "dropping an interrupted fill of a layer");
            ingest.discard()?;
            continue;
        }
        durable::remove(&ingest.state_path())?;
        return Ok(LayerClaim::Leader(Box::new(ingest)));
    }
    Err(io::Error::other(format!("the fill of layer {image} kept changing hands")))
}

/// The fill of a layer that this process owns.
#[derive(Debug)]
pub struct LayerIngest {
    layout: Layout,
    image: ImageId,
    data: Appended,
    inode: u64,
}

/// What the owner of a fill lets others know of it.
#[derive(Serialize, Deserialize)]
struct State {
    /// Of the file that this is about.
    inode: u64,
    /// What the source announced.
    length: Option<u64>,
}

impl Sink for LayerIngest {
    /// See `Appended::append`.
    fn append(&mut self, pieces: &[Bytes]) -> io::Result<()> {
        self.data.append(pieces)
    }

    fn written(&self) -> u64 {
        self.data.written()
    }
}

impl LayerIngest {
    /// The growing file, for readers.
    pub fn file(&self) -> Arc<File> {
        Arc::clone(self.data.file())
    }

    /// The digest of what came before the layer and of the layer as far as it is written.
    pub fn digest(&self) -> Digest {
        self.data.hasher().clone().finish()
    }

    /// Lets other processes know that the source has answered, and what length it announced.
    pub fn note_length(&self, length: Option<u64>) -> io::Result<()> {
        let state = serde_json::to_vec(&State { inode: self.inode, length })?;
        durable::write_relaxed(&self.layout.temporary(), &self.state_path(), &state)
    }

    /// Publishes a whole layer under its image's id, durably, and removes the fill. The bytes that it added to the tree.
    ///
    /// # Errors
    /// Any step's; no layer or the whole is under the name then, and the fill is gone.
    pub fn publish(self) -> io::Result<u64> {
        let published = self.publish_data();
        let (len, image) = (self.written(), self.image.clone());
        if let Err(error) = self.discard() {
            tracing::warn!(%image, %error, "cannot remove the fill of a layer");
        }
        Ok(if published? { len } else { 0 })
    }

    /// Whether there was none yet.
    fn publish_data(&self) -> io::Result<bool> {
        self.data.file().sync_data()?;
        set_used(self.data.file());
        let layer = self.layout.image(&self.image, ImageFile::Layer);
        let _shard = lock(&self.layout, &self.image)?;
        let mut linked = Syncs::default();
        if let Some(directory) = layer.parent() {
            linked.create_dir_all(directory)?;
        }
        let made = durable::link_new(&self.data_path(), &layer)?;
        linked.parents(&layer, &self.layout.images())?;
        linked.run()?;
        Ok(made)
    }

    /// Removes the fill's files. Readers that have the file open keep it.
    pub fn discard(self) -> io::Result<()> {
        durable::remove(&self.state_path())?;
        durable::remove(&self.data_path())?;
        // Another claimant may be making its own data file in there: then the directory stays.
        let _ = fs::remove_dir(self.layout.layer_fill(&self.image));
        Ok(())
    }

    fn data_path(&self) -> PathBuf {
        self.layout.layer_fill(&self.image).join("data")
    }

    fn state_path(&self) -> PathBuf {
        self.layout.layer_fill(&self.image).join("state.json")
    }
}

impl Drop for LayerIngest {
    fn drop(&mut self) {
        // Readers share the open file, and with it the lock: without this a slow reader would keep the fill claimed.
        let _ = self.data.file().unlock();
    }
}

/// The fill of a layer that another process owns, seen from outside.
#[derive(Debug)]
pub struct LayerFollower {
    layout: Layout,
    image: ImageId,
    file: Arc<File>,
    inode: u64,
}

/// How a followed fill stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerFollowed {
    /// The source has not answered yet.
    Waiting,
    /// So many bytes are there, of `length` if the source announced it.
    Growing {
        /// Bytes written so far.
        written: u64,
        /// The announced total.
        length: Option<u64>,
    },
    /// It is published: the file that we read is whole.
    Published {
        /// Total length in bytes.
        len: u64,
    },
    /// The owner gave up, or died: this file will not become whole.
    Gone,
}

impl LayerFollower {
    /// The growing file, for readers.
    pub fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Looks once.
    pub fn look(&self) -> io::Result<LayerFollowed> {
        let layer = self.layout.image(&self.image, ImageFile::Layer);
        let published = || fs::metadata(&layer).is_ok_and(|layer| layer.ino() == self.inode);
        if published() {
            return Ok(LayerFollowed::Published { len: self.file.metadata()?.len() });
        }
        match self.file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let written = self.file.metadata()?.len();
                let state = self.state().filter(|state| state.inode == self.inode);
                Ok(state.map_or(LayerFollowed::Waiting, |state| LayerFollowed::Growing {
                    written,
                    length: state.length,
                }))
            }
            Err(TryLockError::Error(error)) => Err(error),
            Ok(()) => {
                self.file.unlock()?;
                // It may have been published between the two looks.
                let len = self.file.metadata()?.len();
                Ok(if published() { LayerFollowed::Published { len } } else { LayerFollowed::Gone })
            }
        }
    }

    fn state(&self) -> Option<State> {
        let path = self.layout.layer_fill(&self.image).join("state.json");
        if fs::metadata(&path).ok()?.len() > STATE_MAX {
            return None;
        }
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }
}

#[cfg(test)]
mod tests;
