-- What is known of each meter that has a definition, from meters.yaml or made by API: so that dashboards and SQL
-- can read usage as the query API does, and find usage of meters that nobody defined. The receiver writes it when
-- it starts and when a definition changes; read it with FINAL, and without the rows that are deleted.
CREATE TABLE IF NOT EXISTS metering.meter_definitions
(
    meter String COMMENT 'slug, as in events.meter',
    origin Enum8('file' = 1, 'api' = 2),
    description String,
    aggregation LowCardinality(String) COMMENT 'how its usage is read: sum, count, min, max, avg, latest, unique_count, p50, p90, p95, p99',
    unit String COMMENT 'UCUM, as {request} or By; empty: none was given',
    group_by Array(String) COMMENT 'names of its dimensions, where the definition says them',
    is_deleted Bool,
    updated_at DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(updated_at)
ORDER BY meter
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
