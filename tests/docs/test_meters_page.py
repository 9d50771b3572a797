"""docs/meters.md is true: its examples are read, its tables are those of the code."""

import re
from pathlib import Path

import pytest

from otel_metering.contract.meter import (
    Aggregation,
    Measure,
    Meters,
    Signal,
    SpanKind,
)
from otel_metering.errors import ConfigurationError
from receiver.meters_yaml import read_text

PAGE = (Path(__file__).parents[2] / "docs" / "meters.md").read_text()
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.S | re.M)
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M))
CONDITIONS: dict[str, tuple[list[str | None], list[str | None]]] = {
    "plan: pro": (["pro"], ["Pro", None]),
    "http.route: /api/*": (["/api/x"], ["/x", None]),
    "http.response.status_code: 200": (["200", "200.0"], ["2000", None]),
    "cached: false": (["false"], ["true", None]),
    'plan: [pro, "team-*", 7]': (["pro", "team-a", "7"], ["free", None]),
    'region: "*"': (["", "eu"], [None]),
    "internal: null": ([None], ["", "no"]),
    'internal: [null, "no*"]': ([None, "no", "none"], ["yes"]),
}
"""Condition of the page -> what it says that it holds for, and not."""


def first_cells(section: str) -> list[str]:
    return re.findall(r"^\| `(.+?)` \|", SECTIONS[section], re.M)


def read(text: str) -> Meters:
    return read_text(text.encode(), "meters.yaml")


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_example_is_read(example: str) -> None:
    assert read(example).definitions


def test_the_examples_use_every_field() -> None:
    used = set(re.findall(r"(\w+):", "\n".join(EXAMPLES)))

    assert set(first_cells("Fields of a meter")) <= used


@pytest.mark.parametrize(
    ("section", "document"),
    [
        ("Fields of a meter", "meters: [{none: 1}]"),
        ("source", "meters: [{slug: a, source: {none: 1}}]"),
    ],
)
def test_the_tables_have_the_fields_of_the_code(section: str, document: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(document)
    known = str(caught.value).partition("known here are ")[2].split(", ")

    listed = [cell for cell in first_cells(section) if cell not in CONDITIONS]

    assert sorted(listed) == known


def test_the_tables_have_the_choices_of_the_code() -> None:
    choices = [
        *map(str, Aggregation),
        *map(str, SpanKind),
        *map(str, Measure),
        *map(str, (Signal.METRIC, Signal.SPAN, Signal.LOG)),
    ]

    assert [choice for choice in choices if f"`{choice}`" not in PAGE] == []


def test_each_condition_holds_for_what_the_page_says() -> None:
    assert [cell for cell in first_cells("source") if cell in CONDITIONS] == list(CONDITIONS)
    for condition, (held, not_held) in CONDITIONS.items():
        meters = read(f"meters: [{{slug: a, source: {{signal: log, where: {{{condition}}}}}}}]")
        source = meters.definitions[0].source
        assert source is not None
        (found,) = source.where
        assert [text for text in (*held, *not_held) if found.holds(text)] == held, condition


def test_the_error_of_the_page_is_the_error_of_the_code() -> None:
    (shown,) = re.findall(r"^error: (.*)$", PAGE, re.M)

    with pytest.raises(ConfigurationError) as caught:
        read("meters:\n- slug: a\n  source:\n    signal: span\n    kind: serverr")

    assert str(caught.value) == shown
