"""Time zones: what the clock on a wall shows, exact to the second, and when it first shows something.

`local` seconds are what the wall clock shows, counted as if it were UTC. A clock that is put back shows
times twice, one that is put forward leaves times out (Samoa left out a day). So everything here asks one
question that always has one answer: **when does the clock first show this time, or a later one?** It is
also what `java.time` means by the start of a day.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache, lru_cache
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

import numpy as np
import numpy.typing as npt

from otel_metering.errors import InvalidUsageError
from query_api.periods import SECOND_NS

Seconds = npt.NDArray[np.int64]

DAY_S: Final = 86_400

_MARGIN_S: Final = 2 * DAY_S
"""No clock is further from UTC, not even while it leaves out a day."""

_NAME: Final = re.compile(r"[A-Za-z0-9_+/-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Stretch:
    """`[start_s, end_s)`, during which the clock is `offset_s` ahead of UTC."""

    start_s: int
    end_s: int
    offset_s: int


@dataclass(frozen=True, slots=True)
class Zone:
    """A zone of the IANA database."""

    name: str

    def stretches(self, start_s: int, end_s: int) -> Sequence[Stretch]:
        """`[start_s, end_s)`, cut where the clock is changed."""
        changes = [
            (at_s, offset_s)
            for year in range(_year(start_s), _year(end_s) + 1)
            for at_s, offset_s in _changes(self.name, year)
            if start_s < at_s < end_s
        ]
        starts = [(start_s, _offset(self.name, start_s)), *changes]
        ends = [*(at_s for at_s, _ in changes), end_s]
        return [Stretch(a, b, offset) for (a, offset), b in zip(starts, ends, strict=True)]

    def local(self, at_s: int) -> int:
        """What the clock shows at an instant."""
        return at_s + _offset(self.name, at_s)

    def first(self, local: Seconds) -> Seconds:
        """When the clock first shows each time, or a later one.

        Args:
            local: Ascending, not empty.

        Returns:
            Ascending; equal where the clock leaves out what is between.
        """
        start_s, end_s = int(local[0]) - _MARGIN_S, int(local[-1]) + _MARGIN_S
        found = np.empty_like(local)
        done = 0
        for stretch in self.stretches(start_s, end_s):
            upto = int(np.searchsorted(local, stretch.end_s + stretch.offset_s))
            if upto > done:
                found[done:upto] = np.maximum(local[done:upto] - stretch.offset_s, stretch.start_s)
                done = upto
        return found

    def midnight(self, day: date) -> int:
        """When a day begins, in ns."""
        return self.first_ns(datetime(day.year, day.month, day.day, tzinfo=UTC), 0)

    def first_ns(self, local: datetime, fraction_ns: int) -> int:
        """As `first`, of one time in whole seconds (as UTC), plus a part of a second."""
        found = self.first(np.array([local.timestamp()], dtype=np.int64))
        return int(found[0]) * SECOND_NS + fraction_ns

    def local_datetime(self, ns: int) -> datetime:
        """What the clock shows, in whole seconds, as if it were UTC."""
        return datetime.fromtimestamp(self.local(ns // SECOND_NS), UTC)


UTC_ZONE: Final = Zone("UTC")


def load(name: str) -> Zone:
    """The zone of this name.

    Raises:
        InvalidUsageError: There is none.
    """
    if not is_known(name):
        raise InvalidUsageError(
            f"timezone {name[:64]!r} is not a zone of the IANA database; write it like Europe/Berlin, "
            "Asia/Kolkata or UTC"
        )
    return Zone(name)


def is_known(name: str) -> bool:
    """Whether there is a zone of this name here."""
    return name == UTC_ZONE.name or (_NAME.fullmatch(name) is not None and name in _names())


@cache
def _names() -> frozenset[str]:
    return frozenset(available_timezones())


@lru_cache(maxsize=8192)
def _changes(name: str, year: int) -> tuple[tuple[int, int], ...]:
    """When in a year of UTC the clock is changed, and to which offset."""
    start_s, end_s = (int(datetime(y, 1, 1, tzinfo=UTC).timestamp()) for y in (year, year + 1))
    found = []
    before = _offset(name, start_s - 1)
    # Since 1970 no zone has been changed twice within six days: looking once a day misses nothing.
    for at_s in range(start_s - 1, end_s, DAY_S):
        upto_s = min(at_s + DAY_S, end_s - 1)
        after = _offset(name, upto_s)
        if after != before:
            found.append((_find_change(name, at_s, upto_s, before), after))
        before = after
    return tuple(found)


def _find_change(name: str, low_s: int, high_s: int, before: int) -> int:
    """The first second after `low_s` at which the offset is not `before` any more."""
    while high_s - low_s > 1:
        middle = (low_s + high_s) // 2
        if _offset(name, middle) == before:
            low_s = middle
        else:
            high_s = middle
    return high_s


def _offset(name: str, at_s: int) -> int:
    if name == UTC_ZONE.name:
        return 0
    offset = datetime.fromtimestamp(at_s, ZoneInfo(name)).utcoffset() or timedelta()
    return offset.days * DAY_S + offset.seconds


def _year(at_s: int) -> int:
    return datetime.fromtimestamp(at_s, UTC).year
