"""The numbers themselves: rollups that differ from their source, repetitions, and what could not be billed."""

from typing import Final

from grafana.builders.alerting.rule import (
    DAYS,
    HOURS,
    MINUTES,
    Compare,
    Group,
    OnError,
    Panel,
    Rule,
    Severity,
)

# Each part has its source with plus and its rollup with minus; what does not come to zero has drifted.
_DRIFT: Final = """
WITH
    toStartOfHour($__fromTime, 'UTC') AS first_hour,
    toStartOfHour($__toTime, 'UTC') AS end_hour,
    toDateTime(toStartOfDay($__toTime, 'UTC'), 'UTC') AS end_day,
    end_day - INTERVAL 1 DAY AS first_day
SELECT rollup_table, meter, toFloat64(count()) AS value
FROM (
    SELECT rollup_table, meter
    FROM (
        SELECT 'usage_hour' AS rollup_table, toString(meter) AS meter, toString(tenant_id) AS tenant_id,
            toUnixTimestamp(toStartOfHour(timestamp, 'UTC')) AS starts, quantity AS quantity, toInt64(observations) AS measurements
        FROM metering.events WHERE timestamp >= first_hour AND timestamp < end_hour
        UNION ALL
        SELECT 'usage_hour', toString(meter), toString(tenant_id),
            toUnixTimestamp(toStartOfHour(timestamp, 'UTC')), -quantity, -toInt64(observations)
        FROM metering.event_corrections WHERE timestamp >= first_hour AND timestamp < end_hour
        UNION ALL
        SELECT 'usage_hour', toString(meter), toString(tenant_id),
            toUnixTimestamp(window_start), -quantity_sum, -toInt64(quantity_count)
        FROM metering.usage_hour WHERE window_start >= first_hour AND window_start < end_hour
        UNION ALL
        SELECT 'usage_day', toString(meter), toString(tenant_id),
            toUnixTimestamp(end_day), quantity_sum, toInt64(quantity_count)
        FROM metering.usage_hour WHERE window_start >= first_day AND window_start < end_day
        UNION ALL
        SELECT 'usage_day', toString(meter), toString(tenant_id),
            toUnixTimestamp(end_day), -quantity_sum, -toInt64(quantity_count)
        FROM metering.usage_day WHERE window_start >= first_day AND window_start < end_day
    )
    GROUP BY rollup_table, meter, tenant_id, starts
    HAVING sum(quantity) != 0 OR sum(measurements) != 0
)
GROUP BY rollup_table, meter
ORDER BY value DESC, rollup_table, meter
LIMIT 1000
"""

_DUPLICATES: Final = """
SELECT repeated / uses AS value
FROM (
    SELECT
        sumIf(s.value, s.name = 'refused' AND s.reason = 'duplicate') AS repeated,
        sumIf(s.value, s.name = 'in') AS uses
    FROM metering.pipeline_stats AS s
    WHERE s.stage = 'ingest' AND s.name IN ('in', 'refused') AND s.stat = 'delta' AND $__timeFilter(s.at)
)
WHERE uses >= 100
"""

_QUARANTINE: Final = """
SELECT toString(q.reason) AS reason, toFloat64(count()) AS value
FROM metering.quarantine AS q
LEFT ANTI JOIN (
    SELECT event_id FROM metering.quarantine_resolved WHERE $__timeFilter(ingested_at)
) AS resolved ON resolved.event_id = q.event_id
WHERE $__timeFilter(q.ingested_at)
GROUP BY q.reason
ORDER BY value DESC, reason
LIMIT 100
"""


def group() -> Group:
    """The rules about data."""
    return Group(
        name="metering-data",
        interval_seconds=5 * MINUTES,
        rules=(_drift(), _duplicates(), _quarantine()),
    )


def _drift() -> Rule:
    return Rule(
        uid="metering-rollup-drift",
        title="A rollup differs from its events",
        sql=_DRIFT,
        last_seconds=6 * HOURS,
        delay_seconds=5 * MINUTES,
        fires=Compare("gt", 0),
        recovers=None,
        for_seconds=15 * MINUTES,
        # The hour leaves the rule's sight, and is wrong all the same.
        keep_seconds=DAYS,
        severity=Severity.CRITICAL,
        panel=Panel("metering-quality", "Hours that differ"),
        summary="{{ .Labels.rollup_table }} differs from its source in {{ .Values.B.Value }} windows of {{ .Labels.meter }}",
        description="Closed hours and the last closed day are compared. Totals and bills read the rollups. This must not happen, and does not go away by itself.",
        on_error=OnError.ERROR,
    )


def _duplicates() -> Rule:
    return Rule(
        uid="metering-duplicates",
        title="Much usage is sent twice",
        sql=_DUPLICATES,
        last_seconds=15 * MINUTES,
        fires=Compare("gt", 0.2),
        recovers=Compare("lt", 0.1),
        for_seconds=10 * MINUTES,
        keep_seconds=10 * MINUTES,
        severity=Severity.WARNING,
        panel=Panel("metering-pipeline", "Duplicates"),
        summary="{{ humanizePercentage .Values.B.Value }} of the usage was sent before",
        description="It was counted once. But a sender does not get its answers, or sends everything twice.",
    )


def _quarantine() -> Rule:
    return Rule(
        uid="metering-quarantine-growing",
        title="Usage cannot be billed",
        sql=_QUARANTINE,
        last_seconds=30 * MINUTES,
        fires=Compare("gt", 0),
        recovers=None,
        for_seconds=10 * MINUTES,
        keep_seconds=15 * MINUTES,
        severity=Severity.WARNING,
        panel=Panel("metering-quality", "Into quarantine, by reason"),
        summary="{{ .Values.B.Value }} items went into quarantine in half an hour: {{ .Labels.reason }}",
        description="They are kept, and nobody is billed for them until they are replayed.",
    )
