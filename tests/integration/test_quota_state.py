"""Counters have exactly what was acknowledged: loaded while usage arrives, settled once, corrected when wrong."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from decimal import Decimal
from pathlib import Path

import pytest

from otel_metering.contract import attributes as wire
from otel_metering.contract.meter import Signal
from otel_metering.contract.quota import Enforcement, Period
from otel_metering.errors import UnavailableError
from query_api.counters import Adjust, Reservation, State
from query_api.problems import ConflictError
from query_api.quotas import Reason
from query_api.verdicts import Policy
from receiver.ingest import Work
from tests.integration.quota_process import SENDER, Process, event, process
from tests.otlp import Point, metrics_request
from tests.redis_server import RedisServer, redis_server
from tests.waiting import eventually

Start = Callable[..., AbstractContextManager[Process]]


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
def start(request: pytest.FixtureRequest, redis: RedisServer, tmp_path: Path) -> Start:
    """Starts a process; the same folder each time."""
    with redis.client() as client:
        client.flushall()
    url = redis.url if request.param == "redis" else None
    return lambda **how: process(tmp_path, redis_url=url, **how)


def ready(one: Process) -> None:
    """Wait until counters can be had: an empty Redis is first recovered."""
    eventually(lambda: one.ask().decision.reason, lambda reason: reason is not Reason.RECOVERING)


def settling(quantity: str, reservation_id: str, **how: object) -> object:
    attributes = {wire.RESERVATION_ID: reservation_id, "region": "eu"}
    return event(quantity, attributes=attributes, **how)


def test_usage_counts_when_it_is_acknowledged(start: Start) -> None:
    with start() as one:
        one.put("10")
        ready(one)
        one.ask()

        one.send([event("1.000000001"), event("2"), event("5", tenant_id="other")])

        eventually(one.used, lambda used: used == Decimal("3.000000001"))


def test_a_counter_is_exact_when_it_is_loaded_while_usage_arrives(start: Start) -> None:
    with start() as one:
        one.put("0", enforcement=Enforcement.SOFT)
        ready(one)
        stopping, sent = threading.Event(), [0] * 3

        def send(place: int) -> None:
            while not stopping.is_set():
                one.send([event("0.1") for _ in range(7)])
                sent[place] += 7

        threads = [threading.Thread(target=send, args=(place,)) for place in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(25):
            # Each time another counter, which is loaded in the middle of it.
            one.quotas.tally.forget([found.key for found in one.quotas.tally.loaded])
            before = sum(sent)
            assert one.used() >= Decimal(before) / 10
        stopping.set()
        for thread in threads:
            thread.join()

        assert eventually(one.used, lambda used: used == Decimal(sum(sent)) / 10)
        assert one.quotas.tally.reconcile() == 0
        assert one.counted("loads") >= 25


def test_a_counter_that_is_wrong_is_corrected_and_counted(start: Start) -> None:
    with start() as one:
        one.put("10")
        ready(one)
        one.send([event("4")])
        eventually(one.used, lambda used: used == 4)
        (counter,) = one.quotas.tally.loaded
        one.quotas.counters.change([Adjust(counter.rule.tag, counter.key, -3 * 10**9)])
        assert one.used() == 1

        assert one.quotas.tally.reconcile() == 1

        assert one.used() == 4
        assert one.counted("corrections") == 1
        assert one.quotas.tally.reconcile() == 0


def test_counts_of_points_and_of_measurements(start: Start) -> None:
    with start() as one:
        one.put("100")
        one.put("100", meter="requests")
        ready(one)
        one.ask()
        one.ask(meter="requests")
        body = metrics_request([Point("t", 7), Point("t", 2**62)])
        work = Work(sender=SENDER, signal=Signal.METRIC, body=body.SerializeToString())
        one.ingest.submit(work).result(20)
        one.send([event("5", meter="requests"), event("5", meter="requests")])

        eventually(one.used, lambda used: used == 7 + 2**62)
        eventually(lambda: one.used(meter="requests"), lambda used: used == 2)
        assert one.quotas.tally.reconcile() == 0


def test_a_filter_counts_its_usage_alone(start: Start) -> None:
    with start() as one:
        one.put("3", filter=(("region", ("eu",)),))
        ready(one)
        in_eu = (("region", "eu"),)
        one.ask(dimensions=in_eu)
        one.send([event("2", attributes={"region": "eu"}), event("9", attributes={"region": "us"})])

        eventually(lambda: one.used(dimensions=in_eu), lambda used: used == 2)
        assert not one.ask("2", dimensions=in_eu).decision.is_allowed
        assert one.ask("2").decision.reason is Reason.NO_QUOTA


@pytest.mark.parametrize("is_lease", [False, True])
def test_usage_that_carries_the_id_is_counted_and_held_no_longer(
    start: Start, is_lease: bool
) -> None:
    with start() as one:
        one.put("10")
        ready(one)
        held = one.ask("8", reservation_id="mine", is_lease=is_lease).reservation
        assert held is not None
        for number, quantity in enumerate(["3", "3", "1"]):
            usage = settling(quantity, "mine", event_id=f"e{number}")
            one.send([usage])  # type: ignore[list-item]
            one.send([usage])  # type: ignore[list-item]  # again: it settles nothing twice

        eventually(one.used, lambda used: used == 7)
        now = one.quotas.gate.find("mine", "t", None)
        expected = (State.ACTIVE, 10**9) if is_lease else (State.SETTLED, 0)
        assert (now.state, now.left) == expected
        assert one.ask("2" if is_lease else "3").decision.is_allowed
        assert not one.ask("2.000000001" if is_lease else "3.000000001").decision.is_allowed


def test_a_lease_that_is_released_behind_its_usage_frees_only_the_rest(start: Start) -> None:
    with start() as one:
        one.put("1000")
        ready(one)
        for number in range(1, 41):
            name = f"lease{number}"
            held = one.ask("8", reservation_id=name, is_lease=True).reservation
            assert held is not None
            one.send([settling("7", name)])  # type: ignore[list-item]
            one.quotas.gate.end(held, State.RELEASED)

            binding = one.ask("0").decision.binding
            assert binding is not None
            assert binding.remaining == (1_000 - 7 * number) * 10**9


def test_the_same_reservation_again_holds_nothing_twice(start: Start) -> None:
    with start() as one:
        one.put("10")
        ready(one)
        first = one.ask("6", reservation_id="mine")
        again = one.ask("6", reservation_id="mine")

        assert again.reservation == first.reservation
        assert again.decision.is_allowed
        with pytest.raises(ConflictError, match="taken"):
            one.ask("5", reservation_id="mine")
        one.quotas.gate.end(one.quotas.gate.find("mine", None, None), State.RELEASED)
        with pytest.raises(ConflictError, match="released"):
            one.ask("6", reservation_id="mine")
        assert one.ask("10").decision.is_allowed


def test_a_new_limit_keeps_what_was_used_and_a_new_quota_sees_what_is_held(start: Start) -> None:
    with start() as one:
        one.put("10")
        ready(one)
        one.send([event("4", attributes={"region": "eu"})])
        one.ask("5", reservation_id="mine", dimensions=(("region", "eu"),))
        one.put("20")
        eventually(one.used, lambda used: used == 4)
        assert one.ask("11").decision.is_allowed
        assert not one.ask("12").decision.is_allowed

        one.put("9.5", filter=(("region", ("eu",)),), period=Period.DAY)

        assert one.ask("0.5", dimensions=(("region", "eu"),)).decision.is_allowed
        assert not one.ask("0.6", dimensions=(("region", "eu"),)).decision.is_allowed


def test_reservations_and_usage_outlive_the_process(start: Start) -> None:
    with start() as one:
        one.put("10")
        ready(one)
        one.ask("2", reservation_id="kept", ttl_ms=600_000)
        one.ask("3", reservation_id="settled", ttl_ms=600_000)
        one.send([event("1"), settling("3", "settled")])  # type: ignore[list-item]
        eventually(one.used, lambda used: used == 4)
        # As if the process had been killed before the journal knew.
        one.quotas._journal.put([one.ask("2", reservation_id="kept").reservation])  # type: ignore[list-item]

    with start() as one:
        ready(one)
        assert one.used() == 4
        assert one.ask("4").decision.is_allowed
        assert not one.ask("4.1").decision.is_allowed


def test_what_settled_just_before_a_kill_is_not_held_again(tmp_path: Path) -> None:
    with process(tmp_path, writes=False) as one:
        one.put("10")
        held = one.ask("8", reservation_id="mine", ttl_ms=600_000).reservation
        lease = one.ask("2", reservation_id="lease", ttl_ms=600_000, is_lease=True).reservation
        assert held is not None
        assert lease is not None
        one.send([settling("7", "mine"), settling("0.5", "lease")])  # type: ignore[list-item]
        one.quotas._journal.put(
            [held, lease]
        )  # what a kill leaves: the usage, and a journal behind it

    # It waits in the spool now; then in the database.
    for _ in range(2):
        with process(tmp_path) as one:
            assert one.used() == Decimal("7.5")
            assert one.ask("1").decision.is_allowed
            assert not one.ask("1.1").decision.is_allowed


def test_without_a_quota_everything_is_allowed_and_reservations_work(start: Start) -> None:
    with start() as one:
        held = one.ask("5", reservation_id="mine").reservation
        assert held is not None
        assert held.state is State.ACTIVE

        def find() -> Reservation | None:
            try:
                return one.quotas.gate.find("mine", None, None)
            except UnavailableError:
                return None

        found = eventually(find, lambda found: found is not None)
        assert found is not None
        assert one.quotas.gate.extend(found, 120_000).state is State.ACTIVE
        assert one.quotas.gate.end(found, State.RELEASED).state is State.RELEASED


@pytest.mark.parametrize("enforcement", Enforcement)
def test_where_redis_is_away_the_policy_answers(tmp_path: Path, enforcement: Enforcement) -> None:
    with redis_server() as server, process(tmp_path, redis_url=server.url) as one:
        one.put("10", enforcement=enforcement)
        ready(one)
        one.ask("1", reservation_id="before", ttl_ms=600_000)
        server.kill()

        decision = one.ask("1").decision
        assert decision.is_allowed == (enforcement is Enforcement.SOFT)
        assert decision.reason is Reason.STATE_UNAVAILABLE
        assert one.counted("unavailable") >= 1
        one.send([event("2")])  # is acknowledged all the same
        later = one.ask("1", reservation_id="meanwhile", ttl_ms=600_000).reservation
        assert (later is not None) == (enforcement is Enforcement.SOFT)

        server.start()
        eventually(lambda: one.ask().decision.reason, lambda reason: reason is Reason.OK)
        binding = one.ask().decision.binding
        assert binding is not None
        held = 2 if enforcement is Enforcement.SOFT else 1
        assert (binding.used, binding.reserved) == (2 * 10**9, held * 10**9)


def test_a_database_that_hangs_holds_up_neither_ingest_nor_checks(tmp_path: Path) -> None:
    hanging = threading.Event()
    with process(tmp_path, policy=Policy(load_seconds=0.3)) as one:
        one.put("10")
        one.put("10", tenant_id="soft", enforcement=Enforcement.SOFT)
        query = one.store.query

        def hang(*arguments: object, **named: object) -> object:
            if "usage_" in str(arguments[0]) or "metering.events" in str(arguments[0]):
                hanging.wait(20)
                raise UnavailableError("it hung")
            return query(*arguments, **named)  # type: ignore[arg-type]

        one.store.query = hang  # type: ignore[method-assign,assignment]
        try:
            assert one.ask().decision.reason is Reason.STATE_UNAVAILABLE
            assert not one.ask().decision.is_allowed
            assert one.ask(tenant="soft").decision.is_allowed
            assert one.send([event("1")]).accepted == 1
        finally:
            hanging.set()
            one.store.query = query  # type: ignore[method-assign]
        eventually(lambda: one.ask().decision.reason, lambda reason: reason is Reason.OK)
        assert one.used() == 1
