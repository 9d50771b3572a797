"""Events that come one by one: spans, log records, events of the JSON API -> identities and columns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from otel_metering.contract import attributes as names
from otel_metering.contract.event import (
    MAX_EVENT_ID_LENGTH,
    UsageEvent,
    check_name,
    check_quantity,
)
from otel_metering.contract.meter import Signal
from otel_metering.errors import InvalidUsageError
from receiver import identity, quantity
from receiver.identity import Kind, Words
from receiver.metering import Metering
from receiver.otlp import values
from receiver.otlp.items import Item
from receiver.quantity import Ints
from receiver.quarantine import (
    refusal_of,
    refused_event,
    refused_item,
    time_problem,
)
from receiver.rows import EventColumns, QuarantineRow
from receiver.usage import Reason, Sender, Series, Use

IdFactory = Callable[[], bytes]
"""Makes 16 random bytes, for an event that may be sent twice on purpose."""


@dataclass(slots=True)
class Single:
    """One event, and what it was made of."""

    series: Series
    id: bytes
    whole: int
    nano: int
    start_ns: int
    time_ns: int
    source: Item | UsageEvent

    def conflict(self, sender: Sender) -> QuarantineRow:
        """What is kept of it when its id was used before, by another event."""
        detail = (
            "another event was counted under this id; give each event an id of its own, and send it "
            "again unchanged"
        )
        refusal = refusal_of(self.series, Reason.CONFLICT, detail)
        if isinstance(self.source, Item):
            return refused_item(self.source, refusal, sender)
        return refused_event(self.source, self.time_ns, refusal, sender)


def item_problem(item: Item, event_id: str | None, now_ns: int) -> tuple[Reason, str] | None:
    """Why a span or log record that is usage cannot be billed; None: it can."""
    detail = _event_id_problem(names.EVENT_ID, event_id)
    if detail is not None:
        return Reason.INVALID_EVENT_ID, detail
    if item.header.signal is Signal.SPAN and not item.time_ns:
        return Reason.NO_TIMESTAMP, "the span has no end time"
    return time_problem(item.time_ns or now_ns, now_ns)


def of_item(item: Item, use: Use, now_ns: int) -> Single:
    """A span or log record as usage of one meter."""
    series = use.series
    if use.quantity is None:
        whole, nano = divmod(max(item.time_ns - item.start_ns, 0), quantity.NANO)
    else:
        whole, nano = quantity.from_decimal(use.quantity)
    time_ns = item.time_ns or now_ns
    return Single(series, _item_id(item, use), whole, nano, item.start_ns or time_ns, time_ns, item)


def of_event(
    event: UsageEvent, sender: Sender, metering: Metering, *, now_ns: int, new_id: IdFactory
) -> Single:
    """An event of the JSON API.

    Raises:
        InvalidUsageError: It can never be counted; the message says why.
    """
    tenant = check_name("tenant_id", event.tenant_id)
    meter = check_name("meter", event.meter)
    if sender.bound_tenant not in (None, tenant):
        raise InvalidUsageError(
            f"tenant_id is {tenant!r}, but the API key is bound to {sender.bound_tenant!r}"
        )
    time_ns = now_ns if event.timestamp_ns is None else event.timestamp_ns
    problem = time_problem(time_ns, now_ns)
    if problem is not None:
        raise InvalidUsageError(problem[1])
    detail = _event_id_problem("event_id", event.event_id)
    if detail is not None:
        raise InvalidUsageError(detail)
    whole, nano = quantity.from_decimal(check_quantity(event.quantity))
    attributes, content = dict(event.attributes), None
    if event.event_id is None:
        row_id = identity.mark(new_id(), Kind.ONCE)
    else:
        attributes[names.EVENT_ID] = event.event_id
        row_id = identity.explicit_id(tenant, meter, event.event_id)
        content = f"{whole} {nano}".encode()
    series = metering.event(tenant, meter, attributes, content)
    return Single(series, row_id, whole, nano, time_ns, time_ns, event)


def ids_of(singles: Sequence[Single]) -> tuple[Words, Words]:
    """Their identities."""
    return identity.to_words(b"".join(single.id for single in singles))


def contents_of(singles: Sequence[Single]) -> Words:
    """What each says, in eight bytes: those of its stream, see `decide.decide_item`."""
    return identity.to_words(b"".join(single.series.stream_id for single in singles))[0]


def times_of(singles: Sequence[Single]) -> Ints:
    """When each was."""
    return np.array([single.time_ns for single in singles], np.int64)


def events(singles: Sequence[Single]) -> EventColumns:
    """Them as events."""
    numbers = [(one.whole, one.nano, one.start_ns, one.time_ns) for one in singles]
    columns = np.array(numbers, np.int64).reshape(-1, 4)
    first, second = ids_of(singles)
    time_ns = columns[:, 3]
    start_ns = columns[:, 2]
    return EventColumns(
        series=[one.series for one in singles],
        numbers=np.arange(len(singles)),
        first=first,
        second=second,
        whole=columns[:, 0],
        nano=columns[:, 1],
        observations=np.ones(len(singles), np.int64),
        start_ns=np.where(start_ns > time_ns, time_ns, start_ns),
        time_ns=time_ns,
        traces={
            i: (one.source.trace_id.hex(), one.source.span_id.hex())
            for i, one in enumerate(singles)
            if isinstance(one.source, Item) and one.source.trace_id
        },
    )


def _item_id(item: Item, use: Use) -> bytes:
    series = use.series
    if use.event_id is not None:
        return identity.explicit_id(series.tenant_id, series.meter, use.event_id)
    if item.header.signal is Signal.SPAN:
        return identity.span_id(series.tenant_id, series.meter, item.trace_id, item.span_id)
    content = values.canonical(values.parse_attributes(item.attributes))
    time = item.time_ns.to_bytes(8, "little")
    # Without a time of its own, a record has that of its arrival, which is no part of it.
    kind = Kind.POINT if item.time_ns else Kind.EXPLICIT
    return identity.mark(identity.digest(b"log", series.key, time, item.body, content), kind)


def _event_id_problem(name: str, event_id: str | None) -> str | None:
    if event_id is None or 0 < len(event_id) <= MAX_EVENT_ID_LENGTH:
        return None
    return f"{name} has {len(event_id)} characters; 1 to {MAX_EVENT_ID_LENGTH} are allowed"
