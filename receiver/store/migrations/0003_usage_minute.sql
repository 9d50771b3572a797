-- Usage per minute, as states that merge: every aggregation of a meter is chosen when it is read.
-- `sum` is a Decimal, so it is exact and does not depend on the order of events.
CREATE TABLE IF NOT EXISTS metering.usage_minute
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
PARTITION BY toYYYYMM(window_start)
ORDER BY (tenant_id, meter, window_start, dimensions)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 10000;

CREATE MATERIALIZED VIEW IF NOT EXISTS metering.usage_minute_view TO metering.usage_minute AS
SELECT
    source.tenant_id AS tenant_id,
    source.meter AS meter,
    toDateTime(toStartOfMinute(source.timestamp, 'UTC'), 'UTC') AS window_start,
    source.dimensions AS dimensions,
    sum(source.quantity) AS quantity_sum,
    count() AS quantity_count,
    min(source.quantity) AS quantity_min,
    max(source.quantity) AS quantity_max,
    argMaxState(source.quantity, (source.timestamp, source.event_id)) AS quantity_latest,
    uniqExactStateIf(source.unique_key, source.unique_key != '') AS unique_keys,
    quantileTDigestState(toFloat64(source.quantity)) AS quantity_percentiles
FROM metering.events AS source
GROUP BY tenant_id, meter, window_start, dimensions;
