"""Where a page of an answer ended, as the opaque text that the next request brings back.

It is a position in the order of the answer, not an offset: events that arrive in between move nothing.
The range is part of it, so that a default end of "now" does not move between pages.
"""

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final
from uuid import UUID

from otel_metering.errors import InvalidUsageError
from query_api.periods import MAX_NS, Range

_BROKEN: Final = (
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    InvalidOperation,
)
"""What reading a text that is no cursor may raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """The last event of a page, and the range that the pages cover."""

    range: Range
    timestamp_ns: int
    event_id: str

    def encode(self) -> str:
        """The text of it: safe in a URL."""
        return _encode([self.range.start_ns, self.range.end_ns, self.timestamp_ns, self.event_id])


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregateCursor:
    """The last row of a page of aggregates.

    Attributes:
        asked: `fingerprint` of the request.
        range: What the pages cover.
        window: Index of the row's window.
        groups: The row's groups.
        value: The row's value.
    """

    asked: str
    range: Range
    window: int
    groups: tuple[str, ...]
    value: Decimal | None

    def encode(self) -> str:
        """The text of it: safe in a URL."""
        value = None if self.value is None else str(self.value)
        bounds = [self.range.start_ns, self.range.end_ns]
        return _encode([self.asked, *bounds, self.window, list(self.groups), value])


def fingerprint(parameters: Iterable[tuple[str, str]]) -> str:
    """A short text that tells requests with other parameters apart."""
    text = json.dumps(sorted(parameters))
    return hashlib.blake2b(text.encode(), digest_size=9).hexdigest()


def decode(text: str) -> Cursor:
    """Read a cursor that `encode` wrote.

    Raises:
        InvalidUsageError: It is none.
    """
    try:
        start_ns, end_ns, timestamp_ns, event_id = _decode(text)
        within = Range(int(start_ns), int(end_ns))
        return Cursor(range=within, timestamp_ns=int(timestamp_ns), event_id=str(UUID(event_id)))
    except _BROKEN:
        raise _unknown() from None


def decode_aggregate(text: str, *, asked: str, groups: int) -> AggregateCursor:
    """Read a cursor that an `AggregateCursor` wrote.

    Args:
        text: It.
        asked: `fingerprint` of the request that brings it.
        groups: How many groups a row of it has.

    Raises:
        InvalidUsageError: It is none, or of a request with other parameters.
    """
    try:
        was_asked, start_ns, end_ns, window, names, value = _decode(text)
        names = tuple(str(name) for name in names)
        "".join(names).encode()
        found = AggregateCursor(
            asked=str(was_asked),
            range=Range(int(start_ns), int(end_ns)),
            window=int(window),
            groups=names,
            value=None if value is None else Decimal(value),
        )
    except _BROKEN:
        raise _unknown() from None
    if found.value is not None and not found.value.is_finite():
        raise _unknown()
    if not 0 <= found.range.start_ns < found.range.end_ns < MAX_NS or found.window < 0:
        raise _unknown()
    if found.asked != asked or len(names) != groups:
        raise InvalidUsageError(
            "the cursor is of a request with other parameters; send the same ones with it (only limit and "
            "format may differ), or start without a cursor"
        )
    return found


def _encode(fields: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(fields).encode()).decode().rstrip("=")


def _decode(text: str) -> Any:  # noqa: ANN401 - whatever JSON somebody sent
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def _unknown() -> InvalidUsageError:
    return InvalidUsageError(
        "the cursor is not one of ours; send next_cursor as it was, or start without a cursor"
    )
