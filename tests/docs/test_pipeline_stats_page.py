"""The page about the receiver's numbers has each of them, as the catalog describes it."""

from pathlib import Path

from receiver.catalog import CATALOG

PAGE = Path(__file__).parents[2] / "docs" / "pipeline_stats.md"


def test_the_page_has_every_number() -> None:
    lines = PAGE.read_text().splitlines()

    for metric in CATALOG:
        cells = [f"`{metric.stage}`", f"`{metric.name}`", str(metric.kind), f"`{metric.unit}`"]
        cells += [f"`{metric.prometheus_name}`", metric.help]
        assert f"| {' | '.join(cells)} |" in lines
