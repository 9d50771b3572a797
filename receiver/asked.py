"""One question to the memory of seen ids: which of these are new? Pure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from receiver import runs
from receiver.identity import Ids, Kind, Words, kinds_of
from receiver.runs import Places, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is known of some ids.

    Attributes:
        is_new: The first of its kind in these columns, and never admitted before.
        is_conflict: EXPLICIT, not new, and says something else than the one that was admitted.
    """

    is_new: NDArray[np.bool_]
    is_conflict: NDArray[np.bool_]


class Asked:
    """The ids of one question, in the order of their first words, and what is known of each so far."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        self._order = runs.order_of(ids.first)
        self._first = ids.first[self._order]
        self._second = ids.second[self._order]
        self._time_ns = ids.time_ns[self._order]
        self._is_known = np.zeros(len(ids), np.bool_)
        self._content: Words | None = None
        self._original = self._originals()
        kinds = kinds_of(self._second)
        self._is_explicit = kinds == Kind.EXPLICIT
        self._is_timed = (kinds == Kind.POINT) | (kinds == Kind.SPAN)
        self._is_span = kinds == Kind.SPAN
        self._is_once = kinds == Kind.ONCE
        self.has_explicit = bool(self._is_explicit.any())
        self.has_timed = bool(self._is_timed.any())
        timed = self._time_ns[self._is_timed]
        self._range = (int(timed.min()), int(timed.max())) if len(timed) else (0, 0)
        self._has_spans = bool(self._is_span.any())

    def ask_timed(self, run: Run) -> None:
        """Ask a run for the POINT ids of times that it covers, and for SPAN ids."""
        is_outside = run.max_ns < self._range[0] or self._range[1] < run.min_ns
        if is_outside and not self._has_spans:
            return
        time_ns = self._time_ns
        covered = (time_ns >= run.min_ns) & (time_ns <= run.max_ns) | self._is_span
        self._ask(run, self._is_timed & covered)

    def ask_explicit(self, run: Run) -> None:
        """Ask a run of EXPLICIT ids, and what they were admitted with."""
        places, found = self._ask(run, self._is_explicit)
        if len(places) and run.extra is not None:
            self._learn_content(places, run.extra[found])

    def _ask(self, run: Run, mask: NDArray[np.bool_]) -> tuple[Places, Places]:
        """Ask for those that are True and not known; returns places of hits, here and in the run."""
        places = np.flatnonzero(mask & ~self._is_known)
        found = run.find(self._first[places], self._second[places])
        hits = np.flatnonzero(found != runs.ABSENT)
        self._is_known[places[hits]] = True
        return places[hits], found[hits]

    def unknown(self, horizon_ns: int, *, has_all_explicit: bool) -> Places:
        """Places in the question of the ids, each once, that the database may have."""
        mask = self._is_timed & (self._time_ns <= horizon_ns)
        if not has_all_explicit:
            mask |= self._is_explicit
        mask &= ~self._is_known
        if self._original is not None:
            mask &= self._original == np.arange(len(mask))
        return np.sort(self._order[mask])

    def learn(self, places: Places, content: Words) -> None:
        """The database has the ids at these places of the question, with this content."""
        inverse = np.empty_like(self._order)
        inverse[self._order] = np.arange(len(inverse))
        self._is_known[inverse[places]] = True
        self._learn_content(inverse[places], content)

    def answer(self) -> Found:
        """What was found, in the order of the question."""
        is_known = self._is_known
        if self._original is not None:
            is_known = is_known[self._original]
        is_first = np.ones(len(is_known), np.bool_)
        is_conflict = np.zeros(len(is_known), np.bool_)
        if self._original is not None:
            is_first = self._original == np.arange(len(is_known))
        is_new = is_first & ~is_known | self._is_once
        if self.has_explicit and not is_new.all():
            said = self._ids.content[self._order]
            admitted = (
                said if self._content is None else np.where(self._is_known, self._content, said)
            )
            if self._original is not None:
                admitted = admitted[self._original]
            is_conflict = self._is_explicit & ~is_new & (said != admitted)
        found = Found(is_new=np.empty_like(is_new), is_conflict=np.empty_like(is_conflict))
        found.is_new[self._order] = is_new
        found.is_conflict[self._order] = is_conflict
        return found

    def _learn_content(self, places: Places, content: Words) -> None:
        if self._content is None:
            self._content = np.zeros(len(self._first), np.uint64)
        self._content[places] = content

    def _originals(self) -> Places | None:
        """Where the first of the same id is, of each; None: all differ. The order is stable."""
        same_first = self._first[1:] == self._first[:-1]
        if not same_first.any():
            return None
        # By second words within equal first words; lexsort is stable too.
        again = np.lexsort((self._second, self._first))
        self._order = self._order[again]
        self._second = self._second[again]
        self._time_ns = self._time_ns[again]
        is_same = same_first & (self._second[1:] == self._second[:-1])
        places = np.arange(len(self._first))
        places[1:][is_same] = 0
        return np.maximum.accumulate(places)
