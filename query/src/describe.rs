//! What a statement will ask for and answer, without running it: for protocols that announce both beforehand.
//!
//! Not here: the statement's words ([`crate::script`]), and how its parameters are put in.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::tree_node::{TreeNode as _, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan};
use model::tenant::TenantId;

use crate::bounds;
use crate::engine::{Engine, Inner, Limits, as_typed};
use crate::error::QueryError;
use crate::guard::{self, Checked};
use crate::provider::ScanCounters;

/// What a statement takes and gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The types of `$1`, `$2` and so on; `None` where nothing in the statement says it.
    pub parameters: Vec<Option<DataType>>,
    /// The columns of its answer.
    pub schema: SchemaRef,
}

impl Engine {
    /// Plans a statement that may have parameters.
    ///
    /// # Errors
    /// [`QueryError`], as the statement itself would give.
    pub async fn describe(&self, tenant: &TenantId, sql: &str) -> Result<Description, QueryError> {
        let (tenant, sql, engine) = (tenant.clone(), sql.to_owned(), Arc::clone(&self.inner));
        self.on_query_thread(&tenant.clone(), async move { Box::pin(describe(&engine, &tenant, &sql)).await }).await
    }
}

async fn describe(engine: &Inner, tenant: &TenantId, sql: &str) -> Result<Description, QueryError> {
    let statement = match guard::check(sql)? {
        Checked::Query(statement) => *statement,
        Checked::ShowTables => {
            return Ok(Description { parameters: Vec::new(), schema: crate::engine::tables_schema() });
        }
        Checked::Describe(_) => {
            return Ok(Description { parameters: Vec::new(), schema: crate::engine::columns_schema() });
        }
    };
    let snapshot = engine.snapshot(tenant, false, Limits::default()).await?;
    let state = engine.session(tenant, snapshot, &Arc::new(ScanCounters::default()), engine.memory())?;
    let plan = state.statement_to_plan(statement).await?;
    bounds::before_optimizing(&plan)?;
    let mut found = plan.get_parameter_types()?;
    cast_parameters(&plan, &mut found)?;
    let count = found.keys().filter_map(|name| name.strip_prefix('$')?.parse::<usize>().ok()).max().unwrap_or(0);
    let parameters = (1..=count).map(|number| found.get(&format!("${number}")).cloned().flatten());
    Ok(Description { parameters: parameters.collect(), schema: answer(&state, &plan) })
}

/// Types of parameters that are known from what they are cast to, `$1::bigint`.
fn cast_parameters(plan: &LogicalPlan, found: &mut HashMap<String, Option<DataType>>) -> Result<(), DataFusionError> {
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::Cast(cast) = expr
                    && let Expr::Placeholder(parameter) = cast.expr.as_ref()
                    && let Some(unknown @ None) = found.get_mut(&parameter.id)
                {
                    *unknown = Some(cast.field.data_type().clone());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })
    .map(drop)
}

/// The columns of a plan's answer. Coercion changes types, and fails where a parameter of an unknown type is in its
/// way; then the plan as written is as good as it gets.
fn answer(state: &SessionState, plan: &LogicalPlan) -> SchemaRef {
    let coerced = state.analyzer().execute_and_check(plan.clone(), state.config_options(), |_, _| {});
    let schema = coerced.as_ref().map_or_else(|_unknown| plan.schema(), LogicalPlan::schema);
    as_typed(schema.inner())
}
