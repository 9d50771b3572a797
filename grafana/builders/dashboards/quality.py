"""Data quality: do the rollups agree with the events, and what came late, ahead, twice, or unknown."""

from grafana.builders import sql
from grafana.builders.dashboard import Dashboard
from grafana.builders.layout import Row
from grafana.builders.panel import (
    ANY_IS_BAD,
    ANY_IS_WARNING,
    BAD,
    GOOD,
    MUTED,
    NEUTRAL,
    PLAIN,
    WARNING,
    Column,
    Link,
    Panel,
    Steps,
    dashboard_link,
)
from grafana.builders.panels import bar_chart, stat, table, timeseries
from grafana.builders.variables import meter_variable, tenant_variable

AHEAD_SECONDS = 5
"""A clock that is this much ahead of ours is none that merely ticks a little differently."""

_FIRST = "toStartOfHour($__fromTime, 'UTC')"
_BEHIND_LAST = "toStartOfHour($__toTime, 'UTC')"
_CLOSED_NOTE = (
    "Hours that are over: from the hour in which the chosen time begins to the one before that in which it ends."
)
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
_ITEMS = f"metering.quarantine WHERE $__timeFilter(ingested_at) AND {sql.TENANT}"

ITEMS = (
    "(SELECT reason, item_name, tenant, ingested_at, how FROM (SELECT event_id, toString(reason) AS reason, "
    f"name AS item_name, tenant_id AS tenant, ingested_at FROM {_ITEMS}) AS items "
    "LEFT ANY JOIN (SELECT event_id, toString(resolution) AS how FROM metering.quarantine_resolved "
    "WHERE $__timeFilter(ingested_at)) AS resolved USING (event_id))"
)
"""What went into quarantine in the chosen time, and what became of it; '': it is open."""

EMPTY_QUARANTINE = "Nothing went into quarantine in this time"

_TO_TENANT = dashboard_link(
    "All usage of this tenant", "metering-tenant", values={"tenant": "${__data.fields.tenant}"}
)
_TO_EVENTS = dashboard_link(
    "Events of this meter", "metering-events", values={"meter": "${__data.fields.meter}"}
)
_TENANT = Column(name="tenant", title="Tenant", links=(_TO_TENANT,))
_METER = Column(name="meter", title="Meter", links=(_TO_EVENTS,))


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
            Row(title="Quarantine", panels=_quarantine()),
            Row(title="Unknown meters, corrections", panels=_unknown()),
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
            f"SELECT toFloat64(count()) AS value FROM {_ITEMS} AND reason = 'conflict'",
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
                _METER,
                Column(name="raw_quantity", title="Events", unit="short"),
                Column(name="rolled_quantity", title="Rollup", unit="short"),
                Column(
                    name="difference", title="Differ by", unit="none", cell="color-text", steps=differs
                ),
                Column(name="raw_count", title="Measured, events", unit="short"),
                Column(name="rolled_count", title="Measured, rollup", unit="short"),
                Column(
                    name="count_difference",
                    title="Differ by (measured)",
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
                _TENANT,
                _METER,
                Column(name="difference", title="Differ by", cell="color-text", steps=differs),
                Column(
                    name="count_difference",
                    title="Differ by (measured)",
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
            unit="short",
            decimals=0,
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
                _TENANT,
                _METER,
                Column(name="late", title="Late events", unit="short"),
                Column(name="share", title="Of its events", unit="percentunit", decimals=1),
                Column(name="p99", title="99 % within", unit="s", decimals=1),
                Column(name="longest", title="Latest", unit="s", decimals=1),
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
            columns=(
                _TENANT,
                _METER,
                Column(name="service", title="Service"),
                Column(name="events", title="Events", unit="short"),
                Column(name="furthest", title="Ahead by up to", unit="s", decimals=1),
                Column(name="last_at", title="Last", unit="dateTimeFromNow"),
            ),
        ),
        table(
            title="Out of range",
            description="Items that came into quarantine in the chosen time because their time is before the year 2000, more "
            "than a day ahead, or missing, by service.",
            sql=(
                "SELECT toString(service_name) AS service, toString(reason) AS reason, count() AS items, "
                "min(timestamp) AS earliest, max(timestamp) AS latest "
                f"FROM {_ITEMS} AND reason IN ('timestamp_out_of_range', 'no_timestamp') "
                "GROUP BY service, reason ORDER BY items DESC, service, reason LIMIT 100"
            ),
            unit="short",
            no_value="No time was out of range",
            width=12,
            columns=(
                Column(name="service", title="Service"),
                Column(name="reason", title="Reason"),
                Column(name="items", title="Items", unit="short"),
                Column(name="earliest", title="Earliest"),
                Column(name="latest", title="Latest"),
            ),
        ),
    )


def _quarantine() -> tuple[Panel, ...]:
    return (
        timeseries(
            title="Into quarantine, by reason",
            description="Items that went into quarantine: valid, and not to be billed as they are.",
            sql=(
                "SELECT $__timeInterval(ingested_at) AS time, toString(reason) AS reason, toFloat64(count()) AS items "
                f"FROM {_ITEMS} GROUP BY time, reason ORDER BY time, reason LIMIT 20000"
            ),
            unit="short",
            no_value=EMPTY_QUARANTINE,
            bars=True,
            stacked=True,
            display_name="${__field.labels.reason}",
            interval="1m",
            width=12,
        ),
        table(
            title="What became of it",
            description="Items that came into quarantine in the chosen time, by reason, and how many of them were replayed or "
            "discarded since. Replay them when the cause is mended: nothing is lost.",
            sql=(
                "SELECT reason, toFloat64(count()) AS items, toFloat64(countIf(how = '')) AS open, "
                "toFloat64(countIf(how = 'replayed')) AS replayed, toFloat64(countIf(how = 'discarded')) AS discarded, "
                "if(open = 0, NULL, minIf(ingested_at, how = '')) AS oldest "
                f"FROM {ITEMS} GROUP BY reason ORDER BY open DESC, items DESC, reason LIMIT 100"
            ),
            unit="short",
            no_value=EMPTY_QUARANTINE,
            width=12,
            columns=(
                Column(name="reason", title="Reason"),
                Column(name="items", title="Items", unit="short", width=80),
                Column(
                    name="open",
                    title="Open",
                    unit="short",
                    width=80,
                    cell="color-text",
                    steps=((None, MUTED), (1, WARNING)),
                ),
                Column(name="replayed", title="Replayed", unit="short", width=90),
                Column(name="discarded", title="Discarded", unit="short", width=90),
                Column(name="oldest", title="Oldest open"),
            ),
        ),
        table(
            title="Conflicts",
            description="Who sent what contradicts what was counted, in the chosen time: another event under a used id, or a "
            "counter that falls.",
            sql=(
                "SELECT tenant_id AS tenant, name AS item, toString(service_name) AS service, key_id, count() AS items, "
                "max(ingested_at) AS last_at, anyLast(detail) AS detail "
                f"FROM {_ITEMS} AND reason = 'conflict' "
                "GROUP BY tenant, item, service, key_id ORDER BY items DESC, tenant, item, service, key_id LIMIT 200"
            ),
            unit="short",
            no_value="No conflicts in this time",
            width=24,
            height=7,
            columns=(
                _TENANT,
                Column(name="item", title="Metric, span or event"),
                Column(name="service", title="Service"),
                Column(
                    name="key_id", title="Key", links=(dashboard_link("API keys", "metering-keys"),)
                ),
                Column(name="items", title="Items", unit="short", width=80),
                Column(name="last_at", title="Last", unit="dateTimeFromNow"),
                Column(name="detail", title="For instance"),
            ),
        ),
    )


def _unknown() -> tuple[Panel, ...]:
    return (
        table(
            title="Meters that nobody defined",
            description="Meters with usage in the chosen time (whole days, UTC) without a definition in meters.yaml or by API: they "
            "are summed, and have no unit. A slip of the pen in a name looks like this.",
            sql=(
                "SELECT toString(meter) AS meter, toFloat64(uniqExact(tenant_id)) AS tenants, toFloat64(sum(quantity_sum)) AS quantity, "
                "toInt64(sum(quantity_count)) AS measurements, min(window_start) AS first_day, max(window_start) AS last_day "
                f"FROM metering.usage_day WHERE {sql.FROM_DAY} AND {sql.SCOPE} "
                f"AND meter NOT IN (SELECT meter FROM {sql.DEFINITIONS}) "
                "GROUP BY meter ORDER BY measurements DESC, meter LIMIT 200"
            ),
            unit="short",
            no_value="Every meter with usage has a definition",
            width=12,
            columns=(
                _METER,
                Column(name="tenants", title="Tenants", unit="short", width=90),
                Column(name="quantity", title="Quantity", unit="short"),
                Column(name="measurements", title="Measurements", unit="short"),
                Column(name="first_day", title="First day"),
                Column(name="last_day", title="Last day"),
            ),
        ),
        table(
            title="Unknown meters in quarantine",
            description="Telemetry of tenants that feeds no meter, or one with a name that cannot be, in the chosen time. Define the "
            "meter, then replay.",
            sql=(
                "SELECT item_name AS item, reason, toFloat64(uniqExact(tenant)) AS tenants, toFloat64(count()) AS items, "
                "toFloat64(countIf(how = '')) AS open, max(ingested_at) AS last_at "
                f"FROM {ITEMS} WHERE reason IN ('no_meter', 'invalid_meter') "
                "GROUP BY item, reason ORDER BY open DESC, items DESC, item, reason LIMIT 200"
            ),
            unit="short",
            no_value="No unknown meters in quarantine",
            width=12,
            columns=(
                Column(name="item", title="Metric, span or event"),
                Column(name="reason", title="Reason"),
                Column(name="tenants", title="Tenants", unit="short", width=90),
                Column(name="items", title="Items", unit="short", width=80),
                Column(name="open", title="Open", unit="short", width=80),
                Column(name="last_at", title="Last", unit="dateTimeFromNow"),
            ),
        ),
        table(
            title="Corrections",
            description="Events of the chosen time that were voided or replaced: they are taken out of every rollup. Minimum, maximum, "
            "latest, unique and percentiles of their minutes are right in the query API only, which reads the events again.",
            sql=(
                "SELECT toString(tenant_id) AS tenant, toString(meter) AS meter, toString(action) AS action, toFloat64(count()) AS events, "
                "toFloat64(sum(quantity)) AS quantity, max(corrected_at) AS last_at, anyLast(reason) AS because "
                f"FROM metering.event_corrections WHERE $__timeFilter(timestamp) AND {sql.SCOPE} "
                "GROUP BY tenant, meter, action ORDER BY events DESC, tenant, meter, action LIMIT 200"
            ),
            unit="short",
            no_value="Nothing was corrected",
            width=24,
            height=7,
            columns=(
                _TENANT,
                _METER,
                Column(
                    name="action",
                    title="What",
                    cell="color-text",
                    mappings={"void": ("voided", WARNING), "correct": ("replaced", NEUTRAL)},
                    width=100,
                ),
                Column(name="events", title="Events", unit="short", width=80),
                Column(name="quantity", title="Quantity taken out", unit="short"),
                Column(name="last_at", title="Last", unit="dateTimeFromNow"),
                Column(name="because", title="For instance"),
            ),
        ),
    )
