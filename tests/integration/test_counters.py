"""Counters and reservations, in memory and in Redis, against a list of everything that was ever done."""

import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_metering.clock import ManualClock
from query_api.counters import (
    GRACE_MS,
    Active,
    Adjust,
    Asked,
    Check,
    Count,
    Counters,
    Drop,
    End,
    Extend,
    Find,
    Hold,
    Put,
    Restore,
    Settlement,
    State,
)
from query_api.counters_memory import MemoryCounters
from query_api.counters_redis import RedisCounters, from_limbs, to_limbs
from tests.redis_server import RedisServer, redis_server

TAG = "tenant_a", "api.calls"
HUGE = 10**38


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module", params=["memory", "redis"])
def make(request: pytest.FixtureRequest, redis: RedisServer) -> Iterator[Any]:
    """Makes empty counters of either kind, on a clock."""
    with ExitStack() as stack:

        def made(clock: ManualClock) -> Counters:
            if request.param == "memory":
                return MemoryCounters(clock)
            with redis.client() as client:
                client.flushall()
            counters = RedisCounters(redis.url, clock)
            stack.callback(counters.close)
            counters.look()
            counters.settle_in()
            return counters

        yield made


@dataclass
class Held:
    id: str
    quantity: int
    left: int
    is_lease: bool
    scopes: tuple[str, ...]
    expires_ms: int
    state: State = State.ACTIVE


@dataclass
class Oracle:
    """The same rules over a list: every sum is made again from all of it."""

    clock: ManualClock
    used: dict[str, list[int]] = field(default_factory=dict)
    holds: list[Held] = field(default_factory=list)
    last: int = -1

    @property
    def now_ms(self) -> int:
        return self.clock.ns // 10**6

    def pass_time(self) -> None:
        for one in self.holds:
            if one.state is State.ACTIVE and one.expires_ms + GRACE_MS <= self.now_ms:
                one.state, one.left = State.EXPIRED, 0

    def reserved(self, scope: str) -> int:
        return sum(one.left for one in self.holds if scope in one.scopes)

    def find(self, id_: str) -> Held | None:
        return next((one for one in self.holds if one.id == id_), None)

    def shown(self, id_: str) -> tuple[Any, ...] | None:
        one = self.find(id_)
        if one is None:
            return None
        is_over = one.state is State.ACTIVE and one.expires_ms <= self.now_ms
        state = State.EXPIRED if is_over else one.state
        return one.id, one.quantity, one.left, one.is_lease, state, one.expires_ms

    def check(self, check: Check) -> tuple[Any, ...]:
        self.pass_time()
        asked, is_new = check.asked, False
        fits = all(
            key in self.used
            and (
                ceiling is None
                or sum(self.used[key]) + self.reserved(scope) + check.quantity <= ceiling
            )
            for key, scope, ceiling in check.lines
        )
        if asked and self.find(asked.reservation_id) is None and fits:
            until = self.now_ms + asked.ttl_ms
            self.holds.append(
                Held(
                    asked.reservation_id,
                    check.quantity,
                    check.quantity,
                    asked.is_lease,
                    asked.scopes,
                    until,
                )
            )
            is_new = True
        used = tuple(sum(self.used[k]) if k in self.used else None for k, _, _ in check.lines)
        reserved = tuple(self.reserved(scope) for _, scope, _ in check.lines)
        return used, reserved, asked and self.shown(asked.reservation_id), is_new

    def end(self, one: Held | None, state: State) -> None:
        if one and (
            one.state is State.ACTIVE or (one.state is State.EXPIRED and state is State.COMMITTED)
        ):
            one.state, one.left = state, 0

    def count(self, count: Count) -> set[str]:
        # Neither counts first what has expired: usage that was acknowledged before settles it still.
        if count.number <= self.last:
            return set()
        self.last = count.number
        for key, amount in count.deltas:
            if key in self.used:
                self.used[key].append(amount)
        for settled in count.settlements:
            one = self.find(settled.reservation_id)
            if settled.is_commit:
                self.end(one, State.COMMITTED)
            elif one and one.state is State.ACTIVE:
                if one.is_lease:
                    one.left = max(one.left - max(settled.amount, 0), 0)
                else:
                    self.end(one, State.SETTLED)
        return {key for key, _ in count.deltas if key not in self.used}

    def change(self, step: Put | Adjust | Drop) -> None:
        if isinstance(step, Put):
            self.used[step.key] = [step.value]
        elif isinstance(step, Drop):
            self.used.pop(step.key, None)
        elif step.key in self.used:
            self.used[step.key].append(step.delta)

    def touch(self, step: Find | End | Extend | Hold) -> None:
        self.pass_time()
        one = self.find(step.reservation_id)
        if isinstance(step, End):
            self.end(one, step.state)
        elif one is None or one.state is not State.ACTIVE:
            return
        elif isinstance(step, Extend) and self.now_ms < one.expires_ms:
            one.expires_ms = self.now_ms + step.ttl_ms
        elif isinstance(step, Hold):
            one.scopes = tuple(dict.fromkeys((*one.scopes, step.scope)))


def shown(one: Any) -> tuple[Any, ...] | None:
    return one and (
        one.reservation_id,
        one.quantity,
        one.left,
        one.is_lease,
        one.state,
        one.expires_ms,
    )


amounts = (
    st.integers(0, 12)
    | st.integers(0, 9 * 10**18).map(lambda whole: whole * 10**9)
    | st.integers(0, HUGE)
    | st.sampled_from([10**13 - 1, 10**13, 10**26 - 1, 10**26, 2**53, 2**63, 10**9 - 1])
)
signed = amounts | amounts.map(lambda amount: -amount)
keys, ids = st.sampled_from(["k1", "k2"]), st.sampled_from(["a", "b", "c", "d"])
scopes = st.sampled_from(["s1", "s2"])
lines = st.lists(st.tuples(keys, scopes, st.none() | amounts), max_size=3).map(tuple)
asked = st.builds(
    Asked,
    reservation_id=ids,
    ttl_ms=st.sampled_from([1_000, 5_000]),
    dimensions=st.just((("region", "eu"),)),
    is_lease=st.booleans(),
    scopes=st.lists(scopes, unique=True).map(tuple),
)
settlements = st.builds(Settlement, ids, signed, st.booleans())
steps = st.one_of(
    st.builds(Check, st.just(TAG), lines, amounts, st.none() | asked),
    st.tuples(
        st.integers(-1, 3),
        st.lists(st.tuples(keys, signed), max_size=3).map(tuple),
        st.lists(settlements, max_size=2).map(tuple),
    ),
    st.builds(
        End, st.just(TAG), ids, st.sampled_from([State.RELEASED, State.COMMITTED, State.SETTLED])
    ),
    st.builds(Extend, st.just(TAG), ids, st.sampled_from([500, 9_000])),
    st.builds(Hold, st.just(TAG), ids, scopes),
    st.builds(Find, st.just(TAG), ids),
    st.builds(Put, st.just(TAG), keys, signed, st.none()),
    st.builds(Adjust, st.just(TAG), keys, signed),
    st.builds(Drop, st.just(TAG), keys),
    st.sampled_from([0.4, 1.0, 2.5, 6.0]),
)


def do(counters: Counters, oracle: Oracle, step: Any) -> None:
    """Do it in both, and compare the answers."""
    match step:
        case Check():
            answer = counters.check(step)
            found = answer.used, answer.reserved, shown(answer.reservation), answer.is_new
            assert found == oracle.check(step)
        case (more, deltas, settled):
            count = Count(TAG, "here", oracle.last + more, deltas, settled)
            (counted,) = counters.count([count])
            assert set(counted.missing) == oracle.count(count)
        case Put() | Adjust() | Drop():
            counters.change([step])
            oracle.change(step)
        case _:
            oracle.touch(step)
            assert shown(counters.touch(step)) == oracle.shown(step.reservation_id)


@settings(max_examples=150)
@given(plan=st.lists(steps, max_size=25))
def test_every_answer_is_that_of_a_list_of_all_that_was_done(make: Any, plan: list[Any]) -> None:
    clock = ManualClock()
    counters, oracle = make(clock), Oracle(clock)

    for step in plan:
        if isinstance(step, float):
            clock.advance(step)
        else:
            do(counters, oracle, step)

    ends = Check(TAG, (("k1", "s1", None), ("k2", "s2", None)), 0)
    answer = counters.check(ends)
    assert (answer.used, answer.reserved) == oracle.check(ends)[:2]
    active = {one.reservation_id: one.left for one in counters.active(Active(TAG))}
    assert active == {one.id: one.left for one in oracle.holds if one.state is State.ACTIVE}
    known = {one.id for one in oracle.holds}
    assert {id_ for id_ in "abcd" if counters.locate(id_)} == known


@given(amount=signed | st.integers(-HUGE, HUGE))
def test_an_amount_reads_back_from_its_limbs(amount: int) -> None:
    limbs = to_limbs(amount)

    assert from_limbs(limbs.encode()) == amount
    assert all(0 <= int(one) < 10**13 for one in limbs.split(":")[1:])


def test_sums_in_lua_are_those_of_python_at_any_magnitude(make: Any) -> None:
    counters, chosen = make(ManualClock()), random.Random(7)
    total = 0
    counters.change([Put(TAG, "k", 0, None)])
    for number in range(400):
        amount = chosen.choice([1, -1]) * chosen.randrange(10 ** chosen.randrange(1, 38))
        total += amount
        counters.count([Count(TAG, "here", number, (("k", amount),))])

    assert counters.check(Check(TAG, (("k", "s", None),), 0)).used == (total,)


@pytest.mark.parametrize("ceiling", [0, 10**9, 2**53, 2**63 * 10**9, 10**37])
def test_the_last_billionth_fits_and_one_more_does_not(make: Any, ceiling: int) -> None:
    counters = make(ManualClock())
    counters.change([Put(TAG, "k", ceiling - 3, None)])

    def hold(name: str, quantity: int) -> bool:
        how = Asked(reservation_id=name, ttl_ms=1_000, dimensions=(), is_lease=False, scopes=("s",))
        answer = counters.check(Check(TAG, (("k", "s", ceiling),), quantity, how))
        return bool(answer.is_new)

    assert hold("one", 2)
    assert not hold("two", 2)
    assert hold("three", 1)
    assert not hold("four", 1)


def test_what_is_restored_is_there_once(make: Any) -> None:
    clock = ManualClock()
    counters = make(clock)
    how = Asked(reservation_id="a", ttl_ms=9_000, dimensions=(), is_lease=True, scopes=("s",))
    made = counters.check(Check(TAG, (), 5, how)).reservation
    assert made is not None
    other = make(clock)

    other.change([Restore(made), Restore(made)])

    assert other.touch(Find(TAG, "a")) == made
    assert other.check(Check(TAG, (("k", "s", None),), 0)).reserved == (5,)
