-- Usage per day (UTC), from the hours: the view reads each block that is inserted there.
CREATE TABLE IF NOT EXISTS metering.usage_day
(
    tenant_id LowCardinality(String),
    meter LowCardinality(String),
    window_start DateTime('UTC'),
    dimensions Map(LowCardinality(String), String),
    quantity_sum SimpleAggregateFunction(sum, Decimal(38, 9)),
    quantity_count SimpleAggregateFunction(sum, UInt64),
    quantity_min SimpleAggregateFunction(min, Decimal(38, 9)),
    quantity_max SimpleAggregateFunction(max, Decimal(38, 9)),
    quantity_latest AggregateFunction(argMax, Decimal(38, 9), Tuple(DateTime64(9, 'UTC'), UUID)),
    unique_keys AggregateFunction(uniqExact, String),
    quantity_percentiles AggregateFunction(quantileTDigest, Float64)
)
ENGINE = AggregatingMergeTree
PARTITION BY toYear(window_start)
ORDER BY (tenant_id, meter, window_start, dimensions)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 10000;

CREATE MATERIALIZED VIEW IF NOT EXISTS metering.usage_day_view TO metering.usage_day AS
SELECT
    source.tenant_id AS tenant_id,
    source.meter AS meter,
    toDateTime(toStartOfDay(source.window_start, 'UTC'), 'UTC') AS window_start,
    source.dimensions AS dimensions,
    sum(source.quantity_sum) AS quantity_sum,
    sum(source.quantity_count) AS quantity_count,
    min(source.quantity_min) AS quantity_min,
    max(source.quantity_max) AS quantity_max,
    argMaxMergeState(source.quantity_latest) AS quantity_latest,
    uniqExactMergeState(source.unique_keys) AS unique_keys,
    quantileTDigestMergeState(source.quantity_percentiles) AS quantity_percentiles
FROM metering.usage_hour AS source
GROUP BY tenant_id, meter, window_start, dimensions;
