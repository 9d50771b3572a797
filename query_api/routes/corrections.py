"""Events that were wrong: void one, correct one, and see what was corrected, by whom and why."""

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Request

from query_api import event_queries
from query_api.auth import Administrator, Reader, reachable_tenant
from query_api.correcting import Corrections
from query_api.cursor import Cursor, decode
from query_api.event_queries import CorrectionsRequest
from query_api.event_schemas import (
    Correct,
    CorrectionAnswer,
    CorrectionsAnswer,
    CorrectionsParameters,
    EventId,
    ListedCorrection,
    Void,
)
from query_api.locating import Made, made_of, reference, shown_id
from query_api.parameters import only
from query_api.periods import format_instant, parse_range
from query_api.problems import ConflictError, NotFoundError, TooLargeError, documented
from query_api.reading import read
from query_api.services import ServicesDep
from receiver.store.corrections import EventRow

router = APIRouter(prefix="/v1/meter", tags=["events"])

_MS_NS: Final = 1_000_000
_PROBLEMS: Final = documented(NotFoundError, ConflictError, TooLargeError)


@router.post("/events/{event_id:path}/void", responses=_PROBLEMS)
async def void_event(
    request: Request, services: ServicesDep, principal: Administrator, event_id: EventId, body: Void
) -> CorrectionAnswer:
    """Let an event not count any more, in no window and no quota. It stays, with the reason.

    Its sender may send it again: it stays void. Void again answers as the first time.
    """
    asked = reference(principal, event_id, body.tenant_id, body.meter)
    return _answer(*await Corrections(request, services, principal).void(asked, body))


@router.post("/events/{event_id:path}/correct", responses=_PROBLEMS)
async def correct_event(
    request: Request,
    services: ServicesDep,
    principal: Administrator,
    event_id: EventId,
    body: Correct,
) -> CorrectionAnswer:
    """Let another event count instead of one: what is not said stays as it was.

    The sender's id names what counts now, so an event can be corrected again by it. The same request, sent
    again, answers as the first time.
    """
    asked = reference(principal, event_id, body.tenant_id, body.meter)
    return _answer(*await Corrections(request, services, principal).correct(asked, body))


@router.get(
    "/corrections",
    responses=documented(TooLargeError),
    dependencies=[Depends(only(CorrectionsParameters))],
)
async def list_corrections(
    request: Request,
    services: ServicesDep,
    principal: Reader,
    parameters: Annotated[CorrectionsParameters, Query()],
) -> CorrectionsAnswer:
    """List what was voided and corrected, the latest first.

    To read on, send the same request with `cursor` set to `next_cursor`.
    """
    cursor = decode(parameters.cursor) if parameters.cursor else None
    now_ns = services.clock.now_ns()
    within = cursor.range if cursor else parse_range(parameters.from_, parameters.to, now_ns=now_ns)
    statement = event_queries.corrections(
        CorrectionsRequest(
            range=within,
            limit=parameters.limit + 1,
            tenant_id=reachable_tenant(principal, parameters.tenant_id),
            meter=parameters.meter,
            after=(cursor.timestamp_ns, cursor.event_id) if cursor else None,
        )
    )
    rows = [made_of(row) for row in await read(request, services, statement)]
    page = rows[: parameters.limit]
    behind = None
    if len(rows) > len(page):
        last = page[-1]
        behind = Cursor(
            range=within,
            timestamp_ns=last.corrected_at_ms * _MS_NS,
            event_id=str(last.event_id),
        )
    return CorrectionsAnswer(
        data=[_listed(made) for made in page], next_cursor=behind.encode() if behind else None
    )


def _answer(event: EventRow, made: Made) -> CorrectionAnswer:
    return CorrectionAnswer(
        event_id=shown_id(event),
        uuid=str(made.event_id),
        action=made.action,
        reason=made.reason,
        corrected_at=format_instant(made.corrected_at_ms * _MS_NS),
        key_id=made.key_id,
        replaced_by=str(made.replaced_by) if made.replaced_by else None,
    )


def _listed(made: Made) -> ListedCorrection:
    return ListedCorrection(
        uuid=str(made.event_id),
        tenant_id=made.tenant_id,
        meter=made.meter,
        action=made.action,
        reason=made.reason,
        corrected_at=format_instant(made.corrected_at_ms * _MS_NS),
        key_id=made.key_id,
        replaced_by=str(made.replaced_by) if made.replaced_by else None,
    )
