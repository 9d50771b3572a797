-- How much of each quota was used, a row for each tenant that used any, or has a quota of its own, and for each
-- period: in the quota's own time zone, from its own first day, with its own filter, which no view can know. What
-- has the gate writes it once a minute (METERING_QUOTA_USAGE_SECONDS). Read it with FINAL, and without the rows
-- that are deleted. What decides is the gate; this is what dashboards and alert rules show, a minute or so later.
--
-- A row is written again when its numbers changed, and else every five minutes: of a period that is not over,
-- updated_at is never older than six minutes while the writer works. A period that is over is written
-- again until a minute has passed and all that was acknowledged before its end is stored: then it keeps that row,
-- also when the quota is deleted or changed later. Usage that arrives later still is not in it.
-- Of a period that is not over, a row is deleted when its quota is, no longer applies to the tenant (it got one of
-- its own in place of the default), begins another day, or is of a meter that no longer adds up.
-- Quotas of tenants without usage have no row if they are defaults: nothing was used of them.
CREATE TABLE IF NOT EXISTS metering.quota_usage
(
    tenant_id LowCardinality(String),
    meter LowCardinality(String),
    quota_id String COMMENT 'of metering.quotas',
    is_default Bool COMMENT 'the quota is that of every tenant without one of its own',
    filter String COMMENT 'JSON: dimension -> the values it may have; {}: any usage',
    period Enum8('hour' = 1, 'day' = 2, 'week' = 3, 'month' = 4, 'lifetime' = 5),
    period_start DateTime64(3, 'UTC'),
    period_end Nullable(DateTime64(3, 'UTC')) COMMENT 'first moment after it; NULL: it never ends',
    enforcement Enum8('hard' = 1, 'soft' = 2),
    quantity_limit Decimal(38, 9) COMMENT 'units of one period',
    quantity_grace Decimal(38, 9) COMMENT 'units beyond the limit that a hard quota still allows',
    quantity_used Decimal(38, 9) COMMENT 'units of this period, when the row was written',
    updated_at DateTime64(3, 'UTC') COMMENT 'when the usage was read',
    is_deleted Bool COMMENT 'the quota is no more, or not the tenant''s any more'
)
ENGINE = ReplacingMergeTree(updated_at)
PARTITION BY toYear(period_start)
ORDER BY (tenant_id, meter, quota_id, period_start)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
