-- How much of a meter a tenant may use in a period. Read it with FINAL, and without the rows that are deleted.
CREATE TABLE IF NOT EXISTS metering.quotas
(
    quota_id String COMMENT 'one for each tenant (or the default), meter, filter and period',
    tenant_id Nullable(String) COMMENT 'NULL: of every tenant that has none of its own in its place',
    meter String,
    filter String COMMENT 'JSON: dimension -> the values it may have; {}: any usage',
    quantity_limit Decimal(38, 9) COMMENT 'units of one period',
    quantity_grace Decimal(38, 9) COMMENT 'units beyond the limit that a hard quota still allows',
    period Enum8('hour' = 1, 'day' = 2, 'week' = 3, 'month' = 4, 'lifetime' = 5),
    anchor_day Nullable(UInt8) COMMENT 'day of the month that a month begins on; NULL: the first',
    timezone String COMMENT 'IANA name; periods are those of this zone',
    enforcement Enum8('hard' = 1, 'soft' = 2),
    thresholds Array(UInt16) COMMENT 'percent of the limit',
    is_deleted Bool,
    created_at DateTime64(6, 'UTC'),
    updated_at DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(updated_at)
ORDER BY quota_id
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
