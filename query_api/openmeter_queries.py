"""Statements of the surface that is compatible with OpenMeter, beside the aggregates."""

from dataclasses import dataclass
from typing import Final

from otel_metering.contract import attributes
from query_api.queries import MAX_ROWS, Statement
from receiver.store import tables

_ID: Final = "source.attributes[{id_name:String}]"
_SENT_ID: Final = f"substring({_ID}, position({_ID}, ' ') + 1)"
"""What stands behind the first space of the event id (see `cloudevents.event_id_of`), else all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsRequest:
    """Some events, newest first.

    Attributes:
        start_ns: First instant of time.
        end_ns: Last instant of time, inclusive.
        limit: Rows to read; an event has one row for each meter that it feeds.
        tenant_id: Only this tenant; None: all.
        subject: Only tenants whose id has this in it; None: all.
        id: Only events whose id has this in it; None: all.
        ingested_from_ms: First moment of ingestion; None: any.
        ingested_to_ms: Last moment of ingestion, inclusive; None: any.
    """

    start_ns: int
    end_ns: int
    limit: int
    tenant_id: str | None = None
    subject: str | None = None
    id: str | None = None
    ingested_from_ms: int | None = None
    ingested_to_ms: int | None = None


def events(request: EventsRequest) -> Statement:
    """The statement of a list of events.

    Returns:
        Rows are (event UUID, tenant, meter, quantity, timestamp in ns, attributes, unique key, service
        name, time of ingestion in ms), newest first.
    """
    optional = (
        ("source.tenant_id = {tenant_id:String}", "tenant_id", request.tenant_id),
        ("position(source.tenant_id, {subject:String}) > 0", "subject", request.subject),
        (
            f"(position({_SENT_ID}, {{id:String}}) > 0 "
            "OR position(toString(source.event_id), {id:String}) > 0)",
            "id",
            request.id,
        ),
        (
            "source.ingested_at >= fromUnixTimestamp64Milli({from_ms:Int64}, 'UTC')",
            "from_ms",
            request.ingested_from_ms,
        ),
        (
            "source.ingested_at <= fromUnixTimestamp64Milli({to_ms:Int64}, 'UTC')",
            "to_ms",
            request.ingested_to_ms,
        ),
    )
    given = [(text, name, value) for text, name, value in optional if value is not None]
    conditions = [
        "source.timestamp >= fromUnixTimestamp64Nano({start_ns:Int64}, 'UTC')",
        "source.timestamp <= fromUnixTimestamp64Nano({end_ns:Int64}, 'UTC')",
        *(text for text, _, _ in given),
    ]
    return Statement(
        "SELECT toString(source.event_id), source.tenant_id, source.meter, source.quantity, "  # noqa: S608 - constants; values are bound
        "toUnixTimestamp64Nano(source.timestamp), source.attributes, source.unique_key, "
        "source.service_name, toUnixTimestamp64Milli(source.ingested_at) "
        f"FROM {tables.EVENTS} AS source WHERE {' AND '.join(conditions)} "
        "ORDER BY source.timestamp DESC, source.event_id DESC LIMIT {limit:UInt32}",
        {
            "start_ns": request.start_ns,
            "end_ns": request.end_ns,
            "limit": request.limit,
            "id_name": attributes.EVENT_ID,
            **{name: value for _, name, value in given},
        },
    )


def first_month(meter: str, tenant_id: str | None) -> Statement:
    """The statement that says where the usage of a meter begins.

    Returns:
        One row with the start of the first month, in seconds; none without usage.
    """
    return Statement(
        "SELECT toUnixTimestamp(min(source.window_start)) "  # noqa: S608 - constants; values are bound
        f"FROM {tables.USAGE_MONTH} AS source WHERE source.meter = {{meter:String}}"
        f"{'' if tenant_id is None else ' AND source.tenant_id = {tenant_id:String}'} "
        "HAVING count() > 0 LIMIT 1",
        {"meter": meter, **({} if tenant_id is None else {"tenant_id": tenant_id})},
    )


def subjects(tenant_id: str | None, named: str | None = None) -> Statement:
    """The statement that lists tenants with usage.

    Args:
        tenant_id: The only one that may be seen; None: all.
        named: The only one that is asked for; None: all.

    Returns:
        Rows are (tenant, start of its first month, of its last, in seconds), sorted by tenant; at most
        `MAX_ROWS + 1`.
    """
    wanted = [value for value in (tenant_id, named) if value is not None]
    conditions = [f"source.tenant_id = {{tenant{i}:String}}" for i in range(len(wanted))]
    return Statement(
        "SELECT toString(source.tenant_id) AS tenant, "  # noqa: S608 - constants; values are bound
        "toUnixTimestamp(min(source.window_start)), toUnixTimestamp(max(source.window_start)) "
        f"FROM {tables.USAGE_MONTH} AS source WHERE {' AND '.join(conditions) or '1'} "
        f"GROUP BY tenant ORDER BY tenant LIMIT {MAX_ROWS + 1}",
        {f"tenant{i}": value for i, value in enumerate(wanted)},
    )
