//! A family of counters whose label sets are looked up once per thread.
//!
//! `Family::get_or_create` hashes the labels and takes a lock that all workers share. On the path of a hit that is a
//! noticeable part of the user-space work, so each thread keeps the counters that it has met in a short list. The
//! counters in it are the family's own: nothing has to be added up later, and a thread that ends loses nothing.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::{CacheLabels, RequestLabels};

/// Counters that one thread keeps; beyond it the family's own map serves. A worker meets a dozen.
const KEPT_MAX: usize = 128;

thread_local! {
    static KEPT: RefCell<Vec<(Key, Counter)>> = const { RefCell::new(Vec::new()) };
}

/// A label set of a family that is counted for each request.
pub(super) trait HotLabels: Clone + std::hash::Hash + Eq {
    /// The labels in the form in which the threads' lists hold them.
    fn key(&self) -> (&'static str, u16, &'static str);
}

#[derive(Debug)]
pub(super) struct Resolved<L> {
    family: Family<L, Counter>,
    /// Tells the families of several [`super::Metrics`] apart in the threads' lists; never used twice.
    id: u64,
}

#[derive(PartialEq, Eq)]
struct Key {
    family: u64,
    labels: (&'static str, u16, &'static str),
}

impl<L: HotLabels> Resolved<L> {
    pub(super) fn new(family: Family<L, Counter>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { family, id: NEXT.fetch_add(1, Ordering::Relaxed) }
    }

    /// Adds to the counter of these labels.
    pub(super) fn add(&self, labels: &L, count: u64) {
        let key = Key { family: self.id, labels: labels.key() };
        KEPT.with_borrow_mut(|kept| {
            if let Some((_, counter)) = kept.iter().find(|(other, _)| *other == key) {
                counter.inc_by(count);
                return;
            }
            let counter = self.family.get_or_create_owned(labels);
            counter.inc_by(count);
            if kept.len() < KEPT_MAX {
                kept.push((key, counter));
            }
        });
    }
}

impl HotLabels for RequestLabels {
    fn key(&self) -> (&'static str, u16, &'static str) {
        (self.route, self.status, self.cache)
    }
}

impl HotLabels for CacheLabels {
    fn key(&self) -> (&'static str, u16, &'static str) {
        (self.cache, 0, "")
    }
}
