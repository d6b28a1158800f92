//! A timer that is set anew for every wait and hardly ever runs out: it is left where it is while it would fire early, and
//! armed again only when it does. So a wait that is short costs no change of the runtime's timers.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::time::Sleep;

/// One connection's timer.
#[derive(Default)]
pub(super) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Ready when `deadline` has passed. Wakes the task of `cx` by then, or earlier without need.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        loop {
            let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline.into())));
            if sleep.deadline() > deadline.into() {
                sleep.as_mut().reset(deadline.into());
            }
            ready!(sleep.as_mut().poll(cx));
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_deadline_may_move_both_ways() {
        let mut timer = Timer::default();
        let begin = Instant::now();
        let at = |milliseconds| begin + Duration::from_millis(milliseconds);
        for milliseconds in [60_000, 5, 15, 15, 10] {
            let mut first = true;
            poll_fn(|cx| {
                if milliseconds == 60_000 && std::mem::take(&mut first) {
                    assert!(timer.poll(cx, at(milliseconds)).is_pending());
                    return Poll::Ready(());
                }
                timer.poll(cx, at(milliseconds))
            })
            .await;
            assert!(milliseconds == 60_000 || Instant::now() >= at(milliseconds));
        }
    }
}
