"""`/v1/meter/aggregates`: how much, per window and group."""

from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse

from otel_metering.contract.event import check_name
from otel_metering.contract.meter import Aggregation
from query_api import queries
from query_api.auth import Reader, reachable_tenant
from query_api.parameters import Filters, filter_doc, filters_beside
from query_api.periods import SECOND_NS, clip, format_instant, parse_range
from query_api.problems import TooLargeError, documented
from query_api.queries import TENANT, AggregateRequest
from query_api.schemas import AggregatesAnswer, AggregatesParameters, decimal_text
from query_api.services import Services, ServicesDep
from receiver.store.keys import Principal

router = APIRouter(prefix="/v1/meter/aggregates", tags=["usage"])

_NANO: Final = Decimal("1e-9")


@router.get(
    "",
    response_model=AggregatesAnswer,
    responses=documented(TooLargeError),
    openapi_extra=filter_doc("dimension"),
)
def aggregate(
    services: ServicesDep,
    principal: Reader,
    parameters: Annotated[AggregatesParameters, Query()],
    filters: Annotated[Filters, Depends(filters_beside(AggregatesParameters))],
) -> JSONResponse:
    """Aggregate a meter over `[from, to)`, exactly, wherever its edges lie.

    Windows follow the UTC calendar, and are cut where the range begins and ends; one without events is
    absent. Values are strings with exact decimals.
    """
    request = _request(services, principal, parameters, filters)
    statement = queries.aggregate(request)
    rows = services.store.query(statement.sql, statement.parameters)
    if len(rows) > queries.MAX_ROWS:
        raise TooLargeError(
            f"the answer has over {queries.MAX_ROWS} rows, which is the limit; "
            "shorten the range, widen the window, group by less, or filter"
        )
    return JSONResponse(
        {
            "meter": request.meter.slug,
            "aggregation": request.aggregation,
            "unit": request.meter.unit,
            "window": request.window,
            "table": request.table,
            "data": [_row(request, row) for row in rows],
        }
    )


def _request(
    services: Services, principal: Principal, parameters: AggregatesParameters, filters: Filters
) -> AggregateRequest:
    meter = services.meters().find(check_name("meter", parameters.meter))
    group_by = tuple(dict.fromkeys(parameters.group_by))
    queries.check_dimensions(meter, [*(name for name in group_by if name != TENANT), *filters])
    return AggregateRequest(
        meter=meter,
        aggregation=parameters.aggregation or meter.aggregation,
        window=parameters.window,
        range=parse_range(parameters.from_, parameters.to, now_ns=services.clock.now_ns()),
        tenant_id=reachable_tenant(principal, parameters.tenant_id),
        group_by=group_by,
        filters=filters,
    )


def _row(request: AggregateRequest, row: Sequence[Any]) -> dict[str, object]:
    part = clip(int(row[0]) * SECOND_NS, request.window, request.range)
    width = len(request.group_by)
    groups = dict(zip(request.group_by, row[1 : 1 + width], strict=True))
    tenant_id = groups.pop(TENANT, request.tenant_id)
    found: dict[str, object] = {
        "window_start": format_instant(part.start_ns),
        "window_end": format_instant(part.end_ns),
        "dimensions": groups,
        "value": _value(request.aggregation, row[1 + width :]),
    }
    return found if tenant_id is None else {**found, "tenant_id": tenant_id}


def _value(aggregation: Aggregation, values: Sequence[Any]) -> str:
    if aggregation is Aggregation.AVG:
        return decimal_text(mean(Decimal(values[0]), int(values[1])))
    return decimal_text(Decimal(values[0]))


def mean(total: Decimal, count: int) -> Decimal:
    """`total / count`, rounded half to even at nine decimal places."""
    # Twice as many digits as a sum may have: the second rounding then cannot change the result.
    context = Context(prec=80, rounding=ROUND_HALF_EVEN)
    return context.divide(total, Decimal(count)).quantize(_NANO, context=context)
