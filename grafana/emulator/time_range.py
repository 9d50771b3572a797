"""What Grafana knows when it sends a query: the time, the interval and the variables."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

Value = str | tuple[str, ...]
"""Of a variable: one text, or those that are chosen. All is ("$__all",)."""

_NICE_SECONDS: Final = (
    *(1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800),
    *(3600, 7200, 10800, 21600, 43200, 86400, 604800, 2592000, 31536000),
)


@dataclass(frozen=True, slots=True)
class TimeRange:
    """The time that is shown; aware datetimes."""

    begin: datetime
    end: datetime

    @classmethod
    def last(cls, length: timedelta, end: datetime) -> "TimeRange":
        """The time of this length that ends at `end`."""
        return cls(end - length, end)

    @property
    def begin_ms(self) -> int:
        """Milliseconds since the epoch."""
        return _to_ms(self.begin)

    @property
    def end_ms(self) -> int:
        """Milliseconds since the epoch."""
        return _to_ms(self.end)

    def interval_ms(self, points: int = 1000) -> int:
        """An interval that gives about so many points, as Grafana rounds it; at least a second."""
        wanted = (self.end_ms - self.begin_ms) / points / 1000
        for nice, following in itertools.pairwise(_NICE_SECONDS):
            if wanted < (nice + following) / 2:
                return nice * 1000
        return _NICE_SECONDS[-1] * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a query is expanded with.

    Attributes:
        time: What is shown.
        variables: Name -> what is chosen.
        options: Name -> all that can be chosen: what All stands for outside of a condition.
        scoped: Name -> the one value that a repeated row or panel is about.
        interval_ms: Of the panel; None: from the time.
    """

    time: TimeRange
    variables: Mapping[str, Value] = field(default_factory=dict)
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scoped: Mapping[str, str] = field(default_factory=dict)
    interval_ms: int | None = None

    @property
    def interval(self) -> int:
        """Milliseconds."""
        return self.interval_ms or self.time.interval_ms()

    def within(self, name: str, value: str) -> "Context":
        """The same in a row that is repeated for this value."""
        return replace(self, scoped={**self.scoped, name: value})


def _to_ms(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
