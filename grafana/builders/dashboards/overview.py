"""Overview: how much of every meter was used, by whom, and where the month is heading."""

from typing import Final

from grafana.builders import sql, usage_panels, usage_sql
from grafana.builders.dashboard import Dashboard
from grafana.builders.layout import Row
from grafana.builders.panel import Column, Panel, dashboard_link
from grafana.builders.panels import table
from grafana.builders.variables import meter_variable, tenant_variable

_TO_TENANT: Final = dashboard_link(
    "This tenant",
    usage_panels.TENANT,
    keep=("meter",),
    values={"tenant": "${__data.fields.tenant}"},
)
_SERIES_TO_TENANT: Final = dashboard_link(
    "This tenant",
    usage_panels.TENANT,
    keep=("meter",),
    values={"tenant": "${__field.labels.tenant}"},
)
_TO_EVENTS: Final = dashboard_link(
    "Events of this meter",
    usage_panels.EVENTS,
    keep=("tenant",),
    values={"meter": "${__data.fields.meter}"},
)


def build() -> Dashboard:
    """The dashboard."""
    return Dashboard(
        uid=usage_panels.OVERVIEW,
        title="Metering / Overview",
        description="Usage of all meters: totals with the period before, over time, by tenant, and the month's end.",
        variables=(tenant_variable(), meter_variable(sql.TENANT)),
        rows=(
            Row(panels=_stats()),
            Row(
                title="Meters",
                panels=(usage_panels.usage_table(links=(_TO_EVENTS,)), usage_panels.month_table()),
            ),
            Row(title="Over time", panels=(usage_panels.measurements_panel(),)),
            Row(title="Tenants", panels=(_top_tenants(),)),
            Row(
                title="$meter by tenant",
                repeat="meter",
                collapsed=True,
                panels=(
                    usage_panels.over_time_panel(
                        label="toString(tenant_id)",
                        name="tenant",
                        title="Usage by tenant over time",
                        by="tenant",
                        links=(_SERIES_TO_TENANT,),
                    ),
                    usage_panels.largest_panel(
                        label="toString(tenant_id)",
                        name="tenant",
                        title="Largest tenants",
                        by="tenant",
                        links=(_TO_TENANT,),
                    ),
                ),
            ),
        ),
    )


def _stats() -> tuple[Panel, ...]:
    return (
        usage_panels.period_stat(
            title="Tenants with usage",
            description="Tenants with usage of any chosen meter.",
            expression="uniqExactIf(tenant_id, {period})",
            name="tenants",
            columns="tenant_id",
        ),
        usage_panels.period_stat(
            title="Meters with usage",
            description="Meters that any chosen tenant used.",
            expression="uniqExactIf(meter, {period})",
            name="meters",
            columns="meter",
        ),
        usage_panels.period_stat(
            title="Measurements",
            description="Measurements that were counted, over all meters.",
            expression="toInt64(sumIf(quantity_count, {period}))",
            name="measurements",
            columns="quantity_count",
        ),
        usage_panels.newest_stat(),
        usage_panels.quota_stat(
            title="Quotas above 80 %",
            description="Quotas of which 80 % of the limit or more was used.",
            share=0.8,
            steps="warning",
        ),
        usage_panels.quota_stat(
            title="Quotas exhausted",
            description="Quotas whose limit was reached or passed.",
            share=1,
            steps="bad",
        ),
    )


def _top_tenants() -> Panel:
    return table(
        title="Top tenants of each meter",
        description="The five tenants that used most of each meter, and their part of it where a meter adds up "
        f"(sum and count). {sql.WHOLE_NOTE} {sql.ROLLUP_NOTE}",
        sql=usage_sql.top_tenants(),
        unit="locale",
        no_value="-",
        pages=True,
        columns=(
            Column(name="meter", title="Meter", links=(_TO_EVENTS,)),
            Column(name="tenant", title="Tenant", links=(_TO_TENANT,)),
            Column(name="usage", title="Usage"),
            Column(name="unit", title="Unit", width=140),
            Column(
                name="share",
                title="Part of the meter's usage",
                unit="percentunit",
                decimals=1,
                cell="gauge",
                maximum=1,
                steps=((None, "blue"),),
            ),
        ),
        height=11,
    )
