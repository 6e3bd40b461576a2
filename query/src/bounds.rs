//! Limits on a plan: how large it may become, and which joins may run.
//!
//! These need what the text does not show: tables' sizes, and what views and subqueries expand to.
//! [`before_optimizing`] keeps the optimizer itself from exploding (it pushes a filter through
//! projections by substitution, so twenty nested `SELECT a + a AS a` would become a million
//! additions); [`before_running`] refuses joins that compare every row with every row. Not here:
//! memory and time, which are enforced while running.

use std::collections::HashMap;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::source_as_provider;
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, JoinType, LogicalPlan};

use crate::error::{QueryError, external};

/// Nodes of a plan, views included. A large dashboard query has 60.
pub const PLAN_NODES_MAX: usize = 2_000;

/// Nodes of all expressions once every column is replaced by what computes it.
pub const EXPANDED_NODES_MAX: u64 = 200_000;

/// Pairs of rows that a join without an equality may compare. About five seconds of one core;
/// such a join does not stop within a batch, so a time limit alone comes late.
pub const JOIN_PAIRS_MAX: u64 = 50_000_000;

/// Rows assumed of one list when it is unnested: more than a span's usual events.
const UNNEST_ROWS: u64 = 64;

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
    Ok(())
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

/// Checks the joins of an optimized plan.
///
/// # Errors
/// A refusal that names the sizes.
pub fn before_running(plan: &LogicalPlan) -> Result<()> {
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
    Ok(())
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
