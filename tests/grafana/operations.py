"""Panels of the dashboards about operations, asked for real, and what the seed says about usage."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

from grafana.builders.dashboard import Dashboard, panels_of
from grafana.emulator.run import answer
from grafana.emulator.seed_llm import Event
from grafana.emulator.seed_operations import Sickness, seed_operations
from grafana.emulator.time_range import Context, TimeRange, Value
from otel_metering.clock import SystemClock
from receiver.store.client import Store
from receiver.store.migrate import migrate

NOW = datetime(2026, 11, 20, 14, 37, 12, tzinfo=UTC)
"""A Friday; the seeds lead up to it."""

SICK = frozenset(Sickness) - {
    Sickness.STATS_SILENT,
    Sickness.NOTHING_INGESTED,
    Sickness.SPOOL_FILLING,
}
"""All that can be wrong at once; the others take away what some of these show."""

ALL = ("$__all",)
NOTHING: Mapping[str, Value] = MappingProxyType({})

Row = dict[str, Any]

_PANELS: dict[str, list[Row]] = {}
"""Panels of each dashboard by its uid: making them takes longer than asking them."""


@contextmanager
def migrated(folder: Path) -> Iterator[Store]:
    """An empty store in this folder; only one can be open in a process."""
    store = Store(f"chdb://{folder}")
    migrate(store, SystemClock())
    yield store
    store.close()


@contextmanager
def seeded(folder: Path, sick: Iterable[Sickness]) -> Iterator[Store]:
    """A store with an installation's day."""
    with migrated(folder) as store:
        seed_operations(store, NOW, sick=frozenset(sick))
        yield store


def last(hours: float) -> TimeRange:
    """The time that ends now."""
    return TimeRange.last(timedelta(hours=hours), NOW)


def rows(
    store: Store,
    dashboard: Dashboard,
    title: str,
    time: TimeRange,
    interval_s: int = 60,
    chosen: Mapping[str, Value] = NOTHING,
) -> list[Row]:
    """What the panel of this title gets; times are aware datetimes."""
    if dashboard.uid not in _PANELS:
        _PANELS[dashboard.uid] = panels_of(dashboard.to_json())
    (panel,) = [one for one in _PANELS[dashboard.uid] if one["title"] == title]
    variables = {"tenant": ALL, "meter": ALL, "instance": ALL, **chosen}
    context = Context(time=time, variables=variables, interval_ms=interval_s * 1_000)
    found = answer(store, panel["targets"][0], context)
    names = [column.name for column in found.columns]
    return [dict(zip(names, map(_aware, row), strict=True)) for row in found.rows]


def value(
    store: Store,
    dashboard: Dashboard,
    title: str,
    time: TimeRange,
    chosen: Mapping[str, Value] = NOTHING,
) -> Any:
    """What a panel with one number shows; None: its empty state."""
    found = rows(store, dashboard, title, time, chosen=chosen)
    return next(iter(found[-1].values())) if found else None


def total(events: Iterable[Event], key: Callable[[Event], Any]) -> dict[Any, float]:
    """Key -> tokens."""
    sums: dict[Any, float] = defaultdict(float)
    for event in events:
        sums[key(event)] += event.quantity
    return dict(sums)


def at(event: Event) -> datetime:
    """When it happened."""
    return datetime.fromtimestamp(event.at_ms / 1_000, UTC)


def _aware(found: Any) -> Any:
    return found.replace(tzinfo=UTC) if isinstance(found, datetime) else found
