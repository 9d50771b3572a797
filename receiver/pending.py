"""What was acknowledged and is not in the database yet, and the moment at which both together are everything."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from otel_metering.errors import UnavailableError
from otel_metering.spool import Spool
from receiver import rows
from receiver.writer import Writer

MAX_BYTES: Final = 64 * 2**20
"""Of the spool that is read at once; ten times what waits when the database keeps up."""


@dataclass(frozen=True, slots=True)
class Pending:
    """Usage that waits for the database.

    Attributes:
        number: Of the last entry that is in it.
        events: Rows of `metering.events`; None: there are none.
    """

    number: int
    events: pa.Table | None


@contextmanager
def standstill(spool: Spool, writer: Writer, timeout: float) -> Iterator[Pending]:
    """While this is entered, the database and what it yields together have each event once.

    Raises:
        UnavailableError: The writer did not come to rest within `timeout` seconds, or too much waits.
    """
    with writer.at_rest(timeout):
        if spool.byte_count > MAX_BYTES:
            raise UnavailableError(f"{spool.byte_count} bytes of usage wait for the database")
        number = spool.mark.appended
        payloads = [
            entry.payload
            for entry in spool.entries()
            if entry.id <= number and entry.key == rows.EVENTS_KEY
        ]
        yield Pending(number, rows.to_events(payloads, bytes(16)) if payloads else None)
