CREATE TABLE IF NOT EXISTS {database}.spans{on_cluster}
(
    tenant LowCardinality(String) CODEC(ZSTD(1)),
    received_at DateTime('UTC'),
    trace_id FixedString(16) CODEC(ZSTD(1)),
    span_id FixedString(8) CODEC(ZSTD(1)),
    parent_span_id Nullable(FixedString(8)) CODEC(ZSTD(1)),
    trace_state String CODEC(ZSTD(1)),
    flags UInt32 CODEC(ZSTD(1)),
    service_name LowCardinality(String) CODEC(ZSTD(1)),
    name LowCardinality(String) CODEC(ZSTD(1)),
    kind LowCardinality(String) CODEC(ZSTD(1)),
    start_time DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    duration_ns Nullable(Int64) CODEC(ZSTD(1)),
    status_code LowCardinality(String) CODEC(ZSTD(1)),
    status_message String CODEC(ZSTD(1)),
    attributes Tuple(shape LowCardinality(String), strings Map(LowCardinality(String), String), ints Map(LowCardinality(String), Int64), bools Map(LowCardinality(String), Bool), doubles Map(LowCardinality(String), Float64), others Map(LowCardinality(String), String)) CODEC(ZSTD(1)),
    dropped_attributes_count UInt32 CODEC(ZSTD(1)),
    events Array(Tuple(time DateTime64(9, 'UTC'), name LowCardinality(String), attributes Tuple(shape LowCardinality(String), strings Map(LowCardinality(String), String), ints Map(LowCardinality(String), Int64), bools Map(LowCardinality(String), Bool), doubles Map(LowCardinality(String), Float64), others Map(LowCardinality(String), String)), dropped_attributes_count UInt32)) CODEC(ZSTD(1)),
    dropped_events_count UInt32 CODEC(ZSTD(1)),
    links Array(Tuple(trace_id Nullable(FixedString(16)), span_id Nullable(FixedString(8)), trace_state String, attributes Tuple(shape LowCardinality(String), strings Map(LowCardinality(String), String), ints Map(LowCardinality(String), Int64), bools Map(LowCardinality(String), Bool), doubles Map(LowCardinality(String), Float64), others Map(LowCardinality(String), String)), dropped_attributes_count UInt32, flags UInt32)) CODEC(ZSTD(1)),
    dropped_links_count UInt32 CODEC(ZSTD(1)),
    resource LowCardinality(String) CODEC(ZSTD(1)),
    scope LowCardinality(String) CODEC(ZSTD(1)),
    resource_attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    scope_name LowCardinality(String) CODEC(ZSTD(1)),
    scope_version LowCardinality(String) CODEC(ZSTD(1)),
    INDEX by_time start_time TYPE minmax GRANULARITY 1,
    INDEX by_trace_id trace_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX by_attribute mapKeys(attributes.strings) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_attribute_value mapValues(attributes.strings) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_int_attribute mapKeys(attributes.ints) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_resource_attribute_value mapValues(resource_attributes) TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = {engine}
PARTITION BY toDate(received_at)
ORDER BY (tenant, service_name, start_time)
TTL {ttl:spans}
SETTINGS {settings}
;

CREATE TABLE IF NOT EXISTS {database}.logs{on_cluster}
(
    tenant LowCardinality(String) CODEC(ZSTD(1)),
    received_at DateTime('UTC'),
    time DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    time_inferred Bool CODEC(ZSTD(1)),
    observed_time Nullable(DateTime64(9, 'UTC')) CODEC(ZSTD(1)),
    service_name LowCardinality(String) CODEC(ZSTD(1)),
    severity_number Int32 CODEC(ZSTD(1)),
    severity_text LowCardinality(String) CODEC(ZSTD(1)),
    body Nullable(String) CODEC(ZSTD(1)),
    body_value Nullable(String) CODEC(ZSTD(1)),
    event_name LowCardinality(String) CODEC(ZSTD(1)),
    trace_id Nullable(FixedString(16)) CODEC(ZSTD(1)),
    span_id Nullable(FixedString(8)) CODEC(ZSTD(1)),
    flags UInt32 CODEC(ZSTD(1)),
    attributes Tuple(shape LowCardinality(String), strings Map(LowCardinality(String), String), ints Map(LowCardinality(String), Int64), bools Map(LowCardinality(String), Bool), doubles Map(LowCardinality(String), Float64), others Map(LowCardinality(String), String)) CODEC(ZSTD(1)),
    dropped_attributes_count UInt32 CODEC(ZSTD(1)),
    resource LowCardinality(String) CODEC(ZSTD(1)),
    scope LowCardinality(String) CODEC(ZSTD(1)),
    resource_attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    scope_name LowCardinality(String) CODEC(ZSTD(1)),
    scope_version LowCardinality(String) CODEC(ZSTD(1)),
    INDEX by_time time TYPE minmax GRANULARITY 1,
    INDEX by_trace_id trace_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX by_attribute mapKeys(attributes.strings) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_attribute_value mapValues(attributes.strings) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_int_attribute mapKeys(attributes.ints) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_resource_attribute_value mapValues(resource_attributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_word ifNull(body, '') TYPE tokenbf_v1(32768, 3, 0) GRANULARITY 1
)
ENGINE = {engine}
PARTITION BY toDate(received_at)
ORDER BY (tenant, service_name, time)
TTL {ttl:logs}
SETTINGS {settings}
;

CREATE TABLE IF NOT EXISTS {database}.metric_points{on_cluster}
(
    tenant LowCardinality(String) CODEC(ZSTD(1)),
    received_at DateTime('UTC'),
    metric_name LowCardinality(String) CODEC(ZSTD(1)),
    metric_description LowCardinality(String) CODEC(ZSTD(1)),
    metric_unit LowCardinality(String) CODEC(ZSTD(1)),
    metric_type LowCardinality(String) CODEC(ZSTD(1)),
    metric_metadata LowCardinality(String) CODEC(ZSTD(1)),
    series_id FixedString(8) CODEC(ZSTD(1)),
    service_name LowCardinality(String) CODEC(ZSTD(1)),
    temporality LowCardinality(Nullable(String)) CODEC(ZSTD(1)),
    start_time Nullable(DateTime64(9, 'UTC')) CODEC(ZSTD(1)),
    time DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    flags UInt32 CODEC(ZSTD(1)),
    attributes Tuple(shape LowCardinality(String), strings Map(LowCardinality(String), String), ints Map(LowCardinality(String), Int64), bools Map(LowCardinality(String), Bool), doubles Map(LowCardinality(String), Float64), others Map(LowCardinality(String), String)) CODEC(ZSTD(1)),
    exemplars Array(Tuple(time DateTime64(9, 'UTC'), value_double Nullable(Float64), value_int Nullable(Int64), trace_id Nullable(FixedString(16)), span_id Nullable(FixedString(8)), attributes Tuple(shape LowCardinality(String), strings Map(LowCardinality(String), String), ints Map(LowCardinality(String), Int64), bools Map(LowCardinality(String), Bool), doubles Map(LowCardinality(String), Float64), others Map(LowCardinality(String), String)))) CODEC(ZSTD(1)),
    is_monotonic Nullable(Bool) CODEC(ZSTD(1)),
    value_double Nullable(Float64) CODEC(ZSTD(1)),
    value_int Nullable(Int64) CODEC(ZSTD(1)),
    resource LowCardinality(String) CODEC(ZSTD(1)),
    scope LowCardinality(String) CODEC(ZSTD(1)),
    resource_attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    scope_name LowCardinality(String) CODEC(ZSTD(1)),
    scope_version LowCardinality(String) CODEC(ZSTD(1)),
    INDEX by_time time TYPE minmax GRANULARITY 1,
    INDEX by_attribute mapKeys(attributes.strings) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_attribute_value mapValues(attributes.strings) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_int_attribute mapKeys(attributes.ints) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_resource_attribute_value mapValues(resource_attributes) TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = {engine}
PARTITION BY toDate(received_at)
ORDER BY (tenant, metric_name, series_id, time)
TTL {ttl:metric_points}
SETTINGS {settings}
;

CREATE TABLE IF NOT EXISTS {database}.metric_histograms{on_cluster}
(
    tenant LowCardinality(String) CODEC(ZSTD(1)),
    received_at DateTime('UTC'),
    metric_name LowCardinality(String) CODEC(ZSTD(1)),
    metric_description LowCardinality(String) CODEC(ZSTD(1)),
    metric_unit LowCardinality(String) CODEC(ZSTD(1)),
    metric_type LowCardinality(String) CODEC(ZSTD(1)),
    metric_metadata LowCardinality(String) CODEC(ZSTD(1)),
    series_id FixedString(8) CODEC(ZSTD(1)),
    service_name LowCardinality(String) CODEC(ZSTD(1)),
    temporality LowCardinality(Nullable(String)) CODEC(ZSTD(1)),
    start_time Nullable(DateTime64(9, 'UTC')) CODEC(ZSTD(1)),
    time DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    flags UInt32 CODEC(ZSTD(1)),
    attributes Tuple(shape LowCardinality(String), strings Map(LowCardinality(String), String), ints Map(LowCardinality(String), Int64), bools Map(LowCardinality(String), Bool), doubles Map(LowCardinality(String), Float64), others Map(LowCardinality(String), String)) CODEC(ZSTD(1)),
    exemplars Array(Tuple(time DateTime64(9, 'UTC'), value_double Nullable(Float64), value_int Nullable(Int64), trace_id Nullable(FixedString(16)), span_id Nullable(FixedString(8)), attributes Tuple(shape LowCardinality(String), strings Map(LowCardinality(String), String), ints Map(LowCardinality(String), Int64), bools Map(LowCardinality(String), Bool), doubles Map(LowCardinality(String), Float64), others Map(LowCardinality(String), String)))) CODEC(ZSTD(1)),
    count UInt64 CODEC(ZSTD(1)),
    sum Nullable(Float64) CODEC(ZSTD(1)),
    min Nullable(Float64) CODEC(ZSTD(1)),
    max Nullable(Float64) CODEC(ZSTD(1)),
    explicit_bounds Array(Float64) CODEC(ZSTD(1)),
    bucket_counts Array(UInt64) CODEC(ZSTD(1)),
    scale Nullable(Int32) CODEC(ZSTD(1)),
    zero_count Nullable(UInt64) CODEC(ZSTD(1)),
    zero_threshold Nullable(Float64) CODEC(ZSTD(1)),
    positive Tuple(offset Nullable(Int32), bucket_counts Array(UInt64)) CODEC(ZSTD(1)),
    negative Tuple(offset Nullable(Int32), bucket_counts Array(UInt64)) CODEC(ZSTD(1)),
    quantile_values Array(Tuple(quantile Float64, value Float64)) CODEC(ZSTD(1)),
    resource LowCardinality(String) CODEC(ZSTD(1)),
    scope LowCardinality(String) CODEC(ZSTD(1)),
    resource_attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    scope_name LowCardinality(String) CODEC(ZSTD(1)),
    scope_version LowCardinality(String) CODEC(ZSTD(1)),
    INDEX by_time time TYPE minmax GRANULARITY 1,
    INDEX by_attribute mapKeys(attributes.strings) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_attribute_value mapValues(attributes.strings) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_int_attribute mapKeys(attributes.ints) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_resource_attribute_value mapValues(resource_attributes) TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = {engine}
PARTITION BY toDate(received_at)
ORDER BY (tenant, metric_name, series_id, time)
TTL {ttl:metric_histograms}
SETTINGS {settings}
;

CREATE TABLE IF NOT EXISTS {database}.profiles{on_cluster}
(
    tenant LowCardinality(String) CODEC(ZSTD(1)),
    received_at DateTime('UTC'),
    time DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    service_name LowCardinality(String) CODEC(ZSTD(1)),
    profile_id Nullable(String) CODEC(ZSTD(1)),
    duration_ns UInt64 CODEC(ZSTD(1)),
    sample_type LowCardinality(String) CODEC(ZSTD(1)),
    sample_unit LowCardinality(String) CODEC(ZSTD(1)),
    period_type LowCardinality(String) CODEC(ZSTD(1)),
    period_unit LowCardinality(String) CODEC(ZSTD(1)),
    period Int64 CODEC(ZSTD(1)),
    stack Array(String) CODEC(ZSTD(1)),
    sample_values Array(Int64) CODEC(ZSTD(1)),
    timestamps Array(DateTime64(9, 'UTC')) CODEC(ZSTD(1)),
    trace_id Nullable(FixedString(16)) CODEC(ZSTD(1)),
    span_id Nullable(FixedString(8)) CODEC(ZSTD(1)),
    attributes Tuple(shape LowCardinality(String), strings Map(LowCardinality(String), String), ints Map(LowCardinality(String), Int64), bools Map(LowCardinality(String), Bool), doubles Map(LowCardinality(String), Float64), others Map(LowCardinality(String), String)) CODEC(ZSTD(1)),
    otlp Nullable(String) CODEC(ZSTD(1)),
    resource LowCardinality(String) CODEC(ZSTD(1)),
    scope LowCardinality(String) CODEC(ZSTD(1)),
    resource_attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    scope_name LowCardinality(String) CODEC(ZSTD(1)),
    scope_version LowCardinality(String) CODEC(ZSTD(1)),
    INDEX by_time time TYPE minmax GRANULARITY 1,
    INDEX by_trace_id trace_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX by_attribute mapKeys(attributes.strings) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_attribute_value mapValues(attributes.strings) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_int_attribute mapKeys(attributes.ints) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_resource_attribute_value mapValues(resource_attributes) TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = {engine}
PARTITION BY toDate(received_at)
ORDER BY (tenant, service_name, time)
TTL {ttl:profiles}
SETTINGS {settings}
;

CREATE TABLE IF NOT EXISTS {database}.ingest_ledger{on_cluster}
(
    tenant LowCardinality(String),
    minute DateTime('UTC'),
    signal LowCardinality(String),
    reason LowCardinality(String),
    items UInt64
)
ENGINE = {engine}
ORDER BY (tenant, minute, signal, reason)
TTL {ttl:ingest_ledger}
SETTINGS {settings}
;
