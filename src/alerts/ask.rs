//! Questions of rules and SLOs, answered by the query engine.
//!
//! They are a client of their own in its fair queue, and at most a few run at once: a hundred rules that are due
//! together wait here instead of filling the queue that people wait in. Not here: what the answers mean.

use std::sync::Arc;

use arrow::array::{Array as _, AsArray as _, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, TimeUnit, TimestampNanosecondType};
use async_trait::async_trait;
use model::signal::Table;
use model::tenant::TenantId;
use model::time::Timestamp;
use query::render::Values;
use query::{Client, Limits};
use slo::rules::group::{Ask, Row};
use slo::rules::state::Labels;
use tokio::sync::Semaphore;

/// Questions at once: people keep the other permits.
const AT_ONCE: usize = 2;

/// Rows of one answer. More alerts of one rule than this are no alerts.
const ROWS_MAX: u64 = 100_000;

/// What the questions are told apart by from those of people.
const CLIENT: &str = "godseye: rules and SLOs";

/// Asks the engine.
#[derive(Clone)]
pub(super) struct Asker {
    engine: Arc<query::Engine>,
    limits: Limits,
    turns: Arc<Semaphore>,
}

impl Asker {
    pub(super) fn new(engine: Arc<query::Engine>, limits: Limits) -> Self {
        let limits = Limits { rows_max: ROWS_MAX, ..limits };
        Self { engine, limits, turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Every batch of an answer, or why there is none.
    async fn batches(&self, tenant: &TenantId, sql: &str) -> Result<Vec<RecordBatch>, String> {
        let _turn = self.turns.acquire().await.map_err(|error| error.to_string())?;
        let client = Client::new(tenant.clone(), Some(CLIENT));
        let output = self.engine.query_of(&client, sql, self.limits).await.map_err(|error| error.to_string())?;
        let (_, batches, stats) = output.collect().await.map_err(|error| error.to_string())?;
        if stats.truncated {
            return Err(format!("the answer has more than {ROWS_MAX} rows or too many bytes: select less"));
        }
        Ok(batches)
    }

    /// Rows of a table within a time that are in ClickHouse; `None` when it keeps none.
    pub(super) async fn rows_elsewhere(
        &self,
        tenant: &TenantId,
        table: Table,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Option<query::RowsElsewhere>, String> {
        let _turn = self.turns.acquire().await.map_err(|error| error.to_string())?;
        self.engine.rows_elsewhere(tenant, table, from.0, to.0).await.map_err(|error| error.to_string())
    }

    /// The pairs of `time` and `value` of an answer; rows without either are left out.
    pub(super) async fn points(&self, tenant: &TenantId, sql: &str) -> Result<Vec<(Timestamp, f64)>, String> {
        let mut points = Vec::new();
        for batch in self.batches(tenant, sql).await? {
            let times = batch.column_by_name("time").ok_or("the answer has no column `time`")?;
            if !matches!(times.data_type(), DataType::Timestamp(..)) {
                return Err(format!(
                    "the column `time` is {}, not a time",
                    query::render::type_name(times.data_type())
                ));
            }
            let times = cast(times, &DataType::Timestamp(TimeUnit::Nanosecond, None)).map_err(|e| e.to_string())?;
            let times = times.as_primitive::<TimestampNanosecondType>();
            let values = numbers(&batch)?;
            let values = values.as_primitive::<Float64Type>();
            let known = (0..batch.num_rows()).filter(|row| times.is_valid(*row) && values.is_valid(*row));
            points.extend(known.map(|row| (Timestamp(times.value(row)), values.value(row))));
        }
        Ok(points)
    }
}

/// The column `value` as numbers.
fn numbers(batch: &RecordBatch) -> Result<arrow::array::ArrayRef, String> {
    let values = batch.column_by_name("value").ok_or("the answer has no column `value`: write `... AS value`")?;
    let kind = query::render::type_name(values.data_type());
    let is_number = values.data_type().is_numeric() || values.data_type() == &DataType::Boolean;
    if !is_number && !values.data_type().is_null() {
        return Err(format!("the column `value` is {kind}, not a number"));
    }
    cast(values, &DataType::Float64).map_err(|error| format!("the column `value` is {kind}: {error}"))
}

/// The rows of a batch as a rule sees them. A row without a value says nothing (I10).
pub(super) fn rows(batch: &RecordBatch) -> Result<Vec<Row>, String> {
    let values = numbers(batch)?;
    let values = values.as_primitive::<Float64Type>();
    let mut labels: Vec<Labels> = vec![Labels::new(); batch.num_rows()];
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        if field.name() == "value" {
            continue;
        }
        let shown = Values::new(column).map_err(|error| format!("the column `{}`: {error}", field.name()))?;
        for (row, labels) in labels.iter_mut().enumerate() {
            let mut text = String::new();
            if shown.text(row, &mut text) {
                labels.insert(field.name().clone(), text);
            }
        }
    }
    let known = labels.into_iter().enumerate().filter(|(row, _)| values.is_valid(*row));
    Ok(known.map(|(row, labels)| Row { labels, value: values.value(row) }).collect())
}

#[async_trait]
impl Ask for Asker {
    async fn ask(&self, tenant: &TenantId, sql: &str) -> Result<Vec<Row>, String> {
        let mut found = Vec::new();
        for batch in self.batches(tenant, sql).await? {
            found.append(&mut rows(&batch)?);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, StringArray};

    use super::*;

    #[test]
    fn an_answer_becomes_labels_and_a_value() {
        let batch = |columns: Vec<(&str, ArrayRef)>| {
            RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
                .unwrap()
        };
        let name: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("c")]));
        let value: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(2), None]));
        let found = rows(&batch(vec![("name", Arc::clone(&name)), ("value", Arc::clone(&value))])).unwrap();
        let labels = Labels::from([("name".to_owned(), "a".to_owned())]);
        assert_eq!(found, [Row { labels, value: 1.0 }, Row { labels: Labels::new(), value: 2.0 }]);
        for (columns, want) in
            [(vec![("name", Arc::clone(&value))], "no column `value`"), (vec![("value", name)], "not a number")]
        {
            let error = rows(&batch(columns)).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}
