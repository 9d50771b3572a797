"""Quotas: how much of them was used, and whether they will do."""

from typing import Final

from grafana.builders.alerting.rule import (
    DAYS,
    HOURS,
    MINUTES,
    Compare,
    Group,
    Panel,
    Rule,
    Severity,
)

# The database keeps a row for each period; one quota has one that is now. Were its period changed, it would have
# two, which one rule cannot have: the later one counts.
_USED: Final = """
SELECT tenant_id, meter, quota_id, period, enforcement, value
FROM (
    SELECT
        toString(u.tenant_id) AS tenant_id,
        toString(u.meter) AS meter,
        u.quota_id AS quota_id,
        toString(argMax(u.period, u.period_start)) AS period,
        toString(argMax(u.enforcement, u.period_start)) AS enforcement,
        argMax(toFloat64(u.quantity_used) / toFloat64(u.quantity_limit), u.period_start) AS value
    FROM metering.quota_usage AS u FINAL
    WHERE u.period_start <= $__toTime AND (u.period_end IS NULL OR u.period_end > $__toTime)
        AND NOT u.is_deleted AND u.quantity_limit > 0
    GROUP BY u.tenant_id, u.meter, u.quota_id
)
WHERE value >= 0.5
ORDER BY value DESC, tenant_id, meter, quota_id
LIMIT 1000
"""

_PROJECTED: Final = """
SELECT tenant_id, meter, quota_id, period, value
FROM (
    SELECT
        toString(u.tenant_id) AS tenant_id,
        toString(u.meter) AS meter,
        u.quota_id AS quota_id,
        toString(argMax(u.period, u.period_start)) AS period,
        argMax(toFloat64(u.quantity_used) / toFloat64(u.quantity_limit), u.period_start) AS used,
        argMax(
            dateDiff('second', u.period_start, u.updated_at) / dateDiff('second', u.period_start, u.period_end),
            u.period_start
        ) AS elapsed,
        used / elapsed AS value
    FROM metering.quota_usage AS u FINAL
    WHERE u.period_start <= $__toTime AND u.period_end > $__toTime
        AND NOT u.is_deleted AND u.quantity_limit > 0 AND u.period IN ('day', 'week', 'month')
    GROUP BY u.tenant_id, u.meter, u.quota_id
)
WHERE elapsed >= 0.2 AND used < 1 AND value >= 0.8
ORDER BY value DESC, tenant_id, meter, quota_id
LIMIT 1000
"""

_PANEL: Final = Panel("metering-quotas", "How much of each quota was used")


def group() -> Group:
    """The rules about quotas."""
    return Group(
        name="metering-quota",
        interval_seconds=MINUTES,
        rules=(_warning(), _reached(), _overrun()),
    )


def _warning() -> Rule:
    return Rule(
        uid="metering-quota-80",
        title="A quota is 80 % used",
        sql=_USED,
        last_seconds=HOURS,
        fires=Compare("gte", 0.8),
        recovers=Compare("lt", 0.75),
        for_seconds=2 * MINUTES,
        keep_seconds=5 * MINUTES,
        severity=Severity.WARNING,
        panel=_PANEL,
        summary="{{ .Labels.tenant_id }} has used {{ humanizePercentage .Values.B.Value }} of its {{ .Labels.period }} of {{ .Labels.meter }}",
        description="The tenant may reach the limit of quota {{ .Labels.quota_id }} ({{ .Labels.enforcement }}) before the period ends.",
    )


def _reached() -> Rule:
    return Rule(
        uid="metering-quota-100",
        title="A quota is used up",
        sql=_USED,
        last_seconds=HOURS,
        fires=Compare("gte", 1),
        recovers=Compare("lt", 0.95),
        for_seconds=2 * MINUTES,
        keep_seconds=5 * MINUTES,
        severity=Severity.CRITICAL,
        panel=_PANEL,
        summary="{{ .Labels.tenant_id }} has used up its {{ .Labels.period }} of {{ .Labels.meter }}: {{ humanizePercentage .Values.B.Value }}",
        description="If quota {{ .Labels.quota_id }} is hard ({{ .Labels.enforcement }}), services that ask before usage refuse this tenant until the period ends.",
    )


def _overrun() -> Rule:
    return Rule(
        uid="metering-quota-overrun",
        title="A quota will not last",
        sql=_PROJECTED,
        last_seconds=31 * DAYS,
        fires=Compare("gt", 1),
        recovers=Compare("lt", 0.95),
        for_seconds=15 * MINUTES,
        keep_seconds=30 * MINUTES,
        severity=Severity.WARNING,
        panel=Panel("metering-quotas", "Time until a quota is used up"),
        summary="{{ .Labels.tenant_id }} will use {{ humanizePercentage .Values.B.Value }} of its {{ .Labels.period }} of {{ .Labels.meter }}",
        description="If the tenant goes on as it did since the period began, quota {{ .Labels.quota_id }} is used up before the period ends.",
    )
