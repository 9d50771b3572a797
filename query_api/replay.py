"""Resolves items of quarantine: sends them through ingest again, or sets them aside for good.

Exactly once: an item is marked after its usage is durable. A crash between the two replays it again, and
then its usage is a duplicate by its identity, as if the sender had sent it twice.

A key that is bound to a tenant stays bound: an item is sent again as by the key that sent it first.
"""

import base64
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import pyarrow as pa

from otel_metering.contract.meter import Signal
from otel_metering.errors import UnavailableError
from query_api import quarantine_queries
from query_api.quarantine_queries import Selection
from query_api.services import Fate, Held, Resubmitted, Services
from receiver.store import tables

CHUNK: Final = 500
"""Items that are read, sent and marked together."""

_MS_NS: Final = 1_000_000

Position = tuple[int, str]
"""(timestamp in ns, event UUID) of an item."""


@dataclass(slots=True)
class Resolved:
    """What became of the items of a selection.

    Attributes:
        fates: How many met which fate.
        refusals: (event UUID, why) of those that stay, the first ones.
        next_position: Behind which there may be more; None: there are none.
    """

    fates: Counter[Fate] = field(default_factory=Counter)
    refusals: list[tuple[str, str]] = field(default_factory=list)
    next_position: Position | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be done.

    Attributes:
        selection: With which items.
        limit: With how many at most.
        after: Behind which; None: from the first.
        key_id: Whose decision it is.
        note: For people.
        is_dry: Change nothing.
    """

    selection: Selection
    limit: int
    after: Position | None
    key_id: str
    note: str
    is_dry: bool


def replay(services: Services, order: Order, *, max_refusals: int) -> Resolved:
    """Send items through ingest again.

    Raises:
        UnavailableError: Not all could be sent; what was is marked. Do it again.
    """
    resolved = Resolved()
    tenants = {key.key_id: key.tenant_id for key in services.keys.list()}
    for rows in _chunks(services, order, resolved):
        obstacles = {row.event_id: _obstacle(row, tenants) for row in rows}
        sent = [row for row in rows if obstacles[row.event_id] is None]
        answers = services.resubmit(
            [row.held(tenants[row.key_id]) for row in sent], is_dry=order.is_dry
        )
        of = dict(zip([row.event_id for row in sent], answers, strict=True))
        done = []
        for row in rows:
            answer = obstacles[row.event_id] or of[row.event_id]
            resolved.fates[answer.fate] += 1
            if answer.fate in (Fate.REPLAYED, Fate.DUPLICATE):
                done.append(row)
            elif len(resolved.refusals) < max_refusals:
                resolved.refusals.append((row.event_id, answer.detail))
        _mark(services, order, done, "replayed")
        if resolved.fates[Fate.UNAVAILABLE]:
            raise UnavailableError(
                f"{resolved.fates[Fate.REPLAYED]} items were replayed, and then the receiver took no "
                "more; send the same request again"
            )
    return resolved


def discard(services: Services, order: Order) -> Resolved:
    """Mark items as discarded.

    Raises:
        UnavailableError: Perhaps only some are marked. Do it again.
    """
    resolved = Resolved()
    for rows in _chunks(services, order, resolved):
        resolved.fates[Fate.DISCARDED] += len(rows)
        _mark(services, order, rows, "discarded")
    return resolved


@dataclass(frozen=True, slots=True)
class _Row:
    event_id: str
    signal: str
    payload: str
    key_id: str
    ingested_ms: int
    timestamp_ns: int

    def held(self, bound_tenant: str | None) -> Held:
        return Held(
            signal=Signal(self.signal),
            payload=base64.b64decode(self.payload),
            key_id=self.key_id,
            bound_tenant=bound_tenant,
        )


def _chunks(services: Services, order: Order, resolved: Resolved) -> Iterator[list[_Row]]:
    """The items, piece by piece; in the end `resolved` knows whether there are more."""
    after, left = order.after, order.limit
    while left:
        count = min(left, CHUNK)
        statement = quarantine_queries.held(order.selection, limit=count, after=after)
        found = services.store.query(statement.sql, statement.parameters)
        rows = [_Row(*row) for row in found]
        if rows:
            yield rows
            after = rows[-1].timestamp_ns, rows[-1].event_id
        if len(rows) < count:
            return
        left -= count
    resolved.next_position = after


def _mark(services: Services, order: Order, rows: Sequence[_Row], resolution: str) -> None:
    if order.is_dry or not rows:
        return
    count, now_ms = len(rows), services.clock.now_ns() // _MS_NS
    moment = pa.timestamp("ms", "UTC")
    ids = [UUID(row.event_id).bytes for row in rows]
    table = pa.table(
        {
            "event_id": pa.array(ids, pa.binary(16)),
            "resolution": pa.repeat(resolution, count),
            "ingested_at": pa.array([row.ingested_ms for row in rows], moment),
            "resolved_at": pa.array([now_ms] * count, moment),
            "key_id": pa.repeat(order.key_id, count),
            "note": pa.repeat(order.note, count),
        }
    )
    services.store.insert(tables.QUARANTINE_RESOLVED, table, token=secrets.token_hex(16))


def _obstacle(row: _Row, tenants: Mapping[str, str | None]) -> Resubmitted | None:
    """Why an item cannot be sent again; None: it can."""
    if row.signal == Signal.EVENT:
        return Resubmitted(
            fate=Fate.QUARANTINED,
            detail="conflict: an event of the JSON API whose event_id counted as another event; "
            "send it with an event_id of its own, or discard it",
        )
    if row.key_id not in tenants:
        return Resubmitted(
            fate=Fate.UNKNOWN_KEY,
            detail=f"unknown_key: nobody has the key {row.key_id!r}, so which tenants it may write is "
            "unknown; send the usage again with a key that may, or discard it",
        )
    return None
