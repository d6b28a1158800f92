//! The leader of a fill: claim, fetch, write and hash, verify, publish.
//!
//! Receiving and writing go on at once, as two halves of one task joined by a channel. The writing half collects what has
//! come into batches of up to [`BATCH`] bytes and gives each to a store thread, which writes and hashes it; the watermark
//! advances after each. What is received and not yet written is bounded to [`FILL_BUFFER_KIB`] a fill and, by the
//! semaphore of [`Fills`], in all; then the leader stops reading and TCP slows upstream down.
//!
//! The verdict (the digest) comes before publication, and readers get the blob's tail with the verdict: publication
//! is durable because nobody waits for it.
//!
//! If another process owns the fill, the leader follows its file instead, and takes over where it stops.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::error::{FillError, Spill, is_no_space};
use super::fetch::Download;
use super::flight::{Fills, Flight};
use crate::oci::Hasher;
use crate::store::ingest::{self, Claim, Followed, Follower, Ingest, Origin};
use crate::store::{LinkKind, Reservation, Usage, on_store_thread};
use crate::upstream::UpstreamError;
use crate::watermark::Writer;

/// What one fill may have received and not yet written, in KiB.
const FILL_BUFFER_KIB: usize = 4 * 1024;
/// What goes to a store thread at once, in bytes.
const BATCH: usize = 1 << 20;
/// How often the file of a fill that another process owns is looked at.
const FOLLOW_EVERY: Duration = Duration::from_millis(10);

/// Leads `flight` to its end. Cancelled, it leaves a fill that can be resumed, and readers that fail.
pub(super) async fn lead(
    fills: Arc<Fills>,
    flight: Arc<Flight>,
    writer: Writer<FillError>,
    length: Option<u64>,
) {
    let begun = Instant::now();
    fills.metrics.fill_started();
    let leader = Leader { fills: &fills, flight: &flight, writer: &writer, length };
    let outcome = leader.fill().await;
    // Out of the map first: who asks from here on begins anew instead of inheriting the failure.
    fills.land(&flight);
    let (digest, upstream) = (&flight.digest, flight.source.upstream.name());
    let received = flight.bytes_received();
    match outcome {
        Ok(len) => {
            fills.metrics.fill_ended("verified");
            let ms = begun.elapsed().as_millis();
            tracing::debug!(%digest, upstream, repository = %flight.repository, len, received, ms, "filled");
        }
        Err(error) => {
            fills.metrics.fill_ended("failed");
            fills.metrics.fill_failed(error.reason());
            tracing::warn!(
                %digest, upstream, repository = %flight.repository, received, reason = error.reason(), %error, "fill failed"
            );
            writer.failed(error);
        }
    }
}

struct Leader<'a> {
    fills: &'a Arc<Fills>,
    flight: &'a Arc<Flight>,
    writer: &'a Writer<FillError>,
    length: Option<u64>,
}

impl Leader<'_> {
    /// The blob's length, once it is verified and (unless that failed, which is logged) published.
    async fn fill(&self) -> Result<u64, FillError> {
        loop {
            let digest = self.flight.digest;
            let claim = self.fills.store.blocking(move |store| ingest::claim(store.layout(), &digest)).await;
            match claim {
                Ok(Claim::Leader(ingest)) => return self.fetch(ingest).await,
                Ok(Claim::Stored) => return self.stored().await,
                Ok(Claim::Follower(follower)) => match self.follow(follower).await? {
                    Following::Published(len) => return Ok(len),
                    Following::TakenOver(ingest) => return self.fetch(ingest).await,
                    Following::Removed => {}
                },
                Err(error) if is_no_space(&error) => {
                    let hasher = Hasher::new(digest.algorithm());
                    let origin = Origin { length: self.length, etag: None };
                    return Err(self.no_space(Spill { file: None, written: 0, hasher, origin }));
                }
                Err(error) => return Err(FillError::disk("begin the fill", error)),
            }
        }
    }

    /// Another process published it between our look and our claim.
    async fn stored(&self) -> Result<u64, FillError> {
        self.ask_permission().await?;
        self.link().await;
        let path = self.fills.store.layout().blob(&self.flight.digest);
        let opened = on_store_thread(move || {
            let file = std::fs::File::open(path)?;
            let len = file.metadata()?.len();
            Ok((file, len))
        });
        let (file, len) = opened.await.map_err(|error| FillError::disk("open the blob", error))?;
        let _ = self.flight.file.set(Arc::new(file));
        self.writer.verified(len);
        Ok(len)
    }

    async fn fetch(&self, mut ingest: Box<Ingest>) -> Result<u64, FillError> {
        let flight = self.flight;
        // Closed never: the semaphore lives as long as `fills`.
        let _turn = self.fills.turns.acquire().await.map_err(|_| FillError::Abandoned)?;
        let mut origin = ingest.origin().clone();
        origin.length = origin.length.or(self.length);
        let mut resumed = ingest.written();
        if resumed > 0 {
            tracing::info!(digest = %flight.digest, offset = resumed, "resuming an interrupted fill");
        }
        let whole = origin.length == Some(resumed);
        let mut download = Download::new(
            flight.source.clone(),
            flight.digest,
            resumed,
            origin,
            Arc::clone(&flight.received),
        );
        let opened = if whole { self.ask_permission().await } else { download.open().await };
        match opened {
            Ok(()) => {}
            Err(error) if contradicts(&error) => {
                // No reader has seen anything of it yet: what was noted of upstream goes, and the fill begins anew.
                tracing::info!(digest = %flight.digest, %error, "what is known of the blob does not hold any more: beginning anew");
                ingest = restarted(ingest).await?;
                resumed = 0;
                let origin = Origin::default();
                download = Download::new(
                    flight.source.clone(),
                    flight.digest,
                    0,
                    origin,
                    Arc::clone(&flight.received),
                );
                if let Err(error) = download.open().await {
                    discard(ingest).await;
                    return Err(error);
                }
            }
            Err(error) => {
                if resumed == 0 {
                    discard(ingest).await;
                }
                return Err(error);
            }
        }
        let length = download.origin().length;
        let noted = download.origin().clone();
        self.link().await;
        ingest = on_store_thread(move || {
            ingest.set_origin(noted);
            Ok(ingest)
        })
        .await
        .map_err(|error| FillError::disk("note the fill's source", error))?;
        let _space = self.reserve(length);
        let _ = flight.file.set(ingest.file());
        self.writer.advance(resumed, length);

        let (received, written) = self.pump(&mut download, ingest, length).await;
        let ingest = match written {
            Ok(ingest) => ingest,
            Err((error, Some(ingest))) if is_no_space(&error) => {
                let (file, written, hasher) = (Some(ingest.file()), ingest.written(), ingest.hasher());
                discard(ingest).await;
                let origin = download.origin().clone();
                return Err(self.no_space(Spill { file, written, hasher, origin }));
            }
            Err((error, _)) => return Err(FillError::disk("write the fill", error)),
        };
        if let Err(error) = received {
            self.keep_for_later(ingest, &error).await;
            return Err(error);
        }
        self.finish(ingest).await
    }

    /// Both halves; each ends when the other does.
    async fn pump(
        &self,
        download: &mut Download,
        ingest: Box<Ingest>,
        length: Option<u64>,
    ) -> (Result<(), FillError>, Result<Box<Ingest>, WriteFailure>) {
        // Bounded by the semaphores, in bytes; the channel itself need not be.
        let (sender, receiver) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(FILL_BUFFER_KIB));
        tokio::join!(self.receive(download, sender, room), self.write(receiver, ingest, length))
    }

    async fn receive(
        &self,
        download: &mut Download,
        sender: mpsc::UnboundedSender<Buffered>,
        room: Arc<Semaphore>,
    ) -> Result<(), FillError> {
        while let Some(bytes) = download.next().await? {
            let kib = u32::try_from(bytes.len().div_ceil(1024).clamp(1, FILL_BUFFER_KIB)).unwrap_or(1);
            let own = Arc::clone(&room).acquire_many_owned(kib).await.map_err(|_| FillError::Abandoned)?;
            let shared = Arc::clone(&self.fills.buffers);
            let shared = shared.acquire_many_owned(kib).await.map_err(|_| FillError::Abandoned)?;
            if sender.send(Buffered { bytes, room: (own, shared) }).is_err() {
                return Ok(()); // the writing half failed, and says why
            }
        }
        Ok(())
    }

    async fn write(
        &self,
        mut receiver: mpsc::UnboundedReceiver<Buffered>,
        mut ingest: Box<Ingest>,
        length: Option<u64>,
    ) -> Result<Box<Ingest>, WriteFailure> {
        while let Some(first) = receiver.recv().await {
            let mut batch = vec![first.bytes];
            let mut rooms = vec![first.room];
            let mut size = batch[0].len();
            while size < BATCH
                && let Ok(more) = receiver.try_recv()
            {
                size += more.bytes.len();
                batch.push(more.bytes);
                rooms.push(more.room);
            }
            let work = on_store_thread(move || {
                let result = ingest.append(&batch);
                drop(rooms);
                Ok((ingest, result))
            });
            let (returned, result) = work.await.map_err(|error| (error, None))?;
            ingest = returned;
            if let Err(error) = result {
                return Err((error, Some(ingest)));
            }
            self.writer.advance(ingest.written(), length);
        }
        Ok(ingest)
    }

    /// The verdict, then publication.
    async fn finish(&self, ingest: Box<Ingest>) -> Result<u64, FillError> {
        if let Err(actual) = ingest.verify() {
            discard(ingest).await;
            return Err(FillError::digest(self.flight.digest, actual));
        }
        let len = ingest.written();
        self.writer.verified(len);
        match on_store_thread(move || ingest.publish()).await {
            Ok(added) => self.fills.store.usage().add(added),
            Err(error) => {
                self.fills.metrics.fill_failed("publish");
                tracing::error!(digest = %self.flight.digest, %error, "a verified blob could not be published: it is served, but not kept");
            }
        }
        self.fills.store.forget(&self.flight.digest);
        Ok(len)
    }

    async fn follow(&self, follower: Follower) -> Result<Following, FillError> {
        tracing::debug!(digest = %self.flight.digest, "another process is filling: following it");
        let follower = Arc::new(follower);
        let mut shown = 0;
        loop {
            let looking = Arc::clone(&follower);
            let looked = on_store_thread(move || looking.look()).await;
            match looked.map_err(|error| FillError::disk("follow another process's fill", error))? {
                Followed::Growing { written, origin } => {
                    // Until the owner has noted its source, upstream has not answered it.
                    if let Some(origin) = origin
                        && (written > shown || shown == 0)
                    {
                        if shown == 0 {
                            self.ask_permission().await?;
                            self.link().await;
                            let _ = self.flight.file.set(follower.file());
                        }
                        shown = written.max(1);
                        self.writer.advance(written, origin.length);
                    }
                }
                Followed::Published { len } => {
                    if shown == 0 {
                        self.ask_permission().await?;
                        self.link().await;
                        let _ = self.flight.file.set(follower.file());
                    }
                    self.writer.verified(len);
                    return Ok(Following::Published(len));
                }
                Followed::TakenOver(ingest) => {
                    tracing::info!(digest = %self.flight.digest, offset = ingest.written(), "the process that was filling is gone: taking over");
                    return Ok(Following::TakenOver(ingest));
                }
                Followed::Removed if shown == 0 => return Ok(Following::Removed),
                Followed::Removed => return Err(FillError::OwnerGaveUp),
            }
            tokio::time::sleep(FOLLOW_EVERY).await;
        }
    }

    /// Asks upstream whether this repository may have the blob, unless it is linked there already.
    async fn ask_permission(&self) -> Result<(), FillError> {
        let (repository, digest) = (self.flight.repository.clone(), self.flight.digest);
        let path = self.fills.store.layout().link(&repository, LinkKind::Layer, &digest);
        if on_store_thread(move || path.try_exists()).await.unwrap_or(false) {
            return Ok(());
        }
        let source = &self.flight.source;
        source.upstream.blob_head(&source.repository, &digest).await?;
        Ok(())
    }

    /// Upstream lets this repository have it: from now on the cache does too.
    async fn link(&self) {
        let linked =
            self.fills.store.link(&self.flight.repository, LinkKind::Layer, &self.flight.digest).await;
        if let Err(error) = linked {
            tracing::warn!(digest = %self.flight.digest, repository = %self.flight.repository, %error, "cannot link the blob: it will be asked for again");
        }
    }

    fn reserve(&self, length: Option<u64>) -> Option<Reservation> {
        length.map(|length| Usage::reserve(&self.fills.store, length))
    }

    async fn keep_for_later(&self, mut ingest: Box<Ingest>, error: &FillError) {
        if ingest.written() == 0 || contradicts(error) {
            return discard(ingest).await;
        }
        let saving = on_store_thread(move || {
            ingest.save_state();
            Ok(())
        });
        if let Err(error) = saving.await {
            tracing::warn!(digest = %self.flight.digest, %error, "an interrupted fill could not be put aside");
        }
    }

    fn no_space(&self, spill: Spill) -> FillError {
        tracing::error!(
            digest = %self.flight.digest, written = spill.written,
            "the cache's disk is full: readers are served straight from upstream, nothing is kept"
        );
        self.fills.store.usage().wake();
        FillError::NoSpace(Arc::new(spill))
    }
}

/// What was received and not yet written, with the room that it takes.
struct Buffered {
    bytes: Bytes,
    room: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

/// Why writing failed, and the fill, unless its thread died with it.
type WriteFailure = (io::Error, Option<Box<Ingest>>);

enum Following {
    Published(u64),
    TakenOver(Box<Ingest>),
    Removed,
}

/// Whether upstream now says something else than what was noted of it: then one of both is wrong, and a resumed fill would
/// meet the contradiction again and again.
fn contradicts(error: &FillError) -> bool {
    matches!(
        error,
        FillError::Length { .. }
            | FillError::Short { .. }
            | FillError::Misplaced { .. }
            | FillError::Upstream(UpstreamError::RangeNotSatisfiable { .. })
    )
}

async fn restarted(mut ingest: Box<Ingest>) -> Result<Box<Ingest>, FillError> {
    let restarting = on_store_thread(move || ingest.restart().map(|()| ingest));
    restarting.await.map_err(|error| FillError::disk("begin the fill anew", error))
}

async fn discard(ingest: Box<Ingest>) {
    let digest = *ingest.digest();
    if let Err(error) = on_store_thread(move || ingest.discard()).await {
        tracing::warn!(%digest, %error, "cannot remove a fill");
    }
}
