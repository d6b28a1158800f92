//! The operations that the kernel is asked for through the ring, and the slab that owns them meanwhile.
//!
//! An operation owns everything that its submission queue entries point at: path, buffer, descriptor. It stays in the
//! slab from its submission until its completion was read, whoever still waits for it. That is the whole of the
//! ring's memory safety: no future owns memory that the kernel may write to.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::task::Waker;

use io_uring::squeue::{Entry, Flags};
use io_uring::{opcode, types};

/// The most bytes that one READ asks for: below the kernel's own limit of 2 GiB less a page.
const READ_MAX: usize = 1 << 30;

/// The user data of entries whose completion nobody waits for. No slab has so many slots.
pub(super) const UNAWAITED: u64 = u64::MAX;

/// One operation with all that the kernel needs for it. Each has one awaited completion.
pub(super) enum Operation {
    /// OPENAT of an absolute path, or of one relative to the working directory.
    Open { path: CString, flags: i32 },
    /// READ of the bytes from `offset` on, behind the `buffer.len()` that are there already, until there are `end`.
    /// `buffer.len() < end <= buffer.capacity()`. `by_worker`: not tried on this thread, where it could only fail.
    Read { file: Arc<File>, buffer: Vec<u8>, end: usize, offset: u64, by_worker: bool },
    /// FADVISE WILLNEED for the window, in pieces, then a READ of its last byte into `last`, which has room for one.
    /// `1 <= piece`, `1 <= len`.
    Populate { file: Arc<File>, offset: u64, len: u32, piece: u32, last: Vec<u8> },
}

impl Operation {
    /// How many entries [`Self::queue`] makes: as many completions there may be.
    pub(super) fn entry_count(&self) -> u32 {
        match self {
            Self::Open { .. } | Self::Read { .. } => 1,
            Self::Populate { len, piece, .. } => len.div_ceil(*piece) + 1,
        }
    }

    /// Makes the submission queue entries, the awaited one last and with `key` as its user data.
    ///
    /// Their pointers stay valid as long as `self` lives, wherever it is moved to: they lead into heap allocations
    /// that nothing resizes before the completion. `silent` says that the kernel can leave out the completions of
    /// successful entries (5.17).
    pub(super) fn queue(&mut self, key: u64, silent: bool, mut push: impl FnMut(&Entry)) {
        match self {
            Self::Open { path, flags } => {
                let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).flags(*flags);
                push(&open.build().user_data(key));
            }
            Self::Read { file, buffer, end, offset, by_worker } => {
                let flags = if *by_worker { Flags::ASYNC } else { Flags::empty() };
                push(&read(file, buffer, *end, *offset).user_data(key).flags(flags));
            }
            Self::Populate { file, offset, len, piece, last } => {
                // Hard links: each waits for the one before, and runs even where that one failed.
                let flags = Flags::IO_HARDLINK | if silent { Flags::SKIP_SUCCESS } else { Flags::empty() };
                let mut done = 0;
                while done < *len {
                    let piece_len = (*len - done).min(*piece);
                    let advice = opcode::Fadvise::new(
                        types::Fd(file.as_raw_fd()),
                        libc::off_t::from(piece_len),
                        libc::POSIX_FADV_WILLNEED,
                    )
                    .offset(*offset + u64::from(done));
                    push(&advice.build().user_data(UNAWAITED).flags(flags));
                    done += piece_len;
                }
                push(&read(file, last, 1, *offset + u64::from(*len) - 1).user_data(key));
            }
        }
    }
}

/// A READ of the bytes that `buffer` lacks; `offset` is where in the file its first byte is from.
fn read(file: &File, buffer: &mut Vec<u8>, end: usize, offset: u64) -> Entry {
    let held = buffer.len();
    let room = buffer.spare_capacity_mut();
    let wanted = end.saturating_sub(held).min(room.len()).min(READ_MAX);
    // Never 0 by this conversion: READ_MAX fits.
    let wanted = u32::try_from(wanted).unwrap_or(0);
    opcode::Read::new(types::Fd(file.as_raw_fd()), room.as_mut_ptr().cast(), wanted)
        .offset(offset + held as u64)
        .build()
}

/// An operation whose completion was read. Dropping it closes a descriptor that nobody took.
pub(super) struct Finished {
    operation: Operation,
    result: i32,
    /// The descriptor has an owner.
    taken: bool,
}

impl Finished {
    /// What the kernel returned, or its error.
    pub(super) fn result(&self) -> io::Result<usize> {
        usize::try_from(self.result).map_err(|_| io::Error::from_raw_os_error(self.result.wrapping_neg()))
    }

    /// The file that an `Open` opened.
    pub(super) fn into_file(mut self) -> io::Result<File> {
        self.result()?;
        self.take_descriptor().map(File::from).ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// The buffer of a `Read`, and how much longer it is now: 0 at the end of the file. After an error it is as it
    /// was before.
    pub(super) fn into_buffer(mut self) -> (Vec<u8>, io::Result<usize>) {
        let result = self.result();
        let Operation::Read { buffer, .. } = &mut self.operation else {
            return (Vec::new(), Err(io::ErrorKind::Unsupported.into()));
        };
        let mut buffer = mem::take(buffer);
        if let Ok(read) = result {
            let held = buffer.len();
            assert!(read <= buffer.capacity() - held, "the kernel reads no more than it was asked for");
            // SAFETY: the READ was given the spare capacity behind `held` bytes and its result says that it wrote
            // `read` bytes from there on; the assertion keeps them within the capacity.
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

/// The operations from their submission until their future took the result.
///
/// A key is a slot's index. A slot is given out again only after its completion was read and its future has the
/// result or is gone, so a key names one operation at any time and sees one completion.
///
/// No method runs a waker's code, its destructor included: what is to be woken or dropped is returned.
#[derive(Default)]
pub(super) struct Slots {
    all: Vec<Slot>,
    free: Vec<usize>,
    /// The sum of the entries of all that is `UnderWay`.
    entries: usize,
}

enum Slot {
    Free,
    UnderWay { operation: Operation, waiter: Waiter },
    Done(Finished),
}

enum Waiter {
    /// The future was not polled since the submission.
    Unpolled,
    Task(Waker),
    /// The future is gone.
    Nobody,
}

/// What a completion leads to.
pub(super) struct Completed {
    /// Who waits for it.
    pub(super) waker: Option<Waker>,
    /// How many entries the operation had.
    pub(super) entries: u32,
}

impl Slots {
    pub(super) fn insert(&mut self, operation: Operation) -> usize {
        self.entries += operation.entry_count() as usize;
        let slot = Slot::UnderWay { operation, waiter: Waiter::Unpolled };
        if let Some(key) = self.free.pop() {
            self.all[key] = slot;
            return key;
        }
        self.all.push(slot);
        self.all.len() - 1
    }

    /// The operation `key`, while it is under way.
    pub(super) fn operation(&mut self, key: usize) -> Option<&mut Operation> {
        match self.all.get_mut(key)? {
            Slot::UnderWay { operation, .. } => Some(operation),
            Slot::Free | Slot::Done(_) => None,
        }
    }

    /// How many entries belong to operations that did not complete.
    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    /// Records the completion of the operation `key`; what nobody waits for ends here. `None` if there is no such
    /// operation under way.
    pub(super) fn complete(&mut self, key: usize, result: i32) -> Option<Completed> {
        let slot = self.all.get_mut(key)?;
        let (operation, waiter) = match mem::replace(slot, Slot::Free) {
            Slot::UnderWay { operation, waiter } => (operation, waiter),
            other => {
                *slot = other;
                return None;
            }
        };
        let entries = operation.entry_count();
        self.entries -= entries as usize;
        let finished = Finished { operation, result, taken: false };
        let waker = match waiter {
            Waiter::Nobody => {
                self.free.push(key);
                return Some(Completed { waker: None, entries });
            }
            Waiter::Unpolled => None,
            Waiter::Task(waker) => Some(waker),
        };
        *slot = Slot::Done(finished);
        Some(Completed { waker, entries })
    }

    /// The finished operation, whose slot is free from then on. Else keeps `waker` for its completion, and returns
    /// the one that it replaced.
    pub(super) fn take(&mut self, key: usize, waker: &Waker) -> Result<Finished, Option<Waker>> {
        match self.all.get_mut(key) {
            Some(slot @ Slot::Done(_)) => match mem::replace(slot, Slot::Free) {
                Slot::Done(finished) => {
                    self.free.push(key);
                    Ok(finished)
                }
                Slot::Free | Slot::UnderWay { .. } => Err(None),
            },
            Some(Slot::UnderWay { waiter: Waiter::Task(held), .. }) if held.will_wake(waker) => Err(None),
            Some(Slot::UnderWay { waiter, .. }) => match mem::replace(waiter, Waiter::Task(waker.clone())) {
                Waiter::Task(replaced) => Err(Some(replaced)),
                Waiter::Unpolled | Waiter::Nobody => Err(None),
            },
            Some(Slot::Free) | None => Err(None),
        }
    }

    /// The future is gone: what is under way stays until it completes; a result that nobody took is dropped. Returns
    /// the waker of that future.
    pub(super) fn abandon(&mut self, key: usize) -> Option<Waker> {
        match self.all.get_mut(key) {
            Some(Slot::UnderWay { waiter, .. }) => match mem::replace(waiter, Waiter::Nobody) {
                Waiter::Task(waker) => Some(waker),
                Waiter::Unpolled | Waiter::Nobody => None,
            },
            Some(slot @ Slot::Done(_)) => {
                *slot = Slot::Free;
                self.free.push(key);
                None
            }
            Some(Slot::Free) | None => None,
        }
    }

    /// Everyone who waits.
    pub(super) fn wakers(&self) -> Vec<Waker> {
        let task = |slot: &Slot| match slot {
            Slot::UnderWay { waiter: Waiter::Task(waker), .. } => Some(waker.clone()),
            _ => None,
        };
        self.all.iter().filter_map(task).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::pipe;
    use std::os::fd::IntoRawFd;

    use super::*;

    fn open() -> Operation {
        Operation::Open { path: c"/".into(), flags: 0 }
    }

    fn populate(len: u32, piece: u32) -> Operation {
        let file = Arc::new(File::open("/dev/null").unwrap());
        Operation::Populate { file, offset: 7, len, piece, last: Vec::with_capacity(1) }
    }

    fn waker() -> Waker {
        Waker::noop().clone()
    }

    #[test]
    fn a_window_takes_a_piece_of_advice_each_and_a_read() {
        for (len, piece, pieces) in
            [(1, 1, 1), (4096, 4096, 1), (4097, 4096, 2), (8191, 4096, 2), (8193, 4096, 3)]
        {
            let mut operation = populate(len, piece);
            let mut entries = Vec::new();
            operation.queue(5, true, |entry| entries.push(entry.clone()));
            assert_eq!(entries.len(), pieces + 1, "{len} in pieces of {piece}");
            assert_eq!(operation.entry_count() as usize, entries.len());
            let read = entries.pop().unwrap();
            assert_eq!((read.get_user_data(), read.get_opcode()), (5, u32::from(opcode::Read::CODE)));
            for advice in entries {
                assert_eq!(advice.get_user_data(), UNAWAITED);
                assert_eq!(advice.get_opcode(), u32::from(opcode::Fadvise::CODE));
            }
        }
    }

    #[test]
    fn a_slot_is_free_after_completion_and_taking_in_any_order() {
        let mut slots = Slots::default();
        let (first, second) = (slots.insert(open()), slots.insert(populate(2, 1)));
        assert_eq!(slots.entries(), 4);
        assert!(slots.take(first, &waker()).is_err());
        assert!(slots.complete(first, -libc::ENOENT).unwrap().waker.is_some());
        assert_eq!(slots.entries(), 3);
        let third = slots.insert(open());
        assert_ne!(third, first, "its result was not taken");
        let error = slots.take(first, &waker()).ok().unwrap().into_file().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(slots.insert(open()), first);

        drop(slots.abandon(second));
        assert_ne!(slots.insert(open()), second, "the kernel still has it");
        assert_eq!(slots.complete(second, 1).unwrap().entries, 3);
        assert_eq!(slots.insert(open()), second);
    }

    #[test]
    fn a_second_completion_is_refused() {
        let mut slots = Slots::default();
        let key = slots.insert(open());
        assert!(slots.complete(key, -1).is_some());
        assert!(slots.complete(key, -1).is_none());
        assert!(slots.complete(key + 1, -1).is_none());
        assert!(slots.take(key, &waker()).is_ok());
    }

    #[test]
    fn a_waker_is_replaced_and_handed_back() {
        let mut slots = Slots::default();
        let key = slots.insert(open());
        let other = Waker::from(Arc::new(Ignore));
        assert!(matches!(slots.take(key, &other), Err(None)));
        assert!(matches!(slots.take(key, &other), Err(None)), "the same");
        assert!(matches!(slots.take(key, &waker()), Err(Some(replaced)) if replaced.will_wake(&other)));
        assert_eq!(slots.wakers().len(), 1);
        assert!(slots.abandon(key).is_some());
        assert_eq!(slots.wakers().len(), 0);
    }

    struct Ignore;

    impl std::task::Wake for Ignore {
        fn wake(self: Arc<Self>) {}
    }

    /// A pipe's writing end stands for what was opened: the reading end tells when it is closed.
    #[test]
    fn an_opened_file_that_nobody_takes_is_closed() {
        let (mut abandoned_first, mut completed_first) = (Slots::default(), Slots::default());
        let (reader, writer) = pipe().unwrap();
        let key = abandoned_first.insert(open());
        drop(abandoned_first.abandon(key));
        abandoned_first.complete(key, writer.into_raw_fd());
        assert_eq!(io::read_to_string(reader).unwrap(), "");

        let (reader, writer) = pipe().unwrap();
        let key = completed_first.insert(open());
        completed_first.complete(key, writer.into_raw_fd());
        drop(completed_first.abandon(key));
        assert_eq!(io::read_to_string(reader).unwrap(), "");
    }
}
