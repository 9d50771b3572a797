"""The SQL of quarantine: which items are open, or what became of them.

Every statement is bounded by the time of arrival, which partitions both tables, and by a LIMIT.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from query_api.periods import Range
from query_api.queries import Statement
from receiver.store import tables

MAX_GROUPS: Final = 1_000
"""Groups of a summary: the largest."""

_SOURCE: Final = f"FROM {tables.QUARANTINE} AS source WHERE"
_MARKS: Final = (
    f"FROM {tables.QUARANTINE_RESOLVED} "
    "WHERE ingested_at >= fromUnixTimestamp64Nano({start_ns:Int64}, 'UTC') "
    "AND ingested_at < fromUnixTimestamp64Nano({end_ns:Int64}, 'UTC')"
)
_ITEM: Final = (
    "SELECT toString(source.event_id), source.reason, source.detail, toString(source.signal), "
    "source.name, source.tenant_id, toUnixTimestamp64Nano(source.timestamp), source.attributes, "
    "source.service_name, source.key_id, toUnixTimestamp64Milli(source.ingested_at)"
)
_ITEM_ORDER: Final = "ORDER BY source.ingested_at DESC, source.event_id DESC LIMIT {limit:UInt32}"
_RESOLUTION: Final = (
    "SELECT toString(event_id), toString(min(resolution)), "
    "toUnixTimestamp64Milli(min(resolved_at)), argMin(key_id, (resolution, resolved_at)), "
    "argMin(note, (resolution, resolved_at))"
)
_GROUP: Final = (
    "SELECT source.reason, toString(source.signal), source.name, count() AS items, "
    "toUnixTimestamp64Milli(min(source.ingested_at)), "
    "toUnixTimestamp64Milli(max(source.ingested_at))"
)
_GROUP_ORDER: Final = (
    "GROUP BY source.reason, source.signal, source.name "
    f"ORDER BY items DESC, source.reason, source.signal, source.name LIMIT {MAX_GROUPS}"
)
_HELD: Final = (
    "SELECT toString(source.event_id), toString(source.signal), base64Encode(source.payload), "
    "source.key_id, toUnixTimestamp64Milli(source.ingested_at), "
    "toUnixTimestamp64Nano(source.timestamp)"
)
_HELD_ORDER: Final = "ORDER BY source.timestamp, source.event_id LIMIT {limit:UInt32}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Items of quarantine.

    Attributes:
        range: When they arrived.
        event_ids: Only these; empty: all.
        reason: Only of this reason, and so on.
        include_resolved: Also those that were replayed or discarded.
    """

    range: Range
    event_ids: Sequence[str] = ()
    reason: str | None = None
    tenant_id: str | None = None
    signal: str | None = None
    name: str | None = None
    include_resolved: bool = False


def page(selection: Selection, *, limit: int, after: tuple[int, str] | None) -> Statement:
    """A page of items, the latest arrival first.

    Args:
        selection: Which.
        limit: How many.
        after: (time of arrival in ns, event UUID) of the last item of the page before.

    Returns:
        Rows are (event UUID, reason, detail, signal, name, tenant, timestamp in ns, attributes, service,
        key id, time of arrival in ms).
    """
    where, parameters = _where(selection)
    if after is not None:
        where += (
            " AND (source.ingested_at, source.event_id) < "
            "(fromUnixTimestamp64Nano({after_ns:Int64}, 'UTC'), {after_id:UUID})"
        )
        parameters |= {"after_ns": after[0], "after_id": after[1]}
    return Statement(" ".join([_ITEM, _SOURCE, where, _ITEM_ORDER]), {**parameters, "limit": limit})


def resolutions(within: Range, event_ids: Sequence[str]) -> Statement:
    """What became of these items: rows are (event UUID, resolution, when in ms, key id, note)."""
    chosen = "AND event_id IN (SELECT toUUID(arrayJoin({ids:Array(String)}))) GROUP BY event_id"
    return Statement(
        " ".join([_RESOLUTION, _MARKS, chosen]),
        {"start_ns": within.start_ns, "end_ns": within.end_ns, "ids": list(event_ids)},
    )


def summary(selection: Selection) -> Statement:
    """The largest groups: rows are (reason, signal, name, items, first and last arrival in ms)."""
    where, parameters = _where(selection)
    return Statement(" ".join([_GROUP, _SOURCE, where, _GROUP_ORDER]), parameters)


def held(selection: Selection, *, limit: int, after: tuple[int, str] | None) -> Statement:
    """Open items with what was sent, the oldest usage first: later sums of a stream build on earlier ones.

    Args:
        selection: Which.
        limit: How many.
        after: (timestamp in ns, event UUID) of the last item before.

    Returns:
        Rows are (event UUID, signal, payload in base64, key id, time of arrival in ms, timestamp in ns).
    """
    where, parameters = _where(selection)
    if after is not None:
        where += (
            " AND (source.timestamp, source.event_id) > "
            "(fromUnixTimestamp64Nano({after_ns:Int64}, 'UTC'), {after_id:UUID})"
        )
        parameters |= {"after_ns": after[0], "after_id": after[1]}
    return Statement(" ".join([_HELD, _SOURCE, where, _HELD_ORDER]), {**parameters, "limit": limit})


def _where(selection: Selection) -> tuple[str, dict[str, object]]:
    conditions = [
        "source.ingested_at >= fromUnixTimestamp64Nano({start_ns:Int64}, 'UTC')",
        "source.ingested_at < fromUnixTimestamp64Nano({end_ns:Int64}, 'UTC')",
    ]
    parameters: dict[str, object] = {
        "start_ns": selection.range.start_ns,
        "end_ns": selection.range.end_ns,
    }
    if not selection.include_resolved:
        conditions.append(f"source.event_id NOT IN (SELECT event_id {_MARKS})")
    if selection.event_ids:
        conditions.append(
            "source.event_id IN (SELECT toUUID(arrayJoin({event_ids:Array(String)})))"
        )
        parameters["event_ids"] = list(selection.event_ids)
    for name in ("reason", "tenant_id", "signal", "name"):
        value = getattr(selection, name)
        if value is not None:
            conditions.append(f"source.{name} = {{{name}:String}}")
            parameters[name] = value
    return " AND ".join(conditions), parameters
