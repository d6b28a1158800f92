//! What the two ends of one connection share: the transport below the HTTP library and the service above it.
//!
//! Everything of a connection runs in one task, so this is plain cells behind an `Rc`. No borrow is held across a call
//! into the library or a poll.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::task::Waker;
use std::time::Instant;

use super::outbox::Outbox;
use super::refusal::HeadError;
use super::switch::Switching;
use super::watchdog::Deadlines;

/// The state that a connection's transport, response bodies and driver share.
pub(super) struct Shared {
    /// Regions on their way through the library.
    pub(super) outbox: RefCell<Outbox>,
    /// One entry for each head that was handed to the library and not yet to the service, in order.
    heads: RefCell<VecDeque<Arrival>>,
    /// Heads handed to the library whose response is not over.
    in_flight: Cell<usize>,
    /// Responses under way, from the service's answer to the last byte.
    delivering: Cell<usize>,
    /// An answer is being given again by the transport ([`encore`](super::encore)): it counts as in flight and under way.
    encore: Cell<bool>,
    /// The library holds nothing that it has not written: all responses are over, and it flushed since.
    flushed: Cell<bool>,
    /// A response ended before its end: the peer must not take what it got for the whole.
    aborted: Cell<bool>,
    /// What is being waited for, and since when.
    pub(super) deadlines: Deadlines,
    /// Wakes the task when the last response is over, if the transport waits for that.
    idle_waker: Cell<Option<Waker>>,
    /// Set once the service answered that the connection changes its protocol.
    switching: Cell<Option<Switching>>,
    is_switching: Cell<bool>,
}

/// A head that was handed to the library.
pub(super) struct Arrival {
    /// When its first byte was there.
    pub(super) received: Instant,
    /// Set if the library was given a substitute for it.
    pub(super) refused: Option<HeadError>,
    /// Its bytes, if the answer is to be learnt.
    pub(super) bytes: Option<Box<[u8]>>,
    /// It has an Upgrade field, by another name: see [`head::mask_upgrade`](super::head::mask_upgrade).
    pub(super) upgrade: bool,
}

impl Arrival {
    /// A head that nobody announced.
    pub(super) fn now() -> Self {
        Self { received: Instant::now(), refused: None, bytes: None, upgrade: false }
    }
}

impl Shared {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            outbox: RefCell::new(Outbox::new()?),
            heads: RefCell::default(),
            in_flight: Cell::new(0),
            delivering: Cell::new(0),
            encore: Cell::new(false),
            flushed: Cell::new(true),
            aborted: Cell::new(false),
            deadlines: Deadlines::default(),
            idle_waker: Cell::new(None),
            switching: Cell::new(None),
            is_switching: Cell::new(false),
        })
    }

    /// A head is about to be handed to the library.
    pub(super) fn arrived(&self, arrival: Arrival) {
        self.heads.borrow_mut().push_back(arrival);
        self.in_flight.set(self.in_flight.get() + 1);
    }

    /// The head of the request that the library just made.
    pub(super) fn next_arrival(&self) -> Option<Arrival> {
        self.heads.borrow_mut().pop_front()
    }

    /// The service answered; followed by one call of [`response_over`](Self::response_over).
    pub(super) fn response_begins(&self) {
        self.delivering.set(self.delivering.get() + 1);
    }

    /// A response is over, for better or worse.
    pub(super) fn response_over(&self, completed: bool) {
        if !completed {
            self.abort();
        }
        self.delivering.set(self.delivering.get().saturating_sub(1));
        let left = self.in_flight.get().saturating_sub(1);
        self.in_flight.set(left);
        if left == 0
            && let Some(waker) = self.idle_waker.take()
        {
            waker.wake();
        }
    }

    /// The transport begins to give an answer again.
    pub(super) fn encore_begins(&self) {
        self.encore.set(true);
        self.in_flight.set(self.in_flight.get() + 1);
        self.response_begins();
    }

    /// The answer that was given again is over, for better or worse.
    pub(super) fn encore_over(&self, completed: bool) {
        self.encore.set(false);
        self.response_over(completed);
    }

    /// Whether an answer is being given again, of which the library knows nothing.
    pub(super) fn is_in_encore(&self) -> bool {
        self.encore.get()
    }

    /// Whether no request is under way between the transport and the end of its response.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.get() == 0
    }

    /// Wakes `waker` once when [`is_idle`](Self::is_idle) becomes true.
    pub(super) fn wake_when_idle(&self, waker: &Waker) {
        self.idle_waker.set(Some(waker.clone()));
    }

    /// What follows the response that begins now is another protocol's.
    pub(super) fn switch(&self, switching: Switching) {
        self.switching.set(Some(switching));
        self.is_switching.set(true);
    }

    /// Whether the library is to leave the socket as it is when it is done.
    pub(super) fn is_switching(&self) -> bool {
        self.is_switching.get()
    }

    /// What the connection becomes.
    pub(super) fn take_switching(&self) -> Option<Switching> {
        self.switching.take()
    }

    /// From now on the connection can only end in a reset.
    pub(super) fn abort(&self) {
        self.aborted.set(true);
    }

    pub(super) fn set_flushed(&self, flushed: bool) {
        self.flushed.set(flushed);
    }

    /// Whether the library has nothing left to write of the responses that are over.
    pub(super) fn is_flushed(&self) -> bool {
        self.flushed.get()
    }

    /// Whether the connection can only end in a reset.
    pub(super) fn is_aborted(&self) -> bool {
        self.aborted.get()
    }

    /// Whether closing now must look like a failure to the peer: an answer was cut short or is still under way.
    pub(super) fn must_reset(&self) -> bool {
        self.aborted.get() || self.delivering.get() > 0
    }
}
