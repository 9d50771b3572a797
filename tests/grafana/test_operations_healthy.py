"""Where nothing is wrong the dashboards about operations say so."""

from collections.abc import Callable, Iterator

import pytest

from grafana.builders.dashboard import Dashboard
from grafana.builders.dashboards import keys, pipeline, quality, quotas
from receiver.store.client import Store
from tests.grafana.operations import last, rows, seeded, value

QUIET: tuple[tuple[Callable[[], Dashboard], str, float], ...] = (
    (quotas.build, "Used up", 0),
    (quotas.build, "Over 80 %", 0),
    (quotas.build, "Will not last", 0),
    (keys.build, "Ending soon", 0),
    (keys.build, "With revoked keys", 0),
    (keys.build, "Revoked, let in", 0),
    (pipeline.build, "Last report", 0),
    (pipeline.build, "In quarantine", 0),
    (pipeline.build, "meters.yaml", 0),
    (pipeline.build, "Intervals that are missing here", 0),
    (quality.build, "Meters that differ", 0),
    (quality.build, "Ahead of time", 0),
    (quality.build, "Conflicts", 0),
    (quality.build, "Open in quarantine", 0),
    (quality.build, "Meters without definition", 0),
)
"""What a healthy day shows."""

EMPTY_TABLES = (
    (keys.build, "Traffic with revoked keys"),
    (pipeline.build, "Into quarantine, by reason"),
    (pipeline.build, "Rows of failed attempts, by reason"),
    (pipeline.build, "Keys that wrote for other tenants"),
    (quality.build, "Hours that differ"),
    (quality.build, "Who sends ahead of time"),
    (quality.build, "Who contradicts what was counted"),
    (quality.build, "Meters that nobody defined"),
)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with seeded(tmp_path_factory.mktemp("healthy"), ()) as store:
        yield store


@pytest.mark.parametrize(
    ("build", "title", "expected"), QUIET, ids=[title for _, title, _ in QUIET]
)
def test_a_figure_of_a_healthy_day(
    healthy: Store, build: Callable[[], Dashboard], title: str, expected: float
) -> None:
    assert value(healthy, build(), title, last(24)) == expected


@pytest.mark.parametrize(("build", "title"), EMPTY_TABLES, ids=[title for _, title in EMPTY_TABLES])
def test_what_lists_faults_is_empty_on_a_healthy_day(
    healthy: Store, build: Callable[[], Dashboard], title: str
) -> None:
    assert rows(healthy, build(), title, last(24)) == []


def test_refusals_and_waiting_are_small_on_a_healthy_day(healthy: Store) -> None:
    dashboard = pipeline.build()
    assert value(healthy, dashboard, "Requests refused", last(1)) < 0.01
    assert value(healthy, dashboard, "Duplicates", last(1)) < 0.05
    assert value(healthy, dashboard, "In the spool", last(1)) < 2**30
    assert value(healthy, dashboard, "Oldest waits", last(1)) < 10
    assert value(healthy, dashboard, "Visible after (p99)", last(1)) < 10
