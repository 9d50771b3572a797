"""OTLP requests made with the official protobuf classes, and sent without any SDK."""

import http.client
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

import grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_DELTA

from tests.oracle import Usage

PROTOBUF = "application/x-protobuf"
SCOPE = "otel_metering"
NOON = 1_790_000_000_000_000_000
"""A fixed moment of 2026, in nanoseconds."""

Value = str | bool | int | float


@dataclass(frozen=True)
class Point:
    tenant: str
    value: int | float
    at_ns: int = NOON
    start_ns: int = NOON - 1_000_000_000
    meter: str = "api.calls"
    attributes: Mapping[str, Value] = field(default_factory=dict)

    @property
    def usage(self) -> Usage:
        return Usage(self.tenant, self.meter, self.at_ns, Decimal(repr(self.value)))


def any_value(value: Value) -> AnyValue:
    match value:
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case _:
            return AnyValue(string_value=value)


def key_values(attributes: Mapping[str, Value]) -> list[KeyValue]:
    return [KeyValue(key=name, value=any_value(value)) for name, value in attributes.items()]


def metrics_request(
    points: Iterable[Point],
    *,
    scope: str = SCOPE,
    resource: Mapping[str, Value] | None = None,
    temporality: int = AGGREGATION_TEMPORALITY_DELTA,
    reverse_attributes: bool = False,
) -> ExportMetricsServiceRequest:
    request = ExportMetricsServiceRequest()
    scoped = request.resource_metrics.add()
    scoped.resource.attributes.extend(key_values(resource or {"service.name": "shop"}))
    metrics = scoped.scope_metrics.add()
    metrics.scope.name = scope
    by_meter = {}
    for point in points:
        if point.meter not in by_meter:
            metric = metrics.metrics.add(name=point.meter)
            metric.sum.aggregation_temporality = temporality  # type: ignore[assignment]  # any number
            metric.sum.is_monotonic = True
            by_meter[point.meter] = metric
        pairs = key_values({"tenant.id": point.tenant, **point.attributes})
        data = by_meter[point.meter].sum.data_points.add(
            start_time_unix_nano=point.start_ns,
            time_unix_nano=point.at_ns,
            attributes=reversed(pairs) if reverse_attributes else pairs,
        )
        if isinstance(point.value, int):
            data.as_int = point.value
        else:
            data.as_double = point.value
    return request


@dataclass(frozen=True)
class Data:
    """One data point of a metric of any type.

    Attributes:
        type: gauge, sum, histogram, exponential_histogram or summary.
        value: Of a number; of others the sum (None: there is none).
        count: Of a distribution.
    """

    type: str
    value: int | float | None
    count: int = 1
    at_ns: int = NOON
    start_ns: int = NOON - 1_000_000_000
    temporality: int = AGGREGATION_TEMPORALITY_DELTA
    is_monotonic: bool = True
    flags: int = 0
    attributes: Mapping[str, Value] = field(default_factory=dict)


def data_request(
    points: Iterable[Data],
    *,
    name: str = "api.calls",
    scope: str = SCOPE,
    resource: Mapping[str, Value] | None = None,
) -> ExportMetricsServiceRequest:
    """An export request with a metric for each point."""
    request = ExportMetricsServiceRequest()
    scoped = request.resource_metrics.add()
    scoped.resource.attributes.extend(key_values(resource or {"service.name": "shop"}))
    metrics = scoped.scope_metrics.add()
    metrics.scope.name = scope
    for point in points:
        data = getattr(metrics.metrics.add(name=name), point.type)
        if point.type in ("sum", "histogram", "exponential_histogram"):
            data.aggregation_temporality = point.temporality
        if point.type == "sum":
            data.is_monotonic = point.is_monotonic
        made = data.data_points.add(
            start_time_unix_nano=point.start_ns,
            time_unix_nano=point.at_ns,
            attributes=key_values(point.attributes),
            flags=point.flags,
        )
        if point.type in ("gauge", "sum"):
            if isinstance(point.value, int):
                made.as_int = point.value
            elif point.value is not None:
                made.as_double = point.value
        else:
            made.count = point.count
            if point.value is not None:
                made.sum = point.value
    return request


def spans_request(
    spans: Iterable[Mapping[str, Value]],
    *,
    first_id: int = 1,
    kind: int = 2,
    name: str = "GET /products",
    end_ns: int = NOON,
    seconds: float = 0.25,
) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    scoped = request.resource_spans.add()
    scoped.resource.attributes.extend(key_values({"service.name": "shop"}))
    scope = scoped.scope_spans.add()
    for number, attributes in enumerate(spans, first_id):
        scope.spans.add(
            trace_id=number.to_bytes(16, "big"),
            span_id=number.to_bytes(8, "big"),
            name=name,
            kind=kind,
            start_time_unix_nano=end_ns - int(seconds * 1e9),
            end_time_unix_nano=end_ns,
            attributes=key_values(attributes),
        )
    return request


def logs_request(
    records: Iterable[Mapping[str, Value]], *, event_name: str = "api.calls", at_ns: int = NOON
) -> ExportLogsServiceRequest:
    request = ExportLogsServiceRequest()
    scoped = request.resource_logs.add()
    scope = scoped.scope_logs.add()
    scope.scope.name = SCOPE
    for attributes in records:
        scope.log_records.add(
            time_unix_nano=at_ns, event_name=event_name, attributes=key_values(attributes)
        )
    return request


def post(
    address: str,
    path: str,
    body: bytes,
    key: str | None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 30,
) -> tuple[int, bytes, Mapping[str, str]]:
    """Status, body and headers (lower case) of one POST; raises OSError when there is no answer."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=timeout)
    try:
        sent = {"content-type": PROTOBUF, **(headers or {})}
        if key is not None:
            sent["authorization"] = f"Bearer {key}"
        connection.request("POST", path, body, sent)
        response = connection.getresponse()
        answered = {name.lower(): value for name, value in response.getheaders()}
        return response.status, response.read(), answered
    finally:
        connection.close()


GRPC_METRICS = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"


def call(
    address: str,
    body: bytes,
    key: str | None,
    *,
    method: str = GRPC_METRICS,
    compression: grpc.Compression = grpc.Compression.NoCompression,
    timeout: float = 20,
) -> bytes:
    """One gRPC call; raises grpc.RpcError."""
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    with grpc.insecure_channel(address, compression=compression) as channel:
        export: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            method, request_serializer=None, response_deserializer=None
        )
        return export(body, timeout=timeout, metadata=metadata)


def trailers_of(error: grpc.RpcError) -> dict[str, str | bytes]:
    """The trailing metadata of a failed call."""
    return {item.key: item.value for item in error.trailing_metadata() or ()}
