"""Usage as OTLP: pure, and the same bytes for the same usage.

A metrics request is put together from bytes: with the message classes a flush of 10,000 series takes four
times as long. Only what is the same in each flush, attributes and resource, is encoded by them.

The receiver identifies a delta point by stream, start, time and value, so no two points of one request
may agree in all four: a series becomes one point per scale, and pieces of a sum that is too large for
one point all differ.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from typing import Final, TypeVar

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    InstrumentationScope,
    KeyValue,
    KeyValueList,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import NumberDataPoint
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.util.types import AnyValue as AnyAttribute
from opentelemetry.util.types import AttributeValue

from otel_metering._cells import Event, Series
from otel_metering._dimensions import Dimensions
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

_START_TIME, _TIME, _AS_INT, _DATA_POINTS = 0x11, 0x19, 0x31, b"\x0a"
_DELTA_AND_MONOTONIC: Final = b"\x10\x01\x18\x01"
_NAME, _SUM = b"\x0a", b"\x3a"
_SCOPE_FIELD, _METRICS = b"\x0a", b"\x12"
_RESOURCE, _SCOPE_METRICS = b"\x0a", b"\x12"
_RESOURCE_METRICS: Final = b"\x0a"
"""Tags of opentelemetry/proto/metrics/v1/metrics.proto: of NumberDataPoint and Sum, of Sum, Metric,
ScopeMetrics, ResourceMetrics and the request. Fields are in the order of their numbers."""

_TIMES: Final = Struct("<BQBQB")
_INT64: Final = Struct("<q")

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
    requests: list[bytes] = []
    by_meter: defaultdict[str, list[bytes]] = defaultdict(list)
    count = size = 0
    for meter, point in _points(deltas, interval):
        if count and (count == limits.max_points or size + len(point) > limits.max_bytes):
            requests.append(_metrics_request(by_meter, resource))
            by_meter.clear()
            count = size = 0
        by_meter[meter].append(point)
        count += 1
        size += len(point)
    return [*requests, _metrics_request(by_meter, resource)] if count else requests


def encode_events(events: Iterable[Event], resource: Resource, limits: Limits) -> list[bytes]:
    """Return logs requests with one record per event, in their order."""
    records = map(_record, events)
    sized = ((record.ByteSize(), record) for record in records)
    return [_logs_request(chunk, resource) for chunk in _cut(sized, limits)]


def _points(deltas: Mapping[Series, int], interval: Interval) -> Iterator[tuple[str, bytes]]:
    """(meter, point with its tag and length)."""
    times = _TIMES.pack(_START_TIME, interval.start_ns, _TIME, interval.end_ns, _AS_INT)
    # By length, because all that is before the value is the same for points of one length.
    heads: dict[int, bytes] = {}
    pack = _INT64.pack
    for series, nanos in deltas.items():
        meter, tenant, dimensions = series
        encoded_tenant = _encoded_tenant(tenant)
        units, rest = divmod(nanos, NANOS_PER_UNIT)
        pieces = _pieces(units, rest) if rest or units > MAX_POINT else ((units, 0),)
        for value, scale in pieces:
            attributes = encoded_tenant + _encoded_dimensions(dimensions, scale)
            head = heads.get(len(attributes))
            if head is None:
                length = _varint(len(times) + _INT64.size + len(attributes))
                head = heads[len(attributes)] = _DATA_POINTS + length + times
            yield meter, head + pack(value) + attributes


def _pieces(units: int, rest: int) -> tuple[tuple[int, int], ...]:
    """(value, decimal places) of the points that add up to `units` and `rest` 10**-9 units."""
    pieces = []
    # Each piece one less than the one before: pieces of equal value would be one point sent twice.
    largest = MAX_POINT
    while units > 0:
        pieces.append((min(units, largest), 0))
        units -= pieces[-1][0]
        largest -= 1
    if rest:
        pieces.append((rest, QUANTITY_DECIMALS))
    return tuple(pieces)


@lru_cache(maxsize=50_000)
def _encoded_tenant(tenant: str | None) -> bytes:
    """A point with nothing but its tenant. Attributes are most of the work, and the same in each flush."""
    return _encoded_attributes([] if tenant is None else [_attribute(TENANT_ID, tenant)])


@lru_cache(maxsize=50_000)
def _encoded_dimensions(dimensions: Dimensions, scale: int) -> bytes:
    """A point with nothing but its other attributes, which many tenants have."""
    attributes = [_attribute(name, value) for name, _, value in dimensions]
    if scale:
        attributes.append(_attribute(QUANTITY_SCALE, scale))
    return _encoded_attributes(attributes)


def _encoded_attributes(attributes: list[KeyValue]) -> bytes:
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


def _metrics_request(by_meter: Mapping[str, list[bytes]], resource: Resource) -> bytes:
    scope_metrics = [_field(_SCOPE_FIELD, _SCOPE.SerializeToString())]
    for meter, points in by_meter.items():
        total = b"".join((*points, _DELTA_AND_MONOTONIC))
        metric = _field(_NAME, meter.encode()) + _field(_SUM, total)
        scope_metrics.append(_field(_METRICS, metric))
    resource_metrics = _field(_RESOURCE, resource.SerializeToString()) + _field(
        _SCOPE_METRICS, b"".join(scope_metrics)
    )
    return _field(_RESOURCE_METRICS, resource_metrics)


def _field(tag: bytes, content: bytes) -> bytes:
    return b"".join((tag, _varint(len(content)), content))


def _varint(number: int) -> bytes:
    """Protocol Buffers, Encoding, Base 128 Varints."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


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
