"""Usage as OTLP: pure, and the same bytes for the same usage.

The receiver identifies a delta point by stream, start, time and value, so no two points of one request
may agree in all four: a series becomes one point per scale, and pieces of a sum that is too large for
one point all differ.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeVar

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    InstrumentationScope,
    KeyValue,
    KeyValueList,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_DELTA,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.util.types import AnyValue as AnyAttribute
from opentelemetry.util.types import AttributeValue

from otel_metering._cells import Event, Series
from otel_metering._quantity import NANOS_PER_UNIT, to_text
from otel_metering.contract.attributes import (
    EVENT_ID,
    QUANTITY,
    QUANTITY_SCALE,
    SCOPE_NAME,
    TENANT_ID,
)
from otel_metering.contract.event import QUANTITY_DECIMALS

METRICS: Final = "metrics"
LOGS: Final = "logs"
"""Keys of spool entries, and last part of the path they are sent to."""

MAX_POINT: Final = 2**63 - 1
"""An OTLP integer."""

_T = TypeVar("_T")

_SCOPE = InstrumentationScope(name=SCOPE_NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """When usage was recorded: after `start_ns`, up to and including `end_ns`."""

    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one request may hold; a single point may exceed `max_bytes`."""

    max_points: int
    max_bytes: int = 2**20


def resource_of(attributes: Mapping[str, AttributeValue]) -> Resource:
    """Return the OTLP resource with `attributes`."""
    return Resource(attributes=[_attribute(name, attributes[name]) for name in sorted(attributes)])


def encode_usage(
    deltas: Mapping[Series, int], interval: Interval, resource: Resource, limits: Limits
) -> list[bytes]:
    """Return metrics requests with `deltas` (10**-9 units by series) as delta sums."""
    points = (
        (series.meter, point)
        for series, nanos in deltas.items()
        for point in _points(series, nanos, interval)
    )
    sized = ((point.ByteSize(), (meter, point)) for meter, point in points)
    return [_metrics_request(chunk, resource) for chunk in _cut(sized, limits)]


def encode_events(events: Iterable[Event], resource: Resource, limits: Limits) -> list[bytes]:
    """Return logs requests with one record per event, in their order."""
    records = map(_record, events)
    sized = ((record.ByteSize(), record) for record in records)
    return [_logs_request(chunk, resource) for chunk in _cut(sized, limits)]


def _points(series: Series, nanos: int, interval: Interval) -> Iterator[NumberDataPoint]:
    units, rest = divmod(nanos, NANOS_PER_UNIT)
    # Each piece one less than the one before: pieces of equal value would be one point sent twice.
    largest = MAX_POINT
    while units > 0:
        piece = min(units, largest)
        yield _point(_encoded_attributes(series, 0), piece, interval)
        units -= piece
        largest -= 1
    if rest:
        yield _point(_encoded_attributes(series, QUANTITY_DECIMALS), rest, interval)


def _point(encoded_attributes: bytes, value: int, interval: Interval) -> NumberDataPoint:
    point = NumberDataPoint.FromString(encoded_attributes)
    point.start_time_unix_nano = interval.start_ns
    point.time_unix_nano = interval.end_ns
    point.as_int = value
    return point


@lru_cache(maxsize=50_000)
def _encoded_attributes(series: Series, scale: int) -> bytes:
    """A point with nothing but attributes: they are most of the work, and the same in each flush."""
    attributes = _attributes(series)
    if scale:
        attributes.append(_attribute(QUANTITY_SCALE, scale))
    return NumberDataPoint(attributes=attributes).SerializeToString()


def _record(event: Event) -> LogRecord:
    units, rest = divmod(event.nanos, NANOS_PER_UNIT)
    return LogRecord(
        time_unix_nano=event.time_ns,
        observed_time_unix_nano=event.time_ns,
        event_name=event.series.meter,
        attributes=[
            *_attributes(event.series),
            _attribute(EVENT_ID, event.event_id),
            _attribute(QUANTITY, to_text(event.nanos) if rest else units),
        ],
    )


def _metrics_request(points: list[tuple[str, NumberDataPoint]], resource: Resource) -> bytes:
    by_meter: dict[str, list[NumberDataPoint]] = {}
    for meter, point in points:
        by_meter.setdefault(meter, []).append(point)
    metrics = [
        Metric(
            name=meter,
            sum=Sum(
                aggregation_temporality=AGGREGATION_TEMPORALITY_DELTA,
                is_monotonic=True,
                data_points=data_points,
            ),
        )
        for meter, data_points in by_meter.items()
    ]
    return ExportMetricsServiceRequest(
        resource_metrics=[
            ResourceMetrics(
                resource=resource, scope_metrics=[ScopeMetrics(scope=_SCOPE, metrics=metrics)]
            )
        ]
    ).SerializeToString()


def _logs_request(records: list[LogRecord], resource: Resource) -> bytes:
    scope_logs = [ScopeLogs(scope=_SCOPE, log_records=records)]
    return ExportLogsServiceRequest(
        resource_logs=[ResourceLogs(resource=resource, scope_logs=scope_logs)]
    ).SerializeToString()


def _cut(sized: Iterable[tuple[int, _T]], limits: Limits) -> Iterator[list[_T]]:
    chunk: list[_T] = []
    total = 0
    for size, item in sized:
        if chunk and (len(chunk) == limits.max_points or total + size > limits.max_bytes):
            yield chunk
            chunk, total = [], 0
        chunk.append(item)
        total += size
    if chunk:
        yield chunk


def _attributes(series: Series) -> list[KeyValue]:
    tenant = [] if series.tenant is None else [_attribute(TENANT_ID, series.tenant)]
    return tenant + [_attribute(name, value) for name, _, value in series.dimensions]


def _attribute(name: str, value: AnyAttribute) -> KeyValue:
    return KeyValue(key=name, value=_any_value(value))


def _any_value(value: AnyAttribute) -> AnyValue:
    match value:
        case bool():  # before int, which it is too
            return AnyValue(bool_value=value)
        case str():
            return AnyValue(string_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case bytes():
            return AnyValue(bytes_value=value)
        case None:
            return AnyValue()
        case Mapping():
            pairs = [_attribute(name, value[name]) for name in sorted(value)]
            return AnyValue(kvlist_value=KeyValueList(values=pairs))
        case _:
            return AnyValue(array_value=ArrayValue(values=[_any_value(item) for item in value]))
