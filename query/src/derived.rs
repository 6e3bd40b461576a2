//! The tables derived from spans, `span_metrics` and `service_edges`: scans of their partial rows,
//! and the views that add these up.
//!
//! A view groups by everything that tells rows apart, so that it has the rows people expect. Most
//! questions add up further; [`crate::collapse`] then does both in one step, and a scan whose times
//! nobody needs reads the sums over hours where whole hours are asked for. Not here: how partial
//! rows come about; the store makes them, or [`crate::remote`] asks for them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{DFSchema, ScalarValue, Statistics, internal_err};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::{TableType, provider_as_source};
use datafusion::error::Result;
use datafusion::functions_aggregate::expr_fn::{max, min, sum};
use datafusion::logical_expr::expr::{Cast, TryCast};
use datafusion::logical_expr::utils::{conjunction, disjunction};
use datafusion::logical_expr::{
    BinaryExpr, Expr, LogicalPlan, LogicalPlanBuilder, Operator, TableProviderFilterPushDown, col, lit,
};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExecBuilder;
use datafusion::physical_plan::union::UnionExec;
use model::derived::{DerivedTable, RESOLUTIONS_S, schema};
use model::schema::time_type;
use model::time::Timestamp;

use crate::partials::{merge_durations, merge_exemplars};
use crate::provider::{ScanCounters, scan_files};
use crate::remote::{self, Reach, RemoteExec};
use crate::source::{SegmentFile, TableSnapshot};

/// The column of a view over edges that is zero for calls that were taken back.
pub(crate) const COUNT: &str = "count";

/// The view over a derived table's partial rows. Without them it only tells its columns.
pub(crate) fn view(
    table: DerivedTable,
    rows: Option<TableSnapshot>,
    reach: Option<Arc<Reach>>,
    counters: &Arc<ScanCounters>,
) -> Result<LogicalPlan> {
    let scan = DerivedScan { table, schema: schema(table), rows, reach, counters: Arc::clone(counters) };
    let plan = LogicalPlanBuilder::scan(table.name(), provider_as_source(Arc::new(scan)), None)?;
    let summed = |name: &str| sum(col(name)).alias(name);
    let durations = |name: &str, least: Expr, greatest: Expr| {
        let part = |part: &str| col(format!("{name}_{part}"));
        merge_durations().call(vec![part("buckets"), part("counts"), part("sum_ns"), least, greatest]).alias(name)
    };
    let exemplars = ["duration_max_ns", "slowest_trace_id", "error_max_ns", "error_trace_id"].map(col).to_vec();
    let exemplars = merge_exemplars().call(exemplars).alias("exemplar_trace_ids");
    // `time` first, and no `resolution`: rows are of ten seconds. The kind stands behind the name.
    let keys = table.keys();
    let mut keys: Vec<&str> = std::iter::once("time").chain(keys[1..keys.len() - 1].iter().copied()).collect();
    if table == DerivedTable::SpanMetrics {
        keys[1..4].rotate_left(1);
    }
    let keys = keys.into_iter().map(col);
    let unknown = || lit(ScalarValue::Int64(None));
    let plan = match table {
        DerivedTable::SpanMetrics => plan.aggregate(
            keys,
            vec![
                summed(COUNT),
                summed("errors"),
                summed("duration_sum_ns"),
                min(col("duration_min_ns")).alias("duration_min_ns"),
                max(col("duration_max_ns")).alias("duration_max_ns"),
                durations("duration", col("duration_min_ns"), col("duration_max_ns")),
                exemplars,
            ],
        )?,
        // Calls may be taken back, which extremes cannot be.
        DerivedTable::ServiceEdges => plan
            .aggregate(
                keys,
                vec![
                    summed(COUNT),
                    summed("errors"),
                    summed("client_errors"),
                    summed("duration_sum_ns"),
                    summed("client_duration_sum_ns"),
                    durations("duration", unknown(), unknown()),
                    durations("client_duration", unknown(), unknown()),
                    exemplars,
                ],
            )?
            .filter(col(COUNT).not_eq(lit(0_i64)))?,
    };
    plan.build()
}

/// Whether a filter is the one that a view leaves out calls by that were taken back.
pub(crate) fn leaves_out_taken_back(predicate: &Expr) -> bool {
    match predicate {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::NotEq, right }) => {
            matches!(&**left, Expr::Column(column) if column.name == COUNT)
                && matches!(&**right, Expr::Literal(ScalarValue::Int64(Some(0)), _))
        }
        _ => false,
    }
}

/// A stretch of time: from, and up to but not including; `None` is without a bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Range {
    from: Option<i64>,
    to: Option<i64>,
}

impl Range {
    fn intersect(&mut self, other: Self) {
        self.from = self.from.max(other.from);
        self.to = match (self.to, other.to) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }

    /// The bound that a filter sets to `time`; `None` when it is about anything else.
    fn of(filter: &Expr) -> Option<Self> {
        let Expr::BinaryExpr(BinaryExpr { left, op, right }) = filter else { return None };
        let (op, nanos) = match (is_time(left), is_time(right)) {
            (true, false) => (*op, instant(right)?),
            (false, true) => (op.swap()?, instant(left)?),
            _ => return None,
        };
        let after = Some(nanos.saturating_add(1));
        Some(match op {
            Operator::Eq => Self { from: Some(nanos), to: after },
            Operator::Lt => Self { from: None, to: Some(nanos) },
            Operator::LtEq => Self { from: None, to: after },
            Operator::Gt => Self { from: after, to: None },
            Operator::GtEq => Self { from: Some(nanos), to: None },
            _ => return None,
        })
    }

    fn contains_some_of(&self, segment: &SegmentFile) -> bool {
        self.from.is_none_or(|from| segment.max_time >= from) && self.to.is_none_or(|to| segment.min_time < to)
    }

    fn predicate(&self) -> Option<Expr> {
        let time = |nanos| lit(ScalarValue::TimestampNanosecond(Some(nanos), Some("UTC".into())));
        conjunction(
            [self.from.map(|from| col("time").gt_eq(time(from))), self.to.map(|to| col("time").lt(time(to)))]
                .into_iter()
                .flatten(),
        )
    }

    /// Cuts the stretch into the longest intervals that fit: resolutions and the part each covers.
    fn cover(self, resolutions: &[i32], out: &mut Vec<(i32, Self)>) {
        let Some((longest, finer)) = resolutions.split_last() else { return };
        if finer.is_empty() {
            out.push((*longest, self));
            return;
        }
        let width = i64::from(*longest) * Timestamp::NANOS_PER_SECOND;
        let up = |nanos: i64| nanos.saturating_add(width - 1).div_euclid(width).saturating_mul(width);
        let down = |nanos: i64| nanos.div_euclid(width).saturating_mul(width);
        let whole = Self { from: self.from.map(up), to: self.to.map(down) };
        if whole.from.zip(whole.to).is_some_and(|(from, to)| from >= to) {
            self.cover(finer, out);
            return;
        }
        out.push((*longest, whole));
        if self.from != whole.from {
            Self { from: self.from, to: whole.from }.cover(finer, out);
        }
        if self.to != whole.to {
            Self { from: whole.to, to: self.to }.cover(finer, out);
        }
    }
}

/// Whether an expression is the column `time`, whatever name its zone was given.
fn is_time(expr: &Expr) -> bool {
    match expr {
        Expr::Column(column) => column.name == "time",
        Expr::Cast(Cast { expr, field }) | Expr::TryCast(TryCast { expr, field }) => {
            matches!(field.data_type(), DataType::Timestamp(arrow::datatypes::TimeUnit::Nanosecond, Some(_)))
                && is_time(expr)
        }
        _ => false,
    }
}

/// A constant as nanoseconds since the epoch.
fn instant(expr: &Expr) -> Option<i64> {
    let Expr::Literal(value, _) = expr else { return None };
    match value.cast_to(&time_type()).ok()? {
        ScalarValue::TimestampNanosecond(nanos, _) => nanos,
        _ => None,
    }
}

/// The partial rows of a derived table.
#[derive(Debug)]
pub(crate) struct DerivedScan {
    table: DerivedTable,
    schema: SchemaRef,
    rows: Option<TableSnapshot>,
    /// Where the spans are, when they are not here: they are counted there.
    reach: Option<Arc<Reach>>,
    counters: Arc<ScanCounters>,
}

impl DerivedScan {
    /// The rows of an input that satisfy a predicate, and of their columns those that are wanted.
    fn filtered(
        state: &dyn Session,
        input: Arc<dyn ExecutionPlan>,
        predicate: Expr,
        wanted: Option<Vec<usize>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = DFSchema::try_from(input.schema())?;
        let predicate = state.create_physical_expr(predicate, &schema)?;
        Ok(Arc::new(FilterExecBuilder::new(predicate, input).apply_projection(wanted)?.build()?))
    }
}

#[async_trait]
impl TableProvider for DerivedScan {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // Bounds of time are seen to here, so that a plan need not read times for them.
        let support = |filter: &&Expr| match Range::of(filter) {
            Some(_) => TableProviderFilterPushDown::Exact,
            None => TableProviderFilterPushDown::Inexact,
        };
        Ok(filters.iter().map(support).collect())
    }

    fn statistics(&self) -> Option<Statistics> {
        let table = self.rows.as_ref()?;
        let memory: usize = table.memory.iter().map(RecordBatch::num_rows).sum();
        let segments: u64 = table.segments.iter().map(|segment| segment.rows).sum();
        let rows = usize::try_from(segments).unwrap_or(usize::MAX).saturating_add(memory);
        Some(Statistics { num_rows: Precision::Inexact(rows), ..Statistics::new_unknown(&self.schema) })
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if let Some(reach) = &self.reach {
            let mut range = Range::default();
            filters.iter().filter_map(Range::of).for_each(|bound| range.intersect(bound));
            let wanted: Vec<usize> = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
            let sql = remote::derived::statement(reach, self.table, &wanted, (range.from, range.to), filters)?;
            let schema = Arc::new(self.schema.project(&wanted)?);
            return Ok(Arc::new(RemoteExec::new(Arc::clone(reach), sql.into(), schema, false)));
        }
        let Some(table) = &self.rows else { return internal_err!("{} is not part of the snapshot", self.table) };
        let mut range = Range::default();
        filters.iter().filter_map(Range::of).for_each(|bound| range.intersect(bound));
        let keys = self.table.keys();
        let (resolution, time) = (0, keys.len() - 1);
        let wanted: Vec<usize> = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        // The columns that are filtered by come after those that are wanted.
        let mut read = wanted.clone();
        read.extend([resolution, time].into_iter().filter(|column| !wanted.contains(column)));
        let wanted_of_read = (read.len() > wanted.len()).then(|| (0..wanted.len()).collect::<Vec<_>>());

        let kept = table.segments.iter().filter(|segment| range.contains_some_of(segment));
        let segments: Vec<SegmentFile> = kept.cloned().collect();
        let total = table.segments.len();
        self.counters.segments_total.fetch_add(total as u64, Ordering::Relaxed);
        self.counters.segments_pruned.fetch_add((total - segments.len()) as u64, Ordering::Relaxed);
        let memory_rows: usize = table.memory.iter().map(RecordBatch::num_rows).sum();
        self.counters.memory_rows.fetch_add(memory_rows as u64, Ordering::Relaxed);

        let mut inputs: Vec<Arc<dyn ExecutionPlan>> = Vec::new();
        if !segments.is_empty() {
            let mut parts = Vec::new();
            // Whoever needs the times needs the rows of the finest resolution.
            let resolutions = if wanted.contains(&time) { &RESOLUTIONS_S[..1] } else { &RESOLUTIONS_S[..] };
            range.cover(resolutions, &mut parts);
            // A scan for each resolution: bounds of one column prune pages, and row groups have one
            // resolution each.
            for seconds in resolutions {
                let ranges: Vec<Range> =
                    parts.iter().filter(|(of, _)| of == seconds).map(|(_, range)| *range).collect();
                if ranges.is_empty() {
                    continue;
                }
                let mut predicate = col("resolution").eq(lit(*seconds));
                if let Some(within) =
                    ranges.iter().map(Range::predicate).collect::<Option<Vec<_>>>().and_then(disjunction)
                {
                    predicate = predicate.and(within);
                }
                let scan =
                    scan_files(state, &self.schema, &segments, &[], Some(&read), |source| source, |config| config)?;
                inputs.push(Self::filtered(state, scan, predicate, wanted_of_read.clone())?);
            }
            self.counters.opened(segments);
        }
        if memory_rows > 0 || inputs.is_empty() {
            let scan = MemorySourceConfig::try_new_exec(
                std::slice::from_ref(&table.memory),
                Arc::clone(&self.schema),
                Some(read),
            )?;
            // Rows in memory are all of the finest resolution.
            let predicate = range.predicate().unwrap_or_else(|| lit(true));
            inputs.push(Self::filtered(state, scan, predicate, wanted_of_read)?);
        }
        match inputs.len() {
            1 => inputs.pop().map_or_else(|| internal_err!("a scan without an input"), Ok),
            _ => UnionExec::try_new(inputs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = Timestamp::NANOS_PER_SECOND;

    #[test]
    fn stretches_are_covered_once_and_by_the_longest_intervals() {
        for (from, to, expected) in [
            (None, None, "3600: .. "),
            (Some(0), Some(7200), "3600: 0..7200 "),
            (Some(0), None, "3600: 0.. "),
            (None, Some(3601), "3600: ..3600 10: 3600..3601 "),
            (Some(3590), Some(7500), "3600: 3600..7200 10: 3590..3600 300: 7200..7500 "),
            (Some(301), Some(1000), "300: 600..900 10: 301..600 10: 900..1000 "),
            (Some(5), Some(9), "10: 5..9 "),
            (Some(9), Some(5), "10: 9..5 "),
            (Some(-3601), Some(-1), "300: -3600..-300 10: -3601..-3600 10: -300..-1 "),
        ] {
            let nanos = |seconds: Option<i64>| seconds.map(|seconds| seconds * SECOND);
            let mut parts = Vec::new();
            Range { from: nanos(from), to: nanos(to) }.cover(&RESOLUTIONS_S, &mut parts);
            let bound = |nanos: Option<i64>| nanos.map_or(String::new(), |nanos| (nanos / SECOND).to_string());
            let found: String = parts
                .iter()
                .map(|(seconds, range)| format!("{seconds}: {}..{} ", bound(range.from), bound(range.to)))
                .collect();
            assert_eq!(found, expected, "{from:?}..{to:?}");
        }
    }
}
