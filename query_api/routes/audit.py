"""`/v1/meter/audit`: who ordered which administrative change."""

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Request

from query_api.audit_queries import AuditRequest, audit_page
from query_api.audit_schemas import AuditAnswer, AuditParameters, AuditRow
from query_api.auth import Administrator, reachable_tenant
from query_api.cursor import Cursor, decode
from query_api.parameters import only
from query_api.periods import format_instant, parse_range
from query_api.problems import TooLargeError, documented
from query_api.reading import read
from query_api.services import ServicesDep

router = APIRouter(prefix="/v1/meter/audit", tags=["keys"])

_MICRO_NS: Final = 1_000


@router.get("", responses=documented(TooLargeError), dependencies=[Depends(only(AuditParameters))])
async def list_audit(
    request: Request,
    services: ServicesDep,
    principal: Administrator,
    parameters: Annotated[AuditParameters, Query()],
) -> AuditAnswer:
    """List administrative changes that were ordered, newest first. Rows are never deleted.

    To read on, send the same request with `cursor` set to `next_cursor`.
    """
    tenant_id = reachable_tenant(principal, parameters.tenant_id)
    cursor = decode(parameters.cursor) if parameters.cursor else None
    # Up to now, and that is still now.
    now_ns = services.clock.now_ns() + _MICRO_NS
    within = cursor.range if cursor else parse_range(parameters.from_, parameters.to, now_ns=now_ns)
    rows = await read(
        request,
        services,
        audit_page(
            AuditRequest(
                range=within,
                limit=parameters.limit + 1,
                key_id=parameters.actor,
                action=parameters.action,
                target=parameters.target,
                tenant_id=tenant_id,
                after=(cursor.timestamp_ns, cursor.event_id) if cursor else None,
            )
        ),
    )
    page, behind = rows[: parameters.limit], None
    if len(rows) > len(page):
        last = page[-1]
        behind = Cursor(range=within, timestamp_ns=last[1] * _MICRO_NS, event_id=str(last[0]))
    return AuditAnswer(
        data=[
            AuditRow(
                at=format_instant(at * _MICRO_NS),
                key_id=key_id,
                action=action,
                target=target,
                tenant_id=tenant or None,
                request_id=request_id,
                details=details,
            )
            for _, at, key_id, action, target, tenant, request_id, details in page
        ],
        next_cursor=behind.encode() if behind else None,
    )
