"""`freeze`: time stands still for what is metered."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from otel_metering._record import sink
from otel_metering.clock import ManualClock


class FrozenTime:
    """The time that events get, of a `clock` that is moved by hand."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock

    def advance(self, seconds: float) -> None:
        """Move forward by `seconds`; durations that are being measured grow by as much."""
        self._clock.advance(seconds)


@contextmanager
def freeze(time: datetime | int) -> Iterator[FrozenTime]:
    """Fix the time that events get, and let durations be 0, in a `with` block, for all threads.

    Args:
        time: With its zone, or in nanoseconds since the Unix epoch.

    Raises:
        ValueError: `time` has no zone.
    """
    clock = ManualClock(_nanoseconds(time))
    before = sink.clock, sink.stopwatch_ns
    sink.clock, sink.stopwatch_ns = clock, clock.now_ns
    try:
        yield FrozenTime(clock)
    finally:
        sink.clock, sink.stopwatch_ns = before


def _nanoseconds(time: datetime | int) -> int:
    if isinstance(time, int):
        return time
    if time.tzinfo is None:
        raise ValueError(f"{time} has no zone; add tzinfo=UTC, or what it is")
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
