"""A CloudEvent feeds every meter whose event type is its type: one usage event for each.

A meter made by API takes its quantity from `valueProperty` and its dimensions from `groupBy`. The meter
of `meters.yaml` that is named like the type, or if no meter has that type any meter of that name, takes
the event as `query_api.cloudevents` says. Whatever a meter cannot take is refused for that meter alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Final

from otel_metering.contract import attributes as wire
from otel_metering.contract.event import UsageEvent
from otel_metering.contract.meter import Aggregation, Meters
from otel_metering.errors import InvalidUsageError
from query_api.cloudevents import Batch, CloudEvent, event_id_of, tenant_of, to_usage
from query_api.intake import MAX_REASON_LENGTH, is_storable, parse_quantity, scalar_text
from query_api.jsonpath import Path, find, parse_path
from receiver.store.meters import ApiMeter

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fed:
    """Which meters a batch feeds.

    Attributes:
        events: Of all meters; one CloudEvent may be several.
        places: Where the CloudEvent of each of `events` stood in the body.
        refused: (place, meter, reason); meter None: the CloudEvent itself is wrong.
    """

    events: Sequence[UsageEvent]
    places: Sequence[int]
    refused: Sequence[tuple[int, str | None, str]]


def feed(batch: Batch, made: Sequence[ApiMeter], file: Meters, bound_tenant_id: str | None) -> Fed:
    """Spread a batch over the meters.

    Args:
        batch: What was sent.
        made: The meters made by API.
        file: Those of `meters.yaml`; they win over the former.
        bound_tenant_id: The only tenant that the sender may write; None: any.
    """
    by_type: dict[str, list[ApiMeter]] = {}
    for meter in made:
        if meter.slug not in file.by_slug:
            by_type.setdefault(meter.event_type, []).append(meter)
    events: list[UsageEvent] = []
    places: list[int] = []
    refused: list[tuple[int, str | None, str]] = [(i, None, why) for i, why in batch.rejected]
    for place, event in batch.events:
        fed = by_type.get(event.type, [])
        is_named = not fed or event.type in file.by_slug
        for slug, usage in _usages(event, fed, is_named=is_named, bound=bound_tenant_id):
            if isinstance(usage, UsageEvent):
                events.append(usage)
                places.append(place)
            elif usage is not None:
                refused.append((place, slug, str(usage)[:MAX_REASON_LENGTH]))
    return Fed(events=events, places=places, refused=refused)


def of_meter(event: CloudEvent, meter: ApiMeter, bound_tenant_id: str | None) -> UsageEvent | None:
    """What an event is to a meter made by API; None: it is from before the meter counts.

    Raises:
        InvalidUsageError: The meter cannot take it.
    """
    if meter.event_from is not None and event.time_ns is not None:
        since = meter.event_from - _EPOCH
        if event.time_ns // 1_000 < (since.days * 86_400 + since.seconds) * 1_000_000 + (
            since.microseconds
        ):
            return None
    attributes = _dimensions(meter.group_by, event.data)
    quantity = Decimal(1)
    if meter.aggregation is Aggregation.UNIQUE_COUNT:
        key = _text(f"valueProperty {meter.value_property}", _value(meter, event.data))
        attributes[wire.UNIQUE_KEY] = key
    elif meter.aggregation is not Aggregation.COUNT:
        quantity = _quantity(meter, event.data)
    return UsageEvent(
        tenant_id=tenant_of(event, bound_tenant_id),
        meter=meter.slug,
        quantity=quantity,
        event_id=event_id_of(event.source, event.id),
        timestamp_ns=event.time_ns,
        attributes=attributes,
    )


def _usages(
    event: CloudEvent, fed: Sequence[ApiMeter], *, is_named: bool, bound: str | None
) -> Iterator[tuple[str, UsageEvent | InvalidUsageError | None]]:
    for meter in fed:
        try:
            yield meter.slug, of_meter(event, meter, bound)
        except InvalidUsageError as error:
            yield meter.slug, error
    if is_named:
        try:
            yield event.type, to_usage(event, bound)
        except InvalidUsageError as error:
            yield event.type, error


def _quantity(meter: ApiMeter, data: Mapping[str, object]) -> Decimal:
    value = _value(meter, data)
    try:
        return parse_quantity(value)
    except InvalidUsageError as error:
        raise InvalidUsageError(f"valueProperty {meter.value_property}: {error}") from None


def _value(meter: ApiMeter, data: Mapping[str, object]) -> object:
    value = find(_path(meter.value_property), data)
    if value is None:
        raise InvalidUsageError(
            f"data has nothing at valueProperty {meter.value_property}; send it with the event"
        )
    return value


def _dimensions(group_by: Mapping[str, str], data: Mapping[str, object]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, path in group_by.items():
        value = find(_path(path), data)
        if value is not None:
            found[name] = _text(f"groupBy {name}", value)
    return found


def _text(name: str, value: object) -> str:
    text = value if isinstance(value, str) else scalar_text(name, value)
    if not is_storable(text):
        raise InvalidUsageError(f"{name} is no valid Unicode; correct it")
    return text


@lru_cache(maxsize=4_096)
def _path(text: str) -> Path:
    return parse_path(text)
