//! How fast a scrub may read.
//!
//! A token bucket without a clock of its own: what is read is paid for before it is read, in time that has passed. A pause
//! saves up a tenth of a second at most, so after any standstill the disk gets no burst to speak of.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// What a pause may save up.
const BURST: Duration = Duration::from_millis(100);

/// Bytes a second.
#[derive(Debug)]
pub(super) struct Pace {
    rate: NonZeroU64,
    /// From when on the next bytes may be read.
    free_at: Instant,
}

impl Pace {
    pub(super) fn new(rate: NonZeroU64, now: Instant) -> Self {
        Self { rate, free_at: now }
    }

    /// How long to wait at `now` before `bytes` are read.
    pub(super) fn take(&mut self, bytes: u64, now: Instant) -> Duration {
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let start = self.free_at.max(earliest);
        // What is read at once takes less than a day at any rate, so this overflows nothing.
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate.get());
        self.free_at = start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX >> 8));
        start.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_is_read_never_exceeds_the_rate_and_a_burst() {
        for rate in [1, 4096, 50 * MIB, 10_000 * MIB] {
            let begun = Instant::now();
            let mut pace = Pace::new(NonZeroU64::new(rate).unwrap(), begun);
            // Reading takes no time here: the clock moves by the waits alone.
            let (mut now, mut read, mut last) = (begun, 0_u64, 0);
            for step in 0..1000_u64 {
                let bytes = 1 + step * 1049 % MIB;
                now += pace.take(bytes, now);
                read += bytes;
                last = bytes;
            }
            let at_most = |time: Duration| time.as_nanos() * u128::from(rate) / 1_000_000_000;
            let before_last = u128::from(read - last);
            // Each wait is rounded to a nanosecond.
            let rounding = u128::from(rate) / 1_000_000 + 1000;
            assert!(before_last <= at_most(now - begun + BURST) + rounding, "{rate}: {before_last}");
            assert!(before_last + rounding >= at_most(now - begun), "{rate}: {before_last} is too slow");
        }
    }

    #[test]
    fn a_standstill_saves_up_next_to_nothing() {
        let begun = Instant::now();
        let mut pace = Pace::new(NonZeroU64::new(10 * MIB).unwrap(), begun);
        assert_eq!(pace.take(MIB, begun), Duration::ZERO);
        assert_eq!(pace.take(MIB, begun), Duration::from_millis(100));
        let later = begun + Duration::from_hours(1);
        assert_eq!(pace.take(MIB, later), Duration::ZERO, "the tenth of a second that was saved");
        assert_eq!(pace.take(MIB, later), Duration::ZERO, "and this one is paid by the next");
        assert_eq!(pace.take(MIB, later), Duration::from_millis(100));
    }
}
