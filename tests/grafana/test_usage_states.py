"""Quotas, their changes, and events that were corrected, on the dashboards about usage."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from grafana.emulator import run
from grafana.emulator.time_range import Context, TimeRange
from otel_metering.clock import ManualClock
from receiver.store import tables
from receiver.store.client import Store
from receiver.store.migrate import migrate
from tests.grafana.conftest import NOW
from tests.grafana.harness import ALL
from tests.grafana.test_usage_numbers import DASHBOARDS, rows

DAY = timedelta(days=1)
BEGIN, END = datetime(2026, 9, 1, tzinfo=UTC), datetime(2026, 10, 1, tzinfo=UTC)
EVENTS = ("void", "replaced", "counts")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(f"chdb://{tmp_path_factory.mktemp('states') / Path('data')}")
    try:
        migrate(store, ManualClock())
        _quotas(store)
        _events(store)
        yield store
    finally:
        store.close()


def _quotas(store: Store) -> None:
    # tenant, meter, used, limit, begin, end, deleted
    quotas: list[tuple[str, str, str, str, datetime, datetime | None, bool]] = [
        ("acme", "tokens", "900", "1000", BEGIN, END, False),
        ("acme", "calls", "250", "200", BEGIN, END, False),
        ("acme", "seats", "1", "10", datetime(2020, 1, 1, tzinfo=UTC), None, False),
        ("acme", "nothing", "3", "0", BEGIN, END, False),
        ("acme", "gone", "9", "10", BEGIN, END, True),
        ("acme", "last", "10", "10", BEGIN - 31 * DAY, BEGIN, False),
        ("globex", "tokens", "10", "10", BEGIN, END, False),
    ]
    size = len(quotas)
    money = pa.decimal128(38, 9)
    times = pa.timestamp("ms", "UTC")
    store.insert(
        tables.QUOTA_USAGE,
        pa.table(
            {
                "tenant_id": [one[0] for one in quotas],
                "meter": [one[1] for one in quotas],
                "quota_id": [f"q{number}" for number in range(size)],
                "is_default": [False] * size,
                "filter": ["{}"] * size,
                "period": ["lifetime" if one[5] is None else "month" for one in quotas],
                "period_start": pa.array([one[4] for one in quotas], times),
                "period_end": pa.array([one[5] for one in quotas], times),
                "enforcement": ["hard"] * size,
                "quantity_limit": pa.array([Decimal(one[3]) for one in quotas], money),
                "quantity_grace": pa.array([Decimal(0)] * size, money),
                "quantity_used": pa.array([Decimal(one[2]) for one in quotas], money),
                "updated_at": pa.array([NOW] * size, times),
                "is_deleted": [one[6] for one in quotas],
            }
        ),
        token="quotas",
    )
    store.execute(
        "INSERT INTO metering.audit_log (at, audit_id, key_id, action, target, tenant_id) VALUES "
        "('2026-09-17 09:00:00', generateUUIDv4(), 'key1', 'quota.put', 'q0', 'acme'), "
        "('2026-09-17 09:10:00', generateUUIDv4(), 'key1', 'quota.delete', 'q9', ''), "
        "('2026-09-17 09:20:00', generateUUIDv4(), 'key1', 'quota.put', 'q6', 'globex'), "
        "('2026-09-17 09:30:00', generateUUIDv4(), 'key1', 'key.create', 'key2', 'acme')"
    )


def _events(store: Store) -> None:
    at = NOW - timedelta(minutes=5)
    for number, name in enumerate(EVENTS):
        store.execute(
            "INSERT INTO metering.events (event_id, tenant_id, meter, quantity, timestamp, attributes) "
            "SELECT toUUID({id:String}), 'acme', 'tokens', 5, {at:DateTime64(3, 'UTC')}, map('is', {name:String})",
            {"id": _id(number), "at": at, "name": name},
        )
    for number, action in enumerate(("void", "correct")):
        store.execute(
            "INSERT INTO metering.event_corrections (event_id, tenant_id, meter, timestamp, quantity, "
            "observations, action, reason) SELECT toUUID({id:String}), 'acme', 'tokens', "
            "{at:DateTime64(3, 'UTC')}, 5, 1, {action:String}, 'twice'",
            {"id": _id(number), "at": at, "action": action},
        )


def _id(number: int) -> str:
    return f"00000000-0000-0000-0000-00000000000{number}"


def single(store: Store, dashboard: str, title: str, **chosen: Any) -> Any:
    (row,) = rows(store, dashboard, title, DAY, **chosen)
    return next(iter(row.values()))


def test_gauges_show_the_part_of_each_quota_in_its_present_period(store: Store) -> None:
    found = rows(store, "tenant", "Part of each quota that was used", DAY, tenant="acme")

    assert {row["quota"]: row["used"] for row in found} == {
        "calls per month": 1.25,
        "nothing per month": 1.0,
        "tokens per month": 0.9,
        "seats per lifetime": 0.1,
    }
    assert [row["used"] for row in found] == [1.25, 1.0, 0.9, 0.1], "the fullest first"


def test_the_table_says_what_is_left_and_when_the_period_ends(store: Store) -> None:
    found = {row["quota"]: row for row in rows(store, "tenant", "Quotas", DAY, tenant="acme")}

    tokens = found["tokens per month"]
    assert (tokens["used"], tokens["quota_limit"], tokens["remaining"]) == (900, 1000, 100)
    assert tokens["resets_at"] == END
    assert found["calls per month"]["remaining"] == 0, "nothing is left, and not less"
    assert found["seats per lifetime"]["resets_at"] is None


def test_full_quotas_are_counted_for_the_chosen_tenants(store: Store) -> None:
    assert single(store, "overview", "Quotas above 80 %") == 4
    assert single(store, "overview", "Quotas exhausted") == 3
    assert single(store, "tenant", "Quotas exhausted", tenant="globex") == 1
    assert single(store, "overview", "Quotas exhausted", meter=("seats",)) == 0


def test_changes_of_quotas_of_the_tenant_and_of_every_tenant_are_marked(store: Store) -> None:
    annotation = DASHBOARDS["tenant"]["annotations"]["list"][1]
    context = Context(
        time=TimeRange.last(DAY, NOW), variables={"tenant": "acme", "meter": ALL, "dimension": ""}
    )

    found = run.answer(store, annotation["target"], context).rows

    assert [(row[1], row[2]) for row in found] == [
        ("Quota changed: q0 by key key1", "acme"),
        ("Quota deleted: q9 by key key1", "every tenant"),
    ]


def test_a_corrected_event_says_so(store: Store) -> None:
    listed = rows(store, "events", "Events, the newest first", DAY)

    assert {row["event"]: row["status"] for row in listed} == {
        _id(number): name for number, name in enumerate(EVENTS)
    }
    assert single(store, "events", "Corrected") == 2
    shown = {
        row["field"]: row["value"]
        for row in rows(store, "events", "All of one event", DAY, event=_id(0))
    }
    assert shown["status"] == "void: does not count"
    assert shown["why it was corrected"] == "twice"
