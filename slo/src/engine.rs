//! The parts together: batches in, alerts and statuses out.
//!
//! [`Engine`] is synchronous and takes now as an argument (I5): it counts batches, evaluates every SLO in
//! a round, moves the alerts on and writes down what changed. [`Service`] runs it on a thread of its own
//! behind a bounded queue; a batch that finds the queue full is not lost but recounted from stored
//! telemetry. Not here: how telemetry is read and where alerts go, which are traits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::TimestampNanosecondType;
use hashbrown::HashMap;
use model::signal::Table;
use model::tenant::TenantId;
use model::time::{Clock, Timestamp};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::archive::{Archive, HistoryPoint, Write};
use crate::burn::{
    Budget, Burn, Data, FORECAST_WINDOW_MS, Guard, Judged, Reading, Rung, Verdict, budget, data, exhaustion, judge,
    rate_milli, workbook,
};
use crate::counts::{BUCKET_MS, Counts, Events, LATE_AFTER_MS, Row, Series, Slices, WIDTHS, bucket_of};
use crate::duration::display_ms;
use crate::error::SloError;
use crate::matcher::{Example, Matcher, Tally, scaled_ratio, whole};
use crate::openslo::{Alerts as SloAlerts, Method, Policy, Slo};
use crate::rules::state::{Alerts, Hold, Labels, Notice, RESEND_DELAY_MS, Sample, State};
use crate::sli::{Indicator, Measure, RATIO_SCALE, Term};
use crate::window::{NANOS_PER_MS, Period};

const HOUR_MS: i64 = BUCKET_MS * WIDTHS[2];

/// How much before a recounted stretch is read, so that cumulative series have a last point.
const PRIME_MS: i64 = 600_000;

/// A recount reads so much at once; what it found is held in memory.
const RECOUNT_STEP_MS: i64 = 24 * HOUR_MS;

/// How long a start waits before it tries again to read stored telemetry, in steps in which it can be stopped.
const CATCH_UP_PAUSES: u32 = 50;
const CATCH_UP_PAUSE: Duration = Duration::from_millis(200);

/// An event that is further ahead of the clock is nobody's example: it would stay the newest for as long.
const AHEAD_MAX_MS: i64 = 60_000;

/// What names of what alerts begin with in the database.
const RULE_PREFIX: &str = "slo/";

/// Documents that wait to take the place of those that run.
const RELOADS_MAX: usize = 4;

/// How often SQL sources are asked, and old rows are forgotten.
const SQL_INTERVAL_MS: i64 = 60_000;
const EXPIRE_INTERVAL_MS: i64 = 600_000;

/// The number of the last log record that was seen of each table, by [`Table::index`].
pub type Seen = [u64; Table::COUNT];

/// Everything that can be set.
#[derive(Clone, Debug)]
pub struct Config {
    /// How often every SLO is evaluated, milliseconds.
    pub evaluate_interval_ms: i64,
    /// How often what changed is written to disk, milliseconds. After a crash, what was counted since is
    /// recounted.
    pub persist_interval_ms: i64,
    /// How often a point of history is kept, milliseconds.
    pub history_interval_ms: i64,
    /// How long an SLO may be silent before it has no data, milliseconds.
    pub silent_ms: i64,
    /// For how long an alert fires on after it ended, milliseconds.
    pub keep_firing_for_ms: i64,
    /// How often a firing alert is told again, milliseconds.
    pub resend_delay_ms: i64,
    /// The burn-rate table of SLOs without alert policies.
    pub table: Vec<Rung>,
    /// The low-traffic guard.
    pub guard: Guard,
    /// Batches that may wait to be counted. Past it they are recounted from stored telemetry.
    pub queue_batches: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            evaluate_interval_ms: 1_000,
            persist_interval_ms: 10_000,
            history_interval_ms: 300_000,
            silent_ms: 600_000,
            keep_firing_for_ms: 0,
            resend_delay_ms: RESEND_DELAY_MS,
            table: workbook(),
            guard: Guard::default(),
            queue_batches: 256,
        }
    }
}

/// Stored telemetry, to recount from. Called on a thread that may block.
pub trait Telemetry: Send + Sync {
    /// Gives every stored batch of a table with rows from a time up to another: these columns or more, in the schema
    /// of [`model::schema::schema`], rows of a series in order of time. Rows outside the times may be among
    /// them. Returns the number of the last log record that was seen, so that a batch that also waits in
    /// the queue is not counted twice.
    ///
    /// # Errors
    /// Why it cannot be read, in words.
    fn scan(
        &self,
        tenant: &TenantId,
        table: Table,
        columns: &[&str],
        from: Timestamp,
        to: Timestamp,
        each: &mut dyn FnMut(&RecordBatch),
    ) -> Result<u64, String>;

    /// The rows of a query of `time` and `value`.
    ///
    /// # Errors
    /// Why it cannot be answered, in words.
    fn query(&self, tenant: &TenantId, sql: &str) -> Result<Vec<(Timestamp, f64)>, String>;
}

/// Where alerts go.
pub trait Sink: Send {
    /// Takes alerts that fire or ended. What is refused is told again after `resend_delay_ms`.
    ///
    /// # Errors
    /// Why it was not taken, in words.
    fn take(&mut self, notices: Vec<Notice>, now: Timestamp) -> Result<(), String>;
}

/// The counts of one indicator, and by slice where objectives ask for slices.
#[derive(Debug)]
struct Tracked {
    key: u64,
    indicator: Indicator,
    reach_ms: i64,
    series: Series,
    slices: Vec<(u64, Slices)>,
    /// The newest bad event that is known, for people to look at. Not on disk: an alert that was told keeps its own.
    example: Option<Example>,
    /// Nothing of it was on disk: it is to be counted from the beginning of what is stored.
    is_new: bool,
}

impl Tracked {
    fn add(&mut self, bucket: i64, counts: Counts, now_bucket: i64) {
        self.series.add(bucket, counts, now_bucket);
        for (_, slices) in &mut self.slices {
            slices.add(bucket, counts, now_bucket);
        }
    }

    /// Keeps the newer event, unless its sender's clock is ahead.
    fn show(&mut self, example: Example, now: Timestamp) {
        let is_newer = self.example.is_none_or(|known| known.time <= example.time);
        if is_newer && example.time <= now.plus_nanos(AHEAD_MAX_MS * NANOS_PER_MS).0 {
            self.example = Some(example);
        }
    }
}

/// Where an objective's counts are.
#[derive(Clone, Copy, Debug)]
struct Place {
    tracked: usize,
    slices: Option<usize>,
}

/// One thing that can alert about an SLO.
#[derive(Debug)]
struct Watch {
    /// Its name in the database.
    rule: String,
    rung: Rung,
    policy: Option<Policy>,
    /// Alerts when there is no data, instead of when it burns.
    of_silence: bool,
    /// By objective; one for all of a composite SLO.
    alerts: Vec<Alerts>,
    dirty: bool,
}

#[derive(Debug)]
struct Watched {
    slo: Arc<Slo>,
    places: Vec<Place>,
    watches: Vec<Watch>,
}

/// Whether an SLO is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// There is budget, and it does not burn too fast.
    Ok,
    /// The budget is used up.
    Exhausted,
    /// An alert fires.
    Burning,
    /// There is nothing to judge (I10).
    NoData,
}

impl Health {
    /// As the API writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Exhausted => "exhausted",
            Self::Burning => "burning",
            Self::NoData => "no_data",
        }
    }
}

/// What one objective is like.
#[derive(Clone, Debug, PartialEq)]
pub struct ObjectiveStatus {
    /// The period of the budget.
    pub period: Period,
    /// What happened in it.
    pub events: Events,
    /// Its budget.
    pub budget: Budget,
    /// When the budget will be used up, if it goes on so.
    pub exhausts_at: Option<Timestamp>,
    /// Whether there is telemetry.
    pub data: Data,
    /// Each rung in the order of the SLO's, judged.
    pub judged: Vec<Judged>,
    /// Whether an alert about it fires.
    pub firing: bool,
}

/// What one SLO is like.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The SLO.
    pub slo: Arc<Slo>,
    /// The rungs that its objectives are judged by.
    pub rungs: Arc<[Rung]>,
    /// When.
    pub at: Timestamp,
    /// How it is.
    pub health: Health,
    /// Its objectives, in order.
    pub objectives: Vec<ObjectiveStatus>,
    /// Of a composite SLO, the budget left of all objectives by weight, in thousandths.
    pub composite_remaining_milli: Option<i64>,
}

/// A status for people and programs: what `/api/v1/slos` and `slo status` give.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The SLO's name.
    pub slo: String,
    /// Its display name.
    pub title: String,
    /// Its service.
    pub service: String,
    /// How it is.
    pub health: Health,
    /// The length of its window.
    pub window: String,
    /// Of a composite SLO, the share of the budget that is left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub composite_budget_remaining: Option<f64>,
    /// The objectives.
    pub objectives: Vec<ObjectiveReport>,
    /// Where it is defined.
    pub defined_at: String,
}

/// An objective's status for people and programs. Times are milliseconds since the epoch.
#[derive(Clone, Debug, Serialize)]
pub struct ObjectiveReport {
    /// Its name.
    pub name: String,
    /// Its target, 0 to 1.
    pub target: f64,
    /// The SLI, 0 to 1; absent without data.
    pub sli: Option<f64>,
    /// Good events (or slices) in the period.
    pub good: u64,
    /// All of them.
    pub total: u64,
    /// Bad ones that the period may have.
    pub budget_allowed: u64,
    /// Bad ones that it had.
    pub budget_spent: u64,
    /// The share of the budget that is left; negative when it is overdrawn.
    pub budget_remaining: f64,
    /// When the period began.
    pub period_start_ms: i64,
    /// When it ends.
    pub period_end_ms: i64,
    /// When the budget will be used up, if it goes on so.
    pub exhausts_at_ms: Option<i64>,
    /// Whether there is telemetry.
    #[serde(flatten)]
    pub data: Data,
    /// The burn rates.
    pub burn: Vec<BurnReport>,
}

/// A rung's status for people and programs.
#[derive(Clone, Debug, Serialize)]
pub struct BurnReport {
    /// Its name.
    pub name: String,
    /// Its severity.
    pub severity: String,
    /// The burn rate to exceed.
    pub threshold: f64,
    /// The long window.
    pub long_window: String,
    /// Its burn rate; absent without data.
    pub long_rate: Option<f64>,
    /// The short window.
    pub short_window: Option<String>,
    /// Its burn rate; absent without data.
    pub short_rate: Option<f64>,
    /// The verdict.
    pub verdict: Verdict,
}

#[expect(clippy::cast_precision_loss, reason = "for display")]
fn milli_ratio(milli: i64) -> f64 {
    milli as f64 / 1e3
}

impl Status {
    /// The status as it is shown.
    #[must_use]
    pub fn report(&self) -> Report {
        let rate = |burn: &Burn| burn.rate_milli.map(|milli| milli_ratio(i64::try_from(milli).unwrap_or(i64::MAX)));
        let burn_report = |(rung, judged): (&Rung, &Judged)| BurnReport {
            name: rung.name.clone(),
            severity: rung.severity.clone(),
            threshold: milli_ratio(i64::try_from(rung.threshold_milli).unwrap_or(i64::MAX)),
            long_window: display_ms(rung.long_ms),
            long_rate: rate(&judged.long),
            short_window: rung.short_ms.map(display_ms),
            short_rate: judged.short.as_ref().and_then(rate),
            verdict: judged.verdict,
        };
        let objectives = self.slo.objectives.iter().zip(&self.objectives).map(|(objective, status)| ObjectiveReport {
            name: objective.name.clone(),
            target: objective.target.ratio(),
            sli: status.events.ratio(),
            good: status.events.good,
            total: status.events.total,
            budget_allowed: status.budget.allowed,
            budget_spent: status.budget.spent,
            budget_remaining: milli_ratio(status.budget.remaining_milli()),
            period_start_ms: status.period.start.0 / NANOS_PER_MS,
            period_end_ms: status.period.end.0 / NANOS_PER_MS,
            exhausts_at_ms: status.exhausts_at.map(|at| at.0 / NANOS_PER_MS),
            data: status.data,
            burn: self.rungs.iter().zip(&status.judged).map(burn_report).collect(),
        });
        Report {
            slo: self.slo.name.clone(),
            title: self.slo.title.clone(),
            service: self.slo.service.clone(),
            health: self.health,
            window: self.slo.window.written(),
            composite_budget_remaining: self.composite_remaining_milli.map(milli_ratio),
            objectives: objectives.collect(),
            defined_at: self.slo.defined_at.clone(),
        }
    }
}

/// What a round of evaluation gives.
#[derive(Debug)]
pub struct Round {
    /// Every SLO.
    pub statuses: Vec<Status>,
    /// Alerts to be told.
    pub notices: Vec<Notice>,
}

/// Counts and evaluates the SLOs of one tenant.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    tenant: TenantId,
    tracked: Vec<Tracked>,
    watched: Vec<Watched>,
    rungs: Vec<Arc<[Rung]>>,
    matcher: Matcher,
    tally: Tally,
    archive: Archive,
    longest_ms: i64,
    counted_until: Option<Timestamp>,
    history_at: Option<Timestamp>,
    history: Vec<HistoryPoint>,
}

/// Reads a series or its slices.
struct Counted<'a> {
    tracked: &'a Tracked,
    slices: Option<&'a Slices>,
    /// The bucket that now is in. A slice is judged when it is over.
    now: i64,
}

impl Reading for Counted<'_> {
    fn between(&self, from: i64, to: i64) -> Events {
        match self.slices {
            Some(slices) => slices.between(from, to.min(self.now)),
            None => self.tracked.series.between(from, to).as_good(self.tracked.indicator.part),
        }
    }

    fn recent(&self, buckets: i64, now: i64) -> Events {
        match self.slices {
            Some(slices) => slices.recent(buckets, now),
            None => self.between(now - buckets, now + 1),
        }
    }

    fn last(&self) -> Option<i64> {
        self.tracked.series.last()
    }
}

impl Engine {
    /// Builds the engine over a database: counts and alerts of before are there again.
    ///
    /// # Errors
    /// [`SloError`] of the database.
    pub fn build(
        config: Config,
        tenant: TenantId,
        slos: Vec<Slo>,
        mut archive: Archive,
        now: Timestamp,
    ) -> Result<Self, SloError> {
        let mut tracked: Vec<Tracked> = Vec::new();
        let mut by_key: HashMap<u64, usize> = HashMap::new();
        let mut watched = Vec::new();
        let mut rungs = Vec::new();
        let mut longest_ms = HOUR_MS;
        for slo in slos {
            let watches = watches(&config, &slo);
            let rung_reach = watches.iter().map(|watch| watch.rung.long_ms).max().unwrap_or(0);
            let reach_ms = slo.window.longest_ms().max(rung_reach);
            longest_ms = longest_ms.max(reach_ms);
            let mut places = Vec::new();
            for objective in &slo.objectives {
                let key = objective.indicator.key();
                let at = *by_key.entry(key).or_insert_with(|| {
                    tracked.push(Tracked {
                        key,
                        indicator: objective.indicator.clone(),
                        reach_ms,
                        series: Series::new(reach_ms),
                        slices: Vec::new(),
                        example: None,
                        is_new: true,
                    });
                    tracked.len() - 1
                });
                let entry = &mut tracked[at];
                entry.reach_ms = entry.reach_ms.max(reach_ms);
                let slices = objective.slice.map(|slice| {
                    let name = format!("{} slices {slice:?} {:?} {reach_ms}", objective.indicator, slo.method);
                    let slice_key = xxhash_rust::xxh3::xxh3_64(name.as_bytes());
                    entry.slices.iter().position(|(known, _)| *known == slice_key).unwrap_or_else(|| {
                        let slices = Slices::new(objective.indicator.part, slice, slo.method, reach_ms);
                        entry.slices.push((slice_key, slices));
                        entry.slices.len() - 1
                    })
                });
                places.push(Place { tracked: at, slices });
            }
            rungs.push(watches.iter().filter(|watch| !watch.of_silence).map(|watch| watch.rung.clone()).collect());
            watched.push(Watched { slo: Arc::new(slo), places, watches });
        }
        let names: Vec<(u64, String)> = tracked
            .iter()
            .flat_map(|tracked| {
                let slices = tracked.slices.iter().map(|(key, _)| (*key, format!("{} by slice", tracked.indicator)));
                std::iter::once((tracked.key, tracked.indicator.to_string())).chain(slices)
            })
            .collect();
        archive.set_series(&tenant, &names)?;
        let mut stored = archive.load_counts(&tenant)?;
        for tracked in &mut tracked {
            match stored.remove(&tracked.key) {
                Some(rows) => {
                    tracked.series = Series::restore(tracked.reach_ms, &rows);
                    tracked.is_new = false;
                }
                None => tracked.series.extend(tracked.reach_ms),
            }
            for (key, slices) in &mut tracked.slices {
                match stored.remove(key) {
                    Some(rows) => slices.restore(&rows),
                    // Counted before, but not by slice.
                    None => tracked.is_new = true,
                }
            }
        }
        let mut alerts: BTreeMap<(String, Labels), crate::rules::state::Alert> = BTreeMap::new();
        for stored in archive.load_alerts(&tenant)? {
            alerts.insert((stored.rule, stored.labels), stored.alert);
        }
        // What no SLO alerts about any more would never end.
        let rules: BTreeSet<&str> =
            watched.iter().flat_map(|watched| &watched.watches).map(|watch| watch.rule.as_str()).collect();
        let gone: BTreeSet<&String> = alerts.keys().map(|(rule, _)| rule).collect();
        let gone = gone.into_iter().filter(|rule| rule.starts_with(RULE_PREFIX) && !rules.contains(rule.as_str()));
        let gone: Vec<_> = gone.map(|rule| (rule.clone(), Vec::new())).collect();
        if !gone.is_empty() {
            archive.write(&tenant, now, &Write { alerts: gone, ..Write::default() })?;
        }
        for watched in &mut watched {
            let slo = Arc::clone(&watched.slo);
            for watch in &mut watched.watches {
                for index in 0..watch.alerts.len() {
                    let labels = watch.labels(&slo, index);
                    if let Some(alert) = alerts.remove(&(watch.rule.clone(), labels.clone())) {
                        watch.alerts[index].insert(labels, alert);
                    }
                }
            }
        }
        let counted_until = archive.meta(&tenant, "counted_until")?.map(Timestamp);
        let indicators: Vec<Indicator> = tracked.iter().map(|tracked| tracked.indicator.clone()).collect();
        Ok(Self {
            matcher: Matcher::new(&indicators, now),
            config,
            tenant,
            tracked,
            watched,
            rungs,
            tally: Tally::default(),
            archive,
            longest_ms,
            counted_until,
            history_at: None,
            history: Vec::new(),
        })
    }

    /// The tenant whose telemetry is counted.
    #[must_use]
    pub const fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Whether any SLO counts rows of a table.
    #[must_use]
    pub fn watches(&self, table: Table) -> bool {
        self.matcher.watches(table)
    }

    /// Counts a committed batch of the tenant.
    pub fn observe(&mut self, table: Table, batch: &RecordBatch, now: Timestamp) {
        self.matcher.count(table, batch, &mut self.tally);
        if !self.tally.is_empty() {
            self.take_tally(now);
        }
    }

    /// Puts what was counted where it is judged and written from. Batches are counted by kinds of rows until then.
    fn settle(&mut self, now: Timestamp) {
        self.matcher.flush(&mut self.tally);
        self.take_tally(now);
    }

    fn take_tally(&mut self, now: Timestamp) {
        let now_bucket = bucket_of(now.0);
        for (indicator, bucket, counts) in self.tally.drain() {
            self.tracked[indicator as usize].add(bucket, counts, now_bucket);
        }
        for (indicator, example) in self.tally.drain_examples() {
            self.tracked[indicator as usize].show(example, now);
        }
    }

    /// What each series counts, in the order of their numbers.
    pub fn indicators(&self) -> impl Iterator<Item = &Indicator> {
        self.tracked.iter().map(|tracked| &tracked.indicator)
    }

    /// How far back the longest window reaches, milliseconds.
    #[must_use]
    pub const fn reach_ms(&self) -> i64 {
        self.longest_ms
    }

    /// Counts stored telemetry from a time up to another, by series and bucket, and keeps nothing of it: for a
    /// backtest, which adds the counts when their time comes ([`Engine::add_at`]).
    ///
    /// # Errors
    /// [`SloError::Telemetry`].
    pub fn count_stored(
        &self,
        telemetry: &dyn Telemetry,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<BTreeMap<i64, Counts>>, SloError> {
        let indicators: Vec<Indicator> = self.indicators().cloned().collect();
        let mut matcher = Matcher::new(&indicators, from);
        let mut all: Vec<BTreeMap<i64, Counts>> = vec![BTreeMap::new(); indicators.len()];
        let mut scan = Scan { telemetry, tenant: &self.tenant, seen: Seen::default(), prime_ms: PRIME_MS };
        let (mut start, end) = (from.0 / NANOS_PER_MS, to.0 / NANOS_PER_MS);
        while start < end {
            let until = start.saturating_add(RECOUNT_STEP_MS).min(end);
            let (mut found, _) = scan.rows(&mut matcher, indicators.len(), start, until)?;
            for (indicator, found) in indicators.iter().zip(&mut found) {
                scan.sql(indicator, start, until, found)?;
            }
            for (all, found) in all.iter_mut().zip(found) {
                for (bucket, counts) in found {
                    let sum = all.entry(bucket).or_default();
                    *sum = sum.plus(counts);
                }
            }
            start = until;
        }
        Ok(all)
    }

    /// Counts what happened in a bucket to the series of that number: for those who have counts and no batches.
    pub fn add_at(&mut self, number: usize, bucket: i64, counts: Counts, now: Timestamp) {
        self.tracked[number].add(bucket, counts, bucket_of(now.0));
    }

    /// Recounts from stored telemetry: what was committed since the last write of before a restart, and
    /// of new SLOs everything that is stored. Returns the last log record that was seen of each table.
    ///
    /// # Errors
    /// [`SloError::Telemetry`].
    pub fn catch_up(&mut self, telemetry: &dyn Telemetry, now: Timestamp) -> Result<Seen, SloError> {
        let now_ms = now.0 / NANOS_PER_MS;
        let fresh: Vec<usize> = (0..self.tracked.len()).filter(|at| self.tracked[*at].is_new).collect();
        if !fresh.is_empty() {
            let reach = fresh.iter().map(|at| self.tracked[*at].reach_ms).max().unwrap_or(0);
            let indicators: Vec<Indicator> = fresh.iter().map(|at| self.tracked[*at].indicator.clone()).collect();
            // What started before telemetry was kept is not known to have been new at its first point.
            let since = Timestamp((now_ms - reach - PRIME_MS).saturating_mul(NANOS_PER_MS));
            let mut matcher = Matcher::new(&indicators, since);
            let (_, failed) = self.recount(telemetry, &mut matcher, &fresh, (now_ms - reach, now_ms), i64::MIN)?;
            warn_of_sql(failed);
        }
        let until = self.counted_until.unwrap_or(now);
        self.recount_from(telemetry, until.0 / NANOS_PER_MS, now, bucket_of(until.0))
    }

    /// Recounts every SLO from a time in milliseconds on: batches were passed over.
    ///
    /// # Errors
    /// [`SloError::Telemetry`].
    pub fn recount_all(&mut self, telemetry: &dyn Telemetry, from_ms: i64, now: Timestamp) -> Result<Seen, SloError> {
        self.recount_from(telemetry, from_ms, now, bucket_of(now.0) - LATE_AFTER_MS / BUCKET_MS)
    }

    fn recount_from(
        &mut self,
        telemetry: &dyn Telemetry,
        from_ms: i64,
        now: Timestamp,
        known_until: i64,
    ) -> Result<Seen, SloError> {
        self.settle(now);
        let now_ms = now.0 / NANOS_PER_MS;
        let all: Vec<usize> = (0..self.tracked.len()).collect();
        let indicators: Vec<Indicator> = self.tracked.iter().map(|tracked| tracked.indicator.clone()).collect();
        // What started before is not known to have been watched from its first point on.
        let since = Timestamp(from_ms.saturating_sub(PRIME_MS).saturating_mul(NANOS_PER_MS));
        let mut matcher = Matcher::new(&indicators, since);
        let oldest = now_ms - self.longest_ms;
        let from_ms = from_ms.max(oldest).min(now_ms);
        let (seen, failed) = self.recount(telemetry, &mut matcher, &all, (from_ms, now_ms), known_until)?;
        warn_of_sql(failed);
        self.matcher = matcher;
        for tracked in &mut self.tracked {
            tracked.is_new = false;
        }
        Ok(seen)
    }

    /// Recounts some of the series from a time on, a day at a time, replacing whole hours. A SQL source that gives no
    /// answer keeps what was counted, and the first such error is returned beside.
    fn recount(
        &mut self,
        telemetry: &dyn Telemetry,
        matcher: &mut Matcher,
        which: &[usize],
        (from_ms, now_ms): (i64, i64),
        known_until: i64,
    ) -> Result<(Seen, Option<SloError>), SloError> {
        let mut failed = None;
        let tenant = self.tenant.clone();
        let mut scan = Scan { telemetry, tenant: &tenant, seen: Seen::default(), prime_ms: PRIME_MS };
        let mut from = from_ms.div_euclid(HOUR_MS);
        let end = now_ms.div_euclid(HOUR_MS) + 1;
        while from < end {
            let to = (from + RECOUNT_STEP_MS / HOUR_MS).min(end);
            let (mut found, examples) = scan.rows(matcher, which.len(), from * HOUR_MS, to * HOUR_MS)?;
            for (indicator, example) in examples {
                self.tracked[which[indicator as usize]].show(example, at_ms(now_ms));
            }
            for (place, found) in which.iter().zip(&mut found) {
                let tracked = &mut self.tracked[*place];
                if let Err(error) = scan.sql(&tracked.indicator, from * HOUR_MS, to * HOUR_MS, found) {
                    failed.get_or_insert(error);
                    continue;
                }
                tracked.series.replace(from, to, found, known_until);
                for (_, slices) in &mut tracked.slices {
                    slices.replace(from * WIDTHS[2], to * WIDTHS[2], found);
                }
            }
            from = to;
        }
        Ok((scan.seen, failed))
    }

    /// Asks the SQL sources for this hour and the one before.
    ///
    /// # Errors
    /// [`SloError::Telemetry`], the first one; the other sources were asked all the same.
    pub fn ask_sql(&mut self, telemetry: &dyn Telemetry, now: Timestamp) -> Result<(), SloError> {
        let now_ms = now.0 / NANOS_PER_MS;
        let known_until = bucket_of(now.0) - LATE_AFTER_MS / BUCKET_MS;
        let mut nothing = Matcher::new(&[], now);
        let mut failed = None;
        for at in 0..self.tracked.len() {
            if sql_of(&self.tracked[at].indicator).is_some() {
                let (_, error) =
                    self.recount(telemetry, &mut nothing, &[at], (now_ms - HOUR_MS, now_ms), known_until)?;
                failed = failed.or(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Evaluates every SLO and moves its alerts on.
    pub fn evaluate(&mut self, now: Timestamp) -> Round {
        self.settle(now);
        let keep_history =
            self.history_at.is_none_or(|at| now.0 - at.0 >= self.config.history_interval_ms * NANOS_PER_MS);
        let mut round = Round { statuses: Vec::with_capacity(self.watched.len()), notices: Vec::new() };
        let (tracked, config) = (&self.tracked, &self.config);
        for (watched, rungs) in self.watched.iter_mut().zip(&self.rungs) {
            let status = watched.evaluate(tracked, config, rungs, now, &mut round.notices);
            if keep_history {
                let objectives = watched.slo.objectives.iter().zip(&status.objectives);
                self.history.extend(objectives.map(|(objective, of)| HistoryPoint {
                    slo: watched.slo.name.clone(),
                    objective: objective.name.clone(),
                    at_ms: now.0 / NANOS_PER_MS,
                    good: of.events.good,
                    total: of.events.total,
                    allowed: of.budget.allowed,
                    spent: of.budget.spent,
                    health: status.health.name().to_owned(),
                }));
            }
            round.statuses.push(status);
        }
        if keep_history {
            self.history_at = Some(now);
        }
        round
    }

    /// Writes what changed since the last call: counts of everything committed before `counted_until`.
    ///
    /// # Errors
    /// [`SloError::Database`]. What changed is written with the next call then, points of history and
    /// revisions aside.
    pub fn persist(&mut self, now: Timestamp, counted_until: Timestamp) -> Result<(), SloError> {
        if self.watched.is_empty() {
            return Ok(());
        }
        self.settle(now);
        let mut write = Write { counted_until: Some(counted_until), ..Write::default() };
        for tracked in &mut self.tracked {
            let (rows, revisions) = tracked.series.drain();
            let mut put = |key: u64, rows: Vec<Row>| {
                if !rows.is_empty() {
                    write.rows.push((key, rows));
                }
            };
            put(tracked.key, rows);
            for (key, slices) in &mut tracked.slices {
                put(*key, slices.drain());
            }
            if !revisions.is_empty() {
                write.revisions.push((tracked.key, revisions));
            }
        }
        write.history = std::mem::take(&mut self.history);
        write.alerts = dirty_alerts(&self.watched);
        let written = self.archive.write(&self.tenant, now, &write);
        if written.is_err() {
            for (key, rows) in write.rows {
                for tracked in &mut self.tracked {
                    if tracked.key == key {
                        tracked.series.mark(&rows);
                    }
                    for (slice_key, slices) in &mut tracked.slices {
                        if *slice_key == key {
                            slices.mark(&rows);
                        }
                    }
                }
            }
            return written;
        }
        drop(write);
        self.alerts_are_written();
        self.counted_until = Some(counted_until);
        Ok(())
    }

    /// Writes the alerts that changed, and nothing else: before they are told, so that whoever sees one can see what
    /// made it.
    ///
    /// # Errors
    /// [`SloError::Database`]. They are written with the next call then.
    pub fn persist_alerts(&mut self, now: Timestamp) -> Result<(), SloError> {
        let alerts = dirty_alerts(&self.watched);
        if alerts.is_empty() {
            return Ok(());
        }
        self.archive.write(&self.tenant, now, &Write { alerts, ..Write::default() })?;
        self.alerts_are_written();
        Ok(())
    }

    fn alerts_are_written(&mut self) {
        for watch in self.watched.iter_mut().flat_map(|watched| &mut watched.watches) {
            watch.dirty = false;
        }
    }

    /// The engine of other documents over the same database: what both count and alert about goes on.
    ///
    /// # Errors
    /// [`SloError`] of the database; this engine is as it was then.
    fn replaced(&mut self, slos: Vec<Slo>, now: Timestamp, counted_until: Timestamp) -> Result<Self, SloError> {
        self.persist(now, counted_until)?;
        let archive = Archive::open(self.archive.path())?;
        Self::build(self.config.clone(), self.tenant.clone(), slos, archive, now)
    }

    /// Forgets on disk what no window reaches.
    ///
    /// # Errors
    /// [`SloError::Database`].
    pub fn expire(&mut self, now: Timestamp) -> Result<usize, SloError> {
        self.archive.expire(&self.tenant, now, self.longest_ms)
    }

    /// The database, for history and revisions.
    #[must_use]
    pub const fn archive(&self) -> &Archive {
        &self.archive
    }
}

/// The alerts of what changed since it was written, by rule.
fn dirty_alerts(watched: &[Watched]) -> Vec<(String, Vec<(&Labels, &crate::rules::state::Alert)>)> {
    let dirty = watched.iter().flat_map(|watched| &watched.watches).filter(|watch| watch.dirty);
    dirty.map(|watch| (watch.rule.clone(), watch.alerts.iter().flat_map(Alerts::iter).collect())).collect()
}

const fn at_ms(ms: i64) -> Timestamp {
    Timestamp(ms.saturating_mul(NANOS_PER_MS))
}

/// Reads stored telemetry piece by piece.
struct Scan<'a> {
    telemetry: &'a dyn Telemetry,
    tenant: &'a TenantId,
    /// Of the last piece, which has what is coming in now.
    seen: Seen,
    /// How much before the first piece is read.
    prime_ms: i64,
}

/// What rows amounted to: of each indicator, counts by bucket; and bad events.
type Found = (Vec<BTreeMap<i64, Counts>>, Vec<(u32, Example)>);

impl Scan<'_> {
    /// Counts the rows of tables from a time up to another, both in milliseconds.
    fn rows(&mut self, matcher: &mut Matcher, indicators: usize, from_ms: i64, to_ms: i64) -> Result<Found, SloError> {
        let mut found: Vec<BTreeMap<i64, Counts>> = vec![BTreeMap::new(); indicators];
        let mut examples = Vec::new();
        for table in Table::ALL {
            if !matcher.watches(table) {
                continue;
            }
            let columns = matcher.columns(table);
            let mut tally = Tally::default();
            let (from, to) = (at_ms(from_ms - self.prime_ms), at_ms(to_ms));
            let mut each = |batch: &RecordBatch| {
                // A batch with rows outside the times gives them away here, and they are counted in their turn.
                if let Some(batch) = within(table, batch, from, to) {
                    matcher.count(table, &batch, &mut tally);
                }
            };
            let scanned = self.telemetry.scan(self.tenant, table, &columns, from, to, &mut each);
            self.seen[table.index()] = scanned.map_err(|reason| SloError::Telemetry { reason })?;
            matcher.flush(&mut tally);
            for (indicator, bucket, counts) in tally.drain() {
                let sum = found[indicator as usize].entry(bucket).or_default();
                *sum = sum.plus(counts);
            }
            examples.extend(tally.drain_examples());
        }
        self.prime_ms = 0;
        Ok((found, examples))
    }

    /// Adds what an indicator's queries say, if it has queries.
    fn sql(
        &self,
        indicator: &Indicator,
        from_ms: i64,
        to_ms: i64,
        found: &mut BTreeMap<i64, Counts>,
    ) -> Result<(), SloError> {
        let Some((numerator, total)) = sql_of(indicator) else { return Ok(()) };
        for (term, is_numerator) in [(numerator, true), (total, false)] {
            for (bucket, events) in ask(self.telemetry, self.tenant, term, at_ms(from_ms), at_ms(to_ms))? {
                let counts = found.entry(bucket).or_default();
                *counts = counts.plus(if is_numerator {
                    Counts { numerator: events, total: 0 }
                } else {
                    Counts { numerator: 0, total: events }
                });
            }
        }
        Ok(())
    }
}

/// The rows of a batch from a time up to another; `None` when there is none.
fn within(table: Table, batch: &RecordBatch, from: Timestamp, to: Timestamp) -> Option<RecordBatch> {
    let times = batch.column_by_name(table.time_column())?.as_primitive_opt::<TimestampNanosecondType>()?;
    let keep = |time: &i64| (from.0..to.0).contains(time);
    let count = times.values().iter().filter(|time| keep(time)).count();
    if count == batch.num_rows() {
        return Some(batch.clone());
    }
    let mask: arrow::array::BooleanArray = times.values().iter().map(|time| Some(keep(time))).collect();
    (count > 0).then(|| arrow::compute::filter_record_batch(batch, &mask).ok()).flatten()
}

/// One SQL source that gives no answer must not hold up the others: it is asked again within the minute.
fn warn_of_sql(failed: Option<SloError>) {
    if let Some(error) = failed {
        tracing::warn!(%error, "a SQL source of an SLO gave no answer");
    }
}

fn sql_of(indicator: &Indicator) -> Option<(&Term, &Term)> {
    matches!(indicator.total, Term::Sql { .. }).then_some((&indicator.numerator, &indicator.total))
}

/// Events by bucket of a SQL source.
fn ask(
    telemetry: &dyn Telemetry,
    tenant: &TenantId,
    term: &Term,
    from: Timestamp,
    to: Timestamp,
) -> Result<BTreeMap<i64, u64>, SloError> {
    let Term::Sql { query, measure } = term else { return Ok(BTreeMap::new()) };
    let sql = with_times(query, from, to);
    let rows = telemetry.query(tenant, &sql).map_err(|reason| SloError::Telemetry { reason })?;
    let mut found: BTreeMap<i64, u64> = BTreeMap::new();
    for (time, value) in rows {
        let events = match measure {
            Measure::Sum { .. } => whole(value),
            Measure::Compare(op, threshold) => {
                u64::from(value.partial_cmp(threshold).is_some_and(|ordering| op.holds(ordering)))
            }
            Measure::Ratio => scaled_ratio(value),
            Measure::RatioTotal => RATIO_SCALE,
            Measure::One | Measure::Observations | Measure::ObservationsAtMost(_) => 1,
        };
        let sum = found.entry(bucket_of(time.0)).or_default();
        *sum = sum.saturating_add(events);
    }
    Ok(found)
}

/// A query with its two times written in.
#[must_use]
pub fn with_times(query: &str, from: Timestamp, to: Timestamp) -> String {
    query.replace("$from", &sql_time(from)).replace("$to", &sql_time(to))
}

/// A time as people read it, in UTC.
fn shown(at: Timestamp) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(at.0)).map_or_else(|_| at.0.to_string(), |at| at.to_string())
}

/// A time as SQL writes it.
#[must_use]
pub fn sql_time(at: Timestamp) -> String {
    format!("TIMESTAMP '{}'", shown(at))
}

fn watches(config: &Config, slo: &Slo) -> Vec<Watch> {
    let instances = if slo.composite { 1 } else { slo.objectives.len() };
    let watch = |rung: Rung, policy: Option<&Policy>, of_silence: bool| Watch {
        rule: format!("{RULE_PREFIX}{}/{}{}", slo.name, if of_silence { "silence/" } else { "" }, rung.name),
        rung,
        policy: policy.cloned(),
        of_silence,
        alerts: vec![Alerts::default(); instances],
        dirty: false,
    };
    match &slo.alerts {
        SloAlerts::None => Vec::new(),
        SloAlerts::Table => config.table.iter().map(|rung| watch(rung.clone(), None, false)).collect(),
        SloAlerts::Policies(policies) => {
            let mut found = Vec::new();
            for policy in policies {
                let mut rung = Rung::from(&policy.condition);
                rung.name.clone_from(&policy.name);
                if policy.when_breaching {
                    found.push(watch(rung.clone(), Some(policy), false));
                }
                if policy.when_no_data {
                    found.push(watch(rung, Some(policy), true));
                }
            }
            found
        }
    }
}

impl Watch {
    /// The labels of its alert about an objective: the alert's identity.
    fn labels(&self, slo: &Slo, objective: usize) -> Labels {
        let mut labels = Labels::new();
        for (name, value) in &slo.labels {
            // Several values of one label are one text.
            labels
                .entry(label_name(name))
                .and_modify(|known: &mut String| {
                    known.push(',');
                    known.push_str(value);
                })
                .or_insert_with(|| value.clone());
        }
        let alertname = if self.of_silence { "SloNoData" } else { "SloBurnRate" };
        for (name, value) in [
            ("alertname", alertname),
            ("slo", &slo.name),
            ("service", &slo.service),
            ("severity", &self.rung.severity),
            ("burn", &self.rung.name),
        ] {
            labels.insert(name.to_owned(), value.to_owned());
        }
        if slo.objectives.len() > 1 && !slo.composite {
            labels.insert("objective".to_owned(), slo.objectives[objective].name.clone());
        }
        if let Some(policy) = &self.policy
            && !policy.targets.is_empty()
        {
            let targets: Vec<&str> = policy.targets.iter().map(|target| target.name.as_str()).collect();
            labels.insert("notification_target".to_owned(), targets.join(","));
        }
        labels
    }

    /// What is said about an objective, under the names that the default templates of messages know.
    fn annotations(
        &self,
        slo: &Slo,
        objective: usize,
        status: &ObjectiveStatus,
        judged: &Judged,
        tracked: &Tracked,
        now: Timestamp,
    ) -> Labels {
        let mut found = Labels::new();
        let indicator = &slo.objectives[objective].indicator;
        let long = display_ms(self.rung.long_ms);
        let mut put = |name: &str, value: String| drop(found.insert(name.to_owned(), value));
        let title = if slo.objectives.len() > 1 {
            format!("{} ({})", slo.title, slo.objectives[objective].name)
        } else {
            slo.title.clone()
        };
        let rate = |burn: &Burn| {
            burn.rate_milli
                .map_or_else(|| "unknown".to_owned(), |milli| format!("{}.{}", milli / 1000, milli % 1000 / 100))
        };
        let remaining = status.budget.remaining_milli();
        let percent = percent_of(remaining);
        if self.of_silence {
            put("summary", format!("{title}: no data"));
            let since = match status.data {
                Data::Stale { since } => shown(Timestamp(since)),
                Data::Fresh | Data::Never => "the beginning".to_owned(),
            };
            put("description", format!("Nothing that it is measured by has arrived since {since}."));
        } else {
            put("summary", format!("{title}: error budget burns {} times too fast", rate(&judged.long)));
            let bad = judged.long.events.bad();
            let total = judged.long.events.total;
            put(
                "description",
                format!(
                    "{bad} of {total} were bad in the last {long}; {percent} % of the budget of {} is left.",
                    slo.window.written()
                ),
            );
            put("burn_rate", rate(&judged.long));
            let cost = status.budget.with_spent(bad).remaining_milli();
            put(
                "budget_burned",
                format!(
                    "{} % of the budget of {}, {} % in the last {long}",
                    percent_of(1_000_i64.saturating_sub(remaining)),
                    slo.window.written(),
                    percent_of(1_000_i64.saturating_sub(cost)),
                ),
            );
            if !measures_ratios(indicator) {
                // Of slices a few may be bad: what people know is how many requests were.
                let events = Counted { tracked, slices: None, now: bucket_of(now.0) };
                let events = events.recent(self.rung.long_ms / BUCKET_MS, bucket_of(now.0));
                put("requests_affected", format!("{} of {} in the last {long}", events.bad(), events.total));
            }
            if let Some(example) = tracked.example {
                put("trace_id", example.trace_id_hex());
            }
            put("burn_window", long);
            put("bad_events", bad.to_string());
            put("total_events", total.to_string());
        }
        put("budget_remaining_percent", percent);
        if let Some(at) = status.exhausts_at {
            put("budget_exhausted_at", shown(at));
        }
        for (name, value) in &slo.annotations {
            // A runbook's address and the like, under the name that templates can use.
            let name = label_name(name.rsplit('/').next().unwrap_or(name));
            found.entry(name).or_insert_with(|| value.clone());
        }
        found.insert("query".to_owned(), self.query(indicator, now));
        found
    }

    /// SQL that shows what is bad, in the window that burns: to be pasted as it is.
    fn query(&self, indicator: &Indicator, now: Timestamp) -> String {
        let minutes = (self.rung.long_ms / 60_000).max(1);
        match (indicator.bad_rows_sql(), &indicator.total) {
            (Some(sql), Term::Rows { table, .. }) => {
                format!("{sql} AND {} > now() - INTERVAL '{minutes} minutes'", table.time_column())
            }
            (_, Term::Sql { query, .. }) => {
                with_times(query, now.plus_nanos(-self.rung.long_ms.saturating_mul(NANOS_PER_MS)), now)
            }
            (None, Term::Rows { .. }) => String::new(),
        }
    }
}

/// Thousandths as a percentage with one digit.
fn percent_of(milli: i64) -> String {
    format!("{}{}.{}", if milli < 0 { "-" } else { "" }, milli.unsigned_abs() / 10, milli.unsigned_abs() % 10)
}

/// Whether what is counted are ratios that were computed elsewhere, and no events.
const fn measures_ratios(indicator: &Indicator) -> bool {
    matches!(
        indicator.total,
        Term::Rows { measure: Measure::RatioTotal, .. } | Term::Sql { measure: Measure::RatioTotal, .. }
    )
}

/// A name that Prometheus takes as a label's: dots and dashes become underscores.
fn label_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

impl Watched {
    fn evaluate(
        &mut self,
        tracked: &[Tracked],
        config: &Config,
        rungs: &Arc<[Rung]>,
        now: Timestamp,
        notices: &mut Vec<Notice>,
    ) -> Status {
        let slo = &self.slo;
        let period = slo.window.period(now);
        let unit = if slo.method == Method::RatioTimeslices { RATIO_SCALE } else { 1 };
        let mut objectives: Vec<ObjectiveStatus> = Vec::with_capacity(self.places.len());
        for (objective, place) in slo.objectives.iter().zip(&self.places) {
            let of = &tracked[place.tracked];
            let now_bucket = bucket_of(now.0);
            let reading = Counted { tracked: of, slices: place.slices.map(|at| &of.slices[at].1), now: now_bucket };
            let events = reading.between(bucket_of(period.start.0), now_bucket + 1);
            let counts_ratios = measures_ratios(&objective.indicator) && slo.method == Method::Occurrences;
            let unit = unit * if counts_ratios { RATIO_SCALE } else { 1 };
            let judged = rungs
                .iter()
                .map(|rung| judge(rung, objective.target, &reading, (period, events), unit, config.guard, now))
                .collect();
            let budget =
                budget(objective.target, slo.method, period, objective.slice.map(|slice| slice.width_ms), events);
            let last_hour = reading.recent(FORECAST_WINDOW_MS / BUCKET_MS, now_bucket);
            let rate = rate_milli(last_hour, objective.target);
            objectives.push(ObjectiveStatus {
                period,
                events,
                budget,
                exhausts_at: exhaustion(budget, &slo.window, period, rate, now),
                data: data(&reading, config.silent_ms, now),
                judged,
                firing: false,
            });
        }
        let mut rung_at = 0;
        for watch in &mut self.watches {
            let rung = (!watch.of_silence).then_some(rung_at);
            rung_at += usize::from(!watch.of_silence);
            for index in 0..watch.alerts.len() {
                let (burns, unknown) = match rung {
                    Some(rung) if slo.composite => composite(slo, &objectives, &watch.rung, rung, config.guard),
                    Some(rung) => match objectives[index].judged[rung].verdict {
                        Verdict::Burning => (true, false),
                        Verdict::NoData => (false, true),
                        Verdict::Calm | Verdict::Guarded => (false, false),
                    },
                    None if slo.composite => (objectives.iter().any(|of| matches!(of.data, Data::Stale { .. })), false),
                    None => (matches!(objectives[index].data, Data::Stale { .. }), false),
                };
                let alerts = &mut watch.alerts[index];
                // Nearly always nothing burns, and then nothing is to be done.
                if !burns && alerts.iter().next().is_none() {
                    continue;
                }
                // Of a composite SLO people have to look at the objective that burns most.
                let shown = if slo.composite { hottest(slo, &objectives, rung.unwrap_or(0)) } else { index };
                let samples = if burns {
                    let judged = rung.map_or(
                        Judged {
                            verdict: Verdict::NoData,
                            long: Burn { events: Events::default(), rate_milli: None },
                            short: None,
                        },
                        |rung| objectives[shown].judged[rung],
                    );
                    let value = judged
                        .long
                        .rate_milli
                        .map_or(f64::NAN, |milli| milli_ratio(i64::try_from(milli).unwrap_or(i64::MAX)));
                    let labels = watch.labels(slo, index);
                    let place = self.places[shown].tracked;
                    let mut annotations =
                        watch.annotations(slo, shown, &objectives[shown], &judged, &tracked[place], now);
                    // After a restart no bad event may be known yet; the one that was told is still one.
                    let told = watch.alerts[index].iter().find_map(|(_, alert)| alert.annotations.get("trace_id"));
                    if let (false, Some(told)) = (annotations.contains_key("trace_id"), told) {
                        annotations.insert("trace_id".to_owned(), told.clone());
                    }
                    vec![Sample { labels, annotations, value }]
                } else {
                    Vec::new()
                };
                let hold = Hold { for_ms: watch.rung.after_ms, keep_firing_for_ms: config.keep_firing_for_ms };
                let alerts = &mut watch.alerts[index];
                let before: Vec<State> = alerts.iter().map(|(_, alert)| alert.state).collect();
                alerts.step(now, samples, &|_| unknown, hold, 0).expect("there is one sample and no limit");
                let told = alerts.notices(now, config.resend_delay_ms, config.evaluate_interval_ms);
                let changed = !before.iter().eq(alerts.iter().map(|(_, alert)| &alert.state));
                watch.dirty |= changed || !told.is_empty();
                let tells_end = watch.policy.as_ref().is_none_or(|policy| policy.when_resolved);
                notices.extend(told.into_iter().filter(|notice| tells_end || !notice.resolved));
                let firing = watch.alerts[index].iter().any(|(_, alert)| alert.state == State::Firing);
                if slo.composite {
                    objectives.iter_mut().for_each(|of| of.firing |= firing);
                } else {
                    objectives[index].firing |= firing;
                }
            }
        }
        let health = if objectives.iter().all(|of| of.data != Data::Fresh) {
            Health::NoData
        } else if objectives.iter().any(|of| of.firing) {
            Health::Burning
        } else if objectives.iter().any(|of| of.budget.is_used_up()) {
            Health::Exhausted
        } else {
            Health::Ok
        };
        let weights: i128 = slo.objectives.iter().map(|of| i128::from(of.weight_milli)).sum();
        let left = slo.objectives.iter().zip(&objectives);
        let left: i128 =
            left.map(|(of, status)| i128::from(of.weight_milli) * i128::from(status.budget.remaining_milli())).sum();
        let composite_remaining_milli = slo.composite.then(|| i64::try_from(left / weights.max(1)).unwrap_or(i64::MIN));
        Status {
            slo: Arc::clone(slo),
            rungs: Arc::clone(rungs),
            at: now,
            health,
            objectives,
            composite_remaining_milli,
        }
    }
}

/// Which objective of a composite SLO burns most, by weight.
fn hottest(slo: &Slo, objectives: &[ObjectiveStatus], rung: usize) -> usize {
    let heat = |at: &usize| {
        let rate = objectives[*at].judged.get(rung).and_then(|judged| judged.long.rate_milli).unwrap_or(0);
        u128::from(rate) * u128::from(slo.objectives[*at].weight_milli)
    };
    // The first of equals.
    (0..objectives.len()).rev().max_by_key(heat).unwrap_or(0)
}

/// Whether a composite SLO burns too fast, and whether that is unknown: the average of the objectives' burn
/// rates by weight, of those with data.
fn composite(slo: &Slo, objectives: &[ObjectiveStatus], rung: &Rung, at: usize, guard: Guard) -> (bool, bool) {
    let average = |burn: &dyn Fn(&Judged) -> Option<u64>| -> Option<bool> {
        let (mut rates, mut weights) = (0_u128, 0_u128);
        for (objective, status) in slo.objectives.iter().zip(objectives) {
            if let Some(rate) = burn(&status.judged[at]) {
                rates = rates.saturating_add(u128::from(rate) * u128::from(objective.weight_milli));
                weights += u128::from(objective.weight_milli);
            }
        }
        let threshold = weights * u128::from(rung.threshold_milli);
        (weights > 0).then_some(if rung.or_equal { rates >= threshold } else { rates > threshold })
    };
    let long = average(&|judged| judged.long.rate_milli);
    let short = match rung.short_ms {
        Some(_) => average(&|judged| judged.short.and_then(|short| short.rate_milli)),
        None => Some(true),
    };
    let (Some(long), Some(short)) = (long, short) else { return (false, true) };
    let bad: u64 = objectives.iter().map(|of| of.judged[at].long.events.bad()).fold(0, u64::saturating_add);
    (long && short && bad >= rung.min_bad_events.unwrap_or(guard.min_bad_events), false)
}

/// A batch on its way to be counted.
#[derive(Debug)]
struct Offer {
    record: u64,
    table: Table,
    batch: RecordBatch,
}

/// What is said as long as the start cannot read what is stored.
const UNREAD: &str = "nothing is judged until stored telemetry can be read";

/// Rounds are late when the last one is so long ago, milliseconds, and so many intervals: a recount of days takes a while.
const LATE_MS: i64 = 60_000;
const LATE_INTERVALS: i64 = 3;

/// The end of the queue that ingest holds. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Feed {
    tenant: TenantId,
    tables: Arc<[AtomicBool; Table::COUNT]>,
    sender: SyncSender<Offer>,
    waiting: Arc<AtomicUsize>,
    /// The oldest event time of what was passed over, in milliseconds.
    passed_over: Arc<Mutex<Option<i64>>>,
}

impl Feed {
    /// Offers a committed batch: the number of its log record, its tenant and table. Never waits: a batch
    /// that finds the queue full is recounted from stored telemetry later.
    pub fn offer(&self, record: u64, tenant: &TenantId, table: Table, batch: &RecordBatch) {
        let is_watched = self.tables[table.index()].load(Ordering::Acquire);
        if *tenant != self.tenant || !is_watched || batch.num_rows() == 0 {
            return;
        }
        let offer = Offer { record, table, batch: batch.clone() };
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let Err(refused) = self.sender.try_send(offer) else { return };
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        if let TrySendError::Full(offer) = refused {
            let times = offer.batch.column_by_name(table.time_column());
            let times = times.and_then(|array| array.as_primitive_opt::<TimestampNanosecondType>());
            let Some(oldest) = times.and_then(|times| times.values().iter().min().copied()) else { return };
            let mut passed = self.passed_over.lock().unwrap_or_else(PoisonError::into_inner);
            let oldest = oldest / NANOS_PER_MS;
            *passed = Some(passed.map_or(oldest, |known| known.min(oldest)));
        }
    }
}

impl Feed {
    /// Batches that wait to be counted.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// How evaluation is, all SLOs together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rounds {
    /// How often SLOs are to be evaluated, milliseconds.
    pub interval_ms: i64,
    /// The last round; `None` before the first.
    pub evaluated_at: Option<Timestamp>,
    /// How long it took, nanoseconds.
    pub duration_ns: i64,
    /// Rounds.
    pub iterations: u64,
    /// Rounds that were due while another one, a recount or a write was going on.
    pub missed: u64,
    /// Recounts, queries, writes and deliveries that failed.
    pub failures: u64,
    /// Of each of these that failed when it was last tried, what and why.
    pub errors: BTreeMap<&'static str, String>,
}

impl Rounds {
    /// What somebody should look at, a sentence each.
    #[must_use]
    pub fn problems(&self, now: Timestamp) -> Vec<String> {
        let mut found: Vec<String> = self.errors.iter().map(|(what, why)| format!("SLOs: {what}: {why}")).collect();
        let late_ms = self.evaluated_at.map_or(0, |at| (now.0 - at.0) / NANOS_PER_MS);
        if late_ms > LATE_MS.max(LATE_INTERVALS * self.interval_ms) {
            found.push(format!("SLOs were not evaluated for {} s", late_ms / 1_000));
        }
        found
    }

    fn came(&mut self, what: &'static str, result: Result<(), String>) {
        match result {
            Ok(()) => drop(self.errors.remove(what)),
            Err(why) => {
                tracing::warn!(what, why, "SLOs");
                self.failures += 1;
                self.errors.insert(what, why);
            }
        }
    }
}

/// The last round's statuses, and how rounds are, for whoever asks. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Board {
    statuses: Arc<RwLock<Arc<Vec<Status>>>>,
    rounds: Arc<Mutex<Rounds>>,
}

impl Board {
    /// Every SLO as of the last round.
    #[must_use]
    pub fn statuses(&self) -> Arc<Vec<Status>> {
        Arc::clone(&self.statuses.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How evaluation is.
    #[must_use]
    pub fn rounds(&self) -> Rounds {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, statuses: Vec<Status>) {
        *self.statuses.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(statuses);
    }

    fn note(&self, note: impl FnOnce(&mut Rounds)) {
        note(&mut self.rounds.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Hands other documents to a running service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reloader(SyncSender<Vec<Slo>>);

impl Reloader {
    /// Has the SLOs take the place of those that run. What both have, counts and alerts, goes on; it is done within an
    /// evaluation's interval, unless the server ends before.
    ///
    /// # Errors
    /// When so many wait that something is wrong, or the service has ended; in words.
    pub fn reload(&self, slos: Vec<Slo>) -> Result<(), String> {
        self.0.try_send(slos).map_err(|error| match error {
            TrySendError::Full(_) => format!("{RELOADS_MAX} reloads of SLOs wait already"),
            TrySendError::Disconnected(_) => "SLOs have ended".to_owned(),
        })
    }
}

/// The engine on a thread of its own.
pub struct Service {
    engine: Engine,
    receiver: Receiver<Offer>,
    waiting: Arc<AtomicUsize>,
    passed_over: Arc<Mutex<Option<i64>>>,
    telemetry: Arc<dyn Telemetry>,
    sink: Box<dyn Sink>,
    clock: Clock,
    board: Board,
    tables: Arc<[AtomicBool; Table::COUNT]>,
    reloads: Receiver<Vec<Slo>>,
    reloader: Reloader,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("engine", &self.engine).finish_non_exhaustive()
    }
}

impl Service {
    /// Puts an engine behind a queue.
    #[must_use]
    pub fn build(
        engine: Engine,
        telemetry: Arc<dyn Telemetry>,
        sink: Box<dyn Sink>,
        clock: Clock,
    ) -> (Self, Feed, Board) {
        let (sender, receiver) = sync_channel(engine.config.queue_batches);
        let passed_over = Arc::new(Mutex::new(None));
        let waiting = Arc::new(AtomicUsize::new(0));
        let board = Board::default();
        board.note(|rounds| rounds.interval_ms = engine.config.evaluate_interval_ms);
        let tables = Arc::new(Table::ALL.map(|table| AtomicBool::new(engine.watches(table))));
        let (reloader, reloads) = sync_channel(RELOADS_MAX);
        let feed = Feed {
            tenant: engine.tenant.clone(),
            tables: Arc::clone(&tables),
            sender,
            waiting: Arc::clone(&waiting),
            passed_over: Arc::clone(&passed_over),
        };
        let service = Self {
            engine,
            receiver,
            waiting,
            passed_over,
            telemetry,
            sink,
            clock,
            board: board.clone(),
            tables,
            reloads,
            reloader: Reloader(reloader),
        };
        (service, feed, board)
    }

    /// What hands it other documents.
    #[must_use]
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
    }

    /// Runs until it is told to stop, then writes what is left. It stops within an evaluation's interval.
    ///
    /// # Errors
    /// [`SloError`] when the last write fails.
    pub async fn run(self, stop: CancellationToken) -> Result<(), SloError> {
        match tokio::task::spawn_blocking(move || self.run_blocking(&stop)).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Ok(()),
        }
    }

    fn run_blocking(mut self, stop: &CancellationToken) -> Result<(), SloError> {
        let Some(mut seen) = self.catch_up(stop) else { return Ok(()) };
        let [mut evaluate_at, mut persist_at, mut sql_at, mut expire_at] = [self.clock.now(); 4];
        let after = |now: Timestamp, ms: i64| now.plus_nanos(ms.max(1) * NANOS_PER_MS);
        let mut disconnected = false;
        while !stop.is_cancelled() {
            let now = self.clock.now();
            let wait = Duration::from_nanos(u64::try_from(evaluate_at.0 - now.0).unwrap_or(0));
            // A clock that is moved by hand gives no hint of how long to wait.
            let wait = wait
                .min(Duration::from_millis(u64::try_from(self.engine.config.evaluate_interval_ms).unwrap_or(1_000)));
            if disconnected {
                std::thread::park_timeout(wait);
            } else {
                match self.receiver.recv_timeout(wait) {
                    Ok(offer) => {
                        self.waiting.fetch_sub(1, Ordering::Relaxed);
                        if offer.record > seen[offer.table.index()] {
                            self.engine.observe(offer.table, &offer.batch, self.clock.now());
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => disconnected = true,
                }
            }
            let now = self.clock.now();
            if now < evaluate_at {
                continue;
            }
            let passed = self.passed_over.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(from_ms) = passed {
                let recounted = self.engine.recount_all(&*self.telemetry, from_ms, now);
                let told = recounted.as_ref().map(drop).map_err(ToString::to_string);
                self.board.note(|rounds| rounds.came("counts are incomplete", told));
                match recounted {
                    Ok(last) => seen = std::array::from_fn(|table| seen[table].max(last[table])),
                    Err(_) => {
                        let mut passed = self.passed_over.lock().unwrap_or_else(PoisonError::into_inner);
                        *passed = Some(passed.map_or(from_ms, |known| known.min(from_ms)));
                    }
                }
            }
            if now >= sql_at {
                let asked = self.engine.ask_sql(&*self.telemetry, now).map_err(|error| error.to_string());
                self.board.note(|rounds| rounds.came("a SQL source gave no answer", asked));
                sql_at = after(now, SQL_INTERVAL_MS);
            }
            let round = self.engine.evaluate(now);
            self.board.set(round.statuses);
            if !round.notices.is_empty() {
                let written = self.engine.persist_alerts(now).map_err(|error| error.to_string());
                let taken = self.sink.take(round.notices, now);
                self.board.note(|rounds| {
                    rounds.came("alerts were not written; they are written with the next", written);
                    rounds.came("alerts were not taken; they are told again", taken);
                });
            }
            let interval_ms = self.engine.config.evaluate_interval_ms;
            let late = (now.0 - evaluate_at.0) / (interval_ms.max(1) * NANOS_PER_MS);
            let duration_ns = self.clock.now().0.saturating_sub(now.0).max(0);
            self.board.note(|rounds| {
                rounds.evaluated_at = Some(now);
                rounds.duration_ns = duration_ns;
                rounds.iterations += 1;
                rounds.missed += u64::try_from(late).unwrap_or(0);
            });
            evaluate_at = after(now, interval_ms);
            if now >= persist_at {
                self.persist(now);
                persist_at = after(now, self.engine.config.persist_interval_ms);
            }
            if now >= expire_at {
                let expired = self.engine.expire(now).map(drop).map_err(|error| error.to_string());
                self.board.note(|rounds| rounds.came("old counts were not removed", expired));
                expire_at = after(now, EXPIRE_INTERVAL_MS);
            }
            // The last one is what the files say now.
            if let Some(slos) = self.reloads.try_iter().last() {
                match self.replace(slos, now, stop) {
                    Some(fresh) => seen = std::array::from_fn(|table| seen[table].max(fresh[table])),
                    None if stop.is_cancelled() => break,
                    None => {}
                }
                // What the recount took is no missed round.
                evaluate_at = self.clock.now();
            }
        }
        let now = self.clock.now();
        let mut left = 0;
        while let Ok(offer) = self.receiver.try_recv() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            left += 1;
            if offer.record > seen[offer.table.index()] {
                self.engine.observe(offer.table, &offer.batch, now);
            }
            // The senders may still be at it; what they add now is recounted at the next start.
            if left > self.engine.config.queue_batches {
                break;
            }
        }
        let until = self.counted_until(now);
        self.engine.persist(now, until)
    }

    /// Puts other documents in the place of those that run; `None` when that was not possible, or it was told to stop.
    fn replace(&mut self, slos: Vec<Slo>, now: Timestamp, stop: &CancellationToken) -> Option<Seen> {
        let count = slos.len();
        let until = self.counted_until(now);
        let replaced = self.engine.replaced(slos, now, until);
        let told = replaced.as_ref().map(drop).map_err(ToString::to_string);
        self.board.note(|rounds| rounds.came("other documents were not taken; the running ones stay", told));
        self.engine = replaced.ok()?;
        // Before what is stored is read: what is published from now on waits in the queue.
        for table in Table::ALL {
            self.tables[table.index()].store(self.engine.watches(table), Ordering::Release);
        }
        let seen = self.catch_up(stop)?;
        tracing::info!(slos = count, "SLOs reloaded");
        Some(seen)
    }

    /// Counts what was stored while nobody counted, again and again until it can be read; `None` when told to stop.
    fn catch_up(&mut self, stop: &CancellationToken) -> Option<Seen> {
        while !stop.is_cancelled() {
            match self.engine.catch_up(&*self.telemetry, self.clock.now()) {
                Ok(seen) => {
                    self.board.note(|rounds| rounds.came(UNREAD, Ok(())));
                    return Some(seen);
                }
                Err(_) if stop.is_cancelled() => return None,
                Err(error) => self.board.note(|rounds| rounds.came(UNREAD, Err(error.to_string()))),
            }
            for _ in 0..CATCH_UP_PAUSES {
                if !stop.is_cancelled() {
                    std::thread::park_timeout(CATCH_UP_PAUSE);
                }
            }
        }
        None
    }

    fn persist(&mut self, now: Timestamp) {
        let until = self.counted_until(now);
        let written = self.engine.persist(now, until).map_err(|error| error.to_string());
        self.board.note(|rounds| rounds.came("counts were not written; they are written with the next", written));
    }

    /// Everything older than this was counted, but for what was passed over. Batches may wait in the queue
    /// for about an interval.
    fn counted_until(&self, now: Timestamp) -> Timestamp {
        let passed = *self.passed_over.lock().unwrap_or_else(PoisonError::into_inner);
        let queued = now.plus_nanos(-60_000 * NANOS_PER_MS);
        passed.map_or(queued, |from_ms| queued.min(Timestamp(from_ms.saturating_mul(NANOS_PER_MS))))
    }
}
