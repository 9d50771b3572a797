"""The dashboards, one module each."""

from collections.abc import Callable
from typing import Final

from grafana.builders.dashboard import Dashboard
from grafana.builders.dashboards import keys, llm, overview, pipeline, quality, quotas

ALL: Final[tuple[Callable[[], Dashboard], ...]] = (
    overview.build,
    quotas.build,
    keys.build,
    pipeline.build,
    quality.build,
    llm.build,
)
"""In the order of the menu."""
