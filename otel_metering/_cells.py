"""Per-thread accumulators: `record` adds, the flusher reads differences. No lock anywhere.

Why nothing is lost and nothing is counted twice:

- One writer per number. A cell's `nanos` is only ever added to by the thread whose shard it is in, and
  between the load and the store of that addition the interpreter runs nobody else of that thread
  (no call, no backward jump). `read_nanos` is only written by the flusher.
- A cell is given up only when nobody can add to it any more: an ended thread's, because its shard is
  referenced by that thread and whatever it runs, and by a weak reference here; an idle one, because
  it was first taken out of its shard and then its reference count showed that no frame holds it.
- Lists and dicts are only changed by single operations that the interpreter cannot interleave.
"""

import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from otel_metering._dimensions import Dimensions, dimensions_of
from otel_metering._guard import Problem, problems
from otel_metering._wakeup import Wakeup
from otel_metering.contract.event import MAX_EVENT_ID_LENGTH, check_name
from otel_metering.errors import InvalidUsageError

MAX_WAITING_EVENTS: Final = 100_000
"""Events in memory while the disk refuses them; about 50 MB."""

_HURRY_EVENTS: Final = 5_000
"""Events in memory that are not left waiting for the next flush."""

_EXACT_KEY_TYPES: Final = frozenset({str, bool, int, type(None)})
"""Values that mean the same whenever they are equal and of one type. (NaN, and objects, do not.)"""

_FLUSHES_PER_SWEEP: Final = 60
"""A cell that did not change between two sweeps is evicted: about a minute, far beyond any burst."""

_REFERENCES_ARE_EXACT: Final = (
    sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()
)


class Series(NamedTuple):
    """What usage is added up by."""

    meter: str
    tenant: str | None
    dimensions: Dimensions


class Event(NamedTuple):
    """One piece of usage with an id of its own."""

    time_ns: int
    series: Series
    nanos: int
    event_id: str


class Cell:
    """What one thread recorded for one series.

    Attributes:
        series: Which.
        types: Types of the attribute values of the key it is found by; None: all are text.
        nanos: All of it, in 10**-9 units; only grows.
        read_nanos: As much of it as is in the spool.
        swept_nanos: As much of it as there was at the last sweep.
    """

    __slots__ = ("nanos", "read_nanos", "series", "swept_nanos", "types")

    def __init__(self, series: Series, types: tuple[type, ...] | None = None) -> None:
        self.series = series
        self.types = types
        self.nanos = 0
        self.read_nanos = 0
        self.swept_nanos = -1


class Shard:
    """The cells of one thread, by what `record` was given."""

    __slots__ = ("__weakref__", "cells")

    def __init__(self) -> None:
        self.cells: dict[Hashable, Cell] = {}


class Local(threading.local):
    """The calling thread's shard; there is none before the thread's first usage.

    Attributes:
        shard: Nothing else holds it strongly.
    """

    shard: Shard


class _Ledger:
    """The flusher's side of a shard."""

    def __init__(self, shard: Shard) -> None:
        self.owner = weakref.ref(shard)
        self.cells = shard.cells
        self.evicted: list[Cell] = []

    def all_cells(self) -> list[Cell]:
        # list(dict.values()) runs no Python code, so the owner cannot insert half way.
        return list(self.cells.values()) + self.evicted


@dataclass(frozen=True, slots=True)
class Reading:
    """What was recorded since the last confirmed reading.

    Attributes:
        deltas: 10**-9 units by series, of all threads together; none is 0.
        marks: How far each cell was read.
        events: Oldest first.
    """

    deltas: dict[Series, int]
    marks: list[tuple[Cell, int]]
    events: list[Event]


class CellBook:
    """All usage of this process that is not in the spool yet.

    `read`, `confirm` and `tidy` are the flusher's: one caller at a time.

    Attributes:
        local: Where `record` finds the calling thread's shard.
        max_series_per_meter: Series of a meter beyond which new ones lose their dimensions. Threads
            that start a series at the same moment may exceed it by their number.
        pressure: Set when events should not wait for the next flush.
    """

    def __init__(self, *, max_series_per_meter: int, on_new_thread: Callable[[], None]) -> None:
        self.max_series_per_meter = max_series_per_meter
        self.pressure = Wakeup()
        self._on_new_thread = on_new_thread
        self._ledgers: list[_Ledger] = []
        self._series: dict[str, set[Series]] = {}
        self._events: deque[Event] = deque()
        self._tidied = 0
        self.local = Local()

    def cell(self, meter: str, tenant: str | None, attributes: Mapping[str, object] | None) -> Cell:
        """The calling thread's cell for this usage, made if there is none.

        Raises:
            InvalidUsageError: `meter` or `tenant` is not a valid name.
        """
        cells = self._shard().cells
        series = series_of(meter, tenant, attributes)
        key, types = _fast_key(meter, tenant, attributes)
        found = cells.get(key) if key is not None else None
        if found is None and key is not None and self._has_room_for(series):
            # setdefault: a signal handler may have recorded the same usage since the look-up.
            return cells.setdefault(key, Cell(series, types))
        if found is not None and found.types == types:
            return found
        # Not under the fast key, which would find it for usage that only looks the same.
        series = self._fitting(series)
        return cells.setdefault(series, Cell(series))

    def cell_under(
        self, key: Hashable, meter: str, tenant: str | None, dimensions: Dimensions
    ) -> Cell:
        """The calling thread's cell under `key`, which means this usage and no other.

        Raises:
            InvalidUsageError: `tenant` is not a valid name.
        """
        cells = self._shard().cells
        found = cells.get(key)
        if found is not None:
            return found
        series = Series(meter, _checked_tenant(tenant), dimensions)
        fitting = self._fitting(series)
        return cells.setdefault(key if fitting is series else fitting, Cell(fitting))

    def add_event(self, event: Event) -> None:
        """Keep `event` for the next flush.

        Raises:
            InvalidUsageError: Too many events wait already.
        """
        self._shard()  # so that a child's first usage starts its pipeline
        if len(self._events) >= MAX_WAITING_EVENTS:
            raise InvalidUsageError(
                f"{MAX_WAITING_EVENTS} events wait in memory because the spool takes none; "
                "make room on its disk"
            )
        self._events.append(event)
        if len(self._events) >= _HURRY_EVENTS and not self.pressure.is_set():
            self.pressure.set()

    def read(self) -> Reading:
        """Read everything that no confirmed reading has."""
        deltas: dict[Series, int] = {}
        marks: list[tuple[Cell, int]] = []
        for ledger in list(self._ledgers):
            for cell in ledger.all_cells():
                nanos = cell.nanos
                if nanos != cell.read_nanos:
                    deltas[cell.series] = deltas.get(cell.series, 0) + nanos - cell.read_nanos
                    marks.append((cell, nanos))
        return Reading(deltas, marks, list(self._events))

    def confirm(self, reading: Reading) -> None:
        """`reading` is in the spool: never read it again."""
        for cell, nanos in reading.marks:
            cell.read_nanos = nanos
        for _ in reading.events:
            self._events.popleft()

    def tidy(self) -> None:
        """Free what nobody can add to any more, and now and then evict what is idle."""
        for ledger in list(self._ledgers):
            # In this order: once the owner is gone, what the cells hold is final.
            if ledger.owner() is None and _is_read(ledger.all_cells()):
                self._ledgers.remove(ledger)
                self._forget(ledger.all_cells())
            if ledger.evicted:
                self._free_evicted(ledger)
        self._tidied += 1
        if self._tidied % _FLUSHES_PER_SWEEP == 0 and _REFERENCES_ARE_EXACT:
            for ledger in self._ledgers:
                _evict_idle(ledger)

    def _shard(self) -> Shard:
        try:
            return self.local.shard
        except AttributeError:
            shard = self.local.shard = Shard()
            self._ledgers.append(_Ledger(shard))
            self._on_new_thread()
            return shard

    def _fitting(self, series: Series) -> Series:
        """`series`, without its dimensions if there are too many."""
        if self._has_room_for(series):
            return series
        problems.report(Problem.FOLDED_USAGE, f"meter {series.meter} has too many series")
        return Series(series.meter, series.tenant, ())

    def _has_room_for(self, series: Series) -> bool:
        known = self._series.setdefault(series.meter, set())
        # Usage without dimensions always has room: the tenant is never lost.
        if series.dimensions and len(known) >= self.max_series_per_meter and series not in known:
            return False
        known.add(series)
        return True

    def _free_evicted(self, ledger: _Ledger) -> None:
        final: list[Cell] = []
        kept: list[Cell] = []
        counts = _reference_counts(ledger.evicted)
        for cell, count in zip(ledger.evicted, counts, strict=True):
            is_final = count <= _UNHELD and cell.nanos == cell.read_nanos
            (final if is_final else kept).append(cell)
        ledger.evicted = kept
        self._forget(final)

    def _forget(self, cells: list[Cell]) -> None:
        # Other threads may still have the series; then it counts as new once more, which is harmless.
        for cell in cells:
            self._series.get(cell.series.meter, set()).discard(cell.series)


def series_of(meter: str, tenant: str | None, attributes: Mapping[str, object] | None) -> Series:
    """What usage is added up by.

    Raises:
        InvalidUsageError: `meter` or `tenant` is not a valid name.
    """
    return Series(
        _name("meter", meter),
        _checked_tenant(tenant),
        dimensions_of(attributes),
    )


def _checked_tenant(tenant: object) -> str | None:
    return None if tenant is None else _name("tenant", tenant)


def check_event_id(event_id: object) -> str:
    """Return `event_id` if it can be one.

    Raises:
        InvalidUsageError: It is not 1 to 256 characters of text that UTF-8 can express.
    """
    if isinstance(event_id, str) and 0 < len(event_id) <= MAX_EVENT_ID_LENGTH:
        text = str.__str__(event_id)
        # A lone surrogate would make the whole request impossible to build; replaced, two ids could
        # become one.
        if text == text.encode("utf-8", "replace").decode():
            return text
    raise InvalidUsageError(f"event_id must be text of 1 to {MAX_EVENT_ID_LENGTH} characters")


def _name(kind: str, text: object) -> str:
    if not isinstance(text, str):
        raise InvalidUsageError(f"{kind} is of type {type(text).__name__}; give text")
    # A plain str, not an enum's member, which would print as its name.
    return check_name(kind, str.__str__(text))


def _fast_key(
    meter: str, tenant: str | None, attributes: Mapping[str, object] | None
) -> tuple[Hashable | None, tuple[type, ...] | None]:
    """The key that `record` looks under, and the types of its values; no key if it could mislead."""
    if not attributes:
        return (meter, tenant), None
    types = tuple(map(type, attributes.values()))
    if not (_EXACT_KEY_TYPES.issuperset(types) and all(type(name) is str for name in attributes)):
        return None, None
    return (meter, tenant, tuple(attributes.items())), None if set(types) == {str} else types


def _is_read(cells: list[Cell]) -> bool:
    return all(cell.nanos == cell.read_nanos for cell in cells)


def _evict_idle(ledger: _Ledger) -> None:
    for key, cell in list(ledger.cells.copy().items()):
        if cell.nanos == cell.swept_nanos:
            # A frame of the owner may hold the cell: it is still read until no frame does.
            ledger.evicted.append(cell)
            ledger.cells.pop(key)
        else:
            cell.swept_nanos = cell.nanos


def _reference_counts(cells: list[Cell]) -> list[int]:
    return [sys.getrefcount(cell) for cell in cells]


_UNHELD: Final = _reference_counts([Cell(Series("", None, ()))])[0]
"""What `_reference_counts` says of a cell that only the given list holds."""
