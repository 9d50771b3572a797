"""Quotas and budgets: how much of each was used, which will not last, and which did not."""

from grafana.builders import sql
from grafana.builders.dashboard import Annotation, Dashboard
from grafana.builders.layout import Row
from grafana.builders.panel import (
    ANY_IS_BAD,
    ANY_IS_WARNING,
    BAD,
    GOOD,
    MUTED,
    NEUTRAL,
    USED,
    WARNING,
    Column,
    Panel,
    Steps,
    dashboard_link,
)
from grafana.builders.panels import stat, table
from grafana.builders.variables import meter_variable, tenant_variable

_COLUMNS = (
    "tenant_id, meter, quota_id, is_default, filter, toString(period) AS period_name, period_start, period_end, "
    "toString(enforcement) AS enforced, toFloat64(quantity_limit) AS units, toFloat64(quantity_used) AS used, "
    "if(quantity_limit > 0, used / units, 1) AS share"
)
"""A limit of nothing is used up."""

IN_FORCE = (
    f"(SELECT {_COLUMNS} FROM metering.quota_usage FINAL WHERE period_start <= $__toTime "
    f"AND (period_end IS NULL OR period_end > $__toTime) AND {sql.SCOPE} AND NOT is_deleted)"
)
"""The period of each quota that holds the end of the chosen time."""

_SINCE = "toStartOfHour($__toTime - INTERVAL 1 DAY, 'UTC')"

_RECENT = (
    "(SELECT tenant_id, meter, dimensions, sum(quantity_sum) AS quantity, toInt64(sum(quantity_count)) AS count "
    f"FROM metering.usage_hour WHERE window_start >= {_SINCE} AND window_start <= $__toTime AND {sql.SCOPE} "
    "GROUP BY tenant_id, meter, dimensions)"
)

_IN_FILTER = (
    "arrayAll(name -> has(JSONExtract(filter, name, 'Array(String)'), dimensions[name]), "
    "JSONExtractKeys(filter))"
)
"""Usage with these dimensions counts against a quota with this filter."""

_TO_END = "dateDiff('second', $__toTime, period_end)"

PROJECTED = (
    "(SELECT tenant_id, meter, quota_id, filter, period_name, period_end, units, used, share, "
    f"sumIf(if(aggregation = 'count', toFloat64(count), toFloat64(quantity)), {_IN_FILTER}) "
    f"/ (toUnixTimestamp($__toTime) - toUnixTimestamp({_SINCE})) AS rate, "
    "if(rate > 0 AND share < 1, (units - used) / rate, NULL) AS lasts, "
    f"if(units > 0, (used + rate * {_TO_END}) / units, NULL) AS share_at_end "
    f"FROM {IN_FORCE} AS quotas LEFT JOIN {_RECENT} AS recent USING (tenant_id, meter) "
    f"LEFT ANY JOIN {sql.DEFINITIONS} AS definitions USING (meter) "
    "GROUP BY tenant_id, meter, quota_id, filter, period_name, period_end, units, used, share)"
)
"""Quotas in force, and how long they last if usage goes on as in the last day."""

_RATE_NOTE = (
    "The rate is that of the last 24 hours before the end of the chosen time (from usage_hour), whatever the "
    "period; usage outside of a quota's filter is left out."
)
_FRESH_NOTE = "What was used is written once a minute."
NO_QUOTAS = "No quota in force"

_TO_TENANT = dashboard_link(
    "All usage of this tenant",
    "metering-tenant",
    values={"tenant": "${__data.fields.tenant}", "meter": "${__data.fields.meter}"},
)
_TENANT = Column(name="tenant", title="Tenant", links=(_TO_TENANT,))
_METER = Column(name="meter", title="Meter")
_FILTER = Column(name="filter", title="Only where", width=300)
_DAY = "time:YYYY-MM-DD"
_SHARE = Column(
    name="share", title="Used", unit="percentunit", decimals=1, cell="gauge", steps=USED, maximum=1
)
_SHORT: Steps = ((None, BAD), (86_400, WARNING), (7 * 86_400, GOOD))
_SHOWN_FILTER = (
    "arrayStringConcat(arrayMap(name -> concat(name, ' = ', arrayStringConcat("
    "JSONExtract(filter, name, 'Array(String)'), ', ')), JSONExtractKeys(filter)), ' and ') AS filter"
)


def build() -> Dashboard:
    """The dashboard."""
    return Dashboard(
        uid="metering-quotas",
        title="Metering / Quotas and budgets",
        description="Limits of tenants: how much of each was used, how long it lasts, and where there is none.",
        variables=(tenant_variable(), meter_variable(sql.TENANT)),
        time_from="now-30d",
        annotations=(_changes(),),
        rows=(
            Row(panels=_figures()),
            Row(title="In force", panels=(_used(),)),
            Row(title="How long they last", panels=(_lasting(),)),
            Row(title="Used up in the chosen time", panels=(_used_up(),)),
            Row(title="Without a quota", panels=(_without(),)),
        ),
    )


def _changes() -> Annotation:
    return Annotation(
        name="Changes of quotas",
        sql=(
            "SELECT at AS time, concat(action, ' ', target, ' by ', key_id) AS text, tenant_id AS tags "
            "FROM metering.audit_log WHERE $__timeFilter(at) AND startsWith(action, 'quota.') "
            f"AND {sql.TENANT} ORDER BY time LIMIT 200"
        ),
        color=NEUTRAL,
    )


def _count(title: str, text: str, query: str, steps: Steps) -> Panel:
    return stat(
        title=title,
        description=text,
        sql=query,
        steps=steps,
        unit="short",
        decimals=0,
        no_value=NO_QUOTAS,
        width=4,
    )


def _figures() -> tuple[Panel, ...]:
    counted = f"FROM {IN_FORCE} HAVING count() > 0"
    is_early = f"lasts < {_TO_END}"
    return (
        _count(
            "Quotas in force",
            "Limits of tenants, those of a default quota by tenant, whose period holds the end of the chosen time.",
            f"SELECT toFloat64(count()) AS value {counted}",
            ((None, NEUTRAL),),
        ),
        _count(
            "Used up",
            f"Quotas of which 100 % or more was used. {_FRESH_NOTE}",
            f"SELECT toFloat64(countIf(share >= 1)) AS value {counted}",
            ANY_IS_BAD,
        ),
        _count(
            "Over 80 %",
            f"Quotas of which 80 % or more, but not all, was used. {_FRESH_NOTE}",
            f"SELECT toFloat64(countIf(share >= 0.8 AND share < 1)) AS value {counted}",
            ANY_IS_WARNING,
        ),
        _count(
            "Will not last",
            "Quotas that are not used up yet, and will be before their period ends if usage goes on as it is. "
            + _RATE_NOTE,
            f"SELECT toFloat64(countIf({is_early})) AS value FROM {PROJECTED} HAVING count() > 0",
            ANY_IS_WARNING,
        ),
        stat(
            title="Highest share",
            description=f"The largest part of a limit that a tenant has used. {_FRESH_NOTE}",
            sql=f"SELECT max(share) AS value {counted}",
            unit="percentunit",
            decimals=1,
            no_value=NO_QUOTAS,
            steps=USED,
            width=4,
        ),
        stat(
            title="Tenants without a quota",
            description="Tenants with usage in the chosen time, none of which has a limit at its end.",
            sql=(
                "SELECT toFloat64(uniqExactIf(tenant_id, tenant_id NOT IN "
                f"(SELECT tenant_id FROM {IN_FORCE}))) AS value FROM metering.usage_day "
                f"WHERE {sql.FROM_DAY} AND {sql.SCOPE} HAVING count() > 0"
            ),
            unit="short",
            decimals=0,
            no_value="No usage in this time",
            steps=((None, MUTED),),
            width=4,
        ),
    )


def _used() -> Panel:
    return table(
        title="How much of each quota was used",
        description="Every quota in force, the most used first. A default quota has a line for each tenant it holds "
        f"for. {_FRESH_NOTE}",
        sql=(
            "SELECT toString(tenant_id) AS tenant, toString(meter) AS meter, share, used, units, "
            "greatest(units - used, 0) AS remaining, enforced, period_name, period_end, "
            f"if(is_default, 'default', 'own') AS kind, {_SHOWN_FILTER} "
            f"FROM {IN_FORCE} ORDER BY share DESC, tenant, meter, quota_id LIMIT 500"
        ),
        unit="short",
        no_value=NO_QUOTAS,
        height=8,
        columns=(
            _TENANT,
            _METER,
            _SHARE,
            Column(name="used", title="Used units", unit="short"),
            Column(name="units", title="Limit", unit="short"),
            Column(name="remaining", title="Left", unit="short"),
            Column(
                name="enforced",
                title="Enforcement",
                cell="color-text",
                mappings={"hard": ("hard", WARNING), "soft": ("soft", NEUTRAL)},
                width=110,
            ),
            Column(name="period_name", title="Period", width=90),
            Column(name="period_end", title="Begins anew", unit="dateTimeFromNow"),
            Column(name="kind", title="Whose", width=90),
            _FILTER,
        ),
    )


def _lasting() -> Panel:
    return table(
        title="Time until a quota is used up",
        description="Quotas that are not used up and whose tenant used something lately, the shortest first: if usage "
        f"goes on as it is, when nothing is left, and how much of the limit is used when the period ends. {_RATE_NOTE}",
        sql=(
            "SELECT toString(tenant_id) AS tenant, toString(meter) AS meter, share, lasts, "
            f"if(period_end IS NULL, NULL, {_TO_END}) AS ends, share_at_end, rate * 86400 AS per_day, "
            f"units - used AS remaining, period_name, {_SHOWN_FILTER} "
            f"FROM {PROJECTED} WHERE lasts IS NOT NULL ORDER BY lasts, tenant, meter, quota_id LIMIT 200"
        ),
        unit="short",
        height=7,
        no_value="No quota in force is being used",
        columns=(
            _TENANT,
            _METER,
            _SHARE,
            Column(
                name="lasts",
                title="Lasts for",
                unit="s",
                decimals=1,
                cell="color-text",
                steps=_SHORT,
            ),
            Column(name="ends", title="Period ends in", unit="s", decimals=1),
            Column(
                name="share_at_end",
                title="Used at its end",
                unit="percentunit",
                decimals=0,
                cell="gauge",
                steps=USED,
                maximum=1,
            ),
            Column(name="per_day", title="Per day", unit="short"),
            Column(name="remaining", title="Left", unit="short"),
            Column(name="period_name", title="Period", width=90),
            _FILTER,
        ),
    )


def _used_up() -> Panel:
    periods = (
        f"(SELECT {_COLUMNS} FROM metering.quota_usage FINAL WHERE period_start <= $__toTime "
        f"AND (period_end IS NULL OR period_end > $__fromTime) AND {sql.SCOPE} AND NOT is_deleted) WHERE share >= 1"
    )
    return table(
        title="History of quotas that were used up",
        description="Each period that touches the chosen time and has 100 % or more of its limit used, the latest first. "
        "Past periods keep what was used when they ended.",
        sql=(
            "SELECT toString(tenant_id) AS tenant, toString(meter) AS meter, period_name, "
            "period_start, period_end, share, greatest(used - units, 0) AS beyond, units, enforced, "
            f"{_SHOWN_FILTER} FROM {periods} "
            "ORDER BY period_start DESC, share DESC, tenant, meter, quota_id LIMIT 500"
        ),
        unit="short",
        no_value="No quota was used up in this time",
        height=6,
        columns=(
            _TENANT,
            _METER,
            Column(name="period_name", title="Period", width=90),
            Column(name="period_start", title="From", unit=_DAY, width=105),
            Column(name="period_end", title="To", unit=_DAY, width=105),
            Column(
                name="share",
                title="Used",
                unit="percentunit",
                decimals=1,
                cell="color-text",
                steps=USED,
            ),
            Column(name="beyond", title="Beyond", unit="short"),
            Column(name="units", title="Limit", unit="short"),
            Column(name="enforced", title="Enforcement", width=110),
            _FILTER,
        ),
    )


def _without() -> Panel:
    return table(
        title="Usage that no quota limits",
        description="Tenants with usage in the chosen time of meters for which no quota of theirs, and no default one, "
        "is in force at its end. Only meters that add up (sum, count) can have a quota. The first ten meters are named.",
        sql=(
            "SELECT toString(tenant_id) AS tenant, toFloat64(count()) AS number, "
            "arrayStringConcat(arraySlice(arraySort(groupArray(toString(meter))), 1, 10), ', ') AS meters, "
            "toFloat64(sum(measured)) AS measurements, "
            f"if(tenant IN (SELECT toString(tenant_id) FROM {IN_FORCE}), 'for other meters', 'none') AS quotas "
            "FROM (SELECT tenant_id, meter, toInt64(sum(quantity_count)) AS measured FROM metering.usage_day "
            f"WHERE {sql.FROM_DAY} AND {sql.SCOPE} GROUP BY tenant_id, meter) AS used "
            f"LEFT ANY JOIN {sql.DEFINITIONS} AS definitions USING (meter) "
            f"WHERE aggregation IN {sql.ADDITIVE} "
            f"AND (toString(tenant_id), toString(meter)) NOT IN (SELECT toString(tenant_id), toString(meter) FROM {IN_FORCE}) "
            "GROUP BY tenant ORDER BY measurements DESC, tenant LIMIT 200"
        ),
        unit="short",
        height=7,
        no_value="All usage in this time has a quota",
        columns=(
            _TENANT_ALONE,
            Column(name="number", title="Meters", unit="short", width=90),
            Column(name="meters", title="Without a quota"),
            Column(name="measurements", title="Measurements", unit="short", width=130),
            Column(
                name="quotas",
                title="Has quotas",
                cell="color-text",
                mappings={
                    "none": ("none", WARNING),
                    "for other meters": ("for other meters", NEUTRAL),
                },
                width=160,
            ),
        ),
    )


_TENANT_ALONE = Column(
    name="tenant",
    title="Tenant",
    width=200,
    links=(
        dashboard_link(
            "All usage of this tenant",
            "metering-tenant",
            values={"tenant": "${__data.fields.tenant}"},
        ),
    ),
)
