//! Spliceway: a front cache for container registries.

#![warn(missing_docs)]

pub mod http;
pub mod oci;
pub mod sys;
