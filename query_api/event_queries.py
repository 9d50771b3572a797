"""The SQL of events: pages of them, one by one, and what became of them.

Events leave the database as the text of an answer, a line of JSON or CSV each: the engine writes
hundreds of thousands of them a second, and without the GIL.

Nothing is deleted when an event is corrected; who reads `events` in SQL of their own excludes what does
not count by `event_id NOT IN (SELECT event_id FROM metering.event_corrections)`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from otel_metering.contract import attributes
from query_api.filters import Filter, condition
from query_api.periods import Range
from query_api.queries import Statement
from receiver.store import tables


class Shape(StrEnum):
    """What a line is written in."""

    JSON = "json"
    CSV = "csv"
    NDJSON = "ndjson"


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where an event is in the sort key of the table."""

    tenant_id: str
    meter: str
    timestamp_ns: int
    event_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsRequest:
    """Some events.

    Attributes:
        range: What is covered.
        limit: Events to read.
        tenant_id: Only this tenant; None: all.
        meter: Only this meter; None: all.
        event_id: Only the event with this explicit id, or with this UUID; None: all.
        filters: Conditions on attributes.
        after: (nanoseconds, UUID) of the last event of the page before; None: the first page.
    """

    range: Range
    limit: int
    tenant_id: str | None = None
    meter: str | None = None
    event_id: str | None = None
    filters: Sequence[Filter] = ()
    after: tuple[int, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectionsRequest:
    """A page of corrections, the latest first; attributes as of `EventsRequest`, by when they were made."""

    range: Range
    limit: int
    tenant_id: str | None = None
    meter: str | None = None
    after: tuple[int, str] | None = None


_OWN_ID: Final = f"source.attributes['{attributes.EVENT_ID}']"


def _instant(column: str) -> str:
    """RFC 3339 in UTC, with as many fractional digits as it takes: as `periods.format_instant`."""
    seconds = f"formatDateTime({column}, '%Y-%m-%dT%H:%i:%S', 'UTC')"
    fraction = f"leftPad(toString(toUnixTimestamp64Nano({column}) % 1000000000), 9, '0')"
    shown = f"trimRight(concat('.', {fraction}), '0')"
    return f"concat({seconds}, if({shown} = '.', '', {shown}), 'Z')"


_SHOWN_ID: Final = f"if({_OWN_ID} != '', {_OWN_ID}, toString(source.event_id))"
_STATUS: Final = "multiIf(correction.is_corrected = 0, 'counted', correction.action = 'void', 'voided', 'corrected')"
_REPLACED_BY: Final = "if(correction.action = 'void', '', toString(correction.replaced_by))"
_CORRECTED_AT: Final = _instant("toDateTime64(correction.corrected_at, 9, 'UTC')")
_START: Final = (
    f"if(toUnixTimestamp64Nano(source.start_time) = 0, '', {_instant('source.start_time')})"
)

_FIELDS: Final = {
    "event_id": _SHOWN_ID,
    "uuid": "toString(source.event_id)",
    "tenant_id": "toString(source.tenant_id)",
    "meter": "toString(source.meter)",
    "quantity": "toString(source.quantity)",
    "timestamp": _instant("source.timestamp"),
    "start_time": _START,
    "attributes": "source.attributes",
    "dimensions": "source.dimensions",
    "service_name": "toString(source.service_name)",
    "signal": "toString(source.signal)",
    "trace_id": "source.trace_id",
    "span_id": "source.span_id",
    "ingested_at": _instant("toDateTime64(source.ingested_at, 9, 'UTC')"),
    "status": _STATUS,
}
"""Of an event in an answer, in their order; behind them comes its correction."""

_NULLABLE: Final = frozenset({"start_time", "trace_id", "span_id"})
_MAPS: Final = frozenset({"attributes", "dimensions"})

_CORRECTION_FIELDS: Final = {
    "action": "toString(correction.action)",
    "reason": "correction.reason",
    "corrected_at": _CORRECTED_AT,
    "key_id": "toString(correction.key_id)",
    "replaced_by": _REPLACED_BY,
}

CSV_HEADER: Final = ",".join([*_FIELDS, *(f"correction.{name}" for name in _CORRECTION_FIELDS)])
"""Columns of a CSV answer; the maps are JSON objects."""


def _json_value(name: str, expression: str) -> str:
    text = f"toJSONString({expression})"
    if name in _NULLABLE or name == "replaced_by":
        return f"if({expression} = '', 'null', {text})"
    return text


def _json_object(fields: Mapping[str, str]) -> str:
    parts = [f"'\"{name}\":', {_json_value(name, value)}" for name, value in fields.items()]
    joined = ", ',', ".join(parts)
    return f"concat('{{', {joined}, '}}')"


_CORRECTION_JSON: Final = (
    f"if(correction.is_corrected = 0, 'null', {_json_object(_CORRECTION_FIELDS)})"
)
_JSON: Final = f"concat(substring({_json_object(_FIELDS)}, 1, -1), ',\"correction\":', {_CORRECTION_JSON}, '}}\\n')"
_CSV_VALUES: Final = [
    *(f"toJSONString({value})" if name in _MAPS else value for name, value in _FIELDS.items()),
    *(f"if(correction.is_corrected = 0, '', {value})" for value in _CORRECTION_FIELDS.values()),
]
_CSV: Final = f"formatRow('CSV', {', '.join(_CSV_VALUES)})"
_LINES: Final = {Shape.JSON: _JSON, Shape.NDJSON: _JSON, Shape.CSV: _CSV}

_KEY: Final = (
    "toString(source.tenant_id) AS tenant_id, toString(source.meter) AS meter, "
    "toUnixTimestamp64Nano(source.timestamp) AS timestamp_ns, toString(source.event_id) AS event_id"
)
_SOURCE: Final = f"FROM {tables.EVENTS} AS source WHERE"
_CORRECTION: Final = (
    "SELECT event_id, action, reason, replaced_by, key_id, corrected_at, 1 AS is_corrected "  # noqa: S608 - from tables.py
    f"FROM {tables.EVENT_CORRECTIONS} AS source WHERE"
)
_NEWEST: Final = "ORDER BY source.timestamp DESC, source.event_id DESC"
_BY_KEY: Final = "ORDER BY source.tenant_id, source.meter, source.timestamp, source.event_id"

_BEHIND_KEY: Final = (
    "(source.tenant_id > {last_tenant:String} OR (source.tenant_id = {last_tenant:String} AND "
    "(source.meter > {last_meter:String} OR (source.meter = {last_meter:String} AND "
    "(source.timestamp > fromUnixTimestamp64Nano({last_ns:Int64}, 'UTC') OR "
    "(source.timestamp = fromUnixTimestamp64Nano({last_ns:Int64}, 'UTC') AND "
    "source.event_id > {last_id:UUID}))))))"
)
"""The engine finds the granules by it; a comparison of tuples would read all of them."""


def events(request: EventsRequest, shape: Shape = Shape.JSON) -> Statement:
    """The statement of a page of events, newest first; ties by UUID in ClickHouse's order.

    Returns:
        Rows are (line, tenant, meter, timestamp in ns, event UUID).
    """
    conditions, parameters = _where(request)
    if request.after is not None:
        conditions.append(
            "(source.timestamp, source.event_id) < "
            "(fromUnixTimestamp64Nano({after_ns:Int64}, 'UTC'), {after_id:UUID})"
        )
        parameters |= {"after_ns": request.after[0], "after_id": request.after[1]}
    return Statement(_lines(request, shape, conditions, _NEWEST), parameters)


def export(request: EventsRequest, shape: Shape, after: Position | None) -> Statement:
    """The statement of a page of events by the sort key of the table; rows as those of `events`.

    Args:
        request: Which; its `after` is not looked at.
        shape: What the lines are written in.
        after: The last event of the page before; None: the first page.
    """
    conditions, parameters = _where(request)
    if after is not None:
        conditions.append(_BEHIND_KEY)
        parameters |= {
            "last_tenant": after.tenant_id,
            "last_meter": after.meter,
            "last_ns": after.timestamp_ns,
            "last_id": after.event_id,
        }
    return Statement(_lines(request, shape, conditions, _BY_KEY), parameters)


def corrections(request: CorrectionsRequest) -> Statement:
    """The statement of a page of corrections, the latest first.

    Returns:
        Rows are those of `correction_of`.
    """
    conditions = [
        "source.corrected_at >= fromUnixTimestamp64Nano({start_ns:Int64}, 'UTC')",
        "source.corrected_at < fromUnixTimestamp64Nano({end_ns:Int64}, 'UTC')",
        *_owner_conditions(request.tenant_id, request.meter),
    ]
    parameters: dict[str, object] = {
        "start_ns": request.range.start_ns,
        "end_ns": request.range.end_ns,
        "limit": request.limit,
        **_owner_parameters(request.tenant_id, request.meter),
    }
    if request.after is not None:
        conditions.append(
            "(source.corrected_at, source.event_id) < "
            "(fromUnixTimestamp64Nano({after_ns:Int64}, 'UTC'), {after_id:UUID})"
        )
        parameters |= {"after_ns": request.after[0], "after_id": request.after[1]}
    order = "ORDER BY source.corrected_at DESC, source.event_id DESC LIMIT {limit:UInt32}"
    return Statement(" ".join([_CORRECTION_COLUMNS, " AND ".join(conditions), order]), parameters)


_CORRECTION_COLUMNS: Final = (
    "SELECT toString(source.event_id), toString(source.tenant_id), toString(source.meter), "  # noqa: S608 - from tables.py
    "toString(source.action), source.reason, toString(source.replaced_by), toString(source.key_id), "
    "toUnixTimestamp64Milli(source.corrected_at) "
    f"FROM {tables.EVENT_CORRECTIONS} AS source WHERE"
)


def correction_of(tenant_id: str, meter: str, event_id: str) -> Statement:
    """The statement of what became of an event.

    Returns:
        One row, or none: (event UUID, tenant, meter, action, reason, UUID of what counts instead, key id,
        when in ms).
    """
    return Statement(
        f"{_CORRECTION_COLUMNS} source.tenant_id = {{tenant_id:String}} AND "
        "source.meter = {meter:String} AND source.event_id = {event_id:UUID} LIMIT 1",
        {"tenant_id": tenant_id, "meter": meter, "event_id": event_id},
    )


def owners(tenant_id: str | None, meter: str | None, limit: int) -> Statement:
    """The statement of whose usage of what there is: rows are (tenant, meter)."""
    conditions = _owner_conditions(tenant_id, meter) or ["true"]
    return Statement(
        "SELECT DISTINCT toString(source.tenant_id), toString(source.meter) "  # noqa: S608 - constants
        f"FROM {tables.USAGE_MONTH} AS source WHERE {' AND '.join(conditions)} LIMIT {{limit:UInt32}}",
        {**_owner_parameters(tenant_id, meter), "limit": limit},
    )


def stored_ids(event_ids: Sequence[str]) -> Statement:
    """The statement of which of these EXPLICIT identities are stored: rows are (event UUID)."""
    return Statement(
        f"SELECT DISTINCT toString(event_id) FROM {tables.EXPLICIT_IDS} "  # noqa: S608 - from tables.py
        "WHERE event_id IN (SELECT toUUID(arrayJoin({ids:Array(String)}))) LIMIT {limit:UInt32}",
        {"ids": list(event_ids), "limit": len(event_ids)},
    )


def event_rows(tenant_id: str | None, meter: str | None, event_ids: Sequence[str]) -> Statement:
    """The statement of events by their UUIDs; without tenant and meter every id of the table is read.

    Returns:
        Rows are (event UUID, tenant, meter, quantity, observations, unique key, timestamp in ns, start in
        ns, dimensions, attributes, service, signal, trace id, span id).
    """
    conditions = [
        *_owner_conditions(tenant_id, meter),
        "source.event_id IN (SELECT toUUID(arrayJoin({ids:Array(String)})))",
    ]
    return Statement(
        "SELECT toString(source.event_id), toString(source.tenant_id), toString(source.meter), "
        "source.quantity, source.observations, source.unique_key, "
        "toUnixTimestamp64Nano(source.timestamp), toUnixTimestamp64Nano(source.start_time), "
        "source.dimensions, source.attributes, toString(source.service_name), "
        "toString(source.signal), source.trace_id, source.span_id "
        f"{_SOURCE} {' AND '.join(conditions)} LIMIT {{limit:UInt32}}",
        {
            **_owner_parameters(tenant_id, meter),
            "ids": list(event_ids),
            "limit": len(event_ids),
        },
    )


def one_event(position: Position) -> Statement:
    """The statement of one event; rows as those of `events`."""
    within = Range(position.timestamp_ns, position.timestamp_ns + 1)
    request = EventsRequest(
        range=within, limit=1, tenant_id=position.tenant_id, meter=position.meter
    )
    conditions, parameters = _where(request)
    conditions.append("source.event_id = {id:UUID}")
    sql = _lines(request, Shape.JSON, conditions, _NEWEST)
    return Statement(sql, {**parameters, "id": position.event_id})


def _lines(request: EventsRequest, shape: Shape, conditions: Sequence[str], order: str) -> str:
    """Chosen first, and written then, so that only what is shown is looked up among the corrections."""
    known = [*_owner_conditions(request.tenant_id, request.meter), *_TIMES]
    return (
        f"SELECT {_LINES[shape]} AS line, {_KEY} "  # noqa: S608 - constants; values are bound
        f"FROM (SELECT * {_SOURCE} {' AND '.join(conditions)} {order} LIMIT {{limit:UInt32}}) AS source "
        f"LEFT ANY JOIN ({_CORRECTION} {' AND '.join(known)}) AS correction "
        f"ON source.event_id = correction.event_id {order} LIMIT {{limit:UInt32}}"
    )


_TIMES: Final = (
    "source.timestamp >= fromUnixTimestamp64Nano({start_ns:Int64}, 'UTC')",
    "source.timestamp < fromUnixTimestamp64Nano({end_ns:Int64}, 'UTC')",
)


def _where(request: EventsRequest) -> tuple[list[str], dict[str, object]]:
    conditions = [
        *_owner_conditions(request.tenant_id, request.meter),
        *_TIMES,
        *_filter_conditions(request.filters),
    ]
    parameters: dict[str, object] = {
        "start_ns": request.range.start_ns,
        "end_ns": request.range.end_ns,
        "limit": request.limit,
        **_owner_parameters(request.tenant_id, request.meter),
        **_filter_parameters(request.filters),
    }
    if request.event_id is not None:
        conditions.append(
            "(source.attributes[{event_id_name:String}] = {event_id:String} "
            "OR source.event_id = toUUIDOrNull({event_id:String}))"
        )
        parameters |= {"event_id_name": attributes.EVENT_ID, "event_id": request.event_id}
    return conditions, parameters


def _owner_conditions(tenant_id: str | None, meter: str | None) -> list[str]:
    of_tenant = [] if tenant_id is None else ["source.tenant_id = {tenant_id:String}"]
    return of_tenant + ([] if meter is None else ["source.meter = {meter:String}"])


def _owner_parameters(tenant_id: str | None, meter: str | None) -> dict[str, object]:
    given = {"tenant_id": tenant_id, "meter": meter}
    return {name: value for name, value in given.items() if value is not None}


def _filter_conditions(filters: Sequence[Filter]) -> list[str]:
    return [
        condition(
            one.operator,
            f"source.attributes[{{filter{i}_name:String}}]",
            f"{{filter{i}_values:Array(String)}}",
        )
        for i, one in enumerate(filters)
    ]


def _filter_parameters(filters: Sequence[Filter]) -> dict[str, object]:
    parameters: dict[str, object] = {}
    for i, one in enumerate(filters):
        parameters |= {f"filter{i}_name": one.name, f"filter{i}_values": list(one.values)}
    return parameters
