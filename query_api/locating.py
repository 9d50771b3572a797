"""Finds one event by the id that people have of it: the sender's, or the stored UUID.

The sender's id names what counts now: if the event was corrected, what counts instead. A UUID names its row.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from fastapi import Request

from otel_metering.contract import attributes as wire
from otel_metering.contract.event import check_name
from otel_metering.errors import InvalidUsageError, UnavailableError
from query_api import event_queries
from query_api.problems import ConflictError, NotFoundError
from query_api.queries import Statement
from query_api.reading import read
from query_api.services import Corrector, Services
from receiver.store.corrections import Action, EventRow
from receiver.store.keys import Principal

WAIT_SECONDS: Final = 3.0
"""How long an event may take from its acknowledgement until it is looked up."""

POLL_SECONDS: Final = 0.05

MAX_OWNERS: Final = 20_000
"""Pairs of tenant and meter among which an id of a sender is looked for."""

_OWNERS_PER_QUERY: Final = 1_000
_UUID_LENGTH: Final = 36


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a request says of an event.

    Attributes:
        event_id: The sender's id, or a UUID.
        tenant_id: Whose it is; None: not said.
        meter: Of which meter; None: not said.
    """

    event_id: str
    tenant_id: str | None
    meter: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A correction that was made."""

    event_id: UUID
    tenant_id: str
    meter: str
    action: Action
    reason: str
    replaced_by: UUID | None
    key_id: str
    corrected_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An event.

    Attributes:
        event: Its row.
        correction: What became of it; None: it counts.
        origin: The correction that made it count instead of another; only if the sender's id led here.
    """

    event: EventRow
    correction: Made | None
    origin: Made | None = None


def reference(
    principal: Principal, event_id: str, tenant_id: str | None, meter: str | None
) -> Reference:
    """What a request of `principal` may be about.

    Raises:
        NotFoundError: The key is bound to another tenant, so it may not know of the event.
        InvalidUsageError: A name cannot be one.
    """
    if tenant_id is not None:
        check_name("tenant_id", tenant_id)
    if meter is not None:
        check_name("meter", meter)
    if principal.tenant_id is not None and tenant_id not in (None, principal.tenant_id):
        raise _not_found(Reference(event_id=event_id, tenant_id=tenant_id, meter=meter))
    return Reference(event_id=event_id, tenant_id=principal.tenant_id or tenant_id, meter=meter)


def shown_id(event: EventRow) -> str:
    """The id that an event has in answers."""
    return event.attributes.get(wire.EVENT_ID) or str(event.event_id)


def made_of(row: Sequence[Any]) -> Made:
    """A correction, from a row of `event_queries.correction_of`."""
    event_id, tenant_id, meter, action, reason, replaced_by, key_id, corrected_at_ms = row
    replacement = UUID(replaced_by)
    return Made(
        event_id=UUID(event_id),
        tenant_id=tenant_id,
        meter=meter,
        action=Action(action),
        reason=reason,
        replaced_by=replacement if replacement.int else None,
        key_id=key_id,
        corrected_at_ms=corrected_at_ms,
    )


class Locator:
    """Finds events for one request."""

    def __init__(self, request: Request, services: Services) -> None:
        self._request = request
        self._services = services

    @property
    def corrector(self) -> Corrector:
        """What corrects events.

        Raises:
            UnavailableError: There is no receiver in this process.
        """
        if self._services.corrector is None:
            raise UnavailableError(
                "there is no receiver in this process, which corrects events; ask one that has"
            )
        return self._services.corrector

    async def find(self, asked: Reference) -> Found:
        """The event that is asked for.

        Raises:
            NotFoundError: It is not in the database.
            ConflictError: Several have this id.
            TooLargeError: The search passed a limit.
            UnavailableError: The database did not answer.
        """
        by_sender = await self._by_sender(asked)
        by_uuid = []
        if len(asked.event_id) == _UUID_LENGTH and _is_uuid(asked.event_id):
            by_uuid = await self._rows(asked.tenant_id, asked.meter, [asked.event_id])
        owners = {(row.tenant_id, row.meter) for row in (*by_sender, *by_uuid)}
        if len(owners) > 1:
            raise ConflictError(_ambiguous(asked, owners))
        if by_uuid:
            # A UUID names its row, also if the sender gave it to another event.
            return Found(event=by_uuid[0], correction=await self._correction(by_uuid[0]))
        if not by_sender:
            raise _not_found(asked)
        return await self._latest(by_sender[0])

    async def find_soon(self, asked: Reference) -> Found:
        """As `find`, also if the event was acknowledged a moment ago and is not in the database yet."""
        is_settled = self.corrector.settled()
        clock = self._services.clock
        deadline = clock.monotonic() + WAIT_SECONDS
        while True:
            is_last = is_settled() or clock.monotonic() >= deadline
            try:
                return await self.find(asked)
            except NotFoundError:
                if is_last:
                    raise
            await asyncio.sleep(POLL_SECONDS)

    async def row(self, tenant_id: str, meter: str, event_id: UUID) -> EventRow | None:
        """The row of an event; None: there is none."""
        rows = await self._rows(tenant_id, meter, [str(event_id)])
        return rows[0] if rows else None

    async def _by_sender(self, asked: Reference) -> list[EventRow]:
        """The events that were sent with this id, one of each tenant and meter; two are enough."""
        if asked.tenant_id is not None and asked.meter is not None:
            owners = [(asked.tenant_id, asked.meter)]
        else:
            statement = event_queries.owners(asked.tenant_id, asked.meter, MAX_OWNERS + 1)
            owners = [(tenant, meter) for tenant, meter in await self._read(statement)]
        if len(owners) > MAX_OWNERS:
            raise InvalidUsageError(
                f"the id is looked for in more than {MAX_OWNERS} pairs of tenant and meter; name tenant_id "
                "and meter"
            )
        found: list[EventRow] = []
        for first in range(0, len(owners), _OWNERS_PER_QUERY):
            some = owners[first : first + _OWNERS_PER_QUERY]
            ids = {str(self.corrector.identify(*pair, asked.event_id)): pair for pair in some}
            for (event_id,) in await self._read(event_queries.stored_ids(list(ids))):
                found += await self._rows(*ids[event_id], [event_id])
                if len(found) > 1:
                    return found
        return found

    async def _latest(self, event: EventRow) -> Found:
        """What counts instead of an event now, through all its corrections."""
        origin: Made | None = None
        while True:
            made = await self._correction(event)
            if made is None or made.replaced_by is None:
                return Found(event=event, correction=made, origin=origin)
            following = await self.row(event.tenant_id, event.meter, made.replaced_by)
            if following is None:
                raise UnavailableError("the event is being corrected; send the same request again")
            event, origin = following, made

    async def _correction(self, event: EventRow) -> Made | None:
        statement = event_queries.correction_of(event.tenant_id, event.meter, str(event.event_id))
        rows = await self._read(statement)
        return made_of(rows[0]) if rows else None

    async def _rows(
        self, tenant_id: str | None, meter: str | None, event_ids: Sequence[str]
    ) -> list[EventRow]:
        statement = event_queries.event_rows(tenant_id, meter, event_ids)
        return [_event_row(row) for row in await self._read(statement)]

    async def _read(self, statement: Statement) -> Sequence[Sequence[Any]]:
        return await read(self._request, self._services, statement)


def _event_row(row: Sequence[Any]) -> EventRow:
    event_id, tenant_id, meter, quantity, observations, unique_key, timestamp_ns, start_ns = row[:8]
    dimensions, attributes, service_name, signal, trace_id, span_id = row[8:]
    return EventRow(
        event_id=UUID(event_id),
        tenant_id=tenant_id,
        meter=meter,
        quantity=quantity,
        observations=observations,
        unique_key=unique_key,
        timestamp_ns=timestamp_ns,
        start_ns=start_ns,
        dimensions=dimensions,
        attributes=attributes,
        service_name=service_name,
        signal=signal,
        trace_id=trace_id,
        span_id=span_id,
    )


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _not_found(asked: Reference) -> NotFoundError:
    return NotFoundError(
        f"there is no event {asked.event_id[:256]!r} that this key may see; check event_id, tenant_id and "
        "meter, and if it was acknowledged a moment ago, send the same request again"
    )


def _ambiguous(asked: Reference, owners: set[tuple[str, str]]) -> str:
    missing = [
        name
        for name, given, values in (
            ("tenant_id", asked.tenant_id, {tenant for tenant, _ in owners}),
            ("meter", asked.meter, {meter for _, meter in owners}),
        )
        if given is None and len(values) > 1
    ]
    return (
        f"several events have the id {asked.event_id[:256]!r}; say also {' and '.join(missing)}, or use the "
        "UUID of the event"
    )
