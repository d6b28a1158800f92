//! Layers of the Docker v1 protocol: one fill per image and directory, however many ask.
//!
//! As with blobs, the leader is a task of its own on the worker that began it, writes on store threads, and readers
//! follow the growing file as far as its watermark allows: the layer's last bytes wait for the verdict. There is no digest
//! that could be the verdict. It is that the source's answer came to its announced end (a `Content-Length`, or the last
//! chunk), and, if the source told a checksum, that it is right: SHA-256 over the image's json, a line feed, and the
//! layer. What ends early is dropped, and readers' answers break off.
//!
//! A fill is not resumed, for the same reason: the next request begins it anew. If another process owns it, its file is
//! followed; should that process die, readers who have bytes of it fail, and those who have none begin anew.

use std::collections::hash_map::Entry;
use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use tokio::sync::Semaphore;

use super::body::{Chunks, Wanted, chunks, readable_region};
use super::error::{FillError, is_no_space};
use super::flight::{Fills, Growing, Role, has_failed, lock};
use super::lead::{
    BATCH, CLAIMS_MAX, COPIED_BELOW, FOLLOW_EVERY, FOLLOW_STALL_MAX, NEED_UNKNOWN, TURN_WAIT_MAX,
};
use crate::body::{Body, BodyError, Chunk};
use crate::metrics::Metrics;
use crate::oci::{Algorithm, Digest, Hasher};
use crate::store::images::{self, ImageFile, ImageId, LayerClaim, LayerFollowed, LayerFollower, LayerIngest};
use crate::store::pump::{Pieces, Pump, Sink, WriteFailure};
use crate::store::{Reservation, on_store_thread};
use crate::upstream::{BlobBody, Refusal, Relay, Relayed};
use crate::watermark::{self, Progress, Writer};

/// Where a layer comes from.
pub struct LayerSource {
    /// The server.
    pub relay: Arc<Relay>,
    /// The query of the request that began the fill.
    pub query: Option<String>,
    /// Its header fields, as far as they are passed on.
    pub headers: HeaderMap,
    /// The image's json.
    pub json: Bytes,
    /// The checksum that the source told with it.
    pub checksum: Option<Digest>,
    /// A permit for each fetch that may be under way.
    pub turns: Arc<Semaphore>,
}

/// One fill under way, as a reader sees it.
pub struct LayerFlight {
    /// Whose layer it is.
    pub image: ImageId,
    growing: Growing,
}

impl Deref for LayerFlight {
    type Target = Growing;

    fn deref(&self) -> &Growing {
        &self.growing
    }
}

impl Fills {
    /// The fill of an image's layer that is under way, if there is one.
    pub fn current_layer(&self, image: &ImageId) -> Option<Arc<LayerFlight>> {
        lock(&self.layers).get(image).filter(|flight| !has_failed(flight)).cloned()
    }

    /// Joins the fill of an image's layer, or begins it, on this worker.
    ///
    /// Must be called inside a `LocalSet`. The caller has established that its client may have the layer.
    pub fn join_layer(
        self: &Arc<Self>,
        image: &ImageId,
        source: impl FnOnce() -> LayerSource,
    ) -> (Arc<LayerFlight>, Role) {
        let mut layers = lock(&self.layers);
        let entry = layers.entry(image.clone());
        if let Entry::Occupied(occupied) = &entry
            && !has_failed(occupied.get())
        {
            return (Arc::clone(occupied.get()), Role::Joined);
        }
        let (writer, reader) = watermark::channel();
        let flight = Arc::new(LayerFlight { image: image.clone(), growing: Growing::new(reader) });
        entry.insert_entry(Arc::clone(&flight));
        drop(layers);
        tokio::task::spawn_local(lead(Arc::clone(self), Arc::clone(&flight), source(), writer));
        (flight, Role::Leader)
    }
}

/// A body that follows `flight`, which must have started.
pub fn growing(flight: &Arc<LayerFlight>, wanted: Wanted) -> Body {
    let (position, end) = match wanted {
        Wanted::Whole => (0, flight.progress().length()),
        Wanted::Part(range) => (range.start, Some(range.end())),
    };
    let watermark = flight.reader.clone();
    let reader = Reader { flight: Arc::clone(flight), watermark, position, end };
    Body::stream(chunks(reader), end.map(|end| end - position))
}

struct Reader {
    flight: Arc<LayerFlight>,
    watermark: watermark::Reader<FillError>,
    position: u64,
    /// The byte behind the last wanted one; `None` while the layer's length is unknown.
    end: Option<u64>,
}

impl Chunks for Reader {
    async fn next(&mut self) -> Result<Option<Chunk>, BodyError> {
        loop {
            if self.end.is_some_and(|end| self.position >= end) {
                return Ok(None);
            }
            let position = self.position;
            match self.watermark.wait_until(|progress| progress.readable() > position).await {
                Progress::Failed(error) => return Err(BodyError::new(error)),
                Progress::Verified { len } if self.end.is_none() => self.end = Some(len),
                progress => {
                    let file = self.flight.file.get();
                    let region = file.and_then(|file| readable_region(file, &progress, position, self.end));
                    let region = region.ok_or_else(|| BodyError::new("a fill is shorter than its range"))?;
                    self.position += region.len as u64;
                    return Ok(Some(Chunk::Region(region)));
                }
            }
        }
    }
}

/// Leads `flight` to its end. Cancelled, it leaves nothing that counts, and readers that fail.
async fn lead(fills: Arc<Fills>, flight: Arc<LayerFlight>, source: LayerSource, writer: Writer<FillError>) {
    let begun = Instant::now();
    fills.metrics.fill_started();
    let mut landing = Landing { fills: &fills, flight: &flight, outcome: "abandoned" };
    let space = Reservation::begin(&fills.store, flight.image.clone());
    let leader = Leader { fills: &fills, flight: &flight, source: &source, writer: &writer, space };
    let outcome = leader.fill().await;
    landing.outcome = if outcome.is_ok() { "verified" } else { "failed" };
    // Out of the map before readers hear of it: who asks from here on begins anew instead of inheriting a failure.
    drop(landing);
    let (image, received) = (&flight.image, flight.bytes_received());
    match outcome {
        Ok(len) => {
            let ms = begun.elapsed().as_millis();
            tracing::debug!(%image, len, received, ms, "layer filled");
        }
        Err(error) => {
            fills.metrics.fill_failed(error.reason());
            tracing::warn!(%image, received, reason = error.reason(), %error, "filling a layer failed");
            writer.failed(error);
        }
    }
}

/// Takes a flight out of the map at its end, whichever that is.
struct Landing<'a> {
    fills: &'a Fills,
    flight: &'a Arc<LayerFlight>,
    outcome: &'static str,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        if let Entry::Occupied(occupied) = lock(&self.fills.layers).entry(self.flight.image.clone())
            && Arc::ptr_eq(occupied.get(), self.flight)
        {
            occupied.remove();
        }
        self.fills.metrics.fill_ended(self.outcome);
    }
}

struct Leader<'a> {
    fills: &'a Arc<Fills>,
    flight: &'a Arc<LayerFlight>,
    source: &'a LayerSource,
    writer: &'a Writer<FillError>,
    space: Reservation,
}

impl Leader<'_> {
    /// The layer's length, once it is known to be whole and (unless that failed, which is logged) published.
    async fn fill(&self) -> Result<u64, FillError> {
        for _ in 0..CLAIMS_MAX {
            let filled = match self.claim().await? {
                LayerClaim::Leader(ingest) => return self.fetch(ingest).await,
                LayerClaim::Stored => self.stored().await?,
                LayerClaim::Follower(follower) => self.follow(follower).await?,
            };
            if let Some(len) = filled {
                return Ok(len);
            }
        }
        Err(FillError::disk("begin the fill", io::Error::other("it kept changing under us")))
    }

    async fn claim(&self) -> Result<LayerClaim, FillError> {
        let (image, mut before) = (self.flight.image.clone(), Hasher::new(Algorithm::Sha256));
        before.update(&self.source.json);
        before.update(b"\n");
        let claim =
            self.fills.store.blocking(move |store| images::claim(store.layout(), &image, &before)).await;
        claim.map_err(|error| self.disk("begin the fill", error, None))
    }

    /// It was published between our look and our claim. `None`: and it is gone again.
    async fn stored(&self) -> Result<Option<u64>, FillError> {
        let path = self.fills.store.layout().image(&self.flight.image, ImageFile::Layer);
        self.flight.show_stored(path, self.writer, "open the layer").await
    }

    async fn fetch(&self, ingest: Box<LayerIngest>) -> Result<u64, FillError> {
        let turn = Arc::clone(&self.source.turns).acquire_owned();
        let Ok(Ok(_turn)) = tokio::time::timeout(TURN_WAIT_MAX, turn).await else {
            self.discard(ingest).await;
            return Err(FillError::Busy);
        };
        let relayed = match self.ask().await {
            Ok(relayed) => relayed,
            Err(Refusal { error, .. }) => {
                self.discard(ingest).await;
                return Err(error.into());
            }
        };
        let length = relayed.length();
        let checksum = images::checksum_in(relayed.headers()).or(self.source.checksum);
        if !relayed.has_end() && checksum.is_none() {
            self.discard(ingest).await;
            return Err(FillError::Unbounded);
        }
        if length.is_some_and(|length| length > self.fills.store.usage().limit()) {
            self.discard(ingest).await;
            return Err(too_large());
        }
        self.space.announce(length.unwrap_or(0));
        let noting = on_store_thread(move || ingest.note_length(length).map(|()| ingest));
        let ingest = noting.await.map_err(|error| self.disk("note the layer's length", error, length))?;
        let _ = self.flight.file.set(ingest.file());
        self.writer.advance(0, length, None);
        let ingest = self.pump(relayed, ingest).await?;
        self.finish(ingest, checksum).await
    }

    async fn ask(&self) -> Result<Relayed, Refusal> {
        let source = self.source;
        let path = format!("/v1/images/{}/layer", self.flight.image);
        source.relay.get(&path, source.query.as_deref(), source.headers.clone()).await
    }

    /// Receives and writes to the end of the source's answer.
    async fn pump(&self, relayed: Relayed, ingest: Box<LayerIngest>) -> Result<Box<LayerIngest>, FillError> {
        let length = relayed.length();
        let mut receiving = Receiving {
            body: relayed.into_body(),
            received: &self.flight.received,
            metrics: &self.fills.metrics,
            source: self.source.relay.name(),
            most: self.fills.store.usage().limit(),
        };
        let advance = |written| self.writer.advance(written, length, None);
        let pump = Pump { copied_below: COPIED_BELOW, batch: BATCH, advance };
        let (received, written) = pump.run(&mut receiving, ingest).await;
        let ingest = match written {
            Ok(ingest) => ingest,
            Err(WriteFailure { error, sink }) => {
                if let Some(ingest) = sink {
                    self.discard(ingest).await;
                }
                return Err(self.disk("write the layer", error, length));
            }
        };
        if let Err(error) = received {
            self.discard(ingest).await;
            return Err(error);
        }
        Ok(ingest)
    }

    /// The verdict, then publication.
    async fn finish(&self, ingest: Box<LayerIngest>, checksum: Option<Digest>) -> Result<u64, FillError> {
        let (len, actual) = (ingest.written(), ingest.digest());
        if let Some(expected) = checksum.filter(|expected| *expected != actual) {
            self.discard(ingest).await;
            return Err(FillError::digest(expected, actual));
        }
        self.writer.verified(len);
        let (store, image) = (Arc::clone(&self.fills.store), self.flight.image.clone());
        let publishing = on_store_thread(move || {
            if checksum.is_some() {
                images::put_checksum(store.layout(), &image, &actual)?;
            }
            let added = ingest.publish()?;
            store.usage().published(image, added);
            Ok(())
        });
        if let Err(error) = publishing.await {
            self.fills.metrics.fill_failed("publish");
            let image = &self.flight.image;
            tracing::error!(%image, %error, "a whole layer could not be published: it is served, but not kept");
        }
        Ok(len)
    }

    /// Follows another process's fill. `None`: it is gone, and nobody has been given bytes of it.
    async fn follow(&self, follower: LayerFollower) -> Result<Option<u64>, FillError> {
        tracing::debug!(image = %self.flight.image, "another process is filling: following it");
        let follower = Arc::new(follower);
        let mut shown = None;
        let (mut moved, mut pause) = (Instant::now(), FOLLOW_EVERY.0);
        loop {
            let looking = Arc::clone(&follower);
            let looked = on_store_thread(move || looking.look()).await;
            match looked.map_err(|error| FillError::disk("follow another process's fill", error))? {
                LayerFollowed::Growing { written, length } if shown != Some(written) => {
                    let _ = self.flight.file.set(follower.file());
                    shown = Some(written);
                    self.writer.advance(written, length, None);
                    (moved, pause) = (Instant::now(), FOLLOW_EVERY.0);
                }
                LayerFollowed::Waiting | LayerFollowed::Growing { .. } => {
                    pause = (pause * 2).min(FOLLOW_EVERY.1);
                }
                LayerFollowed::Published { len } => {
                    let _ = self.flight.file.set(follower.file());
                    self.writer.verified(len);
                    return Ok(Some(len));
                }
                LayerFollowed::Gone if shown.is_none() => return Ok(None),
                LayerFollowed::Gone => return Err(FillError::Abandoned),
            }
            if moved.elapsed() > FOLLOW_STALL_MAX {
                return Err(FillError::OwnerStalls(FOLLOW_STALL_MAX));
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn discard(&self, ingest: Box<LayerIngest>) {
        if let Err(error) = on_store_thread(move || ingest.discard()).await {
            tracing::warn!(image = %self.flight.image, %error, "cannot remove the fill of a layer");
        }
    }

    /// The disk failed. A full one is the evictor's business as well.
    fn disk(&self, operation: &'static str, error: io::Error, length: Option<u64>) -> FillError {
        if is_no_space(&error) {
            self.fills.store.usage().need(length.unwrap_or(NEED_UNKNOWN).max(1));
        }
        FillError::disk(operation, error)
    }
}

fn too_large() -> FillError {
    let error = io::Error::new(io::ErrorKind::FileTooLarge, "larger than the cache may become");
    FillError::disk("keep the layer", error)
}

/// A source's body, counted as it comes.
struct Receiving<'a> {
    body: BlobBody,
    received: &'a AtomicU64,
    metrics: &'a Metrics,
    source: &'a str,
    /// More is not taken: a body without a length may have no end.
    most: u64,
}

impl Pieces for Receiving<'_> {
    type Error = FillError;

    async fn next(&mut self) -> Result<Option<Bytes>, FillError> {
        let piece = self.body.chunk().await?;
        if let Some(piece) = &piece {
            let len = piece.len() as u64;
            let before = self.received.fetch_add(len, Ordering::Relaxed);
            self.metrics.fetched(self.source, len);
            if before.saturating_add(len) > self.most {
                return Err(too_large());
            }
        }
        Ok(piece)
    }
}
