//! What people call: `histogram_quantile(q, histogram)`, and the folds of the aggregates
//! `histogram_merge(histogram)` and `histogram_increase(histogram, time)`.
//!
//! Not here: names and arguments of the aggregates ([`crate::aggregate`]); `quantile`, which merges
//! and asks in one ([`crate::quantile`]); the arithmetic ([`super`]).

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray, Float64Array, Int64Array, ListArray, TimestampNanosecondArray};
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampNanosecondType};
use datafusion::common::{exec_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

use super::{
    BucketsView, Histogram, Histograms, SideView, View, from_histograms, histogram_type, increase, is_histogram,
};
use crate::aggregate::Fold;
use crate::error::external;
use crate::rate::lists;
use crate::render::type_name;

/// The scalar functions of histograms.
pub(crate) fn scalar_functions() -> [Arc<ScalarUDF>; 1] {
    let signature = Signature::user_defined(Volatility::Immutable);
    [Arc::new(ScalarUDF::new_from_impl(Quantile { signature }))]
}

/// `histogram_quantile(q, histogram)`
#[derive(Debug, PartialEq, Eq, Hash)]
struct Quantile {
    signature: Signature,
}

impl ScalarUDFImpl for Quantile {
    fn name(&self) -> &str {
        "histogram_quantile"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        match arg_types {
            [q, histogram] if (q.is_numeric() || q.is_null()) && is_histogram(histogram) => {
                Ok(vec![DataType::Float64, histogram_type()])
            }
            _ => {
                let found: Vec<String> = arg_types.iter().map(type_name).collect();
                plan_err!(
                    "histogram_quantile() expects (number between 0 and 1, histogram), found ({})",
                    found.join(", ")
                )
            }
        }
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let q = args.args[0].to_array(args.number_rows)?;
        let q: &Float64Array = q.as_primitive::<Float64Type>();
        let histograms = args.args[1].to_array(args.number_rows)?;
        let histograms = Histograms::new(&histograms)?;
        let quantile = |row: usize| -> Result<Option<f64>> {
            match histograms.get(row) {
                Some(view) if q.is_valid(row) => quantile_of_row(q.value(row), &view),
                _ => Ok(None),
            }
        };
        let values = (0..histograms.len()).map(quantile).collect::<Result<Float64Array>>()?;
        Ok(ColumnarValue::Array(Arc::new(values)))
    }
}

fn quantile_of_row(q: f64, view: &View<'_>) -> Result<Option<f64>> {
    let mut histogram = Histogram::of(view).map_err(external)?;
    histogram.settle().map_err(external)?;
    Ok(histogram.quantile(q))
}

/// One histogram of many; none of none.
#[derive(Debug, Default)]
pub(crate) struct Merged(Option<Box<Histogram>>);

impl Merged {
    /// Takes a histogram in.
    pub(crate) fn add(&mut self, view: &View<'_>) -> Result<()> {
        match &mut self.0 {
            Some(merged) => merged.add(view),
            None => Histogram::of(view).map(|first| self.0 = Some(Box::new(first))),
        }
        .map_err(external)
    }

    /// Counts one observation, in the bucket of an index at a scale; zero is in the zero bucket.
    pub(crate) fn count_one(&mut self, value: f64, scale: i32, index: i64) -> Result<()> {
        if value != 0.0 && self.0.as_deref_mut().is_some_and(|histogram| histogram.count_one(value, scale, index)) {
            return Ok(());
        }
        let (bucket, none) = (SideView { offset: index, counts: &[1] }, SideView::default());
        let (zero_count, positive, negative) = match value.partial_cmp(&0.0) {
            Some(Ordering::Greater) => (0, bucket, none),
            Some(Ordering::Less) => (0, none, bucket),
            _ => (1, none, none),
        };
        let buckets = BucketsView::Exponential { scale, zero_count, zero_threshold: 0.0, positive, negative };
        self.add(&View { count: 1, sum: None, min: Some(value), max: Some(value), buckets })
    }

    /// As it is, for merging to go on.
    pub(crate) fn histogram(&self) -> Option<&Histogram> {
        self.0.as_deref()
    }

    /// Complete, for reading.
    pub(crate) fn settled(&self) -> Result<Option<Histogram>> {
        let mut histogram = self.0.as_deref().cloned();
        if let Some(histogram) = &mut histogram {
            histogram.settle().map_err(external)?;
        }
        Ok(histogram)
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        // Twice: saving and settling copy it.
        self.0.as_deref().map_or(0, |histogram| 2 * (size_of::<Histogram>() + histogram.heap_bytes()))
    }
}

/// The fold of `histogram_merge`.
#[derive(Debug)]
pub(crate) struct Merge;

impl Fold for Merge {
    type State = Merged;
    type Rows<'a> = Histograms<'a>;
    type Saved<'a> = Histograms<'a>;

    fn rows<'a>(&self, arguments: &'a [ArrayRef]) -> Result<Histograms<'a>> {
        Histograms::new(&arguments[0])
    }

    fn add(&self, state: &mut Merged, rows: &Histograms<'_>, row: usize) -> Result<()> {
        rows.get(row).map_or(Ok(()), |view| state.add(&view))
    }

    fn save(&self, states: &[Merged]) -> Result<Vec<ArrayRef>> {
        Ok(vec![from_histograms(states.iter().map(Merged::histogram))?])
    }

    fn saved<'a>(&self, columns: &'a [ArrayRef]) -> Result<Histograms<'a>> {
        Histograms::new(&columns[0])
    }

    fn merge(&self, state: &mut Merged, saved: &Histograms<'_>, row: usize) -> Result<()> {
        self.add(state, saved, row)
    }

    fn finish(&self, states: &mut [Merged]) -> Result<ArrayRef> {
        let settled = states.iter().map(Merged::settled).collect::<Result<Vec<_>>>()?;
        from_histograms(settled.iter().map(Option::as_ref))
    }

    fn heap_bytes(state: &Merged) -> usize {
        state.heap_bytes()
    }
}

/// The histograms of one series, in the order they came.
#[derive(Debug, Default)]
pub(crate) struct Series {
    samples: Vec<(i64, Histogram)>,
    bucket_bytes: usize,
}

/// The fold of `histogram_increase`.
#[derive(Debug)]
pub(crate) struct Increase;

impl Increase {
    fn push(state: &mut Series, time: i64, view: &View<'_>) -> Result<()> {
        let histogram = Histogram::of(view).map_err(external)?;
        state.bucket_bytes += histogram.heap_bytes();
        state.samples.push((time, histogram));
        Ok(())
    }
}

impl Fold for Increase {
    type State = Series;
    type Rows<'a> = (Histograms<'a>, &'a TimestampNanosecondArray);
    type Saved<'a> = (&'a ListArray, &'a Int64Array, Histograms<'a>);

    fn rows<'a>(&self, arguments: &'a [ArrayRef]) -> Result<Self::Rows<'a>> {
        Ok((Histograms::new(&arguments[0])?, arguments[1].as_primitive::<TimestampNanosecondType>()))
    }

    fn add(&self, state: &mut Series, (histograms, times): &Self::Rows<'_>, row: usize) -> Result<()> {
        match histograms.get(row) {
            Some(view) if times.is_valid(row) => Self::push(state, times.value(row), &view),
            _ => Ok(()),
        }
    }

    fn save(&self, states: &[Series]) -> Result<Vec<ArrayRef>> {
        let lengths = || states.iter().map(|state| state.samples.len());
        let samples: Vec<&(i64, Histogram)> = states.iter().flat_map(|state| &state.samples).collect();
        Ok(vec![
            lists(lengths(), Arc::new(samples.iter().map(|(time, _)| *time).collect::<Int64Array>())),
            lists(lengths(), from_histograms(samples.iter().map(|(_, histogram)| Some(histogram)))?),
        ])
    }

    fn saved<'a>(&self, columns: &'a [ArrayRef]) -> Result<Self::Saved<'a>> {
        let (times, histograms) = (columns[0].as_list::<i32>(), columns[1].as_list::<i32>());
        // Both lists were made together; one set of ends serves both when they still agree.
        if times.value_offsets() != histograms.value_offsets() {
            return exec_err!("the saved states of histogram_increase() do not belong together");
        }
        Ok((times, times.values().as_primitive::<Int64Type>(), Histograms::new(histograms.values())?))
    }

    fn merge(&self, state: &mut Series, (ends, times, histograms): &Self::Saved<'_>, row: usize) -> Result<()> {
        let ends = ends.value_offsets();
        for sample in ends[row].unsigned_abs() as usize..ends[row + 1].unsigned_abs() as usize {
            if let Some(view) = histograms.get(sample) {
                Self::push(state, times.value(sample), &view)?;
            }
        }
        Ok(())
    }

    fn finish(&self, states: &mut [Series]) -> Result<ArrayRef> {
        let gained = states.iter_mut().map(|state| increase(&mut state.samples).map_err(external));
        let gained = gained.collect::<Result<Vec<_>>>()?;
        from_histograms(gained.iter().map(Option::as_ref))
    }

    fn heap_bytes(state: &Series) -> usize {
        // Twice: `save` copies the samples into columns.
        2 * (state.samples.capacity() * size_of::<(i64, Histogram)>() + state.bucket_bytes)
    }
}
