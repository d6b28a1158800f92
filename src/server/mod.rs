//! HTTP/1.1 over TCP: from the listening socket to a [`Service`] and back, with regions of files sent from the page cache.
//!
//! ```text
//!  listener.rs    bind, accept; each connection goes to the worker that has the fewest
//!  worker.rs      one per thread: spawns connections, drains them at the end
//!  connection.rs  one connection: hyper between transport and service; watchdog.rs is its clock
//!  transport.rs   the socket as hyper reads and writes it
//!     reading     framing.rs finds each request's head, head.rs checks it, before hyper sees a byte of it
//!     again       encore.rs: what was just answered, for a request in the same words
//!     writing     sender.rs: sendmsg, and sendfile for the regions that outbox.rs keeps in order
//!  switch.rs      a connection that changed its protocol (101), joined with another one
//!  outgoing.rs    a response's body as hyper polls it, followed until its last byte is out
//!     residency.rs tells whether it can be sent without waiting for the disk
//! ```
//!
//! A connection is one task of one thread and shares nothing with others but the service, the files and the counters. It
//! survives no crash and needs to survive none. What a service may rely on: a request that it sees has a head that RFC
//! 9112 would sign (or [`Request::rejected`] says what is wrong with it), and a response ends cleanly only if its body
//! did: any other end, of the body, the service's future, the connection or the process, reaches the peer as a reset or
//! as fewer bytes than announced.

mod connection;
mod control;
mod encore;
pub mod framing;
pub mod head;
pub mod inbound;
mod listener;
mod options;
mod outbox;
mod outgoing;
mod pace;
mod pipes;
mod refusal;
mod residency;
mod sender;
mod shared;
mod switch;
mod target;
mod transport;
mod watchdog;
mod worker;

use std::future::Future;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http_body::Body as _;
use hyper::body::Incoming;

use crate::body::Body;

pub use encore::{Repeat, Repeatable};
pub use listener::{adopt, bind, listen, raise_open_files_limit};
pub use options::{Counters, ServerOptions};
pub use outbox::unmatched_regions;
pub use outgoing::{Outcome, ResponseEnd};
pub use refusal::{HeadError, Refusal};
pub use sender::Sender;
pub use switch::{Duplex, Switch};
pub use worker::{Doors, Phase, Seat, Worker, doors};

/// A request as the service sees it.
#[derive(Debug)]
pub struct Request {
    /// Method, target in origin form (or `*`, or CONNECT's authority), fields. Host is there in HTTP/1.1 and valid.
    pub head: http::request::Parts,
    /// The body. Reading it lets the peer send it, if it asked first (`Expect: 100-continue`).
    pub body: Incoming,
    /// The other end of the connection.
    pub peer: SocketAddr,
    /// The number of the listener that the connection came through, as it was given to [`listen`].
    pub listener: usize,
    /// When the first byte of the head was there.
    pub received: Instant,
    /// The head was refused, and the other fields describe a stand-in: answer with the error's status and reason. The
    /// connection closes after it.
    pub rejected: Option<HeadError>,
    /// The same request came before: if others could be given the same answer, a [`Repeatable`] in the response's
    /// extensions is of use.
    pub repeats: bool,
    /// The protocols that the client would rather speak, if it asked for any and sent no body: a service that can answers
    /// 101 with a [`Switch`] in the response's extensions. The fields do not show it.
    pub upgrade: Option<http::HeaderValue>,
}

/// What a connection serves.
pub trait Service: 'static {
    /// Answers a request. The future runs inside the connection's task, on the worker's thread; it is dropped when the
    /// connection is cut.
    ///
    /// The response's Content-Length must fit the body or be left to the server; with HEAD it is what GET would say, and
    /// the body is empty or will not be looked at. `Connection` and `Transfer-Encoding` are the server's, and so is
    /// `Date`, unless the response has one. An extension [`ResponseEnd`] is told how it ended.
    fn call(&self, request: Request) -> impl Future<Output = http::Response<Body>> + 'static;
}

/// Reads a body that is of no use and drops it, so that the connection can be kept for the next request; true if it was
/// read to its end.
///
/// Gives up after `bytes_max` bytes or `time_max`, on an error, and at once if the peer waits for our word before it
/// sends (`Expect: 100-continue`), which this would give. The connection then closes after the response.
pub async fn discard(headers: &http::HeaderMap, body: Incoming, bytes_max: u64, time_max: Duration) -> bool {
    if body.is_end_stream() {
        return true;
    }
    let awaited = headers.get(http::header::EXPECT).is_some();
    let too_long = body.size_hint().lower() > bytes_max;
    if awaited || too_long {
        return false;
    }
    let mut body = std::pin::pin!(body);
    let mut read = 0;
    let reading = async {
        while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            let Ok(frame) = frame else { return false };
            read += frame.data_ref().map_or(0, |data| data.len() as u64);
            if read > bytes_max {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(time_max, reading).await.unwrap_or(false)
}
