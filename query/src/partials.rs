//! The aggregates that make rows of derived tables out of partial ones: histograms of durations and
//! exemplars. People do not call them; the views over derived tables do ([`crate::derived`]).
//!
//! The state of each has the columns of its arguments, so that adding a row and adding a state are
//! one thing. Not here: sums and extremes, which are SQL's own.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeBinaryArray, FixedSizeBinaryBuilder, Float64Array, Int16Array, Int32Array,
    Int64Array, ListArray, ListBuilder, StringBuilder, StructArray, UInt64Array, new_empty_array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, FieldRef, Int16Type, Int64Type};
use datafusion::common::internal_err;
use datafusion::error::Result;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, GroupsAccumulator, Signature, Volatility};
use model::derived::{buckets_type, counts_type};
use model::durations::{SCALE, ZERO_BUCKET};
use model::schema::bucket_fields;

use crate::aggregate::{Fold, grouped, single};
use crate::histogram::histogram_type;

/// Buckets of a histogram beyond which its counts are kept for every bucket between the first and
/// the last: then adding is by place. Below it a row of ten seconds takes no more than it has.
const SPARSE_MAX: usize = 48;

/// `merge_durations(buckets, counts, sum, min, max)`: a histogram of durations in nanoseconds; null
/// when there are none.
pub(crate) fn merge_durations() -> Arc<AggregateUDF> {
    function(Which::Durations)
}

/// `merge_exemplars(greatest, trace, greatest of errors, trace of it)`: the trace of each as hex.
pub(crate) fn merge_exemplars() -> Arc<AggregateUDF> {
    function(Which::Exemplars)
}

fn function(which: Which) -> Arc<AggregateUDF> {
    let signature =
        Signature::exact(which.columns().into_iter().map(|(_, kind)| kind).collect(), Volatility::Immutable);
    Arc::new(AggregateUDF::new_from_impl(Function { which, signature }))
}

/// Counts by bucket.
#[derive(Debug)]
enum Counts {
    /// Ascending.
    Sparse(Vec<(i16, i64)>),
    /// From this bucket on.
    Dense(i16, Vec<i64>),
}

impl Default for Counts {
    fn default() -> Self {
        Self::Sparse(Vec::new())
    }
}

impl Counts {
    fn add(&mut self, cells: impl Iterator<Item = (i16, i64)> + Clone) {
        match self {
            Self::Sparse(known) if known.is_empty() => known.extend(cells),
            Self::Sparse(known) if known.len() + cells.clone().count() <= SPARSE_MAX => {
                for (bucket, count) in cells {
                    match known.binary_search_by_key(&bucket, |cell| cell.0) {
                        Ok(place) => known[place].1 += count,
                        Err(place) => known.insert(place, (bucket, count)),
                    }
                }
            }
            Self::Sparse(known) => {
                let known = std::mem::take(known);
                *self = Self::Dense(known[0].0, Vec::new());
                self.add_by_place(known.into_iter().chain(cells));
            }
            Self::Dense(..) => self.add_by_place(cells),
        }
    }

    fn add_by_place(&mut self, cells: impl Iterator<Item = (i16, i64)> + Clone) {
        let Self::Dense(first, counts) = self else { return };
        let Some(least) = cells.clone().map(|cell| cell.0).min() else { return };
        if least < *first {
            let more = usize::from(first.abs_diff(least));
            counts.splice(0..0, std::iter::repeat_n(0, more));
            *first = least;
        }
        for (bucket, count) in cells {
            let place = usize::from(bucket.abs_diff(*first));
            if place >= counts.len() {
                counts.resize(place + 1, 0);
            }
            counts[place] += count;
        }
    }

    /// Buckets that are not empty, ascending.
    fn cells(&self) -> impl Iterator<Item = (i16, i64)> {
        let (sparse, dense) = match self {
            Self::Sparse(cells) => (cells.as_slice(), None),
            Self::Dense(first, counts) => (&[][..], Some((*first..).zip(counts.iter().copied()))),
        };
        sparse.iter().copied().chain(dense.into_iter().flatten()).filter(|cell| cell.1 != 0)
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Self::Sparse(cells) => cells.capacity() * size_of::<(i16, i64)>(),
            Self::Dense(_, counts) => counts.capacity() * size_of::<i64>(),
        }
    }
}

/// The fold of `merge_durations`.
#[derive(Debug)]
struct MergeDurations;

#[derive(Debug, Default)]
struct Durations {
    counts: Counts,
    sum: i64,
    min: Option<i64>,
    max: Option<i64>,
}

struct DurationRows<'a> {
    bucket_ends: &'a [i32],
    buckets: &'a Int16Array,
    count_ends: &'a [i32],
    counts: &'a Int64Array,
    sums: &'a Int64Array,
    min: &'a Int64Array,
    max: &'a Int64Array,
}

fn known(column: &Int64Array, row: usize) -> Option<i64> {
    column.is_valid(row).then(|| column.value(row))
}

fn mismatch<T>() -> Result<T> {
    internal_err!("partial rows of a derived table have other columns")
}

impl Fold for MergeDurations {
    type State = Durations;
    type Rows<'a> = DurationRows<'a>;
    type Saved<'a> = DurationRows<'a>;

    fn rows<'a>(&self, columns: &'a [ArrayRef]) -> Result<DurationRows<'a>> {
        let [buckets, counts, sums, min, max] = columns else { return mismatch() };
        let (Some(buckets), Some(counts)) = (buckets.as_list_opt::<i32>(), counts.as_list_opt::<i32>()) else {
            return mismatch();
        };
        Ok(DurationRows {
            bucket_ends: buckets.value_offsets(),
            buckets: buckets.values().as_primitive::<Int16Type>(),
            count_ends: counts.value_offsets(),
            counts: counts.values().as_primitive::<Int64Type>(),
            sums: sums.as_primitive::<Int64Type>(),
            min: min.as_primitive::<Int64Type>(),
            max: max.as_primitive::<Int64Type>(),
        })
    }

    fn saved<'a>(&self, columns: &'a [ArrayRef]) -> Result<DurationRows<'a>> {
        self.rows(columns)
    }

    fn merge(&self, state: &mut Durations, saved: &DurationRows<'_>, row: usize) -> Result<()> {
        self.add(state, saved, row)
    }

    fn add(&self, state: &mut Durations, rows: &DurationRows<'_>, row: usize) -> Result<()> {
        let part = |ends: &[i32]| ends[row].unsigned_abs() as usize..ends[row + 1].unsigned_abs() as usize;
        let buckets = rows.buckets.values()[part(rows.bucket_ends)].iter().copied();
        state.counts.add(buckets.zip(rows.counts.values()[part(rows.count_ends)].iter().copied()));
        state.sum = state.sum.wrapping_add(known(rows.sums, row).unwrap_or_default());
        let of = |known: Option<i64>, other: Option<i64>, choose: fn(i64, i64) -> i64| match (known, other) {
            (Some(known), Some(other)) => Some(choose(known, other)),
            (known, other) => known.or(other),
        };
        state.min = of(state.min, known(rows.min, row), i64::min);
        state.max = of(state.max, known(rows.max, row), i64::max);
        Ok(())
    }

    fn save(&self, states: &[Durations]) -> Result<Vec<ArrayRef>> {
        let (mut buckets, mut counts) = (Vec::new(), Vec::new());
        let lengths = states.iter().map(|state| {
            let before = buckets.len();
            for (bucket, count) in state.counts.cells() {
                buckets.push(bucket);
                counts.push(count);
            }
            buckets.len() - before
        });
        let ends = OffsetBuffer::from_lengths(lengths.collect::<Vec<_>>());
        let item = |data_type| Arc::new(Field::new("item", data_type, false));
        Ok(vec![
            Arc::new(ListArray::new(item(DataType::Int16), ends.clone(), Arc::new(Int16Array::from(buckets)), None)),
            Arc::new(ListArray::new(item(DataType::Int64), ends, Arc::new(Int64Array::from(counts)), None)),
            Arc::new(Int64Array::from_iter_values(states.iter().map(|state| state.sum))),
            Arc::new(states.iter().map(|state| state.min).collect::<Int64Array>()),
            Arc::new(states.iter().map(|state| state.max).collect::<Int64Array>()),
        ])
    }

    #[expect(clippy::cast_precision_loss, reason = "a histogram's sum and extremes are doubles, in SQL as in OTLP")]
    fn finish(&self, states: &mut [Durations]) -> Result<ArrayRef> {
        // A count below zero is of a call that was taken back before it came: none.
        let whole = |count: i64| u64::try_from(count).unwrap_or(0);
        let zero_count =
            |state: &Durations| state.counts.cells().find(|cell| cell.0 == ZERO_BUCKET).map_or(0, |cell| whole(cell.1));
        let (mut offsets, mut lengths, mut items) = (Vec::new(), Vec::new(), Vec::new());
        let mut totals = Vec::with_capacity(states.len());
        for state in states.iter() {
            let start = items.len();
            let mut total = zero_count(state);
            let mut first = None;
            for (bucket, count) in state.counts.cells().filter(|cell| cell.0 != ZERO_BUCKET) {
                let first = *first.get_or_insert(bucket);
                items.resize(start + usize::from(bucket.abs_diff(first)), 0);
                items.push(whole(count));
                total += whole(count);
            }
            offsets.push(i32::from(first.unwrap_or_default()));
            lengths.push(items.len() - start);
            totals.push(total);
        }
        let rows = states.len();
        let item = Arc::new(Field::new("item", DataType::UInt64, false));
        let positive = StructArray::new(
            bucket_fields(),
            vec![
                Arc::new(Int32Array::from(offsets)),
                Arc::new(ListArray::new(
                    Arc::clone(&item),
                    OffsetBuffer::from_lengths(lengths),
                    Arc::new(UInt64Array::from(items)),
                    None,
                )),
            ],
            None,
        );
        let no_list = |data_type: DataType| -> ArrayRef {
            let items = new_empty_array(&data_type);
            let ends = OffsetBuffer::from_lengths(vec![0; rows]);
            Arc::new(ListArray::new(Arc::new(Field::new("item", data_type, false)), ends, items, None))
        };
        let negative = StructArray::new(
            bucket_fields(),
            vec![Arc::new(Int32Array::from_value(0, rows)), no_list(DataType::UInt64)],
            None,
        );
        let doubles = |of: fn(&Durations) -> Option<i64>| -> ArrayRef {
            Arc::new(states.iter().map(|state| of(state).map(|nanos| nanos as f64)).collect::<Float64Array>())
        };
        let present = NullBuffer::from_iter(totals.iter().map(|total| *total > 0));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from(totals)),
            doubles(|state| Some(state.sum)),
            doubles(|state| state.min),
            doubles(|state| state.max),
            no_list(DataType::Float64),
            no_list(DataType::UInt64),
            Arc::new(Int32Array::from_value(SCALE, rows)),
            Arc::new(UInt64Array::from_iter_values(states.iter().map(zero_count))),
            Arc::new(Float64Array::from_value(0.0, rows)),
            Arc::new(positive),
            Arc::new(negative),
        ];
        let DataType::Struct(fields) = histogram_type() else { unreachable!("a histogram is a struct") };
        Ok(Arc::new(StructArray::new(fields, columns, Some(present))))
    }

    fn heap_bytes(state: &Durations) -> usize {
        state.counts.heap_bytes()
    }
}

/// The fold of `merge_exemplars`.
#[derive(Debug)]
struct MergeExemplars;

/// The slowest trace and the slowest failed one, each with its duration.
#[derive(Debug, Default)]
struct Exemplars([Option<(i64, [u8; 16])>; 2]);

impl Fold for MergeExemplars {
    type State = Exemplars;
    type Rows<'a> = [(&'a Int64Array, &'a FixedSizeBinaryArray); 2];
    type Saved<'a> = Self::Rows<'a>;

    fn rows<'a>(&self, columns: &'a [ArrayRef]) -> Result<Self::Rows<'a>> {
        let [slowest, trace, failed, failed_trace] = columns else { return mismatch() };
        let (Some(trace), Some(failed_trace)) =
            (trace.as_fixed_size_binary_opt(), failed_trace.as_fixed_size_binary_opt())
        else {
            return mismatch();
        };
        Ok([(slowest.as_primitive::<Int64Type>(), trace), (failed.as_primitive::<Int64Type>(), failed_trace)])
    }

    fn saved<'a>(&self, columns: &'a [ArrayRef]) -> Result<Self::Saved<'a>> {
        self.rows(columns)
    }

    fn merge(&self, state: &mut Exemplars, saved: &Self::Saved<'_>, row: usize) -> Result<()> {
        self.add(state, saved, row)
    }

    fn add(&self, state: &mut Exemplars, rows: &Self::Rows<'_>, row: usize) -> Result<()> {
        for (best, (numbers, traces)) in state.0.iter_mut().zip(rows) {
            let trace = traces.is_valid(row).then(|| traces.value(row).try_into().ok()).flatten();
            let Some(offer) = known(numbers, row).zip(trace) else { continue };
            // Of equal ones the least trace, whatever the order of rows.
            if best.is_none_or(|(number, trace)| {
                (offer.0, std::cmp::Reverse(offer.1)) > (number, std::cmp::Reverse(trace))
            }) {
                *best = Some(offer);
            }
        }
        Ok(())
    }

    fn save(&self, states: &[Exemplars]) -> Result<Vec<ArrayRef>> {
        let columns = [0, 1].map(|which: usize| -> [ArrayRef; 2] {
            let numbers = states.iter().map(|state| state.0[which].map(|(number, _)| number));
            let mut traces = FixedSizeBinaryBuilder::with_capacity(states.len(), 16);
            for state in states {
                match &state.0[which] {
                    Some((_, trace)) if traces.append_value(trace).is_ok() => {}
                    _ => traces.append_null(),
                }
            }
            [Arc::new(numbers.collect::<Int64Array>()), Arc::new(traces.finish())]
        });
        Ok(columns.into_iter().flatten().collect())
    }

    fn finish(&self, states: &mut [Exemplars]) -> Result<ArrayRef> {
        let mut lists = ListBuilder::new(StringBuilder::new());
        for Exemplars([slowest, failed]) in states.iter() {
            let slowest = slowest.map(|(_, trace)| trace);
            let failed = failed.map(|(_, trace)| trace).filter(|trace| Some(*trace) != slowest);
            slowest.into_iter().chain(failed).for_each(|trace| lists.values().append_value(hex::encode(trace)));
            lists.append(true);
        }
        Ok(Arc::new(lists.finish()))
    }

    fn heap_bytes(_state: &Exemplars) -> usize {
        0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Which {
    Durations,
    Exemplars,
}

impl Which {
    /// The arguments, and so the columns of a state.
    fn columns(self) -> Vec<(&'static str, DataType)> {
        let trace = DataType::FixedSizeBinary(16);
        match self {
            Self::Durations => vec![
                ("buckets", buckets_type()),
                ("counts", counts_type()),
                ("sum", DataType::Int64),
                ("min", DataType::Int64),
                ("max", DataType::Int64),
            ],
            Self::Exemplars => vec![
                ("slowest", DataType::Int64),
                ("slowest_trace", trace.clone()),
                ("failed", DataType::Int64),
                ("failed_trace", trace),
            ],
        }
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Function {
    which: Which,
    signature: Signature,
}

impl AggregateUDFImpl for Function {
    fn name(&self) -> &str {
        match self.which {
            Which::Durations => "merge_durations",
            Which::Exemplars => "merge_exemplars",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(match self.which {
            Which::Durations => histogram_type(),
            Which::Exemplars => DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true))),
        })
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let columns = self.which.columns().into_iter();
        Ok(columns.map(|(part, kind)| Arc::new(Field::new(format_state_name(args.name, part), kind, true))).collect())
    }

    fn accumulator(&self, _args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(match self.which {
            Which::Durations => single(MergeDurations),
            Which::Exemplars => single(MergeExemplars),
        })
    }

    fn groups_accumulator_supported(&self, _args: AccumulatorArgs<'_>) -> bool {
        true
    }

    fn create_groups_accumulator(&self, _args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(match self.which {
            Which::Durations => grouped(MergeDurations),
            Which::Exemplars => grouped(MergeExemplars),
        })
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}
