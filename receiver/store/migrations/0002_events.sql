-- Every admitted event, once. The sort key is also how one event is found again.
-- fsync_after_insert: the spool entry may go when the INSERT has returned.
-- non_replicated_deduplication_window: a batch that is sent again with its token is stored once.
CREATE TABLE IF NOT EXISTS metering.events
(
    event_id UUID,
    tenant_id LowCardinality(String),
    meter LowCardinality(String),
    quantity Decimal(38, 9),
    unique_key String,
    timestamp DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    start_time DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    dimensions Map(LowCardinality(String), String),
    attributes Map(LowCardinality(String), String),
    service_name LowCardinality(String),
    signal Enum8('metric' = 1, 'span' = 2, 'log' = 3, 'event' = 4),
    trace_id String,
    span_id String,
    stream_id UUID,
    ingested_at DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    batch_id UUID
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(timestamp)
ORDER BY (tenant_id, meter, timestamp, event_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 10000;
