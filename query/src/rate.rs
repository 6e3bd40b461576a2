//! `rate(value, time)` and `increase(value, time)`: how fast a cumulative counter grows.
//!
//! ```text
//! increase = last value - first value + the value before each reset
//! rate     = increase / seconds between the first and the last sample
//! ```
//!
//! A reset is a sample below the one before it: the counter began again at zero. Samples come in
//! any order; those of one time count once, as the largest of them. With fewer than two times there
//! is nothing to compare, and the result is null.
//!
//! Nothing is extrapolated. Prometheus stretches the increase to the edges of the range it was asked
//! for; an aggregate sees rows and not the range they were chosen by, and a slope between two
//! samples that exist can be checked against them. The price: what a counter gains between the last
//! sample of one bucket of time and the first of the next is in neither bucket's increase. Their
//! rates are right all the same.
//!
//! A counter is one series: group by `series_id`, then sum. Not here: delta temporality, whose rate
//! is `sum(value)` over the seconds asked about; and histograms ([`crate::histogram`]).

use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray, Float64Array, Int64Array, ListArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{Field, Float64Type, Int64Type, TimestampNanosecondType};
use datafusion::error::Result;

use crate::aggregate::Fold;

/// Whether the increase is divided by the time it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PerSecond {
    /// `rate`
    Yes,
    /// `increase`
    No,
}

/// The fold of both functions.
#[derive(Debug)]
pub(crate) struct Counter {
    pub(crate) per: PerSecond,
}

/// The samples of one group, in the order they came: nanoseconds and value.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<(i64, f64)>);

impl Counter {
    fn result(&self, samples: &mut Samples) -> Option<f64> {
        let samples = &mut samples.0;
        // By value within a time, so that neither order nor duplicates can be seen in the result.
        samples.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let distinct = samples.chunk_by(|a, b| a.0 == b.0).filter_map(|same_time| same_time.last());
        let mut distinct = distinct.copied();
        let (first_time, first) = distinct.next()?;
        let (mut last_time, mut last, mut before_resets) = (first_time, first, 0.0);
        let mut has_nan = first.is_nan();
        for (time, value) in distinct {
            has_nan |= value.is_nan();
            if value < last {
                before_resets += last;
            }
            (last_time, last) = (time, value);
        }
        if last_time == first_time {
            return None;
        }
        // A comparison with NaN hides a reset: better no number than a wrong one.
        let increase = if has_nan { f64::NAN } else { last - first + before_resets };
        #[expect(clippy::cast_precision_loss, reason = "a rate is a double; its time need not be exact past 2^53 ns")]
        let seconds = last_time.wrapping_sub(first_time).cast_unsigned() as f64 / 1e9;
        Some(match self.per {
            PerSecond::Yes => increase / seconds,
            PerSecond::No => increase,
        })
    }
}

/// A list per state over items that lie one after the other.
pub(crate) fn lists(lengths: impl Iterator<Item = usize>, items: ArrayRef) -> ArrayRef {
    let field = Arc::new(Field::new_list_field(items.data_type().clone(), true));
    Arc::new(ListArray::new(field, OffsetBuffer::from_lengths(lengths), items, None))
}

impl Fold for Counter {
    type State = Samples;
    type Rows<'a> = (&'a Float64Array, &'a arrow::array::TimestampNanosecondArray);
    type Saved<'a> = (&'a ListArray, &'a ListArray);

    fn rows<'a>(&self, arguments: &'a [ArrayRef]) -> Result<Self::Rows<'a>> {
        Ok((arguments[0].as_primitive::<Float64Type>(), arguments[1].as_primitive::<TimestampNanosecondType>()))
    }

    fn add(&self, state: &mut Samples, (values, times): &Self::Rows<'_>, row: usize) -> Result<()> {
        if values.is_valid(row) && times.is_valid(row) {
            state.0.push((times.value(row), values.value(row)));
        }
        Ok(())
    }

    fn save(&self, states: &[Samples]) -> Result<Vec<ArrayRef>> {
        let samples = || states.iter().flat_map(|state| &state.0);
        let lengths = || states.iter().map(|state| state.0.len());
        Ok(vec![
            lists(lengths(), Arc::new(samples().map(|(time, _)| *time).collect::<Int64Array>())),
            lists(lengths(), Arc::new(samples().map(|(_, value)| *value).collect::<Float64Array>())),
        ])
    }

    fn saved<'a>(&self, columns: &'a [ArrayRef]) -> Result<Self::Saved<'a>> {
        Ok((columns[0].as_list(), columns[1].as_list()))
    }

    fn merge(&self, state: &mut Samples, (times, values): &Self::Saved<'_>, row: usize) -> Result<()> {
        let (times, values) = (times.value(row), values.value(row));
        let times = times.as_primitive::<Int64Type>().values().iter();
        let values = values.as_primitive::<Float64Type>().values().iter();
        state.0.extend(times.copied().zip(values.copied()));
        Ok(())
    }

    fn finish(&self, states: &mut [Samples]) -> Result<ArrayRef> {
        Ok(Arc::new(states.iter_mut().map(|state| self.result(state)).collect::<Float64Array>()))
    }

    fn heap_bytes(state: &Samples) -> usize {
        // Twice: `save` copies the samples into columns.
        state.0.capacity() * size_of::<(i64, f64)>() * 2
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn both(samples: &[(i64, f64)]) -> (Option<f64>, Option<f64>) {
        let result = |per| Counter { per }.result(&mut Samples(samples.to_vec()));
        (result(PerSecond::No), result(PerSecond::Yes))
    }

    #[test]
    fn increases_and_rates() {
        let at = |second: i64, value: f64| (second * SECOND, value);
        for (samples, increase, rate) in [
            (vec![], None, None),
            (vec![at(0, 5.0)], None, None),
            (vec![at(0, 5.0), at(0, 7.0)], None, None),
            (vec![at(0, 5.0), at(10, 25.0)], Some(20.0), Some(2.0)),
            (vec![at(10, 25.0), at(0, 5.0)], Some(20.0), Some(2.0)),
            // A sample sent twice, and one that was corrected.
            (vec![at(0, 5.0), at(10, 25.0), at(10, 25.0), at(10, 24.0)], Some(20.0), Some(2.0)),
            // A reset to 0 and one that has counted on since.
            (vec![at(0, 5.0), at(5, 9.0), at(10, 0.0), at(20, 4.0)], Some(8.0), Some(0.4)),
            (vec![at(0, 100.0), at(10, 3.0)], Some(3.0), Some(0.3)),
            (vec![at(0, 1.0), at(1, 0.0), at(2, 1.0), at(3, 0.0)], Some(1.0), Some(1.0 / 3.0)),
            (vec![at(0, 7.0), at(10, 7.0)], Some(0.0), Some(0.0)),
            (vec![at(-10, 1.0), at(0, 2.0)], Some(1.0), Some(0.1)),
            (vec![at(0, 0.0), at(1, f64::INFINITY)], Some(f64::INFINITY), Some(f64::INFINITY)),
        ] {
            assert_eq!(both(&samples), (increase, rate), "{samples:?}");
        }
        let (increase, rate) = both(&[at(0, 5.0), at(1, f64::NAN), at(2, 3.0)]);
        assert!(increase.unwrap().is_nan() && rate.unwrap().is_nan());
        let (_, rate) = both(&[(i64::MIN, 0.0), (i64::MAX, 1.0)]);
        assert!(rate.unwrap() > 0.0);
    }

    /// Gains of a counter, one a second; a negative one is a restart that has counted so far since.
    fn counter(gains: &[i32]) -> (Vec<(i64, f64)>, f64) {
        let (mut value, mut total) = (0.0, 0.0);
        let samples = gains.iter().enumerate().map(|(second, gain)| {
            let gained = f64::from(gain.unsigned_abs() % 1_000);
            // A restart shows only when the new count is below the old one.
            let restarts = *gain < 0 && gained < value;
            value = if restarts { gained } else { value + gained };
            if second > 0 {
                total += gained;
            }
            (second as i64 * SECOND, value)
        });
        (samples.collect(), total)
    }

    proptest! {
        #[test]
        fn the_increase_is_what_the_counter_gained_in_whatever_order(
            gains in prop::collection::vec(-1_000..1_000_i32, 2..60),
            order in any::<u64>(),
        ) {
            let (mut samples, total) = counter(&gains);
            let seconds = (gains.len() - 1) as f64;
            prop_assert_eq!(both(&samples), (Some(total), Some(total / seconds)));
            let turn = order as usize % samples.len();
            samples.rotate_left(turn);
            samples.extend_from_within(..turn);
            samples.reverse();
            prop_assert_eq!(both(&samples), (Some(total), Some(total / seconds)));
        }
    }
}
