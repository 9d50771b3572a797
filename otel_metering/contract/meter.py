"""Meter definitions: what `meters.yaml` may say, checked, as values.

A definition says which telemetry feeds a meter (`source`), what of it is the quantity (`value`),
whose it is (`tenant`), which attributes become dimensions (`group_by`), and how it is aggregated when
read. Reading the file is the receiver's work; this module takes what the YAML parser returns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import assert_never

from otel_metering.contract import attributes as names
from otel_metering.contract.condition import Condition, matches_pattern, parse_conditions
from otel_metering.contract.event import MAX_ID_LENGTH, is_valid_name
from otel_metering.contract.fields import FieldPath, Fields, sequence, shown, wrong


class Signal(StrEnum):
    """Which kind of telemetry an event came from."""

    METRIC = "metric"
    SPAN = "span"
    LOG = "log"
    EVENT = "event"
    """The JSON API; never a source in `meters.yaml`."""


class _SourceSignal(StrEnum):
    """What a source can be."""

    METRIC = Signal.METRIC.value
    SPAN = Signal.SPAN.value
    LOG = Signal.LOG.value


class SpanKind(StrEnum):
    """Span kinds of OTLP, in lower case."""

    INTERNAL = "internal"
    SERVER = "server"
    CLIENT = "client"
    PRODUCER = "producer"
    CONSUMER = "consumer"


class Aggregation(StrEnum):
    """How the events of a window become one number."""

    SUM = "sum"
    COUNT = "count"
    MIN = "min"
    MAX = "max"
    AVG = "avg"
    LATEST = "latest"
    UNIQUE_COUNT = "unique_count"
    P50 = "p50"
    P90 = "p90"
    P95 = "p95"
    P99 = "p99"


class Measure(StrEnum):
    """A quantity that is no attribute."""

    DURATION = "duration"
    """The length of a span, in seconds."""
    COUNT = "count"
    """How many measurements a point of a histogram or summary stands for; 1 for any other item."""
    SUM = "sum"
    """What the measurements of a point of a histogram or summary add up to; else the point's value."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """The quantity is in the attribute of this name."""

    name: str


Value = Measure | Attribute


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Which telemetry feeds a meter; None matches anything.

    Attributes:
        signal: Metrics, spans or log records.
        name: Metric name, span name or event name; `*` and `?` are wildcards.
        kind: Span kind.
        scope: Instrumentation scope; `*` and `?` are wildcards.
        where: Conditions on attributes, all of which must hold.
    """

    signal: Signal
    name: str | None = None
    kind: SpanKind | None = None
    scope: str | None = None
    where: tuple[Condition, ...] = ()

    def matches(self, *, signal: Signal, name: str, scope: str, kind: SpanKind | None) -> bool:
        """Whether an item of this name, scope and kind feeds the meter, if its attributes do as well."""
        return (
            signal is self.signal
            and (self.kind is None or kind is self.kind)
            and (self.name is None or matches_pattern(name, self.name))
            and (self.scope is None or matches_pattern(scope, self.scope))
        )

    def admits(self, text_of: Callable[[str], str | None]) -> bool:
        """Whether an item with these attributes feeds the meter, if its name, scope and kind do.

        Args:
            text_of: Name of an attribute -> how it is shown, None if it is missing; the attribute of
                the item comes before that of its resource.
        """
        return all(condition.holds(text_of(condition.attribute)) for condition in self.where)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterDefinition:
    """One meter.

    Attributes:
        slug: Its name everywhere.
        description: For people.
        source: What feeds it; None: only what names it (the SDK, `metering.quantity`, the API).
        aggregation: What `GET /v1/meter/aggregates` answers.
        value: What is the quantity (for `unique_count`: what is counted). None: the value of a point,
            see `distribution_measure`; `metering.quantity`, else 1, of a span or log record.
        tenant: Attribute that names the tenant, on the item or else on its resource.
        group_by: Attributes that become dimensions, sorted; None: every attribute of a metric point,
            log record or API event that is not reserved, and none of a span.
        unit: Shown to people, e.g. `{request}` or `By`.
    """

    slug: str
    description: str = ""
    source: Source | None = None
    aggregation: Aggregation = Aggregation.SUM
    value: Value | None = None
    tenant: str = names.TENANT_ID
    group_by: tuple[str, ...] | None = None
    unit: str = ""

    @property
    def distribution_measure(self) -> Measure:
        """Which number of a histogram, exponential histogram or summary is the quantity: COUNT or SUM."""
        if self.value is Measure.COUNT or self.value is Measure.SUM:
            return self.value
        return Measure.COUNT if self.aggregation is Aggregation.COUNT else Measure.SUM

    @property
    def is_duration(self) -> bool:
        """Whether the quantity is the length of a span."""
        return self.value is Measure.DURATION

    @property
    def quantity_attribute(self) -> str | None:
        """The attribute that a span or log record must have, because it is the quantity; None: none."""
        if isinstance(self.value, Attribute) and self.unique_attribute is None:
            return self.value.name
        return None

    @property
    def unique_attribute(self) -> str | None:
        """The attribute whose different values are counted; None: `metering.unique_key`, if it is there."""
        if self.aggregation is Aggregation.UNIQUE_COUNT and isinstance(self.value, Attribute):
            return self.value.name
        return None


@dataclass(frozen=True, slots=True)
class Meters:
    """All definitions, in the order of the file."""

    definitions: tuple[MeterDefinition, ...] = ()
    by_slug: Mapping[str, MeterDefinition] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_slug = {definition.slug: definition for definition in self.definitions}
        object.__setattr__(self, "by_slug", by_slug)

    def find(self, slug: str) -> MeterDefinition:
        """The definition of `slug`; one with the defaults if the file has none."""
        return self.by_slug.get(slug) or MeterDefinition(slug=slug)

    def fed_by(
        self, *, signal: Signal, name: str, scope: str, kind: SpanKind | None = None
    ) -> tuple[MeterDefinition, ...]:
        """Every definition that an item like this feeds, if its attributes do; it may be several."""
        return tuple(
            definition
            for definition in self.definitions
            if definition.source is not None
            and definition.source.matches(signal=signal, name=name, scope=scope, kind=kind)
        )


def parse_meters(document: object) -> Meters:
    """Check what a YAML parser made of `meters.yaml`.

    Raises:
        DefinitionError: Names the field, what it holds, and what it may hold.
    """
    if document is None:
        # A file that was cut off while it was written must not pass for one without meters.
        raise wrong((), "is empty; for no meters at all write: meters: []")
    path: FieldPath = ("meters",)
    if isinstance(document, Mapping) and "meters" in document and document["meters"] is None:
        document = {**document, "meters": []}
    top = Fields.of(document, (), {"meters"})
    if not top.has("meters"):
        raise wrong(path, "is missing; for no meters at all write: meters: []")
    found: dict[str, MeterDefinition] = {}
    for position, item in enumerate(sequence(top.get("meters"), path)):
        definition = _definition(item, (*path, position))
        if definition.slug in found:
            first = list(found).index(definition.slug)
            raise wrong(
                (*path, position, "slug"),
                f"is {definition.slug!r}, as that of meters[{first}]; rename or remove one",
            )
        found[definition.slug] = definition
    return Meters(tuple(found.values()))


_DEFINITION_FIELDS = frozenset(
    {"slug", "description", "source", "aggregation", "value", "tenant", "group_by", "unit"}
)


def _definition(item: object, path: FieldPath) -> MeterDefinition:
    fields = Fields.of(item, path, _DEFINITION_FIELDS)
    slug = fields.text("slug")
    if slug is None:
        raise fields.wrong("slug", "is missing; give the meter a name")
    if not is_valid_name(slug):
        raise fields.wrong(
            "slug",
            f"is {shown(slug)}; it must be 1 to {MAX_ID_LENGTH} characters of "
            "A-Z a-z 0-9 _ . : @ / -",
        )
    source = _source(fields.get("source"), (*path, "source")) if fields.has("source") else None
    aggregation = fields.choice(Aggregation, "aggregation") or Aggregation.SUM
    return MeterDefinition(
        slug=slug,
        description=fields.text("description") or "",
        source=source,
        aggregation=aggregation,
        value=_value(fields, source, aggregation),
        tenant=fields.text("tenant") or names.TENANT_ID,
        group_by=fields.names("group_by"),
        unit=fields.text("unit") or "",
    )


def _source(value: object, path: FieldPath) -> Source:
    fields = Fields.of(value, path, {"signal", "name", "kind", "scope", "where"})
    signal = fields.choice(_SourceSignal, "signal")
    if signal is None:
        raise fields.wrong("signal", f"is missing; it must be one of {', '.join(_SourceSignal)}")
    kind = fields.choice(SpanKind, "kind")
    if kind is not None and signal is not _SourceSignal.SPAN:
        raise fields.wrong("kind", f"is '{kind}', but only spans have a kind; remove it")
    where = fields.get("where")
    return Source(
        signal=Signal(signal),
        name=fields.text("name"),
        kind=kind,
        scope=fields.text("scope"),
        where=() if where is None else parse_conditions(where, (*path, "where")),
    )


def _value(fields: Fields, source: Source | None, aggregation: Aggregation) -> Value | None:
    raw = fields.get("value")
    if raw is None:
        if aggregation is Aggregation.UNIQUE_COUNT:
            raise fields.wrong(
                "value", "is missing; unique_count needs the attribute whose values it counts"
            )
        return None
    value: Value
    if isinstance(raw, Mapping):
        inner = Fields.of(raw, (*fields.path, "value"), {"attribute"})
        name = inner.text("attribute")
        if name is None:
            raise inner.wrong("attribute", "is missing; name the attribute")
        value = Attribute(name)
    else:
        text = fields.text("value") or ""
        value = Measure(text) if text in list(Measure) else Attribute(text)
    problem = _value_problem(value, source.signal if source else None, aggregation)
    if problem is not None:
        raise fields.wrong("value", problem)
    return value


def _value_problem(value: Value, signal: Signal | None, aggregation: Aggregation) -> str | None:
    """What is wrong with a value of this kind for this meter."""
    fed_by = "the meter has no source" if signal is None else f"the source is a {signal}"
    if isinstance(value, Attribute):
        if aggregation is Aggregation.UNIQUE_COUNT or signal in (Signal.SPAN, Signal.LOG):
            return None
        return (
            f"is the attribute {shown(value.name)}, but {fed_by}: only spans and log records have "
            "their quantity in an attribute; remove it, or use aggregation: unique_count"
        )
    literal = f"for an attribute of this name write {{attribute: {value}}}"
    if aggregation is Aggregation.UNIQUE_COUNT:
        return f"is '{value}', but unique_count counts the values of an attribute; {literal}"
    match value:
        case Measure.DURATION:
            if signal is Signal.SPAN:
                return None
            return f"is 'duration', which only spans have, but {fed_by}; remove it, or {literal}"
        case Measure.COUNT | Measure.SUM:
            if signal is Signal.METRIC:
                return None
            return f"is '{value}', which only metrics have, but {fed_by}; remove it, or {literal}"
        case _:
            assert_never(value)
