//! The body of a request: whole if it is short, or piece by piece into an upload.

use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};

use super::respond::ApiError;
use crate::body::BodyError;
use crate::store::on_store_thread;
use crate::store::pump::{Pieces, Pump, WriteFailure};
use crate::store::upload::Upload;

/// A piece that is shorter than this, in bytes, is copied: the library reads into buffers of up to 256 KiB.
const COPIED_BELOW: usize = 64 << 10;

/// What is written at once, in bytes: nobody is woken for it, and the less it is, the more of it is still in the CPU's
/// cache when it is hashed.
const BATCH: usize = 512 << 10;

/// A request's body. What is left unread is the business of whoever made it.
pub struct Payload {
    /// Its bytes as they come.
    pub pieces: Pin<Box<dyn Stream<Item = Result<Bytes, BodyError>>>>,
    /// Its length in bytes, if it was announced.
    pub length: Option<u64>,
}

impl Payload {
    /// All of it; `too_large` is the answer to more than `max` bytes.
    pub(super) async fn whole(self, max: usize, too_large: impl Fn() -> ApiError) -> Result<Bytes, ApiError> {
        if self.length.is_some_and(|length| length > max as u64) {
            return Err(too_large());
        }
        let mut pieces = self.pieces;
        let mut all = BytesMut::new();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| ApiError::body_broken(&error))?;
            if piece.len() > max - all.len() {
                return Err(too_large());
            }
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }

    /// Writes it to an upload, at most `max` bytes. The upload comes back with what arrived, a checkpoint behind it;
    /// it is missing if the disk failed.
    pub(super) async fn into_upload(self, upload: Box<Upload>, max: u64) -> Received {
        let mut bounded = Bounded { pieces: self.pieces, left: max };
        let pump = Pump { copied_below: COPIED_BELOW, batch: BATCH, advance: |_| () };
        let (received, written) = pump.run(&mut bounded, upload).await;
        let upload = match written {
            Ok(upload) => upload,
            Err(WriteFailure { error, sink }) => {
                // As far as it was hashed it may go on. If not even that can be noted, it is hashed again.
                if let Some(mut upload) = sink {
                    let noting = on_store_thread(move || upload.checkpoint()).await;
                    tracing::debug!(noted = noting.is_ok(), "an upload was interrupted by a failed write");
                }
                return Received::DiskFailed(error);
            }
        };
        match received {
            Ok(()) => Received::Whole(upload),
            Err(Interrupted::Broken(error)) => Received::Broken(upload, error),
            Err(Interrupted::TooLong) => Received::TooLong(upload),
        }
    }
}

/// How a body ended.
pub(super) enum Received {
    Whole(Box<Upload>),
    /// The client stopped sending.
    Broken(Box<Upload>, BodyError),
    /// There was more than allowed.
    TooLong(Box<Upload>),
    DiskFailed(std::io::Error),
}

struct Bounded {
    pieces: Pin<Box<dyn Stream<Item = Result<Bytes, BodyError>>>>,
    left: u64,
}

enum Interrupted {
    Broken(BodyError),
    TooLong,
}

impl Pieces for Bounded {
    type Error = Interrupted;

    async fn next(&mut self) -> Result<Option<Bytes>, Interrupted> {
        let Some(piece) = self.pieces.next().await else { return Ok(None) };
        let piece = piece.map_err(Interrupted::Broken)?;
        let left = self.left.checked_sub(piece.len() as u64).ok_or(Interrupted::TooLong)?;
        self.left = left;
        Ok(Some(piece))
    }
}
