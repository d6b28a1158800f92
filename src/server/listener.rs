//! Listening sockets, and how their connections come to the workers.
//!
//! One socket per address, one task per socket; which worker serves a connection is decided when it is accepted, by
//! how many each has. With a socket per worker (`SO_REUSEPORT`) the kernel would spread connections by hash: of four large
//! transfers to two workers, ten of sixteen times three or all four would go to one of them, while the other has a core
//! to spare. Here it is two and two (a test sees to it), for one wake-up of a worker per connection.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::sync::{Semaphore, watch};

use super::worker::{Arrival, Doors, Phase};

/// Connections that the kernel keeps for us before they are accepted. It takes the smaller of this and its own limit.
const BACKLOG: i32 = 4096;
/// How many bytes of a response the kernel takes beyond what the peer's window allows to send now. A slow peer would
/// otherwise pin megabytes of kernel memory.
pub(super) const UNSENT_BYTES_MAX: u32 = 128 * 1024;
/// How long accepting pauses when the process has no file descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// Opens a listening socket. An address of `[::]` takes IPv4 too; port 0 picks one.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // Only the unspecified address can mean both; the kernel's default is a setting of the machine.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = socket.into();
    adopt(&listener)?;
    Ok(listener)
}

/// Prepares a listening socket that somebody else opened, as systemd does: see
/// [`listen_fds`](crate::sys::listen_fds::listen_fds).
///
/// The options are those of the connections: Linux hands them down from the listening socket.
pub fn adopt(listener: &TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let socket = SockRef::from(listener);
    // Responses leave in few large writes, the last of which must not wait for an acknowledgement.
    if let Err(error) = socket.set_tcp_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY cannot be set");
    }
    if let Err(error) = socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX) {
        tracing::debug!(%error, "TCP_NOTSENT_LOWAT cannot be set");
    }
    Ok(())
}

/// Accepts connections and hands them to the workers until `phase` leaves [`Phase::Serve`] or its sender is gone; then
/// the socket is closed. `slots` has a permit for each connection that may be open (`connections_max`): while it has
/// none, connections wait in the kernel's queue. Requests bear `number` ([`Request::listener`](super::Request::listener)).
///
/// Runs on any runtime. Errors: only if the socket cannot be registered with it, at once. Dropping the future loses no
/// connection that was accepted.
pub async fn listen(
    listener: TcpListener,
    number: usize,
    doors: Arc<Doors>,
    slots: Arc<Semaphore>,
    mut phase: watch::Receiver<Phase>,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    tokio::select! {
        biased;
        _ = phase.wait_for(|phase| *phase > Phase::Serve) => {}
        () = accept_all(&listener, number, &doors, &slots) => {}
    }
    Ok(())
}

async fn accept_all(
    listener: &tokio::net::TcpListener,
    number: usize,
    doors: &Doors,
    slots: &Arc<Semaphore>,
) {
    let mut exhausted = false;
    loop {
        // The semaphore is never closed; if it were, there would be nothing to wait for.
        let Ok(permit) = Arc::clone(slots).acquire_owned().await else { return };
        // Registered with this runtime and taken out of it again: two calls per connection, for a safe interface.
        let accepted = listener.accept().await.and_then(|(stream, peer)| Ok((stream.into_std()?, peer)));
        match accepted {
            Ok((stream, peer)) => {
                exhausted = false;
                // An IPv4 peer of a dual-stack socket is shown as IPv4.
                let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                doors.admit(Arrival { stream, peer, listener: number, permit });
            }
            Err(error) if is_about_the_peer(&error) => {
                tracing::debug!(%error, "a connection was gone before it was accepted");
            }
            Err(error) => {
                if !exhausted {
                    tracing::warn!(%error, "no connection can be accepted; trying again every 100 ms");
                }
                exhausted = true;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// accept(2): errors of the network that are already pending on the new socket are passed on; they say nothing about
/// the next one.
fn is_about_the_peer(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::CONNABORTED
                | Errno::INTR
                | Errno::NETDOWN
                | Errno::PROTO
                | Errno::NOPROTOOPT
                | Errno::HOSTDOWN
                | Errno::NONET
                | Errno::HOSTUNREACH
                | Errno::OPNOTSUPP
                | Errno::NETUNREACH
                | Errno::PERM
        )
    )
}

/// Raises the limit of open files to what the process may have; returns it (`u64::MAX` for no limit).
pub fn raise_open_files_limit() -> io::Result<u64> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_inherit_what_is_set_on_the_listener() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        listener.set_nonblocking(false).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), UNSENT_BYTES_MAX);
        drop(peer);
    }

    #[test]
    fn an_address_can_be_taken_again_at_once_but_not_twice() {
        let first = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = first.local_addr().unwrap();
        assert_eq!(bind(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let peer = std::net::TcpStream::connect(address).unwrap();
        first.set_nonblocking(false).unwrap();
        drop((first.accept().unwrap(), first, peer));
        bind(address).unwrap();
    }
}
