-- The ids whose time nobody knows, in their own order: so that one is found whatever its time is.
-- Those are explicit ids (kind 1: the two low bits of the ninth byte) and all of quarantine.
-- A skip index on events.event_id was measured and reads more than no index at all: with some hundred ids,
-- every granule may have one.
CREATE TABLE IF NOT EXISTS metering.explicit_ids
(
    event_id UUID,
    content UUID COMMENT 'stream_id of the event; zero: it is in quarantine',
    ingested_on Date
)
ENGINE = MergeTree
ORDER BY event_id
SETTINGS index_granularity = 256, fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 10000;

CREATE MATERIALIZED VIEW IF NOT EXISTS metering.explicit_ids_view TO metering.explicit_ids AS
SELECT event_id, stream_id AS content, toDate(ingested_at, 'UTC') AS ingested_on
FROM metering.events
WHERE bitAnd(reinterpretAsUInt8(substring(UUIDToNum(event_id), 9, 1)), 3) = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS metering.quarantine_ids_view TO metering.explicit_ids AS
SELECT event_id, toUUID('00000000-0000-0000-0000-000000000000') AS content, toDate(ingested_at, 'UTC') AS ingested_on
FROM metering.quarantine;
