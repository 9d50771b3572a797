"""The dashboards, one module each."""

from collections.abc import Callable
from typing import Final

from grafana.builders.dashboard import Dashboard
from grafana.builders.dashboards import events, overview, tenant

ALL: Final[tuple[Callable[[], Dashboard], ...]] = (overview.build, tenant.build, events.build)
"""In the order of the menu."""
