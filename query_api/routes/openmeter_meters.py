"""`/api/v1/meters`: make, list, change and delete meters, as OpenMeter's clients do."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Response

from otel_metering.contract.event import check_name
from otel_metering.contract.meter import Aggregation
from otel_metering.errors import InvalidUsageError
from query_api import openmeter_meters as view
from query_api.audit import audit
from query_api.auth import Operator, Reader
from query_api.intake import is_storable
from query_api.jsonpath import parse_path
from query_api.openmeter_schemas import (
    MeterAggregation,
    MeterCreate,
    MetersParameters,
    MeterUpdate,
    OpenMeterMeter,
)
from query_api.parameters import only
from query_api.problems import ConflictError, NotFoundError, documented
from query_api.services import Services, ServicesDep
from receiver.store.meters import ApiMeter, ApiMeters

router = APIRouter(prefix="/api/v1/meters", tags=["OpenMeter-compatible"])

_RESERVED_GROUPS: Final = frozenset({"subject", "customer_id"})
_ORDERS: Final[Mapping[str, Callable[[ApiMeter], Any]]] = {
    "key": lambda meter: meter.slug,
    "name": lambda meter: (meter.name, meter.slug),
    "aggregation": lambda meter: (meter.aggregation, meter.slug),
    "createdAt": lambda meter: (meter.created_at, meter.slug),
    "updatedAt": lambda meter: (meter.updated_at, meter.slug),
}


def find_meter(services: Services, id_or_slug: str) -> ApiMeter:
    """The meter of this slug, else of this id.

    Raises:
        NotFoundError: There is none.
    """
    every = view.every(services.file_meters(), made_meters(services).list())
    found = every.get(id_or_slug) or next(
        (meter for slug, meter in every.items() if view.meter_id(slug) == id_or_slug), None
    )
    if found is None:
        raise NotFoundError(
            f"there is no meter {id_or_slug[:128]!r}; make it with POST /api/v1/meters, or define it in "
            "meters.yaml"
        )
    return found


def made_meters(services: Services) -> ApiMeters:
    """The meters made by API.

    Raises:
        NotFoundError: None can be made here.
    """
    if services.made_meters is None:
        raise NotFoundError("this process keeps no meters; ask where the receiver runs")
    return services.made_meters


@router.get("", responses=documented(), dependencies=[Depends(only(MetersParameters))])
def list_openmeter_meters(
    services: ServicesDep, principal: Reader, parameters: Annotated[MetersParameters, Query()]
) -> list[OpenMeterMeter]:
    """List meters: those made here, and those of meters.yaml."""
    made = made_meters(services)
    listed = made.every() if parameters.include_deleted else made.list()
    meters = sorted(
        view.every(services.file_meters(), listed).values(),
        key=_ORDERS[parameters.order_by],
        reverse=parameters.order == "DESC",
    )
    start = (parameters.page - 1) * parameters.page_size
    return [view.shown(meter) for meter in meters[start : start + parameters.page_size]]


@router.post("", status_code=201, responses=documented(ConflictError))
def create_openmeter_meter(
    services: ServicesDep, principal: Operator, body: MeterCreate
) -> OpenMeterMeter:
    """Make a meter. From then on each CloudEvent of its event type feeds it; earlier ones do not."""
    made = made_meters(services)
    slug = check_name("slug", body.slug)
    if slug in services.file_meters().by_slug:
        raise ConflictError(f"meter {slug!r} is in meters.yaml; choose another slug")
    now = made.now()
    meter = ApiMeter(
        slug=slug,
        aggregation=Aggregation(body.aggregation.lower()),
        event_type=_checked("eventType", body.event_type),
        event_from=body.event_from,
        value_property=_value_property(body),
        created_at=now,
        updated_at=now,
        **_changes(body),
    )
    audit(services, principal, action="meter.create", target=slug, details=_said(meter))
    if not made.create(meter):
        raise ConflictError(f"there is a meter {slug!r} already; choose another slug, or delete it")
    return view.shown(meter)


@router.get("/{meter_id_or_slug:path}", responses=documented(NotFoundError))
def read_openmeter_meter(
    services: ServicesDep, principal: Reader, meter_id_or_slug: str
) -> OpenMeterMeter:
    """Read one meter, by its slug or id."""
    return view.shown(find_meter(services, meter_id_or_slug))


@router.put("/{meter_id_or_slug:path}", responses=documented(NotFoundError, ConflictError))
def update_openmeter_meter(
    services: ServicesDep, principal: Operator, meter_id_or_slug: str, body: MeterUpdate
) -> OpenMeterMeter:
    """Change what may be changed of a meter: what was counted stays as it was."""
    made = made_meters(services)
    meter = _changeable(services, meter_id_or_slug)
    changed = replace(meter, updated_at=made.now(), **_changes(body))
    audit(services, principal, action="meter.update", target=meter.slug, details=_said(changed))
    made.replace(changed)
    return view.shown(changed)


@router.delete(
    "/{meter_id_or_slug:path}",
    status_code=204,
    response_class=Response,
    responses=documented(NotFoundError, ConflictError),
)
def delete_openmeter_meter(
    services: ServicesDep, principal: Operator, meter_id_or_slug: str
) -> None:
    """Delete a meter. Its usage stays, and GET /v1/meter/aggregates still reads it."""
    meter = _changeable(services, meter_id_or_slug)
    audit(services, principal, action="meter.delete", target=meter.slug)
    if not made_meters(services).delete(meter.slug):
        raise NotFoundError(f"meter {meter.slug!r} was deleted meanwhile")


def _said(meter: ApiMeter) -> dict[str, object]:
    """What the audit log says of a definition."""
    return {
        "aggregation": str(meter.aggregation),
        "event_type": meter.event_type,
        "value_property": meter.value_property or None,
        "group_by": dict(meter.group_by) or None,
    }


def _changeable(services: Services, id_or_slug: str) -> ApiMeter:
    meter = find_meter(services, id_or_slug)
    if meter.slug in services.file_meters().by_slug:
        raise ConflictError(f"meter {meter.slug!r} is in meters.yaml; change it there")
    return meter


def _value_property(body: MeterCreate) -> str:
    if body.aggregation is MeterAggregation.COUNT:
        if body.value_property:
            raise InvalidUsageError(
                "valueProperty is not for COUNT, which counts events; leave it out"
            )
        return ""
    if not body.value_property:
        raise InvalidUsageError(
            f"valueProperty is missing, and {body.aggregation} needs it; give a JSONPath like $.tokens"
        )
    parse_path(_checked("valueProperty", body.value_property))
    return body.value_property


def _changes(body: MeterUpdate) -> dict[str, Any]:
    """The fields that were given; null clears one."""
    found: dict[str, Any] = {}
    for name in ("name", "description"):
        if name in body.model_fields_set:
            found[name] = _checked(name, getattr(body, name) or "")
    if "metadata" in body.model_fields_set:
        found["metadata"] = {
            _checked("metadata", key): _checked("metadata", value)
            for key, value in (body.metadata or {}).items()
        }
    if "group_by" in body.model_fields_set:
        for name, path in (body.group_by or {}).items():
            _check_dimension(name)
            parse_path(_checked(f"groupBy {name}", path))
        found["group_by"] = dict(body.group_by or {})
    return found


def _check_dimension(name: str) -> None:
    check_name("groupBy", name)
    if name in _RESERVED_GROUPS or name.startswith("metering.") or name == "tenant.id":
        raise InvalidUsageError(f"groupBy {name!r} has a meaning of its own; choose another name")


def _checked(name: str, text: str) -> str:
    if not is_storable(text) or "\0" in text:
        raise InvalidUsageError(f"{name} is no valid Unicode, or has a NUL; correct it")
    return text
