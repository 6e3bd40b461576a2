//! Groups of rules, running: when each evaluation is due, and what it does.
//!
//! A group is evaluated in slots of its interval, at an offset of its own so that not all come at once.
//! Slots that were missed while the server was busy are made up, each with its own time; after a restart
//! recording rules are made up and pending alerts restored ([`super::state`]). A rule whose query fails
//! leaves its alerts as they are (I10). Not here: SQL, templates and series, which are traits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use model::tenant::TenantId;
use model::time::{Clock, Timestamp};
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

use super::file::{Group, Kind, Rule, with_labels};
use super::state::{Alert, Alerts, Labels, Notice, RESEND_DELAY_MS, Restore, Sample, State, Stored};
use crate::archive::{Archive, Write};
use crate::engine::{Sink, sql_time};
use crate::error::SloError;
use crate::window::NANOS_PER_MS;

/// Missed slots that are made up, the newest ones. More would hold up the present.
pub const MAKE_UP_MAX: i64 = 120;

/// A row of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its columns but `value`, as text; columns without a value are left out.
    pub labels: Labels,
    /// Its column `value`.
    pub value: f64,
}

/// A sample of a recorded series.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// The series' name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// The value.
    pub value: f64,
    /// The evaluation's time.
    pub at: Timestamp,
}

/// Answers queries.
#[async_trait]
pub trait Ask: Send + Sync {
    /// The rows of a query, whose `$now` is written in already.
    ///
    /// # Errors
    /// Why there is no answer, in words.
    async fn ask(&self, tenant: &TenantId, sql: &str) -> Result<Vec<Row>, String>;
}

/// Stores what recording rules make.
#[async_trait]
pub trait Record: Send + Sync {
    /// Stores samples, durably when it returns.
    ///
    /// # Errors
    /// Why they were not stored, in words.
    async fn record(&self, tenant: &TenantId, samples: Vec<Recorded>) -> Result<(), String>;
}

/// Expands Go templates of labels and annotations, with `$labels` and `$value`.
pub trait Expand: Send + Sync {
    /// The text of a template.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    fn expand(&self, template: &str, labels: &Labels, value: f64) -> Result<String, String>;
}

/// When a group's slots are: its interval's multiples, moved by an offset that its name decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    interval: i64,
    offset: i64,
}

impl Slots {
    /// The slots of a group.
    #[must_use]
    pub fn of(group: &Group) -> Self {
        let interval = group.interval_ms.max(1).saturating_mul(NANOS_PER_MS);
        let hash = xxh3_64(format!("{};{}", group.file, group.name).as_bytes());
        let offset = i64::try_from(hash % interval.unsigned_abs()).unwrap_or(0);
        Self { interval, offset }
    }

    /// The last slot that is not after a time.
    #[must_use]
    pub fn last(self, now: Timestamp) -> Timestamp {
        let since = now.0.saturating_sub(self.offset);
        Timestamp(since.div_euclid(self.interval) * self.interval + self.offset)
    }

    /// The slots after one up to now, at most [`MAKE_UP_MAX`] and the newest of them.
    #[must_use]
    pub fn due(self, after: Timestamp, now: Timestamp) -> Vec<Timestamp> {
        let last = self.last(now);
        let missed = (last.0.saturating_sub(after.0)).div_euclid(self.interval).clamp(0, MAKE_UP_MAX);
        (0..missed).rev().map(|back| last.plus_nanos(-back * self.interval)).collect()
    }

    /// The slot after the last one that is not after a time.
    #[must_use]
    pub fn next(self, now: Timestamp) -> Timestamp {
        self.last(now).plus_nanos(self.interval)
    }
}

/// How a rule is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuleHealth {
    /// The last evaluation; `None` before the first.
    pub evaluated_at: Option<Timestamp>,
    /// What went wrong at it.
    pub error: Option<String>,
}

/// A group that runs.
#[derive(Debug)]
pub struct Running {
    group: Group,
    slots: Slots,
    tenant: TenantId,
    alerts: Vec<Alerts>,
    health: Vec<RuleHealth>,
    /// Of before a restart, until it is restored.
    stored: Option<Vec<BTreeMap<Labels, Stored>>>,
    evaluations: u32,
    last: Option<Timestamp>,
}

/// What evaluations need.
#[derive(Clone)]
pub struct Tools {
    /// Answers queries.
    pub ask: Arc<dyn Ask>,
    /// Stores series.
    pub record: Arc<dyn Record>,
    /// Expands templates.
    pub expand: Arc<dyn Expand>,
}

impl std::fmt::Debug for Tools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tools").finish_non_exhaustive()
    }
}

impl Running {
    /// A group with the alerts of before a restart, which are given by rule ([`Running::rule_name`]), and
    /// the time of its last evaluation then.
    #[must_use]
    pub fn new(
        group: Group,
        tenant: TenantId,
        mut stored: BTreeMap<String, BTreeMap<Labels, Stored>>,
        last: Option<Timestamp>,
    ) -> Self {
        let rules = group.rules.len();
        let mut running = Self {
            slots: Slots::of(&group),
            tenant,
            alerts: vec![Alerts::default(); rules],
            health: vec![RuleHealth::default(); rules],
            stored: None,
            evaluations: 0,
            last,
            group,
        };
        let stored: Vec<_> = (0..rules).map(|at| stored.remove(&running.rule_name(at)).unwrap_or_default()).collect();
        running.stored = Some(stored);
        running
    }

    /// The group.
    #[must_use]
    pub const fn group(&self) -> &Group {
        &self.group
    }

    /// The alerts and the health of each rule, in order.
    pub fn rules(&self) -> impl Iterator<Item = (&Rule, &Alerts, &RuleHealth)> {
        self.group
            .rules
            .iter()
            .zip(&self.alerts)
            .zip(&self.health)
            .map(|((rule, alerts), health)| (rule, alerts, health))
    }

    /// The name of a rule in the database. It stays when rules are added around it.
    #[must_use]
    pub fn rule_name(&self, at: usize) -> String {
        let Group { file, name, rules, .. } = &self.group;
        let rule = &rules[at];
        // Rules of one name are told apart by their labels, and by their order when these are equal, too.
        let before = rules[..at].iter().filter(|other| other.name == rule.name && other.labels == rule.labels).count();
        let labels: Vec<String> = rule.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        format!("rules/{file};{name};{};{};{before}", rule.name, labels.join(","))
    }

    /// Evaluates the slots that are due. After a restart that is the recording rules' missed ones, and the
    /// present one; alerts begin with the present one. Returns alerts to be told.
    pub async fn catch_up(&mut self, now: Timestamp, tools: &Tools) -> Vec<Notice> {
        let due = match self.last {
            None => vec![self.slots.last(now)],
            Some(last) => self.slots.due(last, now),
        };
        let Some((newest, missed)) = due.split_last() else { return Vec::new() };
        let restarted = self.evaluations == 0;
        for slot in missed {
            self.evaluate(*slot, tools, restarted).await;
        }
        self.evaluate(*newest, tools, false).await;
        self.last = Some(*newest);
        self.evaluations = self.evaluations.saturating_add(1);
        if self.evaluations == 2
            && let Some(stored) = self.stored.take()
        {
            for ((rule, alerts), stored) in self.group.rules.iter().zip(&mut self.alerts).zip(&stored) {
                if let Kind::Alert { hold, .. } = &rule.kind {
                    alerts.restore(stored, *newest, hold.for_ms, Restore::default());
                }
            }
        }
        let interval_ms = self.group.interval_ms;
        self.alerts.iter_mut().flat_map(|alerts| alerts.notices(*newest, RESEND_DELAY_MS, interval_ms)).collect()
    }

    /// Evaluates every rule at one slot.
    async fn evaluate(&mut self, slot: Timestamp, tools: &Tools, only_records: bool) {
        let at = slot.plus_nanos(-self.group.query_offset_ms.saturating_mul(NANOS_PER_MS));
        for (index, rule) in self.group.rules.iter().enumerate() {
            if only_records && !matches!(rule.kind, Kind::Record) {
                continue;
            }
            let sql = rule.sql.replace("$now", &sql_time(at));
            let result = match tools.ask.ask(&self.tenant, &sql).await {
                Err(reason) => Err(reason),
                Ok(rows) => match &rule.kind {
                    Kind::Record => record(&self.tenant, rule, rows, at, self.group.limit, tools).await,
                    Kind::Alert { hold, annotations } => {
                        let samples =
                            rows.into_iter().map(|row| sample(rule, annotations, row, &*tools.expand)).collect();
                        let step = self.alerts[index].step(slot, samples, &|_| false, *hold, self.group.limit);
                        step.map_err(|error| error.to_string())
                    }
                },
            };
            if let Err(reason) = &result {
                tracing::warn!(rule = rule.name, defined_at = rule.defined_at, reason, "a rule was not evaluated");
            }
            self.health[index] = RuleHealth { evaluated_at: Some(slot), error: result.err() };
        }
    }

    /// What is to be stored of every rule that alerts. Before the restart is bridged, nothing: what was
    /// stored before it is still needed if the server goes down again.
    #[must_use]
    pub fn to_store(&self) -> Vec<(String, Vec<(Labels, Alert)>)> {
        if self.stored.is_some() {
            return Vec::new();
        }
        let alerting =
            (0..self.group.rules.len()).filter(|at| matches!(self.group.rules[*at].kind, Kind::Alert { .. }));
        alerting
            .map(|at| {
                let alerts = self.alerts[at].iter().map(|(labels, alert)| (labels.clone(), alert.clone()));
                (self.rule_name(at), alerts.collect())
            })
            .collect()
    }
}

/// An alert's sample from a row. A template that cannot be expanded says so in its place, as in Prometheus.
fn sample(rule: &Rule, annotations: &[(String, String)], row: Row, expand: &dyn Expand) -> Sample {
    let text = |template: &str| {
        expand
            .expand(template, &row.labels, row.value)
            .unwrap_or_else(|error| format!("<error expanding template: {error}>"))
    };
    let labels: Vec<(String, String)> =
        rule.labels.iter().map(|(name, template)| (name.clone(), text(template))).collect();
    let annotations = annotations.iter().map(|(name, template)| (name.clone(), text(template))).collect();
    Sample { labels: with_labels(row.labels.clone(), &rule.name, labels), annotations, value: row.value }
}

async fn record(
    tenant: &TenantId,
    rule: &Rule,
    rows: Vec<Row>,
    at: Timestamp,
    limit: usize,
    tools: &Tools,
) -> Result<(), String> {
    if limit > 0 && rows.len() > limit {
        return Err(format!("{} series are more than the group's limit of {limit}", rows.len()));
    }
    let mut seen = std::collections::BTreeSet::new();
    let mut samples = Vec::with_capacity(rows.len());
    for Row { mut labels, value } in rows {
        labels.extend(rule.labels.iter().cloned());
        labels.retain(|name, value| name != "__name__" && !value.is_empty());
        if !seen.insert(labels.clone()) {
            return Err(format!("two rows have the same labels {labels:?}: select a column that tells them apart"));
        }
        samples.push(Recorded { name: rule.name.clone(), labels, value, at });
    }
    tools.record.record(tenant, samples).await
}

/// Runs groups, each as a task of its own.
pub struct Service {
    groups: Vec<Running>,
    tools: Tools,
    archive: Arc<Mutex<Archive>>,
    sink: Arc<Mutex<Box<dyn Sink>>>,
    clock: Clock,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("groups", &self.groups).finish_non_exhaustive()
    }
}

impl Service {
    /// Puts groups over a database: alerts of before a restart are known.
    ///
    /// # Errors
    /// [`SloError`] of the database.
    pub fn build(
        groups: Vec<Group>,
        tenant: &TenantId,
        archive: Archive,
        tools: Tools,
        sink: Box<dyn Sink>,
        clock: Clock,
    ) -> Result<Self, SloError> {
        let mut stored: BTreeMap<String, BTreeMap<Labels, Stored>> = BTreeMap::new();
        for found in archive.load_alerts(tenant)? {
            let seen_at = (found.alert.state != State::Inactive).then_some(found.seen_at);
            let of = Stored { active_at: found.alert.active_at, seen_at };
            stored.entry(found.rule).or_default().insert(found.labels, of);
        }
        let mut running = Vec::with_capacity(groups.len());
        for group in groups {
            let last = archive.meta(tenant, &format!("group/{};{}", group.file, group.name))?.map(Timestamp);
            running.push(Running::new(group, tenant.clone(), stored.clone(), last));
        }
        let (archive, sink) = (Arc::new(Mutex::new(archive)), Arc::new(Mutex::new(sink)));
        Ok(Self { groups: running, tools, archive, sink, clock })
    }

    /// Runs until it is told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut tasks = tokio::task::JoinSet::new();
        for group in self.groups {
            let (tools, archive, sink) = (self.tools.clone(), Arc::clone(&self.archive), Arc::clone(&self.sink));
            let (clock, stop) = (self.clock.clone(), stop.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = run_group(group, tools, archive, sink, clock) => {}
                }
            });
        }
        while tasks.join_next().await.is_some() {}
    }
}

async fn run_group(
    mut group: Running,
    tools: Tools,
    archive: Arc<Mutex<Archive>>,
    sink: Arc<Mutex<Box<dyn Sink>>>,
    clock: Clock,
) {
    loop {
        let now = clock.now();
        let notices = group.catch_up(now, &tools).await;
        if !notices.is_empty() {
            let taken = sink.lock().unwrap_or_else(PoisonError::into_inner).take(notices, now);
            if let Err(reason) = taken {
                tracing::warn!(reason, "alerts of rules were not taken; they are told again");
            }
        }
        if let Some(slot) = group.last {
            store(&group, slot, Arc::clone(&archive)).await;
        }
        let next = group.slots.next(clock.now());
        let wait = u64::try_from(next.0 - clock.now().0).unwrap_or(0);
        tokio::time::sleep(Duration::from_nanos(wait.max(1_000_000))).await;
    }
}

/// Stores a group's alerts and its slot, off the threads that must not wait for a disk.
async fn store(group: &Running, slot: Timestamp, archive: Arc<Mutex<Archive>>) {
    let (alerts, tenant) = (group.to_store(), group.tenant.clone());
    let name = format!("group/{};{}", group.group.file, group.group.name);
    let written = tokio::task::spawn_blocking(move || {
        let borrowed = alerts
            .iter()
            .map(|(rule, alerts)| (rule.clone(), alerts.iter().map(|(labels, alert)| (labels, alert)).collect()))
            .collect();
        let mut archive = archive.lock().unwrap_or_else(PoisonError::into_inner);
        archive.write(&tenant, slot, &Write { alerts: borrowed, ..Write::default() })?;
        archive.set_meta(&tenant, &name, slot.0)
    });
    match written.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the state of alerts was not written; it is written with the next"),
        Err(error) => tracing::error!(%error, "the state of alerts was not written"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::file::read;
    use super::*;

    /// Answers from a script: rows while the query's time is in it.
    #[derive(Default)]
    struct Script {
        rows: Mutex<BTreeMap<String, Result<Vec<Row>, String>>>,
        asked: Mutex<Vec<String>>,
        recorded: Mutex<Vec<Recorded>>,
        expanded: AtomicUsize,
    }

    #[async_trait]
    impl Ask for Script {
        async fn ask(&self, _: &TenantId, sql: &str) -> Result<Vec<Row>, String> {
            self.asked.lock().unwrap().push(sql.to_owned());
            let rows = self.rows.lock().unwrap();
            rows.iter().find(|(part, _)| sql.contains(*part)).map_or_else(|| Ok(vec![]), |(_, answer)| answer.clone())
        }
    }

    #[async_trait]
    impl Record for Script {
        async fn record(&self, _: &TenantId, samples: Vec<Recorded>) -> Result<(), String> {
            self.recorded.lock().unwrap().extend(samples);
            Ok(())
        }
    }

    impl Expand for Script {
        fn expand(&self, template: &str, labels: &Labels, value: f64) -> Result<String, String> {
            self.expanded.fetch_add(1, Ordering::Relaxed);
            if template.contains("broken") {
                return Err("no such function".into());
            }
            Ok(template.replace("{{ $labels.pod }}", &labels["pod"]).replace("{{ $value }}", &value.to_string()))
        }
    }

    const RULES: &str = "
groups:
- name: g
  interval: 1m
  query_offset: 30s
  rules:
  - alert: A
    expr_sql: SELECT pod, value FROM a WHERE time < $now
    for: 20m
    labels: {severity: '{{ $labels.pod }}-high'}
    annotations: {summary: 'at {{ $value }}', broken: 'broken'}
  - record: r
    expr_sql: SELECT pod, value FROM r WHERE time < $now
";

    const MINUTE: i64 = 60_000_000_000;

    fn group() -> Group {
        read(&[("f", RULES)]).unwrap().remove(0)
    }

    fn tools(script: &Arc<Script>) -> Tools {
        Tools {
            ask: Arc::clone(script) as Arc<dyn Ask>,
            record: Arc::clone(script) as Arc<dyn Record>,
            expand: Arc::clone(script) as Arc<dyn Expand>,
        }
    }

    fn row(pod: &str) -> Row {
        Row { labels: Labels::from([("pod".into(), pod.into())]), value: 7.0 }
    }

    fn answer(script: &Script, table: &str, answer: Result<Vec<Row>, String>) {
        script.rows.lock().unwrap().insert(format!("FROM {table} "), answer);
    }

    #[test]
    fn slots_are_due_once_and_missed_ones_are_made_up() {
        let slots = Slots::of(&group());
        let first = slots.last(Timestamp(1_800_000_000_000_000_000));
        assert_eq!(slots.last(first), first);
        assert_eq!(slots.last(first.plus_nanos(-1)), first.plus_nanos(-MINUTE));
        assert_eq!(slots.next(first), first.plus_nanos(MINUTE));
        assert_eq!(slots.due(first, first.plus_nanos(MINUTE - 1)), []);
        assert_eq!(slots.due(first, first.plus_nanos(2 * MINUTE + 1)), [1, 2].map(|n| first.plus_nanos(n * MINUTE)));
        // A clock that went back is not asked again what it was asked.
        assert_eq!(slots.due(first, first.plus_nanos(-5 * MINUTE)), []);
        let long = slots.due(first, first.plus_nanos(10_000 * MINUTE));
        assert_eq!(
            (i64::try_from(long.len()).unwrap(), long.last()),
            (MAKE_UP_MAX, Some(&first.plus_nanos(10_000 * MINUTE)))
        );
    }

    #[tokio::test]
    async fn a_group_asks_records_and_alerts() {
        let script = Arc::new(Script::default());
        answer(&script, "a", Ok(vec![row("x")]));
        answer(&script, "r", Ok(vec![row("x"), row("y")]));
        let mut running = Running::new(group(), TenantId::default_tenant(), BTreeMap::new(), None);
        let start = running.slots.last(Timestamp(1_800_000_000_000_000_000));
        let mut told = Vec::new();
        for minute in 0..=20 {
            told = running.catch_up(start.plus_nanos(minute * MINUTE + 5), &tools(&script)).await;
            assert_eq!(told.len(), usize::from(minute == 20), "{minute}");
        }
        let notice = &told[0];
        let labels: Vec<_> = notice.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(labels, ["alertname=A", "pod=x", "severity=x-high"]);
        assert_eq!(notice.annotations["summary"], "at 7");
        assert_eq!(notice.annotations["broken"], "<error expanding template: no such function>");
        let asked = script.asked.lock().unwrap()[0].clone();
        assert_eq!(asked, format!("SELECT pod, value FROM a WHERE time < {}", sql_time(start.plus_nanos(-MINUTE / 2))));
        assert_eq!(script.recorded.lock().unwrap().len(), 42);

        // A query that fails changes nothing, and says so.
        answer(&script, "a", Err("no disk".into()));
        running.catch_up(start.plus_nanos(21 * MINUTE), &tools(&script)).await;
        let (_, alerts, health) = running.rules().next().unwrap();
        assert_eq!((alerts.count_active(), health.error.as_deref()), (1, Some("no disk")));
        // Two rows with the same labels are an error, too.
        answer(&script, "r", Ok(vec![row("x"), row("x")]));
        running.catch_up(start.plus_nanos(22 * MINUTE), &tools(&script)).await;
        assert!(running.rules().nth(1).unwrap().2.error.as_ref().unwrap().contains("same labels"));
    }

    #[tokio::test]
    async fn a_restart_makes_up_recordings_and_restores_alerts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rules.sqlite");
        let tenant = TenantId::default_tenant();
        let script = Arc::new(Script::default());
        answer(&script, "a", Ok(vec![row("x")]));
        answer(&script, "r", Ok(vec![row("x")]));
        struct Nowhere;
        impl Sink for Nowhere {
            fn take(&mut self, _: Vec<Notice>, _: Timestamp) -> Result<(), String> {
                Ok(())
            }
        }
        let build = || {
            let archive = Archive::open(&path).unwrap();
            Service::build(vec![group()], &tenant, archive, tools(&script), Box::new(Nowhere), Clock::System).unwrap()
        };
        let start = Slots::of(&group()).last(Timestamp(1_800_000_000_000_000_000));
        let mut service = build();
        for minute in 0..8 {
            service.groups[0].catch_up(start.plus_nanos(minute * MINUTE), &tools(&script)).await;
            let slot = service.groups[0].last.unwrap();
            store(&service.groups[0], slot, Arc::clone(&service.archive)).await;
        }
        drop(service);
        script.recorded.lock().unwrap().clear();
        // Down from minute 8 to 18: 10 slots.
        let mut service = build();
        let running = &mut service.groups[0];
        running.catch_up(start.plus_nanos(18 * MINUTE), &tools(&script)).await;
        assert_eq!(script.recorded.lock().unwrap().len(), 11, "one a slot");
        assert_eq!(running.to_store(), [], "not before it is restored");
        running.catch_up(start.plus_nanos(19 * MINUTE), &tools(&script)).await;
        let (_, alerts, _) = running.rules().next().unwrap();
        let (_, alert) = alerts.iter().next().unwrap();
        // Active at 0, down at 7, 13 minutes left of 20, which is above the grace of 10: the 12 minutes until
        // now are not counted.
        // Prometheus keeps whole seconds.
        let moved = start.plus_nanos(12 * MINUTE).0 - alert.active_at.0;
        assert!((0..1_000_000_000).contains(&moved), "{moved}");
        assert_eq!(running.to_store().len(), 1);
    }
}
