"""Data quality: what is in quarantine, what nobody defined, and what was corrected."""

from grafana.builders import sql
from grafana.builders.bars import on_grid
from grafana.builders.panel import MUTED, NEUTRAL, WARNING, Column, Panel, dashboard_link
from grafana.builders.panels import table, timeseries

ARRIVED = f"metering.quarantine WHERE $__timeFilter(ingested_at) AND {sql.TENANT}"

ITEMS = (
    "(SELECT reason, item_name, tenant, ingested_at, how FROM (SELECT event_id, toString(reason) AS reason, "
    f"name AS item_name, tenant_id AS tenant, ingested_at FROM {ARRIVED}) AS items "
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
TENANT = Column(name="tenant", title="Tenant", links=(_TO_TENANT,))
METER = Column(name="meter", title="Meter", links=(_TO_EVENTS,))


def quarantine() -> tuple[Panel, ...]:
    """What came in, what became of it, and conflicts."""
    return (
        timeseries(
            title="Into quarantine, by reason",
            description="Items that went into quarantine: valid, and not to be billed as they are.",
            sql=on_grid(
                "SELECT $__timeInterval(ingested_at) AS time, toString(reason) AS reason, toFloat64(count()) AS items "
                f"FROM {ARRIVED} GROUP BY time, reason",
                "reason",
                "items",
            ),
            unit="short",
            no_value=EMPTY_QUARANTINE,
            bars=True,
            stacked=True,
            display_name="${__field.labels.reason}",
            interval="5m",
            width=12,
            height=7,
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
            height=7,
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
            title="Who contradicts what was counted",
            description="Who sent what contradicts what was counted, in the chosen time: another event under a used id, or a "
            "counter that falls.",
            sql=(
                "SELECT tenant_id AS tenant, name AS item, toString(service_name) AS service, key_id, count() AS items, "
                "max(ingested_at) AS last_at, anyLast(detail) AS detail "
                f"FROM {ARRIVED} AND reason = 'conflict' "
                "GROUP BY tenant, item, service, key_id ORDER BY items DESC, tenant, item, service, key_id LIMIT 200"
            ),
            unit="short",
            no_value="No conflicts in this time",
            width=24,
            height=6,
            columns=(
                TENANT,
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


def unknown() -> tuple[Panel, ...]:
    """Meters that nobody defined, and events that were corrected."""
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
            height=6,
            columns=(
                METER,
                Column(name="tenants", title="Tenants", unit="short", width=90),
                Column(name="quantity", title="Quantity", unit="short"),
                Column(name="measurements", title="Measurements", unit="short"),
                Column(name="first_day", title="First day", unit="time:YYYY-MM-DD", width=105),
                Column(name="last_day", title="Last day", unit="time:YYYY-MM-DD", width=105),
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
            height=6,
            columns=(
                Column(name="item", title="Metric, span or event"),
                Column(name="reason", title="Reason", width=120),
                Column(name="tenants", title="Tenants", unit="short", width=90),
                Column(name="items", title="Items", unit="short", width=80),
                Column(name="open", title="Open", unit="short", width=80),
                Column(name="last_at", title="Last", unit="dateTimeFromNow", width=120),
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
            height=5,
            columns=(
                TENANT,
                METER,
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
