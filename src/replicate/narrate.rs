//! A run told in the log: a line for what was done, and one a minute for what takes long.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use bytesize::ByteSize;

use super::{BlobOutcome, Event, ImageName, ImageOutcome, Summary};

/// What the lines are about: the copying, whichever module tells of it.
pub(super) const TARGET: &str = "spliceway::replicate";
/// How often an image that takes long is mentioned.
const REMIND_EVERY: Duration = Duration::from_mins(1);

/// Tells events in the log. For one thread.
#[derive(Debug, Default)]
pub struct Narrator {
    under_way: RefCell<HashMap<ImageName, UnderWay>>,
    dry_run: Cell<bool>,
}

#[derive(Debug)]
struct UnderWay {
    bytes: u64,
    moved: u64,
    mentioned: Instant,
}

impl Narrator {
    /// Tells one event.
    pub fn tell(&self, event: &Event) {
        match event {
            Event::RunStarted { sources, target, dry_run } => {
                self.dry_run.set(*dry_run);
                self.under_way.borrow_mut().clear();
                tracing::debug!(target: TARGET, sources = sources.join(","), target, "replicating");
            }
            Event::Repository { repository, tags } => {
                tracing::debug!(target: TARGET, %repository, tags, "comparing");
            }
            Event::ImageStarted { image, source, blobs, bytes, .. } => {
                tracing::debug!(target: TARGET, %image, source, blobs, bytes, "copying");
                let under_way = UnderWay { bytes: *bytes, moved: 0, mentioned: Instant::now() };
                self.under_way.borrow_mut().insert(image.clone(), under_way);
            }
            Event::BlobProgress { image, moved, .. } => self.progress(image, *moved),
            Event::BlobDone { image, digest, how, size } => {
                let how = how_word(*how);
                tracing::debug!(target: TARGET, %image, %digest, size, "blob {how}");
            }
            Event::ImageDone { image, outcome, bytes, elapsed_ms, .. } => {
                self.under_way.borrow_mut().remove(image);
                let bytes = ByteSize(*bytes).display().iec();
                match (outcome, self.dry_run.get()) {
                    (ImageOutcome::Present, _) => tracing::debug!(target: TARGET, %image, "up to date"),
                    (ImageOutcome::Copied, true) => {
                        tracing::info!(target: TARGET, %image, %bytes, "would be copied");
                    }
                    (ImageOutcome::Updated, true) => {
                        tracing::info!(target: TARGET, %image, %bytes, "would be updated");
                    }
                    (ImageOutcome::Copied, false) => {
                        tracing::info!(target: TARGET, %image, %bytes, elapsed_ms, "copied");
                    }
                    (ImageOutcome::Updated, false) => {
                        tracing::info!(target: TARGET, %image, %bytes, elapsed_ms, "updated");
                    }
                }
            }
            Event::Retrying { what, why, attempt, after_ms } => {
                tracing::warn!(target: TARGET, what, why, attempt, after_ms, "trying again");
            }
            Event::Failed(failure) => {
                tracing::error!(target: TARGET, what = failure.what, why = failure.why, "failed");
            }
            Event::Deleted { image } if self.dry_run.get() => {
                tracing::info!(target: TARGET, %image, "would be deleted");
            }
            Event::Deleted { image } => tracing::info!(target: TARGET, %image, "deleted"),
            Event::RunDone(summary) => done(summary),
        }
    }

    fn progress(&self, image: &ImageName, moved: u64) {
        let mut under_way = self.under_way.borrow_mut();
        let Some(known) = under_way.get_mut(image) else { return };
        known.moved = known.moved.saturating_add(moved);
        if known.mentioned.elapsed() < REMIND_EVERY {
            return;
        }
        known.mentioned = Instant::now();
        let (moved, bytes) = (ByteSize(known.moved).display().iec(), ByteSize(known.bytes).display().iec());
        tracing::info!(target: TARGET, %image, "{moved} of {bytes}");
    }
}

fn how_word(how: BlobOutcome) -> &'static str {
    match how {
        BlobOutcome::Copied => "copied",
        BlobOutcome::Mounted => "mounted",
        BlobOutcome::Present => "present",
    }
}

/// A run that changed nothing is not worth a line at every turn.
fn done(summary: &Summary) {
    let changed = summary.images_copied + summary.images_updated + summary.tags_deleted;
    if changed > 0 || !summary.is_complete() {
        tracing::info!(target: TARGET, "{summary}");
    } else {
        tracing::debug!(target: TARGET, "{summary}");
    }
}

/// One line, for a person.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let would = if self.dry_run { "would be " } else { "" };
        write!(f, "{} images {would}copied, {} {would}updated", self.images_copied, self.images_updated)?;
        write!(f, ", {} up to date, {} failed", self.images_present, self.failures_total)?;
        if self.tags_deleted > 0 {
            write!(f, ", {} {would}deleted", self.tags_deleted)?;
        }
        let bytes = ByteSize(self.bytes_copied).display().iec();
        if self.dry_run {
            write!(f, "; {bytes} in {} blobs", self.blobs_copied)?;
        } else {
            // A rate for a person: what is lost of either number does not matter.
            let milliseconds = self.elapsed_ms.max(1);
            let rate = ByteSize(self.bytes_copied.saturating_mul(1000) / milliseconds).display().iec();
            let seconds = Duration::from_millis(self.elapsed_ms).as_secs_f64();
            write!(f, "; {bytes} in {seconds:.1} s ({rate}/s)")?;
            write!(f, "; blobs: {} sent, {} mounted", self.blobs_copied, self.blobs_mounted)?;
            write!(f, ", {} already there", self.blobs_present)?;
        }
        if self.blobs_foreign > 0 {
            write!(f, "; {} foreign layers left out", self.blobs_foreign)?;
        }
        if self.stopped { write!(f, "; stopped before the end") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_a_line() {
        let summary = Summary {
            images_copied: 2,
            images_present: 7,
            bytes_copied: 3 << 20,
            blobs_copied: 4,
            elapsed_ms: 1500,
            ..Summary::default()
        };
        let expected = "2 images copied, 0 updated, 7 up to date, 0 failed; 3.0 MiB in 1.5 s (2.0 MiB/s); \
                        blobs: 4 sent, 0 mounted, 0 already there";
        assert_eq!(summary.to_string(), expected);
        let dry = Summary { dry_run: true, tags_deleted: 1, stopped: true, ..summary };
        let expected = "2 images would be copied, 0 would be updated, 7 up to date, 0 failed, 1 would be deleted; \
                        3.0 MiB in 4 blobs; stopped before the end";
        assert_eq!(dry.to_string(), expected);
    }
}
