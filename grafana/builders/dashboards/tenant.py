"""Tenant: what one tenant used, of which kind, how much of its quotas, and what it sent last."""

from typing import Final

from grafana.builders import sql, usage_panels, usage_sql
from grafana.builders.dashboard import Annotation, Dashboard
from grafana.builders.layout import Row
from grafana.builders.panel import USED, Column, Panel, dashboard_link
from grafana.builders.panels import bar_chart, gauge, table
from grafana.builders.variables import Variable, meter_variable, query_variable, tenant_variable

_DIMENSION: Final = f"dimensions[{sql.text('dimension')}]"
_LABEL: Final = f"if({_DIMENSION} = '', '(none)', {_DIMENSION})"
_TO_EVENTS: Final = dashboard_link(
    "Events of this meter",
    usage_panels.EVENTS,
    keep=("tenant",),
    values={"meter": "${__data.fields.meter}"},
)
_QUOTA_NAME: Final = (
    "concat(toString(meter), ' per ', toString(period), if(filter = '{}', '', concat(', ', arrayStringConcat(arrayMap(name -> arrayStringConcat("
    "JSONExtract(filter, name, 'Array(String)'), ', '), JSONExtractKeys(filter)), ', '))))"
)


def build() -> Dashboard:
    """The dashboard."""
    return Dashboard(
        uid=usage_panels.TENANT,
        title="Metering / Tenant",
        description="One tenant: usage by meter and dimension, its quotas, month over month, its last events.",
        variables=(
            tenant_variable(multi=False),
            meter_variable(sql.TENANT),
            _dimension_variable(),
        ),
        annotations=(
            Annotation(
                name="Quota changes",
                color="purple",
                sql=(
                    "SELECT at AS time, "
                    "concat(if(action = 'quota.delete', 'Quota deleted: ', 'Quota changed: '), target, "
                    "' by key ', toString(key_id)) AS text, "
                    "if(tenant_id = '', 'every tenant', tenant_id) AS tags "
                    "FROM metering.audit_log WHERE $__timeFilter_ms(at) AND startsWith(action, 'quota.') "
                    f"AND (tenant_id = '' OR {sql.TENANT}) ORDER BY at LIMIT 500"
                ),
            ),
        ),
        rows=(
            Row(panels=_stats()),
            Row(
                title="Usage",
                panels=(
                    usage_panels.usage_table(links=(_TO_EVENTS,), count_tenants=False),
                    usage_panels.month_table(),
                    usage_panels.measurements_panel(),
                ),
            ),
            Row(title="Quotas", panels=(_quota_gauges(), _quota_table())),
            Row(title="Last events", panels=(_last_events(),)),
            Row(
                title="$meter by $dimension",
                repeat="meter",
                collapsed=True,
                panels=(
                    usage_panels.over_time_panel(
                        label=_LABEL,
                        name="value",
                        title="Usage by $dimension over time",
                        by="the chosen dimension",
                        width=16,
                    ),
                    usage_panels.largest_panel(
                        label=_LABEL,
                        name="value",
                        title="Usage by $dimension",
                        by="the chosen dimension",
                        width=6,
                    ),
                    _months(),
                ),
            ),
        ),
    )


def _dimension_variable() -> Variable:
    return query_variable(
        name="dimension",
        label="Dimension",
        description="What usage is split by, in the rows of the meters.",
        sql=(
            f"SELECT DISTINCT arrayJoin(mapKeys(dimensions)) AS dimension FROM {sql.DAY} "
            f"WHERE {sql.FROM_DAY} AND {sql.SCOPE} ORDER BY dimension LIMIT 200"
        ),
        multi=False,
    )


def _stats() -> tuple[Panel, ...]:
    return (
        usage_panels.period_stat(
            title="Measurements",
            description="Measurements that were counted, over all meters.",
            expression="toInt64(sumIf(quantity_count, {period}))",
            name="measurements",
            columns="quantity_count",
            width=5,
        ),
        usage_panels.period_stat(
            title="Meters with usage",
            description="Meters that the tenant used.",
            expression="uniqExactIf(meter, {period})",
            name="meters",
            columns="meter",
            width=5,
        ),
        usage_panels.newest_stat(width=5),
        usage_panels.quota_stat(
            title="Quotas above 80 %",
            description="Quotas of which 80 % of the limit or more was used.",
            share=0.8,
            steps="warning",
            width=5,
        ),
        usage_panels.quota_stat(
            title="Quotas exhausted",
            description="Quotas whose limit was reached or passed.",
            share=1,
            steps="bad",
        ),
    )


def _quota_gauges() -> Panel:
    return gauge(
        title="Part of each quota that was used",
        description="Used part of the limit in the period that holds the end of the chosen time: orange from 80 %, "
        "red from 100 %. The eight that are used most.",
        sql=(
            f"SELECT {_QUOTA_NAME} AS quota, {usage_panels.QUOTA_SHARE} AS used "
            "FROM metering.quota_usage FINAL "
            f"WHERE {usage_panels.QUOTA_NOW} AND {sql.SCOPE} ORDER BY used DESC, quota LIMIT 8"
        ),
        unit="percentunit",
        no_value="This tenant has no quota",
        steps=USED,
        maximum=1,
        decimals=0,
        width=9,
        height=8,
    )


def _quota_table() -> Panel:
    return table(
        title="Quotas",
        description="Limit and use of each quota in the period that holds the end of the chosen time. "
        "A hard quota refuses what is beyond limit and grace; a soft one only counts.",
        sql=(
            f"SELECT {_QUOTA_NAME} AS quota, toString(enforcement) AS enforcement, "
            f"toFloat64(quantity_used) AS used, toFloat64(quantity_limit) AS quota_limit, "
            f"{usage_panels.QUOTA_SHARE} AS share, "
            "toFloat64(greatest(quantity_limit - quantity_used, 0)) AS remaining, "
            "period_end AS resets_at FROM metering.quota_usage FINAL "
            f"WHERE {usage_panels.QUOTA_NOW} AND {sql.SCOPE} ORDER BY share DESC, quota LIMIT 200"
        ),
        unit="locale",
        no_value="-",
        columns=(
            Column(name="quota", title="Quota", width=310),
            Column(name="enforcement", title="Kind", width=70),
            Column(name="used", title="Used"),
            Column(name="quota_limit", title="Limit"),
            Column(
                name="share",
                title="Part",
                unit="percentunit",
                decimals=0,
                cell="color-text",
                steps=USED,
                width=70,
            ),
            Column(name="remaining", title="Remaining"),
            Column(name="resets_at", title="Begins anew", unit="dateTimeAsIso", width=165),
        ),
        width=15,
        height=8,
    )


def _months() -> Panel:
    return bar_chart(
        title="Month over month",
        description="Usage in each of the last twelve calendar months (UTC); the last one is not over yet. "
        + sql.ROLLUP_NOTE,
        sql=usage_sql.months(f"{sql.TENANT} AND {usage_sql.ONE_METER}"),
        unit="short",
        no_value="No usage in these months",
        x="month",
        width=6,
    )


def _last_events() -> Panel:
    return table(
        title="Last events",
        description="The newest hundred events of the chosen time.",
        sql=(
            "SELECT timestamp AS time, toString(meter) AS meter, toFloat64(quantity) AS quantity, "
            "toString(service_name) AS service, "
            "arrayStringConcat(arrayMap((name, value) -> concat(name, '=', value), mapKeys(dimensions), "
            "mapValues(dimensions)), ', ') AS dimensions, toString(event_id) AS event "
            f"FROM {sql.EVENTS} WHERE $__timeFilter_ms(timestamp) AND {sql.SCOPE} "
            "ORDER BY timestamp DESC, event LIMIT 100"
        ),
        unit="locale",
        no_value="-",
        pages=True,
        columns=(
            Column(name="time", title="Time", unit="dateTimeAsIso", width=150),
            Column(name="meter", title="Meter", links=(_TO_EVENTS,)),
            Column(name="quantity", title="Quantity", width=130),
            Column(name="service", title="Service", width=120),
            Column(name="dimensions", title="Dimensions"),
            Column(
                name="event",
                title="Event",
                width=335,
                links=(
                    dashboard_link(
                        "This event",
                        usage_panels.EVENTS,
                        keep=("tenant",),
                        values={"event": "${__data.fields.event}"},
                    ),
                ),
            ),
        ),
        height=11,
    )
