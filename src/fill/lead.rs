//! The leader of a fill: claim, fetch, write and hash, verify, publish.
//!
//! Receiving and writing go on at once, as two halves of one task joined by a channel ([`crate::store::pump`]). The verdict (the
//! digest) comes before publication, and readers get the blob's tail with the verdict: publication is durable because
//! nobody waits for it.
//!
//! If another process owns the fill, the leader follows its file instead, and takes over where it stops.
//!
//! **A file is written once, from front to end.** When what is known of the blob turns out wrong, the fill is discarded and
//! a new file begun; readers of the old one fail. Whoever follows a file, in this process or another, never sees its
//! bytes change.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::{FillError, Spill, SpillCause, is_no_space};
use super::fetch::Download;
use super::flight::{Fills, Flight};
use crate::oci::Hasher;
use crate::store::ingest::{self, Claim, Followed, Follower, Ingest, Origin};
use crate::store::pump::{Pump, WriteFailure};
use crate::store::{LinkKind, Reservation, on_store_thread};
use crate::upstream::{READ_BUFFER, UpstreamError};
use crate::watermark::Writer;

/// How often a fill is begun anew before it counts as failed.
pub(super) const CLAIMS_MAX: usize = 8;
/// How long a fill waits for its turn at its upstream.
pub(super) const TURN_WAIT_MAX: Duration = Duration::from_secs(20);
/// How often the file of a fill that another process owns is looked at: while it moves, and at least.
pub(super) const FOLLOW_EVERY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));
/// How long another process's fill may stand still before its followers give up.
pub(super) const FOLLOW_STALL_MAX: Duration = Duration::from_mins(2);
/// What is asked of the evictor when the disk is full and the blob's length is not known, in bytes.
pub(super) const NEED_UNKNOWN: u64 = 256 << 20;
/// See [`Pump::batch`]: large, because every reader is woken for each.
pub(super) const BATCH: usize = 2 << 20;
/// See [`Pump::copied_below`].
pub(super) const COPIED_BELOW: usize = READ_BUFFER / 2;

/// Leads `flight` to its end. Cancelled, it leaves a fill that can be resumed, and readers that fail.
pub(super) async fn lead(fills: Arc<Fills>, flight: Arc<Flight>, writer: Writer<FillError>) {
    let begun = Instant::now();
    fills.metrics.fill_started();
    let mut landing = Landing { fills: &fills, flight: &flight, outcome: "abandoned" };
    let space = Reservation::begin(&fills.store, flight.digest);
    let leader = Leader { fills: &fills, flight: &flight, writer: &writer, space };
    let outcome = leader.fill().await;
    landing.outcome = if outcome.is_ok() { "verified" } else { "failed" };
    // Out of the map before readers hear of it: who asks from here on begins anew instead of inheriting a failure.
    drop(landing);
    let (digest, upstream) = (&flight.digest, flight.source.upstream.name());
    let received = flight.bytes_received();
    match outcome {
        Ok(len) => {
            let ms = begun.elapsed().as_millis();
            tracing::debug!(%digest, upstream, repository = %flight.repository, len, received, ms, "filled");
        }
        Err(error) => {
            fills.metrics.fill_failed(error.reason());
            tracing::warn!(
                %digest, upstream, repository = %flight.repository, received, reason = error.reason(), %error, "fill failed"
            );
            writer.failed(error);
        }
    }
}

/// Takes a flight out of the map at its end, whichever that is.
struct Landing<'a> {
    fills: &'a Fills,
    flight: &'a Arc<Flight>,
    outcome: &'static str,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.fills.land(self.flight);
        self.fills.metrics.fill_ended(self.outcome);
    }
}

struct Leader<'a> {
    fills: &'a Arc<Fills>,
    flight: &'a Arc<Flight>,
    writer: &'a Writer<FillError>,
    space: Reservation,
}

/// What following another process's fill led to.
enum Following {
    Published(u64),
    /// It is ours now. The flag: readers of this process have been given bytes of it.
    TakenOver(Box<Ingest>, bool),
    Removed,
}

impl Leader<'_> {
    /// The blob's length, once it is verified and (unless that failed, which is logged) published.
    async fn fill(&self) -> Result<u64, FillError> {
        for _ in 0..CLAIMS_MAX {
            let filled = match self.claim().await? {
                Claim::Leader(ingest) => self.fetch(ingest, false).await?,
                Claim::Stored => self.stored().await?,
                Claim::Follower(follower) => match self.follow(follower).await? {
                    Following::Published(len) => Some(len),
                    Following::TakenOver(ingest, seen) => self.fetch(ingest, seen).await?,
                    Following::Removed => None,
                },
            };
            if let Some(len) = filled {
                return Ok(len);
            }
        }
        Err(FillError::disk("begin the fill", io::Error::other("it kept changing under us")))
    }

    async fn claim(&self) -> Result<Claim, FillError> {
        // What was interrupted is hashed again in here, which may take long: not on every store thread at once.
        let _turn = self.fills.claims.acquire().await.map_err(|_| FillError::Abandoned)?;
        let digest = self.flight.digest;
        let claim = self.fills.store.blocking(move |store| ingest::claim(store.layout(), &digest)).await;
        claim.map_err(|error| {
            if is_no_space(&error) {
                self.not_kept(
                    SpillCause::DiskFull,
                    None,
                    0,
                    Hasher::new(digest.algorithm()),
                    Origin::default(),
                )
            } else {
                FillError::disk("begin the fill", error)
            }
        })
    }

    /// Another process published it between our look and our claim. `None`: and it is gone again.
    async fn stored(&self) -> Result<Option<u64>, FillError> {
        self.ask_permission().await?;
        self.link().await;
        let path = self.fills.store.layout().blob(&self.flight.digest);
        self.flight.show_stored(path, self.writer, "open the blob").await
    }

    /// Fetches what is missing. `seen`: readers have been given bytes of this very file. `None`: what was there is of no
    /// use and gone, and the fill is to be begun anew.
    async fn fetch(&self, ingest: Box<Ingest>, seen: bool) -> Result<Option<u64>, FillError> {
        let flight = self.flight;
        let turn = Arc::clone(&flight.source.turns).acquire_owned();
        let Ok(Ok(_turn)) = tokio::time::timeout(TURN_WAIT_MAX, turn).await else {
            return Err(FillError::Busy);
        };
        let resumed = ingest.written();
        if resumed > 0 {
            tracing::info!(digest = %flight.digest, offset = resumed, "resuming an interrupted fill");
        }
        if ingest.verify().is_ok() {
            self.ask_permission().await?;
            self.link().await;
            let _ = flight.file.set(ingest.file());
            return self.finish(ingest).await.map(Some);
        }
        let mut download = self.download(&ingest);
        if let Err(error) = download.open().await {
            let contradicted = resumed > 0 && contradicts(&error);
            if resumed == 0 || contradicted {
                discard(ingest).await;
            }
            if contradicted && !seen {
                tracing::info!(digest = %flight.digest, %error, "what was fetched before does not fit any more: beginning anew");
                return Ok(None);
            }
            return Err(error);
        }
        let length = download.origin().length;
        if length.is_some_and(|length| length > self.fills.store.usage().limit()) {
            discard(ingest).await;
            let hasher = Hasher::new(flight.digest.algorithm());
            return Err(self.not_kept(SpillCause::TooLarge, None, 0, hasher, download.origin().clone()));
        }
        self.link().await;
        self.space.announce(length.unwrap_or(0));
        let ingest = noted(ingest, download.announced()).await?;
        let _ = flight.file.set(ingest.file());
        self.writer.advance(resumed, length, flight.expected);
        self.pump(download, ingest).await.map(Some)
    }

    fn download(&self, ingest: &Ingest) -> Download {
        let flight = self.flight;
        let (written, origin) = (ingest.written(), ingest.origin().clone());
        let download = Download::new(
            flight.source.clone(),
            flight.digest,
            written,
            origin,
            Arc::clone(&flight.received),
        );
        let limit = self.fills.store.usage().limit();
        download
            .expecting(flight.expected.filter(|length| *length <= limit))
            .avoiding(self.fills.suspect(&flight.digest))
    }

    /// Receives and writes to the end, then judges.
    async fn pump(&self, mut download: Download, ingest: Box<Ingest>) -> Result<u64, FillError> {
        let length = download.origin().length;
        let advance = |written| self.writer.advance(written, length, self.flight.expected);
        let pump = Pump { copied_below: COPIED_BELOW, batch: BATCH, advance };
        let (received, written) = pump.run(&mut download, ingest).await;
        let ingest = match written {
            Ok(ingest) => ingest,
            Err(WriteFailure { error, sink: Some(ingest) }) if is_no_space(&error) => {
                let (file, written, hasher) = (Some(ingest.file()), ingest.written(), ingest.hasher());
                discard(ingest).await;
                let origin = download.origin().clone();
                return Err(self.not_kept(SpillCause::DiskFull, file, written, hasher, origin));
            }
            Err(WriteFailure { error, sink: ingest }) => {
                // After a failed write nothing that the file holds is to be believed.
                if let Some(ingest) = ingest {
                    discard(ingest).await;
                }
                return Err(FillError::disk("write the fill", error));
            }
        };
        if let Err(error) = received {
            self.fills.distrust(self.flight, &error, download.endpoint());
            self.keep_for_later(ingest, &error).await;
            return Err(error);
        }
        let judged = self.finish(ingest).await;
        if let Err(error) = &judged {
            self.fills.distrust(self.flight, error, download.endpoint());
        }
        judged
    }

    /// The verdict, then publication.
    async fn finish(&self, ingest: Box<Ingest>) -> Result<u64, FillError> {
        let digest = self.flight.digest;
        if let Err(actual) = ingest.verify() {
            discard(ingest).await;
            return Err(FillError::digest(digest, actual));
        }
        let len = ingest.written();
        self.writer.verified(len);
        match on_store_thread(move || ingest.publish()).await {
            Ok(added) => self.fills.store.usage().published(digest, added),
            Err(error) => {
                self.fills.metrics.fill_failed("publish");
                tracing::error!(%digest, %error, "a verified blob could not be published: it is served, but not kept");
            }
        }
        self.fills.store.forget(&digest);
        Ok(len)
    }

    async fn follow(&self, follower: Follower) -> Result<Following, FillError> {
        let digest = self.flight.digest;
        tracing::debug!(%digest, "another process is filling: following it");
        let follower = Arc::new(follower);
        let mut shown = None;
        let (mut moved, mut pause) = (Instant::now(), FOLLOW_EVERY.0);
        loop {
            let looking = Arc::clone(&follower);
            let looked = on_store_thread(move || looking.look()).await;
            match looked.map_err(|error| FillError::disk("follow another process's fill", error))? {
                // Until the owner has noted its source, upstream has not answered it.
                Followed::Growing { written, origin: Some(origin) } if shown != Some(written) => {
                    if shown.is_none() {
                        self.show(&follower).await?;
                    }
                    shown = Some(written);
                    self.writer.advance(written, origin.length, self.flight.expected);
                    (moved, pause) = (Instant::now(), FOLLOW_EVERY.0);
                }
                Followed::Growing { .. } => pause = (pause * 2).min(FOLLOW_EVERY.1),
                Followed::Published { len } => {
                    if shown.is_none() {
                        self.show(&follower).await?;
                    }
                    self.writer.verified(len);
                    return Ok(Following::Published(len));
                }
                Followed::TakenOver(ingest) => {
                    tracing::info!(%digest, offset = ingest.written(), "the process that was filling is gone: taking over");
                    return Ok(Following::TakenOver(ingest, shown.is_some()));
                }
                Followed::Removed if shown.is_none() => return Ok(Following::Removed),
                Followed::Removed => {
                    let salvaged = on_store_thread(move || Ok((follower.file(), follower.salvage()?))).await;
                    let (file, (hasher, origin)) = salvaged
                        .map_err(|error| FillError::disk("go on with another process's fill", error))?;
                    return Err(self.not_kept(
                        SpillCause::OwnerGaveUp,
                        Some(file),
                        hasher.len(),
                        hasher,
                        origin,
                    ));
                }
            }
            if moved.elapsed() > FOLLOW_STALL_MAX {
                return Err(FillError::OwnerStalls(FOLLOW_STALL_MAX));
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Lets readers see the file that another process fills: upstream must let this repository have it.
    async fn show(&self, follower: &Follower) -> Result<(), FillError> {
        self.ask_permission().await?;
        self.link().await;
        let _ = self.flight.file.set(follower.file());
        Ok(())
    }

    /// Asks upstream whether this repository may have the blob, unless it is linked there already.
    async fn ask_permission(&self) -> Result<(), FillError> {
        let path =
            self.fills.store.layout().link(&self.flight.repository, LinkKind::Layer, &self.flight.digest);
        if on_store_thread(move || path.try_exists()).await.unwrap_or(false) {
            return Ok(());
        }
        let source = &self.flight.source;
        source.upstream.blob_head(&source.repository, &self.flight.digest).await?;
        Ok(())
    }

    /// Upstream lets this repository have it: from now on the cache does too.
    async fn link(&self) {
        let (digest, repository) = (&self.flight.digest, &self.flight.repository);
        if let Err(error) = self.fills.store.link(repository, LinkKind::Layer, digest).await {
            tracing::warn!(%digest, %repository, %error, "cannot link the blob: it will be asked for again");
        }
    }

    /// Puts an interrupted fill aside, unless it is of no use.
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

    fn not_kept(
        &self,
        cause: SpillCause,
        file: Option<Arc<std::fs::File>>,
        written: u64,
        hasher: Hasher,
        origin: Origin,
    ) -> FillError {
        tracing::error!(
            digest = %self.flight.digest, written, reason = cause.as_str(),
            "{cause}: readers are served straight from upstream, nothing is kept"
        );
        if cause == SpillCause::DiskFull {
            let missing = origin.length.map_or(NEED_UNKNOWN, |length| length.saturating_sub(written));
            self.fills.store.usage().need(missing.max(1));
        }
        FillError::NotKept(Arc::new(Spill { cause, file, written, hasher, origin }))
    }
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

/// Notes what upstream announced, for a later resumption.
async fn noted(mut ingest: Box<Ingest>, origin: Origin) -> Result<Box<Ingest>, FillError> {
    let noting = on_store_thread(move || {
        ingest.set_origin(origin);
        Ok(ingest)
    });
    noting.await.map_err(|error| FillError::disk("note the fill's source", error))
}

async fn discard(ingest: Box<Ingest>) {
    let digest = *ingest.digest();
    if let Err(error) = on_store_thread(move || ingest.discard()).await {
        tracing::warn!(%digest, %error, "cannot remove a fill");
    }
}
