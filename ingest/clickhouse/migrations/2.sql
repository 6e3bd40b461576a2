ALTER TABLE {database}.spans{on_cluster}
    ADD COLUMN IF NOT EXISTS scope_attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS resource_schema_url LowCardinality(String) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS scope_schema_url LowCardinality(String) CODEC(ZSTD(1))
;

ALTER TABLE {database}.logs{on_cluster}
    ADD COLUMN IF NOT EXISTS scope_attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS resource_schema_url LowCardinality(String) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS scope_schema_url LowCardinality(String) CODEC(ZSTD(1))
;

ALTER TABLE {database}.metric_points{on_cluster}
    ADD COLUMN IF NOT EXISTS scope_attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS resource_schema_url LowCardinality(String) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS scope_schema_url LowCardinality(String) CODEC(ZSTD(1))
;

ALTER TABLE {database}.metric_histograms{on_cluster}
    ADD COLUMN IF NOT EXISTS scope_attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS resource_schema_url LowCardinality(String) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS scope_schema_url LowCardinality(String) CODEC(ZSTD(1))
;

ALTER TABLE {database}.profiles{on_cluster}
    ADD COLUMN IF NOT EXISTS scope_attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS resource_schema_url LowCardinality(String) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS scope_schema_url LowCardinality(String) CODEC(ZSTD(1))
;

CREATE TABLE IF NOT EXISTS {database}.attribute_shapes{on_cluster}
(
    tenant LowCardinality(String),
    table_name LowCardinality(String),
    container LowCardinality(String),
    shape String CODEC(ZSTD(1))
)
ENGINE = {replacing_engine}
ORDER BY (tenant, table_name, container, shape)
;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.spans_shapes{on_cluster} TO {database}.attribute_shapes AS
SELECT tenant, 'spans' AS table_name, kept.1 AS container, arrayJoin(kept.2) AS shape
FROM
(
    SELECT tenant, arrayJoin([
        ('attributes', groupUniqArray(toString(attributes.shape))),
        ('resource', groupUniqArray(toString(resource))),
        ('scope', groupUniqArray(toString(scope))),
        ('events', groupUniqArrayArray(arrayMap(item -> toString(item.attributes.shape), events))),
        ('links', groupUniqArrayArray(arrayMap(item -> toString(item.attributes.shape), links)))
    ]) AS kept
    FROM {database}.spans
    GROUP BY tenant
)
;

INSERT INTO {database}.attribute_shapes
SELECT tenant, 'spans' AS table_name, kept.1 AS container, arrayJoin(kept.2) AS shape
FROM
(
    SELECT tenant, arrayJoin([
        ('attributes', groupUniqArray(toString(attributes.shape))),
        ('resource', groupUniqArray(toString(resource))),
        ('scope', groupUniqArray(toString(scope))),
        ('events', groupUniqArrayArray(arrayMap(item -> toString(item.attributes.shape), events))),
        ('links', groupUniqArrayArray(arrayMap(item -> toString(item.attributes.shape), links)))
    ]) AS kept
    FROM {database}.spans
    GROUP BY tenant
)
;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.logs_shapes{on_cluster} TO {database}.attribute_shapes AS
SELECT tenant, 'logs' AS table_name, kept.1 AS container, arrayJoin(kept.2) AS shape
FROM
(
    SELECT tenant, arrayJoin([
        ('attributes', groupUniqArray(toString(attributes.shape))),
        ('resource', groupUniqArray(toString(resource))),
        ('scope', groupUniqArray(toString(scope)))
    ]) AS kept
    FROM {database}.logs
    GROUP BY tenant
)
;

INSERT INTO {database}.attribute_shapes
SELECT tenant, 'logs' AS table_name, kept.1 AS container, arrayJoin(kept.2) AS shape
FROM
(
    SELECT tenant, arrayJoin([
        ('attributes', groupUniqArray(toString(attributes.shape))),
        ('resource', groupUniqArray(toString(resource))),
        ('scope', groupUniqArray(toString(scope)))
    ]) AS kept
    FROM {database}.logs
    GROUP BY tenant
)
;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.metric_points_shapes{on_cluster} TO {database}.attribute_shapes AS
SELECT tenant, 'metric_points' AS table_name, kept.1 AS container, arrayJoin(kept.2) AS shape
FROM
(
    SELECT tenant, arrayJoin([
        ('attributes', groupUniqArray(toString(attributes.shape))),
        ('resource', groupUniqArray(toString(resource))),
        ('scope', groupUniqArray(toString(scope))),
        ('exemplars', groupUniqArrayArray(arrayMap(item -> toString(item.attributes.shape), exemplars))),
        ('metric_metadata', groupUniqArray(toString(metric_metadata)))
    ]) AS kept
    FROM {database}.metric_points
    GROUP BY tenant
)
;

INSERT INTO {database}.attribute_shapes
SELECT tenant, 'metric_points' AS table_name, kept.1 AS container, arrayJoin(kept.2) AS shape
FROM
(
    SELECT tenant, arrayJoin([
        ('attributes', groupUniqArray(toString(attributes.shape))),
        ('resource', groupUniqArray(toString(resource))),
        ('scope', groupUniqArray(toString(scope))),
        ('exemplars', groupUniqArrayArray(arrayMap(item -> toString(item.attributes.shape), exemplars))),
        ('metric_metadata', groupUniqArray(toString(metric_metadata)))
    ]) AS kept
    FROM {database}.metric_points
    GROUP BY tenant
)
;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.metric_histograms_shapes{on_cluster} TO {database}.attribute_shapes AS
SELECT tenant, 'metric_histograms' AS table_name, kept.1 AS container, arrayJoin(kept.2) AS shape
FROM
(
    SELECT tenant, arrayJoin([
        ('attributes', groupUniqArray(toString(attributes.shape))),
        ('resource', groupUniqArray(toString(resource))),
        ('scope', groupUniqArray(toString(scope))),
        ('exemplars', groupUniqArrayArray(arrayMap(item -> toString(item.attributes.shape), exemplars))),
        ('metric_metadata', groupUniqArray(toString(metric_metadata)))
    ]) AS kept
    FROM {database}.metric_histograms
    GROUP BY tenant
)
;

INSERT INTO {database}.attribute_shapes
SELECT tenant, 'metric_histograms' AS table_name, kept.1 AS container, arrayJoin(kept.2) AS shape
FROM
(
    SELECT tenant, arrayJoin([
        ('attributes', groupUniqArray(toString(attributes.shape))),
        ('resource', groupUniqArray(toString(resource))),
        ('scope', groupUniqArray(toString(scope))),
        ('exemplars', groupUniqArrayArray(arrayMap(item -> toString(item.attributes.shape), exemplars))),
        ('metric_metadata', groupUniqArray(toString(metric_metadata)))
    ]) AS kept
    FROM {database}.metric_histograms
    GROUP BY tenant
)
;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.profiles_shapes{on_cluster} TO {database}.attribute_shapes AS
SELECT tenant, 'profiles' AS table_name, kept.1 AS container, arrayJoin(kept.2) AS shape
FROM
(
    SELECT tenant, arrayJoin([
        ('attributes', groupUniqArray(toString(attributes.shape))),
        ('resource', groupUniqArray(toString(resource))),
        ('scope', groupUniqArray(toString(scope)))
    ]) AS kept
    FROM {database}.profiles
    GROUP BY tenant
)
;

INSERT INTO {database}.attribute_shapes
SELECT tenant, 'profiles' AS table_name, kept.1 AS container, arrayJoin(kept.2) AS shape
FROM
(
    SELECT tenant, arrayJoin([
        ('attributes', groupUniqArray(toString(attributes.shape))),
        ('resource', groupUniqArray(toString(resource))),
        ('scope', groupUniqArray(toString(scope)))
    ]) AS kept
    FROM {database}.profiles
    GROUP BY tenant
)
;
