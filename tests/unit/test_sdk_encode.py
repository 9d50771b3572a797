import sys

from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)

from otel_metering._cells import Event, Series
from otel_metering._encode import (
    Interval,
    Limits,
    encode_events,
    encode_usage,
    forget_idle,
    resource_of,
)
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


VALUES = st.one_of(
    st.tuples(st.just("bool"), st.booleans()),
    st.tuples(st.just("int"), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just("float"), st.floats(allow_nan=False)),
    st.tuples(st.just("str"), st.text(max_size=300).filter(lambda text: text.isprintable())),
)
SERIES = st.builds(
    Series,
    st.sampled_from(["api.calls", "jobs", "m" * 200]),
    st.none() | st.text("abcdé", min_size=1, max_size=40),
    st.dictionaries(st.text("abc", min_size=1), VALUES, max_size=4).map(
        lambda values: tuple((name, *values[name]) for name in sorted(values))
    ),
)
UNITS = st.integers(1, 2**63 - 1)
FRACTIONS = st.integers(1, 10**9 - 1)


def attribute(name: str, kind: str, value: object) -> KeyValue:
    fields = {"bool": "bool_value", "int": "int_value", "float": "double_value"}
    return KeyValue(key=name, value=AnyValue(**{fields.get(kind, "string_value"): value}))  # type: ignore[arg-type]


def encoded_by_protobuf(deltas: dict[Series, tuple[int, int]]) -> bytes:
    by_meter: dict[str, list[NumberDataPoint]] = {}
    for series, (units, rest) in deltas.items():
        tenant = [] if series.tenant is None else [attribute("tenant.id", "str", series.tenant)]
        attributes = [*tenant, *(attribute(*dimension) for dimension in series.dimensions)]
        scale = attribute("metering.quantity.scale", "int", 9)
        for value, more in ((units, []), (rest, [scale])):
            if value:
                point = NumberDataPoint(
                    start_time_unix_nano=INTERVAL.start_ns,
                    time_unix_nano=INTERVAL.end_ns,
                    as_int=value,
                    attributes=[*attributes, *more],
                )
                by_meter.setdefault(series.meter, []).append(point)
    metrics = [
        Metric(
            name=meter,
            sum=Sum(
                data_points=points,
                aggregation_temporality=AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA,
                is_monotonic=True,
            ),
        )
        for meter, points in by_meter.items()
    ]
    scope_metrics = ScopeMetrics(scope=InstrumentationScope(name="otel_metering"), metrics=metrics)
    return ExportMetricsServiceRequest(
        resource_metrics=[ResourceMetrics(resource=RESOURCE, scope_metrics=[scope_metrics])]
    ).SerializeToString()


@given(
    st.dictionaries(
        SERIES,
        st.tuples(UNITS, st.just(0)) | st.tuples(UNITS | st.just(0), FRACTIONS),
        min_size=1,
        max_size=20,
    )
)
@example(  # lengths of one to three bytes, of points and of what they are in
    {
        Series("m", "t", tuple((f"a{i:02}", "str", "x" * size) for i in range(20))): (1, 0)
        for size in (0, 3, 4, 5, 100, 1024)
    }
)
def test_a_request_has_the_bytes_that_protobuf_writes(
    deltas: dict[Series, tuple[int, int]],
) -> None:
    nanos = {series: units * 10**9 + rest for series, (units, rest) in deltas.items()}
    limits = Limits(max_points=100)

    (request,) = encode_usage(nanos, INTERVAL, RESOURCE, limits)

    assert request == encoded_by_protobuf(deltas)
    for _ in range(3):  # whatever was kept of it
        forget_idle()
        assert encode_usage(nanos, INTERVAL, RESOURCE, limits) == [request]


def test_text_of_usage_that_does_not_come_again_is_not_kept() -> None:
    tenant, value = "".join(["tenant_", "gone"]), "".join(["value_", "gone"])
    before = sys.getrefcount(tenant), sys.getrefcount(value)
    series = Series("m", tenant, (("region", "str", value),))
    encode_usage({series: 10**9}, INTERVAL, RESOURCE, LIMITS)
    del series

    forget_idle()
    forget_idle()

    assert (sys.getrefcount(tenant), sys.getrefcount(value)) == before


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
