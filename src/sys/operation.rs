//! The operations that the kernel is asked for through the ring, and the slab that owns them meanwhile.
//!
//! An operation owns everything that its submission queue entry points at: path, buffer, descriptor. It stays in the
//! slab from its submission until its completion was read, whoever still waits for it. That is the whole of the
//! memory safety of the ring: no future owns memory that the kernel may write to.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::task::Waker;

use io_uring::{opcode, squeue, types};

use super::files::Stat;

/// The most bytes that one READ asks for: below the kernel's own limit of 2 GiB less a page.
const READ_MAX: usize = 1 << 30;

/// One operation with all that the kernel needs for it.
pub(super) enum Operation {
    /// Does nothing; proves that operations complete.
    Nop,
    /// OPENAT of an absolute path, or of one relative to the working directory.
    Open { path: CString, flags: i32 },
    /// STATX, following symbolic links. `out` has room for one element and stays empty until completion.
    Stat { path: CString, out: Vec<libc::statx> },
    /// READ of the bytes from `offset` on behind those that `buffer` holds already, at most until its length is
    /// `end`. `end <= buffer.capacity()`.
    Read { file: Arc<File>, buffer: Vec<u8>, end: usize, offset: u64, by_worker: bool },
    /// FADVISE WILLNEED, linked to the next operation in the queue.
    WillNeed { file: Arc<File>, offset: u64, len: u32 },
}

impl Operation {
    /// The submission queue entry. Its pointers stay valid as long as `self` lives, wherever it is moved to: they
    /// lead into heap allocations that nothing resizes before the completion.
    pub(super) fn entry(&mut self) -> squeue::Entry {
        match self {
            Self::Nop => opcode::Nop::new().build(),
            Self::Open { path, flags } => {
                opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).flags(*flags).build()
            }
            Self::Stat { path, out } => {
                out.reserve_exact(1);
                let at = types::Fd(libc::AT_FDCWD);
                opcode::Statx::new(at, path.as_ptr(), out.as_mut_ptr().cast())
                    .mask(libc::STATX_TYPE | libc::STATX_SIZE | libc::STATX_MTIME | libc::STATX_INO)
                    .build()
            }
            Self::Read { file, buffer, end, offset, by_worker } => {
                let held = buffer.len();
                let room: &mut [MaybeUninit<u8>] = buffer.spare_capacity_mut();
                let wanted = end.saturating_sub(held).min(room.len()).min(READ_MAX);
                // `wanted` fits: READ_MAX does.
                let wanted = u32::try_from(wanted).unwrap_or(0);
                let flags = if *by_worker { squeue::Flags::ASYNC } else { squeue::Flags::empty() };
                opcode::Read::new(types::Fd(file.as_raw_fd()), room.as_mut_ptr().cast(), wanted)
                    .offset(*offset + held as u64)
                    .build()
                    .flags(flags)
            }
            Self::WillNeed { file, offset, len } => {
                // A hard link: the read that follows waits for the advice, and runs even where there is none to give.
                opcode::Fadvise::new(
                    types::Fd(file.as_raw_fd()),
                    libc::off_t::from(*len),
                    libc::POSIX_FADV_WILLNEED,
                )
                .offset(*offset)
                .build()
                .flags(squeue::Flags::IO_HARDLINK)
            }
        }
    }
}

/// An operation whose completion was read. Dropping it closes a descriptor that nobody took.
pub(super) struct Finished {
    operation: Operation,
    result: i32,
    taken: bool,
}

impl Finished {
    fn new(operation: Operation, result: i32) -> Self {
        Self { operation, result, taken: false }
    }

    /// The kernel's result: what it returned, or the error.
    pub(super) fn result(&self) -> io::Result<usize> {
        usize::try_from(self.result).map_err(|_| io::Error::from_raw_os_error(self.result.wrapping_neg()))
    }

    /// The file that an `Open` opened.
    pub(super) fn into_file(mut self) -> io::Result<File> {
        self.result()?;
        self.take_descriptor().map(File::from).ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// What a `Stat` found.
    pub(super) fn into_stat(mut self) -> io::Result<Stat> {
        self.result()?;
        let Operation::Stat { out, .. } = &mut self.operation else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        // SAFETY: `entry` reserved room for one element and gave it to STATX, which returned success and so has filled
        // it; every bit pattern is a valid `statx`, a struct of integers.
        unsafe { out.set_len(1) };
        out.first().map(Stat::from).ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// The buffer of a `Read`, longer by what was read; that number beside it, 0 at the end of the file.
    /// After an error the buffer is as it was before.
    pub(super) fn into_buffer(mut self) -> (Vec<u8>, io::Result<usize>) {
        let result = self.result();
        let Operation::Read { buffer, .. } = &mut self.operation else {
            return (Vec::new(), Err(io::ErrorKind::Unsupported.into()));
        };
        let mut buffer = std::mem::take(buffer);
        if let Ok(read) = result {
            let held = buffer.len();
            assert!(read <= buffer.capacity() - held, "the kernel reads no more than it was asked for");
            // SAFETY: READ was given the spare capacity behind `held` bytes and says that it wrote `read` bytes from
            // its start on; the assertion above holds them to the capacity.
            unsafe { buffer.set_len(held + read) };
        }
        (buffer, result)
    }

    fn take_descriptor(&mut self) -> Option<OwnedFd> {
        if self.taken || self.result < 0 || !matches!(self.operation, Operation::Open { .. }) {
            return None;
        }
        self.taken = true;
        // SAFETY: a successful OPENAT returned this descriptor to us, and `taken` says that nobody else has it yet.
        Some(unsafe { OwnedFd::from_raw_fd(self.result) })
    }
}

impl Drop for Finished {
    fn drop(&mut self) {
        drop(self.take_descriptor());
    }
}

/// The operations between submission and the moment when their future takes the result.
///
/// A key is its slot's index; a slot is given out again only after both its completion was read and its future took
/// the result or went away. Keys are therefore never ambiguous, and every key sees exactly one completion.
#[derive(Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// How many are `UnderWay`.
    under_way: usize,
}

enum Slot {
    Free,
    UnderWay { operation: Operation, waiter: Waiter },
    Done(Finished),
}

enum Waiter {
    /// The future exists and was not polled yet.
    Unpolled,
    /// The future was polled.
    Task(Waker),
    /// There is no future, or not any more.
    Nobody,
}

impl Slots {
    /// Takes an operation in. `awaited` says that a future will take its result.
    pub(super) fn insert(&mut self, operation: Operation, awaited: bool) -> usize {
        let waiter = if awaited { Waiter::Unpolled } else { Waiter::Nobody };
        let slot = Slot::UnderWay { operation, waiter };
        self.under_way += 1;
        if let Some(key) = self.free.pop() {
            self.slots[key] = slot;
            return key;
        }
        self.slots.push(slot);
        self.slots.len() - 1
    }

    /// How many operations were taken in and did not complete.
    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }

    /// Records a completion; returns whom to wake. What nobody waits for is dropped here.
    pub(super) fn complete(&mut self, key: usize, result: i32) -> Option<Waker> {
        let Some(slot @ Slot::UnderWay { .. }) = self.slots.get_mut(key) else {
            debug_assert!(false, "a completion for slot {key}, which is not under way");
            return None;
        };
        let Slot::UnderWay { operation, waiter } = std::mem::replace(slot, Slot::Free) else { return None };
        self.under_way -= 1;
        let finished = Finished::new(operation, result);
        match waiter {
            Waiter::Nobody => {
                self.free.push(key);
                None
            }
            Waiter::Unpolled => {
                *slot = Slot::Done(finished);
                None
            }
            Waiter::Task(waker) => {
                *slot = Slot::Done(finished);
                Some(waker)
            }
        }
    }

    /// The finished operation, whose slot is free from then on; or keeps `waker` for its completion.
    pub(super) fn take(&mut self, key: usize, waker: &Waker) -> Option<Finished> {
        match self.slots.get_mut(key) {
            Some(Slot::UnderWay { waiter, .. }) => {
                match waiter {
                    Waiter::Task(old) => old.clone_from(waker),
                    _ => *waiter = Waiter::Task(waker.clone()),
                }
                None
            }
            Some(slot @ Slot::Done(_)) => {
                let Slot::Done(finished) = std::mem::replace(slot, Slot::Free) else { return None };
                self.free.push(key);
                Some(finished)
            }
            Some(Slot::Free) | None => None,
        }
    }

    /// The future is gone: what is under way stays until it completes, a result that nobody took is dropped.
    pub(super) fn abandon(&mut self, key: usize) {
        match self.slots.get_mut(key) {
            Some(Slot::UnderWay { waiter, .. }) => *waiter = Waiter::Nobody,
            Some(slot @ Slot::Done(_)) => {
                *slot = Slot::Free;
                self.free.push(key);
            }
            Some(Slot::Free) | None => {}
        }
    }

    /// Every waker there is, for the moment when the ring stops working.
    pub(super) fn wakers(&self) -> Vec<Waker> {
        self.slots
            .iter()
            .filter_map(|slot| match slot {
                Slot::UnderWay { waiter: Waiter::Task(waker), .. } => Some(waker.clone()),
                _ => None,
            })
            .collect()
    }
}
