"""Panels for usage that more than one dashboard has."""

from collections.abc import Sequence
from typing import Final, Literal

from grafana.builders import sql, usage_sql
from grafana.builders.panel import (
    ANY_IS_BAD,
    ANY_IS_WARNING,
    Column,
    Link,
    Panel,
    Steps,
    Target,
    dashboard_link,
)
from grafana.builders.panels import bar_gauge, stat, table, timeseries

NO_USAGE: Final = "No usage in this time"

OVERVIEW: Final = "metering-overview"
TENANT: Final = "metering-tenant"
EVENTS: Final = "metering-events"
QUOTAS: Final = "metering-quotas"

_CHANGE: Final[Steps] = ((None, "orange"), (-0.5, "text"), (0.5, "orange"))
"""Of a change beside the period before: what halved or rose by half stands out."""


def change_column(title: str = "Change") -> Column:
    """Change beside another period."""
    return Column(
        name="change",
        title=title,
        unit="percentunit",
        decimals=1,
        width=100,
        steps=_CHANGE,
        cell="color-text",
    )


def period_stat(
    *, title: str, description: str, expression: str, name: str, columns: str, width: int = 4
) -> Panel:
    """A number of the chosen time, with its change beside the period before. See `usage_sql.two_periods`."""
    return stat(
        title=title,
        description=f"{description} The percentage is the change beside the period of the same length before. "
        f"{sql.WHOLE_NOTE}",
        sql=usage_sql.two_periods(expression, name, columns),
        unit="short",
        no_value=NO_USAGE,
        percent_change=True,
        width=width,
    )


def newest_stat(width: int = 4) -> Panel:
    """How old the newest usage is."""
    return stat(
        title="Newest usage",
        description="Time from the newest minute with usage to the end of the chosen time; looks back one day.",
        sql=usage_sql.newest_age(),
        unit="s",
        no_value="None in the last day",
        width=width,
        decimals=0,
    )


def quota_stat(
    *, title: str, description: str, share: float, steps: Literal["warning", "bad"], width: int = 4
) -> Panel:
    """How many quotas were used to this part of their limit, or beyond."""
    return stat(
        title=title,
        description=f"{description} Quotas whose period holds the end of the chosen time.",
        sql=(
            f"SELECT countIf({QUOTA_SHARE} >= {share}) AS quotas FROM metering.quota_usage FINAL "
            f"WHERE {QUOTA_NOW} AND {sql.SCOPE}"
        ),
        unit="short",
        no_value="0",
        steps=ANY_IS_WARNING if steps == "warning" else ANY_IS_BAD,
        links=(dashboard_link("Quotas", QUOTAS, keep=("tenant", "meter")),),
        width=width,
    )


QUOTA_NOW: Final = "NOT is_deleted AND period_start <= $__toTime AND (isNull(period_end) OR period_end > $__toTime)"
"""Of metering.quota_usage: the period that holds the end of the chosen time."""

QUOTA_SHARE: Final = "if(quantity_limit = 0, if(quantity_used > 0, 1, 0), toFloat64(quantity_used) / toFloat64(quantity_limit))"
"""Which part of the limit was used; all of it when the limit is nothing and anything was used."""


def usage_table(
    *, links: Sequence[Link] = (), count_tenants: bool = True, width: int = 13
) -> Panel:
    """Usage of each meter beside the period before; `count_tenants`: and how many tenants had any."""
    return table(
        title="Usage by meter",
        description="Usage of each meter as its definition reads it, and in the period of the same length before. "
        f"Meters have different units, so there is no sum over them. {sql.WHOLE_NOTE} {sql.ROLLUP_NOTE}",
        sql=usage_sql.by_meter(count_tenants=count_tenants),
        unit="locale",
        no_value="-",
        columns=(
            Column(name="meter", title="Meter", links=links),
            Column(name="unit", title="Unit", width=95),
            Column(name="aggregation", title="Read as", width=135),
            Column(name="usage", title="Usage"),
            Column(name="previous", title="Period before"),
            change_column(),
            *((Column(name="tenants", title="Tenants", width=90, unit="short"),) * count_tenants),
        ),
        width=width,
        height=10,
    )


def month_table(width: int = 11) -> Panel:
    """Where the month is heading."""
    return table(
        title="Month to date and projection",
        description="The calendar month (UTC) that holds the end of the chosen time: used until then, and at the "
        "month's end if usage goes on at the same rate; from its second day on. The change is that of the projection "
        "beside the last month. Only meters that add up "
        "(sum and count) can be projected.",
        sql=usage_sql.by_month_end(),
        unit="short",
        no_value="-",
        decimals=1,
        columns=(
            Column(name="meter", title="Meter"),
            Column(name="unit", title="Unit", width=85),
            Column(name="month_to_date", title="To date"),
            Column(name="projected", title="Projected"),
            Column(name="last_month", title="Last month"),
            change_column(),
        ),
        width=width,
        height=10,
    )


def measurements_panel(width: int = 24) -> Panel:
    """What was counted over time, by meter."""
    return timeseries(
        title="Measurements over time",
        description="How many measurements each meter counted: the one number that adds up over meters. "
        + sql.BUCKET_NOTE,
        sql=usage_sql.measurements(),
        unit="short",
        no_value=NO_USAGE,
        bars=True,
        stacked=True,
        display_name="${__field.labels.meter}",
        width=width,
        height=9,
    )


def over_time_panel(
    *, label: str, name: str, title: str, by: str, width: int = 14, links: Sequence[Link] = ()
) -> Panel:
    """Usage of the meter of a repeated row over time.

    Args:
        label: Expression over a rollup row, of what makes the series.
        name: Of the label.
        title: Of the panel.
        by: What the series are, for people.
        width: Of 24 columns.
        links: Of a series.
    """
    where = f"{sql.TENANT} AND {usage_sql.ONE_METER}"
    return timeseries(
        title=title,
        description=f"Usage in each bar, by {by}: the eight largest, and the others together. A meter that does not "
        f"add up (minimum, maximum, average, latest, unique, percentiles) is drawn as lines. {sql.BUCKET_NOTE}",
        sql=(
            Target(
                sql=usage_sql.over_time(label, name, kind="additive", where=where),
                series=True,
                ref_id="A",
            ),
            Target(
                sql=usage_sql.over_time(label, name, kind="level", where=where),
                series=True,
                ref_id="B",
            ),
        ),
        unit="short",
        no_value=NO_USAGE,
        bars=True,
        stacked=True,
        legend=("max", "lastNotNull"),
        display_name=f"${{__field.labels.{name}}}",
        data_links=links,
        columns=(
            Column(
                name="B",
                matcher="byFrameRefID",
                properties={
                    "custom.drawStyle": "line",
                    "custom.stacking": {"mode": "none", "group": "A"},
                    "custom.fillOpacity": 0,
                    "custom.lineWidth": 2,
                    "custom.spanNulls": True,
                },
            ),
        ),
        width=width,
        height=9,
    )


def largest_panel(
    *, label: str, name: str, title: str, by: str, width: int = 10, links: Sequence[Link] = ()
) -> Panel:
    """The largest of the meter of a repeated row. Arguments are those of `over_time_panel`."""
    return bar_gauge(
        title=title,
        description=f"Usage in the chosen time by {by}, the ten largest. {sql.WHOLE_NOTE} {sql.ROLLUP_NOTE}",
        sql=usage_sql.largest(label, name, f"{sql.TENANT} AND {usage_sql.ONE_METER}"),
        unit="short",
        no_value=NO_USAGE,
        data_links=links,
        width=width,
        height=9,
    )
