"""The only reader of the time.

Everything else takes a `Clock`, so that tests move time instead of waiting for it.
"""

import time
from typing import Final, Protocol

stopwatch_ns: Final = time.perf_counter_ns
"""Nanoseconds since an arbitrary point, as finely as the machine can: for what is short."""


class Clock(Protocol):
    """Wall time for timestamps, monotonic time for durations."""

    def now_ns(self) -> int:
        """Nanoseconds since the Unix epoch, UTC; may step backwards."""
        ...

    def monotonic(self) -> float:
        """Seconds since an arbitrary point; never steps backwards."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ns(self) -> int:
        """Nanoseconds since the Unix epoch, UTC."""
        return time.time_ns()

    def monotonic(self) -> float:
        """Seconds since an arbitrary point."""
        return time.monotonic()


class ManualClock:
    """A clock that tests move by hand.

    Attributes:
        ns: Nanoseconds since the Unix epoch that `now_ns` answers.
    """

    def __init__(self, ns: int = 1_790_000_000_000_000_000) -> None:
        self.ns: int = ns

    def now_ns(self) -> int:
        """Answer `ns`."""
        return self.ns

    def monotonic(self) -> float:
        """Answer `ns` in seconds."""
        return self.ns / 1e9

    def advance(self, seconds: float) -> None:
        """Move forward by `seconds`."""
        self.ns += round(seconds * 1e9)
