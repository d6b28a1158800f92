//! What the fronts of applications count: see [`crate::accel`].

use std::sync::{Arc, OnceLock};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};

/// Where answers come from.
const SOURCES: [&str; 4] = ["proxied", "file", "blob", "error"];
/// Classes of statuses; the first is of those that are none.
const CLASSES: [&str; 6] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// The families of all fronts.
#[derive(Debug, Default)]
pub(super) struct AccelFamilies {
    requests: Family<AccelLabels, Counter>,
    served: Family<SourceLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AccelLabels {
    front: String,
    source: &'static str,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabels {
    front: String,
    source: &'static str,
}

/// The counters of one front. A clone shares them; each is looked up once.
#[derive(Clone, Debug)]
pub struct AccelMetrics(Arc<Counters>);

#[derive(Debug)]
struct Counters {
    front: String,
    requests_family: Family<AccelLabels, Counter>,
    served_family: Family<SourceLabels, Counter>,
    requests: [[OnceLock<Counter>; CLASSES.len()]; SOURCES.len()],
    served: [OnceLock<Counter>; SOURCES.len()],
}

impl AccelFamilies {
    pub(super) fn register(&self, own: &mut Registry) {
        own.register(
            "accel_requests",
            "Requests that fronts of applications answered, by where the answer came from",
            self.requests.clone(),
        );
        own.register_with_unit(
            "accel_served",
            "Bytes of bodies that fronts of applications sent, by where they came from",
            Unit::Bytes,
            self.served.clone(),
        );
    }

    pub(super) fn of(&self, front: &str) -> AccelMetrics {
        AccelMetrics(Arc::new(Counters {
            front: front.to_owned(),
            requests_family: self.requests.clone(),
            served_family: self.served.clone(),
            requests: std::array::from_fn(|_| std::array::from_fn(|_| OnceLock::new())),
            served: std::array::from_fn(|_| OnceLock::new()),
        }))
    }
}

impl AccelMetrics {
    /// A request was answered: where the answer came from (`proxied`, `file`, `blob`, `error`), its status, and how many
    /// bytes of its body reached the socket.
    pub fn answered(&self, source: &'static str, status: u16, bytes: u64) {
        let counters = &*self.0;
        let at = SOURCES.iter().position(|known| *known == source).unwrap_or(SOURCES.len() - 1);
        let class = usize::from(status / 100);
        let class = if class < CLASSES.len() { class } else { 0 };
        let front = || counters.front.clone();
        let requests = counters.requests[at][class].get_or_init(|| {
            let labels = AccelLabels { front: front(), source: SOURCES[at], status: CLASSES[class] };
            counters.requests_family.get_or_create_owned(&labels)
        });
        requests.inc();
        let served = counters.served[at].get_or_init(|| {
            counters.served_family.get_or_create_owned(&SourceLabels { front: front(), source: SOURCES[at] })
        });
        served.inc_by(bytes);
    }
}
