"""Stream -> usage: which tenant, which meter, which dimensions. Decided once for each stream, then cached.

A metric of the scope `otel_metering`, and a span or log record with `metering.quantity`, is usage of the
meter it is named after; `meters.yaml` adds meters for everything else. One item may feed several. What
claims to be usage (it names a tenant, a quantity or an event id) but feeds no meter goes to quarantine;
other telemetry is no usage, and is ignored. The rules for one item and one meter are in `decide`.

Correctness never depends on the cache: it is emptied when it is full.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from google.protobuf.message import DecodeError

from otel_metering.contract import attributes as names
from otel_metering.contract.meter import MeterDefinition, Meters, Signal
from receiver.decide import (
    Context,
    Subject,
    decide_item,
    decide_point,
    dimensions,
    feeds_nothing,
    unique_key,
)
from receiver.errors import MalformedPayloadError
from receiver.identity import digest
from receiver.otlp import lazy_pb2 as lazy
from receiver.otlp import values
from receiver.otlp.items import ItemHeader
from receiver.otlp.metrics import FLAG_NO_RECORDED_VALUE, MetricHeader
from receiver.usage import ItemResolution, PointResolution, Series, Streams, Verdict

MAX_CACHED_STREAMS: Final = 200_000
"""Streams kept; about 2 KB each with ten attributes."""


class MetricStreams:
    """The streams of one metric under one resource, for keys of one binding.

    Attributes:
        numbers: Tail of a point -> number in `Streams`; what is missing is `resolve`d.
    """

    def __init__(self, context: Context, streams: Streams) -> None:
        self._context = context
        self._streams = streams
        self.numbers: dict[bytes, int] = {}

    def resolve(self, tail: bytes) -> int:
        """The number of what the points with this tail are, from now on in `numbers`.

        Raises:
            MalformedPayloadError: An attribute is not OTLP.
        """
        number = self._streams.number(self._decide(tail))
        self.numbers[tail] = number
        return number

    def _decide(self, tail: bytes) -> PointResolution:
        try:
            point = lazy.NumberDataPoint.FromString(tail)
        except DecodeError as error:
            raise MalformedPayloadError("a data point is not a NumberDataPoint message") from error
        if point.WhichOneof("value") or point.start_time_unix_nano or point.time_unix_nano:
            return Verdict.IRREGULAR
        if point.flags & FLAG_NO_RECORDED_VALUE:
            return Verdict.STALE
        subject = Subject(self._context, values.parse_attributes(point.attributes))
        fed = [one for one in self._context.definitions if subject.feeds(one)]
        if not fed:
            return (feeds_nothing(subject),) if subject.claims_usage() else Verdict.IGNORED
        stream_id = digest(b"stream", self._context.stream, values.canonical(subject.attributes))
        return tuple(decide_point(subject, definition, stream_id) for definition in fed)


class Metering:
    """Decides what telemetry is usage, by the meters of one `meters.yaml`."""

    def __init__(self, meters: Meters, max_cached_streams: int = MAX_CACHED_STREAMS) -> None:
        self._meters = meters
        self._max_cached_streams = max_cached_streams
        self.streams = Streams()
        self._metrics: dict[tuple[MetricHeader, str | None], MetricStreams] = {}
        self._contexts: dict[tuple[ItemHeader, str | None], Context] = {}

    def make_room(self) -> None:
        """Empty the cache if it is full. Between micro-batches only: numbers change their meaning."""
        if self.cached_streams > self._max_cached_streams:
            self._metrics.clear()
            self._contexts.clear()
            self.streams.clear()

    @property
    def cached_streams(self) -> int:
        """How many decisions are kept."""
        return len(self._contexts) + len(self._metrics) + len(self.streams)

    def metric(self, header: MetricHeader, bound_tenant: str | None) -> MetricStreams:
        """The streams of a metric that a key bound to `bound_tenant` sends.

        Raises:
            MalformedPayloadError: The resource or scope is not OTLP.
        """
        found = self._metrics.get((header, bound_tenant))
        if found is None:
            found = MetricStreams(self._metric_context(header, bound_tenant), self.streams)
            self._metrics[(header, bound_tenant)] = found
        return found

    def item(
        self, header: ItemHeader, encoded_attributes: Iterable[bytes], bound_tenant: str | None
    ) -> ItemResolution:
        """What a span or log record is.

        Raises:
            MalformedPayloadError: An attribute, the resource or the scope is not OTLP.
        """
        context = self._contexts.get((header, bound_tenant))
        if context is None:
            context = self._item_context(header, bound_tenant)
            self._contexts[(header, bound_tenant)] = context
        subject = Subject(context, values.parse_attributes(encoded_attributes))
        fed = [one for one in context.definitions if subject.feeds(one)]
        if subject.has(names.QUANTITY):
            fed += self._named(context.name, fed)
        if not fed:
            return (feeds_nothing(subject),) if subject.claims_usage() else Verdict.IGNORED
        return tuple(decide_item(subject, definition) for definition in fed)

    def event(
        self, tenant: str, meter: str, attributes: Mapping[str, str], content: bytes | None
    ) -> Series:
        """The series of an event of the JSON API, whose tenant and meter are valid.

        Args:
            tenant: Who pays.
            meter: Slug.
            attributes: All of them.
            content: What else an event with an id says; None: it has no id.
        """
        definition = self._meters.find(meter)
        described = tuple(sorted(attributes.items()))
        kind = b"api" if content is None else b"content"
        parts = [part.encode() for pair in described for part in pair]
        stream = digest(kind, content or b"", *parts)
        return Series(
            key=digest(b"series", tenant.encode(), meter.encode(), stream),
            tenant_id=tenant,
            meter=meter,
            dimensions=dimensions(definition, Signal.EVENT, described),
            attributes=described,
            service_name=attributes.get(names.SERVICE_NAME, ""),
            signal=Signal.EVENT,
            stream_id=stream,
            unique_key=unique_key(definition, attributes),
        )

    def _named(self, name: str, fed: Iterable[MeterDefinition]) -> list[MeterDefinition]:
        """The meter of this name, unless it is among those that are fed."""
        return [] if name in {one.slug for one in fed} else [self._meters.find(name)]

    def _metric_context(self, header: MetricHeader, bound_tenant: str | None) -> Context:
        scope = _parse_scope(header.scope)
        name, scope_name = values.decode_text(header.name), values.decode_text(scope.name)
        fed = self._meters.fed_by(signal=Signal.METRIC, name=name, scope=scope_name)
        if scope_name == names.SCOPE_NAME:
            fed = (*fed, *self._named(name, fed))
        shape = bytes([header.type, header.temporality & 0xFF, header.is_monotonic])
        return _context(Signal.METRIC, header, scope, fed, bound_tenant, header.unit, shape)

    def _item_context(self, header: ItemHeader, bound_tenant: str | None) -> Context:
        name, scope = values.decode_text(header.name), _parse_scope(header.scope)
        fed = self._meters.fed_by(
            signal=header.signal, name=name, scope=values.decode_text(scope.name), kind=header.kind
        )
        return _context(header.signal, header, scope, fed, bound_tenant)


def _context(
    signal: Signal,
    header: MetricHeader | ItemHeader,
    scope: lazy.Scope,
    definitions: tuple[MeterDefinition, ...],
    bound_tenant: str | None,
    *more: bytes,
) -> Context:
    """What `header` says; its stream is that of resource, scope, name and `more`."""
    resource = _parse_resource(header.resource)
    service_name = resource.get(names.SERVICE_NAME.encode())
    return Context(
        signal=signal,
        name=values.decode_text(header.name),
        resource=resource,
        service_name="" if service_name is None else values.text_of(service_name),
        definitions=definitions,
        bound_tenant=bound_tenant,
        stream=digest(
            signal.encode(),
            values.canonical(resource),
            scope.name,
            scope.version,
            values.canonical(values.parse_attributes(scope.attributes)),
            header.name,
            *more,
        ),
        header=header if isinstance(header, MetricHeader) else None,
    )


def _parse_resource(encoded: bytes) -> dict[bytes, bytes]:
    try:
        return values.parse_attributes(lazy.Resource.FromString(encoded).attributes)
    except DecodeError as error:
        raise MalformedPayloadError("a resource is not a Resource message") from error


def _parse_scope(encoded: bytes) -> lazy.Scope:
    try:
        return lazy.Scope.FromString(encoded)
    except DecodeError as error:
        raise MalformedPayloadError("a scope is not an InstrumentationScope message") from error
