"""Windows: how a range is cut up by the clock and the calendar of a time zone.

- A day, week (from Monday) or month begins when the clock first shows its date, and lasts until the next
  one begins: days of 23, 25 or 24.5 hours are as they are, and a day that a zone left out has no window.
- An hour, a quarter of it or a minute begins where the clock shows a whole one, **and** where the clock is
  changed: none is longer than its name says, and the hour that a clock shows twice is two windows.

All edges are whole seconds of UTC.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

import numpy as np

from otel_metering.errors import InvalidUsageError
from query_api.periods import SECOND_NS, Range, format_instant
from query_api.zones import DAY_S, Seconds, Zone

MAX_WINDOWS: Final = 100_000
"""Windows of one range: 69 days of minutes, 11 years of hours."""

_MAX_ROLLING: Final = 100_000


class Window(StrEnum):
    """How a range is cut up in an answer."""

    MINUTE = "minute"
    QUARTER_HOUR = "15m"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    TOTAL = "total"
    """Not at all: one window, the range itself."""


class Unit(StrEnum):
    """What the length of a rolling window is counted in."""

    MINUTES = "minutes"
    HOURS = "hours"
    DAYS = "days"
    WEEKS = "weeks"
    MONTHS = "months"


@dataclass(frozen=True, slots=True)
class Rolling:
    """One window: so many units up to the end of the range."""

    count: int
    unit: Unit


WINDOW_PATTERN: Final = f"^({'|'.join(Window)}|last_[1-9][0-9]{{0,4}}_({'|'.join(Unit)}))$"

_STEPS: Final = {Window.MINUTE: 60, Window.QUARTER_HOUR: 900, Window.HOUR: 3_600}
_ROLLING: Final = re.compile(rf"last_([1-9][0-9]{{0,4}})_({'|'.join(Unit)})", re.ASCII)
_MONDAY: Final = np.datetime64("1970-01-05", "D")


@dataclass(frozen=True, slots=True)
class Runs:
    """Windows as arithmetic: from `starts[i]` on, each window is `steps[i]` seconds."""

    starts: tuple[int, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """A range, cut up.

    Attributes:
        range: What is cut.
        starts: When each window begins, in s, ascending; the first may be before the range.
    """

    range: Range
    starts: Seconds

    def __len__(self) -> int:
        return len(self.starts)

    def at(self, index: int) -> Range:
        """A window, as far as it is inside the range."""
        return self.span(index, index + 1)

    def span(self, first: int, end: int) -> Range:
        """The windows from `first` to before `end`, as far as they are inside the range."""
        start_ns = int(self.starts[first]) * SECOND_NS
        end_ns = int(self.starts[end]) * SECOND_NS if end < len(self) else self.range.end_ns
        return Range(max(start_ns, self.range.start_ns), end_ns)

    @property
    def runs(self) -> Runs:
        """Them as runs of windows of one length: few, whatever their number."""
        end_s = -(-self.range.end_ns // SECOND_NS)
        lengths = np.diff(self.starts, append=end_s)
        if len(lengths) > 1:
            # The last one is cut off by the range: it may be the end of the run before it.
            lengths[-1] = max(lengths[-1], lengths[-2])
        changes = np.flatnonzero(np.diff(lengths, prepend=-1))
        return Runs(
            tuple(int(i) for i in self.starts[changes]), tuple(int(i) for i in lengths[changes])
        )


def parse_window(text: str) -> Window | Rolling:
    """Read the name of a window.

    Raises:
        InvalidUsageError: It is none.
    """
    match = _ROLLING.fullmatch(text)
    if match is not None:
        return Rolling(int(match[1]), Unit(match[2]))
    try:
        return Window(text)
    except ValueError:
        raise InvalidUsageError(
            f"window {text[:64]!r} is unknown; use {', '.join(Window)}, or last_<n>_<unit> with n from 1 "
            f"to {_MAX_ROLLING - 1} and one of {', '.join(Unit)}"
        ) from None


def cut(within: Range, window: Window, zone: Zone) -> Windows:
    """Cut a range into windows.

    Raises:
        InvalidUsageError: There would be more than `MAX_WINDOWS`.
    """
    if window is Window.TOTAL:
        starts = np.array([within.start_ns // SECOND_NS], dtype=np.int64)
    elif window in _STEPS:
        starts = _clock_starts(within, window, zone)
    else:
        starts = _calendar_starts(within, window, zone)
    # Sorted: keep the one that the range begins in, and those that begin inside.
    first = int(np.searchsorted(starts, within.start_ns // SECOND_NS, side="right")) - 1
    end = int(np.searchsorted(starts, -(-within.end_ns // SECOND_NS)))
    return Windows(within, np.maximum(starts[first:end], 0))


def rolling_range(end_ns: int, rolling: Rolling, zone: Zone) -> Range:
    """What a rolling window covers: minutes and hours as they elapse, days and more by the calendar.

    Raises:
        InvalidUsageError: It begins before 1970.
    """
    return Range(_before(end_ns, rolling, zone), end_ns)


def previous_range(within: Range, zone: Zone, rolling: Rolling | None) -> Range:
    """The range of the same length just before.

    It is of as many months, or days, if both ends are where a month, or a day, begins in the zone.

    Raises:
        InvalidUsageError: It begins before 1970.
    """
    if rolling is None:
        rolling = _calendar_length(within, zone)
    if rolling is not None:
        return Range(_before(within.start_ns, rolling, zone), within.start_ns)
    start_ns = within.start_ns - (within.end_ns - within.start_ns)
    return Range(_since_1970(start_ns), within.start_ns)


def _clock_starts(within: Range, window: Window, zone: Zone) -> Seconds:
    step = _STEPS[window]
    start_s, end_s = within.start_ns // SECOND_NS, -(-within.end_ns // SECOND_NS)
    if (end_s - start_s) // step > MAX_WINDOWS:
        raise InvalidUsageError(
            f"the range from {format_instant(within.start_ns)} to {format_instant(within.end_ns)} has over "
            f"{MAX_WINDOWS} windows of {window}, which is the limit; shorten the range, or widen the window"
        )
    pieces: list[Seconds] = []
    for stretch in zone.stretches(start_s, end_s):
        aligned = stretch.start_s - (stretch.start_s + stretch.offset_s) % step
        starts = np.arange(aligned, stretch.end_s, step, dtype=np.int64)
        if pieces:
            starts[0] = stretch.start_s
        pieces.append(starts)
    return np.concatenate(pieces)


def _calendar_starts(within: Range, window: Window, zone: Zone) -> Seconds:
    # A day to either side: near a change of the clock, the dates of instants do not ascend.
    first = _local_date(zone, within.start_ns) - np.timedelta64(1, "D")
    last = _local_date(zone, within.end_ns) + np.timedelta64(1, "D")
    if window is Window.MONTH:
        dates = np.arange(first.astype("M8[M]"), last.astype("M8[M]") + 1).astype("M8[D]")
    elif window is Window.WEEK:
        monday = first - (first - _MONDAY) % np.timedelta64(7, "D")
        dates = np.arange(monday, last + 1, np.timedelta64(7, "D"))
    else:
        dates = np.arange(first, last + 1)
    return np.unique(zone.first(dates.astype(np.int64) * DAY_S))


def _local_date(zone: Zone, ns: int) -> np.datetime64:
    return np.datetime64(zone.local(ns // SECOND_NS) // DAY_S, "D")


def _calendar_length(within: Range, zone: Zone) -> Rolling | None:
    start, end = (zone.local_datetime(ns).date() for ns in (within.start_ns, within.end_ns))
    if zone.midnight(start) != within.start_ns or zone.midnight(end) != within.end_ns:
        return None
    if start.day == end.day == 1:
        return Rolling((end.year - start.year) * 12 + end.month - start.month, Unit.MONTHS)
    return Rolling((end - start).days, Unit.DAYS)


def _before(ns: int, rolling: Rolling, zone: Zone) -> int:
    """The instant that is so much earlier."""
    count = rolling.count
    if rolling.unit in {Unit.MINUTES, Unit.HOURS}:
        seconds = count * (60 if rolling.unit is Unit.MINUTES else 3_600)
        return _since_1970(ns - seconds * SECOND_NS)
    local = zone.local_datetime(ns)
    if rolling.unit is Unit.MONTHS:
        earlier = _months_before(local, count)
    else:
        days = count * (7 if rolling.unit is Unit.WEEKS else 1)
        earlier = local - timedelta(days=days) if days < local.toordinal() else None
    if earlier is None or earlier.year < 1970:
        return _since_1970(-1)
    found_ns = zone.first_ns(earlier, ns % SECOND_NS)
    # Where the zone left out the whole day, time as it elapses is what there is.
    return _since_1970(found_ns if found_ns < ns else ns - DAY_S * SECOND_NS)


def _months_before(local: datetime, count: int) -> datetime | None:
    """So many months earlier; the last day of that month if it has no such day."""
    months = local.year * 12 + local.month - 1 - count
    if months < 1970 * 12:
        return None
    start = datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC)
    days = ((start + timedelta(days=31)).replace(day=1) - start).days
    return local.replace(year=start.year, month=start.month, day=min(local.day, days))


def _since_1970(ns: int) -> int:
    if ns >= 0:
        return ns
    raise InvalidUsageError("the range would begin before 1970; ask for less time")
