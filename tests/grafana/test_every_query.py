"""Each query of each dashboard, on an engine with usage: it runs, and its answer fits its panel."""

from pathlib import Path

import pytest

from receiver.store.client import Store
from tests.grafana import harness

BATCHES = [("1h", "one"), ("24h", "all"), ("30d", "many")]
"""Each range and each selection once; all pairs are the long form."""


@pytest.mark.parametrize(("length", "tenants"), BATCHES)
@pytest.mark.parametrize("path", harness.FILES, ids=lambda path: path.stem)
def test_every_query_runs_and_its_answer_fits_its_panel(
    path: Path, length: str, tenants: str, seeded: Store
) -> None:
    dashboard = harness.load(path)
    context = harness.context_of(seeded, dashboard, length, tenants)

    assert harness.faults(seeded, list(harness.queries(dashboard, context))) == []


@pytest.mark.long
@pytest.mark.parametrize("tenants", harness.SELECTIONS)
@pytest.mark.parametrize("length", harness.RANGES)
@pytest.mark.parametrize("path", harness.FILES, ids=lambda path: path.stem)
def test_so_it_does_for_all_pairs_of_range_and_tenants(
    path: Path, length: str, tenants: str, seeded: Store
) -> None:
    dashboard = harness.load(path)
    context = harness.context_of(seeded, dashboard, length, tenants)

    assert harness.faults(seeded, list(harness.queries(dashboard, context))) == []
