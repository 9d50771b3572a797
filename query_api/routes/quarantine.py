"""`/v1/meter/quarantine`: what could not be billed; send it through again, or set it aside.

For administrators of all tenants: an item may name a tenant that its sender had no right to.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query

from otel_metering.errors import InvalidUsageError
from query_api import quarantine_queries
from query_api.audit import audit
from query_api.auth import Operator
from query_api.cursor import Cursor, decode
from query_api.parameters import only
from query_api.periods import Range, format_instant, parse_range
from query_api.problems import documented
from query_api.quarantine_queries import Selection
from query_api.quarantine_schemas import (
    MAX_REFUSALS,
    DiscardAnswer,
    ItemRefusal,
    QuarantineAnswer,
    QuarantinedItem,
    QuarantineFilter,
    QuarantineGroup,
    QuarantineParameters,
    QuarantineSelection,
    QuarantineSummary,
    ReplayAnswer,
    Resolution,
)
from query_api.replay import Order, Resolved, discard, replay
from query_api.services import Fate, Services, ServicesDep
from receiver.store.keys import Principal

router = APIRouter(prefix="/v1/meter/quarantine", tags=["quarantine"])

_MS_NS: Final = 1_000_000


@router.get("", responses=documented(), dependencies=[Depends(only(QuarantineParameters))])
def list_quarantine(
    services: ServicesDep,
    principal: Operator,
    parameters: Annotated[QuarantineParameters, Query()],
) -> QuarantineAnswer:
    """List what is in quarantine and open, the latest arrival first.

    To read on, send the same request with `cursor` set to `next_cursor`.
    """
    cursor = decode(parameters.cursor) if parameters.cursor else None
    within = cursor.range if cursor else _range(services, parameters)
    selection = Selection(
        range=within,
        include_resolved=parameters.include_resolved,
        **_conditions(parameters),
    )
    after = (cursor.timestamp_ns, cursor.event_id) if cursor else None
    statement = quarantine_queries.page(selection, limit=parameters.limit + 1, after=after)
    rows = services.store.query(statement.sql, statement.parameters)
    page = rows[: parameters.limit]
    known = _resolutions(services, selection, [str(row[0]) for row in page])
    behind = None
    if len(rows) > len(page):
        last = page[-1]
        behind = Cursor(range=within, timestamp_ns=last[10] * _MS_NS, event_id=str(last[0]))
    return QuarantineAnswer(
        data=[_item(row, known.get(str(row[0]))) for row in page],
        next_cursor=behind.encode() if behind else None,
    )


@router.get("/summary", responses=documented(), dependencies=[Depends(only(QuarantineFilter))])
def summarize_quarantine(
    services: ServicesDep,
    principal: Operator,
    parameters: Annotated[QuarantineFilter, Query()],
) -> QuarantineSummary:
    """Count what is in quarantine and open, by reason, signal and name."""
    selection = Selection(range=_range(services, parameters), **_conditions(parameters))
    statement = quarantine_queries.summary(selection)
    return QuarantineSummary(
        data=[
            QuarantineGroup(
                reason=reason,
                signal=signal,
                name=name,
                items=items,
                first_at=format_instant(first_ms * _MS_NS),
                last_at=format_instant(last_ms * _MS_NS),
            )
            for reason, signal, name, items, first_ms, last_ms in services.store.query(
                statement.sql, statement.parameters
            )
        ]
    )


@router.post("/replay", responses=documented())
def replay_quarantine(
    services: ServicesDep, principal: Operator, body: QuarantineSelection
) -> ReplayAnswer:
    """Send items through again, for instance after `meters.yaml` was corrected; the oldest usage first.

    An item is sent again as by the key that sent it, also a revoked one, so a key that is bound to a
    tenant writes no other tenant's usage. What is refused again stays in quarantine. Usage counts once,
    however often this is asked, and also if its sender has sent it again.
    """
    order, within = _order(services, principal, body)
    _record(services, principal, body, "quarantine.replay")
    done = replay(services, order, max_refusals=MAX_REFUSALS)
    return ReplayAnswer(
        dry_run=body.dry_run,
        matched=done.fates.total(),
        replayed=done.fates[Fate.REPLAYED],
        duplicates=done.fates[Fate.DUPLICATE],
        still_quarantined=done.fates[Fate.QUARANTINED],
        ignored=done.fates[Fate.IGNORED],
        unknown_key=done.fates[Fate.UNKNOWN_KEY],
        refusals=[ItemRefusal(event_id=one, detail=why) for one, why in done.refusals],
        next_cursor=_cursor_behind(done, within),
    )


@router.post("/discard", responses=documented())
def discard_quarantine(
    services: ServicesDep, principal: Operator, body: QuarantineSelection
) -> DiscardAnswer:
    """Set items aside for good: they are listed and replayed no more. Nothing is deleted.

    The request must say which: at least one of `event_ids`, `reason`, `tenant_id`, `signal`, `name`,
    `from` and `to`.
    """
    if not (body.event_ids or body.from_ or body.to or any(_conditions(body).values())):
        raise InvalidUsageError(
            "the request would discard everything; say which items, by event_ids, reason, tenant_id, "
            "signal, name, from or to"
        )
    order, within = _order(services, principal, body)
    _record(services, principal, body, "quarantine.discard")
    done = discard(services, order)
    return DiscardAnswer(
        dry_run=body.dry_run,
        discarded=done.fates[Fate.DISCARDED],
        next_cursor=_cursor_behind(done, within),
    )


def _record(
    services: Services, principal: Principal, body: QuarantineSelection, action: str
) -> None:
    """Into the audit log, before it is done; that names each item with its key and note afterwards."""
    if not body.dry_run:
        asked = body.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        asked["event_ids"] = len(body.event_ids) or None
        audit(services, principal, action=action, target="quarantine", details=asked)


def _order(
    services: Services, principal: Principal, body: QuarantineSelection
) -> tuple[Order, Range]:
    cursor = decode(body.cursor) if body.cursor else None
    within = cursor.range if cursor else _range(services, body, is_all=bool(body.event_ids))
    event_ids = [str(one) for one in body.event_ids]
    order = Order(
        selection=Selection(range=within, event_ids=event_ids, **_conditions(body)),
        limit=body.limit,
        after=(cursor.timestamp_ns, cursor.event_id) if cursor else None,
        key_id=principal.key_id,
        note=body.note,
        is_dry=body.dry_run,
    )
    return order, within


def _range(services: Services, asked: QuarantineFilter, *, is_all: bool = False) -> Range:
    start = "1970-01-01" if is_all and asked.from_ is None else asked.from_
    return parse_range(start, asked.to, now_ns=services.clock.now_ns())


def _conditions(asked: QuarantineFilter) -> dict[str, Any]:
    return asked.model_dump(include={"reason", "tenant_id", "signal", "name"})


def _resolutions(
    services: Services, selection: Selection, event_ids: Sequence[str]
) -> Mapping[str, Resolution]:
    if not selection.include_resolved or not event_ids:
        return {}
    statement = quarantine_queries.resolutions(selection.range, event_ids)
    return {
        str(event_id): Resolution(
            resolution=resolution,
            resolved_at=format_instant(at_ms * _MS_NS),
            key_id=key_id,
            note=note,
        )
        for event_id, resolution, at_ms, key_id, note in services.store.query(
            statement.sql, statement.parameters
        )
    }


def _item(row: Sequence[Any], resolution: Resolution | None) -> QuarantinedItem:
    event_id, reason, detail, signal, name, tenant_id, timestamp_ns = row[:7]
    attributes, service_name, key_id, ingested_ms = row[7:]
    return QuarantinedItem(
        event_id=event_id,
        reason=reason,
        detail=detail,
        signal=signal,
        name=name,
        tenant_id=tenant_id,
        timestamp=format_instant(timestamp_ns),
        attributes=attributes,
        service_name=service_name,
        key_id=key_id,
        ingested_at=format_instant(ingested_ms * _MS_NS),
        resolution=resolution,
    )


def _cursor_behind(done: Resolved, within: Range) -> str | None:
    if done.next_position is None:
        return None
    timestamp_ns, event_id = done.next_position
    return Cursor(range=within, timestamp_ns=timestamp_ns, event_id=event_id).encode()
