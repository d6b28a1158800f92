//! The ring of one worker thread, and who reads its completions.
//!
//! An operation's future submits it when it is first polled and looks for its completion at once: most are there by
//! then. The others are noticed by a task of the runtime, the driver, which waits for the ring's descriptor to become
//! readable, reads all completions and wakes the futures. It is a task of its own because the futures cannot be relied
//! on: one that was polled once and is kept aside, as a read-ahead is, would swallow the wake-up of all others.
//!
//! **Dropping.** A dropped future leaves its operation to the slab until it completes. Dropping the last clone of the
//! ring waits, blocking, until the kernel has completed everything, for at most [`DROP_WAIT_MAX`]; if it has not by
//! then (a dead disk, a network filesystem without its server), the slab is leaked, as the kernel may still write to
//! its buffers. To wait without blocking, await [`Ring::drain`] before the runtime ends.

use std::cell::{Cell, RefCell};
use std::ffi::CString;
use std::fs::File;
use std::future::Future;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use io_uring::{IoUring, types};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;

use super::operation::{Completed, Finished, Operation, Slots, UNAWAITED};
use super::{ENTRIES, complete_nop, set_up};

/// The most pieces of advice in one chain: 4 MiB where the kernel reads the least ahead.
const CHAIN_PIECES_MAX: u32 = 32;
/// How often in a row the kernel may take no entry before the ring counts as broken; each time all that is runnable
/// has its turn.
const STALLS_MAX: u32 = 1000;
/// How often in a row one read is repeated that was interrupted or came too early.
const REPEATS_MAX: u32 = 16;
/// How long dropping the ring waits for what is under way.
const DROP_WAIT_MAX: Duration = Duration::from_secs(2);

/// The ring of one worker thread. A clone is the same ring.
#[derive(Clone)]
pub(in crate::sys) struct Ring(Rc<Inner>);

struct Inner {
    /// Names the ring in `RINGS`.
    id: u64,
    state: RefCell<State>,
    /// A permit for each entry that may be under way: `ENTRIES` of them, half of what the completion queue holds, so
    /// that neither queue is ever full. It is given back when the completion is read, not when the future goes away.
    /// Closed when the ring is broken.
    capacity: Semaphore,
    /// Notified when nothing is under way.
    idle: Notify,
    driver: AbortHandle,
}

struct State {
    uring: IoUring,
    slots: Slots,
    /// How often in a row the kernel took nothing.
    stalls: u32,
}

thread_local! {
    /// The rings of this thread, where the driver finds its own: to be spawned without a `LocalSet` it has to be
    /// `Send`, and so cannot hold an `Rc`.
    static RINGS: RefCell<Vec<(u64, Weak<Inner>)>> = const { RefCell::new(Vec::new()) };
    static NEXT_ID: Cell<u64> = const { Cell::new(0) };
}

impl Ring {
    /// Sets a ring up for this thread, proves that it works, and spawns its driver on the runtime around the call, which
    /// has to be a current-thread runtime with I/O enabled.
    pub(in crate::sys) fn new() -> io::Result<Self> {
        let runtime = Handle::try_current().map_err(io::Error::other)?;
        if runtime.runtime_flavor() != RuntimeFlavor::CurrentThread {
            let reason = "a ring belongs to one thread: it needs a current-thread runtime";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let mut uring = set_up()?;
        complete_nop(&mut uring)?;
        // SAFETY: `uring` owns the descriptor and is not dropped before the borrow ends, with this statement.
        let watched = unsafe { BorrowedFd::borrow_raw(uring.as_raw_fd()) }.try_clone_to_owned()?;
        // SAFETY: an `OwnedFd` is open and stays the same until it is dropped, which the `AsyncFd` does.
        let watched = unsafe { AsyncFd::register_with_interest(watched, Interest::READABLE) }?;
        let id = NEXT_ID.replace(NEXT_ID.get() + 1);
        let inner = Rc::new(Inner {
            id,
            state: RefCell::new(State { uring, slots: Slots::default(), stalls: 0 }),
            capacity: Semaphore::new(ENTRIES as usize),
            idle: Notify::new(),
            driver: runtime.spawn(drive(watched, id)).abort_handle(),
        });
        RINGS.with_borrow_mut(|rings| rings.push((id, Rc::downgrade(&inner))));
        Ok(Self(inner))
    }

    /// Whether the kernel takes operations, as it did when the ring was made.
    pub(in crate::sys) fn works(&self) -> bool {
        !self.0.capacity.is_closed()
    }

    /// Opens a file with the given flags and close-on-exec.
    pub(in crate::sys) async fn open(&self, path: CString, flags: i32) -> io::Result<File> {
        self.perform(Operation::Open { path, flags: flags | libc::O_CLOEXEC }).await?.into_file()
    }

    /// Reads the bytes of the file from `offset` on into the capacity of the empty `buffer`, until there are `end` or
    /// the file ends.
    pub(in crate::sys) async fn read(
        &self,
        file: &Arc<File>,
        mut buffer: Vec<u8>,
        end: usize,
        offset: u64,
    ) -> io::Result<Vec<u8>> {
        let mut repeats = 0;
        while buffer.len() < end {
            let file = Arc::clone(file);
            let read = Operation::Read { file, buffer, end, offset, by_worker: repeats > 0 };
            let (filled, result) = self.perform(read).await?.into_buffer();
            buffer = filled;
            match result {
                Ok(0) => break,
                Ok(_) => repeats = 0,
                Err(error) if is_transient(&error) && repeats < REPEATS_MAX => repeats += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(buffer)
    }

    /// Brings `len` bytes from `offset` on into the page cache, advising `piece` bytes at once.
    pub(in crate::sys) async fn populate(
        &self,
        file: &Arc<File>,
        offset: u64,
        len: u64,
        piece: u32,
    ) -> io::Result<()> {
        let chain_len_max = piece.saturating_mul(CHAIN_PIECES_MAX);
        let mut done = 0;
        while done < len {
            let len = u32::try_from(len - done).map_or(chain_len_max, |rest| rest.min(chain_len_max));
            let file = Arc::clone(file);
            let last = Vec::with_capacity(1);
            let populate = Operation::Populate { file, offset: offset + done, len, piece, last };
            match self.perform(populate).await?.result() {
                // The advice was taken; whether the last byte is there yet is not worth another attempt.
                Err(error) if !is_transient(&error) => return Err(error),
                _ => done += u64::from(len),
            }
        }
        Ok(())
    }

    /// Waits until nothing is under way.
    pub(in crate::sys) async fn drain(&self) {
        loop {
            // Before looking: what completes from here on is not missed.
            let idle = self.0.idle.notified();
            self.0.reap();
            if self.0.state.borrow_mut().in_kernel() == 0 {
                return;
            }
            idle.await;
        }
    }

    /// Waits for a permit, submits, waits for the completion. Waiting for the permit counts against the runtime's budget
    /// of the task, so that one whose operations all complete at once still lets others have their turn.
    async fn perform(&self, operation: Operation) -> io::Result<Finished> {
        let permits = self.0.capacity.acquire_many(operation.entry_count()).await.map_err(|_| broken())?;
        permits.forget();
        let key = self.0.start(operation);
        Completion { ring: &self.0, key: Some(key) }.await
    }
}

impl Inner {
    /// Queues an operation, for which the caller forgot as many permits as it has entries, and submits it.
    fn start(&self, operation: Operation) -> usize {
        let mut state = self.state.borrow_mut();
        let key = state.queue(operation);
        let submitted = state.submit();
        drop(state);
        if submitted.is_err() {
            self.give_up();
        }
        key
    }

    /// Reads all completions that there are, and wakes who waits for them.
    fn reap(&self) {
        let mut reaped = false;
        loop {
            let mut state = self.state.borrow_mut();
            let Some(completion) = state.uring.completion().next() else {
                if reaped && state.in_kernel() == 0 {
                    self.idle.notify_waiters();
                }
                return;
            };
            reaped = true;
            let completed = state.complete(completion.user_data(), completion.result());
            // Before a waker runs, as it is somebody else's code.
            drop(state);
            if let Some(completed) = completed {
                self.capacity.add_permits(completed.entries as usize);
                if let Some(waker) = completed.waker {
                    waker.wake();
                }
            }
        }
    }

    /// The kernel takes nothing more: who waits gets an error, and who comes too.
    fn give_up(&self) {
        self.capacity.close();
        let wakers = self.state.borrow().slots.wakers();
        for waker in wakers {
            waker.wake();
        }
        self.idle.notify_waiters();
    }
}

impl State {
    /// Takes an operation into the slab and its entries into the queue. The kernel does not look there yet.
    fn queue(&mut self, operation: Operation) -> usize {
        let silent = self.uring.params().is_feature_skip_cqe_on_success();
        let key = self.slots.insert(operation);
        let mut queue = self.uring.submission();
        if let Some(operation) = self.slots.operation(key) {
            operation.queue(key as u64, silent, |entry| {
                // SAFETY: what the entry points at is owned by the operation, which is in the slab and leaves it only
                // after its awaited completion was read; that entry is the last of a chain, the others are done then.
                let pushed = unsafe { queue.push(entry) };
                assert!(pushed.is_ok(), "there are no more permits than entries in the queue");
            });
        }
        key
    }

    /// Hands the queue to the kernel. What it does not take stays queued, and the futures that wait try again.
    ///
    /// Errors: it refuses for good.
    fn submit(&mut self) -> io::Result<()> {
        while !self.uring.submission().is_empty() {
            let error = match self.uring.submit() {
                Ok(0) => io::ErrorKind::WouldBlock.into(),
                Ok(_) => {
                    self.stalls = 0;
                    continue;
                }
                Err(error) => error,
            };
            self.stalls += 1;
            // EBUSY: completions have to be read first; EAGAIN: the kernel lacks memory.
            let passing = is_transient(&error) || error.raw_os_error() == Some(libc::EBUSY);
            return if passing && self.stalls <= STALLS_MAX { Ok(()) } else { Err(error) };
        }
        Ok(())
    }

    fn complete(&mut self, user_data: u64, result: i32) -> Option<Completed> {
        if user_data == UNAWAITED {
            return None;
        }
        let completed = usize::try_from(user_data).ok().and_then(|key| self.slots.complete(key, result));
        debug_assert!(completed.is_some(), "a completion for {user_data}, which is not under way");
        completed
    }

    /// How many entries the kernel has: what it did not take cannot hurt.
    fn in_kernel(&mut self) -> usize {
        self.slots.entries() - self.uring.submission().len()
    }

    /// Waits on this thread until the kernel has no entry, at most [`DROP_WAIT_MAX`]; whether it came to that.
    fn wait_idle(&mut self) -> bool {
        let deadline = Instant::now() + DROP_WAIT_MAX;
        loop {
            loop {
                let Some(completion) = self.uring.completion().next() else { break };
                self.complete(completion.user_data(), completion.result());
            }
            if self.in_kernel() == 0 {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let left = types::Timespec::from(left);
            match self.uring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&left)) {
                Err(error) if !matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => {
                    return false;
                }
                _ => {}
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.driver.abort();
        // The thread may be ending and the list gone with it.
        let _ = RINGS.try_with(|rings| rings.borrow_mut().retain(|(id, _)| *id != self.id));
        let state = self.state.get_mut();
        if !state.wait_idle() {
            tracing::warn!(
                entries = state.in_kernel(),
                "file operations outlived their ring; their memory is leaked"
            );
            mem::forget(mem::take(&mut state.slots));
        }
    }
}

/// A submitted operation. Dropped, it leaves the operation to the slab.
struct Completion<'a> {
    ring: &'a Inner,
    /// `None` once the result was taken.
    key: Option<usize>,
}

impl Future for Completion<'_> {
    type Output = io::Result<Finished>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let ring = self.ring;
        let Some(key) = self.key else { return Poll::Ready(Err(broken())) };
        ring.reap();
        let mut state = ring.state.borrow_mut();
        let replaced = match state.slots.take(key, cx.waker()) {
            Ok(finished) => {
                self.key = None;
                return Poll::Ready(Ok(finished));
            }
            Err(replaced) => replaced,
        };
        let unsubmitted = !state.uring.submission().is_empty();
        let submitted = state.submit();
        drop(state);
        drop(replaced);
        if submitted.is_err() {
            ring.give_up();
        }
        if ring.capacity.is_closed() {
            return Poll::Ready(Err(broken()));
        }
        if unsubmitted {
            // Nothing else would remind the kernel of what it did not take.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Drop for Completion<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let waker = self.ring.state.borrow_mut().slots.abandon(key);
            drop(waker);
        }
    }
}

/// Reads completions whenever there are some, until the ring is gone.
async fn drive(watched: AsyncFd<OwnedFd>, id: u64) {
    while let Ok(mut ready) = watched.readable().await {
        // Before reading: what completes from here on makes it ready again.
        ready.clear_ready();
        let find = |rings: &Vec<(u64, Weak<Inner>)>| rings.iter().find(|(of, _)| *of == id)?.1.upgrade();
        let Some(ring) = RINGS.with_borrow(find) else { return };
        ring.reap();
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

fn broken() -> io::Error {
    io::Error::other("io_uring takes no more operations")
}

#[cfg(test)]
mod tests;
