"""Requests become SQL in which nothing of the request stands as text."""

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_metering.contract.meter import Aggregation, MeterDefinition
from otel_metering.errors import InvalidUsageError
from query_api import event_queries, queries
from query_api.aggregates import Order, Page, Question, Row, finish, mean, page
from query_api.event_queries import CorrectionsRequest, EventsRequest, Position, Shape
from query_api.filters import Filter, Operator
from query_api.periods import MAX_NS, Range
from query_api.queries import AggregateRequest, ReadFrom, Statement, check_dimensions
from query_api.windows import Window
from query_api.zones import Zone

MARK = "zz'; DROP TABLE x --"
METER = MeterDefinition(slug=MARK)

ranges = st.lists(st.integers(0, MAX_NS - 1), min_size=2, max_size=2, unique=True).map(
    lambda edges: Range(*sorted(edges))
)
filters = st.builds(
    Filter,
    name=st.just(MARK),
    values=st.sampled_from([(), (MARK,), (MARK, "a")]),
    operator=st.sampled_from(Operator),
    is_attribute=st.booleans(),
)
requests = st.builds(
    AggregateRequest,
    meter=st.just(METER),
    aggregation=st.sampled_from(Aggregation),
    window=st.sampled_from([i for i in Window if i not in {Window.MINUTE, Window.QUARTER_HOUR}]),
    range=st.builds(
        lambda start, length: Range(start, start + length),
        st.integers(0, MAX_NS - 10**17),
        st.integers(1, 10**17 - 1),
    ),
    zone=st.sampled_from([Zone("UTC"), Zone("Asia/Kathmandu")]),
    tenant_id=st.sampled_from([None, MARK]),
    group_by=st.sampled_from([("tenant_id",), (MARK, "tenant_id"), (MARK, MARK + "2")]),
    filters=st.lists(filters, max_size=2).map(tuple),
    source=st.sampled_from(ReadFrom),
)
questions = st.builds(
    Question,
    request=requests,
    order=st.sampled_from(Order),
    top=st.sampled_from([None, 3]),
    previous=st.sampled_from([None, Range(0, 10**15)]),
)


listings = st.builds(
    EventsRequest,
    range=ranges,
    limit=st.integers(1, 1001),
    tenant_id=st.sampled_from([None, MARK]),
    meter=st.sampled_from([None, MARK]),
    event_id=st.sampled_from([None, MARK]),
    filters=st.sampled_from([(), (Filter(name=MARK, values=(MARK,), operator=Operator.PREFIX),)]),
    after=st.sampled_from([None, (5, MARK)]),
)


def check(statement: Statement) -> None:
    assert MARK not in statement.sql
    placeholders = set(re.findall(r"\{(\w+):", statement.sql))
    assert placeholders == statement.parameters.keys()
    assert " LIMIT " in statement.sql


@given(questions, st.booleans(), st.sampled_from([0, 1, 2001]))
def test_every_value_of_an_aggregation_is_bound(
    question: Question, is_first: bool, corrections: int
) -> None:
    width = len(question.request.group_by)

    def answer(statement: Statement) -> list[tuple[object, ...]]:
        check(statement)
        if " AS cell " in statement.sql:
            start_s = question.request.range.start_ns // 10**9
            return [(start_s + i * 60,) for i in range(corrections)]
        return [(0, *[MARK] * width, Decimal(1), 1)]

    after = None if is_first else Row(window=0, groups=(MARK,) * width, value=Decimal(1))

    found = finish(page(question, limit=10, after=after), answer)

    assert isinstance(found, Page)


@given(listings)
def test_every_value_of_a_listing_is_bound(request: EventsRequest) -> None:
    check(event_queries.events(request))


@given(listings, st.sampled_from(Shape), st.booleans())
def test_every_value_of_an_export_is_bound(
    request: EventsRequest, shape: Shape, is_first: bool
) -> None:
    last = Position(tenant_id=MARK, meter=MARK, timestamp_ns=5, event_id=MARK)

    check(event_queries.export(request, shape, None if is_first else last))


@pytest.mark.parametrize("owner", [None, MARK])
def test_every_value_of_a_search_for_one_event_is_bound(owner: str | None) -> None:
    check(event_queries.owners(owner, owner, 5))
    check(event_queries.stored_ids([MARK]))
    check(event_queries.event_rows(owner, owner, [MARK]))
    check(event_queries.correction_of(MARK, MARK, MARK))
    check(
        event_queries.corrections(
            CorrectionsRequest(
                range=Range(1, 2), limit=5, tenant_id=owner, meter=owner, after=(5, MARK)
            )
        )
    )
    check(
        event_queries.one_event(Position(tenant_id=MARK, meter=MARK, timestamp_ns=5, event_id=MARK))
    )


@given(ranges, st.sampled_from([None, MARK]))
def test_every_value_of_the_list_of_meters_is_bound(within: Range, tenant_id: str | None) -> None:
    check(queries.meters(within, tenant_id))


def test_a_meter_that_takes_every_attribute_has_every_dimension() -> None:
    check_dimensions(MeterDefinition(slug="open"), ["whatever"])


def test_a_dimension_that_a_meter_has_not_is_refused() -> None:
    meter = MeterDefinition(slug="closed", group_by=("plan", "region"))

    check_dimensions(meter, ["region"])
    with pytest.raises(InvalidUsageError, match=r"'color'; its dimensions: plan, region; add it"):
        check_dimensions(meter, ["region", "color"])


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [
        ("1", 3, "0.333333333"),
        ("2", 3, "0.666666667"),
        ("-2", 3, "-0.666666667"),
        ("0.000000001", 2, "0"),
        ("0.000000003", 2, "0.000000002"),
        ("99999999999999999999999999999.999999999", 1, "99999999999999999999999999999.999999999"),
    ],
)
def test_a_mean_is_rounded_half_to_even_at_nine_places(
    total: str, count: int, expected: str
) -> None:
    assert mean(Decimal(total), count) == Decimal(expected)
