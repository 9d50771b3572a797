"""Stream -> usage: which tenant, which meter, which dimensions. Decided once for each stream, then cached.

Rules that live only here:

- The tenant is the item's `tenant.id`, else the resource's, else the one the API key is bound to. A key
  that is bound to a tenant never writes another's usage.
- A metric of the scope `otel_metering`, and a span or log record with `metering.quantity`, is usage of
  the meter it is named after; `meters.yaml` adds meters for everything else. One item may feed several.
- What names a tenant or feeds a meter but cannot be billed goes to quarantine with a reason. What does
  neither is not usage: it is counted as ignored.

Correctness never depends on the cache: it is emptied when it is full.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Final

from google.protobuf.message import DecodeError

from otel_metering.contract import attributes as names
from otel_metering.contract.event import QUANTITY_DECIMALS, check_quantity, is_valid_name
from otel_metering.contract.meter import (
    MeterDefinition,
    Meters,
    Signal,
)
from otel_metering.errors import InvalidUsageError
from receiver.errors import MalformedPayloadError
from receiver.identity import digest
from receiver.otlp import lazy_pb2 as lazy
from receiver.otlp import values
from receiver.otlp.items import ItemHeader
from receiver.otlp.metrics import FLAG_NO_RECORDED_VALUE, MetricHeader, MetricType, Temporality
from receiver.usage import (
    ItemResolution,
    Pairs,
    PointResolution,
    Reason,
    Refusal,
    Series,
    Streams,
    Use,
    Verdict,
)

MAX_CACHED_STREAMS: Final = 200_000
"""Streams kept; about 2 KB each with ten attributes."""


@dataclass(frozen=True, slots=True)
class _Context:
    """What the attributes of an item are looked at with."""

    signal: Signal
    name: str
    resource: Mapping[bytes, bytes]
    service_name: str
    definitions: tuple[MeterDefinition, ...]
    bound_tenant: str | None
    stream: bytes
    is_monotonic: bool = False


class MetricStreams:
    """The streams of one metric under one resource, for keys of one binding.

    Attributes:
        numbers: Tail of a point -> number in `Streams`; what is missing is `resolve`d.
    """

    def __init__(self, header: MetricHeader, context: _Context, streams: Streams) -> None:
        self._header = header
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
        header, context = self._header, self._context
        try:
            point = lazy.NumberDataPoint.FromString(tail)
        except DecodeError as error:
            raise MalformedPayloadError("a data point is not a NumberDataPoint message") from error
        if point.WhichOneof("value") or point.start_time_unix_nano or point.time_unix_nano:
            return Verdict.IRREGULAR
        if point.flags & FLAG_NO_RECORDED_VALUE:
            return Verdict.STALE
        attributes = values.parse_attributes(point.attributes)
        described = _describe(attributes)
        tenant = _tenant_of(attributes, context)
        if not context.definitions and not _claims_usage(attributes):
            return Verdict.IGNORED
        problem = _problem(context, tenant) or _metric_problem(header)
        scale = _scale_of(attributes)
        if problem is None and scale is None:
            problem = (
                Reason.INVALID_QUANTITY,
                f"{names.QUANTITY_SCALE} must be 0 to {QUANTITY_DECIMALS}",
            )
        if problem is not None or tenant is None:
            return _refusal(problem, tenant, described, context)
        stream_id = digest(b"stream", context.stream, values.canonical(attributes))
        return tuple(
            _series(definition, context, tenant, attributes, described, stream_id)
            for definition in context.definitions
        )


class Metering:
    """Decides what telemetry is usage, by the meters of one `meters.yaml`."""

    def __init__(self, meters: Meters, max_cached_streams: int = MAX_CACHED_STREAMS) -> None:
        self._meters = meters
        self._max_cached_streams = max_cached_streams
        self.streams = Streams()
        self._metrics: dict[tuple[MetricHeader, str | None], MetricStreams] = {}
        self._contexts: dict[tuple[ItemHeader, str | None], _Context] = {}

    def make_room(self) -> None:
        """Empty the cache if it is full. Between micro-batches only: numbers change their meaning."""
        if len(self._contexts) + len(self.streams) > self._max_cached_streams:
            self._metrics.clear()
            self._contexts.clear()
            self.streams.clear()

    def metric(self, header: MetricHeader, bound_tenant: str | None) -> MetricStreams:
        """The streams of a metric that a key bound to `bound_tenant` sends.

        Raises:
            MalformedPayloadError: The resource or scope is not OTLP.
        """
        found = self._metrics.get((header, bound_tenant))
        if found is None:
            context = self._metric_context(header, bound_tenant)
            found = MetricStreams(header, context, self.streams)
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
        attributes = values.parse_attributes(encoded_attributes)
        if not context.definitions and not _claims_usage(attributes):
            return Verdict.IGNORED
        return self._decide_item(context, attributes)

    def event(self, tenant: str, meter: str, attributes: Mapping[str, str]) -> Series:
        """The series of an event of the JSON API, whose tenant and meter are valid."""
        definition = self._meters.find(meter)
        described = tuple(sorted(attributes.items()))
        dimensions = _dimensions(definition, Signal.EVENT, described)
        stream = digest(b"api", *(part.encode() for pair in described for part in pair))
        return Series(
            key=digest(b"series", tenant.encode(), meter.encode(), stream),
            tenant_id=tenant,
            meter=meter,
            dimensions=dimensions,
            attributes=described,
            service_name=attributes.get(names.SERVICE_NAME, ""),
            signal=Signal.EVENT,
            stream_id=stream,
            unique_key=_unique_key(definition, attributes),
        )

    def _decide_item(self, context: _Context, attributes: Mapping[bytes, bytes]) -> ItemResolution:
        described, tenant = _describe(attributes), _tenant_of(attributes, context)
        definitions = list(context.definitions)
        named = names.QUANTITY.encode() in attributes
        if named and context.name not in {definition.slug for definition in definitions}:
            definitions.append(self._meters.find(context.name))
        problem = _problem(replace(context, definitions=tuple(definitions)), tenant)
        event_id = _text(attributes, names.EVENT_ID)
        if problem is None and tenant is not None:
            try:
                return tuple(
                    Use(
                        _series(definition, context, tenant, attributes, described, context.stream),
                        _quantity(definition, attributes),
                        event_id,
                    )
                    for definition in definitions
                )
            except InvalidUsageError as error:
                if isinstance(error, MalformedPayloadError):
                    raise
                problem = (Reason.INVALID_QUANTITY, str(error))
        return _refusal(problem, tenant, described, context)

    def _metric_context(self, header: MetricHeader, bound_tenant: str | None) -> _Context:
        name, scope = values.decode_text(header.name), _parse_scope(header.scope)
        scope_name = values.decode_text(scope.name)
        fed = self._meters.fed_by(signal=Signal.METRIC, name=name, scope=scope_name)
        if scope_name == names.SCOPE_NAME and name not in {definition.slug for definition in fed}:
            fed = (*fed, self._meters.find(name))
        shape = bytes([header.type, header.temporality & 0xFF, header.is_monotonic])
        context = _context(Signal.METRIC, header, scope, fed, bound_tenant, header.unit, shape)
        return replace(context, is_monotonic=header.is_monotonic)

    def _item_context(self, header: ItemHeader, bound_tenant: str | None) -> _Context:
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
) -> _Context:
    """What `header` says; its stream is that of resource, scope, name and `more`."""
    resource = _parse_resource(header.resource)
    return _Context(
        signal=signal,
        name=values.decode_text(header.name),
        resource=resource,
        service_name=_text(resource, names.SERVICE_NAME) or "",
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


def _describe(attributes: Mapping[bytes, bytes]) -> Pairs:
    return tuple(
        sorted(
            (values.decode_text(key), values.text_of(value)) for key, value in attributes.items()
        )
    )


def _text(attributes: Mapping[bytes, bytes], name: str) -> str | None:
    value = attributes.get(name.encode())
    return None if value is None else values.text_of(value)


def _claims_usage(attributes: Mapping[bytes, bytes]) -> bool:
    return any(
        name.encode() in attributes for name in (names.TENANT_ID, names.QUANTITY, names.EVENT_ID)
    )


def _tenant_of(attributes: Mapping[bytes, bytes], context: _Context) -> str | None:
    return (
        _text(attributes, names.TENANT_ID)
        or _text(context.resource, names.TENANT_ID)
        or context.bound_tenant
    )


def _problem(context: _Context, tenant: str | None) -> tuple[Reason, str] | None:
    if not context.definitions:
        return Reason.NO_METER, f"no meter is fed by the {context.signal} {context.name[:128]!r}"
    if tenant is None:
        return (
            Reason.NO_TENANT,
            f"it has no {names.TENANT_ID}, and the API key is bound to no tenant",
        )
    if not is_valid_name(tenant):
        return Reason.INVALID_TENANT, f"{names.TENANT_ID} is {tenant[:128]!r}"
    if context.bound_tenant is not None and tenant != context.bound_tenant:
        return Reason.TENANT_NOT_ALLOWED, f"the API key is bound to {context.bound_tenant!r}"
    for definition in context.definitions:
        if not is_valid_name(definition.slug):
            return Reason.INVALID_METER, f"{definition.slug[:128]!r} cannot be a meter's slug"
    return None


def _refusal(
    problem: tuple[Reason, str] | None, tenant: str | None, described: Pairs, context: _Context
) -> Refusal:
    reason, detail = problem or (Reason.NO_TENANT, "")
    return Refusal(
        reason=reason,
        detail=detail,
        tenant_id=tenant or "",
        attributes=described,
        service_name=context.service_name,
    )


def _metric_problem(header: MetricHeader) -> tuple[Reason, str] | None:
    if header.type is not MetricType.SUM:
        return Reason.UNSUPPORTED, f"{header.type.name.lower()} points are not metered yet"
    if header.temporality == Temporality.CUMULATIVE:
        return Reason.UNSUPPORTED, "cumulative sums are not metered yet; send delta temporality"
    if header.temporality != Temporality.DELTA:
        return (
            Reason.UNKNOWN_TEMPORALITY,
            f"aggregation temporality {header.temporality} is not delta",
        )
    return None


def _scale_of(attributes: Mapping[bytes, bytes]) -> int | None:
    value = attributes.get(names.QUANTITY_SCALE.encode())
    if value is None:
        return 0
    scale = values.number_of(value)
    return scale if isinstance(scale, int) and 0 <= scale <= QUANTITY_DECIMALS else None


def _series(
    definition: MeterDefinition,
    context: _Context,
    tenant: str,
    attributes: Mapping[bytes, bytes],
    described: Pairs,
    stream_id: bytes,
) -> Series:
    return Series(
        key=digest(b"series", tenant.encode(), definition.slug.encode(), stream_id),
        tenant_id=tenant,
        meter=definition.slug,
        dimensions=_dimensions(definition, context.signal, described),
        attributes=described,
        service_name=context.service_name,
        signal=context.signal,
        stream_id=stream_id,
        scale=_scale_of(attributes) or 0,
        unique_key=_unique_key(definition, dict(described)),
        is_monotonic=context.is_monotonic,
    )


def _dimensions(definition: MeterDefinition, signal: Signal, attributes: Pairs) -> Pairs:
    if definition.group_by is not None:
        wanted = frozenset(definition.group_by)
        return tuple(pair for pair in attributes if pair[0] in wanted)
    if signal is Signal.SPAN:
        return ()
    return tuple(pair for pair in attributes if pair[0] not in names.RESERVED)


def _unique_key(definition: MeterDefinition, attributes: Mapping[str, str]) -> str:
    return attributes.get(definition.unique_attribute or names.UNIQUE_KEY, "")


def _quantity(definition: MeterDefinition, attributes: Mapping[bytes, bytes]) -> Decimal | None:
    """How much one span or log record is; None: the span's length."""
    if definition.is_duration:
        return None
    name = definition.quantity_attribute or names.QUANTITY
    value = attributes.get(name.encode())
    if value is None:
        if name == names.QUANTITY:
            return Decimal(1)
        raise InvalidUsageError(f"it has no attribute {name}, which is the meter's quantity")
    number = values.number_of(value)
    try:
        # A double counts as what people see of it: 0.1 is 0.1.
        return check_quantity(Decimal(repr(number) if isinstance(number, float) else number))  # type: ignore[arg-type]  # None is caught
    except (InvalidOperation, TypeError):
        raise InvalidUsageError(f"{name} is {values.text_of(value)[:64]!r}, not a number") from None
