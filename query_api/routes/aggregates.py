"""`/v1/meter/aggregates`: how much, per window and group."""

import hashlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response, StreamingResponse

from otel_metering.contract.event import check_name
from otel_metering.errors import InvalidUsageError
from query_api import queries
from query_api.aggregates import Order, Page, Question, Row, page
from query_api.aggregates_schemas import AggregatesAnswer, AggregatesParameters, Format
from query_api.auth import Reader, reachable_tenant
from query_api.cursor import AggregateCursor, decode_aggregate, fingerprint
from query_api.filters import Filter
from query_api.formats import MEDIA_TYPES, Table, json_body, negotiated
from query_api.parameters import conditions_beside, conditions_doc
from query_api.periods import Range, format_instant, parse_bound, parse_range
from query_api.problems import TooLargeError, documented
from query_api.queries import MAX_ROWS, TENANT, AggregateRequest
from query_api.reading import answer
from query_api.services import Services, ServicesDep
from query_api.windows import Rolling, Window, parse_window, previous_range, rolling_range
from query_api.zones import Zone, load
from receiver.store.keys import Principal

router = APIRouter(prefix="/v1/meter/aggregates", tags=["usage"])

DEFAULT_LIMIT: Final = 1_000
STREAMED_ROWS: Final = 20_000
"""Rows that are read at once for an answer of any length."""

_NOT_ASKED: Final = frozenset({"cursor", "limit", "format"})
"""Parameters that may differ between the pages of an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A request, understood.

    Attributes:
        question: What is asked.
        window: The name of it, as it was given.
        fingerprint: Of all parameters that decide the answer.
        after: The last row of the page before; None: this is the first page.
    """

    question: Question
    window: str
    fingerprint: str
    after: Row | None

    def cursor(self, last: Row) -> str:
        """Where the next page begins."""
        return AggregateCursor(
            asked=self.fingerprint,
            range=self.question.request.range,
            window=last.window,
            groups=last.groups,
            value=last.value,
        ).encode()

    def table(self, found: Page) -> Table:
        """A page, to be written."""
        return Table(
            request=self.question.request,
            page=found,
            is_compared=self.question.previous is not None,
        )


@router.get(
    "",
    response_model=AggregatesAnswer,
    responses={
        200: {"content": {kind: {} for kind in MEDIA_TYPES.values() if kind != "application/json"}},
        304: {"description": "What If-None-Match names is still the answer"},
        **documented(TooLargeError),
    },
    openapi_extra=conditions_doc(),
)
async def aggregate(
    request: Request,
    services: ServicesDep,
    principal: Reader,
    parameters: Annotated[AggregatesParameters, Query()],
    filters: Annotated[tuple[Filter, ...], Depends(conditions_beside(AggregatesParameters))],
) -> Response:
    """Aggregate a meter over `[from, to)`, exactly, wherever its edges lie.

    Windows follow the clock and calendar of `timezone`, and are cut where the range begins and ends; one
    without events is absent, unless `fill=zero`. Values are strings with exact decimals. In CSV, text that
    a spreadsheet would take for a formula has an apostrophe before it.
    """
    asked = _understood(request, services, principal, parameters, filters)
    written = negotiated(parameters.format, request.headers.get("accept", ""))
    if written is Format.NDJSON and parameters.limit is None:
        return await _streamed(request, services, asked)
    limit = parameters.limit or (DEFAULT_LIMIT if written is Format.JSON else MAX_ROWS)
    found = await answer(request, services, page(asked.question, limit=limit, after=asked.after))
    if found.has_more and parameters.limit is None and written is not Format.JSON:
        raise TooLargeError(
            f"the answer has over {MAX_ROWS} rows, which is the limit of {written}; give a limit and follow "
            "the header X-Next-Cursor, ask for ndjson, which has no limit, shorten the range, or filter"
        )
    return _written(request, asked, found, written)


def _understood(
    request: Request,
    services: Services,
    principal: Principal,
    parameters: AggregatesParameters,
    filters: tuple[Filter, ...],
) -> _Asked:
    meter = services.meters().find(check_name("meter", parameters.meter))
    group_by = tuple(dict.fromkeys(parameters.group_by))
    dimensions = [i.name for i in filters if not i.is_attribute]
    queries.check_dimensions(meter, [*(name for name in group_by if name != TENANT), *dimensions])
    if parameters.top is not None and not group_by:
        raise InvalidUsageError("top is a number of groups; say what they are with group_by")
    window, zone = parse_window(parameters.window), load(parameters.timezone)
    rolling = window if isinstance(window, Rolling) else None
    asked = AggregateRequest(
        meter=meter,
        aggregation=parameters.aggregation or meter.aggregation,
        window=window if isinstance(window, Window) else Window.TOTAL,
        zone=zone,
        range=_range(parameters, rolling, zone, services.clock.now_ns()),
        tenant_id=reachable_tenant(principal, parameters.tenant_id),
        group_by=group_by,
        filters=filters,
        source=parameters.source,
    )
    about = [(k, v) for k, v in request.query_params.multi_items() if k not in _NOT_ASKED]
    mark = fingerprint([*about, ("", asked.aggregation), ("", asked.tenant_id or "")])
    after = None
    if parameters.cursor is not None:
        cursor = decode_aggregate(parameters.cursor, asked=mark, groups=len(group_by))
        asked = replace(asked, range=cursor.range)
        after = Row(window=cursor.window, groups=cursor.groups, value=cursor.value)
    return _Asked(
        question=Question(
            request=asked,
            previous=previous_range(asked.range, zone, rolling) if parameters.compare else None,
            order=parameters.order,
            top=parameters.top,
            is_filled=parameters.fill is not None,
        ),
        window=parameters.window,
        fingerprint=mark,
        after=after,
    )


def _range(
    parameters: AggregatesParameters, rolling: Rolling | None, zone: Zone, now_ns: int
) -> Range:
    if rolling is None:
        return parse_range(parameters.from_, parameters.to, now_ns=now_ns, midnight=zone.midnight)
    if parameters.from_ is not None:
        raise InvalidUsageError(
            f"window {parameters.window} says itself where it begins; leave out from, or use window=total"
        )
    end_ns = now_ns if parameters.to is None else parse_bound(parameters.to, zone.midnight)
    return rolling_range(end_ns, rolling, zone)


def _written(request: Request, asked: _Asked, found: Page, written: Format) -> Response:
    table = asked.table(found)
    cursor = asked.cursor(found.rows[-1]) if found.has_more and found.rows else None
    headers = {"Vary": "Accept"}
    if written is Format.JSON:
        body = json_body(_document(asked, table, cursor))
    else:
        writers = {Format.CSV: table.csv, Format.ARROW: table.arrow, Format.NDJSON: table.lines}
        body = writers[written]()
        headers |= {"X-Next-Cursor": cursor} if cursor else {}
    if written in {Format.JSON, Format.CSV}:
        tag = f'"{hashlib.blake2b(body, digest_size=16).hexdigest()}"'
        headers |= {"ETag": tag, "Cache-Control": "private, no-cache"}
        if _is_known(request.headers.get("if-none-match", ""), tag):
            return Response(status_code=304, headers=headers)
    return Response(body, media_type=MEDIA_TYPES[written], headers=headers)


def _document(asked: _Asked, table: Table, cursor: str | None) -> Mapping[str, Any]:
    question = asked.question
    previous = question.previous
    compared = (
        {
            "previous": {
                "from": format_instant(previous.start_ns),
                "to": format_instant(previous.end_ns),
            }
        }
        if previous
        else {}
    )
    return {
        "meter": question.request.meter.slug,
        "aggregation": question.request.aggregation,
        "unit": question.request.meter.unit,
        "window": asked.window,
        "timezone": question.request.zone.name,
        "table": table.page.table,
        **compared,
        "data": list(table.objects()),
        "next_cursor": cursor,
    }


def _is_known(header: str, tag: str) -> bool:
    """Whether If-None-Match names the tag (RFC 9110, 13.1.2: compared weakly)."""
    named = [item.strip().removeprefix("W/") for item in header.split(",")]
    return "*" in named or tag in named


async def _streamed(request: Request, services: Services, asked: _Asked) -> Response:
    """An answer of any length, a page at a time; the first one decides the status."""
    is_paged = asked.question.order is Order.WINDOW_START and not asked.question.is_filled
    limit = STREAMED_ROWS if is_paged else MAX_ROWS
    first = await answer(request, services, page(asked.question, limit=limit, after=asked.after))

    async def lines() -> AsyncIterator[bytes]:
        found = first
        yield asked.table(found).lines()
        while found.has_more:
            work = page(asked.question, limit=limit, after=found.rows[-1])
            found = await answer(request, services, work)
            yield asked.table(found).lines()

    return StreamingResponse(
        lines(), media_type=MEDIA_TYPES[Format.NDJSON], headers={"Vary": "Accept"}
    )
