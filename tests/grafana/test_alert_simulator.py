"""The simulator of alert rules does as Grafana's sources do; the rules of those are the titles here."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from grafana.emulator.alert_source import AskError
from grafana.emulator.alerts import Simulation, State, duration, numbers
from grafana.emulator.frames import Column, Frame, table

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)

Answer = Mapping[str, float | None] | None
"""Tenant -> value; None: the data source fails."""


class Answers:
    """A data source that was told what to answer, minute by minute; at the end the last answer stays."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._answers = answers

    def __call__(self, query: Mapping[str, Any], at: datetime) -> Frame | None:
        answer = self._answers[min((at - NOON) // MINUTE, len(self._answers) - 1)]
        if answer is None:
            raise AskError("timeout")
        return frame(answer) if answer else None


def frame(answer: Mapping[str, float | None]) -> Frame:
    columns = [Column("tenant_id", "String"), Column("value", "Nullable(Float64)")]
    return table(columns, list(answer.items()))


def rule(**changes: Any) -> dict[str, Any]:
    """Fires above 80, recovers below 70, after two minutes."""
    evaluators = {
        "evaluator": {"type": "gt", "params": [80]},
        "unloadEvaluator": {"type": "lt", "params": [70]},
    }
    return {
        "title": "Too much",
        "condition": "C",
        "data": [
            {"refId": "A", "datasourceUid": "metering-clickhouse", "model": {}},
            {
                "refId": "B",
                "datasourceUid": "__expr__",
                "model": {"type": "reduce", "expression": "A", "settings": {"mode": "dropNN"}},
            },
            {
                "refId": "C",
                "datasourceUid": "__expr__",
                "model": {"type": "threshold", "expression": "B", "conditions": [evaluators]},
            },
        ],
        "for": "2m",
        "keepFiringFor": "0s",
        "noDataState": "OK",
        "execErrState": "KeepLast",
        "labels": {"severity": "warning"},
        **changes,
    }


def states(answers: Sequence[Answer], tenant: str = "acme", **changes: Any) -> list[str]:
    """State of a tenant's instance after each minute; a dash: there is none."""
    simulation = Simulation(rule(**changes), MINUTE, Answers(answers))
    found = []
    for minute in range(len(answers)):
        simulation.evaluate(NOON + minute * MINUTE)
        instance = simulation.instances.get(frozenset({("tenant_id", tenant)}))
        found.append(str(instance.state) if instance else "-")
    return found


def fired(answers: Sequence[Answer], **changes: Any) -> list[list[str]]:
    """Names of the alerts after each minute."""
    simulation = Simulation(rule(**changes), MINUTE, Answers(answers))
    end = NOON + (len(answers) - 1) * MINUTE
    return [sorted(alert.name for alert in alerts) for alerts in simulation.run(NOON, end)]


def test_an_instance_waits_before_it_fires() -> None:
    assert states([{"acme": 90}] * 4) == ["Pending", "Pending", "Alerting", "Alerting"]


def test_without_a_wait_it_fires_at_once() -> None:
    assert states([{"acme": 90}], **{"for": "0s"}) == ["Alerting"]


def test_one_good_value_begins_the_wait_anew() -> None:
    answers = [{"acme": value} for value in (90, 90, 60, 90, 90, 90)]

    assert states(answers) == ["Pending", "Pending", "Normal", "Pending", "Pending", "Alerting"]


def test_between_the_limits_an_instance_stays_what_it_was() -> None:
    answers = [{"acme": value} for value in (75, 90, 75, 75, 75, 69, 75)]

    assert states(answers) == [
        *("Normal", "Pending", "Pending", "Alerting", "Alerting", "Normal", "Normal"),
    ]


def test_each_instance_has_its_own_limit() -> None:
    answers = [{"acme": 90, "globex": 75}, {"acme": 75, "globex": 75}]

    assert states(answers) == ["Pending", "Pending"]
    assert states(answers, "globex") == ["Normal", "Normal"]


def test_at_the_limit_nothing_fires() -> None:
    assert states([{"acme": 80}]) == ["Normal"]


def test_a_recovering_instance_still_fires_and_needs_no_wait() -> None:
    answers = [{"acme": value} for value in (90, 90, 90, 60, 90, 60, 60, 60, 60)]
    kept = {"keepFiringFor": "3m"}

    assert states(answers, **kept)[2:] == [
        *("Alerting", "Recovering", "Alerting", "Recovering", "Recovering", "Recovering", "Normal"),
    ]
    assert fired(answers, **kept) == [[], [], *[["Too much"]] * 6, []]


def test_alerts_have_the_labels_of_rule_and_row() -> None:
    simulation = Simulation(rule(**{"for": "0s"}), MINUTE, Answers([{"acme": 90, "globex": 1}]))

    (alert,) = simulation.evaluate(NOON)

    assert (alert.name, alert.labels) == (
        "Too much",
        {"tenant_id": "acme", "severity": "warning"},
    )


def test_an_instance_that_is_missing_twice_is_resolved_and_the_others_are_not() -> None:
    both, one = {"acme": 90.0, "globex": 90.0}, {"globex": 90.0}
    answers = [both, both, both, one, one, one]

    assert states(answers) == ["Pending", "Pending", "Alerting", "Alerting", "-", "-"]
    assert states(answers, "globex")[-1] == "Alerting"


@pytest.mark.parametrize(
    ("when", "what"),
    [("OK", ["Alerting", "Normal"]), ("Alerting", ["Alerting", "Alerting"])],
)
def test_without_rows_every_instance_is_what_the_rule_says(when: str, what: list[str]) -> None:
    answers: list[Answer] = [*[{"acme": 90.0}] * 3, {}]

    assert states(answers, noDataState=when)[-2:] == what


def test_without_rows_and_instances_the_source_itself_is_one() -> None:
    assert fired([{}] * 3, noDataState="Alerting") == [[], [], ["Too much"]]
    assert fired([{}] * 3, noDataState="OK") == [[], [], []]
    assert fired([{}] * 3, noDataState="NoData") == [["DatasourceNoData"]] * 3


def test_the_alert_about_no_rows_ends_with_the_first_rows() -> None:
    assert fired([{}, {}, {}, {"acme": 1}, {"acme": 1}], noDataState="NoData") == [
        *[["DatasourceNoData"]] * 3, [], [],
    ]  # fmt: skip


def test_an_error_keeps_what_was() -> None:
    answers: list[Answer] = [{"acme": 90.0, "globex": 1.0}] * 3 + [None] * 3

    assert states(answers)[2:] == ["Alerting"] * 4
    assert states(answers, "globex") == ["Normal"] * 6


def test_while_the_source_fails_a_wait_goes_on_and_ends() -> None:
    assert states([{"acme": 90}, None, None]) == ["Pending", "Pending", "Alerting"]


def test_after_an_error_the_limit_is_the_upper_one_again() -> None:
    # Its state has a reason, and those with a reason do not count as above.
    answers: list[Answer] = [*[{"acme": 90.0}] * 3, None, {"acme": 75.0}]

    assert states(answers)[-2:] == ["Alerting", "Normal"]


def test_an_error_can_be_an_alert_of_its_own_at_once() -> None:
    answers: list[Answer] = [{"acme": 1.0}, None, {"acme": 1.0}]

    assert fired(answers, execErrState="Error") == [[], ["DatasourceError"], []]


def test_an_error_can_count_as_a_value_above_the_limit() -> None:
    assert fired([{"acme": 1.0}, None, None, None], execErrState="Alerting") == [
        [], [], [], ["Too much"],
    ]  # fmt: skip


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_no_number_is_dropped(value: float | None) -> None:
    assert states([{"acme": value, "globex": 90}]) == ["-"]


def test_rows_that_cannot_be_told_apart_are_an_error() -> None:
    twice = table([Column("tenant_id", "String"), Column("value", "Float64")], [("a", 1), ("a", 2)])

    with pytest.raises(AskError, match="duplicate results with labels"):
        numbers(twice)


@pytest.mark.parametrize("kind", ["Float64", "DateTime", "Bool", "Array(String)"])
def test_beside_one_number_there_may_be_texts_only(kind: str) -> None:
    columns = [Column("value", "Float64"), Column("other", kind)]

    with pytest.raises(AskError, match="input data must be a wide series"):
        numbers(table(columns, [(1, NOON)]))


def test_steps_have_to_fit_together() -> None:
    broken = rule()
    broken["data"][2]["model"]["expression"] = "$B"
    simulation = Simulation(broken, MINUTE, Answers([{"acme": 1}]))

    simulation.evaluate(NOON)

    assert "which is no step before" in simulation.error


def test_a_threshold_has_one_condition() -> None:
    broken = rule()
    broken["data"][2]["model"]["conditions"] *= 2
    simulation = Simulation(broken, MINUTE, Answers([{"acme": 1}]))

    simulation.evaluate(NOON)

    assert "exactly one condition" in simulation.error


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("1h30m", 5400), ("2d", 172_800), ("0", 0)]
)
def test_durations_are_those_of_prometheus(text: str, seconds: int) -> None:
    assert duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "5", "5 m", "m", "1.5h", "-1m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        duration(text)


def test_a_state_that_grafana_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="KeepLastState"):
        states([None], execErrState="KeepLastState")


def test_an_instance_starts_as_normal() -> None:
    assert states([{"acme": 1}]) == [State.NORMAL]
