"""What the pictures show: each dashboard with what its queries answer on an engine with sample data."""

import copy
import json
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from grafana.emulator import seed_usage
from grafana.emulator.alerts import duration
from grafana.emulator.run import options_of, run
from grafana.emulator.seed_operations import seed_operations
from grafana.emulator.sickness import Sickness
from grafana.emulator.time_range import Context, TimeRange, Value
from grafana.emulator.variables import ALL, replace_variables
from otel_metering.clock import ManualClock
from receiver.store.client import Store
from receiver.store.migrate import migrate

DASHBOARDS: Final = Path(__file__).parents[1] / "dashboards"

NOW: Final = datetime(2026, 11, 18, 14, 37, tzinfo=UTC)
"""A Wednesday afternoon past the middle of a month: the same picture whenever it is drawn."""

NEAR_LIMITS: Final = (Sickness.QUOTA_85, Sickness.QUOTA_120, Sickness.KEY_EXPIRING)
"""What is wrong in the pictures: as much as there is on any day."""

AILING: Final[Mapping[str, Collection[Sickness]]] = {
    "metering-keys": (Sickness.UNKNOWN_KEYS, Sickness.REVOKED_KEY_USED, Sickness.TENANT_REFUSED),
    "metering-quality": (
        Sickness.CONFLICTS,
        Sickness.FUTURE_EVENTS,
        Sickness.LATE_EVENTS,
        Sickness.ROLLUP_DRIFT,
        Sickness.UNDEFINED_METER,
    ),
}
"""What else is, on a dashboard that looks for nothing but trouble and would be a page of empty panels."""

CHOSEN: Final[Mapping[str, str]] = {"tenant": "acme"}
"""What is chosen where one value has to be; else it is the first. `event`: the newest of the sample data."""

_LENGTH: Final = re.compile(r"^now-(\d+)([mhdw])$")
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def write_sheets(path: Path, *, only: Collection[str] = ()) -> None:
    """Write the dashboards and their data as JSON.

    Args:
        path: Of the file.
        only: Uids of the dashboards; none: all of them.
    """
    found = [json.loads(file.read_text()) for file in sorted(DASHBOARDS.glob("*.json"))]
    wanted = [one for one in found if not only or one["uid"] in only]
    well = [one for one in wanted if one["uid"] not in AILING]
    sheets = _sheets(well, NEAR_LIMITS) if well else []
    for dashboard in wanted:
        if (ailing := AILING.get(dashboard["uid"])) is not None:
            sheets += _sheets([dashboard], (*NEAR_LIMITS, *ailing))
    path.write_text(json.dumps(sheets))


def _sheets(
    dashboards: Sequence[Mapping[str, Any]], sick: Collection[Sickness]
) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="preview-") as folder:
        store = Store(f"chdb://{folder}/engine")
        try:
            migrate(store, ManualClock(int(NOW.timestamp()) * 10**9))
            newest = seed_usage.seed(store, NOW)[-1]
            seed_operations(store, NOW, sick=sick)
            chosen = {**CHOSEN, "event": str(UUID(bytes=newest.event_id))}
            return [sheet(store, one, chosen) for one in dashboards]
        finally:
            store.close()


def sheet(store: Store, dashboard: Mapping[str, Any], chosen: Mapping[str, str]) -> dict[str, Any]:
    """A dashboard with its time, the choices at its top and the frames of its panels (`Sheet` in src/model.ts)."""
    time = TimeRange.last(_length(dashboard["time"]["from"]), NOW)
    context, texts = _choose(store, dashboard, Context(time=time), chosen)
    panels = list(_unrolled(dashboard["panels"], context))
    frames: dict[int, list[dict[str, Any]]] = {}
    for panel, scope in panels:
        spaced = _spaced(panel, scope)
        found = [run(store, target, spaced) for target in panel.get("targets") or []]
        frames[panel["id"]] = [one.to_json() for one in found if one is not None]
    return {
        "dashboard": {**dashboard, "panels": [panel for panel, _ in panels]},
        "from": time.begin_ms,
        "to": time.end_ms,
        "variables": texts,
        "frames": frames,
    }


def _spaced(panel: Mapping[str, Any], context: Context) -> Context:
    """The context with the panel's interval: that of the time, and never less than the panel says."""
    least = duration(panel.get("interval") or "1s") // timedelta(milliseconds=1)
    return replace(context, interval_ms=max(context.interval, least))


def _length(begin: str) -> timedelta:
    """From now-24h.

    Raises:
        ValueError: Dashboards here begin otherwise.
    """
    if (match := _LENGTH.match(begin)) is None:
        raise ValueError(f"a dashboard begins at {begin!r}, not so long before now")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _choose(
    store: Store, dashboard: Mapping[str, Any], context: Context, wanted: Mapping[str, str]
) -> tuple[Context, dict[str, dict[str, Any]]]:
    """The context with a value for each variable, and the text that stands for it at the page's top."""
    texts: dict[str, dict[str, Any]] = {}
    for variable in dashboard["templating"]["list"]:
        name, current = variable["name"], variable["current"]
        value, text = current.get("value", ""), current.get("text", "")
        options: tuple[str, ...] = ()
        if variable["type"] == "query":
            found = options_of(store, variable, context)
            options = tuple(one for one, _ in found)
            if not value:
                value, text = _first(found, wanted.get(name))
        elif variable["type"] == "textbox":
            value = text = wanted.get(name, "")
        chosen: Value = tuple(value) if isinstance(value, list) else str(value)
        context = replace(
            context,
            variables={**context.variables, name: chosen},
            options={**context.options, name: options},
        )
        shown = ", ".join(text) if isinstance(text, list) else str(text)
        texts[name] = {"text": shown, "value": value}
    return context, texts


def _first(options: Sequence[tuple[str, str]], wanted: str | None) -> tuple[str, str]:
    named = [one for one in options if one[0] == wanted]
    return (named or options or [("", "")])[0]


def _unrolled(
    panels: Sequence[Mapping[str, Any]], context: Context
) -> Iterator[tuple[dict[str, Any], Context]]:
    """The panels as they are shown: repeated rows once for each value, ids unique, each with its context."""
    next_id, shift = max(panel["id"] for panel in panels) + 1000, 0
    for row, inside in _rows(panels):
        block = [row, *inside] if row else inside
        scopes = [context]
        if row and (name := row.get("repeat")):
            scopes = [context.within(name, one) for one in _values(name, context)]
        top = min(panel["gridPos"]["y"] for panel in block)
        height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in block) - top
        for turn, scope in enumerate(scopes):
            for panel in block:
                shown = copy.deepcopy(dict(panel))
                shown["gridPos"]["y"] += shift + turn * height
                shown["title"] = replace_variables(shown.get("title") or "", scope)
                if turn:
                    shown["id"], next_id = next_id, next_id + 1
                yield shown, scope
        shift += (len(scopes) - 1) * height


def _rows(
    panels: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[Mapping[str, Any] | None, list[Mapping[str, Any]]]]:
    """Each row's header with the panels below it; None for those above the first row."""
    header: Mapping[str, Any] | None = None
    inside: list[Mapping[str, Any]] = []
    for panel in panels:
        if panel["type"] == "row":
            if header or inside:
                yield header, inside
            header, inside = panel, []
        else:
            inside.append(panel)
    yield header, inside


def _values(name: str, context: Context) -> tuple[str, ...]:
    value = context.variables[name]
    if value == (ALL,):
        return context.options[name]
    return value if isinstance(value, tuple) else (value,)
