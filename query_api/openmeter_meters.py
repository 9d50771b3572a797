"""How meters look on the surface that is compatible with OpenMeter, whoever made them."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from otel_metering.contract import attributes as wire
from otel_metering.contract.meter import Aggregation, MeterDefinition, Meters
from query_api.openmeter_schemas import OpenMeterMeter
from receiver.store.meters import ApiMeter

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def meter_id(slug: str) -> str:
    """26 characters that look like a ULID: what its clients expect of an id; made from the slug alone."""
    number = int.from_bytes(hashlib.blake2b(slug.encode(), digest_size=16).digest())
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))


def defined(definition: MeterDefinition) -> ApiMeter:
    """A meter of `meters.yaml` as if it had been made here: what its CloudEvents should look like."""
    if definition.aggregation is Aggregation.UNIQUE_COUNT:
        value = _path(definition.unique_attribute or wire.UNIQUE_KEY)
    else:
        value = "" if definition.aggregation is Aggregation.COUNT else "$.quantity"
    return ApiMeter(
        slug=definition.slug,
        aggregation=definition.aggregation,
        event_type=definition.slug,
        value_property=value,
        group_by={name: _path(name) for name in definition.group_by or ()},
        description=definition.description,
        created_at=_EPOCH,
        updated_at=_EPOCH,
    )


def every(file: Meters, made: Sequence[ApiMeter]) -> dict[str, ApiMeter]:
    """All meters by slug; those of the file win."""
    return {meter.slug: meter for meter in made} | {
        definition.slug: defined(definition) for definition in file.definitions
    }


def shown(meter: ApiMeter) -> OpenMeterMeter:
    """What is answered of it."""
    return OpenMeterMeter(
        id=meter_id(meter.slug),
        slug=meter.slug,
        name=meter.name or None,
        description=meter.description or None,
        aggregation=meter.aggregation.upper(),
        event_type=meter.event_type,
        event_from=None if meter.event_from is None else instant(meter.event_from),
        value_property=meter.value_property or None,
        group_by=dict(meter.group_by),
        metadata=dict(meter.metadata),
        created_at=instant(meter.created_at),
        updated_at=instant(meter.updated_at),
        deleted_at=None if meter.deleted_at is None else instant(meter.deleted_at),
    )


def instant(moment: datetime) -> str:
    """RFC 3339, UTC."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _path(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("'", "\\'")
    return f"$['{escaped}']"
