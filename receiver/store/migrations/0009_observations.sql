-- A histogram point stands for many measurements, and a cumulative point for an increase.
-- observations: how many measurements an event is; `count` and `avg` go by it. Negative only where an
-- increase is taken back (a cumulative stream whose first point arrived late).
-- cumulative_value: value of the cumulative point that the event is an increase of, so that the state of
-- each stream can be had from the events.
ALTER TABLE metering.events ADD COLUMN IF NOT EXISTS observations Int64 DEFAULT 1 AFTER quantity;

ALTER TABLE metering.events ADD COLUMN IF NOT EXISTS cumulative_value Nullable(Decimal(38, 9)) AFTER observations;

ALTER TABLE metering.usage_minute_view MODIFY QUERY
SELECT
    source.tenant_id AS tenant_id,
    source.meter AS meter,
    toDateTime(toStartOfMinute(source.timestamp, 'UTC'), 'UTC') AS window_start,
    source.dimensions AS dimensions,
    sum(source.quantity) AS quantity_sum,
    -- Wraps below zero, and back: only the sum of a window's parts is ever read.
    toUInt64(sum(source.observations)) AS quantity_count,
    min(source.quantity) AS quantity_min,
    max(source.quantity) AS quantity_max,
    argMaxState(source.quantity, (source.timestamp, source.event_id)) AS quantity_latest,
    uniqExactStateIf(source.unique_key, source.unique_key != '') AS unique_keys,
    quantileTDigestState(toFloat64(source.quantity)) AS quantity_percentiles
FROM metering.events AS source
GROUP BY tenant_id, meter, window_start, dimensions;
