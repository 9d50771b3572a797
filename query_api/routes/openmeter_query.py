"""`/api/v1/meters/{meter}/query`: aggregates of a meter, and who and what they are about."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse

from otel_metering.contract.event import check_name
from otel_metering.contract.meter import Aggregation
from otel_metering.errors import InvalidUsageError
from query_api import openmeter_queries as statements
from query_api import queries
from query_api.aggregates import usage
from query_api.auth import Reader, reachable_tenant
from query_api.filters import any_of
from query_api.openmeter_filters import NAME, Filters, joined, read_advanced, read_filters
from query_api.openmeter_schemas import (
    MAX_SUBJECTS,
    QueryAnswer,
    QueryParameters,
    QueryRequest,
    RangeParameters,
    WindowSize,
)
from query_api.parameters import only
from query_api.periods import SECOND_NS, Range, format_instant, parse_range
from query_api.problems import NotFoundError, TooLargeError, documented
from query_api.queries import MAX_ROWS, TENANT, AggregateRequest
from query_api.reading import answer, read
from query_api.routes.openmeter_meters import find_meter
from query_api.schemas import decimal_text
from query_api.services import Services, ServicesDep
from query_api.windows import Window
from query_api.zones import load
from receiver.store.keys import Principal

router = APIRouter(prefix="/api/v1/meters", tags=["OpenMeter-compatible"])

_CSV: Final = "text/csv"
_SUBJECT: Final = "subject"
_BEGINNING: Final = "1970-01-01T00:00:00Z"
_MINUTE_NS: Final = 60 * SECOND_NS
_WINDOWS: Final = {
    WindowSize.MINUTE: Window.MINUTE,
    WindowSize.HOUR: Window.HOUR,
    WindowSize.DAY: Window.DAY,
    WindowSize.MONTH: Window.MONTH,
    None: Window.TOTAL,
}
_FILTER_DOC: Final = {
    "parameters": [
        {
            "name": NAME,
            "in": "query",
            "style": "deepObject",
            "explode": True,
            "description": f"`{NAME}[region]=eu`: only usage with this dimension. Repeated: any of the "
            "values. Several names: all of them.",
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
            "example": {"region": "eu"},
        }
    ]
}
_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "content": {
            _CSV: {
                "schema": {"type": "string"},
                "example": "window_start,window_end,subject,region,value\n"
                "2026-03-01T00:00:00Z,2026-03-02T00:00:00Z,tenant_a,eu,12.5\n",
            }
        }
    },
    **documented(NotFoundError, TooLargeError),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a query is about.

    Attributes:
        slug: The meter.
        range: What is covered.
        window: How it is cut up; None: not at all.
        timezone: IANA name, of the windows.
        tenants: Only these; empty: all that the key reaches.
        group_by: `subject`, dimensions; no name twice.
        filters: Dimension → the values it may have.
        aggregation: Another one than the meter's.
    """

    slug: str
    range: Range
    window: WindowSize | None = None
    timezone: str = "UTC"
    tenants: tuple[str, ...] = ()
    group_by: tuple[str, ...] = ()
    filters: Mapping[str, Sequence[str]]
    aggregation: Aggregation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One window of one group; `groups` has what `Asked.group_by` names."""

    start_ns: int
    end_ns: int
    groups: Mapping[str, str]
    value: str


async def aggregate(
    request: Request, services: Services, principal: Principal, asked: Asked
) -> list[Row]:
    """The rows of a query, sorted by window and groups: all that this surface asks of aggregates.

    Raises:
        InvalidUsageError: A dimension is none of the meter's, or there is no such time zone.
        ForbiddenError: A tenant is out of reach.
        TooLargeError: There are too many rows.
    """
    meter = services.meters().find(asked.slug)
    names = [name for name in asked.group_by if name != _SUBJECT]
    queries.check_dimensions(meter, [*names, *asked.filters])
    group_by = tuple(TENANT if name == _SUBJECT else name for name in asked.group_by)
    rows: list[Row] = []
    for tenant_id in asked.tenants or (None,):
        wanted = AggregateRequest(
            meter=meter,
            aggregation=asked.aggregation or meter.aggregation,
            window=_WINDOWS[asked.window],
            zone=load("UTC" if asked.timezone == "Z" else asked.timezone),
            range=asked.range,
            tenant_id=reachable_tenant(principal, tenant_id),
            group_by=group_by,
            filters=any_of(asked.filters),
        )
        found = await answer(request, services, usage(wanted))
        for row in found.rows:
            if row.value is None:
                continue
            part = found.windows.at(row.window)
            groups = dict(zip(asked.group_by, row.groups, strict=True))
            value = decimal_text(row.value)
            rows.append(Row(start_ns=part.start_ns, end_ns=part.end_ns, groups=groups, value=value))
        if len(rows) > MAX_ROWS:
            raise TooLargeError(
                f"the answer has over {MAX_ROWS} rows, which is the limit; "
                "shorten the range, widen the window, group by less, or filter"
            )
    return sorted(rows, key=lambda row: (row.start_ns, *row.groups.values()))


async def _filters(request: Request) -> Filters:
    pairs = request.query_params.multi_items()
    known = {field.alias or name for name, field in QueryParameters.model_fields.items()}
    for name, _ in pairs:
        if name not in known and name != NAME and not name.startswith(f"{NAME}["):
            raise InvalidUsageError(
                f"parameter {name[:64]!r} is unknown; known are {', '.join([*sorted(known), NAME])}"
            )
    return read_filters(pairs)


@router.get(
    "/{meter_id_or_slug:path}/query",
    response_model=QueryAnswer,
    responses=_ANSWERS,
    openapi_extra=_FILTER_DOC,
)
async def query_meter(
    request: Request,
    services: ServicesDep,
    principal: Reader,
    meter_id_or_slug: str,
    parameters: Annotated[QueryParameters, Query()],
    filters: Annotated[Filters, Depends(_filters)],
) -> Response:
    """Query a meter; as CSV if the request accepts `text/csv`."""
    body = QueryRequest(
        from_=parameters.from_,
        to=parameters.to,
        window_size=parameters.window_size,
        window_time_zone=parameters.window_time_zone,
        subject=parameters.subject,
        filter_customer_id=parameters.filter_customer_id,
        filter_group_by=filters,
        advanced_filters=dict(read_advanced(parameters.advanced_filters)),
        group_by=parameters.group_by,
    )
    return await _answer(request, services, principal, meter_id_or_slug, body)


@router.post(
    "/{meter_id_or_slug:path}/query",
    response_model=QueryAnswer,
    responses=_ANSWERS,
)
async def query_meter_by_body(
    request: Request,
    services: ServicesDep,
    principal: Reader,
    meter_id_or_slug: str,
    body: QueryRequest | None = None,
) -> Response:
    """Query a meter; as CSV if the request accepts `text/csv`."""
    return await _answer(request, services, principal, meter_id_or_slug, body or QueryRequest())


@router.get(
    "/{meter_id_or_slug:path}/subjects",
    responses=documented(NotFoundError, TooLargeError),
    dependencies=[Depends(only(RangeParameters))],
)
async def list_meter_subjects(
    request: Request,
    services: ServicesDep,
    principal: Reader,
    meter_id_or_slug: str,
    parameters: Annotated[RangeParameters, Query()],
) -> list[str]:
    """List the subjects (tenants) that have usage of a meter."""
    return await _count_by(request, services, principal, meter_id_or_slug, parameters, _SUBJECT)


@router.get(
    "/{meter_id_or_slug:path}/group-by/{group_by_key}/values",
    responses=documented(NotFoundError, TooLargeError),
    dependencies=[Depends(only(RangeParameters))],
)
async def list_meter_group_by_values(
    request: Request,
    services: ServicesDep,
    principal: Reader,
    meter_id_or_slug: str,
    group_by_key: str,
    parameters: Annotated[RangeParameters, Query()],
) -> list[str]:
    """List the values that a dimension of a meter has; events without it are left out."""
    found = await _count_by(
        request, services, principal, meter_id_or_slug, parameters, group_by_key
    )
    return [value for value in found if value]


async def _count_by(
    request: Request,
    services: Services,
    principal: Principal,
    id_or_slug: str,
    parameters: RangeParameters,
    name: str,
) -> list[str]:
    """The values of one group that have events in a range."""
    slug = find_meter(services, id_or_slug).slug
    asked = Asked(
        slug=slug,
        range=await _range(request, services, principal, slug, parameters.from_, parameters.to),
        group_by=(name,),
        filters={},
        aggregation=Aggregation.COUNT,
    )
    return [row.groups[name] for row in await aggregate(request, services, principal, asked)]


async def _range(
    request: Request,
    services: Services,
    principal: Principal,
    slug: str,
    start: str | None,
    end: str | None,
) -> Range:
    # Whole minutes: the end is then that of a row of the finest rollup, and includes what is sent now.
    now_ns = (services.clock.now_ns() // _MINUTE_NS + 1) * _MINUTE_NS
    if start is None:
        found = await read(request, services, statements.first_month(slug, principal.tenant_id))
        start_ns = int(found[0][0]) * SECOND_NS if found else now_ns - _MINUTE_NS
        end_ns = parse_range(_BEGINNING, end, now_ns=now_ns).end_ns
        start = format_instant(start_ns if start_ns < end_ns else 0)
    return parse_range(start, end, now_ns=now_ns)


async def _answer(
    request: Request,
    services: Services,
    principal: Principal,
    meter_id_or_slug: str,
    body: QueryRequest,
) -> Response:
    if body.filter_customer_id:
        raise InvalidUsageError("filterCustomerId: there are no customers here; use subject")
    tenants = tuple(dict.fromkeys(body.subject or ()))
    if len(tenants) > MAX_SUBJECTS:
        raise InvalidUsageError(f"{len(tenants)} subjects are named; at most {MAX_SUBJECTS} may be")
    for tenant_id in tenants:
        check_name(_SUBJECT, tenant_id)
    # As its clients know it: subjects that are named are groups.
    group_by = dict.fromkeys([*(body.group_by or ()), *([_SUBJECT] if tenants else ())])
    slug = find_meter(services, meter_id_or_slug).slug
    asked = Asked(
        slug=slug,
        range=await _range(request, services, principal, slug, body.from_, body.to),
        window=body.window_size,
        timezone=body.window_time_zone or "UTC",
        tenants=tenants,
        group_by=tuple(group_by),
        filters=joined(body.filter_group_by or {}, body.advanced_filters or {}),
    )
    rows = await aggregate(request, services, principal, asked)
    if _CSV in request.headers.get("accept", ""):
        return Response(_csv(asked, rows), media_type=_CSV)
    return Response(_json(body, rows), media_type=JSONResponse.media_type)


def _json(body: QueryRequest, rows: Sequence[Row]) -> str:
    """By hand, because a value is a JSON number with all of its digits."""
    head = {"from": body.from_, "to": body.to, "windowSize": body.window_size}
    data = ",".join(f'{json.dumps(_described(row))[:-1]},"value":{row.value}}}' for row in rows)
    return f'{json.dumps(head)[:-1]},"data":[{data}]}}'


def _described(row: Row) -> dict[str, object]:
    groups = dict(row.groups)
    return {
        "windowStart": format_instant(row.start_ns),
        "windowEnd": format_instant(row.end_ns),
        "subject": groups.pop(_SUBJECT, None),
        "groupBy": groups,
    }


def _csv(asked: Asked, rows: Sequence[Row]) -> str:
    names = [name for name in asked.group_by if name != _SUBJECT]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["window_start", "window_end", _SUBJECT, *names, "value"])
    for row in rows:
        writer.writerow(
            [
                format_instant(row.start_ns),
                format_instant(row.end_ns),
                row.groups.get(_SUBJECT, ""),
                *(row.groups[name] for name in names),
                row.value,
            ]
        )
    return text.getvalue()
