"""Requests of each signal, encoded beforehand; the same bytes for every system.

Metrics are those of `bench.load`. Spans are server spans with a tenant and a route; log records are usage of
the meter `orders`, without an id of their own. Each item is new: ids and times are written into the bytes of
one template, all at once.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from bench import load

SIGNALS = ("metrics", "spans", "logs")
GRPC = {
    "metrics": load.EXPORT,
    "spans": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}
HTTP = {"metrics": "/v1/metrics", "spans": "/v1/traces", "logs": "/v1/logs"}
METER = {"metrics": "api.calls", "spans": "http.requests", "logs": "orders"}
"""Which meter of ours the items feed, one event for each item."""

IN_FLIGHT = {10: 128, 100: 64, 1_000: 24, 10_000: 6}
"""Requests on the way at once, by size: enough to keep a receiver busy."""

_TRACE, _SPAN, _START, _END = 0xA1, 0xB2, 0xC3, 0xD4


def shape(size: int) -> load.Shape:
    """How `size` points a request are sent."""
    return load.Shape(size, IN_FLIGHT.get(size, 24))


def requests(signal: str, size: int, points: int) -> Iterator[bytes]:
    """`points` items in requests of `size`, made while they are asked for."""
    if signal == "metrics":
        yield from load.flushes(shape(size), points)
        return
    template = _template(_spans(size) if signal == "spans" else _logs(size))
    for number in range(points // size):
        yield template(np.arange(number * size, (number + 1) * size, dtype=np.uint64))


def _template(request: Message) -> Callable[[npt.NDArray[np.uint64]], bytes]:
    """Writes new ids and times where the marks are; the marks are ordered like the items."""
    encoded = request.SerializeToString()

    def places(mark: int, width: int) -> npt.NDArray[np.intp]:
        found, at = [], encoded.find(bytes([mark]) * width)
        while at >= 0:
            found.append(at)
            at = encoded.find(bytes([mark]) * width, at + width)
        return np.array(found, dtype=np.intp)[:, None] + np.arange(width)

    marks = {_TRACE: 16, _SPAN: 8, _START: 8, _END: 8}
    where = {mark: places(mark, width) for mark, width in marks.items() if _has(encoded, mark)}

    def write(numbers: npt.NDArray[np.uint64]) -> bytes:
        data = np.frombuffer(encoded, np.uint8).copy()
        start = numbers * np.uint64(1_000) + np.uint64(load.START_NS)
        bits = {
            _TRACE: np.stack([numbers * np.uint64(0x9E3779B97F4A7C15), ~numbers], axis=1),
            _SPAN: ~numbers,
            _START: start,
            _END: start + np.uint64(25_000_000),
        }
        for mark, at in where.items():
            data[at] = np.ascontiguousarray(bits[mark]).view(np.uint8).reshape(at.shape)
        return data.tobytes()

    return write


def _has(encoded: bytes, mark: int) -> bool:
    return bytes([mark]) * 8 in encoded


def _repeat(mark: int) -> int:
    return int.from_bytes(bytes([mark]) * 8, "little")


def _spans(size: int) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "shop"
    scope = resource.scope_spans.add()
    scope.scope.name = "shop.http"
    for number in range(size):
        span = scope.spans.add(
            trace_id=bytes([_TRACE]) * 16,
            span_id=bytes([_SPAN]) * 8,
            name="GET /v1/things/{id}",
            kind=Span.SPAN_KIND_SERVER,
            start_time_unix_nano=_repeat(_START),
            end_time_unix_nano=_repeat(_END),
        )
        for name, value in (
            ("tenant.id", f"tenant_{number % load.TENANTS}"),
            ("http.route", f"/v1/things/{number % 40}"),
            ("http.request.method", "GET"),
        ):
            span.attributes.add(key=name).value.string_value = value
        span.attributes.add(key="http.response.status_code").value.int_value = 200
    return request


def _logs(size: int) -> ExportLogsServiceRequest:
    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "shop"
    scope = resource.scope_logs.add()
    scope.scope.name = "shop.orders"
    for number in range(size):
        record = scope.log_records.add(time_unix_nano=_repeat(_START), event_name="orders")
        record.body.string_value = "order placed"
        for name, value in (
            ("tenant.id", f"tenant_{number % load.TENANTS}"),
            ("region", f"region-{number % 3}"),
        ):
            record.attributes.add(key=name).value.string_value = value
        record.attributes.add(key="metering.quantity").value.int_value = 1 + number % 9
    return request
