"""A new installation: the dashboards about operations are empty, and accuse nobody."""

from pathlib import Path

from grafana.builders.dashboard import panels_of
from grafana.builders.dashboards import keys, llm, pipeline, quality, quotas
from tests.grafana.operations import last, migrated, rows

ZEROS = {
    "Refused attempts",
    "With revoked keys",
    "Revoked, let in",
    "In quarantine",
    "Intervals that are missing here",
    "Ahead of time",
    "Conflicts",
    "Open in quarantine",
    "Meters without definition",
}
"""Counts of faults: nothing at all is none of them."""


def test_a_new_installation_shows_empty_states_and_no_faults(tmp_path: Path) -> None:
    with migrated(tmp_path) as store:
        for build in (quotas.build, keys.build, pipeline.build, quality.build, llm.build):
            dashboard = build()
            for panel in panels_of(dashboard.to_json()):
                found = rows(store, dashboard, panel["title"], last(24), chosen={"llm_meter": ""})
                cells = {cell for row in found for cell in row.values() if cell is not None}
                assert cells <= ({0} if panel["title"] in ZEROS else set()), panel["title"]
