//! Counters, gauges and histograms, in the `OpenMetrics` text format.
//!
//! One [`Metrics`] per process, cloned into every worker; all methods may be called from any thread, never block and
//! never fail. What a hit calls for each request ([`Metrics::request`], [`Metrics::served`]) resolves its labels once
//! per thread and is one atomic addition after that; the rest looks its labels up in a map. Labels come from short
//! fixed lists and from the names of configured registries, fronts and upstreams, never from clients: the number of series has a bound.
//! Values are lost when the process ends, as Prometheus expects.

mod accel;
mod maintenance;
mod process;
mod replicate;
mod resolved;

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use self::accel::AccelFamilies;
pub use self::accel::AccelMetrics;
use self::maintenance::MaintenanceFamilies;
pub use self::maintenance::{MaintenanceMetrics, Outcome};
use self::process::Process;
use self::replicate::ReplicateFamilies;
pub use self::replicate::ReplicateMetrics;
use self::resolved::Resolved;

/// The `Content-Type` of [`Metrics::encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of `spliceway_upstream_seconds`: from a registry in the same room to one that is about to time out.
const UPSTREAM_SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Everything that is counted. Cloning is cheap and shares the counts.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Families>);

/// The families by name; what each counts is said where it is registered.
#[derive(Debug)]
struct Families {
    registry: Registry,
    requests: Resolved<RequestLabels>,
    served: Resolved<CacheLabels>,
    fetched: Family<UpstreamLabels, Counter>,
    pushed: Counter,
    fills_in_flight: Gauge,
    fills: Family<OutcomeLabels, Counter>,
    fill_failures: Family<ReasonLabels, Counter>,
    upstream_requests: Family<UpstreamRequestLabels, Counter>,
    upstream_seconds: Family<UpstreamOperationLabels, Histogram, fn() -> Histogram>,
    connections_open: Gauge,
    maintenance: MaintenanceFamilies,
    uncached: Family<ReasonLabels, Counter>,
    stale_served: Counter,
    heads_refused: Family<ReasonLabels, Counter>,
    stalled_connections: Counter,
    unmatched_regions: Counter,
    accel: AccelFamilies,
    replicate: ReplicateFamilies,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    status: u16,
    cache: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheLabels {
    cache: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabels {
    upstream: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamOperationLabels {
    upstream: String,
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamRequestLabels {
    upstream: String,
    operation: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

impl Metrics {
    /// All counts at zero; the process's start time is now.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process { started: seconds_since_epoch() }));
        let families = Families::register(registry);
        Self(Arc::new(families))
    }

    /// A request was answered: its route, its status, and where the answer came from (`hit`, `miss`, …, `-`).
    pub fn request(&self, route: &'static str, status: u16, cache: &'static str) {
        self.0.requests.add(&RequestLabels { route, status, cache }, 1);
    }

    /// `bytes` of a body reached a client's socket.
    pub fn served(&self, cache: &'static str, bytes: u64) {
        self.0.served.add(&CacheLabels { cache }, bytes);
    }

    /// `bytes` of a body came from an upstream.
    pub fn fetched(&self, upstream: &str, bytes: u64) {
        let labels = UpstreamLabels { upstream: upstream.to_owned() };
        self.0.fetched.get_or_create(&labels).inc_by(bytes);
    }

    /// `bytes` of a body came from a client that pushes.
    pub fn pushed(&self, bytes: u64) {
        self.0.pushed.inc_by(bytes);
    }

    /// A fill began; [`Metrics::fill_ended`] must follow.
    pub fn fill_started(&self) {
        self.0.fills_in_flight.inc();
    }

    /// A fill that had begun ended, and how: `verified` (and published) or `failed`.
    pub fn fill_ended(&self, outcome: &'static str) {
        self.0.fills_in_flight.dec();
        self.0.fills.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// Why a fill failed, such as `digest`, `upstream`, `disk`.
    pub fn fill_failed(&self, reason: &'static str) {
        self.0.fill_failures.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// A request to an upstream ended: what was asked (`manifest`, `blob`, `token`, …), how it ended (`ok`, `not_found`,
    /// `timeout`, …), and how long its head took.
    pub fn upstream_request(
        &self,
        upstream: &str,
        operation: &'static str,
        outcome: &'static str,
        seconds: f64,
    ) {
        let labels = UpstreamRequestLabels { upstream: upstream.to_owned(), operation, outcome };
        self.0.upstream_requests.get_or_create(&labels).inc();
        let labels = UpstreamOperationLabels { upstream: labels.upstream, operation };
        self.0.upstream_seconds.get_or_create(&labels).observe(seconds);
    }

    /// So many clients are connected now.
    pub fn set_connections_open(&self, connections: usize) {
        self.0.connections_open.set(i64::try_from(connections).unwrap_or(i64::MAX));
    }

    /// `bytes` were served straight from an upstream and not kept, and why: `disk_full`, `far_range`.
    pub fn uncached_bytes(&self, reason: &'static str, bytes: u64) {
        self.0.uncached.get_or_create(&ReasonLabels { reason }).inc_by(bytes);
    }

    /// A tag was served past its time to live, because its upstream failed.
    pub fn stale_served(&self) {
        self.0.stale_served.inc();
    }

    /// The head of a request was refused before anything read it, and why.
    pub fn head_refused(&self, reason: &'static str) {
        self.0.heads_refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// So many connections were cut since the process started because the client neither took nor sent what was due.
    pub fn set_stalled_connections(&self, count: u64) {
        self.0.stalled_connections.inner().store(count, Ordering::Relaxed);
    }

    /// So often since the process started the transport met a slice that belongs to no region: each time a bug.
    pub fn set_unmatched_regions(&self, count: u64) {
        self.0.unmatched_regions.inner().store(count, Ordering::Relaxed);
    }

    /// What is counted of the work in the background for the registry of this name.
    pub fn maintenance(&self, registry: &str) -> MaintenanceMetrics {
        self.0.maintenance.of(registry)
    }

    /// What is counted of the front of this name.
    pub fn accel(&self, front: &str) -> AccelMetrics {
        self.0.accel.of(front)
    }

    /// What is counted of the replication of this name.
    pub fn replicate(&self, name: &str) -> ReplicateMetrics {
        self.0.replicate.of(name)
    }

    /// There are no replications but these: the others' lag is not shown any more.
    pub fn keep_replications(&self, names: &[&str]) {
        self.0.replicate.keep(names);
    }

    /// Everything as text, of type [`CONTENT_TYPE`]. Reads a few files of `/proc`, which takes microseconds.
    pub fn encode(&self) -> String {
        let mut text = String::with_capacity(16 << 10);
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.0.registry) {
            // Writing to a String cannot fail; a collector that does would leave half a line behind.
            text.clear();
            let _ = write!(text, "# {error}\n# EOF\n");
        }
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Families {
    fn register(mut registry: Registry) -> Self {
        let requests = Family::default();
        let served = Family::default();
        let mut families = Self {
            registry: Registry::default(),
            requests: Resolved::new(requests.clone()),
            served: Resolved::new(served.clone()),
            fetched: Family::default(),
            pushed: Counter::default(),
            fills_in_flight: Gauge::default(),
            fills: Family::default(),
            fill_failures: Family::default(),
            upstream_requests: Family::default(),
            upstream_seconds: Family::new_with_constructor(|| Histogram::new(UPSTREAM_SECONDS)),
            connections_open: Gauge::default(),
            maintenance: MaintenanceFamilies::default(),
            uncached: Family::default(),
            stale_served: Counter::default(),
            heads_refused: Family::default(),
            stalled_connections: Counter::default(),
            unmatched_regions: Counter::default(),
            accel: AccelFamilies::default(),
            replicate: ReplicateFamilies::default(),
        };
        let own = registry.sub_registry_with_prefix("spliceway");
        own.register("build", "The running version", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        own.register(
            "requests",
            "Requests answered, by route, status and where the answer came from",
            requests,
        );
        own.register_with_unit(
            "served",
            "Bytes of bodies that reached clients' sockets, by where they came from",
            Unit::Bytes,
            served,
        );
        families.register_fills(own);
        families.register_upstreams(own);
        families.register_sockets(own);
        families.maintenance.register(own);
        families.accel.register(own);
        families.replicate.register(own);
        families.registry = registry;
        families
    }

    fn register_fills(&self, own: &mut Registry) {
        own.register("fills_in_flight", "Fills under way", self.fills_in_flight.clone());
        own.register("fills", "Fills that ended, by outcome", self.fills.clone());
        own.register("fill_failures", "Fills that failed, by reason", self.fill_failures.clone());
        own.register_with_unit(
            "uncached",
            "Bytes served straight from an upstream and not kept, by reason",
            Unit::Bytes,
            self.uncached.clone(),
        );
    }

    fn register_upstreams(&self, own: &mut Registry) {
        own.register_with_unit(
            "pushed",
            "Bytes of bodies that came from clients that push",
            Unit::Bytes,
            self.pushed.clone(),
        );
        own.register_with_unit(
            "fetched",
            "Bytes of bodies that came from upstreams",
            Unit::Bytes,
            self.fetched.clone(),
        );
        own.register(
            "upstream_requests",
            "Requests to upstreams, by what was asked and how it ended",
            self.upstream_requests.clone(),
        );
        own.register_with_unit(
            "upstream",
            "Time from a request to an upstream to the head of its answer",
            Unit::Seconds,
            self.upstream_seconds.clone(),
        );
        own.register(
            "stale_served",
            "Tags served past their time to live because their upstream failed",
            self.stale_served.clone(),
        );
    }

    fn register_sockets(&self, own: &mut Registry) {
        own.register("connections_open", "Connections open", self.connections_open.clone());
        own.register(
            "heads_refused",
            "Requests whose head was refused before it was looked at, by reason",
            self.heads_refused.clone(),
        );
        own.register(
            "stalled_connections",
            "Connections that were cut because the client neither took nor sent what was due",
            self.stalled_connections.clone(),
        );
        own.register(
            "unmatched_regions",
            "Slices that the transport could not match to a file: each one is a bug",
            self.unmatched_regions.clone(),
        );
    }
}

fn seconds_since_epoch() -> f64 {
    // A clock before 1970 is clamped to it.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The value of the one line that starts with `series`.
    fn value(text: &str, series: &str) -> f64 {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        let value = lines.next().unwrap_or_else(|| panic!("no {series} in\n{text}"));
        assert_eq!(lines.next(), None, "{series} twice");
        value.parse().unwrap()
    }

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::new();
        metrics.request("blob", 200, "hit");
        metrics.request("blob", 200, "hit");
        metrics.request("blob", 206, "hit");
        metrics.served("hit", 5 << 30);
        metrics.fetched("docker.io", 7);
        metrics.fill_started();
        metrics.fill_started();
        metrics.fill_ended("verified");
        metrics.fill_failed("digest");
        metrics.upstream_request("docker.io", "blob", "ok", 0.3);
        metrics.set_connections_open(2);
        metrics.set_connections_open(1);
        let maintenance = metrics.maintenance("main");
        maintenance.stored("cache", 1 << 40, 5);
        maintenance.evicted(100, 2);
        maintenance.ran("gc", Outcome::Failed, Duration::from_millis(250));
        maintenance.ran("gc", Outcome::Done, Duration::from_millis(500));
        maintenance.freed("gc", 8);
        maintenance.removed("gc", "manifest", 3);
        maintenance.scrubbed(6);
        maintenance.corrupt("repaired", 1);
        metrics.uncached_bytes("disk_full", 9);
        metrics.stale_served();
        metrics.head_refused("host");
        metrics.set_unmatched_regions(3);
        metrics.set_stalled_connections(4);
        metrics.accel("app").answered("file", 206, 11);
        metrics.accel("app").answered("file", 200, 4);
        metrics.accel("app").answered("error", 404, 0);

        let replicate = metrics.replicate("master");
        replicate.moved(5);
        replicate.image("copied");
        replicate.failed();
        replicate.run_ended(false);

        let text = metrics.encode();
        for (series, expected) in [
            (r#"spliceway_requests_total{route="blob",status="200",cache="hit"}"#, 2.0),
            (r#"spliceway_requests_total{route="blob",status="206",cache="hit"}"#, 1.0),
            (r#"spliceway_served_bytes_total{cache="hit"}"#, 5_368_709_120.0),
            (r#"spliceway_fetched_bytes_total{upstream="docker.io"}"#, 7.0),
            ("spliceway_fills_in_flight", 1.0),
            (r#"spliceway_fills_total{outcome="verified"}"#, 1.0),
            (r#"spliceway_fill_failures_total{reason="digest"}"#, 1.0),
            (r#"spliceway_upstream_requests_total{upstream="docker.io",operation="blob",outcome="ok"}"#, 1.0),
            (r#"spliceway_upstream_seconds_bucket{le="0.25",upstream="docker.io",operation="blob"}"#, 0.0),
            (r#"spliceway_upstream_seconds_bucket{le="0.5",upstream="docker.io",operation="blob"}"#, 1.0),
            ("spliceway_connections_open", 1.0),
            (r#"spliceway_stored_bytes{registry="main",tree="cache"}"#, 1_099_511_627_776.0),
            (r#"spliceway_departing_bytes{registry="main",tree="cache"}"#, 5.0),
            (r#"spliceway_maintenance_runs_total{registry="main",job="gc",outcome="failed"}"#, 1.0),
            (r#"spliceway_maintenance_last_run_seconds{registry="main",job="gc"}"#, 0.5),
            (r#"spliceway_maintenance_freed_bytes_total{registry="main",job="gc"}"#, 8.0),
            (r#"spliceway_maintenance_removed_total{registry="main",job="gc",kind="manifest"}"#, 3.0),
            (r#"spliceway_maintenance_scrubbed_bytes_total{registry="main"}"#, 6.0),
            (r#"spliceway_maintenance_corrupt_blobs_total{registry="main",outcome="repaired"}"#, 1.0),
            ("spliceway_stalled_connections_total", 4.0),
            ("spliceway_evicted_bytes_total", 100.0),
            ("spliceway_evicted_blobs_total", 2.0),
            (r#"spliceway_uncached_bytes_total{reason="disk_full"}"#, 9.0),
            ("spliceway_stale_served_total", 1.0),
            (r#"spliceway_heads_refused_total{reason="host"}"#, 1.0),
            ("spliceway_unmatched_regions_total", 3.0),
            (r#"spliceway_accel_requests_total{front="app",source="file",status="2xx"}"#, 2.0),
            (r#"spliceway_accel_requests_total{front="app",source="error",status="4xx"}"#, 1.0),
            (r#"spliceway_accel_served_bytes_total{front="app",source="file"}"#, 15.0),
            (r#"spliceway_replicate_copied_bytes_total{replicate="master"}"#, 5.0),
            (r#"spliceway_replicate_images_total{replicate="master",outcome="copied"}"#, 1.0),
            (r#"spliceway_replicate_failures_total{replicate="master"}"#, 1.0),
            (r#"spliceway_replicate_runs_total{replicate="master",outcome="incomplete"}"#, 1.0),
            (concat!(r#"spliceway_build_info{version=""#, env!("CARGO_PKG_VERSION"), r#""}"#), 1.0),
        ] {
            assert!((value(&text, series) - expected).abs() < f64::EPSILON, "{series} in\n{text}");
        }
        let series = r#"spliceway_maintenance_last_success_timestamp_seconds{registry="main",job="gc"}"#;
        assert!(value(&text, series) > 1.7e9);
        assert!(text.ends_with("# EOF\n"));
        assert!(
            value(&text, r#"spliceway_replicate_last_run_timestamp_seconds{replicate="master"}"#) > 1.7e9
        );
        assert!(value(&text, r#"spliceway_replicate_lag_seconds{replicate="master"}"#) >= 0.0);
        metrics.keep_replications(&[]);
        assert!(!metrics.encode().contains("spliceway_replicate_lag_seconds{"), "nobody lags any more");
        let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        for family in families {
            let readme = include_str!("../../README.md");
            assert!(readme.contains(&format!("`{family}")), "{family} is not in the README");
        }
    }

    #[test]
    fn the_process_says_what_it_uses() {
        let text = Metrics::new().encode();
        assert!(value(&text, "process_resident_memory_bytes") > 1e5, "{text}");
        assert!(value(&text, "process_open_fds") >= 3.0, "{text}");
        assert!(value(&text, "process_cpu_seconds_total") >= 0.0, "{text}");
        assert!(value(&text, "process_start_time_seconds") > 1.7e9, "{text}");
    }

    #[test]
    fn counts_of_all_threads_add_up_and_stay_apart_from_another_instance() {
        let (metrics, other) = (Metrics::new(), Metrics::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        metrics.request("blob", 200, "hit");
                        other.request("blob", 200, "hit");
                        other.request("blob", 200, "hit");
                    }
                });
            }
        });
        let series = r#"spliceway_requests_total{route="blob",status="200",cache="hit"}"#;
        assert!((value(&metrics.encode(), series) - 4000.0).abs() < f64::EPSILON);
        assert!((value(&other.encode(), series) - 8000.0).abs() < f64::EPSILON);
    }

    #[test]
    fn more_labels_than_a_thread_keeps_are_still_counted() {
        let metrics = Metrics::new();
        for round in 0..2 {
            for status in 100..600 {
                metrics.request("blob", status, "-");
            }
            let series = r#"spliceway_requests_total{route="blob",status="599",cache="-"}"#;
            assert!((value(&metrics.encode(), series) - f64::from(round + 1)).abs() < f64::EPSILON);
        }
    }
}
