"""Each alert rule, as its file has it, on the real engine: it fires when it should, and only then."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from grafana.emulator.alert_source import Source
from grafana.emulator.alerts import Alert, Simulation, duration
from grafana.emulator.seed_operations import seed_operations
from grafana.emulator.sickness import Sickness
from otel_metering.clock import SystemClock
from receiver.store import tables
from receiver.store.client import Store
from receiver.store.migrate import migrate
from tests.grafana.alert_files import RULES, interval_of

NOW = datetime(2026, 11, 20, 12, 30, tzinfo=UTC)
"""A Friday."""

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(f"chdb://{tmp_path_factory.mktemp('engine')}")
    migrate(store, SystemClock())
    yield store
    store.close()


@pytest.fixture
def store(engine: Store) -> Store:
    """Migrated and empty."""
    written = engine.query(
        "SELECT name FROM system.tables WHERE database = 'metering' AND total_rows > 0 AND name != 'migrations'"
    )
    for (name,) in written:
        engine.execute(f"TRUNCATE TABLE metering.{name}")
    return engine


@dataclass(frozen=True)
class Outcome:
    """What a rule did: when it fired first, after how long of being above, and for which instances."""

    first: timedelta | None
    alerts: frozenset[frozenset[tuple[str, str]]]

    @property
    def is_silent(self) -> bool:
        return self.first is None


def outcome(
    store: Store, uid: str, *, start: datetime = NOW, length: timedelta | None = None
) -> Outcome:
    """Evaluate a rule for a while, by default for twice as long as it waits."""
    rule = RULES[uid]
    interval = interval_of(uid)
    simulation = Simulation(rule, interval, Source(store))
    end = start + (length or 2 * duration(rule["for"]))
    first, seen, at = None, set(), start
    while at <= end:
        alerts = simulation.evaluate(at)
        assert not simulation.error, simulation.error
        if alerts and first is None:
            first = at - start
        seen |= {frozenset(labels_of(alert).items()) for alert in alerts}
        at += interval
    return Outcome(first, frozenset(seen))


def labels_of(alert: Alert) -> dict[str, str]:
    """Those of the row."""
    return {
        name: value for name, value in alert.labels.items() if name not in ("severity", "product")
    }


def fires(store: Store, uid: str, *instances: Mapping[str, str], **when: Any) -> None:
    """The rule fires for these instances and no others, when it has waited, and not before."""
    found = outcome(store, uid, **when)
    assert {frozenset(one.items()) for one in instances} == found.alerts
    assert found.first == duration(RULES[uid]["for"])


def silent(store: Store, uid: str, **when: Any) -> None:
    assert outcome(store, uid, **when).is_silent


class Stats:
    """Rows of pipeline_stats, one for each ten seconds up to NOW, or to `until`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._number = 0
        self._noise: list[dict[str, object]] = []

    def noise(
        self, stage: str, name: str, stat: str, reason: str, start: datetime, end: datetime
    ) -> None:
        """A large number that grows, each minute, of a receiver of its own."""
        for minute in range((end - start) // MINUTE):
            self._noise.append(
                {
                    "at": start + minute * MINUTE,
                    "instance": "noise",
                    "stage": stage,
                    "name": name,
                    "stat": stat,
                    "reason": reason,
                    "labels": [("key_id", "noise")],
                    "value": (minute + 1) * 1e9,
                }
            )

    def write_noise(self) -> None:
        schema = pa.schema(
            [
                ("at", pa.timestamp("ms", "UTC")),
                *((name, pa.string()) for name in ("instance", "stage", "name", "stat", "reason")),
                ("labels", pa.map_(pa.string(), pa.string())),
                ("value", pa.float64()),
            ]
        )
        rows = pa.Table.from_pylist(self._noise, schema)
        self._store.insert(tables.PIPELINE_STATS, rows, token=f"noise {id(self)}")

    def add(
        self,
        stage: str,
        name: str,
        value: float,
        *,
        stat: str = "delta",
        reason: str = "",
        labels: Mapping[str, str] | None = None,
        start: datetime = NOW - HOUR,
        until: datetime = NOW + HOUR,
        instance: str = "receiver-0",
        growing: float = 0.0,
    ) -> None:
        count = (until - start) // timedelta(seconds=10)
        at = [start + i * timedelta(seconds=10) for i in range(count)]
        self._number += 1
        rows = pa.table(
            {
                "at": pa.array(at, pa.timestamp("ms", "UTC")),
                "instance": [instance] * count,
                "stage": [stage] * count,
                "name": [name] * count,
                "stat": [stat] * count,
                "reason": [reason] * count,
                "labels": pa.array(
                    [list((labels or {}).items())] * count, pa.map_(pa.string(), pa.string())
                ),
                "value": pa.array([value + i * growing for i in range(count)], pa.float64()),
            }
        )
        self._store.insert(tables.PIPELINE_STATS, rows, token=f"{id(self)} {self._number} {start}")


ASKED_FOR = (
    ("edge", "in", "delta"),
    ("edge", "refused", "delta"),
    ("ingest", "in", "delta"),
    ("ingest", "out", "delta"),
    ("ingest", "refused", "delta"),
    ("ingest", "meters_stale", "value"),
    ("keys", "refused", "delta"),
    ("spool", "oldest_age", "value"),
    ("spool", "size", "value"),
    ("writer", "lag", "p99"),
)
REASONS = {"edge": "spool_full", "ingest": "duplicate", "keys": "revoked"}


@pytest.fixture
def stats(store: Store) -> Stats:
    """With other numbers beside: what a rule asks for of another stage, name or statistic, and of long ago."""
    begun = Stats(store)
    for one in ASKED_FOR:
        others = [
            tuple("other" if i == place else part for i, part in enumerate(one))
            for place in range(3)
        ]
        for stage, name, stat in others:
            begun.noise(stage, name, stat, REASONS.get(one[0], ""), NOW - HOUR, NOW + HOUR)
        begun.noise(*one, REASONS.get(one[0], ""), NOW - 9 * HOUR, NOW - 8 * HOUR)
    begun.write_noise()
    return begun


# Quotas


def quota(store: Store, used: float, **changes: str) -> None:
    """A quota of 100, of the thirty days around NOW."""
    values = {
        "tenant_id": "'acme'", "meter": "'api.calls'", "quota_id": "'q1'", "period": "'month'",
        "period_start": f"toDateTime64('{NOW - 15 * DAY:%F %T}', 3, 'UTC')",
        "period_end": f"toDateTime64('{NOW + 15 * DAY:%F %T}', 3, 'UTC')",
        "enforcement": "'hard'", "quantity_limit": "100", "quantity_used": str(used),
        "updated_at": f"toDateTime64('{NOW:%F %T}', 3, 'UTC')", "is_deleted": "false", **changes,
    }  # fmt: skip
    store.execute(
        f"INSERT INTO {tables.QUOTA_USAGE} ({', '.join(values)}) SELECT {', '.join(values.values())}"
    )


Q1 = {
    "tenant_id": "acme",
    "meter": "api.calls",
    "quota_id": "q1",
    "period": "month",
    "enforcement": "hard",
}
PROJECTED = {name: value for name, value in Q1.items() if name != "enforcement"}


def test_a_quota_is_told_at_80_percent(store: Store) -> None:
    quota(store, 79.9)
    quota(store, 80, quota_id="'q2'", tenant_id="'globex'")

    fires(store, "metering-quota-80", {**Q1, "quota_id": "q2", "tenant_id": "globex"})
    silent(store, "metering-quota-100")


def test_a_quota_is_told_when_it_is_used_up(store: Store) -> None:
    quota(store, 99.9, quota_id="'q2'")
    quota(store, 100)

    fires(store, "metering-quota-100", Q1)


def test_quotas_of_other_times_and_deleted_ones_do_not_count(store: Store) -> None:
    ended = f"toDateTime64('{NOW - DAY:%F %T}', 3, 'UTC')"
    coming = f"toDateTime64('{NOW + DAY:%F %T}', 3, 'UTC')"
    quota(store, 200, period_end=ended)
    quota(store, 200, period_start=coming)
    quota(store, 200, quota_id="'q2'", is_deleted="true")
    quota(store, 200, quota_id="'q3'", quantity_limit="0")

    for uid in ("metering-quota-80", "metering-quota-100", "metering-quota-overrun"):
        silent(store, uid)


def test_a_quota_without_end_counts(store: Store) -> None:
    quota(store, 120, period="'lifetime'", period_end="NULL")

    fires(store, "metering-quota-100", {**Q1, "period": "lifetime"})
    silent(store, "metering-quota-overrun")


def test_of_two_periods_of_a_quota_the_later_one_counts(store: Store) -> None:
    """Its anchor was changed: both are now."""
    quota(store, 120)
    quota(store, 10, period_start=f"toDateTime64('{NOW - DAY:%F %T}', 3, 'UTC')")

    silent(store, "metering-quota-100")


def test_a_quota_recovers_below_75_percent_and_does_not_flap(store: Store) -> None:
    simulation = Simulation(RULES["metering-quota-80"], MINUTE, Source(store))
    found = []
    shares = [81, 81, 81, 79, 81, 79, 76, 79, 81, 74, 74, 74, 74, 74, 74, 74]
    for minute, used in enumerate(shares):
        at = NOW + minute * MINUTE
        quota(store, used, updated_at=f"toDateTime64('{at:%F %T}', 3, 'UTC')")
        found.append(bool(simulation.evaluate(at)))

    # Three to wait, and five more minutes of the good value.
    assert found == [False, False, *[True] * 12, False, False]


def test_a_quota_that_goes_on_like_this_will_not_last(store: Store) -> None:
    # Half of the period is over.
    quota(store, 49, quota_id="'q2'")
    quota(store, 51)

    fires(store, "metering-quota-overrun", PROJECTED)


def test_a_projection_needs_a_fifth_of_the_period(store: Store) -> None:
    quota(store, 30, period_start=f"toDateTime64('{NOW - 3 * DAY:%F %T}', 3, 'UTC')")

    silent(store, "metering-quota-overrun")


def test_a_quota_that_is_used_up_is_not_projected(store: Store) -> None:
    quota(store, 100)

    silent(store, "metering-quota-overrun")


# Usage


def hours(
    store: Store,
    quantity: float,
    *,
    count: int = 20,
    tenant: str = "acme",
    meter: str = "api.calls",
    start: int,
    end: int,
    only: str = "1",
) -> None:
    """Usage in each hour from `start` to `end` hours before that of NOW; in the rollup alone."""
    store.execute(
        f"""
        INSERT INTO {tables.USAGE_HOUR} (tenant_id, meter, window_start, quantity_sum, quantity_count)
        SELECT '{tenant}', '{meter}', toDateTime('{NOW:%F %H}:00:00', 'UTC') - INTERVAL number HOUR AS hour,
            toDecimal128('{quantity}', 9), {count}
        FROM numbers({end}, {start - end + 1}) WHERE {only}
        """
    )


USER = {"tenant_id": "acme", "meter": "api.calls"}


def test_a_spike_is_more_than_three_times_the_usual(store: Store) -> None:
    hours(store, 100, start=169, end=2)
    hours(store, 299, start=1, end=1)
    hours(store, 100, tenant="globex", start=169, end=2)
    hours(store, 310, tenant="globex", start=1, end=1)

    fires(store, "metering-usage-spike", {**USER, "tenant_id": "globex"})


def test_what_happens_every_day_at_this_hour_is_no_spike(store: Store) -> None:
    hours(store, 10, start=169, end=2)
    hours(store, 1000, start=169, end=1, only="number % 24 = 1")

    silent(store, "metering-usage-spike")


def test_few_measurements_and_few_days_are_no_spike(store: Store) -> None:
    hours(store, 1, count=1, start=169, end=2)
    hours(store, 100, count=9, start=1, end=1)
    hours(store, 1, tenant="new", start=40, end=2)
    hours(store, 1000, tenant="new", start=1, end=1)

    silent(store, "metering-usage-spike")


def test_of_a_meter_that_is_no_sum_the_measurements_are_compared(store: Store) -> None:
    store.execute(
        f"INSERT INTO {tables.METER_DEFINITIONS} (meter, aggregation, is_deleted, updated_at) "
        "SELECT 'api.calls', 'max', false, now64()"
    )
    hours(store, 100, start=169, end=2)
    hours(store, 10_000, start=1, end=1)
    hours(store, 1, count=20, tenant="globex", start=169, end=2)
    hours(store, 1, count=200, tenant="globex", start=1, end=1)

    fires(store, "metering-usage-spike", {**USER, "tenant_id": "globex"})


def test_the_hour_that_has_begun_is_no_spike(store: Store) -> None:
    hours(store, 100, start=169, end=1)
    hours(store, 10_000, start=0, end=0)

    silent(store, "metering-usage-spike")


def test_usage_has_stopped_after_two_hours_of_none(store: Store) -> None:
    hours(store, 1, start=170, end=3)
    hours(store, 1, tenant="globex", start=170, end=2)
    hours(store, 1, tenant="initech", start=170, end=0)

    fires(store, "metering-usage-stopped", USER)


def test_usage_that_is_taken_back_is_none(store: Store) -> None:
    hours(store, 1, start=170, end=1)
    hours(store, -1, count=2**64 - 20, start=2, end=1)
    hours(store, 1, tenant="globex", start=170, end=0)

    fires(store, "metering-usage-stopped", USER)


def test_who_never_works_at_this_time_has_not_stopped(store: Store) -> None:
    """On a Saturday: at work from Monday to Friday."""
    hours(store, 1, start=170, end=24, only="toDayOfWeek(hour) <= 5")
    hours(store, 1, tenant="globex", start=170, end=0)
    hours(store, 1, tenant="night", start=170, end=3, only="toHour(hour) < 9")

    silent(store, "metering-usage-stopped", start=NOW + DAY, length=HOUR)


def test_while_nobody_uses_anything_nobody_has_stopped(store: Store) -> None:
    hours(store, 1, start=170, end=3)
    hours(store, 1, tenant="globex", start=170, end=3)

    silent(store, "metering-usage-stopped")


# The receiver


def test_no_usage_for_ten_minutes(store: Store, stats: Stats) -> None:
    stats.add("ingest", "out", 5, until=NOW)

    # The last row is ten seconds before NOW.
    found = outcome(store, "metering-nothing-ingested", length=20 * MINUTE)

    assert found.first == 12 * MINUTE


def test_other_numbers_are_no_sign_of_usage(store: Store, stats: Stats) -> None:
    stats.add("ingest", "refused", 5, reason="duplicate")
    stats.add("ingest", "in", 5)
    stats.add("edge", "out", 5)

    fires(store, "metering-nothing-ingested", {})


def test_the_heartbeat_recovers_with_the_first_usage(store: Store, stats: Stats) -> None:
    stats.add("ingest", "out", 5, start=NOW + 10 * MINUTE)
    simulation = Simulation(RULES["metering-nothing-ingested"], MINUTE, Source(store))

    found = [bool(one) for one in simulation.run(NOW, NOW + 15 * MINUTE)]

    # Two minutes to wait; usage after ten; two more minutes of it.
    assert found == [False] * 2 + [True] * 10 + [False] * 4


def test_more_than_one_refused_request_in_a_hundred(store: Store, stats: Stats) -> None:
    stats.add("edge", "in", 1000)
    stats.add("edge", "refused", 11, reason="spool_full")
    stats.add("edge", "refused", 10, reason="malformed_payload")
    stats.add("edge", "refused", 500, reason="cancelled")

    fires(store, "metering-refusals", {"reason": "spool_full"})


def test_of_few_requests_any_may_be_refused(store: Store, stats: Stats) -> None:
    stats.add("edge", "in", 19, until=NOW - HOUR + 10 * timedelta(seconds=1), start=NOW - HOUR)
    stats.add("edge", "refused", 19, reason="unavailable", start=NOW - HOUR, until=NOW - HOUR + 10 * timedelta(seconds=1))  # fmt: skip

    silent(store, "metering-refusals", start=NOW - HOUR, length=9 * MINUTE)


def test_usage_that_waits_for_a_minute_is_told(store: Store, stats: Stats) -> None:
    stats.add("spool", "oldest_age", 60, stat="value")
    stats.add("spool", "oldest_age", 61, stat="value", instance="receiver-1")

    fires(store, "metering-spool-waiting", {"instance": "receiver-1"})


def test_a_receiver_that_is_gone_does_not_wait(store: Store, stats: Stats) -> None:
    stats.add("spool", "oldest_age", 1000, stat="value", until=NOW - 4 * MINUTE)

    silent(store, "metering-spool-waiting")


def test_a_spool_grows_by_more_than_64_mib(store: Store, stats: Stats) -> None:
    # Fifteen minutes are ninety steps.
    stats.add("spool", "size", 0, stat="value", growing=(64 << 20) / 92)
    stats.add("spool", "size", 0, stat="value", growing=(64 << 20) / 88, instance="receiver-1")
    stats.add("spool", "size", 1 << 33, stat="value", instance="full")

    fires(store, "metering-spool-growing", {"instance": "receiver-1"})


def test_usage_is_late_when_it_takes_more_than_ten_seconds(store: Store, stats: Stats) -> None:
    stats.add("writer", "lag", 10, stat="p99")
    stats.add("writer", "lag", 11, stat="p99", instance="receiver-1")
    stats.add("writer", "lag", 100, stat="max", instance="receiver-0")

    fires(store, "metering-ingest-lag", {"instance": "receiver-1"})


@pytest.mark.parametrize(
    ("uid", "stage", "name", "stat"),
    [
        ("metering-ingest-lag", "writer", "lag", "p99"),
        ("metering-spool-waiting", "spool", "oldest_age", "value"),
        ("metering-meters-stale", "ingest", "meters_stale", "value"),
    ],
)
def test_one_bad_minute_wakes_nobody(
    store: Store, stats: Stats, uid: str, stage: str, name: str, stat: str
) -> None:
    stats.add(stage, name, 0, stat=stat, until=NOW)
    stats.add(stage, name, 1000, stat=stat, start=NOW, until=NOW + MINUTE)
    stats.add(stage, name, 0, stat=stat, start=NOW + MINUTE)

    silent(store, uid, length=20 * MINUTE)


def test_wrong_definitions_of_meters_are_told(store: Store, stats: Stats) -> None:
    stats.add("ingest", "meters_stale", 1, stat="value")
    stats.add("ingest", "meters_stale", 0, stat="value", instance="receiver-1")

    fires(store, "metering-meters-stale", {"instance": "receiver-0"})


# Keys


def key(store: Store, key_id: str, **changes: str) -> None:
    values = {
        "key_id": f"'{key_id}'", "name": f"'Name of {key_id}'",
        "created_at": f"toDateTime64('{NOW - 90 * DAY:%F %T}', 6, 'UTC')",
        "updated_at": f"toDateTime64('{NOW - 90 * DAY:%F %T}', 6, 'UTC')",
        **changes,
    }  # fmt: skip
    store.execute(
        f"INSERT INTO {tables.API_KEYS} ({', '.join(values)}) SELECT {', '.join(values.values())}"
    )


def moment(at: datetime) -> str:
    return f"toDateTime64('{at:%F %T}', 6, 'UTC')"


def test_a_key_is_told_three_days_before_it_ends(store: Store) -> None:
    key(store, "soon", expires_at=moment(NOW + 72 * HOUR - MINUTE), tenant_id="'acme'")
    key(store, "later", expires_at=moment(NOW + 73 * HOUR))
    key(store, "never")
    key(store, "past", expires_at=moment(NOW - HOUR))
    key(store, "revoked", expires_at=moment(NOW + HOUR), revoked_at=moment(NOW - HOUR))
    key(store, "replaced", expires_at=moment(NOW + HOUR))
    key(store, "successor", replaces="'replaced'")
    key(store, "again", expires_at=moment(NOW + HOUR))
    key(store, "gone", replaces="'again'", revoked_at=moment(NOW - HOUR))

    fires(
        store,
        "metering-key-expiring",
        {"key_id": "soon", "name": "Name of soon", "tenant_id": "acme"},
        {"key_id": "again", "name": "Name of again", "tenant_id": "(any)"},
    )


def test_a_key_that_is_used_after_its_end_is_told(store: Store, stats: Stats) -> None:
    key(store, "old", revoked_at=moment(NOW - DAY))
    for reason in ("revoked", "expired", "scope", "tenant"):
        stats.add("keys", "refused", 1, reason=reason, labels={"key_id": "old" if reason == "revoked" else "gone", "transport": "grpc"})  # fmt: skip
    stats.add("keys", "refused", 1, reason="unknown", labels={"key_id": "", "transport": "http"})

    fires(
        store,
        "metering-ended-key-used",
        {"key_id": "old", "name": "Name of old", "reason": "revoked"},
        {"key_id": "gone", "name": "", "reason": "expired"},
    )


# Data


def event(store: Store, at: datetime, quantity: str = "1.000000001", number: int = 1) -> None:
    store.execute(
        f"INSERT INTO {tables.EVENTS} (event_id, tenant_id, meter, quantity, timestamp, start_time, signal) "
        f"SELECT generateUUIDv4({number}), 'acme', 'api.calls', toDecimal128('{quantity}', 9), "
        f"toDateTime64('{at:%F %T}', 9, 'UTC') AS time, time, 'event'"
    )


def test_a_rollup_that_differs_by_the_smallest_unit_has_drifted(store: Store) -> None:
    event(store, NOW - 2 * HOUR)
    silent(store, "metering-rollup-drift")

    hours(store, 0.000000001, count=0, start=2, end=2)

    fires(store, "metering-rollup-drift", {"meter": "api.calls", "rollup_table": "usage_hour"})


def test_a_rollup_that_has_another_count_has_drifted(store: Store) -> None:
    hours(store, 0, count=1, start=2, end=2)

    fires(store, "metering-rollup-drift", {"meter": "api.calls", "rollup_table": "usage_hour"})


def test_a_day_that_differs_from_its_hours_has_drifted(store: Store) -> None:
    store.execute(
        f"INSERT INTO {tables.USAGE_DAY} (tenant_id, meter, window_start, quantity_sum, quantity_count) "
        f"SELECT 'acme', 'api.calls', toDateTime('{NOW - DAY:%F} 00:00:00', 'UTC'), 1, 0"
    )

    fires(store, "metering-rollup-drift", {"meter": "api.calls", "rollup_table": "usage_day"})


def test_corrections_are_no_drift(store: Store) -> None:
    for number in range(5):
        event(store, NOW - 2 * HOUR, number=number)
    store.execute(
        f"INSERT INTO {tables.EVENT_CORRECTIONS} (event_id, tenant_id, meter, timestamp, quantity, observations, action) "
        f"SELECT event_id, tenant_id, meter, timestamp, quantity, observations, 'void' FROM {tables.EVENTS} LIMIT 2"
    )

    silent(store, "metering-rollup-drift")


def test_what_is_right_at_other_times_is_no_drift(store: Store) -> None:
    """Each part of the question is about the same time."""
    for at in (NOW, NOW - 10 * HOUR, NOW - DAY, NOW - 4 * DAY):
        for number in range(2):
            event(store, at, number=number)
    store.execute(
        f"INSERT INTO {tables.EVENT_CORRECTIONS} (event_id, tenant_id, meter, timestamp, quantity, observations, action) "
        f"SELECT event_id, tenant_id, meter, timestamp, quantity, observations, 'void' FROM {tables.EVENTS} "
        "ORDER BY timestamp LIMIT 1 BY timestamp"
    )

    silent(store, "metering-rollup-drift", length=20 * MINUTE)


def test_hours_before_the_last_six_are_not_looked_at(store: Store) -> None:
    hours(store, 1, start=60, end=50)
    hours(store, 1, start=9, end=8)

    silent(store, "metering-rollup-drift", start=NOW + DAY, length=20 * MINUTE)


def test_the_hour_that_has_begun_may_differ(store: Store) -> None:
    hours(store, 1, start=0, end=0)

    silent(store, "metering-rollup-drift", length=20 * MINUTE)


def test_more_than_a_fifth_of_the_usage_was_sent_before(store: Store, stats: Stats) -> None:
    stats.add("ingest", "in", 100)
    stats.add("ingest", "refused", 50, reason="unchanged")
    stats.add("ingest", "refused", 20, reason="duplicate")
    silent(store, "metering-duplicates")

    stats.add("ingest", "refused", 1, reason="duplicate")

    fires(store, "metering-duplicates", {})


def test_of_few_uses_all_may_have_been_sent_before(store: Store, stats: Stats) -> None:
    stats.add("ingest", "in", 1)
    stats.add("ingest", "refused", 1, reason="duplicate")

    silent(store, "metering-duplicates")


def test_what_went_into_quarantine_is_told_until_it_is_resolved(store: Store) -> None:
    store.execute(
        f"INSERT INTO {tables.QUARANTINE} (event_id, reason, signal, ingested_at) "
        f"SELECT generateUUIDv4(number), if(number < 2, 'no_tenant', 'no_meter'), 'metric', "
        f"toDateTime64('{NOW - MINUTE:%F %T}', 3, 'UTC') FROM numbers(4)"
    )
    store.execute(
        f"INSERT INTO {tables.QUARANTINE_RESOLVED} (event_id, resolution, ingested_at) "
        f"SELECT event_id, 'replayed', ingested_at FROM {tables.QUARANTINE} WHERE reason = 'no_meter'"
    )

    fires(store, "metering-quarantine-growing", {"reason": "no_tenant"})
    silent(store, "metering-quarantine-growing", start=NOW + HOUR)


# All of them


def test_nothing_but_the_heartbeat_fires_on_an_empty_engine(store: Store) -> None:
    fired = {uid for uid in RULES if not outcome(store, uid).is_silent}

    assert fired == {"metering-nothing-ingested"}


# What each sickness of the seed is about: rule -> labels of its instances.
TOKENS = {"tenant_id": "globex", "meter": "gen_ai.tokens"}
GLOBEX = {**TOKENS, "quota_id": "quota_globex", "period": "month", "enforcement": "hard"}
INITECH = {**GLOBEX, "tenant_id": "initech", "quota_id": "quota_initech", "enforcement": "soft"}
HERE = {"instance": "receiver-0"}
TOLD: Mapping[Sickness, Mapping[str, Sequence[Mapping[str, str]]]] = {
    Sickness.QUOTA_85: {"metering-quota-80": [GLOBEX]},
    Sickness.QUOTA_120: {"metering-quota-80": [INITECH], "metering-quota-100": [INITECH]},
    Sickness.PROJECTED_OVERRUN: {
        "metering-quota-overrun": [
            {**TOKENS, "tenant_id": "acme", "quota_id": "quota_acme", "period": "month"}
        ]
    },
    Sickness.USAGE_SPIKE: {"metering-usage-spike": [TOKENS]},
    Sickness.USAGE_STOPPED: {"metering-usage-stopped": [{**TOKENS, "tenant_id": "initech"}]},
    Sickness.NOTHING_INGESTED: {"metering-nothing-ingested": [{}]},
    Sickness.STATS_SILENT: {"metering-nothing-ingested": [{}]},
    Sickness.REFUSALS: {
        "metering-refusals": [{"reason": "malformed_payload"}, {"reason": "spool_full"}]
    },
    Sickness.SPOOL_FILLING: {"metering-spool-waiting": [HERE], "metering-spool-growing": [HERE]},
    Sickness.WRITER_LAG: {"metering-ingest-lag": [HERE]},
    Sickness.ROLLUP_DRIFT: {
        "metering-rollup-drift": [{"meter": "gen_ai.tokens", "rollup_table": "usage_hour"}]
    },
    Sickness.DUPLICATES: {"metering-duplicates": [{}]},
    Sickness.QUARANTINE_GROWING: {"metering-quarantine-growing": [{"reason": "no_tenant"}]},
    Sickness.METERS_STALE: {"metering-meters-stale": [HERE]},
    Sickness.KEY_EXPIRING: {
        "metering-key-expiring": [
            {"key_id": "mobile-gateway", "name": "Mobile gateway", "tenant_id": "(any)"}
        ]
    },
    Sickness.REVOKED_KEY_USED: {
        "metering-ended-key-used": [
            {"key_id": "contractor", "name": "Contractor", "reason": "revoked"}
        ]
    },
}
ALONE = {Sickness.NOTHING_INGESTED, Sickness.STATS_SILENT, Sickness.WRITER_LAG}
"""With these, others cannot be seen: no ratio of nothing; and while the spool fills, no row is stored late."""


def told(
    store: Store, length: timedelta = 20 * MINUTE
) -> dict[str, set[frozenset[tuple[str, str]]]]:
    """Rule -> instances that it fires for at the end of what was seeded."""
    found = {}
    for uid, rule in RULES.items():
        # What is from hours and days is as it is now for a while; the receiver's numbers end here.
        is_of_now = "pipeline_stats" in rule["data"][0]["model"]["rawSql"] or "quarantine" in uid
        start = NOW - length if is_of_now else NOW
        if alerts := outcome(store, uid, start=start, length=length).alerts:
            found[uid] = set(alerts)
    return found


def wanted(*sick: Sickness) -> dict[str, set[frozenset[tuple[str, str]]]]:
    found: dict[str, set[frozenset[tuple[str, str]]]] = {}
    for one in sick:
        for uid, instances in TOLD[one].items():
            found.setdefault(uid, set()).update(frozenset(each.items()) for each in instances)
    return found


def test_in_a_healthy_installation_nothing_fires(store: Store) -> None:
    seed_operations(store, NOW, hours=2)

    assert told(store) == {}


def test_all_that_is_wrong_at_once_is_told_and_nothing_else(store: Store) -> None:
    sick = [one for one in TOLD if one not in ALONE]
    seed_operations(store, NOW, sick=sick, hours=2)

    assert told(store) == wanted(*sick)


@pytest.mark.long
@pytest.mark.parametrize("sick", Sickness)
def test_what_is_wrong_alone_is_told_and_nothing_else(store: Store, sick: Sickness) -> None:
    seed_operations(store, NOW, sick=[sick], hours=2)

    assert told(store) == (wanted(sick) if sick in TOLD else {})


@pytest.mark.long
def test_a_healthy_day_is_silent(store: Store) -> None:
    seed_operations(store, NOW)

    assert told(store, 20 * HOUR) == {}


@pytest.mark.parametrize("uid", RULES)
def test_a_database_that_fails_is_told_once(engine: Store, uid: str) -> None:
    """By the rule about it; those that read much tell it as well."""
    rule = RULES[uid]
    broken = {**rule, "data": [_failing(rule["data"][0]), *rule["data"][1:]]}
    simulation = Simulation(broken, interval_of(uid), Source(engine))
    wait = duration(rule["for"])

    found = simulation.run(NOW, NOW + 2 * wait)

    names = {alert.name for alerts in found for alert in alerts}
    assert simulation.error
    if uid == "metering-datasource-failing":
        assert names == {rule["title"]}
        assert [bool(alerts) for alerts in found[:3]] == [False, False, True]
    elif rule["execErrState"] == "Error":
        assert names == {"DatasourceError"}
    else:
        assert names == set()


def _failing(query: Mapping[str, Any]) -> dict[str, Any]:
    model = {**query["model"], "rawSql": "SELECT toFloat64(throwIf(1)) AS value"}
    return {**query, "model": model}
