-- Valid telemetry that cannot be billed as it is, with the reason, and enough to replay it later.
CREATE TABLE IF NOT EXISTS metering.quarantine
(
    event_id UUID,
    reason LowCardinality(String),
    detail String,
    signal Enum8('metric' = 1, 'span' = 2, 'log' = 3, 'event' = 4),
    name String,
    tenant_id String,
    timestamp DateTime64(9, 'UTC'),
    attributes Map(LowCardinality(String), String),
    service_name LowCardinality(String),
    payload String COMMENT 'an OTLP export request with this one item, protobuf',
    key_id LowCardinality(String),
    ingested_at DateTime64(3, 'UTC'),
    batch_id UUID
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(ingested_at)
ORDER BY (reason, ingested_at, event_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 10000;
