"""Events explorer: single events, found by tenant, meter and text."""

from typing import Final

from grafana.builders import sql, usage_panels
from grafana.builders.dashboard import Dashboard
from grafana.builders.layout import Row
from grafana.builders.panel import BAD, GOOD, WARNING, Column, Panel, dashboard_link
from grafana.builders.panels import stat, table, timeseries
from grafana.builders.variables import meter_variable, tenant_variable, text_variable

_TEXT: Final = sql.text("text")
_MATCHES: Final = (
    f"({_TEXT} = '' OR positionCaseInsensitiveUTF8(toString(service_name), {_TEXT}) > 0 OR "
    f"arrayExists((name, value) -> positionCaseInsensitiveUTF8(concat(name, '=', value), {_TEXT}) > 0, "
    "mapKeys(attributes), mapValues(attributes)))"
)
_IN_TIME: Final = f"$__timeFilter_ms(timestamp) AND {sql.SCOPE}"
_FOUND: Final = f"{_IN_TIME} AND {_MATCHES}"
_CORRECTIONS: Final = (
    "(SELECT event_id, any(toString(action)) AS action, any(reason) AS why, any(corrected_at) AS at "
    f"FROM metering.event_corrections WHERE {_IN_TIME} GROUP BY event_id)"
)
_NONE: Final = "No event matches in this time"
_STATUS: Final = {
    "counts": ("counts", GOOD),
    "void": ("void", BAD),
    "replaced": ("replaced", WARNING),
}


def build() -> Dashboard:
    """The dashboard."""
    return Dashboard(
        uid=usage_panels.EVENTS,
        title="Metering / Events explorer",
        description="Single events: how many, when, which, and all that is known of one.",
        time_from="now-1h",
        variables=(
            tenant_variable(),
            meter_variable(sql.TENANT),
            text_variable(
                name="text",
                label="Attribute text",
                description="Part of any name=value of the attributes, or of the service's name; case does not matter.",
            ),
            text_variable(
                name="event",
                label="Event id",
                description="The event that is shown whole, below. A click on an id in the table puts it here.",
            ),
        ),
        rows=(
            Row(
                panels=(
                    _count("Events", "Events of the chosen time that match.", "count()", "events"),
                    _count(
                        "Tenants",
                        "Tenants of the events that match.",
                        "uniqExact(tenant_id)",
                        "tenants",
                    ),
                    _count(
                        "Meters", "Meters of the events that match.", "uniqExact(meter)", "meters"
                    ),
                    _corrected(),
                    _histogram(),
                )
            ),
            Row(title="Events", panels=(_table(),)),
            Row(title="One event", panels=(_one_event(),)),
        ),
    )


def _count(title: str, description: str, expression: str, name: str) -> Panel:
    return stat(
        title=title,
        description=description,
        sql=f"SELECT {expression} AS {name} FROM {sql.EVENTS} WHERE {_FOUND}",
        unit="short",
        no_value="0",
        width=6,
        height=3,
    )


def _corrected() -> Panel:
    return stat(
        title="Corrected",
        description="Events of the chosen time, tenants and meters that were voided or replaced; the text is not "
        "looked at.",
        sql=f"SELECT uniqExact(event_id) AS corrected FROM metering.event_corrections WHERE {_IN_TIME}",
        unit="short",
        no_value="0",
        width=6,
        height=3,
    )


def _histogram() -> Panel:
    return timeseries(
        title="Events over time",
        description=f"How many events match, by meter. {sql.BUCKET_NOTE}",
        sql=(
            f"SELECT {sql.time_bucket('timestamp')} AS time, toString(meter) AS meter, count() AS events "
            f"FROM {sql.EVENTS} WHERE {_FOUND} GROUP BY time, meter ORDER BY time, meter LIMIT 20000"
        ),
        unit="short",
        no_value=_NONE,
        bars=True,
        stacked=True,
        decimals=0,
        display_name="${__field.labels.meter}",
        width=24,
        height=8,
    )


def _table() -> Panel:
    return table(
        filters=True,
        title="Events, the newest first",
        description="The newest 200 that match. A click on an id shows the whole event below.",
        sql=(
            "SELECT timestamp AS time, toString(tenant_id) AS tenant, toString(meter) AS meter, "
            "toFloat64(quantity) AS quantity, "
            "multiIf(action = 'void', 'void', action = 'correct', 'replaced', 'counts') AS status, "
            "toString(service_name) AS service, toString(signal) AS signal, "
            "arrayStringConcat(arrayMap((name, value) -> concat(name, '=', value), mapKeys(attributes), "
            "mapValues(attributes)), ', ') AS attributes_text, toString(event_id) AS event "
            "FROM (SELECT timestamp, tenant_id, meter, quantity, service_name, signal, attributes, event_id "
            f"FROM {sql.EVENTS} WHERE {_FOUND} ORDER BY timestamp DESC, event_id LIMIT 200) AS events "
            f"LEFT ANY JOIN {_CORRECTIONS} AS corrections USING (event_id) "
            "ORDER BY time DESC, event LIMIT 200"
        ),
        unit="locale",
        no_value="-",
        columns=(
            Column(name="time", title="Time", unit="dateTimeAsIso", width=170),
            Column(
                name="tenant",
                title="Tenant",
                width=100,
                links=(
                    dashboard_link(
                        "This tenant",
                        usage_panels.TENANT,
                        keep=("meter",),
                        values={"tenant": "${__data.fields.tenant}"},
                    ),
                ),
            ),
            Column(name="meter", title="Meter", width=200),
            Column(name="quantity", title="Quantity", width=115),
            Column(name="status", title="Status", width=90, cell="color-text", mappings=_STATUS),
            Column(name="service", title="Service", width=95),
            Column(name="signal", title="Signal", width=80),
            Column(name="attributes_text", title="Attributes"),
            Column(
                name="event",
                title="Event",
                width=335,
                links=(
                    dashboard_link(
                        "All of this event",
                        usage_panels.EVENTS,
                        keep=("tenant", "meter", "text"),
                        values={"event": "${__data.fields.event}"},
                    ),
                ),
            ),
        ),
        height=14,
    )


def _one_event() -> Panel:
    fixed = {
        "event id": "toString(event_id)",
        "status": "multiIf(action = 'void', 'void: does not count', action = 'correct', "
        "'replaced: another event counts instead', 'counts')",
        "why it was corrected": "why",
        "tenant": "toString(tenant_id)",
        "meter": "toString(meter)",
        "quantity": "toString(quantity)",
        "measurements": "toString(observations)",
        "counted unique value": "unique_key",
        "time": "toString(timestamp)",
        "covers from": "toString(start_time)",
        "stored": "toString(ingested_at)",
        "signal": "toString(signal)",
        "service": "toString(service_name)",
        "trace": "trace_id",
        "span": "span_id",
    }
    rows = ", ".join(f"('{name}', {value})" for name, value in fixed.items())
    columns = (
        "event_id, tenant_id, meter, quantity, observations, unique_key, timestamp, start_time, ingested_at, "
        "signal, service_name, trace_id, span_id, dimensions, attributes"
    )
    return table(
        title="All of one event",
        description="Every field, dimension and attribute of the event whose id is chosen, within the chosen time.",
        sql=(
            "SELECT tupleElement(pair, 1) AS field, tupleElement(pair, 2) AS value FROM "
            f"(SELECT arrayJoin(arrayConcat(arrayFilter(one -> tupleElement(one, 2) != '', [{rows}]), "
            "arrayMap((name, value) -> (concat('dimension ', name), value), "
            "arrayMap(name -> toString(name), mapKeys(dimensions)), mapValues(dimensions)), "
            "arrayMap((name, value) -> (concat('attribute ', name), value), "
            "arrayMap(name -> toString(name), mapKeys(attributes)), mapValues(attributes)))) AS pair "
            f"FROM (SELECT {columns} FROM {sql.EVENTS} WHERE {_IN_TIME} "
            f"AND event_id = toUUIDOrZero({sql.text('event')}) LIMIT 1) AS events "
            f"LEFT ANY JOIN {_CORRECTIONS} AS corrections USING (event_id)) LIMIT 1000"
        ),
        unit="string",
        no_value="Choose an event: click on an id above",
        columns=(
            Column(name="field", title="Field", width=260),
            Column(name="value", title="Value"),
        ),
        height=14,
    )
