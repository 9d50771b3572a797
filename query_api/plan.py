"""Which rows of which tables answer a range exactly, whatever its windows.

A row of a rollup may be read if it lies in one window: no edge of a window or of the range is strictly
inside it. It may not if it covers a time whose usage was corrected, because a minimum, a maximum, the
latest, a set or a percentile cannot be taken back: such a time is **dirty**, and its events are read.
So each table is read where the coarser one may not be, and what no rollup answers falls to the events.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from query_api.periods import SECOND_NS, Grain, Range
from query_api.zones import Seconds

MAX_CELLS: Final = 10_000
"""Cells that a statement lists at most: they are text of it, some 110 kB."""

_SECONDS: Final = {Grain.MINUTE: 60, Grain.HOUR: 3_600, Grain.DAY: 86_400}
_ROLLUPS: Final = (Grain.MONTH, Grain.DAY, Grain.HOUR, Grain.MINUTE)


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Times that rows of one grain cover.

    Attributes:
        grain: Never that of events.
        starts: When each begins, in s, ascending.
    """

    grain: Grain
    starts: Seconds


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Read:
    """Rows of one table.

    Attributes:
        grain: Which table.
        range: Where rows begin.
        any_of: Each row lies in one of these cells; none given: anywhere.
        none_of: No row lies in one of these.
    """

    grain: Grain
    range: Range
    any_of: tuple[Cells, ...] = ()
    none_of: tuple[Cells, ...] = ()


def plan(
    within: Range, edges: Seconds, dirty: Cells | None = None, *, coarsest: Grain = Grain.MONTH
) -> tuple[Read, ...]:
    """Choose the rows that answer a range.

    Args:
        within: The range.
        edges: Where windows begin, in s; those outside of the range do not matter.
        dirty: Times whose usage was corrected; None: there are none.
        coarsest: The coarsest table that may be read.

    Returns:
        From coarse to fine, not empty; together they have each event of the range once.
    """
    split = _split_cells(within, edges, dirty)
    top = coarsest
    while top is not Grain.EVENT and not _is_of_use(top, within, split):
        top = Grain(top - 1)
    reads = []
    for grain in _ROLLUPS[Grain.MONTH - top :]:
        parent = () if grain is top else (Cells(Grain(grain + 1), split[Grain(grain + 1)]),)
        hull = _hull(_whole(within, grain), parent)
        if hull is not None:
            reads.append(
                Read(grain=grain, range=hull, any_of=parent, none_of=_excluded(grain, split, dirty))
            )
    events = () if top is Grain.EVENT else _event_cells(split, dirty)
    hull = within if top is Grain.EVENT else _hull(within, events) if events else None
    if hull is not None:
        reads.append(Read(grain=Grain.EVENT, range=hull, any_of=events))
    return tuple(reads)


def floor(at_s: Seconds, grain: Grain) -> Seconds:
    """Start of the row of a rollup that has each second."""
    if grain is Grain.MONTH:
        months = at_s.astype("M8[s]").astype("M8[M]")
        return months.astype("M8[s]").astype(np.int64)
    return at_s - at_s % _SECONDS[grain]


def _split_cells(within: Range, edges: Seconds, dirty: Cells | None) -> dict[Grain, Seconds]:
    """The rows of each rollup that may not be read, though they have time of the range."""
    inside = edges[(edges * SECOND_NS > within.start_ns) & (edges * SECOND_NS < within.end_ns)]
    ends_ns = (within.start_ns, within.end_ns)
    ends = np.array([ns // SECOND_NS for ns in ends_ns], dtype=np.int64)
    is_ragged = np.array([ns % SECOND_NS > 0 for ns in ends_ns])
    found = {}
    for grain in _ROLLUPS:
        starts, end_starts = floor(inside, grain), floor(ends, grain)
        cells = [starts[starts != inside], end_starts[(end_starts != ends) | is_ragged]]
        if dirty is not None and grain >= dirty.grain:
            cells.append(floor(dirty.starts, grain))
        found[grain] = np.unique(np.concatenate(cells))
    return found


def _is_of_use(grain: Grain, within: Range, split: dict[Grain, Seconds]) -> bool:
    """Whether any row of the rollup may be read, and those that may not can be listed."""
    listed = [split[finer] for finer in _ROLLUPS if finer <= grain]
    whole = _whole(within, grain)
    if whole is None or any(len(cells) > MAX_CELLS for cells in listed):
        return False
    start_s, end_s = whole.start_ns // SECOND_NS, whole.end_ns // SECOND_NS
    cells = split[grain]
    unusable = int(np.count_nonzero((cells >= start_s) & (cells < end_s)))
    return _count(start_s, end_s, grain) > unusable


def _whole(within: Range, grain: Grain) -> Range | None:
    """From the first to the last row that lies in a range; None: there is none."""
    start_s, end_s = -(-within.start_ns // SECOND_NS), within.end_ns // SECOND_NS
    start, end = (int(i) for i in floor(np.array([start_s, end_s], dtype=np.int64), grain))
    if start != start_s:
        start = _end(start, grain)
    return Range(start * SECOND_NS, end * SECOND_NS) if start < end else None


def _end(start_s: int, grain: Grain) -> int:
    if grain is Grain.MONTH:
        return int(floor(np.array([start_s + 31 * 86_400], dtype=np.int64), grain)[0])
    return start_s + _SECONDS[grain]


def _count(start_s: int, end_s: int, grain: Grain) -> int:
    if grain is Grain.MONTH:
        start, end = np.array([start_s, end_s]).astype("M8[s]").astype("M8[M]").astype(np.int64)
        return int(end - start)
    return (end_s - start_s) // _SECONDS[grain]


def _excluded(grain: Grain, split: dict[Grain, Seconds], dirty: Cells | None) -> tuple[Cells, ...]:
    found = [Cells(grain, split[grain])] if len(split[grain]) else []
    if dirty is not None and dirty.grain > grain:
        found.append(dirty)
    return tuple(found)


def _event_cells(split: dict[Grain, Seconds], dirty: Cells | None) -> tuple[Cells, ...]:
    minutes = split[Grain.MINUTE]
    found = [Cells(Grain.MINUTE, minutes)] if len(minutes) else []
    if dirty is not None and dirty.grain > Grain.MINUTE:
        found.append(dirty)
    return tuple(found)


def _hull(within: Range | None, cells: Sequence[Cells]) -> Range | None:
    """The part of a range from the first to the last of these cells; None: they have nothing of it."""
    if within is None or not cells:
        return within
    filled = [i for i in cells if len(i.starts)]
    if not filled:
        return None
    first_s = min(int(i.starts[0]) for i in filled)
    last_s = max(_end(int(i.starts[-1]), i.grain) for i in filled)
    start_ns = max(within.start_ns, first_s * SECOND_NS)
    end_ns = min(within.end_ns, last_s * SECOND_NS)
    return Range(start_ns, end_ns) if start_ns < end_ns else None
