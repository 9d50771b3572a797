"""One micro-batch: requests of several senders -> what is new in them, ready for one spool transaction.

Pure: takes bytes and the time, gives entries and an outcome for each request. Rules that live here:

- A request that is not OTLP is refused alone; its neighbours in the micro-batch do not notice.
- A point that cannot be billed goes to quarantine alone; its neighbours in the request are counted.
- What was seen before (in this micro-batch, or ever) is a duplicate: acknowledged, not stored again.
- Nothing is remembered as seen until `ids` were handed to `SeenIds.add`, after the commit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from otel_metering.contract import attributes as names
from otel_metering.contract.event import (
    MAX_EVENT_ID_LENGTH,
    UsageEvent,
    check_name,
    check_quantity,
)
from otel_metering.contract.meter import Signal
from otel_metering.errors import InvalidUsageError
from receiver import identity, quantity, rows
from receiver.identity import SeenIds, Words
from receiver.metering import Metering
from receiver.otlp import items, metrics, values
from receiver.otlp.items import Item
from receiver.otlp.metrics import PointGroup
from receiver.points import Points, take
from receiver.quantity import Ints
from receiver.quarantine import refusal_of, refused_item, refused_point, time_problem
from receiver.usage import Reason, Refusal, Sender, Series, Use, Verdict

IdFactory = Callable[[], bytes]
"""Makes 16 random bytes, for an event that may be sent twice on purpose."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of one request. accepted + duplicates + quarantined + ignored = its uses.

    Attributes:
        accepted: Stored for the first time.
        duplicates: Stored before.
        quarantined: Kept aside, with a reason.
        ignored: Not usage of anything.
        reasons: How many are in quarantine for which reason.
        warning: The first reason for quarantine; empty: none.
        rejected: (index, reason) of events of the JSON API that can never be counted.
    """

    accepted: int = 0
    duplicates: int = 0
    quarantined: int = 0
    ignored: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    warning: str = ""
    rejected: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The work of one micro-batch.

    Attributes:
        entries: (key, payload) for the spool, all in one transaction; may be empty.
        ids: Two columns, to remember as seen once the transaction is on disk.
        outcomes: One for each request, in the order they were added.
    """

    entries: list[tuple[str, bytes]]
    ids: tuple[Words, Words]
    outcomes: list[Outcome]


@dataclass(slots=True)
class _Row:
    """One event that did not come as a number point."""

    series: Series
    id: bytes
    whole: int
    nano: int
    start_ns: int
    time_ns: int
    trace: tuple[str, str] | None


@dataclass(slots=True)
class _Request:
    """What one request brought."""

    sender: Sender
    outcome: Outcome
    groups: list[tuple[PointGroup, Ints]] = field(default_factory=list)
    events: list[_Row] = field(default_factory=list)
    quarantine: list[rows.QuarantineRow] = field(default_factory=list)

    def add_points(self, group: PointGroup, places: Ints, numbers: Ints) -> None:
        if len(places):
            self.groups.append((take(group, places), numbers))

    def refuse(self, row: rows.QuarantineRow) -> None:
        self.quarantine.append(row)
        reasons = self.outcome.reasons
        reasons[row.reason] = reasons.get(row.reason, 0) + 1
        self.outcome.warning = self.outcome.warning or f"{row.reason}: {row.detail}"


class MicroBatch:
    """Requests that are committed together."""

    def __init__(
        self, metering: Metering, seen: SeenIds, *, now_ns: int, new_id: IdFactory
    ) -> None:
        metering.make_room()
        self._metering = metering
        self._seen = seen
        self._now_ns = now_ns
        self._new_id = new_id
        self._requests: list[_Request] = []

    def add_otlp(self, signal: Signal, body: bytes, sender: Sender) -> None:
        """Add an OTLP export request of `signal`, in protobuf.

        Raises:
            MalformedPayloadError: It is not one; the batch is as it was.
        """
        request = _Request(sender, Outcome())
        match signal:
            case Signal.METRIC:
                self._add_metrics(request, metrics.decode_metrics(body))
            case Signal.SPAN:
                self._add_items(request, items.decode_spans(body))
            case _:
                self._add_items(request, items.decode_logs(body))
        self._requests.append(request)

    def add_events(self, events: Sequence[UsageEvent], sender: Sender) -> None:
        """Add events of the JSON API; those that can never be counted are in `Outcome.rejected`."""
        request = _Request(sender, Outcome())
        rejected = []
        for index, event in enumerate(events):
            try:
                request.events.append(self._event_row(event, sender))
            except InvalidUsageError as error:
                rejected.append((index, str(error)))
        request.outcome.rejected = tuple(rejected)
        self._requests.append(request)

    def admit(self) -> Admitted:
        """Find what is new. Changes nothing: remembering is the caller's, after the commit."""
        points = Points(
            [
                (number, request.sender, group, numbers)
                for number, request in enumerate(self._requests)
                for group, numbers in request.groups
            ],
            self._metering.streams.series,
        )
        for owner, row in points.refuse_invalid(self._now_ns):
            self._requests[owner].refuse(row)
        quarantine = [row for request in self._requests for row in request.quarantine]
        row_owners, all_rows = self._rows()
        point_first, point_second = points.ids()
        row_first, row_second = identity.to_words(b"".join(row.id for row in all_rows))
        aside_first, aside_second = identity.to_words(b"".join(row.event_id for row in quarantine))
        first = np.concatenate((point_first, row_first, aside_first))
        second = np.concatenate((point_second, row_second, aside_second))
        is_new = identity.first_occurrences(first, second) & ~self._seen.contains(first, second)
        event_count = len(point_first) + len(row_first)
        new_events, new_aside = np.split(is_new, [event_count])
        new_points, new_rows = np.split(new_events, [len(point_first)])
        self._count(np.concatenate((points.owners, row_owners)), new_events)
        now_ms = self._now_ns // 1_000_000
        entries = []
        if new_events.any():
            columns = _columns(
                points.select(new_points),
                [row for row, new in zip(all_rows, new_rows, strict=True) if new],
                identity.to_bytes(
                    first[:event_count][new_events], second[:event_count][new_events]
                ),
            )
            entries.append((rows.EVENTS_KEY, rows.encode_events(columns, now_ms)))
        aside = [row for row, new in zip(quarantine, new_aside, strict=True) if new]
        if aside:
            entries.append((rows.QUARANTINE_KEY, rows.encode_quarantine(aside, now_ms)))
        return Admitted(
            entries=entries,
            ids=(first[is_new], second[is_new]),
            outcomes=[request.outcome for request in self._requests],
        )

    def _add_metrics(self, request: _Request, groups: Sequence[PointGroup]) -> None:
        bound = request.sender.bound_tenant
        for group in groups:
            streams = self._metering.metric(group.header, bound)
            numbers = self._numbers(streams.numbers, streams.resolve, group.tails)
            if (numbers < 0).any():
                self._add_special(request, group, numbers)
            else:
                request.groups.append((group, numbers))

    @staticmethod
    def _numbers(
        known: dict[bytes, int], resolve: Callable[[bytes], int], tails: Sequence[bytes]
    ) -> Ints:
        found = list(map(known.get, tails))
        if None in found:
            found = [known[tail] if tail in known else resolve(tail) for tail in tails]
        return np.array(found, np.int64)

    def _add_special(self, request: _Request, group: PointGroup, numbers: Ints) -> None:
        """Add a metric that has points which are not simply usage of one meter."""
        others = self._metering.streams.others
        if any(others[~n] is Verdict.IRREGULAR for n in set(numbers[numbers < 0].tolist())):
            self._add_metrics(request, [metrics.reparse(group)])
            return
        for number in np.unique(numbers[numbers < 0]).tolist():
            places, resolution = np.flatnonzero(numbers == number), others[~number]
            if isinstance(resolution, Verdict):
                request.outcome.ignored += len(places)
            elif isinstance(resolution, Refusal):
                for i in places.tolist():
                    request.refuse(refused_point(group, i, resolution, request.sender))
            else:
                for series in resolution:
                    request.add_points(group, places, np.full(len(places), series, np.int64))
        plain = np.flatnonzero(numbers >= 0)
        request.add_points(group, plain, numbers[plain])

    def _add_items(self, request: _Request, decoded: Sequence[Item]) -> None:
        for item in decoded:
            resolution = self._metering.item(
                item.header, item.attributes, request.sender.bound_tenant
            )
            if isinstance(resolution, Verdict):
                request.outcome.ignored += 1
                continue
            if isinstance(resolution, Refusal):
                request.refuse(refused_item(item, resolution, request.sender))
                continue
            problem = self._item_problem(item, resolution)
            if problem is not None:
                refusal = refusal_of(resolution[0].series, *problem)
                request.refuse(refused_item(item, refusal, request.sender))
                continue
            request.events.extend(self._item_row(item, use) for use in resolution)

    def _item_problem(self, item: Item, uses: Sequence[Use]) -> tuple[Reason, str] | None:
        detail = _event_id_problem(names.EVENT_ID, uses[0].event_id)
        if detail is not None:
            return Reason.INVALID_EVENT_ID, detail
        if item.header.signal is Signal.SPAN and not item.time_ns:
            return Reason.NO_TIMESTAMP, "the span has no end time"
        return time_problem(item.time_ns or self._now_ns, self._now_ns)

    def _item_row(self, item: Item, use: Use) -> _Row:
        series, time_ns = use.series, item.time_ns or self._now_ns
        if use.event_id is not None:
            row_id = identity.explicit_id(series.tenant_id, series.meter, use.event_id)
        elif item.header.signal is Signal.SPAN:
            row_id = identity.span_id(series.tenant_id, series.meter, item.trace_id, item.span_id)
        else:
            content = values.canonical(values.parse_attributes(item.attributes))
            time = item.time_ns.to_bytes(8, "little")
            row_id = identity.digest(b"log", series.key, time, item.body, content)
        if use.quantity is None:
            whole, nano = divmod(max(item.time_ns - item.start_ns, 0), quantity.NANO)
        else:
            whole, nano = quantity.from_decimal(use.quantity)
        trace = (item.trace_id.hex(), item.span_id.hex()) if item.trace_id else None
        return _Row(series, row_id, whole, nano, item.start_ns or time_ns, time_ns, trace)

    def _event_row(self, event: UsageEvent, sender: Sender) -> _Row:
        tenant = check_name("tenant_id", event.tenant_id)
        meter = check_name("meter", event.meter)
        if sender.bound_tenant not in (None, tenant):
            raise InvalidUsageError(
                f"tenant_id is {tenant!r}, but the API key is bound to {sender.bound_tenant!r}"
            )
        time_ns = self._now_ns if event.timestamp_ns is None else event.timestamp_ns
        problem = time_problem(time_ns, self._now_ns)
        if problem is not None:
            raise InvalidUsageError(problem[1])
        attributes = dict(event.attributes)
        detail = _event_id_problem("event_id", event.event_id)
        if detail is not None:
            raise InvalidUsageError(detail)
        if event.event_id is None:
            row_id = self._new_id()
        else:
            attributes[names.EVENT_ID] = event.event_id
            row_id = identity.explicit_id(tenant, meter, event.event_id)
        series = self._metering.event(tenant, meter, attributes)
        whole, nano = quantity.from_decimal(check_quantity(event.quantity))
        return _Row(series, row_id, whole, nano, time_ns, time_ns, None)

    def _rows(self) -> tuple[NDArray[np.int64], list[_Row]]:
        owners = [number for number, request in enumerate(self._requests) for _ in request.events]
        return np.array(owners, np.int64), [
            row for request in self._requests for row in request.events
        ]

    def _count(self, owners: Ints, is_new: NDArray[np.bool_]) -> None:
        count = len(self._requests)
        accepted = np.bincount(owners[is_new], minlength=count)
        duplicates = np.bincount(owners[~is_new], minlength=count)
        for number, request in enumerate(self._requests):
            request.outcome.accepted = int(accepted[number])
            request.outcome.duplicates = int(duplicates[number])
            request.outcome.quarantined = len(request.quarantine)


def _event_id_problem(name: str, event_id: str | None) -> str | None:
    if event_id is None or 0 < len(event_id) <= MAX_EVENT_ID_LENGTH:
        return None
    return f"{name} has {len(event_id)} characters; 1 to {MAX_EVENT_ID_LENGTH} are allowed"


def _columns(points: Points, others: Sequence[_Row], ids: bytes) -> rows.EventColumns:
    whole, nano = points.quantities()
    base, count = len(points.used), len(points.numbers)
    extra = np.array([(r.whole, r.nano, r.start_ns, r.time_ns) for r in others], np.int64)
    extra = extra.reshape(-1, 4)
    start = np.concatenate((points.start, extra[:, 2]))
    time = np.concatenate((points.time, extra[:, 3]))
    return rows.EventColumns(
        series=[*points.used, *(row.series for row in others)],
        numbers=np.concatenate((points.inverse, base + np.arange(len(others)))),
        ids=ids,
        quantity=quantity.to_decimal128(
            np.concatenate((whole, extra[:, 0])), np.concatenate((nano, extra[:, 1]))
        ),
        timestamp_ns=time,
        # Unknown (0), or a clock that stepped back while the series was born: begin = end.
        start_ns=np.where((start <= 0) | (start > time), time, start),
        traces={count + i: row.trace for i, row in enumerate(others) if row.trace},
    )
