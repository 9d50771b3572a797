"""Usage as OTLP: pure, and the same bytes for the same usage.

A metrics request is put together from bytes: with the message classes a flush of 10,000 series takes four
times as long. Only what is the same in each flush, attributes and resource, is encoded by them.

The receiver identifies a delta point by stream, start, time and value, so no two points of one request
may agree in all four: a series becomes one point per scale, and pieces of a sum that is too large for
one point all differ.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
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

_MAX_MADE: Final = 50_000
"""Beyond it, and as many older ones, attributes are encoded anew in each flush."""

_T = TypeVar("_T")
_K = TypeVar("_K", bound=Hashable)

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


def forget_idle() -> None:
    """Free what no usage had since the last call but one."""
    _TENANTS.age()
    _DIMENSIONS.age()


def encode_usage(
    deltas: Mapping[Series, int], interval: Interval, resource: Resource, limits: Limits
) -> list[bytes]:
    """Return metrics requests with `deltas` (10**-9 units by series) as delta sums."""
    requests: list[bytes] = []
    by_meter: defaultdict[str, list[bytes]] = defaultdict(list)
    count = size = 0
    max_points, max_bytes, pack = limits.max_points, limits.max_bytes, _INT64.pack
    heads = _heads(interval)
    # One loop, without a call per point but `pack`: each costs a flush of 10,000 series half a millisecond.
    for (meter, tenant, dimensions), nanos in deltas.items():
        attributes = _TENANTS[tenant] + _DIMENSIONS[dimensions]
        units, rest = divmod(nanos, NANOS_PER_UNIT)
        if rest or units > MAX_POINT:
            points = [
                heads[len(attributes) + len(scale)] + pack(value) + attributes + scale
                for value, scale in _pieces(units, rest)
            ]
        else:
            points = [heads[len(attributes)] + pack(units) + attributes]
        for point in points:
            if count and (count == max_points or size + len(point) > max_bytes):
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


class _Made(dict[_K, bytes]):
    """Bytes, made when they are first asked for, by what they are made of."""

    def __init__(self, make: Callable[[_K], bytes]) -> None:
        self._make = make
        self._older: dict[_K, bytes] = {}

    def __missing__(self, key: _K) -> bytes:
        if len(self) >= _MAX_MADE:
            self.age()
        made = self._older.get(key)
        if made is None:
            made = self._make(key)
        self[key] = made
        return made

    def age(self) -> None:
        """Forget what was not asked for since the last time."""
        self._older = self.copy()
        self.clear()


def _heads(interval: Interval) -> _Made[int]:
    """All that is before the value of a point, by the length of its attributes."""
    times = _TIMES.pack(_START_TIME, interval.start_ns, _TIME, interval.end_ns, _AS_INT)
    fixed = len(times) + _INT64.size
    return _Made(lambda length: _DATA_POINTS + _varint(fixed + length) + times)


def _pieces(units: int, rest: int) -> list[tuple[int, bytes]]:
    """(value, attribute with its decimal places) of the points of `units` and `rest` 10**-9 units."""
    pieces = []
    # Each piece one less than the one before: pieces of equal value would be one point sent twice.
    largest = MAX_POINT
    while units > 0:
        pieces.append((min(units, largest), b""))
        units -= pieces[-1][0]
        largest -= 1
    if rest:
        pieces.append((rest, _SCALE))
    return pieces


def _encoded_tenant(tenant: str | None) -> bytes:
    return _encoded([] if tenant is None else [_attribute(TENANT_ID, tenant)])


def _encoded_dimensions(dimensions: Dimensions) -> bytes:
    return _encoded([_attribute(name, value) for name, _, value in dimensions])


def _encoded(attributes: list[KeyValue]) -> bytes:
    """A point with nothing but attributes."""
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
    scope_metrics = _field(_SCOPE_FIELD, [_SCOPE.SerializeToString()])
    for meter, points in by_meter.items():
        total = _field(_SUM, [b"".join(points), _DELTA_AND_MONOTONIC])
        scope_metrics += _field(_METRICS, [*_field(_NAME, [meter.encode()]), *total])
    resource_metrics = _field(_RESOURCE, [resource.SerializeToString()])
    resource_metrics += _field(_SCOPE_METRICS, scope_metrics)
    return b"".join(_field(_RESOURCE_METRICS, resource_metrics))


def _field(tag: bytes, parts: list[bytes]) -> list[bytes]:
    """The parts of a field with the content `parts`: put together once, a copy of all points is dear."""
    return [tag, _varint(sum(map(len, parts))), *parts]


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


# Attributes are most of the work, and the same in each flush. Apart, because many tenants have the same
# dimensions.
_TENANTS: Final = _Made(_encoded_tenant)
_DIMENSIONS: Final = _Made(_encoded_dimensions)
_SCALE: Final = _encoded([_attribute(QUANTITY_SCALE, QUANTITY_DECIMALS)])
