//! Histograms in SQL: what one is, how two become one, what a cumulative one gained, and where its
//! quantiles lie. Pure arithmetic on integer counts; no Arrow, no SQL.
//!
//! The rules are those of the OpenTelemetry metrics data model (buckets, zero bucket, downscaling)
//! and of Prometheus (interpolation). Source: opentelemetry.io/docs/specs/otel/metrics/data-model
//! and prometheus.io/docs/prometheus/latest/querying/functions.
//!
//! - [`columns`]: histograms as the rows of an Arrow struct, the `histogram` column of
//!   `metric_histograms`
//! - [`functions`]: `histogram_quantile`, and the folds of `histogram_merge` and `histogram_increase`
//!
//! # Merging
//! Counts are added as integers, so that nothing depends on the order of rows.
//! - *Exponential*: the result has the coarsest scale. Going down by n scales maps the bucket of
//!   index i to that of index i >> n, which holds all of it. When the buckets of one side would be
//!   more than [`BUCKETS_MAX`] (two narrow histograms, far apart, at a fine scale), the scale goes
//!   down until they fit. The zero threshold is the largest; what lies below it joins the zero
//!   bucket, and a bucket that straddles it moves it up to the bucket's bound.
//! - *Explicit*: the result has the bounds that all of them share, and a bucket that lost a bound
//!   joined its neighbour. So one that refines the other merges exactly, to the coarser bounds.
//!   Histograms without a shared bound are an error, as are explicit ones with exponential ones.
//! - The sum, the minimum and the maximum are known when all of them are known.

mod columns;
mod functions;
#[cfg(test)]
mod tests;

use model::limits::BUCKETS_MAX;

pub(crate) use columns::{Histograms, column, from_histograms, histogram_type, is_histogram};
pub(crate) use functions::{Increase, Merge, Merged, scalar_functions};

use crate::error::{ErrorKind, QueryError};

type Result<T> = std::result::Result<T, QueryError>;

/// Past this |scale| no bound can be computed; ingest takes 64, and merging may go below that.
pub(crate) const SCALE_ABS_MAX: i32 = 1_024;

/// Counts of consecutive buckets on one side of zero. The first and the last are not zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Side {
    /// The index of the first bucket. The bucket of index i holds `base^i < |x| <= base^(i+1)`,
    /// where base is `2^(2^-scale)`.
    pub(crate) offset: i64,
    pub(crate) counts: Vec<u64>,
}

/// An exponential histogram's buckets.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Exponential {
    pub(crate) scale: i32,
    pub(crate) zero_count: u64,
    pub(crate) zero_threshold: f64,
    pub(crate) positive: Side,
    pub(crate) negative: Side,
}

/// An explicit histogram's buckets: one more count than bounds, each bound the upper one of a bucket.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Explicit {
    pub(crate) bounds: Vec<f64>,
    pub(crate) counts: Vec<u64>,
}

/// The buckets of either kind.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Buckets {
    Explicit(Explicit),
    Exponential(Exponential),
}

/// A histogram.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Histogram {
    pub(crate) count: u64,
    pub(crate) sum: Option<f64>,
    pub(crate) min: Option<f64>,
    pub(crate) max: Option<f64>,
    pub(crate) buckets: Buckets,
}

/// A histogram that lies in columns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) count: u64,
    pub(crate) sum: Option<f64>,
    pub(crate) min: Option<f64>,
    pub(crate) max: Option<f64>,
    pub(crate) buckets: BucketsView<'a>,
}

/// The buckets of a [`View`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum BucketsView<'a> {
    Explicit { bounds: &'a [f64], counts: &'a [u64] },
    Exponential { scale: i32, zero_count: u64, zero_threshold: f64, positive: SideView<'a>, negative: SideView<'a> },
}

/// One side of an exponential [`View`]; may begin and end with empty buckets.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SideView<'a> {
    pub(crate) offset: i64,
    pub(crate) counts: &'a [u64],
}

fn bad(message: impl Into<String>) -> QueryError {
    QueryError::new(ErrorKind::BadQuery, message)
}

fn plus(a: u64, b: u64) -> Result<u64> {
    a.checked_add(b).ok_or_else(|| bad("the counts of these histograms do not fit 64 bits"))
}

fn both(a: Option<f64>, b: Option<f64>, join: fn(f64, f64) -> f64) -> Option<f64> {
    a.zip(b).map(|(a, b)| join(a, b))
}

/// An index `by` scales down. The shift keeps the sign, which makes it a floor.
fn scaled(index: i64, by: u32) -> i64 {
    index >> by.min(63)
}

/// `base^index` at a scale, as an exponent of two.
#[expect(clippy::cast_precision_loss, reason = "indexes are below 2^33")]
fn exponent(index: i64, scale: i32) -> f64 {
    index as f64 * (-f64::from(scale)).exp2()
}

impl<'a> SideView<'a> {
    /// Without the empty buckets at both ends.
    fn trimmed(self) -> Self {
        let Some(first) = self.counts.iter().position(|count| *count > 0) else { return Self::default() };
        let end = self.counts.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        Self { offset: self.offset + first as i64, counts: &self.counts[first..end] }
    }

    /// The first and the last index at a scale so many below; `None` without buckets.
    fn range(self, by: u32) -> Option<(i64, i64)> {
        let last = self.offset + self.counts.len() as i64 - 1;
        (!self.counts.is_empty()).then(|| (scaled(self.offset, by), scaled(last, by)))
    }
}

impl Side {
    fn view(&self) -> SideView<'_> {
        SideView { offset: self.offset, counts: &self.counts }
    }

    fn trimmed(&self) -> Self {
        let trimmed = self.view().trimmed();
        Self { offset: trimmed.offset, counts: trimmed.counts.to_vec() }
    }

    /// Goes down so many scales. The ends stay populated, since no count is lost.
    fn downscale(&mut self, by: u32) -> Result<()> {
        if by > 0 && !self.counts.is_empty() {
            let mut coarser = Self::default();
            coarser.add(self.view(), by)?;
            *self = coarser;
        }
        Ok(())
    }

    /// Adds the trimmed buckets of another side that is so many scales finer.
    fn add(&mut self, other: SideView<'_>, by: u32) -> Result<()> {
        let Some((mut first, mut last)) = other.range(by) else { return Ok(()) };
        if let Some((own_first, own_last)) = self.view().range(0) {
            (first, last) = (first.min(own_first), last.max(own_last));
        } else {
            self.offset = first;
        }
        // The ranges are within BUCKETS_MAX here: the scale was chosen so.
        let length = usize::try_from(last - first + 1).unwrap_or(usize::MAX);
        if first < self.offset {
            let before = usize::try_from(self.offset - first).unwrap_or(usize::MAX);
            self.counts.splice(0..0, std::iter::repeat_n(0, before));
            self.offset = first;
        }
        if length > self.counts.len() {
            self.counts.resize(length, 0);
        }
        for (index, count) in (other.offset..).zip(other.counts) {
            let place = usize::try_from(scaled(index, by) - first).unwrap_or(usize::MAX);
            self.counts[place] = plus(self.counts[place], *count)?;
        }
        Ok(())
    }

    /// The count of a bucket.
    fn at(&self, index: i64) -> u64 {
        usize::try_from(index - self.offset).ok().and_then(|place| self.counts.get(place)).copied().unwrap_or(0)
    }

    /// Counts one more in a bucket between the first and the last; `false` when it is not.
    fn count_one(&mut self, index: i64) -> bool {
        let Some(count) = usize::try_from(index - self.offset).ok().and_then(|place| self.counts.get_mut(place)) else {
            return false;
        };
        // The total of all buckets fits, so one of them does.
        *count = count.saturating_add(1);
        true
    }

    /// Takes away the buckets up to an index, and returns what they held.
    fn take_up_to(&mut self, index: i64) -> Result<u64> {
        let end = usize::try_from(index - self.offset + 1).unwrap_or(0).min(self.counts.len());
        let taken = self.counts.drain(..end).try_fold(0, plus)?;
        self.offset += end as i64;
        *self = self.trimmed();
        Ok(taken)
    }

    /// Takes another side's counts away; `None` when one of them is larger.
    fn minus(&self, earlier: &Self) -> Option<Self> {
        let mut left = self.clone();
        for (index, count) in (earlier.offset..).zip(&earlier.counts) {
            if *count > 0 {
                let place = usize::try_from(index - left.offset).ok()?;
                let own = left.counts.get_mut(place)?;
                *own = own.checked_sub(*count)?;
            }
        }
        Some(left.trimmed())
    }
}

impl Exponential {
    /// Adds buckets. The zero threshold becomes the larger one, but nothing is moved below it yet:
    /// that depends on the final scale, see [`Exponential::settle`].
    fn add(&mut self, scale: i32, zero_count: u64, zero_threshold: f64, sides: [SideView<'_>; 2]) -> Result<()> {
        let sides = sides.map(SideView::trimmed);
        let mut common = self.scale.min(scale);
        let fits = |own: &Side, other: SideView<'_>, common: i32| {
            let ranges = [own.view().range(self.scale.abs_diff(common)), other.range(scale.abs_diff(common))];
            let (first, last) = ranges
                .into_iter()
                .flatten()
                .fold((i64::MAX, i64::MIN), |(first, last), range| (first.min(range.0), last.max(range.1)));
            first > last
                || (last - first < BUCKETS_MAX as i64 && i32::try_from(first).is_ok() && i32::try_from(last).is_ok())
        };
        // Each step halves the ranges, which are below 2^33.
        while !(fits(&self.positive, sides[0], common) && fits(&self.negative, sides[1], common)) {
            common -= 1;
        }
        let down = self.scale.abs_diff(common);
        self.positive.downscale(down)?;
        self.negative.downscale(down)?;
        self.positive.add(sides[0], scale.abs_diff(common))?;
        self.negative.add(sides[1], scale.abs_diff(common))?;
        self.scale = common;
        self.zero_count = plus(self.zero_count, zero_count)?;
        self.zero_threshold = self.zero_threshold.max(zero_threshold);
        Ok(())
    }

    /// Moves what lies below the zero threshold into the zero bucket. A populated bucket that
    /// straddles the threshold goes as well, and moves the threshold up to its bound.
    fn settle(&mut self) -> Result<()> {
        if self.zero_threshold <= 0.0 || self.zero_threshold.is_nan() {
            return Ok(());
        }
        // The bucket that holds the threshold; made sure of by its bounds, since a logarithm may be
        // off by one. No bucket has an index past 2^33.
        let index = (self.zero_threshold.log2() * f64::from(self.scale).exp2()).ceil() as i64;
        let mut index = index.clamp(-(1 << 40), 1 << 40) - 1;
        index += i64::from(exponent(index + 1, self.scale).exp2() < self.zero_threshold);
        index -= i64::from(exponent(index, self.scale).exp2() >= self.zero_threshold);
        let bound = exponent(index + 1, self.scale).exp2();
        let straddles = bound > self.zero_threshold;
        let populated = self.positive.at(index) > 0 || self.negative.at(index) > 0;
        if straddles && populated {
            self.zero_threshold = bound;
        }
        let last = if straddles && !populated { index - 1 } else { index };
        let below = plus(self.positive.take_up_to(last)?, self.negative.take_up_to(last)?)?;
        self.zero_count = plus(self.zero_count, below)?;
        Ok(())
    }

    /// What was counted since an earlier histogram of the same series; `None` when this one cannot
    /// be its continuation.
    fn minus(&self, earlier: &Self) -> Option<Self> {
        // A scale only ever goes down, and a threshold up, until a counter begins again.
        if self.scale > earlier.scale || self.zero_threshold < earlier.zero_threshold {
            return None;
        }
        let mut earlier = earlier.clone();
        let down = earlier.scale.abs_diff(self.scale);
        earlier.positive.downscale(down).ok()?;
        earlier.negative.downscale(down).ok()?;
        earlier.scale = self.scale;
        earlier.zero_threshold = self.zero_threshold;
        earlier.settle().ok()?;
        if earlier.zero_threshold > self.zero_threshold {
            return None;
        }
        Some(Self {
            scale: self.scale,
            zero_count: self.zero_count.checked_sub(earlier.zero_count)?,
            zero_threshold: self.zero_threshold,
            positive: self.positive.minus(&earlier.positive)?,
            negative: self.negative.minus(&earlier.negative)?,
        })
    }

    /// The value below which the share `q` of the observations lies.
    fn quantile(&self, q: f64) -> Option<f64> {
        let bound = |index: i64| exponent(index, self.scale);
        let populated = |side: &Side| -> Vec<(i64, u64)> {
            (side.offset..).zip(side.counts.iter().copied()).filter(|(_, count)| *count > 0).collect()
        };
        let (negative, positive) = (populated(&self.negative), populated(&self.positive));
        // With observations on one side only, those near zero are taken to be on that side, too.
        let lower = if negative.is_empty() && !positive.is_empty() { 0.0 } else { -self.zero_threshold };
        let upper = if positive.is_empty() && !negative.is_empty() { 0.0 } else { self.zero_threshold };
        let mut spans: Vec<Span> = Vec::with_capacity(negative.len() + positive.len() + 1);
        spans.extend(negative.iter().rev().map(|(index, count)| Span {
            count: *count,
            shape: Shape::Negative { far: bound(index + 1), near: bound(*index) },
        }));
        if self.zero_count > 0 {
            spans.push(Span { count: self.zero_count, shape: Shape::Linear { lower, upper } });
        }
        spans.extend(positive.iter().map(|(index, count)| Span {
            count: *count,
            shape: Shape::Positive { near: bound(*index), far: bound(index + 1) },
        }));
        // From the nearer end, as Prometheus does: a rank on a border between two buckets with empty
        // ones in between belongs to the one that is reached first.
        quantile_of(q, spans, q >= 0.5)
    }
}

impl Explicit {
    /// Adds buckets whose bounds may differ.
    fn add(&mut self, bounds: &[f64], counts: &[u64]) -> Result<()> {
        if self.bounds == bounds {
            for (own, other) in self.counts.iter_mut().zip(counts) {
                *own = plus(*own, *other)?;
            }
            return Ok(());
        }
        let shared = shared_bounds(&self.bounds, bounds);
        if shared.is_empty() {
            return Err(bad("these histograms have no bucket bound in common, so they cannot be merged")
                .hint("group by explicit_bounds, or by what tells the instrumentations apart"));
        }
        let mut merged = vec![0; shared.len() + 1];
        for (bounds, counts) in [(self.bounds.as_slice(), self.counts.as_slice()), (bounds, counts)] {
            let mut place = 0;
            for (index, count) in counts.iter().enumerate() {
                merged[place] = plus(merged[place], *count)?;
                place += usize::from(place < shared.len() && bounds.get(index) == Some(&shared[place]));
            }
        }
        *self = Self { bounds: shared, counts: merged };
        Ok(())
    }

    fn minus(&self, earlier: &Self) -> Option<Self> {
        if self.bounds != earlier.bounds {
            return None;
        }
        let pairs = self.counts.iter().zip(&earlier.counts);
        let counts = pairs.map(|(later, earlier)| later.checked_sub(*earlier)).collect::<Option<_>>()?;
        Some(Self { bounds: self.bounds.clone(), counts })
    }

    fn quantile(&self, q: f64) -> Option<f64> {
        let bound =
            |index: Option<usize>, open: f64| index.and_then(|index| self.bounds.get(index)).copied().unwrap_or(open);
        let spans = self.counts.iter().enumerate().filter(|(_, count)| **count > 0).map(|(index, count)| Span {
            count: *count,
            shape: Shape::Linear {
                lower: bound(index.checked_sub(1), f64::NEG_INFINITY),
                upper: bound(Some(index), f64::INFINITY),
            },
        });
        quantile_of(q, spans.collect(), false)
    }
}

/// The bounds that are in both of two ascending lists.
fn shared_bounds(mut a: &[f64], mut b: &[f64]) -> Vec<f64> {
    let mut shared = Vec::new();
    while let ([first_a, rest_a @ ..], [first_b, rest_b @ ..]) = (a, b) {
        if first_a == first_b {
            shared.push(*first_a);
        }
        // A bound that is no number, which ingest refuses, is passed over on both sides.
        (a, b) = (if first_b < first_a { a } else { rest_a }, if first_a < first_b { b } else { rest_b });
    }
    shared
}

/// The bucket counts of an explicit histogram. One that was sent without buckets has all its
/// observations in the one from -Inf to +Inf.
fn explicit_counts<'a>(bounds: &[f64], counts: &'a [u64], count: &'a u64) -> Result<&'a [u64]> {
    let counts = if bounds.is_empty() && counts.is_empty() { std::slice::from_ref(count) } else { counts };
    if counts.len() == bounds.len() + 1 {
        return Ok(counts);
    }
    Err(bad(format!(
        "a histogram of {} bounds has {} bucket counts: expected one more than bounds",
        bounds.len(),
        counts.len()
    )))
}

fn check_scale(scale: i32) -> Result<()> {
    if scale.unsigned_abs() <= SCALE_ABS_MAX.unsigned_abs() {
        return Ok(());
    }
    Err(bad(format!("a histogram of scale {scale} has no bounds that can be computed")))
}

/// A populated bucket.
#[derive(Clone, Copy, Debug)]
struct Span {
    count: u64,
    shape: Shape,
}

/// Where a bucket lies, and how observations are taken to be spread in it.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// Evenly. An infinite end has no place to interpolate to: see [`Shape::at`].
    Linear { lower: f64, upper: f64 },
    /// Evenly on a logarithmic scale; the ends are exponents of two.
    Positive { near: f64, far: f64 },
    /// The same, mirrored.
    Negative { far: f64, near: f64 },
}

impl Shape {
    /// The value at a fraction of the way from the lower to the upper end; `None` between -Inf and
    /// +Inf, which says nothing.
    fn at(self, fraction: f64) -> Option<f64> {
        // A coarse bucket reaches past all doubles; what was observed does not.
        let between = |from: f64, to: f64| {
            let (from, to) = (from.clamp(-1_074.0, 1_024.0), to.clamp(-1_074.0, 1_024.0));
            (from + (to - from) * fraction).exp2().min(f64::MAX)
        };
        Some(match self {
            Self::Linear { lower: f64::NEG_INFINITY, upper: f64::INFINITY } => return None,
            Self::Linear { lower, upper: f64::INFINITY } => lower,
            // The lowest bucket starts at zero where it can: most things measured are not negative.
            Self::Linear { lower: f64::NEG_INFINITY, upper } if upper <= 0.0 => upper,
            Self::Linear { lower: f64::NEG_INFINITY, upper } => upper * fraction,
            Self::Linear { lower, upper } => lower + (upper - lower) * fraction,
            Self::Positive { near, far } => between(near, far),
            Self::Negative { far, near } => -between(far, near),
        })
    }
}

/// The quantile of buckets in ascending order. `None` without observations, and for a `q` that is
/// not a number; -Inf and +Inf for one below 0 and above 1.
#[expect(clippy::cast_precision_loss, reason = "a rank past 2^53 is as good as its neighbour")]
fn quantile_of(q: f64, spans: Vec<Span>, from_above: bool) -> Option<f64> {
    if q.is_nan() || spans.is_empty() {
        return None;
    }
    if !(0.0..=1.0).contains(&q) {
        return Some(if q < 0.0 { f64::NEG_INFINITY } else { f64::INFINITY });
    }
    let total: f64 = spans.iter().map(|span| u128::from(span.count)).sum::<u128>() as f64;
    let rank = total * if from_above { 1.0 - q } else { q };
    let count = spans.len();
    let mut passed = 0_u128;
    for step in 0..count {
        let span = spans[if from_above { count - 1 - step } else { step }];
        let before = passed;
        passed += u128::from(span.count);
        // Rounding may leave the rank just past the last bucket.
        if passed as f64 >= rank || step + 1 == count {
            let fraction = ((rank - before as f64) / span.count as f64).clamp(0.0, 1.0);
            return span.shape.at(if from_above { 1.0 - fraction } else { fraction });
        }
    }
    None
}

impl Histogram {
    /// The histogram of a row.
    ///
    /// # Errors
    /// When its buckets contradict each other, which ingest refuses, too.
    pub(crate) fn of(view: &View<'_>) -> Result<Self> {
        let buckets = match view.buckets {
            BucketsView::Explicit { bounds, counts } => {
                let counts = explicit_counts(bounds, counts, &view.count)?.to_vec();
                Buckets::Explicit(Explicit { bounds: bounds.to_vec(), counts })
            }
            BucketsView::Exponential { scale, zero_count, zero_threshold, positive, negative } => {
                check_scale(scale)?;
                let mut buckets = Exponential { scale, ..Exponential::default() };
                buckets.add(scale, zero_count, zero_threshold, [positive, negative])?;
                Buckets::Exponential(buckets)
            }
        };
        Ok(Self { count: view.count, sum: view.sum, min: view.min, max: view.max, buckets })
    }

    /// The histogram as if it lay in columns.
    pub(crate) fn view(&self) -> View<'_> {
        let buckets = match &self.buckets {
            Buckets::Explicit(Explicit { bounds, counts }) => BucketsView::Explicit { bounds, counts },
            Buckets::Exponential(buckets) => BucketsView::Exponential {
                scale: buckets.scale,
                zero_count: buckets.zero_count,
                zero_threshold: buckets.zero_threshold,
                positive: buckets.positive.view(),
                negative: buckets.negative.view(),
            },
        };
        View { count: self.count, sum: self.sum, min: self.min, max: self.max, buckets }
    }

    /// Takes another histogram in. The result of several is complete after [`Histogram::settle`].
    ///
    /// # Errors
    /// When the two cannot be one: of different kinds, or explicit without a shared bound; and when
    /// a count does not fit 64 bits.
    pub(crate) fn add(&mut self, other: &View<'_>) -> Result<()> {
        match (&mut self.buckets, other.buckets) {
            (
                Buckets::Exponential(own),
                BucketsView::Exponential { scale, zero_count, zero_threshold, positive, negative },
            ) => {
                check_scale(scale)?;
                own.add(scale, zero_count, zero_threshold, [positive, negative])?;
            }
            (Buckets::Explicit(own), BucketsView::Explicit { bounds, counts }) => {
                own.add(bounds, explicit_counts(bounds, counts, &other.count)?)?;
            }
            _ => {
                return Err(bad("an explicit and an exponential histogram cannot be merged")
                    .hint("add WHERE metric_type = 'EXPONENTIAL_HISTOGRAM', or group by metric_type"));
            }
        }
        self.count = plus(self.count, other.count)?;
        self.sum = both(self.sum, other.sum, |a, b| a + b);
        self.min = both(self.min, other.min, f64::min);
        self.max = both(self.max, other.max, f64::max);
        Ok(())
    }

    /// Counts one more observation of an exponential histogram, whose bucket at a scale is known;
    /// `false`, and nothing counted, when that takes more than adding one.
    pub(crate) fn count_one(&mut self, value: f64, scale: i32, index: i64) -> bool {
        let Buckets::Exponential(buckets) = &mut self.buckets else { return false };
        let (Ok(by), Some(count)) = (u32::try_from(scale - buckets.scale), self.count.checked_add(1)) else {
            return false;
        };
        let side = if value < 0.0 { &mut buckets.negative } else { &mut buckets.positive };
        if !side.count_one(scaled(index, by)) {
            return false;
        }
        self.count = count;
        self.min = self.min.map(|min| min.min(value));
        self.max = self.max.map(|max| max.max(value));
        true
    }

    /// Completes a merge: what lies below the zero threshold joins the zero bucket.
    pub(crate) fn settle(&mut self) -> Result<()> {
        match &mut self.buckets {
            Buckets::Exponential(buckets) => buckets.settle(),
            Buckets::Explicit(_) => Ok(()),
        }
    }

    /// The value below which the share `q` of the observations lies; `None` without observations or
    /// without bounds.
    pub(crate) fn quantile(&self, q: f64) -> Option<f64> {
        match &self.buckets {
            Buckets::Explicit(buckets) => buckets.quantile(q),
            Buckets::Exponential(buckets) => buckets.quantile(q),
        }
    }

    /// What was counted since an earlier histogram of the same series; `None` when the counter began
    /// again in between.
    fn minus(&self, earlier: &Self) -> Option<Self> {
        let buckets = match (&self.buckets, &earlier.buckets) {
            (Buckets::Explicit(later), Buckets::Explicit(earlier)) => Buckets::Explicit(later.minus(earlier)?),
            (Buckets::Exponential(later), Buckets::Exponential(earlier)) => Buckets::Exponential(later.minus(earlier)?),
            _ => return None,
        };
        Some(Self {
            count: self.count.checked_sub(earlier.count)?,
            sum: both(self.sum, earlier.sum, |later, earlier| later - earlier),
            // The extremes of a time in between cannot be told from those of two times since the start.
            min: None,
            max: None,
            buckets,
        })
    }

    /// What the histogram holds on the heap, bytes.
    pub(crate) fn heap_bytes(&self) -> usize {
        let words = match &self.buckets {
            Buckets::Explicit(explicit) => explicit.bounds.capacity() + explicit.counts.capacity(),
            Buckets::Exponential(buckets) => buckets.positive.counts.capacity() + buckets.negative.counts.capacity(),
        };
        words * size_of::<u64>()
    }
}

/// What a cumulative series gained between its first and its last histogram. Samples may come in any
/// order; those of one time count once, as the largest. `None` with fewer than two times.
///
/// # Errors
/// As [`Histogram::add`], when a restart changed the buckets to ones that cannot be merged.
pub(crate) fn increase(samples: &mut [(i64, Histogram)]) -> Result<Option<Histogram>> {
    samples.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.count.cmp(&b.1.count)));
    let mut distinct = samples.chunk_by(|a, b| a.0 == b.0).filter_map(|same_time| same_time.last());
    let Some((_, first)) = distinct.next() else { return Ok(None) };
    let mut last = first;
    let mut gained: Option<Histogram> = None;
    for (_, next) in distinct {
        // After a restart everything has been counted since.
        let mut step = next.minus(last).unwrap_or_else(|| next.clone());
        (step.min, step.max) = (None, None);
        match &mut gained {
            None => gained = Some(step),
            Some(gained) => gained.add(&step.view())?,
        }
        last = next;
    }
    if let Some(gained) = &mut gained {
        gained.settle()?;
    }
    Ok(gained)
}
