//! System calls that the standard library does not offer, and the ring. All unsafe code of the crate is in here.
//!
//! `unsafe` is denied in the rest of the crate and allowed in this module alone, for four things: entries of the ring
//! point at memory by raw pointers ([`ring`]); the kernel returns descriptors and lengths that only it vouches for;
//! `cachestat`, `sync_file_range` and leases have no wrapper ([`residency`], [`start_writeback`], [`is_open_here_only`]), nor
//! have the allocator's settings ([`keep_freed_memory`]) and the change of a whole process's user ([`become_owner`]); sockets are inherited by number ([`listen_fds`]). Each block names the
//! fact that it relies on; no unsafe function leaves the module.
#![allow(unsafe_code)]
#![deny(unsafe_op_in_unsafe_fn)]

mod allocator;
#[cfg(test)]
mod another;
pub mod files;
mod lease;
pub mod listen_fds;
pub mod openat2;
mod owner;
mod pool;
mod priority;
mod readahead;
#[cfg(test)]
mod refused;
pub mod residency;
pub mod ring;
pub mod send;
pub mod uncached;
mod writeback;

pub use allocator::keep_freed_memory;
#[cfg(test)]
pub(crate) use another::as_another;
pub use files::{Files, Stat};
pub use lease::is_open_here_only;
pub use openat2::BeneathError;
pub use owner::{become_owner, is_anothers};
pub use priority::lower_priority;
pub use residency::{is_resident, is_window_resident};
pub use ring::{Mode, probe};
pub use send::{Pipe, is_writable, send_vectored, sendfile};
pub use writeback::start_writeback;
