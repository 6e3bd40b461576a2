//! The physical Arrow schema of every table: what the decoder builds, the WAL carries and a
//! segment holds.
//!
//! Not here: what SQL shows (views with `end_time`, `scope_name`, `value` and the like); that is
//! the query crate's. A column is added at the end and raises [`FORMAT_VERSION`]; none is changed
//! or removed, so that every released version stays readable (I12).
//!
//! Times are `Timestamp(ns, UTC)`. Ids are `FixedSizeBinary`. Open enums are dictionary-encoded
//! text: the names of the specification, or the number as text when it has no name yet.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};

use crate::attributes::attributes_type;
use crate::context::context_type;
use crate::signal::Table;

/// The version of these schemas; stored with every WAL record and segment.
pub const FORMAT_VERSION: u32 = 1;

/// `Timestamp(ns, UTC)`.
#[must_use]
pub fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()))
}

/// Dictionary-encoded text.
#[must_use]
pub fn text_dictionary_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

fn required(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, false)
}

fn optional(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, true)
}

fn list_of(item: DataType) -> DataType {
    DataType::List(Arc::new(required("item", item)))
}

/// The item type of `spans.events`.
#[must_use]
pub fn event_fields() -> Fields {
    Fields::from(vec![
        required("time", time_type()),
        required("name", text_dictionary_type()),
        required("attributes", attributes_type()),
        required("dropped_attributes_count", DataType::UInt32),
    ])
}

/// The item type of `spans.links`.
#[must_use]
pub fn link_fields() -> Fields {
    Fields::from(vec![
        optional("trace_id", DataType::FixedSizeBinary(16)),
        optional("span_id", DataType::FixedSizeBinary(8)),
        required("trace_state", DataType::Utf8),
        required("attributes", attributes_type()),
        required("dropped_attributes_count", DataType::UInt32),
        required("flags", DataType::UInt32),
    ])
}

/// The item type of `exemplars`.
#[must_use]
pub fn exemplar_fields() -> Fields {
    Fields::from(vec![
        required("time", time_type()),
        optional("value_double", DataType::Float64),
        optional("value_int", DataType::Int64),
        optional("trace_id", DataType::FixedSizeBinary(16)),
        optional("span_id", DataType::FixedSizeBinary(8)),
        required("attributes", attributes_type()),
    ])
}

/// The type of an exponential histogram's `positive` and `negative` buckets.
#[must_use]
pub fn bucket_fields() -> Fields {
    Fields::from(vec![required("offset", DataType::Int32), required("bucket_counts", list_of(DataType::UInt64))])
}

/// The item type of `quantile_values`.
#[must_use]
pub fn quantile_fields() -> Fields {
    Fields::from(vec![required("quantile", DataType::Float64), required("value", DataType::Float64)])
}

fn spans() -> Vec<Field> {
    vec![
        required("trace_id", DataType::FixedSizeBinary(16)),
        required("span_id", DataType::FixedSizeBinary(8)),
        optional("parent_span_id", DataType::FixedSizeBinary(8)),
        required("trace_state", DataType::Utf8),
        required("flags", DataType::UInt32),
        required("service_name", text_dictionary_type()),
        required("name", text_dictionary_type()),
        required("kind", text_dictionary_type()),
        required("start_time", time_type()),
        // End minus start, signed: negative when the client's clock stepped back. Null when the
        // span was sent without an end.
        optional("duration_ns", DataType::Int64),
        required("status_code", text_dictionary_type()),
        required("status_message", DataType::Utf8),
        required("attributes", attributes_type()),
        required("dropped_attributes_count", DataType::UInt32),
        required("events", list_of(DataType::Struct(event_fields()))),
        required("dropped_events_count", DataType::UInt32),
        required("links", list_of(DataType::Struct(link_fields()))),
        required("dropped_links_count", DataType::UInt32),
    ]
}

fn logs() -> Vec<Field> {
    vec![
        // The record's time; when it has none, its observed time; when it has neither, its arrival.
        required("time", time_type()),
        // True when the record itself had no time and one of the others stands in.
        required("time_inferred", DataType::Boolean),
        optional("observed_time", time_type()),
        required("service_name", text_dictionary_type()),
        required("severity_number", DataType::Int32),
        required("severity_text", text_dictionary_type()),
        // Text as is; a structured body as JSON.
        optional("body", DataType::Utf8),
        // The AnyValue of a body that is not text; null when it is.
        optional("body_value", DataType::Binary),
        required("event_name", text_dictionary_type()),
        optional("trace_id", DataType::FixedSizeBinary(16)),
        optional("span_id", DataType::FixedSizeBinary(8)),
        required("flags", DataType::UInt32),
        required("attributes", attributes_type()),
        required("dropped_attributes_count", DataType::UInt32),
    ]
}

fn metric_head() -> Vec<Field> {
    vec![
        required("metric_name", text_dictionary_type()),
        required("metric_description", text_dictionary_type()),
        required("metric_unit", text_dictionary_type()),
        required("metric_type", text_dictionary_type()),
        required("metric_metadata", context_type()),
        // A hash of everything that makes the series: name, unit, type, resource, scope, attributes.
        required("series_id", DataType::FixedSizeBinary(8)),
        required("service_name", text_dictionary_type()),
        // Null for kinds that have none (gauge, summary).
        optional("temporality", text_dictionary_type()),
        // Null when the point was sent without a start.
        optional("start_time", time_type()),
        required("time", time_type()),
        required("flags", DataType::UInt32),
        required("attributes", attributes_type()),
        required("exemplars", list_of(DataType::Struct(exemplar_fields()))),
    ]
}

fn metric_points() -> Vec<Field> {
    let mut fields = metric_head();
    fields.extend([
        // Null for gauges.
        optional("is_monotonic", DataType::Boolean),
        // One of the two is set, or neither when the point carries no value.
        optional("value_double", DataType::Float64),
        optional("value_int", DataType::Int64),
    ]);
    fields
}

fn metric_histograms() -> Vec<Field> {
    let mut fields = metric_head();
    fields.extend([
        required("count", DataType::UInt64),
        optional("sum", DataType::Float64),
        optional("min", DataType::Float64),
        optional("max", DataType::Float64),
        required("explicit_bounds", list_of(DataType::Float64)),
        required("bucket_counts", list_of(DataType::UInt64)),
        // The next five are null for anything but exponential histograms.
        optional("scale", DataType::Int32),
        optional("zero_count", DataType::UInt64),
        optional("zero_threshold", DataType::Float64),
        optional("positive", DataType::Struct(bucket_fields())),
        optional("negative", DataType::Struct(bucket_fields())),
        // Of summaries.
        required("quantile_values", list_of(DataType::Struct(quantile_fields()))),
    ]);
    fields
}

fn profiles() -> Vec<Field> {
    vec![
        // The sample's first timestamp, else the profile's time.
        required("time", time_type()),
        required("service_name", text_dictionary_type()),
        optional("profile_id", DataType::Binary),
        required("duration_ns", DataType::UInt64),
        required("sample_type", text_dictionary_type()),
        required("sample_unit", text_dictionary_type()),
        required("period_type", text_dictionary_type()),
        required("period_unit", text_dictionary_type()),
        required("period", DataType::Int64),
        // Frames from the leaf to the root, as `function (file:line)`.
        required("stack", list_of(DataType::Utf8)),
        required("sample_values", list_of(DataType::Int64)),
        required("timestamps", list_of(time_type())),
        optional("trace_id", DataType::FixedSizeBinary(16)),
        optional("span_id", DataType::FixedSizeBinary(8)),
        required("attributes", attributes_type()),
        // On the first row of each profile: a ProfilesData message that holds the whole profile,
        // exactly. Null on its other rows.
        optional("otlp", DataType::Binary),
    ]
}

static SCHEMAS: LazyLock<[SchemaRef; Table::COUNT]> = LazyLock::new(|| {
    Table::ALL.map(|table| {
        let mut fields = match table {
            Table::Spans => spans(),
            Table::Logs => logs(),
            Table::MetricPoints => metric_points(),
            Table::MetricHistograms => metric_histograms(),
            Table::Profiles => profiles(),
        };
        fields.push(required("resource", context_type()));
        fields.push(required("scope", context_type()));
        Arc::new(Schema::new(fields))
    })
});

/// The schema of a table.
#[must_use]
pub fn schema(table: Table) -> SchemaRef {
    Arc::clone(&SCHEMAS[table.index()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_has_its_time_and_sort_columns() {
        for table in Table::ALL {
            let schema = schema(table);
            assert_eq!(schema.field_with_name(table.time_column()).unwrap().data_type(), &time_type());
            for column in table.sort_columns() {
                assert!(schema.field_with_name(column).is_ok(), "{table}.{column}");
            }
        }
    }
}
