-- What the receiver counts of itself, a few dozen rows every ten seconds; names and units: docs/pipeline_stats.md.
-- stat: 'delta' is what a counter grew by since the rows before it, so that sums need no care for restarts;
-- 'value' is a gauge; 'count', 'sum', 'p50', 'p95', 'p99' and 'max' are a distribution of the interval.
CREATE TABLE IF NOT EXISTS metering.pipeline_stats
(
    at DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    instance LowCardinality(String),
    stage LowCardinality(String),
    name LowCardinality(String),
    stat LowCardinality(String),
    reason LowCardinality(String),
    labels Map(LowCardinality(String), String),
    value Float64
)
ENGINE = MergeTree
PARTITION BY toMonday(at)
ORDER BY (stage, name, stat, reason, at, instance)
TTL toDateTime(at) + INTERVAL 90 DAY
SETTINGS ttl_only_drop_parts = 1, non_replicated_deduplication_window = 1000;
