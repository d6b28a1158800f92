//! What replications count: see [`crate::replicate`].

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};

/// The families of all replications.
#[derive(Debug, Default)]
pub(super) struct ReplicateFamilies {
    runs: Family<OutcomeLabels, Counter>,
    images: Family<OutcomeLabels, Counter>,
    moved: Family<Labels, Counter>,
    failures: Family<Labels, Counter>,
    last_run: Family<Labels, Gauge>,
    complete: Lag,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    replicate: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    replicate: String,
    outcome: &'static str,
}

/// The counts of one replication. A clone shares them.
#[derive(Clone, Debug)]
pub struct ReplicateMetrics {
    name: String,
    runs: Family<OutcomeLabels, Counter>,
    images: Family<OutcomeLabels, Counter>,
    moved: Counter,
    failures: Counter,
    last_run: Gauge,
    complete: Lag,
}

impl ReplicateFamilies {
    pub(super) fn register(&self, own: &mut Registry) {
        own.register(
            "replicate_runs",
            "Runs of replications that ended, by whether the target then had everything",
            self.runs.clone(),
        );
        own.register(
            "replicate_images",
            "Images that replications looked at, by what became of them",
            self.images.clone(),
        );
        own.register_with_unit(
            "replicate_copied",
            "Bytes of blobs that replications moved",
            Unit::Bytes,
            self.moved.clone(),
        );
        own.register(
            "replicate_failures",
            "What replications gave up: images, repositories, sources",
            self.failures.clone(),
        );
        own.register_with_unit(
            "replicate_last_run_timestamp",
            "When a replication's last run ended, since 1970",
            Unit::Seconds,
            self.last_run.clone(),
        );
        own.register_collector(Box::new(self.complete.clone()));
    }

    pub(super) fn of(&self, name: &str) -> ReplicateMetrics {
        let labels = Labels { replicate: name.to_owned() };
        self.complete.begin(name);
        ReplicateMetrics {
            name: name.to_owned(),
            runs: self.runs.clone(),
            images: self.images.clone(),
            moved: self.moved.get_or_create_owned(&labels),
            failures: self.failures.get_or_create_owned(&labels),
            last_run: self.last_run.get_or_create_owned(&labels),
            complete: self.complete.clone(),
        }
    }
}

impl ReplicateMetrics {
    /// `bytes` of blobs arrived.
    pub fn moved(&self, bytes: u64) {
        self.moved.inc_by(bytes);
    }

    /// What became of an image: `copied`, `updated`, `present`, `deleted`.
    pub fn image(&self, outcome: &'static str) {
        self.images.get_or_create(&self.outcome(outcome)).inc();
    }

    /// Something was given up.
    pub fn failed(&self) {
        self.failures.inc();
    }

    /// A run ended; `is_complete`: the target then had everything.
    pub fn run_ended(&self, is_complete: bool) {
        let outcome = if is_complete { "complete" } else { "incomplete" };
        self.runs.get_or_create(&self.outcome(outcome)).inc();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.last_run.set(i64::try_from(now).unwrap_or(i64::MAX));
        if is_complete {
            self.complete.succeeded(&self.name);
        }
    }

    fn outcome(&self, outcome: &'static str) -> OutcomeLabels {
        OutcomeLabels { replicate: self.name.clone(), outcome }
    }
}

/// Since when each replication's target may lack something: the end of its last complete run, or its start. The time that
/// has passed since is reckoned when it is asked for.
#[derive(Clone, Debug, Default)]
struct Lag(Arc<Mutex<Vec<(String, Instant)>>>);

impl Lag {
    fn begin(&self, name: &str) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.iter().any(|(other, _)| other == name) {
            known.push((name.to_owned(), Instant::now()));
        }
    }

    fn succeeded(&self, name: &str) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, at)) = known.iter_mut().find(|(other, _)| other == name) {
            *at = Instant::now();
        }
    }

    /// Forgets those that are no more, so that nobody is told of a growing lag of theirs.
    fn keep(&self, names: &[&str]) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(name, _)| names.contains(&name.as_str()));
    }
}

impl ReplicateFamilies {
    /// See [`Metrics::keep_replications`](super::Metrics::keep_replications).
    pub(super) fn keep(&self, names: &[&str]) {
        self.complete.keep(names);
    }
}

impl Collector for Lag {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if known.is_empty() {
            return Ok(());
        }
        let help = "Time since a replication's last complete run, or since its start if there was none";
        let mut family =
            encoder.encode_descriptor("replicate_lag", help, Some(&Unit::Seconds), MetricType::Gauge)?;
        for (replicate, since) in known {
            let gauge = ConstGauge::new(since.elapsed().as_secs_f64());
            gauge.encode(family.encode_family(&Labels { replicate })?)?;
        }
        Ok(())
    }
}
