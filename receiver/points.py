"""All number points of a micro-batch, as columns: what is wrong with them, who they are, how much they are."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from receiver import identity, quantity, rows
from receiver.identity import Kind, Words
from receiver.otlp import metrics
from receiver.otlp.metrics import PointGroup
from receiver.quantity import Ints
from receiver.quarantine import EARLIEST_NS, MAX_AHEAD_NS, refusal_of, refused_point
from receiver.usage import Reason, Sender, Series

_DETAILS: Final = {
    Reason.NO_TIMESTAMP: "time_unix_nano is 0",
    Reason.TIMESTAMP_OUT_OF_RANGE: "time_unix_nano is before 2000 or more than a day ahead",
    Reason.NO_VALUE: "the point has neither as_int nor as_double",
    Reason.INVALID_QUANTITY: "the value is not finite, too large, or negative on a monotonic sum",
}


class Points:
    """All number points of a micro-batch, as columns."""

    def __init__(
        self, groups: Sequence[tuple[int, Sender, PointGroup, Ints]], series: Sequence[Series]
    ) -> None:
        """Join `groups`, each with the number of its request, its sender, and its points' series."""
        self._groups = groups
        self._series = series
        self._offsets = np.cumsum([0, *(len(numbers) for *_, numbers in groups)])
        self.owners = np.repeat(
            np.array([owner for owner, *_ in groups], np.int64),
            np.array([len(numbers) for *_, numbers in groups], np.int64),
        )
        none: Ints = np.zeros(0, np.int64)
        self.numbers = np.concatenate([none, *(numbers for *_, numbers in groups)])
        self.start = np.concatenate([none, *(g.start_ns.view(np.int64) for _, _, g, _ in groups)])
        self.time = np.concatenate([none, *(g.time_ns.view(np.int64) for _, _, g, _ in groups)])
        self.bits = np.concatenate([none, *(g.bits for _, _, g, _ in groups)])
        self.kinds = np.concatenate([np.zeros(0, np.uint8), *(g.kinds for _, _, g, _ in groups)])
        self._index_series()

    def _index_series(self) -> None:
        # As np.unique with its inverse, without sorting: the numbers are places in a list.
        is_used = np.zeros(len(self._series), np.bool_)
        is_used[self.numbers] = True
        self.inverse: Ints = (np.cumsum(is_used) - 1)[self.numbers]
        self.used = [self._series[number] for number in np.flatnonzero(is_used).tolist()]

    def refuse_invalid(self, now_ns: int) -> list[tuple[int, rows.QuarantineRow]]:
        """Take out the points that cannot be billed; returns (request, quarantine row) of each."""
        is_double = self.kinds == metrics.DOUBLE
        doubles = self.bits.view(np.float64)
        problems = {
            Reason.NO_TIMESTAMP: self.time == 0,
            Reason.TIMESTAMP_OUT_OF_RANGE: (self.time < EARLIEST_NS)
            | (self.time > now_ns + MAX_AHEAD_NS),
            Reason.NO_VALUE: self.kinds == metrics.NO_VALUE,
            Reason.INVALID_QUANTITY: (is_double & ~quantity.are_storable(doubles))
            | self._is_negative(is_double, doubles),
        }
        bad = np.logical_or.reduce(list(problems.values()))
        if not bad.any():
            return []
        refused = []
        for i in np.flatnonzero(bad).tolist():
            reason = next(reason for reason, mask in problems.items() if mask[i])
            refused.append((int(self.owners[i]), self._refused(i, reason)))
        self._keep(~bad)
        return refused

    def ids(self) -> tuple[Words, Words]:
        """Identity of each point."""
        key_first, key_second = identity.to_words(b"".join(series.key for series in self.used))
        words = [column.view(np.uint64) for column in (self.start, self.time, self.bits)]
        first, second = identity.siphash(key_first[self.inverse], key_second[self.inverse], words)
        return first, identity.mark_words(second, Kind.POINT)

    def select(self, mask: NDArray[np.bool_]) -> "Points":
        """These points, without those that are False in `mask`."""
        if not mask.all():
            self._keep(mask)
        return self

    def quantities(self) -> tuple[Ints, Ints]:
        """(whole, nano) of each point."""
        is_double = self.kinds == metrics.DOUBLE
        whole, nano = self.bits.copy(), np.zeros(len(self.bits), np.int64)
        if is_double.any():
            doubles = self.bits[is_double].view(np.float64)
            whole[is_double], nano[is_double] = quantity.from_doubles(doubles)
        scales = np.array([series.scale for series in self.used], np.int64)[self.inverse]
        for scale in np.unique(scales[scales > 0]).tolist():
            mask = (scales == scale) & ~is_double
            whole[mask], nano[mask] = quantity.from_ints(self.bits[mask], scale)
        return whole, nano

    def _is_negative(
        self, is_double: NDArray[np.bool_], doubles: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        is_monotonic = np.array([series.is_monotonic for series in self.used], np.bool_)
        with np.errstate(invalid="ignore"):
            negative = np.where(is_double, doubles < 0, self.bits < 0)
        found: NDArray[np.bool_] = negative & is_monotonic[self.inverse]
        return found

    def _keep(self, mask: NDArray[np.bool_]) -> None:
        for name in ("owners", "numbers", "start", "time", "bits", "kinds"):
            setattr(self, name, getattr(self, name)[mask])
        self._index_series()

    def _refused(self, i: int, reason: Reason) -> rows.QuarantineRow:
        place = int(np.searchsorted(self._offsets, i, side="right")) - 1
        _, sender, group, _ = self._groups[place]
        refusal = refusal_of(self._series[int(self.numbers[i])], reason, _DETAILS[reason])
        return refused_point(group, i - int(self._offsets[place]), refusal, sender)


def take(group: PointGroup, places: NDArray[np.int64]) -> PointGroup:
    """The points of `group` at `places`, in that order."""
    chosen = places.tolist()
    return PointGroup(
        group.header,
        [group.points[i] for i in chosen],
        [group.tails[i] for i in chosen],
        group.start_ns[places],
        group.time_ns[places],
        group.bits[places],
        group.kinds[places],
    )
