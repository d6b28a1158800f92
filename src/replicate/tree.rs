//! A blob's bytes on their way into a tree: as a server's own pushes go, hashed as they are written.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use super::blob::{SMALL, corrupt};
use super::error::CopyError;
use super::image::{Blob, Job};
use super::reader::BlobReader;
use super::run::Run;
use super::source::Source;
use super::upload::Failed;
use crate::store::pump::{Pump, WriteFailure};
use crate::store::upload::{Opened, Unfinished, Upload, UploadLimits};
use crate::store::{Store, StoredRepository};

/// The bounds of uploads into a tree, those of a server's clients on the same tree included.
const LIMITS: UploadLimits =
    UploadLimits { sessions_max: 1000, expiry: Duration::from_hours(24), bytes_max: u64::MAX };
/// What goes to the disk at once, in bytes.
const BATCH: usize = 1 << 20;
/// Pieces shorter than this are copied together, in bytes.
const COPIED_BELOW: usize = 64 << 10;

impl<'a> Run<'a> {
    /// Writes a blob into a tree. The bytes written.
    pub(super) async fn store_blob(
        &self,
        store: &Arc<Store>,
        job: &Job<'_, 'a>,
        blob: &Blob,
        sources: &[&'a Source],
    ) -> Result<u64, Failed<'a>> {
        let repository = StoredRepository::local(job.repository);
        let disk = |error| (self.target.disk("store a blob", error), None);
        if blob.size.is_some_and(|size| size <= SMALL) {
            let bytes = self.read_whole(job, blob, sources).await?;
            let len = bytes.len() as u64;
            store.put_blob(&repository, &blob.digest, bytes).await.map_err(disk)?;
            self.progress(job, blob, len, len);
            return Ok(len);
        }
        let begun = store.begin_upload(&repository, blob.digest.algorithm(), LIMITS).await;
        let Some(upload) = begun.map_err(disk)? else {
            let error = format!("{repository} has {} uploads under way", LIMITS.sessions_max);
            return Err((CopyError::Unfit(error), None));
        };
        let mut reader = BlobReader::new(self, job, &blob.digest, sources, 0, blob.size);
        let told = Cell::new(0);
        let advance = |written: u64| self.progress(job, blob, written - told.replace(written), written);
        let pump = Pump { copied_below: COPIED_BELOW, batch: BATCH, advance };
        let (received, written) = pump.run(&mut reader, upload).await;
        let upload = written.map_err(|WriteFailure { error, .. }| disk(error))?;
        let (source, giver) = (reader.source(), reader.giver());
        if let Err(error) = received {
            cancel(store, upload).await;
            return Err((error, source));
        }
        let (size, id) = (upload.size(), upload.id().clone());
        match store.finish_upload(&repository, upload, &blob.digest).await {
            Ok(()) => Ok(size),
            Err(Unfinished::Digest(actual)) => {
                if let Ok(Opened::Open(upload)) = store.open_upload(&repository, &id, LIMITS).await {
                    cancel(store, upload).await;
                }
                Err((corrupt(giver, &blob.digest, &actual), giver.one()))
            }
            Err(Unfinished::Disk(error)) => Err(disk(error)),
        }
    }
}

/// What is left behind is swept with the uploads of clients.
async fn cancel(store: &Arc<Store>, upload: Box<Upload>) {
    if let Err(error) = store.blocking(move |_| upload.cancel()).await {
        tracing::debug!(%error, "an upload is left behind");
    }
}
