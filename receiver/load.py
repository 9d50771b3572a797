"""Rebuilds the memory of seen ids at start: from the spool, then from the database, newest first."""

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from otel_metering.clock import Clock
from otel_metering.spool import Spool
from receiver.corrections import Corrections
from receiver.identity import ID_BYTES, Ids, Words
from receiver.lookup import StoredIds
from receiver.rows import CORRECTIONS_KEY, corrected_ids, ids_of
from receiver.seen import MAX_AHEAD_NS, SeenIds
from receiver.store import tables
from receiver.store.client import Store

PROGRESS_SECONDS: Final = 5.0

_NANO: Final = 10**9
_HOUR: Final = 3600
_TIMED_BYTES: Final = 17
_EXPLICIT_BYTES: Final = 25
"""Memory of an id, with its share of what finds it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Slice:
    """Events of a time: [start, end) in seconds, and how many there are."""

    start: int
    end: int
    count: int


def load_seen_ids(store: Store, spool: Spool, clock: Clock, *, max_bytes: int) -> SeenIds:
    """Every identity that was ever admitted: in memory, newest first, as far as `max_bytes` go.

    Raises:
        UnavailableError: The database did not answer.
    """
    seen = SeenIds(max_bytes, StoredIds(store))
    now_ns = clock.now_ns()
    # First what is in no table yet: that cannot be looked up.
    for number, entry in enumerate(spool.entries(), 1):
        # The ids in an entry of corrections are those of events that were admitted before.
        if entry.key != CORRECTIONS_KEY:
            seen.add(ids_of(entry.payload), number, now_ns)
    progress = _Progress(store, clock)
    _load_explicit(store, seen, progress)
    _load_timed(store, seen, progress, now_ns)
    progress.finish(seen)
    return seen


def load_corrections(store: Store, spool: Spool) -> Corrections:
    """Every event that was ever corrected.

    Raises:
        UnavailableError: The database did not answer.
    """
    corrections = Corrections()
    sql = f"SELECT reinterpretAsUInt128(event_id) FROM {tables.EVENT_CORRECTIONS}"  # noqa: S608 - from tables.py
    for batch in store.stream(sql):
        corrections.load(*_words(batch.column(0)))
    for entry in spool.entries():
        if entry.key == CORRECTIONS_KEY:
            corrections.add(corrected_ids(entry.payload))
    return corrections


class _Progress:
    """Says every few seconds how far the load is."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._clock = clock
        self._began = self._said = clock.monotonic()
        self._rows = 0
        self._total = sum(
            store.query(f"SELECT count() FROM {table}")[0][0]  # noqa: S608 - from tables.py
            for table in (tables.EVENTS, tables.EXPLICIT_IDS)
        )

    def add(self, rows: int) -> None:
        """So many more rows were read."""
        self._rows += rows
        now = self._clock.monotonic()
        if now - self._said >= PROGRESS_SECONDS:
            self._said = now
            self._say("ids_loading", "Ids are being loaded", {})

    def finish(self, seen: SeenIds) -> None:
        """Nothing more will be read."""
        known = {"ids": len(seen), "bytes": seen.byte_count, "horizon_ns": seen.horizon_ns}
        self._say("ids_loaded", "Ids loaded", known)

    def _say(self, event: str, text: str, more: dict[str, int]) -> None:
        seconds = round(self._clock.monotonic() - self._began, 1)
        state = {"event": event, "rows": self._rows, "total": self._total, "seconds": seconds}
        _log.info(text, extra={**state, **more})


def _load_explicit(store: Store, seen: SeenIds, progress: _Progress) -> None:
    """The newest days of EXPLICIT ids, in up to half of the memory."""
    room, since = seen.max_bytes // 2 // _EXPLICIT_BYTES, None
    days = store.query(
        f"SELECT toString(ingested_on), count() FROM {tables.EXPLICIT_IDS} "  # noqa: S608 - from tables.py
        "GROUP BY 1 ORDER BY 1 DESC"
    )
    for day, count in days:
        if count > room:
            seen.forget_explicit()
            break
        room, since = room - count, day
    if since is None:
        return
    sql = (
        "SELECT reinterpretAsUInt128(event_id), reinterpretAsUInt128(content) "  # noqa: S608 - a date
        f"FROM {tables.EXPLICIT_IDS} WHERE ingested_on >= '{since}'"
    )
    pieces: list[tuple[Words, Words, Words]] = []
    size = 0
    for batch in store.stream(sql):
        first, second = _words(batch.column(0))
        pieces.append((first, second, _words(batch.column(1))[0]))
        size += len(first)
        progress.add(len(first))
        if size >= seen.max_run_ids:
            seen.load_explicit(*(np.concatenate(column) for column in zip(*pieces, strict=True)))
            pieces, size = [], 0
    if pieces:
        seen.load_explicit(*(np.concatenate(column) for column in zip(*pieces, strict=True)))


def _load_timed(store: Store, seen: SeenIds, progress: _Progress, now_ns: int) -> None:
    """POINT and SPAN ids by time, newest first, while they fit; each slice is a run."""
    used = seen.byte_count
    sorted_last: Future[None] | None = None
    with ThreadPoolExecutor(1, "ids-load") as sorter:
        for one in _slices(_buckets(store, seen.max_run_ids), seen.max_run_ids):
            used += one.count * _TIMED_BYTES
            if used > seen.max_bytes:
                seen.forget_until(one.end * _NANO - 1)
                break
            if one.end * _NANO > now_ns + MAX_AHEAD_NS:
                seen.add(_read_with_times(store, one), 0, now_ns)
                progress.add(one.count)
                continue
            first, second = _read(store, one, progress)
            # One is sorted while the next is read.
            if sorted_last is not None:
                sorted_last.result()
            if len(first):
                time_range = (one.start * _NANO, one.end * _NANO - 1)
                sorted_last = sorter.submit(seen.load_timed, first, second, time_range)
        if sorted_last is not None:
            sorted_last.result()


def _buckets(store: Store, max_count: int) -> Iterator[_Slice]:
    """Numbers of events by hour, newest first; by second where an hour has more than `max_count`.

    The database is asked month by month.
    """
    months = store.query(
        f"SELECT _partition_id FROM {tables.EVENTS} GROUP BY 1 ORDER BY 1 DESC"  # noqa: S608 - from tables.py
    )
    for (month,) in months:
        for hour in _counts(store, _HOUR, f"WHERE _partition_id = '{month}'"):
            if hour.count > max_count:
                yield from _counts(store, 1, _during(hour))
            else:
                yield hour


def _counts(store: Store, seconds: int, where: str) -> list[_Slice]:
    """Numbers of events in intervals of so many seconds, newest first; none that is empty."""
    counted = store.query(
        f"SELECT intDiv(toUnixTimestamp64Nano(timestamp), {seconds * _NANO}), count() "  # noqa: S608 - numbers
        f"FROM {tables.EVENTS} {where} GROUP BY 1 ORDER BY 1 DESC"
    )
    return [_Slice(number * seconds, (number + 1) * seconds, count) for number, count in counted]


def _slices(buckets: Iterable[_Slice], max_count: int) -> Iterator[_Slice]:
    """Neighbouring buckets as one, while there are no more than `max_count` events in it."""
    current: _Slice | None = None
    for bucket in buckets:
        if current is not None and current.count + bucket.count <= max_count:
            current = _Slice(bucket.start, current.end, current.count + bucket.count)
            continue
        if current is not None:
            yield current
        current = bucket
    if current is not None:
        yield current


def _read(store: Store, one: _Slice, progress: _Progress) -> tuple[Words, Words]:
    first, second = np.empty(one.count, np.uint64), np.empty(one.count, np.uint64)
    size = 0
    sql = f"SELECT reinterpretAsUInt128(event_id) FROM {tables.EVENTS} {_during(one)}"  # noqa: S608 - numbers
    for batch in store.stream(sql):
        some_first, some_second = _words(batch.column(0))
        # The lowest bit is set for EXPLICIT ids, which are loaded, and ONCE ids, which nobody needs.
        is_timed = some_second & np.uint64(1) == 0
        end = size + int(np.count_nonzero(is_timed))
        first[size:end], second[size:end] = some_first[is_timed], some_second[is_timed]
        size = end
        progress.add(len(some_first))
    return first[:size], second[:size]


def _read_with_times(store: Store, one: _Slice) -> Ids:
    times: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = [np.zeros(0, np.int64)]
    words: list[tuple[Words, Words]] = [(np.zeros(0, np.uint64), np.zeros(0, np.uint64))]
    sql = (
        "SELECT reinterpretAsUInt128(event_id), toUnixTimestamp64Nano(timestamp) "  # noqa: S608 - numbers
        f"FROM {tables.EVENTS} {_during(one)}"
    )
    for batch in store.stream(sql):
        words.append(_words(batch.column(0)))
        times.append(batch.column(1).to_numpy())
    first, second = (np.concatenate(column) for column in zip(*words, strict=True))
    is_timed = second & np.uint64(1) == 0
    no_content = np.zeros(len(first), np.uint64)
    ids = Ids(first=first, second=second, time_ns=np.concatenate(times), content=no_content)
    return ids.take(is_timed)


def _during(one: _Slice) -> str:
    return (
        f"WHERE timestamp >= fromUnixTimestamp64Nano({one.start * _NANO}) "
        f"AND timestamp < fromUnixTimestamp64Nano({one.end * _NANO})"
    )


def _words(column: pa.Array) -> tuple[Words, Words]:
    """A column of UUIDs, read as UInt128 (each half has its bytes in reverse), as words of identities.

    As text or bytes they take the engine three times as long.
    """
    begin = column.offset * ID_BYTES
    data = memoryview(column.buffers()[1])[begin : begin + len(column) * ID_BYTES]
    pairs = np.frombuffer(data, np.uint64).reshape(-1, 2).byteswap()
    return pairs[:, 0], pairs[:, 1]
