//! What the `/metrics` page tells of Kafka.

use std::sync::Arc;

use model::ledger::LedgerDelta;
use model::signal::Signal;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TopicLabel {
    topic: Arc<str>,
}

/// A partition of one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PartitionLabels {
    topic: Arc<str>,
    partition: i32,
}

/// A message that is no telemetry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DeadLabels {
    topic: Arc<str>,
    reason: &'static str,
}

/// Why something was not done, or what was.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    reason: &'static str,
}

/// What happened to partitions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    kind: &'static str,
}

/// Items by what became of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ItemLabels {
    signal: &'static str,
    outcome: &'static str,
    reason: &'static str,
}

fn register<M: prometheus_client::registry::Metric + Clone>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    metric: &M,
) {
    registry.register(format!("godseye_kafka_{name}"), help, metric.clone());
}

fn count_items(items: &Family<ItemLabels, Counter>, signal: Signal, done: &'static str, delta: &LedgerDelta) {
    let add = |outcome, reason, count| {
        items.get_or_create(&ItemLabels { signal: signal.name(), outcome, reason }).inc_by(count);
    };
    if delta.stored > 0 {
        add(done, "", delta.stored);
    }
    for (reason, count) in &delta.rejected {
        add("rejected", reason.name(), *count);
    }
}

/// Of a gateway.
#[derive(Clone, Debug)]
pub struct GatewayMetrics {
    messages: Family<TopicLabel, Counter>,
    bytes: Family<TopicLabel, Counter>,
    items: Family<ItemLabels, Counter>,
    refused: Family<ReasonLabel, Counter>,
    pub(crate) queue: Gauge,
    pub(crate) delivery_seconds: Histogram,
    pub(crate) renewals: Counter,
}

impl GatewayMetrics {
    /// Creates and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self {
            messages: Family::default(),
            bytes: Family::default(),
            items: Family::default(),
            refused: Family::default(),
            queue: Gauge::default(),
            // From a broker next door to one that is being replaced.
            delivery_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            renewals: Counter::default(),
        };
        register(registry, "produced_messages", "Messages that brokers have confirmed", &m.messages);
        register(registry, "produced_bytes", "Bytes of their payloads", &m.bytes);
        register(registry, "produced_items", "Items by outcome: produced, or rejected for a reason", &m.items);
        register(registry, "refused_requests", "Requests that were not acknowledged, by reason", &m.refused);
        register(registry, "produce_queue_messages", "Messages that wait for brokers", &m.queue);
        register(
            registry,
            "delivery_seconds",
            "From handing a request on to the last delivery report",
            &m.delivery_seconds,
        );
        register(registry, "producer_renewals", "Producers that failed for good and were replaced", &m.renewals);
        m
    }

    pub(crate) fn produced(&self, topic: &Arc<str>, bytes: usize) {
        let label = TopicLabel { topic: Arc::clone(topic) };
        self.messages.get_or_create(&label).inc();
        self.bytes.get_or_create(&label).inc_by(bytes as u64);
    }

    pub(crate) fn items(&self, signal: Signal, delta: &LedgerDelta) {
        count_items(&self.items, signal, "produced", delta);
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }
}

/// Of a writer.
#[derive(Clone, Debug, Default)]
pub struct WriterMetrics {
    messages: Family<TopicLabel, Counter>,
    bytes: Family<TopicLabel, Counter>,
    items: Family<ItemLabels, Counter>,
    lag: Family<PartitionLabels, Gauge>,
    dead: Family<DeadLabels, Counter>,
    lost: Family<TopicLabel, Counter>,
    rebalances: Family<KindLabel, Counter>,
    refusals: Family<ReasonLabel, Counter>,
    pub(crate) dead_undelivered: Counter,
    pub(crate) restarted_partitions: Counter,
    pub(crate) in_flight: Gauge,
    pub(crate) assigned: Gauge,
    pub(crate) paused: Gauge,
    pub(crate) groups: Counter,
    pub(crate) commit_failures: Counter,
    pub(crate) unreadable_batches: Counter,
}

impl WriterMetrics {
    /// Creates and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        register(registry, "consumed_messages", "Messages whose rows are durable", &m.messages);
        register(registry, "consumed_bytes", "Bytes of their payloads", &m.bytes);
        register(registry, "consumed_items", "Items by outcome: stored, or rejected for a reason", &m.items);
        register(registry, "lag_messages", "Messages of an assigned partition that are not durable yet", &m.lag);
        register(registry, "in_flight_messages", "Messages that are read and not durable yet", &m.in_flight);
        register(registry, "groups", "Groups of messages that were stored together", &m.groups);
        register(registry, "assigned_partitions", "Partitions that this writer reads", &m.assigned);
        register(registry, "paused", "1 while the store takes nothing and so nothing is read", &m.paused);
        register(registry, "rebalances", "Times that partitions were assigned, revoked or lost", &m.rebalances);
        register(registry, "store_refusals", "Groups that were not stored at once, by reason", &m.refusals);
        register(registry, "dead_letters", "Messages that are no telemetry, by reason", &m.dead);
        register(
            registry,
            "dead_letters_undelivered",
            "Of those, ones that the topic of dead letters does not take; the log names each",
            &m.dead_undelivered,
        );
        register(registry, "lost_messages", "Messages that Kafka deleted before they were read", &m.lost);
        register(
            registry,
            "restarted_partitions",
            "Partitions that ended before what was read of them, and so were read from their start",
            &m.restarted_partitions,
        );
        register(
            registry,
            "unreadable_batches",
            "Batches in topics that are damaged, or compressed as this build cannot read",
            &m.unreadable_batches,
        );
        register(registry, "commit_failures", "Commits of offsets to Kafka that failed", &m.commit_failures);
        m
    }

    pub(crate) fn consumed(&self, topic: &Arc<str>, messages: u64, bytes: u64) {
        let label = TopicLabel { topic: Arc::clone(topic) };
        self.messages.get_or_create(&label).inc_by(messages);
        self.bytes.get_or_create(&label).inc_by(bytes);
    }

    pub(crate) fn items(&self, signal: Signal, delta: &LedgerDelta) {
        count_items(&self.items, signal, "stored", delta);
    }

    pub(crate) fn lag(&self, topic: &Arc<str>, partition: i32, messages: i64) {
        self.lag.get_or_create(&PartitionLabels { topic: Arc::clone(topic), partition }).set(messages);
    }

    /// Somebody else's lag now.
    pub(crate) fn forget_lag(&self, topic: &Arc<str>, partition: i32) {
        self.lag.remove(&PartitionLabels { topic: Arc::clone(topic), partition });
    }

    pub(crate) fn dead(&self, topic: &Arc<str>, reason: &'static str) {
        self.dead.get_or_create(&DeadLabels { topic: Arc::clone(topic), reason }).inc();
    }

    pub(crate) fn lost(&self, topic: &Arc<str>, messages: u64) {
        self.lost.get_or_create(&TopicLabel { topic: Arc::clone(topic) }).inc_by(messages);
    }

    pub(crate) fn rebalanced(&self, kind: &'static str) {
        self.rebalances.get_or_create(&KindLabel { kind }).inc();
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&ReasonLabel { reason }).inc();
    }
}
