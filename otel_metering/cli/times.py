"""Times as people type them."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from otel_metering.cli.output import shown
from otel_metering.clock import Clock
from otel_metering.errors import InvalidUsageError

_DURATION: Final = re.compile(r"(\d{1,6})([mhdw])", re.ASCII)
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_UNITS: Final = {
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}


def parse_duration(text: str) -> timedelta:
    """Read a length of time: minutes, hours, days or weeks, like "24h" or "30d".

    Raises:
        InvalidUsageError: It is none.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise InvalidUsageError(f"{text!r} is no length of time; write it like 90m, 24h, 30d or 4w")
    return int(match[1]) * _UNITS[match[2]]


def parse_range(
    from_: str, to: str, last: str, clock: Clock, *, ends_now: bool = True
) -> tuple[str | None, str | None]:
    """Bounds as the API takes them, of `--from`, `--to` and `--last`; None: as the API has it.

    Args:
        from_: RFC 3339, a date, or empty.
        to: As `from_`.
        last: A length of time that ends now, or empty.
        clock: Tells what now is.
        ends_now: Give the end as of now, so that several requests cover the same time.

    Raises:
        InvalidUsageError: They contradict each other, or `last` is none.
    """
    present = now(clock)
    if last and (from_ or to):
        raise InvalidUsageError("--last ends now; give either --last, or --from and --to")
    try:
        start = shown(present - parse_duration(last)) if last else from_
    except OverflowError:
        raise InvalidUsageError(f"--last {last} begins before the year 1; give less") from None
    return start or None, to or (shown(present) if ends_now else None)


def parse_future(text: str, clock: Clock) -> str:
    """RFC 3339 of "30d" (from now), a date (midnight, UTC), or RFC 3339, which the API checks.

    Raises:
        InvalidUsageError: It lies beyond the calendar.
    """
    if not _DURATION.fullmatch(text):
        return f"{text}T00:00:00Z" if _DATE.fullmatch(text) else text
    try:
        return shown(now(clock) + parse_duration(text))
    except OverflowError:
        raise InvalidUsageError(f"{text!r} ends after the year 9999; write less") from None


def now(clock: Clock) -> datetime:
    """The present, in UTC."""
    seconds, ns = divmod(clock.now_ns(), 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=ns // 1_000)
