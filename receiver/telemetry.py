"""What the receiver counts of itself: each stage, in = out + refused by reason, and how long things take.

One `Telemetry` is handed to every stage. Edges add to it for each request, the other stages for each
micro-batch or batch; so one lock is enough. Numbers only grow; who reads them (`pipeline_stats`,
`exposition`, `instruments`) takes the differences it wants.

- `keys`, in requests with an API key: in = out (let through) + refused; `store.key_counts` counts them.
- `edge`, in requests: in = out (acknowledged) + refused (answered by an error, or left by its sender).
- `ingest`, in requests: requests_in = requests_out + requests_refused; out of the edge is out of here.
- `ingest`, in items, which are uses of one meter: in = out (accepted) + refused (duplicate, ignored, ...).
- `ingest`, in corrections of events: corrections_in = corrections_out + corrections_refused.
- `spool`, in rows: what was committed: usage, quarantine and corrections.
- `writer`, in rows, for each attempt: in = out (stored) + refused (the attempt failed; there will be another).
"""

import re
import threading
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from otel_metering.clock import Clock, SystemClock
from otel_metering.contract.meter import Signal
from otel_metering.errors import MeteringError
from receiver.admit import Outcome
from receiver.store.key_counts import Sample
from receiver.usage import Reason

BOUNDS: Final = tuple(2 ** (step / 2) for step in range(-20, 15))
"""Upper bounds of the buckets of a distribution, in seconds: 1 ms to 128 s, two for each doubling."""

MAX_KEYS: Final = 1_000
"""Keys that are counted one by one; those beyond are counted together, as `OTHER`."""

OTHER: Final = "other"
CANCELLED: Final = "cancelled"
INTERNAL: Final = "internal"

QUARANTINED: Final = "quarantined."
"""What the reason of a refused item begins with if the item is in quarantine."""


@dataclass(frozen=True, slots=True, order=True)
class Name:
    """One number: its stage, its name there, and labels as pairs sorted by name."""

    stage: str
    name: str
    labels: tuple[tuple[str, str], ...] = ()


class Distribution:
    """How often which duration was seen: fixed exponential buckets.

    Attributes:
        counts: For each bound how many were at most that (and above the bound before); last: beyond all.
        total: Sum of all, in seconds.
        peak: Largest since somebody read it, in seconds.
    """

    __slots__ = ("counts", "peak", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0
        self.peak = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        """Note that `seconds` was seen `count` times."""
        self.counts[bisect_left(BOUNDS, seconds)] += count
        self.total += seconds * count
        if seconds > self.peak:  # half the cost of max(), and on every request
            self.peak = seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Every number at one moment.

    Attributes:
        counters: Since the start.
        gauges: Now.
        distributions: Since the start: counts of the buckets, their sum, and the largest since the last
            reading that took the peaks.
    """

    counters: dict[Name, int]
    gauges: dict[Name, float]
    distributions: dict[Name, tuple[tuple[int, ...], float, float]]


class Telemetry:
    """The numbers. Any thread may call any method."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._counters: defaultdict[Name, int] = defaultdict(int)
        self._gauges: dict[Name, Callable[[], float]] = {}
        self._distributions: defaultdict[Name, Distribution] = defaultdict(Distribution)
        self._others: list[tuple[str, Callable[[], Iterable[Sample]]]] = []
        self._edges: dict[tuple[str, str], _Edge] = {}
        self._keys: set[str] = set()
        # Entries of the spool: when they were committed, by how many were until then.
        self._commits: deque[tuple[int, int]] = deque()
        self._committed_entries = 0
        self._dropped_entries = 0
        self._last_failed = False
        self.gauge("spool", "oldest_age", self._oldest_age)

    def add(self, stage: str, name: str, count: int = 1, **labels: str) -> None:
        """Count `count` more."""
        key = _name(stage, name, labels)
        with self._lock:
            self._counters[key] += count

    def gauge(self, stage: str, name: str, read: Callable[[], float], **labels: str) -> None:
        """From now on ask `read` for a number; it may be called in any thread, and must not wait."""
        key = _name(stage, name, labels)
        with self._lock:
            self._gauges[key] = read

    def also(self, stage: str, read: Callable[[], Iterable[Sample]]) -> None:
        """From now on ask `read` for the counters of a stage that counts by itself: name, labels, count."""
        self._others.append((stage, read))

    def request(self, transport: str, signal: Signal | None) -> "Request":
        """A request has come in; the caller says what became of it, and then `end`s it."""
        # By the plain text of the signal: the hash of an enum is a call of Python.
        name = str(signal) if signal else ""
        return Request(self._edges.get((transport, name)) or self._edge(transport, name))

    def answered(self, answers: Sequence[tuple[str, Outcome | Exception | None]]) -> None:
        """Requests have their answer.

        Args:
            answers: (key id of the sender, answer) of each.
        """
        counted: defaultdict[Name, int] = defaultdict(int)
        for key, answer in answers:
            if not isinstance(answer, Outcome):
                counted[_name("ingest", "requests_refused", {"reason": reason_of(answer)})] += 1
                continue
            counted[_REQUESTS_OUT] += 1
            for number, read in _COUNTED:
                counted[number] += read(answer)
            for reason, count in answer.reasons.items():
                counted[_refused(QUARANTINED + reason)] += count
            denied = answer.reasons[Reason.TENANT_NOT_ALLOWED]
            if denied:
                counted[_name("ingest", "tenant_refused", {"key_id": self._bounded(key)})] += denied
        with self._lock:
            self._counters[_REQUESTS_IN] += len(answers)
            for name, count in counted.items():
                if count or not name.labels:
                    self._counters[name] += count

    def committed(self, *, entries: int, rows: int) -> None:
        """The spool has `entries` more, with `rows` rows of usage and quarantine."""
        with self._lock:
            self._counters[_SPOOL_IN] += rows
            self._committed_entries += entries
            self._commits.append((self._committed_entries, self.clock.now_ns()))

    def found(self, *, entries: int, since_ns: int) -> None:
        """At the start the spool has `entries`, the oldest of them committed at `since_ns`."""
        with self._lock:
            self._committed_entries += entries
            self._commits.append((self._committed_entries, since_ns))

    def attempt(self, entries: int) -> "Attempt":
        """A batch of so many entries is tried: a context manager around all that may fail of it."""
        return Attempt(self, entries)

    def reloaded(self) -> None:
        """Other meters are in force."""
        self.add("ingest", "meters_reloads")

    def read(self, *, take_peaks: bool = False) -> Reading:
        """Every number; with `take_peaks` the largest durations begin again at zero."""
        with self._lock:
            gauges = dict(self._gauges)
            counters = dict(self._counters)
            distributions = {}
            for name, one in self._distributions.items():
                distributions[name] = (tuple(one.counts), one.total, one.peak)
                if take_peaks:
                    one.peak = 0.0
            for edge in self._edges.values():
                counters.update(edge.counters())
        # Outside of the lock: others may ask for it.
        for stage, others in list(self._others):
            counters |= {_name(stage, name, labels): count for name, labels, count in others()}
        return Reading(
            counters=counters,
            gauges={name: float(read()) for name, read in gauges.items()},
            distributions=distributions,
        )

    def _edge(self, transport: str, signal: str) -> "_Edge":
        with self._lock:
            latency = self._distributions[_name("edge", "ack_duration", {"transport": transport})]
            made = _Edge(transport, signal, latency, self._lock, self.clock.monotonic)
            return self._edges.setdefault((transport, signal), made)

    def _bounded(self, key_id: str) -> str:
        with self._lock:
            if key_id not in self._keys and len(self._keys) >= MAX_KEYS:
                return OTHER
            self._keys.add(key_id)
            return key_id

    def _oldest_age(self) -> float:
        with self._lock:
            while self._commits and self._commits[0][0] <= self._dropped_entries:
                self._commits.popleft()
            if not self._commits:
                return 0.0
            return max(self.clock.now_ns() - self._commits[0][1], 0) / 1e9

    def _settle_attempt(self, tried: "Attempt", error: BaseException | None) -> None:
        now_ms = self.clock.now_ns() // 1_000_000
        moments = list(tried.moments()) if error is None else []
        with self._lock:
            if self._last_failed:
                self._counters[_RETRIES] += 1
            self._last_failed = error is not None
            self._counters[_BATCHES if error is None else _FAILURES] += 1
            for table, rows in tried.tables:
                label = {"table": table.rpartition(".")[2]}
                self._counters[_name("writer", "in", label)] += rows.num_rows
                if error is None:
                    self._counters[_name("writer", "out", label)] += rows.num_rows
                else:
                    refused = _name("writer", "refused", {**label, "reason": reason_of(error)})
                    self._counters[refused] += rows.num_rows
            if error is None:
                self._dropped_entries += tried.entries
                for at_ms, count in moments:
                    self._distributions[_LAG].add(max(now_ms - at_ms, 0) / 1_000, count)


class Request:
    """One request at an edge; the first that is said of it counts."""

    __slots__ = ("_began", "_edge", "_is_open")

    def __init__(self, edge: "_Edge") -> None:
        self._edge = edge
        self._is_open = True
        self._began = edge.monotonic()
        with edge.lock:
            edge.arrived += 1

    def acknowledge(self) -> None:
        """What it brought is durable."""
        self._is_open = False
        edge = self._edge
        seconds = edge.monotonic() - self._began
        with edge.lock:
            edge.out += 1
            edge.latency.add(seconds)

    def refuse(self, error: BaseException) -> None:
        """It is answered by an error."""
        self._refuse(reason_of(error))

    def end(self) -> None:
        """If nothing was said: its sender has gone away."""
        if self._is_open:
            self._refuse(CANCELLED)

    def _refuse(self, reason: str) -> None:
        if self._is_open:
            self._is_open = False
            with self._edge.lock:
                self._edge.refused[reason] += 1


class Attempt:
    """One attempt to store a batch.

    Attributes:
        entries: Entries of the spool that are in it.
        tables: (table, rows) of each INSERT.
    """

    def __init__(self, telemetry: Telemetry, entries: int) -> None:
        self._telemetry = telemetry
        self.entries = entries
        self.tables: list[tuple[str, pa.Table]] = []
        self._moments: list[pa.ChunkedArray] = []

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._telemetry._settle_attempt(self, error)

    def add(self, table: str, rows: pa.Table, *, admitted_at: str = "ingested_at") -> pa.Table:
        """These rows, with a column of when they were admitted, go into `table`; returns them."""
        self.tables.append((table, rows))
        self._moments.append(rows[admitted_at])
        return rows

    def moments(self) -> Iterable[tuple[int, int]]:
        """(time of admission in ms, number of rows); an entry has one time, so there are few."""
        for column in self._moments:
            runs = pc.run_end_encode(column.combine_chunks().cast(pa.int64()))
            before = 0
            for at_ms, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
                yield at_ms, end - before
                before = end


class _Edge:
    """What one transport sees of one signal; guarded by `lock`, which is that of its `Telemetry`."""

    __slots__ = ("_labels", "arrived", "latency", "lock", "monotonic", "out", "refused")

    def __init__(
        self,
        transport: str,
        signal: str,
        latency: Distribution,
        lock: threading.Lock,
        monotonic: Callable[[], float],
    ) -> None:
        self.lock = lock
        self.monotonic = monotonic
        self._labels = {"transport": transport, "signal": signal}
        self.arrived = 0
        self.out = 0
        self.refused: defaultdict[str, int] = defaultdict(int)
        self.latency = latency

    def counters(self) -> dict[Name, int]:
        found = {
            _name("edge", "in", self._labels): self.arrived,
            _name("edge", "out", self._labels): self.out,
        }
        for reason, count in self.refused.items():
            found[_name("edge", "refused", {**self._labels, "reason": reason})] = count
        return found


def reason_of(error: BaseException | None) -> str:
    """The reason that a refusal is counted under: the name of the error, in snake case."""
    return _snake_case(type(error).__name__) if isinstance(error, MeteringError) else INTERNAL


@cache
def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name.removesuffix("Error")).lower()


def _name(stage: str, name: str, labels: Mapping[str, str]) -> Name:
    return Name(stage, name, tuple(sorted(labels.items())))


def _refused(reason: str) -> Name:
    return _name("ingest", "refused", {"reason": reason})


_REQUESTS_IN: Final = Name("ingest", "requests_in")
_REQUESTS_OUT: Final = Name("ingest", "requests_out")
_BEFORE: Final = (("reason", "corrected_before"),)
_COUNTED: Final[tuple[tuple[Name, Callable[[Outcome], int]], ...]] = (
    (Name("ingest", "in"), lambda outcome: outcome.uses),
    (Name("ingest", "out"), lambda outcome: outcome.accepted),
    # Why an item went no further; quarantine has reasons of its own.
    (_refused("duplicate"), lambda outcome: outcome.duplicates),
    (_refused("unchanged"), lambda outcome: outcome.unchanged),
    (_refused("ignored"), lambda outcome: outcome.ignored),
    (_refused("rejected"), lambda outcome: len(outcome.rejected)),
    (Name("ingest", "corrections_in"), lambda one: one.corrected + one.corrected_before),
    (Name("ingest", "corrections_out"), lambda outcome: outcome.corrected),
    (Name("ingest", "corrections_refused", _BEFORE), lambda outcome: outcome.corrected_before),
)
_SPOOL_IN: Final = Name("spool", "in")
_BATCHES: Final = Name("writer", "batches")
_FAILURES: Final = Name("writer", "failures")
_RETRIES: Final = Name("writer", "retries")
_LAG: Final = Name("writer", "lag")
