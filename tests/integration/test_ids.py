"""Duplicates are found in the real engine when the memory has forgotten them, and after a restart."""

import logging
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from otel_metering.clock import ManualClock, SystemClock
from otel_metering.contract.event import UsageEvent
from otel_metering.contract.meter import Meters, Signal
from otel_metering.errors import UnavailableError
from otel_metering.spool import Spool, open_spool
from receiver import identity
from receiver.admit import MicroBatch, Outcome
from receiver.cumulative import Accumulators
from receiver.identity import Ids, Kind
from receiver.load import load_seen_ids
from receiver.lookup import StoredIds
from receiver.metering import Metering
from receiver.seen import SeenIds
from receiver.store import tables
from receiver.store.client import Store
from receiver.store.migrate import migrate
from receiver.telemetry import Telemetry
from receiver.usage import Sender
from receiver.writer import Writer
from tests.otlp import NOON, Point, Value, logs_request, metrics_request, spans_request

SENDER = Sender(key_id="k", bound_tenant=None)
MINUTE = 60 * 10**9
TINY = 1
"""Bytes: everything that is in the database is forgotten at once."""

METERS = Meters()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(f"chdb://{tmp_path_factory.mktemp('engine')}")
    migrate(store, clock_at(NOON))
    yield store
    store.close()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = open_spool(tmp_path / "spool.db")
    yield spool
    spool.close()


def clock_at(now_ns: int) -> ManualClock:
    return ManualClock(now_ns)


class Receiver:
    """The receiver's stages without its threads; `restart` is a start with the same disk."""

    def __init__(self, store: Store, spool: Spool, max_bytes: int = TINY) -> None:
        self.store, self.spool, self.max_bytes = store, spool, max_bytes
        self.metering = Metering(METERS)
        self.now_ns = NOON
        self.restart()

    def restart(self, max_bytes: int | None = None) -> None:
        self.max_bytes = self.max_bytes if max_bytes is None else max_bytes
        clock = clock_at(self.now_ns)
        self.seen = load_seen_ids(self.store, self.spool, clock, max_bytes=self.max_bytes)
        self.writer = Writer(self.spool, self.store, clock, self.seen.written)
        self.entry = self.spool.entry_count

    def points(self, points: Sequence[Point]) -> Outcome:
        return self.send(Signal.METRIC, metrics_request(points).SerializeToString())

    def send(self, signal: Signal, body: bytes) -> Outcome:
        batch = self._batch()
        batch.add_otlp(signal, body, SENDER)
        return self._commit(batch)

    def events(self, events: Sequence[UsageEvent]) -> Outcome:
        batch = self._batch()
        batch.add_events(events, SENDER)
        return self._commit(batch)

    def store_all(self) -> None:
        while self.writer.write_batch():
            pass
        self.seen._make_room()

    def _batch(self) -> MicroBatch:
        return MicroBatch(
            self.metering,
            self.seen,
            Accumulators(self.spool.states),
            now_ns=self.now_ns,
            new_id=lambda: secrets.token_bytes(16),
        )

    def _commit(self, batch: MicroBatch) -> Outcome:
        admitted = batch.admit()
        self.spool.append(admitted.entries, admitted.states)
        self.entry += len(admitted.entries)
        self.seen.add(admitted.ids, self.entry, self.now_ns)
        return admitted.outcomes[0]


def everything(tenant: str, receiver: Receiver) -> list[tuple[int, int]]:
    """(accepted, duplicates) of usage of each kind; `unreadable` is what goes to quarantine."""
    late = [Point(tenant, n, at_ns=NOON - n * 37 * 24 * 60 * MINUTE - n) for n in range(1, 40)]
    present = [Point(tenant, n, at_ns=NOON - n) for n in range(1, 1_200)]
    ahead = [Point(tenant, n, at_ns=NOON + n * 10 * MINUTE) for n in range(1, 40)]
    very_old = [Point(tenant, 1, at_ns=946_684_800 * 10**9 + 1)]
    logs: list[Mapping[str, Value]] = [
        {"tenant.id": tenant, "metering.quantity": n} for n in range(1, 20)
    ]
    explicit: list[Mapping[str, Value]] = [
        {**row, "metering.event.id": f"id-{row['metering.quantity']}"} for row in logs
    ]
    spans: list[Mapping[str, Value]] = [
        {"tenant.id": tenant, "metering.quantity": 1} for _ in range(20)
    ]
    of_json = [
        UsageEvent(tenant_id=tenant, meter="orders", quantity=Decimal(1), event_id=f"e-{n}")
        for n in range(700)
    ]
    outcomes = [receiver.points(points) for points in (late, present, ahead, very_old)]
    outcomes += [
        receiver.send(Signal.LOG, logs_request(rows).SerializeToString())
        for rows in (logs, explicit)
    ]
    body = spans_request(spans, name="orders").SerializeToString()
    outcomes.append(receiver.send(Signal.SPAN, body))
    outcomes.append(receiver.events(of_json))
    return [(one.accepted, one.duplicates) for one in outcomes]


@pytest.mark.parametrize("max_bytes", [TINY, 30_000, 2**30])
def test_what_was_forgotten_counts_once(store: Store, spool: Spool, max_bytes: int) -> None:
    receiver, tenant = Receiver(store, spool, max_bytes), f"forgotten.{max_bytes}"

    first = everything(tenant, receiver)
    before = everything(tenant, receiver)
    receiver.store_all()
    forgotten = everything(tenant, receiver)
    receiver.now_ns += 24 * 60 * MINUTE
    later = everything(tenant, receiver)
    again = []
    for budget in (max_bytes, 2**30, TINY):
        receiver.restart(budget)
        again.append(everything(tenant, receiver))

    duplicates = [(0, accepted) for accepted, _ in first]
    assert sum(accepted for accepted, _ in first) > 2_000
    assert all(duplicate == 0 for _, duplicate in first)
    assert before == forgotten == later == duplicates
    assert again == [duplicates] * 3
    (rows,) = store.query(
        "SELECT count(), uniqExact(event_id) FROM metering.events WHERE tenant_id = {t:String}",
        {"t": tenant},
    )
    assert rows[0] == rows[1] == sum(accepted for accepted, _ in first)


def test_what_was_set_aside_and_forgotten_is_set_aside_once(store: Store, spool: Spool) -> None:
    receiver = Receiver(store, spool)
    both = [Point("no such tenant", 1), Point("with.bad.neighbour", 1)]

    for _ in range(3):
        receiver.points(both)
        receiver.store_all()
        receiver.restart()

    # In one batch, both tables feed the ids that are looked up without a time.
    assert store.query(
        "SELECT count() FROM metering.quarantine WHERE tenant_id = 'no such tenant'"
    ) == [(1,)]
    assert store.query(
        "SELECT count() FROM metering.events WHERE tenant_id = 'with.bad.neighbour'"
    ) == [(1,)]


@pytest.mark.parametrize("max_bytes", [TINY, 2**30])
def test_another_event_under_a_used_id_is_a_conflict(
    store: Store, spool: Spool, max_bytes: int
) -> None:
    receiver, tenant = Receiver(store, spool, max_bytes), f"conflict.{max_bytes}"
    event = UsageEvent(
        tenant_id=tenant, meter="orders", quantity=Decimal(1), event_id="x", attributes={"n": "1"}
    )
    receiver.events([event])
    receiver.store_all()
    receiver.restart(max_bytes)
    ((stream_id,),) = store.query(
        "SELECT stream_id FROM metering.events WHERE tenant_id = {t:String}", {"t": tenant}
    )
    content = int.from_bytes(stream_id.bytes[:8], "little")

    first, second = identity.to_words(2 * identity.explicit_id(tenant, "orders", "x"))
    asked = Ids(
        first=first,
        second=second,
        time_ns=np.zeros(2, np.int64),
        content=np.array([content, content ^ 1], np.uint64),
    )
    found = receiver.seen.find(asked, lambda places: [(tenant, "orders")] * len(places))

    assert found.is_new.tolist() == [False, False]
    assert found.is_conflict.tolist() == [False, True]


def test_a_batch_with_explicit_ids_and_quarantine_sent_again_has_each_id_once(
    store: Store, spool: Spool
) -> None:
    """Two tables feed the one of explicit ids under the same token: neither may push the other out."""
    receiver = Receiver(store, spool)
    receiver.points([Point("no such tenant", 7)])
    receiver.events(
        [
            UsageEvent(tenant_id="both", meter="orders", quantity=Decimal(1), event_id=f"b{n}")
            for n in (1, 2)
        ]
    )
    count = "SELECT count() FROM metering.explicit_ids"
    ((before,),) = store.query(count)
    batch = spool.seal(secrets.token_hex(16), max_entries=10, max_bytes=10**6)
    assert batch is not None

    for _ in range(2):
        receiver.writer._insert(batch, Telemetry(SystemClock()).attempt(len(batch.entries)))

    ((after,),) = store.query(count)
    assert after - before == 3


def test_a_look_up_reads_few_granules(store: Store, spool: Spool) -> None:
    """An id with a time by the sort key, one without in the order of ids."""
    asked: list[str] = []

    class Explaining(Store):
        def query(
            self, sql: str, parameters: object = None, limits: object = None
        ) -> Sequence[Sequence[object]]:
            plan = store.query(f"EXPLAIN indexes = 1 {sql}")
            asked.append("\n".join(str(row[0]) for row in plan))
            return store.query(sql)

    at = "fromUnixTimestamp64Nano(toInt64(1780000000000000000 + number * 1000000))"
    store.execute(
        f"INSERT INTO {tables.EVENTS} (event_id, tenant_id, meter, timestamp) SELECT "
        f"toUUID('00000000-0000-0000-0000-000000000000'), 'granules', 'm', {at} FROM numbers(200000)"
    )
    store.execute(
        f"INSERT INTO {tables.EXPLICIT_IDS} (event_id) SELECT generateUUIDv4() FROM numbers(10000)"
    )
    ids = Ids(
        first=np.array([5, 6], np.uint64),
        second=np.array([Kind.POINT, Kind.EXPLICIT], np.uint64),
        time_ns=np.array([1_780_000_100 * 10**9] * 2, np.int64),
        content=np.zeros(2, np.uint64),
    )

    stored, _ = StoredIds(Explaining("chdb://unused"))(ids, [("granules", "m")] * 2)

    assert stored.tolist() == [False, False]
    for plan in asked:
        granules = re.findall(r"PrimaryKey.*?Granules: (\d+)/(\d+)", plan, re.DOTALL)
        read, there = (int(number) for number in granules[0])
        assert read <= 2
        assert there > 20


def test_a_database_that_is_away_makes_nothing_new(store: Store) -> None:
    away = Store("clickhouse://127.0.0.1:1/metering")
    seen = SeenIds(TINY, StoredIds(away))
    ids = Ids(
        first=np.array([5], np.uint64),
        second=np.array([0], np.uint64),
        time_ns=np.array([NOON], np.int64),
        content=np.zeros(1, np.uint64),
    )
    seen.forget_until(NOON)

    with pytest.raises(UnavailableError):
        seen.find(ids, lambda _: [("t", "m")])
    away.close()


def test_the_load_says_how_far_it_is(
    store: Store, spool: Spool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiver.load.PROGRESS_SECONDS", 0.0)
    receiver = Receiver(store, spool)
    receiver.points([Point("progress", n) for n in range(50)])
    receiver.store_all()
    caplog.clear()  # its own load was logged too, where another test left the level at INFO

    with caplog.at_level(logging.INFO):
        seen = load_seen_ids(store, spool, clock_at(NOON), max_bytes=2**30)

    loading = [record for record in caplog.records if vars(record)["event"] == "ids_loading"]
    (loaded,) = [record for record in caplog.records if vars(record)["event"] == "ids_loaded"]
    assert loading
    assert vars(loading[-1])["rows"] <= vars(loading[-1])["total"]
    assert vars(loaded)["ids"] == len(seen) >= 50
    assert vars(loaded)["bytes"] == seen.byte_count
