-- What has been applied. Migrations only go forward; an applied file is never edited (its checksum is kept).
CREATE DATABASE IF NOT EXISTS metering;

CREATE TABLE IF NOT EXISTS metering.migrations
(
    version UInt32,
    name String,
    checksum String,
    applied_at DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree
ORDER BY version
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
