//! A body that goes out no faster than at a given rate.
//!
//! It does not hand out the next piece before it is due: no buffer, one timer per body that waits, and beside it a few
//! numbers. A piece is what the rate brings in [`STEP`], so a slow body wakes its thread that often; each is due when those
//! before it are paid for, so what a late timer costs is made up for, up to [`ARREARS_MAX`]: the rate holds over any longer
//! time, and a client that stood still does not get the rest in one go.

use std::future::Future;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_util::Stream;
use tokio::time::Sleep;

use crate::body::{Body, BodyError, Chunk, Region};

/// How often a piece goes out.
const STEP: Duration = Duration::from_millis(25);
/// How much of the time that a body was late it may make up for.
const ARREARS_MAX: Duration = Duration::from_millis(75);

/// `body`, at most `rate` bytes a second.
pub(super) fn limited(body: Body, rate: NonZeroU64) -> Body {
    let size = body.size();
    if size == Some(0) {
        return body;
    }
    Body::stream(Limited { body, rest: None, pace: Pace::new(rate), sleep: None }, size)
}

struct Limited {
    body: Body,
    /// What is left of the chunk that was taken last.
    rest: Option<Chunk>,
    pace: Pace,
    sleep: Option<Pin<Box<Sleep>>>,
}

/// When how much is due.
#[derive(Debug)]
struct Pace {
    rate: NonZeroU64,
    /// The most that goes out at once.
    piece: usize,
    /// When the next piece is due.
    due: Option<Instant>,
}

impl Pace {
    fn new(rate: NonZeroU64) -> Self {
        let piece = u128::from(rate.get()) * STEP.as_nanos() / Duration::from_secs(1).as_nanos();
        Self { rate, piece: usize::try_from(piece).unwrap_or(usize::MAX).max(1), due: None }
    }

    /// When the next piece may go out; `None`: now.
    fn wait(&mut self, now: Instant) -> Option<Instant> {
        let earliest = now.checked_sub(ARREARS_MAX).unwrap_or(now);
        let due = self.due.map_or(now, |due| due.max(earliest));
        self.due = Some(due);
        (due > now).then_some(due)
    }

    /// So many bytes went out.
    fn spend(&mut self, bytes: usize) {
        let nanoseconds = (bytes as u128 * 1_000_000_000).div_ceil(u128::from(self.rate.get()));
        let time = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        self.due = self.due.and_then(|due| due.checked_add(time));
    }
}

impl Stream for Limited {
    type Item = Result<Chunk, BodyError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            let chunk = match this.rest.take() {
                Some(chunk) => chunk,
                None => match ready!(this.body.poll_chunk(cx)) {
                    Some(Ok(chunk)) => chunk,
                    other => return Poll::Ready(other),
                },
            };
            let Some(due) = this.pace.wait(Instant::now()).filter(|_| !chunk.is_empty()) else {
                let (piece, rest) = split(chunk, this.pace.piece);
                this.rest = rest;
                this.pace.spend(piece.len());
                return Poll::Ready(Some(Ok(piece)));
            };
            this.rest = Some(chunk);
            let sleep = this.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due.into())));
            if sleep.deadline() != due.into() {
                sleep.as_mut().reset(due.into());
            }
            // When it fires, the clock is asked once more.
            ready!(sleep.as_mut().poll(cx));
        }
    }
}

/// The first `len` bytes of a chunk, and what follows.
fn split(chunk: Chunk, len: usize) -> (Chunk, Option<Chunk>) {
    if chunk.len() <= len {
        return (chunk, None);
    }
    match chunk {
        Chunk::Bytes(mut bytes) => {
            let first = bytes.split_to(len);
            (first.into(), Some(bytes.into()))
        }
        Chunk::Region(region) => {
            let rest = Region {
                file: region.file.clone(),
                offset: region.offset + len as u64,
                len: region.len - len,
                recent: region.recent,
            };
            (Region { len, ..region }.into(), Some(rest.into()))
        }
        trailers @ Chunk::Trailers(_) => (trailers, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(bytes: u64) -> NonZeroU64 {
        NonZeroU64::new(bytes).unwrap()
    }

    /// What goes out in `time` on a clock that fires `late` after each due time.
    fn sent(bytes_a_second: u64, time: Duration, late: Duration) -> u64 {
        let mut pace = Pace::new(rate(bytes_a_second));
        let begin = Instant::now();
        let (mut now, mut sent) = (begin, 0);
        while now < begin + time {
            if let Some(due) = pace.wait(now) {
                now = due + late;
            } else {
                sent += pace.piece as u64;
                pace.spend(pace.piece);
            }
        }
        sent
    }

    #[test]
    fn the_rate_holds_within_five_percent_over_two_seconds() {
        for bytes in [1, 7, 100, 10_000, 1_000_000, 100_000_000, 10_000_000_000] {
            for late in [0, 1, 10, 50] {
                let time = Duration::from_secs(2).max(Duration::from_secs(20 / bytes));
                let sent = sent(bytes, time, Duration::from_millis(late));
                let right = bytes * time.as_secs();
                assert!(
                    sent.abs_diff(right) <= right / 20 + 1,
                    "{bytes} bytes/s, late {late}: {sent} of {right}"
                );
            }
        }
    }

    #[test]
    fn who_stood_still_does_not_get_the_rest_at_once() {
        let mut pace = Pace::new(rate(1000));
        let begin = Instant::now();
        assert_eq!(pace.wait(begin), None);
        pace.spend(25);
        let later = begin + Duration::from_secs(100);
        let mut at_once = 0;
        while pace.wait(later).is_none() {
            at_once += 25;
            pace.spend(25);
        }
        assert!(at_once <= 100, "{at_once}");
    }

    #[tokio::test]
    async fn regions_and_bytes_are_cut_to_pieces_in_order() {
        let file = std::sync::Arc::new(tempfile::tempfile().unwrap());
        let mut body = limited(Body::file(file, 5, 1000), rate(10_000));
        let mut next = 5;
        while let Some(chunk) = std::future::poll_fn(|cx| body.poll_chunk(cx)).await {
            let Ok(Chunk::Region(region)) = chunk else { panic!("{chunk:?}") };
            assert_eq!((region.offset, region.len), (next, 250));
            next += 250;
        }
        assert_eq!(next, 1005);
        let mut body = limited(Body::bytes("0123456789"), rate(120));
        let mut got = Vec::new();
        while let Some(chunk) = std::future::poll_fn(|cx| body.poll_chunk(cx)).await {
            let Ok(Chunk::Bytes(bytes)) = chunk else { panic!("{chunk:?}") };
            got.push(bytes);
        }
        assert_eq!(got, ["012", "345", "678", "9"]);
    }
}
