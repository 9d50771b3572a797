-- What became of quarantined items later; nothing is deleted there. An item without a row here is open.
-- ingested_at is that of the item: a question about some weeks of quarantine reads these weeks of both tables.
CREATE TABLE IF NOT EXISTS metering.quarantine_resolved
(
    event_id UUID,
    resolution Enum8('replayed' = 1, 'discarded' = 2),
    ingested_at DateTime64(3, 'UTC'),
    resolved_at DateTime64(3, 'UTC'),
    key_id LowCardinality(String) COMMENT 'who resolved it',
    note String
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(ingested_at)
ORDER BY (ingested_at, event_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 10000;
