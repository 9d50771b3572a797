"""`/v1/meter/quotas`: how much a tenant may use.

An administrator that is bound to a tenant puts, sees and deletes the quotas of that tenant alone; the defaults
of all tenants it only sees.
"""

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import JSONResponse

from otel_metering.contract.quota import check_quota
from query_api.audit import audit
from query_api.auth import Administrator, Reader, reachable_tenant
from query_api.parameters import only
from query_api.periods import format_instant
from query_api.problems import ForbiddenError, NotFoundError, documented
from query_api.quota_schemas import (
    NewQuota,
    Quota,
    QuotasAnswer,
    QuotasParameters,
    StatusAnswer,
    StatusParameters,
    percent_text,
    quota_json,
)
from query_api.quotas import Applied, crossed, nano_text
from query_api.services import Services, ServicesDep
from query_api.verdicts import Status
from query_api.zones import load
from receiver.store.keys import Principal, Refused
from receiver.store.quotas import StoredQuota

router = APIRouter(prefix="/v1/meter/quotas", tags=["quotas"])

MAX_STATUSES: Final = 1_000


@router.put("", response_model=Quota, responses=documented())
def put_quota(services: ServicesDep, principal: Administrator, body: NewQuota) -> JSONResponse:
    """Make a quota, or replace the one of the same tenant, meter, filter and period.

    What was used in the current period stays counted, whatever the new limit is.
    """
    tenant_id = reachable_tenant(principal, body.tenant_id)
    definition = body.definition(tenant_id)
    load(definition.timezone)
    check_quota(definition, services.meters().find(definition.meter))
    audit(
        services,
        principal,
        action="quota.put",
        target=definition.quota_id,
        tenant_id=tenant_id,
        details=body.model_dump(mode="json"),
    )
    return JSONResponse(quota_json(services.quotas.table.put(definition)))


@router.get(
    "",
    response_model=QuotasAnswer,
    responses=documented(),
    dependencies=[Depends(only(QuotasParameters))],
)
def list_quotas(
    services: ServicesDep, principal: Reader, parameters: Annotated[QuotasParameters, Query()]
) -> JSONResponse:
    """List quotas, by id. With `tenant_id` those that name it, and the defaults of all tenants."""
    tenant_id = reachable_tenant(principal, parameters.tenant_id)
    found = [
        one
        for one in services.quotas.table.list()
        if _is_visible(one, tenant_id)
        and parameters.meter in {None, one.definition.meter}
        and one.definition.quota_id > (parameters.cursor or "")
    ]
    page = found[: parameters.limit]
    following = page[-1].definition.quota_id if len(found) > len(page) else None
    return JSONResponse({"data": [quota_json(one) for one in page], "next_cursor": following})


@router.get(
    "/status",
    response_model=StatusAnswer,
    responses=documented(),
    dependencies=[Depends(only(StatusParameters))],
)
def quota_status(
    services: ServicesDep, principal: Reader, parameters: Annotated[StatusParameters, Query()]
) -> JSONResponse:
    """How much of each quota is used in its current period.

    Without `tenant_id`: of the quotas that name a tenant, and of defaults where they were asked about.
    """
    tenant_id = reachable_tenant(principal, parameters.tenant_id)
    gate = services.quotas.gate
    tags = set(gate.book.tags) | {one.rule.tag for one in services.quotas.tally.loaded}
    if tenant_id is not None:
        meters = {one.definition.meter for one in services.quotas.table.list()}
        tags = {(tenant_id, meter) for meter in meters}
    applied = [
        one
        for tag in sorted(tags)
        if parameters.meter in {None, tag[1]}
        for one in gate.book.of(tag)
    ]
    found = gate.status(applied[:MAX_STATUSES])
    stored = {one.definition.quota_id: one for one in services.quotas.table.list()}
    return JSONResponse(
        {"data": [_status(one, stored) for one in found if _quota_id(one) in stored]}
    )


@router.get("/{quota_id}", response_model=Quota, responses=documented(NotFoundError))
def get_quota(services: ServicesDep, principal: Reader, quota_id: str) -> JSONResponse:
    """One quota."""
    return JSONResponse(quota_json(_visible(services, principal, quota_id)))


@router.delete("/{quota_id}", status_code=204, responses=documented(NotFoundError))
def delete_quota(services: ServicesDep, principal: Administrator, quota_id: str) -> Response:
    """Delete a quota; its tenant then has the default in its place, if there is one."""
    found = _visible(services, principal, quota_id)
    if principal.tenant_id not in {None, found.definition.tenant_id}:
        raise ForbiddenError(
            f"quota {quota_id} is of every tenant, and key {principal.key_id} is bound to "
            f"{principal.tenant_id!r}; use a key that is bound to none",
            Refused.TENANT,
        )
    audit(
        services,
        principal,
        action="quota.delete",
        target=quota_id,
        tenant_id=found.definition.tenant_id,
        details={"meter": found.definition.meter},
    )
    services.quotas.table.delete(quota_id)
    return Response(status_code=204)


def _visible(services: Services, principal: Principal, quota_id: str) -> StoredQuota:
    found = services.quotas.table.get(quota_id)
    if found is None or not _is_visible(found, principal.tenant_id):
        raise NotFoundError(
            f"there is no quota {quota_id[:64]!r}; list them with GET /v1/meter/quotas"
        )
    return found


def _is_visible(quota: StoredQuota, tenant_id: str | None) -> bool:
    return tenant_id is None or quota.definition.tenant_id in {None, tenant_id}


def _quota_id(status: Status) -> str:
    return status.standing.applied.quota_id


def _status(status: Status, stored: dict[str, StoredQuota]) -> dict[str, object]:
    standing, span = status.standing, status.counter.span
    applied: Applied = standing.applied
    return {
        "quota": quota_json(stored[_quota_id(status)]),
        "tenant_id": applied.rule.tag[0],
        "period_start": format_instant(span.start_ns),
        "resets_at": None if span.end_ns is None else format_instant(span.end_ns),
        "used": nano_text(standing.used),
        "reserved": nano_text(standing.reserved),
        "remaining": nano_text(max(standing.remaining, 0)),
        "percent": percent_text(standing.used, applied.limit),
        "crossed": crossed(standing),
    }
