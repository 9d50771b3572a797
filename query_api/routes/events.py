"""`/v1/meter/events`: send usage, and see every single event of it."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse

from otel_metering.contract import attributes as wire
from query_api import queries
from query_api.auth import Ingester, Reader, reachable_tenant
from query_api.cloudevents import mode_of, parse_cloudevents
from query_api.cursor import Cursor, decode
from query_api.intake import Intake, parse_events
from query_api.openmeter_schemas import CLOUDEVENTS_CONTENT
from query_api.parameters import Filters, filter_doc, filters_beside
from query_api.periods import format_instant, parse_range
from query_api.problems import TooLargeError, documented
from query_api.schemas import AdmissionAnswer, Event, EventsAnswer, EventsParameters, decimal_text
from query_api.services import ServicesDep

router = APIRouter(prefix="/v1/meter/events", tags=["events"])

_MS_NS: Final = 1_000_000
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
    responses=documented(),
    openapi_extra=filter_doc("attribute"),
)
def list_events(
    services: ServicesDep,
    principal: Reader,
    parameters: Annotated[EventsParameters, Query()],
    filters: Annotated[Filters, Depends(filters_beside(EventsParameters))],
) -> JSONResponse:
    """List events, newest first.

    To read on, send the same request with `cursor` set to `next_cursor`. Each event that was there at
    the first page is on exactly one page, whatever arrives meanwhile.
    """
    tenant_id = reachable_tenant(principal, parameters.tenant_id)
    cursor = decode(parameters.cursor) if parameters.cursor else None
    within = (
        cursor.range
        if cursor
        else parse_range(parameters.from_, parameters.to, now_ns=services.clock.now_ns())
    )
    request = queries.EventsRequest(
        range=within,
        limit=parameters.limit + 1,
        tenant_id=tenant_id,
        meter=parameters.meter,
        event_id=parameters.event_id,
        filters=filters,
        after=(cursor.timestamp_ns, cursor.event_id) if cursor else None,
    )
    statement = queries.events(request)
    rows = services.store.query(statement.sql, statement.parameters)
    page = rows[: parameters.limit]
    return JSONResponse(
        {
            "data": [_stored_event(row) for row in page],
            "next_cursor": _cursor_behind(page[-1], request) if len(rows) > len(page) else None,
        }
    )


def _cursor_behind(row: Sequence[Any], request: queries.EventsRequest) -> str:
    return Cursor(range=request.range, timestamp_ns=int(row[4]), event_id=str(row[0])).encode()


def _stored_event(row: Sequence[Any]) -> dict[str, object]:
    (
        event_id,
        tenant_id,
        meter,
        quantity,
        timestamp_ns,
        start_ns,
        attributes,
        dimensions,
        service_name,
        signal,
        trace_id,
        span_id,
        ingested_ms,
    ) = row
    return {
        "event_id": attributes.get(wire.EVENT_ID) or event_id,
        "tenant_id": tenant_id,
        "meter": meter,
        "quantity": decimal_text(Decimal(quantity)),
        "timestamp": format_instant(timestamp_ns),
        "start_time": format_instant(start_ns) if start_ns else None,
        "attributes": attributes,
        "dimensions": dimensions,
        "service_name": service_name,
        "signal": signal,
        "trace_id": trace_id or None,
        "span_id": span_id or None,
        "ingested_at": format_instant(ingested_ms * _MS_NS),
    }
