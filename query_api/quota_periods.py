"""Periods of quotas: which one an instant lies in, in any time zone.

Instants are nanoseconds since the epoch, UTC. A day begins at the first instant of its date in the zone, so
days of 23 and 25 hours are exact, and so is a day whose midnight does not exist.
"""

from calendar import monthrange
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from otel_metering.contract.quota import Period
from otel_metering.errors import InvalidUsageError

SECOND_NS: Final = 1_000_000_000
_HOUR: Final = 3_600
_LONGEST_SHIFT: Final = 26 * _HOUR
"""Seconds: no change of an offset is longer; Samoa once skipped a day."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Span:
    """`[start_ns, end_ns)`; end None: it never ends."""

    start_ns: int
    end_ns: int | None

    def has(self, ns: int) -> bool:
        """Whether `ns` lies in it."""
        return self.start_ns <= ns and (self.end_ns is None or ns < self.end_ns)


@lru_cache(maxsize=1_024)
def zone_of(name: str) -> ZoneInfo:
    """The IANA time zone of this name.

    Raises:
        InvalidUsageError: There is none.
    """
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        raise InvalidUsageError(
            f"timezone {name[:64]!r} is unknown; write an IANA name such as Europe/Berlin or UTC"
        ) from None


def span_of(period: Period, anchor_day: int | None, zone: ZoneInfo, ns: int) -> Span:
    """The period that `ns` lies in."""
    if period is Period.LIFETIME:
        return Span(0, None)
    if period is Period.HOUR:
        start = _hour_start(zone, ns // SECOND_NS)
        return Span(start * SECOND_NS, _hour_end(zone, start) * SECOND_NS)
    first, following = _calendar(period, anchor_day)
    begin = first(_local(zone, ns // SECOND_NS).date())
    # A clock that was set back over midnight shows a date again that has ended.
    while _first_instant(zone, following(begin)) * SECOND_NS <= ns:
        begin = following(begin)
    while (start := _first_instant(zone, begin)) * SECOND_NS > ns:
        begin = first(begin - timedelta(days=1))
    return Span(start * SECOND_NS, _first_instant(zone, following(begin)) * SECOND_NS)


Step = Callable[[date], date]


def _calendar(period: Period, anchor_day: int | None) -> tuple[Step, Step]:
    """(date -> first date of its period, first date -> first date of the next period)."""
    if period is Period.DAY:
        return (lambda day: day), (lambda day: day + timedelta(days=1))
    if period is Period.WEEK:
        return (
            lambda day: day - timedelta(days=day.weekday()),
            lambda day: day + timedelta(days=7),
        )
    wanted = anchor_day or 1

    def anchored(year: int, month: int) -> date:
        return date(year, month, min(wanted, monthrange(year, month)[1]))

    def first(day: date) -> date:
        this = anchored(day.year, day.month)
        before = day.replace(day=1) - timedelta(days=1)
        return this if this <= day else anchored(before.year, before.month)

    def following(day: date) -> date:
        after = day.replace(day=28) + timedelta(days=4)
        return anchored(after.year, after.month)

    return first, following


def _local(zone: ZoneInfo, seconds: int) -> datetime:
    return (_EPOCH + timedelta(seconds=seconds)).astimezone(zone)


def _offset(zone: ZoneInfo, seconds: int) -> int:
    found = _local(zone, seconds).utcoffset()
    return 0 if found is None else found.days * 86_400 + found.seconds


@lru_cache(maxsize=4_096)
def _first_instant(zone: ZoneInfo, day: date) -> int:
    """The first second whose date in the zone is `day`, or a later one (a day that was skipped)."""
    # fold=0: of a midnight that comes twice, the first.
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    found = (midnight.astimezone(UTC) - _EPOCH) // timedelta(seconds=1)
    if _local(zone, found - 1).date() < day:
        return found
    # Midnight was skipped: the instant of the change, which is not long before.
    return _bisect(found - _LONGEST_SHIFT, found, lambda at: _local(zone, at).date() >= day)


def _hour_start(zone: ZoneInfo, seconds: int) -> int:
    offset = _offset(zone, seconds)
    start = seconds - (seconds + offset) % _HOUR
    if _offset(zone, start) == offset:
        return start
    # The offset changed within this hour of the clock: there another one begins.
    return _bisect(start, seconds, lambda at: _offset(zone, at) == offset)


def _hour_end(zone: ZoneInfo, start: int) -> int:
    offset = _offset(zone, start)
    end = start - (start + offset) % _HOUR + _HOUR
    if _offset(zone, end - 1) == offset:
        return end
    return _bisect(start, end, lambda at: _offset(zone, at) != offset)


def _bisect(low: int, high: int, is_so: Callable[[int], bool]) -> int:
    """The first of (low, high] for which `is_so`, which holds at `high` and not at `low`."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_so(middle) else (middle, high)
    return high
