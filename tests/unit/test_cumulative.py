"""Increases of cumulative points: the same totals in any order, in any pieces, however often."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from receiver.cumulative import Accumulators, Cumulative
from receiver.quantity import NANO, from_decimal


@dataclass(frozen=True)
class Point:
    series: int
    start_ns: int
    time_ns: int
    value: Decimal
    count: int = -1


class Counted:
    """An accumulator, what its points added so far, and its states on a disk."""

    def __init__(self, max_cached: int = 100) -> None:
        self._disk: dict[bytes, bytes] = {}
        self._accumulators = Accumulators(
            lambda keys: {key: self._disk[key] for key in keys if key in self._disk}, max_cached
        )
        self.values: dict[int, Decimal] = defaultdict(Decimal)
        self.counts: dict[int, int] = defaultdict(int)
        self.at: dict[tuple[int, int], Decimal] = defaultdict(Decimal)
        self.conflicts = 0

    def add(self, points: Sequence[Point]) -> None:
        if not points:
            return
        pairs = [from_decimal(point.value) for point in points]
        found = self._accumulators.increases(
            Cumulative(
                first=np.array([point.series for point in points], np.uint64),
                second=np.array([point.start_ns for point in points], np.uint64),
                start_ns=np.array([point.start_ns for point in points], np.int64),
                time_ns=np.array([point.time_ns for point in points], np.int64),
                whole=np.array([whole for whole, _ in pairs], np.int64),
                nano=np.array([nano for _, nano in pairs], np.int64),
                counts=np.array([point.count for point in points], np.int64),
            )
        )
        for i, point in enumerate(points):
            if found.is_event[i]:
                self._count(point, point.time_ns, found.whole[i], found.nano[i], found.counts[i])
            else:
                assert (found.whole[i], found.nano[i], found.counts[i]) == (0, 0, 0)
        for back in found.taken_back:
            self._count(points[back.place], back.time_ns, back.whole, back.nano, back.counts)
        self.conflicts += int(found.is_conflict.sum())
        self._disk.update(found.states)
        self._accumulators.remember(found.states)

    def _count(self, point: Point, at_ns: int, whole: int, nano: int, count: int) -> None:
        increase = Decimal(int(whole)) + Decimal(int(nano)) / NANO
        self.values[point.series] += increase
        self.counts[point.series] += int(count)
        self.at[point.series, at_ns] += increase


def usage(points: Iterable[Point]) -> dict[int, tuple[Decimal, int]]:
    """The oracle: for each series and start the maximum, less the first point of an unknown start."""
    epochs: dict[tuple[int, int], list[Point]] = defaultdict(list)
    for point in points:
        epochs[point.series, point.start_ns].append(point)
    totals: dict[int, tuple[Decimal, int]] = defaultdict(lambda: (Decimal(0), 0))
    for (series, start), some in epochs.items():
        base = [(p.value, p.count) for p in some if p.time_ns == start] or [(Decimal(0), 0)]
        value, count = totals[series]
        top = max(p.value for p in some), max(p.count for p in some)
        totals[series] = value + top[0] - base[0][0], count + top[1] - base[0][1]
    return totals


steps = st.lists(
    st.tuples(
        st.sampled_from([Decimal(0), Decimal(1), Decimal("0.1"), Decimal(10**12)]),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=6,
)


@st.composite
def streams(draw: st.DrawFn) -> list[Point]:
    """Conforming streams: in each epoch values and counts grow with time."""
    points = []
    for series in range(draw(st.integers(1, 3))):
        for epoch in range(draw(st.integers(1, 2))):
            start, value, count = 1_000 * (epoch + 1), Decimal(0), 0
            at = start - 1 + draw(st.integers(1, 2))  # 1: an unknown start
            for more, measured in draw(steps):
                value, count = value + more, count + measured
                points.append(Point(series, start, at, value, count))
                at += 1
    return points


@given(points=streams(), data=st.data())
def test_totals_do_not_depend_on_order_repetition_or_pieces(
    points: list[Point], data: st.DataObject
) -> None:
    repeated = data.draw(st.lists(st.sampled_from(points), max_size=5))
    sent = data.draw(st.permutations(points + repeated))
    cut = data.draw(st.integers(0, len(sent)))
    counted = Counted(max_cached=data.draw(st.sampled_from([0, 100])))

    counted.add(sent[:cut])
    counted.add(sent[cut:])

    for series, (value, count) in usage(points).items():
        assert (counted.values[series], counted.counts[series]) == (value, count)
    assert counted.conflicts == 0


@given(points=streams())
def test_in_order_each_increase_is_counted_at_its_own_time(points: list[Point]) -> None:
    together, one_by_one = Counted(), Counted()

    together.add(points)
    for point in points:
        one_by_one.add([point])

    assert together.at == one_by_one.at


def point(time_ns: int, value: int | str, start_ns: int = 100, count: int = -1) -> Point:
    return Point(1, start_ns, time_ns, Decimal(value), count)


def counted(*points: Point) -> Counted:
    found = Counted()
    for one in points:
        found.add([one])
    return found


def test_a_true_start_counts_from_zero() -> None:
    assert counted(point(110, 7)).at == {(1, 110): 7}


def test_an_unknown_start_counts_its_first_point_as_0() -> None:
    assert counted(point(100, 7), point(110, 9)).at == {(1, 100): 0, (1, 110): 2}


def test_a_late_first_point_takes_back_what_was_counted_where_it_was_counted() -> None:
    found = counted(point(110, 9), point(120, 12), point(100, 7))

    assert found.at == {(1, 110): 2, (1, 120): 3}


def test_a_late_first_point_that_is_repeated_takes_back_once() -> None:
    found = counted(point(110, 9), point(100, 7), point(100, 7))

    assert found.values[1] == 2


def test_a_new_start_is_a_reset() -> None:
    found = counted(point(110, 9), point(210, 4, start_ns=200))

    assert found.values[1] == 13


def test_a_point_of_an_earlier_start_that_comes_late_still_counts() -> None:
    found = counted(point(110, 9), point(210, 4, start_ns=200), point(120, 11))

    assert found.values[1] == 15


def test_a_start_after_its_time_is_a_start() -> None:
    assert counted(point(90, 3), point(110, 5)).values[1] == 5


def test_without_a_start_the_first_counts_0_and_a_fall_is_a_reset() -> None:
    found = counted(*(point(t, v, start_ns=0) for t, v in ((10, 5), (20, 8), (30, 2), (40, 3))))

    assert found.at == {(1, 10): 0, (1, 20): 3, (1, 30): 2, (1, 40): 1}


def test_without_a_start_a_point_that_is_not_the_latest_adds_nothing() -> None:
    found = counted(*(point(t, v, start_ns=0) for t, v in ((10, 5), (30, 8), (20, 6), (30, 8))))

    assert found.values[1] == 3


def test_without_a_start_another_value_of_the_same_time_is_no_reset() -> None:
    found = counted(point(10, 5, start_ns=0), point(10, 3, start_ns=0))

    assert found.values[1] == 0


def test_a_value_that_falls_under_one_start_is_a_conflict_and_adds_nothing() -> None:
    found = counted(point(110, 9), point(120, 4))

    assert found.values[1] == 9
    assert found.conflicts == 1


def test_an_older_point_is_no_conflict() -> None:
    found = counted(point(120, 9), point(110, 4), point(120, 9))

    assert found.values[1] == 9
    assert found.conflicts == 0


def test_measurements_of_value_zero_count() -> None:
    found = counted(point(110, 5, count=1), point(120, 5, count=3))

    assert found.values[1] == 5
    assert found.counts[1] == 3


ONE = Cumulative(
    first=np.array([1], np.uint64),
    second=np.array([1], np.uint64),
    start_ns=np.array([100]),
    time_ns=np.array([110]),
    whole=np.array([5]),
    nano=np.array([0]),
    counts=np.array([0]),
)


def test_a_point_that_adds_nothing_changes_no_state() -> None:
    disk: dict[bytes, bytes] = {}
    accumulators = Accumulators(lambda keys: {k: disk[k] for k in keys if k in disk})
    first = accumulators.increases(ONE)
    accumulators.remember(first.states)

    again = accumulators.increases(ONE)

    assert len(first.states) == 1
    assert again.states == []
    assert not again.is_event.any()


def test_nothing_is_remembered_before_the_commit() -> None:
    accumulators = Accumulators(lambda keys: {})

    accumulators.increases(ONE)

    assert accumulators.increases(ONE).whole.tolist() == [5]
