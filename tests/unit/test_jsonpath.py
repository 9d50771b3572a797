"""JSONPath, as far as it leads to one value."""

import pytest

from otel_metering.errors import InvalidUsageError
from query_api.jsonpath import find, parse_path, place

DOCUMENT = {
    "tokens": 3,
    "a": {"b": "deep"},
    "x.y": "dotted",
    "list": [{"n": 1}, 2],
    "it's": "quoted",
    "\u00e9t\u00e9": "accent",
    "null": None,
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("$.tokens", 3),
        ("$.a.b", "deep"),
        ("$['x.y']", "dotted"),
        ('$["x.y"]', "dotted"),
        ("$['a']['b']", "deep"),
        ("$.list[0].n", 1),
        ("$.list[1]", 2),
        (r"$['it\'s']", "quoted"),
        ('$["it\'s"]', "quoted"),
        ("$.\u00e9t\u00e9", "accent"),
        ("$", DOCUMENT),
        ("$.null", None),
        ("$.missing", None),
        ("$.tokens.deeper", None),
        ("$.list[9]", None),
        ("$.a[0]", None),
    ],
)
def test_a_path_leads_to_its_value(path: str, value: object) -> None:
    assert find(parse_path(path), DOCUMENT) == value


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("tokens", "does not begin with $"),
        ("", "0 characters"),
        ("$" + ".a" * 200, "401 characters"),
        ("$..tokens", "descendants"),
        ("$.*", "wildcards"),
        ("$[*]", "wildcards"),
        ("$.list[1:2]", "slices"),
        ("$.list[-1]", "from the end"),
        ("$['a','b']", "several selectors"),
        ("$[?(@.a)]", "filters"),
        ("$.", "character 2"),
        ("$.a b", "character 4"),
        ("$['a", "character 2"),
        ("$.list[01]", "character 7"),
    ],
)
def test_a_path_that_is_not_supported_says_why(path: str, said: str) -> None:
    with pytest.raises(InvalidUsageError, match=said.replace("$", r"\$")):
        parse_path(path)


def test_what_is_placed_is_found_again() -> None:
    document: dict[str, object] = {}

    place(parse_path("$.a.b"), document, "1")
    place(parse_path("$['x.y']"), document, "2")
    place(parse_path("$.a.b.c"), document, "left out: b is a value")
    place(parse_path("$.list[0]"), document, "left out")

    assert document == {"a": {"b": "1"}, "x.y": "2"}
