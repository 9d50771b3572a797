"""Voids an event, or lets another count instead. The answer comes when it is durable.

The receiver decides, in one order with everything that it admits; here is what a person may ask for.
A request that is sent again gets the answer of the first one.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from otel_metering.errors import InvalidUsageError, UnavailableError
from query_api.audit import audit
from query_api.event_schemas import Correct, Void
from query_api.intake import parse_attribute, parse_quantity
from query_api.locating import POLL_SECONDS, WAIT_SECONDS, Found, Locator, Made, Reference
from query_api.periods import parse_instant
from query_api.problems import ConflictError
from query_api.services import Services
from receiver.store.corrections import Action, Correction, EventRow, Replacement
from receiver.store.keys import Principal

_MS_NS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What shall be different.

    Attributes:
        quantity: The quantity; None: it stays.
        timestamp_ns: The time; None: it stays.
        attributes: Those that change, by name; None removes one.
    """

    quantity: Decimal | None
    timestamp_ns: int | None
    attributes: Mapping[str, str | None]

    def applied_to(self, event: EventRow) -> Replacement:
        """What counts instead of `event` then."""
        merged = {**event.attributes, **self.attributes}
        return Replacement(
            quantity=event.quantity if self.quantity is None else self.quantity,
            timestamp_ns=event.timestamp_ns if self.timestamp_ns is None else self.timestamp_ns,
            attributes={name: text for name, text in merged.items() if text is not None},
        )


def parse_change(body: Correct) -> Change:
    """What a request wants to be different.

    Raises:
        InvalidUsageError: Nothing, or something that cannot be.
    """
    if body.quantity is None and body.timestamp is None and body.attributes is None:
        raise InvalidUsageError(
            "the request changes nothing; send quantity, timestamp or attributes"
        )
    attributes = {
        name: parse_attribute(name, _exact(value))
        for name, value in (body.attributes or {}).items()
    }
    return Change(
        quantity=None if body.quantity is None else parse_quantity(_exact(body.quantity)),
        timestamp_ns=None if body.timestamp is None else parse_instant(body.timestamp),
        attributes=attributes,
    )


def _exact(value: object) -> object:
    """A JSON number as the decimal that people see; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return Decimal(repr(value))


class Corrections:
    """What one request does to an event."""

    def __init__(self, request: Request, services: Services, principal: Principal) -> None:
        self._services = services
        self._locator = Locator(request, services)
        self._clock = services.clock
        self._principal = principal

    async def void(self, asked: Reference, body: Void) -> tuple[EventRow, Made]:
        """Let an event not count any more; returns it, and its correction.

        Raises:
            NotFoundError: There is no such event.
            ConflictError: Several have this id, or another counts instead of it.
            UnavailableError: Whether it was made is unknown; ask again.
        """
        return await self._make(asked, body, None)

    async def correct(self, asked: Reference, body: Correct) -> tuple[EventRow, Made]:
        """Let another event count instead of one; returns that one, and its correction.

        Raises:
            NotFoundError: There is no such event.
            ConflictError: Several have this id, or it does not count any more.
            InvalidUsageError: What shall count instead cannot be.
            UnavailableError: Whether it was made is unknown; ask again.
        """
        return await self._make(asked, body, parse_change(body))

    async def _make(
        self, asked: Reference, body: Void, change: Change | None
    ) -> tuple[EventRow, Made]:
        deadline = self._clock.monotonic() + WAIT_SECONDS
        while True:
            found = await self._locator.find_soon(asked)
            answer = await self._made_before(found, body.reason, change)
            if answer is None:
                answer = await self._submit(found.event, body.reason, change)
            if answer is not None:
                return found.event, answer
            # Somebody was faster, and what they did is not in the database yet.
            if self._clock.monotonic() >= deadline:
                raise UnavailableError(
                    "the event was corrected a moment ago, and the database does not say yet how; send the "
                    "same request again"
                )
            await asyncio.sleep(POLL_SECONDS)

    async def _made_before(self, found: Found, reason: str, change: Change | None) -> Made | None:
        """The correction that answers the request, if it was made before; None: it is to be made."""
        made, origin = found.correction, found.origin
        if made is None:
            if change is None or origin is None or origin.reason != reason:
                return None
            return origin if _is_same(change.applied_to(found.event), found.event) else None
        if made.replaced_by is None:
            if change is None:
                return made
            raise ConflictError(
                f"the event {made.event_id} is void, and what is void stays void; send a new event"
            )
        if change is not None and made.reason == reason:
            row = await self._locator.row(made.tenant_id, made.meter, made.replaced_by)
            if row is not None and _is_same(change.applied_to(found.event), row):
                return made
        raise ConflictError(
            f"the event {made.event_id} was corrected before: {made.replaced_by} counts instead; void or "
            "correct that one"
        )

    def _record(self, correction: Correction) -> None:
        """Say in the audit log what is about to be done."""
        audit(
            self._services,
            self._principal,
            action=f"event.{correction.action}",
            target=str(correction.event.event_id),
            tenant_id=correction.event.tenant_id,
            details={"meter": correction.event.meter, "reason": correction.reason},
        )

    async def _submit(self, event: EventRow, reason: str, change: Change | None) -> Made | None:
        """Make it; None: somebody was faster."""
        corrector = self._locator.corrector
        correction = Correction(
            event=event,
            reason=reason,
            replacement=None if change is None else change.applied_to(event),
            key_id=self._principal.key_id,
            corrected_at_ms=self._clock.now_ns() // _MS_NS,
        )
        await run_in_threadpool(self._record, correction)
        if not await run_in_threadpool(corrector.submit, correction, self._principal):
            return None
        return Made(
            event_id=event.event_id,
            tenant_id=event.tenant_id,
            meter=event.meter,
            action=correction.action,
            reason=reason,
            replaced_by=(
                corrector.replacement_of(event.event_id)
                if correction.action is Action.CORRECT
                else None
            ),
            key_id=correction.key_id,
            corrected_at_ms=correction.corrected_at_ms,
        )


def _is_same(wanted: Replacement, event: EventRow) -> bool:
    return (
        wanted.quantity == event.quantity
        and wanted.timestamp_ns == event.timestamp_ns
        and wanted.attributes == event.attributes
    )
