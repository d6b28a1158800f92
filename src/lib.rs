//! Spliceway: a front cache for container registries.

#![warn(missing_docs)]

pub mod admin;
pub mod body;
pub mod fill;
pub mod http;
pub mod maintain;
pub mod metrics;
pub mod oci;
pub mod registry;
pub mod server;
pub mod store;
pub mod sys;
pub mod upstream;
pub mod watermark;
