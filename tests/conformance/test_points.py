"""Validity of data points (metrics.proto; data model): what is invalid is set aside, and harms no neighbour."""

from collections.abc import Callable

import pytest

from tests.conformance.wire import OK, TRANSPORTS, send, warning_of
from tests.e2e.up import Up
from tests.otlp import NOON, Point, metrics_request
from tests.waiting import eventually

Stored = Callable[[str], list[dict[str, object]]]

every_transport = pytest.mark.parametrize("transport", TRANSPORTS)


def taken(
    up: Up, stored: Stored, tenant: str, transport: str, change: Callable[..., None]
) -> tuple[str, int]:
    """Send a good point and a changed one; returns the warning, and how many of them became usage."""
    request = metrics_request([Point(tenant, 1), Point(tenant, 2, at_ns=NOON + 1)])
    change(request.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points[1])
    answer = send(up, transport, request)
    assert answer.code == OK
    return warning_of(answer, transport), len(eventually(lambda: stored(tenant), bool))


@every_transport
def test_a_point_without_time_is_set_aside(
    up: Up, stored: Stored, tenant: str, transport: str
) -> None:
    """metrics.proto: "SHOULD be rejected by consumers". It is kept, and counted as not billed."""
    warning, count = taken(up, stored, tenant, transport, lambda p: p.ClearField("time_unix_nano"))

    assert "1 in quarantine" in warning
    assert count == 1


@every_transport
def test_a_point_without_a_value_is_set_aside(
    up: Up, stored: Stored, tenant: str, transport: str
) -> None:
    """metrics.proto: a NumberDataPoint with neither as_int nor as_double is invalid."""
    warning, count = taken(up, stored, tenant, transport, lambda p: p.ClearField("as_int"))

    assert "1 in quarantine" in warning
    assert count == 1


@every_transport
def test_zero_is_a_value(up: Up, stored: Stored, tenant: str, transport: str) -> None:
    def change(point: object) -> None:
        point.as_int = 0  # type: ignore[attr-defined]

    assert taken(up, stored, tenant, transport, change) == ("", 2)


@every_transport
def test_a_point_without_recorded_value_is_ignored(
    up: Up, stored: Stored, tenant: str, transport: str
) -> None:
    """Data model, "No recorded value": never billed, whatever value is there."""

    def change(point: object) -> None:
        point.flags = 1  # type: ignore[attr-defined]

    assert taken(up, stored, tenant, transport, change) == ("", 1)


@every_transport
@pytest.mark.parametrize("temporality", [0, 3])
def test_an_unspecified_temporality_is_set_aside(
    up: Up, tenant: str, transport: str, temporality: int
) -> None:
    """metrics.proto: AGGREGATION_TEMPORALITY_UNSPECIFIED "MUST not be used"."""
    request = metrics_request([Point(tenant, 1)], temporality=temporality)

    assert "1 in quarantine" in warning_of(send(up, transport, request), transport)


@every_transport
def test_of_a_repeated_attribute_key_the_last_counts(
    up: Up, stored: Stored, tenant: str, transport: str
) -> None:
    """common.proto leaves the behaviour open; here it is the same over every transport."""
    request = metrics_request([Point("other", 1)])
    point = request.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points[0]
    point.attributes.add(key="tenant.id").value.string_value = tenant

    assert warning_of(send(up, transport, request), transport) == ""
    assert len(eventually(lambda: stored(tenant), bool)) == 1
