//! Spliceway: a front cache for container registries.
//!
//! It streams cached layers from the page cache to the socket without copying them through user space, fills itself from
//! upstream registries (one fetch per layer however many clients ask, verified while it streams, durable), and keeps
//! itself within its bounds.
//!
//! # The life of a request
//!
//! 1. [`server`] accepts a connection and hands it to the worker with the fewest. The transport checks each request's
//!    head before hyper sees it.
//! 2. [`registry`] finds out what is asked for: the route, the repository, the upstream.
//! 3. [`store`] looks for it on disk: a hit becomes a region of a file.
//! 4. Else [`fill`] leads or joins the one fetch of it from [`upstream`]; the answer follows the growing file as far as
//!    its [`watermark`] allows.
//! 5. The [`body`] goes out through the transport: regions by `sendfile`, everything else in one `writev`.
//! 6. When the last byte is gone, the access log and the [`metrics`] hear of it.
//!
//! What is for the front of an application goes to [`accel`] instead of step 2: it is passed on to the application, whose
//! answer comes back as it is, or names a file or a blob to be sent in its place.
//!
//! # The rooms
//!
//! Dependencies run downwards only.
//!
//! | layer | rooms |
//! |---|---|
//! | 5 | [`cli`], [`config`], [`logging`], [`app`] (wiring), [`server`] (listener, transport, connection) |
//! | 4 | [`registry`] (the API), [`accel`] (the front of applications), [`admin`] (health, metrics) |
//! | 3 | [`fill`] (one leader per digest, readers), [`replicate`] (copying registries), [`maintain`] (eviction, collecting garbage, removing) |
//! | 2 | [`store`] (what is on disk), [`upstream`] (the client) |
//! | 1 | [`body`], [`watermark`], [`metrics`], [`http`], [`oci`] (pure), [`sys`] (the only unsafe code) |

#![warn(missing_docs)]

pub mod accel;
pub mod admin;
pub mod app;
pub mod body;
pub mod cli;
pub mod config;
pub mod fill;
pub mod http;
pub mod logging;
pub mod maintain;
pub mod metrics;
pub mod oci;
pub mod registry;
pub mod replicate;
pub mod server;
pub mod store;
pub mod sys;
pub mod upstream;
pub mod watermark;
