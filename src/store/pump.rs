//! The two halves of a fetch: receiving, and writing with hashing, at once.
//!
//! The writing half collects what comes into batches of up to [`BATCH`] bytes and gives each to a store thread; the
//! watermark advances after each. A batch waits [`GATHER_TIME`] to become full, because each of them wakes every reader:
//! 16 readers of a fast fill of 512 MiB took 2.95 s of CPU with what had come at once, 260 KB a batch, and 2.09 s so
//! (medians of four interleaved rounds). What is received and not yet written is bounded to [`FILL_BUFFER_KIB`] a fill
//! and, by a semaphore that all fills share, in all; then the leader stops reading, and TCP slows upstream down.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use super::error::FillError;
use super::fetch::Download;
use crate::store::ingest::Ingest;
use crate::store::on_store_thread;
use crate::upstream;

/// What one fill may have received and not yet written, in KiB.
const FILL_BUFFER_KIB: usize = 4 * 1024;
/// What goes to a store thread at once, in bytes.
const BATCH: usize = 2 << 20;
/// For how long what has come waits for more, so that it can be written together.
const GATHER_TIME: Duration = Duration::from_millis(5);

/// A piece that is shorter than this, in bytes, is copied: it would keep the whole buffer that it was read into
/// ([`upstream::READ_BUFFER`]), and the bounds above would hold a small part of what they let be taken.
const COPIED_BELOW: usize = upstream::READ_BUFFER / 2;

/// Moves a blob's bytes from upstream to its file.
pub(super) struct Pump<'a, A> {
    /// What all fills together may hold, a permit for each KiB.
    pub(super) buffers: &'a Arc<Semaphore>,
    /// Told after each batch how many bytes the file has.
    pub(super) advance: A,
}

/// Writing failed. The fill is missing if its thread died with it.
pub(super) struct WriteFailure {
    pub(super) error: io::Error,
    pub(super) ingest: Option<Box<Ingest>>,
}

/// What was received and not yet written, with the room that it takes.
struct Buffered {
    bytes: Bytes,
    room: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl<A: Fn(u64)> Pump<'_, A> {
    /// Runs until upstream's end or the first failure of either half. What was received before upstream failed is written.
    pub(super) async fn run(
        &self,
        download: &mut Download,
        ingest: Box<Ingest>,
    ) -> (Result<(), FillError>, Result<Box<Ingest>, WriteFailure>) {
        // Bounded by the semaphores, in bytes; the channel itself need not be.
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::join!(self.receive(download, sender), self.write(receiver, ingest))
    }

    async fn receive(
        &self,
        download: &mut Download,
        sender: mpsc::UnboundedSender<Buffered>,
    ) -> Result<(), FillError> {
        let own = Arc::new(Semaphore::new(FILL_BUFFER_KIB));
        let receiving = async {
            while let Some(bytes) = download.next().await? {
                let bytes = if bytes.len() < COPIED_BELOW { Bytes::copy_from_slice(&bytes) } else { bytes };
                let kib = bytes.len().div_ceil(1024).clamp(1, FILL_BUFFER_KIB);
                let kib = u32::try_from(kib).unwrap_or(u32::MAX);
                let mine =
                    Arc::clone(&own).acquire_many_owned(kib).await.map_err(|_| FillError::Abandoned)?;
                let shared = Arc::clone(self.buffers).acquire_many_owned(kib).await;
                let room = (mine, shared.map_err(|_| FillError::Abandoned)?);
                if sender.send(Buffered { bytes, room }).is_err() {
                    break;
                }
            }
            Ok(())
        };
        tokio::select! {
            received = receiving => received,
            // The writing half failed, and says why.
            () = sender.closed() => Ok(()),
        }
    }

    async fn write(
        &self,
        mut receiver: mpsc::UnboundedReceiver<Buffered>,
        mut ingest: Box<Ingest>,
    ) -> Result<Box<Ingest>, WriteFailure> {
        while let Some(first) = receiver.recv().await {
            let mut size = first.bytes.len();
            let mut batch = vec![first.bytes];
            let mut rooms = vec![first.room];
            // The readers wait for the first bytes; of what follows, for more of them.
            let gather = if ingest.written() == 0 { Duration::ZERO } else { GATHER_TIME };
            let until = Instant::now() + gather;
            while size < BATCH
                && let Ok(Some(more)) = tokio::time::timeout_at(until, receiver.recv()).await
            {
                size += more.bytes.len();
                batch.push(more.bytes);
                rooms.push(more.room);
            }
            let appending = on_store_thread(move || {
                let result = ingest.append(&batch);
                drop(rooms);
                Ok((ingest, result))
            });
            let (returned, result) = appending.await.map_err(|error| WriteFailure { error, ingest: None })?;
            ingest = returned;
            if let Err(error) = result {
                return Err(WriteFailure { error, ingest: Some(ingest) });
            }
            (self.advance)(ingest.written());
        }
        Ok(ingest)
    }
}
