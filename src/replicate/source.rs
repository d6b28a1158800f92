//! A registry that is copied from.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::error::CopyError;
use super::retry::Health;
use super::run::Run;
use crate::upstream::{Upstream, UpstreamConfigError, UpstreamOptions};

/// One registry; keeps its connections and tokens as long as it lives, so it is to be kept from run to run.
#[derive(Debug)]
pub struct Source {
    name: String,
    pub(super) upstream: Upstream,
    pub(super) health: Health,
    requests: Arc<AtomicU64>,
    /// It has no list of referrers, as far as this run knows.
    lacks_referrers: AtomicBool,
    /// It has given such a list once: that it has none of one manifest says nothing of the others.
    has_listed: AtomicBool,
}

impl Source {
    /// The registry that `options` lead to. `name` is for messages: as the operator wrote it. Contacts nobody.
    pub fn new(name: impl Into<String>, options: UpstreamOptions) -> Result<Self, UpstreamConfigError> {
        let (options, requests) = counted(options);
        let name = name.into();
        Ok(Self {
            health: Health::of(format!("source {name}")),
            name,
            upstream: Upstream::new(options)?,
            requests,
            lacks_referrers: AtomicBool::new(false),
            has_listed: AtomicBool::new(false),
        })
    }

    /// The name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Requests made so far.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// What was concluded about it in the last run counts no longer.
    pub(super) fn begin_run(&self) {
        self.health.restore();
        self.lacks_referrers.store(false, Ordering::Relaxed);
    }

    /// Whether it has a list of referrers, as far as is known.
    pub(super) fn may_list_referrers(&self) -> bool {
        !self.lacks_referrers.load(Ordering::Relaxed)
    }

    pub(super) fn lists_referrers(&self) {
        self.has_listed.store(true, Ordering::Relaxed);
    }

    /// It said that there is no such list.
    pub(super) fn lists_no_referrers(&self) {
        if !self.has_listed.load(Ordering::Relaxed) {
            self.lacks_referrers.store(true, Ordering::Relaxed);
        }
    }
}

/// Who gave a blob's bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Giver<'a> {
    #[default]
    Nobody,
    One(&'a Source),
    Several,
}

impl<'a> Giver<'a> {
    /// Those and these.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nobody, one) | (one, Self::Nobody) => one,
            (Self::One(first), Self::One(second)) if std::ptr::eq(first, second) => self,
            _ => Self::Several,
        }
    }

    /// The only one.
    pub(super) fn one(self) -> Option<&'a Source> {
        match self {
            Self::One(source) => Some(source),
            Self::Nobody | Self::Several => None,
        }
    }
}

/// Sources of the same thing, in the order in which they are asked.
pub(super) type Holders<'a> = Vec<&'a Source>;

impl<'a> Run<'a> {
    /// What the first of `holders` says that can say something, those that were given up coming last; with it who said it.
    /// The error is the last one's, but only if none says that it is not there.
    pub(super) async fn ask<T>(
        &self,
        what: &dyn std::fmt::Display,
        holders: &[&'a Source],
        mut question: impl AsyncFnMut(&'a Source) -> Result<T, CopyError>,
    ) -> Result<(T, &'a Source), CopyError> {
        let mut outcome = CopyError::Unfit(format!("{what}: no source has it"));
        for source in by_health(holders) {
            match self.retrying(what, &source.health, async || question(source).await).await {
                Ok(answer) => return Ok((answer, source)),
                Err(error) if error.is_stop() => return Err(error),
                Err(error) if outcome.is_absence() => tracing::debug!(%error, "nor from this source"),
                Err(error) => outcome = error,
            }
        }
        Err(outcome)
    }
}

/// Those that were given up, or want to be left alone for longer than anybody waits, come last.
pub(super) fn by_health<'a>(sources: &[&'a Source]) -> Vec<&'a Source> {
    let (fit, others): (Vec<&'a Source>, Vec<&'a Source>) =
        sources.iter().copied().partition(|source| source.health.is_fit());
    fit.into_iter().chain(others).collect()
}

/// The options with an observer that counts, before the one that is there.
pub(super) fn counted(mut options: UpstreamOptions) -> (UpstreamOptions, Arc<AtomicU64>) {
    let requests = Arc::new(AtomicU64::new(0));
    let (count, told) = (Arc::clone(&requests), options.observer.take());
    options.observer = Some(Arc::new(move |seen| {
        count.fetch_add(1, Ordering::Relaxed);
        if let Some(told) = &told {
            told(seen);
        }
    }));
    (options, requests)
}
