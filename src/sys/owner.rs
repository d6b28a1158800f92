//! Becoming the user to whom a directory belongs.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::ptr;

use rustix::process::geteuid;

/// The right to read files and to search directories whatever their rights say.
const CAP_DAC_READ_SEARCH: u32 = 2;
/// `_LINUX_CAPABILITY_VERSION_3`: two halves of 32.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// What capset(2) is told of whom.
#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

/// Half of what it is told.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Rights {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Whether we are root and this belongs to somebody else.
pub fn is_anothers(directory: &Metadata) -> bool {
    geteuid().is_root() && directory.uid() != 0
}

/// Makes the process one of the user and the group that own a directory, for good: what it makes is theirs then. The
/// calling thread, and those that it starts, may still read everything, as the directory may be in one that only root
/// searches (systemd's `/var/lib/private`).
///
/// # Errors
/// The process may not; it is root no less then, or has its groups changed only.
pub fn become_owner(directory: &Metadata) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) })?;
    // SAFETY: the empty list is not looked at.
    check(unsafe { libc::setgroups(0, ptr::null()) })?;
    // SAFETY: takes numbers only.
    check(unsafe { libc::setgid(directory.gid()) })?;
    // SAFETY: takes numbers only.
    check(unsafe { libc::setuid(directory.uid()) })?;
    let reading = 1 << CAP_DAC_READ_SEARCH;
    // Who does not have it, as in most containers, goes without; then nothing is left.
    let kept = limit_to(reading).or_else(|_| limit_to(0));
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 0, 0, 0, 0) })?;
    kept
}

/// Gives up all capabilities of the calling thread but these.
fn limit_to(capabilities: u32) -> io::Result<()> {
    let header = Header { version: CAPABILITY_VERSION, pid: 0 };
    let low = Rights { effective: capabilities, permitted: capabilities, inheritable: 0 };
    let rights = [low, Rights::default()];
    // SAFETY: both have the shape that this version of the call reads, and it changes neither.
    let set = unsafe { libc::syscall(libc::SYS_capset, &raw const header, rights.as_ptr()) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn check(returned: libc::c_int) -> io::Result<()> {
    if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
