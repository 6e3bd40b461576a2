//! The tables people type, as views over the stored ones: computed columns, contexts split into
//! attributes, name and schema URL, events and links as tables of their own, and the ledger.
//!
//! Views are plans that the optimizer merges into the query: filters and projections reach the
//! Parquet scan as if the columns had been stored under these names. Column names are part of the
//! product's interface. Not here: the views of derived tables ([`crate::derived`]).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampNanosecondArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::common::UnnestOptions;
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::error::Result;
use datafusion::functions::core::expr_fn::{coalesce, get_field};
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, cast, col};
use model::derived::DerivedTable;
use model::ledger::LedgerLine;
use model::schema::time_type;
use model::signal::Table;
use model::tenant::TenantId;

use crate::error::{ErrorKind, QueryError, external};
use crate::functions::Functions;
use crate::histogram;
use crate::offered::Offered;
use crate::provider::{PhysicalTable, ScanCounters};
use crate::remote::RemoteTable;
use crate::source::{Container, Snapshot, Source};

/// Every table of telemetry, in the order SHOW TABLES prints; those that are offered follow.
pub const TABLE_NAMES: [&str; 10] = [
    "spans",
    "span_events",
    "span_links",
    "logs",
    "metric_points",
    "metric_histograms",
    "profiles",
    "span_metrics",
    "service_edges",
    "ingest_ledger",
];

/// The tables of one query: one tenant, one snapshot.
pub struct Tables {
    tenant: TenantId,
    snapshot: Snapshot,
    source: Arc<dyn Source>,
    functions: Functions,
    counters: Arc<ScanCounters>,
    offered: Offered,
    // As the ledger.
    offered_read: tokio::sync::Mutex<BTreeMap<&'static str, Arc<dyn TableProvider>>>,
    // Read once per query, so that a query which names it twice sees one ledger.
    ledger: Mutex<Option<Arc<dyn TableProvider>>>,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tables").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

impl Tables {
    /// The tables over a snapshot.
    #[must_use]
    pub(crate) fn new(
        tenant: TenantId,
        snapshot: Snapshot,
        source: Arc<dyn Source>,
        functions: Functions,
        counters: Arc<ScanCounters>,
        offered: Offered,
    ) -> Self {
        let (offered_read, ledger) = Default::default();
        Self { tenant, snapshot, source, functions, counters, offered, offered_read, ledger }
    }

    /// The name of every table.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        TABLE_NAMES.into_iter().chain(self.offered.names()).collect()
    }

    pub(crate) const fn offered(&self) -> &Offered {
        &self.offered
    }

    /// A table by name, with the rows of those that are offered; `None` when there is no such table.
    ///
    /// # Errors
    /// As [`Tables::provider`], or when an offered table cannot be read.
    pub async fn read(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let Some(table) = self.offered.get(name) else { return self.provider(name) };
        let mut read = self.offered_read.lock().await;
        if let Some(known) = read.get(name) {
            return Ok(Some(Arc::clone(known)));
        }
        let (provider, cut) = table.read(&self.tenant).await?;
        if cut {
            self.counters.cut(table.name());
        }
        read.insert(table.name(), Arc::clone(&provider));
        Ok(Some(provider))
    }

    /// A table of telemetry by name; `None` when there is no such table.
    ///
    /// # Errors
    /// When the ledger cannot be read, or a view does not match the stored schema (a defect).
    pub fn provider(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        Ok(Some(match name {
            "spans" => self.view(Table::Spans, self.spans())?,
            "logs" => self.view(Table::Logs, self.logs())?,
            "metric_points" => self.view(Table::MetricPoints, self.metric_points())?,
            "metric_histograms" => self.view(Table::MetricHistograms, self.metric_histograms())?,
            "profiles" => self.view(Table::Profiles, self.profiles())?,
            "span_events" => self.span_items(Container::Events, &["time", "name", "dropped_attributes_count"])?,
            "span_links" => self.span_items(
                Container::Links,
                &["trace_id", "span_id", "trace_state", "flags", "dropped_attributes_count"],
            )?,
            "span_metrics" => self.derived(DerivedTable::SpanMetrics)?,
            "service_edges" => self.derived(DerivedTable::ServiceEdges)?,
            "ingest_ledger" => self.ledger()?,
            _ => return Ok(None),
        }))
    }

    /// The columns of a table; `None` when there is no such table. Reads nothing.
    ///
    /// # Errors
    /// As [`Tables::provider`].
    pub(crate) fn schema_of(&self, name: &str) -> Result<Option<SchemaRef>> {
        if name == "ingest_ledger" {
            return Ok(Some(ledger_schema()));
        }
        if let Some(offered) = self.offered.get(name) {
            return Ok(Some(offered.schema()));
        }
        Ok(self.provider(name)?.map(|table| table.schema()))
    }

    pub(crate) const fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    fn physical(&self, table: Table) -> Arc<dyn TableProvider> {
        if let Some(reach) = &self.snapshot.reach {
            return Arc::new(RemoteTable::new(Arc::clone(reach), table));
        }
        Arc::new(PhysicalTable::new(table, self.snapshot.table(table).clone(), Arc::clone(&self.counters)))
    }

    fn view(&self, table: Table, columns: Vec<Expr>) -> Result<Arc<dyn TableProvider>> {
        let plan = LogicalPlanBuilder::scan(table.name(), provider_as_source(self.physical(table)), None)?
            .project(columns)?
            .build()?;
        Ok(Arc::new(ViewTable::new(plan, None)))
    }

    fn contexts(&self, table: Table) -> Vec<Expr> {
        let functions = &self.functions;
        vec![
            functions.origin(col("resource"), table, Container::Resource).alias("resource_attributes"),
            functions.context_text(col("scope"), "scope_name").alias("scope_name"),
            functions.context_text(col("scope"), "scope_version").alias("scope_version"),
            functions.origin(col("scope"), table, Container::Scope).alias("scope_attributes"),
            functions.context_text(col("resource"), "schema_url").alias("resource_schema_url"),
            functions.context_text(col("scope"), "schema_url").alias("scope_schema_url"),
        ]
    }

    fn attributes(&self, table: Table) -> Expr {
        self.functions.origin(col("attributes"), table, Container::Attributes).alias("attributes")
    }

    fn spans(&self) -> Vec<Expr> {
        let mut columns = columns(&[
            "trace_id",
            "span_id",
            "parent_span_id",
            "trace_state",
            "flags",
            "service_name",
            "name",
            "kind",
            "start_time",
        ]);
        columns.push(self.functions.time_plus(col("start_time"), col("duration_ns")).alias("end_time"));
        columns.extend(self::columns(&["duration_ns", "status_code", "status_message"]));
        columns.push(self.attributes(Table::Spans));
        columns.extend(self::columns(&[
            "dropped_attributes_count",
            "events",
            "dropped_events_count",
            "links",
            "dropped_links_count",
        ]));
        columns.extend(self.contexts(Table::Spans));
        columns
    }

    fn logs(&self) -> Vec<Expr> {
        let mut columns = columns(&[
            "time",
            "observed_time",
            "time_inferred",
            "service_name",
            "severity_number",
            "severity_text",
            "body",
            "event_name",
            "trace_id",
            "span_id",
            "flags",
        ]);
        columns.push(self.attributes(Table::Logs));
        columns.push(col("dropped_attributes_count"));
        columns.extend(self.contexts(Table::Logs));
        columns
    }

    fn metric_head(&self, table: Table) -> Vec<Expr> {
        let mut columns = columns(&[
            "metric_name",
            "metric_description",
            "metric_unit",
            "metric_type",
            "series_id",
            "service_name",
            "temporality",
            "start_time",
            "time",
            "flags",
        ]);
        columns.push(self.attributes(table));
        columns.push(col("exemplars"));
        columns.push(
            self.functions.origin(col("metric_metadata"), table, Container::MetricMetadata).alias("metric_metadata"),
        );
        columns
    }

    fn metric_points(&self) -> Vec<Expr> {
        let mut columns = self.metric_head(Table::MetricPoints);
        columns.push(col("is_monotonic"));
        columns.push(coalesce(vec![col("value_double"), cast(col("value_int"), DataType::Float64)]).alias("value"));
        columns.push(col("value_int"));
        columns.extend(self.contexts(Table::MetricPoints));
        columns
    }

    fn metric_histograms(&self) -> Vec<Expr> {
        let mut columns = self.metric_head(Table::MetricHistograms);
        columns.extend(self::columns(&[
            "count",
            "sum",
            "min",
            "max",
            "explicit_bounds",
            "bucket_counts",
            "scale",
            "zero_count",
            "zero_threshold",
            "positive",
            "negative",
            "quantile_values",
        ]));
        columns.push(histogram::column().alias("histogram"));
        columns.extend(self.contexts(Table::MetricHistograms));
        columns
    }

    fn profiles(&self) -> Vec<Expr> {
        let mut columns = columns(&[
            "time",
            "service_name",
            "profile_id",
            "duration_ns",
            "sample_type",
            "sample_unit",
            "period_type",
            "period_unit",
            "period",
            "stack",
            "sample_values",
            "timestamps",
            "trace_id",
            "span_id",
        ]);
        columns.push(self.attributes(Table::Profiles));
        columns.extend(self.contexts(Table::Profiles));
        columns
    }

    /// Events or links, a row each, with the span they belong to. What a link points at is
    /// `linked_trace_id` and `linked_span_id`.
    fn span_items(&self, container: Container, fields: &[&str]) -> Result<Arc<dyn TableProvider>> {
        let list = container.name();
        let plan = LogicalPlanBuilder::scan("spans", provider_as_source(self.physical(Table::Spans)), None)?
            .project(vec![
                col("trace_id"),
                col("span_id"),
                col("service_name"),
                col("name").alias("span_name"),
                col("start_time").alias("span_start_time"),
                col(list).alias("item"),
            ])?
            .unnest_columns_with_options(vec!["item".into()], UnnestOptions::new().with_preserve_nulls(false))?;
        let mut columns = columns(&["trace_id", "span_id", "service_name", "span_name", "span_start_time"]);
        for field in fields {
            let name = match *field {
                "trace_id" => "linked_trace_id",
                "span_id" => "linked_span_id",
                other => other,
            };
            columns.push(get_field(col("item"), *field).alias(name));
        }
        columns.push(
            self.functions.origin(get_field(col("item"), "attributes"), Table::Spans, container).alias("attributes"),
        );
        Ok(Arc::new(ViewTable::new(plan.project(columns)?.build()?, None)))
    }

    fn derived(&self, table: DerivedTable) -> Result<Arc<dyn TableProvider>> {
        let rows = self.snapshot.derived.as_ref().map(|derived| derived.tables[table.index()].clone());
        let reach = self.snapshot.reach.clone();
        Ok(Arc::new(ViewTable::new(crate::derived::view(table, rows, reach, &self.counters)?, None)))
    }

    fn ledger(&self) -> Result<Arc<dyn TableProvider>> {
        if let Some(reach) = &self.snapshot.reach {
            return Ok(Arc::new(RemoteTable::ledger(Arc::clone(reach), ledger_schema())));
        }
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = ledger.as_ref() {
            return Ok(Arc::clone(table));
        }
        let lines = self.source.ledger(&self.tenant).map_err(|why| {
            external(QueryError::new(ErrorKind::Unavailable, format!("cannot read the ingest ledger: {why}")))
        })?;
        let batch = ledger_batch(&lines)?;
        let table: Arc<dyn TableProvider> = Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?);
        *ledger = Some(Arc::clone(&table));
        Ok(table)
    }
}

fn columns(names: &[&str]) -> Vec<Expr> {
    names.iter().map(|name| col(*name)).collect()
}

fn ledger_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("time", time_type(), false),
        Field::new("signal", DataType::Utf8, false),
        Field::new("reason", DataType::Utf8, true),
        Field::new("received", DataType::UInt64, false),
        Field::new("stored", DataType::UInt64, false),
        Field::new("rejected", DataType::UInt64, false),
    ]))
}

/// The ledger as rows. In every row, and so in every sum, `received = stored + rejected` (I2).
fn ledger_batch(lines: &[LedgerLine]) -> Result<RecordBatch> {
    let stored = |line: &LedgerLine| if line.reason.is_none() { line.items } else { 0 };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(lines.iter().map(|line| Some(line.minute)).collect::<TimestampNanosecondArray>().with_timezone("UTC")),
        Arc::new(lines.iter().map(|line| Some(line.signal.name())).collect::<StringArray>()),
        Arc::new(lines.iter().map(|line| line.reason.map(|reason| reason.name())).collect::<StringArray>()),
        Arc::new(lines.iter().map(|line| Some(line.items)).collect::<UInt64Array>()),
        Arc::new(lines.iter().map(|line| Some(stored(line))).collect::<UInt64Array>()),
        Arc::new(lines.iter().map(|line| Some(line.items - stored(line))).collect::<UInt64Array>()),
    ];
    Ok(RecordBatch::try_new(ledger_schema(), columns)?)
}
