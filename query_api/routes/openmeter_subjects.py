"""`/api/v1/subjects`: which tenants have usage, and where they stand in their quotas."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field

from otel_metering.contract.event import check_name
from query_api import openmeter_queries as statements
from query_api.auth import Reader, reachable_tenant
from query_api.openmeter_schemas import EntitlementValue, Subject
from query_api.parameters import only
from query_api.periods import SECOND_NS, format_instant
from query_api.problems import NotFoundError, TooLargeError, documented
from query_api.queries import MAX_ROWS
from query_api.quotas import NANO
from query_api.reading import read
from query_api.routes.openmeter_meters import find_meter
from query_api.services import Services, ServicesDep
from receiver.store.keys import Principal

router = APIRouter(prefix="/api", tags=["OpenMeter-compatible"])


class ValueParameters(BaseModel):
    """Of an entitlement value."""

    time: str | None = Field(None, description="Taken, and not used: the answer is about now.")


@router.get("/v1/subjects", responses=documented(TooLargeError))
async def list_openmeter_subjects(
    request: Request, services: ServicesDep, principal: Reader
) -> list[Subject]:
    """List the tenants that have usage, sorted by id."""
    rows = await read(request, services, statements.subjects(principal.tenant_id))
    if len(rows) > MAX_ROWS:
        raise TooLargeError(f"over {MAX_ROWS} tenants have usage, which is the limit; ask for one")
    return [_subject(row) for row in rows]


@router.get(
    "/v1/subjects/{subject_id_or_key:path}/entitlements/{feature_key:path}/value",
    responses=documented(NotFoundError),
    dependencies=[Depends(only(ValueParameters))],
)
def read_entitlement_value(
    services: ServicesDep,
    principal: Reader,
    subject_id_or_key: str,
    feature_key: str,
    parameters: Annotated[ValueParameters, Query()],
) -> EntitlementValue:
    """Where a tenant stands in its quota of a meter; the feature is the meter's slug or id."""
    return _standing(services, principal, subject_id_or_key, feature_key)


@router.get(
    "/v1/customers/{customer_id_or_key:path}/entitlements/{feature_key:path}/value",
    responses=documented(NotFoundError),
    dependencies=[Depends(only(ValueParameters))],
)
def read_customer_entitlement_value(
    services: ServicesDep,
    principal: Reader,
    customer_id_or_key: str,
    feature_key: str,
    parameters: Annotated[ValueParameters, Query()],
) -> EntitlementValue:
    """The same; a customer is a tenant here, as a subject is."""
    return _standing(services, principal, customer_id_or_key, feature_key)


def _standing(
    services: Services, principal: Principal, subject: str, feature_key: str
) -> EntitlementValue:
    tenant_id = check_name("subject", subject)
    reachable_tenant(principal, tenant_id)
    meter = find_meter(services, feature_key)
    gate = services.quotas.gate
    standings = [one.standing for one in gate.status(gate.book.of((tenant_id, meter.slug)))]
    if not standings:
        raise NotFoundError(
            f"tenant {tenant_id!r} has no quota of meter {meter.slug!r}; set one with "
            "PUT /v1/meter/quotas"
        )
    binding = min(standings, key=lambda one: one.remaining)
    used, limit = binding.used + binding.reserved, binding.applied.limit
    return EntitlementValue(
        has_access=all(one.allows(1) for one in standings),
        balance=max(limit - used, 0) / NANO,
        usage=used / NANO,
        overage=max(used - limit, 0) / NANO,
        total_available_grant_amount=limit / NANO,
    )


@router.get("/v1/subjects/{subject_id_or_key:path}", responses=documented(NotFoundError))
async def read_openmeter_subject(
    request: Request, services: ServicesDep, principal: Reader, subject_id_or_key: str
) -> Subject:
    """Read one tenant that has usage."""
    tenant_id = check_name("subject", subject_id_or_key)
    reachable_tenant(principal, tenant_id)
    rows = await read(request, services, statements.subjects(principal.tenant_id, tenant_id))
    if not rows:
        raise NotFoundError(f"tenant {tenant_id!r} has no usage; send some, and it is there")
    return _subject(rows[0])


def _subject(row: Sequence[Any]) -> Subject:
    tenant_id, first, last = row
    return Subject(
        id=tenant_id,
        key=tenant_id,
        created_at=format_instant(int(first) * SECOND_NS),
        updated_at=format_instant(int(last) * SECOND_NS),
    )
