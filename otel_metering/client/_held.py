"""A reservation in the hands of a program: its rules, without sending anything."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from otel_metering.client._operations import NewEvent, send_events
from otel_metering.client._quota_operations import Attributes, commit, reserve
from otel_metering.client._request import Number, Operation
from otel_metering.client.results import Decision
from otel_metering.errors import InvalidUsageError, QuotaExceededError

EVENT_PREFIX: Final = "reservation/"
"""What the service names the event of a reservation that is committed, in front of its id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be reserved.

    Attributes:
        reservation_id: Chosen here, so that what is asked twice is reserved once.
        lease: Whether usage is taken from it piece by piece.
    """

    reservation_id: str
    tenant_id: str
    meter: str
    quantity: Number
    dimensions: Mapping[str, str] | None = None
    ttl_seconds: int | None = None
    lease: bool = False

    def take(self) -> Operation[Decision]:
        """Reserve it.

        Raises:
            QuotaExceededError: A quota denies it.
        """
        found = yield from reserve(
            self.reservation_id,
            self.tenant_id,
            self.meter,
            self.quantity,
            dimensions=self.dimensions,
            ttl_seconds=self.ttl_seconds,
            lease=self.lease,
        )
        if found.allowed:
            return found
        left = "" if found.remaining is None else f"; {found.remaining:f} remain"
        until = "" if found.resets_at is None else f" until {found.resets_at.isoformat()}"
        raise QuotaExceededError(
            f"tenant {self.tenant_id} may not reserve {self.quantity} of {self.meter}: "
            f"{found.reason}{left}{until}",
            reason=found.reason,
            remaining=found.remaining,
            resets_at=found.resets_at,
        )

    def count(
        self,
        held: Decision,
        quantity: Number | None,
        *,
        timestamp: datetime | str | None,
        attributes: Attributes | None,
        new_id: Callable[[], str],
    ) -> Operation[None]:
        """Count what was used, once, however often it is asked.

        Raises:
            InvalidUsageError: It can never be counted as it is.
        """
        used = self.quantity if quantity is None else quantity
        known = {**(self.dimensions or {}), **(attributes or {})}
        if held.reservation_id is not None:
            yield from commit(
                held.reservation_id, used, timestamp=timestamp, attributes=known or None
            )
            return
        # No quota holds anything for it. Usage is usage all the same.
        event = NewEvent(
            meter=self.meter,
            quantity=used,
            tenant_id=self.tenant_id,
            event_id=EVENT_PREFIX + self.reservation_id,
            timestamp=timestamp,
            attributes=known,
        )
        done = yield from send_events(new_id, [event])
        for _, reason in done.rejected:
            raise InvalidUsageError(reason)
