"""The definitions in force -> `metering.meter_definitions`, when they change: for dashboards and SQL.

It has a thread of its own, and nothing waits for it: neither the start, nor ingest, nor a change of the
definitions. What could not be written is tried again; what the table has already is not written again.
"""

import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from otel_metering.clock import Clock
from otel_metering.contract.meter import Meters
from otel_metering.errors import MeteringError
from receiver.store import tables
from receiver.store.client import ReadLimits, Store
from receiver.store.meters import ApiMeters

POLL_SECONDS: Final = 1.0
"""A change is in the table within this time and that of an INSERT."""

STOP_SECONDS: Final = 5.0
"""How long a stop waits for a change that was just made."""

_LIMITS: Final = ReadLimits(seconds=30.0, rows=10**9)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DefinitionRow:
    """What the table says of a meter."""

    origin: str
    description: str
    aggregation: str
    unit: str
    group_by: tuple[str, ...]


def rows_of(current: Meters, file: Meters) -> dict[str, DefinitionRow]:
    """Slug -> its row, of all definitions in force; `file`: those of them that `meters.yaml` has."""
    return {
        meter.slug: DefinitionRow(
            origin="file" if meter.slug in file.by_slug else "api",
            description=meter.description,
            aggregation=str(meter.aggregation),
            unit=meter.unit,
            group_by=meter.group_by or (),
        )
        for meter in current.definitions
    }


class MeterDefinitions:
    """Keeps the table as the definitions are."""

    def __init__(
        self, store: Store, clock: Clock, *, file: Callable[[], Meters], made: ApiMeters
    ) -> None:
        """Put it together; nothing is read yet.

        Args:
            store: Where the table is.
            clock: The time.
            file: The definitions of `meters.yaml` that are in force.
            made: Those made by API.
        """
        self._store = store
        self._clock = clock
        self._file = file
        self._made = made
        self._written: Meters | None = None
        self._is_failing = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meter-definitions", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write what has just changed, if that does not take long, and end. Idempotent."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)

    def write(self) -> bool:
        """Bring the table to what is in force; False: it was so. One thread at a time.

        Raises:
            MeteringError: The database did not answer; the next call does it.
        """
        file = self._file()
        current = self._made.with_those_of(file)
        if current is self._written:
            return False
        known, newest_us = self._read()
        wanted = rows_of(current, file)
        changed = {slug: row for slug, row in wanted.items() if known.get(slug) != row}
        gone = {slug: known[slug] for slug in known.keys() - wanted.keys()}
        if changed or gone:
            # Later than any row there is, also if the clock stepped back: the latest counts.
            at_us = max(self._clock.now_ns() // 1_000, newest_us + 1)
            rows = pa.concat_tables(
                [_table(changed, at_us, is_deleted=False), _table(gone, at_us, is_deleted=True)]
            )
            self._store.insert(tables.METER_DEFINITIONS, rows, token=secrets.token_hex(16))
        self._written = current
        return bool(changed or gone)

    def _read(self) -> tuple[dict[str, DefinitionRow], int]:
        """What the table has, without what is deleted; and when its newest row was written, in us."""
        rows = self._store.query(
            "SELECT meter, toString(origin), description, aggregation, unit, group_by, is_deleted, "  # noqa: S608 - from tables.py
            f"toUnixTimestamp64Micro(updated_at) FROM {tables.METER_DEFINITIONS} FINAL",
            limits=_LIMITS,
        )
        known = {
            str(slug): DefinitionRow(
                origin=str(origin),
                description=str(description),
                aggregation=str(aggregation),
                unit=str(unit),
                group_by=tuple(group_by),
            )
            for slug, origin, description, aggregation, unit, group_by, is_deleted, _ in rows
            if not is_deleted
        }
        return known, max((int(row[7]) for row in rows), default=0)

    def _run(self) -> None:
        is_stopping = False
        while not is_stopping:
            self._try()
            is_stopping = self._stopping.wait(POLL_SECONDS)
        self._try()

    def _try(self) -> None:
        try:
            self.write()
            self._is_failing = False
        except MeteringError as error:
            self._failed("Definitions of meters wait for the database: %s", error)
        except Exception as error:  # noqa: BLE001 - the top of a worker loop
            self._failed("Definitions of meters were not written: %s", error)

    def _failed(self, message: str, error: Exception) -> None:
        """Say it, once until it works again."""
        if not self._is_failing:
            _log.warning(message, error, extra={"event": "meter_definitions_failed"})
        self._is_failing = True


def _table(rows: Mapping[str, DefinitionRow], at_us: int, *, is_deleted: bool) -> pa.Table:
    found = list(rows.values())
    return pa.table(
        {
            "meter": pa.array(list(rows), pa.string()),
            "origin": pa.array([row.origin for row in found], pa.string()),
            "description": pa.array([row.description for row in found], pa.string()),
            "aggregation": pa.array([row.aggregation for row in found], pa.string()),
            "unit": pa.array([row.unit for row in found], pa.string()),
            "group_by": pa.array([row.group_by for row in found], pa.list_(pa.string())),
            "is_deleted": pa.array([is_deleted] * len(found), pa.bool_()),
            "updated_at": pa.array([at_us] * len(found), pa.timestamp("us", "UTC")),
        }
    )
