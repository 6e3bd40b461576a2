//! Histograms as the rows of an Arrow struct: the `histogram` column of `metric_histograms`, what
//! the merging aggregates return, and what they hand to each other.
//!
//! The struct has the fields that the table has, under the same names, so that
//! `histogram['count']` is `count`. Not here: what is done with histograms.

use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Float64Builder, Int32Array, Int32Builder, ListArray, ListBuilder,
    NullBufferBuilder, PrimitiveBuilder, StringArray, StructArray, UInt32Array, UInt64Array, UInt64Builder,
};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Field, FieldRef, Fields, Float64Type, Int32Type, UInt32Type, UInt64Type,
};
use datafusion::common::{exec_datafusion_err, exec_err, internal_err};
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, col,
};
use model::schema::{bucket_fields, schema};
use model::signal::Table;

use super::{Buckets, BucketsView, Histogram, SideView, View};

/// The fields of a histogram, which are columns of `metric_histograms`.
const FIELDS: [&str; 11] = [
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
];

/// `DataPointFlags.NO_RECORDED_VALUE`: the series ended; the point says nothing else.
const NO_RECORDED_VALUE: u32 = 1;

static STRUCT_FIELDS: LazyLock<Fields> = LazyLock::new(|| {
    let schema = schema(Table::MetricHistograms);
    FIELDS.iter().filter_map(|name| schema.field_with_name(name).ok().cloned()).collect()
});

/// The type of the `histogram` column.
pub(crate) fn histogram_type() -> DataType {
    DataType::Struct(STRUCT_FIELDS.clone())
}

/// Whether values of a type can be read as histograms. What passed a join or a CASE may differ in
/// which fields can be null.
pub(crate) fn is_histogram(data_type: &DataType) -> bool {
    match data_type {
        DataType::Struct(fields) => {
            fields.len() == FIELDS.len() && fields.iter().zip(FIELDS).all(|(field, name)| field.name() == name)
        }
        _ => false,
    }
}

/// The `histogram` column of the view over `metric_histograms`.
pub(crate) fn column() -> Expr {
    let function = Arc::new(ScalarUDF::new_from_impl(OfColumns {
        signature: Signature::any(FIELDS.len() + 2, Volatility::Immutable),
    }));
    function.call(FIELDS.into_iter().chain(["metric_type", "flags"]).map(col).collect())
}

/// `histogram_of(count, …, negative, metric_type, flags)`: the columns of a histogram as one; null
/// for summaries and for points without a value.
#[derive(Debug, PartialEq, Eq, Hash)]
struct OfColumns {
    signature: Signature,
}

impl ScalarUDFImpl for OfColumns {
    fn name(&self) -> &str {
        "histogram_of"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(histogram_type())
    }

    fn return_field_from_args(&self, _args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        Ok(Arc::new(Field::new(self.name(), histogram_type(), true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let mut columns = ColumnarValue::values_to_arrays(&args.args)?;
        let (Some(flags), Some(metric_type)) = (columns.pop(), columns.pop()) else {
            return internal_err!("a histogram without its columns");
        };
        let metric_type = cast(&metric_type, &DataType::Utf8)?;
        let metric_type: &StringArray = metric_type.as_string();
        let flags: &UInt32Array = flags.as_primitive::<UInt32Type>();
        let present = metric_type
            .iter()
            .zip(flags)
            .map(|(kind, flags)| kind != Some("SUMMARY") && flags.unwrap_or(0) & NO_RECORDED_VALUE == 0);
        let nulls = NullBuffer::from(present.collect::<Vec<bool>>());
        Ok(ColumnarValue::Array(Arc::new(StructArray::try_new(STRUCT_FIELDS.clone(), columns, Some(nulls))?)))
    }
}

/// One side of exponential histograms.
struct Sides<'a> {
    rows: &'a StructArray,
    offsets: &'a Int32Array,
    counts: &'a ListArray,
    items: &'a UInt64Array,
}

/// A column of histograms, ready to be read by row.
pub(crate) struct Histograms<'a> {
    rows: &'a StructArray,
    count: &'a UInt64Array,
    sum: &'a Float64Array,
    min: &'a Float64Array,
    max: &'a Float64Array,
    bounds: &'a ListArray,
    bound_items: &'a Float64Array,
    counts: &'a ListArray,
    count_items: &'a UInt64Array,
    scale: &'a Int32Array,
    zero_count: &'a UInt64Array,
    zero_threshold: &'a Float64Array,
    positive: Sides<'a>,
    negative: Sides<'a>,
}

fn child<'a>(rows: &'a StructArray, name: &str) -> Result<&'a ArrayRef> {
    rows.column_by_name(name).ok_or_else(|| exec_datafusion_err!("expected a histogram, found a struct without {name}"))
}

fn numbers<'a, T: ArrowPrimitiveType>(
    rows: &'a StructArray,
    name: &str,
) -> Result<&'a arrow::array::PrimitiveArray<T>> {
    child(rows, name)?
        .as_primitive_opt::<T>()
        .ok_or_else(|| exec_datafusion_err!("the {name} of a histogram has the wrong type"))
}

fn lists<'a, T: ArrowPrimitiveType>(
    rows: &'a StructArray,
    name: &str,
) -> Result<(&'a ListArray, &'a arrow::array::PrimitiveArray<T>)> {
    let wrong = || exec_datafusion_err!("the {name} of a histogram have the wrong type");
    let list = child(rows, name)?.as_list_opt::<i32>().ok_or_else(wrong)?;
    Ok((list, list.values().as_primitive_opt::<T>().ok_or_else(wrong)?))
}

/// The items of a row's list; none when the list is null.
fn items<'a, T: ArrowPrimitiveType>(
    list: &ListArray,
    items: &'a arrow::array::PrimitiveArray<T>,
    row: usize,
) -> &'a [T::Native] {
    if list.is_null(row) {
        return &[];
    }
    let ends = list.value_offsets();
    &items.values()[ends[row].unsigned_abs() as usize..ends[row + 1].unsigned_abs() as usize]
}

impl<'a> Sides<'a> {
    fn new(rows: &'a StructArray, name: &str) -> Result<Self> {
        let Some(rows) = child(rows, name)?.as_struct_opt() else {
            return exec_err!("the {name} buckets of a histogram have the wrong type");
        };
        let (counts, items) = lists::<UInt64Type>(rows, "bucket_counts")?;
        Ok(Self { rows, offsets: numbers::<Int32Type>(rows, "offset")?, counts, items })
    }

    fn at(&self, row: usize) -> SideView<'a> {
        if self.rows.is_null(row) {
            return SideView::default();
        }
        SideView { offset: i64::from(self.offsets.value(row)), counts: items(self.counts, self.items, row) }
    }
}

impl<'a> Histograms<'a> {
    /// Reads a column.
    ///
    /// # Errors
    /// When the column does not hold histograms.
    pub(crate) fn new(column: &'a ArrayRef) -> Result<Self> {
        let Some(rows) = column.as_struct_opt() else {
            return exec_err!("expected a histogram, found {}", crate::render::type_name(column.data_type()));
        };
        let (bounds, bound_items) = lists::<Float64Type>(rows, "explicit_bounds")?;
        let (counts, count_items) = lists::<UInt64Type>(rows, "bucket_counts")?;
        Ok(Self {
            rows,
            count: numbers(rows, "count")?,
            sum: numbers(rows, "sum")?,
            min: numbers(rows, "min")?,
            max: numbers(rows, "max")?,
            bounds,
            bound_items,
            counts,
            count_items,
            scale: numbers(rows, "scale")?,
            zero_count: numbers(rows, "zero_count")?,
            zero_threshold: numbers(rows, "zero_threshold")?,
            positive: Sides::new(rows, "positive")?,
            negative: Sides::new(rows, "negative")?,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The histogram of a row; `None` when it is null.
    pub(crate) fn get(&self, row: usize) -> Option<View<'a>> {
        if self.rows.is_null(row) {
            return None;
        }
        let number = |array: &Float64Array| array.is_valid(row).then(|| array.value(row));
        let buckets = if self.scale.is_valid(row) {
            BucketsView::Exponential {
                scale: self.scale.value(row),
                zero_count: if self.zero_count.is_valid(row) { self.zero_count.value(row) } else { 0 },
                zero_threshold: number(self.zero_threshold).unwrap_or(0.0),
                positive: self.positive.at(row),
                negative: self.negative.at(row),
            }
        } else {
            BucketsView::Explicit {
                bounds: items(self.bounds, self.bound_items, row),
                counts: items(self.counts, self.count_items, row),
            }
        };
        Some(View {
            count: self.count.value(row),
            sum: number(self.sum),
            min: number(self.min),
            max: number(self.max),
            buckets,
        })
    }
}

fn list_builder<T: ArrowPrimitiveType>() -> ListBuilder<PrimitiveBuilder<T>> {
    ListBuilder::new(PrimitiveBuilder::new()).with_field(Field::new("item", T::DATA_TYPE, false))
}

struct SideBuilder {
    offsets: Int32Builder,
    counts: ListBuilder<UInt64Builder>,
    nulls: NullBufferBuilder,
}

impl SideBuilder {
    fn new(rows: usize) -> Self {
        Self { offsets: Int32Builder::with_capacity(rows), counts: list_builder(), nulls: NullBufferBuilder::new(rows) }
    }

    fn push(&mut self, side: Option<SideView<'_>>) -> Result<()> {
        let SideView { offset, counts } = side.unwrap_or_default();
        let Ok(offset) = i32::try_from(offset) else { return internal_err!("a bucket index past 32 bits: {offset}") };
        self.offsets.append_value(offset);
        self.counts.values().append_slice(counts);
        self.counts.append(true);
        self.nulls.append(side.is_some());
        Ok(())
    }

    fn finish(mut self) -> Result<ArrayRef> {
        let columns: Vec<ArrayRef> = vec![Arc::new(self.offsets.finish()), Arc::new(self.counts.finish())];
        Ok(Arc::new(StructArray::try_new(bucket_fields(), columns, self.nulls.finish())?))
    }
}

/// Histograms as a column.
///
/// # Errors
/// A defect: a histogram that the column's type cannot hold.
pub(crate) fn from_histograms<'a>(
    histograms: impl ExactSizeIterator<Item = Option<&'a Histogram>>,
) -> Result<ArrayRef> {
    let rows = histograms.len();
    let mut nulls = NullBufferBuilder::new(rows);
    let mut count = UInt64Builder::with_capacity(rows);
    let [mut sum, mut min, mut max, mut zero_threshold] = [(); 4].map(|()| Float64Builder::with_capacity(rows));
    let mut bounds = list_builder::<Float64Type>();
    let mut counts = list_builder::<UInt64Type>();
    let mut scale = Int32Builder::with_capacity(rows);
    let mut zero_count = UInt64Builder::with_capacity(rows);
    let (mut positive, mut negative) = (SideBuilder::new(rows), SideBuilder::new(rows));
    for histogram in histograms {
        nulls.append(histogram.is_some());
        count.append_value(histogram.map_or(0, |histogram| histogram.count));
        sum.append_option(histogram.and_then(|histogram| histogram.sum));
        min.append_option(histogram.and_then(|histogram| histogram.min));
        max.append_option(histogram.and_then(|histogram| histogram.max));
        let buckets = histogram.map(|histogram| &histogram.buckets);
        if let Some(Buckets::Explicit(explicit)) = buckets {
            bounds.values().append_slice(&explicit.bounds);
            counts.values().append_slice(&explicit.counts);
        }
        bounds.append(true);
        counts.append(true);
        let exponential = match buckets {
            Some(Buckets::Exponential(exponential)) => Some(exponential),
            _ => None,
        };
        scale.append_option(exponential.map(|buckets| buckets.scale));
        zero_count.append_option(exponential.map(|buckets| buckets.zero_count));
        zero_threshold.append_option(exponential.map(|buckets| buckets.zero_threshold));
        positive.push(exponential.map(|buckets| buckets.positive.view()))?;
        negative.push(exponential.map(|buckets| buckets.negative.view()))?;
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(count.finish()),
        Arc::new(sum.finish()),
        Arc::new(min.finish()),
        Arc::new(max.finish()),
        Arc::new(bounds.finish()),
        Arc::new(counts.finish()),
        Arc::new(scale.finish()),
        Arc::new(zero_count.finish()),
        Arc::new(zero_threshold.finish()),
        positive.finish()?,
        negative.finish()?,
    ];
    Ok(Arc::new(StructArray::try_new(STRUCT_FIELDS.clone(), columns, nulls.finish())?))
}
