"""Requests are acknowledged when they are durable; what cannot be is refused so that it is sent again."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Never

import pytest

from otel_metering.clock import SystemClock
from otel_metering.contract.meter import Aggregation, MeterDefinition, Meters, Signal, parse_meters
from otel_metering.errors import UnavailableError
from otel_metering.spool import Spool, open_spool
from receiver.admit import Outcome
from receiver.errors import MalformedPayloadError, RateLimitedError
from receiver.identity import Ids
from receiver.ingest import Ingest, Limits, Work
from receiver.metering import Metering
from receiver.seen import SeenIds
from receiver.usage import Sender
from tests.otlp import NOON, Data, Point, data_request, metrics_request

SENDER = Sender(key_id="k", bound_tenant=None)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = open_spool(tmp_path / "spool.db")
    yield spool
    spool.close()


@pytest.fixture
def ingest(spool: Spool) -> Iterator[Ingest]:
    ingest = ingest_into(spool)
    ingest.start()
    yield ingest
    ingest.stop()


def ingest_into(
    spool: Spool,
    max_queue_bytes: int = 10**6,
    metering: Metering | None = None,
    **limits: int,
) -> Ingest:
    return Ingest(
        metering=metering or Metering(Meters()),
        seen=SeenIds(),
        spool=spool,
        clock=SystemClock(),
        limits=Limits(max_queue_bytes=max_queue_bytes, **limits),
        pace=lambda: None,
        on_commit=lambda: None,
    )


def work(tenant: str = "tenant_a", value: int = 1) -> Work:
    body = metrics_request([Point(tenant, value)]).SerializeToString()
    return Work(sender=SENDER, signal=Signal.METRIC, body=body)


def outcome(done: "Future[Outcome]") -> Outcome:
    return done.result(timeout=20)


def test_it_is_on_disk_when_it_is_acknowledged(ingest: Ingest, spool: Spool) -> None:
    done = ingest.submit(work())
    on_disk: list[int] = []
    done.add_done_callback(lambda _: on_disk.append(spool.entry_count))

    assert outcome(done).accepted == 1
    ingest.stop()
    assert on_disk == [1]


def test_a_spool_that_refuses_is_unavailable_and_the_same_request_counts_later(
    ingest: Ingest, spool: Spool
) -> None:
    spool.max_bytes = 0
    with pytest.raises(UnavailableError):
        outcome(ingest.submit(work()))

    spool.max_bytes = 10**6
    again = outcome(ingest.submit(work()))

    assert (again.accepted, again.duplicates) == (1, 0)


def test_bad_data_is_refused_and_its_neighbours_are_not(spool: Spool) -> None:
    ingest = ingest_into(spool)
    bad = Work(sender=SENDER, signal=Signal.METRIC, body=b"\x0a\x7f")
    futures = [ingest.submit(one) for one in (work("a"), bad, work("b"))]  # one micro-batch

    ingest.start()

    assert outcome(futures[0]).accepted == outcome(futures[2]).accepted == 1
    with pytest.raises(MalformedPayloadError):
        outcome(futures[1])
    ingest.stop()
    assert spool.entry_count == 1


class Fragile(Metering):
    """A bug that one request meets."""

    def metric(self, *arguments: object) -> None:  # type: ignore[override]
        if "poison" in str(arguments):
            raise ZeroDivisionError
        return super().metric(*arguments)  # type: ignore[arg-type,return-value]


def test_a_request_that_meets_a_bug_is_unavailable_and_its_neighbours_are_stored(
    spool: Spool,
) -> None:
    ingest = ingest_into(spool, metering=Fragile(Meters()))
    poison = metrics_request([Point("tenant_a", 1)], resource={"service.name": "poison"})
    broken = Work(sender=SENDER, signal=Signal.METRIC, body=poison.SerializeToString())
    futures = [ingest.submit(one) for one in (work("a"), broken, work("b"))]

    ingest.start()

    assert outcome(futures[0]).accepted == outcome(futures[2]).accepted == 1
    with pytest.raises(UnavailableError):
        outcome(futures[1])
    assert outcome(ingest.submit(work("c"))).accepted == 1
    ingest.stop()


def test_another_metering_decides_from_the_next_request_on(ingest: Ingest, spool: Spool) -> None:
    nobodys = Work(
        sender=SENDER,
        signal=Signal.METRIC,
        body=metrics_request([Point("tenant_a", 1)], scope="x").SerializeToString(),
    )
    meters = parse_meters({"meters": [{"slug": "m", "source": {"signal": "metric"}}]})

    before = outcome(ingest.submit(nobodys))
    ingest.replace_metering(Metering(meters))
    after = outcome(ingest.submit(nobodys))

    assert (before.accepted, after.accepted) == (0, 1)


def test_a_full_queue_refuses_at_once(spool: Spool) -> None:
    ingest = ingest_into(spool, max_queue_bytes=len(work().body) + 1)
    first = ingest.submit(work())

    with pytest.raises(UnavailableError, match="send again"):
        ingest.submit(work())

    ingest.start()
    assert outcome(first).accepted == 1
    assert outcome(ingest.submit(work(value=2))).accepted == 1
    ingest.stop()


def test_a_stop_finishes_what_was_queued_and_refuses_the_rest(spool: Spool) -> None:
    ingest = ingest_into(spool)
    futures = [ingest.submit(work(f"tenant_{n}")) for n in range(50)]

    ingest.start()
    ingest.stop()

    assert [outcome(done).accepted for done in futures] == [1] * 50
    with pytest.raises(UnavailableError, match="stopping"):
        ingest.submit(work())


def test_a_sender_that_goes_away_changes_nothing(ingest: Ingest) -> None:
    done = ingest.submit(work())

    assert not done.cancel()
    assert outcome(done).accepted == 1


class Forgetful(SeenIds):
    """Memory that fails once, after the spool has what it should remember."""

    def add(self, *ids: object, **how: object) -> None:
        raise MemoryError


def test_when_memory_and_spool_may_differ_nothing_is_admitted_until_a_restart(spool: Spool) -> None:
    ingest = ingest_into(spool)
    ingest._seen = Forgetful()
    ingest.start()

    for _ in range(2):
        with pytest.raises(UnavailableError):
            outcome(ingest.submit(work()))

    assert not ingest.is_exact
    assert spool.entry_count == 1, "a second copy could never be told from the first"
    ingest.stop()


def test_a_disk_that_is_nearly_full_takes_nothing_and_says_so(spool: Spool) -> None:
    ingest = ingest_into(spool, min_free_disk_bytes=2**60)
    ingest.start()

    with pytest.raises(UnavailableError, match="METERING_MIN_FREE_DISK_BYTES"):
        outcome(ingest.submit(work()))

    assert spool.entry_count == 0
    ingest.stop()


def test_a_key_over_its_rate_is_refused_at_once(spool: Spool) -> None:
    ingest = ingest_into(spool, max_key_bytes_per_second=len(work().body))
    for value in range(2):
        ingest.submit(work(value=value))

    with pytest.raises(RateLimitedError):
        ingest.submit(work(value=3))


def test_new_meters_decide_from_the_next_request_on(ingest: Ingest) -> None:
    body = data_request([Data("gauge", 1, attributes={"tenant.id": "a"})]).SerializeToString()
    gauge = Work(sender=SENDER, signal=Signal.METRIC, body=body)
    before = outcome(ingest.submit(gauge))

    definition = MeterDefinition(slug="api.calls", aggregation=Aggregation.MAX)
    ingest.replace_metering(Metering(Meters((definition,))))

    assert before.quarantined == 1
    assert outcome(ingest.submit(gauge)).accepted == 1


def test_cumulative_points_count_once_across_a_restart(spool: Spool) -> None:
    def work_of(value: int) -> Work:
        point = Data("sum", value, at_ns=NOON + value, temporality=2)
        tagged = replace(point, attributes={"tenant.id": "a"})
        return Work(
            sender=SENDER,
            signal=Signal.METRIC,
            body=data_request([tagged]).SerializeToString(),
        )

    counted = []
    for values in ((3, 5), (5, 9)):
        ingest = ingest_into(spool)
        ingest.start()
        counted += [outcome(ingest.submit(work_of(value))).accepted for value in values]
        ingest.stop()

    assert counted == [1, 1, 0, 1]


class Observed(SeenIds):
    """Memory that looks, in the middle of a commit, at what others see then."""

    def __init__(self, is_exact: Callable[[], bool]) -> None:
        super().__init__()
        self._is_exact = is_exact
        self.seen_exact: list[bool] = []

    def add(self, ids: Ids, entry_number: int, now_ns: int) -> None:
        self.seen_exact.append(self._is_exact())
        super().add(ids, entry_number, now_ns)


def test_health_does_not_fail_while_a_commit_runs(spool: Spool) -> None:
    ingest = ingest_into(spool)
    ingest._seen = observed = Observed(lambda: ingest.is_exact)
    ingest.start()

    assert outcome(ingest.submit(work())).accepted == 1

    assert observed.seen_exact == [True]
    ingest.stop()


class Full(SeenIds):
    """Memory full of ids that are in no table yet, or of which the database says nothing."""

    def __init__(self, *, has_room: bool) -> None:
        super().__init__(1, self._away)
        self._room = has_room
        self.forget_until(2**63 - 1)

    @property
    def has_room(self) -> bool:
        return self._room

    @staticmethod
    def _away(ids: object, owners: object) -> Never:
        raise UnavailableError("away")


@pytest.mark.parametrize("has_room", [False, True])
def test_what_cannot_be_told_from_a_duplicate_is_refused_and_counts_later(
    spool: Spool, has_room: bool
) -> None:
    ingest = ingest_into(spool)
    memory, ingest._seen = ingest._seen, Full(has_room=has_room)
    bad = Work(sender=SENDER, signal=Signal.METRIC, body=b"\x0a\x7f")
    futures = [ingest.submit(one) for one in (work("a"), bad, work("b"))]  # one micro-batch
    ingest.start()

    for number in (0, 2):
        with pytest.raises(UnavailableError):
            outcome(futures[number])
    ingest._seen = memory
    assert outcome(ingest.submit(work("a"))).accepted == 1
    ingest.stop()
    assert spool.entry_count == 1
