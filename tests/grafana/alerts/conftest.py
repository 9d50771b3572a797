"""An engine without rows, for each test."""

import pytest

from receiver.store.client import Store
from tests.grafana.alerts.engine import ASKED_FOR, HOUR, NOW, REASONS, Stats


@pytest.fixture
def store(empty: Store) -> Store:
    """Migrated and empty."""
    written = empty.query(
        "SELECT name FROM system.tables WHERE database = 'metering' AND total_rows > 0 AND name != 'migrations'"
    )
    for (name,) in written:
        empty.execute(f"TRUNCATE TABLE metering.{name}")
    return empty


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
