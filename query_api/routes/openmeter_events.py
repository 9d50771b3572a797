"""`/api/v1/events`: CloudEvents in and out, as OpenMeter's clients send and list them."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse

from otel_metering.contract import attributes as wire
from otel_metering.contract.meter import Aggregation
from otel_metering.errors import InvalidUsageError
from query_api import openmeter_meters as view
from query_api import openmeter_queries as statements
from query_api.auth import Ingester, Reader
from query_api.cloudevents import mode_of, parse_batch, split_event_id
from query_api.jsonpath import parse_path, place
from query_api.openmeter_ingest import Fed, feed
from query_api.openmeter_schemas import EITHER_CONTENT, EventsParameters, IngestedEvent
from query_api.parameters import only
from query_api.periods import MAX_NS, SECOND_NS, format_instant, parse_instant
from query_api.problems import TooLargeError, UnsupportedMediaTypeError, documented
from query_api.reading import read
from query_api.routes.openmeter_meters import made_meters
from query_api.schemas import decimal_text
from query_api.services import Services, ServicesDep
from receiver.store.keys import Principal
from receiver.store.meters import ApiMeter

router = APIRouter(prefix="/api/v1/events", tags=["OpenMeter-compatible"])

_DEFAULT_RANGE_NS: Final = 72 * 3_600 * SECOND_NS
_MS_NS: Final = 1_000_000
_MAX_FANOUT: Final = 16
"""Meters of one event type up to which a page is full."""

_MAX_SHOWN: Final = 10
"""Refusals that one answer describes."""


async def _body(request: Request, principal: Ingester) -> bytes:
    # Behind the principal: nobody's bytes are read before it is known who they are.
    return await request.body()


@router.post(
    "",
    status_code=204,
    response_class=Response,
    responses=documented(TooLargeError, UnsupportedMediaTypeError),
    openapi_extra={"requestBody": {"required": True, "content": EITHER_CONTENT}},
)
def ingest_events(
    request: Request,
    services: ServicesDep,
    principal: Ingester,
    body: Annotated[bytes, Depends(_body)],
) -> None:
    """Send one CloudEvent, or a list of up to 10,000: structured, batched, binary, or plain JSON.

    When this answers 204, all of it is durable. Each event feeds every meter of its type; without one, the
    meter named like its type. What a meter cannot take is answered with 400 and stored nowhere, and the
    rest is stored all the same: correct what the answer names, and send all of it again, which counts
    nothing twice.
    """
    batch = parse_batch(request.headers, body, mode_of(request.headers))
    fed = feed(batch, made_meters(services).list(), services.file_meters(), principal.tenant_id)
    _check_taken(fed, len(batch.events) + len(batch.rejected), _submit(services, principal, fed))


def _submit(
    services: Services, principal: Principal, fed: Fed
) -> list[tuple[int, str | None, str]]:
    refused = list(fed.refused)
    if fed.events:
        admission = services.submit(fed.events, principal)
        refused += [
            (fed.places[i], fed.events[i].meter, reason) for i, reason in admission.rejected
        ]
    return refused


def _check_taken(fed: Fed, count: int, refused: Sequence[tuple[int, str | None, str]]) -> None:
    if not refused:
        return
    shown = "; ".join(
        f"event {place}{f', meter {meter}' if meter else ''}: {reason}"
        for place, meter, reason in sorted(refused, key=lambda one: one[0])[:_MAX_SHOWN]
    )
    more = f"; and {len(refused) - _MAX_SHOWN} more" if len(refused) > _MAX_SHOWN else ""
    places = {place for place, _, _ in refused}
    raise InvalidUsageError(
        f"{len(places)} of {count} events were refused, the rest is stored: {shown}{more}"
    )


@router.get(
    "",
    response_model=list[IngestedEvent],
    responses=documented(TooLargeError),
    dependencies=[Depends(only(EventsParameters))],
)
async def list_ingested_events(
    request: Request,
    services: ServicesDep,
    principal: Reader,
    parameters: Annotated[EventsParameters, Query()],
) -> JSONResponse:
    """List events, newest first; an event that fed several meters is listed once."""
    if parameters.customer_id:
        raise InvalidUsageError("customerId: there are no customers here; filter by subject")
    end_ns = MAX_NS - 1 if parameters.to is None else parse_instant(parameters.to)
    last_ns = min(end_ns, services.clock.now_ns())
    statement = statements.events(
        statements.EventsRequest(
            start_ns=max(last_ns - _DEFAULT_RANGE_NS, 0)
            if parameters.from_ is None
            else parse_instant(parameters.from_),
            end_ns=end_ns,
            limit=parameters.limit * _MAX_FANOUT,
            tenant_id=principal.tenant_id,
            subject=parameters.subject or None,
            id=parameters.id or None,
            ingested_from_ms=_ms(parameters.ingested_at_from),
            ingested_to_ms=_ms(parameters.ingested_at_to),
        )
    )
    rows = await read(request, services, statement)
    meters = view.every(services.file_meters(), made_meters(services).list())
    return JSONResponse(_listed(rows, meters)[: parameters.limit])


def _ms(text: str | None) -> int | None:
    return None if text is None else parse_instant(text) // _MS_NS


def _listed(rows: Sequence[Sequence[Any]], meters: dict[str, ApiMeter]) -> list[dict[str, object]]:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        row_id, tenant_id, slug, quantity, time_ns, attributes, unique_key, service, at_ms = row
        text = attributes.get(wire.EVENT_ID) or row_id
        meter = meters.get(slug)
        source, event_id = split_event_id(text) or (service, text)
        ingested_at = format_instant(at_ms * _MS_NS)
        listed = found.setdefault(
            (tenant_id, text),
            {
                "event": {
                    "id": event_id,
                    "source": source,
                    "specversion": "1.0",
                    "type": slug if meter is None else meter.event_type,
                    "subject": tenant_id,
                    "time": format_instant(time_ns),
                    "data": {},
                },
                "ingestedAt": ingested_at,
                "storedAt": ingested_at,
            },
        )
        value = unique_key or decimal_text(Decimal(quantity))
        _describe(listed["event"]["data"], meter, value, attributes)
    return list(found.values())


def _describe(
    data: dict[str, object], meter: ApiMeter | None, value: str, attributes: dict[str, str]
) -> None:
    """Put back what a meter took of the data, where it took it from."""
    if meter is None:
        data.setdefault("quantity", value)
    elif meter.aggregation is not Aggregation.COUNT and meter.value_property:
        place(parse_path(meter.value_property), data, value)
    for name, text in attributes.items():
        if name in wire.RESERVED:
            continue
        path = None if meter is None else meter.group_by.get(name)
        if path is None:
            data.setdefault(name, text)
        else:
            place(parse_path(path), data, text)
