"""JSON becomes events exactly, and bytes become events or a refusal, never anything else."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_metering.contract.event import UsageEvent
from otel_metering.errors import MeteringError
from query_api.cursor import Cursor, decode
from query_api.intake import MAX_REASON_LENGTH, parse_events
from query_api.periods import Range
from query_api.schemas import decimal_text

GOOD = {"tenant_id": "tenant_a", "meter": "api.calls"}


def reason(event: Any, bound: str | None = None) -> str:
    intake = parse_events(json.dumps([event, GOOD]).encode(), bound)
    assert len(intake.events) == 1 or bound
    return intake.rejected[0][1]


def test_defaults_are_one_unit_on_arrival() -> None:
    intake = parse_events(json.dumps(GOOD).encode(), None)

    assert list(intake.events) == [UsageEvent(tenant_id="tenant_a", meter="api.calls")]


@given(st.decimals(1 - 2**63, 2**63 - 1, places=9), st.booleans())
def test_a_number_is_read_exactly_quoted_or_not(quantity: Decimal, quoted: bool) -> None:
    text = f'"{quantity:f}"' if quoted else f"{quantity:f}"
    body = f'{{"tenant_id": "a", "meter": "m", "quantity": {text}}}'

    intake = parse_events(body.encode(), None)

    assert intake.events[0].quantity == quantity


@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, places=9, min_value=-(10**28), max_value=10**28
    )
)
def test_decimal_text_is_exact_and_short(value: Decimal) -> None:
    text = decimal_text(value)

    assert Decimal(text) == value
    assert "e" not in text.lower()
    assert not ("." in text and text[-1] in "0.")
    assert text != "-0"


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (7, "not an object"),
        ([], "not an object"),
        ({"meter": "m"}, "tenant_id is missing"),
        ({**GOOD, "tenant_id": ""}, "tenant_id ''"),
        ({**GOOD, "tenant_id": 7}, "tenant_id is not a string"),
        ({"tenant_id": "a"}, "meter ''"),
        ({**GOOD, "meter": "a b"}, "rename it"),
        ({**GOOD, "quantity": "1,5"}, "write it like 12.5"),
        ({**GOOD, "quantity": "NaN"}, "write it like 12.5"),
        ({**GOOD, "quantity": " 1"}, "write it like 12.5"),
        ({**GOOD, "quantity": "1_000"}, "write it like 12.5"),
        ({**GOOD, "quantity": "1" * 65}, "64 characters"),
        ({**GOOD, "quantity": 10**70}, "64 characters"),
        ({**GOOD, "quantity": "1e-10"}, "decimal places"),
        ({**GOOD, "quantity": "1e999"}, "beyond"),
        ({**GOOD, "quantity": "1e9999"}, "digits of exponent"),
        ({**GOOD, "quantity": "9223372036854775808"}, "beyond"),
        ({**GOOD, "quantity": True}, "no number"),
        ({**GOOD, "event_id": ""}, "1 to 256"),
        ({**GOOD, "event_id": "x" * 257}, "1 to 256"),
        ({**GOOD, "event_id": "\ud800"}, "Unicode"),
        ({**GOOD, "timestamp": 1}, "not a string"),
        ({**GOOD, "timestamp": "2026-01-01T00:00:00"}, "RFC 3339"),
        ({**GOOD, "attributes": []}, "not an object"),
        ({**GOOD, "attributes": {"a": {}}}, "flatten it"),
        ({**GOOD, "attributes": {"a": []}}, "flatten it"),
        ({**GOOD, "attributes": {"": "x"}}, "is empty"),
        ({**GOOD, "attributes": {"a": "\udfff"}}, "Unicode"),
        ({**GOOD, "attributes": {"tenant.id": "b"}}, "use the field tenant_id"),
        ({**GOOD, "attributes": {"metering.event.id": "b"}}, "use the field event_id"),
        ({**GOOD, "tenant": "a"}, "unknown fields: tenant"),
    ],
)
def test_an_event_that_cannot_be_counted_says_why(event: Any, said: str) -> None:
    assert said in reason(event)


@pytest.mark.parametrize(
    "number", ["1e999999999999999999999", "1" * 5000, "1e-999999999999999999999"]
)
def test_an_absurd_number_costs_its_neighbours_nothing(number: str) -> None:
    body = f'[{{"tenant_id": "a", "meter": "m", "quantity": {number}}}, {json.dumps(GOOD)}]'

    intake = parse_events(body.encode(), None)

    assert list(intake.positions) == [1]


def test_a_bound_sender_writes_its_tenant_alone() -> None:
    intake = parse_events(json.dumps([{"meter": "m"}, GOOD]).encode(), "tenant_b")

    assert [event.tenant_id for event in intake.events] == ["tenant_b"]
    assert [index for index, _ in intake.rejected] == [1]


def test_a_reason_is_bounded_whatever_the_event() -> None:
    assert len(reason({**GOOD, "x" * 100_000: 1})) == MAX_REASON_LENGTH


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(list(GOOD)), inner),
)


@given(st.binary() | documents.map(lambda document: json.dumps(document).encode()))
def test_any_bytes_are_events_or_a_refusal(body: bytes) -> None:
    try:
        intake = parse_events(body, None)
    except MeteringError:
        return

    assert len(intake.events) == len(intake.positions)


@given(st.integers(0, 2**63 - 1), st.uuids())
def test_a_cursor_survives_its_text(instant: int, event_id: Any) -> None:
    cursor = Cursor(range=Range(0, 2**62), timestamp_ns=instant, event_id=str(event_id))

    assert decode(cursor.encode()) == cursor


@given(st.text())
def test_any_other_text_is_no_cursor(text: str) -> None:
    with pytest.raises(MeteringError, match="not one of ours"):
        decode(text)
