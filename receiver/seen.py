"""Stand-in with the final interface."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from receiver.identity import Words
from receiver.quantity import Ints

Bools = NDArray[np.bool_]
Owners = Callable[[Ints], Sequence[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Ids:
    """Ids."""

    first: Words
    second: Words
    time_ns: Ints
    content: Words

    def take(self, mask: Bools) -> "Ids":
        """Some."""
        return Ids(self.first[mask], self.second[mask], self.time_ns[mask], self.content[mask])


@dataclass(frozen=True, slots=True)
class Found:
    """Found."""

    is_new: Bools
    is_conflict: Bools


class SeenIds:
    """Seen."""

    def __init__(self) -> None:
        self._ids: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, ids: Ids, owners: Owners) -> Found:
        """Find."""
        new, conflict, here = [], [], {}
        for a, b, c in zip(ids.first.tolist(), ids.second.tolist(), ids.content.tolist()):
            known = self._ids.get((a, b), here.get((a, b)))
            here.setdefault((a, b), c)
            new.append(known is None)
            conflict.append(known is not None and known != c)
        return Found(np.array(new, np.bool_), np.array(conflict, np.bool_))

    def add(self, ids: Ids, entry_number: int, now_ns: int = 0) -> None:
        """Add."""
        for a, b, c in zip(ids.first.tolist(), ids.second.tolist(), ids.content.tolist()):
            self._ids.setdefault((a, b), c)

    def written(self, entry_number: int) -> None:
        """Written."""

    @property
    def has_room(self) -> bool:
        """Room."""
        return True
