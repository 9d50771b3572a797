"""One micro-batch: requests of several senders -> what is new in them, ready for one spool transaction.

Takes bytes and the time, gives entries, states, and an outcome for each request. Rules that live here:

- A request that is not OTLP is refused alone; its neighbours in the micro-batch do not notice.
- A point that cannot be billed goes to quarantine alone; its neighbours in the request are counted.
- What was seen before (in this micro-batch, or ever) is a duplicate: acknowledged, not stored again.
  What comes under an id that another event has is a conflict: set aside, never counted.
- Of cumulative points the increase is stored; what adds nothing is acknowledged, and not stored.
- Nothing is remembered here: that is the caller's, after the commit.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from otel_metering.contract.event import UsageEvent
from otel_metering.contract.meter import Signal
from otel_metering.errors import InvalidUsageError
from receiver import identity, rows, singles
from receiver.asked import Found
from receiver.corrections import CorrectionBatch, Corrections
from receiver.cumulative import Accumulators
from receiver.identity import Ids, Words, join_ids
from receiver.metering import Metering
from receiver.otlp import items, metrics
from receiver.otlp.items import ItemGroup
from receiver.otlp.metrics import PointGroup
from receiver.points import Points, Refused, take
from receiver.quantity import Ints
from receiver.quarantine import refused_item, refused_point
from receiver.rows import EventColumns
from receiver.seen import Owner, SeenIds
from receiver.singles import ApiEvents, IdFactory, Singles
from receiver.store.corrections import Correction
from receiver.usage import Reason, Refusal, Sender, Series, Verdict

Bools = NDArray[np.bool_]
_T = TypeVar("_T")


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of one request: each use of it is in exactly one of these.

    Attributes:
        accepted: Stored for the first time.
        duplicates: Stored before.
        unchanged: Cumulative points that add nothing to what was counted.
        reasons: Kept aside in quarantine, by reason.
        ignored: Not usage of anything.
        corrected: Events that do not count any more; what counts instead of one is in `accepted`.
        corrected_before: Events that were to be corrected, and had been.
        rejected: (index, reason) of events of the JSON API that can never be counted.
        warning: The first reason for quarantine; empty: none.
    """

    accepted: int = 0
    duplicates: int = 0
    unchanged: int = 0
    reasons: Counter[Reason] = field(default_factory=Counter)
    ignored: int = 0
    corrected: int = 0
    corrected_before: int = 0
    rejected: tuple[tuple[int, str], ...] = ()
    warning: str = ""

    @property
    def quarantined(self) -> int:
        """How many are kept aside."""
        return self.reasons.total()

    @property
    def uses(self) -> int:
        """How many there were."""
        return (
            self.accepted
            + self.duplicates
            + self.unchanged
            + self.quarantined
            + self.ignored
            + len(self.rejected)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The work of one micro-batch.

    Attributes:
        entries: (key, payload) for the spool, all in one transaction; may be empty.
        states: (key, state) of cumulative series, for the same transaction.
        row_count: Rows in `entries`.
        corrections: What of these rows takes back an event.
        ids: To remember as seen once the transaction is on disk.
        outcomes: One for each request, in the order they were added.
        counted: The usage in `entries`, as it was encoded.
    """

    entries: list[tuple[str, bytes]]
    states: list[tuple[bytes, bytes]]
    row_count: int
    corrections: Sequence[rows.CorrectionRow]
    ids: Ids
    outcomes: list[Outcome]
    counted: list[EventColumns]


@dataclass(slots=True)
class _Request:
    """What one request brought."""

    sender: Sender
    outcome: Outcome
    groups: list[tuple[PointGroup, Ints]] = field(default_factory=list)
    singles: list[Singles] = field(default_factory=list)
    quarantine: list[rows.QuarantineRow] = field(default_factory=list)

    def add_points(self, group: PointGroup, places: Ints, numbers: Ints) -> None:
        if len(places):
            self.groups.append((take(group, places), numbers))

    def refuse(self, row: rows.QuarantineRow) -> None:
        self.quarantine.append(row)
        self.outcome.reasons[Reason(row.reason)] += 1
        self.outcome.warning = self.outcome.warning or f"{row.reason}: {row.detail}"


class MicroBatch:
    """Requests that are committed together."""

    def __init__(
        self,
        metering: Metering,
        seen: SeenIds,
        accumulators: Accumulators,
        *,
        now_ns: int,
        new_id: IdFactory,
        corrections: Corrections | None = None,
    ) -> None:
        metering.make_room()
        self._metering = metering
        self._seen = seen
        self._accumulators = accumulators
        self._now_ns = now_ns
        self._new_id = new_id
        self._requests: list[_Request] = []
        self._corrections = CorrectionBatch(Corrections() if corrections is None else corrections)

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
        counted, rejected = [], []
        for index, event in enumerate(events):
            try:
                one = singles.of_event(
                    event, sender, self._metering, now_ns=self._now_ns, new_id=self._new_id
                )
                counted.append(one)
            except InvalidUsageError as error:
                rejected.append((index, str(error)))
        if counted:
            request.singles.append(ApiEvents(counted))
        request.outcome.rejected = tuple(rejected)
        self._requests.append(request)

    def add_correction(self, correction: Correction, sender: Sender) -> None:
        """Add the correction of an event, unless it was corrected before.

        Raises:
            InvalidUsageError: It cannot be; the batch is as it was.
            UnavailableError: It cannot be told at the moment; the batch is as it was.
        """
        decided = self._corrections.add(
            correction, sender, self._metering, self._seen, now_ns=self._now_ns
        )
        if decided is None:
            outcome = Outcome(corrected_before=1)
        else:
            outcome = Outcome(corrected=1, accepted=int(decided.is_new))
        self._requests.append(_Request(sender, outcome))

    def admit(self) -> Admitted:
        """Find what is new. Changes nothing: remembering is the caller's, after the commit.

        Raises:
            UnavailableError: What was counted before cannot be read at the moment.
        """
        points = Points(
            [
                (number, request.sender, group, numbers)
                for number, request in enumerate(self._requests)
                for group, numbers in request.groups
            ],
            self._metering.streams.series,
        )
        self._refuse(points.refuse_invalid(self._now_ns))
        are_totals = points.are_cumulative()
        increases, states = self._increases(points, are_totals)
        point_events, single_events, ids = self._new(points.take(~are_totals))
        aside, ids = self._new_quarantine(ids)
        corrections = self._corrections.rows
        single_events += self._corrections.replacements
        ids = join_ids([ids, *self._corrections.ids])
        now_ms = self._now_ns // 1_000_000
        events = [*increases, *point_events, *single_events]
        entries = [
            (rows.EVENTS_KEY, rows.encode_events(parts, now_ms))
            for parts in ([*increases, *point_events], single_events)
            if any(map(len, parts))
        ]
        if aside:
            entries.append((rows.QUARANTINE_KEY, rows.encode_quarantine(aside, now_ms)))
        if corrections:
            entries.append((rows.CORRECTIONS_KEY, rows.encode_corrections(corrections, now_ms)))
        return Admitted(
            entries=entries,
            states=states,
            row_count=sum(map(len, events)) + len(aside) + len(corrections),
            corrections=corrections,
            ids=ids,
            outcomes=[request.outcome for request in self._requests],
            counted=[*increases, *point_events, *single_events],
        )

    def _increases(
        self, points: Points, are_totals: Bools
    ) -> tuple[list[EventColumns], list[tuple[bytes, bytes]]]:
        """What cumulative points add; counts them in the outcomes."""
        if not are_totals.any():
            return [], []
        totals = points.take(are_totals)
        columns = totals.cumulative()
        found = self._accumulators.increases(columns)
        self._refuse(totals.conflicts(found.is_conflict))
        is_counted = found.is_event.copy()
        is_counted[[back.place for back in found.taken_back]] = True
        for owner, counted, conflicts in zip(
            totals.owners.tolist(), is_counted.tolist(), found.is_conflict.tolist(), strict=True
        ):
            outcome = self._requests[owner].outcome
            outcome.accepted += counted
            outcome.unchanged += not (counted or conflicts)
        return [totals.increased(columns, found)], found.states

    def _new(self, points: Points) -> tuple[list[EventColumns], list[EventColumns], Ids]:
        """Of points and of single events those that were not seen before, and the ids of both."""
        parts = [(n, one) for n, request in enumerate(self._requests) for one in request.singles]
        owners = np.repeat(
            np.array([number for number, _ in parts], np.int64),
            np.array([len(part) for _, part in parts], np.int64),
        )
        ids = join_ids([_ids_of_points(points), *(part.ids() for _, part in parts)])
        starts = np.cumsum([len(points), *(len(part) for _, part in parts)])

        def single_at(place: int) -> tuple[_Request, Singles, int]:
            """Of what is behind the points: its request, the part it is in, and where in that."""
            at = int(np.searchsorted(starts, place, side="right")) - 1
            number, part = parts[at]
            return self._requests[number], part, place - int(starts[at])

        def series_at(place: int) -> Series:
            if place < len(points):
                return points.used[int(points.inverse[place])]
            _, part, i = single_at(place)
            return part.series(i)

        def owner_of(places: Ints) -> list[Owner]:
            return [(one.tenant_id, one.meter) for one in map(series_at, places.tolist())]

        found = self._seen.find(ids, owner_of)
        self._count(np.concatenate((points.owners, owners)), found)
        for place in np.flatnonzero(found.is_conflict).tolist():
            request, part, i = single_at(place)
            request.refuse(part.conflict(i, request.sender))
        is_new_point, *are_new = np.split(found.is_new, starts[: len(parts)])
        new = ids.take(found.is_new)
        kept = points.take(is_new_point)
        of_points = kept.events(new.first[: len(kept)], new.second[: len(kept)])
        of_singles = [
            part.columns.take(mask) for (_, part), mask in zip(parts, are_new, strict=True)
        ]
        return [of_points], of_singles, new

    def _new_quarantine(self, ids: Ids) -> tuple[list[rows.QuarantineRow], Ids]:
        """The quarantine rows that were not seen before; and `ids` with theirs."""
        every = [row for request in self._requests for row in request.quarantine]
        asked = _ids_of_rows(every)
        is_new = self._seen.find(asked, lambda places: [_NO_OWNER] * len(places)).is_new
        return _where(every, is_new), join_ids([ids, asked.take(is_new)])

    def _refuse(self, refused: Refused) -> None:
        for owner, row in refused:
            self._requests[owner].refuse(row)

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
                continue
            for part in resolution:
                if isinstance(part, Refusal):
                    for i in places.tolist():
                        request.refuse(refused_point(group, i, part, request.sender))
                else:
                    request.add_points(group, places, np.full(len(places), part, np.int64))
        plain = np.flatnonzero(numbers >= 0)
        request.add_points(group, plain, numbers[plain])

    def _add_items(self, request: _Request, groups: Sequence[ItemGroup]) -> None:
        bound = request.sender.bound_tenant
        for group in groups:
            streams = {
                name: self._metering.item(group.header, name, bound) for name in set(group.names)
            }
            described = [
                streams[name].known.get(attributes) or streams[name].resolve(attributes)
                for name, attributes in zip(group.names, group.attributes, strict=True)
            ]
            request.outcome.ignored += sum(isinstance(one.resolution, Verdict) for one in described)
            billed, refused = singles.of_group(group, described, self._now_ns)
            if billed is not None:
                request.singles.append(billed)
            for i, refusal in refused:
                request.refuse(refused_item(group, i, refusal, request.sender))

    def _count(self, owners: Ints, found: Found) -> None:
        count = len(self._requests)
        accepted = np.bincount(owners[found.is_new], minlength=count)
        is_repeated = ~(found.is_new | found.is_conflict)
        duplicates = np.bincount(owners[is_repeated], minlength=count)
        for number, request in enumerate(self._requests):
            request.outcome.accepted += int(accepted[number])
            request.outcome.duplicates += int(duplicates[number])


_NO_OWNER = ("", "")


def _ids_of_points(points: Points) -> Ids:
    first, second = points.ids()
    return Ids(first=first, second=second, time_ns=points.time, content=_no_content(len(first)))


def _ids_of_rows(quarantined: Sequence[rows.QuarantineRow]) -> Ids:
    first, second = identity.to_words(b"".join(row.event_id for row in quarantined))
    times = np.array([row.timestamp_ns for row in quarantined], np.int64)
    return Ids(first=first, second=second, time_ns=times, content=_no_content(len(first)))


def _no_content(count: int) -> Words:
    return np.zeros(count, np.uint64)


def _where(of: Sequence[_T], mask: Bools) -> list[_T]:
    return [of[i] for i in np.flatnonzero(mask).tolist()]
