"""`/v1/meter/events`: send usage, and see every single event of it."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Any, Final

import pyarrow as pa
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from query_api import event_queries
from query_api.auth import Ingester, Reader, reachable_tenant
from query_api.cloudevents import mode_of, parse_cloudevents
from query_api.cursor import Cursor, decode
from query_api.event_queries import EventsRequest, Shape
from query_api.event_schemas import (
    EventId,
    EventsAnswer,
    EventSelection,
    EventsParameters,
    ExportParameters,
    OneEventParameters,
    StoredEvent,
)
from query_api.filters import Filter
from query_api.intake import Intake, parse_events
from query_api.locating import Locator, reference
from query_api.openmeter_schemas import CLOUDEVENTS_CONTENT
from query_api.parameters import conditions_beside, conditions_doc, only
from query_api.periods import parse_range
from query_api.problems import ConflictError, NotFoundError, TooLargeError, documented
from query_api.reading import read_table
from query_api.schemas import AdmissionAnswer, Event
from query_api.services import Services, ServicesDep
from receiver.store.keys import Principal

router = APIRouter(prefix="/v1/meter/events", tags=["events"])

EXPORT_PAGE: Final = 50_000
"""Events that one statement of an export reads: some 25 MB, whatever the size of the export."""

_MEDIA_TYPES: Final = {Shape.CSV: "text/csv", Shape.NDJSON: "application/x-ndjson"}
_LINES_DOC: Final[dict[str, Any]] = {
    kind: {"schema": {"type": "string"}} for kind in _MEDIA_TYPES.values()
}
_EXAMPLE: Final[dict[str, Any]] = {
    "event_id": "order-1042-line-3",
    "tenant_id": "tenant_a",
    "meter": "api.calls",
    "quantity": "1",
    "timestamp": "2026-03-01T12:00:00.25Z",
    "attributes": {"region": "eu", "plan": "pro"},
}
_BODY_DOC: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "oneOf": [
                        Event.model_json_schema(),
                        {"type": "array", "maxItems": 10_000, "items": Event.model_json_schema()},
                    ]
                },
                "examples": {
                    "one": {"summary": "One event", "value": _EXAMPLE},
                    "many": {
                        "summary": "A list",
                        "value": [_EXAMPLE, {"meter": "storage.gib", "quantity": "0.125"}],
                    },
                },
            },
            **CLOUDEVENTS_CONTENT,
        },
    }
}


async def _body(request: Request, principal: Ingester) -> bytes:
    # Behind the principal: nobody's bytes are read before it is known who they are.
    return await request.body()


@router.post(
    "",
    status_code=202,
    response_model=AdmissionAnswer,
    responses=documented(TooLargeError),
    openapi_extra=_BODY_DOC,
)
def send_events(
    request: Request,
    services: ServicesDep,
    principal: Ingester,
    body: Annotated[bytes, Depends(_body)],
) -> JSONResponse:
    """Send one event, or a list of up to 10,000; or CloudEvents.

    When this answers, all that was accepted is durable. The answer lists what can never be counted, by
    its index in the list; it costs the other events nothing. On 503, or without an answer, send the same
    request again: an event with an `event_id` counts once, for ever.

    Of a CloudEvent (structured, batched or binary mode), `type` is the meter, `subject` the tenant,
    `source` and `id` make the `event_id`, and `data.quantity` or `data.value` is the quantity, 1 without
    them. Other scalars in `data`, and extension attributes, are attributes.
    """
    intake = _parse(request, body, principal.tenant_id)
    accepted, duplicates, rejected = 0, 0, list(intake.rejected)
    if intake.events:
        admission = services.submit(intake.events, principal)
        accepted, duplicates = admission.accepted, admission.duplicates
        rejected += [(intake.positions[i], reason) for i, reason in admission.rejected]
    listed = [{"index": i, "reason": reason} for i, reason in sorted(rejected)]
    return JSONResponse(
        {"accepted": accepted, "duplicates": duplicates, "rejected": listed}, status_code=202
    )


def _parse(request: Request, body: bytes, bound_tenant_id: str | None) -> Intake:
    mode = mode_of(request.headers)
    if mode is None:
        return parse_events(body, bound_tenant_id)
    return parse_cloudevents(request.headers, body, mode, bound_tenant_id)


@router.get(
    "",
    response_model=EventsAnswer,
    responses={200: {"content": _LINES_DOC}, **documented(TooLargeError)},
    openapi_extra=conditions_doc(of_events=True),
)
async def list_events(
    request: Request,
    services: ServicesDep,
    principal: Reader,
    parameters: Annotated[EventsParameters, Query()],
    filters: Annotated[tuple[Filter, ...], Depends(conditions_beside(EventsParameters))],
) -> Response:
    """List events, newest first, also those that do not count any more: their `status` says so.

    To read on, send the same request with `cursor` set to `next_cursor`. Each event that was there at
    the first page is on exactly one page, whatever arrives meanwhile.
    """
    cursor = decode(parameters.cursor) if parameters.cursor else None
    asked = _asked(services, principal, parameters, filters, limit=parameters.limit + 1)
    if cursor:
        after = (cursor.timestamp_ns, cursor.event_id)
        asked = replace(asked, range=cursor.range, after=after)
    statement = event_queries.events(asked, parameters.format)
    table = await read_table(request, services, statement)
    page = table.slice(0, parameters.limit)
    lines = page["line"].to_pylist()
    following = _cursor_behind(page, asked) if table.num_rows > page.num_rows else None
    if parameters.format is Shape.JSON:
        data = ",".join(line.rstrip("\n") for line in lines)
        body = f'{{"data":[{data}],"next_cursor":{json.dumps(following)}}}'
        return Response(body, media_type="application/json")
    header = f"{event_queries.CSV_HEADER}\n" if parameters.format is Shape.CSV else ""
    return Response(
        header + "".join(lines),
        media_type=_MEDIA_TYPES[parameters.format],
        headers={"x-next-cursor": following} if following else None,
    )


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={
        **documented(TooLargeError),
        200: {
            "description": "One event a line.",
            "content": _LINES_DOC,
        },
    },
    openapi_extra=conditions_doc(of_events=True),
)
async def export_events(
    request: Request,
    services: ServicesDep,
    principal: Reader,
    parameters: Annotated[ExportParameters, Query()],
    filters: Annotated[tuple[Filter, ...], Depends(conditions_beside(ExportParameters))],
) -> StreamingResponse:
    """All events of a range, however many, by tenant, meter and time.

    An answer that ends without its last chunk is incomplete: the connection broke, or a read failed; send
    the request again.
    """
    asked = _asked(services, principal, parameters, filters, limit=EXPORT_PAGE)
    shape = Shape(parameters.format)
    # The first page is read before the answer begins, so that what is wrong is a problem and not a torn file.
    statement = event_queries.export(asked, shape, None)
    first = await read_table(request, services, statement)
    return StreamingResponse(
        _pages(request, services, asked, shape, first), media_type=_MEDIA_TYPES[shape]
    )


@router.get(
    "/{event_id:path}",
    response_model=StoredEvent,
    responses=documented(NotFoundError, ConflictError, TooLargeError),
    dependencies=[Depends(only(OneEventParameters))],
)
async def get_event(
    request: Request,
    services: ServicesDep,
    principal: Reader,
    event_id: EventId,
    parameters: Annotated[OneEventParameters, Query()],
) -> Response:
    """One event, by its sender's id (of a corrected event: what counts now), or by its stored UUID.

    With `tenant_id` and `meter` it is found at once; a UUID alone is looked for in all events.
    """
    asked = reference(principal, event_id, parameters.tenant_id, parameters.meter)
    event = (await Locator(request, services).find(asked)).event
    position = event_queries.Position(
        tenant_id=event.tenant_id,
        meter=event.meter,
        timestamp_ns=event.timestamp_ns,
        event_id=str(event.event_id),
    )
    table = await read_table(request, services, event_queries.one_event(position))
    return Response(table["line"][0].as_py(), media_type="application/json")


async def _pages(
    request: Request, services: Services, asked: EventsRequest, shape: Shape, page: pa.Table
) -> AsyncIterator[str]:
    if shape is Shape.CSV:
        yield f"{event_queries.CSV_HEADER}\n"
    while page.num_rows:
        yield "".join(page["line"].to_pylist())
        if page.num_rows < asked.limit:
            return
        last = event_queries.Position(
            **{name: page[name][-1].as_py() for name in page.column_names if name != "line"}
        )
        page = await read_table(request, services, event_queries.export(asked, shape, last))


def _asked(
    services: Services,
    principal: Principal,
    parameters: EventSelection,
    filters: tuple[Filter, ...],
    *,
    limit: int,
) -> EventsRequest:
    now_ns = services.clock.now_ns()
    return EventsRequest(
        range=parse_range(parameters.from_, parameters.to, now_ns=now_ns),
        limit=limit,
        tenant_id=reachable_tenant(principal, parameters.tenant_id),
        meter=parameters.meter,
        event_id=parameters.event_id,
        filters=filters,
    )


def _cursor_behind(page: pa.Table, asked: EventsRequest) -> str:
    return Cursor(
        range=asked.range,
        timestamp_ns=page["timestamp_ns"][-1].as_py(),
        event_id=page["event_id"][-1].as_py(),
    ).encode()
