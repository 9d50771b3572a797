"""Instants and ranges: what a request says about time, and what one row of a table covers.

Instants are integers: nanoseconds since the epoch, UTC. Ranges are half open, `[start, end)`, and rows of
tables are those of the UTC calendar.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import IntEnum
from typing import Final

from otel_metering.errors import InvalidUsageError

SECOND_NS: Final = 1_000_000_000
DEFAULT_RANGE_NS: Final = 30 * 86_400 * SECOND_NS
"""What a read covers when it does not say from when: 30 days."""

MAX_NS: Final = 4_291_747_200 * SECOND_NS
"""2106-01-01: rollups hold their windows as 32-bit seconds, which end in February of that year."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_INSTANT: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


class Grain(IntEnum):
    """What one row of a table covers, from fine to coarse."""

    EVENT = 0
    MINUTE = 1
    HOUR = 2
    DAY = 3
    MONTH = 4


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """`[start_ns, end_ns)`, never empty."""

    start_ns: int
    end_ns: int


def parse_instant(text: str) -> int:
    """Read an RFC 3339 timestamp, exact to the nanosecond.

    Raises:
        InvalidUsageError: It is none, has no offset or over nine fractional digits, or lies outside
            1970 to 2105.
    """
    match = _INSTANT.fullmatch(text)
    if match is None:
        raise InvalidUsageError(
            f"timestamp {text[:64]!r} is not RFC 3339; write it like 2026-01-31T23:59:59.123456789Z, "
            "with Z or an offset (a + in a URL is written %2B)"
        )
    date, time, fraction, offset = match.groups()
    try:
        moment = datetime.fromisoformat(f"{date}T{time}{offset.upper()}")
        since = moment - _EPOCH
    except (ValueError, OverflowError) as error:
        raise InvalidUsageError(f"timestamp {text!r} does not exist: {error}") from None
    seconds = since.days * 86_400 + since.seconds
    return _checked(seconds * SECOND_NS + int((fraction or "0").ljust(9, "0")), text)


def format_instant(ns: int) -> str:
    """RFC 3339 in UTC, with as many fractional digits as it takes."""
    seconds, fraction = divmod(ns, SECOND_NS)
    whole = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{fraction:09d}".rstrip("0").rstrip(".") + "Z" if fraction else whole + "Z"


def utc_midnight(day: date) -> int:
    """When a day begins in UTC."""
    return (day - _EPOCH.date()).days * 86_400 * SECOND_NS


def parse_range(
    start: str | None,
    end: str | None,
    *,
    now_ns: int,
    midnight: Callable[[date], int] = utc_midnight,
) -> Range:
    """What a read covers.

    Args:
        start: RFC 3339 or a date; None: 30 days before the end.
        end: Likewise; None: now.
        now_ns: The present.
        midnight: When a day begins: what a date means.

    Raises:
        InvalidUsageError: One cannot be read, or the end is not after the start.
    """
    end_ns = now_ns if end is None else parse_bound(end, midnight)
    start_ns = max(end_ns - DEFAULT_RANGE_NS, 0) if start is None else parse_bound(start, midnight)
    if start_ns >= end_ns:
        raise InvalidUsageError(
            f"the range from {format_instant(start_ns)} to {format_instant(end_ns)} is empty; "
            "`to` is exclusive and must be after `from`"
        )
    return Range(start_ns, end_ns)


def parse_bound(text: str, midnight: Callable[[date], int] = utc_midnight) -> int:
    """Read an RFC 3339 timestamp, or a date.

    Raises:
        InvalidUsageError: As `parse_instant` does.
    """
    if not _DATE.fullmatch(text):
        return parse_instant(text)
    try:
        day = date.fromisoformat(text)
    except ValueError as error:
        raise InvalidUsageError(f"date {text!r} does not exist: {error}") from None
    # Beside 1970 to 2105 a zone need not be asked, and its arithmetic could overflow.
    return _checked(midnight(day) if 1970 <= day.year <= 2106 else -1, text)


def _checked(ns: int, text: str) -> int:
    if 0 <= ns < MAX_NS:
        return ns
    raise InvalidUsageError(f"timestamp {text!r} is outside 1970 to 2105; correct the clock")
