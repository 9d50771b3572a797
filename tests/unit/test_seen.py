"""The memory of seen ids gives the answers of a set of all ids, whatever it has forgotten and however it is cut."""

import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from numpy.typing import NDArray

from otel_metering.errors import UnavailableError
from receiver import runs
from receiver.asked import Found
from receiver.identity import Ids, Kind, Words, mark_words
from receiver.seen import Owner, SeenIds

NOW = 1_790_000_000 * 10**9
MINUTE = 60 * 10**9


class One(NamedTuple):
    """A row of a question. Its kind is in `second`."""

    first: int
    second: int
    time_ns: int
    content: int

    @property
    def kind(self) -> Kind:
        return Kind(self.second & 3)

    @property
    def key(self) -> tuple[int, int]:
        return self.first, self.second


def one_of(first: int, number: int, kind: Kind, offset: int, content: int) -> One:
    """The time of a POINT or SPAN id is a function of the id, as it is for those of the wire."""
    if kind is not Kind.EXPLICIT:
        offset, content = (first * 7 + number * 13) % 11 - 5, 0
    # Far apart at the ends, so that some are ahead of now and some are long ago.
    return One(first, number << 2 | kind, NOW + offset * MINUTE // 2, content)


# Few different halves, so that ids share a first or a second half more often than chance would have it;
# and first halves that differ in their lowest bits only, or in their highest.
firsts = st.sampled_from([0, 1, 2, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1])
rows = st.builds(
    one_of,
    firsts,
    st.integers(0, 5),
    st.sampled_from(list(Kind)),
    st.integers(-5, 5),
    st.integers(0, 2),
)
batches = st.lists(rows, max_size=12)


def columns(asked: Sequence[One]) -> Ids:
    return Ids(
        first=np.array([one.first for one in asked], np.uint64),
        second=np.array([one.second for one in asked], np.uint64),
        time_ns=np.array([one.time_ns for one in asked], np.int64),
        content=np.array([one.content for one in asked], np.uint64),
    )


class FakeTable:
    """What is in the database: id -> (time, content)."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], tuple[int, int]] = {}
        self.asked = 0

    def __call__(self, ids: Ids, owners: Sequence[Owner]) -> tuple[NDArray[np.bool_], Words]:
        self.asked += len(ids)
        stored, content = [], []
        for i in range(len(ids)):
            assert owners[i] == ("tenant", f"meter-{int(ids.first[i])}")
            time_ns, said = self.rows.get((int(ids.first[i]), int(ids.second[i])), (None, 0))
            is_explicit = int(ids.second[i]) & 3 == Kind.EXPLICIT
            is_stored = time_ns is not None and (is_explicit or time_ns == int(ids.time_ns[i]))
            stored.append(is_stored)
            content.append(said if is_stored else 0)
        return np.array(stored, np.bool_), np.array(content, np.uint64)


def ask(seen: SeenIds, asked: Sequence[One]) -> Found:
    return seen.find(
        columns(asked), lambda places: [("tenant", f"meter-{asked[i].first}") for i in places]
    )


def expected(
    known: dict[tuple[int, int], One], asked: Sequence[One]
) -> tuple[list[bool], list[bool]]:
    """The oracle: walk through the rows with a dictionary."""
    admitted, is_new, is_conflict = dict(known), [], []
    for one in asked:
        before = None if one.kind is Kind.ONCE else admitted.get(one.key)
        is_new.append(before is None)
        is_conflict.append(
            before is not None and one.kind is Kind.EXPLICIT and before.content != one.content
        )
        admitted.setdefault(one.key, one)
    return is_new, is_conflict


class Memory(RuleBasedStateMachine):
    """Any order of questions, commits, inserts, merges, and steps of the clock, with a tiny budget."""

    waiting = Bundle("waiting")

    @initialize(max_bytes=st.sampled_from([1, 200, 1_500, 10**6]), inline=st.sampled_from([1, 8]))
    def start(self, max_bytes: int, inline: int) -> None:
        self.table = FakeTable()
        self.merges: list[Callable[[], None]] = []
        self.seen = SeenIds(max_bytes, self.table, inline_ids=inline, background=self.merges.append)
        self.known: dict[tuple[int, int], One] = {}
        self.spool: list[list[One]] = []
        self.dropped = 0
        self.now = NOW

    @rule(asked=batches)
    def admit(self, asked: list[One]) -> None:
        found = ask(self.seen, asked)
        is_new, is_conflict = expected(self.known, asked)
        assert (found.is_new.tolist(), found.is_conflict.tolist()) == (is_new, is_conflict)
        new = [one for one, fresh in zip(asked, is_new, strict=True) if fresh]
        self.spool.append(new)
        self.known.update({one.key: one for one in new if one.kind is not Kind.ONCE})
        self.seen.add(columns(new), self.dropped + len(self.spool), self.now)

    @rule(count=st.integers(1, 4))
    def insert(self, count: int) -> None:
        for _ in range(min(count, len(self.spool))):
            for one in self.spool.pop(0):
                self.table.rows[one.key] = (one.time_ns, one.content)
            self.dropped += 1
        self.seen.written(self.dropped)

    @rule()
    def merge(self) -> None:
        while self.merges:
            self.merges.pop()()

    @rule(halves=st.integers(1, 6))
    def wait(self, halves: int) -> None:
        self.now += halves * MINUTE // 2

    @invariant()
    def nothing_that_is_in_no_table_is_forgotten(self) -> None:
        on_the_way = {one.key for batch in self.spool for one in batch if one.kind != Kind.ONCE}
        held = {
            (int(first), int(second))
            for run in self.seen._all_runs()
            for first, second in zip(run.first, run.second, strict=True)
        }
        assert on_the_way <= held


TestMemory = Memory.TestCase


def random_ids(count: int, seed: int, kind: Kind = Kind.POINT, at_ns: int = NOW) -> Ids:
    chance = np.random.default_rng(seed)
    first, second = (chance.integers(0, 2**64, count, dtype=np.uint64) for _ in range(2))
    content = chance.integers(0, 2**64, count, dtype=np.uint64)
    return Ids(
        first=first,
        second=mark_words(second, kind),
        time_ns=np.full(count, at_ns, np.int64),
        content=content if kind is Kind.EXPLICIT else np.zeros(count, np.uint64),
    )


def nobody(places: NDArray[np.int64]) -> Sequence[Owner]:
    raise AssertionError(f"{len(places)} ids were asked for in the database")


@pytest.mark.parametrize("kind", [Kind.POINT, Kind.SPAN, Kind.EXPLICIT])
def test_ids_in_long_runs_are_found_and_their_neighbours_are_not(kind: Kind) -> None:
    merges: list[Callable[[], None]] = []
    seen = SeenIds(background=merges.append)
    batches = [random_ids(40_000, seed, kind) for seed in range(6)]
    for number, ids in enumerate(batches):
        seen.add(ids, number, NOW)
        while merges:
            merges.pop()()

    for ids in batches:
        found = seen.find(ids, nobody)
        assert not found.is_new.any()
        assert not found.is_conflict.any()
        # The next larger first half, and another second half.
        near = Ids(
            first=ids.first + np.uint64(1),
            second=ids.second,
            time_ns=ids.time_ns,
            content=ids.content,
        )
        far = Ids(
            first=ids.first,
            second=ids.second ^ np.uint64(4),
            time_ns=ids.time_ns,
            content=ids.content,
        )
        assert seen.find(near, nobody).is_new.all()
        assert seen.find(far, nobody).is_new.all()


@given(
    words=st.lists(firsts | st.integers(0, 2**64 - 1), max_size=50),
)
def test_the_order_of_words_is_ascending_and_stable(words: list[int]) -> None:
    order = runs.order_of(np.array(words, np.uint64)).tolist()

    assert order == sorted(range(len(words)), key=lambda place: words[place])


def test_present_points_are_not_asked_for_in_the_database_when_old_ones_were_forgotten() -> None:
    table = FakeTable()
    seen = SeenIds(60_000, table)
    for step in range(100):
        at_ns = NOW + step * MINUTE
        ids = random_ids(100, step, at_ns=at_ns)
        assert seen.find(ids, nobody).is_new.all()
        seen.add(ids, step, at_ns)
        seen.written(step)

    assert seen.byte_count <= 60_000
    assert NOW < seen.horizon_ns < NOW + 99 * MINUTE
    assert seen.has_room
    assert table.asked == 0


def test_ids_that_are_not_in_the_database_are_kept_and_then_there_is_no_room() -> None:
    seen = SeenIds(1_000, FakeTable())
    seen.add(random_ids(100, 1), 1, NOW)

    assert not seen.has_room
    assert len(seen) == 100
    seen.written(1)
    assert seen.has_room


def test_a_database_that_does_not_answer_is_an_error_and_not_new() -> None:
    def away(ids: Ids, owners: Sequence[Owner]) -> tuple[NDArray[np.bool_], Words]:
        raise UnavailableError("away")

    seen = SeenIds(1, away)
    seen.add(random_ids(10, 1), 0, NOW)

    with pytest.raises(UnavailableError):
        seen.find(random_ids(1, 2), lambda places: [("t", "m")] * len(places))


def test_ids_are_found_at_every_moment_of_a_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread merges all the time, and each merge is interrupted at its worst moment: before the swap."""
    seen = SeenIds(inline_ids=500)
    batches = [random_ids(300, seed) for seed in range(120)]
    merge, swapping = runs.merge, threading.local()
    merged_by_thread: list[str] = []

    def checked(one: runs.Run, other: runs.Run) -> runs.Run:
        merged = merge(one, other)
        name = threading.current_thread().name
        merged_by_thread.append(name)
        if name == "ids-merge" and not hasattr(swapping, "has_waited"):
            has_asked.wait(10)
            swapping.has_waited = True
        return merged

    has_asked = threading.Event()
    monkeypatch.setattr(runs, "merge", checked)
    for number, ids in enumerate(batches):
        seen.add(ids, number, NOW)
        for earlier in batches[: number + 1 : 7]:
            assert not seen.find(earlier, nobody).is_new.any()
        if number == 60:
            has_asked.set()

    assert "ids-merge" in merged_by_thread
    assert len(seen) == 120 * 300


def test_what_is_forgotten_while_it_is_merged_stays_forgotten_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merges: list[Callable[[], None]] = []
    table = FakeTable()
    seen = SeenIds(400_000, table, inline_ids=100, background=merges.append)
    batches = [random_ids(200, seed, at_ns=NOW + seed) for seed in range(60)]
    for number, ids in enumerate(batches):
        seen.add(ids, number, NOW)
    seen.written(60)
    merge = runs.merge

    def evicting(one: runs.Run, other: runs.Run) -> runs.Run:
        monkeypatch.setattr(runs, "merge", merge)
        merged = merge(one, other)
        seen._max_bytes = 20_000
        seen.add(random_ids(1, 99, at_ns=NOW + 99), 60, NOW)
        return merged

    monkeypatch.setattr(runs, "merge", evicting)
    merges.pop()()

    assert seen.byte_count <= 20_000
    first = [int(run.min_ns) for run in seen._timed]
    assert all(a <= b for a, b in pairwise(first))
    assert seen.horizon_ns >= NOW


def test_everything_up_to_the_newest_time_that_was_forgotten_is_asked_for() -> None:
    table = FakeTable()
    seen = SeenIds(1, table)
    forgotten = [One(1, 0, NOW - MINUTE, 0), One(2, 0, NOW, 0)]
    seen.add(columns(forgotten), 0, NOW)
    table.rows = {one.key: (one.time_ns, 0) for one in forgotten}

    assert seen.horizon_ns == NOW
    assert ask(seen, forgotten).is_new.tolist() == [False, False]
    assert ask(seen, [One(3, 0, NOW + 1, 0)]).is_new.tolist() == [True]
    assert table.asked == 2


def test_a_span_that_is_sent_with_another_time_is_found() -> None:
    seen = SeenIds()
    seen.add(columns([One(1, Kind.SPAN, NOW, 0)]), 0, NOW)

    for time_ns in (NOW - 5 * MINUTE, NOW + 5 * MINUTE):
        assert ask(seen, [One(1, Kind.SPAN, time_ns, 0)]).is_new.tolist() == [False]


def test_a_run_that_grew_while_it_was_merged_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    merges: list[Callable[[], None]] = []
    seen = SeenIds(inline_ids=100, background=merges.append)
    batches = [random_ids(count, count) for count in (60, 45, 20, 15)]
    for ids in batches[:3]:
        seen.add(ids, 0, NOW)
    merge = runs.merge

    def interrupted(one: runs.Run, other: runs.Run) -> runs.Run:
        monkeypatch.setattr(runs, "merge", merge)
        seen.add(
            batches[3], 0, NOW
        )  # which becomes one run with the third, and that with the second
        return merge(one, other)

    monkeypatch.setattr(runs, "merge", interrupted)
    merges.pop()()

    assert len(seen) == 140
    assert not any(seen.find(ids, nobody).is_new.any() for ids in batches)
