"""`capture`: usage goes to memory for as long as a block lasts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from otel_metering._cells import CellBook
from otel_metering._record import sink
from otel_metering.testing._usage import CapturedUsage

_MAX_SERIES: Final = 1_000_000
"""More than a test has: none of its series loses its dimensions."""


@contextmanager
def capture() -> Iterator[CapturedUsage]:
    """Capture all usage of this process, of all threads, in a `with` block.

    Usage does not reach the pipeline that is configured, if there is one; after the block it does again.
    `configure` and `shutdown` in the block check their arguments and do nothing, so that the code under test
    may call them. Blocks nest: the innermost captures. A child process captures for itself; its usage is not
    seen here.
    """
    book = CellBook(max_series_per_meter=_MAX_SERIES, on_new_thread=lambda: None)
    with sink.capture(book):
        yield CapturedUsage(book)
