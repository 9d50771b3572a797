"""Per-thread accumulators: `record` adds, the flusher reads differences. No lock anywhere.

Why nothing is lost and nothing is counted twice:

- One writer per number. A cell's `nanos` is only ever added to by the thread whose shard it is in, and
  between the load and the store of that addition the interpreter runs nobody else of that thread
  (no call, no backward jump). `read_nanos` is only written by the flusher.
- A cell is given up only when nobody can add to it any more: an ended thread's, because its shard is
  referenced by that thread and whatever it runs, and by a weak reference here; an idle one, because
  it was first taken out of its shard and then its reference count showed that no frame holds it.
- Lists and dicts are only changed by single operations that the interpreter cannot interleave.

With `durability` "mmap" or "full" a cell also has a slot of a mapped file (`_cell_file`), which holds the
same number as the cell: `add` writes both, and again runs nobody else of that thread in between.
"""

import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from otel_metering._cell_file import GRAIN_WORDS, HOLDS, LOW, MAX_WORD, WORD_BITS, CellFile, Slot
from otel_metering._dimensions import Dimensions
from otel_metering._guard import Problem, problems
from otel_metering._real_threads import thread_local
from otel_metering._series import (
    Event,
    Series,
    check_event_id,
    checked_tenant,
    describe,
    fast_key,
    series_of,
)
from otel_metering._shared import forget_unused
from otel_metering._wakeup import Wakeup
from otel_metering.errors import InvalidUsageError

__all__ = ["Event", "Series", "check_event_id", "series_of"]  # with what usage is added by

MAX_WAITING_EVENTS: Final = 100_000
"""Events in memory while the disk refuses them; about 50 MB."""

_HURRY_EVENTS: Final = 5_000
"""Events in memory that are not left waiting for the next flush."""

_FLUSHES_PER_SWEEP: Final = 60
"""A cell that did not change between two sweeps is evicted: about a minute, far beyond any burst."""

_REFERENCES_ARE_EXACT: Final = (
    sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()
)


class Cell:
    """What one thread recorded for one series.

    Attributes:
        series: Which.
        types: Types of the attribute values of the key it is found by; None: all are text.
        nanos: All of it, in 10**-9 units; only grows. With a slot, from what that held before.
        read_nanos: As much of it as is in the spool.
        swept_nanos: As much of it as there was at the last sweep.
        slot: Where a kill of the process leaves it; None: only here.
    """

    __slots__ = ("nanos", "read_nanos", "series", "slot", "swept_nanos", "types")

    def __init__(
        self, series: Series, types: tuple[type, ...] | None = None, slot: Slot | None = None
    ) -> None:
        self.series: Series = series
        self.types: tuple[type, ...] | None = types
        self.nanos: int = 0 if slot is None else slot.total
        self.read_nanos: int = self.nanos
        self.slot: Slot | None = slot
        self.swept_nanos: int = -1


def add(cell: Cell, nanos: int) -> None:
    """Add to a cell of the calling thread, and to its slot.

    Nothing is called after the first line, so no signal handler can add in the middle.
    """
    total = cell.nanos + nanos
    slot = cell.slot
    if slot is not None:
        low = total - slot.floor
        if low > MAX_WORD:
            _carry(cell, nanos)
            return
        slot.words[slot.at] = low
    cell.nanos = total


def _carry(cell: Cell, nanos: int) -> None:
    """The same where the slot's high word changes. Looks anew: a signal handler may just have added."""
    total = cell.nanos + nanos
    slot = cell.slot
    if slot is not None:
        words, block = slot.words, slot.at & -GRAIN_WORDS
        other = 2 * (block + LOW + 1) - slot.at
        words[other - 1] = total >> WORD_BITS
        words[other] = total & MAX_WORD
        words[block + HOLDS] = 1 - words[block + HOLDS]
        slot.at = other
        slot.floor = total - (total & MAX_WORD)
    cell.nanos = total


class Shard:
    """The cells of one thread, by what `record` was given."""

    __slots__ = ("__weakref__", "cells")

    def __init__(self) -> None:
        self.cells: dict[Hashable, Cell] = {}


class Local(thread_local):
    """The calling thread's shard; there is none before the thread's first usage.

    Of a real thread, also under gevent: greenlets run one at a time, and `add` does not switch.

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

    def evict(self, key: Hashable, cell: Cell) -> None:
        # A frame of the owner may hold the cell: it is still read until no frame does.
        self.evicted.append(cell)
        self.cells.pop(key, None)


@dataclass(frozen=True, slots=True)
class Reading:
    """What was recorded since the last confirmed reading.

    Attributes:
        deltas: 10**-9 units by series, of all threads together; none is 0.
        cells: Those that changed.
        totals: How far each of them was read.
        events: Oldest first.
    """

    deltas: dict[Series, int]
    cells: list[Cell]
    totals: list[int]
    events: list[Event]


class CellBook:
    """All usage of this process that is not in the spool yet.

    `read`, `confirm` and `tidy` are the flusher's: one caller at a time, who holds `lock`.

    Attributes:
        lock: Of whoever flushes, or changes where cells are kept.
        is_flushing: Whether a flush is under way, perhaps of the very thread that asks.
        local: Where `record` finds the calling thread's shard.
        max_series_per_meter: Series of a meter beyond which new ones lose their dimensions. Threads
            that start a series at the same moment may exceed it by their number.
        max_events: Events in memory at most.
        pressure: Set when events should not wait for the next flush.
    """

    def __init__(
        self,
        *,
        max_series_per_meter: int,
        on_new_thread: Callable[[], None],
        max_events: int = MAX_WAITING_EVENTS,
    ) -> None:
        self.max_series_per_meter = max_series_per_meter
        self.max_events = max_events
        self.lock: threading.RLock = threading.RLock()
        self.is_flushing = False
        self.pressure: Wakeup = Wakeup()
        self._on_new_thread = on_new_thread
        self._ledgers: list[_Ledger] = []
        self._series: dict[str, dict[Series, Series]] = {}
        self._events: deque[Event] = deque()
        self._tidied = 0
        self._file: CellFile | None = None
        self.local: Local = Local()

    def cell(self, meter: str, tenant: str | None, attributes: Mapping[str, object] | None) -> Cell:
        """The calling thread's cell for this usage, made if there is none.

        Raises:
            InvalidUsageError: `meter` or `tenant` is not a valid name.
        """
        cells = self._shard().cells
        series = series_of(meter, tenant, attributes)
        key, types = fast_key(meter, tenant, attributes)
        found = cells.get(key) if key is not None else None
        if found is None and key is not None:
            known = self._known(series)
            if known is not None:
                return self._put(cells, key, known, types)
        if found is not None and found.types == types:
            return found
        # Not under the fast key, which would find it for usage that only looks the same.
        series = self._fitting(series)
        return cells.get(series) or self._put(cells, series, series, None)

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
        series = Series(meter, checked_tenant(tenant), dimensions)
        fitting = self._fitting(series)
        if fitting == series:
            return self._put(cells, key, fitting, None)
        return cells.get(fitting) or self._put(cells, fitting, fitting, None)

    def map_into(self, file: CellFile | None) -> None:
        """Keep new cells in `file`, too; None: in memory only.

        Cells that are kept elsewhere are given up: their threads make new ones with their next usage.
        """
        with self.lock:
            self._file = file
            for ledger in list(self._ledgers):
                for key, cell in list(ledger.cells.copy().items()):
                    if _file_of(cell) is not file:
                        ledger.evict(key, cell)

    def is_kept_in(self, file: CellFile) -> bool:
        """Whether new cells are kept in `file`."""
        return self._file is file

    def is_held(self, file: CellFile) -> bool:
        """Whether a thread may be about to add to a cell in `file`, after `map_into` another one."""
        with self.lock:
            for ledger in list(self._ledgers):
                cells = [cell for cell in ledger.evicted if _file_of(cell) is file]
                if max(_reference_counts(cells), default=0) > _UNHELD + 1:
                    return True
        return False

    def leave_to(self, file: CellFile) -> None:
        """Whoever finds `file` counts what is in it: never read it again."""
        with self.lock:
            for cell in self._all_cells():
                if _file_of(cell) is file:
                    cell.read_nanos = cell.nanos
                    cell.slot = None

    def unmap(self) -> None:
        """In a forked child: the parent's file is not to be touched, whatever still runs here."""
        self._file = None
        for cell in self._all_cells():
            cell.slot = None

    def add_event(self, event: Event) -> None:
        """Keep `event` for the next flush.

        Raises:
            InvalidUsageError: Too many events wait already.
        """
        self._shard()  # so that a child's first usage starts its pipeline
        if len(self._events) >= self.max_events:
            raise InvalidUsageError(
                f"{self.max_events} events wait in memory because the spool takes none; make room on "
                "its disk, or call otel_metering.configure() if nobody did"
            )
        self._events.append(event)
        if len(self._events) >= _HURRY_EVENTS:
            self.pressure.set()

    def read(self, file: CellFile | None = None) -> Reading:
        """Read everything that no confirmed reading has, except what is kept in a file other than `file`.

        A closed file keeps nothing.
        """
        cells = [
            cell
            for ledger in list(self._ledgers)
            for cell in ledger.all_cells()
            if cell.nanos != cell.read_nanos
            and ((slot := cell.slot) is None or slot.file is file or slot.file.is_closed)
        ]
        totals = [cell.nanos for cell in cells]
        deltas: dict[Series, int] = {}
        count = 0
        for cell, total in zip(cells, totals, strict=True):
            delta = total - cell.read_nanos
            # One look-up for a series that only one cell has, as most.
            before = deltas.setdefault(cell.series, delta)
            if len(deltas) == count:
                deltas[cell.series] = before + delta
            else:
                count += 1
        return Reading(deltas, cells, totals, list(self._events))

    def confirm(self, reading: Reading) -> None:
        """`reading` is in the spool: never read it again."""
        for cell, nanos in zip(reading.cells, reading.totals, strict=True):
            cell.read_nanos = nanos
        for _ in reading.events:
            self._events.popleft()

    def tidy(self) -> bool:
        """Free what nobody can add to any more, and now and then evict what is idle.

        Returns:
            Whether it was time to look for what is idle.
        """
        for ledger in list(self._ledgers):
            # In this order: once the owner is gone, what the cells hold is final.
            if ledger.owner() is None and _is_read(ledger.all_cells()):
                self._ledgers.remove(ledger)
                self._forget(ledger.all_cells())
            if ledger.evicted and _REFERENCES_ARE_EXACT:
                self._free_evicted(ledger)
        self._tidied += 1
        is_sweep = self._tidied % _FLUSHES_PER_SWEEP == 0
        if is_sweep and _REFERENCES_ARE_EXACT:
            for ledger in self._ledgers:
                _evict_idle(ledger)
            forget_unused()
        return is_sweep

    def start_thread(self) -> None:
        """Count the calling thread in; a child's first thread starts its pipeline."""
        self._shard()

    def _all_cells(self) -> Iterator[Cell]:
        for ledger in list(self._ledgers):
            yield from ledger.all_cells()

    def _put(
        self,
        cells: dict[Hashable, Cell],
        key: Hashable,
        series: Series,
        types: tuple[type, ...] | None,
    ) -> Cell:
        slot = None if self._file is None else self._file.allocate(describe(series))
        if slot is None and self._file is not None:
            problems.report(
                Problem.UNMAPPED_SERIES,
                f"no room on disk at {self._file.path}: a kill costs what was not flushed yet",
            )
        made = Cell(series, types, slot)
        # setdefault: a signal handler may have recorded the same usage since the look-up.
        kept = cells.setdefault(key, made)
        if kept is not made and slot is not None:
            slot.file.release(slot)
        return kept

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
        known = self._known(series)
        if known is not None:
            return known
        problems.report(Problem.FOLDED_USAGE, f"meter {series.meter} has too many series")
        return Series(series.meter, series.tenant, ())

    def _known(self, series: Series) -> Series | None:
        """`series`, one object for all threads; None: there are too many."""
        known = self._series.setdefault(series.meter, {})
        # Usage without dimensions always has room: the tenant is never lost.
        if series.dimensions and len(known) >= self.max_series_per_meter and series not in known:
            return None
        return known.setdefault(series, series)

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
            self._series.get(cell.series.meter, {}).pop(cell.series, None)
            if cell.slot is not None:
                cell.slot.file.release(cell.slot)


slot_of: Final[Callable[[Cell], Slot | None]] = attrgetter("slot")


def _file_of(cell: Cell) -> CellFile | None:
    return None if cell.slot is None else cell.slot.file


def _is_read(cells: list[Cell]) -> bool:
    return all(cell.nanos == cell.read_nanos for cell in cells)


def _evict_idle(ledger: _Ledger) -> None:
    for key, cell in list(ledger.cells.copy().items()):
        if cell.nanos == cell.swept_nanos:
            ledger.evict(key, cell)
        else:
            cell.swept_nanos = cell.nanos


def _reference_counts(cells: list[Cell]) -> list[int]:
    return [sys.getrefcount(cell) for cell in cells]


_UNHELD: Final = _reference_counts([Cell(Series("", None, ()))])[0]
"""What `_reference_counts` says of a cell that only the given list holds."""
