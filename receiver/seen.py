"""Every identity that was ever admitted: the newest in memory, and all of them in the database.

A cache of `event_id` in `events` and `quarantine`, rebuilt from them and from the spool at start. What does
not fit into its budget is forgotten, oldest first, and asked for in the database from then on; so the answer
is that of a set of all ids, whatever the budget. Three classes, because they are found again differently:

- POINT and SPAN ids, in runs in the order of admission, each with the range of its ids' times. A POINT id
  can only be where its time is, so live traffic looks into the newest run or two. `horizon_ns` is the newest
  time that was forgotten: later ids are in memory or nowhere, so only those before it may be in the database.
- EXPLICIT ids with what their events say. Nothing tells when one was admitted: once one was forgotten, each
  that is not in memory is asked for.
- Ids of times ahead of now, with their times, until they are not ahead: a range with one of them would cover
  everything up to it, and so would the horizon once it was forgotten.

One thread calls `find` and `add`. Large runs are merged in a thread of their own, which holds nobody up.
"""

import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from receiver import runs
from receiver.asked import Asked, Found
from receiver.identity import Ids, Kind, Words, kinds_of
from receiver.runs import Places, Run

MAX_AHEAD_NS: Final = 60 * 10**9
"""Ids of times further ahead of now are kept apart: clocks are rarely that wrong."""

INLINE_IDS: Final = 65_536
"""Runs up to this length are merged at once, in a few milliseconds; longer ones in the background."""

RUNS_IN_BUDGET: Final = 8
"""The budget holds at least so many of the largest runs, so that it is forgotten in steps."""

_ID_BYTES: Final = 17
"""Memory of an id in a large run: two words and its share of the offsets."""

_LONG_AGO: Final = -(2**63)

Owner = tuple[str, str]
"""(tenant, meter) of a row of `events`; (tenant, "") of one of `quarantine`, which has no meter."""


class Lookup(Protocol):
    """Asks the database."""

    def __call__(self, ids: Ids, owners: Sequence[Owner]) -> tuple[NDArray[np.bool_], Words]:
        """Whether each id is stored; and of EXPLICIT ones, the content they are stored with (else 0).

        Raises:
            UnavailableError: The database did not answer.
        """
        ...


def in_background(task: Callable[[], None]) -> None:
    """Run `task` in a thread that does not keep the process alive."""
    threading.Thread(target=task, name="ids-merge", daemon=True).start()


class SeenIds:
    """Every identity that was ever admitted."""

    def __init__(
        self,
        max_bytes: int = 2**30,
        lookup: Lookup | None = None,
        *,
        inline_ids: int = INLINE_IDS,
        background: Callable[[Callable[[], None]], None] = in_background,
    ) -> None:
        """Make an empty one.

        Args:
            max_bytes: Memory for ids.
            lookup: Asks the database for ids that were forgotten; None: nothing is ever forgotten.
            inline_ids: Longer runs are merged in the background.
            background: Starts a merge.
        """
        self._max_bytes = max_bytes
        self._lookup = lookup
        self._max_run = max(max_bytes // RUNS_IN_BUDGET // _ID_BYTES, 1)
        self._inline_ids = min(inline_ids, self._max_run)
        self._background = background
        # Each oldest first. Only `_merge_runs` changes them in another thread, and only under the lock.
        self._timed: list[Run] = []
        self._explicit: list[Run] = []
        self._ahead: list[Run] = []
        self._lock = threading.Lock()
        self._is_merging = False
        self._written = 0
        self._horizon_ns = _LONG_AGO
        self._has_all_explicit = True

    def __len__(self) -> int:
        return sum(len(run) for run in self._all_runs())

    @property
    def byte_count(self) -> int:
        """Memory of the ids; a merge needs that of its runs once more while it lasts."""
        return sum(run.byte_count for run in self._all_runs())

    @property
    def max_run_ids(self) -> int:
        """Length of the longest runs."""
        return self._max_run

    @property
    def max_bytes(self) -> int:
        """The budget."""
        return self._max_bytes

    @property
    def horizon_ns(self) -> int:
        """POINT and SPAN ids up to this time may have been forgotten."""
        return self._horizon_ns

    @property
    def has_room(self) -> bool:
        """Whether more may be added; False: the memory is full of ids that are not in the database yet."""
        if self.byte_count <= self._max_bytes:
            return True
        with self._lock:
            return self._evictable() is not None

    def find(self, ids: Ids, owners: Callable[[Places], Sequence[Owner]]) -> Found:
        """Tell which ids are new.

        Args:
            ids: Any number; ONCE ids are always new.
            owners: Called with the places of ids that have to be asked for in the database.

        Raises:
            UnavailableError: The database did not answer; nothing is known.
        """
        asked = Asked(ids)
        with self._lock:
            timed, explicit, ahead = tuple(self._timed), tuple(self._explicit), tuple(self._ahead)
        if asked.has_timed:
            for run in timed:
                asked.ask_timed(run)
            for run in ahead:
                asked.ask_timed(run)
        if asked.has_explicit:
            for run in explicit:
                asked.ask_explicit(run)
        if self._lookup is not None:
            places = asked.unknown(self._horizon_ns, has_all_explicit=self._has_all_explicit)
            if len(places):
                stored, content = self._lookup(ids.take(places), owners(places))
                asked.learn(places[stored], content[stored])
        return asked.answer()

    def add(self, ids: Ids, entry_number: int, now_ns: int) -> None:
        """Remember ids that are durable now; adding one twice is harmless.

        Args:
            ids: Those that were admitted.
            entry_number: Number of the spool entry that holds the last of them; see `written`.
            now_ns: The time.
        """
        for class_runs, run in self._split(ids, entry_number, now_ns):
            self._append(class_runs, run)
        self._take_from_ahead(now_ns)
        self._make_room()
        self._start_merging()

    def load_timed(self, first: Words, second: Words, time_range: tuple[int, int]) -> None:
        """Remember stored POINT and SPAN ids of these times, older than all so far: for the start."""
        run = runs.make_run(first, second, None, time_range=time_range, entry=0)
        with self._lock:
            self._timed.insert(0, run)

    def load_explicit(self, first: Words, second: Words, content: Words) -> None:
        """Remember stored EXPLICIT ids: for the start."""
        run = runs.make_run(first, second, content, time_range=(0, 0), entry=0)
        with self._lock:
            self._explicit.insert(0, run)

    def forget_until(self, time_ns: int) -> None:
        """Say that not every stored POINT and SPAN id up to this time was loaded."""
        self._horizon_ns = max(self._horizon_ns, time_ns)

    def forget_explicit(self) -> None:
        """Say that not every stored EXPLICIT id was loaded."""
        self._has_all_explicit = False

    def written(self, entry_number: int) -> None:
        """Say that spool entries up to this one are in the database. From any thread.

        Entries are counted from 1 in the order they were appended, those that the spool held at start first.
        """
        self._written = max(self._written, entry_number)

    def _all_runs(self) -> list[Run]:
        with self._lock:
            return [*self._timed, *self._explicit, *self._ahead]

    def _split(self, ids: Ids, entry: int, now_ns: int) -> list[tuple[list[Run], Run]]:
        """A run of each class that these ids have, and where it belongs."""
        kinds = kinds_of(ids.second)
        is_ahead = (ids.time_ns > now_ns + MAX_AHEAD_NS) & (kinds != Kind.EXPLICIT)
        if not len(ids):
            return []
        if not kinds.any() and not is_ahead.any():
            return [(self._timed, _run_of(ids, None, entry))]
        is_explicit = kinds == Kind.EXPLICIT
        is_timed = ~is_explicit & (kinds != Kind.ONCE)
        found = []
        for mask, class_runs, extra in (
            (is_timed & ~is_ahead, self._timed, None),
            (is_explicit, self._explicit, ids.content),
            (is_timed & is_ahead, self._ahead, ids.time_ns.view(np.uint64)),
        ):
            if mask.any():
                kept = None if extra is None else extra[mask]
                found.append((class_runs, _run_of(ids.take(mask), kept, entry)))
        return found

    def _append(self, class_runs: list[Run], run: Run) -> None:
        while True:
            with self._lock:
                last = class_runs[-1] if class_runs else None
                if (
                    last is None
                    or len(last) > 2 * len(run)
                    or len(last) + len(run) > self._inline_ids
                ):
                    class_runs.append(run)
                    return
            merged = runs.merge(last, run)
            with self._lock:
                # Unless the other thread has made it part of a longer one.
                if class_runs[-1] is last:
                    class_runs.pop()
                    run = merged

    def _take_from_ahead(self, now_ns: int) -> None:
        """Move the ids that are not ahead any more to where all others are."""
        for run in tuple(self._ahead):
            # Half of it, so that each id is moved a few times at most. Nothing is wrong before that.
            if (run.min_ns + run.max_ns) // 2 > now_ns + MAX_AHEAD_NS or run.extra is None:
                continue
            time_ns = run.extra.view(np.int64)
            is_ahead = time_ns > now_ns + MAX_AHEAD_NS
            past = runs.part(run, ~is_ahead, time_ns, extra=None)
            later = runs.part(run, is_ahead, time_ns, extra=run.extra) if is_ahead.any() else None
            with self._lock:
                if run not in self._ahead:
                    continue  # part of a longer run by now: the next call sees that one
                place = self._ahead.index(run)
                self._ahead[place : place + 1] = [] if later is None else [later]
            self._append(self._timed, past)

    def _make_room(self) -> None:
        while self.byte_count > self._max_bytes:
            with self._lock:
                class_runs = self._evictable()
                if class_runs is None:
                    return
                run = class_runs.pop(0)
            if class_runs is self._explicit:
                self._has_all_explicit = False
            else:
                self._horizon_ns = max(self._horizon_ns, run.max_ns)

    def _evictable(self) -> list[Run] | None:
        """The class whose oldest run is forgotten next; None: none may be. Under the lock."""
        if self._lookup is None:
            return None
        classes = [self._timed, self._explicit]
        # The larger one: neither can drive the other out.
        classes.sort(key=lambda one: sum(run.byte_count for run in one), reverse=True)
        # Ids ahead come last: without them, everything up to their times is asked for.
        for class_runs in (*classes, self._ahead):
            # What is not in the database yet could be found nowhere.
            if class_runs and class_runs[0].entry <= self._written:
                return class_runs
        return None

    def _start_merging(self) -> None:
        with self._lock:
            if self._is_merging or self._next_pair() is None:
                return
            self._is_merging = True
        self._background(self._merge_runs)

    def _merge_runs(self) -> None:
        try:
            while True:
                with self._lock:
                    chosen = self._next_pair()
                if chosen is None:
                    return
                class_runs, one, other = chosen
                merged = runs.merge(one, other)
                with self._lock:
                    # Unless one of them was forgotten, or merged, in the meantime.
                    if one in class_runs and other in class_runs:
                        place = class_runs.index(one)
                        class_runs[place : place + 2] = [merged]
        finally:
            self._is_merging = False

    def _next_pair(self) -> tuple[list[Run], Run, Run] | None:
        """The smallest two neighbours that should be one run; not the last, which `add` merges."""
        best = None
        for class_runs in (self._timed, self._explicit, self._ahead):
            for one, other in pairwise(class_runs[:-1]):
                size = len(one) + len(other)
                if not self._inline_ids < size <= self._max_run or len(one) > 2 * len(other):
                    continue
                if best is None or size < len(best[1]) + len(best[2]):
                    best = class_runs, one, other
        return best


def _run_of(ids: Ids, extra: Words | None, entry: int) -> Run:
    time_range = (int(ids.time_ns.min()), int(ids.time_ns.max()))
    return runs.make_run(ids.first, ids.second, extra, time_range=time_range, entry=entry)
