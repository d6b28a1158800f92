//! How a worker tells its connections to come to an end.

use std::cell::{Cell, RefCell};
use std::task::Waker;

/// One connection's ear for the drain. Costs a request nothing: the worker calls, nobody polls.
#[derive(Debug, Default)]
pub(super) struct Control {
    draining: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Control {
    /// Asks the connection to close: at once if it is idle, else after the response under way.
    pub(super) fn drain(&self) {
        self.draining.set(true);
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Called by the connection whenever it is polled.
    pub(super) fn set_waker(&self, waker: &Waker) {
        let mut current = self.waker.borrow_mut();
        if !current.as_ref().is_some_and(|current| current.will_wake(waker)) {
            *current = Some(waker.clone());
        }
    }
}
