"""Sorted runs of identities: what the memory of seen ids is made of. Pure; a run never changes.

Identities are random, so where one would be in a sorted run is known to within a few places: an offset for
each value of the first bits, and a few halving steps from there, on whole columns. That is three times
faster than a binary search of the whole run, and costs 2 or 3 % of the run's memory.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from receiver.identity import Words

Places = NDArray[np.int64]

ABSENT: Final = -1

_BUCKET_BITS: Final = 3
"""About this many bits of a run's length are searched in halving steps: 8 to 16 ids an offset."""

_SMALL: Final = 16_384
"""Shorter runs are in the cache: a plain binary search is as fast, and needs no offsets."""

_ALL: Final = 2**64 - 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """Identities in the order of their first words; equal to itself only.

    Attributes:
        first: First words, ascending.
        second: Second words, in the same order.
        extra: Eight more bytes of each, in the same order; None: this class of ids has none.
        min_ns: No id is of an earlier time.
        max_ns: No id is of a later time.
        entry: Newest spool entry that holds one of them.
        offsets: Where the ids with each value of the first bits begin; None: it is short.
        steps: Halvings that the largest range between two offsets takes.
    """

    first: Words
    second: Words
    extra: Words | None
    min_ns: int
    max_ns: int
    entry: int
    offsets: NDArray[np.int32] | None
    steps: int

    def __len__(self) -> int:
        return len(self.first)

    @property
    def byte_count(self) -> int:
        """Memory of its columns."""
        columns = (self.first, self.second, self.extra, self.offsets)
        return sum(column.nbytes for column in columns if column is not None)

    def find(self, first: Words, second: Words) -> Places:
        """Where each id is in this run, or `ABSENT`. Questions in ascending order are answered faster."""
        position = self._position(first)
        np.minimum(position, len(self.first) - 1, out=position)
        hits = np.flatnonzero(self.first[position] == first)
        result = np.full(len(first), ABSENT, np.int64)
        if not len(hits):
            return result
        at = position[hits]
        is_same = self.second[at] == second[hits]
        result[hits[is_same]] = at[is_same]
        # Ids that share only their first half lie side by side: with random halves, hardly ever.
        for hit in hits[~is_same].tolist():
            j = int(position[hit])
            while j < len(self.first) and self.first[j] == first[hit]:
                if self.second[j] == second[hit]:
                    result[hit] = j
                    break
                j += 1
        return result

    def _position(self, first: Words) -> Places:
        """Where the ids that are not less begin: as `np.searchsorted`, whatever the keys are."""
        if self.offsets is None:
            return np.searchsorted(self.first, first)
        shift = np.uint64(64 - (len(self.offsets) - 1).bit_length() + 1)
        low = self.offsets[(first >> shift).view(np.int64)].astype(np.int64)
        last = len(self.first) - 1
        step = 1 << self.steps >> 1
        while step:
            # A step beyond the range between two offsets meets larger ids, and is not taken.
            probe = low + (step - 1)
            np.minimum(probe, last, out=probe)
            low += (self.first[probe] < first) * np.int64(step)
            step >>= 1
        return low


def order_of(first: Words) -> Places:
    """The order of these words, ascending and stable: as a stable argsort, and faster than that.

    The place of each word takes the lowest bits of its key, so that keys alone are sorted.
    """
    bits = len(first).bit_length()
    keys = first & np.uint64(_ALL << bits & _ALL)
    keys |= np.arange(len(first), dtype=np.uint64)
    keys.sort()
    keys &= np.uint64((1 << bits) - 1)
    order = keys.view(np.int64)
    found = first[order]
    if (found[1:] >= found[:-1]).all():
        return order
    # Words that differ in the lowest bits only: nearly sorted, which a merge sort likes.
    again: Places = np.argsort(found, kind="stable")
    return np.take(order, again)


def make_run(
    first: Words, second: Words, extra: Words | None, *, time_range: tuple[int, int], entry: int
) -> Run:
    """Sort identities into a run."""
    order = order_of(first)
    sorted_extra = None if extra is None else extra[order]
    return _run(first[order], second[order], sorted_extra, time_range, entry)


def merge(one: Run, other: Run) -> Run:
    """One run of the ids of both. Most of it runs without the GIL, and it needs little more than the result."""
    large, small = (one, other) if len(one) >= len(other) else (other, one)
    place = np.searchsorted(large.first, small.first)
    place += np.arange(len(small))
    is_large = np.ones(len(large) + len(small), np.bool_)
    is_large[place] = False

    def mix(of_large: Words, of_small: Words) -> Words:
        mixed = np.empty(len(is_large), of_large.dtype)
        mixed[is_large] = of_large
        mixed[place] = of_small
        return mixed

    extra = None
    if large.extra is not None and small.extra is not None:
        extra = mix(large.extra.view(np.uint64), small.extra.view(np.uint64))
    return _run(
        mix(large.first, small.first),
        mix(large.second, small.second),
        extra,
        (min(one.min_ns, other.min_ns), max(one.max_ns, other.max_ns)),
        max(one.entry, other.entry),
    )


def part(
    run: Run, mask: NDArray[np.bool_], time_ns: NDArray[np.int64], *, extra: Words | None
) -> Run:
    """A run of the ids of `run` that are True; `time_ns` has the times of all, and `extra` what they keep."""
    times = time_ns[mask]
    return _run(
        run.first[mask],
        run.second[mask],
        None if extra is None else extra[mask],
        (int(times.min()), int(times.max())),
        run.entry,
    )


def _run(
    first: Words, second: Words, extra: Words | None, time_range: tuple[int, int], entry: int
) -> Run:
    offsets, steps = None, 0
    if len(first) >= _SMALL:
        bits = len(first).bit_length() - 1 - _BUCKET_BITS
        edges = np.arange(1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
        starts = np.append(np.searchsorted(first, edges), len(first))
        offsets = starts.astype(np.int32)
        # From `low` to `low + width`, both included: one more outcome than the range has ids.
        steps = int(np.diff(starts).max()).bit_length()
    return Run(
        first=first,
        second=second,
        extra=extra,
        min_ns=time_range[0],
        max_ns=time_range[1],
        entry=entry,
        offsets=offsets,
        steps=steps,
    )
