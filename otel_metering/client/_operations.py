"""What a client can do with usage: each operation says which requests it needs, and sends none."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from typing import Any, Final, Generic, Literal, TypeVar
from urllib.parse import quote

from otel_metering.client import _answers as answers
from otel_metering.client._request import (
    Filters,
    Number,
    Operation,
    Parameters,
    Request,
    Time,
    decimal_text,
    filtered,
    get,
    given,
    moment,
    present,
    send,
)
from otel_metering.client.results import (
    Correction,
    Event,
    Meter,
    Page,
    Usage,
    UsageRow,
)
from otel_metering.contract.event import Admission

T = TypeVar("T")

MAX_EVENTS: Final = 10_000
"""Events of one request."""

PAGE_ROWS: Final = 1_000
"""Events of one page that is read; the most that the service gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """One piece of usage, to be sent.

    Attributes:
        tenant_id: None: the tenant that the API key is bound to.
        event_id: Idempotency key: one (tenant, meter, event_id) counts once, for ever. None: the client
            makes one, so that what it sends twice counts once.
        timestamp: None: on arrival.
    """

    meter: str
    quantity: Number = 1
    tenant_id: str | None = None
    event_id: str | None = None
    timestamp: datetime | str | None = None
    attributes: Mapping[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing(Generic[T]):
    """A long list, read page by page."""

    request: Request
    parse: Callable[[answers.Document], T]

    def page(self, answer: answers.Answer) -> Page[T]:
        """Read one page. Raises as `answers.read`."""
        return answers.read(answer, answers.page_of(self.parse))

    def behind(self, cursor: str) -> Request:
        """The request for the page behind `cursor`."""
        return replace(self.request, parameters=[*self.request.parameters, ("cursor", cursor)])


def one(request: Request, parse: Callable[[Any], T]) -> Operation[T]:
    """One request, one answer."""
    return answers.read((yield request), parse)


def request(
    method: Literal["GET", "POST", "PUT", "DELETE"],
    path: str,
    *,
    parameters: Parameters = (),
    body: object = None,
    is_repeatable: bool = False,
) -> Operation[Mapping[str, Any]]:
    """Send any request to the API, and return the JSON object that it answers.

    Args:
        method: Of HTTP.
        path: Below `/v1/meter`, quoted, for example `/quarantine`.
        parameters: Of the query.
        body: What JSON can say.
        is_repeatable: Whether sending it twice does what sending it once does; a GET does.
    """
    sent = send(
        method,
        path,
        body,
        is_repeatable=is_repeatable or method == "GET",
        parameters=parameters,
    )
    return one(sent, answers.document)


def usage(
    meter: str,
    *,
    tenant_id: str | None = None,
    from_: Time | None = None,
    to: Time | None = None,
    window: str | None = None,
    timezone: str | None = None,
    group_by: Sequence[str] = (),
    aggregation: str | None = None,
    filters: Filters | None = None,
    attributes: Filters | None = None,
    fill_zero: bool = False,
    order: Literal["window_start", "value", "-value"] | None = None,
    top: int | None = None,
    compare_previous: bool = False,
    source: Literal["auto", "events"] | None = None,
) -> Operation[Usage]:
    """Aggregate the usage of a meter; all pages of the answer.

    Args:
        meter: Its slug.
        tenant_id: Only this tenant; None: all that the key reaches.
        from_: Start, inclusive; None: 30 days before the end.
        to: End, exclusive; None: now.
        window: `minute`, `15m`, `hour`, `day`, `week`, `month`, `total` (what None means), or a rolling one
            such as `last_30_days`.
        timezone: IANA name of the zone of windows and dates; None: UTC.
        group_by: `tenant_id`, and dimensions of the meter.
        aggregation: None: the meter's own.
        filters: On dimensions.
        attributes: On raw attributes, which is answered from the events and takes longer.
        fill_zero: Also give windows without usage.
        order: None: by window.
        top: Only the groups with the largest value over the whole range.
        compare_previous: Give `previous_value` of the period of the same length before.
        source: `events`: do not read rollups.
    """
    parameters = [
        *given(meter=meter, tenant_id=tenant_id, from_=moment(from_), to=moment(to)),
        *given(window=window, timezone=timezone, aggregation=aggregation, order=order, top=top),
        *given(
            fill="zero" if fill_zero else None,
            compare="previous" if compare_previous else None,
            source=source,
        ),
        *(("group_by", name) for name in group_by),
        *filtered("filter", filters),
        *filtered("attribute", attributes),
    ]
    found, cursor = answers.read((yield get("/aggregates", parameters)), answers.usage)
    rows: list[UsageRow] = list(found.rows)
    while cursor is not None:
        behind = get("/aggregates", [*parameters, ("cursor", cursor)])
        page, cursor = answers.read((yield behind), answers.usage)
        rows += page.rows
    return replace(found, rows=tuple(rows))


def meters(
    *, tenant_id: str | None = None, from_: Time | None = None, to: Time | None = None
) -> Operation[tuple[Meter, ...]]:
    """List the meters that are defined or have usage in the range, by slug.

    Args:
        tenant_id: Count events of this tenant alone.
        from_: Begin of the range, inclusive; None: 30 days before the end.
        to: Its end, exclusive; None: now.
    """
    parameters = given(tenant_id=tenant_id, from_=moment(from_), to=moment(to))
    found = yield from one(get("/meters", parameters), answers.page_of(answers.meter))
    return found.items


def send_events(new_id: Callable[[], str], events: Iterable[NewEvent]) -> Operation[Admission]:
    """Send usage, in as many requests as it takes; all that was accepted is durable when this returns.

    An event without an id gets one, so that it counts once however often it is sent. When this raises,
    earlier requests may have been accepted: give the events ids of your own if you will send them again.

    Returns:
        Of all requests together; indexes are those of `events`.
    """
    accepted, duplicates, sent = 0, 0, 0
    rejected: list[tuple[int, str]] = []
    for part in _parts(events, MAX_EVENTS):
        body = [_new_event(event, new_id) for event in part]
        posted = send("POST", "/events", body, is_repeatable=True)
        found = answers.read((yield posted), answers.admission)
        accepted += found.accepted
        duplicates += found.duplicates
        rejected += [(sent + index, reason) for index, reason in found.rejected]
        sent += len(part)
    return Admission(accepted=accepted, duplicates=duplicates, rejected=tuple(rejected))


def iter_events(
    *,
    tenant_id: str | None = None,
    meter: str | None = None,
    from_: Time | None = None,
    to: Time | None = None,
    event_id: str | None = None,
    filters: Filters | None = None,
    page_size: int = PAGE_ROWS,
) -> Listing[Event]:
    """Iterate over events, newest first; pages are read as they are needed.

    Args:
        tenant_id: Only this tenant; None: all that the key reaches.
        meter: Only this meter.
        from_: Start, inclusive; None: 30 days before the end.
        to: End, exclusive; None: now.
        event_id: The sender's id, or the stored UUID.
        filters: On attributes.
        page_size: Events of one request, at most 1,000.
    """
    parameters = [
        *given(tenant_id=tenant_id, meter=meter, from_=moment(from_), to=moment(to)),
        *given(event_id=event_id, limit=page_size),
        *filtered("filter", filters),
    ]
    return Listing(request=get("/events", parameters), parse=answers.event)


def event(
    event_id: str, *, tenant_id: str | None = None, meter: str | None = None
) -> Operation[Event]:
    """Return the event `event_id`. An id that several use needs `tenant_id` or `meter`, too."""
    path = f"/events/{quote(event_id, safe='')}"
    return one(get(path, given(tenant_id=tenant_id, meter=meter)), answers.event)


def export_events(
    *,
    format: Literal["csv", "ndjson"] = "ndjson",
    tenant_id: str | None = None,
    meter: str | None = None,
    from_: Time | None = None,
    to: Time | None = None,
    filters: Filters | None = None,
) -> Request:
    r"""Iterate over the lines of an export of events, oldest first, each with its `\n`.

    However many there are, memory stays flat. It is asked for again only until its first bytes are there;
    an export that breaks off later raises, and never just ends.

    Args:
        format: `csv` with a header, or `ndjson`: one JSON object in each line.
        tenant_id: Only this tenant; None: all that the key reaches.
        meter: Only this meter.
        from_: Start, inclusive; None: 30 days before the end.
        to: End, exclusive; None: now.
        filters: On attributes.
    """
    parameters = [
        *given(tenant_id=tenant_id, meter=meter, from_=moment(from_), to=moment(to)),
        *given(format=format),
        *filtered("filter", filters),
    ]
    return get("/events/export", parameters)


def void(
    event_id: str, *, reason: str, tenant_id: str | None = None, meter: str | None = None
) -> Operation[Correction]:
    """Take an event back: it stays in the list of events, and counts no more.

    Args:
        event_id: The sender's id, or the stored UUID.
        reason: For people; kept with the correction.
        tenant_id: Needed if several tenants use the id.
        meter: Needed if several meters use the id.
    """
    body = present(reason=reason, tenant_id=tenant_id, meter=meter)
    path = f"/events/{quote(event_id, safe='')}/void"
    return one(send("POST", path, body, is_repeatable=False), answers.correction)


def correct(
    event_id: str,
    *,
    reason: str,
    quantity: Number | None = None,
    timestamp: datetime | str | None = None,
    attributes: Mapping[str, str | int | float | bool] | None = None,
    tenant_id: str | None = None,
    meter: str | None = None,
) -> Operation[Correction]:
    """Take an event back, and count another one in its place.

    Args:
        event_id: The sender's id, or the stored UUID.
        reason: For people; kept with the correction.
        quantity: None: as it was.
        timestamp: None: as it was.
        attributes: All of the new ones; None: as they were.
        tenant_id: Needed if several tenants use the id.
        meter: Needed if several meters use the id.
    """
    body = present(
        reason=reason,
        quantity=None if quantity is None else decimal_text(quantity),
        timestamp=moment(timestamp),
        attributes=attributes,
        tenant_id=tenant_id,
        meter=meter,
    )
    path = f"/events/{quote(event_id, safe='')}/correct"
    return one(send("POST", path, body, is_repeatable=False), answers.correction)


def iter_corrections(
    *,
    tenant_id: str | None = None,
    meter: str | None = None,
    from_: Time | None = None,
    to: Time | None = None,
) -> Listing[Correction]:
    """Iterate over what was voided and corrected.

    Args:
        tenant_id: Only of this tenant.
        meter: Only of this meter.
        from_: Begin of the range, inclusive.
        to: Its end, exclusive.
    """
    parameters = given(tenant_id=tenant_id, meter=meter, from_=moment(from_), to=moment(to))
    return Listing(request=get("/corrections", parameters), parse=answers.correction)


def _parts(events: Iterable[NewEvent], size: int) -> Iterator[list[NewEvent]]:
    left = iter(events)
    while part := list(islice(left, size)):
        yield part


def _new_event(event: NewEvent, new_id: Callable[[], str]) -> dict[str, object]:
    return present(
        event_id=new_id() if event.event_id is None else event.event_id,
        tenant_id=event.tenant_id,
        meter=event.meter,
        quantity=decimal_text(event.quantity),
        timestamp=moment(event.timestamp),
        attributes=dict(event.attributes),
    )
