"""A migrated engine with what dashboards show, and one without anything."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from grafana.emulator import seed_operations, seed_usage
from otel_metering.clock import ManualClock
from receiver.store.client import Store
from receiver.store.migrate import migrate

NOW = datetime(2026, 9, 17, 10, 37, 12, tzinfo=UTC)
"""The end of what is shown: a Thursday, in no window's first or last moment."""

USAGE_METERS = seed_usage.METERS + seed_usage.MORE_METERS


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    yield from _migrated(tmp_path_factory)


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """With usage and everything else that an installation has."""
    for store in _migrated(tmp_path_factory):
        seed_usage.seed(store, NOW)
        seed_operations.seed_operations(store, NOW)
        yield store


@pytest.fixture(scope="module")
def used(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Store, list[seed_usage.SeedUsage]]]:
    """With usage alone, and what it is."""
    for store in _migrated(tmp_path_factory):
        yield store, seed_usage.seed(store, NOW, USAGE_METERS)


def _migrated(paths: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(f"chdb://{paths.mktemp('grafana') / Path('data')}")
    try:
        migrate(store, ManualClock())
        yield store
    finally:
        store.close()
