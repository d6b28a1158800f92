//! Why a fill failed.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::oci::{Digest, Hasher};
use crate::store::ingest::Origin;
use crate::upstream::UpstreamError;
use crate::watermark::Abandoned;

/// Why a fill failed. Every reader of the fill gets the same one.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FillError {
    /// Upstream's fault, after what retries and mirrors could do.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// Upstream announced another length than before, or than the manifest says.
    #[error("upstream announces {announced} bytes, expected {expected}")]
    Length {
        /// What it says now.
        announced: u64,
        /// What was known before.
        expected: u64,
    },
    /// Upstream's body ended before its length.
    #[error("upstream's body ended after {received} of {expected} bytes")]
    Short {
        /// Bytes received.
        received: u64,
        /// Bytes announced.
        expected: u64,
    },
    /// Upstream answers a range with bytes from elsewhere.
    #[error("upstream was asked for bytes from {asked} and sends bytes from {sent}")]
    Misplaced {
        /// First byte that was asked for.
        asked: u64,
        /// First byte that is sent.
        sent: u64,
    },
    /// The content is not what the digest says.
    #[error("upstream sent something else: {expected} asked for, {actual} received")]
    Digest {
        /// What was asked for.
        expected: Box<Digest>,
        /// What came.
        actual: Box<Digest>,
    },
    /// The body has no length and ends with the connection: whether it is whole cannot be known.
    #[error("the source announces no length and ends its answer with the connection")]
    Unbounded,
    /// It cannot be kept. Readers go on from upstream.
    #[error("the blob cannot be kept: {}, {} bytes written", .0.cause, .0.written)]
    NotKept(Arc<Spill>),
    /// The disk failed.
    #[error("cannot {operation}: {cause}")]
    Disk {
        /// What was tried.
        operation: &'static str,
        /// The system's word.
        cause: Arc<io::Error>,
    },
    /// Another process has the fill, and does not move.
    #[error("the process that is filling has not moved for {0:?}")]
    OwnerStalls(Duration),
    /// Too many fills from this upstream are under way.
    #[error("too many fills from this upstream are under way")]
    Busy,
    /// The leader vanished.
    #[error("the fill was abandoned")]
    Abandoned,
}

/// Why a blob is served and not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpillCause {
    /// The disk, or a quota, is full.
    DiskFull,
    /// It is larger than the cache may ever become.
    TooLarge,
    /// The process that was filling gave up.
    OwnerGaveUp,
}

impl SpillCause {
    /// A stable word for metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DiskFull => "disk_full",
            Self::TooLarge => "too_large",
            Self::OwnerGaveUp => "owner_gave_up",
        }
    }
}

impl fmt::Display for SpillCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DiskFull => "the cache's disk is full",
            Self::TooLarge => "it is larger than the cache may become",
            Self::OwnerGaveUp => "the process that was filling gave up",
        })
    }
}

/// What a fill had when it had to be given up: enough for each reader to go on from upstream and still verify.
#[derive(Debug)]
pub struct Spill {
    /// Why nothing is kept.
    pub cause: SpillCause,
    /// The file with what was written; `None` if not even that could be made.
    pub file: Option<Arc<File>>,
    /// Bytes in the file.
    pub written: u64,
    /// The hash over them.
    pub hasher: Hasher,
    /// What is known of the source.
    pub origin: Origin,
}

impl FillError {
    /// A stable word for metrics and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Upstream(error) => error.reason(),
            Self::Length { .. } => "length",
            Self::Short { .. } => "short",
            Self::Misplaced { .. } => "misplaced",
            Self::Digest { .. } => "digest",
            Self::Unbounded => "unbounded",
            Self::NotKept(spill) => spill.cause.as_str(),
            Self::Disk { .. } => "disk",
            Self::OwnerStalls(_) => "owner_stalls",
            Self::Busy => "busy",
            Self::Abandoned => "abandoned",
        }
    }

    /// Whether another try, or another mirror, may do better.
    pub fn is_retryable(&self) -> bool {
        match self {
            // What one answer garbles the next may not.
            Self::Upstream(error) => error.is_retryable() || matches!(error, UpstreamError::Malformed { .. }),
            Self::Length { .. } | Self::Short { .. } | Self::Misplaced { .. } => true,
            _ => false,
        }
    }

    pub(crate) fn digest(expected: Digest, actual: Digest) -> Self {
        Self::Digest { expected: Box::new(expected), actual: Box::new(actual) }
    }

    pub(crate) fn disk(operation: &'static str, cause: io::Error) -> Self {
        Self::Disk { operation, cause: Arc::new(cause) }
    }
}

impl From<Abandoned> for FillError {
    fn from(_: Abandoned) -> Self {
        Self::Abandoned
    }
}

/// Whether the disk, or the quota, is full.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
