"""Every query of the dashboards' files, and what has to hold for the answer of each."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from grafana.builders.write import ROOT
from grafana.emulator import frames, run
from grafana.emulator.frames import FrameError
from grafana.emulator.time_range import Context, TimeRange, Value
from otel_metering.errors import MeteringError
from receiver.store.client import Store
from tests.grafana.conftest import NOW

ALL = ("$__all",)
RANGES = {"1h": timedelta(hours=1), "24h": timedelta(hours=24), "30d": timedelta(days=30)}
SELECTIONS: Mapping[str, Value] = {
    "one": ("acme",),
    "many": ("acme", "globex"),
    "all": ALL,
    "gone": ("nobody-has-this-name",),
}
REPEATS = 2
"""Of how many values a repeated row is tried, to be quick."""

_COLUMNS: dict[str, Sequence[frames.Column]] = {}
"""Of each query's answer."""

FILES = sorted((ROOT / "dashboards").glob("*.json"))


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query of a dashboard, ready to be expanded."""

    where: str
    target: Mapping[str, Any]
    context: Context
    panel: Mapping[str, Any] = field(default_factory=dict)


def context_of(store: Store, dashboard: Mapping[str, Any], length: str, tenants: str) -> Context:
    """As the page has it when it is opened with these tenants: variables from top to bottom."""
    context = Context(time=TimeRange.last(RANGES[length], NOW))
    for variable in dashboard["templating"]["list"]:
        name, options = variable["name"], tuple[str, ...]()
        value: Value
        if variable["type"] == "query":
            options = tuple(one for one, _ in run.options_of(store, variable, context))
            value = ALL if variable["includeAll"] else (options[0] if options else "")
            if name == "tenant":
                value = _tenants(tenants, is_multi=variable["multi"], first=value)
        elif variable["type"] == "custom" and variable["includeAll"]:
            options, value = tuple(variable["query"].split(",")), ALL
        else:
            value = variable["current"]["value"]
        context = replace(
            context,
            variables={**context.variables, name: value},
            options={**context.options, name: options},
        )
    return context


def _tenants(selection: str, *, is_multi: bool, first: Value) -> Value:
    chosen = SELECTIONS[selection]
    if is_multi:
        return chosen
    return first if selection == "all" else chosen[0]


def queries(dashboard: Mapping[str, Any], context: Context) -> Iterator[Query]:
    """Variables, annotations and targets; of repeated rows those of the first values."""
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            target = {**variable["query"]}
            yield Query(where=f"variable {variable['name']}", target=target, context=context)
    for annotation in dashboard["annotations"]["list"]:
        if "target" in annotation:
            yield Query(
                where=f"annotation {annotation['name']}",
                target=annotation["target"],
                context=context,
            )
    few = {name: values[:REPEATS] for name, values in context.options.items()}
    for panel, scope in run.repeated(dashboard, replace(context, options=few)):
        scoped = replace(scope, options=context.options)
        for target in panel["targets"]:
            where = f"panel {panel['title']!r} {target['refId']} {dict(scope.scoped) or ''}"
            yield Query(where=where, target=target, context=scoped, panel=panel)


def faults(store: Store, asked: Sequence[Query]) -> list[str]:
    """What is wrong with their answers; two at a time, as the engine lets go of Python's lock."""
    with ThreadPoolExecutor(2) as pool:
        return [
            one for found in pool.map(lambda query: _faults(store, query), asked) for one in found
        ]


def _faults(store: Store, query: Query) -> list[str]:
    try:
        # What a query's columns are depends on nothing that is chosen; asking costs as much as the answer.
        known = _COLUMNS.get(query.target["rawSql"], ())
        answer = run.answer(store, query.target, query.context, known)
        _COLUMNS[query.target["rawSql"]] = answer.columns
        found = _shape(query, answer)
        answer.frame()
    except (MeteringError, FrameError, ValueError) as error:
        found = [f"{type(error).__name__}: {error}"]
    return [f"{query.where}: {one}" for one in found]


def _shape(query: Query, answer: run.Answer) -> list[str]:
    found = []
    names = [column.name for column in answer.columns]
    types = [column.field_type for column in answer.columns]
    if len(set(names)) != len(names):
        found.append(f"columns of one name: {names}")
    if answer.is_series:
        if types[0] != "time":
            found.append(f"a time series begins with a {types[0]}")
        if types.count("time") != 1 or "number" not in types:
            found.append(f"a time series of {types}")
        if doubles := frames.duplicates(answer.columns, answer.rows):
            found.append(f"{doubles} rows with time and labels of another")
    if "other" in types:
        found.append(f"a column that panels cannot draw: {dict(zip(names, types, strict=True))}")
    if query.where.startswith("annotation") and not {"time", "text", "tags"} <= set(names):
        found.append(f"an annotation of {names}")
    if query.where.startswith("variable") and types != ["string"] * len(types):
        found.append(f"values of {types}")
    return [*found, *_overrides(query.panel, names, answer)]


def _overrides(panel: Mapping[str, Any], names: Sequence[str], answer: run.Answer) -> list[str]:
    """Columns that a panel has rules for have to be there: else a column's name was misspelt."""
    if not panel or panel["type"] != "table" or len(panel["targets"]) > 1:
        return []
    ruled = {
        override["matcher"]["options"]
        for override in panel["fieldConfig"]["overrides"]
        if override["matcher"]["id"] == "byName"
    }
    renamed = _renamed(panel)
    return [
        f"a rule for the column {one!r}, and there is {names}"
        for one in ruled - set(names) - renamed
    ]


def _renamed(panel: Mapping[str, Any]) -> set[str]:
    """Names that transformations make."""
    return {
        new
        for step in panel.get("transformations") or []
        for new in (step.get("options") or {}).get("renameByName", {}).values()
    }
