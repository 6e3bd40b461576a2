//! What `/metrics` tells of rules and SLOs: the numbers that Prometheus has of its own rule groups, under our name.
//!
//! Not here: counting them, which `slo` does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;

use model::time::Timestamp;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use slo::engine::Rounds;
use slo::rules::group::GroupHealth;

type Group = [(&'static str, String); 1];
type Float = Gauge<f64, AtomicU64>;

/// Seconds of nanoseconds.
#[expect(clippy::cast_precision_loss, reason = "a metric is a double")]
fn seconds(nanos: i64) -> f64 {
    nanos as f64 / Timestamp::NANOS_PER_SECOND as f64
}

/// What was shown last, so that counters can be told what they grew by.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    iterations: u64,
    missed: u64,
    evaluations: u64,
    failures: u64,
}

/// The metrics.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    interval: Family<Group, Float>,
    rules: Family<Group, Gauge>,
    evaluated_at: Family<Group, Float>,
    duration: Family<Group, Float>,
    iterations: Family<Group, Counter>,
    missed: Family<Group, Counter>,
    evaluations: Family<Group, Counter>,
    failures: Family<Group, Counter>,
    slo_evaluated_at: Float,
    slo_duration: Float,
    slo_iterations: Counter,
    slo_missed: Counter,
    slo_failures: Counter,
    known: BTreeMap<String, Counted>,
    known_slo: Counted,
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let rules = registry.sub_registry_with_prefix("godseye_rule");
        rules.register("group_interval_seconds", "How often a group is to be evaluated", self.interval.clone());
        rules.register("group_rules", "Rules of a group", self.rules.clone());
        let help = "When a group was last evaluated";
        rules.register("group_last_evaluation_timestamp_seconds", help, self.evaluated_at.clone());
        rules.register("group_last_duration_seconds", "How long that took", self.duration.clone());
        rules.register("group_iterations", "Evaluations of a group", self.iterations.clone());
        let help = "Evaluations of a group that were not made in their time";
        rules.register("group_iterations_missed", help, self.missed.clone());
        rules.register("evaluations", "Evaluations of rules", self.evaluations.clone());
        rules.register("evaluation_failures", "Evaluations of rules that failed", self.failures.clone());
        let slos = registry.sub_registry_with_prefix("godseye_slo");
        let help = "When SLOs were last evaluated";
        slos.register("last_evaluation_timestamp_seconds", help, self.slo_evaluated_at.clone());
        slos.register("last_duration_seconds", "How long that took", self.slo_duration.clone());
        slos.register("iterations", "Evaluations of all SLOs", self.slo_iterations.clone());
        let help = "Evaluations of all SLOs that were not made in their time";
        slos.register("iterations_missed", help, self.slo_missed.clone());
        let help = "Recounts, queries, writes and deliveries of SLOs that failed";
        slos.register("failures", help, self.slo_failures.clone());
    }

    /// Shows how everything is. A group that is gone is shown no more.
    pub(super) fn show(&mut self, groups: &[GroupHealth], rounds: &Rounds) {
        let names: BTreeSet<&str> = groups.iter().map(|group| group.group.as_str()).collect();
        for name in self.known.keys().filter(|name| !names.contains(name.as_str())) {
            let label: Group = [("rule_group", name.clone())];
            self.interval.remove(&label);
            self.rules.remove(&label);
            self.evaluated_at.remove(&label);
            self.duration.remove(&label);
            for family in [&self.iterations, &self.missed, &self.evaluations, &self.failures] {
                family.remove(&label);
            }
        }
        self.known.retain(|name, _| names.contains(name.as_str()));
        for group in groups {
            let label: Group = [("rule_group", group.group.clone())];
            let before = self.known.entry(group.group.clone()).or_default();
            self.interval.get_or_create(&label).set(seconds(group.interval_ms.saturating_mul(1_000_000)));
            self.rules.get_or_create(&label).set(i64::try_from(group.rules).unwrap_or(i64::MAX));
            self.evaluated_at.get_or_create(&label).set(seconds(group.evaluated_at.unwrap_or_default().0));
            self.duration.get_or_create(&label).set(seconds(group.duration_ns));
            for (family, now, before) in [
                (&self.iterations, group.iterations, &mut before.iterations),
                (&self.missed, group.missed, &mut before.missed),
                (&self.evaluations, group.evaluations, &mut before.evaluations),
                (&self.failures, group.failures, &mut before.failures),
            ] {
                family.get_or_create(&label).inc_by(now.saturating_sub(*before));
                *before = now;
            }
        }
        self.slo_evaluated_at.set(seconds(rounds.evaluated_at.unwrap_or_default().0));
        self.slo_duration.set(seconds(rounds.duration_ns));
        for (counter, now, before) in [
            (&self.slo_iterations, rounds.iterations, &mut self.known_slo.iterations),
            (&self.slo_missed, rounds.missed, &mut self.known_slo.missed),
            (&self.slo_failures, rounds.failures, &mut self.known_slo.failures),
        ] {
            counter.inc_by(now.saturating_sub(*before));
            *before = now;
        }
    }
}
