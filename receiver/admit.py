"""One micro-batch: requests of several senders -> what is new in them, ready for one spool transaction.

Pure: takes bytes and the time, gives entries and an outcome for each request. Rules that live here:

- A request that is not OTLP is refused alone; its neighbours in the micro-batch do not notice.
- A point that cannot be billed goes to quarantine alone; its neighbours in the request are counted.
- What was seen before (in this micro-batch, or ever) is a duplicate: acknowledged, not stored again.
- Nothing is remembered as seen until `ids` were handed to `SeenIds.add`, after the commit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

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
from receiver.metering import Metering, Reason, Refusal, Series, Use, Verdict
from receiver.otlp import items, metrics, values
from receiver.otlp.items import Item
from receiver.otlp.metrics import PointGroup
from receiver.quantity import Ints

EARLIEST_NS: Final = 946_684_800 * 10**9
"""2000-01-01: older timestamps are a sender's clock that was never set."""

MAX_AHEAD_NS: Final = 24 * 3600 * 10**9
"""How far ahead of our clock a timestamp may be: a day covers a wrong time zone, not a wrong year."""

IdFactory = Callable[[], bytes]
"""Makes 16 random bytes, for an event that may be sent twice on purpose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Whose request it is: the API key, and the tenant it is bound to, if any."""

    key_id: str
    bound_tenant: str | None


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of one request. accepted + duplicates + quarantined + ignored = its uses.

    Attributes:
        accepted: Stored for the first time.
        duplicates: Stored before.
        quarantined: Kept aside, with a reason.
        ignored: Not usage of anything.
        warning: The first reason for quarantine; empty: none.
        rejected: (index, reason) of events of the JSON API that can never be counted.
    """

    accepted: int = 0
    duplicates: int = 0
    quarantined: int = 0
    ignored: int = 0
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
class _Quarantined:
    request: int
    row: rows.QuarantineRow


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
            self.groups.append((_take(group, places), numbers))

    def refuse(self, row: rows.QuarantineRow) -> None:
        self.quarantine.append(row)
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
        points = _Points.gather(self._requests, self._metering.streams.series)
        for owner, row in points.refuse_invalid(self._now_ns):
            self._requests[owner].refuse(row)
        quarantine = [
            _Quarantined(number, row)
            for number, request in enumerate(self._requests)
            for row in request.quarantine
        ]
        row_owners, all_rows = self._rows()
        point_first, point_second = points.ids()
        row_first, row_second = identity.to_words(b"".join(row.id for row in all_rows))
        aside_first, aside_second = identity.to_words(
            b"".join(item.row.event_id for item in quarantine)
        )
        first = np.concatenate((point_first, row_first, aside_first))
        second = np.concatenate((point_second, row_second, aside_second))
        is_new = identity.first_occurrences(first, second) & ~self._seen.contains(first, second)
        split = [len(point_first), len(point_first) + len(row_first)]
        new_points, new_rows, new_aside = np.split(is_new, split)
        self._count(np.concatenate((points.owners, row_owners)), is_new[: split[1]])
        for item in quarantine:
            self._requests[item.request].outcome.quarantined += 1
        now_ms = self._now_ns // 1_000_000
        entries = []
        if is_new[: split[1]].any():
            columns = _columns(
                points.select(new_points),
                [row for row, new in zip(all_rows, new_rows, strict=True) if new],
                identity.to_bytes(
                    first[: split[1]][is_new[: split[1]]], second[: split[1]][is_new[: split[1]]]
                ),
            )
            entries.append((rows.EVENTS_KEY, rows.encode_events(columns, now_ms)))
        aside = [item.row for item, new in zip(quarantine, new_aside, strict=True) if new]
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
                    request.refuse(_refused_point(group, i, resolution, request.sender))
            else:
                for series in resolution:
                    request.add_points(group, places, np.full(len(places), series, np.int64))
        plain = np.flatnonzero(numbers >= 0)
        request.add_points(group, plain, numbers[plain])

    def _add_items(self, request: _Request, decoded: Sequence[Item]) -> None:
        for item in decoded:
            resolution, described = self._metering.item(
                item.header, item.attributes, request.sender.bound_tenant
            )
            if isinstance(resolution, Verdict):
                request.outcome.ignored += 1
                continue
            if isinstance(resolution, Refusal):
                request.refuse(_refused_item(item, resolution, request.sender))
                continue
            problem = self._item_problem(item, resolution)
            if problem is not None:
                refusal = Refusal(
                    reason=problem[0],
                    detail=problem[1],
                    tenant_id=resolution[0].series.tenant_id,
                    attributes=described,
                    service_name=resolution[0].series.service_name,
                )
                request.refuse(_refused_item(item, refusal, request.sender))
                continue
            request.events.extend(self._item_row(item, use) for use in resolution)

    def _item_problem(self, item: Item, uses: Sequence[Use]) -> tuple[Reason, str] | None:
        event_id = uses[0].event_id
        if event_id is not None and not 0 < len(event_id) <= MAX_EVENT_ID_LENGTH:
            detail = f"{names.EVENT_ID} has {len(event_id)} characters; 1 to {MAX_EVENT_ID_LENGTH} are allowed"
            return Reason.INVALID_EVENT_ID, detail
        if item.header.signal is Signal.SPAN and not item.time_ns:
            return Reason.NO_TIMESTAMP, "the span has no end time"
        return _time_problem(item.time_ns or self._now_ns, self._now_ns)

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
        problem = _time_problem(time_ns, self._now_ns)
        if problem is not None:
            raise InvalidUsageError(problem[1])
        attributes = dict(event.attributes)
        row_id = self._new_id()
        if event.event_id is not None:
            if not 0 < len(event.event_id) <= MAX_EVENT_ID_LENGTH:
                raise InvalidUsageError(
                    f"event_id has {len(event.event_id)} characters; 1 to {MAX_EVENT_ID_LENGTH} are allowed"
                )
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
            request.outcome.accepted += int(accepted[number])
            request.outcome.duplicates += int(duplicates[number])


class _Points:
    """All number points of a micro-batch, as columns."""

    def __init__(
        self, groups: Sequence[tuple[int, Sender, PointGroup, Ints]], series: Sequence[Series]
    ) -> None:
        self._groups = groups
        self._series = series
        self._offsets = np.cumsum([0, *(len(numbers) for *_, numbers in groups)])
        self.owners = np.repeat(
            np.array([owner for owner, *_ in groups], np.int64),
            np.array([len(numbers) for *_, numbers in groups], np.int64),
        )
        none: Ints = np.zeros(0, np.int64)
        self.numbers = np.concatenate([none, *(numbers for *_, numbers in groups)])
        self.start = np.concatenate([none, *(g.start_ns.view(np.int64) for _, _, g, _ in groups)])
        self.time = np.concatenate([none, *(g.time_ns.view(np.int64) for _, _, g, _ in groups)])
        self.bits = np.concatenate([none, *(g.bits for _, _, g, _ in groups)])
        self.kinds = np.concatenate([np.zeros(0, np.uint8), *(g.kinds for _, _, g, _ in groups)])
        self._index_series()

    @classmethod
    def gather(cls, requests: Sequence[_Request], series: Sequence[Series]) -> "_Points":
        """The points of `requests`, in their order."""
        return cls(
            [
                (owner, request.sender, group, numbers)
                for owner, request in enumerate(requests)
                for group, numbers in request.groups
            ],
            series,
        )

    def _index_series(self) -> None:
        unique, self.inverse = np.unique(self.numbers, return_inverse=True)
        self.used = [self._series[number] for number in unique.tolist()]

    def refuse_invalid(self, now_ns: int) -> list[tuple[int, rows.QuarantineRow]]:
        """Take out the points that cannot be billed; returns (request, quarantine row) of each."""
        is_double = self.kinds == metrics.DOUBLE
        doubles = self.bits.view(np.float64)
        problems = {
            Reason.NO_TIMESTAMP: self.time == 0,
            Reason.TIMESTAMP_OUT_OF_RANGE: (self.time < EARLIEST_NS)
            | (self.time > now_ns + MAX_AHEAD_NS),
            Reason.NO_VALUE: self.kinds == metrics.NO_VALUE,
            Reason.INVALID_QUANTITY: (is_double & ~quantity.are_storable(doubles))
            | self._is_negative(is_double, doubles),
        }
        bad = np.logical_or.reduce(list(problems.values()))
        if not bad.any():
            return []
        refused = []
        for i in np.flatnonzero(bad).tolist():
            reason = next(reason for reason, mask in problems.items() if mask[i])
            refused.append((int(self.owners[i]), self._refused(i, reason)))
        self._keep(~bad)
        return refused

    def ids(self) -> tuple[Words, Words]:
        """Identity of each point."""
        key_first, key_second = identity.to_words(b"".join(series.key for series in self.used))
        words = [column.view(np.uint64) for column in (self.start, self.time, self.bits)]
        return identity.siphash(key_first[self.inverse], key_second[self.inverse], words)

    def select(self, mask: NDArray[np.bool_]) -> "_Points":
        """These points, without those that are False in `mask`."""
        if not mask.all():
            self._keep(mask)
        return self

    def quantities(self) -> tuple[Ints, Ints]:
        """(whole, nano) of each point."""
        is_double = self.kinds == metrics.DOUBLE
        whole, nano = self.bits.copy(), np.zeros(len(self.bits), np.int64)
        if is_double.any():
            doubles = self.bits[is_double].view(np.float64)
            whole[is_double], nano[is_double] = quantity.from_doubles(doubles)
        scales = np.array([series.scale for series in self.used], np.int64)[self.inverse]
        for scale in np.unique(scales[scales > 0]).tolist():
            mask = (scales == scale) & ~is_double
            whole[mask], nano[mask] = quantity.from_ints(self.bits[mask], scale)
        return whole, nano

    def _is_negative(
        self, is_double: NDArray[np.bool_], doubles: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        is_monotonic = np.array([series.is_monotonic for series in self.used], np.bool_)
        with np.errstate(invalid="ignore"):
            negative = np.where(is_double, doubles < 0, self.bits < 0)
        return negative & is_monotonic[self.inverse]

    def _keep(self, mask: NDArray[np.bool_]) -> None:
        for name in ("owners", "numbers", "start", "time", "bits", "kinds"):
            setattr(self, name, getattr(self, name)[mask])
        self._index_series()

    def _refused(self, i: int, reason: Reason) -> rows.QuarantineRow:
        place = int(np.searchsorted(self._offsets, i, side="right")) - 1
        _, sender, group, _ = self._groups[place]
        series = self._series[int(self.numbers[i])]
        refusal = Refusal(
            reason=reason,
            detail=_DETAILS[reason],
            tenant_id=series.tenant_id,
            attributes=series.attributes,
            service_name=series.service_name,
        )
        return _refused_point(group, i - int(self._offsets[place]), refusal, sender)


_DETAILS: Final = {
    Reason.NO_TIMESTAMP: "time_unix_nano is 0",
    Reason.TIMESTAMP_OUT_OF_RANGE: "time_unix_nano is before 2000 or more than a day ahead",
    Reason.NO_VALUE: "the point has neither as_int nor as_double",
    Reason.INVALID_QUANTITY: "the value is not finite, too large, or negative on a monotonic sum",
}


def _time_problem(time_ns: int, now_ns: int) -> tuple[Reason, str] | None:
    if EARLIEST_NS <= time_ns <= now_ns + MAX_AHEAD_NS:
        return None
    return (
        Reason.TIMESTAMP_OUT_OF_RANGE,
        f"timestamp {time_ns} ns is before 2000 or more than a day ahead; correct the sender's clock",
    )


def _take(group: PointGroup, places: NDArray[np.int64]) -> PointGroup:
    chosen = places.tolist()
    return PointGroup(
        group.header,
        [group.points[i] for i in chosen],
        [group.tails[i] for i in chosen],
        group.start_ns[places],
        group.time_ns[places],
        group.bits[places],
        group.kinds[places],
    )


def _refused_point(
    group: PointGroup, i: int, refusal: Refusal, sender: Sender
) -> rows.QuarantineRow:
    payload = metrics.encode_single(group.header, group.points[i])
    name = values.decode_text(group.header.name)
    return _quarantine(Signal.METRIC, name, int(group.time_ns[i]), payload, refusal, sender)


def _refused_item(item: Item, refusal: Refusal, sender: Sender) -> rows.QuarantineRow:
    name = values.decode_text(item.header.name)
    payload = items.encode_single(item)
    return _quarantine(item.header.signal, name, item.time_ns, payload, refusal, sender)


def _quarantine(
    signal: Signal, name: str, time_ns: int, payload: bytes, refusal: Refusal, sender: Sender
) -> rows.QuarantineRow:
    bound = (sender.bound_tenant or "").encode()
    return rows.QuarantineRow(
        # The same item, sent again, is in quarantine once.
        event_id=identity.digest(b"quarantine", bound, payload),
        reason=refusal.reason,
        detail=refusal.detail,
        signal=signal,
        name=name,
        tenant_id=refusal.tenant_id,
        timestamp_ns=min(time_ns, 2**63 - 1),
        attributes=refusal.attributes,
        service_name=refusal.service_name,
        payload=payload,
        key_id=sender.key_id,
    )


def _columns(points: _Points, others: Sequence[_Row], ids: bytes) -> rows.EventColumns:
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
