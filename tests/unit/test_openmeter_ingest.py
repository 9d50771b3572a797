"""What a CloudEvent is to the meters that were made by API."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from otel_metering.contract.event import UsageEvent
from otel_metering.contract.meter import Aggregation, MeterDefinition, Meters
from query_api.cloudevents import parse_batch
from query_api.openmeter_ingest import Fed, feed
from receiver.store.meters import ApiMeter

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def meter(slug: str, aggregation: Aggregation = Aggregation.SUM, **more: Any) -> ApiMeter:
    given = {"value_property": "$.tokens", "event_type": "prompt", **more}
    return ApiMeter(slug=slug, aggregation=aggregation, created_at=NOW, updated_at=NOW, **given)


def fed(
    data: Any, *meters: ApiMeter, file: Meters | None = None, bound: str | None = None, **more: Any
) -> Fed:
    event = {"specversion": "1.0", "id": "1", "source": "s", "type": "prompt", "subject": "acme"}
    body = json.dumps([{**event, "data": data, **more}]).encode()
    return feed(parse_batch({}, body, None), meters, file or Meters(), bound)


def only(found: Fed) -> UsageEvent:
    assert not found.refused, found.refused
    (event,) = found.events
    return event


@pytest.mark.parametrize("value", [12.5, "12.50", "1.25e1"])
def test_a_number_or_a_numeric_string_is_the_quantity(value: object) -> None:
    assert only(fed({"tokens": value}, meter("m"))).quantity == Decimal("12.5")


def test_a_quantity_is_exact_to_the_last_digit() -> None:
    found = only(fed({"tokens": 9007199254740993.123456789}, meter("m")))
    exact = only(fed({"tokens": "9007199254740993.123456789"}, meter("m")))

    assert exact.quantity == Decimal("9007199254740993.123456789")
    assert found.quantity == Decimal(repr(9007199254740993.123456789))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "nothing at valueProperty $.tokens"),
        (None, "nothing at valueProperty $.tokens"),
        ({"tokens": None}, "nothing at valueProperty $.tokens"),
        ({"tokens": "many"}, "valueProperty $.tokens: quantity 'many'"),
        ({"tokens": True}, "valueProperty $.tokens: quantity is no number"),
        ({"tokens": {"a": 1}}, "valueProperty $.tokens: quantity is no number"),
        ({"tokens": "1e99"}, "valueProperty $.tokens"),
        ({"tokens": "0.0000000001"}, "9 decimal places"),
    ],
)
def test_what_is_no_quantity_is_refused_for_that_meter_alone(data: Any, said: str) -> None:
    found = fed(data, meter("strict"), meter("counting", Aggregation.COUNT, value_property=""))

    assert [event.meter for event in found.events] == ["counting"]
    ((place, slug, reason),) = found.refused
    assert (place, slug) == (0, "strict")
    assert said in reason


def test_groups_are_attributes_and_what_is_missing_is_absent() -> None:
    groups = {"model": "$.model", "region": "$.deep.region", "code": "$['a.b']", "none": "$.none"}
    data = {"tokens": 1, "model": "m", "deep": {"region": "eu"}, "a.b": 7, "other": "x"}

    assert only(fed(data, meter("m", group_by=groups))).attributes == {
        "model": "m",
        "region": "eu",
        "code": "7",
    }


def test_a_unique_count_counts_the_value() -> None:
    found = only(fed({"tokens": "user-1"}, meter("m", Aggregation.UNIQUE_COUNT)))

    assert (found.quantity, found.attributes) == (Decimal(1), {"metering.unique_key": "user-1"})


def test_events_before_the_meter_begins_do_not_count() -> None:
    begins = meter("m", event_from=NOW)

    before = fed({"tokens": 1}, begins, time="2026-02-28T23:59:59.999999999Z")
    after = fed({"tokens": 1}, begins, time="2026-03-01T00:00:00Z")

    assert (before.events, before.refused) == ([], [])
    assert only(after).meter == "m"


def test_without_a_meter_an_event_is_usage_of_the_meter_named_like_its_type() -> None:
    found = only(fed({"quantity": 3, "region": "eu"}, meter("m", event_type="other")))

    assert (found.meter, found.quantity) == ("prompt", Decimal(3))
    assert found.attributes == {"region": "eu"}


def test_a_type_that_is_no_slug_and_has_no_meter_is_refused() -> None:
    found = fed({}, type="no slug")

    assert "rename it" in found.refused[0][2]


def test_the_meter_of_the_file_named_like_the_type_is_fed_as_well() -> None:
    file = Meters((MeterDefinition(slug="prompt"), MeterDefinition(slug="shadowed")))

    found = fed({"tokens": 2, "quantity": 5}, meter("m"), meter("shadowed"), file=file)

    assert [(event.meter, event.quantity) for event in found.events] == [
        ("m", Decimal(2)),
        ("prompt", Decimal(5)),
    ]
    assert [event.event_id for event in found.events] == ["s 1", "s 1"]


def test_a_bound_key_writes_its_tenant_alone() -> None:
    assert only(fed({"tokens": 1}, meter("m"), bound="acme")).tenant_id == "acme"
    assert "bound to 'other'" in fed({"tokens": 1}, meter("m"), bound="other").refused[0][2]
