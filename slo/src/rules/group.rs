//! Groups of rules, running: when each evaluation is due, and what it does.
//!
//! A group is evaluated in slots of its interval, at an offset of its own so that not all come at once.
//! Slots that were missed while the server was busy are made up, each with its own time; after a restart
//! recording rules are made up and pending alerts restored ([`super::state`]). A rule whose query fails
//! leaves its alerts as they are (I10). Not here: SQL, templates and series, which are traits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use model::tenant::TenantId;
use model::time::{Clock, Timestamp};
use tokio::sync::mpsc;
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

/// A group whose last evaluation is so many intervals ago is late.
const LATE_INTERVALS: i64 = 3;

/// What names of rules begin with in the database.
const RULE_PREFIX: &str = "rules/";

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

/// How a group is, in the numbers that Prometheus has of its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupHealth {
    /// Its file and its name, as `FILE;NAME`.
    pub group: String,
    /// How often it is to be evaluated, milliseconds.
    pub interval_ms: i64,
    /// Its rules.
    pub rules: usize,
    /// Rounds: looks at the clock that found a slot due, what was made up counted as one.
    pub iterations: u64,
    /// Slots that were not evaluated in their time: made up later, or passed over.
    pub missed: u64,
    /// Evaluations of rules, and those that failed.
    pub evaluations: u64,
    /// See `evaluations`.
    pub failures: u64,
    /// The slot that was evaluated last; `None` before the first.
    pub evaluated_at: Option<Timestamp>,
    /// How long the last round took, nanoseconds.
    pub duration_ns: i64,
    /// What went wrong at the last evaluation of each rule, as `RULE: why`.
    pub errors: Vec<String>,
}

impl GroupHealth {
    /// What somebody should look at, a sentence each.
    #[must_use]
    pub fn problems(&self, now: Timestamp) -> Vec<String> {
        let group = &self.group;
        let mut found: Vec<String> = self.errors.iter().map(|error| format!("rule group {group}: {error}")).collect();
        let late_ms = self.evaluated_at.map_or(0, |at| (now.0 - at.0) / NANOS_PER_MS);
        if late_ms > LATE_INTERVALS * self.interval_ms {
            let late = late_ms / 1_000;
            found.push(format!("rule group {group} was not evaluated for {late} s: its queries take too long"));
        }
        found
    }
}

/// How every group is, for whoever asks. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct GroupBoard(Arc<Mutex<BTreeMap<String, GroupHealth>>>);

impl GroupBoard {
    /// Every group, by file and name.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupHealth> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, GroupHealth>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
    counted: GroupHealth,
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
            counted: GroupHealth {
                group: group_name(&group),
                interval_ms: group.interval_ms,
                rules,
                ..GroupHealth::default()
            },
            group,
        };
        let stored: Vec<_> = (0..rules).map(|at| stored.remove(&running.rule_name(at)).unwrap_or_default()).collect();
        // Without anything of before there is no restart to be bridged.
        running.stored = stored.iter().any(|of_rule| !of_rule.is_empty()).then_some(stored);
        running
    }

    /// A group that takes another one's place: rules of the same name and labels keep their alerts, as in Prometheus.
    #[must_use]
    pub fn instead_of(group: Group, mut before: Self) -> Self {
        if group == before.group {
            return before;
        }
        let mut running = Self::new(group, before.tenant.clone(), BTreeMap::new(), before.last);
        running.evaluations = before.evaluations;
        running.counted.iterations = before.counted.iterations;
        running.counted.missed = before.counted.missed;
        running.counted.evaluations = before.counted.evaluations;
        running.counted.failures = before.counted.failures;
        let names: Vec<String> = (0..before.group.rules.len()).map(|at| before.rule_name(at)).collect();
        let mut stored = before.stored.take();
        let mut kept = vec![BTreeMap::new(); running.group.rules.len()];
        for (at, kept) in kept.iter_mut().enumerate() {
            let name = running.rule_name(at);
            let Some(from) = names.iter().position(|known| *known == name) else { continue };
            running.alerts[at] = std::mem::take(&mut before.alerts[from]);
            running.health[at] = std::mem::take(&mut before.health[from]);
            if let Some(stored) = &mut stored {
                *kept = std::mem::take(&mut stored[from]);
            }
        }
        running.stored = stored.map(|_| kept);
        running
    }

    /// How it is.
    #[must_use]
    pub fn health(&self) -> GroupHealth {
        let errors = self.group.rules.iter().zip(&self.health);
        let errors = errors.filter_map(|(rule, health)| Some(format!("{}: {}", rule.name, health.error.as_ref()?)));
        GroupHealth { evaluated_at: self.last, errors: errors.collect(), ..self.counted.clone() }
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
        format!("{RULE_PREFIX}{file};{name};{};{};{before}", rule.name, labels.join(","))
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
        self.counted.iterations += 1;
        if let (Some(last), false) = (self.last, restarted) {
            // All slots since, also those that were too many to be made up.
            let slots = (newest.0 - last.0) / (self.group.interval_ms.max(1) * NANOS_PER_MS);
            self.counted.missed += u64::try_from(slots - 1).unwrap_or(0);
        }
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

    /// Evaluates every rule at a time, whatever the group's slots are: for tests of rules, as promtool has it.
    pub async fn evaluate_at(&mut self, at: Timestamp, tools: &Tools) {
        self.evaluate(at, tools, false).await;
        self.last = Some(at);
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
            self.counted.evaluations += 1;
            self.counted.failures += u64::from(result.is_err());
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
    let mut seen = BTreeSet::new();
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
    tenant: TenantId,
    board: GroupBoard,
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
        mut archive: Archive,
        tools: Tools,
        sink: Box<dyn Sink>,
        clock: Clock,
    ) -> Result<Self, SloError> {
        let mut stored: BTreeMap<String, BTreeMap<Labels, Stored>> = BTreeMap::new();
        forget_others(&mut archive, tenant, &groups, clock.now())?;
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
        let (tenant, board) = (tenant.clone(), GroupBoard::default());
        Ok(Self { groups: running, tools, archive, sink, clock, tenant, board })
    }

    /// How its groups are, while it runs.
    #[must_use]
    pub fn board(&self) -> GroupBoard {
        self.board.clone()
    }

    /// Runs until it is told to stop. Groups that come through `reloads` take the place of those that run, once these
    /// have ended the evaluation that they are at.
    pub async fn run(mut self, stop: CancellationToken, mut reloads: mpsc::Receiver<Vec<Group>>) {
        loop {
            let enough = CancellationToken::new();
            let mut tasks = tokio::task::JoinSet::new();
            for group in std::mem::take(&mut self.groups) {
                let tools = Around {
                    tools: self.tools.clone(),
                    archive: Arc::clone(&self.archive),
                    sink: Arc::clone(&self.sink),
                    clock: self.clock.clone(),
                    board: self.board.clone(),
                };
                tasks.spawn(stop.clone().run_until_cancelled_owned(run_group(group, tools, enough.clone())));
            }
            let fresh = tokio::select! {
                () = stop.cancelled() => None,
                fresh = reloads.recv() => fresh,
            };
            let Some(fresh) = fresh else {
                // Nobody reloads any more: what runs runs on.
                while tasks.join_next().await.is_some() {}
                stop.cancelled().await;
                return;
            };
            enough.cancel();
            let mut before = Vec::new();
            while let Some(ended) = tasks.join_next().await {
                before.extend(ended.ok().flatten());
            }
            if stop.is_cancelled() {
                return;
            }
            self.replace(fresh, before).await;
        }
    }

    /// Puts groups in the place of others.
    async fn replace(&mut self, fresh: Vec<Group>, mut before: Vec<Running>) {
        let (archive, tenant, now) = (Arc::clone(&self.archive), self.tenant.clone(), self.clock.now());
        let groups = fresh.clone();
        let forgetting = tokio::task::spawn_blocking(move || {
            forget_others(&mut archive.lock().unwrap_or_else(PoisonError::into_inner), &tenant, &groups, now)
        });
        match forgetting.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "alerts of rules that are gone are still on disk"),
            Err(error) => tracing::error!(%error, "alerts of rules that are gone are still on disk"),
        }
        self.board.lock().clear();
        for group in fresh {
            let name = group_name(&group);
            let known = before.iter().position(|running| group_name(&running.group) == name);
            self.groups.push(match known {
                Some(at) => Running::instead_of(group, before.swap_remove(at)),
                None => Running::new(group, self.tenant.clone(), BTreeMap::new(), None),
            });
        }
    }
}

/// A group's name among all files, also in the database.
fn group_name(group: &Group) -> String {
    format!("{};{}", group.file, group.name)
}

/// Forgets the alerts of rules that are in no file any more: nobody would ever end them.
fn forget_others(archive: &mut Archive, tenant: &TenantId, groups: &[Group], now: Timestamp) -> Result<(), SloError> {
    let running = groups.iter().map(|group| Running::new(group.clone(), tenant.clone(), BTreeMap::new(), None));
    let known: BTreeSet<String> = running
        .flat_map(|group| (0..group.group.rules.len()).map(|at| group.rule_name(at)).collect::<Vec<_>>())
        .collect();
    let stored: BTreeSet<String> = archive.load_alerts(tenant)?.into_iter().map(|stored| stored.rule).collect();
    let gone = stored.into_iter().filter(|rule| rule.starts_with(RULE_PREFIX) && !known.contains(rule));
    let alerts: Vec<_> = gone.map(|rule| (rule, Vec::new())).collect();
    if alerts.is_empty() { Ok(()) } else { archive.write(tenant, now, &Write { alerts, ..Write::default() }) }
}

/// What a running group has around it.
struct Around {
    tools: Tools,
    archive: Arc<Mutex<Archive>>,
    sink: Arc<Mutex<Box<dyn Sink>>>,
    clock: Clock,
    board: GroupBoard,
}

/// Runs a group until it is enough, and gives it back as it is then.
async fn run_group(mut group: Running, around: Around, enough: CancellationToken) -> Running {
    let Around { tools, archive, sink, clock, board } = around;
    loop {
        let now = clock.now();
        let notices = group.catch_up(now, &tools).await;
        group.counted.duration_ns = clock.now().0.saturating_sub(now.0).max(0);
        board.lock().insert(group.counted.group.clone(), group.health());
        // First on disk: whoever sees the alert can see what made it.
        if let Some(slot) = group.last {
            store(&group, slot, Arc::clone(&archive)).await;
        }
        if !notices.is_empty() {
            let taken = sink.lock().unwrap_or_else(PoisonError::into_inner).take(notices, now);
            if let Err(reason) = taken {
                tracing::warn!(reason, "alerts of rules were not taken; they are told again");
            }
        }
        let next = group.slots.next(clock.now());
        let wait = u64::try_from(next.0 - clock.now().0).unwrap_or(0);
        let wait = tokio::time::sleep(Duration::from_nanos(wait.max(1_000_000)));
        if enough.run_until_cancelled(wait).await.is_none() {
            return group;
        }
    }
}

/// Stores a group's alerts and its slot, off the threads that must not wait for a disk.
async fn store(group: &Running, slot: Timestamp, archive: Arc<Mutex<Archive>>) {
    let (alerts, tenant) = (group.to_store(), group.tenant.clone());
    let name = format!("group/{}", group_name(&group.group));
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
    async fn a_reload_keeps_the_alerts_of_rules_that_stay() {
        let script = Arc::new(Script::default());
        answer(&script, "a", Ok(vec![row("x")]));
        let start = Slots::of(&group()).last(Timestamp(1_800_000_000_000_000_000));
        let same = |text: &str, with: &str| read(&[("f", &RULES.replace(text, with))]).unwrap().remove(0);
        for (what, fresh, keeps) in [
            ("nothing changed", group(), true),
            ("another query", same("FROM a", "FROM a  "), true),
            ("another hold", same("for: 20m", "for: 10m"), true),
            ("other labels", same("-high", "-low"), false),
            ("another name", same("alert: A", "alert: B"), false),
        ] {
            let mut running = Running::new(group(), TenantId::default_tenant(), BTreeMap::new(), None);
            for minute in 0..8 {
                running.catch_up(start.plus_nanos(minute * MINUTE), &tools(&script)).await;
            }
            let before = running.health();
            assert_eq!((before.iterations, before.missed, before.evaluations, before.failures), (8, 0, 16, 0));
            let running = Running::instead_of(fresh, running);
            let active: Vec<Timestamp> =
                running.rules().flat_map(|(_, alerts, _)| alerts.iter().map(|(_, alert)| alert.active_at)).collect();
            assert_eq!(active, if keeps { vec![start] } else { vec![] }, "{what}");
            assert_eq!(running.health().iterations, 8, "{what}: it counts on");
        }
    }

    #[tokio::test]
    async fn missed_rounds_and_failures_are_counted_and_told() {
        let script = Arc::new(Script::default());
        answer(&script, "a", Err("no disk".into()));
        let mut running = Running::new(group(), TenantId::default_tenant(), BTreeMap::new(), None);
        let start = running.slots.last(Timestamp(1_800_000_000_000_000_000));
        for minute in [0, 1, 5, 1_000] {
            running.catch_up(start.plus_nanos(minute * MINUTE), &tools(&script)).await;
        }
        let health = running.health();
        // Three missed before minute 5, and 994 before minute 1,000, most of which nobody makes up.
        assert_eq!((health.iterations, health.missed), (4, 3 + 994));
        assert_eq!((health.evaluations, health.failures), (2 * (1 + 1 + 4 + 120), 1 + 1 + 4 + 120));
        let now = start.plus_nanos(1_000 * MINUTE);
        assert_eq!(health.problems(now), ["rule group f;g: A: no disk"]);
        let late = &health.problems(now.plus_nanos(4 * MINUTE))[1];
        assert!(late.contains("not evaluated for 240 s"), "{late}");
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
