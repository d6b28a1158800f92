//! `io_uring`: whether it can be used, and how it is set up. The driver is below, in `ring/driver.rs`.
//!
//! **Why a driver of our own.** tokio-uring 0.5 submits only when the run queue is empty, and tokio skips that hook
//! while anything is runnable: with four tasks that wake themselves an operation never completed. Here every operation
//! is submitted when it is begun, whatever else is runnable; the driver's test
//! `ring_completes_while_tasks_are_busy` shows it.
//!
//! **Why these flags.** `COOP_TASKRUN` (5.19) and `SINGLE_ISSUER` (6.0), where the kernel knows them: one thread uses
//! the ring, and it enters the kernel often enough on its own for completions not to need an interrupt. The figures
//! with and without them are equal within noise; they are what the kernel asks of a ring used like this one.
//! Not `DEFER_TASKRUN`: its completions exist only once the owner enters the kernel for them, and nothing tells it when.
//! An epoll instance that watches the ring edge-triggered, as tokio's does, was not woken by deferred work (6.18: each
//! operation that went to a kernel worker waited until a timer fired), and a chain of linked operations would rest at
//! each link until then. Most operations complete within their submission, where there is nothing to defer.
//!
//! **What it costs**, in µs of CPU per operation, kernel workers and pool threads included, everything cached
//! (6.18, ext4, AMD EPYC, two cores; least of four runs of 20,000, one after the other):
//!
//! | operation | ring | pool |
//! |---|---|---|
//! | open and close | 5 | 30 |
//! | stat by STATX, which always goes to a kernel worker | 9–31 | 26 |
//! | stat by opening with `O_PATH` and fstat, as [`Files::stat`](super::Files::stat) does | 5 | |
//! | read 4 KiB | 3 | 25 |
//! | read 256 KiB | 13 | 33 |

mod driver;
mod operation;

use std::fmt;
use std::io;
use std::str::FromStr;

use io_uring::{IoUring, Probe, opcode};

pub(super) use driver::Ring;

/// The entries of a ring's submission queue. With the completion queue of twice as many they are 32 KiB of memory,
/// which kernels before 5.12 count as locked: far below the usual limit of 8 MiB, for a ring on every core.
const ENTRIES: u32 = 256;

/// Whether files are read through `io_uring`: the option `--io-uring`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Through `io_uring` where [`probe`] succeeds, else through a pool of blocking threads, after one warning.
    #[default]
    Auto,
    /// Through `io_uring`, and not at all where it is refused.
    On,
    /// Through the pool of blocking threads.
    Off,
}

impl Mode {
    /// The word of the command line, the configuration and the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Mode {
    /// A sentence that quotes the word and names the right ones.
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        [Self::Auto, Self::On, Self::Off]
            .into_iter()
            .find(|mode| mode.as_str() == word)
            .ok_or_else(|| format!("{word:?} is not one of auto, on, off"))
    }
}

/// Whether this thread may use `io_uring`, and if not, why, in words for a person.
///
/// Sets a ring up, asks for every operation that is needed, and waits for one that does nothing: a seccomp filter may
/// let the set-up pass and refuse `io_uring_enter` alone. The ring is gone afterwards. Takes some tens of microseconds
/// and waits for nothing.
pub fn probe() -> Result<(), String> {
    let mut uring = set_up().map_err(|error| refusal("io_uring_setup", &error))?;
    let mut known = Probe::new();
    uring.submitter().register_probe(&mut known).map_err(|error| refusal("io_uring_register", &error))?;
    let needed = [
        ("NOP", opcode::Nop::CODE),
        ("OPENAT", opcode::OpenAt::CODE),
        ("READ", opcode::Read::CODE),
        ("FADVISE", opcode::Fadvise::CODE),
    ];
    if let Some((name, _)) = needed.iter().find(|(_, code)| !known.is_supported(*code)) {
        return Err(format!("the kernel's io_uring has no {name}"));
    }
    complete_nop(&mut uring).map_err(|error| refusal("io_uring_enter", &error))
}

/// A ring for the thread that calls, the only one that may use it.
fn set_up() -> io::Result<IoUring> {
    // What the kernel does not know it refuses with EINVAL; the last attempt asks for nothing.
    let attempts = [
        IoUring::builder().setup_coop_taskrun().setup_single_issuer().clone(),
        IoUring::builder().setup_coop_taskrun().clone(),
    ];
    for builder in attempts {
        match builder.build(ENTRIES) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            result => return result,
        }
    }
    IoUring::new(ENTRIES)
}

/// Proves on a ring that has nothing under way that operations complete.
fn complete_nop(uring: &mut IoUring) -> io::Result<()> {
    // SAFETY: a NOP points at nothing.
    let pushed = unsafe { uring.submission().push(&opcode::Nop::new().build()) };
    pushed.map_err(io::Error::other)?;
    uring.submit_and_wait(1)?;
    match uring.completion().next().map(|completion| completion.result()) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
        None => Err(io::Error::other("an operation did not complete")),
    }
}

fn refusal(call: &str, error: &io::Error) -> String {
    let reason = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "; a seccomp filter or the sysctl kernel.io_uring_disabled forbids it"
        }
        Some(libc::ENOSYS) => "; the kernel has no io_uring, or a seccomp filter hides it",
        Some(libc::ENOMEM) => "; the limit of locked memory (RLIMIT_MEMLOCK) may be too low",
        _ => "",
    };
    format!("{call}: {error}{reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_named_as_on_the_command_line() {
        for (word, mode) in [("auto", Mode::Auto), ("on", Mode::On), ("off", Mode::Off)] {
            assert_eq!(word.parse(), Ok(mode));
            assert_eq!(mode.to_string(), word);
            assert_eq!(serde_json::to_string(&mode).unwrap(), format!("{word:?}"));
            assert_eq!(serde_json::from_str::<Mode>(&format!("{word:?}")).unwrap(), mode);
        }
        assert_eq!("On".parse::<Mode>(), Err(r#""On" is not one of auto, on, off"#.to_owned()));
        assert_eq!(Mode::default(), Mode::Auto);
    }

    #[test]
    fn a_refusal_says_who_may_have_refused() {
        let seccomp = refusal("io_uring_setup", &io::Error::from_raw_os_error(libc::EPERM));
        assert!(seccomp.starts_with("io_uring_setup: ") && seccomp.contains("seccomp"), "{seccomp}");
        let other = refusal("io_uring_setup", &io::Error::from_raw_os_error(libc::EMFILE));
        assert!(!other.contains(';'), "{other}");
    }

    #[test]
    fn a_ring_is_set_up_wherever_probing_succeeds() {
        let attempt = set_up().and_then(|mut uring| complete_nop(&mut uring));
        assert_eq!(probe().is_ok(), attempt.is_ok());
    }
}
