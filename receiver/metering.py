"""Stream -> usage: which tenant, which meter, which dimensions. Decided once for each stream, then cached.

A metric of the scope `otel_metering`, and a span or log record with `metering.quantity`, is usage of the
meter it is named after; `meters.yaml` adds meters for everything else. One item may feed several. What
claims to be usage (it names a tenant, a quantity or an event id) but feeds no meter goes to quarantine;
other telemetry is no usage, and is ignored. The rules for one item and one meter are in `decide`.

Correctness never depends on the cache: it is emptied when it is full.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    relevant_attributes,
)
from receiver.errors import MalformedPayloadError
from receiver.identity import digest
from receiver.otlp import lazy_pb2 as lazy
from receiver.otlp import values
from receiver.otlp.items import ItemHeader, ItemName
from receiver.otlp.metrics import FLAG_NO_RECORDED_VALUE, MetricHeader
from receiver.otlp.values import Attributes, Parser
from receiver.usage import ItemResolution, Pairs, PointResolution, Series, Streams, Use, Verdict

MAX_CACHED_STREAMS: Final = 200_000
"""Streams kept; about 2 KB each with ten attributes."""

MAX_CACHED_ITEMS: Final = 20_000
"""Sets of attributes of spans and log records kept; many are of one item only. About 3 KB each."""

MAX_CACHED_ATTRIBUTES: Final = 100_000
"""Attributes kept; about half a KB each."""


class MetricStreams:
    """The streams of one metric under one resource, for keys of one binding.

    Attributes:
        numbers: Tail of a point -> number in `Streams`; what is missing is `resolve`d.
    """

    def __init__(self, context: Context, streams: Streams, parser: Parser) -> None:
        self._context = context
        self._streams = streams
        self._parser = parser
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
        subject = Subject(self._context, self._parser.attributes(point.attributes))
        fed = [one for one in self._context.definitions if subject.feeds(one)]
        if not fed:
            return (feeds_nothing(subject),) if subject.claims_usage() else Verdict.IGNORED
        stream_id = digest(b"stream", self._context.stream, values.canonical(subject.attributes))
        return tuple(decide_point(subject, definition, stream_id) for definition in fed)


@dataclass(frozen=True, slots=True)
class Described:
    """What an item with these attributes is, and how its attributes read.

    Attributes:
        resolution: What it is.
        attributes: As text.
        digest: 16 bytes for the set of them.
    """

    resolution: ItemResolution
    attributes: Pairs
    digest: bytes


class ItemStreams:
    """Spans or log records of one name and kind, under one resource and scope, for one binding.

    Attributes:
        known: Encoded attributes -> what such items are; what is missing is `resolve`d.
    """

    def __init__(self, context: Context, meters: Meters, parser: Parser) -> None:
        self._context = context
        self._meters = meters
        self._parser = parser
        self._named = _named(meters, context.name, context.definitions)
        self._relevant = relevant_attributes(context.definitions)
        # With a quantity an item is usage of the meter of its name as well.
        self._relevant_named = relevant_attributes((*context.definitions, *self._named))
        # Most attributes (an URL, a user agent) do not matter to any meter: what does is decided once.
        self._decided: dict[tuple[bytes, ...], ItemResolution] = {}
        self.known: dict[tuple[bytes, ...], Described] = {}

    def resolve(self, encoded: tuple[bytes, ...]) -> Described:
        """What an item with these attributes is, from now on in `known`.

        Raises:
            MalformedPayloadError: An attribute is not OTLP.
        """
        attributes = self._parser.attributes(encoded)
        subject = Subject(self._context, attributes)
        resolution = self._resolution(subject)
        found = Described(
            resolution,
            () if isinstance(resolution, Verdict) else subject.described,
            digest(b"attributes", values.canonical(attributes)),
        )
        self.known[encoded] = found
        return found

    @property
    def decision_count(self) -> int:
        """How many decisions are kept."""
        return len(self._decided)

    def _resolution(self, subject: Subject) -> ItemResolution:
        is_named = subject.has(names.QUANTITY)
        relevant = self._relevant_named if is_named else self._relevant
        if relevant is None or subject.has(names.EVENT_ID):
            return self._decide(subject)
        key = tuple([one.canonical for one in subject.attributes.values() if one.name in relevant])
        found = self._decided.get(key)
        if found is None:
            found = self._decide(subject)
            # A refusal says all attributes, so it is of this item only.
            if isinstance(found, Verdict) or all(isinstance(one, Use) for one in found):
                self._decided[key] = found
        return found

    def _decide(self, subject: Subject) -> ItemResolution:
        fed = [one for one in self._context.definitions if subject.feeds(one)]
        if subject.has(names.QUANTITY):
            fed += [one for one in self._named if one not in fed]
        if not fed:
            return (feeds_nothing(subject),) if subject.claims_usage() else Verdict.IGNORED
        return tuple(decide_item(subject, definition) for definition in fed)


class Metering:
    """Decides what telemetry is usage, by the meters of one `meters.yaml`."""

    def __init__(self, meters: Meters, max_cached_streams: int = MAX_CACHED_STREAMS) -> None:
        self._meters = meters
        self._max_cached_streams = max_cached_streams
        self.streams = Streams()
        self._parser = Parser()
        self._metrics: dict[tuple[MetricHeader, str | None], MetricStreams] = {}
        self._items: dict[tuple[ItemHeader, ItemName, str | None], ItemStreams] = {}

    def make_room(self) -> None:
        """Empty what is full of the cache. Between micro-batches only: numbers change their meaning."""
        if self.cached_streams > self._max_cached_streams:
            self._metrics.clear()
            self._items.clear()
            self.streams.clear()
        if sum(len(one.known) for one in self._items.values()) > MAX_CACHED_ITEMS:
            for one in self._items.values():
                one.known.clear()
        if len(self._parser) > MAX_CACHED_ATTRIBUTES:
            self._parser.clear()

    @property
    def cached_streams(self) -> int:
        """How many decisions are kept."""
        of_items = sum(one.decision_count for one in self._items.values())
        return len(self._metrics) + len(self.streams) + of_items + len(self._items)

    def metric(self, header: MetricHeader, bound_tenant: str | None) -> MetricStreams:
        """The streams of a metric that a key bound to `bound_tenant` sends.

        Raises:
            MalformedPayloadError: The resource or scope is not OTLP.
        """
        found = self._metrics.get((header, bound_tenant))
        if found is None:
            context = self._metric_context(header, bound_tenant)
            found = MetricStreams(context, self.streams, self._parser)
            self._metrics[(header, bound_tenant)] = found
        return found

    def item(self, header: ItemHeader, name: ItemName, bound_tenant: str | None) -> ItemStreams:
        """The spans or log records of a name that a key bound to `bound_tenant` sends.

        Raises:
            MalformedPayloadError: The resource or scope is not OTLP.
        """
        found = self._items.get((header, name, bound_tenant))
        if found is None:
            context = self._item_context(header, name, bound_tenant)
            found = ItemStreams(context, self._meters, self._parser)
            self._items[(header, name, bound_tenant)] = found
        return found

    def event(
        self, tenant: str, meter: str, attributes: Mapping[str, str], content: bytes | None
    ) -> tuple[Series, Pairs]:
        """The series of an event of the JSON API, whose tenant and meter are valid, and its attributes.

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
        series = Series(
            key=digest(b"series", tenant.encode(), meter.encode(), stream),
            tenant_id=tenant,
            meter=meter,
            dimensions=dimensions(definition, Signal.EVENT, described),
            attributes=(),
            service_name=attributes.get(names.SERVICE_NAME, ""),
            signal=Signal.EVENT,
            stream_id=stream,
            unique_key=attributes.get(definition.unique_attribute or names.UNIQUE_KEY, ""),
        )
        return series, described

    def describe(self, meter: str, signal: Signal, attributes: Pairs) -> tuple[Pairs, str]:
        """Dimensions and unique key of an event of a meter that has these attributes now."""
        definition = self._meters.find(meter)
        unique = dict(attributes).get(definition.unique_attribute or names.UNIQUE_KEY, "")
        return dimensions(definition, signal, attributes), unique

    def _metric_context(self, header: MetricHeader, bound_tenant: str | None) -> Context:
        scope = _parse_scope(header.scope)
        name, scope_name = values.decode_text(header.name), values.decode_text(scope.name)
        fed = self._meters.fed_by(signal=Signal.METRIC, name=name, scope=scope_name)
        if scope_name == names.SCOPE_NAME:
            fed = (*fed, *_named(self._meters, name, fed))
        shape = bytes([header.type, header.temporality & 0xFF, header.is_monotonic])
        return self._context(
            Context(
                signal=Signal.METRIC,
                name=name,
                resource=self._resource(header.resource),
                definitions=fed,
                bound_tenant=bound_tenant,
                header=header,
                is_of_sdk=scope_name == names.SCOPE_NAME,
            ),
            scope,
            header.name,
            header.unit,
            shape,
        )

    def _item_context(
        self, header: ItemHeader, name: ItemName, bound_tenant: str | None
    ) -> Context:
        text, scope = values.decode_text(name.name), _parse_scope(header.scope)
        fed = self._meters.fed_by(
            signal=header.signal,
            name=text,
            scope=values.decode_text(scope.name),
            kind=name.span_kind,
        )
        context = Context(
            signal=header.signal,
            name=text,
            resource=self._resource(header.resource),
            definitions=fed,
            bound_tenant=bound_tenant,
        )
        return self._context(context, scope, name.name)

    def _context(self, context: Context, scope: lazy.Scope, *more: bytes) -> Context:
        """The context with its stream: that of resource, scope, and what else names it."""
        stream = digest(
            context.signal.encode(),
            values.canonical(context.resource),
            scope.name,
            scope.version,
            values.canonical(self._parser.attributes(scope.attributes)),
            *more,
        )
        return replace(context, stream=stream)

    def _resource(self, encoded: bytes) -> Attributes:
        try:
            return self._parser.attributes(lazy.Resource.FromString(encoded).attributes)
        except DecodeError as error:
            raise MalformedPayloadError("a resource is not a Resource message") from error


def _named(
    meters: Meters, name: str, fed: Sequence[MeterDefinition]
) -> tuple[MeterDefinition, ...]:
    """The meter of this name, unless it is among those that are fed."""
    return () if name in {one.slug for one in fed} else (meters.find(name),)


def _parse_scope(encoded: bytes) -> lazy.Scope:
    try:
        return lazy.Scope.FromString(encoded)
    except DecodeError as error:
        raise MalformedPayloadError("a scope is not an InstrumentationScope message") from error
