//! Batches for tests and benchmarks, of the columns that SLIs read.
//!
//! Not a decoder: rows are what a test says they are.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, DictionaryArray, FixedSizeBinaryArray, Float64Array, Int64Array, ListArray, RecordBatch,
    StringArray, TimestampNanosecondArray, UInt64Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Int32Type};
use model::attributes::AttributesColumn;
use model::value::Value;

/// A span.
#[derive(Clone, Debug)]
pub struct Span {
    /// When it started, nanoseconds.
    pub time: i64,
    /// Its service.
    pub service: String,
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: &'static str,
    /// Its status.
    pub status: &'static str,
    /// How long it took.
    pub duration_ns: Option<i64>,
    /// Its attributes.
    pub attributes: Vec<(String, Attribute)>,
}

/// An attribute's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// Text.
    Text(String),
    /// An integer.
    Int(i64),
    /// A double.
    Double(f64),
    /// True or false.
    Bool(bool),
}

fn dictionary<'a>(values: impl Iterator<Item = Option<&'a str>>) -> ArrayRef {
    Arc::new(values.collect::<DictionaryArray<Int32Type>>())
}

fn times(values: impl Iterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(TimestampNanosecondArray::from(values.collect::<Vec<_>>()).with_timezone("UTC"))
}

/// Each span is a trace of its own, named by its time and its place.
fn trace_ids(rows: &[Span]) -> ArrayRef {
    let id = |(place, row): (usize, &Span)| {
        let high = row.time.cast_unsigned().to_be_bytes();
        let low = u64::try_from(place).expect("there are few").to_be_bytes();
        Some([high, low].concat())
    };
    let ids = FixedSizeBinaryArray::try_from_sparse_iter_with_size(rows.iter().enumerate().map(id), 16);
    Arc::new(ids.expect("every id has 16 bytes"))
}

/// A batch of spans.
#[must_use]
pub fn spans(rows: &[Span]) -> RecordBatch {
    let mut attributes = AttributesColumn::default();
    for row in rows {
        for (key, value) in &row.attributes {
            let value = match value {
                Attribute::Text(text) => Value::String(text),
                Attribute::Int(value) => Value::Int(*value),
                Attribute::Double(value) => Value::Double(*value),
                Attribute::Bool(value) => Value::Bool(*value),
            };
            attributes.push(key, Some(value)).expect("there are few");
        }
        attributes.end_row();
    }
    attributes.check_text().expect("it is text");
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("service_name", dictionary(rows.iter().map(|row| Some(row.service.as_str())))),
        ("name", dictionary(rows.iter().map(|row| Some(row.name.as_str())))),
        ("kind", dictionary(rows.iter().map(|row| Some(row.kind)))),
        ("start_time", times(rows.iter().map(|row| Some(row.time)))),
        ("duration_ns", Arc::new(rows.iter().map(|row| row.duration_ns).collect::<Int64Array>())),
        ("status_code", dictionary(rows.iter().map(|row| Some(row.status)))),
        ("status_message", Arc::new(rows.iter().map(|_| Some("")).collect::<StringArray>())),
        ("attributes", attributes.finish()),
        ("trace_id", trace_ids(rows)),
    ];
    RecordBatch::try_from_iter(columns).expect("every column has every row")
}

/// A metric point.
#[derive(Clone, Debug)]
pub struct Point {
    /// Its metric.
    pub metric: &'static str,
    /// Its series.
    pub series: u64,
    /// When its series began, nanoseconds.
    pub start: Option<i64>,
    /// Its time, nanoseconds.
    pub time: i64,
    /// `DELTA`, `CUMULATIVE` or none.
    pub temporality: Option<&'static str>,
    /// Its number.
    pub value: Attribute,
    /// Of a histogram: the ends of its buckets and their counts.
    pub buckets: (Vec<f64>, Vec<u64>),
}

fn lists<T, A>(rows: impl Iterator<Item = Vec<T>>) -> ArrayRef
where
    A: From<Vec<T>> + arrow::array::Array + 'static,
{
    let rows: Vec<Vec<T>> = rows.collect();
    let offsets = OffsetBuffer::from_lengths(rows.iter().map(Vec::len));
    let items: Vec<T> = rows.into_iter().flatten().collect();
    let items: ArrayRef = Arc::new(A::from(items));
    let field: DataType = items.data_type().clone();
    Arc::new(ListArray::new(Arc::new(Field::new("item", field, false)), offsets, items, None))
}

/// A batch of metric points; of histograms when their counts are asked for.
#[must_use]
pub fn points(rows: &[Point]) -> RecordBatch {
    let ids = FixedSizeBinaryArray::try_from_iter(rows.iter().map(|row| row.series.to_le_bytes()));
    let int = |row: &Point| if let Attribute::Int(value) = row.value { Some(value) } else { None };
    let double = |row: &Point| if let Attribute::Double(value) = row.value { Some(value) } else { None };
    let counts = rows.iter().map(|row| row.buckets.1.iter().sum::<u64>());
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("metric_name", dictionary(rows.iter().map(|row| Some(row.metric)))),
        ("series_id", Arc::new(ids.expect("there is a row"))),
        ("temporality", dictionary(rows.iter().map(|row| row.temporality))),
        ("start_time", times(rows.iter().map(|row| row.start))),
        ("time", times(rows.iter().map(|row| Some(row.time)))),
        ("is_monotonic", Arc::new(rows.iter().map(|row| row.temporality.map(|_| true)).collect::<BooleanArray>())),
        ("value_int", Arc::new(rows.iter().map(int).collect::<Int64Array>())),
        ("value_double", Arc::new(rows.iter().map(double).collect::<Float64Array>())),
        ("count", Arc::new(counts.collect::<UInt64Array>())),
        ("explicit_bounds", lists::<f64, Float64Array>(rows.iter().map(|row| row.buckets.0.clone()))),
        ("bucket_counts", lists::<u64, UInt64Array>(rows.iter().map(|row| row.buckets.1.clone()))),
    ];
    RecordBatch::try_from_iter(columns).expect("every column has every row")
}

/// SLO documents for so many SLOs: each service has ten, over its errors and latencies by route.
#[must_use]
pub fn documents(slos: usize) -> String {
    let mut out = String::new();
    for number in 0..slos {
        let (service, which) = (number / 10, number % 10);
        let good = match which {
            0 => "where: \"status_code <> 'ERROR'\"".to_owned(),
            1 => "latency: 300ms".to_owned(),
            2 => "latency: 1s".to_owned(),
            _ => format!("where: \"attributes['http.response.status_code'] < 500 or name = 'GET /r{which}'\""),
        };
        let total = if which < 3 {
            "kind = 'SERVER'".to_owned()
        } else {
            format!("kind = 'SERVER' and attributes['http.route'] = '/r{which}'")
        };
        out.push_str(&format!(
            "---
apiVersion: openslo/v1
kind: SLO
metadata: {{name: slo-{number}}}
spec:
  service: service-{service}
  indicator:
    metadata: {{name: sli-{number}}}
    spec:
      ratioMetric:
        good: {{metricSource: {{type: godseye, spec: {{table: spans, {good}}}}}}}
        total: {{metricSource: {{type: godseye, spec: {{table: spans, service: service-{service}, where: \"{total}\"}}}}}}
  timeWindow: [{{duration: 30d, isRolling: true}}]
  budgetingMethod: Occurrences
  objectives: [{{target: 0.999}}]
"
        ));
    }
    out
}
