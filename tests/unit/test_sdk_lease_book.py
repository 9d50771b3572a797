"""Leases against a service of a few lines, in any order of takes, ends of calls, deliveries, losses and ticks."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from otel_metering._lease_book import (
    AHEAD_SECONDS,
    DENIED_SECONDS,
    FREE_SECONDS,
    IDLE_SECONDS,
    MAX_AHEAD_SECONDS,
    Account,
    Ask,
    Book,
    Denial,
    Lease,
    Told,
)

TTL = 60
LIMIT = 1_000


@dataclass
class Service:
    """A hard quota: what is used and what is held together never exceed the limit."""

    used: int = 0
    held: dict[str, tuple[int, float]] = field(default_factory=dict)  # id -> units, their end
    number: int = 0

    def free(self, now: float) -> int:
        return LIMIT - self.used - sum(units for units, end in self.held.values() if now < end)

    def ask(self, ask: Ask, now: float) -> tuple[Told, str]:
        self.number += 1
        name = f"lease{self.number}"
        free = self.free(now)
        if ask.nanos > free:
            return Told(is_allowed=False, reason="limit_exceeded", remaining=max(free, 0)), name
        if not ask.is_look:
            self.held[name] = ask.nanos, now + TTL
            free -= ask.nanos
        return Told(is_allowed=True, reason="ok", remaining=free), name

    def deliver(self, name: str, units: int, now: float) -> None:
        self.used += units
        left, end = self.held.get(name, (0, 0.0))
        if now < end:
            self.held[name] = max(left - units, 0), end

    def is_held(self, name: str, now: float) -> bool:
        return name in self.held and now < self.held[name][1]


class Process:
    """What `Leases` does around a book, without threads and network."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.book = Book()
        self.account = self.book.accounts["m", "t"] = Account(0.0)
        self.calls: list[tuple[Lease, int]] = []
        self.recorded: list[tuple[str, int]] = []
        self.flushed: dict[Lease, int] = {}

    def ask(self, ask: Ask, now: float) -> None:
        told, name = self.service.ask(ask, now)
        lease = self.account.told(ask, told, name, now, TTL)
        if lease is not None:
            assert self.book.add(("m", "t"), lease)

    def take(self, units: int, now: float) -> bool:
        for _ in range(4):
            found = self.account.decide(units, now)
            if isinstance(found, Lease):
                self.give(found, units, now)
                return True
            if isinstance(found, Denial):
                return False
            assert found is not None, "no quota, although there is one"
            self.ask(found, now)
        raise AssertionError("it asks for ever")

    def give(self, lease: Lease, units: int, now: float) -> None:
        assert self.service.is_held(lease.lease_id, now), "it spends what has ended"
        self.calls.append((lease, units))

    def end_call(self, index: int, used: int) -> None:
        lease, units = self.calls.pop(index)
        self.recorded.append((lease.lease_id, min(used, units)))
        lease.settle(units, min(used, units))

    def deliver(self, now: float) -> None:
        for name, units in self.recorded:
            self.service.deliver(name, units, now)
        self.recorded = []
        for lease, used in self.flushed.items():
            lease.delivered = used
        self.flushed = {}

    def tick(self, now: float, *, is_reachable: bool) -> None:
        back = self.book.tend(now)
        self.flushed = self.flushed or self.book.unconfirmed(now)
        if not is_reachable:
            return
        for lease in self.book.waning(now, TTL):
            if self.service.is_held(lease.lease_id, now):
                units, _ = self.service.held[lease.lease_id]
                self.service.held[lease.lease_id] = units, now + TTL
                lease.renew(now, TTL)
            else:
                self.book.drop(lease)
        for lease in back:
            self.service.held.pop(lease.lease_id, None)
        refill = self.account.refill(now)
        if refill is not None and self.book.accounts:
            self.ask(refill, now)

    def spendable(self, now: float) -> list[Lease]:
        return [one for one in self.account.leases if one.left and now < one.spend_until]


class Machine(RuleBasedStateMachine):
    """Two processes share a quota; the clock moves less than an extension is early, unless there is an outage."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.service = Service()
        self.processes = [Process(self.service), Process(self.service)]
        self.is_reachable = True
        self.may_fail = False

    @initialize(may_fail=st.booleans())
    def begin(self, may_fail: bool) -> None:
        self.may_fail = may_fail

    who = st.integers(0, 1)

    @rule(who=who, units=st.integers(1, 300))
    def take(self, who: int, units: int) -> None:
        if self.is_reachable:
            self.processes[who].take(units, self.now)
        else:
            account = self.processes[who].account
            lease = account.take(units, self.now, even_closing=True)
            if lease is not None:
                self.processes[who].give(lease, units, self.now)

    @rule(who=who, count=st.integers(1, 40))
    def take_many(self, who: int, count: int) -> None:
        for _ in range(count):
            self.take(who, 1)

    @rule(who=who, used=st.integers(0, 300), index=st.integers(0, 100))
    def end_call(self, who: int, used: int, index: int) -> None:
        process = self.processes[who]
        if process.calls:
            process.end_call(index % len(process.calls), used)

    @rule(who=who)
    def deliver(self, who: int) -> None:
        self.processes[who].deliver(self.now)

    @rule(seconds=st.floats(0, TTL / 8))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for one in self.processes:
            one.tick(self.now, is_reachable=self.is_reachable)

    @rule()
    def pass_all_of_a_lease(self) -> None:
        for _ in range(9):
            self.pass_time(TTL / 8)

    @precondition(lambda self: self.may_fail)
    @rule()
    def lose_the_service(self) -> None:
        self.is_reachable = False

    @rule()
    def reach_the_service(self) -> None:
        self.is_reachable = True

    @precondition(lambda self: not self.is_reachable)
    @rule()
    def pass_an_hour(self) -> None:
        self.now += 3_600

    @invariant()
    def no_unit_is_spent_that_is_not_held(self) -> None:
        for process in self.processes:
            for lease in process.spendable(self.now):
                assert self.service.is_held(lease.lease_id, self.now)
            for lease in process.book.leases.values():
                assert lease.out == sum(units for of, units in process.calls if of is lease)
            if not self.may_fail:
                self.check_that_all_is_held(process)

    def check_that_all_is_held(self, process: Process) -> None:
        """What can be taken, what calls have, and what is on its way."""
        due: Counter[str] = Counter()
        for lease in process.spendable(self.now):
            due[lease.lease_id] += lease.left
        for lease, units in process.calls:
            due[lease.lease_id] += units
        for name, units in process.recorded:
            due[name] += units
        for name, units in due.items():
            if units:
                assert self.service.is_held(name, self.now)
                assert self.service.held[name][0] >= units

    @invariant()
    def the_limit_holds(self) -> None:
        if not self.may_fail:
            assert self.service.free(self.now) >= 0

    def teardown(self) -> None:
        """At rest everything that was not used is free again, and can be had to the last unit."""
        self.is_reachable = True
        for process in self.processes:
            while process.calls:
                process.end_call(0, 0)
        for _ in range(16):
            self.pass_time(TTL / 8)
            for process in self.processes:
                process.deliver(self.now)
        assert not [end for _, end in self.service.held.values() if self.now < end]
        rest = self.service.free(self.now)
        if rest > 0:
            assert self.processes[0].take(rest, self.now)


TestLeases = Machine.TestCase
TestLeases.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def hold(account: Account, units: int, now: float = 0.0, remaining: int = 10**6) -> Lease:
    """Make it have a lease."""
    account.told(Ask(nanos=1, is_look=True), Told(is_allowed=True, reason="ok"), "", now, TTL)
    told = Told(is_allowed=True, reason="ok", remaining=remaining)
    lease = account.told(Ask(nanos=units, is_look=False), told, f"of {units}", now, TTL)
    assert lease is not None
    return lease


def test_a_lease_is_not_spent_in_its_last_quarter() -> None:
    account = Account(0.0)
    lease = hold(account, 10)

    assert account.take(1, TTL * 0.74) is lease
    assert account.take(1, TTL * 0.75) is None


def test_what_a_call_did_not_use_can_be_taken_again() -> None:
    account = Account(0.0)
    lease = hold(account, 10)
    assert account.take(10, 1.0) is lease
    assert account.take(1, 1.0) is None

    lease.settle(10, 4)

    assert account.take(6, 1.0) is lease
    assert account.take(1, 1.0) is None


def test_what_a_call_used_beyond_its_grant_is_taken_from_the_rest_of_the_lease() -> None:
    account = Account(0.0)
    lease = hold(account, 10)
    account.take(2, 1.0)

    lease.settle(2, 7)

    assert account.take(4, 1.0) is None
    assert account.take(3, 1.0) is lease


def test_a_denial_is_believed_for_a_second_or_until_the_quota_begins_anew() -> None:
    account = Account(0.0)
    hold(account, 1)
    ask = Ask(nanos=5, is_look=False)
    told = Told(is_allowed=False, reason="limit_exceeded", remaining=2)
    account.told(ask, told, "", 10.0, TTL)

    assert isinstance(account.decide(5, 10.0 + DENIED_SECONDS * 0.9), Denial)
    assert account.decide(2, 10.0) == Ask(nanos=2, is_look=False)  # less may be allowed
    assert isinstance(account.decide(5, 10.0 + DENIED_SECONDS), Ask)

    soon = Told(
        is_allowed=False,
        reason="limit_exceeded",
        resets_at=datetime(2026, 4, 1, tzinfo=UTC),
        resets_seconds=0.25,
    )
    account.told(ask, soon, "", 20.0, TTL)

    assert isinstance(account.decide(5, 20.2), Denial)
    assert isinstance(account.decide(5, 20.25), Ask)


def test_that_there_is_no_quota_is_believed_for_some_seconds() -> None:
    account = Account(0.0)
    assert account.decide(5, 0.0) == Ask(nanos=5, is_look=True)
    told = Told(is_allowed=True, reason="no_quota", is_unlimited=True)
    account.told(Ask(nanos=5, is_look=True), told, "", 0.0, TTL)

    assert account.decide(10**9, FREE_SECONDS * 0.9) is None
    assert isinstance(account.decide(5, FREE_SECONDS), Ask)


def test_a_lease_grows_with_what_is_used_and_leaves_most_of_what_remains_to_others() -> None:
    account = Account(0.0)
    hold(account, 1, remaining=800)
    sizes = []
    for number in range(400):
        now = number / 100
        found = account.decide(1, now)
        if isinstance(found, Ask):
            sizes.append(found.nanos)
            told = Told(is_allowed=True, reason="ok", remaining=800)
            account.told(found, told, str(number), now, TTL)

    # Of one call, then 8 times as much each, up to an eighth of the rest.
    assert sizes[:3] == [8, 64, 100]
    assert max(sizes) == 100


def test_near_the_limit_exactly_what_is_needed_is_asked_for() -> None:
    account = Account(0.0)
    lease = hold(account, 500, remaining=9)
    assert account.take(500, 1.0) is lease

    assert account.decide(5, 1.0) == Ask(nanos=5, is_look=False)
    assert account.refill(1.0) is None


def test_units_are_asked_for_before_they_run_out() -> None:
    account = Account(0.0)
    lease = hold(account, 100)
    for number in range(90):
        assert account.take(1, number / 10) is lease

    refill = account.refill(9.0)

    assert refill is not None
    assert refill.nanos == 90 / 9 * AHEAD_SECONDS  # what 20 seconds need


def test_units_that_nobody_takes_are_given_back_once_the_used_ones_are_delivered() -> None:
    book = Book()
    account = book.accounts["m", "t"] = Account(0.0)
    lease = book.leases["of 10"] = hold(account, 10)
    account.take(1, 0.0)
    lease.settle(1, 1)

    assert book.tend(IDLE_SECONDS + 1) == []  # one unit may be on its way
    assert book.unconfirmed(IDLE_SECONDS + 1) == {lease: 1}
    lease.delivered = 1

    assert book.tend(IDLE_SECONDS + 1) == [lease]
    assert account.take(1, IDLE_SECONDS + 1) is None


def test_more_than_will_be_used_soon_is_given_back() -> None:
    book = Book()
    account = book.accounts["m", "t"] = Account(0.0)
    lease = book.leases["of 1000"] = hold(account, 1_000)
    now = 0.0
    while not lease.is_closing:
        now += 1.0
        assert now < AHEAD_SECONDS + 2
        assert account.take(1, now) is lease
        lease.settle(1, 1)
        book.tend(now)

    assert lease.left > MAX_AHEAD_SECONDS
    assert isinstance(account.decide(1, now), Ask)


@pytest.mark.parametrize(("remaining", "is_closed"), [(3, True), (1, False)])
def test_pieces_too_small_for_a_call_are_given_back_if_that_makes_room(
    remaining: int, is_closed: bool
) -> None:
    account = Account(0.0)
    lease = hold(account, 5)
    ask = Ask(nanos=8, is_look=False)
    told = Told(is_allowed=False, reason="limit_exceeded", remaining=remaining)
    account.told(ask, told, "", 1.0, TTL)

    assert isinstance(account.decide(8, 1.0), Denial)
    assert lease.is_closing is is_closed


def test_a_lease_whose_account_was_forgotten_meanwhile_is_not_kept() -> None:
    book = Book()
    asked = Account(0.0)
    successor = book.accounts["m", "t"] = Account(1.0)

    assert not book.add(("m", "t"), hold(asked, 10))
    assert book.add(("m", "t"), hold(successor, 10))
    assert [one.account for one in book.leases.values()] == [successor]
