//! The two halves of taking a blob in, fetched or pushed: receiving, and writing with hashing, at once.
//!
//! The writing half collects what comes into [batches](Pump::batch) and gives each to a store thread; the
//! watermark advances after each. A batch waits `GATHER_TIME` to become full, because each of them wakes every reader:
//! 16 readers of a fast fill of 512 MiB took 2.95 s of CPU with what had come at once, 260 KB a batch, and 2.09 s so
//! (medians of four interleaved rounds). What is received and not yet written is bounded to `BUFFER_KIB` a blob
//! and, by a semaphore that all blobs share, in all; then the receiving half stops reading, and TCP slows the sender down.

use std::future::Future;
use std::io;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use super::on_store_thread;

/// What one blob may have received and not yet written, in KiB.
const BUFFER_KIB: usize = 4 * 1024;
/// What all blobs of the process together may, in KiB.
const BUFFERS_KIB: usize = 24 * 1024;
/// For how long what has come waits for more, so that it can be written together.
const GATHER_TIME: Duration = Duration::from_millis(5);

/// A permit for each KiB of [`BUFFERS_KIB`].
static BUFFERS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(BUFFERS_KIB)));

/// Where a blob's bytes come from.
pub trait Pieces {
    /// Why they may end early.
    type Error;

    /// The next bytes; `None` at the end.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, Self::Error>>;
}

/// Where they go. Both calls but `written` block.
pub trait Sink: Send + 'static {
    /// Writes and hashes pieces behind what is there.
    fn append(&mut self, pieces: &[Bytes]) -> io::Result<()>;

    /// Bytes written and hashed so far.
    fn written(&self) -> u64;
}

/// Moves a blob's bytes from where they come from to its file.
pub struct Pump<A> {
    /// A piece that is shorter than this, in bytes, is copied: it would keep the whole buffer that it was read into, and
    /// the bounds would hold a small part of what they let be taken.
    pub copied_below: usize,
    /// What goes to a store thread at once, in bytes.
    pub batch: usize,
    /// Told after each batch how many bytes the file has.
    pub advance: A,
}

/// Writing failed. The sink is missing if its thread died with it.
pub struct WriteFailure<K> {
    /// The system's word.
    pub error: io::Error,
    /// What was written to.
    pub sink: Option<Box<K>>,
}

/// What was received and not yet written, with the room that it takes.
struct Buffered {
    bytes: Bytes,
    room: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl<A: Fn(u64)> Pump<A> {
    /// Runs until the pieces' end or the first failure of either half. What was received before a failure is written.
    pub async fn run<P: Pieces, K: Sink>(
        &self,
        pieces: &mut P,
        sink: Box<K>,
    ) -> (Result<(), P::Error>, Result<Box<K>, WriteFailure<K>>) {
        // Bounded by the semaphores, in bytes; the channel itself need not be.
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::join!(self.receive(pieces, sender), self.write(receiver, sink))
    }

    async fn receive<P: Pieces>(
        &self,
        pieces: &mut P,
        sender: mpsc::UnboundedSender<Buffered>,
    ) -> Result<(), P::Error> {
        let own = Arc::new(Semaphore::new(BUFFER_KIB));
        let receiving = async {
            while let Some(bytes) = pieces.next().await? {
                let copied = bytes.len() < self.copied_below;
                let bytes = if copied { Bytes::copy_from_slice(&bytes) } else { bytes };
                let kib = bytes.len().div_ceil(1024).clamp(1, BUFFER_KIB);
                let kib = u32::try_from(kib).unwrap_or(u32::MAX);
                let mine = Arc::clone(&own).acquire_many_owned(kib).await;
                let shared = Arc::clone(&BUFFERS).acquire_many_owned(kib).await;
                // Nobody closes them.
                let (Ok(mine), Ok(shared)) = (mine, shared) else { break };
                if sender.send(Buffered { bytes, room: (mine, shared) }).is_err() {
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

    async fn write<K: Sink>(
        &self,
        mut receiver: mpsc::UnboundedReceiver<Buffered>,
        mut sink: Box<K>,
    ) -> Result<Box<K>, WriteFailure<K>> {
        while let Some(first) = receiver.recv().await {
            let mut size = first.bytes.len();
            let mut batch = vec![first.bytes];
            let mut rooms = vec![first.room];
            // The readers wait for the first bytes; of what follows, for more of them.
            let gather = if sink.written() == 0 { Duration::ZERO } else { GATHER_TIME };
            let until = Instant::now() + gather;
            while size < self.batch
                && let Ok(Some(more)) = tokio::time::timeout_at(until, receiver.recv()).await
            {
                size += more.bytes.len();
                batch.push(more.bytes);
                rooms.push(more.room);
            }
            let appending = on_store_thread(move || {
                let result = sink.append(&batch);
                drop(rooms);
                Ok((sink, result))
            });
            let (returned, result) = appending.await.map_err(|error| WriteFailure { error, sink: None })?;
            sink = returned;
            if let Err(error) = result {
                return Err(WriteFailure { error, sink: Some(sink) });
            }
            (self.advance)(sink.written());
        }
        Ok(sink)
    }
}
