"""In every stage in = out + refused, whatever is sent and whatever fails; and the table says the same."""

import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE

from otel_metering.clock import ManualClock, SystemClock
from otel_metering.contract.event import UsageEvent
from otel_metering.contract.meter import Meters, Signal
from otel_metering.errors import MeteringError, UnavailableError
from otel_metering.spool import Spool, open_spool
from receiver import pipeline_stats
from receiver.catalog import CATALOG
from receiver.exposition import exposition
from receiver.ingest import Ingest, Limits, Work
from receiver.metering import Metering
from receiver.pipeline_stats import PipelineStats
from receiver.seen import SeenIds
from receiver.store.client import Store
from receiver.store.migrate import migrate
from receiver.telemetry import Telemetry
from receiver.usage import Sender
from receiver.writer import Writer
from tests.otlp import NOON, Point, metrics_request
from tests.prometheus import Samples, by, parse, total

UNBOUND = Sender(key_id="any", bound_tenant=None)
BOUND = Sender(key_id="bound", bound_tenant="tenant_b")


class FaultyStore(Store):
    """A real store that fails as a network would: before the insert, or after it was stored."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.faults: list[str] = []

    def insert(self, table: str, rows: pa.Table, *, token: str) -> None:
        fault = self.faults.pop(0) if self.faults else "none"
        if fault != "before":
            super().insert(table, rows, token=token)
        if fault != "none":
            raise UnavailableError(f"lost {fault} the insert")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyStore]:
    store = FaultyStore(f"chdb://{tmp_path_factory.mktemp('engine')}")
    migrate(store, SystemClock())
    yield store
    store.close()


def points(*values: Point, scope: str = "otel_metering", sender: Sender = UNBOUND) -> Work:
    body = metrics_request(values, scope=scope).SerializeToString()
    return Work(sender=sender, signal=Signal.METRIC, body=body)


def totals(*values: int) -> Work:
    """Cumulative points of one series, a second apart; a sum that falls contradicts itself."""
    tenant, second = f"tenant_{len(values)}", 10**9
    one = [
        Point(tenant, n, at_ns=NOON + i * second, start_ns=NOON - second)
        for i, n in enumerate(values)
    ]
    body = metrics_request(one, temporality=AGGREGATION_TEMPORALITY_CUMULATIVE)
    return Work(sender=UNBOUND, signal=Signal.METRIC, body=body.SerializeToString())


def events(*names: str) -> Work:
    usage = [UsageEvent(tenant_id=name, meter="api.calls", event_id="1") for name in names]
    return Work(sender=BOUND, signal=Signal.EVENT, events=usage)


# Kind of request -> what is sent, and what becomes of each item the first time. Every later time, what
# was accepted is a duplicate, or a total that adds nothing.
KINDS: dict[str, tuple[Work, dict[str, int]]] = {
    "good": (points(*(Point("tenant_a", n) for n in range(1, 6))), {"accepted": 5}),
    "other": (points(Point("tenant_c", 1), Point("tenant_c", 1)), {"accepted": 1, "duplicate": 1}),
    "bound": (
        points(Point("tenant_b", 1), Point("tenant_a", 1), sender=BOUND),
        {"accepted": 1, "quarantined.tenant_not_allowed": 1},
    ),
    "no_meter": (
        points(Point("tenant_a", 1), Point("tenant_a", 2), scope="app"),
        {"quarantined.no_meter": 2},
    ),
    "late": (
        points(Point("tenant_a", 1, at_ns=1), Point("tenant_a", -1)),
        {"quarantined.timestamp_out_of_range": 1, "quarantined.invalid_quantity": 1},
    ),
    "events": (events("tenant_b", "tenant_a"), {"accepted": 1, "rejected": 1}),
    "total": (totals(7), {"accepted": 1}),
    "conflict": (totals(2, 1), {"accepted": 1, "quarantined.conflict": 1}),
    "malformed": (Work(sender=UNBOUND, signal=Signal.SPAN, body=b"\x0a\x7f"), {}),
    "empty": (Work(sender=UNBOUND, signal=Signal.LOG), {}),
}


def check_conservation(samples: Samples) -> None:
    """In = out + refused, wherever something comes in."""
    for stage, prefix in [("edge", ""), ("ingest", ""), ("ingest", "requests_"), ("writer", "")]:
        name = f"otel_metering_receiver_{stage}_{prefix}"
        came, left = total(samples, f"{name}in_total"), total(samples, f"{name}out_total")
        assert came == left + total(samples, f"{name}refused_total"), name


class Ledger:
    """What should be counted: items by fate, refused requests, and items in quarantine."""

    def __init__(self) -> None:
        self.items: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.aside: dict[tuple[str, str], int] = {}
        self._seen: set[str] = set()

    def refused(self, kind: str) -> None:
        self.failed["malformed_payload" if kind == "malformed" else "spool_full"] += 1

    def acknowledged(self, kind: str) -> None:
        for fate, count in KINDS[kind][1].items():
            is_again = fate == "accepted" and kind in self._seen
            repeated = "unchanged" if kind in ("total", "conflict") else "duplicate"
            self.items[repeated if is_again else fate] += count
            if fate.startswith("quarantined"):
                self.aside[kind, fate] = count
        self._seen.add(kind)


def admit_all(kinds: list[str], spool: Spool, telemetry: Telemetry, refusals: int) -> Ledger:
    """Send them one by one; for the first `refusals` of them the disk is full."""
    ingest = Ingest(
        metering=Metering(Meters()),
        seen=SeenIds(),
        spool=spool,
        clock=ManualClock(NOON),
        limits=Limits(max_queue_bytes=10**6),
        pace=lambda: None,
        on_commit=lambda: None,
        telemetry=telemetry,
    )
    ingest.start()
    ledger = Ledger()
    for number, kind in enumerate(kinds):
        spool.max_bytes = 0 if number < refusals else 10**9
        try:
            ingest.submit(KINDS[kind][0]).result(timeout=20)
        except MeteringError:
            ledger.refused(kind)
        else:
            ledger.acknowledged(kind)
    ingest.stop()
    return ledger


def write_all(writer: Writer, spool: Spool) -> int:
    """Write until the spool is empty; returns how many attempts it took."""
    attempts = 0
    while spool.entry_count:
        attempts += 1
        with suppress(UnavailableError):
            writer.write_batch()
    return attempts


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sent=st.lists(st.sampled_from(sorted(KINDS)), max_size=12),
    faults=st.lists(st.sampled_from(["before", "after"]), max_size=4),
    refusals=st.integers(min_value=0, max_value=2),
)
def test_nothing_is_lost_between_the_stages(
    store: FaultyStore,
    tmp_path: Path,
    sent: list[str],
    faults: list[str],
    refusals: int,
) -> None:
    spool = open_spool(tmp_path / f"{secrets.token_hex(8)}.db")
    telemetry = Telemetry()
    ledger = admit_all(sent, spool, telemetry, refusals)
    store.faults = list(faults)
    attempts = write_all(Writer(spool, store, SystemClock(), telemetry=telemetry), spool)
    store.faults = []
    spool.close()

    samples = parse(exposition(telemetry.read()))

    check_conservation(samples)
    name, accepted, aside = (
        "otel_metering_receiver_",
        ledger.items["accepted"],
        sum(ledger.aside.values()),
    )
    assert total(samples, f"{name}ingest_requests_in_total") == len(sent)
    assert by(samples, f"{name}ingest_requests_refused_total", "reason") == ledger.failed
    assert total(samples, f"{name}ingest_in_total") == ledger.items.total()
    assert total(samples, f"{name}ingest_out_total") == accepted
    assert by(samples, f"{name}ingest_refused_total", "reason") == {
        reason: count for reason, count in ledger.items.items() if count and reason != "accepted"
    }
    assert total(samples, f"{name}spool_in_total") == accepted + aside
    stored = by(samples, f"{name}writer_out_total", "table")
    assert stored == {
        table: count for table, count in (("events", accepted), ("quarantine", aside)) if count
    }
    failures = total(samples, f"{name}writer_failures_total")
    assert failures + total(samples, f"{name}writer_batches_total") == attempts
    assert total(samples, f"{name}writer_retries_total") == failures
    assert total(samples, f"{name}writer_lag_seconds_count") == sum(stored.values())


def rows_of(store: Store, instance: str) -> dict[tuple[str, str, str], float]:
    """(stage, name, statistic) -> the sum of what the table has."""
    rows = store.query(
        "SELECT stage, name, stat, sum(value) FROM metering.pipeline_stats "
        "WHERE instance = {instance:String} GROUP BY stage, name, stat",
        {"instance": instance},
    )
    return {(stage, name, stat): value for stage, name, stat, value in rows}


@pytest.mark.parametrize("faults", [[], ["before", "after", "after"]])
def test_the_increments_in_the_table_add_up_whatever_failed(
    store: FaultyStore, faults: list[str]
) -> None:
    clock = ManualClock(NOON)
    telemetry, instance = Telemetry(clock), f"sum.{len(faults)}"
    stats = PipelineStats(telemetry, store, instance)
    store.faults = list(faults)
    for count in range(1, 6):
        for _ in range(count):
            request = telemetry.request("grpc", Signal.METRIC)
            clock.advance(0.25)
            request.acknowledge()
        telemetry.request("http", None).refuse(UnavailableError())
        try:
            stats.write()
        except UnavailableError:
            continue
    assert not store.faults

    found = rows_of(store, instance)

    assert found["edge", "in", "delta"] == 20
    assert found["edge", "out", "delta"] == 15
    assert found["edge", "refused", "delta"] == 5
    assert found["edge", "ack_duration", "count"] == 15
    assert found["edge", "ack_duration", "max"] == pytest.approx(5 * 0.25, abs=1e-5)
    labels = store.query(
        "SELECT DISTINCT reason, labels['transport'] FROM metering.pipeline_stats "
        "WHERE instance = {instance:String} AND name = 'refused'",
        {"instance": instance},
    )
    assert [tuple(row) for row in labels] == [("unavailable", "http")]


def test_a_database_that_is_away_costs_old_intervals_and_they_are_counted(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_stats, "MAX_WAITING", 2)
    telemetry = Telemetry()
    stats = PipelineStats(telemetry, store, "away")
    store.faults = ["before"] * 4
    for _ in range(4):
        telemetry.request("grpc", Signal.METRIC).acknowledge()
        with pytest.raises(UnavailableError):
            stats.write()
    stats.write()

    found = rows_of(store, "away")

    assert found["edge", "in", "delta"] == 1, "of five intervals two were kept: 4th and 5th"
    assert found["stats", "lost", "delta"] == 2
    stats.write()
    assert rows_of(store, "away")["stats", "lost", "delta"] == 3


def test_the_last_interval_is_written_at_the_stop_and_a_failing_store_does_not_hold_it_up(
    store: FaultyStore,
) -> None:
    telemetry = Telemetry()
    stats = PipelineStats(telemetry, store, "stop")
    stats.start()
    telemetry.request("grpc", Signal.METRIC).acknowledge()

    stats.stop()

    assert rows_of(store, "stop")["edge", "in", "delta"] == 1
    store.faults = ["before"]
    failing = PipelineStats(telemetry, store, "failing")
    failing.start()
    failing.stop()
    stats.stop()
    assert store.faults == []


def test_every_number_that_is_counted_has_a_name_in_the_catalog(store: FaultyStore) -> None:
    rows = store.query("SELECT DISTINCT stage, name FROM metering.pipeline_stats")

    assert {tuple(row) for row in rows} <= {(metric.stage, metric.name) for metric in CATALOG}
