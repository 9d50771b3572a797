"""The dashboards, one module each."""

from collections.abc import Callable
from typing import Final

from grafana.builders.dashboard import Dashboard
from grafana.builders.dashboards import (
    events,
    keys,
    llm,
    overview,
    pipeline,
    quality,
    quotas,
    tenant,
)

ALL: Final[tuple[Callable[[], Dashboard], ...]] = (
    overview.build,
    tenant.build,
    events.build,
    quotas.build,
    keys.build,
    pipeline.build,
    quality.build,
    llm.build,
)
"""In the order of the menu."""
