-- Every administrative change, written before it is made: a row says what was ordered, by which key. Nothing is
-- deleted here. Who is not a key stands in parentheses, as (start).
CREATE TABLE IF NOT EXISTS metering.audit_log
(
    at DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    audit_id UUID,
    key_id LowCardinality(String) COMMENT 'whose order it was',
    action LowCardinality(String) COMMENT 'as key.create',
    target String COMMENT 'what was changed: the id of a key, a quota, an event',
    tenant_id String COMMENT 'whose it is; empty: the whole service',
    request_id String COMMENT 'as in the answer and the access log; empty: no request',
    details Map(LowCardinality(String), String)
)
ENGINE = MergeTree
PARTITION BY toYear(at)
ORDER BY (at, audit_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 10000;

-- A rotation is one row, that of the new key: it says which key it replaces, and when that one ends.
ALTER TABLE metering.api_keys
    ADD COLUMN IF NOT EXISTS rate_limit_per_second UInt32 COMMENT 'requests to the query API; 0: any number',
    ADD COLUMN IF NOT EXISTS replaces String COMMENT 'the key in whose place it was made; empty: none',
    ADD COLUMN IF NOT EXISTS replaced_ends_at Nullable(DateTime64(6, 'UTC')) COMMENT 'when that one stops';

-- When a key was last used, to about a minute.
CREATE TABLE IF NOT EXISTS metering.api_key_use
(
    key_id String,
    last_used_at DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(last_used_at)
ORDER BY key_id
SETTINGS non_replicated_deduplication_window = 1000;
