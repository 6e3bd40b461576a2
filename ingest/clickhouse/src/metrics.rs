//! What the writer tells about itself, for `/metrics`; names are `godseye_clickhouse_*`.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};
use store::metrics::Label;

/// The metrics of one writer. Clones share their numbers.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Inserts that ClickHouse has, by table.
    pub inserts: Family<Label, Counter>,
    /// Their rows, by table.
    pub rows: Family<Label, Counter>,
    /// Bytes of the bodies that were sent, repetitions included.
    pub bytes: Counter,
    /// Attempts that failed, by reason.
    pub failures: Family<Label, Counter>,
    /// Inserts under way.
    pub in_flight: Gauge,
    /// Seconds of each insert that succeeded.
    pub insert_seconds: Histogram,
    /// Hosts that are not used for now.
    pub hosts_resting: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            inserts: Family::default(),
            rows: Family::default(),
            bytes: Counter::default(),
            failures: Family::default(),
            in_flight: Gauge::default(),
            // 5 ms to 80 s.
            insert_seconds: Histogram::new(exponential_buckets(0.005, 2.0, 15)),
            hosts_resting: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Registers every metric.
    pub fn new(registry: &mut Registry) -> Self {
        fn register(registry: &mut Registry, name: &str, help: &str, metric: &(impl Metric + Clone)) {
            registry.register(format!("godseye_clickhouse_{name}"), help, metric.clone());
        }
        let m = Self::default();
        register(registry, "inserts", "Inserts that ClickHouse has", &m.inserts);
        register(registry, "rows", "Rows of the inserts that ClickHouse has", &m.rows);
        register(registry, "bytes", "Bytes sent in bodies of inserts", &m.bytes);
        register(registry, "failures", "Attempts at an insert that failed", &m.failures);
        register(registry, "in_flight", "Inserts under way", &m.in_flight);
        register(registry, "insert_seconds", "Seconds of an insert", &m.insert_seconds);
        register(registry, "hosts_resting", "Hosts that are not used for now", &m.hosts_resting);
        m
    }
}
