//! Columns as ClickHouse sends them, turned into the engine's own.
//!
//! The inverse of how the writer lays rows out: maps become attributes again, by their shape; bytes become text and
//! dictionaries; a tuple of buckets without an offset is null. Everything is a pure function. Not here: connections.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeBinaryArray, Int64Array, ListArray, RecordBatch, RecordBatchOptions,
    StructArray, make_array,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Int64Type, SchemaRef};
use datafusion::common::exec_err;
use datafusion::error::Result;
use model::attributes::{Kind, attributes_type, shape_entries};

/// A batch of an answer with the engine's types.
///
/// # Errors
/// When the answer has other columns than were asked for.
pub(crate) fn batch(from: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    // A question without columns has one all the same, so that rows can be counted.
    if from.num_columns() != schema.fields().len().max(1) {
        return exec_err!("ClickHouse answered with {} columns for {}", from.num_columns(), schema.fields().len());
    }
    let columns = schema.fields().iter().zip(from.columns()).map(|(field, column)| array(column, field));
    let columns = columns.collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(from.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

fn cast(array: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    Ok(cast_with_options(array, to, &strict)?)
}

/// Bytes, however wide their offsets are.
pub(crate) fn binary(array: &ArrayRef) -> Result<ArrayRef> {
    cast(array, &DataType::Binary)
}

fn array(from: &ArrayRef, field: &Field) -> Result<ArrayRef> {
    match field.data_type() {
        to if from.data_type() == to => Ok(Arc::clone(from)),
        DataType::Utf8 if !from.data_type().is_string() => cast(&binary(from)?, &DataType::Utf8),
        to @ DataType::Dictionary(_, values) => match **values {
            DataType::Utf8 => cast(&cast(&binary(from)?, &DataType::Utf8)?, to),
            _ => cast(&binary(from)?, to),
        },
        DataType::FixedSizeBinary(width) => {
            let bytes = binary(from)?;
            let rows = bytes.as_binary::<i32>().iter();
            Ok(Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(rows, *width)?))
        }
        to if *to == attributes_type() => attributes(from),
        DataType::List(item) => {
            let Some(list) = from.as_list_opt::<i32>() else { return wrong(from, field) };
            let items = array(list.values(), item)?;
            Ok(Arc::new(ListArray::try_new(Arc::clone(item), list.offsets().clone(), items, list.nulls().cloned())?))
        }
        DataType::Struct(fields) => {
            let Some(parts) = from.as_struct_opt() else { return wrong(from, field) };
            if parts.num_columns() != fields.len() {
                return wrong(from, field);
            }
            // What may be absent has its first part null then.
            let nulls = if field.is_nullable() { parts.column(0).nulls().cloned() } else { None };
            let columns = fields.iter().zip(parts.columns()).map(|(part, column)| {
                let restored = array(column, part)?;
                if part.is_nullable() || restored.null_count() == 0 {
                    return Ok(restored);
                }
                Ok(make_array(restored.to_data().into_builder().nulls(None).build()?))
            });
            let columns = columns.collect::<Result<Vec<_>>>()?;
            Ok(Arc::new(StructArray::try_new_with_length(fields.clone(), columns, nulls, parts.len())?))
        }
        to => cast(from, to),
    }
}

fn wrong(from: &ArrayRef, field: &Field) -> Result<ArrayRef> {
    exec_err!("ClickHouse answered with {} for a column of type {}", from.data_type(), field.data_type())
}

/// Attributes from maps and their shape.
fn attributes(from: &ArrayRef) -> Result<ArrayRef> {
    let DataType::Struct(fields) = attributes_type() else { return exec_err!("attributes are no struct") };
    let parts = match from.as_struct_opt() {
        Some(parts) if parts.num_columns() == 6 => parts,
        _ => return exec_err!("ClickHouse answered with {} for attributes", from.data_type()),
    };
    let item = |index: usize| match fields[index].data_type() {
        DataType::List(item) => Ok(Arc::clone(item)),
        other => exec_err!("attributes have values of type {other}"),
    };
    let map = |index: usize| match parts.column(index).as_map_opt() {
        Some(map) => Ok(map),
        None => exec_err!("ClickHouse answered with {} for a map", parts.column(index).data_type()),
    };
    let list = |from: usize, to: usize| -> Result<ArrayRef> {
        let (map, item) = (map(from)?, item(to)?);
        let values = array(map.values(), &item)?;
        Ok(Arc::new(ListArray::try_new(item, map.offsets().clone(), values, None)?))
    };
    let shapes = binary(parts.column(0))?;
    Ok(Arc::new(StructArray::try_new_with_length(
        fields.clone(),
        vec![
            array(&shapes, &fields[0])?,
            list(1, 1)?,
            integers(&shapes, map(2)?, map(3)?, item(2)?)?,
            list(4, 3)?,
            list(5, 4)?,
        ],
        None,
        parts.len(),
    )?))
}

/// Integers and truth values in the order their shape has them.
fn integers(
    shapes: &ArrayRef,
    ints: &arrow::array::MapArray,
    bools: &arrow::array::MapArray,
    item: Arc<Field>,
) -> Result<ArrayRef> {
    let shapes = shapes.as_binary::<i32>();
    let int_values = cast(ints.values(), &DataType::Int64)?;
    let bool_values = cast(bools.values(), &DataType::Int64)?;
    let (int_values, bool_values) = (int_values.as_primitive::<Int64Type>(), bool_values.as_primitive::<Int64Type>());
    let mut known: HashMap<&[u8], Vec<bool>> = HashMap::new();
    let mut values: Vec<i64> = Vec::with_capacity(int_values.len() + bool_values.len());
    let mut ends: Vec<i32> = vec![0];
    let at = |ends: &OffsetBuffer<i32>, row: usize| ends[row].unsigned_abs() as usize;
    for row in 0..shapes.len() {
        let order = known.entry(shapes.value(row)).or_insert_with_key(|shape| {
            let kinds = shape_entries(shape).into_iter().map(|entry| entry.kind);
            kinds.filter(|kind| matches!(kind, Kind::Int | Kind::Bool)).map(|kind| kind == Kind::Bool).collect()
        });
        let (mut next_int, mut next_bool) = (at(ints.offsets(), row), at(bools.offsets(), row));
        let counted = at(ints.offsets(), row + 1) - next_int + at(bools.offsets(), row + 1) - next_bool;
        if counted != order.len() {
            return exec_err!("row {row} has {counted} integers and truth values where its shape has {}", order.len());
        }
        for is_bool in order.iter() {
            let (from, next) = if *is_bool { (bool_values, &mut next_bool) } else { (int_values, &mut next_int) };
            if *next >= from.len() {
                return exec_err!("row {row} has other values than its shape");
            }
            values.push(from.value(*next));
            *next += 1;
        }
        ends.push(i32::try_from(values.len()).unwrap_or(i32::MAX));
    }
    let values: ArrayRef = Arc::new(Int64Array::from(values));
    Ok(Arc::new(ListArray::try_new(item, OffsetBuffer::new(ends.into()), values, None)?))
}
