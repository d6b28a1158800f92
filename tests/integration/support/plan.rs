//! How an answer of the origin goes wrong, and the gates by which a test holds one back.

use std::sync::{Arc, Condvar, Mutex};

use super::PATIENCE;

/// How one answer deviates from the right one. Offsets are those of the blob, not of the answer.
#[derive(Clone, Default)]
pub(crate) struct Plan {
    pub(super) status: Option<u16>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) ignore_range: bool,
    pub(super) framing: Framing,
    pub(super) body: Option<Arc<Vec<u8>>>,
    pub(super) flip: Option<u64>,
    pub(super) events: Vec<(u64, Event)>,
    pub(super) rate: Option<u64>,
    pub(super) delay: Option<Gate>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Framing {
    #[default]
    Honest,
    /// A Content-Length that is wrong; the body is what it is.
    Claim(u64),
    Chunked,
    UntilClose,
}

#[derive(Clone)]
pub(super) enum Event {
    Cut,
    Reset,
    Wait(Gate),
}

impl Plan {
    /// As it should be.
    pub(crate) fn healthy() -> Self {
        Self::default()
    }

    /// An error status with a small text body.
    pub(crate) fn status(status: u16) -> Self {
        Self { status: Some(status), ..Self::default() }
    }

    /// 307 to `location`.
    pub(crate) fn redirect(location: &str) -> Self {
        Self::status(307).header("Location", location)
    }

    /// Closes the connection in order before the byte at `offset`.
    pub(crate) fn cut(offset: u64) -> Self {
        Self::default().event(offset, Event::Cut)
    }

    /// Resets the connection before the byte at `offset`.
    pub(crate) fn reset(offset: u64) -> Self {
        Self::default().event(offset, Event::Reset)
    }

    /// Sends nothing from `offset` on until `gate` opens.
    pub(crate) fn stall(offset: u64, gate: &Gate) -> Self {
        Self::default().gate(offset, gate)
    }

    /// Sends no head until `gate` opens.
    pub(crate) fn delayed(gate: &Gate) -> Self {
        Self::default().delay(gate)
    }

    /// As [`Plan::delayed`], for this plan.
    pub(crate) fn delay(self, gate: &Gate) -> Self {
        Self { delay: Some(gate.clone()), ..self }
    }

    /// The byte at `offset` is not the blob's.
    pub(crate) fn corrupt(offset: u64) -> Self {
        Self { flip: Some(offset), ..Self::default() }
    }

    /// Other content under the same path.
    pub(crate) fn instead(body: Vec<u8>) -> Self {
        Self { body: Some(Arc::new(body)), ..Self::default() }
    }

    /// Answers a Range with 200 and everything.
    pub(crate) fn ignoring_range() -> Self {
        Self { ignore_range: true, ..Self::default() }
    }

    pub(crate) fn gate(self, offset: u64, gate: &Gate) -> Self {
        self.event(offset, Event::Wait(gate.clone()))
    }

    /// Adds a header, or replaces one of those that the answer has of itself.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn claim_length(self, length: u64) -> Self {
        Self { framing: Framing::Claim(length), ..self }
    }

    pub(crate) fn chunked(self) -> Self {
        Self { framing: Framing::Chunked, ..self }
    }

    pub(crate) fn until_close(self) -> Self {
        Self { framing: Framing::UntilClose, ..self }
    }

    /// At most `rate` bytes a second.
    pub(crate) fn rate(self, rate: u64) -> Self {
        Self { rate: Some(rate), ..self }
    }

    pub(super) fn gates(&self) -> Vec<Gate> {
        let waits = self.events.iter().filter_map(|(_, event)| match event {
            Event::Wait(gate) => Some(gate.clone()),
            Event::Cut | Event::Reset => None,
        });
        self.delay.iter().cloned().chain(waits).collect()
    }

    fn event(mut self, offset: u64, event: Event) -> Self {
        self.events.push((offset, event));
        self.events.sort_by_key(|(offset, _)| *offset);
        self
    }
}

/// Something that an answer waits for until the test opens it.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Default)]
struct GateState {
    open: bool,
    reached: usize,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn open(&self) {
        self.0.0.lock().expect("not poisoned").open = true;
        self.0.1.notify_all();
    }

    /// Waits until an answer stands at the gate.
    #[track_caller]
    pub(crate) fn wait_reached(&self) {
        let state = self.0.0.lock().expect("not poisoned");
        let (state, _) =
            self.0.1.wait_timeout_while(state, PATIENCE, |state| state.reached == 0).expect("not poisoned");
        assert!(state.reached > 0, "the origin was never asked for what the gate is about");
    }

    pub(crate) fn pass(&self) {
        let mut state = self.0.0.lock().expect("not poisoned");
        state.reached += 1;
        self.0.1.notify_all();
        let _ = self.0.1.wait_timeout_while(state, PATIENCE * 2, |state| !state.open);
    }
}
