"""`metering.meter_definitions` has what is in force, is written when that changes, and holds up nothing."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from otel_metering.clock import ManualClock
from otel_metering.contract.meter import Aggregation, Meters
from otel_metering.errors import UnavailableError
from receiver.meters_yaml import read_text
from receiver.store import tables
from receiver.store.client import Store
from receiver.store.meter_definitions import MeterDefinitions
from receiver.store.meters import ApiMeter, ApiMeters
from receiver.store.migrate import migrate
from tests.waiting import eventually

FILE = """
meters:
- slug: llm.tokens
  description: Tokens of models
  source: {signal: metric, name: tokens}
  unit: "{token}"
  group_by: [model, type]
- slug: active.users
  aggregation: unique_count
  source: {signal: span, kind: server}
  value: enduser.id
"""


class CountingStore(Store):
    """A real store that counts its inserts, and fails as often as it is told."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.faults = 0
        self.inserts = 0

    def insert(self, table: str, rows: pa.Table, *, token: str) -> None:
        if self.faults:
            self.faults -= 1
            raise UnavailableError("the network is away")
        self.inserts += 1
        super().insert(table, rows, token=token)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CountingStore]:
    store = CountingStore(f"chdb://{tmp_path_factory.mktemp('engine')}")
    migrate(store, ManualClock())
    yield store
    store.close()


@pytest.fixture
def store(shared: CountingStore) -> CountingStore:
    shared.execute(f"TRUNCATE TABLE {tables.METER_DEFINITIONS}")
    shared.execute(f"TRUNCATE TABLE {tables.METERS}")
    shared.faults = shared.inserts = 0
    return shared


class World:
    """Definitions that a test changes, and who writes them."""

    def __init__(self, store: Store, text: str = FILE) -> None:
        self.clock = ManualClock()
        self.file = read_text(text.encode(), "meters.yaml")
        self.made = ApiMeters(store, self.clock)
        self.made.refresh()
        self.writer = MeterDefinitions(store, self.clock, file=lambda: self.file, made=self.made)

    def make(self, slug: str, **how: Any) -> None:
        now = self.made.now()
        how = {"aggregation": Aggregation.SUM, "event_type": "t", **how}
        self.made.create(ApiMeter(slug=slug, created_at=now, updated_at=now, **how))


def rows(store: Store) -> dict[str, tuple[Any, ...]]:
    """Meter -> (origin, description, aggregation, unit, dimensions), as a dashboard reads them."""
    found = store.query(
        "SELECT meter, toString(origin), description, aggregation, unit, group_by "
        "FROM metering.meter_definitions FINAL WHERE NOT is_deleted"
    )
    return {row[0]: (*row[1:5], list(row[5])) for row in found}


TOKENS = ("file", "Tokens of models", "sum", "{token}", ["model", "type"])
USERS: tuple[Any, ...] = ("file", "", "unique_count", "", [])


def test_the_table_has_the_definitions_of_the_file_and_those_made_by_api(
    store: CountingStore,
) -> None:
    world = World(store)
    world.make(
        "orders",
        aggregation=Aggregation.COUNT,
        description="Orders",
        group_by={"b": "$.b", "a": "$.a"},
    )

    assert world.writer.write()

    assert rows(store) == {
        "llm.tokens": TOKENS,
        "active.users": USERS,
        "orders": ("api", "Orders", "count", "", ["a", "b"]),
    }


def test_a_meter_of_the_file_beats_one_made_by_api(store: CountingStore) -> None:
    world = World(store)
    world.make("llm.tokens", aggregation=Aggregation.MAX)
    world.writer.write()
    assert rows(store)["llm.tokens"] == TOKENS

    world.file = Meters(world.file.definitions[1:])
    world.writer.write()

    assert rows(store)["llm.tokens"] == ("api", "", "max", "", [])


def test_nothing_is_written_when_nothing_changed_also_after_a_restart(store: CountingStore) -> None:
    world = World(store)
    world.writer.write()
    assert store.inserts == 1

    assert not world.writer.write()
    world.made.refresh()
    assert not world.writer.write()
    world.file = read_text(f"{FILE}# the same\n".encode(), "meters.yaml")
    assert not world.writer.write()
    assert not World(store).writer.write()

    assert store.inserts == 1


def test_a_meter_that_vanished_is_deleted_and_one_that_comes_back_is_there_again(
    store: CountingStore,
) -> None:
    world = World(store)
    world.make("orders")
    world.writer.write()

    world.made.delete("orders")
    world.file = Meters(world.file.definitions[:1])
    world.writer.write()
    assert rows(store) == {"llm.tokens": TOKENS}
    deleted = store.query("SELECT meter FROM metering.meter_definitions FINAL WHERE is_deleted")
    assert {row[0] for row in deleted} == {"orders", "active.users"}

    world.make("orders")
    world.writer.write()
    assert rows(store)["orders"][0] == "api"


def test_a_change_counts_also_when_the_clock_was_set_back(store: CountingStore) -> None:
    ahead = World(store)
    ahead.clock.advance(3_600)
    ahead.writer.write()

    behind = World(store, FILE.replace("{token}", "By"))
    behind.writer.write()

    assert rows(store)["llm.tokens"][3] == "By"


def test_a_failing_database_is_told_once_and_tried_again(
    store: CountingStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiver.store.meter_definitions.POLL_SECONDS", 0.01)
    store.faults = 5
    world = World(store)

    world.writer.start()
    eventually(lambda: rows(store), lambda found: found["llm.tokens"] == TOKENS if found else False)
    world.writer.stop()

    assert store.faults == 0
    failures = [
        one for one in caplog.records if getattr(one, "event", "") == "meter_definitions_failed"
    ]
    assert len(failures) == 1


def test_a_change_just_before_the_stop_is_written(store: CountingStore) -> None:
    world = World(store)
    world.writer.start()
    eventually(lambda: store.inserts, lambda count: count == 1)
    world.make("orders")

    world.writer.stop()
    world.writer.stop()

    assert "orders" in rows(store)
