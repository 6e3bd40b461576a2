//! Limits on a plan: how large it may become, and which joins may run.
//!
//! These need what the text does not show: tables' sizes, and what views and subqueries expand to.
//! [`before_optimizing`] keeps the optimizer itself from exploding (it pushes a filter through
//! projections by substitution, so twenty nested `SELECT a + a AS a` would become a million
//! additions); [`before_running`] refuses joins that compare every row with every row, and what costs more in one call
//! than a limit between calls can stop. DataFusion counts the memory of what operators keep, not of the batch they are
//! at: [`Cost`] says how many rows a batch may have so that it stays small. Not here: memory and time, which are
//! enforced while running.

use std::collections::HashMap;

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::source_as_provider;
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, JoinType, LogicalPlan, Operator, WindowFunctionDefinition};

use crate::error::{QueryError, external};
use crate::functions::grows;

/// Nodes of a plan, views included. A large dashboard query has 60.
pub const PLAN_NODES_MAX: usize = 2_000;

/// Nodes of all expressions once every column is replaced by what computes it.
pub const EXPANDED_NODES_MAX: u64 = 200_000;

/// Pairs of rows that a join without an equality may compare. About five seconds of one core;
/// such a join does not stop within a batch, so a time limit alone comes late.
pub const JOIN_PAIRS_MAX: u64 = 50_000_000;

/// Rows assumed of one list when it is unnested: more than a span's usual events.
const UNNEST_ROWS: u64 = 64;

/// Bytes of all constants once they are computed. Each is copied for every row of a batch. Larger than any statement,
/// which has [`crate::guard::SQL_BYTES_MAX`], so only a constant that was made to grow gets there.
pub const CONSTANT_BYTES_MAX: u64 = 1 << 20;

/// Bytes that one step of a plan makes of one batch, by estimate. A handful of batches are on their way at once.
pub const STEP_BYTES_MAX: u64 = 16 << 20;

/// Rows of a batch, where they are narrow: DataFusion's own default.
pub const ROWS_AT_ONCE_MAX: usize = 8192;

/// Rows of a batch, however wide they are; fewer would be all overhead.
pub const ROWS_AT_ONCE_MIN: usize = 16;

/// How much larger rows are in memory than in a segment; telemetry compresses about that well.
const SEGMENT_EXPANSION: u64 = 8;

/// Items of a type of fixed size: a null of it takes as much as a value.
pub const FIXED_SIZE_MAX: i32 = 1024;

/// Bytes of one compiled pattern. `\w{40}` takes about as much. A larger one takes as long to compile, for each batch.
pub const PATTERN_BYTES_MAX: usize = 1 << 20;

/// Patterns of one query: each is compiled for each batch.
pub const PATTERNS_MAX: usize = 50;

/// `%` and `_` of one LIKE pattern. Each multiplies the places at which the text before it may end.
pub const WILDCARDS_MAX: usize = 64;

/// Size of a sketch of a distribution; the default is 100, and it is allocated at once.
pub const CENTROIDS_MAX: i128 = 10_000;

/// Checks the size of a plan as written.
///
/// # Errors
/// A refusal that names the limit.
pub fn before_optimizing(plan: &LogicalPlan) -> Result<()> {
    let mut nodes = 0_usize;
    let mut expanded = 0_u64;
    plan.apply_with_subqueries(|_| {
        nodes += 1;
        Ok(if nodes > PLAN_NODES_MAX { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    if nodes > PLAN_NODES_MAX {
        return Err(external(QueryError::refused(format!("the plan has more than {PLAN_NODES_MAX} steps"))));
    }
    output_sizes(plan, &mut expanded)?;
    let mut patterns = 0;
    each_expression(plan, |expression| check_expression(expression, Phase::AsWritten, &mut patterns))
}

/// Calls a function for each part of each expression of a plan, subqueries included.
fn each_expression(plan: &LogicalPlan, mut call: impl FnMut(&Expr) -> Result<()>) -> Result<()> {
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expression| {
            expression.apply(|part| {
                call(part)?;
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    /// Constants are not computed yet.
    AsWritten,
    Optimized,
}

/// Refuses what one call would cost: types of large fixed size, patterns, lists that grow with every row of a window.
fn check_expression(expression: &Expr, phase: Phase, patterns: &mut usize) -> Result<()> {
    match expression {
        Expr::Cast(cast) if largest_fixed_size(cast.field.data_type()) > FIXED_SIZE_MAX => {
            return refuse_fixed_size(cast.field.data_type());
        }
        Expr::TryCast(cast) if largest_fixed_size(cast.field.data_type()) > FIXED_SIZE_MAX => {
            return refuse_fixed_size(cast.field.data_type());
        }
        Expr::WindowFunction(window) => {
            if let WindowFunctionDefinition::AggregateUDF(function) = &window.fun
                && ["array_agg", "string_agg"].contains(&function.name())
            {
                let name = function.name();
                return Err(external(
                    QueryError::refused(format!("{name}() OVER is not allowed: it makes a list for every row"))
                        .hint(format!("use {name}() with GROUP BY")),
                ));
            }
        }
        Expr::AggregateFunction(call) if call.func.name().starts_with("approx_percentile_cont") => {
            let large = call.params.args.iter().filter_map(whole_number).find(|number| *number > CENTROIDS_MAX);
            if let Some(number) = large {
                return Err(external(QueryError::refused(format!(
                    "{number} centroids are over the limit of {CENTROIDS_MAX}"
                ))));
            }
        }
        Expr::Like(like) => {
            if let Some(pattern) = text(&like.pattern) {
                let wildcards = pattern.chars().filter(|c| matches!(c, '%' | '_')).count();
                if wildcards > WILDCARDS_MAX {
                    return Err(external(QueryError::refused(format!(
                        "a LIKE pattern has {wildcards} wildcards, over the limit of {WILDCARDS_MAX}"
                    ))));
                }
            }
        }
        Expr::SimilarTo(like) => check_pattern("SIMILAR TO", &like.pattern, phase, patterns)?,
        Expr::BinaryExpr(binary)
            if matches!(
                binary.op,
                Operator::RegexMatch | Operator::RegexIMatch | Operator::RegexNotMatch | Operator::RegexNotIMatch
            ) =>
        {
            check_pattern(&binary.op.to_string(), &binary.right, phase, patterns)?;
        }
        Expr::ScalarFunction(call) if call.name().starts_with("regexp_") => {
            if let Some(pattern) = call.args.get(1) {
                check_pattern(&format!("{}()", call.name()), pattern, phase, patterns)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn check_pattern(of: &str, pattern: &Expr, phase: Phase, patterns: &mut usize) -> Result<()> {
    *patterns += 1;
    if *patterns > PATTERNS_MAX {
        return Err(external(
            QueryError::refused(format!(
                "the query has more than {PATTERNS_MAX} regular expressions, the limit of patterns"
            ))
            .hint("join them with | into one"),
        ));
    }
    let Some(text) = text(pattern) else {
        if phase == Phase::AsWritten || matches!(pattern, Expr::Literal(..)) {
            return Ok(());
        }
        return Err(external(
            QueryError::refused(format!("the pattern of {of} differs from row to row, and each would be compiled"))
                .hint("write the pattern as a text literal, or use strpos() or starts_with() to look for a text"),
        ));
    };
    match regex::RegexBuilder::new(text).size_limit(PATTERN_BYTES_MAX).build() {
        Err(regex::Error::CompiledTooBig(_)) => Err(external(
            QueryError::refused(format!(
                "the pattern of {of} compiles to more than {} KiB, the limit",
                PATTERN_BYTES_MAX >> 10
            ))
            .hint("make its repetitions smaller, such as {1000}"),
        )),
        // What is wrong with a pattern says who runs it.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The text of a constant, whichever type it was given.
fn text(expression: &Expr) -> Option<&str> {
    match expression {
        Expr::Literal(value, _) => value.try_as_str().flatten(),
        Expr::Cast(cast) => text(&cast.expr),
        Expr::Alias(alias) => text(&alias.expr),
        _ => None,
    }
}

fn whole_number(expression: &Expr) -> Option<i128> {
    match expression {
        Expr::Literal(value, _) => match value.cast_to(&DataType::Decimal128(38, 0)) {
            Ok(ScalarValue::Decimal128(number, ..)) => number,
            _ => None,
        },
        Expr::Cast(cast) => whole_number(&cast.expr),
        _ => None,
    }
}

fn largest_fixed_size(data_type: &DataType) -> i32 {
    match data_type {
        DataType::FixedSizeBinary(size) => *size,
        DataType::FixedSizeList(item, size) => size.saturating_mul(largest_fixed_size(item.data_type()).max(1)),
        DataType::List(item) | DataType::LargeList(item) | DataType::Map(item, _) => {
            largest_fixed_size(item.data_type())
        }
        DataType::Struct(fields) => {
            fields.iter().map(|field| largest_fixed_size(field.data_type())).fold(0, i32::saturating_add)
        }
        DataType::Dictionary(_, value) => largest_fixed_size(value),
        _ => 0,
    }
}

fn refuse_fixed_size(data_type: &DataType) -> Result<()> {
    Err(external(
        QueryError::refused(format!(
            "type {} is of fixed size and over the limit of {FIXED_SIZE_MAX}",
            crate::render::type_name(data_type)
        ))
        .hint("use BIGINT[] or BYTEA, which are as long as their values"),
    ))
}

/// The size of each output column once it is written in terms of stored columns; adds the size of
/// every expression on the way to `total`.
fn output_sizes(plan: &LogicalPlan, total: &mut u64) -> Result<HashMap<String, u64>> {
    let mut sizes: HashMap<String, u64> = HashMap::new();
    for input in plan.inputs() {
        for (name, size) in output_sizes(input, total)? {
            let known = sizes.entry(name).or_default();
            *known = (*known).max(size);
        }
    }
    let expressions = plan.expressions();
    let mut expression_sizes = Vec::with_capacity(expressions.len());
    for expression in &expressions {
        let size = expanded_size(expression, &sizes, total)?;
        *total = total.saturating_add(size);
        if *total > EXPANDED_NODES_MAX {
            return Err(external(
                QueryError::refused(format!(
                    "the query's expressions grow past {EXPANDED_NODES_MAX} terms once subqueries are expanded"
                ))
                .hint("each level repeats a column computed by the level below; compute it once"),
            ));
        }
        expression_sizes.push(size);
    }
    if matches!(plan, LogicalPlan::Projection(_) | LogicalPlan::Aggregate(_)) {
        let names = plan.schema().fields().iter().map(|field| field.name().clone());
        return Ok(names.zip(expression_sizes).collect());
    }
    Ok(sizes)
}

fn expanded_size(expression: &Expr, sizes: &HashMap<String, u64>, total: &mut u64) -> Result<u64> {
    let mut size = 0_u64;
    expression.apply(|node| {
        let own = match node {
            Expr::Column(column) => sizes.get(&column.name).copied().unwrap_or(1),
            Expr::ScalarSubquery(subquery) => {
                output_sizes(&subquery.subquery, total)?;
                1
            }
            Expr::InSubquery(inner) => {
                output_sizes(&inner.subquery.subquery, total)?;
                1
            }
            Expr::Exists(inner) => {
                output_sizes(&inner.subquery.subquery, total)?;
                1
            }
            _ => 1,
        };
        size = size.saturating_add(own);
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(size)
}

/// What a plan costs while it is at one batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of a row of everything the plan reads, on average.
    row_bytes: u64,
    /// Bytes of all constants.
    constant_bytes: u64,
    /// Values that the widest step computes of a row, beside numbers.
    values: u64,
    /// Calls whose output can be larger than their input.
    pub growing: usize,
}

impl Cost {
    /// Rows that a batch may have. The widest step then makes about [`STEP_BYTES_MAX`] of one.
    #[must_use]
    pub fn rows_at_once(&self) -> usize {
        let of_a_row = self.row_bytes.saturating_mul(self.values.max(1)).saturating_add(self.constant_bytes).max(1);
        let rows = usize::try_from(STEP_BYTES_MAX / of_a_row).unwrap_or(usize::MAX);
        rows.clamp(ROWS_AT_ONCE_MIN, ROWS_AT_ONCE_MAX)
    }

    fn of(plan: &LogicalPlan) -> Result<Self> {
        let mut cost = Self::default();
        plan.apply_with_subqueries(|node| {
            if let LogicalPlan::TableScan(scan) = node {
                let statistics = source_as_provider(&scan.source).ok().and_then(|provider| provider.statistics());
                let bytes = statistics.as_ref().and_then(|statistics| statistics.total_byte_size.get_value().copied());
                let rows = statistics.as_ref().and_then(|statistics| statistics.num_rows.get_value().copied());
                let row_bytes = bytes.unwrap_or(0) / rows.unwrap_or(0).max(1);
                cost.row_bytes = cost.row_bytes.saturating_add(row_bytes as u64);
            }
            let mut values = 0;
            node.apply_expressions(|expression| {
                expression.apply(|part| {
                    match part {
                        Expr::Literal(value, _) => {
                            let own = value.size().saturating_sub(size_of::<ScalarValue>()) as u64;
                            cost.constant_bytes = cost.constant_bytes.saturating_add(own);
                        }
                        Expr::ScalarFunction(call) => {
                            cost.growing += usize::from(grows(call.name()));
                            values += 1;
                        }
                        Expr::Case(_) | Expr::Cast(_) | Expr::TryCast(_) => values += 1,
                        Expr::BinaryExpr(binary) if binary.op == Operator::StringConcat => values += 1,
                        _ => {}
                    }
                    Ok(TreeNodeRecursion::Continue)
                })
            })?;
            cost.values = cost.values.max(values);
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(cost)
    }
}

/// Bytes in memory of rows that take so many in a segment, by estimate.
pub(crate) fn in_memory(segment_bytes: u64) -> u64 {
    segment_bytes.saturating_mul(SEGMENT_EXPANSION)
}

/// Checks an optimized plan: its joins, its patterns and its constants. Says what it costs.
///
/// # Errors
/// A refusal that names the limit.
pub fn before_running(plan: &LogicalPlan) -> Result<Cost> {
    let mut patterns = 0;
    each_expression(plan, |expression| check_expression(expression, Phase::Optimized, &mut patterns))?;
    let cost = Cost::of(plan)?;
    if cost.constant_bytes > CONSTANT_BYTES_MAX {
        return Err(external(
            QueryError::refused(format!(
                "the query's constants take {} KiB once they are computed, over the limit of {}",
                cost.constant_bytes >> 10,
                CONSTANT_BYTES_MAX >> 10
            ))
            .hint("a constant is copied for every row: compute it from a column, or make it shorter"),
        ));
    }
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Join(join) = node
            && join.on.is_empty()
        {
            let (left, right) = (row_estimate(&join.left), row_estimate(&join.right));
            if left > 1 && right > 1 && left.saturating_mul(right) > JOIN_PAIRS_MAX {
                let what = if join.filter.is_none() { "a cross join" } else { "a join without an equality" };
                return Err(external(
                    QueryError::refused(format!(
                        "{what} of about {left} and {right} rows is over the limit of {JOIN_PAIRS_MAX} pairs"
                    ))
                    .hint("join on equal columns (ON a.trace_id = b.trace_id), or narrow both sides with LIMIT or GROUP BY"),
                ));
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(cost)
}

/// How many rows a plan may give, from table sizes, limits and row counts that are known.
fn row_estimate(plan: &LogicalPlan) -> u64 {
    let known = plan.max_rows().map_or(u64::MAX, |rows| rows as u64);
    let inputs = || plan.inputs().into_iter().map(row_estimate);
    let estimate = match plan {
        LogicalPlan::TableScan(scan) => source_as_provider(&scan.source)
            .ok()
            .and_then(|provider| provider.statistics())
            .and_then(|statistics| statistics.num_rows.get_value().copied())
            .map_or(u64::MAX, |rows| rows as u64),
        LogicalPlan::Union(_) => inputs().fold(0, u64::saturating_add),
        LogicalPlan::Join(join) => match join.join_type {
            JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => row_estimate(&join.left),
            JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => row_estimate(&join.right),
            _ => inputs().fold(1, |product: u64, rows| product.saturating_mul(rows.max(1))),
        },
        LogicalPlan::Unnest(_) => inputs().fold(1, u64::max).saturating_mul(UNNEST_ROWS),
        _ => inputs().max().unwrap_or(u64::MAX),
    };
    estimate.min(known)
}
