//! Work in the background that keeps a store within its bounds.

pub mod evict;
