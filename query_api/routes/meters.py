"""`/v1/meter/meters`: which meters there are."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from query_api import queries
from query_api.auth import MeterFilteringReader, reachable_tenant
from query_api.parameters import only
from query_api.periods import parse_range
from query_api.problems import TooLargeError, documented
from query_api.reading import read
from query_api.schemas import Meter, MetersAnswer, MetersParameters
from query_api.services import ServicesDep

router = APIRouter(prefix="/v1/meter/meters", tags=["usage"])


@router.get("", responses=documented(TooLargeError), dependencies=[Depends(only(MetersParameters))])
async def list_meters(
    request: Request,
    services: ServicesDep,
    principal: MeterFilteringReader,
    parameters: Annotated[MetersParameters, Query()],
) -> MetersAnswer:
    """List the meters that are defined, or have usage in the range."""
    within = parse_range(parameters.from_, parameters.to, now_ns=services.clock.now_ns())
    tenant_id = reachable_tenant(principal, parameters.tenant_id)
    rows = await read(request, services, queries.meters(within, tenant_id))
    if len(rows) > queries.MAX_ROWS:
        raise TooLargeError(
            f"over {queries.MAX_ROWS} meters have usage, which is the limit; shorten the range"
        )
    meters = services.meters()
    defined = {definition.slug: definition for definition in meters.definitions}
    counts = dict.fromkeys(defined, 0) | {str(slug): int(count) for slug, count in rows}
    return MetersAnswer(
        data=[
            Meter(
                slug=definition.slug,
                aggregation=definition.aggregation,
                unit=definition.unit,
                dimensions=None if definition.group_by is None else list(definition.group_by),
                is_defined=slug in defined,
                events=count,
            )
            for slug, count in sorted(counts.items())
            if principal.meters is None or slug in principal.meters
            for definition in [defined.get(slug) or meters.find(slug)]
        ]
    )
