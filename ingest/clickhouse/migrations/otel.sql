CREATE TABLE IF NOT EXISTS {database}.otel_traces{on_cluster}
(
    Timestamp DateTime64(9) CODEC(ZSTD(1)),
    TraceId String CODEC(ZSTD(1)),
    SpanId String CODEC(ZSTD(1)),
    ParentSpanId String CODEC(ZSTD(1)),
    TraceState String CODEC(ZSTD(1)),
    SpanName LowCardinality(String) CODEC(ZSTD(1)),
    SpanKind LowCardinality(String) CODEC(ZSTD(1)),
    ServiceName LowCardinality(String) CODEC(ZSTD(1)),
    ResourceAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeName String CODEC(ZSTD(1)),
    ScopeVersion String CODEC(ZSTD(1)),
    SpanAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    Duration UInt64 CODEC(ZSTD(1)),
    StatusCode LowCardinality(String) CODEC(ZSTD(1)),
    StatusMessage String CODEC(ZSTD(1)),
    `Events.Timestamp` Array(DateTime64(9)) CODEC(ZSTD(1)),
    `Events.Name` Array(LowCardinality(String)) CODEC(ZSTD(1)),
    `Events.Attributes` Array(Map(LowCardinality(String), String)) CODEC(ZSTD(1)),
    `Links.TraceId` Array(String) CODEC(ZSTD(1)),
    `Links.SpanId` Array(String) CODEC(ZSTD(1)),
    `Links.TraceState` Array(String) CODEC(ZSTD(1)),
    `Links.Attributes` Array(Map(LowCardinality(String), String)) CODEC(ZSTD(1)),
    INDEX idx_trace_id TraceId TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX idx_res_attr_value mapValues(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_attr_key mapKeys(SpanAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_attr_value mapValues(SpanAttributes) TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = {engine}
PARTITION BY toDate(Timestamp)
ORDER BY (ServiceName, SpanName, toDateTime(Timestamp))
TTL toDateTime(Timestamp) + toIntervalSecond({retention:spans})
SETTINGS ttl_only_drop_parts = 1, {settings}
;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.otel_traces_from_spans{on_cluster} TO {database}.otel_traces AS
SELECT
    start_time AS Timestamp,
    lower(hex(trace_id)) AS TraceId,
    lower(hex(span_id)) AS SpanId,
    if(isNull(parent_span_id), '', lower(hex(assumeNotNull(parent_span_id)))) AS ParentSpanId,
    trace_state AS TraceState,
    name AS SpanName,
    initcap(kind) AS SpanKind,
    service_name AS ServiceName,
    resource_attributes AS ResourceAttributes,
    scope_name AS ScopeName,
    scope_version AS ScopeVersion,
    CAST(mapConcat(attributes.strings, mapApply((k, v) -> (k, toString(v)), attributes.ints), mapApply((k, v) -> (k, toString(v)), attributes.bools), mapApply((k, v) -> (k, toString(v)), attributes.doubles)), 'Map(LowCardinality(String), String)') AS SpanAttributes,
    toUInt64(greatest(ifNull(duration_ns, 0), 0)) AS Duration,
    initcap(status_code) AS StatusCode,
    status_message AS StatusMessage,
    arrayMap(item -> item.time, events) AS `Events.Timestamp`,
    arrayMap(item -> item.name, events) AS `Events.Name`,
    arrayMap(item -> CAST(mapConcat(item.attributes.strings, mapApply((k, v) -> (k, toString(v)), item.attributes.ints), mapApply((k, v) -> (k, toString(v)), item.attributes.bools), mapApply((k, v) -> (k, toString(v)), item.attributes.doubles)), 'Map(LowCardinality(String), String)'), events) AS `Events.Attributes`,
    arrayMap(item -> if(isNull(item.trace_id), '', lower(hex(assumeNotNull(item.trace_id)))), links) AS `Links.TraceId`,
    arrayMap(item -> if(isNull(item.span_id), '', lower(hex(assumeNotNull(item.span_id)))), links) AS `Links.SpanId`,
    arrayMap(item -> item.trace_state, links) AS `Links.TraceState`,
    arrayMap(item -> CAST(mapConcat(item.attributes.strings, mapApply((k, v) -> (k, toString(v)), item.attributes.ints), mapApply((k, v) -> (k, toString(v)), item.attributes.bools), mapApply((k, v) -> (k, toString(v)), item.attributes.doubles)), 'Map(LowCardinality(String), String)'), links) AS `Links.Attributes`
FROM {database}.spans
;

CREATE TABLE IF NOT EXISTS {database}.otel_logs{on_cluster}
(
    Timestamp DateTime64(9) CODEC(ZSTD(1)),
    TimestampTime DateTime CODEC(ZSTD(1)),
    TraceId String CODEC(ZSTD(1)),
    SpanId String CODEC(ZSTD(1)),
    TraceFlags UInt8 CODEC(ZSTD(1)),
    SeverityText LowCardinality(String) CODEC(ZSTD(1)),
    SeverityNumber UInt8 CODEC(ZSTD(1)),
    ServiceName LowCardinality(String) CODEC(ZSTD(1)),
    Body String CODEC(ZSTD(1)),
    ResourceSchemaUrl LowCardinality(String) CODEC(ZSTD(1)),
    ResourceAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeSchemaUrl LowCardinality(String) CODEC(ZSTD(1)),
    ScopeName String CODEC(ZSTD(1)),
    ScopeVersion LowCardinality(String) CODEC(ZSTD(1)),
    ScopeAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    LogAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    EventName String CODEC(ZSTD(1)),
    INDEX idx_trace_id TraceId TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX idx_body Body TYPE tokenbf_v1(32768, 3, 0) GRANULARITY 8,
    INDEX idx_res_attr_value mapValues(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_attr_key mapKeys(LogAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_attr_value mapValues(LogAttributes) TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = {engine}
PARTITION BY toDate(Timestamp)
ORDER BY (ServiceName, TimestampTime, Timestamp)
TTL toDateTime(Timestamp) + toIntervalSecond({retention:logs})
SETTINGS ttl_only_drop_parts = 1, {settings}
;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.otel_logs_from_logs{on_cluster} TO {database}.otel_logs AS
SELECT
    time AS Timestamp,
    toDateTime(time) AS TimestampTime,
    if(isNull(trace_id), '', lower(hex(assumeNotNull(trace_id)))) AS TraceId,
    if(isNull(span_id), '', lower(hex(assumeNotNull(span_id)))) AS SpanId,
    toUInt8(flags) AS TraceFlags,
    severity_text AS SeverityText,
    toUInt8(severity_number) AS SeverityNumber,
    service_name AS ServiceName,
    ifNull(body, '') AS Body,
    resource_schema_url AS ResourceSchemaUrl,
    resource_attributes AS ResourceAttributes,
    scope_schema_url AS ScopeSchemaUrl,
    scope_name AS ScopeName,
    scope_version AS ScopeVersion,
    scope_attributes AS ScopeAttributes,
    CAST(mapConcat(attributes.strings, mapApply((k, v) -> (k, toString(v)), attributes.ints), mapApply((k, v) -> (k, toString(v)), attributes.bools), mapApply((k, v) -> (k, toString(v)), attributes.doubles)), 'Map(LowCardinality(String), String)') AS LogAttributes,
    event_name AS EventName
FROM {database}.logs
;

CREATE TABLE IF NOT EXISTS {database}.otel_metrics_gauge{on_cluster}
(
    ResourceAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ResourceSchemaUrl String CODEC(ZSTD(1)),
    ScopeName String CODEC(ZSTD(1)),
    ScopeVersion String CODEC(ZSTD(1)),
    ScopeAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeDroppedAttrCount UInt32 CODEC(ZSTD(1)),
    ScopeSchemaUrl String CODEC(ZSTD(1)),
    ServiceName LowCardinality(String) CODEC(ZSTD(1)),
    MetricName String CODEC(ZSTD(1)),
    MetricDescription String CODEC(ZSTD(1)),
    MetricUnit String CODEC(ZSTD(1)),
    Attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    StartTimeUnix DateTime64(9) CODEC(ZSTD(1)),
    TimeUnix DateTime64(9) CODEC(ZSTD(1)),
    Value Float64 CODEC(ZSTD(1)),
    Flags UInt32 CODEC(ZSTD(1)),
    `Exemplars.FilteredAttributes` Array(Map(LowCardinality(String), String)) CODEC(ZSTD(1)),
    `Exemplars.TimeUnix` Array(DateTime64(9)) CODEC(ZSTD(1)),
    `Exemplars.Value` Array(Float64) CODEC(ZSTD(1)),
    `Exemplars.SpanId` Array(String) CODEC(ZSTD(1)),
    `Exemplars.TraceId` Array(String) CODEC(ZSTD(1)),
    INDEX idx_res_attr_value mapValues(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_attr_key mapKeys(Attributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_attr_value mapValues(Attributes) TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = {engine}
PARTITION BY toDate(TimeUnix)
ORDER BY (ServiceName, MetricName, Attributes, toUnixTimestamp64Nano(TimeUnix))
TTL toDateTime(TimeUnix) + toIntervalSecond({retention:metric_points})
SETTINGS ttl_only_drop_parts = 1, {settings}
;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.otel_metrics_gauge_from_metric_points{on_cluster} TO {database}.otel_metrics_gauge AS
SELECT
    resource_attributes AS ResourceAttributes,
    resource_schema_url AS ResourceSchemaUrl,
    scope_name AS ScopeName,
    scope_version AS ScopeVersion,
    scope_attributes AS ScopeAttributes,
    toUInt32(0) AS ScopeDroppedAttrCount,
    scope_schema_url AS ScopeSchemaUrl,
    service_name AS ServiceName,
    metric_name AS MetricName,
    metric_description AS MetricDescription,
    metric_unit AS MetricUnit,
    CAST(mapConcat(attributes.strings, mapApply((k, v) -> (k, toString(v)), attributes.ints), mapApply((k, v) -> (k, toString(v)), attributes.bools), mapApply((k, v) -> (k, toString(v)), attributes.doubles)), 'Map(LowCardinality(String), String)') AS Attributes,
    ifNull(start_time, toDateTime64(0, 9, 'UTC')) AS StartTimeUnix,
    time AS TimeUnix,
    ifNull(value_double, toFloat64(ifNull(value_int, 0))) AS Value,
    flags AS Flags,
    arrayMap(item -> CAST(mapConcat(item.attributes.strings, mapApply((k, v) -> (k, toString(v)), item.attributes.ints), mapApply((k, v) -> (k, toString(v)), item.attributes.bools), mapApply((k, v) -> (k, toString(v)), item.attributes.doubles)), 'Map(LowCardinality(String), String)'), exemplars) AS `Exemplars.FilteredAttributes`,
    arrayMap(item -> item.time, exemplars) AS `Exemplars.TimeUnix`,
    arrayMap(item -> ifNull(item.value_double, toFloat64(ifNull(item.value_int, 0))), exemplars) AS `Exemplars.Value`,
    arrayMap(item -> if(isNull(item.span_id), '', lower(hex(assumeNotNull(item.span_id)))), exemplars) AS `Exemplars.SpanId`,
    arrayMap(item -> if(isNull(item.trace_id), '', lower(hex(assumeNotNull(item.trace_id)))), exemplars) AS `Exemplars.TraceId`
FROM {database}.metric_points
WHERE metric_type = 'GAUGE'
;

CREATE TABLE IF NOT EXISTS {database}.otel_metrics_sum{on_cluster}
(
    ResourceAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ResourceSchemaUrl String CODEC(ZSTD(1)),
    ScopeName String CODEC(ZSTD(1)),
    ScopeVersion String CODEC(ZSTD(1)),
    ScopeAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeDroppedAttrCount UInt32 CODEC(ZSTD(1)),
    ScopeSchemaUrl String CODEC(ZSTD(1)),
    ServiceName LowCardinality(String) CODEC(ZSTD(1)),
    MetricName String CODEC(ZSTD(1)),
    MetricDescription String CODEC(ZSTD(1)),
    MetricUnit String CODEC(ZSTD(1)),
    Attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    StartTimeUnix DateTime64(9) CODEC(ZSTD(1)),
    TimeUnix DateTime64(9) CODEC(ZSTD(1)),
    Value Float64 CODEC(ZSTD(1)),
    Flags UInt32 CODEC(ZSTD(1)),
    `Exemplars.FilteredAttributes` Array(Map(LowCardinality(String), String)) CODEC(ZSTD(1)),
    `Exemplars.TimeUnix` Array(DateTime64(9)) CODEC(ZSTD(1)),
    `Exemplars.Value` Array(Float64) CODEC(ZSTD(1)),
    `Exemplars.SpanId` Array(String) CODEC(ZSTD(1)),
    `Exemplars.TraceId` Array(String) CODEC(ZSTD(1)),
    AggregationTemporality Int32 CODEC(ZSTD(1)),
    IsMonotonic Bool CODEC(ZSTD(1)),
    INDEX idx_res_attr_value mapValues(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_attr_key mapKeys(Attributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_attr_value mapValues(Attributes) TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = {engine}
PARTITION BY toDate(TimeUnix)
ORDER BY (ServiceName, MetricName, Attributes, toUnixTimestamp64Nano(TimeUnix))
TTL toDateTime(TimeUnix) + toIntervalSecond({retention:metric_points})
SETTINGS ttl_only_drop_parts = 1, {settings}
;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.otel_metrics_sum_from_metric_points{on_cluster} TO {database}.otel_metrics_sum AS
SELECT
    resource_attributes AS ResourceAttributes,
    resource_schema_url AS ResourceSchemaUrl,
    scope_name AS ScopeName,
    scope_version AS ScopeVersion,
    scope_attributes AS ScopeAttributes,
    toUInt32(0) AS ScopeDroppedAttrCount,
    scope_schema_url AS ScopeSchemaUrl,
    service_name AS ServiceName,
    metric_name AS MetricName,
    metric_description AS MetricDescription,
    metric_unit AS MetricUnit,
    CAST(mapConcat(attributes.strings, mapApply((k, v) -> (k, toString(v)), attributes.ints), mapApply((k, v) -> (k, toString(v)), attributes.bools), mapApply((k, v) -> (k, toString(v)), attributes.doubles)), 'Map(LowCardinality(String), String)') AS Attributes,
    ifNull(start_time, toDateTime64(0, 9, 'UTC')) AS StartTimeUnix,
    time AS TimeUnix,
    ifNull(value_double, toFloat64(ifNull(value_int, 0))) AS Value,
    flags AS Flags,
    arrayMap(item -> CAST(mapConcat(item.attributes.strings, mapApply((k, v) -> (k, toString(v)), item.attributes.ints), mapApply((k, v) -> (k, toString(v)), item.attributes.bools), mapApply((k, v) -> (k, toString(v)), item.attributes.doubles)), 'Map(LowCardinality(String), String)'), exemplars) AS `Exemplars.FilteredAttributes`,
    arrayMap(item -> item.time, exemplars) AS `Exemplars.TimeUnix`,
    arrayMap(item -> ifNull(item.value_double, toFloat64(ifNull(item.value_int, 0))), exemplars) AS `Exemplars.Value`,
    arrayMap(item -> if(isNull(item.span_id), '', lower(hex(assumeNotNull(item.span_id)))), exemplars) AS `Exemplars.SpanId`,
    arrayMap(item -> if(isNull(item.trace_id), '', lower(hex(assumeNotNull(item.trace_id)))), exemplars) AS `Exemplars.TraceId`,
    toInt32(multiIf(temporality = 'DELTA', 1, temporality = 'CUMULATIVE', 2, 0)) AS AggregationTemporality,
    ifNull(is_monotonic, false) AS IsMonotonic
FROM {database}.metric_points
WHERE metric_type = 'SUM'
;

CREATE TABLE IF NOT EXISTS {database}.otel_metrics_histogram{on_cluster}
(
    ResourceAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ResourceSchemaUrl String CODEC(ZSTD(1)),
    ScopeName String CODEC(ZSTD(1)),
    ScopeVersion String CODEC(ZSTD(1)),
    ScopeAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeDroppedAttrCount UInt32 CODEC(ZSTD(1)),
    ScopeSchemaUrl String CODEC(ZSTD(1)),
    ServiceName LowCardinality(String) CODEC(ZSTD(1)),
    MetricName String CODEC(ZSTD(1)),
    MetricDescription String CODEC(ZSTD(1)),
    MetricUnit String CODEC(ZSTD(1)),
    Attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    StartTimeUnix DateTime64(9) CODEC(ZSTD(1)),
    TimeUnix DateTime64(9) CODEC(ZSTD(1)),
    Count UInt64 CODEC(ZSTD(1)),
    Sum Float64 CODEC(ZSTD(1)),
    BucketCounts Array(UInt64) CODEC(ZSTD(1)),
    ExplicitBounds Array(Float64) CODEC(ZSTD(1)),
    `Exemplars.FilteredAttributes` Array(Map(LowCardinality(String), String)) CODEC(ZSTD(1)),
    `Exemplars.TimeUnix` Array(DateTime64(9)) CODEC(ZSTD(1)),
    `Exemplars.Value` Array(Float64) CODEC(ZSTD(1)),
    `Exemplars.SpanId` Array(String) CODEC(ZSTD(1)),
    `Exemplars.TraceId` Array(String) CODEC(ZSTD(1)),
    Flags UInt32 CODEC(ZSTD(1)),
    Min Float64 CODEC(ZSTD(1)),
    Max Float64 CODEC(ZSTD(1)),
    AggregationTemporality Int32 CODEC(ZSTD(1)),
    INDEX idx_res_attr_value mapValues(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_attr_key mapKeys(Attributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_attr_value mapValues(Attributes) TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = {engine}
PARTITION BY toDate(TimeUnix)
ORDER BY (ServiceName, MetricName, Attributes, toUnixTimestamp64Nano(TimeUnix))
TTL toDateTime(TimeUnix) + toIntervalSecond({retention:metric_histograms})
SETTINGS ttl_only_drop_parts = 1, {settings}
;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.otel_metrics_histogram_from_metric_histograms{on_cluster} TO {database}.otel_metrics_histogram AS
SELECT
    resource_attributes AS ResourceAttributes,
    resource_schema_url AS ResourceSchemaUrl,
    scope_name AS ScopeName,
    scope_version AS ScopeVersion,
    scope_attributes AS ScopeAttributes,
    toUInt32(0) AS ScopeDroppedAttrCount,
    scope_schema_url AS ScopeSchemaUrl,
    service_name AS ServiceName,
    metric_name AS MetricName,
    metric_description AS MetricDescription,
    metric_unit AS MetricUnit,
    CAST(mapConcat(attributes.strings, mapApply((k, v) -> (k, toString(v)), attributes.ints), mapApply((k, v) -> (k, toString(v)), attributes.bools), mapApply((k, v) -> (k, toString(v)), attributes.doubles)), 'Map(LowCardinality(String), String)') AS Attributes,
    ifNull(start_time, toDateTime64(0, 9, 'UTC')) AS StartTimeUnix,
    time AS TimeUnix,
    count AS Count,
    ifNull(sum, 0) AS Sum,
    bucket_counts AS BucketCounts,
    explicit_bounds AS ExplicitBounds,
    arrayMap(item -> CAST(mapConcat(item.attributes.strings, mapApply((k, v) -> (k, toString(v)), item.attributes.ints), mapApply((k, v) -> (k, toString(v)), item.attributes.bools), mapApply((k, v) -> (k, toString(v)), item.attributes.doubles)), 'Map(LowCardinality(String), String)'), exemplars) AS `Exemplars.FilteredAttributes`,
    arrayMap(item -> item.time, exemplars) AS `Exemplars.TimeUnix`,
    arrayMap(item -> ifNull(item.value_double, toFloat64(ifNull(item.value_int, 0))), exemplars) AS `Exemplars.Value`,
    arrayMap(item -> if(isNull(item.span_id), '', lower(hex(assumeNotNull(item.span_id)))), exemplars) AS `Exemplars.SpanId`,
    arrayMap(item -> if(isNull(item.trace_id), '', lower(hex(assumeNotNull(item.trace_id)))), exemplars) AS `Exemplars.TraceId`,
    flags AS Flags,
    ifNull(min, 0) AS Min,
    ifNull(max, 0) AS Max,
    toInt32(multiIf(temporality = 'DELTA', 1, temporality = 'CUMULATIVE', 2, 0)) AS AggregationTemporality
FROM {database}.metric_histograms
WHERE metric_type = 'HISTOGRAM'
;

CREATE TABLE IF NOT EXISTS {database}.otel_metrics_exponential_histogram{on_cluster}
(
    ResourceAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ResourceSchemaUrl String CODEC(ZSTD(1)),
    ScopeName String CODEC(ZSTD(1)),
    ScopeVersion String CODEC(ZSTD(1)),
    ScopeAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeDroppedAttrCount UInt32 CODEC(ZSTD(1)),
    ScopeSchemaUrl String CODEC(ZSTD(1)),
    ServiceName LowCardinality(String) CODEC(ZSTD(1)),
    MetricName String CODEC(ZSTD(1)),
    MetricDescription String CODEC(ZSTD(1)),
    MetricUnit String CODEC(ZSTD(1)),
    Attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    StartTimeUnix DateTime64(9) CODEC(ZSTD(1)),
    TimeUnix DateTime64(9) CODEC(ZSTD(1)),
    Count UInt64 CODEC(ZSTD(1)),
    Sum Float64 CODEC(ZSTD(1)),
    Scale Int32 CODEC(ZSTD(1)),
    ZeroCount UInt64 CODEC(ZSTD(1)),
    PositiveOffset Int32 CODEC(ZSTD(1)),
    PositiveBucketCounts Array(UInt64) CODEC(ZSTD(1)),
    NegativeOffset Int32 CODEC(ZSTD(1)),
    NegativeBucketCounts Array(UInt64) CODEC(ZSTD(1)),
    `Exemplars.FilteredAttributes` Array(Map(LowCardinality(String), String)) CODEC(ZSTD(1)),
    `Exemplars.TimeUnix` Array(DateTime64(9)) CODEC(ZSTD(1)),
    `Exemplars.Value` Array(Float64) CODEC(ZSTD(1)),
    `Exemplars.SpanId` Array(String) CODEC(ZSTD(1)),
    `Exemplars.TraceId` Array(String) CODEC(ZSTD(1)),
    Flags UInt32 CODEC(ZSTD(1)),
    Min Float64 CODEC(ZSTD(1)),
    Max Float64 CODEC(ZSTD(1)),
    AggregationTemporality Int32 CODEC(ZSTD(1)),
    INDEX idx_res_attr_value mapValues(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_attr_key mapKeys(Attributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_attr_value mapValues(Attributes) TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = {engine}
PARTITION BY toDate(TimeUnix)
ORDER BY (ServiceName, MetricName, Attributes, toUnixTimestamp64Nano(TimeUnix))
TTL toDateTime(TimeUnix) + toIntervalSecond({retention:metric_histograms})
SETTINGS ttl_only_drop_parts = 1, {settings}
;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.otel_metrics_exponential_histogram_from_metric_histograms{on_cluster} TO {database}.otel_metrics_exponential_histogram AS
SELECT
    resource_attributes AS ResourceAttributes,
    resource_schema_url AS ResourceSchemaUrl,
    scope_name AS ScopeName,
    scope_version AS ScopeVersion,
    scope_attributes AS ScopeAttributes,
    toUInt32(0) AS ScopeDroppedAttrCount,
    scope_schema_url AS ScopeSchemaUrl,
    service_name AS ServiceName,
    metric_name AS MetricName,
    metric_description AS MetricDescription,
    metric_unit AS MetricUnit,
    CAST(mapConcat(attributes.strings, mapApply((k, v) -> (k, toString(v)), attributes.ints), mapApply((k, v) -> (k, toString(v)), attributes.bools), mapApply((k, v) -> (k, toString(v)), attributes.doubles)), 'Map(LowCardinality(String), String)') AS Attributes,
    ifNull(start_time, toDateTime64(0, 9, 'UTC')) AS StartTimeUnix,
    time AS TimeUnix,
    count AS Count,
    ifNull(sum, 0) AS Sum,
    ifNull(scale, 0) AS Scale,
    ifNull(zero_count, 0) AS ZeroCount,
    ifNull(positive.offset, 0) AS PositiveOffset,
    positive.bucket_counts AS PositiveBucketCounts,
    ifNull(negative.offset, 0) AS NegativeOffset,
    negative.bucket_counts AS NegativeBucketCounts,
    arrayMap(item -> CAST(mapConcat(item.attributes.strings, mapApply((k, v) -> (k, toString(v)), item.attributes.ints), mapApply((k, v) -> (k, toString(v)), item.attributes.bools), mapApply((k, v) -> (k, toString(v)), item.attributes.doubles)), 'Map(LowCardinality(String), String)'), exemplars) AS `Exemplars.FilteredAttributes`,
    arrayMap(item -> item.time, exemplars) AS `Exemplars.TimeUnix`,
    arrayMap(item -> ifNull(item.value_double, toFloat64(ifNull(item.value_int, 0))), exemplars) AS `Exemplars.Value`,
    arrayMap(item -> if(isNull(item.span_id), '', lower(hex(assumeNotNull(item.span_id)))), exemplars) AS `Exemplars.SpanId`,
    arrayMap(item -> if(isNull(item.trace_id), '', lower(hex(assumeNotNull(item.trace_id)))), exemplars) AS `Exemplars.TraceId`,
    flags AS Flags,
    ifNull(min, 0) AS Min,
    ifNull(max, 0) AS Max,
    toInt32(multiIf(temporality = 'DELTA', 1, temporality = 'CUMULATIVE', 2, 0)) AS AggregationTemporality
FROM {database}.metric_histograms
WHERE metric_type = 'EXPONENTIAL_HISTOGRAM'
;

CREATE TABLE IF NOT EXISTS {database}.otel_metrics_summary{on_cluster}
(
    ResourceAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ResourceSchemaUrl String CODEC(ZSTD(1)),
    ScopeName String CODEC(ZSTD(1)),
    ScopeVersion String CODEC(ZSTD(1)),
    ScopeAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeDroppedAttrCount UInt32 CODEC(ZSTD(1)),
    ScopeSchemaUrl String CODEC(ZSTD(1)),
    ServiceName LowCardinality(String) CODEC(ZSTD(1)),
    MetricName String CODEC(ZSTD(1)),
    MetricDescription String CODEC(ZSTD(1)),
    MetricUnit String CODEC(ZSTD(1)),
    Attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    StartTimeUnix DateTime64(9) CODEC(ZSTD(1)),
    TimeUnix DateTime64(9) CODEC(ZSTD(1)),
    Count UInt64 CODEC(ZSTD(1)),
    Sum Float64 CODEC(ZSTD(1)),
    `ValueAtQuantiles.Quantile` Array(Float64) CODEC(ZSTD(1)),
    `ValueAtQuantiles.Value` Array(Float64) CODEC(ZSTD(1)),
    Flags UInt32 CODEC(ZSTD(1)),
    INDEX idx_res_attr_value mapValues(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_attr_key mapKeys(Attributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_attr_value mapValues(Attributes) TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = {engine}
PARTITION BY toDate(TimeUnix)
ORDER BY (ServiceName, MetricName, Attributes, toUnixTimestamp64Nano(TimeUnix))
TTL toDateTime(TimeUnix) + toIntervalSecond({retention:metric_histograms})
SETTINGS ttl_only_drop_parts = 1, {settings}
;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.otel_metrics_summary_from_metric_histograms{on_cluster} TO {database}.otel_metrics_summary AS
SELECT
    resource_attributes AS ResourceAttributes,
    resource_schema_url AS ResourceSchemaUrl,
    scope_name AS ScopeName,
    scope_version AS ScopeVersion,
    scope_attributes AS ScopeAttributes,
    toUInt32(0) AS ScopeDroppedAttrCount,
    scope_schema_url AS ScopeSchemaUrl,
    service_name AS ServiceName,
    metric_name AS MetricName,
    metric_description AS MetricDescription,
    metric_unit AS MetricUnit,
    CAST(mapConcat(attributes.strings, mapApply((k, v) -> (k, toString(v)), attributes.ints), mapApply((k, v) -> (k, toString(v)), attributes.bools), mapApply((k, v) -> (k, toString(v)), attributes.doubles)), 'Map(LowCardinality(String), String)') AS Attributes,
    ifNull(start_time, toDateTime64(0, 9, 'UTC')) AS StartTimeUnix,
    time AS TimeUnix,
    count AS Count,
    ifNull(sum, 0) AS Sum,
    arrayMap(item -> item.quantile, quantile_values) AS `ValueAtQuantiles.Quantile`,
    arrayMap(item -> item.value, quantile_values) AS `ValueAtQuantiles.Value`,
    flags AS Flags
FROM {database}.metric_histograms
WHERE metric_type = 'SUMMARY'
;

CREATE TABLE IF NOT EXISTS {database}.otel_traces_trace_id_ts{on_cluster}
(
    TraceId String CODEC(ZSTD(1)),
    Start DateTime CODEC(Delta, ZSTD(1)),
    End DateTime CODEC(Delta, ZSTD(1)),
    INDEX idx_trace_id TraceId TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = {engine}
PARTITION BY toDate(Start)
ORDER BY (TraceId, Start)
TTL toDateTime(Start) + toIntervalSecond({retention:spans})
SETTINGS ttl_only_drop_parts = 1, {settings}
;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.otel_traces_trace_id_ts_mv{on_cluster} TO {database}.otel_traces_trace_id_ts AS
SELECT TraceId, min(Timestamp) AS Start, max(Timestamp) AS End
FROM {database}.otel_traces
WHERE TraceId != ''
GROUP BY TraceId
;
