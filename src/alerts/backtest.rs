//! `godseye backtest`: which alerts rules and SLOs would have raised on stored telemetry, and how many people they had
//! woken.
//!
//! Every evaluation of a rule that a running server would have made is made again, in order, with `$now` at its time,
//! through a server's SQL door or over the data directory of a stopped one; SLOs are counted and judged as time passes
//! (`slos.rs`). What becomes of it is decided by the code that decides it in a server. The same telemetry, files and
//! times give the same alerts. Nothing is recorded and nobody is told. Not here: series that recording rules have not
//! recorded yet.

mod slos;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::ipc::reader::StreamReader;
use async_trait::async_trait;
use clap::Args;
use model::tenant::TenantId;
use model::time::{Clock, Timestamp};
use serde_json::{Value, json};
use slo::duration::prometheus_ms;
use slo::rules::file::{Group, Kind};
use slo::rules::group::{Ask, Record, Recorded, Row, Running, Slots, Tools};
use slo::rules::state::{Labels, State};

use super::local::Local;
use super::{Expander, ask, files};
use crate::client;
use crate::watch::{self, Asking, WatchError};

/// Queries of one backtest: an alert every minute over ten weeks.
const QUERIES_MAX: i64 = 100_000;

/// Severities that wake somebody, as the default routing has it and as teams call it.
const PAGING: [&str; 2] = ["critical", "page"];

const NANOS_PER_MS: i64 = 1_000_000;

/// `godseye backtest`.
#[derive(Debug, Args)]
pub struct BacktestArgs {
    /// A rule file in Prometheus' format; may be repeated
    #[arg(long, required_unless_present = "slos", value_name = "FILE")]
    rules: Vec<PathBuf>,
    /// OpenSLO documents; may be repeated
    #[arg(long, value_name = "FILE_OR_DIR")]
    slos: Vec<PathBuf>,
    /// Read the data directory of a stopped server instead of asking a running one
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// From when: a time such as 2026-11-24T09:00:00Z, or how long ago, such as 6h
    #[arg(long, value_name = "TIME")]
    from: String,
    /// Until when [default: now]
    #[arg(long, value_name = "TIME", default_value = "0", hide_default_value = true)]
    to: String,
    /// Whom to ask.
    #[command(flatten)]
    asking: Asking,
}

/// An alert that would have fired.
#[derive(Clone, Debug, PartialEq)]
struct Episode {
    labels: Labels,
    annotations: Labels,
    pending_since: Timestamp,
    starts_at: Timestamp,
    /// `None` when it still fires at the end.
    ends_at: Option<Timestamp>,
    defined_at: String,
}

/// The alerts of one group, evaluation after evaluation.
#[derive(Debug, Default)]
struct Story {
    episodes: Vec<Episode>,
    /// Those that fire, by rule and labels.
    open: BTreeMap<(usize, Labels), usize>,
}

impl Story {
    /// What the evaluation at a slot has left behind.
    fn tell(&mut self, group: &Running, slot: Timestamp) -> Result<(), WatchError> {
        let before = std::mem::take(&mut self.open);
        for (index, (rule, alerts, health)) in group.rules().enumerate() {
            if let Some(reason) = &health.error {
                let at = alerting::instant::format(slot);
                return Err(WatchError::Usage(format!("{}: {} at {at}: {reason}", rule.defined_at, rule.name)));
            }
            for (labels, alert) in alerts.iter().filter(|(_, alert)| alert.state == State::Firing) {
                let key = (index, labels.clone());
                let starts_at = alert.fired_at.unwrap_or(slot);
                let known = before.get(&key).filter(|at| self.episodes[**at].starts_at == starts_at);
                let at = known.copied().unwrap_or_else(|| {
                    self.episodes.push(Episode {
                        labels: labels.clone(),
                        annotations: Labels::new(),
                        pending_since: alert.active_at,
                        starts_at,
                        ends_at: None,
                        defined_at: rule.defined_at.clone(),
                    });
                    self.episodes.len() - 1
                });
                // The last words, as the message would have had them.
                self.episodes[at].annotations.clone_from(&alert.annotations);
                self.open.insert(key, at);
            }
        }
        for at in before.into_values().filter(|at| !self.open.values().any(|open| open == at)) {
            self.episodes[at].ends_at = Some(slot);
        }
        Ok(())
    }
}

/// Runs the command to its end.
///
/// # Errors
/// [`WatchError`]: a file or a time that means nothing, or a query without an answer.
pub fn run(args: &BacktestArgs) -> Result<(), WatchError> {
    watch::run(backtest(args))
}

async fn backtest(args: &BacktestArgs) -> Result<String, WatchError> {
    let now = Clock::System.now();
    let (from, to) = (instant(&args.from, now)?, instant(&args.to, now)?);
    if from >= to {
        return Err(WatchError::Usage("--from is not before --to".to_owned()));
    }
    let (groups, notes) = groups(&args.rules)?;
    let (objectives, problems) = files::read_slos(&args.slos);
    refuse(&problems)?;
    let slots: Vec<Vec<Timestamp>> = groups.iter().map(|group| slots(group, from, to)).collect::<Result<_, _>>()?;
    let queries: usize = groups.iter().zip(&slots).map(|(group, slots)| group.rules.len() * slots.len()).sum();
    if i64::try_from(queries).unwrap_or(i64::MAX) > QUERIES_MAX {
        return Err(too_many());
    }
    let source = match &args.data_dir {
        Some(folder) => Source::Local(Arc::new(local(folder).await?)),
        None => {
            let (server, token) = args.asking.door();
            Source::Door(Arc::new(Door { server, token }))
        }
    };
    let tools = Tools {
        ask: match &source {
            Source::Local(local) => Arc::new(local.asker.clone()),
            Source::Door(door) => Arc::<Door>::clone(door),
        },
        record: Arc::new(Nowhere),
        expand: Arc::new(Expander { external_url: String::new() }),
    };
    let (mut episodes, evaluations) = slos::episodes(objectives, (from, to), &source).await?;
    for (group, slots) in groups.into_iter().zip(slots) {
        let mut story = Story::default();
        let mut running = Running::new(group, TenantId::default_tenant(), BTreeMap::new(), None);
        for slot in slots {
            running.catch_up(slot, &tools).await;
            story.tell(&running, slot)?;
        }
        episodes.append(&mut story.episodes);
    }
    episodes.sort_by(|a, b| (a.starts_at, &a.labels).cmp(&(b.starts_at, &b.labels)));
    let mut document = document(from, to, queries, &episodes, &notes);
    document["evaluations"] = evaluations.into();
    Ok(args.asking.shown(&document, table) + &args.asking.for_people(&summary(&document)))
}

/// A time as it was typed.
fn instant(text: &str, now: Timestamp) -> Result<Timestamp, WatchError> {
    if let Some(ago_ms) = prometheus_ms(text) {
        return Ok(now.plus_nanos(-ago_ms.saturating_mul(NANOS_PER_MS)));
    }
    let unknown = || format!("`{text}` is no time: write 2026-11-24T09:00:00Z, or how long ago, such as 6h");
    alerting::instant::parse(text).ok().flatten().ok_or_else(|| WatchError::Usage(unknown()))
}

fn refuse(problems: &[files::Problem]) -> Result<(), WatchError> {
    if files::has_errors(problems) {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        return Err(WatchError::Usage(lines.join("\n")));
    }
    Ok(())
}

/// The store of a stopped server.
async fn local(folder: &Path) -> Result<Local, WatchError> {
    let name = folder.display();
    // Opening makes a store where there is none; a backtest of nothing is a mistake.
    if !folder.join("manifest.sqlite").is_file() {
        return Err(WatchError::Usage(format!("{name} is no data directory: it has no manifest.sqlite")));
    }
    // Its rows are not in it, and opening it would keep here what waits in its log for ClickHouse.
    if crate::clickhouse::is_marked(folder) {
        return Err(WatchError::Usage(format!(
            "{name} has its telemetry in ClickHouse: start its server, and name it with --server instead of --data-dir"
        )));
    }
    let path = folder.to_owned();
    let opened = tokio::task::spawn_blocking(move || Local::open(&path)).await;
    let opened = opened.map_err(|error| error.to_string()).and_then(|opened| opened);
    opened.map_err(|error| WatchError::Usage(format!("cannot open {name}: {error}")))
}

/// The rules that alert, and what a reader of the result has to know.
fn groups(paths: &[PathBuf]) -> Result<(Vec<Group>, Vec<String>), WatchError> {
    let (mut groups, problems) = files::read_rules(paths);
    refuse(&problems)?;
    let mut notes = Vec::new();
    for group in &mut groups {
        group.rules.retain(|rule| matches!(rule.kind, Kind::Alert { .. }));
        for rule in &group.rules {
            if files::asks_the_clock(&rule.sql) {
                return Err(WatchError::Usage(format!(
                    "{}: {} asks for the time of the clock, which is not the evaluation's: write $now",
                    rule.defined_at, rule.name
                )));
            }
            if !ends_at_now(&rule.sql) {
                notes.push(format!(
                    "{}: {} does not end at $now: here an evaluation sees what came after it; write `AND start_time <= $now`",
                    rule.defined_at, rule.name
                ));
            }
        }
    }
    Ok((groups, notes))
}

/// Whether a query looks as if it left out what is later than its evaluation. A server has nothing later, so that rules
/// seldom say it; what is stored has.
fn ends_at_now(sql: &str) -> bool {
    let text: String = sql.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_ascii_lowercase();
    ["<$now", "<=$now", "$now>", "and$now"].iter().any(|bound| text.contains(bound))
}

fn too_many() -> WatchError {
    WatchError::Usage(format!("more than {QUERIES_MAX} queries: choose a shorter time or fewer rules"))
}

/// When a group is evaluated from a time up to, and without, another.
fn slots(group: &Group, from: Timestamp, to: Timestamp) -> Result<Vec<Timestamp>, WatchError> {
    let first = Slots::of(group).next(from.plus_nanos(-1));
    let step = group.interval_ms.max(1).saturating_mul(NANOS_PER_MS);
    let count = to.0.saturating_sub(first.0).saturating_add(step - 1).div_euclid(step).max(0);
    if count > QUERIES_MAX {
        return Err(too_many());
    }
    Ok((0..count).map(|index| first.plus_nanos(index * step)).collect())
}

fn is_page(episode: &Episode) -> bool {
    episode.labels.get("severity").is_some_and(|severity| PAGING.contains(&severity.as_str()))
}

fn document(from: Timestamp, to: Timestamp, queries: usize, episodes: &[Episode], notes: &[String]) -> Value {
    let ms = |at: Timestamp| at.0.div_euclid(NANOS_PER_MS);
    let alerts = episodes.iter().map(|episode| {
        json!({
            "labels": episode.labels,
            "annotations": episode.annotations,
            "pending_since_ms": ms(episode.pending_since),
            "starts_at_ms": ms(episode.starts_at),
            "ends_at_ms": episode.ends_at.map(ms),
            "is_page": is_page(episode),
            "defined_at": episode.defined_at,
        })
    });
    json!({
        "from_ms": ms(from),
        "to_ms": ms(to),
        "queries": queries,
        "pages": episodes.iter().filter(|episode| is_page(episode)).count(),
        "alerts": alerts.collect::<Vec<_>>(),
        "notes": notes,
    })
}

fn table(document: &Value) -> Value {
    let columns = [("start", "text"), ("end", "text"), ("alert", "text"), ("page", "text"), ("labels", "text")];
    let rows = document["alerts"].as_array().into_iter().flatten().map(|alert| {
        json!([
            watch::time(&alert["starts_at_ms"]),
            watch::time(&alert["ends_at_ms"]),
            alert["labels"]["alertname"],
            if alert["is_page"] == true { "yes" } else { "no" },
            watch::labels(&alert["labels"]),
        ])
    });
    watch::table(&columns, rows.collect())
}

fn summary(document: &Value) -> String {
    let mut text = format!(
        "{} pages ({}); {} queries, {} evaluations of SLOs\n",
        document["pages"],
        PAGING.map(|severity| format!("severity {severity}")).join(", "),
        document["queries"],
        document["evaluations"]
    );
    for note in document["notes"].as_array().into_iter().flatten() {
        text.push_str(&format!("note: {}\n", note.as_str().unwrap_or_default()));
    }
    text
}

/// Where telemetry is.
enum Source {
    /// In a running server.
    Door(Arc<Door>),
    /// In a data directory.
    Local(Arc<Local>),
}

/// The SQL door of a server.
struct Door {
    server: String,
    token: Option<String>,
}

#[async_trait]
impl Ask for Door {
    async fn ask(&self, _tenant: &TenantId, sql: &str) -> Result<Vec<Row>, String> {
        // In Arrow an answer that a limit cut off is an error and no smaller answer.
        let body = client::ask(&self.server, self.token.as_deref(), sql, "arrow").await;
        let body = body.map_err(|error| error.to_string())?;
        let mut found = Vec::new();
        for batch in StreamReader::try_new(body.as_ref(), None).map_err(|error| error.to_string())? {
            found.append(&mut ask::rows(&batch.map_err(|error| error.to_string())?)?);
        }
        Ok(found)
    }
}

/// Takes no series: rules that record are left out before.
struct Nowhere;

#[async_trait]
impl Record for Nowhere {
    async fn record(&self, _tenant: &TenantId, _samples: Vec<Recorded>) -> Result<(), String> {
        Err("a backtest records nothing".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_instants_or_how_long_ago() {
        let now = Timestamp(1_800_000_000 * Timestamp::NANOS_PER_SECOND);
        for (text, want) in [
            ("0", Some(1_800_000_000)),
            ("1h", Some(1_800_000_000 - 3_600)),
            ("2026-11-24T09:00:00Z", Some(1_795_510_800)),
            ("yesterday", None),
            ("", None),
        ] {
            let found = instant(text, now).ok().map(|at| at.0 / Timestamp::NANOS_PER_SECOND);
            assert_eq!(found, want, "{text}");
        }
    }

    #[test]
    fn rules_that_see_what_came_later_are_told() {
        for (sql, want) in [
            ("SELECT 1 AS value", false),
            ("SELECT count(*) AS value FROM spans WHERE start_time > $now - INTERVAL '5 minutes'", false),
            (
                "SELECT count(*) AS value FROM spans WHERE start_time > $now - INTERVAL '5 minutes' AND start_time <= $now",
                true,
            ),
            ("SELECT count(*) AS value FROM logs WHERE $now > time", true),
            ("SELECT count(*) AS value FROM logs WHERE time BETWEEN $now - INTERVAL '1 hour' AND $now", true),
        ] {
            assert_eq!(ends_at_now(sql), want, "{sql}");
        }
    }

    #[test]
    fn evaluations_are_those_of_a_server() {
        let text = "groups: [{name: a, interval: 1m, rules: [{alert: A, expr_sql: SELECT 1 AS value}]}]";
        let group = slo::rules::file::read(&[("rules.yml", text)]).unwrap().remove(0);
        let minute = 60 * Timestamp::NANOS_PER_SECOND;
        let first = Slots::of(&group).next(Timestamp(0));
        let at = |nanos: i64| first.plus_nanos(nanos);
        for (from, to, want) in [
            (at(0), at(1), vec![at(0)]),
            (at(0), at(minute), vec![at(0)]),
            (at(1), at(minute + 1), vec![at(minute)]),
            (at(-1), at(2 * minute), vec![at(0), at(minute)]),
            (at(1), at(2), vec![]),
        ] {
            assert_eq!(slots(&group, from, to).unwrap(), want, "{from:?} {to:?}");
        }
        assert!(slots(&group, at(0), at(minute * (QUERIES_MAX + 2))).is_err());
    }
}
