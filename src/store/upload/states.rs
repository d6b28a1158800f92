//! The hash states that a session has on disk.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::{UploadId, is_absence};
use crate::oci::{Algorithm, Hasher};
use crate::store::durable;
use crate::store::layout::{Layout, StoredRepository};

/// A state file larger than this is none, in bytes.
const STATE_MAX: u64 = 4096;

/// The hash states of a session.
pub(super) struct States {
    /// What the session is hashed with.
    pub(super) algorithm: Algorithm,
    directory: PathBuf,
    all: Vec<State>,
}

#[derive(Clone, Debug)]
pub(super) struct State {
    /// The length of what it is the hash of, in bytes.
    pub(super) offset: u64,
    /// It was written since the machine was started: what it speaks of is there.
    pub(super) of_this_boot: bool,
}

impl States {
    /// Those on disk.
    pub(super) fn read(layout: &Layout, repository: &StoredRepository, id: &UploadId) -> io::Result<Self> {
        for algorithm in Algorithm::ALL {
            let directory = layout.upload_states(repository, id, algorithm);
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) if is_absence(&error) => continue,
                Err(error) => return Err(error),
            };
            let mut states = Vec::new();
            for entry in entries {
                let entry = entry?;
                let offset = entry.file_name().to_str().and_then(|name| name.parse().ok());
                let Some(offset) = offset else { continue };
                let modified = entry.metadata().and_then(|meta| meta.modified());
                let of_this_boot = modified.is_ok_and(|modified| modified >= booted());
                states.push(State { offset, of_this_boot });
            }
            return Ok(Self { algorithm, directory, all: states });
        }
        let algorithm = Algorithm::Sha256;
        Ok(Self { algorithm, directory: PathBuf::new(), all: Vec::new() })
    }

    /// Removes those of more than `size` bytes.
    pub(super) fn remove_behind(&mut self, size: u64) -> io::Result<()> {
        for state in self.all.extract_if(.., |state| state.offset > size) {
            durable::remove(&self.directory.join(state.offset.to_string()))?;
        }
        Ok(())
    }

    /// The one that saves most of hashing the first `size` bytes.
    pub(super) fn newest_up_to(&self, size: u64) -> Option<State> {
        self.all.iter().filter(|state| state.offset <= size).max_by_key(|state| state.offset).cloned()
    }

    /// The state's hash; `None` if it is none, or one of another place.
    pub(super) fn hasher(&self, state: &State) -> Option<Hasher> {
        let path = self.directory.join(state.offset.to_string());
        // Whatever is wrong with it: the data is there.
        let small = fs::metadata(&path).is_ok_and(|meta| meta.len() <= STATE_MAX);
        let content = small.then(|| fs::read(&path).ok()).flatten()?;
        Hasher::from_hashstate(self.algorithm, &content).filter(|hasher| hasher.len() == state.offset)
    }
}

/// When the machine was started, by its clock of today.
fn booted() -> SystemTime {
    let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let up = Duration::new(up.tv_sec.try_into().unwrap_or(0), up.tv_nsec.try_into().unwrap_or(0));
    SystemTime::now().checked_sub(up).unwrap_or(SystemTime::UNIX_EPOCH)
}
