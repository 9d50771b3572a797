"""Events that come one by one (spans, log records, events of the JSON API) -> columns with identities."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

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
from receiver.identity import ID_BYTES, Ids, Kind, Words
from receiver.metering import Described, Metering
from receiver.otlp.items import ItemGroup
from receiver.quantity import Ints
from receiver.quarantine import (
    are_out_of_range,
    refusal_of,
    refused_event,
    refused_item,
    time_problem,
)
from receiver.rows import EventColumns, QuarantineRow, begins
from receiver.usage import Pairs, Reason, Refusal, Sender, Series, Use

IdFactory = Callable[[], bytes]
"""Makes 16 random bytes, for an event that may be sent twice on purpose."""

_SPAN_ID_BYTES: Final = 8
_CONFLICT: Final = "another event was counted under this id; give each event an id of its own, and send it again as it was"


class Singles(ABC):
    """Some of them, of one request.

    Attributes:
        columns: Them as events; explicit ids have in `stream_id` what else they say.
    """

    columns: EventColumns

    def __len__(self) -> int:
        return len(self.columns)

    def series(self, i: int) -> Series:
        """What event `i` is an event of."""
        return self.columns.series[int(self.columns.numbers[i])]

    def ids(self) -> Ids:
        """Their identities, with what explicit ones say besides."""
        columns = self.columns
        first, _ = identity.to_words(b"".join([one.stream_id for one in columns.series]))
        is_explicit = identity.kinds_of(columns.second) == Kind.EXPLICIT
        return Ids(
            first=columns.first,
            second=columns.second,
            time_ns=columns.time_ns,
            content=np.where(is_explicit, first[columns.numbers], np.uint64(0)),
        )

    @abstractmethod
    def conflict(self, i: int, sender: Sender) -> QuarantineRow:
        """What is kept of event `i` when its id was used before, by another event."""


@dataclass(slots=True)
class _Chosen:
    """The uses of a group that can be billed, by place in the group."""

    places: list[int]
    uses: list[Use]
    described: list[Described]


class Items(Singles):
    """Spans or log records."""

    def __init__(self, group: ItemGroup, chosen: _Chosen, now_ns: int) -> None:
        self._group = group
        self._places = chosen.places
        places = np.array(chosen.places, np.int64)
        sent_ns = group.time_ns[places].view(np.int64)
        time_ns = np.where(sent_ns == 0, now_ns, sent_ns)
        start_ns = begins(group.start_ns[places].view(np.int64), time_ns)
        numbers, series = _numbered([use.series for use in chosen.uses])
        first, second = _identities(group, chosen, series, numbers)
        whole, nano = _quantities(chosen.uses, time_ns - start_ns)
        self.columns = EventColumns(
            series=series,
            numbers=numbers,
            first=first,
            second=second,
            whole=whole,
            nano=nano,
            observations=np.ones(len(places), np.int64),
            start_ns=start_ns,
            time_ns=time_ns,
            attributes=[one.attributes for one in chosen.described],
            traces=[(group.trace_ids[i], group.span_ids[i]) for i in chosen.places],
        )

    def conflict(self, i: int, sender: Sender) -> QuarantineRow:
        """What is kept of event `i` when its id was used before, by another event."""
        attributes = (self.columns.attributes or [])[i]
        refusal = refusal_of(self.series(i), Reason.CONFLICT, _CONFLICT, attributes)
        return refused_item(self._group, self._places[i], refusal, sender)


class ApiEvents(Singles):
    """Events of the JSON API, those that can be counted."""

    def __init__(self, events: Sequence["ApiEvent"]) -> None:
        self._events = events
        numbers, series = _numbered([event.series for event in events])
        first, second = identity.to_words(b"".join([event.id for event in events]))
        time_ns = np.array([event.time_ns for event in events], np.int64)
        self.columns = EventColumns(
            series=series,
            numbers=numbers,
            first=first,
            second=second,
            whole=np.array([event.whole for event in events], np.int64),
            nano=np.array([event.nano for event in events], np.int64),
            observations=np.ones(len(events), np.int64),
            start_ns=time_ns,
            time_ns=time_ns,
            attributes=[event.attributes for event in events],
        )

    def conflict(self, i: int, sender: Sender) -> QuarantineRow:
        """What is kept of event `i` when its id was used before, by another event."""
        one = self._events[i]
        refusal = refusal_of(one.series, Reason.CONFLICT, _CONFLICT, one.attributes)
        return refused_event(one.event, one.time_ns, refusal, sender)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiEvent:
    """One event of the JSON API that can be counted."""

    event: UsageEvent
    series: Series
    attributes: Pairs
    id: bytes
    whole: int
    nano: int
    time_ns: int


def of_group(
    group: ItemGroup, described: Sequence[Described], now_ns: int
) -> tuple[Items | None, list[tuple[int, Refusal]]]:
    """The items of a group that can be billed, and (place, why) of those that cannot.

    Args:
        group: Spans or log records.
        described: Of each; those that are ignored may be among them.
        now_ns: The time.
    """
    chosen, refused = _Chosen([], [], []), []
    problems = _time_problems(group, now_ns)
    for place, one in enumerate(described):
        for use in one.resolution if isinstance(one.resolution, tuple) else ():
            refusal = use if isinstance(use, Refusal) else _refusal(use, one, problems.get(place))
            if refusal is not None:
                refused.append((place, refusal))
            elif isinstance(use, Use):
                chosen.places.append(place)
                chosen.uses.append(use)
                chosen.described.append(one)
    return Items(group, chosen, now_ns) if chosen.places else None, refused


def of_event(
    event: UsageEvent, sender: Sender, metering: Metering, *, now_ns: int, new_id: IdFactory
) -> ApiEvent:
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
    series, described = metering.event(tenant, meter, attributes, content)
    return ApiEvent(
        event=event,
        series=series,
        attributes=described,
        id=row_id,
        whole=whole,
        nano=nano,
        time_ns=time_ns,
    )


def _time_problems(group: ItemGroup, now_ns: int) -> dict[int, tuple[Reason, str]]:
    """Why items cannot be billed for their times, by place."""
    is_span, time = group.header.signal is Signal.SPAN, group.time_ns
    is_odd = are_out_of_range(time.view(np.int64), now_ns)
    problems = {}
    for place in np.flatnonzero(is_odd).tolist():
        if is_span and not time[place]:
            problems[place] = (Reason.NO_TIMESTAMP, "the span has no end time")
        elif problem := time_problem(int(time[place]) or now_ns, now_ns):
            problems[place] = problem
    return problems


def _refusal(use: Use, described: Described, problem: tuple[Reason, str] | None) -> Refusal | None:
    detail = _event_id_problem(names.EVENT_ID, use.event_id)
    if detail is not None:
        problem = Reason.INVALID_EVENT_ID, detail
    return problem and refusal_of(use.series, *problem, described.attributes)


def _event_id_problem(name: str, event_id: str | None) -> str | None:
    if event_id is None or 0 < len(event_id) <= MAX_EVENT_ID_LENGTH:
        return None
    return f"{name} has {len(event_id)} characters; 1 to {MAX_EVENT_ID_LENGTH} are allowed"


def _numbered(series: Sequence[Series]) -> tuple[Ints, list[Series]]:
    """Each series once, and the number of each of them in that list."""
    places: dict[int, int] = {}
    distinct: list[Series] = []
    numbers = []
    for one in series:
        number = places.get(id(one))
        if number is None:
            number = places[id(one)] = len(distinct)
            distinct.append(one)
        numbers.append(number)
    return np.array(numbers, np.int64), distinct


def _quantities(uses: Sequence[Use], lengths_ns: Ints) -> tuple[Ints, Ints]:
    whole, nano = lengths_ns // quantity.NANO, lengths_ns % quantity.NANO
    given = [(i, *use.quantity) for i, use in enumerate(uses) if use.quantity is not None]
    if given:
        places, wholes, nanos = np.array(given, np.int64).T
        whole[places], nano[places] = wholes, nanos
    return whole, nano


def _identities(
    group: ItemGroup, chosen: _Chosen, series: Sequence[Series], numbers: Ints
) -> tuple[Words, Words]:
    keys = identity.to_words(b"".join([one.key for one in series]))
    key_first, key_second = keys[0][numbers], keys[1][numbers]
    places = np.array(chosen.places, np.int64)
    time, start = group.time_ns[places], group.start_ns[places]
    attributes = identity.to_words(b"".join([one.digest for one in chosen.described]))
    if group.header.signal is Signal.SPAN:
        has_ids, words = _span_words(group, chosen.places)
        first, second = identity.siphash(key_first, key_second, words)
        second = identity.mark_words(second, Kind.SPAN)
        if not has_ids.all():
            # A span without ids of its own is known by its times and attributes.
            by_content = identity.siphash(key_first, key_second, [start, time, *attributes])
            first = np.where(has_ids, first, by_content[0])
            second = np.where(has_ids, second, identity.mark_words(by_content[1], Kind.POINT))
    else:
        bodies = [identity.digest(b"body", group.bodies[i]) for i in chosen.places]
        words = [time, *identity.to_words(b"".join(bodies)), *attributes]
        first, second = identity.siphash(key_first, key_second, words)
        # Without a time of its own, a record has that of its arrival, which is no part of it.
        is_timed = time != 0
        second = np.where(
            is_timed,
            identity.mark_words(second, Kind.POINT),
            identity.mark_words(second, Kind.EXPLICIT),
        )
    for i, use in enumerate(chosen.uses):
        if use.event_id is not None:
            one = use.series
            explicit = identity.explicit_id(one.tenant_id, one.meter, use.event_id)
            (first[i],), (second[i],) = identity.to_words(explicit)
    return first, second


def _span_words(group: ItemGroup, places: Sequence[int]) -> tuple[Words, list[Words]]:
    """Which spans have valid ids (W3C Trace Context: sixteen and eight bytes, not zero), and those."""
    traces = [group.trace_ids[i] for i in places]
    spans = [group.span_ids[i] for i in places]
    if any(len(one) != ID_BYTES for one in traces) or any(len(s) != _SPAN_ID_BYTES for s in spans):
        is_right = [
            len(t) == ID_BYTES and len(s) == _SPAN_ID_BYTES
            for t, s in zip(traces, spans, strict=True)
        ]
        traces = [t if ok else bytes(ID_BYTES) for t, ok in zip(traces, is_right, strict=True)]
        spans = [s if ok else bytes(_SPAN_ID_BYTES) for s, ok in zip(spans, is_right, strict=True)]
    high, low = identity.to_words(b"".join(traces))
    span = np.frombuffer(b"".join(spans), np.uint64)
    return ((high | low) != 0) & (span != 0), [high, low, span]
