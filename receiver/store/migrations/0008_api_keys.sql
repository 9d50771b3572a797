-- API keys: only a hash of each. A change is a new row with a later updated_at; read with FINAL.
CREATE TABLE IF NOT EXISTS metering.api_keys
(
    key_id String,
    name String,
    key_hash String COMMENT 'SHA-256 of the key, hexadecimal',
    scopes Array(LowCardinality(String)),
    tenant_id String COMMENT 'empty: any tenant',
    created_at DateTime64(6, 'UTC'),
    expires_at Nullable(DateTime64(6, 'UTC')),
    revoked_at Nullable(DateTime64(6, 'UTC')),
    updated_at DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(updated_at)
ORDER BY key_id
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
