//! Batches for this crate's tests: random rows of any table, from its schema alone.
//!
//! Attributes and contexts are coherent (they are built by the model's own builders); everything
//! else is random within its type, dictionaries inside lists and structs included. Not here:
//! telemetry that makes sense.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, FixedSizeBinaryArray, Float64Array, Int32Array, Int64Array, ListArray, RecordBatch,
    StructArray, TimestampNanosecondArray, UInt32Array, UInt64Array,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field};
use model::attributes::{AttributesColumn, attributes_type};
use model::columns::{DictionaryColumn, OptionalBytesColumn};
use model::context::{ContextKind, context_type, encode};
use model::ledger::{LedgerDelta, RejectReason};
use model::schema::schema;
use model::signal::Table;
use model::value::Value;
use model::wire::put_bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::catalog::{AttributeKinds, KindsCollector};
use crate::gather::Gatherer;
use crate::layout::Layout;

/// One hour, nanoseconds; random times are within one of [`EPOCH`].
pub(crate) const HOUR: i64 = 3_600_000_000_000;

/// 2026-01-01T12:00:00Z.
pub(crate) const EPOCH: i64 = 1_767_268_800_000_000_000;

/// Counts.
pub(crate) fn rejected(stored: u64, reasons: &[(RejectReason, u64)]) -> LedgerDelta {
    LedgerDelta { stored, rejected: BTreeMap::from_iter(reasons.iter().copied()) }
}

/// Random rows of a table.
pub(crate) fn random_batch(table: Table, rows: usize, seed: u64) -> RecordBatch {
    let mut rng = SmallRng::seed_from_u64(seed);
    let schema = schema(table);
    let columns = schema.fields().iter().map(|field| random_array(field, rows, &mut rng)).collect();
    RecordBatch::try_new(schema, columns).unwrap()
}

/// Spans that can be told apart: `span_id` counts up from `first`.
pub(crate) fn numbered_spans(rows: usize, first: u64) -> RecordBatch {
    let batch = random_batch(Table::Spans, rows, first);
    let ids: Vec<u8> = (first..first + rows as u64).flat_map(u64::to_be_bytes).collect();
    let mut columns = batch.columns().to_vec();
    columns[1] = Arc::new(FixedSizeBinaryArray::new(8, Buffer::from_vec(ids), None));
    RecordBatch::try_new(batch.schema(), columns).unwrap()
}

/// The same rows, all at one time.
pub(crate) fn at_time(table: Table, batch: &RecordBatch, time: i64) -> RecordBatch {
    let index = batch.schema().index_of(table.time_column()).unwrap();
    let mut columns = batch.columns().to_vec();
    columns[index] = Arc::new(TimestampNanosecondArray::from_value(time, batch.num_rows()).with_timezone("UTC"));
    RecordBatch::try_new(batch.schema(), columns).unwrap()
}

/// The `span_id`s of spans, as the numbers that [`numbered_spans`] gave them, in order.
pub(crate) fn span_numbers<'a>(batches: impl IntoIterator<Item = &'a RecordBatch>) -> Vec<u64> {
    let mut numbers = Vec::new();
    for batch in batches {
        let ids = batch.column(1).as_any().downcast_ref::<FixedSizeBinaryArray>().unwrap();
        numbers.extend(ids.iter().map(|id| u64::from_be_bytes(id.unwrap().try_into().unwrap())));
    }
    numbers.sort_unstable();
    numbers
}

fn nulls(field: &Field, rows: usize, rng: &mut SmallRng) -> Option<NullBuffer> {
    field.is_nullable().then(|| NullBuffer::from_iter((0..rows).map(|_| rng.random_bool(0.7))))
}

fn text(rng: &mut SmallRng) -> String {
    format!("v{}-{}", rng.random_range(0..6), "é".repeat(rng.random_range(0..4)))
}

fn resource(rng: &mut SmallRng) -> Vec<u8> {
    let mut message = Vec::new();
    for key in ["service.name", "k8s.pod.name"] {
        let (mut value, mut entry) = (Vec::new(), Vec::new());
        put_bytes(&mut value, 1, text(rng).as_bytes());
        put_bytes(&mut entry, 1, key.as_bytes());
        put_bytes(&mut entry, 2, &value);
        put_bytes(&mut message, 1, &entry);
    }
    encode(ContextKind::Resource, &message, "https://x/1")
}

fn random_array(field: &Field, rows: usize, rng: &mut SmallRng) -> ArrayRef {
    if field.data_type() == &attributes_type() {
        return attributes(rows, rng);
    }
    match field.data_type() {
        dictionary @ DataType::Dictionary(_, values) => {
            let mut column = DictionaryColumn::default();
            for _ in 0..rows {
                if field.is_nullable() && rng.random_bool(0.3) {
                    column.push_null();
                } else if dictionary == &context_type() {
                    column.push(&resource(rng));
                } else {
                    column.push(text(rng).as_bytes());
                }
            }
            if **values == DataType::Utf8 { column.finish_utf8() } else { column.finish_binary() }
        }
        kind @ (DataType::Utf8 | DataType::Binary) => {
            let mut column = OptionalBytesColumn::default();
            for _ in 0..rows {
                let value = text(rng);
                column.push((!field.is_nullable() || rng.random_bool(0.7)).then_some(value.as_bytes()));
            }
            if kind == &DataType::Utf8 { column.finish_utf8() } else { column.finish_binary() }
        }
        DataType::FixedSizeBinary(width) => {
            let nulls = nulls(field, rows, rng);
            let data: Vec<u8> = (0..rows)
                .flat_map(|row| {
                    let valid = nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row));
                    let id: u8 = if valid { rng.random_range(0..20) } else { 0 };
                    vec![id; *width as usize]
                })
                .collect();
            Arc::new(FixedSizeBinaryArray::new(*width, Buffer::from_vec(data), nulls))
        }
        DataType::Timestamp(_, _) => {
            let values: Vec<i64> = (0..rows).map(|_| EPOCH + rng.random_range(-HOUR..HOUR)).collect();
            let nulls = nulls(field, rows, rng);
            Arc::new(TimestampNanosecondArray::new(values.into(), nulls).with_timezone("UTC"))
        }
        DataType::Int64 => {
            let values: Vec<i64> = (0..rows).map(|_| rng.random()).collect();
            Arc::new(Int64Array::new(values.into(), nulls(field, rows, rng)))
        }
        DataType::UInt64 => {
            let values: Vec<u64> = (0..rows).map(|_| rng.random()).collect();
            Arc::new(UInt64Array::new(values.into(), nulls(field, rows, rng)))
        }
        DataType::Int32 => {
            let values: Vec<i32> = (0..rows).map(|_| rng.random()).collect();
            Arc::new(Int32Array::new(values.into(), nulls(field, rows, rng)))
        }
        DataType::UInt32 => {
            let values: Vec<u32> = (0..rows).map(|_| rng.random()).collect();
            Arc::new(UInt32Array::new(values.into(), nulls(field, rows, rng)))
        }
        DataType::Float64 => {
            let values: Vec<f64> = (0..rows).map(|_| rng.random_range(-1e9..1e9)).collect();
            Arc::new(Float64Array::new(values.into(), nulls(field, rows, rng)))
        }
        DataType::Boolean => {
            let values: Vec<bool> = (0..rows).map(|_| rng.random()).collect();
            Arc::new(BooleanArray::new(values.into(), nulls(field, rows, rng)))
        }
        DataType::List(item) => {
            let lengths: Vec<usize> = (0..rows).map(|_| rng.random_range(0..4)).collect();
            let items = random_array(item, lengths.iter().sum(), rng);
            let nulls = nulls(field, rows, rng);
            Arc::new(ListArray::new(Arc::clone(item), OffsetBuffer::from_lengths(lengths), items, nulls))
        }
        DataType::Struct(fields) => {
            let children = fields.iter().map(|child| random_array(child, rows, rng)).collect();
            let nulls = nulls(field, rows, rng);
            Arc::new(StructArray::try_new_with_length(fields.clone(), children, nulls, rows).unwrap())
        }
        other => panic!("no table has a column of type {other}"),
    }
}

fn attributes(rows: usize, rng: &mut SmallRng) -> ArrayRef {
    let mut column = AttributesColumn::default();
    for _ in 0..rows {
        for key in 0..rng.random_range(0..4) {
            let owned = text(rng);
            let value = match rng.random_range(0..7) {
                0 => None,
                1 => Some(Value::Empty),
                2 => Some(Value::Bool(rng.random())),
                3 => Some(Value::Int(rng.random())),
                4 => Some(Value::Double(rng.random())),
                5 => Some(Value::Bytes(owned.as_bytes())),
                _ => Some(Value::String(&owned)),
            };
            column.push(&format!("key.{key}"), value).unwrap();
        }
        column.end_row();
    }
    column.finish()
}

/// Rows as comparable bytes, sorted: two sets of batches hold the same multiset of rows when
/// these are equal. Dictionaries count by value, not by key.
pub(crate) fn row_multiset(table: Table, batches: &[RecordBatch]) -> Vec<Vec<u8>> {
    use arrow::row::{RowConverter, SortField};
    let fields = schema(table).fields().iter().map(|field| SortField::new(field.data_type().clone())).collect();
    let converter = RowConverter::new(fields).unwrap();
    let mut rows = Vec::new();
    for batch in batches {
        let converted = converter.convert_columns(batch.columns()).unwrap();
        rows.extend(converted.iter().map(|row| row.as_ref().to_vec()));
    }
    rows.sort_unstable();
    rows
}

/// The attribute keys of rows.
pub(crate) fn kinds_of<'a>(batches: impl IntoIterator<Item = &'a RecordBatch>) -> AttributeKinds {
    let mut collector = KindsCollector::default();
    batches.into_iter().for_each(|batch| {
        collector.add(batch);
    });
    collector.kinds().clone()
}

/// Rows of a table's own layout in another.
pub(crate) fn laid_out(batch: &RecordBatch, layout: &Layout) -> RecordBatch {
    let own = Layout::of_table(layout.table());
    let picks: Vec<(usize, usize)> = (0..batch.num_rows()).map(|row| (0, row)).collect();
    Gatherer::new(&[(&own, batch)], layout).unwrap().gather(&picks).unwrap()
}

/// Row by row equality through values, whatever the dictionaries look like.
pub(crate) fn same_rows_in_order(left: &RecordBatch, right: &RecordBatch) -> bool {
    left.num_rows() == right.num_rows()
        && left.columns().iter().zip(right.columns()).all(|(left, right)| {
            let all = Int32Array::from_iter_values(0..left.len() as i32);
            let copy = |array: &ArrayRef| take(array, &all, None).unwrap();
            copy(left).as_ref() == copy(right).as_ref()
        })
}
