"""What one usage event is, and what makes it valid, on both ends of the wire.

The bounds here are the receiver's: an SDK that checks them first turns a quarantined point into an
error message at the line that made it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Final

from otel_metering.errors import InvalidUsageError

QUANTITY_DECIMALS: Final = 9
"""Decimal places that are stored: the scale of `Decimal(38, 9)`."""

MAX_QUANTITY: Final = 2**63 - 1
"""Largest magnitude of one event's quantity: an OTLP integer. Sums may be larger."""

MAX_ID_LENGTH: Final = 128
"""Characters of a tenant id or meter slug."""

MAX_EVENT_ID_LENGTH: Final = 256
"""Characters of an explicit event id."""

_NAME = re.compile(rf"[A-Za-z0-9_.:@/-]{{1,{MAX_ID_LENGTH}}}")
_NANO: Final = Decimal(1).scaleb(-QUANTITY_DECIMALS)
_EXACT: Final = Context(prec=64, rounding=ROUND_HALF_EVEN)
"""Wide enough for every quantity, whatever precision the caller's thread works with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageEvent:
    """One piece of usage, as the JSON API takes it.

    Attributes:
        tenant_id: Who used it.
        meter: What was used: a meter's slug.
        quantity: How much, in the meter's unit; at most nine decimal places.
        event_id: Idempotency key of the sender; None: the event counts whenever it is sent.
        timestamp_ns: When, in nanoseconds since the epoch; None: on arrival.
        attributes: Everything known of it; a meter's `group_by` picks its dimensions from here.
    """

    tenant_id: str
    meter: str
    quantity: Decimal = Decimal(1)
    event_id: str | None = None
    timestamp_ns: int | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What became of a list of events that was sent together; all that was accepted is durable.

    Attributes:
        accepted: How many were stored for the first time.
        duplicates: How many had been stored before, and so count no second time.
        rejected: (index in the list, reason) of each that can never be counted, by index.
    """

    accepted: int
    duplicates: int
    rejected: tuple[tuple[int, str], ...]


def is_valid_name(text: str) -> bool:
    """Whether `text` can be a tenant id or a meter slug: `[A-Za-z0-9_.:@/-]{1,128}`."""
    return _NAME.fullmatch(text) is not None


def check_name(kind: str, text: str) -> str:
    """Return `text` if it can be a tenant id or a meter slug.

    Raises:
        InvalidUsageError: It is empty, too long, or has another character; the message says which.
    """
    if is_valid_name(text):
        return text
    shown = text[:MAX_ID_LENGTH]
    raise InvalidUsageError(
        f"{kind} {shown!r} is not 1 to {MAX_ID_LENGTH} characters of A-Z a-z 0-9 _ . : @ / -; rename it"
    )


def check_quantity(quantity: Decimal) -> Decimal:
    """Return `quantity` if it can be stored exactly.

    Raises:
        InvalidUsageError: It is not finite, has more than nine decimal places, or is too large.
    """
    if not quantity.is_finite():
        raise InvalidUsageError(f"quantity {quantity} is not a finite number; send a number")
    # copy_abs, unlike abs, cannot overflow the decimal context.
    if quantity.copy_abs() > MAX_QUANTITY:
        raise InvalidUsageError(
            f"quantity {quantity} is beyond {MAX_QUANTITY}; send it in several events"
        )
    if quantity != quantity.quantize(_NANO, context=_EXACT):
        raise InvalidUsageError(
            f"quantity {quantity} has more than {QUANTITY_DECIMALS} decimal places; round it"
        )
    return quantity
