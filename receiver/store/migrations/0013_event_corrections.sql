-- Events that were voided, or replaced by a corrected one: why, when and by whom. Nothing is deleted in events;
-- what a row here names does not count any more.
-- It has what the event brought to its windows (quantity, observations), so that one insert here, with its
-- token, takes that back in every rollup: sums and counts are exact there at once. Minimum, maximum, latest,
-- unique and percentiles of a window that has a row here can only be had from the events again; the query API
-- reads them from there.
CREATE TABLE IF NOT EXISTS metering.event_corrections
(
    event_id UUID COMMENT 'the event that does not count any more',
    tenant_id LowCardinality(String),
    meter LowCardinality(String),
    timestamp DateTime64(9, 'UTC') COMMENT 'of that event',
    quantity Decimal(38, 9) COMMENT 'of that event',
    observations Int64 COMMENT 'of that event',
    dimensions Map(LowCardinality(String), String) COMMENT 'of that event',
    action Enum8('void' = 1, 'correct' = 2),
    reason String,
    replaced_by UUID COMMENT 'the event that counts instead; zero: none',
    key_id LowCardinality(String) COMMENT 'who did it',
    corrected_at DateTime64(3, 'UTC'),
    batch_id UUID
)
ENGINE = MergeTree
PARTITION BY toYear(timestamp)
ORDER BY (meter, tenant_id, timestamp, event_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 10000;

-- The minute gets the opposite, and the views behind it carry that on. Of what cannot be taken back, these
-- states have nothing: a minimum above and a maximum below any quantity, and empty sets.
CREATE MATERIALIZED VIEW IF NOT EXISTS metering.event_corrections_view TO metering.usage_minute AS
SELECT
    source.tenant_id AS tenant_id,
    source.meter AS meter,
    toDateTime(toStartOfMinute(source.timestamp, 'UTC'), 'UTC') AS window_start,
    source.dimensions AS dimensions,
    -sum(source.quantity) AS quantity_sum,
    toUInt64(-sum(source.observations)) AS quantity_count,
    toDecimal128('99999999999999999999999999999.999999999', 9) AS quantity_min,
    toDecimal128('-99999999999999999999999999999.999999999', 9) AS quantity_max,
    argMaxStateIf(source.quantity, (source.timestamp, source.event_id), 0) AS quantity_latest,
    uniqExactStateIf('', 0) AS unique_keys,
    quantileTDigestStateIf(toFloat64(source.quantity), 0) AS quantity_percentiles
FROM metering.event_corrections AS source
GROUP BY tenant_id, meter, window_start, dimensions;
