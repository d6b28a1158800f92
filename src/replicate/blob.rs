//! One blob brought into a repository of the target: found there, mounted, or copied.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::error::CopyError;
use super::event::{BlobOutcome, Event};
use super::image::{Blob, Job};
use super::reader::BlobReader;
use super::run::Run;
use super::source::{Giver, Source};
use super::target::Kind;
use crate::oci::Digest;
use crate::store::StoredRepository;
use crate::upstream::{Mount, UploadSession};

/// A blob up to this size is read whole before it is sent, in bytes: then one request sends it and ends its upload.
pub(super) const SMALL: u64 = 1 << 20;

/// How a blob can come to the target.
enum Way {
    /// It is there.
    There(BlobOutcome),
    /// It has to be copied; into this upload, if the target began one.
    Copy(Option<UploadSession>),
}

impl<'a> Run<'a> {
    /// Has the target's repository have a blob. The bytes that were moved for it.
    pub(super) async fn blob(&self, job: &Job<'_, 'a>, blob: &Blob) -> Result<u64, CopyError> {
        let Blob { digest, size } = blob;
        // Who needs the same blob at the same time waits, and then mounts it.
        let _flight = self.flights.enter(digest).await;
        if self.places.is_in(digest, job.repository) {
            self.blob_done(job, blob, BlobOutcome::Present, 0);
            return Ok(0);
        }
        let is_small = size.is_some_and(|size| size <= SMALL);
        let _permit = if is_small { &self.small_blobs } else { &self.large_blobs }.acquire().await;
        if self.stop.is_requested() {
            return Err(CopyError::Stopped);
        }
        let (outcome, moved) = match self.way(job, digest).await? {
            Way::There(outcome) => (outcome, 0),
            Way::Copy(_) if self.options.dry_run => (BlobOutcome::Copied, size.unwrap_or(0)),
            Way::Copy(session) => (BlobOutcome::Copied, Box::pin(self.copy_blob(job, blob, session)).await?),
        };
        self.places.note(digest, job.repository);
        self.blob_done(job, blob, outcome, moved);
        Ok(moved)
    }

    fn blob_done(&self, job: &Job<'_, 'a>, blob: &Blob, how: BlobOutcome, moved: u64) {
        self.tally.count(|summary| match how {
            BlobOutcome::Copied => {
                summary.blobs_copied += 1;
                if summary.dry_run {
                    summary.bytes_copied += moved;
                }
            }
            BlobOutcome::Mounted => summary.blobs_mounted += 1,
            BlobOutcome::Present => summary.blobs_present += 1,
        });
        self.tell(Event::BlobDone { image: job.image.clone(), digest: blob.digest, size: blob.size, how });
    }

    /// Asks as little as possible about how to get it there.
    async fn way(&self, job: &Job<'_, 'a>, digest: &Digest) -> Result<Way, CopyError> {
        let place = self.places.to_mount_from(digest, job.repository);
        if place.is_none() || self.options.dry_run || matches!(self.target.kind, Kind::Tree(_)) {
            let renew = !self.options.dry_run;
            if self.is_there(job, digest, renew).await? {
                return Ok(Way::There(BlobOutcome::Present));
            }
        }
        match &self.target.kind {
            Kind::Registry { upstream, .. } => {
                let Some(place) = place else { return Ok(Way::Copy(None)) };
                if !self.belongs(job, digest).await {
                    return Ok(Way::Copy(None));
                }
                if self.options.dry_run {
                    return Ok(Way::There(BlobOutcome::Mounted));
                }
                let what = named(job, digest);
                let mount = self.retrying(&what, &self.target.health, async || {
                    upstream.mount(job.repository, digest, &place).await.map_err(CopyError::Target)
                });
                match mount.await {
                    Ok(Mount::Mounted) => Ok(Way::There(BlobOutcome::Mounted)),
                    Ok(Mount::Session(session)) => {
                        self.places.forget(digest);
                        Ok(Way::Copy(Some(session)))
                    }
                    Err(error) if error.is_retryable() || error.is_stop() => Err(error),
                    // Some registries do not know it, some logins may not read the other repository.
                    Err(error) => {
                        tracing::debug!(%error, "not mounted: copying");
                        Ok(Way::Copy(None))
                    }
                }
            }
            Kind::Tree(store) => {
                let failed = |error| self.target.disk("link a blob", error);
                let is_held = store.blob(&self.files, digest).await.map_err(failed)?.is_some();
                if !is_held || !self.belongs(job, digest).await {
                    return Ok(Way::Copy(None));
                }
                let kind = crate::store::LinkKind::Layer;
                let repository = StoredRepository::local(job.repository);
                let linked = self.options.dry_run
                    || store.link_held(&repository, kind, digest).await.map_err(failed)?;
                Ok(if linked { Way::There(BlobOutcome::Mounted) } else { Way::Copy(None) })
            }
        }
    }

    /// Whether the target's repository has the blob.
    pub(super) async fn is_there(
        &self,
        job: &Job<'_, 'a>,
        digest: &Digest,
        renew: bool,
    ) -> Result<bool, CopyError> {
        let what = named(job, digest);
        let asking = self.retrying(&what, &self.target.health, async || {
            self.target.has_blob(&self.files, job.repository, digest, renew).await
        });
        asking.await
    }

    /// Whether a source has the blob in this very repository: a manifest alone, which may name anything, does not give the
    /// right to what another repository of the target has.
    async fn belongs(&self, job: &Job<'_, 'a>, digest: &Digest) -> bool {
        let asking = self.ask(&job.image, job.holders, async |source| {
            source.upstream.blob_head(job.repository, digest).await.map_err(CopyError::Source)
        });
        asking.await.is_ok()
    }

    /// Copies a blob, from another source if one gives something else. The bytes that arrived.
    async fn copy_blob(
        &self,
        job: &Job<'_, 'a>,
        blob: &Blob,
        mut session: Option<UploadSession>,
    ) -> Result<u64, CopyError> {
        // Who is to be asked next, and if they fail.
        let mut choices: VecDeque<Vec<&'a Source>> = VecDeque::from([job.holders.to_vec()]);
        let mut result = Err(CopyError::Corrupt(Box::new(blob.digest)));
        while let Some(sources) = choices.pop_front() {
            let copied = match &self.target.kind {
                Kind::Registry { upstream, .. } if blob.size.is_some_and(|size| size <= SMALL) => {
                    self.send_whole(upstream, job, blob, &sources, session.take()).await
                }
                Kind::Registry { upstream, .. } => {
                    Box::pin(self.send_stream(upstream, job, blob, &sources, session.take())).await
                }
                Kind::Tree(store) => self.store_blob(store, job, blob, &sources).await,
            };
            let (error, culprit) = match copied {
                Ok(bytes) => return Ok(bytes),
                Err(failed) => failed,
            };
            match (&error, culprit) {
                (CopyError::Content { .. }, Some(culprit)) if sources.len() > 1 => {
                    choices
                        .push_back(sources.into_iter().filter(|one| !std::ptr::eq(*one, culprit)).collect());
                }
                // Several gave a part of it: which of them is wrong shows when each gives all.
                (CopyError::Mixed(_) | CopyError::Corrupt(_), _) if sources.len() > 1 => {
                    choices.extend(sources.into_iter().map(|one| vec![one]));
                }
                (
                    CopyError::Content { .. }
                    | CopyError::Mixed(_)
                    | CopyError::Corrupt(_)
                    | CopyError::Source(_),
                    _,
                ) => {}
                (CopyError::Resting { .. }, _) if !choices.is_empty() => {}
                _ => return Err(error),
            }
            if !choices.is_empty() {
                tracing::warn!(%error, "asking another source");
            }
            result = Err(error);
        }
        result
    }

    /// Reads a small blob and verifies it. Who gave it is told with a failure too.
    pub(super) async fn read_whole(
        &self,
        job: &Job<'_, 'a>,
        blob: &Blob,
        sources: &[&'a Source],
    ) -> Result<Bytes, (CopyError, Option<&'a Source>)> {
        let mut reader = BlobReader::new(self, job, &blob.digest, sources, 0, blob.size);
        let mut bytes = BytesMut::new();
        loop {
            let source = reader.source();
            match reader.next().await {
                Ok(Some(piece)) => bytes.extend_from_slice(&piece),
                Ok(None) => break,
                Err(error) => return Err((error, source)),
            }
        }
        let actual = Digest::of(blob.digest.algorithm(), &bytes);
        if actual != blob.digest {
            return Err((corrupt(reader.giver(), &blob.digest, &actual), reader.giver().one()));
        }
        Ok(bytes.freeze())
    }

    /// Bytes of a blob arrived.
    pub(super) fn progress(&self, job: &Job<'_, 'a>, blob: &Blob, moved: u64, done: u64) {
        self.tally.count(|summary| summary.bytes_copied += moved);
        let (image, digest, size) = (job.image.clone(), blob.digest, blob.size);
        self.tell(Event::BlobProgress { image, digest, moved, done, size });
    }
}

/// What came is not what the digest says.
pub(super) fn corrupt(giver: Giver<'_>, expected: &Digest, actual: &Digest) -> CopyError {
    match giver {
        Giver::One(source) => CopyError::Content {
            source_name: source.name().to_owned(),
            what: format!("digest mismatch: expected {expected}, got content of {actual}"),
        },
        Giver::Several => CopyError::Mixed(Box::new(*expected)),
        Giver::Nobody => CopyError::Corrupt(Box::new(*expected)),
    }
}

/// A blob in messages.
pub(super) fn named(job: &Job<'_, '_>, digest: &Digest) -> String {
    format!("{}@{digest}", job.repository)
}
