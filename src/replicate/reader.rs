//! A blob's bytes from its sources, in order and without gaps: when one breaks off, it or the next is asked for the rest.

use bytes::Bytes;

use super::error::CopyError;
use super::image::Job;
use super::retry::Tries;
use super::run::Run;
use super::source::{Giver, Source, by_health};
use crate::oci::Digest;
use crate::store::pump::Pieces;
use crate::upstream::{BlobBody, BlobRequest, BlobResponse};

/// A source that gave so much since it last failed has its tries anew, in bytes: what it costs to go on is little then.
const PROGRESS: u64 = 4 << 20;

/// The largest blob whose size nobody tells, in bytes: a source that never ends must not fill the target's disk.
const UNTOLD_MAX: u64 = 64 << 30;

/// Reads a blob from a position on. Dropping it closes the connection unless all was read.
pub(super) struct BlobReader<'r, 'a> {
    run: &'r Run<'a>,
    job: &'r Job<'r, 'a>,
    digest: Digest,
    /// Who may have it, the one to be asked now first.
    sources: Vec<&'a Source>,
    /// Where the next bytes belong.
    position: u64,
    size: Option<u64>,
    body: Option<BlobBody>,
    /// What a source that takes no ranges sends before what is wanted.
    skipped: u64,
    tries: Tries,
    /// Where it stood at the last failure.
    failed_at: u64,
    giver: Giver<'a>,
}

impl<'r, 'a> BlobReader<'r, 'a> {
    /// From `position` on; `size` is the whole blob's, if it is known. Asks nobody yet.
    pub(super) fn new(
        run: &'r Run<'a>,
        job: &'r Job<'r, 'a>,
        digest: &Digest,
        sources: &[&'a Source],
        position: u64,
        size: Option<u64>,
    ) -> Self {
        Self {
            run,
            job,
            digest: *digest,
            sources: by_health(sources),
            position,
            size,
            body: None,
            skipped: 0,
            tries: Tries::default(),
            failed_at: position,
            giver: Giver::Nobody,
        }
    }

    /// Where the next bytes belong.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The whole blob's size, once a source or the manifest said it.
    pub(super) fn size(&self) -> Option<u64> {
        self.size
    }

    /// Who gave the bytes so far.
    pub(super) fn giver(&self) -> Giver<'a> {
        self.giver
    }

    /// Who is asked for the next bytes.
    pub(super) fn source(&self) -> Option<&'a Source> {
        self.sources.first().copied()
    }

    /// Has a source answer, so that the size is known if it says it.
    pub(super) async fn open(&mut self) -> Result<(), CopyError> {
        while self.body.is_none() {
            let Some(source) = self.source() else { return Err(CopyError::Corrupt(Box::new(self.digest))) };
            if let Err(error) = self.run.rested(&source.health).await {
                self.failed(source, error).await?;
                continue;
            }
            let range = (self.position > 0).then_some((self.position, None));
            let request = BlobRequest { range, ..BlobRequest::default() };
            let asked = source.upstream.blob(self.job.repository, &self.digest, request).await;
            let result = match asked {
                Ok(response) => self.begin(source, response),
                Err(error) => Err(CopyError::Source(error)),
            };
            if let Err(error) = result {
                self.failed(source, error).await?;
            }
        }
        Ok(())
    }

    fn begin(&mut self, source: &Source, response: BlobResponse) -> Result<(), CopyError> {
        let total = match response.partial {
            Some(part) => part.total,
            None => response.length,
        };
        if let (Some(size), Some(total)) = (self.size, total)
            && size != total
        {
            let what = format!("{} has {total} bytes there, {size} by what is known otherwise", self.digest);
            return Err(CopyError::Content { source_name: source.name().to_owned(), what });
        }
        self.size = self.size.or(total);
        self.skipped = if response.partial.is_some() { 0 } else { self.position };
        self.body = Some(response.body);
        source.health.restore();
        Ok(())
    }

    /// The next bytes, never empty; `None` after the last. Cancel-safe as far as bytes go; a pause begins anew.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, CopyError> {
        loop {
            if self.size.is_some_and(|size| self.position >= size) && self.is_at_end().await? {
                return Ok(None);
            }
            self.open().await?;
            let (Some(body), Some(source)) = (&mut self.body, self.sources.first().copied()) else {
                continue;
            };
            let result: Result<(), CopyError> = match body.chunk().await {
                Ok(Some(bytes)) => match self.placed(source, bytes) {
                    Ok(bytes) if bytes.is_empty() => continue,
                    Ok(bytes) => return Ok(Some(bytes)),
                    Err(error) => Err(error),
                },
                // Without a length announced, its end is the blob's: the digest tells whether that is so.
                Ok(None) if self.size.is_none_or(|size| size == self.position) => return Ok(None),
                Ok(None) => {
                    let what = format!("{} ended after {} bytes", self.digest, self.position);
                    Err(CopyError::Content { source_name: source.name().to_owned(), what })
                }
                Err(error) => Err(CopyError::Source(error)),
            };
            if let Err(error) = result {
                self.failed(source, error).await?;
            }
        }
    }

    /// At the known size: whether nothing more comes, which also leaves the connection fit for the next blob.
    async fn is_at_end(&mut self) -> Result<bool, CopyError> {
        let (Some(body), Some(source)) = (&mut self.body, self.sources.first().copied()) else {
            return Ok(true);
        };
        match body.chunk().await {
            Ok(None) | Err(_) => Ok(true),
            Ok(Some(_)) => {
                let what = format!("{} is longer than it should be", self.digest);
                Err(CopyError::Content { source_name: source.name().to_owned(), what })
            }
        }
    }

    /// What of these bytes was not there yet.
    fn placed(&mut self, source: &'a Source, mut bytes: Bytes) -> Result<Bytes, CopyError> {
        let known = self.skipped.min(bytes.len() as u64);
        self.skipped -= known;
        let bytes = bytes.split_off(usize::try_from(known).unwrap_or(usize::MAX));
        let end = self.position + bytes.len() as u64;
        if end > self.size.unwrap_or(UNTOLD_MAX) {
            let what = format!("{} is longer than it should be", self.digest);
            return Err(CopyError::Content { source_name: source.name().to_owned(), what });
        }
        self.position = end;
        if !bytes.is_empty() {
            self.giver = self.giver.and(Giver::One(source));
        }
        Ok(bytes)
    }

    /// Waits until the same source is to be asked again, or goes on to the next; the error, if there is none.
    async fn failed(&mut self, source: &'a Source, error: CopyError) -> Result<(), CopyError> {
        self.body = None;
        if self.position - self.failed_at >= PROGRESS {
            self.tries.forget();
        }
        self.failed_at = self.position;
        let error = if error.is_retryable() {
            let what = format!("{}@{}", self.job.repository, self.digest);
            match self.run.pause(&what, &source.health, error, &mut self.tries).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            }
        } else {
            error
        };
        if error.is_stop() || self.run.stop.is_requested() {
            return Err(error);
        }
        self.sources.remove(0);
        self.tries.forget();
        if self.sources.is_empty() {
            return Err(error);
        }
        tracing::debug!(%error, digest = %self.digest, "asking the next source for the rest");
        Ok(())
    }
}

impl Pieces for BlobReader<'_, '_> {
    type Error = CopyError;

    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, CopyError>> {
        Self::next(self)
    }
}
