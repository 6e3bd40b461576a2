//! What there is to ask: tables and columns with what they mean, as data for programs and as the schemas
//! `information_schema` and `pg_catalog` for SQL.
//!
//! The two schemas are the ones that tools for PostgreSQL look into, over whichever door. They describe what the
//! tenant can query and nothing of the machine. Not here: the tables themselves ([`crate::tables`]).
//!
//! # Layout
//! - `descriptions`: one line for each table and column
//! - [`types`]: SQL types as PostgreSQL numbers and names them
//! - `information_schema`, `postgres`: the two schemas, made of `rows`
//! - `functions`: functions such as `format_type()` that go with them
//! - `normalize`: PostgreSQL's ways of writing, put into words that the planner knows
//! - [`attributes`]: which attribute keys there are, with what values

pub mod attributes;
mod descriptions;
mod functions;
mod information_schema;
mod normalize;
mod postgres;
mod rows;
#[cfg(test)]
mod tests;
pub mod types;

use std::sync::{Arc, OnceLock};

use arrow::array::AsArray as _;
use arrow::datatypes::{DataType, TimestampNanosecondType};
use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider as _, MemoryCatalogProvider, SchemaProvider, TableProvider};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::ScalarUDF;
use model::signal::Table;
use model::tenant::TenantId;

use crate::engine::{Engine, Limits};
use crate::error::QueryError;
use crate::functions::Functions;
use crate::provider::ScanCounters;
use crate::source::TableSnapshot;
use crate::tables::Tables;

pub use functions::{POSTGRES_VERSION, SETTINGS};
pub(crate) use normalize::normalize;
pub(crate) use rows::made as made_table;

/// The name of the one database there is.
pub const DATABASE: &str = "godseye";

/// The schema whose tables need no schema's name.
pub const SCHEMA: &str = "public";

/// A column as it can be queried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnInfo {
    /// Its name.
    pub name: String,
    /// Its type in Arrow; [`crate::render::type_name`] and [`types::column_type`] name it.
    pub data_type: DataType,
    /// Whether it may be null.
    pub nullable: bool,
    /// What it is, in one line.
    pub description: &'static str,
}

/// A table as it can be queried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableInfo {
    /// Its name.
    pub name: &'static str,
    /// What a row is, in one line.
    pub description: &'static str,
    /// Its columns, in order.
    pub columns: Vec<ColumnInfo>,
    /// What is stored; `None` for a table that is computed from another one.
    pub stored: Option<Stored>,
}

/// What is stored of a table, from the metadata of its segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Rows, exact.
    pub rows: u64,
    /// Bytes of its segments; rows in memory take none.
    pub segment_bytes: u64,
    /// The least and the greatest time of a row, nanoseconds since the epoch; `None` without rows.
    pub times: Option<(i64, i64)>,
}

impl Stored {
    fn of(table: Table, rows: &TableSnapshot) -> Self {
        let mut stored = Self::default();
        let mut add = |least: i64, greatest: i64| {
            let (from, to) = stored.times.unwrap_or((least, greatest));
            stored.times = Some((from.min(least), to.max(greatest)));
        };
        for segment in &rows.segments {
            stored.rows += segment.rows;
            stored.segment_bytes += segment.bytes;
            add(segment.min_time, segment.max_time);
        }
        for batch in &rows.memory {
            stored.rows += batch.num_rows() as u64;
            let Some(times) = batch.column_by_name(table.time_column()) else { continue };
            let times = times.as_primitive::<TimestampNanosecondType>();
            if let (Some(least), Some(greatest)) = (arrow::compute::min(times), arrow::compute::max(times)) {
                add(least, greatest);
            }
        }
        stored
    }
}

/// The catalog of one query: its tables, listed once if anything asks.
pub(crate) struct Catalog {
    tables: Arc<Tables>,
    listed: OnceLock<Vec<TableInfo>>,
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").field("tables", &self.tables).finish_non_exhaustive()
    }
}

impl Catalog {
    pub(crate) fn new(tables: Arc<Tables>) -> Arc<Self> {
        Arc::new(Self { tables, listed: OnceLock::new() })
    }

    /// Puts the tables and the schemas about them into a session's catalog.
    pub(crate) fn register(self: &Arc<Self>, catalog: &MemoryCatalogProvider) -> Result<()> {
        for (schema, tables) in
            [(SCHEMA, Part::Tables), ("information_schema", Part::InformationSchema), ("pg_catalog", Part::Postgres)]
        {
            catalog.register_schema(schema, Arc::new(View { catalog: Arc::clone(self), part: tables }))?;
        }
        Ok(())
    }

    /// The functions that go with `pg_catalog`.
    pub(crate) fn functions(self: &Arc<Self>) -> Vec<Arc<ScalarUDF>> {
        functions::all(self)
    }

    fn tables(&self) -> Result<&[TableInfo]> {
        if let Some(listed) = self.listed.get() {
            return Ok(listed);
        }
        let listed = self.tables.names().into_iter().map(|name| self.table(name)).collect::<Result<Vec<_>>>()?;
        Ok(self.listed.get_or_init(|| listed))
    }

    /// The number of a table by its name, which may have its schema before it.
    fn oid_of(&self, name: &str) -> Option<i64> {
        let name = postgres::bare(name);
        let index = self.tables.names().into_iter().position(|known| known == name)?;
        Some(postgres::oid_at(index))
    }

    fn table(&self, name: &'static str) -> Result<TableInfo> {
        if let Some(offered) = self.tables.offered().get(name) {
            let columns = offered.columns().into_iter().map(|column| ColumnInfo {
                name: column.field.name().clone(),
                data_type: column.field.data_type().clone(),
                nullable: column.field.is_nullable(),
                description: column.description,
            });
            let (description, columns) = (offered.description(), columns.collect());
            return Ok(TableInfo { name, description, columns, stored: None });
        }
        let schema = self
            .tables
            .schema_of(name)?
            .ok_or_else(|| DataFusionError::Internal(format!("table {name} is listed and cannot be had")))?;
        let columns = schema.fields().iter().map(|field| ColumnInfo {
            name: field.name().clone(),
            data_type: field.data_type().clone(),
            nullable: field.is_nullable(),
            description: descriptions::of_column(name, field.name()).unwrap_or_default(),
        });
        Ok(TableInfo {
            name,
            description: descriptions::of_table(name).unwrap_or_default(),
            columns: columns.collect(),
            // What is elsewhere is not counted: that would be a query of its own.
            stored: Table::from_name(name)
                .filter(|_| self.tables.snapshot().reach.is_none())
                .map(|table| Stored::of(table, self.tables.snapshot().table(table))),
        })
    }
}

#[derive(Clone, Copy, Debug)]
enum Part {
    Tables,
    InformationSchema,
    Postgres,
}

/// One schema of the catalog.
#[derive(Debug)]
struct View {
    catalog: Arc<Catalog>,
    part: Part,
}

#[async_trait]
impl SchemaProvider for View {
    fn table_names(&self) -> Vec<String> {
        let offering = self.catalog.tables.names();
        let names: &[&str] = match self.part {
            Part::Tables => &offering,
            Part::InformationSchema => &information_schema::NAMES,
            Part::Postgres => &postgres::NAMES,
        };
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        match self.part {
            // PostgreSQL finds its own catalog without a schema's name, and tools rely on it.
            Part::Tables => match self.catalog.tables.read(name).await? {
                None if name.starts_with("pg_") => postgres::table(&self.catalog, name),
                found => Ok(found),
            },
            Part::InformationSchema => information_schema::table(&self.catalog, name),
            Part::Postgres => postgres::table(&self.catalog, name),
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        self.table_names().iter().any(|known| known == name)
    }
}

impl Engine {
    /// Every table of a tenant, with its columns and what is stored of it.
    ///
    /// # Errors
    /// [`QueryError`] when the engine is busy or stopping.
    pub async fn tables(&self, tenant: &TenantId) -> std::result::Result<Vec<TableInfo>, QueryError> {
        let (tenant, engine) = (tenant.clone(), Arc::clone(&self.inner));
        self.on_query_thread(&tenant.clone(), async move {
            let snapshot = engine.snapshot(&tenant, false, Limits::default()).await?;
            let functions = Functions::new(&snapshot.kinds);
            let (source, counters) = (Arc::clone(&engine.source), Arc::new(ScanCounters::default()));
            let offered = engine.offered.clone();
            let catalog = Catalog::new(Arc::new(Tables::new(tenant, snapshot, source, functions, counters, offered)));
            Ok(catalog.tables()?.to_vec())
        })
        .await
    }
}
