"""Rules about the receiver, as their file has them."""

from datetime import timedelta

import pytest

from grafana.emulator.alert_source import Source
from grafana.emulator.alerts import Simulation
from receiver.store.client import Store
from tests.grafana.alerts.engine import HOUR, MINUTE, NOW, Stats, fires, outcome, silent
from tests.grafana.alerts.files import RULES


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
