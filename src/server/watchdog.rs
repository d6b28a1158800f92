//! The clock of a connection: every wait for the peer has a bound.
//!
//! One timer per connection, armed lazily. What is waited for is noted as a point in time in a cell, which costs a clock
//! reading; the timer is touched only when it fires or when a deadline comes to lie before it. A connection that answers
//! requests as fast as it can arms it about once per timeout.

use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::task::coop::unconstrained;
use tokio::time::Sleep;

/// How long each kind of wait may last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// For a head, from its first byte.
    pub(super) head: Duration,
    /// For the first byte of a head, from the end of the response before it.
    pub(super) idle: Duration,
    /// For one more byte to be read of a body, or to be taken of a response.
    pub(super) stall: Duration,
    /// For the peer to close, after our last byte.
    pub(super) linger: Duration,
}

/// A wait that lasted too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expired {
    Idle,
    Head,
    Body,
    Write,
    Linger,
}

/// What the transport waits for on its reading side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Reading {
    /// Nothing: the library did not ask, or more is on its way.
    #[default]
    Nothing,
    /// The first byte of a head.
    NextHead,
    /// The rest of a head whose first byte came at this time.
    Head(Instant),
    /// More of a body, since this time.
    Body(Instant),
    /// The peer's end, since our last byte went out at this time.
    End(Instant),
}

/// What is being waited for, and since when.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    reading: Cell<Reading>,
    /// Since when the socket has taken nothing, though there is something to send.
    writing: Cell<Option<Instant>>,
    /// Since when there has been no request.
    idle: Cell<Option<Instant>>,
    /// Set by the driver, taken by whoever acts on it.
    expired: Cell<Option<Expired>>,
}

impl Deadlines {
    pub(super) fn reading(&self) -> Reading {
        self.reading.get()
    }

    pub(super) fn set_reading(&self, reading: Reading) {
        self.reading.set(reading);
    }

    /// Whether a head has begun and is not whole.
    pub(super) fn is_in_head(&self) -> bool {
        matches!(self.reading.get(), Reading::Head(_))
    }

    /// The socket takes nothing; counts from the first call after the last [`wrote`](Self::wrote).
    pub(super) fn write_blocked(&self) {
        if self.writing.get().is_none() {
            self.writing.set(Some(Instant::now()));
        }
    }

    /// The socket took something.
    pub(super) fn wrote(&self) {
        self.writing.set(None);
    }

    /// Since when there has been no request, if there is none.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        self.idle.get()
    }

    /// Tells whether there is a request under way, after every poll.
    pub(super) fn set_idle(&self, idle: bool) {
        if !idle || self.reading.get() != Reading::NextHead {
            self.idle.set(None);
        } else if self.idle.get().is_none() {
            self.idle.set(Some(Instant::now()));
        }
    }

    /// The next deadline, and what it is for.
    pub(super) fn next(&self, timeouts: &Timeouts) -> Option<(Instant, Expired)> {
        // A timeout too long for the clock to reach is none.
        let after = |since: Instant, timeout, expired| Some((since.checked_add(timeout)?, expired));
        let reading = match self.reading.get() {
            Reading::Nothing | Reading::NextHead => None,
            Reading::Head(since) => after(since, timeouts.head, Expired::Head),
            Reading::Body(since) => after(since, timeouts.stall, Expired::Body),
            Reading::End(since) => after(since, timeouts.linger, Expired::Linger),
        };
        let idle = self.idle.get().and_then(|since| after(since, timeouts.idle, Expired::Idle));
        let writing = self.writing.get().and_then(|since| after(since, timeouts.stall, Expired::Write));
        [reading, idle, writing].into_iter().flatten().min_by_key(|(deadline, _)| *deadline)
    }

    /// Announces that a wait is over; the transport acts on it when it is next polled.
    pub(super) fn expire(&self, expired: Expired) {
        self.expired.set(Some(expired));
    }

    /// Whether the announcement is still to be acted on.
    pub(super) fn is_expiry_pending(&self) -> bool {
        self.expired.get().is_some()
    }

    /// Takes the announcement if it is one that the caller acts on.
    pub(super) fn take_expired(&self, acts_on: impl FnOnce(Expired) -> bool) -> Option<Expired> {
        let expired = self.expired.get().filter(|expired| acts_on(*expired));
        if expired.is_some() {
            self.expired.set(None);
        }
        expired
    }
}

/// The timer.
pub(super) struct Watchdog {
    sleep: Pin<Box<Sleep>>,
    /// When `sleep` fires; `None` before it was first armed.
    armed: Option<Instant>,
}

impl Watchdog {
    pub(super) fn new() -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(Duration::ZERO)), armed: None }
    }

    /// Ready when `deadline` has passed. Wakes the task of `cx` by then, or earlier without need: a deadline that moved
    /// away leaves the timer where it is. The same task must poll it every time.
    pub(super) fn poll(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let runs = self.armed.is_some() && !self.sleep.is_elapsed();
            if runs && self.armed.is_some_and(|armed| armed <= deadline) {
                return Poll::Pending;
            }
            if !runs && self.armed.is_some() && Instant::now() >= deadline {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(deadline.into());
            self.armed = Some(deadline);
            // Unconstrained, because a timer that was not polled for lack of budget would not know whom to wake.
            if pin!(unconstrained(self.sleep.as_mut())).poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        head: Duration::from_secs(1),
        idle: Duration::from_secs(2),
        stall: Duration::from_secs(3),
        linger: Duration::from_secs(4),
    };

    #[test]
    fn the_nearest_deadline_counts() {
        let deadlines = Deadlines::default();
        assert_eq!(deadlines.next(&TIMEOUTS), None);
        let now = Instant::now();
        deadlines.set_reading(Reading::Body(now));
        assert_eq!(deadlines.next(&TIMEOUTS), Some((now + TIMEOUTS.stall, Expired::Body)));
        deadlines.write_blocked();
        deadlines.set_reading(Reading::Head(now));
        assert_eq!(deadlines.next(&TIMEOUTS), Some((now + TIMEOUTS.head, Expired::Head)));
        deadlines.set_reading(Reading::Nothing);
        assert!(matches!(deadlines.next(&TIMEOUTS), Some((_, Expired::Write))));
        deadlines.wrote();
        assert_eq!(deadlines.next(&TIMEOUTS), None);
    }

    #[test]
    fn a_blocked_write_counts_from_its_beginning() {
        let deadlines = Deadlines::default();
        deadlines.write_blocked();
        let first = deadlines.next(&TIMEOUTS);
        deadlines.write_blocked();
        assert_eq!(deadlines.next(&TIMEOUTS), first);
    }

    #[test]
    fn only_a_connection_that_waits_for_a_head_is_idle() {
        let deadlines = Deadlines::default();
        deadlines.set_idle(true);
        assert_eq!(deadlines.next(&TIMEOUTS), None);
        deadlines.set_reading(Reading::NextHead);
        deadlines.set_idle(false);
        assert_eq!(deadlines.next(&TIMEOUTS), None);
        deadlines.set_idle(true);
        assert!(matches!(deadlines.next(&TIMEOUTS), Some((_, Expired::Idle))));
    }

    #[test]
    fn an_expiry_is_taken_once_and_only_by_whom_it_concerns() {
        let deadlines = Deadlines::default();
        deadlines.expire(Expired::Write);
        assert_eq!(deadlines.take_expired(|expired| expired == Expired::Head), None);
        assert!(deadlines.is_expiry_pending());
        assert_eq!(deadlines.take_expired(|expired| expired == Expired::Write), Some(Expired::Write));
        assert!(!deadlines.is_expiry_pending());
    }

    #[test]
    fn the_timer_follows_a_deadline_that_moves() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut watchdog = Watchdog::new();
            let begin = Instant::now();
            let far = begin + Duration::from_hours(1);
            let near = begin + Duration::from_millis(20);
            let mut polls = 0;
            poll_fn(|cx| {
                polls += 1;
                // Far away at first, then suddenly near, then a bit further.
                let deadline = match polls {
                    1 => far,
                    2 => near,
                    _ => near + Duration::from_millis(20),
                };
                let polled = watchdog.poll(deadline, cx);
                if polls == 1 {
                    cx.waker().wake_by_ref();
                }
                polled
            })
            .await;
            assert!(begin.elapsed() >= Duration::from_millis(40), "ready before its deadline");
            assert!(polls >= 3, "woken {polls} times");
        });
    }
}
