"""`metering.quota_usage` has what an oracle says: zones, anchors, filters, defaults, corrections, ends of periods."""

import random
from calendar import monthrange
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest

from otel_metering.clock import ManualClock
from otel_metering.contract.meter import Aggregation, MeterDefinition, Meters
from otel_metering.contract.quota import Enforcement, Period, QuotaDefinition, as_filter
from otel_metering.errors import UnavailableError
from query_api.quota_writer import REFRESH_SECONDS, QuotaWriter
from receiver.store import tables
from receiver.store.client import ReadLimits, Store
from receiver.store.migrate import migrate
from tests.integration.api_harness import to_table
from tests.integration.quota_process import event, process
from tests.integration.usage_oracle import SECOND, clock_window, day_start
from tests.waiting import eventually

TENANTS = ["acme", "bolt", "coda", "dune"]
ZONES = ["UTC", "America/New_York", "Asia/Kolkata", "Europe/Berlin", "Pacific/Apia"]
SUM = MeterDefinition(slug="calls")
COUNT = MeterDefinition(slug="requests", aggregation=Aggregation.COUNT)
LEVEL = MeterDefinition(slug="level", aggregation=Aggregation.MAX)

Event = dict[str, Any]
Row = tuple[str, str, int]


class CountingStore(Store):
    """A real store that counts, and fails when it is told."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.inserts: list[tuple[str, int]] = []
        self.reads = 0
        self.is_away = False

    def insert(self, table: str, rows: pa.Table, *, token: str) -> None:
        self._check()
        self.inserts.append((table, rows.num_rows))
        super().insert(table, rows, token=token)

    def query(self, sql: str, parameters: Any = None, limits: ReadLimits | None = None) -> Any:
        self._check()
        self.reads += "AS parts" in sql
        return super().query(sql, parameters, limits)

    def _check(self) -> None:
        if self.is_away:
            raise UnavailableError("the network is away")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CountingStore]:
    store = CountingStore(f"chdb://{tmp_path_factory.mktemp('engine')}")
    migrate(store, ManualClock())
    yield store
    store.close()


@pytest.fixture
def store(shared: CountingStore) -> CountingStore:
    written = (tables.EVENTS, *tables.ROLLUPS, tables.EVENT_CORRECTIONS, tables.QUOTA_USAGE)
    for table in written:
        shared.execute(f"TRUNCATE TABLE {table}")
    shared.inserts.clear()
    return shared


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND


@dataclass
class World:
    """Usage and quotas, and who writes the table."""

    store: CountingStore
    clock: ManualClock
    quotas: list[QuotaDefinition] = field(default_factory=list)
    meters: Meters = field(default_factory=lambda: Meters((SUM, COUNT, LEVEL)))
    events: list[Event] = field(default_factory=list)
    oldest_waiting: int = 2**62

    def __post_init__(self) -> None:
        self.writer = self.process()

    def process(self) -> QuotaWriter:
        """Another one, as after a restart."""
        return QuotaWriter(
            self.store,
            self.clock,
            quotas=lambda: list(self.quotas),
            meters=lambda: self.meters,
            oldest_waiting=lambda: self.oldest_waiting,
            interval_seconds=60,
        )

    def use(self, rows: Sequence[Event]) -> None:
        blank = {"meter": "calls", "quantity": Decimal(1), "observations": 1, "dimensions": {}}
        made = [{**blank, "is_corrected": False, "event_id": uuid(), **row} for row in rows]
        self.events += made
        self.store.insert(tables.EVENTS, to_table(made), token=str(uuid()))

    def correct(self, rows: Sequence[Event]) -> None:
        if not rows:
            return
        kept = ["event_id", "tenant_id", "meter", "timestamp", "quantity", "observations"]
        table = to_table(rows).select([*kept, "dimensions", "batch_id"])
        for name, value in {"action": "void", "reason": "wrong", "key_id": "key"}.items():
            table = table.append_column(name, pa.array([value] * len(rows), pa.string()))
        self.store.insert(tables.EVENT_CORRECTIONS, table, token=str(uuid()))
        for row in rows:
            row["is_corrected"] = True

    def advance_to(self, ns: int) -> None:
        self.clock.advance((ns - self.clock.now_ns()) / SECOND)

    def table(self, *, which: str = "NOT is_deleted") -> dict[Row, tuple[Any, ...]]:
        """(tenant, quota, start) -> (end, used, limit, is_default), as a dashboard reads it."""
        rows = self.store.query(
            "SELECT tenant_id, quota_id, toUnixTimestamp64Nano(toDateTime64(period_start, 9)), "
            "toUnixTimestamp64Nano(toDateTime64(period_end, 9)), quantity_used, quantity_limit, "
            f"is_default FROM metering.quota_usage FINAL WHERE {which}"
        )
        return {(row[0], row[1], row[2]): tuple(row[3:]) for row in rows}

    def present(self) -> dict[Row, tuple[Any, ...]]:
        now = self.clock.now_ns()
        return {k: v for k, v in self.table().items() if v[0] is None or v[0] > now}


def uuid() -> UUID:
    return UUID(int=random.getrandbits(128))


def world(store: CountingStore, now: str = "2026-03-15T12:00:30") -> World:
    return World(store, ManualClock(at(now)))


def quota(limit: str = "10", **how: Any) -> QuotaDefinition:
    fields = {"meter": "calls", "period": Period.DAY, "tenant_id": "acme", **how}
    return QuotaDefinition(limit=Decimal(limit), **fields)


# The oracle: nothing of the product is used here.


def oracle_span(one: QuotaDefinition, ns: int) -> tuple[int, int | None]:
    zone, second = ZoneInfo(one.timezone), ns // SECOND
    if one.period == "lifetime":
        return 0, None
    if one.period == "hour":
        start, end = clock_window(second, 3_600, zone)
        return start * SECOND, end * SECOND
    today = datetime.fromtimestamp(second, zone).date()
    days = [today + timedelta(days=i) for i in range(-70, 71)]
    starts = [day_start(day, zone) * SECOND for day in days if is_first(day, one)]
    return max(i for i in starts if i <= ns), min(i for i in starts if i > ns)


def is_first(day: date, one: QuotaDefinition) -> bool:
    if one.period == "month":
        return day.day == min(one.anchor_day or 1, monthrange(day.year, day.month)[1])
    return one.period == "day" or day.weekday() == 0


def oracle_used(
    world: World, one: QuotaDefinition, start: int, end: int | None
) -> dict[str, Decimal]:
    """Tenant -> what it used; of who used nothing there is nothing."""
    found: dict[str, Decimal] = {}
    for used in world.events:
        is_meant = used["meter"] == one.meter and all(
            used["dimensions"].get(name, "") in values for name, values in one.filter
        )
        if is_meant and start <= used["timestamp"] and (end is None or used["timestamp"] < end):
            amount = used["quantity"] if one.meter == "calls" else Decimal(used["observations"])
            amount = Decimal(0) if used["is_corrected"] else amount
            found[used["tenant_id"]] = found.get(used["tenant_id"], Decimal(0)) + amount
    return found


def oracle(world: World, ns: int) -> dict[Row, tuple[Any, ...]]:
    """What the table has to say of the periods that `ns` lies in."""
    rows = {}
    for one in world.quotas:
        if one.meter == "level":
            continue
        start, end = oracle_span(one, ns)
        used = oracle_used(world, one, start, end)
        tenants = {one.tenant_id} if one.tenant_id else set(used)
        if one.tenant_id is None:
            same = (one.meter, one.filter, one.period)
            tenants -= {i.tenant_id for i in world.quotas if (i.meter, i.filter, i.period) == same}
        for tenant in tenants:
            assert tenant is not None
            key = tenant, one.quota_id, start
            rows[key] = (end, used.get(tenant, Decimal(0)), one.limit, one.tenant_id is None)
    return rows


def some_quotas(dice: random.Random) -> list[QuotaDefinition]:
    found = {}
    for _ in range(12):
        period = dice.choice(list(Period))
        made = quota(
            str(dice.randint(0, 50)),
            meter=dice.choice(["calls", "calls", "requests", "level"]),
            period=period,
            tenant_id=dice.choice([None, *TENANTS]),
            timezone=dice.choice(ZONES),
            anchor_day=dice.choice([None, 1, 15, 31]) if period is Period.MONTH else None,
            filter=as_filter(dice.choice([{}, {"region": ["eu"]}, {"region": ["us", ""]}])),
            enforcement=dice.choice(list(Enforcement)),
        )
        found[made.quota_id] = made
    return list(found.values())


def some_events(dice: random.Random, around_ns: int) -> list[Event]:
    return [
        {
            "tenant_id": dice.choice(TENANTS),
            "meter": dice.choice(["calls", "calls", "requests", "level"]),
            "quantity": Decimal(dice.randint(-10, 10**10)).scaleb(-9),
            "observations": dice.randint(0, 5),
            "timestamp": around_ns - int(dice.expovariate(1 / 86_400) * SECOND),
            "dimensions": dice.choice([{}, {"region": "eu"}, {"region": "us"}]),
        }
        for _ in range(40)
    ]


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(n, marks=pytest.mark.long) for n in range(2, 40))]
)
def test_every_row_is_what_an_oracle_says(store: CountingStore, seed: int) -> None:
    dice = random.Random(seed)
    # Around a change of the clock in New York and Berlin, and the end of a month.
    one = world(
        store, dice.choice(["2026-03-08T05:30:00", "2026-10-24T23:10:00", "2026-02-28T11:00:00"])
    )
    one.quotas = some_quotas(dice)
    for _ in range(3):
        one.use(some_events(dice, one.clock.now_ns()))
        one.correct(
            [event for event in one.events if not event["is_corrected"] and dice.random() < 0.1]
        )
        if dice.random() < 0.3:
            one.writer = one.process()

        one.writer.tick()

        assert one.present() == oracle(one, one.clock.now_ns())
        one.clock.advance(dice.choice([60, 3_600, 86_400, 86_400 * 3]))
        one.quotas = [*some_quotas(dice)[:3], *dice.sample(one.quotas, len(one.quotas) - 2)]
        one.quotas = list({made.quota_id: made for made in one.quotas}.values())


def test_the_last_row_of_a_period_is_its_final_usage(store: CountingStore) -> None:
    one = world(store, "2026-03-14T23:59:10")
    one.quotas = [quota(), quota(tenant_id=None, period=Period.HOUR)]
    one.use([{"tenant_id": "acme", "timestamp": at("2026-03-14T23:30:00")}])
    one.writer.tick()
    one.use(  # after the last tick of the day
        [
            {"tenant_id": "acme", "timestamp": at("2026-03-14T23:59:59")},
            {"tenant_id": "bolt", "timestamp": at("2026-03-14T23:59:59")},
        ]
    )
    one.clock.advance(60)
    one.writer.tick()
    one.use([{"tenant_id": "acme", "timestamp": at("2026-03-14T23:59:58")}])  # was in the spool
    one.clock.advance(60)
    one.writer.tick()

    wanted = oracle(one, at("2026-03-14T23:59:10")) | oracle(one, one.clock.now_ns())
    assert one.table() == wanted
    assert wanted["acme", one.quotas[0].quota_id, at("2026-03-14T00:00:00")][1] == 3
    reads = one.store.reads
    one.clock.advance(60)
    one.writer.tick()
    assert one.store.reads - reads == 2, "what is final is not read again"


def test_a_period_is_not_final_while_its_usage_waits_for_the_database(store: CountingStore) -> None:
    one = world(store, "2026-03-14T23:59:10")
    one.quotas = [quota()]
    one.writer.tick()
    one.oldest_waiting = at("2026-03-14T23:59:00")
    for _ in range(5):
        one.clock.advance(60)
        one.writer.tick()

    one.use([{"tenant_id": "acme", "timestamp": at("2026-03-14T23:59:00")}])
    one.oldest_waiting = one.clock.now_ns()
    one.clock.advance(60)
    one.writer.tick()

    assert one.table()["acme", one.quotas[0].quota_id, at("2026-03-14T00:00:00")][1] == 1


def test_a_period_that_ended_while_nobody_wrote_is_made_final_at_the_start(
    store: CountingStore,
) -> None:
    one = world(store, "2026-03-14T10:20:00")
    one.quotas = [quota(tenant_id=None, period=Period.HOUR)]
    one.use([{"tenant_id": "acme", "timestamp": at("2026-03-14T10:10:00")}])
    one.writer.tick()
    one.use([{"tenant_id": name, "timestamp": at("2026-03-14T10:50:00")} for name in TENANTS])

    one.clock.advance(6 * 3_600)
    one.writer = one.process()
    one.writer.tick()

    assert one.table() == oracle(one, at("2026-03-14T10:20:00"))


def test_a_deleted_quota_has_no_row_any_more_and_what_was_over_stays(store: CountingStore) -> None:
    one = world(store)
    one.quotas = [quota(), quota(period=Period.WEEK)]
    one.use([{"tenant_id": "acme", "timestamp": one.clock.now_ns()}])
    one.writer.tick()
    one.clock.advance(86_400)
    one.writer.tick()
    one.clock.advance(60)
    one.writer.tick()
    day = one.quotas[0].quota_id
    assert len([key for key in one.table() if key[1] == day]) == 2

    one.quotas = one.quotas[1:]
    one.writer = one.process()
    one.writer.tick()

    assert [key[2] for key in one.table() if key[1] == day] == [at("2026-03-15T00:00:00")]
    assert list(one.table(which="is_deleted")) == [("acme", day, at("2026-03-16T00:00:00"))]


def test_a_default_gives_way_to_a_tenants_own_quota_and_comes_back(store: CountingStore) -> None:
    one = world(store)
    default = quota("5", tenant_id=None)
    one.quotas = [default]
    one.use([{"tenant_id": name, "timestamp": one.clock.now_ns()} for name in TENANTS])
    one.writer.tick()
    assert {key[0] for key in one.table()} == set(TENANTS)

    # Its place is meter, filter and period, whatever the zone.
    own = quota("7", timezone="Asia/Kolkata")
    one.quotas = [default, own]
    one.clock.advance(60)
    one.writer.tick()
    assert one.table() == oracle(one, one.clock.now_ns())
    assert [key[1] for key in one.table() if key[0] == "acme"] == [own.quota_id]

    one.quotas = [default]
    one.clock.advance(60)
    one.writer.tick()
    assert one.table() == oracle(one, one.clock.now_ns())


def test_a_quota_that_begins_another_day_has_one_present_period(store: CountingStore) -> None:
    one = world(store)
    one.quotas = [quota(period=Period.MONTH, anchor_day=1)]
    one.writer.tick()

    one.quotas = [replace(one.quotas[0], anchor_day=10)]
    one.clock.advance(60)
    one.writer.tick()

    assert one.table() == oracle(one, one.clock.now_ns())


def test_a_quota_of_a_meter_that_no_longer_adds_up_has_no_row(store: CountingStore) -> None:
    one = world(store)
    one.quotas = [quota()]
    one.writer.tick()
    assert len(one.table()) == 1

    one.meters = Meters((replace(SUM, aggregation=Aggregation.MAX),))
    one.writer.tick()

    assert one.table() == {}


def test_many_tenants_are_one_read_and_one_insert(store: CountingStore) -> None:
    one = world(store)
    count, now = 5_000, one.clock.now_ns()
    one.use([{"tenant_id": f"t{i}", "timestamp": now} for i in range(count)])
    one.quotas = [quota(tenant_id=None), *(quota(tenant_id=f"t{i}") for i in range(50))]
    store.inserts.clear()
    store.reads = 0

    assert one.writer.tick() == count

    assert store.inserts == [(tables.QUOTA_USAGE, count)]
    assert store.reads == 1


def test_rows_whose_numbers_did_not_change_are_written_again_after_minutes(
    store: CountingStore,
) -> None:
    one = world(store)
    one.quotas = [quota(tenant_id=None)]
    one.use([{"tenant_id": name, "timestamp": one.clock.now_ns()} for name in ("acme", "bolt")])
    assert one.writer.tick() == 2
    one.use([{"tenant_id": "bolt", "timestamp": one.clock.now_ns()}])
    one.clock.advance(60)

    assert one.writer.tick() == 1
    one.clock.advance(60)
    assert one.writer.tick() == 0
    one.clock.advance(REFRESH_SECONDS - 120)
    assert one.writer.tick() == 1
    one.clock.advance(60)
    assert one.writer.tick() == 1


def test_the_latest_row_counts_also_when_the_clock_was_set_back(store: CountingStore) -> None:
    one = world(store)
    one.quotas = [quota(period=Period.MONTH)]
    one.use([{"tenant_id": "acme", "timestamp": one.clock.now_ns() - 86_400 * SECOND}])
    one.writer.tick()

    behind = World(
        store, ManualClock(one.clock.now_ns() - 3_600 * SECOND), one.quotas, one.meters, one.events
    )
    behind.use([{"tenant_id": "acme", "timestamp": one.clock.now_ns() - 86_400 * SECOND}])
    behind.writer.tick()

    assert next(iter(one.table().values()))[1] == 2


def test_a_failing_database_is_told_once_and_the_next_tick_does_it(
    store: CountingStore, caplog: pytest.LogCaptureFixture
) -> None:
    one = world(store)
    one.quotas = [quota()]
    one.writer._interval_seconds = 0.01
    store.is_away = True
    asked = store.reads
    one.writer.start()
    eventually(lambda: caplog.messages, lambda found: len(found) > 0)
    for _ in range(20):
        one.writer._stopping.wait(0.01)

    store.is_away = False
    eventually(one.table, lambda found: len(found) == 1)
    one.writer.stop()
    one.writer.stop()

    assert asked < store.reads
    failures = [
        record for record in caplog.records if getattr(record, "event", "") == "quota_usage_failed"
    ]
    assert len(failures) == 1


def test_the_process_that_has_the_gate_writes_what_was_acknowledged(
    shared: CountingStore, tmp_path: Path
) -> None:
    shared.close()  # one path at a time in one process
    with process(tmp_path, usage_seconds=0.1) as one:
        one.put("10", tenant_id=None)
        one.send([event("1.5"), event("2", tenant_id="other")])

        rows = eventually(
            lambda: one.store.query(
                "SELECT tenant_id, quantity_used, quantity_limit FROM metering.quota_usage FINAL "
                "WHERE NOT is_deleted ORDER BY tenant_id"
            ),
            lambda found: len(found) == 2,
        )

        assert [tuple(row) for row in rows] == [
            ("other", Decimal(2), Decimal(10)),
            ("t", Decimal("1.5"), Decimal(10)),
        ]
