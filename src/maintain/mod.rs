//! What keeps a store healthy: it stays within its bounds, and is rid of what nobody refers to.
//!
//! ```text
//! schedule   when a server does what, by itself
//!  ├ jobs        what that is, for one registry
//!  └ background  the threads that it is done on
//! evict      `cache` stays within its size
//!  └ pins        what never goes
//! gc         what nothing in `local` refers to goes, and, if asked for, what is old or has no tag
//! remove     an image or a repository of `local` goes
//!  ├ mark        what the whole tree refers to, in little memory
//!  ├ contents    what one repository has, and what of it stays if something goes
//!  ├ plan        what of it goes, in which order
//!  └ sweep       one blob, manifest, link or tag goes, under its lock: here is why no push is ever broken
//! scrub      every blob is read and hashed again; what is wrong is set aside
//!  └ repair      and fetched again from where it came from
//! ```
//!
//! Servers and the command line do the same by the same code, at once if need be: locks in the tree keep them apart.

pub mod background;
mod contents;
pub mod evict;
pub mod fingerprints;
#[cfg(test)]
mod fixture;
pub mod gc;
pub mod jobs;
mod mark;
pub mod pins;
mod plan;
pub mod remove;
pub mod repair;
pub mod schedule;
pub mod scrub;
mod sweep;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use sweep::{Collected, Event, GcError, Removed};

/// Asks a long job to end early, between two of its steps. Clones ask together.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Nobody has asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether somebody has asked.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
