"""One item and one meter -> usage, or why not: the rules of `meters.yaml` on the receiver's side.

Rules that live only here:

- The tenant is the item's `tenant.id`, else the resource's, else the one the API key is bound to; a meter
  may name another attribute for it. A key that is bound to a tenant never writes another's usage.
- What of a metric point counts: of a delta its value; of a cumulative point its increase; of a gauge, and
  of a cumulative sum that may fall, its level, which can be compared but not added up.
- Of histograms and summaries the quantity is the count or the sum, as the meter says.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import Enum, auto
from functools import cached_property
from typing import Final

from otel_metering.contract import attributes as names
from otel_metering.contract.event import QUANTITY_DECIMALS, check_quantity, is_valid_name
from otel_metering.contract.meter import Aggregation, Measure, MeterDefinition, Signal
from otel_metering.errors import InvalidUsageError
from receiver.errors import MalformedPayloadError
from receiver.identity import digest
from receiver.otlp import values
from receiver.otlp.metrics import DISTRIBUTIONS, MetricHeader, MetricType, Temporality
from receiver.otlp.values import Attributes
from receiver.quantity import from_decimal
from receiver.usage import Decision, Pairs, Reason, Refusal, Series, Use


class Mode(Enum):
    """How points of a metric become quantities."""

    DELTA = auto()
    INCREASE = auto()
    LEVEL = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What all items of one name, under one resource and scope, have in common.

    Attributes:
        signal: Metric, span or log.
        name: Metric name, span name or event name.
        resource: Attributes of the resource.
        definitions: The meters that such items feed, if their conditions hold.
        bound_tenant: The only tenant that the API key may write; None: any.
        stream: 16 bytes, for resource, scope, name and what else identifies a metric.
        header: Of metrics.
        is_of_sdk: Whether our SDK made it, which adds up what it counts before it sends.
    """

    signal: Signal
    name: str
    resource: Attributes
    definitions: tuple[MeterDefinition, ...]
    bound_tenant: str | None
    stream: bytes = b""
    header: MetricHeader | None = None
    is_of_sdk: bool = False

    @property
    def service_name(self) -> str:
        """From the resource; empty: it says none."""
        found = self.resource.get(names.SERVICE_NAME.encode())
        return "" if found is None else found.text


class Subject:
    """One item, or one stream of points, under the rules of a context."""

    def __init__(self, context: Context, attributes: Attributes) -> None:
        self.context = context
        self.attributes = attributes

    @cached_property
    def described(self) -> Pairs:
        """The item's attributes as text, sorted by name."""
        return tuple([(one.name, one.text) for one in self.attributes.values()])

    def has(self, name: str) -> bool:
        """Whether the item itself has this attribute."""
        return name.encode() in self.attributes

    def own(self, name: str) -> str | None:
        """An attribute of the item itself; None: it has none of this name."""
        found = self.attributes.get(name.encode())
        return None if found is None else found.text

    def text(self, name: str) -> str | None:
        """An attribute of the item, else of its resource; None: there is none."""
        key = name.encode()
        found = self.attributes.get(key) or self.context.resource.get(key)
        return None if found is None else found.text

    def claims_usage(self) -> bool:
        """Whether it says that it is usage, whatever `meters.yaml` says."""
        return self.has(names.TENANT_ID) or self.has(names.QUANTITY) or self.has(names.EVENT_ID)

    def feeds(self, definition: MeterDefinition) -> bool:
        """Whether the conditions of the meter's source hold."""
        return definition.source is None or definition.source.admits(self.text)

    def tenant(self, definition: MeterDefinition) -> str | None:
        """Who pays for it as usage of this meter."""
        return self.text(definition.tenant) or self.context.bound_tenant


def refusal(subject: Subject, tenant: str | None, reason: Reason, detail: str) -> Refusal:
    """Why it cannot be billed, and what is known of it."""
    return Refusal(
        reason=reason,
        detail=detail,
        tenant_id=tenant or "",
        attributes=subject.described,
        service_name=subject.context.service_name,
    )


def feeds_nothing(subject: Subject) -> Refusal:
    """The refusal of what claims to be usage, of no meter."""
    context = subject.context
    detail = f"no meter is fed by the {context.signal} {context.name[:128]!r}"
    tenant = subject.text(names.TENANT_ID) or context.bound_tenant
    return refusal(subject, tenant, Reason.NO_METER, detail)


def decide_point(subject: Subject, definition: MeterDefinition, stream_id: bytes) -> Decision:
    """What the points of a stream are to a meter."""
    header = subject.context.header
    assert header is not None  # noqa: S101 - the context is a metric's
    mode, tenant = _mode(header), subject.tenant(definition)
    counts = _counts_measurements(header.type, definition)
    scale = 0 if counts else _scale_of(subject)
    problem = (
        _tenant_problem(subject, definition, tenant)
        or _metric_problem(header, mode, definition)
        or _scale_problem(scale)
    )
    if problem is not None or tenant is None:
        return refusal(subject, tenant, *(problem or _NO_TENANT))
    return series(
        subject,
        definition,
        tenant,
        stream_id,
        scale=scale or 0,
        is_monotonic=header.is_monotonic or mode is Mode.INCREASE,
        is_cumulative=mode is Mode.INCREASE,
        counts_measurements=counts,
        # Where events are counted, each call of `record` is one of them.
        counts_units=subject.context.is_of_sdk
        and definition.aggregation is Aggregation.COUNT
        and mode is Mode.DELTA
        and not (counts or scale),
    )


def decide_item(subject: Subject, definition: MeterDefinition) -> Use | Refusal:
    """What a span or log record is to a meter."""
    tenant = subject.tenant(definition)
    problem = _tenant_problem(subject, definition, tenant)
    if problem is not None or tenant is None:
        return refusal(subject, tenant, *(problem or _NO_TENANT))
    event_id = subject.own(names.EVENT_ID)
    stream_id = subject.context.stream
    if event_id is not None:
        # What the event says, whoever sends it: another event under its id can be told from it.
        stream_id = digest(b"content", values.canonical(subject.attributes))
    try:
        quantity = _quantity(definition, subject.attributes)
    except InvalidUsageError as error:
        if isinstance(error, MalformedPayloadError):
            raise
        return refusal(subject, tenant, Reason.INVALID_QUANTITY, str(error))
    return Use(series(subject, definition, tenant, stream_id), quantity, event_id)


def series(
    subject: Subject,
    definition: MeterDefinition,
    tenant: str,
    stream_id: bytes,
    *,
    scale: int = 0,
    is_monotonic: bool = False,
    is_cumulative: bool = False,
    counts_measurements: bool = False,
    counts_units: bool = False,
) -> Series:
    """The usage of `tenant` and a meter that a stream is.

    Metric points share their attributes, so those are the series'; other items have their own.
    """
    context = subject.context
    return Series(
        key=digest(b"series", tenant.encode(), definition.slug.encode(), stream_id),
        tenant_id=tenant,
        meter=definition.slug,
        dimensions=dimensions(definition, context.signal, subject.described),
        attributes=subject.described if context.signal is Signal.METRIC else (),
        service_name=context.service_name,
        signal=context.signal,
        stream_id=stream_id,
        unique_key=subject.own(definition.unique_attribute or names.UNIQUE_KEY) or "",
        scale=scale,
        is_monotonic=is_monotonic,
        is_cumulative=is_cumulative,
        counts_measurements=counts_measurements,
        counts_units=counts_units,
    )


def relevant_attributes(definitions: Iterable[MeterDefinition]) -> frozenset[str] | None:
    """The attributes on which depends what an item is to these meters; None: on all of them."""
    found = {names.TENANT_ID, names.QUANTITY, names.EVENT_ID, names.UNIQUE_KEY}
    for one in definitions:
        if one.group_by is None and (one.source is None or one.source.signal is not Signal.SPAN):
            return None
        conditions = one.source.where if one.source else ()
        found.update((one.tenant, *(one.group_by or ()), *(c.attribute for c in conditions)))
        found.update(filter(None, (one.quantity_attribute, one.unique_attribute)))
    return frozenset(found)


def dimensions(definition: MeterDefinition, signal: Signal, attributes: Pairs) -> Pairs:
    """What usage of this meter is grouped by."""
    if definition.group_by is not None:
        wanted = frozenset(definition.group_by)
        return tuple(pair for pair in attributes if pair[0] in wanted)
    if signal is Signal.SPAN:
        return ()
    return tuple(
        pair
        for pair in attributes
        if pair[0] not in names.RESERVED and pair[0] != definition.tenant
    )


_NO_TENANT: Final = Reason.NO_TENANT, ""


def _tenant_problem(
    subject: Subject, definition: MeterDefinition, tenant: str | None
) -> tuple[Reason, str] | None:
    name, bound = definition.tenant, subject.context.bound_tenant
    if tenant is None:
        return Reason.NO_TENANT, f"it has no {name}, and the API key is bound to no tenant"
    if not is_valid_name(tenant):
        return Reason.INVALID_TENANT, f"{name} is {tenant[:128]!r}"
    if bound is not None and tenant != bound:
        return Reason.TENANT_NOT_ALLOWED, f"the API key is bound to {bound!r}"
    if not is_valid_name(definition.slug):
        return Reason.INVALID_METER, f"{definition.slug[:128]!r} cannot be a meter's slug"
    return None


def _mode(header: MetricHeader) -> Mode | None:
    """None: the temporality is not one."""
    if header.type is MetricType.GAUGE:
        return Mode.LEVEL
    if header.type is MetricType.SUMMARY:
        # "Count and sum are cumulative" (metrics.proto, Summary).
        return Mode.INCREASE
    if header.temporality == Temporality.DELTA:
        return Mode.DELTA
    if header.temporality != Temporality.CUMULATIVE:
        return None
    is_level = header.type is MetricType.SUM and not header.is_monotonic
    return Mode.LEVEL if is_level else Mode.INCREASE


def _metric_problem(
    header: MetricHeader, mode: Mode | None, definition: MeterDefinition
) -> tuple[Reason, str] | None:
    if mode is None:
        return (
            Reason.UNKNOWN_TEMPORALITY,
            f"aggregation temporality {header.temporality} is neither delta (1) nor cumulative (2)",
        )
    if mode is Mode.LEVEL and definition.aggregation is Aggregation.SUM:
        return (
            Reason.UNSUPPORTED,
            "its points are levels (a gauge, or a cumulative sum that may fall), which cannot be added "
            f"up; give the meter {definition.slug} an aggregation like max, latest or avg in meters.yaml",
        )
    is_total = mode is Mode.INCREASE and header.type is MetricType.SUM
    if is_total and definition.value is Measure.COUNT:
        return (
            Reason.UNSUPPORTED,
            "a cumulative sum does not say how many measurements it is made of; remove `value: count` "
            f"from the meter {definition.slug} in meters.yaml",
        )
    return None


def _counts_measurements(metric_type: MetricType, definition: MeterDefinition) -> bool:
    if metric_type in DISTRIBUTIONS:
        return definition.distribution_measure is Measure.COUNT
    return definition.value is Measure.COUNT


def _scale_of(subject: Subject) -> int | None:
    attribute = subject.attributes.get(names.QUANTITY_SCALE.encode())
    if attribute is None:
        return 0
    scale = values.number_of(attribute.value)
    return scale if isinstance(scale, int) and 0 <= scale <= QUANTITY_DECIMALS else None


def _scale_problem(scale: int | None) -> tuple[Reason, str] | None:
    if scale is not None:
        return None
    return Reason.INVALID_QUANTITY, f"{names.QUANTITY_SCALE} must be 0 to {QUANTITY_DECIMALS}"


def _quantity(definition: MeterDefinition, attributes: Attributes) -> tuple[int, int] | None:
    """(whole, nano) of one span or log record; None: the span's length."""
    if definition.is_duration:
        return None
    name = definition.quantity_attribute or names.QUANTITY
    attribute = attributes.get(name.encode())
    if definition.value is Measure.COUNT or (attribute is None and name == names.QUANTITY):
        return 1, 0
    if attribute is None:
        raise InvalidUsageError(f"it has no attribute {name}, which is the meter's quantity")
    number = values.number_of(attribute.value)
    if number is None:
        raise InvalidUsageError(f"{name} is {attribute.text[:64]!r}, not a number")
    try:
        exact = Decimal(repr(number) if isinstance(number, float) else number)
        if isinstance(number, float) and exact.is_finite():
            # As of a metric point: what people see of it, 0.1 is 0.1, to nine decimal places.
            exact = round(exact, QUANTITY_DECIMALS)
        return from_decimal(check_quantity(exact))
    except InvalidOperation:
        raise InvalidUsageError(f"{name} is {attribute.text[:64]!r}, not a number") from None
