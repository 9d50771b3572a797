"""`quota="enforce"`: what is asked, when, and what is given back, in each form."""

import asyncio
import gc
from collections.abc import AsyncIterator, Generator, Iterator
from decimal import Decimal
from typing import NamedTuple

import pytest

import otel_metering
from otel_metering import QuotaExceededError, meter, tenant
from otel_metering._context import Holder, current
from otel_metering._guard import problems
from otel_metering._leases import Grant, Leases
from otel_metering.testing import CapturedUsage, capture

UNIT = 10**9


class Asked(NamedTuple):
    meter: str
    tenant: str | None
    nanos: int


class Quota(Leases):
    """Grants up to `free`, and notes who asked for what and what was settled."""

    def __init__(self, free: int) -> None:
        self.free = free * UNIT
        self.asked: list[Asked] = []
        self.settled: list[tuple[Grant, int]] = []
        self.async_count = 0
        self.error: Exception | None = None

    def take(self, meter: str, tenant: str | None, nanos: int) -> Grant:
        self.asked.append(Asked(meter, tenant, nanos))
        if self.error is not None:
            raise self.error
        if nanos > self.free:
            raise QuotaExceededError(
                "no", reason="limit_exceeded", remaining=Decimal(0), resets_at=None
            )
        self.free -= nanos
        return Grant(f"lease_{len(self.asked)}", nanos)

    async def take_async(self, meter: str, tenant: str | None, nanos: int) -> Grant:
        self.async_count += 1
        await asyncio.sleep(0)
        return self.take(meter, tenant, nanos)

    def settle(self, grant: Grant, used_nanos: int) -> None:
        self.settled.append((grant, used_nanos))
        self.free += grant.nanos - used_nanos

    @property
    def settled_units(self) -> list[int]:
        return [used // UNIT for _, used in self.settled]


@pytest.fixture
def usage() -> Iterator[CapturedUsage]:
    with capture() as usage, tenant("tenant_a"):
        yield usage


@pytest.fixture
def quota(monkeypatch: pytest.MonkeyPatch) -> Quota:
    quota = Quota(10)
    monkeypatch.setattr("otel_metering._call.leases", quota)
    return quota


def reservations(usage: CapturedUsage) -> dict[object, Decimal]:
    return {u.attributes.get("metering.reservation.id"): u.quantity for u in usage.records()}


def test_a_call_is_asked_before_it_counts_under_its_reservation(
    usage: CapturedUsage, quota: Quota
) -> None:
    @meter("api.calls", quantity=2, attributes={"region": "eu"}, quota="enforce")
    def call() -> int:
        assert quota.asked
        return 7

    assert call() == 7

    assert quota.asked == [Asked("api.calls", "tenant_a", 2 * UNIT)]
    usage.assert_total(
        "api.calls", 2, attributes={"region": "eu", "metering.reservation.id": "lease_1"}
    )
    assert quota.settled_units == [2]


def test_a_denied_call_is_not_made_and_not_counted(
    usage: CapturedUsage, quota: Quota, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_metering._guard.is_under_pytest", lambda: False)
    made = []

    @meter("api.calls", quantity=6, quota="enforce", count_on="both")
    def call() -> None:
        made.append(1)

    @meter("api.calls", quantity=6, quota="enforce", count_on="both")
    async def run() -> None:
        made.append(1)

    call()
    with pytest.raises(QuotaExceededError):
        call()
    with pytest.raises(QuotaExceededError):
        asyncio.run(run())
    with pytest.raises(QuotaExceededError), meter.measure("api.calls", quantity=6, quota="enforce"):
        made.append(1)

    assert made == [1]
    usage.assert_total("api.calls", 6)
    assert quota.free == 4 * UNIT


def test_what_was_not_used_is_given_back(usage: CapturedUsage, quota: Quota) -> None:
    @meter(
        "llm.tokens",
        quantity=lambda result, _limit: result,
        quota="enforce",
        reserve=lambda limit: limit,
    )
    async def complete(limit: int) -> int:
        return 3

    assert asyncio.run(complete(8)) == 3

    assert quota.asked == [Asked("llm.tokens", "tenant_a", 8 * UNIT)]
    assert quota.async_count == 1
    assert quota.free == 7 * UNIT
    usage.assert_total("llm.tokens", 3)


def test_a_call_that_does_not_count_gives_everything_back(
    usage: CapturedUsage, quota: Quota
) -> None:
    @meter("api.calls", quantity=4, quota="enforce")
    def call() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        call()
    with pytest.raises(KeyError), meter.measure("api.calls", quantity=4, quota="enforce"):
        raise KeyError

    assert quota.settled_units == [0, 0]
    usage.assert_none()


def test_usage_that_cannot_be_counted_gives_everything_back(
    usage: CapturedUsage, quota: Quota, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_metering._guard.is_under_pytest", lambda: False)

    @meter("api.calls", quantity=lambda _result: -1, quota="enforce", reserve=3)
    def call() -> str:
        return "called"

    assert call() == "called"

    assert quota.settled_units == [0]
    usage.assert_none()


def test_who_was_asked_for_pays(usage: CapturedUsage, quota: Quota) -> None:
    from otel_metering import set_tenant

    @meter("api.calls", quota="enforce")
    def log_in() -> None:
        set_tenant("tenant_b")

    log_in()

    assert quota.asked[0].tenant == "tenant_a"
    usage.assert_total("api.calls", 1, tenant="tenant_a")


def test_a_block_may_use_less_than_it_reserved(usage: CapturedUsage, quota: Quota) -> None:
    async def complete() -> None:
        async with meter.measure("llm.tokens", quota="enforce", reserve=9) as block:
            block.quantity = 4

    asyncio.run(complete())
    with meter.measure("llm.tokens", quantity="duration", quota="enforce", reserve=6) as block:
        pass

    assert [asked.nanos for asked in quota.asked] == [9 * UNIT, 6 * UNIT]
    assert quota.async_count == 1
    used = int(block.quantity * UNIT)
    assert [used_nanos for _, used_nanos in quota.settled] == [4 * UNIT, used]
    assert reservations(usage) == {"lease_1": 4, "lease_2": block.quantity}


def test_a_generator_is_asked_at_the_call_and_settles_at_its_end(
    usage: CapturedUsage, quota: Quota
) -> None:
    @meter("rows", quantity=lambda result: result or 0, quota="enforce", reserve=6)
    def rows() -> Generator[int, None, int]:
        yield 1
        return 2

    with tenant("tenant_b"):
        opened = rows()
    assert quota.asked == [Asked("rows", "tenant_b", 6 * UNIT)]
    with pytest.raises(QuotaExceededError):
        rows()
    assert list(opened) == [1]

    assert quota.settled_units == [2]
    assert reservations(usage) == {"lease_1": 2}


def test_a_generator_that_is_never_started_gives_everything_back(
    usage: CapturedUsage, quota: Quota
) -> None:
    @meter("rows", quota="enforce", reserve=6)
    def rows() -> Iterator[int]:
        yield 1

    opened = rows()
    assert quota.free == 4 * UNIT
    del opened
    gc.collect()

    assert quota.free == 10 * UNIT
    usage.assert_none()

    list(rows())
    gc.collect()
    assert quota.settled_units == [0, 1]


def test_an_asynchronous_generator_is_asked_at_its_first_step_for_the_tenant_of_its_call(
    usage: CapturedUsage, quota: Quota
) -> None:
    @meter("rows", quantity=6, quota="enforce")
    async def rows() -> AsyncIterator[int]:
        yield 1

    async def use() -> None:
        with tenant("tenant_b"):
            first, second = rows(), rows()
        assert quota.asked == []
        assert [row async for row in first] == [1]
        with pytest.raises(QuotaExceededError):
            await anext(second)

    asyncio.run(use())

    assert quota.asked == [Asked("rows", "tenant_b", 6 * UNIT)] * 2
    assert quota.async_count == 2
    assert quota.settled_units == [6]
    usage.assert_total("rows", 6, tenant="tenant_b")


@pytest.mark.parametrize("form", ["function", "coroutine", "block"])
def test_a_fault_of_ours_lets_the_call_pass_unchecked(
    usage: CapturedUsage, quota: Quota, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr("otel_metering._guard.is_under_pytest", lambda: False)
    problems.reset()
    quota.error = OSError("broken")

    @meter("api.calls", quota="enforce")
    def call() -> None: ...

    @meter("api.calls", quota="enforce")
    async def run() -> None: ...

    if form == "function":
        call()
    elif form == "coroutine":
        asyncio.run(run())
    else:
        with meter.measure("api.calls", quota="enforce"):
            pass

    usage.assert_total("api.calls", 1)
    assert problems.counts()["unchecked_calls"] == 1
    assert quota.settled == []


def test_a_meter_that_the_request_counts_is_not_asked_for_again(
    usage: CapturedUsage, quota: Quota
) -> None:
    holder = Holder("tenant_a", previous=current.get())
    holder.claimed = frozenset({"api.calls"})
    token = current.set(holder)

    meter("api.calls", quota="enforce")(lambda: None)()
    with meter.measure("api.calls", quota="enforce"):
        pass

    current.reset(token)
    assert quota.asked == []
    usage.assert_none()


def test_no_quota_is_asked_after_shutdown(quota: Quota) -> None:
    otel_metering.shutdown()

    @meter("api.calls", quantity=100, quota="enforce")
    def call() -> int:
        return 1

    assert call() == 1
    assert quota.asked == []
