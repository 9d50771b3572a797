"""An alert rule of a provisioning file, evaluated as Grafana does.

A query's rows become instances by their texts (pkg/expr/converter.go), a reduce drops what is no number
(pkg/expr/mathexp/reduce.go), a threshold compares, by another limit what was above it before
(pkg/expr/hysteresis.go); and each instance goes from Normal through Pending to Alerting, and back through
Recovering (pkg/services/ngalert/state/{manager,state}.go). The limits of this: queries are tables (format 1), and
notifications are not grouped, repeated or sent.
"""

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from grafana.emulator.alert_source import Ask, AskError
from grafana.emulator.frames import Frame

MISSING_EVALUATIONS: Final = 2
"""Evaluations without an instance after which it is well again, where the rule does not say."""

_UNITS: Final = {
    "ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604_800, "y": 31_536_000,
}  # fmt: skip
_DURATION: Final = re.compile(r"(?:\d+(?:ms|[smhdwy]))+|0")
_PART: Final = re.compile(r"(\d+)(ms|[smhdwy])")

_COMPARE: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
    "eq": operator.eq,
    "ne": operator.ne,
}

Labels = frozenset[tuple[str, str]]


class State(StrEnum):
    """What an instance is."""

    NORMAL = "Normal"
    PENDING = "Pending"
    ALERTING = "Alerting"
    RECOVERING = "Recovering"
    NO_DATA = "NoData"
    ERROR = "Error"


@dataclass(slots=True)
class Instance:
    """One set of labels of a rule.

    Attributes:
        labels: Those of its row.
        state: What it is.
        reason: Why, where that is not its value: NoData, Error, KeepLast.
        since: When it became that.
        evaluated_at: When it was in an answer last.
        value: Of step B; None: there was none.
    """

    labels: Labels
    state: State = State.NORMAL
    reason: str = ""
    since: datetime | None = None
    evaluated_at: datetime | None = None
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Alert:
    """What a notification would be about: `name` and the labels of rule and instance."""

    name: str
    labels: Mapping[str, str]

    def __hash__(self) -> int:
        return hash((self.name, frozenset(self.labels.items())))


@dataclass(frozen=True, slots=True)
class _Result:
    labels: Labels
    state: State
    value: float | None = None


@dataclass(frozen=True, slots=True)
class _Times:
    """How long the rule waits."""

    interval: timedelta
    wait: timedelta
    keep: timedelta


@dataclass(slots=True)
class Simulation:
    """One rule, evaluated again and again.

    Attributes:
        rule: As its file has it.
        interval: That of its group.
        ask: The data source.
        instances: What it knows, by labels.
        error: Why the last evaluation failed; empty: it did not.
    """

    rule: Mapping[str, Any]
    interval: timedelta
    ask: Ask
    instances: dict[Labels, Instance] = field(default_factory=dict)
    error: str = ""

    def evaluate(self, at: datetime) -> frozenset[Alert]:
        """Evaluate the rule once; returns `alerts`."""
        results = self._results(at)
        if not self._is_for_all(results, at):
            for result in results:
                instance = self.instances.setdefault(result.labels, Instance(result.labels))
                self._next(instance, result, at)
        self._resolve_missing(at)
        return self.alerts()

    def run(self, start: datetime, end: datetime) -> list[frozenset[Alert]]:
        """Evaluate it from `start` to `end`, both included; returns the alerts of each time."""
        found = []
        at = start
        while at <= end:
            found.append(self.evaluate(at))
            at += self.interval
        return found

    def alerts(self) -> frozenset[Alert]:
        """What is firing now; one that recovers still is."""
        found = set()
        for one in self.instances.values():
            name = {
                State.ALERTING: str(self.rule["title"]),
                State.RECOVERING: str(self.rule["title"]),
                State.ERROR: "DatasourceError",
                State.NO_DATA: "DatasourceNoData",
            }.get(one.state)
            if name is not None:
                found.add(Alert(name, {**dict(one.labels), **self.rule.get("labels", {})}))
        return frozenset(found)

    @property
    def _times(self) -> _Times:
        return _Times(
            self.interval,
            duration(self.rule.get("for") or "0s"),
            duration(self.rule.get("keepFiringFor") or "0s"),
        )

    def _results(self, at: datetime) -> list[_Result]:
        self.error = ""
        query = self.rule["data"][0]
        try:
            numbers = evaluate_steps(self.rule, self._loaded(), self.ask, at)
        except AskError as error:
            self.error = str(error)
            return [_Result(frozenset(), State.ERROR)]
        if not numbers:
            source = {"datasource_uid": query["datasourceUid"], "ref_id": query["refId"]}
            return [_Result(frozenset(source.items()), State.NO_DATA)]
        return [
            _Result(labels, State.ALERTING if is_above else State.NORMAL, value)
            for labels, (value, is_above) in numbers.items()
        ]

    def _loaded(self) -> set[Labels]:
        """What counts as above the limit before: for these, the limit to recover is asked."""
        return {
            one.labels
            for one in self.instances.values()
            if not one.reason and one.state in (State.ALERTING, State.PENDING)
        }

    def _is_for_all(self, results: Sequence[_Result], at: datetime) -> bool:
        """Without an answer each known instance changes, unless that is to be an alert of its own."""
        result = results[0]
        kept = {
            State.NO_DATA: self.rule.get("noDataState", "NoData") != "NoData",
            State.ERROR: self.rule.get("execErrState", "Alerting") != "Error",
        }
        if not kept.get(result.state, False) or not self.instances:
            return False
        for instance in self.instances.values():
            self._next(instance, result, at)
        return True

    def _next(self, instance: Instance, result: _Result, at: datetime) -> None:
        instance.evaluated_at, instance.value = at, result.value
        _move(instance, self._wanted(result), at, self._times)
        instance.reason = ""
        if result.state in (State.NO_DATA, State.ERROR) and instance.state is not result.state:
            is_kept = self._wanted(result) == "KeepLast"
            instance.reason = f"{result.state}{', KeepLast' if is_kept else ''}"

    def _wanted(self, result: _Result) -> str:
        if result.state is State.NO_DATA:
            return str(self.rule.get("noDataState", "NoData"))
        if result.state is State.ERROR:
            return str(self.rule.get("execErrState", "Alerting"))
        return "Alerting" if result.state is State.ALERTING else "OK"

    def _resolve_missing(self, at: datetime) -> None:
        """An instance that is in no answer any more is forgotten; at once if it stood for a failure."""
        usual = int(self.rule.get("missing_series_evals_to_resolve") or MISSING_EVALUATIONS)
        for labels, one in list(self.instances.items()):
            evaluations = 1 if one.state in (State.ERROR, State.NO_DATA) else usual
            missing_for = at - (one.evaluated_at or at)
            if missing_for and missing_for >= evaluations * self.interval:
                del self.instances[labels]


def _move(instance: Instance, wanted: str, at: datetime, times: _Times) -> None:
    if wanted == "KeepLast":
        wanted = _kept(instance, at, times)
    if wanted == "Alerting":
        _raise(instance, at, times)
    elif wanted == "OK":
        _lower(instance, at, times)
    elif wanted in ("Error", "NoData"):
        _enter(instance, State(wanted), at)
    elif wanted != "nothing":
        raise ValueError(f"{wanted} is no state that a rule may ask for")


def _kept(instance: Instance, at: datetime, times: _Times) -> str:
    if instance.state is State.ALERTING:
        return "Alerting"
    if instance.state is State.PENDING:
        is_over = instance.since is not None and at - instance.since >= times.wait
        return "Alerting" if is_over else "nothing"
    return "OK"


def _raise(instance: Instance, at: datetime, times: _Times) -> None:
    if instance.state is State.ALERTING:
        return
    if instance.state is State.PENDING:
        if instance.since is not None and at - instance.since >= times.wait:
            _enter(instance, State.ALERTING, at)
    elif instance.state is not State.RECOVERING and times.wait:
        _enter(instance, State.PENDING, at)
    else:
        _enter(instance, State.ALERTING, at)


def _lower(instance: Instance, at: datetime, times: _Times) -> None:
    if instance.state is State.ALERTING and times.keep:
        _enter(instance, State.RECOVERING, at)
    elif instance.state is State.RECOVERING:
        if instance.since is not None and at - instance.since >= times.keep:
            _enter(instance, State.NORMAL, at)
    else:
        _enter(instance, State.NORMAL, at)


def _enter(instance: Instance, state: State, at: datetime) -> None:
    if instance.state is not state:
        instance.state, instance.since = state, at


def evaluate_steps(
    rule: Mapping[str, Any], loaded: Iterable[Labels], ask: Ask, at: datetime
) -> dict[Labels, tuple[float | None, bool]]:
    """Query, reduce and threshold of a rule; labels -> (value of the reduce, is above the limit).

    Raises:
        AskError: The data source failed, rows cannot be told apart, or steps do not fit together.
    """
    known: dict[str, dict[Labels, float | None]] = {}
    above: dict[Labels, float | None] = {}
    values: dict[Labels, float | None] = {}
    for step in rule["data"]:
        model = step["model"]
        if step["datasourceUid"] != "__expr__":
            known[step["refId"]] = numbers(ask(step, at))
            continue
        if model["expression"] not in known:
            raise AskError(f"{step['refId']} needs {model['expression']}, which is no step before")
        source = known[model["expression"]]
        if model["type"] == "reduce":
            values = known[step["refId"]] = _reduced(source, model)
        elif model["type"] == "threshold":
            above = known[step["refId"]] = _compared(source, model, set(loaded))
        else:
            raise AskError(f"step of type {model['type']}")
    if rule["condition"] not in known:
        raise AskError(f"the condition {rule['condition']} is no step")
    above = known[rule["condition"]]
    return {labels: (values.get(labels), bool(value)) for labels, value in above.items()}


def numbers(frame: Frame | None) -> dict[Labels, float | None]:
    """Each row as an instance: its texts are the labels.

    Raises:
        AskError: There is not exactly one number beside texts, or two rows have the same texts.
    """
    if frame is None or not frame.fields:
        return {}
    kinds = [one.type for one in frame.fields]
    if kinds.count("number") != 1 or set(kinds) - {"number", "string"}:
        columns = ", ".join(f"{one.name} {one.type}" for one in frame.fields)
        raise AskError(f"input data must be a wide series, and not a table of {columns}")
    number = kinds.index("number")
    texts = [i for i, kind in enumerate(kinds) if kind == "string"]
    found: dict[Labels, float | None] = {}
    for row in zip(*(one.values for one in frame.fields), strict=True):
        labels = frozenset((frame.fields[i].name, str(row[i] or "")) for i in texts)
        if labels in found:
            raise AskError(f"duplicate results with labels {dict(labels)}")
        found[labels] = None if row[number] is None else float(row[number])
    return found


def _reduced(source: Mapping[Labels, float | None], model: Mapping[str, Any]) -> dict[Labels, float | None]:  # fmt: skip
    """A row is reduced already: all that is done is what becomes of no number."""
    mode = model.get("settings", {}).get("mode", "")
    found = {}
    for labels, value in source.items():
        is_number = value is not None and math.isfinite(value)
        if is_number or not mode:
            found[labels] = value
        elif mode == "replaceNN":
            found[labels] = float(model["settings"]["replaceWithValue"])
        elif mode != "dropNN":
            raise AskError(f"reducer mode '{mode}' is not supported")
    return found


def _compared(
    source: Mapping[Labels, float | None], model: Mapping[str, Any], loaded: set[Labels]
) -> dict[Labels, float | None]:
    if len(model["conditions"]) != 1:
        raise AskError("threshold expression requires exactly one condition")
    condition = model["conditions"][0]
    unload = condition.get("unloadEvaluator")
    found: dict[Labels, float | None] = {}
    for labels, value in source.items():
        if value is None:
            found[labels] = None
        elif unload is not None and labels in loaded:
            found[labels] = float(not _holds(unload, value))
        else:
            found[labels] = float(_holds(condition["evaluator"], value))
    return found


def _holds(evaluator: Mapping[str, Any], value: float) -> bool:
    if evaluator["type"] not in _COMPARE:
        raise AskError(f"threshold function {evaluator['type']}")
    return _COMPARE[evaluator["type"]](value, float(evaluator["params"][0]))


def duration(text: str) -> timedelta:
    """Of a duration as Prometheus writes it: 1h30m.

    Raises:
        ValueError: It is none.
    """
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{text!r} is no duration")
    return timedelta(seconds=sum(int(count) * _UNITS[unit] for count, unit in _PART.findall(text)))
