//! What every table and column is, in one line each: for people, and for programs that write SQL.
//!
//! A test fails when a column has no line here. Not here: types and nullability, which the views decide.

/// One line about a table; `None` when there is no such table.
pub(super) fn of_table(table: &str) -> Option<&'static str> {
    TABLES.iter().find(|(name, _)| *name == table).map(|(_, text)| *text)
}

/// One line about a column of a table; `None` when there is none.
pub(super) fn of_column(table: &str, column: &str) -> Option<&'static str> {
    // A line of the table itself is more exact than one that all tables share.
    let line = |of: &str| COLUMNS.iter().find(|(table, name, _)| *table == of && *name == column);
    line(table).or_else(|| line(ANY)).map(|(.., text)| *text)
}

const TABLES: [(&str, &str); 8] = [
    ("spans", "A span: one operation of one service in a trace"),
    ("span_events", "An event inside a span, such as an exception; a view of spans.events"),
    ("span_links", "A link from a span to another one; a view of spans.links"),
    ("logs", "A log record"),
    ("metric_points", "A point of a gauge or of a sum (counter)"),
    ("metric_histograms", "A point of an explicit or exponential histogram, or of a summary"),
    ("profiles", "A sample of a profile, with its stack"),
    ("ingest_ledger", "A minute, a signal and a reason: how many items were received, stored, rejected"),
];

/// Columns that mean the same in every table that has them.
const ANY: &str = "";

const COLUMNS: &[(&str, &str, &str)] = &[
    (ANY, "trace_id", "Id of the trace, 32 hex digits; null when there is none"),
    (ANY, "span_id", "Id of the span, 16 hex digits; null when there is none"),
    (ANY, "trace_state", "W3C trace state, as sent; empty when there is none"),
    (ANY, "flags", "Flags of OTLP, as sent"),
    (ANY, "service_name", "service.name of the resource; unknown_service when it has none"),
    (ANY, "time", "When it happened, by the sender's clock"),
    (ANY, "start_time", "When it began, by the sender's clock"),
    (ANY, "attributes", "Attributes of the item; attributes['key'] has the type the sender gave it"),
    (ANY, "dropped_attributes_count", "Attributes the sender left out to keep its limits"),
    (ANY, "resource_attributes", "Attributes of what sent it: host, pod, process, deployment"),
    (ANY, "resource_schema_url", "Schema URL of the resource"),
    (ANY, "scope_name", "Name of the instrumentation scope, mostly a library"),
    (ANY, "scope_version", "Version of the instrumentation scope"),
    (ANY, "scope_attributes", "Attributes of the instrumentation scope"),
    (ANY, "scope_schema_url", "Schema URL of the scope"),
    (ANY, "span_name", "Name of the span it belongs to"),
    (ANY, "span_start_time", "Start of the span it belongs to"),
    ("spans", "parent_span_id", "Id of the span that caused it; null for the root of a trace"),
    ("spans", "name", "Name of the operation, such as GET /cart"),
    ("spans", "kind", "SERVER, CLIENT, INTERNAL, PRODUCER, CONSUMER or UNSPECIFIED"),
    ("spans", "end_time", "When it ended, by the sender's clock; null when it was sent without an end"),
    ("spans", "duration_ns", "End minus start, nanoseconds; negative when the clock stepped back"),
    ("spans", "status_code", "UNSET, OK or ERROR"),
    ("spans", "status_message", "Why it failed, when the sender says"),
    ("spans", "events", "Events inside the span, as a list; span_events has them as rows"),
    ("spans", "dropped_events_count", "Events the sender left out to keep its limits"),
    ("spans", "links", "Links to other spans, as a list; span_links has them as rows"),
    ("spans", "dropped_links_count", "Links the sender left out to keep its limits"),
    ("span_events", "trace_id", "Id of the trace of the span it belongs to"),
    ("span_events", "span_id", "Id of the span it belongs to"),
    ("span_events", "name", "Name of the event; exception for exceptions"),
    ("span_links", "trace_id", "Id of the trace of the span it belongs to"),
    ("span_links", "span_id", "Id of the span it belongs to"),
    ("span_links", "linked_trace_id", "Id of the trace it points at"),
    ("span_links", "linked_span_id", "Id of the span it points at"),
    ("logs", "time", "When it happened; its observed time, else its arrival, when it has no time of its own"),
    ("logs", "observed_time", "When it was first seen by a collector or SDK"),
    ("logs", "time_inferred", "Whether time stands in for one that was not sent"),
    ("logs", "severity_number", "Severity from 1 (TRACE) to 24 (FATAL4); 17 and more are errors, 0 is not said"),
    ("logs", "severity_text", "Severity as the source names it"),
    ("logs", "body", "The message; a structured body as JSON"),
    ("logs", "event_name", "Name of the event, when the record is one"),
    (ANY, "metric_name", "Name of the metric"),
    (ANY, "metric_description", "What the metric measures, as sent"),
    (ANY, "metric_unit", "Unit of the value (UCUM): s, By, {request}"),
    (ANY, "metric_type", "GAUGE, SUM, HISTOGRAM, EXPONENTIAL_HISTOGRAM or SUMMARY"),
    (ANY, "series_id", "Id of the series: metric, resource, scope and attributes, hashed"),
    (ANY, "temporality", "CUMULATIVE or DELTA; null for kinds that have none"),
    (ANY, "exemplars", "Example measurements with the trace they were made in"),
    (ANY, "metric_metadata", "Metadata of the metric, as sent"),
    ("metric_points", "start_time", "Since when a sum counts; null when it was not sent"),
    ("metric_points", "is_monotonic", "Whether a sum only grows; null for gauges"),
    ("metric_points", "value", "The value, as double"),
    ("metric_points", "value_int", "The value when it was sent as an integer, exact"),
    ("metric_histograms", "start_time", "Since when it counts; null when it was not sent"),
    ("metric_histograms", "count", "Measurements in the point"),
    ("metric_histograms", "sum", "Their sum"),
    ("metric_histograms", "min", "The least of them"),
    ("metric_histograms", "max", "The greatest of them"),
    ("metric_histograms", "explicit_bounds", "Upper bounds of the buckets of an explicit histogram, but the last one"),
    ("metric_histograms", "bucket_counts", "Measurements in each bucket of an explicit histogram"),
    ("metric_histograms", "scale", "Scale of an exponential histogram: buckets grow by 2^(2^-scale)"),
    ("metric_histograms", "zero_count", "Measurements of an exponential histogram that count as zero"),
    ("metric_histograms", "zero_threshold", "Up to what size they do"),
    ("metric_histograms", "positive", "Buckets of positive measurements of an exponential histogram"),
    ("metric_histograms", "negative", "Buckets of negative measurements of an exponential histogram"),
    ("metric_histograms", "quantile_values", "Quantiles of a summary, as sent"),
    ("profiles", "time", "When the sample was taken; the profile's time when the sample has none"),
    ("profiles", "profile_id", "Id of the profile, as sent"),
    ("profiles", "duration_ns", "How long the profile ran, nanoseconds"),
    ("profiles", "sample_type", "What is sampled, such as cpu"),
    ("profiles", "sample_unit", "Unit of sample_values"),
    ("profiles", "period_type", "What the period counts"),
    ("profiles", "period_unit", "Unit of period"),
    ("profiles", "period", "Events between two samples"),
    ("profiles", "stack", "Frames from the leaf to the root, as function (file:line)"),
    ("profiles", "sample_values", "Values of the sample"),
    ("profiles", "timestamps", "When each value was taken"),
    ("ingest_ledger", "time", "The minute in which the items arrived"),
    ("ingest_ledger", "signal", "traces, metrics, logs or profiles"),
    ("ingest_ledger", "reason", "Why items were rejected; null for those that were stored"),
    ("ingest_ledger", "received", "Items received; always stored + rejected"),
    ("ingest_ledger", "stored", "Items stored"),
    ("ingest_ledger", "rejected", "Items rejected"),
];
