//! What a reader of a fill gets: regions of the growing file, and bytes straight from upstream where the file cannot
//! serve.
//!
//! A reader never holds more than one chunk, and never passes on what is not settled: from the file it gets what the
//! watermark allows, so the blob's last bytes wait for the verdict. Two cases leave the file:
//!
//! - **A range far ahead of the watermark** is asked of upstream by itself, up to the blob's held-back tail, which comes
//!   from the file like everybody's. If upstream refuses or breaks, the reader waits for the file after all.
//! - **A blob that cannot be kept**, because the disk is full say. A reader goes on from upstream where the file ends, with the fill's hash state, and holds back the
//!   blob's last bytes until its own hash matches. A range that does not touch the tail is passed through instead.
//!
//! Dropping a reader ends its own upstream request, if it has one, and touches nothing else.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use futures_util::stream;

use super::error::{FillError, Spill};
use super::fetch::{Download, Source};
use super::flight::Flight;
use crate::body::{Body, BodyError, Chunk, Region};
use crate::http::range::ByteRange;
use crate::oci::{Digest, Hasher};
use crate::store::ingest::Origin;
use crate::watermark::{self, HELD_BACK, Progress};

/// Why bytes are served and not kept, as the metrics call it: the range was far ahead of its fill.
pub const FAR_RANGE: &str = "far_range";

/// What the fill wrote last, in bytes: it is in the page cache without a look. A look at what was just written is dear:
/// 16 readers of one fill spent a quarter of the server's CPU time with it (2.8 s without this, 2.2 s with it, for 512 MiB).
const RECENT_BYTES: u64 = 32 << 20;

/// The part of a blob under fill that a reader wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of it; the length need not be known.
    Whole,
    /// A range of a blob whose length is known.
    Part(ByteRange),
}

/// A body that follows `flight`. A range that begins more than `far` bytes ahead of what is readable now is asked of
/// upstream by itself; the flag says that this one is. `uncached` counts the bytes that this reader alone caused to come from upstream.
///
/// The flight must have started (its length is known if upstream announced one).
pub fn growing(flight: &Arc<Flight>, wanted: Wanted, far: u64, uncached: &Arc<AtomicU64>) -> (Body, bool) {
    let progress = flight.progress();
    let length = progress.length();
    let (position, end) = match wanted {
        Wanted::Whole => (0, length),
        Wanted::Part(range) => (range.start, Some(range.start + range.len)),
    };
    let reader = Reader {
        flight: Arc::clone(flight),
        watermark: flight.reader.clone(),
        whole: wanted == Wanted::Whole,
        position,
        end,
        uncached: Arc::clone(uncached),
        way: Way::File,
    };
    let reader = reader.taking_the_short_way(&progress, far);
    let short_way = matches!(reader.way, Way::Through(_));
    (Body::stream(chunks(reader), end.map(|end| end - position)), short_way)
}

/// A body for a part of a blob that cannot be kept and that does not touch the blob's tail: `download`, `len` bytes of
/// it, as they come.
pub fn passed_through(download: Download, len: u64) -> Body {
    Body::stream(chunks(download), Some(len))
}

/// A body for a blob that cannot be kept, whole or a part that touches its tail: this reader fetches all that is missing,
/// and hands out the end when its own hash matches. `download` begins at `spill.written`; `length` is the blob's, which
/// a part needs.
pub fn verified_by_itself(
    digest: Digest,
    download: Download,
    spill: &Arc<Spill>,
    wanted: Wanted,
    length: Option<u64>,
) -> Body {
    let (start, end) = match wanted {
        Wanted::Whole => (0, length),
        Wanted::Part(range) => (range.start, Some(range.end())),
    };
    let reader = SpillReader::new(digest, download, spill, start, end);
    Body::stream(chunks(reader), end.map(|end| end - start))
}

/// Something that yields a body's chunks.
pub(super) trait Chunks {
    async fn next(&mut self) -> Result<Option<Chunk>, BodyError>;
}

pub(super) fn chunks(
    source: impl Chunks + 'static,
) -> impl futures_util::Stream<Item = Result<Chunk, BodyError>> {
    stream::unfold(Some(source), |source| async {
        let mut source = source?;
        match source.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some(source))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
}

impl Chunks for Download {
    async fn next(&mut self) -> Result<Option<Chunk>, BodyError> {
        Ok(Self::next(self).await.map_err(BodyError::new)?.map(Chunk::Bytes))
    }
}

struct Reader {
    flight: Arc<Flight>,
    watermark: watermark::Reader<FillError>,
    whole: bool,
    position: u64,
    /// The byte behind the last wanted one; `None` while the blob's length is unknown.
    end: Option<u64>,
    uncached: Arc<AtomicU64>,
    way: Way,
}

/// Where the next bytes come from.
enum Way {
    File,
    /// Unverified bytes before the tail, straight from upstream.
    Through(Box<Download>),
    Spill(Box<SpillReader>),
}

impl Reader {
    fn taking_the_short_way(mut self, progress: &Progress<FillError>, far: u64) -> Self {
        let (Some(length), Some(tail)) = (progress.length(), progress.tail()) else { return self };
        let ahead = self.position.saturating_sub(progress.readable());
        if !self.whole && ahead > far && self.position < tail {
            let until = self.end.unwrap_or(tail).min(tail);
            tracing::debug!(digest = %self.flight.digest, offset = self.position, ahead, "a range far ahead: asking upstream for it");
            let origin = Origin { length: Some(length), etag: None };
            self.way =
                Way::Through(Box::new(self.download(self.position, origin).until(until).uncached(FAR_RANGE)));
        }
        self
    }

    fn download(&self, from: u64, origin: Origin) -> Download {
        let source: Source = self.flight.source.clone();
        Download::new(source, self.flight.digest, from, origin, Arc::clone(&self.uncached))
    }

    fn region(&mut self, progress: &Progress<FillError>) -> Option<Chunk> {
        let region = readable_region(self.flight.file.get()?, progress, self.position, self.end)?;
        self.position += region.len as u64;
        Some(Chunk::Region(region))
    }

    /// The fill cannot be kept: this reader goes on by itself.
    fn leave(&mut self, spill: &Arc<Spill>) {
        let (origin, reason) = (spill.origin.clone(), spill.cause.as_str());
        let shortest =
            origin.length.into_iter().chain(self.flight.expected).min().filter(|_| origin.length.is_some());
        let tail = shortest.map_or(0, |length| length.saturating_sub(HELD_BACK));
        self.way = match self.end {
            Some(end) if !self.whole && end <= tail => {
                Way::Through(Box::new(self.download(self.position, origin).until(end).uncached(reason)))
            }
            end => {
                let download = self.download(spill.written, origin).uncached(reason);
                let digest = self.flight.digest;
                Way::Spill(Box::new(SpillReader::new(digest, download, spill, self.position, end)))
            }
        };
    }
}

impl Chunks for Reader {
    async fn next(&mut self) -> Result<Option<Chunk>, BodyError> {
        loop {
            if self.end.is_some_and(|end| self.position >= end) {
                return Ok(None);
            }
            match &mut self.way {
                Way::File => {}
                Way::Through(download) => match download.next().await {
                    Ok(Some(bytes)) => {
                        self.position += bytes.len() as u64;
                        return Ok(Some(Chunk::Bytes(bytes)));
                    }
                    Ok(None) => self.way = Way::File,
                    Err(error) => {
                        tracing::info!(digest = %self.flight.digest, %error, "upstream does not give the range: waiting for the fill");
                        self.way = Way::File;
                    }
                },
                Way::Spill(spill) => return spill.next().await,
            }
            let position = self.position;
            let progress = self.watermark.wait_until(|progress| progress.readable() > position).await;
            match progress {
                Progress::Failed(FillError::NotKept(spill)) => self.leave(&spill),
                Progress::Failed(error) => return Err(BodyError::new(error)),
                Progress::Verified { len } if self.end.is_none() => self.end = Some(len),
                progress => {
                    let chunk = self.region(&progress).map(Some);
                    return chunk
                        .ok_or_else(|| BodyError::new("a fill has no file, or is shorter than its range"));
                }
            }
        }
    }
}

/// The next bytes from `position` on that a reader may have of a growing file, up to `end` if that is known.
pub(super) fn readable_region(
    file: &Arc<File>,
    progress: &Progress<FillError>,
    position: u64,
    end: Option<u64>,
) -> Option<Region> {
    let readable = progress.readable().min(end.unwrap_or(u64::MAX));
    let behind = progress.readable().saturating_sub(position);
    let mut region = Region::at(file, position, readable.checked_sub(position)?)?;
    region.recent = matches!(progress, Progress::Growing { .. }) && behind <= RECENT_BYTES;
    Some(region)
}

/// What the file got, then upstream, the blob's end withheld until this reader's own hash matches.
struct SpillReader {
    digest: Digest,
    download: Download,
    hasher: Option<Hasher>,
    /// The bytes that are wanted: from here, and to here (`None`: to the blob's end).
    start: u64,
    end: Option<u64>,
    /// What is not handed out yet: contiguous, in order; the first of it stands at `at`.
    queue: VecDeque<Chunk>,
    at: u64,
    /// Sum of the lengths in `queue`; more than `HELD_BACK` plus one chunk only while it holds regions.
    queued: u64,
    verified: bool,
}

impl SpillReader {
    /// Hands out `start..end`; `download` begins at `spill.written`.
    fn new(digest: Digest, download: Download, spill: &Arc<Spill>, start: u64, end: Option<u64>) -> Self {
        let at = start.min(spill.written);
        let hasher = Some(spill.hasher.clone());
        let queue = VecDeque::new();
        let mut reader = Self { digest, download, hasher, start, end, queue, at, queued: 0, verified: false };
        let mut position = at;
        if let Some(file) = &spill.file {
            while let Some(region) = Region::at(file, position, spill.written.saturating_sub(position)) {
                position += region.len as u64;
                reader.push(Chunk::Region(region));
            }
        }
        reader
    }

    fn push(&mut self, chunk: Chunk) {
        self.queued += chunk.len() as u64;
        self.queue.push_back(chunk);
    }

    /// The first chunk, as far as it is wanted, if what stays behind it is enough to withhold or nothing needs to be
    /// withheld any more.
    fn pop(&mut self) -> Option<Chunk> {
        loop {
            let first = self.queue.front()?.len() as u64;
            if !self.verified && self.queued - first < HELD_BACK {
                return None;
            }
            let chunk = self.queue.pop_front()?;
            let at = self.at;
            self.at += first;
            self.queued -= first;
            let from = self.start.saturating_sub(at).min(first);
            let to = self.end.map_or(first, |end| end.saturating_sub(at).min(first));
            if from < to {
                return Some(cut(chunk, from, to));
            }
        }
    }

    fn take(&mut self, bytes: Bytes) {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes);
        }
        self.push(Chunk::Bytes(bytes));
    }

    fn judge(&mut self) -> Result<(), BodyError> {
        let actual = self.hasher.take().map(Hasher::finish);
        match actual {
            Some(actual) if actual == self.digest => {
                self.verified = true;
                Ok(())
            }
            Some(actual) => Err(BodyError::new(FillError::digest(self.digest, actual))),
            None => Err(BodyError::new(FillError::Abandoned)),
        }
    }
}

impl Chunks for SpillReader {
    async fn next(&mut self) -> Result<Option<Chunk>, BodyError> {
        loop {
            if self.end.is_some_and(|end| self.at >= end) {
                return Ok(None);
            }
            if let Some(chunk) = self.pop() {
                return Ok(Some(chunk));
            }
            if self.verified {
                return Ok(None);
            }
            match self.download.next().await.map_err(BodyError::new)? {
                Some(bytes) => self.take(bytes),
                None => self.judge()?,
            }
        }
    }
}

/// Bytes `from..to` of a chunk; `from < to <= chunk.len()`.
fn cut(chunk: Chunk, from: u64, to: u64) -> Chunk {
    // A chunk's length is a usize, and so is every position in it.
    let (start, end) =
        (usize::try_from(from).unwrap_or(usize::MAX), usize::try_from(to).unwrap_or(usize::MAX));
    match chunk {
        Chunk::Bytes(bytes) => Chunk::Bytes(bytes.slice(start..end)),
        Chunk::Region(region) => {
            Chunk::Region(Region { offset: region.offset + from, len: end - start, ..region })
        }
        // Has no bytes, and a fill has none.
        trailers @ Chunk::Trailers(_) => trailers,
    }
}
