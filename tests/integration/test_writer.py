"""Spool to database: each row once, in the table and in every rollup, whatever fails in between."""

import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from otel_metering.clock import SystemClock
from otel_metering.contract.meter import Meters, Signal
from otel_metering.errors import ConfigurationError, UnavailableError
from otel_metering.spool import Spool, open_spool
from receiver.admit import MicroBatch
from receiver.cumulative import Accumulators
from receiver.load import load_seen_ids
from receiver.metering import Metering
from receiver.restore import restore_states
from receiver.seen import SeenIds
from receiver.store import tables
from receiver.store.client import Store, StoreError
from receiver.store.migrate import migrate, pending, shipped
from receiver.usage import Sender
from receiver.writer import Writer
from tests.otlp import NOON, Data, Point, data_request, metrics_request
from tests.waiting import eventually


class FaultyStore(Store):
    """A real store that fails as a network would: before the insert, or after it was stored."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.faults: list[str] = []
        self.tokens: list[str] = []

    def insert(self, table: str, rows: pa.Table, *, token: str) -> None:
        fault = self.faults.pop(0) if self.faults else "none"
        self.tokens.append(token)
        if fault != "before":
            super().insert(table, rows, token=token)
        if fault != "none":
            raise UnavailableError(f"lost {fault} the insert")


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyStore]:
    store = FaultyStore(f"chdb://{tmp_path_factory.mktemp('engine')}")
    migrate(store, SystemClock())
    yield store
    store.close()


@pytest.fixture
def store(shared_store: FaultyStore) -> FaultyStore:
    shared_store.faults, shared_store.tokens = [], []
    return shared_store


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = open_spool(tmp_path / "spool.db")
    yield spool
    spool.close()


def put(spool: Spool, points: list[Point], seen: SeenIds | None = None) -> int:
    """Admit points into the spool; returns how many were new."""
    seen = seen or SeenIds()
    batch = MicroBatch(
        Metering(Meters()),
        seen,
        Accumulators(spool.states),
        now_ns=NOON,
        new_id=lambda: secrets.token_bytes(16),
    )
    body = metrics_request(points).SerializeToString()
    batch.add_otlp(Signal.METRIC, body, Sender(key_id="k", bound_tenant=None))
    admitted = batch.admit()
    if admitted.entries:
        spool.append(admitted.entries)
    return admitted.outcomes[0].accepted


def sums(store: Store, tenant: str) -> set[tuple[int, int]]:
    """(sum, count) of a tenant in the events and in every rollup: one pair when all agree."""
    queries = ["SELECT toInt64(sum(quantity)), count() FROM metering.events"]
    queries += [
        f"SELECT toInt64(sum(quantity_sum)), sum(quantity_count) FROM {table}"
        for table in tables.ROLLUPS
    ]
    found = set()
    for query in queries:
        rows = store.query(query + " WHERE tenant_id = {tenant:String}", {"tenant": tenant})
        found.add((rows[0][0], rows[0][1]))
    return found


def points_of(tenant: str, count: int = 100) -> list[Point]:
    month = 31 * 24 * 3600 * 10**9
    return [Point(tenant, value=n, at_ns=NOON - n % 5 * month) for n in range(1, count + 1)]


def test_a_batch_is_in_the_table_and_in_every_rollup(store: FaultyStore, spool: Spool) -> None:
    put(spool, points_of("plain"))

    assert Writer(spool, store, SystemClock()).write_batch()

    assert sums(store, "plain") == {(5050, 100)}
    assert spool.entry_count == 0
    assert not Writer(spool, store, SystemClock()).write_batch()


@pytest.mark.parametrize("faults", [["after"], ["before", "after", "after", "before"]])
def test_an_insert_of_unknown_outcome_is_repeated_with_its_token_and_counts_once(
    store: FaultyStore, spool: Spool, faults: list[str]
) -> None:
    tenant = ".".join(["fault", *faults])
    put(spool, points_of(tenant))
    store.faults = list(faults)

    for _ in faults:
        with pytest.raises(UnavailableError):
            Writer(spool, store, SystemClock()).write_batch()
        put(spool, points_of(f"{tenant}.later", 1))  # what comes later must not join the batch
    while Writer(spool, store, SystemClock()).write_batch():
        pass

    assert sums(store, tenant) == {(5050, 100)}
    assert len(set(store.tokens[: len(faults) + 1])) == 1


def test_without_a_token_the_engine_would_have_counted_it_twice(
    store: FaultyStore, spool: Spool
) -> None:
    """The control: the test above fails when the token is not kept."""
    put(spool, points_of("control"))
    store.faults = ["after"]
    with pytest.raises(UnavailableError):
        Writer(spool, store, SystemClock()).write_batch()
    spool._db.execute("UPDATE sealed SET token = ?", (secrets.token_hex(16),))

    Writer(spool, store, SystemClock()).write_batch()

    assert sums(store, "control") == {(10100, 200)}


def test_the_thread_retries_until_it_is_stored_and_then_says_so(
    store: FaultyStore, spool: Spool
) -> None:
    put(spool, points_of("retried"))
    store.faults = ["before", "after"]
    writer = Writer(spool, store, SystemClock())

    writer.start()
    eventually(lambda: spool.entry_count, lambda count: count == 0)

    assert writer.last_error is None
    assert writer.stop(drain_seconds=10)
    assert sums(store, "retried") == {(5050, 100)}


def test_senders_are_slowed_down_while_the_database_is_behind_and_only_then(
    store: FaultyStore, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiver.writer.BACKLOG_BYTES", 0)
    monkeypatch.setattr("receiver.writer.MAX_PACE_SECONDS", 60.0)
    clock, writer = SystemClock(), Writer(spool, store, SystemClock())
    began = clock.monotonic()
    writer.pace()  # nothing waits

    put(spool, points_of("paced"))
    writer.start()
    writer.pace()  # until it is stored
    assert spool.entry_count == 0

    store.faults = ["before"] * 1_000
    put(spool, points_of("paced.not"))
    writer.notify()
    eventually(lambda: writer.last_error, lambda error: error is not None)
    writer.pace()  # a database that fails paces nobody
    assert clock.monotonic() - began < 30
    store.faults = []
    assert writer.stop(drain_seconds=20)


def test_a_stop_ends_when_the_database_is_down_and_keeps_the_spool(
    store: FaultyStore, spool: Spool
) -> None:
    put(spool, points_of("down"))
    store.faults = ["before"] * 1_000
    writer = Writer(spool, store, SystemClock())

    writer.start()
    eventually(lambda: writer.last_error, lambda error: error is not None)

    assert not writer.stop(drain_seconds=0.2)
    assert spool.entry_count == 1


def test_the_memory_of_ids_is_rebuilt_from_database_and_spool(
    store: FaultyStore, spool: Spool
) -> None:
    stored, spooled, new = points_of("a.rebuilt"), points_of("b.rebuilt"), points_of("c.rebuilt")
    put(spool, stored)
    Writer(spool, store, SystemClock()).write_batch()
    put(spool, spooled)

    seen = load_seen_ids(store, spool, SystemClock(), max_bytes=2**30)

    assert put(spool, [*stored, *spooled], seen) == 0
    assert put(spool, new, seen) == 100


def test_many_months_in_one_batch_do_not_block_it(store: FaultyStore, spool: Spool) -> None:
    month = 31 * 24 * 3600 * 10**9
    put(spool, [Point("months", 1, at_ns=NOON - n * month, start_ns=1) for n in range(60)])

    assert Writer(spool, store, SystemClock()).write_batch()

    assert sums(store, "months") == {(60, 60)}


def test_migrations_are_recorded_and_applied_once(store: FaultyStore) -> None:
    recorded = store.query(
        "SELECT version, name, checksum FROM metering.migrations ORDER BY version"
    )

    assert [tuple(row) for row in recorded] == [
        (migration.version, migration.name, migration.checksum) for migration in shipped()
    ]
    assert [migration.version for migration in shipped()] == list(range(1, len(shipped()) + 1))
    assert migrate(store, SystemClock()) == []


def test_a_changed_migration_stops_the_start(store: FaultyStore) -> None:
    first, *rest = shipped()
    changed = type(first)(version=first.version, name=first.name, sql=first.sql + "-- more")

    with pytest.raises(ConfigurationError, match=r"0001_migrations\.sql changed"):
        pending(store, [changed, *rest])
    with pytest.raises(ConfigurationError, match="does not know"):
        pending(store, [first])


def test_a_wrong_statement_and_a_database_that_is_away_are_told_apart(store: FaultyStore) -> None:
    with pytest.raises(StoreError):
        store.query("SELECT nothing FROM metering.events")
    away = Store("clickhouse://127.0.0.1:1/metering")
    with pytest.raises(UnavailableError):
        away.query("SELECT 1")
    away.close()


def test_states_of_cumulative_series_are_restored_from_the_events(
    store: FaultyStore, spool: Spool, tmp_path: Path
) -> None:
    known = Data("sum", 5, at_ns=NOON - 60, start_ns=NOON - 100, temporality=2)
    unknown = Data("histogram", 7.5, count=3, at_ns=NOON - 100, start_ns=NOON - 100, temporality=2)
    unstarted = Data("summary", 2.5, count=1, at_ns=NOON - 90, start_ns=0)
    later = [
        replace(known, value=6, at_ns=NOON - 50),
        replace(unknown, value=9.5, count=4, at_ns=NOON - 40),
        replace(unstarted, value=4.5, count=2, at_ns=NOON - 30),
    ]
    put_data(spool, [known, unknown, unstarted], "restored")
    Writer(spool, store, SystemClock()).write_batch()
    lost = open_spool(tmp_path / "other.db")

    restored = restore_states(store, lost)
    put_data(lost, [known, unknown, unstarted, *later], "restored")
    Writer(lost, store, SystemClock()).write_batch()
    lost.close()

    assert restored == 3
    assert restore_states(store, spool) == 0
    found = store.query(
        "SELECT toFloat64(sum(quantity)) FROM metering.events WHERE tenant_id = 'restored'"
    )
    # 6 of the first; of the others the increase since the first point: 2 and 2.
    assert found[0][0] == 10


def put_data(spool: Spool, points: list[Data], tenant: str) -> None:
    batch = MicroBatch(
        Metering(Meters()),
        SeenIds(),
        Accumulators(spool.states),
        now_ns=NOON,
        new_id=lambda: secrets.token_bytes(16),
    )
    tagged = [replace(point, attributes={"tenant.id": tenant}) for point in points]
    body = data_request(tagged).SerializeToString()
    batch.add_otlp(Signal.METRIC, body, Sender(key_id="k", bound_tenant=None))
    admitted = batch.admit()
    spool.append(admitted.entries, admitted.states)
