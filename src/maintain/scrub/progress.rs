//! How far a scrub in the background has come, kept on disk so that a restart goes on there.
//!
//! Blobs are looked at in the order of their digests, so one digest says it all: `locks/scrub.json`. It is written every
//! [`SAVE_EVERY`] and at the end of a run that was told to stop, replaced as a whole, and never synced: losing it means to
//! look at some blobs again, or at all. It is gone when a scrub is complete. Who writes it holds `locks/scrub`.

use std::fs;
use std::io;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::oci::Digest;
use crate::store::Layout;

/// How often it is written.
pub(super) const SAVE_EVERY: Duration = Duration::from_secs(30);
/// A longer file is not one of ours, in bytes.
const BYTES_MAX: u64 = 4096;
const VERSION: u32 = 1;

/// A scrub that is not complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Progress {
    version: u32,
    /// When it began, in seconds after 1970.
    pub(super) began: u64,
    /// The last blob that was looked at.
    pub(super) last: Option<Digest>,
    /// How many were.
    pub(super) blobs: u64,
    /// And their bytes.
    pub(super) bytes: u64,
}

impl Progress {
    /// Of a scrub that begins now.
    pub(super) fn beginning() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { version: VERSION, began: now.as_secs(), last: None, blobs: 0, bytes: 0 }
    }

    /// Of the scrub that is to go on; `None` if there is none, or none that can be read.
    pub(super) fn load(layout: &Layout) -> Option<Self> {
        let path = layout.scrub_progress();
        if fs::metadata(&path).ok()?.len() > BYTES_MAX {
            return None;
        }
        let progress: Self = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        (progress.version == VERSION).then_some(progress)
    }

    /// Puts it on disk.
    pub(super) fn save(&self, layout: &Layout) -> io::Result<()> {
        let path = layout.scrub_progress();
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, path)
    }

    /// The scrub is complete.
    pub(super) fn forget(layout: &Layout) -> io::Result<()> {
        match fs::remove_file(layout.scrub_progress()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn it_is_read_as_it_was_written_and_nonsense_is_none() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        fs::create_dir_all(layout.locks()).unwrap();
        assert_eq!(Progress::load(&layout), None);
        let last = Some(Digest::of(Algorithm::Sha512, b"x"));
        let progress = Progress { last, blobs: 7, bytes: 8, ..Progress::beginning() };
        progress.save(&layout).unwrap();
        assert_eq!(Progress::load(&layout), Some(progress.clone()));
        let written = fs::read_to_string(layout.scrub_progress()).unwrap();
        for nonsense in
            ["", "{}", &written.replace("\"version\":1", "\"version\":2"), &written.replace("sha512", "md5")]
        {
            fs::write(layout.scrub_progress(), nonsense).unwrap();
            assert_eq!(Progress::load(&layout), None, "{nonsense}");
        }
        Progress::forget(&layout).unwrap();
        Progress::forget(&layout).unwrap();
        assert!(!layout.scrub_progress().exists());
    }
}
