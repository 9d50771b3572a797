"""What a meter definition means: which items it takes, and what of them it takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_metering.contract.condition import Condition, matches_pattern, parse_conditions
from otel_metering.contract.fields import FieldPath
from otel_metering.contract.meter import (
    Attribute,
    Measure,
    MeterDefinition,
    Signal,
    SpanKind,
    parse_meters,
)
from otel_metering.errors import DefinitionError


def definition(**fields: object) -> MeterDefinition:
    (found,) = parse_meters({"meters": [{"slug": "m", **fields}]}).definitions
    return found


def condition(value: object) -> Condition:
    (found,) = parse_conditions({"a": value}, ())
    return found


@pytest.mark.parametrize(
    ("value", "held", "not_held"),
    [
        ("eu", ["eu"], ["EU", "eu ", "", None]),
        ("", [""], ["x", None]),
        (True, ["true"], ["True", "1", "false", None]),
        (False, ["false"], ["true", None]),
        (200, ["200", "200.0"], ["2000", "20", None]),
        (-1.0, ["-1", "-1.0"], ["1", None]),
        (0.5, ["0.5"], ["0.50", "5", None]),
        (10**18, [str(10**18)], ["1e+18", None]),
        ("200", ["200"], ["200.0", None]),
        ("5??", ["500", "5xx"], ["50", "5000", None]),
        ("/api/*", ["/api/", "/api/a/b", "/api/\n"], ["/API/x", "x/api/", None]),
        ("*", ["", "x"], [None]),
        (None, [None], ["", "x"]),
        (["a", 1, True], ["a", "1", "1.0", "true"], ["b", "2", None]),
        ([None, "free*"], [None, "free", "freemium"], ["paid", ""]),
        ("[ab]", ["[ab]"], ["a", "b"]),
        ("a.c", ["a.c"], ["abc"]),
    ],
)
def test_a_condition_holds_for_the_texts_it_names(
    value: object, held: list[str | None], not_held: list[str | None]
) -> None:
    found = condition(value)

    assert [text for text in (*held, *not_held) if found.holds(text)] == held


def is_match(text: str, pattern: str) -> bool:
    """The meaning of `*` and `?`, by recursion."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(is_match(text[i:], pattern[1:]) for i in range(len(text) + 1))
    return bool(text) and pattern[0] in ("?", text[0]) and is_match(text[1:], pattern[1:])


@given(
    text=st.text("ab[]!-\n", max_size=6),
    pattern=st.text("ab[]!-*?\n", max_size=6),
)
def test_only_the_star_and_the_question_mark_are_wild(text: str, pattern: str) -> None:
    assert matches_pattern(text, pattern) == is_match(text, pattern)


def test_every_condition_must_hold() -> None:
    source = definition(source={"signal": "span", "where": {"a": "x", "b": None, "c": "*"}}).source
    assert source is not None

    assert source.admits({"a": "x", "c": ""}.get)
    assert not source.admits({"a": "x"}.get)
    assert not source.admits({"a": "x", "b": "", "c": ""}.get)
    assert not source.admits({"c": ""}.get)


def test_a_source_matches_by_signal_name_scope_and_kind() -> None:
    source = definition(
        source={"signal": "span", "name": "GET *", "kind": "server", "scope": "io.*.http"}
    ).source
    assert source is not None

    def is_fed(
        signal: Signal = Signal.SPAN,
        name: str = "GET /x",
        scope: str = "io.a.http",
        kind: SpanKind | None = SpanKind.SERVER,
    ) -> bool:
        return source.matches(signal=signal, name=name, scope=scope, kind=kind)

    assert is_fed()
    assert not is_fed(signal=Signal.LOG)
    assert not is_fed(name="get /x")
    assert not is_fed(scope="io.http")
    assert not is_fed(kind=SpanKind.CLIENT)
    assert not is_fed(kind=None)


def test_one_item_may_feed_several_meters() -> None:
    meters = parse_meters(
        {
            "meters": [
                {"slug": slug, "source": {"signal": "log", "name": name}}
                for slug, name in (("all", "*"), ("some", "a*"), ("others", "b*"))
            ]
        }
    )

    fed = meters.fed_by(signal=Signal.LOG, name="abc", scope="")

    assert [one.slug for one in fed] == ["all", "some"]


METRIC, SPAN, LOG = ({"signal": signal} for signal in ("metric", "span", "log"))


@pytest.mark.parametrize(
    ("source", "value", "typed"),
    [
        (SPAN, "duration", Measure.DURATION),
        (METRIC, "count", Measure.COUNT),
        (METRIC, "sum", Measure.SUM),
        (SPAN, "tokens", Attribute("tokens")),
        (LOG, {"attribute": "tokens"}, Attribute("tokens")),
        (SPAN, {"attribute": "count"}, Attribute("count")),
        (LOG, {"attribute": "duration"}, Attribute("duration")),
        (SPAN, None, None),
    ],
)
def test_a_value_is_a_measure_or_an_attribute(source: object, value: object, typed: object) -> None:
    fields = {} if value is None else {"value": value}

    found = definition(source=source, **fields)

    assert found.value == typed
    assert found.is_duration == (typed is Measure.DURATION)
    assert found.quantity_attribute == (typed.name if isinstance(typed, Attribute) else None)
    assert found.unique_attribute is None


@pytest.mark.parametrize("source", [{}, {"source": METRIC}, {"source": SPAN}, {"source": LOG}])
def test_a_unique_count_counts_an_attribute_whatever_the_source(source: dict[str, object]) -> None:
    found = definition(**source, aggregation="unique_count", value="enduser.id")

    assert found.unique_attribute == "enduser.id"
    assert found.quantity_attribute is None


@pytest.mark.parametrize(
    ("aggregation", "value", "measure"),
    [
        ("count", None, Measure.COUNT),
        ("sum", None, Measure.SUM),
        ("p99", None, Measure.SUM),
        ("count", "sum", Measure.SUM),
        ("sum", "count", Measure.COUNT),
    ],
)
def test_a_histogram_is_its_count_for_a_count_and_else_its_sum(
    aggregation: str, value: str | None, measure: Measure
) -> None:
    fields = {} if value is None else {"value": value}

    found = definition(source=METRIC, aggregation=aggregation, **fields)

    assert found.distribution_measure is measure


def test_a_definition_may_name_the_attribute_of_its_tenant() -> None:
    assert definition().tenant == "tenant.id"
    assert definition(tenant="customer.id").tenant == "customer.id"


def test_a_slug_without_a_definition_has_the_defaults() -> None:
    meters = parse_meters({"meters": [{"slug": "a", "unit": "By"}]})

    assert meters.find("a").unit == "By"
    assert meters.find("b") == MeterDefinition(slug="b")


@pytest.mark.parametrize("value", [[], (), {}, float("nan"), float("inf"), {"x": 1}, [["x"]], b"x"])
def test_what_is_no_condition_is_refused_with_its_path(value: object) -> None:
    with pytest.raises(DefinitionError) as caught:
        definition(source={"signal": "span", "where": {"http.x": value}})

    assert caught.value.path[:5] == ("meters", 0, "source", "where", "http.x")
    assert str(caught.value).startswith("meters[0].source.where['http.x']")


documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.dates()
    | st.binary(max_size=3)
    | st.text(max_size=5)
    | st.sampled_from(["span", "metric", "log", "count", "sum", "duration", "unique_count", "m"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            [
                "meters", "slug", "source", "aggregation", "value", "tenant", "group_by", "unit",
                "description", "signal", "name", "kind", "scope", "where", "attribute",
            ]
        )
        | st.text(max_size=3)
        | st.integers(),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip
definitions = st.fixed_dictionaries(
    {"slug": st.sampled_from(["a", "b", "c"]) | documents},
    optional={
        "source": st.fixed_dictionaries(
            {"signal": st.sampled_from(["span", "metric", "log"]) | documents},
            optional={"name": documents, "kind": documents, "where": documents},
        ),
        "aggregation": st.sampled_from(["sum", "count", "unique_count"]) | documents,
        "value": documents,
        "tenant": documents,
        "group_by": documents,
    },
)
files = documents | st.fixed_dictionaries({"meters": st.lists(definitions, max_size=3)})


@given(document=files)
def test_any_document_gives_meters_or_an_error_with_a_path_into_it(document: object) -> None:
    path = path_of_the_error_in(document)

    reached: object = document
    for step in path[:-1]:  # the last may be what is missing
        assert isinstance(reached, list | dict)
        reached = reached[step]  # type: ignore[index]  # a list by numbers, a mapping by keys


def path_of_the_error_in(document: object) -> FieldPath:
    try:
        parse_meters(document)
    except DefinitionError as error:
        return error.path
    return ()
