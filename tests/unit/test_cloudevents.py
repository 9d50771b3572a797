"""CloudEvents 1.0.2: its HTTP protocol binding, its JSON format, and what becomes usage of an event."""

import base64
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_metering.contract.event import UsageEvent
from otel_metering.errors import InvalidUsageError
from query_api.cloudevents import Mode, event_id_of, mode_of, parse_cloudevents, split_event_id
from query_api.problems import TooLargeError, UnsupportedMediaTypeError

EVENT = {
    "specversion": "1.0",
    "id": "1",
    "source": "/svc",
    "type": "api.calls",
    "subject": "tenant_a",
    "time": "2026-03-01T12:00:00.25Z",
    "data": {"quantity": "2.5", "region": "eu", "retry": True, "code": 200},
}
HEADERS = {
    "ce-specversion": "1.0",
    "ce-id": "1",
    "ce-source": "/svc",
    "ce-type": "api.calls",
    "ce-subject": "tenant_a",
    "content-type": "application/json",
}


def one(event: Any, bound: str | None = None) -> UsageEvent:
    (found,) = parse_cloudevents({}, json.dumps(event).encode(), Mode.STRUCTURED, bound).events
    return found


def refusal(event: Any, bound: str | None = None) -> str:
    intake = parse_cloudevents({}, json.dumps(event).encode(), Mode.STRUCTURED, bound)
    assert not intake.events
    ((_, reason),) = intake.rejected
    return reason


def binary(headers: dict[str, str], body: bytes = b"") -> UsageEvent:
    intake = parse_cloudevents({**HEADERS, **headers}, body, Mode.BINARY, None)
    assert not intake.rejected, intake.rejected
    return intake.events[0]


def binary_refusal(headers: dict[str, str], body: bytes = b"") -> str:
    intake = parse_cloudevents({**HEADERS, **headers}, body, Mode.BINARY, None)
    assert not intake.events
    return intake.rejected[0][1]


def test_an_event_is_usage_of_its_type_by_its_subject() -> None:
    assert one(EVENT) == UsageEvent(
        event_id="/svc 1",
        tenant_id="tenant_a",
        meter="api.calls",
        quantity=Decimal("2.5"),
        timestamp_ns=1_772_366_400_250_000_000,
        attributes={"region": "eu", "retry": "true", "code": "200"},
    )


@pytest.mark.parametrize(
    ("data", "quantity", "attributes"),
    [
        ({"value": 3}, "3", {}),
        ({"quantity": 4, "value": 5}, "4", {"value": "5"}),
        ({"quantity": None, "value": 5}, "5", {}),
        ({"quantity": 0.1}, "0.1", {}),
        ({}, "1", {}),
        (None, "1", {}),
        ({"nested": {"a": 1}, "list": [1], "none": None, "kept": "x"}, "1", {"kept": "x"}),
    ],
)
def test_data_says_how_much(data: Any, quantity: str, attributes: dict[str, str]) -> None:
    event = one({**EVENT, "data": data})

    assert (event.quantity, event.attributes) == (Decimal(quantity), attributes)


def test_extensions_are_attributes_behind_those_of_data_and_without_the_trace() -> None:
    event = one({**EVENT, "region": "us", "plan": "pro", "shard": 3, "traceparent": "00-1-2-01"})

    assert event.attributes == {
        "region": "eu",
        "plan": "pro",
        "shard": "3",
        "retry": "true",
        "code": "200",
    }


def test_the_tenant_of_the_key_needs_no_subject() -> None:
    event = {name: value for name, value in EVENT.items() if name != "subject"}

    assert one(event, bound="tenant_b").tenant_id == "tenant_b"
    assert "subject is missing" in refusal(event)
    assert "bound to 'tenant_b'" in refusal(EVENT, bound="tenant_b")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"specversion": "0.3"}, "must be '1.0'"),
        ({"specversion": None}, "must be '1.0'"),
        ({"id": ""}, "id is missing or empty"),
        ({"source": None}, "source is missing or empty"),
        ({"type": None}, "type is missing or empty"),
        ({"type": "no good"}, "rename it"),
        ({"type": 3}, "type is no string"),
        ({"subject": "a b"}, "tenant_id 'a b'"),
        ({"time": "yesterday"}, "not RFC 3339"),
        ({"data": [1]}, "data is not an object"),
        ({"data": "text"}, "data is not an object"),
        ({"data": {"quantity": "many"}}, "quantity 'many'"),
        ({"data": {"quantity": [1]}}, "quantity is no number"),
        ({"data": {"tenant.id": "x"}}, "reserved"),
        ({"datacontenttype": "text/xml"}, "must be JSON"),
        ({"Upper": "x"}, "lower-case"),
        ({"with_underscore": "x"}, "lower-case"),
        ({"object": {"a": 1}}, "neither string, boolean nor number"),
        ({"data_base64": "e30="}, "send one of them"),
        ({"id": "\ud800"}, "of Unicode"),
        ({"source": "s" * 5_000}, "4096 characters"),
    ],
)
def test_an_event_that_is_none_says_why(change: dict[str, Any], said: str) -> None:
    assert said in refusal({**EVENT, **change})


def test_json_format_2_2_null_is_absent() -> None:
    assert one({**EVENT, "dataschema": None, "plan": None, "time": None}).timestamp_ns is None


def test_json_format_3_1_data_may_be_base64() -> None:
    event = {name: value for name, value in EVENT.items() if name != "data"}
    data = base64.b64encode(b'{"quantity": 7}').decode()

    assert one({**event, "data_base64": data}).quantity == 7
    assert "not base64" in refusal({**event, "data_base64": "%"})


@pytest.mark.parametrize(
    ("content_type", "mode"),
    [
        ("application/cloudevents+json", Mode.STRUCTURED),
        ("Application/CloudEvents+JSON; charset=UTF-8", Mode.STRUCTURED),
        ("application/cloudevents-batch+json", Mode.BATCHED),
        ("application/json", None),
        ("", None),
    ],
)
def test_http_3_the_content_type_tells_the_mode(content_type: str, mode: Mode | None) -> None:
    assert mode_of({"content-type": content_type}) is mode


def test_http_3_other_content_with_the_headers_is_binary() -> None:
    assert mode_of({"content-type": "application/json", "ce-specversion": "1.0"}) is Mode.BINARY
    assert mode_of({"ce-specversion": "0.3"}) is Mode.BINARY
    structured = {"content-type": "application/cloudevents+json", "ce-specversion": "1.0"}
    assert mode_of(structured) is Mode.STRUCTURED


def test_http_3_a_format_that_is_not_read_is_refused() -> None:
    for name in ("application/cloudevents+avro", "application/cloudevents-batch+xml"):
        with pytest.raises(UnsupportedMediaTypeError, match="not supported"):
            mode_of({"content-type": name})


def test_http_3_1_1_the_content_type_is_that_of_the_data() -> None:
    assert binary({"content-type": "application/vnd.x+json"}, b'{"quantity": 2}').quantity == 2
    assert "must be JSON" in binary_refusal({"content-type": "text/plain"}, b"2")
    assert "use Content-Type" in binary_refusal({"ce-datacontenttype": "application/json"})


def test_http_3_1_2_the_body_is_the_data() -> None:
    event = binary({}, b'{"quantity": 0.10, "region": "eu"}')

    assert (event.quantity, event.attributes) == (Decimal("0.1"), {"region": "eu"})
    assert binary({}).quantity == 1
    with pytest.raises(InvalidUsageError, match="JSON"):
        raise InvalidUsageError(binary_refusal({}, b"{"))


def test_http_3_1_3_1_every_attribute_has_a_header() -> None:
    event = binary({"ce-time": "2026-03-01T12:00:00Z", "ce-plan": "pro", "other": "x"})

    assert event.timestamp_ns == 1_772_366_400_000_000_000
    assert event.attributes == {"plan": "pro"}
    assert event.event_id == "/svc 1"


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ("%e2%82%ac", "€"),
        ("%41bc", "Abc"),
        ('"a b"', "a b"),
        (r'"a \"b\" \\ %20"', 'a "b" \\  '),
        ("%2541", "%41"),
        (" padded ", "padded"),
        ('no "quotes" inside', 'no "quotes" inside'),
    ],
)
def test_http_3_1_3_2_values_are_unquoted_and_decoded_once(header: str, value: str) -> None:
    assert binary({"ce-plan": header}).attributes == {"plan": value}


@pytest.mark.parametrize("header", ["%C0%A0", "%", "%4", "%zz", "%ED%A0%80"])
def test_http_3_1_3_2_what_is_no_utf8_is_rejected(header: str) -> None:
    assert "header ce-plan" in binary_refusal({"ce-plan": header})


def test_http_3_2_3_headers_beside_a_structured_event_say_nothing() -> None:
    body = json.dumps(EVENT).encode()
    (event,) = parse_cloudevents({"ce-id": "other"}, body, Mode.STRUCTURED, None).events

    assert event.event_id == "/svc 1"


def test_http_3_3_2_a_batch_is_a_list_and_may_be_empty() -> None:
    batch = [
        EVENT,
        {**EVENT, "id": ""},
        {**EVENT, "id": "2", "datacontenttype": "application/json"},
    ]

    intake = parse_cloudevents({}, json.dumps(batch).encode(), Mode.BATCHED, None)
    empty = parse_cloudevents({}, b"[]", Mode.BATCHED, None)

    assert [event.event_id for event in intake.events] == ["/svc 1", "/svc 2"]
    assert list(intake.positions) == [0, 2]
    assert [place for place, _ in intake.rejected] == [1]
    assert not empty.events
    assert not empty.rejected


def test_what_does_not_fit_its_mode_or_is_too_much_is_refused_as_a_whole() -> None:
    for body, mode in ((b"[]", Mode.STRUCTURED), (b"{}", Mode.BATCHED)):
        with pytest.raises(InvalidUsageError, match="does not fit"):
            parse_cloudevents({}, body, mode, None)
    with pytest.raises(TooLargeError):
        parse_cloudevents({}, json.dumps([0] * 10_001).encode(), Mode.BATCHED, None)


_PARTS = st.text("a %2", min_size=1, max_size=6) | st.text(min_size=1, max_size=300)


@given(_PARTS, _PARTS, _PARTS, _PARTS)
def test_different_pairs_never_have_one_event_id(a: str, b: str, c: str, d: str) -> None:
    assert (event_id_of(a, b) == event_id_of(c, d)) == ((a, b) == (c, d))
    assert 0 < len(event_id_of(a, b)) <= 256


@given(_PARTS, _PARTS)
def test_what_is_not_hashed_can_be_split_again(source: str, event_id: str) -> None:
    text = event_id_of(source, event_id)

    assert split_event_id(text) == (None if text.startswith("sha256:") else (source, event_id))
