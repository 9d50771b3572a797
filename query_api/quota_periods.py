"""Periods of quotas: which one an instant lies in, in any time zone.

Instants are nanoseconds since the epoch, UTC. A day begins at the first instant of its date in the zone, so
days of 23 and 25 hours are exact, and so is a day whose midnight does not exist.
"""

from calendar import monthrange
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from otel_metering.contract.quota import Period
from query_api.periods import SECOND_NS
from query_api.zones import Zone

_HOUR: Final = 3_600


@dataclass(frozen=True, slots=True)
class Span:
    """`[start_ns, end_ns)`; end None: it never ends."""

    start_ns: int
    end_ns: int | None

    def has(self, ns: int) -> bool:
        """Whether `ns` lies in it."""
        return self.start_ns <= ns and (self.end_ns is None or ns < self.end_ns)


def span_of(period: Period, anchor_day: int | None, zone: Zone, ns: int) -> Span:
    """The period that `ns` lies in."""
    if period is Period.LIFETIME:
        return Span(0, None)
    if period is Period.HOUR:
        return _hour(zone, ns // SECOND_NS)
    first, following = _calendar(period, anchor_day)
    begin = first(zone.local_datetime(ns).date())
    # A clock that was set back over midnight shows a date again that has ended.
    while (end := zone.midnight(following(begin))) <= ns:
        begin = following(begin)
    while (start := zone.midnight(begin)) > ns:
        begin, end = first(begin - timedelta(days=1)), start
    return Span(start, end)


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


def _hour(zone: Zone, at_s: int) -> Span:
    """From when the clock shows a whole hour, or was changed, until it does so again."""
    last = zone.stretches(at_s - _HOUR, at_s + 1)[-1]
    whole = at_s - (at_s + last.offset_s) % _HOUR
    next_change = zone.stretches(at_s, whole + _HOUR)[0].end_s
    return Span(max(whole, last.start_s) * SECOND_NS, next_change * SECOND_NS)
