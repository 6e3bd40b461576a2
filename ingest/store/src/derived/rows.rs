//! Partial rows as Arrow batches: adding up those with one key, and their sums over longer
//! intervals. Pure functions; which columns are added how says [`model::derived`].
//!
//! Rows are in the order of their keys, byte by byte, which is the order of a segment. Not here:
//! files.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, TimestampNanosecondArray, UInt32Array,
};
use arrow::compute::{concat_batches, take};
use arrow::datatypes::{Int16Type, Int64Type, TimestampNanosecondType};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, Rows, SortField};
use model::derived::{DerivedTable, Measure, RESOLUTIONS_S, schema};
use model::time::Timestamp;

use super::columns::{HistogramColumns, optional_numbers, trace_ids};

/// Turns the keys of a table's rows into bytes that compare as the rows do.
pub(super) struct Keys {
    table: DerivedTable,
    converter: RowConverter,
}

impl Keys {
    pub(super) fn new(table: DerivedTable) -> Result<Self, ArrowError> {
        let schema = schema(table);
        let field = |key: &&str| Ok(SortField::new(schema.field_with_name(key)?.data_type().clone()));
        let fields = table.keys().iter().map(field).collect::<Result<_, ArrowError>>()?;
        Ok(Self { table, converter: RowConverter::new(fields)? })
    }

    pub(super) fn of(&self, batch: &RecordBatch) -> Result<Rows, ArrowError> {
        self.converter.convert_columns(&batch.columns()[..self.table.keys().len()])
    }
}

/// Joins batches of a table; rows with one key become one, rows come in order, and a row that was
/// taken back whole goes.
pub(super) fn combine<'a>(
    table: DerivedTable,
    batches: impl IntoIterator<Item = &'a RecordBatch>,
) -> Result<RecordBatch, ArrowError> {
    let all = concat_batches(&schema(table), batches)?;
    let keys = Keys::new(table)?.of(&all)?;
    let mut order: Vec<u32> =
        (0..u32::try_from(all.num_rows()).map_err(|error| ArrowError::ComputeError(error.to_string()))?).collect();
    order.sort_unstable_by(|left, right| keys.row(*left as usize).cmp(&keys.row(*right as usize)));
    let groups: Vec<&[u32]> =
        order.chunk_by(|left, right| keys.row(*left as usize) == keys.row(*right as usize)).collect();
    let groups = remaining(table, &all, groups)?;
    let firsts = UInt32Array::from_iter_values(groups.iter().map(|group| group[0]));
    let mut columns = Vec::with_capacity(all.num_columns());
    for key in &all.columns()[..table.keys().len()] {
        columns.push(take(key, &firsts, None)?);
    }
    for measure in table.measures() {
        columns.extend(measured(*measure, &all, &groups)?);
    }
    RecordBatch::try_new(schema(table), columns)
}

/// The groups of which something is left once all is added up.
fn remaining<'a>(
    table: DerivedTable,
    all: &RecordBatch,
    mut groups: Vec<&'a [u32]>,
) -> Result<Vec<&'a [u32]>, ArrowError> {
    let mut sums = Vec::new();
    for measure in table.measures() {
        if let Measure::Sum(name) = measure {
            sums.push(numbers(all, name)?);
        }
    }
    let sum = |column: &Int64Array, group: &[u32]| {
        group.iter().fold(0_i64, |sum, row| sum.wrapping_add(column.value(*row as usize)))
    };
    groups.retain(|group| sums.iter().any(|column| sum(column, group) != 0));
    Ok(groups)
}

fn numbers<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a Int64Array, ArrowError> {
    column(batch, name)?.as_primitive_opt::<Int64Type>().ok_or_else(|| ArrowError::SchemaError(name.to_owned()))
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, ArrowError> {
    batch.column_by_name(name).ok_or_else(|| ArrowError::SchemaError(name.to_owned()))
}

/// The columns of one measure, a row for each group.
fn measured(measure: Measure, all: &RecordBatch, groups: &[&[u32]]) -> Result<Vec<ArrayRef>, ArrowError> {
    let known = |column: &Int64Array, row: u32| column.is_valid(row as usize).then(|| column.value(row as usize));
    Ok(match measure {
        Measure::Sum(name) => {
            let column = numbers(all, name)?;
            let sum =
                |group: &&[u32]| group.iter().fold(0_i64, |sum, row| sum.wrapping_add(column.value(*row as usize)));
            vec![Arc::new(Int64Array::from_iter_values(groups.iter().map(sum)))]
        }
        Measure::Min(name) => {
            let column = numbers(all, name)?;
            vec![optional_numbers(groups.iter().map(|group| group.iter().filter_map(|row| known(column, *row)).min()))]
        }
        Measure::Histogram { buckets, counts } => {
            let mismatch = || ArrowError::SchemaError(buckets.to_owned());
            let buckets = column(all, buckets)?.as_list_opt::<i32>().ok_or_else(mismatch)?;
            let counts = column(all, counts)?.as_list_opt::<i32>().ok_or_else(mismatch)?;
            let ends = (buckets.value_offsets(), counts.value_offsets());
            let buckets = buckets.values().as_primitive_opt::<Int16Type>().ok_or_else(mismatch)?.values();
            let counts = counts.values().as_primitive_opt::<Int64Type>().ok_or_else(mismatch)?.values();
            let cells = |row: u32| {
                let part = |ends: &[i32]| {
                    ends[row as usize].unsigned_abs() as usize..ends[row as usize + 1].unsigned_abs() as usize
                };
                buckets[part(ends.0)].iter().copied().zip(counts[part(ends.1)].iter().copied())
            };
            let mut lists = HistogramColumns::default();
            let mut gathered: Vec<(i16, i64)> = Vec::new();
            for group in groups {
                if let [row] = group {
                    cells(*row).for_each(|(bucket, count)| lists.push(bucket, count));
                } else {
                    gathered.clear();
                    group.iter().for_each(|row| gathered.extend(cells(*row)));
                    gathered.sort_unstable_by_key(|cell| cell.0);
                    for same in gathered.chunk_by(|left, right| left.0 == right.0) {
                        lists.push(same[0].0, same.iter().map(|cell| cell.1).sum());
                    }
                }
                lists.end_row();
            }
            let (buckets, counts) = lists.finish();
            vec![buckets, counts]
        }
        Measure::Exemplar { greatest, trace_id } => {
            let numbers = numbers(all, greatest)?;
            let ids = column(all, trace_id)?
                .as_fixed_size_binary_opt()
                .ok_or_else(|| ArrowError::SchemaError(trace_id.to_owned()))?;
            let id = |row: u32| ids.is_valid(row as usize).then(|| ids.value(row as usize));
            let (numbers, ids): (Vec<_>, Vec<_>) = groups
                .iter()
                .map(|group| {
                    let all = group.iter().filter_map(|row| Some((known(numbers, *row)?, id(*row))));
                    // Of equal numbers a known trace, and of known ones the least.
                    all.max_by_key(|(number, id)| (*number, id.map(std::cmp::Reverse)))
                })
                .map(|best| (best.map(|(number, _)| number), best.and_then(|(_, id)| id)))
                .unzip();
            vec![optional_numbers(numbers.into_iter()), trace_ids(ids.into_iter())]
        }
    })
}

/// The sums of a table's rows over intervals of `seconds`, in order.
fn roll_up(table: DerivedTable, rows: &RecordBatch, seconds: i32) -> Result<RecordBatch, ArrowError> {
    let keys = table.keys().len();
    let mut columns = rows.columns().to_vec();
    columns[0] = Arc::new(Int32Array::from_value(seconds, rows.num_rows()));
    let times = columns[keys - 1]
        .as_primitive_opt::<TimestampNanosecondType>()
        .ok_or_else(|| ArrowError::SchemaError("time".to_owned()))?;
    let interval = i64::from(seconds) * Timestamp::NANOS_PER_SECOND;
    let times: TimestampNanosecondArray =
        times.values().iter().map(|time| Some(time.div_euclid(interval).saturating_mul(interval))).collect();
    columns[keys - 1] = Arc::new(times.with_timezone("UTC"));
    combine(table, [&RecordBatch::try_new(rows.schema(), columns)?])
}

/// What a segment holds of partial rows of the finest resolution: these, added up, then their sums
/// over each longer interval; in order as a whole, since the resolution comes first.
pub(crate) fn with_roll_ups<'a>(
    table: DerivedTable,
    batches: impl IntoIterator<Item = &'a RecordBatch>,
) -> Result<Vec<RecordBatch>, ArrowError> {
    let mut levels = vec![combine(table, batches)?];
    for seconds in &RESOLUTIONS_S[1..] {
        let finer = levels.last().expect("there is a finest one");
        levels.push(roll_up(table, finer, *seconds)?);
    }
    Ok(levels)
}
