-- Meters that were made by API. A change is a new row with a later updated_at; read with FINAL.
CREATE TABLE IF NOT EXISTS metering.meters
(
    slug String,
    name String,
    description String,
    aggregation LowCardinality(String),
    event_type String COMMENT 'type of the CloudEvents that feed it',
    event_from Nullable(DateTime64(6, 'UTC')) COMMENT 'events before do not count',
    value_property String COMMENT 'JSONPath of the quantity, or of what is counted; empty: none',
    group_by Map(String, String) COMMENT 'dimension to JSONPath',
    metadata Map(String, String),
    created_at DateTime64(6, 'UTC'),
    deleted_at Nullable(DateTime64(6, 'UTC')),
    updated_at DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(updated_at)
ORDER BY slug
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
