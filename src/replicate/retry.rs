//! Trying again: how often, and after which pause.
//!
//! A failure that may pass is waited out with growing, scattered pauses, so that many who failed together do not come back
//! together. A server that says how long it wants to be left alone is left alone for so long by all that goes on in the run.
//!
//! A server that could not be reached to the last try is given up: until it answers somebody, everybody else tries once.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::error::CopyError;
use super::event::Event;
use super::run::Run;
use crate::upstream::UpstreamError;

/// The pause after the first failure; it doubles.
const BACKOFF: Duration = Duration::from_millis(500);
/// The longest pause of our own choice.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// The longest pause of a run that a server can ask for; if it asks for more, what needs it fails.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(5);

/// How a server is to be treated.
#[derive(Debug)]
pub(super) struct Health {
    /// Who it is, in messages.
    server: String,
    /// Until when it wants to be left alone.
    rests_until: Mutex<Option<Instant>>,
    is_given_up: AtomicBool,
}

impl Health {
    /// Of a server that nothing is known of.
    pub(super) fn of(server: String) -> Self {
        Self { server, rests_until: Mutex::default(), is_given_up: AtomicBool::new(false) }
    }

    /// Whether it is worth being asked before others.
    pub(super) fn is_fit(&self) -> bool {
        !self.is_given_up() && self.left() <= RETRY_AFTER_MAX
    }

    /// How long it is to be left alone.
    fn left(&self) -> Duration {
        let until = *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }

    /// Whether it could not be reached, and nobody has reached it since.
    pub(super) fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Relaxed)
    }

    /// It answered.
    pub(super) fn restore(&self) {
        self.is_given_up.store(false, Ordering::Relaxed);
    }

    fn give_up(&self, error: &CopyError) {
        use UpstreamError::{Broken, Connect, Timeout};
        if matches!(error.upstream(), Some(Connect { .. } | Timeout { .. } | Broken { .. })) {
            self.is_given_up.store(true, Ordering::Relaxed);
        }
    }

    fn rest(&self, until: Instant) {
        let mut known = self.rests_until.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some(known.map_or(until, |known| known.max(until)));
    }
}

/// Failures of one undertaking in a row.
#[derive(Debug, Default)]
pub(super) struct Tries(u32);

impl Tries {
    /// It went on in between: the count begins anew.
    pub(super) fn forget(&mut self) {
        self.0 = 0;
    }
}

impl Run<'_> {
    /// Does `work`, again after failures that may pass. `what` is for messages, `health` that of the server it asks.
    pub(super) async fn retrying<T>(
        &self,
        what: &dyn fmt::Display,
        health: &Health,
        mut work: impl AsyncFnMut() -> Result<T, CopyError>,
    ) -> Result<T, CopyError> {
        let mut tries = Tries::default();
        loop {
            self.rested(health).await?;
            match work().await {
                Ok(done) => {
                    health.restore();
                    return Ok(done);
                }
                Err(error) if error.is_retryable() => self.pause(what, health, error, &mut tries).await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until the server may be asked. If that takes too long, it fails at once, without a question.
    pub(super) async fn rested(&self, health: &Health) -> Result<(), CopyError> {
        let left = health.left();
        if left > RETRY_AFTER_MAX {
            return Err(CopyError::Resting { server: health.server.clone(), left });
        }
        if left.is_zero() { Ok(()) } else { self.sleep(Instant::now() + left).await }
    }

    /// Waits before the next try; the error, if there is to be none.
    pub(super) async fn pause(
        &self,
        what: &dyn fmt::Display,
        health: &Health,
        error: CopyError,
        tries: &mut Tries,
    ) -> Result<(), CopyError> {
        tries.0 += 1;
        let asked = error.upstream().and_then(UpstreamError::retry_after);
        if let Some(asked) = asked {
            health.rest(Instant::now() + asked);
        }
        if tries.0 > self.options.retries || health.is_given_up() {
            health.give_up(&error);
            return Err(error);
        }
        if self.stop.is_requested() || asked.is_some_and(|asked| asked > RETRY_AFTER_MAX) {
            return Err(error);
        }
        let wait = backoff(tries.0).max(asked.unwrap_or_default());
        let until = Instant::now() + wait;
        self.tally.count(|summary| summary.retries += 1);
        self.tell(Event::Retrying {
            what: what.to_string(),
            why: error.to_string(),
            attempt: tries.0,
            after_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        });
        self.sleep(until).await
    }

    /// Waits before an image is looked at again that the target did not take, which it did not say in a way that passes.
    pub(super) async fn look_again(
        &self,
        what: &dyn fmt::Display,
        why: String,
        attempt: u32,
    ) -> Result<(), CopyError> {
        let wait = backoff(attempt);
        self.tally.count(|summary| summary.retries += 1);
        let after_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        self.tell(Event::Retrying { what: what.to_string(), why, attempt, after_ms });
        self.sleep(Instant::now() + wait).await
    }

    async fn sleep(&self, until: Instant) -> Result<(), CopyError> {
        tokio::select! {
            () = sleep_until(until) => Ok(()),
            () = self.stop.requested() => Err(CopyError::Stopped),
        }
    }
}

/// Half of it fixed, half of it by chance.
fn backoff(tries: u32) -> Duration {
    let full = BACKOFF.saturating_mul(1 << tries.saturating_sub(1).min(16)).min(BACKOFF_MAX);
    full.mul_f64(fastrand::f64().midpoint(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_are_scattered_and_bounded() {
        for _ in 0..100 {
            let first = backoff(1);
            assert!(first >= BACKOFF / 2 && first <= BACKOFF, "{first:?}");
            let second = backoff(2);
            assert!(second >= BACKOFF && second <= BACKOFF * 2, "{second:?}");
            assert!(backoff(99) <= BACKOFF_MAX);
        }
        assert!((0..100).any(|_| backoff(5) != backoff(5)));
    }
}
