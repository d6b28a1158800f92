//! What a scrub tells, and what it comes to.

use std::io;
use std::path::PathBuf;

use super::WRONG_IN_A_ROW_MAX;
use crate::oci::Digest;

/// What happens in a scrub.
#[derive(Debug)]
pub enum Event {
    /// So far so good; told at the beginning, every now and then, and at the end.
    Reached(Reached),
    /// A blob is not what its name says.
    Found(Finding),
    /// A blob was read wrong once, and right the second time: the disk, its cable, or this machine's memory.
    Transient {
        /// Its name.
        digest: Digest,
        /// What was wrong.
        cause: Cause,
    },
    /// Something could not be looked at.
    Unchecked {
        /// A file or a directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// How far a scrub is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reached {
    /// Blobs looked at.
    pub blobs: u64,
    /// Bytes read.
    pub bytes: u64,
    /// The part of all blobs that is done, from 0 to 1: digests are spread evenly, and looked at in their order.
    pub share: f64,
}

/// A blob that is not what its name says, and what became of it.
#[derive(Debug)]
pub struct Finding {
    /// What it should be.
    pub digest: Digest,
    /// Its length on disk, in bytes.
    pub len: u64,
    /// What it is.
    pub cause: Cause,
    /// What became of it.
    pub outcome: Outcome,
}

/// What is wrong with a blob.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// Its bytes are those of another digest.
    #[error("its bytes have the digest {0}")]
    Content(Box<Digest>),
    /// The disk does not give them.
    #[error("it cannot be read from byte {offset} on: {error}")]
    Unreadable {
        /// Where it fails, to the piece.
        offset: u64,
        /// The system's word.
        error: io::Error,
    },
}

/// What became of a blob that is wrong.
#[derive(Debug)]
pub enum Outcome {
    /// It is there, and has no name any more.
    SetAside(PathBuf),
    /// It is there, and what memory held of it, which was right, is on disk in its place.
    Rescued(PathBuf),
    /// It has its name still, because it could not be moved.
    Left(io::Error),
}

/// What a scrub came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Blobs looked at, those before an interruption included.
    pub blobs: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Blobs that were wrong, whatever became of them.
    pub wrong: u64,
    /// Of these, those that memory still had right.
    pub rescued: u64,
    /// Of these, those that could not even be set aside.
    pub left: u64,
    /// Blobs that were read wrong once.
    pub transient: u64,
    /// Files and directories that could not be looked at.
    pub unchecked: u64,
    /// Whether all of the tree was looked at; else the scrub was told to end.
    pub complete: bool,
}

/// Why a scrub ended early.
#[derive(Debug, thiserror::Error)]
pub enum ScrubError {
    /// Another process is at it.
    #[error("another process is scrubbing {}", .0.display())]
    Busy(PathBuf),
    /// It is not the blobs.
    #[error(
        "{WRONG_IN_A_ROW_MAX} blobs in a row are wrong, the last {0}: check this machine's memory, disk and mounts before \
         anything else; what was set aside is in quarantine"
    )]
    TooMany(Digest),
    /// The lock, or the note of how far it is, cannot be used.
    #[error("cannot use {}: {error}", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// The system's word.
        error: io::Error,
    },
}
