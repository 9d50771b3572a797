"""What was acknowledged and is not in the database yet, and the moment at which both together are everything."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from otel_metering.errors import UnavailableError
from otel_metering.spool import Entry, Spool
from receiver import rows
from receiver.writer import Writer

MAX_BYTES: Final = 64 * 2**20
"""Of the spool that is read at once; ten times what waits when the database keeps up."""


COLUMNS: Final = [
    "tenant_id",
    "meter",
    "quantity",
    "observations",
    "timestamp",
    "dimensions",
    "attributes",
]


@dataclass(frozen=True, slots=True)
class Pending:
    """Usage that waits for the database.

    Attributes:
        number: Of the last entry that is in it.
        events: Columns `COLUMNS` of rows of `metering.events`, and of what corrections take back as rows of
            the opposite sign; None: there are none.
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
        entries = [entry for entry in spool.entries() if entry.id <= number]
        yield Pending(number, _events(entries))


def _events(entries: Sequence[Entry]) -> pa.Table | None:
    nobody = bytes(16)
    tables = []
    events = [entry.payload for entry in entries if entry.key == rows.EVENTS_KEY]
    if events:
        tables.append(_plain(rows.to_events(events, nobody)))
    back = [entry.payload for entry in entries if entry.key == rows.CORRECTIONS_KEY]
    if back:
        corrections = rows.to_corrections(back, nobody)
        for name in ("quantity", "observations"):
            place = corrections.schema.get_field_index(name)
            corrections = corrections.set_column(place, name, pc.negate(corrections[name]))
        none = pa.array([[]] * corrections.num_rows, pa.map_(pa.string(), pa.string()))
        tables.append(_plain(corrections.append_column("attributes", none)))
    return pa.concat_tables(tables, promote_options="permissive") if tables else None


def _plain(table: pa.Table) -> pa.Table:
    """The columns that are looked at, without dictionaries."""
    table = table.select(COLUMNS)
    for name in ("tenant_id", "meter"):
        table = table.set_column(COLUMNS.index(name), name, table[name].cast(pa.string()))
    return table
