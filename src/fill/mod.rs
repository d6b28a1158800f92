//! Filling the cache from upstream: one fetch per digest, however many ask.
//!
//! A [`flight::Flight`] is one fill under way. Its leader is a task of its own on the worker that began it (`lead`): it
//! fetches ([`fetch`]), writes and hashes on store threads, and publishes. Readers ([`body`]) follow the growing file at
//! their own pace, on any worker: the file is the buffer, so neither a slow nor a vanished reader affects the fill, and
//! memory does not grow with the blob or with the readers.
//!
//! Layers of the Docker v1 protocol ([`layer`]) are filled in the same way, but have no digest: they are whole when their
//! source says so.
//!
//! **Runs at once**: up to [`fetch::TURNS`] fetches from each upstream; any number of readers. What was received and not
//! yet written is bounded per fill and in all ([`crate::store::pump`]).
//!
//! **Survives a crash**: what was written, and where it was in the hash; see [`crate::store::ingest`].

pub mod body;
pub mod coalesce;
mod error;
pub mod fetch;
pub mod flight;
pub mod layer;
mod lead;

pub(crate) use error::is_no_space;
pub use error::{FillError, Spill, SpillCause};
pub use flight::{Fills, Flight, Role};
