//! From stored columns back to OTLP: the inverse of [`crate::decode`].
//!
//! It proves that nothing is lost on the way in (OTLP → store → OTLP is the identity), and it is
//! what forwards or exports stored telemetry. Not on the hot path, so it builds prost messages.
//!
//! What "identity" means: the same multiset of items, each with its resource, scope and schema
//! URLs. Rows are sorted in storage, so the grouping of a request is not kept; nor are envelopes
//! without items, or the difference between an absent and an empty `resource`, `scope` or
//! `status`, to which OTLP gives no meaning.

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, DictionaryArray, FixedSizeBinaryArray, ListArray,
    PrimitiveArray, RecordBatch, StringArray, StructArray,
};
use arrow::datatypes::{
    ArrowPrimitiveType, Float64Type, Int32Type, Int64Type, TimestampNanosecondType, UInt32Type, UInt64Type,
};
use model::attributes::{AttributesView, Kind};
use model::context::Context;
use model::value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{
    Exemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint, Metric,
    NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint, exemplar,
    exponential_histogram_data_point::Buckets, metric, number_data_point, summary_data_point::ValueAtQuantile,
};
use opentelemetry_proto::tonic::profiles::v1development::ProfilesData;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message as _;

use crate::decode::{SPAN_KINDS, STATUS_CODES, TEMPORALITIES, enum_value};

/// The named columns of a batch or struct. Stored schemas are fixed, so a missing column is a bug.
#[derive(Clone, Copy)]
struct Columns<'a>(&'a StructArray);

impl<'a> Columns<'a> {
    fn column(&self, name: &str) -> &'a ArrayRef {
        self.0.column_by_name(name).expect("the schema has the column")
    }

    fn number<T: ArrowPrimitiveType>(&self, name: &str, row: usize) -> Option<T::Native> {
        let array: &PrimitiveArray<T> = self.column(name).as_primitive();
        array.is_valid(row).then(|| array.value(row))
    }

    fn u32(&self, name: &str, row: usize) -> u32 {
        self.number::<UInt32Type>(name, row).unwrap_or_default()
    }

    fn u64(&self, name: &str, row: usize) -> u64 {
        self.number::<UInt64Type>(name, row).unwrap_or_default()
    }

    fn nanos(&self, name: &str, row: usize) -> u64 {
        self.number::<TimestampNanosecondType>(name, row).unwrap_or_default().cast_unsigned()
    }

    fn id(&self, name: &str, row: usize) -> Vec<u8> {
        let array: &FixedSizeBinaryArray = self.column(name).as_fixed_size_binary();
        if array.is_valid(row) { array.value(row).to_vec() } else { Vec::new() }
    }

    fn text(&self, name: &str, row: usize) -> Option<&'a str> {
        let array = self.column(name);
        if array.is_null(row) {
            return None;
        }
        match array.as_any().downcast_ref::<StringArray>() {
            Some(text) => Some(text.value(row)),
            None => {
                let dictionary: &DictionaryArray<Int32Type> = array.as_dictionary();
                let values: &StringArray = dictionary.values().as_string();
                Some(values.value(dictionary.keys().value(row).unsigned_abs() as usize))
            }
        }
    }

    fn string(&self, name: &str, row: usize) -> String {
        self.text(name, row).unwrap_or_default().to_owned()
    }

    fn bytes(&self, name: &str, row: usize) -> Option<&'a [u8]> {
        let array = self.column(name);
        if array.is_null(row) {
            return None;
        }
        match array.as_any().downcast_ref::<BinaryArray>() {
            Some(bytes) => Some(bytes.value(row)),
            None => {
                let dictionary: &DictionaryArray<Int32Type> = array.as_dictionary();
                let values: &BinaryArray = dictionary.values().as_binary();
                Some(values.value(dictionary.keys().value(row).unsigned_abs() as usize))
            }
        }
    }

    fn numbers<T: ArrowPrimitiveType>(&self, name: &str, row: usize) -> Vec<T::Native> {
        let list: &ListArray = self.column(name).as_list();
        list.value(row).as_primitive::<T>().values().to_vec()
    }

    fn structs(&self, name: &str, row: usize) -> StructArray {
        let list: &ListArray = self.column(name).as_list();
        list.value(row).as_struct().clone()
    }
}

fn value_of(kind: Kind, value: Value<'_>) -> Option<AnyValue> {
    let value = match value {
        Value::Empty => return (kind == Kind::Empty).then(AnyValue::default),
        Value::String(text) => any_value::Value::StringValue(text.to_owned()),
        Value::Bool(value) => any_value::Value::BoolValue(value),
        Value::Int(value) => any_value::Value::IntValue(value),
        Value::Double(value) => any_value::Value::DoubleValue(value),
        Value::Bytes(bytes) => any_value::Value::BytesValue(bytes.to_vec()),
        Value::Array(any_value) | Value::KvList(any_value) => return AnyValue::decode(any_value).ok(),
    };
    Some(AnyValue { value: Some(value) })
}

fn attributes(view: &AttributesView<'_>, row: usize) -> Vec<KeyValue> {
    view.row(row)
        .map(|(key, kind, value)| KeyValue { key: key.to_owned(), value: value_of(kind, value), key_strindex: 0 })
        .collect()
}

fn attributes_of(columns: &Columns<'_>, row: usize) -> Vec<KeyValue> {
    attributes(&AttributesView::new(columns.column("attributes")).expect("the column has the attributes type"), row)
}

fn resource(bytes: &[u8]) -> (Option<Resource>, String) {
    let context = Context::parse(bytes).expect("stored contexts are well formed");
    (Resource::decode(context.message).ok(), context.schema_url.to_owned())
}

fn scope(bytes: &[u8]) -> (Option<InstrumentationScope>, String) {
    let context = Context::parse(bytes).expect("stored contexts are well formed");
    (InstrumentationScope::decode(context.message).ok(), context.schema_url.to_owned())
}

/// Spans of a `spans` batch, in row order, each in envelopes of its own; consecutive rows of one
/// resource and scope share them.
#[must_use]
pub fn spans(batch: &RecordBatch) -> Vec<ResourceSpans> {
    let rows = StructArray::from(batch.clone());
    let columns = Columns(&rows);
    let mut out: Vec<ResourceSpans> = Vec::new();
    for_each_row(batch, &columns, |row, same_resource, same_scope| {
        if !same_resource {
            let (resource, schema_url) = resource(columns.bytes("resource", row).unwrap_or_default());
            out.push(ResourceSpans { resource, scope_spans: Vec::new(), schema_url });
        }
        let resource = out.last_mut().expect("the first row opens a resource");
        if !same_scope {
            let (scope, schema_url) = scope(columns.bytes("scope", row).unwrap_or_default());
            resource.scope_spans.push(ScopeSpans { scope, spans: Vec::new(), schema_url });
        }
        resource.scope_spans.last_mut().expect("the first row opens a scope").spans.push(span(&columns, row));
    });
    out
}

fn span(columns: &Columns<'_>, row: usize) -> Span {
    let start = columns.nanos("start_time", row);
    let events = columns.structs("events", row);
    let event_columns = Columns(&events);
    let links = columns.structs("links", row);
    let link_columns = Columns(&links);
    Span {
        trace_id: columns.id("trace_id", row),
        span_id: columns.id("span_id", row),
        trace_state: columns.string("trace_state", row),
        parent_span_id: columns.id("parent_span_id", row),
        flags: columns.u32("flags", row),
        name: columns.string("name", row),
        kind: enum_value(&SPAN_KINDS, columns.text("kind", row).unwrap_or_default()),
        start_time_unix_nano: start,
        end_time_unix_nano: columns
            .number::<Int64Type>("duration_ns", row)
            .map_or(0, |duration| start.wrapping_add_signed(duration)),
        attributes: attributes_of(columns, row),
        dropped_attributes_count: columns.u32("dropped_attributes_count", row),
        events: (0..events.len())
            .map(|row| Event {
                time_unix_nano: event_columns.nanos("time", row),
                name: event_columns.string("name", row),
                attributes: attributes_of(&event_columns, row),
                dropped_attributes_count: event_columns.u32("dropped_attributes_count", row),
            })
            .collect(),
        dropped_events_count: columns.u32("dropped_events_count", row),
        links: (0..links.len())
            .map(|row| Link {
                trace_id: link_columns.id("trace_id", row),
                span_id: link_columns.id("span_id", row),
                trace_state: link_columns.string("trace_state", row),
                attributes: attributes_of(&link_columns, row),
                dropped_attributes_count: link_columns.u32("dropped_attributes_count", row),
                flags: link_columns.u32("flags", row),
            })
            .collect(),
        dropped_links_count: columns.u32("dropped_links_count", row),
        status: Some(Status {
            message: columns.string("status_message", row),
            code: enum_value(&STATUS_CODES, columns.text("status_code", row).unwrap_or_default()),
        }),
    }
}

/// Log records of a `logs` batch, in row order.
#[must_use]
pub fn logs(batch: &RecordBatch) -> Vec<ResourceLogs> {
    let rows = StructArray::from(batch.clone());
    let columns = Columns(&rows);
    let mut out: Vec<ResourceLogs> = Vec::new();
    for_each_row(batch, &columns, |row, same_resource, same_scope| {
        if !same_resource {
            let (resource, schema_url) = resource(columns.bytes("resource", row).unwrap_or_default());
            out.push(ResourceLogs { resource, scope_logs: Vec::new(), schema_url });
        }
        let resource = out.last_mut().expect("the first row opens a resource");
        if !same_scope {
            let (scope, schema_url) = scope(columns.bytes("scope", row).unwrap_or_default());
            resource.scope_logs.push(ScopeLogs { scope, log_records: Vec::new(), schema_url });
        }
        let scope = resource.scope_logs.last_mut().expect("the first row opens a scope");
        scope.log_records.push(log_record(&columns, row));
    });
    out
}

fn log_record(columns: &Columns<'_>, row: usize) -> LogRecord {
    let inferred: &BooleanArray = columns.column("time_inferred").as_boolean();
    let text =
        columns.text("body", row).map(|text| AnyValue { value: Some(any_value::Value::StringValue(text.to_owned())) });
    LogRecord {
        time_unix_nano: if inferred.value(row) { 0 } else { columns.nanos("time", row) },
        observed_time_unix_nano: columns.nanos("observed_time", row),
        severity_number: columns.number::<Int32Type>("severity_number", row).unwrap_or_default(),
        severity_text: columns.string("severity_text", row),
        body: match columns.bytes("body_value", row) {
            Some(any_value) => AnyValue::decode(any_value).ok(),
            None => text,
        },
        attributes: attributes_of(columns, row),
        dropped_attributes_count: columns.u32("dropped_attributes_count", row),
        flags: columns.u32("flags", row),
        trace_id: columns.id("trace_id", row),
        span_id: columns.id("span_id", row),
        event_name: columns.string("event_name", row),
    }
}

/// Metrics of a `metric_points` or `metric_histograms` batch, one metric per row.
#[must_use]
pub fn metrics(batch: &RecordBatch) -> Vec<ResourceMetrics> {
    let rows = StructArray::from(batch.clone());
    let columns = Columns(&rows);
    let mut out: Vec<ResourceMetrics> = Vec::new();
    for_each_row(batch, &columns, |row, same_resource, same_scope| {
        if !same_resource {
            let (resource, schema_url) = resource(columns.bytes("resource", row).unwrap_or_default());
            out.push(ResourceMetrics { resource, scope_metrics: Vec::new(), schema_url });
        }
        let resource = out.last_mut().expect("the first row opens a resource");
        if !same_scope {
            let (scope, schema_url) = scope(columns.bytes("scope", row).unwrap_or_default());
            resource.scope_metrics.push(ScopeMetrics { scope, metrics: Vec::new(), schema_url });
        }
        resource.scope_metrics.last_mut().expect("the first row opens a scope").metrics.push(one_metric(&columns, row));
    });
    out
}

fn one_metric(columns: &Columns<'_>, row: usize) -> Metric {
    let aggregation_temporality = enum_value(&TEMPORALITIES, columns.text("temporality", row).unwrap_or_default());
    let metadata = columns.bytes("metric_metadata", row).and_then(Context::parse).map_or(&[][..], |it| it.message);
    let metadata = Metric::decode(metadata).map(|metric| metric.metadata).unwrap_or_default();
    let data = match columns.text("metric_type", row).unwrap_or_default() {
        "GAUGE" => metric::Data::Gauge(Gauge { data_points: vec![number_point(columns, row)] }),
        "SUM" => metric::Data::Sum(Sum {
            data_points: vec![number_point(columns, row)],
            aggregation_temporality,
            is_monotonic: columns.column("is_monotonic").as_boolean().value(row),
        }),
        "HISTOGRAM" => metric::Data::Histogram(Histogram {
            data_points: vec![histogram_point(columns, row)],
            aggregation_temporality,
        }),
        "EXPONENTIAL_HISTOGRAM" => metric::Data::ExponentialHistogram(ExponentialHistogram {
            data_points: vec![exponential_point(columns, row)],
            aggregation_temporality,
        }),
        _ => metric::Data::Summary(Summary { data_points: vec![summary_point(columns, row)] }),
    };
    Metric {
        name: columns.string("metric_name", row),
        description: columns.string("metric_description", row),
        unit: columns.string("metric_unit", row),
        metadata,
        data: Some(data),
    }
}

fn number_point(columns: &Columns<'_>, row: usize) -> NumberDataPoint {
    let double = columns.number::<Float64Type>("value_double", row).map(number_data_point::Value::AsDouble);
    let int = columns.number::<Int64Type>("value_int", row).map(number_data_point::Value::AsInt);
    NumberDataPoint {
        attributes: attributes_of(columns, row),
        start_time_unix_nano: columns.nanos("start_time", row),
        time_unix_nano: columns.nanos("time", row),
        exemplars: exemplars(columns, row),
        flags: columns.u32("flags", row),
        value: double.or(int),
    }
}

fn histogram_point(columns: &Columns<'_>, row: usize) -> HistogramDataPoint {
    HistogramDataPoint {
        attributes: attributes_of(columns, row),
        start_time_unix_nano: columns.nanos("start_time", row),
        time_unix_nano: columns.nanos("time", row),
        count: columns.u64("count", row),
        sum: columns.number::<Float64Type>("sum", row),
        bucket_counts: columns.numbers::<UInt64Type>("bucket_counts", row),
        explicit_bounds: columns.numbers::<Float64Type>("explicit_bounds", row),
        exemplars: exemplars(columns, row),
        flags: columns.u32("flags", row),
        min: columns.number::<Float64Type>("min", row),
        max: columns.number::<Float64Type>("max", row),
    }
}

fn exponential_point(columns: &Columns<'_>, row: usize) -> ExponentialHistogramDataPoint {
    let buckets = |name: &str| {
        let side = columns.column(name).as_struct();
        side.is_valid(row).then(|| {
            let side = Columns(side);
            Buckets {
                offset: side.number::<Int32Type>("offset", row).unwrap_or_default(),
                bucket_counts: side.numbers::<UInt64Type>("bucket_counts", row),
            }
        })
    };
    ExponentialHistogramDataPoint {
        attributes: attributes_of(columns, row),
        start_time_unix_nano: columns.nanos("start_time", row),
        time_unix_nano: columns.nanos("time", row),
        count: columns.u64("count", row),
        sum: columns.number::<Float64Type>("sum", row),
        scale: columns.number::<Int32Type>("scale", row).unwrap_or_default(),
        zero_count: columns.u64("zero_count", row),
        positive: buckets("positive"),
        negative: buckets("negative"),
        flags: columns.u32("flags", row),
        exemplars: exemplars(columns, row),
        min: columns.number::<Float64Type>("min", row),
        max: columns.number::<Float64Type>("max", row),
        zero_threshold: columns.number::<Float64Type>("zero_threshold", row).unwrap_or_default(),
    }
}

fn summary_point(columns: &Columns<'_>, row: usize) -> SummaryDataPoint {
    let quantiles = columns.structs("quantile_values", row);
    let quantile = quantiles.column(0).as_primitive::<Float64Type>();
    let value = quantiles.column(1).as_primitive::<Float64Type>();
    SummaryDataPoint {
        attributes: attributes_of(columns, row),
        start_time_unix_nano: columns.nanos("start_time", row),
        time_unix_nano: columns.nanos("time", row),
        count: columns.u64("count", row),
        sum: columns.number::<Float64Type>("sum", row).unwrap_or_default(),
        quantile_values: (0..quantiles.len())
            .map(|row| ValueAtQuantile { quantile: quantile.value(row), value: value.value(row) })
            .collect(),
        flags: columns.u32("flags", row),
    }
}

fn exemplars(columns: &Columns<'_>, row: usize) -> Vec<Exemplar> {
    let exemplars = columns.structs("exemplars", row);
    let columns = Columns(&exemplars);
    (0..exemplars.len())
        .map(|row| {
            let double = columns.number::<Float64Type>("value_double", row).map(exemplar::Value::AsDouble);
            let int = columns.number::<Int64Type>("value_int", row).map(exemplar::Value::AsInt);
            Exemplar {
                filtered_attributes: attributes_of(&columns, row),
                time_unix_nano: columns.nanos("time", row),
                span_id: columns.id("span_id", row),
                trace_id: columns.id("trace_id", row),
                value: double.or(int),
            }
        })
        .collect()
}

/// The profiles of a `profiles` batch: each as the self-contained message its first row carries.
#[must_use]
pub fn profiles(batch: &RecordBatch) -> Vec<ProfilesData> {
    let rows = StructArray::from(batch.clone());
    let columns = Columns(&rows);
    (0..batch.num_rows())
        .filter_map(|row| columns.bytes("otlp", row))
        .filter_map(|message| ProfilesData::decode(message).ok())
        .collect()
}

/// Calls `each(row, same resource as the row before, same resource and scope)`.
fn for_each_row(batch: &RecordBatch, columns: &Columns<'_>, mut each: impl FnMut(usize, bool, bool)) {
    let mut before: Option<(&[u8], &[u8])> = None;
    for row in 0..batch.num_rows() {
        let now = (columns.bytes("resource", row).unwrap_or_default(), columns.bytes("scope", row).unwrap_or_default());
        let same_resource = before.is_some_and(|before| before.0 == now.0);
        let same_scope = before == Some(now);
        each(row, same_resource, same_scope);
        before = Some(now);
    }
}
