//! Small tables that are made when they are asked for: a number of rows, and a column at a time.
//!
//! Not here: what is in them.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float32Array, Int32Array, Int64Array, RecordBatch, RecordBatchOptions, StringArray,
    new_null_array,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Statistics;
use datafusion::common::stats::Precision;
use datafusion::datasource::TableType;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::error::Result;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;

/// A table in the making.
pub(super) struct Rows {
    rows: usize,
    fields: Vec<Field>,
    columns: Vec<ArrayRef>,
}

impl Rows {
    pub(super) fn new(rows: usize) -> Self {
        Self { rows, fields: Vec::new(), columns: Vec::new() }
    }

    fn add(mut self, name: &str, column: ArrayRef) -> Self {
        self.fields.push(Field::new(name, column.data_type().clone(), true));
        self.columns.push(column);
        self
    }

    /// A column of numbers that name something.
    pub(super) fn ids(self, name: &str, id: impl Fn(usize) -> i64) -> Self {
        let column = (0..self.rows).map(id).collect::<Int64Array>();
        self.add(name, Arc::new(column))
    }

    /// A column of small numbers.
    pub(super) fn ints(self, name: &str, int: impl Fn(usize) -> i32) -> Self {
        let column = (0..self.rows).map(int).collect::<Int32Array>();
        self.add(name, Arc::new(column))
    }

    /// A column of estimates.
    pub(super) fn floats(self, name: &str, float: impl Fn(usize) -> f32) -> Self {
        let column = (0..self.rows).map(float).collect::<Float32Array>();
        self.add(name, Arc::new(column))
    }

    /// A column of text.
    pub(super) fn texts<T: Into<String>>(self, name: &str, text: impl Fn(usize) -> T) -> Self {
        let column: Vec<String> = (0..self.rows).map(|row| text(row).into()).collect();
        self.add(name, Arc::new(StringArray::from(column)))
    }

    /// A column of flags.
    pub(super) fn flags(self, name: &str, flag: impl Fn(usize) -> bool) -> Self {
        let column: Vec<bool> = (0..self.rows).map(flag).collect();
        self.add(name, Arc::new(BooleanArray::from(column)))
    }

    /// Columns of numbers that are all the same.
    pub(super) fn same_ids(self, names: &[&str], id: i64) -> Self {
        names.iter().fold(self, |rows, name| rows.ids(name, |_| id))
    }

    /// Columns of small numbers that are all the same.
    pub(super) fn same_ints(self, names: &[&str], int: i32) -> Self {
        names.iter().fold(self, |rows, name| rows.ints(name, |_| int))
    }

    /// Columns of text that are all the same.
    pub(super) fn same_texts(self, names: &[&str], text: &str) -> Self {
        names.iter().fold(self, |rows, name| rows.texts(name, |_| text))
    }

    /// Columns of flags that are all the same.
    pub(super) fn same_flags(self, names: &[&str], flag: bool) -> Self {
        names.iter().fold(self, |rows, name| rows.flags(name, |_| flag))
    }

    /// Columns of a type without any value.
    pub(super) fn nulls(self, names: &[&str], data_type: &DataType) -> Self {
        names.iter().fold(self, |rows, name| {
            let column = new_null_array(data_type, rows.rows);
            rows.add(name, column)
        })
    }

    /// The table.
    pub(super) fn finish(self) -> Result<Arc<dyn TableProvider>> {
        let schema = Arc::new(Schema::new(self.fields));
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows));
        Ok(made(RecordBatch::try_new_with_options(schema, self.columns, &options)?))
    }
}

/// Rows that are at hand, as a table.
pub(crate) fn made(batch: RecordBatch) -> Arc<dyn TableProvider> {
    Arc::new(Made { schema: batch.schema(), batch })
}

/// A table that was made. It knows how many rows it has, so that joins of such tables pass the plan's limits.
#[derive(Debug)]
struct Made {
    schema: SchemaRef,
    batch: RecordBatch,
}

#[async_trait]
impl TableProvider for Made {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    fn statistics(&self) -> Option<Statistics> {
        let num_rows = Precision::Exact(self.batch.num_rows());
        Some(Statistics { num_rows, ..Statistics::new_unknown(&self.schema) })
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let batches = [vec![self.batch.clone()]];
        let scan = MemorySourceConfig::try_new_exec(&batches, Arc::clone(&self.schema), projection.cloned())?;
        Ok(scan)
    }
}
