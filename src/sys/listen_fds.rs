//! Listening sockets that the process was started with, by systemd's protocol (`sd_listen_fds(3)`).

use std::ffi::OsStr;
use std::io;
use std::net::TcpListener;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::FdFlags;
use rustix::net::SocketType;

/// The first descriptor that is passed; 0 to 2 are the standard streams.
const FIRST: RawFd = 3;
/// The most descriptors that are believed to be passed.
const COUNT_MAX: RawFd = 1024;

/// The sockets named by the variables `LISTEN_PID` and `LISTEN_FDS`; none if these are absent or meant for another
/// process. They are returned once: a second call returns none.
///
/// To be called before the process opens files of its own, as a count that promises too much would otherwise name those.
/// Errors: a descriptor that is not open or not a TCP socket that listens; then none of the descriptors is touched.
pub fn listen_fds() -> io::Result<Vec<TcpListener>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let variable = |name| std::env::var_os(name);
    let count = passed_count(variable("LISTEN_PID").as_deref(), variable("LISTEN_FDS").as_deref());
    if count == 0 || TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let descriptors = FIRST..FIRST + count;
    for descriptor in descriptors.clone() {
        // SAFETY: the number is only used for calls that fail with EBADF if it is not open, and the borrow ends here.
        let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
        check(borrowed).map_err(|error| {
            io::Error::new(error.kind(), format!("descriptor {descriptor} of LISTEN_FDS={count}: {error}"))
        })?;
    }
    Ok(descriptors
        .map(|descriptor| {
            // SAFETY: it was just seen to be open; whoever set LISTEN_PID to this process gave it the descriptors, and
            // `TAKEN` sees to it that they are taken over once.
            TcpListener::from(unsafe { OwnedFd::from_raw_fd(descriptor) })
        })
        .collect())
}

/// A listening TCP socket; also keeps it from being inherited further.
fn check(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let listens = rustix::net::sockopt::socket_type(descriptor)? == SocketType::STREAM
        && rustix::net::sockopt::socket_acceptconn(descriptor)?;
    let address = rustix::net::getsockname(descriptor)?;
    if !listens || std::net::SocketAddr::try_from(address).is_err() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a listening TCP socket"));
    }
    rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC)?;
    Ok(())
}

/// How many descriptors are meant for this process.
fn passed_count(pid: Option<&OsStr>, count: Option<&OsStr>) -> RawFd {
    let number = |text: Option<&OsStr>| text.and_then(OsStr::to_str)?.parse::<RawFd>().ok();
    let own = i32::try_from(std::process::id()).ok();
    match (number(pid), number(count)) {
        (Some(pid), Some(count)) if Some(pid) == own => count.clamp(0, COUNT_MAX),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_for_another_process_mean_nothing() {
        let own = std::process::id().to_string();
        let of =
            |pid: Option<&str>, count: Option<&str>| passed_count(pid.map(OsStr::new), count.map(OsStr::new));
        assert_eq!(of(Some(&own), Some("2")), 2);
        assert_eq!(of(Some("1"), Some("2")), 0);
        assert_eq!(of(None, Some("2")), 0);
        assert_eq!(of(Some(&own), None), 0);
        assert_eq!(of(Some(&own), Some("two")), 0);
        assert_eq!(of(Some(&own), Some("-1")), 0);
        assert_eq!(of(Some(&own), Some("100000")), COUNT_MAX);
    }
}
