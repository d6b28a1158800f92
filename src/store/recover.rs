//! What is on disk, found by scanning; and the sweep of what a crash left behind.
//!
//! Both run in the background on a store thread, beside normal work and beside other processes on the same directory:
//! a fill is touched only under its lock, a temporary file only when it is older than any write can last.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::images::ImageFile;
use super::layout::Layout;
use super::usage::{Bucket, Stored, Usage};
use crate::oci::{Algorithm, Digest};

/// A temporary file that is older than this belongs to nobody.
const TEMPORARY_AGE: Duration = Duration::from_hours(1);
/// An interrupted fill that nobody came back for within this time is given up.
pub const FILL_AGE: Duration = Duration::from_hours(7 * 24);

/// One blob, or layer, that a scan saw.
#[derive(Clone, Debug)]
pub struct Scanned {
    /// What it is.
    pub stored: Stored,
    /// Its length in bytes.
    pub len: u64,
    /// Its last use as the disk has it, in milliseconds since the epoch.
    pub used_ms: u64,
    /// Whether the file has another name too, so that removing this one frees nothing on the disk.
    pub has_other_name: bool,
}

/// Goes through every blob of the tree and every layer of the Docker v1 protocol, and takes what they sum up to as the
/// truth. Calls `visit` for each; keeps no list. What vanishes during the scan is skipped. Ends early, and for nothing,
/// when `is_stopped` says so; then the result is `false`.
///
/// # Errors
/// A directory cannot be read.
pub fn scan(
    layout: &Layout,
    usage: &Usage,
    is_stopped: impl Fn() -> bool,
    mut visit: impl FnMut(Scanned),
) -> io::Result<bool> {
    let mut sees = |scanned: Option<Scanned>| {
        if let Some(scanned) = scanned {
            usage.scan_sees(&scanned.stored, scanned.len);
            visit(scanned);
        }
        if is_stopped() { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    };
    usage.scan_begins();
    let scanning = scan_blobs(layout, usage, &mut sees).and_then(|()| {
        usage.scan_enters(Bucket::Layers);
        scan_layers(layout, &mut sees)
    });
    if scanning.is_ok() {
        usage.scan_ends();
    } else {
        usage.scan_fails();
    }
    match scanning {
        Err(_) if is_stopped() => Ok(false),
        result => result.map(|()| true),
    }
}

fn scan_blobs(
    layout: &Layout,
    usage: &Usage,
    sees: &mut impl FnMut(Option<Scanned>) -> io::Result<()>,
) -> io::Result<()> {
    for algorithm in Algorithm::ALL {
        for shard in 0..=u8::MAX {
            usage.scan_enters(Bucket::Blobs(algorithm, shard));
            for_each_entry(&layout.blobs_of(algorithm, shard), |directory| {
                let Some(hex) = file_name(directory) else { return Ok(()) };
                let Ok(digest) = format!("{algorithm}:{hex}").parse::<Digest>() else { return Ok(()) };
                // Elsewhere nobody would find it.
                if digest.shard() != shard {
                    return Ok(());
                }
                sees(scanned(&directory.join("data"), Stored::Blob(digest)))
            })?;
        }
    }
    Ok(())
}

fn scan_layers(layout: &Layout, sees: &mut impl FnMut(Option<Scanned>) -> io::Result<()>) -> io::Result<()> {
    for_each_entry(&layout.images(), |directory| {
        let Some(image) = file_name(directory).and_then(|id| id.parse().ok()) else { return Ok(()) };
        sees(scanned(&layout.image(&image, ImageFile::Layer), Stored::Layer(image)))
    })
}

/// What every fill is of, under way or interrupted, and its size so far.
///
/// # Errors
/// A directory cannot be read.
pub fn scan_fills(layout: &Layout, mut visit: impl FnMut(Stored, u64)) -> io::Result<()> {
    for_each_entry(&layout.fills(), |algorithm| {
        let Some(algorithm_name) = file_name(algorithm) else { return Ok(()) };
        for_each_entry(algorithm, |directory| {
            let Some(name) = file_name(directory) else { return Ok(()) };
            let stored = if *algorithm == layout.layer_fills() {
                name.parse().ok().map(Stored::Layer)
            } else {
                format!("{algorithm_name}:{name}").parse().ok().map(Stored::Blob)
            };
            if let (Some(stored), Ok(meta)) = (stored, fs::metadata(directory.join("data"))) {
                visit(stored, meta.len());
            }
            Ok(())
        })
    })
}

/// What a scan sees of one file now; `None` if it is gone.
pub fn scanned(path: &Path, stored: Stored) -> Option<Scanned> {
    let meta = fs::metadata(path).ok()?;
    let seconds = u64::try_from(meta.atime()).unwrap_or(0);
    let used_ms = seconds * 1000 + u64::try_from(meta.atime_nsec() / 1_000_000).unwrap_or(0);
    Some(Scanned { stored, len: meta.len(), used_ms, has_other_name: meta.nlink() > 1 })
}

/// Removes temporary files and fills that nobody owns and that are older than `fill_age`. The bytes freed.
///
/// # Errors
/// A directory cannot be read; single files that cannot be removed are logged and left.
pub fn sweep(layout: &Layout, fill_age: Duration) -> io::Result<u64> {
    let mut freed = 0;
    sweep_each(layout, fill_age, false, |_, bytes| freed += bytes)?;
    Ok(freed)
}

/// The same, telling `report` of each file or fill and its bytes; a dry run only tells.
///
/// # Errors
/// See [`sweep`].
pub fn sweep_each(
    layout: &Layout,
    fill_age: Duration,
    dry_run: bool,
    mut report: impl FnMut(&Path, u64),
) -> io::Result<()> {
    for_each_entry(&layout.fills(), |algorithm| {
        if *algorithm == layout.temporary() {
            return for_each_entry(algorithm, |path| {
                if is_older(path, TEMPORARY_AGE) {
                    report(path, fs::metadata(path).map_or(0, |meta| meta.len()));
                    if !dry_run {
                        remove_logged(path);
                    }
                }
                Ok(())
            });
        }
        let Some(algorithm_name) = file_name(algorithm) else { return Ok(()) };
        for_each_entry(algorithm, |directory| {
            let digest: Option<Digest> =
                file_name(directory).and_then(|hex| format!("{algorithm_name}:{hex}").parse().ok());
            // A crash between the blob's new name and the end of its old one leaves the fill as a second link to it,
            // which would keep its bytes when the blob is evicted.
            let is_published = digest.is_some_and(|digest| layout.blob(&digest).exists());
            // The fill of a layer without a digest cannot be resumed.
            let is_useless = is_published || *algorithm == layout.layer_fills();
            let age = if is_useless { Duration::ZERO } else { fill_age };
            if let Some(freed) = sweep_fill(directory, age, dry_run) {
                report(directory, freed);
            }
            Ok(())
        })
    })
}

/// Removes a fill that is older than `age` and that nobody owns. Its bytes; `None` if it stays.
fn sweep_fill(directory: &Path, age: Duration, dry_run: bool) -> Option<u64> {
    let data = directory.join("data");
    if !data.exists() {
        if is_older(directory, age) && !dry_run {
            remove_logged(&directory.join("state.json"));
            let _ = fs::remove_dir(directory);
        }
        return None;
    }
    if !is_older(&data, age) {
        return None;
    }
    let file = OpenOptions::new().write(true).open(&data).ok()?;
    file.try_lock().ok()?;
    // Its owner may have removed it, and another begun anew under the name, before we got the lock.
    let meta = file.metadata().ok()?;
    if fs::metadata(&data).map(|named| named.ino()).ok() != Some(meta.ino()) {
        return None;
    }
    let freed = meta.len();
    if !dry_run {
        tracing::info!(path = %directory.display(), bytes = freed, "removing a fill that nobody came back for");
        remove_logged(&directory.join("state.json"));
        remove_logged(&data);
        let _ = fs::remove_dir(directory);
    }
    Some(freed)
}

fn for_each_entry(directory: &Path, mut visit: impl FnMut(&PathBuf) -> io::Result<()>) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    for entry in entries {
        visit(&entry?.path())?;
    }
    Ok(())
}

fn file_name(path: &Path) -> Option<&str> {
    path.file_name().and_then(|name| name.to_str())
}

fn is_older(path: &Path, age: Duration) -> bool {
    let modified = fs::metadata(path).and_then(|meta| meta.modified());
    // A file from the future (the clock stepped back) is of age 0.
    modified.is_ok_and(|modified| SystemTime::now().duration_since(modified).is_ok_and(|old| old > age))
}

fn remove_logged(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove a leftover");
    }
}
