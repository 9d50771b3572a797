"""Usage that is not as usual: far too much, or none."""

from typing import Final

from grafana.builders.alerting.rule import (
    DAYS,
    MINUTES,
    Compare,
    Group,
    OnError,
    Panel,
    Rule,
    Severity,
)

# What is compared is the sum; of a meter that is not a sum, how often it was measured. With the same hours of the
# week before, so that what happens every night is no spike; with the mean hour, so that a quiet hour is none; and
# it has to be the largest of that week, or every tenant with few events would have one now and then.
_SPIKE: Final = """
WITH
    toStartOfHour($__toTime, 'UTC') AS hour_end,
    hour_end - INTERVAL 1 HOUR AS hour_start
SELECT tenant_id, meter, latest / greatest(same_hours, all_hours) AS value
FROM (
    SELECT
        tenant_id,
        meter,
        sumIf(amount, hour = hour_start) AS latest,
        sumIf(measurements, hour = hour_start) AS measured,
        uniqExactIf(toDate(hour, 'UTC'), hour < hour_start) AS days,
        sumIf(amount, hour < hour_start AND toHour(hour, 'UTC') = toHour(hour_start, 'UTC')) / 7 AS same_hours,
        sumIf(amount, hour < hour_start) / 168 AS all_hours,
        maxIf(amount, hour < hour_start) AS largest
    FROM (
        SELECT
            toString(u.tenant_id) AS tenant_id,
            toString(u.meter) AS meter,
            u.window_start AS hour,
            toFloat64(toInt64(sum(u.quantity_count))) AS measurements,
            if(any(d.aggregation) IN ('', 'sum'), toFloat64(sum(u.quantity_sum)), measurements) AS amount
        FROM metering.usage_hour AS u
        LEFT ANY JOIN (
            SELECT meter, toString(aggregation) AS aggregation FROM metering.meter_definitions FINAL WHERE NOT is_deleted
        ) AS d ON d.meter = u.meter
        WHERE u.window_start >= hour_start - INTERVAL 7 DAY AND u.window_start < hour_end
        GROUP BY u.tenant_id, u.meter, u.window_start
    )
    GROUP BY tenant_id, meter
)
WHERE measured >= 10 AND days >= 4 AND all_hours > 0 AND latest > largest AND value >= 1.5
ORDER BY value DESC, tenant_id, meter
LIMIT 1000
"""

# Who has used something in the same two hours of a week ago, and of five of the last seven days, and nothing in
# those of today. Not while nobody uses anything: that is another rule's.
_STOPPED: Final = """
WITH toStartOfHour($__toTime, 'UTC') AS hour_end
SELECT tenant_id, meter, toFloat64(dateDiff('hour', last_used, hour_end) - 1) AS value
FROM (
    SELECT
        tenant_id,
        meter,
        max(hour) AS last_used,
        uniqExactIf(intDiv(age, 24), age >= 24 AND age % 24 < 2) AS days,
        countIf(age IN (168, 169)) AS week_ago
    FROM (
        SELECT
            toString(u.tenant_id) AS tenant_id,
            toString(u.meter) AS meter,
            u.window_start AS hour,
            dateDiff('hour', hour, hour_end) - 1 AS age
        FROM metering.usage_hour AS u
        WHERE u.window_start >= hour_end - INTERVAL 170 HOUR AND u.window_start <= $__toTime
        GROUP BY u.tenant_id, u.meter, u.window_start
        HAVING toInt64(sum(u.quantity_count)) > 0
    )
    GROUP BY tenant_id, meter
)
WHERE days >= 5 AND week_ago > 0 AND value >= 1
    AND (SELECT count() FROM metering.usage_hour WHERE window_start >= hour_end - INTERVAL 1 HOUR AND window_start <= $__toTime) > 0
ORDER BY value, tenant_id, meter
LIMIT 1000
"""


def group() -> Group:
    """The rules about usage."""
    return Group(
        name="metering-usage",
        interval_seconds=5 * MINUTES,
        rules=(_spike(), _stopped()),
    )


def _spike() -> Rule:
    return Rule(
        uid="metering-usage-spike",
        title="A tenant uses far more than usual",
        sql=_SPIKE,
        last_seconds=8 * DAYS,
        delay_seconds=5 * MINUTES,
        fires=Compare("gt", 3),
        recovers=Compare("lt", 2),
        for_seconds=10 * MINUTES,
        keep_seconds=30 * MINUTES,
        severity=Severity.WARNING,
        panel=Panel("metering-tenant", "Measurements over time"),
        summary='{{ .Labels.tenant_id }} used {{ printf "%.1f" .Values.B.Value }} times as much of {{ .Labels.meter }} as usual in the last hour',
        description="Compared with the same hours of the seven days before. Somebody has to know why, before it is on a bill.",
        on_error=OnError.ERROR,
    )


def _stopped() -> Rule:
    return Rule(
        uid="metering-usage-stopped",
        title="A tenant's usage has stopped",
        sql=_STOPPED,
        last_seconds=8 * DAYS,
        delay_seconds=5 * MINUTES,
        fires=Compare("gte", 2),
        recovers=Compare("lt", 1),
        for_seconds=10 * MINUTES,
        keep_seconds=10 * MINUTES,
        severity=Severity.WARNING,
        panel=Panel("metering-tenant", "Measurements over time"),
        summary="{{ .Labels.tenant_id }} has used no {{ .Labels.meter }} for {{ .Values.B.Value }} hours",
        description="At this time of day it always did. Either the tenant has a problem, or its usage does not reach us.",
        on_error=OnError.ERROR,
    )
