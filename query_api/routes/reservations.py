"""`/v1/meter/reservations`: units that are held, until their usage is known."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse

from otel_metering.contract import attributes as wire
from otel_metering.contract.event import UsageEvent
from otel_metering.errors import InvalidUsageError
from query_api.auth import Validator, reachable_tenant
from query_api.checks import check_reservation_id, parse_quantity
from query_api.counters import Reservation, State
from query_api.parameters import only
from query_api.periods import parse_instant
from query_api.problems import ConflictError, NotFoundError, documented
from query_api.quota_schemas import (
    Commit,
    Extension,
    ReservationAnswer,
    ReservationParameters,
    reservation_json,
)
from query_api.quota_usage import COMMIT_PREFIX
from query_api.quotas import from_nano
from query_api.services import Services, ServicesDep
from receiver.store.keys import Principal

router = APIRouter(prefix="/v1/meter/reservations", tags=["quotas"])

_DOCUMENTED = documented(NotFoundError, ConflictError)


def _found(
    services: ServicesDep,
    principal: Validator,
    reservation_id: str,
    parameters: Annotated[ReservationParameters, Query()],
) -> Reservation:
    check_reservation_id(reservation_id)
    tenant_id = reachable_tenant(principal, parameters.tenant_id)
    return services.quotas.gate.find(reservation_id, tenant_id, parameters.meter)


Found = Annotated[Reservation, Depends(_found)]
_ONLY = [Depends(only(ReservationParameters))]


@router.get(
    "/{reservation_id}",
    response_model=ReservationAnswer,
    responses=_DOCUMENTED,
    dependencies=_ONLY,
)
def get_reservation(found: Found) -> JSONResponse:
    """One reservation; one that has ended is remembered for ten minutes."""
    return JSONResponse(reservation_json(found))


@router.post(
    "/{reservation_id}/commit",
    response_model=ReservationAnswer,
    responses=_DOCUMENTED,
    dependencies=_ONLY,
)
def commit_reservation(
    services: ServicesDep, principal: Validator, found: Found, body: Commit
) -> JSONResponse:
    """Record the actual usage, as the event `reservation/<id>`, and end the reservation.

    The usage is durable when this answers. The same commit again changes nothing. What has expired
    can be committed as well: usage is a fact, whether its units were still held or not.
    """
    if found.state in {State.SETTLED, State.RELEASED}:
        raise ConflictError(
            f"reservation {found.reservation_id!r} is {found.state}; send its usage as an event of its own"
        )
    _submit(services, principal, found, body)
    return JSONResponse(reservation_json(services.quotas.gate.committed(found)))


@router.post(
    "/{reservation_id}/extend",
    response_model=ReservationAnswer,
    responses=_DOCUMENTED,
    dependencies=_ONLY,
)
def extend_reservation(services: ServicesDep, found: Found, body: Extension) -> JSONResponse:
    """Hold the units for `ttl_seconds` from now on."""
    now = services.quotas.gate.extend(found, body.ttl_seconds * 1_000)
    if now.state is not State.ACTIVE:
        raise ConflictError(
            f"reservation {now.reservation_id!r} is {now.state}; reserve again, under another id"
        )
    return JSONResponse(reservation_json(now))


@router.post(
    "/{reservation_id}/release",
    response_model=ReservationAnswer,
    responses=_DOCUMENTED,
    dependencies=_ONLY,
)
def release_reservation(services: ServicesDep, found: Found) -> JSONResponse:
    """Hold the units no longer. What has ended stays as it is."""
    return JSONResponse(reservation_json(services.quotas.gate.end(found, State.RELEASED)))


def _submit(services: Services, principal: Principal, found: Reservation, body: Commit) -> None:
    given = body.attributes.keys() & wire.RESERVED
    if given:
        raise InvalidUsageError(
            f"attributes has {', '.join(sorted(given))}, which the commit says itself; leave it out"
        )
    event = UsageEvent(
        tenant_id=found.tag[0],
        meter=found.tag[1],
        quantity=from_nano(parse_quantity(_exact(body.quantity))),
        event_id=COMMIT_PREFIX + found.reservation_id,
        timestamp_ns=None if body.timestamp is None else parse_instant(body.timestamp),
        attributes={
            **dict(found.dimensions),
            **body.attributes,
            wire.RESERVATION_ID: found.reservation_id,
        },
    )
    admission = services.submit([event], principal)
    if admission.rejected:
        raise InvalidUsageError(admission.rejected[0][1])


def _exact(value: str | float) -> str:
    # A JSON number as it is written; the shortest decimal that reads back as it.
    return value if isinstance(value, str) else repr(value)
