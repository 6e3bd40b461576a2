//! Tables that another part of the program offers: small state that is not stored as telemetry, as SQL.
//!
//! This crate knows a name, columns and a way to get rows; what they mean is known where they come from. A query reads
//! such a table once, when it is planned, so that all of it sees the same rows. Not here: any such table.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema, SchemaRef};
use async_trait::async_trait;
use model::tenant::TenantId;

use crate::catalog::made_table;
use crate::error::{ErrorKind, QueryError, external};
use crate::functions::texts_field;
use datafusion::catalog::TableProvider;

/// How much of such a table one query reads. It is held in memory from planning on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Rows.
    pub rows: usize,
    /// Bytes of their texts.
    pub text_bytes: usize,
}

/// What a query reads at most: enough for every alert of a large system, and a fraction of a query's memory.
pub const BOUNDS: Bounds = Bounds { rows: 100_000, text_bytes: 64 << 20 };

/// The rows of such a table at one instant.
#[derive(Clone, Debug)]
pub struct Rows {
    /// As the columns say, in their order.
    pub batch: RecordBatch,
    /// There are more, which the bounds left out.
    pub cut: bool,
}

/// A column of such a table.
#[derive(Clone, Debug)]
pub struct Column {
    /// Its name and type.
    pub field: Field,
    /// What it is, in one line.
    pub description: &'static str,
}

impl Column {
    /// A column of a type that may be null.
    #[must_use]
    pub fn new(name: &str, data_type: arrow::datatypes::DataType, description: &'static str) -> Self {
        Self { field: Field::new(name, data_type, true), description }
    }

    /// A column of names with texts, as a [`model::attributes::AttributesColumn`] builds it; `name['key']` is text
    /// here, whatever telemetry says under the same key.
    #[must_use]
    pub fn texts(name: &str, description: &'static str) -> Self {
        Self { field: texts_field(name), description }
    }
}

/// Something that can be asked as a table.
#[async_trait]
pub trait OfferedTable: Send + Sync {
    /// Its name, which no other table has.
    fn name(&self) -> &'static str;

    /// What a row is, in one line.
    fn description(&self) -> &'static str;

    /// Its columns, always the same.
    fn columns(&self) -> Vec<Column>;

    /// A tenant's rows at this instant, the newest where there are more than the bounds let through.
    ///
    /// # Errors
    /// What kept them from being read.
    async fn rows(&self, tenant: &TenantId, bounds: Bounds) -> Result<Rows, String>;
}

/// Every table that is offered, in the order SHOW TABLES prints.
#[derive(Clone, Default)]
pub(crate) struct Offered(Arc<[Arc<dyn OfferedTable>]>);

impl fmt::Debug for Offered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl Offered {
    pub(crate) fn new(tables: Vec<Arc<dyn OfferedTable>>) -> Self {
        Self(tables.into())
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.0.iter().map(|table| table.name())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&dyn OfferedTable> {
        self.0.iter().find(|table| table.name() == name).map(AsRef::as_ref)
    }
}

impl dyn OfferedTable + '_ {
    pub(crate) fn schema(&self) -> SchemaRef {
        Arc::new(Schema::new(self.columns().into_iter().map(|column| column.field).collect::<Vec<_>>()))
    }

    /// The rows as a table, and whether there are more of them.
    pub(crate) async fn read(&self, tenant: &TenantId) -> datafusion::error::Result<(Arc<dyn TableProvider>, bool)> {
        let rows = self.rows(tenant, BOUNDS).await.map_err(|why| {
            external(QueryError::new(ErrorKind::Unavailable, format!("cannot read {}: {why}", self.name())))
        })?;
        let batch = RecordBatch::try_new(self.schema(), rows.batch.columns().to_vec())?;
        Ok((made_table(batch), rows.cut))
    }
}
