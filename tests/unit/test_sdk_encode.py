from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import NumberDataPoint

from otel_metering._cells import Event, Series
from otel_metering._encode import Interval, Limits, encode_events, encode_usage, resource_of
from tests.integration.sdk_backend import attributes_of

INTERVAL = Interval(start_ns=1_000, end_ns=2_000)
RESOURCE = resource_of({"service.name": "shop", "ports": (80, 443)})
LIMITS = Limits(max_points=3)


def points_of(requests: list[bytes]) -> list[NumberDataPoint]:
    return [
        point
        for request in requests
        for resource_metrics in ExportMetricsServiceRequest.FromString(request).resource_metrics
        for scope_metrics in resource_metrics.scope_metrics
        for metric in scope_metrics.metrics
        for point in metric.sum.data_points
    ]


def nanos_of(point: NumberDataPoint) -> int:
    scale = attributes_of(point.attributes).get("metering.quantity.scale", 0)
    assert scale in (0, 9)
    return point.as_int if scale == 9 else point.as_int * 10**9


@given(st.integers(min_value=1, max_value=2**68))
def test_points_add_up_to_the_sum_and_no_two_are_alike(nanos: int) -> None:
    nanos *= 10**9 + 7

    points = points_of(encode_usage({Series("m", "t", ()): nanos}, INTERVAL, RESOURCE, LIMITS))

    assert sum(nanos_of(point) for point in points) == nanos
    assert len({point.SerializeToString() for point in points}) == len(points)


def test_dimensions_keep_their_type() -> None:
    dimensions = (
        ("a", "bool", True),
        ("b", "int", 1),
        ("c", "float", 1.0),
        ("d", "str", "1"),
    )

    (point,) = points_of(
        encode_usage({Series("m", "t", dimensions): 10**9}, INTERVAL, RESOURCE, LIMITS)
    )

    kinds = [attribute.value.WhichOneof("value") for attribute in point.attributes]
    assert kinds == ["string_value", "bool_value", "int_value", "double_value", "string_value"]
    assert (point.start_time_unix_nano, point.time_unix_nano) == (1_000, 2_000)


def test_without_a_tenant_there_is_no_tenant_attribute() -> None:
    (point,) = points_of(encode_usage({Series("m", None, ()): 10**9}, INTERVAL, RESOURCE, LIMITS))

    assert not point.attributes


def test_requests_are_cut_by_points_and_by_bytes() -> None:
    deltas = {Series(f"m{i % 2}", f"t{i}", ()): 10**9 for i in range(7)}

    by_points = encode_usage(deltas, INTERVAL, RESOURCE, LIMITS)
    by_bytes = encode_usage(deltas, INTERVAL, RESOURCE, Limits(max_points=100, max_bytes=1))

    assert [len(points_of([request])) for request in by_points] == [3, 3, 1]
    assert [len(points_of([request])) for request in by_bytes] == [1] * 7


def test_the_same_usage_gives_the_same_bytes() -> None:
    deltas = {Series("m", f"t{i}", ()): 10**9 for i in range(7)}

    assert encode_usage(deltas, INTERVAL, RESOURCE, LIMITS) == encode_usage(
        dict(deltas), INTERVAL, RESOURCE, LIMITS
    )


def test_nothing_recorded_is_no_request() -> None:
    assert encode_usage({}, INTERVAL, RESOURCE, LIMITS) == []
    assert encode_events([], RESOURCE, LIMITS) == []


def test_an_event_is_a_log_record() -> None:
    series = Series("jobs", "tenant_a", (("region", "str", "eu"),))
    events = [Event(5, series, 13 * 10**9, "e1"), Event(6, series, 12_340_000_000, "e2")]

    (request,) = encode_events(events, RESOURCE, LIMITS)

    scope_logs = ExportLogsServiceRequest.FromString(request).resource_logs[0].scope_logs[0]
    assert scope_logs.scope.name == "otel_metering"
    assert [(record.event_name, record.time_unix_nano) for record in scope_logs.log_records] == [
        ("jobs", 5),
        ("jobs", 6),
    ]
    assert [attributes_of(record.attributes) for record in scope_logs.log_records] == [
        {
            "tenant.id": "tenant_a",
            "region": "eu",
            "metering.event.id": "e1",
            "metering.quantity": 13,
        },
        {
            "tenant.id": "tenant_a",
            "region": "eu",
            "metering.event.id": "e2",
            "metering.quantity": "12.34",
        },
    ]
