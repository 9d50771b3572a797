"""Each query of each dashboard, on an engine without anything: an empty panel, not an error."""

from pathlib import Path

import pytest

from receiver.store.client import Store
from tests.grafana import harness


@pytest.mark.parametrize("path", harness.FILES, ids=lambda path: path.stem)
def test_every_query_runs_without_any_usage(path: Path, empty: Store) -> None:
    dashboard = harness.load(path)
    context = harness.context_of(empty, dashboard, "24h", "all")

    assert harness.faults(empty, list(harness.queries(dashboard, context))) == []
