"""All metric points of a micro-batch, as columns: what is wrong with them, who they are, how much they are."""

from collections.abc import Iterable, Sequence
from copy import copy
from typing import Final

import numpy as np
from numpy.typing import NDArray

from receiver import identity, quantity, rows
from receiver.cumulative import Cumulative, Increases
from receiver.identity import Words
from receiver.otlp import metrics
from receiver.otlp.metrics import PointGroup
from receiver.quantity import Ints
from receiver.quarantine import are_out_of_range, refusal_of, refused_point
from receiver.rows import EventColumns, begins
from receiver.usage import Reason, Sender, Series

Bools = NDArray[np.bool_]

_DETAILS: Final = {
    Reason.NO_TIMESTAMP: "time_unix_nano is 0",
    Reason.TIMESTAMP_OUT_OF_RANGE: "time_unix_nano is before 2000 or more than a day ahead, or the start "
    "time of a cumulative point is no time",
    Reason.NO_VALUE: "the point has no value (a number: as_int or as_double; a histogram: sum, which the "
    "meter counts unless it says `value: count`)",
    Reason.INVALID_QUANTITY: "the value is not finite, too large, or negative on a monotonic sum",
    Reason.CONFLICT: "the value is below that of an earlier point with the same start time: two writers "
    "share one stream; give each an attribute of its own, e.g. service.instance.id",
}

_COLUMNS: Final = ("places", "owners", "numbers", "start", "time", "bits", "kinds", "counts")

Refused = list[tuple[int, rows.QuarantineRow]]
"""(number of the request, row) of each point that was taken out."""


class Points:
    """All metric points of a micro-batch, as columns."""

    def __init__(
        self, groups: Sequence[tuple[int, Sender, PointGroup, Ints]], series: Sequence[Series]
    ) -> None:
        """Join `groups`, each with the number of its request, its sender, and its points' series."""
        self._groups = groups
        self._series = series
        self._offsets = np.cumsum([0, *(len(numbers) for *_, numbers in groups)])
        self.places = np.arange(self._offsets[-1])
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
        self.counts = np.concatenate([none, *(_counts(g) for _, _, g, _ in groups)])
        self._index_series()
        counts_measurements = self._flags([one.counts_measurements for one in self.used])
        if counts_measurements.any():
            self.bits = np.where(counts_measurements, self.counts, self.bits)
            self.kinds = np.where(counts_measurements, np.uint8(metrics.INT), self.kinds)
        counts_units = self._flags([one.counts_units for one in self.used])
        if counts_units.any():
            counts_units &= self.kinds == metrics.INT
            self.counts = np.where(counts_units, self.bits, self.counts)

    def __len__(self) -> int:
        return len(self.places)

    def _index_series(self) -> None:
        # As np.unique with its inverse, without sorting: the numbers are places in a list.
        is_used = np.zeros(len(self._series), np.bool_)
        is_used[self.numbers] = True
        self.inverse: Ints = (np.cumsum(is_used) - 1)[self.numbers]
        self.used = [self._series[number] for number in np.flatnonzero(is_used).tolist()]

    def _flags(self, of_used: Sequence[bool]) -> Bools:
        found: Bools = np.array(of_used, np.bool_)[self.inverse]
        return found

    def refuse_invalid(self, now_ns: int) -> Refused:
        """Take out the points that cannot be billed."""
        is_double = self.kinds == metrics.DOUBLE
        doubles = self.bits.view(np.float64)
        problems = {
            Reason.NO_TIMESTAMP: self.time == 0,
            Reason.TIMESTAMP_OUT_OF_RANGE: are_out_of_range(self.time, now_ns)
            # Of a cumulative point the start is kept as it is: one beyond an int64 has no place in a row.
            | (self.are_cumulative() & (self.start < 0)),
            Reason.NO_VALUE: self.kinds == metrics.NO_VALUE,
            Reason.INVALID_QUANTITY: (is_double & ~quantity.are_storable(doubles))
            | (self.counts < 0)
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

    def conflicts(self, mask: Bools) -> Refused:
        """Rows for the points that contradict earlier ones."""
        return [
            (int(self.owners[i]), self._refused(i, Reason.CONFLICT))
            for i in np.flatnonzero(mask).tolist()
        ]

    def take(self, mask: Bools) -> "Points":
        """The points that are True in `mask`."""
        if mask.all():
            return self
        taken = copy(self)
        taken._keep(mask)
        return taken

    def are_cumulative(self) -> Bools:
        """Which are totals so far."""
        return self._flags([series.is_cumulative for series in self.used])

    def ids(self) -> tuple[Words, Words]:
        """Identity of each point: series, start, time and value."""
        words = [column.view(np.uint64) for column in (self.start, self.time, self.bits)]
        first, second = identity.siphash(*self._keys(), words)
        return first, identity.mark_words(second, identity.Kind.POINT)

    def events(self, first: Words, second: Words) -> EventColumns:
        """The points as events with these identities."""
        whole, nano = self.quantities()
        return EventColumns(
            series=self.used,
            numbers=self.inverse,
            first=first,
            second=second,
            whole=whole,
            nano=nano,
            observations=self.counts,
            start_ns=begins(self.start, self.time),
            time_ns=self.time,
        )

    def cumulative(self) -> Cumulative:
        """The points as totals so far, by series and start time."""
        whole, nano = self.quantities()
        first, second = identity.siphash(*self._keys(), [self.start.view(np.uint64)])
        return Cumulative(
            first=first,
            second=second,
            start_ns=self.start,
            time_ns=self.time,
            whole=whole,
            nano=nano,
            counts=np.where(self._are_distributions(), self.counts, -1),
        )

    def increased(self, totals: Cumulative, increases: Increases) -> EventColumns:
        """What cumulative points add, and take back, as events."""
        at = np.flatnonzero(increases.is_event)
        back = increases.taken_back
        places = np.concatenate((at, np.array([one.place for one in back], np.int64)))
        added = [
            np.concatenate(
                (getattr(increases, name)[at], _ints(getattr(one, name) for one in back))
            )
            for name in ("whole", "nano", "counts")
        ]
        time_ns = np.concatenate((self.time[at], _ints(one.time_ns for one in back)))
        is_back = np.arange(len(places)) >= len(at)
        key_first, key_second = self._keys()
        words = [column[places].view(np.uint64) for column in (self.start, self.time, self.bits)]
        first, second = identity.siphash(key_first[places], key_second[places], words)
        is_number = ~self._are_distributions()[places]
        adds = (added[0] != 0) | (added[1] != 0)
        return EventColumns(
            series=self.used,
            numbers=self.inverse[places],
            first=first,
            second=identity.mark_words(second, identity.Kind.ONCE),
            whole=added[0],
            nano=added[1],
            observations=np.where(is_number, adds & ~is_back, added[2]),
            # As it was sent: it says, with the series, of which total this is an increase.
            start_ns=self.start[places],
            time_ns=time_ns,
            total=(totals.whole[places], totals.nano[places]),
        )

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

    def _keys(self) -> tuple[Words, Words]:
        first, second = identity.to_words(b"".join(series.key for series in self.used))
        return first[self.inverse], second[self.inverse]

    def _are_distributions(self) -> Bools:
        of_groups = np.array(
            [group.counts is not None for _, _, group, _ in self._groups], np.bool_
        )
        found: Bools = of_groups[np.searchsorted(self._offsets, self.places, side="right") - 1]
        return found

    def _is_negative(self, is_double: Bools, doubles: NDArray[np.float64]) -> Bools:
        with np.errstate(invalid="ignore"):
            negative = np.where(is_double, doubles < 0, self.bits < 0)
        return negative & self._flags([series.is_monotonic for series in self.used])

    def _keep(self, mask: Bools) -> None:
        for name in _COLUMNS:
            setattr(self, name, getattr(self, name)[mask])
        self._index_series()

    def _refused(self, i: int, reason: Reason) -> rows.QuarantineRow:
        at = int(self.places[i])
        place = int(np.searchsorted(self._offsets, at, side="right")) - 1
        _, sender, group, _ = self._groups[place]
        refusal = refusal_of(self._series[int(self.numbers[i])], reason, _DETAILS[reason])
        return refused_point(group, at - int(self._offsets[place]), refusal, sender)


def _counts(group: PointGroup) -> Ints:
    return np.ones(len(group.points), np.int64) if group.counts is None else group.counts


def _ints(values: Iterable[int]) -> Ints:
    return np.fromiter(values, np.int64)


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
        None if group.counts is None else group.counts[places],
    )
