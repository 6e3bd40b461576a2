//! SLOs in a backtest: what is stored is counted first, and then time passes, ten seconds a step, as a server would have
//! lived through it.
//!
//! Counting and judging are the server's own code. A running server is asked for counts in SQL, which it can say of rows
//! that are events themselves; everything else is counted from a data directory. Not here: rules.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::tenant::TenantId;
use model::time::Timestamp;
use slo::archive::Archive;
use slo::counts::{BUCKET_MS, Counts, bucket_of};
use slo::engine::{Config, Engine, sql_time};
use slo::openslo::{Alerts, Slo};
use slo::rules::group::Ask as _;
use slo::rules::state::{Labels, Notice};
use slo::sli::{Indicator, Measure, Term};
use tokio_util::sync::CancellationToken;

use super::{Door, Episode, NANOS_PER_MS, Source};
use crate::alerts::telemetry::Stored;
use crate::watch::WatchError;

/// Evaluations of all SLOs together: a hundred SLOs over ten days.
const EVALUATIONS_MAX: i64 = 10_000_000;

/// How much of a server's telemetry is counted by one query: a row for each ten seconds of it.
const QUERY_MS: i64 = 24 * 3_600_000;

const STEP_NANOS: i64 = BUCKET_MS * NANOS_PER_MS;

/// The alerts of SLOs that would have fired, and how many evaluations that took.
pub(super) async fn episodes(
    mut slos: Vec<Slo>,
    (from, to): (Timestamp, Timestamp),
    source: &Source,
) -> Result<(Vec<Episode>, i64), WatchError> {
    let usage = |error: String| WatchError::Usage(error);
    let slots = (to.0 - from.0).div_euclid(STEP_NANOS) + 1;
    let evaluations = slots.saturating_mul(i64::try_from(slos.len()).unwrap_or(i64::MAX));
    if evaluations > EVALUATIONS_MAX {
        return Err(usage(format!("more than {EVALUATIONS_MAX} evaluations: choose a shorter time or fewer SLOs")));
    }
    for slo in &mut slos {
        // Its end is asked for here, told or not.
        if let Alerts::Policies(policies) = &mut slo.alerts {
            policies.iter_mut().for_each(|policy| policy.when_resolved = true);
        }
    }
    let places: BTreeMap<String, String> = slos.iter().map(|slo| (slo.name.clone(), slo.defined_at.clone())).collect();
    let folder = tempfile::tempdir().map_err(|error| usage(format!("no temporary folder: {error}")))?;
    let archive = Archive::open(&folder.path().join("slo.sqlite")).map_err(|error| usage(error.to_string()))?;
    let config = Config { evaluate_interval_ms: BUCKET_MS, ..Config::default() };
    let engine = Engine::build(config, TenantId::default_tenant(), slos, archive, from);
    let mut engine = engine.map_err(|error| usage(error.to_string()))?;
    let counted_from = from.plus_nanos(-engine.reach_ms().saturating_mul(NANOS_PER_MS));
    let counts = match source {
        Source::Door(door) => {
            let mut counts = Vec::new();
            for indicator in engine.indicators() {
                counts.push(ask(door, indicator, counted_from, to).await?);
            }
            counts
        }
        Source::Local(local) => {
            let stored = Stored {
                store: Arc::clone(&local.store),
                asker: local.asker.clone(),
                is_elsewhere: false,
                runtime: tokio::runtime::Handle::current(),
                stop: CancellationToken::new(),
            };
            let counting = tokio::task::spawn_blocking(move || {
                let counts = engine.count_stored(&stored, counted_from, to);
                (engine, counts)
            });
            let (back, counts) = counting.await.map_err(|error| usage(error.to_string()))?;
            engine = back;
            counts.map_err(|error| usage(error.to_string()))?
        }
    };
    let mut story = Story { places, ..Story::default() };
    let mut by_bucket: BTreeMap<i64, Vec<(usize, Counts)>> = BTreeMap::new();
    for (number, counts) in counts.into_iter().enumerate() {
        for (bucket, counts) in counts {
            by_bucket.entry(bucket).or_default().push((number, counts));
        }
    }
    let mut buckets = by_bucket.into_iter().peekable();
    let mut now = from;
    while now <= to {
        // What is over by now; each bucket is added as if it had just ended, so that nothing is late.
        while let Some((bucket, counts)) = buckets.next_if(|(bucket, _)| *bucket < bucket_of(now.0)) {
            for (number, counts) in counts {
                engine.add_at(number, bucket, counts, Timestamp((bucket + 1) * STEP_NANOS));
            }
        }
        story.tell(engine.evaluate(now).notices);
        now = now.plus_nanos(STEP_NANOS);
    }
    Ok((story.episodes, evaluations))
}

/// The alerts of SLOs, notice after notice.
#[derive(Default)]
struct Story {
    episodes: Vec<Episode>,
    open: BTreeMap<Labels, usize>,
    /// Where each SLO is defined.
    places: BTreeMap<String, String>,
}

impl Story {
    fn tell(&mut self, notices: Vec<Notice>) {
        for notice in notices {
            if notice.resolved {
                if let Some(at) = self.open.remove(&notice.labels) {
                    self.episodes[at].ends_at = Some(Timestamp(notice.ends_at));
                }
                continue;
            }
            let place = notice.labels.get("slo").and_then(|slo| self.places.get(slo));
            let at = *self.open.entry(notice.labels.clone()).or_insert_with(|| {
                self.episodes.push(Episode {
                    labels: notice.labels.clone(),
                    annotations: Labels::new(),
                    pending_since: Timestamp(notice.starts_at),
                    starts_at: Timestamp(notice.starts_at),
                    ends_at: None,
                    defined_at: place.cloned().unwrap_or_default(),
                });
                self.episodes.len() - 1
            });
            // The last words, as the message would have had them.
            self.episodes[at].annotations = notice.annotations;
        }
    }
}

/// Counts by bucket, asked of a server.
async fn ask(
    door: &Door,
    indicator: &Indicator,
    from: Timestamp,
    to: Timestamp,
) -> Result<BTreeMap<i64, Counts>, WatchError> {
    let (
        Term::Rows { table, filter, measure: Measure::One },
        Term::Rows { table: of, filter: base, measure: Measure::One },
    ) = (&indicator.numerator, &indicator.total)
    else {
        return Err(not_by_sql(indicator));
    };
    if table != of {
        return Err(not_by_sql(indicator));
    }
    let time = table.time_column();
    let mut found = BTreeMap::new();
    let mut start = from;
    while start < to {
        let end = start.plus_nanos(QUERY_MS * NANOS_PER_MS).min(to);
        let sql = format!(
            "SELECT CAST({time} AS BIGINT) / {STEP_NANOS} AS bucket, \
             count(*) FILTER (WHERE coalesce(({filter}), false)) AS numerator, count(*) AS value \
             FROM {table} WHERE ({base}) AND {time} >= {} AND {time} < {} GROUP BY 1",
            sql_time(start),
            sql_time(end)
        );
        let rows = door.ask(&TenantId::default_tenant(), &sql).await.map_err(WatchError::Usage)?;
        for row in rows {
            let number = |name: &str| row.labels.get(name).and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is a count of rows")]
            let counts = Counts { numerator: number("numerator").unsigned_abs(), total: row.value as u64 };
            let sum: &mut Counts = found.entry(number("bucket")).or_default();
            *sum = sum.plus(counts);
        }
        start = end;
    }
    Ok(found)
}

fn not_by_sql(indicator: &Indicator) -> WatchError {
    WatchError::Usage(format!(
        "a server cannot be asked for the counts of `{indicator}`: stop it and name its --data-dir"
    ))
}
