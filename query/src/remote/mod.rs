//! Queries where the rows are in ClickHouse: the same SQL, planned here, run there as far as it can be.
//!
//! ```text
//! SQL ─▶ guard, plan, optimize, as ever ─▶ largest parts that can be written ─▶ ClickHouse's SQL ─▶ ArrowStream
//!                                            └ the rest runs here over their rows ◀── our types ◀──┘
//! ```
//!
//! An answer is what ClickHouse has: rows that are acknowledged and not inserted yet (a second, by default) are not in it,
//! so none is ever there twice. Not here: connections ([`Remote`] is implemented where configuration is known).
//!
//! # Layout
//! - `writer`: expressions as ClickHouse's SQL, or why not. Pure
//! - `plan`: plans as SELECTs; the only place that names tables and the tenant. Pure
//! - `derived`: `span_metrics` and `service_edges`, counted there from spans. Pure
//! - `exec`, `restore`: an answer as a stream of batches in the engine's types
//! - `kinds`: which kinds attribute keys have there

pub(crate) mod derived;
mod exec;
mod kinds;
mod plan;
mod restore;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::catalog::{Session, TableProvider};
use datafusion::datasource::TableType;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use model::schema::schema;
use model::signal::Table;
use model::tenant::TenantId;
use tokio::time::Instant;

use crate::engine::{Engine, Limits};
use crate::error::QueryError;
use crate::source::ObservedKinds;
pub(crate) use exec::RemoteExec;
use kinds::{KINDS_FRESH, RemoteKinds};

pub(crate) use plan::push_down;

/// Tenants whose kinds are kept. Each has some hundred keys; with more of them they take turns.
const TENANTS_KEPT: usize = 64;

/// How long reading kinds may take: a few thousand lines of a small table.
const KINDS_TIMEOUT: Duration = Duration::from_secs(10);

/// How long reading a day of a table may take.
const ROWS_TIMEOUT: Duration = Duration::from_secs(600);

/// Batches of rows that are elsewhere.
pub type RowsElsewhere = BoxStream<'static, std::result::Result<RecordBatch, QueryError>>;

/// Limits that the other side keeps.
#[derive(Clone, Copy, Debug)]
pub struct RemoteLimits {
    /// How long a statement may run.
    pub timeout: Duration,
    /// After how many rows of an answer it may end; `None` when all of them are needed.
    pub rows_max: Option<u64>,
}

/// ClickHouse, as a query sees it.
pub trait Remote: Send + Sync + fmt::Debug {
    /// The database that has the tables.
    fn database(&self) -> &str;

    /// The answer to a statement as an Arrow stream, in pieces; strings as bytes, no dictionaries. An error is the last
    /// piece. Dropping it ends the statement.
    fn ask(&self, sql: String, limits: RemoteLimits) -> BoxStream<'static, std::result::Result<Bytes, QueryError>>;
}

/// One tenant's rows in ClickHouse, for one query.
#[derive(Debug)]
pub(crate) struct Reach {
    pub(crate) remote: Arc<dyn Remote>,
    pub(crate) tenant: TenantId,
    pub(crate) limits: Limits,
    pub(crate) kinds: Arc<RemoteKinds>,
}

impl Reach {
    /// The kinds as the engine's functions want them.
    pub(crate) fn observed(&self) -> Arc<dyn ObservedKinds> {
        Arc::new(kinds::Shared(Arc::clone(&self.kinds)))
    }
}

/// Reaches tenants, and remembers their kinds for a moment.
#[derive(Debug, Default)]
pub(crate) struct Reaching {
    kinds: Mutex<Vec<(TenantId, Instant, Arc<RemoteKinds>)>>,
}

impl Reaching {
    /// A tenant's rows.
    ///
    /// # Errors
    /// When ClickHouse cannot be asked.
    pub(crate) async fn reach(
        &self,
        remote: Arc<dyn Remote>,
        tenant: &TenantId,
        limits: Limits,
    ) -> std::result::Result<Arc<Reach>, QueryError> {
        let known = || {
            let kept = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
            let mut fresh = kept.iter().filter(|(_, since, _)| since.elapsed() < KINDS_FRESH);
            fresh.find(|(owner, ..)| owner == tenant).map(|(_, _, kinds)| Arc::clone(kinds))
        };
        let kinds = match known() {
            Some(kinds) => kinds,
            None => {
                let since = Instant::now();
                let sql = format!(
                    "SELECT DISTINCT table_name, container, shape FROM {}.attribute_shapes WHERE tenant = {}",
                    writer::identifier(remote.database()),
                    writer::quoted(tenant.as_str())
                );
                let answer = remote.ask(sql, RemoteLimits { timeout: KINDS_TIMEOUT, rows_max: None });
                let kinds = Arc::new(RemoteKinds::read(&exec::collect(answer).await?)?);
                let mut kept = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
                kept.retain(|(owner, ..)| owner != tenant);
                if kept.len() >= TENANTS_KEPT {
                    kept.remove(0);
                }
                kept.push((tenant.clone(), since, Arc::clone(&kinds)));
                kinds
            }
        };
        Ok(Arc::new(Reach { remote, tenant: tenant.clone(), limits, kinds }))
    }
}

impl Engine {
    /// The rows of a tenant's table whose time is within `from` and `to` (nanoseconds since the epoch, `to` not included),
    /// in no order and with the table's own columns, where they are elsewhere; `None` when they are here.
    ///
    /// # Errors
    /// When they cannot be asked for. The stream can end with an error as well.
    pub async fn rows_elsewhere(
        &self,
        tenant: &TenantId,
        table: Table,
        from: i64,
        to: i64,
    ) -> std::result::Result<Option<RowsElsewhere>, QueryError> {
        let Some(remote) = self.inner.source.remote() else { return Ok(None) };
        let limits = Limits { timeout: ROWS_TIMEOUT, rows_max: u64::MAX, output_bytes_max: u64::MAX };
        let reach = self.inner.reaching.reach(remote, tenant, limits).await?;
        let select = plan::within(&reach, table, from, to);
        let sql = plan::text(&reach, &select);
        let exec = RemoteExec::new(reach, sql.into(), schema(table), false);
        let rows = exec.execute(0, Arc::new(TaskContext::default()))?;
        Ok(Some(rows.map(|batch| batch.map_err(QueryError::from)).boxed()))
    }
}

/// What is stored there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// A table of the model.
    Table(Table),
    /// The ledger.
    Ledger,
}

/// A stored table of one tenant.
#[derive(Debug)]
pub(crate) struct RemoteTable {
    reach: Arc<Reach>,
    stored: Stored,
    schema: SchemaRef,
}

impl RemoteTable {
    pub(crate) fn new(reach: Arc<Reach>, table: Table) -> Self {
        Self { reach, stored: Stored::Table(table), schema: schema(table) }
    }

    pub(crate) fn ledger(reach: Arc<Reach>, schema: SchemaRef) -> Self {
        Self { reach, stored: Stored::Ledger, schema }
    }

    pub(crate) const fn stored(&self) -> Stored {
        self.stored
    }
}

#[async_trait]
impl TableProvider for RemoteTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let select = plan::scan(&self.reach, self.stored);
        let supports = |filter: &&Expr| {
            Ok(match plan::condition(&self.reach, self, &select, filter)? {
                Ok(_) => TableProviderFilterPushDown::Exact,
                Err(_) => TableProviderFilterPushDown::Unsupported,
            })
        };
        filters.iter().map(supports).collect()
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let select = plan::select(&self.reach, self, projection, filters, limit)?;
        let select = select.map_err(DataFusionError::Internal)?;
        let schema = match projection {
            Some(projection) => Arc::new(self.schema.project(projection)?),
            None => Arc::clone(&self.schema),
        };
        let sql = plan::text(&self.reach, &select);
        Ok(Arc::new(RemoteExec::new(Arc::clone(&self.reach), sql.into(), schema, false)))
    }
}

/// The answer to a statement, as a table.
#[derive(Debug)]
pub(crate) struct RemoteQuery {
    reach: Arc<Reach>,
    sql: Arc<str>,
    schema: SchemaRef,
    is_root: bool,
}

impl RemoteQuery {
    pub(crate) fn new(reach: Arc<Reach>, sql: String, schema: SchemaRef, is_root: bool) -> Self {
        Self { reach, sql: sql.into(), schema, is_root }
    }
}

#[async_trait]
impl TableProvider for RemoteQuery {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (reach, sql, schema) = (Arc::clone(&self.reach), Arc::clone(&self.sql), Arc::clone(&self.schema));
        let all: Arc<dyn ExecutionPlan> = Arc::new(RemoteExec::new(reach, sql, schema, self.is_root));
        match projection {
            None => Ok(all),
            Some(projection) if projection.iter().copied().eq(0..self.schema.fields().len()) => Ok(all),
            Some(projection) => datafusion::common::not_impl_err!("columns {projection:?} of an answer"),
        }
    }
}
