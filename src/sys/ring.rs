//! The ring of one worker thread: `io_uring`, thin.
use std::cell::{Cell, RefCell};
use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use io_uring::{IoUring, Probe, opcode, types};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;

use super::files::Stat;
use super::operation::{Finished, Operation, Slots};

/// How many operations one ring has under way at most; more wait for their turn. It is also the number of entries in
/// the submission queue: half of the completion queue's, which therefore cannot overflow. 256 entries are 32 KiB of
/// locked memory, where kernels count it: far below the usual limit of 8 MiB, for one ring per core.
const OPERATIONS_MAX: u32 = 256;

/// How often in a row the kernel may take no entry (out of memory, say) before the ring counts as broken.
const STALLS_MAX: u32 = 1000;

/// How often one READ is repeated after `EAGAIN` or `EINTR`.
const REPEATS_MAX: u32 = 16;

/// How long dropping a ring waits for what is under way, before its memory is given up.
const DROP_WAIT_MAX: Duration = Duration::from_secs(2);

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
    /// The word of the command line and of logs.
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
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        [Self::Auto, Self::On, Self::Off]
            .into_iter()
            .find(|mode| mode.as_str() == word)
            .ok_or_else(|| format!("{word:?} is not one of auto, on, off"))
    }
}

/// Whether `io_uring` can be used by this process, and if not, why, in words for a person.
///
/// Sets a ring up, asks for every operation that is needed, and waits for one that does nothing: a seccomp filter may
/// let the set-up pass and refuse `io_uring_enter` alone. The test ring is gone afterwards. Blocks for microseconds.
pub fn probe() -> Result<(), String> {
    let mut uring = set_up().map_err(|error| format!("io_uring_setup: {error}{}", hint(&error)))?;
    let mut known = Probe::new();
    uring
        .submitter()
        .register_probe(&mut known)
        .map_err(|error| format!("io_uring_register: {error}{}", hint(&error)))?;
    let needed = [
        ("NOP", opcode::Nop::CODE),
        ("OPENAT", opcode::OpenAt::CODE),
        ("STATX", opcode::Statx::CODE),
        ("READ", opcode::Read::CODE),
        ("FADVISE", opcode::Fadvise::CODE),
    ];
    for (name, code) in needed {
        if !known.is_supported(code) {
            return Err(format!("the kernel's io_uring has no {name}"));
        }
    }
    complete_nop(&mut uring).map_err(|error| format!("io_uring_enter: {error}{}", hint(&error)))
}

/// The ring of one worker thread. A clone is the same ring.
#[derive(Clone)]
pub(super) struct Ring(Rc<Inner>);

struct Inner {
    /// Names the ring in `RINGS`.
    id: u64,
    state: RefCell<State>,
    /// One permit per operation that may still begin; it comes back when the completion is read, not when the future
    /// goes away.
    capacity: Semaphore,
    /// Told when nothing is under way.
    idle: Notify,
    /// The kernel refuses to take operations.
    broken: Cell<bool>,
    driver: AbortHandle,
}

struct State {
    uring: IoUring,
    slots: Slots,
    /// How often in a row the kernel took nothing.
    stalls: u32,
}

thread_local! {
    /// The rings of this thread. The driver's task finds its ring here: it must be `Send` to be spawned without a
    /// `LocalSet`, and so cannot hold an `Rc`.
    static RINGS: RefCell<Vec<(u64, Weak<Inner>)>> = const { RefCell::new(Vec::new()) };
    static NEXT_ID: Cell<u64> = const { Cell::new(0) };
}

impl Ring {
    /// Sets a ring up for this thread and spawns its driver on the current-thread runtime around the call.
    pub(super) fn new() -> io::Result<Self> {
        let runtime = Handle::try_current().map_err(io::Error::other)?;
        if runtime.runtime_flavor() != RuntimeFlavor::CurrentThread {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a ring belongs to one thread: it needs a current-thread runtime",
            ));
        }
        let mut uring = set_up()?;
        complete_nop(&mut uring)?;
        // SAFETY: `uring` owns the descriptor and outlives this borrow.
        let descriptor = unsafe { BorrowedFd::borrow_raw(uring.as_raw_fd()) }.try_clone_to_owned()?;
        let descriptor = AsyncFd::with_interest(descriptor, Interest::READABLE)?;
        let id = NEXT_ID.replace(NEXT_ID.get() + 1);
        let inner = Rc::new(Inner {
            id,
            state: RefCell::new(State { uring, slots: Slots::default(), stalls: 0 }),
            capacity: Semaphore::new(OPERATIONS_MAX as usize),
            idle: Notify::new(),
            broken: Cell::new(false),
            driver: runtime.spawn(drive(descriptor, id)).abort_handle(),
        });
        RINGS.with_borrow_mut(|rings| rings.push((id, Rc::downgrade(&inner))));
        Ok(Self(inner))
    }

    /// Whether the kernel still takes operations.
    pub(super) fn works(&self) -> bool {
        !self.0.broken.get()
    }

    /// OPENAT, close-on-exec.
    pub(super) async fn open(&self, path: CString, flags: i32) -> io::Result<File> {
        self.perform(Operation::Open { path, flags: flags | libc::O_CLOEXEC }).await?.into_file()
    }

    /// STATX.
    pub(super) async fn stat(&self, path: CString) -> io::Result<Stat> {
        self.perform(Operation::Stat { path, out: Vec::with_capacity(1) }).await?.into_stat()
    }

    /// READs into the spare capacity of `buffer`, the bytes from `offset` on, until it holds `end` or the file ends.
    pub(super) async fn read(
        &self,
        file: &Arc<File>,
        mut buffer: Vec<u8>,
        end: usize,
        offset: u64,
    ) -> io::Result<Vec<u8>> {
        let mut repeats = 0;
        while buffer.len() < end {
            let file = Arc::clone(file);
            let operation = Operation::Read { file, buffer, end, offset, by_worker: repeats > 0 };
            let (filled, result) = self.perform(operation).await?.into_buffer();
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

    /// FADVISE WILLNEED for the window, then a READ of its last byte.
    pub(super) async fn populate(&self, file: &Arc<File>, offset: u64, len: u32) -> io::Result<()> {
        let advice = Operation::WillNeed { file: Arc::clone(file), offset, len };
        let last = offset + u64::from(len) - 1;
        let read = |by_worker| Operation::Read {
            file: Arc::clone(file),
            buffer: Vec::with_capacity(1),
            end: 1,
            offset: last,
            by_worker,
        };
        let (_, mut result) = self.perform_linked(Some(advice), read(false)).await?.into_buffer();
        let mut repeats = 0;
        while result.as_ref().is_err_and(is_transient) && repeats < REPEATS_MAX {
            repeats += 1;
            (_, result) = self.perform(read(true)).await?.into_buffer();
        }
        result.map(drop)
    }

    /// Waits until nothing is under way.
    pub(super) async fn drain(&self) {
        loop {
            let idle = self.0.idle.notified();
            self.0.reap();
            if self.0.state.borrow_mut().in_kernel() == 0 {
                return;
            }
            idle.await;
        }
    }

    async fn perform(&self, operation: Operation) -> io::Result<Finished> {
        self.perform_linked(None, operation).await
    }

    /// Submits `first`, whose result nobody takes, and `operation` in one call, and waits for `operation`.
    async fn perform_linked(&self, first: Option<Operation>, operation: Operation) -> io::Result<Finished> {
        let count = if first.is_some() { 2 } else { 1 };
        self.0.capacity.acquire_many(count).await.map_err(|_| broken())?.forget();
        let key = self.0.start(first, operation);
        Completion { ring: Rc::clone(&self.0), key: Some(key) }.await
    }
}

impl Inner {
    /// Queues and submits. The caller has forgotten a permit for each.
    fn start(&self, first: Option<Operation>, operation: Operation) -> usize {
        let mut state = self.state.borrow_mut();
        if let Some(first) = first {
            state.push(first, false);
        }
        let key = state.push(operation, true);
        let submitted = state.submit();
        drop(state);
        if submitted.is_err() {
            self.give_up();
        }
        key
    }

    /// Reads all completions that there are and wakes who waits for them.
    fn reap(&self) {
        let mut reaped = false;
        loop {
            let waker = {
                let mut state = self.state.borrow_mut();
                let Some(completion) = state.uring.completion().next() else { break };
                reaped = true;
                let key = usize::try_from(completion.user_data()).unwrap_or(usize::MAX);
                state.slots.complete(key, completion.result())
            };
            self.capacity.add_permits(1);
            // Outside of the borrow, since a waker is somebody else's code.
            if let Some(waker) = waker {
                waker.wake();
            }
        }
        if reaped && self.state.borrow_mut().in_kernel() == 0 {
            self.idle.notify_waiters();
        }
    }

    /// The kernel takes nothing more: whoever waits gets an error, and so does whoever comes.
    fn give_up(&self) {
        self.broken.set(true);
        self.capacity.close();
        let wakers = self.state.borrow().slots.wakers();
        for waker in wakers {
            waker.wake();
        }
        self.idle.notify_waiters();
    }
}

impl State {
    /// Puts an operation into the slab and its entry into the queue, not yet before the kernel's eyes.
    fn push(&mut self, mut operation: Operation, awaited: bool) -> usize {
        let entry = operation.entry();
        let key = self.slots.insert(operation, awaited);
        let entry = entry.user_data(key as u64);
        // SAFETY: what the entry points at is owned by the operation, which stays in the slab until its completion
        // was read, or for ever.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        assert!(pushed.is_ok(), "there are as many entries as permits, so one is free");
        key
    }

    /// Hands the queue to the kernel. What it does not take now stays queued: the futures that wait try again.
    fn submit(&mut self) -> io::Result<()> {
        while !self.uring.submission().is_empty() {
            match self.uring.submit() {
                Ok(taken) if taken > 0 => self.stalls = 0,
                Ok(_) => return self.stall(io::ErrorKind::WouldBlock.into()),
                Err(error) if is_transient(&error) || error.raw_os_error() == Some(libc::EBUSY) => {
                    return self.stall(error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn stall(&mut self, error: io::Error) -> io::Result<()> {
        self.stalls += 1;
        if self.stalls > STALLS_MAX { Err(error) } else { Ok(()) }
    }

    /// How many operations the kernel has: those that it did not take cannot hurt.
    fn in_kernel(&mut self) -> usize {
        self.slots.under_way() - self.uring.submission().len()
    }

    /// Waits on this thread until the kernel has none left, at most [`DROP_WAIT_MAX`]; whether it came to that.
    fn wait_idle(&mut self) -> bool {
        let deadline = Instant::now() + DROP_WAIT_MAX;
        loop {
            while let Some(completion) = self.uring.completion().next() {
                let key = usize::try_from(completion.user_data()).unwrap_or(usize::MAX);
                self.slots.complete(key, completion.result());
            }
            if self.in_kernel() == 0 {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let left = types::Timespec::from(left);
            let wait = types::SubmitArgs::new().timespec(&left);
            match self.uring.submitter().submit_with_args(1, &wait) {
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
        // The thread may be ending, its locals gone: then there is nothing to tidy.
        let _ = RINGS.try_with(|rings| rings.borrow_mut().retain(|(id, _)| *id != self.id));
        let state = self.state.get_mut();
        if !state.wait_idle() {
            tracing::warn!(
                operations = state.slots.under_way(),
                "operations outlived their ring, memory given up"
            );
            std::mem::forget(std::mem::take(&mut state.slots));
        }
    }
}

/// A submitted operation. Dropping it leaves the operation to the slab.
struct Completion {
    ring: Rc<Inner>,
    /// `None` once the result was taken.
    key: Option<usize>,
}

impl Future for Completion {
    type Output = io::Result<Finished>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(key) = self.key else { return Poll::Ready(Err(broken())) };
        // Most completions are there when the submission returns: no need to wait for the driver.
        self.ring.reap();
        let mut state = self.ring.state.borrow_mut();
        if let Some(finished) = state.slots.take(key, context.waker()) {
            drop(state);
            self.key = None;
            return Poll::Ready(Ok(finished));
        }
        if self.ring.broken.get() {
            return Poll::Ready(Err(broken()));
        }
        if !state.uring.submission().is_empty() {
            let submitted = state.submit();
            drop(state);
            if submitted.is_err() {
                self.ring.give_up();
            }
            // Nothing else would remind the kernel.
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.ring.state.borrow_mut().slots.abandon(key);
        }
    }
}

/// Reads completions whenever there are some, until the ring is gone.
async fn drive(descriptor: AsyncFd<OwnedFd>, id: u64) {
    loop {
        let Ok(mut ready) = descriptor.readable().await else { return };
        // Cleared before reading: what completes later makes it ready again.
        ready.clear_ready();
        let Some(ring) = find(id) else { return };
        ring.reap();
    }
}

fn find(id: u64) -> Option<Rc<Inner>> {
    RINGS.with_borrow(|rings| rings.iter().find(|ring| ring.0 == id).and_then(|ring| ring.1.upgrade()))
}

fn set_up() -> io::Result<IoUring> {
    let wanted = IoUring::builder().setup_coop_taskrun().setup_single_issuer().build(OPERATIONS_MAX);
    match wanted {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::new(OPERATIONS_MAX),
        other => other,
    }
}

fn complete_nop(uring: &mut IoUring) -> io::Result<()> {
    // SAFETY: a NOP points at nothing.
    let pushed = unsafe { uring.submission().push(&opcode::Nop::new().build()) };
    pushed.map_err(io::Error::other)?;
    uring.submit_and_wait(1)?;
    let completion = uring.completion().next().ok_or(io::ErrorKind::WouldBlock)?;
    if completion.result() < 0 {
        return Err(io::Error::from_raw_os_error(completion.result().wrapping_neg()));
    }
    Ok(())
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

fn broken() -> io::Error {
    io::Error::other("io_uring takes no operations any more")
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            " (a seccomp filter or the sysctl kernel.io_uring_disabled forbids it)"
        }
        Some(libc::ENOSYS) => " (the kernel has no io_uring, or a seccomp filter hides it)",
        Some(libc::ENOMEM) => " (the limit of locked memory, RLIMIT_MEMLOCK, may be too low)",
        Some(libc::EMFILE | libc::ENFILE) => " (too many open files)",
        _ => "",
    }
}
