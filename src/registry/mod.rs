//! The OCI distribution API: what a request means, and the answer to it.
//!
//! ```text
//! Handler::call   one request: route, registry by Host, access log and metrics at its end
//!  └ route        path and query → Route; nothing else reads paths
//!     ├ access    who may do that: nothing is looked up for others
//!     └ namespace which repository is meant: local, and which upstream
//!        ├ blobs      stored → hit; under fill → join; absent → fill
//!        ├ manifests  by digest, or by tag with its freshness
//!        ├ tags       the list, upstream's and ours
//!        ├ catalog    the repositories that are held
//!        ├ referrers  who has this manifest as subject
//!        ├ uploads    blobs that are pushed, through receive
//!        └ push       manifests that are pushed, and removed
//!  └ v1           the Docker v1 protocol, as a mirror
//!           └ deliver conditions, ranges, headers → a response with its body
//! respond         every error → status and OCI code, one table
//! ```
//!
//! Handlers run on the worker that has the connection; what they share ([`Registry`]) is read-mostly, and its few maps
//! are locked for map operations only.

pub mod access;
mod access_log;
mod blobs;
mod catalog;
mod deliver;
mod handler;
mod manifests;
mod namespace;
mod paging;
mod push;
mod receive;
mod referrers;
mod respond;
mod route;
mod tags;
mod uploads;
mod v1;

pub use access_log::CacheState;
pub use handler::{Again, Arrived, Ending, Handler, RequestBody, Site};
pub use namespace::{Registry, RegistryOptions, RegistryUpstream};
pub use receive::Payload;
pub use respond::ApiError;
pub use route::{Route, fuzz_entry as fuzz_route};
pub use v1::{Mirror, MirrorOptions};
