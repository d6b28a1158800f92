//! The operating system's calls that the standard library does not offer, and the only unsafe code of the crate.
#![allow(unsafe_code)] // the reason is in the module's doc
#![deny(unsafe_op_in_unsafe_fn)]

pub mod files;
pub mod listen_fds;
mod operation;
mod pool;
pub mod residency;
pub mod ring;
pub mod send;

pub use files::{Files, Stat};
pub use residency::is_resident;
pub use ring::{Mode, probe};
pub use send::{send_vectored, sendfile};
