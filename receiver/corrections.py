"""Corrections of events that are in the database: void one, or let another count instead.

Nothing is deleted: the row stays in `events`, and one in `event_corrections` takes back what it brought to
its windows. Rules that live here:

- An event is corrected once, for ever: whoever comes second hears so. The ids of corrected events are in
  memory, a cache of `event_corrections` that is rebuilt from it and from the spool at start.
- The identity of a replacement is a hash of that of the event it replaces. It is EXPLICIT, since it says
  nothing about its time, so it is remembered and found again like every other; no sender's id hashes to it.
  Should `event_corrections` have lost the row (a spool that went away between two INSERTs), the same
  correction, sent again, finds its replacement counted and only takes back what is still to be taken back.
- The replaced event stays among the seen ids: sent again by its sender, it is a duplicate.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from otel_metering.contract.event import check_quantity
from otel_metering.contract.meter import Signal
from otel_metering.errors import InvalidUsageError
from receiver import quantity, runs
from receiver.identity import Ids, Words, digest, replacement_id, to_words
from receiver.metering import Metering
from receiver.quarantine import time_problem
from receiver.rows import CorrectionRow, EventColumns, begins
from receiver.runs import ABSENT
from receiver.seen import SeenIds
from receiver.store.corrections import Correction, EventRow, Replacement
from receiver.usage import Sender, Series

_NOBODY: Final = bytes(16)


class Corrections:
    """The ids of all events that do not count any more: 16 bytes each for those before the start."""

    def __init__(self) -> None:
        self._stored: list[runs.Run] = []
        self._recent: set[bytes] = set()

    def __contains__(self, event_id: bytes) -> bool:
        if event_id in self._recent:
            return True
        first, second = to_words(event_id)
        return any(run.find(first, second)[0] != ABSENT for run in self._stored)

    def __len__(self) -> int:
        return sum(map(len, self._stored)) + len(self._recent)

    def load(self, first: Words, second: Words) -> None:
        """Remember those that the database has: for the start."""
        if len(first):
            run = runs.make_run(first, second, None, time_range=(0, 0), entry=0)
            self._stored.append(run)

    def add(self, ids: Iterable[bytes]) -> None:
        """Remember some that are durable now."""
        self._recent.update(ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A correction that holds.

    Attributes:
        row: For `event_corrections`.
        replacement: What counts instead; None: nothing.
        is_new: Whether the replacement is to be stored; False: it was stored before.
    """

    row: CorrectionRow
    replacement: EventColumns | None = None
    is_new: bool = False


class CorrectionBatch:
    """The corrections of one micro-batch; changes no memory.

    Attributes:
        rows: For `event_corrections`.
        replacements: What counts instead of some of them, and was not stored before.
        ids: The identities of `replacements`.
    """

    def __init__(self, known: Corrections) -> None:
        self._known = known
        self._events: set[bytes] = set()
        self.rows: list[CorrectionRow] = []
        self.replacements: list[EventColumns] = []
        self.ids: list[Ids] = []

    def add(
        self,
        correction: Correction,
        sender: Sender,
        metering: Metering,
        seen: SeenIds,
        *,
        now_ns: int,
    ) -> Decided | None:
        """What it changes; None: nothing, the event was corrected before.

        Raises:
            InvalidUsageError: It cannot be; the message says why.
            UnavailableError: Whether the replacement is stored already cannot be told at the moment.
        """
        event_id = correction.event.event_id.bytes
        if event_id in self._known or event_id in self._events:
            return None
        decided = _decide(correction, sender, metering, seen, now_ns)
        self._events.add(event_id)
        self.rows.append(decided.row)
        if decided.replacement is not None and decided.is_new:
            self.replacements.append(decided.replacement)
            self.ids.append(_ids_of(decided.replacement))
        return decided


def taken_back(rows: Sequence[CorrectionRow]) -> EventColumns:
    """What corrections take back, as usage of the opposite sign."""
    first, second = to_words(b"".join(row.event_id for row in rows))
    parts = [quantity.from_decimal(-row.quantity) for row in rows]
    times = np.array([row.timestamp_ns for row in rows], np.int64)
    return EventColumns(
        series=[_series_of_row(row) for row in rows],
        numbers=np.arange(len(rows)),
        first=first,
        second=second,
        whole=np.array([whole for whole, _ in parts], np.int64),
        nano=np.array([nano for _, nano in parts], np.int64),
        observations=np.array([-row.observations for row in rows], np.int64),
        start_ns=times,
        time_ns=times,
    )


def _decide(
    correction: Correction, sender: Sender, metering: Metering, seen: SeenIds, now_ns: int
) -> Decided:
    event = correction.event
    if sender.bound_tenant not in (None, event.tenant_id):
        raise InvalidUsageError(
            f"the event is of tenant {event.tenant_id!r}, but the API key is bound to "
            f"{sender.bound_tenant!r}"
        )
    if correction.replacement is None:
        return Decided(row=_row(correction, _NOBODY))
    replaced_by = replacement_id(event.event_id.bytes)
    columns = _columns(event, correction.replacement, replaced_by, metering, now_ns)
    found = seen.find(_ids_of(columns), lambda _: [(event.tenant_id, event.meter)])
    if found.is_conflict[0]:
        raise InvalidUsageError(
            "the event was replaced by another one before; repeat that correction as it was, then correct "
            "the replacement"
        )
    return Decided(
        row=_row(correction, replaced_by), replacement=columns, is_new=bool(found.is_new[0])
    )


def _row(correction: Correction, replaced_by: bytes) -> CorrectionRow:
    event = correction.event
    return CorrectionRow(
        event_id=event.event_id.bytes,
        tenant_id=event.tenant_id,
        meter=event.meter,
        timestamp_ns=event.timestamp_ns,
        quantity=event.quantity,
        observations=event.observations,
        # In their order: it is part of the key of a rollup's row.
        dimensions=tuple(event.dimensions.items()),
        action=correction.action,
        reason=correction.reason,
        replaced_by=replaced_by,
        key_id=correction.key_id,
        corrected_at_ms=correction.corrected_at_ms,
    )


def _columns(
    event: EventRow, replacement: Replacement, id_: bytes, metering: Metering, now_ns: int
) -> EventColumns:
    problem = time_problem(replacement.timestamp_ns, now_ns)
    if problem is not None:
        raise InvalidUsageError(problem[1])
    whole, nano = quantity.from_decimal(check_quantity(replacement.quantity))
    attributes = tuple(sorted(replacement.attributes.items()))
    dimensions, unique_key = tuple(event.dimensions.items()), event.unique_key
    signal = Signal(event.signal)
    if replacement.attributes != event.attributes:
        dimensions, unique_key = metering.describe(event.meter, signal, attributes)
    # What it says, as of every EXPLICIT id: another replacement could be told from it. A cumulative value it
    # has none: states are restored from the event that was sent.
    said = f"{whole} {nano} {replacement.timestamp_ns}".encode()
    stream = digest(b"corrected", said, *(part.encode() for pair in attributes for part in pair))
    time_ns = np.array([replacement.timestamp_ns], np.int64)
    moved_ns = replacement.timestamp_ns - event.timestamp_ns
    first, second = to_words(id_)
    return EventColumns(
        series=[
            Series(
                key=digest(b"series", event.tenant_id.encode(), event.meter.encode(), stream),
                tenant_id=event.tenant_id,
                meter=event.meter,
                dimensions=dimensions,
                attributes=(),
                service_name=event.service_name,
                signal=signal,
                stream_id=stream,
                unique_key=unique_key,
            )
        ],
        numbers=np.zeros(1, np.int64),
        first=first,
        second=second,
        whole=np.array([whole], np.int64),
        nano=np.array([nano], np.int64),
        observations=np.array([event.observations], np.int64),
        start_ns=begins(np.array([event.start_ns + moved_ns], np.int64), time_ns),
        time_ns=time_ns,
        attributes=[attributes],
        traces=[(bytes.fromhex(event.trace_id), bytes.fromhex(event.span_id))],
    )


def _ids_of(columns: EventColumns) -> Ids:
    content, _ = to_words(b"".join(one.stream_id for one in columns.series))
    return Ids(first=columns.first, second=columns.second, time_ns=columns.time_ns, content=content)


def _series_of_row(row: CorrectionRow) -> Series:
    return Series(
        key=row.event_id,
        tenant_id=row.tenant_id,
        meter=row.meter,
        dimensions=row.dimensions,
        attributes=(),
        service_name="",
        signal=Signal.EVENT,
        stream_id=_NOBODY,
    )
