//! What the store tells about itself, for `/metrics`.
//!
//! Names are `godseye_store_*` and `godseye_wal_*`; counters get `_total` from the text format.
//! Not here: how they are served.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};

/// One label.
pub type Label = [(&'static str, &'static str); 1];

/// The metrics of one store. Clones share their numbers.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Bytes of the write-ahead log's files.
    pub wal_bytes: Gauge,
    /// How many files the write-ahead log has.
    pub wal_segments: Gauge,
    /// Seconds of each append and sync of a group.
    pub wal_commit_seconds: Histogram,
    /// Entries of each group.
    pub wal_group_entries: Histogram,
    /// Bytes of each group.
    pub wal_group_bytes: Histogram,
    /// Records that could not be read at start.
    pub wal_records_lost: Counter,
    /// Records read whole at start whose rows made no sense; set aside.
    pub wal_records_undecodable: Counter,
    /// Bytes of incomplete writes that were cut off at start.
    pub wal_torn_bytes: Counter,
    /// Damages found at start, by kind.
    pub wal_damages: Family<Label, Counter>,
    /// Memory of unflushed rows.
    pub memtable_bytes: Gauge,
    /// Unflushed rows.
    pub memtable_rows: Gauge,
    /// Flushes that were committed, by table.
    pub flushes: Family<Label, Counter>,
    /// Flushes that failed and are tried again.
    pub flush_failures: Counter,
    /// Seconds of each flush.
    pub flush_seconds: Histogram,
    /// Merges that were committed.
    pub compactions: Counter,
    /// Merges that failed.
    pub compaction_failures: Counter,
    /// Seconds of each merge.
    pub compaction_seconds: Histogram,
    /// Rows that were merged.
    pub compacted_rows: Counter,
    /// Segments that queries read, by table.
    pub segments: Family<Label, Gauge>,
    /// Bytes of these segments.
    pub segment_bytes: Gauge,
    /// Segments that retention removed.
    pub segments_expired: Counter,
    /// Segments that are set aside.
    pub segments_quarantined: Gauge,
    /// Files that no manifest lists, removed at start.
    pub orphans_removed: Counter,
    /// Memory of the spans that calls may still be found with.
    pub derived_index_bytes: Gauge,
    /// Callees given up whose caller did not come.
    pub derived_callees_unpaired: Counter,
    /// Times that a tenant's derived tables were derived anew.
    pub derived_rebuilds: Counter,
    /// Groups that were refused, by reason.
    pub refused: Family<Label, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        // 0.1 ms to 1.6 s: from a good SSD to a disk in trouble.
        let commit = || Histogram::new(exponential_buckets(0.0001, 2.0, 15));
        // 10 ms to 160 s.
        let work = || Histogram::new(exponential_buckets(0.01, 2.0, 15));
        Self {
            wal_bytes: Gauge::default(),
            wal_segments: Gauge::default(),
            wal_commit_seconds: commit(),
            wal_group_entries: Histogram::new(exponential_buckets(1.0, 2.0, 12)),
            wal_group_bytes: Histogram::new(exponential_buckets(1024.0, 4.0, 9)),
            wal_records_lost: Counter::default(),
            wal_records_undecodable: Counter::default(),
            wal_torn_bytes: Counter::default(),
            wal_damages: Family::default(),
            memtable_bytes: Gauge::default(),
            memtable_rows: Gauge::default(),
            flushes: Family::default(),
            flush_failures: Counter::default(),
            flush_seconds: work(),
            compactions: Counter::default(),
            compaction_failures: Counter::default(),
            compaction_seconds: work(),
            compacted_rows: Counter::default(),
            segments: Family::default(),
            segment_bytes: Gauge::default(),
            segments_expired: Counter::default(),
            segments_quarantined: Gauge::default(),
            orphans_removed: Counter::default(),
            derived_index_bytes: Gauge::default(),
            derived_callees_unpaired: Counter::default(),
            derived_rebuilds: Counter::default(),
            refused: Family::default(),
        }
    }
}

impl Metrics {
    /// Registers every metric.
    pub fn new(registry: &mut Registry) -> Self {
        fn register(registry: &mut Registry, name: &str, help: &str, metric: &(impl Metric + Clone)) {
            registry.register(format!("godseye_{name}"), help, metric.clone());
        }
        let metrics = Self::default();
        let m = &metrics;
        register(registry, "wal_bytes", "Bytes of the write-ahead log", &m.wal_bytes);
        register(registry, "wal_segments", "Files of the write-ahead log", &m.wal_segments);
        register(registry, "wal_commit_seconds", "Append and sync of a group", &m.wal_commit_seconds);
        register(registry, "wal_group_entries", "Entries of a group", &m.wal_group_entries);
        register(registry, "wal_group_bytes", "Bytes of a group", &m.wal_group_bytes);
        register(registry, "wal_records_lost", "Records that could not be read at start", &m.wal_records_lost);
        register(
            registry,
            "wal_records_undecodable",
            "Records set aside at start since their rows made no sense",
            &m.wal_records_undecodable,
        );
        register(registry, "wal_torn_bytes", "Bytes of incomplete writes cut off at start", &m.wal_torn_bytes);
        register(registry, "wal_damages", "Damages found at start", &m.wal_damages);
        register(registry, "store_memtable_bytes", "Memory of unflushed rows", &m.memtable_bytes);
        register(registry, "store_memtable_rows", "Unflushed rows", &m.memtable_rows);
        register(registry, "store_flushes", "Flushes committed", &m.flushes);
        register(registry, "store_flush_failures", "Flushes that failed and are tried again", &m.flush_failures);
        register(registry, "store_flush_seconds", "Seconds of a flush", &m.flush_seconds);
        register(registry, "store_compactions", "Merges committed", &m.compactions);
        register(registry, "store_compaction_failures", "Merges that failed", &m.compaction_failures);
        register(registry, "store_compaction_seconds", "Seconds of a merge", &m.compaction_seconds);
        register(registry, "store_compacted_rows", "Rows merged", &m.compacted_rows);
        register(registry, "store_segments", "Segments that queries read", &m.segments);
        register(registry, "store_segment_bytes", "Bytes of the segments that queries read", &m.segment_bytes);
        register(registry, "store_segments_expired", "Segments that retention removed", &m.segments_expired);
        register(registry, "store_segments_quarantined", "Segments set aside", &m.segments_quarantined);
        register(
            registry,
            "store_orphans_removed",
            "Files removed at start that no manifest lists",
            &m.orphans_removed,
        );
        register(
            registry,
            "store_derived_index_bytes",
            "Memory of the spans that calls may still be found with",
            &m.derived_index_bytes,
        );
        register(
            registry,
            "store_derived_callees_unpaired",
            "Callees given up whose caller did not come",
            &m.derived_callees_unpaired,
        );
        register(
            registry,
            "store_derived_rebuilds",
            "Times that a tenant's derived tables were derived anew",
            &m.derived_rebuilds,
        );
        register(registry, "store_refused", "Groups refused", &m.refused);
        metrics
    }
}

/// A number as a gauge wants it.
pub(crate) fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
