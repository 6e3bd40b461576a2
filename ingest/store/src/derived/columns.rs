//! The measures of a partial row while it is counted, and how they become Arrow columns.
//!
//! Not here: which measures a table has ([`model::derived`]), and adding up rows that are Arrow
//! already ([`super::rows`]).

use std::sync::Arc;

use arrow::array::{
    ArrayRef, FixedSizeBinaryArray, FixedSizeBinaryBuilder, Int16Array, Int32Array, Int64Array, ListArray,
    TimestampNanosecondArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field};
use model::derived::{BUCKET_NS, RESOLUTIONS_S};

/// A sparse histogram: counts by bucket, ascending. A count may be negative while it takes back.
#[derive(Debug, Default)]
pub(super) struct Cells(Vec<(i16, i64)>);

impl Cells {
    #[inline]
    pub(super) fn add(&mut self, bucket: i16, count: i64) {
        match self.0.binary_search_by_key(&bucket, |cell| cell.0) {
            Ok(place) => self.0[place].1 += count,
            Err(place) => self.0.insert(place, (bucket, count)),
        }
    }
}

/// The trace of the greatest number, the least such trace when several have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Exemplar(Option<(i64, [u8; 16])>);

impl Exemplar {
    #[inline]
    pub(super) fn offer(&mut self, number: i64, trace: impl FnOnce() -> [u8; 16]) {
        match &mut self.0 {
            Some((greatest, _)) if number < *greatest => {}
            Some((greatest, known)) if number == *greatest => *known = trace().min(*known),
            other => *other = Some((number, trace())),
        }
    }
}

/// `resolution` and `time` of rows of the finest resolution.
pub(super) fn key_columns(buckets: impl ExactSizeIterator<Item = i32>) -> (ArrayRef, ArrayRef) {
    let resolution = Int32Array::from_value(RESOLUTIONS_S[0], buckets.len());
    let time: TimestampNanosecondArray =
        buckets.map(|bucket| Some(i64::from(bucket).saturating_mul(BUCKET_NS))).collect();
    (Arc::new(resolution), Arc::new(time.with_timezone("UTC")))
}

pub(super) fn numbers(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

pub(super) fn optional_numbers(values: impl Iterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(values.collect::<Int64Array>())
}

/// Histograms as a column of buckets and one of counts. Buckets that came to zero are left out.
pub(super) fn histograms<'a>(rows: impl Iterator<Item = &'a Cells>) -> (ArrayRef, ArrayRef) {
    let mut lists = HistogramColumns::default();
    for cells in rows {
        cells.0.iter().for_each(|(bucket, count)| lists.push(*bucket, *count));
        lists.end_row();
    }
    lists.finish()
}

/// Builds the two columns of a histogram.
#[derive(Default)]
pub(super) struct HistogramColumns {
    buckets: Vec<i16>,
    counts: Vec<i64>,
    lengths: Vec<usize>,
    ended: usize,
}

impl HistogramColumns {
    /// Adds a bucket to the row, after those before it; one whose count is zero is left out.
    #[inline]
    pub(super) fn push(&mut self, bucket: i16, count: i64) {
        if count != 0 {
            self.buckets.push(bucket);
            self.counts.push(count);
        }
    }

    pub(super) fn end_row(&mut self) {
        self.lengths.push(self.buckets.len() - self.ended);
        self.ended = self.buckets.len();
    }

    pub(super) fn finish(self) -> (ArrayRef, ArrayRef) {
        let ends = OffsetBuffer::from_lengths(self.lengths);
        let item = |data_type| Arc::new(Field::new("item", data_type, false));
        let (buckets, counts) = (Arc::new(Int16Array::from(self.buckets)), Arc::new(Int64Array::from(self.counts)));
        (
            Arc::new(ListArray::new(item(DataType::Int16), ends.clone(), buckets, None)),
            Arc::new(ListArray::new(item(DataType::Int64), ends, counts, None)),
        )
    }
}

/// Exemplars as a column of their numbers and one of their traces.
pub(super) fn exemplars<'a>(rows: impl Iterator<Item = &'a Exemplar> + Clone) -> (ArrayRef, ArrayRef) {
    let greatest = optional_numbers(rows.clone().map(|row| row.0.map(|(greatest, _)| greatest)));
    (greatest, trace_ids(rows.map(|row| row.0.as_ref().map(|(_, trace)| &trace[..]))))
}

pub(super) fn trace_ids<'a>(ids: impl Iterator<Item = Option<&'a [u8]>>) -> ArrayRef {
    let mut builder = FixedSizeBinaryBuilder::with_capacity(ids.size_hint().0, 16);
    for id in ids {
        match id {
            // Whatever is no trace id is none.
            Some(id) if builder.append_value(id).is_ok() => {}
            _ => builder.append_null(),
        }
    }
    let ids: FixedSizeBinaryArray = builder.finish();
    Arc::new(ids)
}
