//! The server over real sockets: every connection here is TCP on loopback, written and read byte by byte.

mod agreement;
mod bodies;
mod client;
mod encores;
mod failures;
mod harness;
mod heads;
mod lifecycle;
mod uploads;
