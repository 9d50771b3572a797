"""Data quality: do the rollups agree with the events, and what came late, ahead, twice, or unknown."""

from grafana.builders import sql
from grafana.builders.dashboard import Dashboard
from grafana.builders.dashboards.quality_quarantine import (
    ARRIVED,
    ITEMS,
    METER,
    TENANT,
    quarantine,
    unknown,
)
from grafana.builders.layout import Row
from grafana.builders.panel import (
    ANY_IS_BAD,
    ANY_IS_WARNING,
    BAD,
    GOOD,
    Column,
    Panel,
    Steps,
)
from grafana.builders.panels import bar_chart, stat, table
from grafana.builders.variables import meter_variable, tenant_variable

AHEAD_SECONDS = 5
"""A clock that is this much ahead of ours is none that merely ticks a little differently."""

_FIRST = "toStartOfHour($__fromTime, 'UTC')"
_BEHIND_LAST = "toStartOfHour($__toTime, 'UTC')"
_CLOSED_NOTE = "Hours that are over: from the hour in which the chosen time begins to the one before that in which it ends."
_RAW_NOTE = "It reads events: choose a short time where there are very many."


def _of_hours(column: str) -> str:
    return f"{column} >= {_FIRST} AND {column} < {_BEHIND_LAST} AND {sql.SCOPE}"


def sides(keys: str = "") -> str:
    """Subquery: events, less those corrected, and usage_hour, as columns of one table.

    Args:
        keys: More columns to group by beside the meter, of `tenant_id, hour`.
    """
    raw_keys = "meter, tenant_id, toStartOfHour(timestamp, 'UTC') AS hour"
    hour_keys = "meter, tenant_id, toDateTime(window_start, 'UTC') AS hour"
    by = f"meter{keys}"
    raw = "toDecimal128(sum({0}quantity), 9) AS raw, toInt64(sum({0}observations)) AS raw_count"
    none = "toDecimal128(0, 9) AS {0}, toInt64(0) AS {0}_count"
    return (
        f"(SELECT {by}, sum(raw) AS raw, sum(raw_count) AS raw_count, sum(rolled) AS rolled, "
        "sum(rolled_count) AS rolled_count, toFloat64(rolled - raw) AS difference, "
        "rolled_count - raw_count AS count_difference FROM ("
        f"SELECT {raw_keys}, {raw.format('')}, {none.format('rolled')} FROM metering.events "
        f"WHERE {_of_hours('timestamp')} GROUP BY meter, tenant_id, hour "
        f"UNION ALL SELECT {raw_keys}, {raw.format('-')}, {none.format('rolled')} FROM metering.event_corrections "
        f"WHERE {_of_hours('timestamp')} GROUP BY meter, tenant_id, hour "
        f"UNION ALL SELECT {hour_keys}, {none.format('raw')}, toDecimal128(sum(quantity_sum), 9) AS rolled, "
        "toInt64(sum(quantity_count)) AS rolled_count FROM metering.usage_hour "
        f"WHERE {_of_hours('window_start')} GROUP BY meter, tenant_id, hour) GROUP BY {by})"
    )


DIFFERS = "(difference != 0 OR count_difference != 0)"
NO_HOURS = "No hour is over in this time, or it has no usage"

_LATE = "dateDiff('millisecond', timestamp, ingested_at)"
_EVENTS = f"metering.events WHERE $__timeFilter(timestamp) AND {sql.SCOPE}"
_AHEAD = (
    "metering.events WHERE timestamp >= $__fromTime AND timestamp <= $__toTime + INTERVAL 1 DAY "
    f"AND ingested_at <= $__toTime AND timestamp > ingested_at + INTERVAL {AHEAD_SECONDS} SECOND AND {sql.SCOPE}"
)


def build() -> Dashboard:
    """The dashboard."""
    return Dashboard(
        uid="metering-quality",
        title="Metering / Data quality",
        description="Whether rollups agree with events, and what came late, ahead of time, twice, or is not known.",
        variables=(tenant_variable(), meter_variable(sql.TENANT)),
        rows=(
            Row(panels=_figures()),
            Row(title="Rollups and events", panels=_reconciliation()),
            Row(title="Late and ahead of time", panels=_times()),
            Row(title="Quarantine", panels=quarantine()),
            Row(title="Unknown meters, corrections", panels=unknown()),
        ),
    )


def _figures() -> tuple[Panel, ...]:
    told: tuple[tuple[str, str, str, str, Steps], ...] = (
        (
            "Meters that differ",
            "Meters whose rollup by hour is not what their events add up to. It is always 0. "
            + _CLOSED_NOTE,
            f"SELECT toFloat64(countIf{DIFFERS}) AS value FROM {sides()} HAVING count() > 0",
            NO_HOURS,
            ANY_IS_BAD,
        ),
        (
            "Late by over an hour",
            "Events of the chosen time that arrived more than an hour after they happened. They count; a bill that "
            "was made before has to be looked at again.",
            f"SELECT toFloat64(countIf({_LATE} > 3600000)) AS value FROM {_EVENTS} HAVING count() > 0",
            "No usage in this time",
            ANY_IS_WARNING,
        ),
        (
            "Ahead of time",
            f"Events whose time was more than {AHEAD_SECONDS} s ahead when they arrived: a sender's clock is wrong. More than a "
            "day ahead goes into quarantine.",
            f"SELECT toFloat64(count()) AS value FROM {_AHEAD}",
            "None",
            ANY_IS_WARNING,
        ),
        (
            "Conflicts",
            "Items that came into quarantine in the chosen time because they contradict what was counted: another event under "
            "a used id, or a counter that falls.",
            f"SELECT toFloat64(count()) AS value FROM {ARRIVED} AND reason = 'conflict'",
            "None",
            ANY_IS_BAD,
        ),
        (
            "Open in quarantine",
            "Items that came into quarantine in the chosen time, and that nobody has replayed or discarded yet.",
            f"SELECT toFloat64(countIf(how = '')) AS value FROM {ITEMS}",
            "None",
            ANY_IS_WARNING,
        ),
        (
            "Meters without definition",
            "Meters with usage in the chosen time that neither meters.yaml nor the API defines. They are summed.",
            (
                "SELECT toFloat64(uniqExact(meter)) AS value FROM metering.usage_day "
                f"WHERE {sql.FROM_DAY} AND {sql.SCOPE} AND meter NOT IN (SELECT meter FROM {sql.DEFINITIONS})"
            ),
            "None",
            ANY_IS_WARNING,
        ),
    )
    return tuple(
        stat(
            title=title,
            description=text,
            sql=query,
            unit="short",
            decimals=0,
            steps=steps,
            no_value=empty,
            width=4,
        )
        for title, text, query, empty, steps in told
    )


def _reconciliation() -> tuple[Panel, ...]:
    differs: Steps = ((None, BAD), (0, GOOD), (1e-9, BAD))
    return (
        table(
            title="Rollup and events, by meter",
            description="What the events of each meter add up to, without those that were corrected, and what usage_hour says: "
            f"quantities, and measurements (an event can stand for many). {_CLOSED_NOTE} {_RAW_NOTE}",
            sql=(
                "SELECT toString(meter) AS meter, toFloat64(raw) AS raw_quantity, toFloat64(rolled) AS rolled_quantity, difference, "
                "raw_count, rolled_count, count_difference "
                f"FROM {sides()} ORDER BY abs(difference) + abs(count_difference) DESC, meter LIMIT 500"
            ),
            unit="short",
            no_value=NO_HOURS,
            width=14,
            columns=(
                METER,
                Column(name="raw_quantity", title="Events", unit="short", width=100),
                Column(name="rolled_quantity", title="Rollup", unit="short", width=100),
                Column(
                    name="difference",
                    title="Differ by",
                    unit="none",
                    cell="color-text",
                    steps=differs,
                ),
                Column(name="raw_count", title="Count, events", unit="short"),
                Column(name="rolled_count", title="Count, rollup", unit="short"),
                Column(
                    name="count_difference",
                    title="Counts differ",
                    unit="none",
                    cell="color-text",
                    steps=differs,
                ),
            ),
        ),
        table(
            title="Hours that differ",
            description="Where a rollup is not what the events say, the latest first; otherwise nothing. An hour whose events "
            f"are just being stored can be here for a moment. {_RAW_NOTE}",
            sql=(
                "SELECT hour, toString(tenant_id) AS tenant, toString(meter) AS meter, difference, count_difference "
                f"FROM {sides(', tenant_id, hour')} WHERE {DIFFERS} ORDER BY hour DESC, tenant, meter LIMIT 200"
            ),
            unit="none",
            no_value="All hours agree",
            width=10,
            columns=(
                Column(name="hour", title="Hour"),
                TENANT,
                METER,
                Column(name="difference", title="Differ by", cell="color-text", steps=differs),
                Column(
                    name="count_difference",
                    title="Counts differ",
                    cell="color-text",
                    steps=differs,
                ),
            ),
        ),
    )


_STEPS = (
    ("ahead", f"late < -{AHEAD_SECONDS * 1_000}"),
    ("up to 1 s", f"late >= -{AHEAD_SECONDS * 1_000} AND late <= 1000"),
    ("1 to 10 s", "late > 1000 AND late <= 10000"),
    ("10 to 60 s", "late > 10000 AND late <= 60000"),
    ("1 to 10 min", "late > 60000 AND late <= 600000"),
    ("10 to 60 min", "late > 600000 AND late <= 3600000"),
    ("1 to 24 h", "late > 3600000 AND late <= 86400000"),
    ("over a day", "late > 86400000"),
)
"""How late an event came, in milliseconds; each is in exactly one."""


def _times() -> tuple[Panel, ...]:
    counts = ", ".join(f"countIf({condition})" for _, condition in _STEPS)
    titles = ", ".join(f"'{title}'" for title, _ in _STEPS)
    return (
        bar_chart(
            title="How late events come",
            description="Events of the chosen time by how long after they happened they were admitted. Corrected events and those "
            f"replayed from quarantine are late by nature. {_RAW_NOTE}",
            sql=(
                "SELECT step, events FROM ("
                f"SELECT [{counts}] AS counts, [{titles}] AS steps FROM (SELECT {_LATE} AS late FROM {_EVENTS}) "
                "HAVING count() > 0) ARRAY JOIN counts AS events, steps AS step LIMIT 10"
            ),
            x="step",
            unit="locale",
            no_value="No usage in this time",
            width=12,
        ),
        table(
            title="Who sends late",
            description="Tenants and meters with events of the chosen time that came more than a minute late: how many, and how late "
            f"99 % of all their events came at most. {_RAW_NOTE}",
            sql=(
                f"SELECT toString(tenant_id) AS tenant, toString(meter) AS meter, countIf({_LATE} > 60000) AS late, "
                f"late / count() AS share, quantile(0.99)({_LATE}) / 1000 AS p99, max({_LATE}) / 1000 AS longest "
                f"FROM {_EVENTS} GROUP BY tenant, meter HAVING late > 0 ORDER BY late DESC, tenant, meter LIMIT 200"
            ),
            unit="short",
            no_value="Nothing came late in this time",
            width=12,
            columns=(
                TENANT,
                METER,
                Column(name="late", title="Late events", unit="short", width=110),
                Column(
                    name="share", title="Of its events", unit="percentunit", decimals=1, width=110
                ),
                Column(name="p99", title="99 % within", unit="s", decimals=1, width=110),
                Column(name="longest", title="Latest", unit="s", decimals=1, width=110),
            ),
        ),
        table(
            title="Who sends ahead of time",
            description=f"Tenants and meters with events whose time was more than {AHEAD_SECONDS} s ahead when they arrived, up "
            "to a day behind the end of the chosen time, and by which service they were sent.",
            sql=(
                "SELECT toString(tenant_id) AS tenant, toString(meter) AS meter, toString(service_name) AS service, count() AS events, "
                "max(dateDiff('millisecond', ingested_at, timestamp)) / 1000 AS furthest, max(ingested_at) AS last_at "
                f"FROM {_AHEAD} GROUP BY tenant, meter, service ORDER BY events DESC, tenant, meter, service LIMIT 200"
            ),
            unit="short",
            no_value="Nothing came ahead of its time",
            width=12,
            height=6,
            columns=(
                TENANT,
                METER,
                Column(name="service", title="Service"),
                Column(name="events", title="Events", unit="short", width=80),
                Column(name="furthest", title="Ahead by up to", unit="s", decimals=1, width=120),
                Column(name="last_at", title="Last", unit="dateTimeFromNow", width=120),
            ),
        ),
        table(
            title="Out of range",
            description="Items that came into quarantine in the chosen time because their time is before the year 2000, more "
            "than a day ahead, or missing, by service.",
            sql=(
                "SELECT toString(service_name) AS service, toString(reason) AS reason, count() AS items, "
                "min(timestamp) AS earliest, max(timestamp) AS latest "
                f"FROM {ARRIVED} AND reason IN ('timestamp_out_of_range', 'no_timestamp') "
                "GROUP BY service, reason ORDER BY items DESC, service, reason LIMIT 100"
            ),
            unit="short",
            no_value="No time was out of range",
            width=12,
            height=6,
            columns=(
                Column(name="service", title="Service"),
                Column(name="reason", title="Reason"),
                Column(name="items", title="Items", unit="short", width=80),
                Column(name="earliest", title="Earliest"),
                Column(name="latest", title="Latest"),
            ),
        ),
    )
