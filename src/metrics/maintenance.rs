//! What is counted of the work in the background: see [`crate::maintain`].

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;

use super::seconds_since_epoch;

type Seconds = Gauge<f64, AtomicU64>;

/// The families of all registries.
#[derive(Clone, Debug, Default)]
pub(super) struct MaintenanceFamilies(Arc<Families>);

#[derive(Debug, Default)]
struct Families {
    stored: Family<TreeLabels, Gauge>,
    departing: Family<TreeLabels, Gauge>,
    evicted_bytes: Counter,
    evicted_blobs: Counter,
    runs: Family<RunLabels, Counter>,
    last_seconds: Family<JobLabels, Seconds>,
    last_success: Family<JobLabels, Seconds>,
    freed_bytes: Family<JobLabels, Counter>,
    removed: Family<RemovedLabels, Counter>,
    scrubbed: Family<RegistryLabels, Counter>,
    corrupt: Family<CorruptLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RegistryLabels {
    registry: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TreeLabels {
    registry: String,
    tree: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobLabels {
    registry: String,
    job: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RunLabels {
    registry: String,
    job: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RemovedLabels {
    registry: String,
    job: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CorruptLabels {
    registry: String,
    outcome: &'static str,
}

/// How a run of a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did all that it should.
    Done,
    /// It did not; the log says why.
    Failed,
    /// It was told to end.
    Stopped,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

/// What is counted of one registry's trees. Cloning is cheap and shares the counts.
#[derive(Clone, Debug)]
pub struct MaintenanceMetrics {
    registry: String,
    families: MaintenanceFamilies,
}

impl MaintenanceFamilies {
    pub(super) fn of(&self, registry: &str) -> MaintenanceMetrics {
        MaintenanceMetrics { registry: registry.to_owned(), families: self.clone() }
    }

    pub(super) fn register(&self, own: &mut Registry) {
        let families = &*self.0;
        own.register_with_unit(
            "stored",
            "Bytes of the blobs of a tree, with those that somebody still reads after they were evicted",
            Unit::Bytes,
            families.stored.clone(),
        );
        own.register_with_unit(
            "departing",
            "Bytes of evicted blobs that are free when the last who reads them closes them",
            Unit::Bytes,
            families.departing.clone(),
        );
        own.register_with_unit(
            "evicted",
            "Bytes that eviction freed",
            Unit::Bytes,
            families.evicted_bytes.clone(),
        );
        own.register("evicted_blobs", "Blobs that eviction removed", families.evicted_blobs.clone());
        let jobs = own.sub_registry_with_prefix("maintenance");
        jobs.register("runs", "Runs of jobs in the background, by outcome", families.runs.clone());
        jobs.register_with_unit(
            "last_run",
            "Time that a job's last run took",
            Unit::Seconds,
            families.last_seconds.clone(),
        );
        jobs.register_with_unit(
            "last_success_timestamp",
            "When a job was done last, since 1970",
            Unit::Seconds,
            families.last_success.clone(),
        );
        jobs.register_with_unit("freed", "Bytes that a job freed", Unit::Bytes, families.freed_bytes.clone());
        jobs.register("removed", "What a job removed, by kind", families.removed.clone());
        jobs.register_with_unit(
            "scrubbed",
            "Bytes that were read and hashed again",
            Unit::Bytes,
            families.scrubbed.clone(),
        );
        jobs.register(
            "corrupt_blobs",
            "Blobs that were not what their names say, found and then repaired or not",
            families.corrupt.clone(),
        );
    }
}

impl MaintenanceMetrics {
    /// A tree (`cache`) takes so many bytes, of which so many are free when somebody closes a file.
    pub fn stored(&self, tree: &'static str, bytes: u64, departing: u64) {
        let labels = TreeLabels { registry: self.registry.clone(), tree };
        let gauge = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.families().stored.get_or_create(&labels).set(gauge(bytes));
        self.families().departing.get_or_create(&labels).set(gauge(departing));
    }

    /// Eviction removed so many blobs, and so many bytes are free: of blobs that it removed now or before.
    pub fn evicted(&self, bytes: u64, blobs: u64) {
        self.families().evicted_bytes.inc_by(bytes);
        self.families().evicted_blobs.inc_by(blobs);
    }

    /// A run of a job ended after so long.
    pub fn ran(&self, job: &'static str, outcome: Outcome, took: Duration) {
        let registry = self.registry.clone();
        let labels = RunLabels { registry, job, outcome: outcome.as_str() };
        self.families().runs.get_or_create(&labels).inc();
        let labels = JobLabels { registry: labels.registry, job };
        self.families().last_seconds.get_or_create(&labels).set(took.as_secs_f64());
        if outcome == Outcome::Done {
            self.families().last_success.get_or_create(&labels).set(seconds_since_epoch());
        }
    }

    /// A job freed so many bytes.
    pub fn freed(&self, job: &'static str, bytes: u64) {
        let labels = JobLabels { registry: self.registry.clone(), job };
        self.families().freed_bytes.get_or_create(&labels).inc_by(bytes);
    }

    /// A job removed so many of a kind: `blob`, `manifest`, `tag`, `link`, `upload`.
    pub fn removed(&self, job: &'static str, kind: &'static str, count: u64) {
        let labels = RemovedLabels { registry: self.registry.clone(), job, kind };
        self.families().removed.get_or_create(&labels).inc_by(count);
    }

    /// So many bytes were read and hashed again.
    pub fn scrubbed(&self, bytes: u64) {
        let labels = RegistryLabels { registry: self.registry.clone() };
        self.families().scrubbed.get_or_create(&labels).inc_by(bytes);
    }

    /// Corrupt blobs were `found`, and then `repaired` or `left`.
    pub fn corrupt(&self, outcome: &'static str, blobs: u64) {
        let labels = CorruptLabels { registry: self.registry.clone(), outcome };
        self.families().corrupt.get_or_create(&labels).inc_by(blobs);
    }

    fn families(&self) -> &Families {
        &self.families.0
    }
}
