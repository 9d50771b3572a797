"""Filters of meter queries, in every form that clients send."""

import pytest

from otel_metering.errors import InvalidUsageError
from query_api.openmeter_filters import joined, read_advanced, read_filters


@pytest.mark.parametrize(
    ("parameters", "filters"),
    [
        ([("filterGroupBy[a]", "1"), ("filterGroupBy[a]", "2")], {"a": ["1", "2"]}),
        ([("filterGroupBy", '{"a": "1", "b": "2"}')], {"a": ["1"], "b": ["2"]}),
        ([("filterGroupBy", "{'a': '1', 'b': \"it's\"}")], {"a": ["1"], "b": ["it's"]}),
        ([("filterGroupBy", "{}")], {}),
        ([("filterGroupBy[]", "1")], {"": ["1"]}),
        ([("other", "1")], {}),
    ],
)
def test_filters_are_read(parameters: list[tuple[str, str]], filters: dict[str, list[str]]) -> None:
    assert read_filters(parameters) == filters


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "[1]",
        "{'a': 1}",
        "{1: 'a'}",
        "{'a': ['b']}",
        "__import__('os').system('true')",
        "{'a': open('/etc/passwd').read()}",
        "{" * 4_000,
        "(" * 8_000,
        "{'a': 'b'" + " " * 9_000 + "}",
        "{'a': '\\x00'",
        "\x00",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_what_is_no_object_of_texts_is_refused(text: str) -> None:
    with pytest.raises(InvalidUsageError, match="no object of names and texts"):
        read_filters([("filterGroupBy", text)])


def test_too_many_names_are_refused() -> None:
    with pytest.raises(InvalidUsageError, match="at most 16"):
        read_filters([(f"filterGroupBy[n{i}]", "1") for i in range(17)])


def test_both_kinds_together_must_hold() -> None:
    advanced = read_advanced('{"a": {"$in": ["1", "2"]}, "b": {"$eq": "3"}}')

    assert joined({"a": ["2", "4"], "c": ["5"]}, advanced) == {"a": ["2"], "b": ["3"], "c": ["5"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "JSON"),
        ('{"a": {"$like": "x"}}', r"only \$eq and \$in"),
        ('{"a": {"$eq": 1}}', "string"),
        ('{"a": {}}', r"either \$eq or \$in"),
        ('{"a": {"$eq": "1", "$in": ["1"]}}', r"either \$eq or \$in"),
    ],
)
def test_a_condition_that_is_not_supported_is_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidUsageError, match=said):
        joined({}, read_advanced(text))
