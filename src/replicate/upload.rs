//! A blob's bytes on their way into the upload of a registry.
//!
//! A small blob is read, verified, and sent in one request. Any other is a stream: while its bytes go to the target, a
//! thread hashes them, and only if the digest is right is the upload finished. When the target breaks off, it is asked what
//! it has, the hash goes back there, and the rest follows.

use std::cell::Cell;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::blob::{corrupt, named};
use super::error::CopyError;
use super::hashing::{HashThread, Hashing};
use super::image::{Blob, Job};
use super::reader::BlobReader;
use super::retry::Tries;
use super::run::Run;
use super::source::{Giver, Source};
use crate::oci::Digest;
use crate::upstream::{NotTaken, PieceSender, UploadSession, Upstream, UpstreamError};

/// A target that took so much more than ever before has its tries anew, in bytes.
const PROGRESS: u64 = 4 << 20;

/// Why a blob did not arrive, and whose bytes it was when they were not what they should be.
pub(super) type Failed<'a> = (CopyError, Option<&'a Source>);

/// A stream into an upload, between its attempts.
struct Stream<'r, 'a> {
    upstream: &'r Upstream,
    job: &'r Job<'r, 'a>,
    blob: &'r Blob,
    sources: &'r [&'a Source],
    session: Option<UploadSession>,
    hashing: Hashing,
    /// Who gave what was hashed.
    giver: Giver<'a>,
    /// Bytes sent, those that were lost included.
    moved: Cell<u64>,
}

impl<'a> Run<'a> {
    /// Reads a small blob and sends it with the request that ends its upload. The bytes sent.
    pub(super) async fn send_whole(
        &self,
        upstream: &Upstream,
        job: &Job<'_, 'a>,
        blob: &Blob,
        sources: &[&'a Source],
        session: Option<UploadSession>,
    ) -> Result<u64, Failed<'a>> {
        let (digest, repository) = (&blob.digest, &**job.repository);
        if let Err(error) = self.rested(&self.target.health).await {
            if let Some(session) = session {
                self.cancel(upstream, job, digest, &session).await;
            }
            return Err((error, None));
        }
        let begin = async {
            match session {
                Some(session) => Ok(session),
                None => upstream.begin_upload(repository, digest).await,
            }
        };
        let (bytes, begun) = tokio::join!(self.read_whole(job, blob, sources), begin);
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(failed) => {
                if let Ok(session) = begun {
                    self.cancel(upstream, job, digest, &session).await;
                }
                return Err(failed);
            }
        };
        let mut begun = Some(begun);
        let mut tries = Tries::default();
        loop {
            let session = match begun.take() {
                Some(begun) => begun,
                None => upstream.begin_upload(repository, digest).await,
            };
            let sent = match session {
                Ok(session) => upstream.upload(repository, &session, digest, bytes.clone()).await,
                Err(error) => Err(error),
            };
            let Err(error) = sent else { break };
            let arrived = async {
                self.target_failed(job, digest, error, &mut tries).await?;
                self.rested(&self.target.health).await?;
                self.is_there(job, digest, true).await
            };
            if arrived.await.map_err(|error| (error, None))? {
                break;
            }
        }
        let len = bytes.len() as u64;
        self.progress(job, blob, len, len);
        Ok(len)
    }

    /// Sends a blob as it comes. The bytes sent.
    pub(super) async fn send_stream(
        &self,
        upstream: &Upstream,
        job: &Job<'_, 'a>,
        blob: &Blob,
        sources: &[&'a Source],
        session: Option<UploadSession>,
    ) -> Result<u64, Failed<'a>> {
        let hashing = Hashing::new(blob.digest.algorithm());
        let (giver, moved) = (Giver::Nobody, Cell::new(0));
        let mut stream = Stream { upstream, job, blob, sources, session, hashing, giver, moved };
        let result = self.stream(&mut stream).await;
        if let (Err(_), Some(session)) = (&result, &stream.session) {
            self.cancel(upstream, job, &blob.digest, session).await;
        }
        result.map(|()| stream.moved.get())
    }

    /// Makes attempts until one succeeds, or the target is given up.
    async fn stream(&self, stream: &mut Stream<'_, 'a>) -> Result<(), Failed<'a>> {
        let (job, digest) = (stream.job, &stream.blob.digest);
        let (mut tries, mut farthest) = (Tries::default(), 0);
        loop {
            self.rested(&self.target.health).await.map_err(|error| (error, None))?;
            let error = match self.attempt(stream).await {
                Ok(()) => return Ok(()),
                Err((CopyError::Target(error), _)) => error,
                Err(failed) => return Err(failed),
            };
            // One that takes the same bytes again and again, and fails each time, makes none.
            if stream.hashing.position() >= farthest + PROGRESS {
                farthest = stream.hashing.position();
                tries.forget();
            }
            let arrived = async {
                self.target_failed(job, digest, error, &mut tries).await?;
                self.is_there(job, digest, true).await
            };
            if arrived.await.map_err(|error| (error, None))? {
                stream.session = None;
                return Ok(());
            }
            self.find_session(stream).await;
        }
    }

    /// Asks the target what it has of an upload that broke off, and drops what cannot be gone on with.
    async fn find_session(&self, stream: &mut Stream<'_, 'a>) {
        let Some(session) = stream.session.take() else { return };
        let digest = &stream.blob.digest;
        match stream.upstream.upload_status(stream.job.repository, digest, &session).await {
            // Of nothing, and of one byte, distribution says the same.
            Ok(found) if found.received() > 0 && found.received() <= stream.hashing.position() => {
                stream.session = Some(found);
            }
            Ok(found) => self.cancel(stream.upstream, stream.job, digest, &found).await,
            Err(error) => tracing::debug!(%error, "the upload begins anew"),
        }
    }

    /// One attempt to send what the target lacks, and to end the upload.
    async fn attempt(&self, stream: &mut Stream<'_, 'a>) -> Result<(), Failed<'a>> {
        let (upstream, digest, repository) = (stream.upstream, &stream.blob.digest, &**stream.job.repository);
        let target = |error| (CopyError::Target(error), None);
        let session = match stream.session.take() {
            Some(session) => session,
            None => upstream.begin_upload(repository, digest).await.map_err(target)?,
        };
        stream.session = Some(session.clone());
        let Some(from) = stream.hashing.rewind(session.received()) else {
            // So far back it is not known what was sent.
            stream.hashing = Hashing::new(digest.algorithm());
            stream.giver = Giver::Nobody;
            stream.session = None;
            self.cancel(upstream, stream.job, digest, &session).await;
            return Err(target(broken(&session, "the target lost most of what it was sent".to_owned())));
        };
        let mut reader = BlobReader::new(self, stream.job, digest, stream.sources, from, stream.blob.size);
        reader.open().await.map_err(|error| (error, None))?;
        let hashing = std::mem::replace(&mut stream.hashing, Hashing::new(digest.algorithm()));
        let thread = HashThread::start(hashing);
        let moved = Box::pin(self.moved(stream, &session, &mut reader, &thread)).await;
        stream.hashing = thread.finish().await.map_err(|error| (error, None))?;
        stream.giver = stream.giver.and(reader.giver());
        let session = moved.map_err(|error| (error, reader.source()))?;
        stream.session = Some(session.clone());
        let actual = stream.hashing.digest();
        if actual != *digest {
            return Err((corrupt(stream.giver, digest, &actual), stream.giver.one()));
        }
        let all = stream.hashing.position();
        // Of nothing, and of one byte, distribution says the same.
        if session.received() != all && all > 1 {
            let cause = format!("the target says that it has {} of {all} bytes", session.received());
            return Err(target(broken(&session, cause)));
        }
        upstream.upload(repository, &session, digest, Bytes::new()).await.map_err(target)?;
        stream.session = None;
        Ok(())
    }

    /// Moves the bytes that the target lacks. The upload as it goes on from there.
    async fn moved(
        &self,
        stream: &Stream<'_, 'a>,
        session: &UploadSession,
        reader: &mut BlobReader<'_, 'a>,
        thread: &HashThread,
    ) -> Result<UploadSession, CopyError> {
        let left = reader.size().map(|size| size.saturating_sub(session.received()));
        let is_answered = Notify::new();
        if left == Some(0) {
            self.feed(stream, session, reader, thread, None, &is_answered).await?;
            return Ok(session.clone());
        }
        let (repository, digest) = (&**stream.job.repository, &stream.blob.digest);
        let (sender, pieces) = stream.upstream.piece_stream(left);
        let append = stream.upstream.append(repository, digest, session, left, pieces);
        let feed = self.feed(stream, session, reader, thread, Some(sender), &is_answered);
        tokio::pin!(append, feed);
        // Whoever fails first says why; the other is dropped, and with it the connection.
        tokio::select! {
            fed = &mut feed => {
                fed?;
                append.await.map_err(CopyError::Target)
            }
            appended = &mut append => {
                let session = appended.map_err(CopyError::Target)?;
                is_answered.notify_one();
                feed.await?;
                Ok(session)
            }
        }
    }

    /// Has the bytes hashed, and puts into the stream those that the target lacks.
    async fn feed(
        &self,
        stream: &Stream<'_, 'a>,
        session: &UploadSession,
        reader: &mut BlobReader<'_, 'a>,
        thread: &HashThread,
        sender: Option<PieceSender>,
        is_answered: &Notify,
    ) -> Result<(), CopyError> {
        while let Some(mut piece) = reader.next().await? {
            thread.push(piece.clone()).await?;
            let begin = reader.position() - piece.len() as u64;
            let known = session.received().saturating_sub(begin).min(piece.len() as u64);
            let piece = piece.split_off(usize::try_from(known).unwrap_or(usize::MAX));
            let Some(sender) = sender.as_ref().filter(|_| !piece.is_empty()) else { continue };
            let len = piece.len() as u64;
            match sender.send(piece).await {
                Ok(()) => {
                    stream.moved.set(stream.moved.get() + len);
                    self.progress(stream.job, stream.blob, len, reader.position());
                }
                Err(NotTaken::Over) => {
                    // What failed says so elsewhere, and drops this.
                    is_answered.notified().await;
                    let cause = "the target answered before it had all".to_owned();
                    return Err(CopyError::Target(broken(session, cause)));
                }
                Err(NotTaken::Stalled(after)) => return Err(stalled(session, after)),
            }
        }
        // With a length announced, it may have ended by itself.
        if let Some(sender) = sender
            && let Err(NotTaken::Stalled(after)) = sender.end().await
        {
            return Err(stalled(session, after));
        }
        Ok(())
    }

    /// Waits until the target is to be sent to again; an upload that it lost, or does not know what to do with, begins anew.
    async fn target_failed(
        &self,
        job: &Job<'_, 'a>,
        digest: &Digest,
        error: UpstreamError,
        tries: &mut Tries,
    ) -> Result<(), CopyError> {
        let may_begin_anew = match &error {
            UpstreamError::NotFound { .. } | UpstreamError::RangeNotSatisfiable { .. } => true,
            UpstreamError::Refused { detail, .. } => detail.as_deref().is_some_and(|detail| {
                let codes = ["BLOB_UPLOAD", "DIGEST_INVALID", "SIZE_INVALID", "RANGE_INVALID"];
                codes.iter().any(|code| detail.starts_with(code))
            }),
            error => error.is_retryable(),
        };
        let error = CopyError::Target(error);
        if !may_begin_anew {
            return Err(error);
        }
        self.pause(&named(job, digest), &self.target.health, error, tries).await
    }

    async fn cancel(&self, upstream: &Upstream, job: &Job<'_, 'a>, digest: &Digest, session: &UploadSession) {
        if let Err(error) = upstream.cancel_upload(job.repository, digest, session).await {
            tracing::debug!(%error, "an upload is left behind");
        }
    }
}

/// The target takes nothing more of what is sent.
fn stalled(session: &UploadSession, after: Duration) -> CopyError {
    let attempt = session.attempt().clone();
    CopyError::Target(UpstreamError::Timeout { attempt, what: "bytes taken", after })
}

fn broken(session: &UploadSession, cause: String) -> UpstreamError {
    UpstreamError::Broken { attempt: session.attempt().clone(), cause: cause.into() }
}
