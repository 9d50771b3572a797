"""Cumulative points -> increases: counted once, whatever their order and however often they come.

The rule (metrics data model, "Resets and Gaps"), for each series and start time:

- usage is the increase of the maximum. An older or repeated point adds nothing; another start time is a
  reset, and counts from zero.
- start == time is an unknown start: that point counts 0. If it comes late, what was counted of the total
  before it is taken back, at the time at which it was counted.
- without a start time (0), points are compared in the order of their times: the first counts 0, and a
  value that falls is a reset. A point that is not the latest adds nothing.
- a value that falls at a later time, under one start, is a conflict: two writers share a stream.

`_advance` is the rule. Points that are simply the next of their series, nearly all, are advanced together.

Correctness does not depend on the cache: what is not in it is read from the spool, where states change in
the same transaction as the events.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from receiver.identity import ID_BYTES, Words, siphash, to_bytes, to_words
from receiver.quantity import NANO, Ints

Bools = NDArray[np.bool_]

MAX_CACHED_STATES: Final = 500_000
"""States kept in memory; some 200 bytes each."""

_STATE: Final = np.dtype(
    [
        ("whole", "<i8"),
        ("nano", "<i8"),
        ("counts", "<i8"),
        ("counted_ns", "<i8"),
        ("latest_ns", "<i8"),
        ("is_based", "<i8"),
    ]
)
"""A state as it is stored: the maximum, its measurements, the time at which its first increase was counted,
the time at which it was reached (without a start time: of the latest point), and whether an unknown start was seen."""

LoadStates = Callable[[Sequence[bytes]], Mapping[bytes, bytes]]
"""Key -> stored state, of those keys that have one; raises UnavailableError."""


@dataclass(slots=True, kw_only=True)
class Cumulative:
    """Cumulative points, one element each.

    Attributes:
        first: First half of the key: series and start time.
        second: Second half of it.
        start_ns: Start time; 0: none.
        time_ns: Time.
        whole: Value so far; with `nano`, see `receiver.quantity`.
        nano: Billionths of the value.
        counts: Measurements so far; negative: the point does not say, it is a plain number.
    """

    first: Words
    second: Words
    start_ns: Ints
    time_ns: Ints
    whole: Ints
    nano: Ints
    counts: Ints


class TakenBack(NamedTuple):
    """What was counted before the first point of an unknown start came: it does so when point `place` comes."""

    place: int
    time_ns: int
    whole: int
    nano: int
    counts: int


@dataclass(slots=True, kw_only=True)
class Increases:
    """What points add: an element for each of them, in their order.

    Attributes:
        whole: Increase of the value.
        nano: Billionths of it.
        counts: Increase of the measurements.
        is_event: Whether it adds something, or is the first of an unknown start.
        is_conflict: Whether the value fell; it adds nothing.
        taken_back: Negative increases, at times of their own.
        states: (key, state) to store together with the events.
    """

    whole: Ints
    nano: Ints
    counts: Ints
    is_event: Bools
    is_conflict: Bools
    taken_back: list[TakenBack]
    states: list[tuple[bytes, bytes]]


class Accumulators:
    """How far each cumulative series was counted."""

    def __init__(self, load: LoadStates, max_cached: int = MAX_CACHED_STATES) -> None:
        self._load = load
        self._max_cached = max_cached
        self._cache: dict[bytes, bytes] = {}

    def increases(self, points: Cumulative) -> Increases:
        """What `points` add to what was counted. Changes nothing: `remember` does, after the commit.

        Raises:
            UnavailableError: The states cannot be read.
        """
        joined, count = to_bytes(points.first, points.second), len(points.first)
        keys = [joined[i : i + ID_BYTES] for i in range(0, count * ID_BYTES, ID_BYTES)]
        states = self._states_of(keys)
        repeated = {key for key, number in Counter(keys).items() if number > 1}
        is_single = np.array([key not in repeated for key in keys], np.bool_)
        before = np.frombuffer(b"".join([states.get(key, _NOTHING) for key in keys]), _STATE)
        added, is_plain = _advance_plain(points, before, is_single)
        new = dict(zip(_at(keys, is_plain), _encoded(points, before, is_plain), strict=True))
        rest = np.flatnonzero(~is_plain)
        # In the order of their times; of one time, the smaller first.
        order = np.lexsort((points.nano[rest], points.whole[rest], points.time_ns[rest]))
        for i in rest[order].tolist():
            state = new.get(keys[i]) or states.get(keys[i])
            new[keys[i]] = _advance(i, points, state, added)
        added.states = [(key, state) for key, state in new.items() if states.get(key) != state]
        return added

    def remember(self, states: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep states that are on disk now."""
        if len(self._cache) + len(states) > self._max_cached:
            self._cache.clear()
        self._cache.update(states)

    def _states_of(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        known = {key: self._cache[key] for key in keys if key in self._cache}
        missing = list({key for key in keys if key not in known})
        if missing:
            known.update(self._load(missing))
        return known


_NOTHING: Final = bytes(_STATE.itemsize)


def state_key(series_key: bytes, start_ns: int) -> bytes:
    """The key of one state: `Points.cumulative` makes those of whole columns."""
    first, second = to_words(series_key)
    return to_bytes(*siphash(first, second, [np.array([start_ns]).view(np.uint64)]))


def encode_state(
    value: tuple[int, int], *, counts: int, counted_ns: int, latest_ns: int, is_based: bool
) -> bytes:
    """A state as it is stored; `value` is (whole, nano)."""
    return np.array([(*value, counts, counted_ns, latest_ns, is_based)], _STATE).tobytes()


def _advance_plain(
    points: Cumulative, before: NDArray[np.void], is_single: Bools
) -> tuple[Increases, Bools]:
    """The increases of points that are simply the next of their series, and which those are."""
    whole, nano = points.whole - before["whole"], points.nano - before["nano"]
    borrows = nano < 0
    whole, nano = whole - borrows, nano + borrows * NANO
    counts = np.where(points.counts < 0, 0, points.counts - before["counts"])
    is_plain = (
        is_single
        & (points.start_ns != 0)
        & (points.start_ns != points.time_ns)
        & (whole >= 0)
        & (counts >= 0)
    )
    grows = (whole != 0) | (nano != 0) | (counts != 0)
    increases = Increases(
        whole=np.where(is_plain, whole, 0),
        nano=np.where(is_plain, nano, 0),
        counts=np.where(is_plain, counts, 0),
        is_event=is_plain & grows,
        is_conflict=np.zeros(len(whole), np.bool_),
        taken_back=[],
        states=[],
    )
    return increases, is_plain


def _encoded(points: Cumulative, before: NDArray[np.void], is_plain: Bools) -> list[bytes]:
    """The states after those points that are the next of their series."""
    after = before[is_plain].copy()
    time_ns = points.time_ns[is_plain]
    after["whole"], after["nano"] = points.whole[is_plain], points.nano[is_plain]
    after["counts"] = np.maximum(after["counts"], points.counts[is_plain])
    grows = after != before[is_plain]
    after["counted_ns"] = np.where(after["counted_ns"] == 0, time_ns, after["counted_ns"])
    after["latest_ns"] = np.where(
        grows, np.maximum(after["latest_ns"], time_ns), after["latest_ns"]
    )
    joined, size = after.tobytes(), _STATE.itemsize
    return [joined[i : i + size] for i in range(0, len(joined), size)]


@dataclass(slots=True)
class _State:
    """One state; `value` in billionths."""

    value: int
    counts: int
    counted_ns: int
    latest_ns: int
    is_based: bool

    @classmethod
    def of(cls, encoded: bytes) -> "_State":
        whole, nano, counts, counted_ns, latest_ns, based = np.frombuffer(encoded, _STATE)[0].item()
        return cls(whole * NANO + nano, counts, counted_ns, latest_ns, bool(based))

    def encoded(self) -> bytes:
        return encode_state(
            divmod(self.value, NANO),
            counts=self.counts,
            counted_ns=self.counted_ns,
            latest_ns=self.latest_ns,
            is_based=self.is_based,
        )


def _advance(i: int, points: Cumulative, encoded: bytes | None, added: Increases) -> bytes:
    """Put what point `i` adds into `added`; returns the state after it."""
    value = int(points.whole[i]) * NANO + int(points.nano[i])
    counts, time_ns = int(points.counts[i]), int(points.time_ns[i])
    start_ns = int(points.start_ns[i])
    is_unknown = start_ns in (0, time_ns)
    if encoded is None and is_unknown:
        added.is_event[i] = True
        return _State(value, max(counts, 0), time_ns, time_ns, is_based=True).encoded()
    state = _State.of(encoded or _NOTHING)
    counts = state.counts if counts < 0 else counts
    if start_ns == 0:
        if time_ns > state.latest_ns:
            is_reset = value < state.value or counts < state.counts
            _add(i, added, *((value, counts) if is_reset else _above(state, value, counts)))
            state.value, state.counts, state.latest_ns = value, counts, time_ns
    elif is_unknown and not state.is_based:
        before = state.value, state.counts
        state.value, state.counts = max(state.value, value), max(state.counts, counts)
        state.is_based = True
        lost = state.value - value - before[0], state.counts - counts - before[1]
        added.taken_back.append(TakenBack(i, state.counted_ns, *divmod(lost[0], NANO), lost[1]))
    elif value < state.value and time_ns > state.latest_ns:
        added.is_conflict[i] = True
    else:
        top = max(value, state.value), max(counts, state.counts)
        if top != (state.value, state.counts):
            state.latest_ns = max(state.latest_ns, time_ns)
        _add(i, added, *_above(state, *top))
        state.value, state.counts = top
        state.counted_ns = state.counted_ns or time_ns
    return state.encoded()


def _above(state: _State, value: int, counts: int) -> tuple[int, int]:
    return value - state.value, counts - state.counts


def _add(i: int, added: Increases, value: int, counts: int) -> None:
    added.whole[i], added.nano[i] = divmod(value, NANO)
    added.counts[i] = counts
    added.is_event[i] = value != 0 or counts != 0


def _at(items: Sequence[bytes], mask: Bools) -> list[bytes]:
    return [items[i] for i in np.flatnonzero(mask).tolist()]
