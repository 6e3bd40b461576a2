//! `quantile(q, x)`: of numbers, and of histograms.
//!
//! *Numbers*: exact up to [`EXACT_VALUES_MAX`] numbers in a group, interpolated between the two
//! nearest as PromQL's `quantile` does. Above that the numbers are counted in an exponential
//! histogram of scale [`SKETCH_SCALE`], whose buckets are 0.54 % wide, so that the result is within
//! 0.6 % of the number of that rank. (Numbers that span more than 38 decimal orders of magnitude
//! make it coarser: at most 16,384 buckets on either side of zero.) Which of the two it is depends
//! on how many numbers there are and not on their order. A sketch takes 8 bytes a bucket, some 20 KiB
//! for latencies and never more than half a MiB. Null and NaN are left out; a sketch counts an infinity
//! as the largest double.
//!
//! *Histograms*: `histogram_quantile(q, histogram_merge(histogram))`.
//!
//! A `q` below 0 is -Infinity and one above 1 is +Infinity, as in Prometheus; nothing to look at is
//! null. Not here: `approx_percentile_cont` (a t-digest) and `percentile_cont` (exact, unbounded),
//! which DataFusion brings.

use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray, Float64Array, ListArray};
use arrow::datatypes::Float64Type;
use datafusion::error::Result;

use crate::aggregate::Fold;
use crate::histogram::{Histogram, Histograms, Merge, Merged, from_histograms};
use crate::rate::lists;

/// Numbers of a group that are kept as they are: as much memory as the sketch of a wide range.
const EXACT_VALUES_MAX: usize = 4_096;

/// A bucket's upper bound is 2^(1/128) times its lower one.
const SKETCH_SCALE: i32 = 7;

/// The fold of `quantile(q, histogram)`.
#[derive(Debug)]
pub(crate) struct OfHistograms {
    pub(crate) q: f64,
}

impl Fold for OfHistograms {
    type State = Merged;
    type Rows<'a> = Histograms<'a>;
    type Saved<'a> = Histograms<'a>;

    fn rows<'a>(&self, arguments: &'a [ArrayRef]) -> Result<Histograms<'a>> {
        Histograms::new(&arguments[1])
    }

    fn add(&self, state: &mut Merged, rows: &Histograms<'_>, row: usize) -> Result<()> {
        Merge.add(state, rows, row)
    }

    fn save(&self, states: &[Merged]) -> Result<Vec<ArrayRef>> {
        Merge.save(states)
    }

    fn saved<'a>(&self, columns: &'a [ArrayRef]) -> Result<Histograms<'a>> {
        Merge.saved(columns)
    }

    fn merge(&self, state: &mut Merged, saved: &Histograms<'_>, row: usize) -> Result<()> {
        Merge.merge(state, saved, row)
    }

    fn finish(&self, states: &mut [Merged]) -> Result<ArrayRef> {
        let quantile = |state: &mut Merged| Ok(state.settled()?.and_then(|histogram| histogram.quantile(self.q)));
        Ok(Arc::new(states.iter_mut().map(quantile).collect::<Result<Float64Array>>()?))
    }

    fn heap_bytes(state: &Merged) -> usize {
        state.heap_bytes()
    }
}

/// The numbers of a group: as they are, or counted.
#[derive(Debug)]
pub(crate) enum Numbers {
    Exact(Vec<f64>),
    Sketch(Merged),
}

impl Default for Numbers {
    fn default() -> Self {
        Self::Exact(Vec::new())
    }
}

/// Counts one number. The bucket of index i ends at 2^((i + 1) / 128), which is in it.
#[expect(clippy::cast_possible_truncation, reason = "a double's logarithm is within 1,075; that of zero is not used")]
fn add_to_sketch(sketch: &mut Merged, value: f64) -> Result<()> {
    let logarithm = value.abs().min(f64::MAX).log2();
    let index = (logarithm * f64::from(SKETCH_SCALE).exp2()).ceil() as i64;
    sketch.count_one(value, SKETCH_SCALE, index.saturating_sub(1))
}

impl Numbers {
    fn add(&mut self, value: f64) -> Result<()> {
        match self {
            Self::Exact(values) if values.len() < EXACT_VALUES_MAX => {
                values.push(value);
                Ok(())
            }
            Self::Exact(_) => add_to_sketch(self.sketch()?, value),
            Self::Sketch(sketch) => add_to_sketch(sketch, value),
        }
    }

    /// Counts the numbers from now on.
    fn sketch(&mut self) -> Result<&mut Merged> {
        if let Self::Exact(values) = self {
            let mut sketch = Merged::default();
            values.iter().try_for_each(|value| add_to_sketch(&mut sketch, *value))?;
            *self = Self::Sketch(sketch);
        }
        match self {
            Self::Sketch(sketch) => Ok(sketch),
            Self::Exact(_) => datafusion::common::internal_err!("a sketch that was not made"),
        }
    }

    fn quantile(&mut self, q: f64) -> Option<f64> {
        match self {
            Self::Exact(values) => {
                values.sort_unstable_by(f64::total_cmp);
                exact_quantile(values, q)
            }
            Self::Sketch(sketch) => {
                let sketch: &Histogram = sketch.histogram()?;
                let value = sketch.quantile(q)?;
                let (Some(min), Some(max)) = (sketch.min, sketch.max) else { return Some(value) };
                // Buckets reach past the numbers in them.
                Some(if (0.0..=1.0).contains(&q) { value.clamp(min, max) } else { value })
            }
        }
    }
}

/// The quantile of ascending numbers.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rank is at least 0 and at most EXACT_VALUES_MAX"
)]
fn exact_quantile(values: &[f64], q: f64) -> Option<f64> {
    let last = values.len().checked_sub(1)?;
    if q.is_nan() {
        return None;
    }
    if !(0.0..=1.0).contains(&q) {
        return Some(if q < 0.0 { f64::NEG_INFINITY } else { f64::INFINITY });
    }
    let rank = q * last as f64;
    let (below, weight) = (rank.floor(), rank.fract());
    let (lower, upper) = (values[below as usize], values[(below as usize + 1).min(last)]);
    // Weighing instead of adding a part of the difference: that may overflow, and Inf - Inf is NaN.
    Some(if weight == 0.0 || lower == upper { lower } else { lower * (1.0 - weight) + upper * weight })
}

/// The fold of `quantile(q, number)`.
#[derive(Debug)]
pub(crate) struct OfNumbers {
    pub(crate) q: f64,
}

impl Fold for OfNumbers {
    type State = Numbers;
    type Rows<'a> = &'a Float64Array;
    type Saved<'a> = (&'a ListArray, Histograms<'a>);

    fn rows<'a>(&self, arguments: &'a [ArrayRef]) -> Result<&'a Float64Array> {
        Ok(arguments[1].as_primitive::<Float64Type>())
    }

    fn add(&self, state: &mut Numbers, rows: &Self::Rows<'_>, row: usize) -> Result<()> {
        if rows.is_valid(row) && !rows.value(row).is_nan() { state.add(rows.value(row)) } else { Ok(()) }
    }

    fn save(&self, states: &[Numbers]) -> Result<Vec<ArrayRef>> {
        let values = |state: &Numbers| match state {
            Numbers::Exact(values) => values.clone(),
            Numbers::Sketch(_) => Vec::new(),
        };
        let items: Float64Array = states.iter().flat_map(values).collect();
        let sketches = states.iter().map(|state| match state {
            Numbers::Exact(_) => None,
            Numbers::Sketch(sketch) => sketch.histogram(),
        });
        let lengths = states.iter().map(|state| values(state).len());
        Ok(vec![lists(lengths, Arc::new(items)), from_histograms(sketches)?])
    }

    fn saved<'a>(&self, columns: &'a [ArrayRef]) -> Result<Self::Saved<'a>> {
        Ok((columns[0].as_list(), Histograms::new(&columns[1])?))
    }

    fn merge(&self, state: &mut Numbers, (values, sketches): &Self::Saved<'_>, row: usize) -> Result<()> {
        if let Some(sketch) = sketches.get(row) {
            return state.sketch()?.add(&sketch);
        }
        let values = values.value(row);
        values.as_primitive::<Float64Type>().values().iter().try_for_each(|value| state.add(*value))
    }

    fn finish(&self, states: &mut [Numbers]) -> Result<ArrayRef> {
        Ok(Arc::new(states.iter_mut().map(|state| state.quantile(self.q)).collect::<Float64Array>()))
    }

    fn heap_bytes(state: &Numbers) -> usize {
        match state {
            // Twice: `save` copies them into columns.
            Numbers::Exact(values) => 2 * values.capacity() * size_of::<f64>(),
            Numbers::Sketch(sketch) => sketch.heap_bytes(),
        }
    }
}
