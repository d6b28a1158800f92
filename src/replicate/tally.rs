//! What a run has done so far: told as it happens, counted for the summary.

use std::cell::RefCell;
use std::fmt;

use super::event::{Event, FAILURES_MAX, Failure, Summary};
use super::run::Run;

#[derive(Debug, Default)]
pub(super) struct Tally(RefCell<Summary>);

impl Tally {
    /// Begins with what failed before.
    pub(super) fn new(dry_run: bool, failures: &[Failure]) -> Self {
        let failures_total = failures.len() as u64;
        let failures = failures.iter().take(FAILURES_MAX).cloned().collect();
        Self(RefCell::new(Summary { dry_run, failures_total, failures, ..Summary::default() }))
    }

    pub(super) fn has_failures(&self) -> bool {
        self.0.borrow().failures_total > 0
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut Summary)) {
        change(&mut self.0.borrow_mut());
    }

    pub(super) fn into_summary(self) -> Summary {
        self.0.into_inner()
    }
}

impl Run<'_> {
    pub(super) fn tell(&self, event: Event) {
        (self.events)(event);
    }

    /// Something was given up.
    pub(super) fn failed(&self, what: &dyn fmt::Display, why: &dyn fmt::Display) {
        let failure = Failure { what: what.to_string(), why: why.to_string() };
        self.tally.count(|summary| {
            summary.failures_total += 1;
            if summary.failures.len() < FAILURES_MAX {
                summary.failures.push(failure.clone());
            }
        });
        self.tell(Event::Failed(failure));
    }
}
