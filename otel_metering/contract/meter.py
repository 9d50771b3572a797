"""Meter definitions: what `meters.yaml` may say, checked, as values.

A definition says which telemetry feeds a meter (`source`), what of it is the quantity (`value`),
which attributes become dimensions (`group_by`), and how it is aggregated when read. Reading the file
is the receiver's work; this module takes what the YAML parser returns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final, TypeVar

from otel_metering.contract.event import is_valid_name
from otel_metering.errors import ConfigurationError

_E = TypeVar("_E", bound=StrEnum)


class Signal(StrEnum):
    """Which kind of telemetry an event came from."""

    METRIC = "metric"
    SPAN = "span"
    LOG = "log"
    EVENT = "event"
    """The JSON API; never a source in `meters.yaml`."""


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


VALUE_DURATION: Final = "duration"
"""`value: duration`: the length of a span in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Which telemetry feeds a meter; None matches anything.

    Attributes:
        signal: Metrics, spans or log records.
        name: Metric name, span name or event name; `*` and `?` are wildcards.
        kind: Span kind.
        scope: Instrumentation scope; `*` and `?` are wildcards.
    """

    signal: Signal
    name: str | None = None
    kind: SpanKind | None = None
    scope: str | None = None

    def matches(self, *, signal: Signal, name: str, scope: str, kind: SpanKind | None) -> bool:
        """Whether an item of this name, scope and kind feeds the meter."""
        return (
            signal is self.signal
            and (self.kind is None or kind is self.kind)
            and (self.name is None or fnmatchcase(name, self.name))
            and (self.scope is None or fnmatchcase(scope, self.scope))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterDefinition:
    """One meter.

    Attributes:
        slug: Its name everywhere.
        source: What feeds it; None: only what names it (the SDK, `metering.quantity`, the API).
        aggregation: What `GET /v1/meter/aggregates` answers.
        value: Attribute that holds the quantity (for `unique_count`: the key), or `duration`;
            None: the point's value, or 1 for a span or log record.
        group_by: Attributes that become dimensions, sorted; None: every attribute of a metric point,
            log record or API event that is not reserved, and none of a span.
        unit: Shown to people, e.g. `{request}` or `By`.
    """

    slug: str
    source: Source | None = None
    aggregation: Aggregation = Aggregation.SUM
    value: str | None = None
    group_by: tuple[str, ...] | None = None
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Meters:
    """All definitions, in the order of the file."""

    definitions: tuple[MeterDefinition, ...] = ()

    def find(self, slug: str) -> MeterDefinition:
        """The definition of `slug`; one with the defaults if the file has none."""
        for definition in self.definitions:
            if definition.slug == slug:
                return definition
        return MeterDefinition(slug=slug)

    def fed_by(
        self, *, signal: Signal, name: str, scope: str, kind: SpanKind | None = None
    ) -> tuple[MeterDefinition, ...]:
        """Every definition whose source matches; one item may feed several meters."""
        return tuple(
            definition
            for definition in self.definitions
            if definition.source is not None
            and definition.source.matches(signal=signal, name=name, scope=scope, kind=kind)
        )


def parse_meters(document: object) -> Meters:
    """Check what a YAML parser made of `meters.yaml`.

    Raises:
        ConfigurationError: Names the field, what it holds, and what it may hold.
    """
    if document is None:
        return Meters()
    top = _mapping(document, "meters.yaml", {"meters"})
    listed = top.get("meters") or []
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise ConfigurationError(f"meters is {listed!r}; it must be a list of meters")
    definitions = tuple(_definition(item, f"meters[{i}]") for i, item in enumerate(listed))
    slugs = [definition.slug for definition in definitions]
    for slug in slugs:
        if slugs.count(slug) > 1:
            raise ConfigurationError(
                f"slug {slug!r} is defined {slugs.count(slug)} times; keep one"
            )
    return Meters(definitions)


def _definition(item: object, where: str) -> MeterDefinition:
    fields = _mapping(
        item, where, {"slug", "source", "aggregation", "value", "group_by", "unit", "description"}
    )
    slug = _text(fields, "slug", where)
    if slug is None or not is_valid_name(slug):
        raise ConfigurationError(
            f"{where}.slug is {slug!r}; it must be 1 to 128 characters of A-Z a-z 0-9 _ . : @ / -"
        )
    definition = MeterDefinition(
        slug=slug,
        source=_source(fields["source"], f"{where}.source") if fields.get("source") else None,
        aggregation=_choice(Aggregation, fields, "aggregation", where) or Aggregation.SUM,
        value=_text(fields, "value", where),
        group_by=_group_by(fields.get("group_by"), f"{where}.group_by"),
        unit=_text(fields, "unit", where) or "",
    )
    if definition.aggregation is Aggregation.UNIQUE_COUNT and definition.value is None:
        raise ConfigurationError(
            f"{where}.value is missing; unique_count needs the attribute whose values it counts"
        )
    return definition


def _source(value: object, where: str) -> Source:
    fields = _mapping(value, where, {"signal", "name", "kind", "scope"})
    signal = _choice(Signal, fields, "signal", where)
    if signal is None or signal is Signal.EVENT:
        raise ConfigurationError(f"{where}.signal is {signal}; it must be metric, span or log")
    kind = _choice(SpanKind, fields, "kind", where)
    if kind is not None and signal is not Signal.SPAN:
        raise ConfigurationError(f"{where}.kind is {kind}, but only spans have a kind; remove it")
    return Source(
        signal=signal,
        kind=kind,
        name=_text(fields, "name", where),
        scope=_text(fields, "scope", where),
    )


def _group_by(value: object, where: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ConfigurationError(f"{where} is {value!r}; it must be a list of attribute names")
    for name in value:
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"{where} has {name!r}; it must be a list of attribute names")
    return tuple(sorted(set(value)))


def _mapping(value: object, where: str, known: set[str]) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{where} is {value!r}; it must be a mapping")
    for key in value:
        if key not in known:
            raise ConfigurationError(f"{where} has {key!r}; known are {', '.join(sorted(known))}")
    return value


def _text(fields: Mapping[str, object], name: str, where: str) -> str | None:
    value = fields.get(name)
    if value is None or (isinstance(value, str) and value):
        return value
    raise ConfigurationError(f"{where}.{name} is {value!r}; it must be text")


def _choice(kind: type[_E], fields: Mapping[str, object], name: str, where: str) -> _E | None:
    value = fields.get(name)
    if value is None:
        return None
    try:
        return kind(str(value))
    except ValueError:
        raise ConfigurationError(
            f"{where}.{name} is {value!r}; it must be one of {', '.join(kind)}"
        ) from None
