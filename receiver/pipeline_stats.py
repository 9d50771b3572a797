"""The receiver's numbers -> `metering.pipeline_stats`, every ten seconds, and at the end.

It has a thread of its own, and nothing waits for it: a database that fails or hangs costs intervals of
this table, never usage. What could not be written is tried again with its token, so it is there once.
"""

import logging
import secrets
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

import pyarrow as pa

from otel_metering.errors import MeteringError
from receiver.store import tables
from receiver.store.client import Store
from receiver.telemetry import BOUNDS, Name, Reading, Telemetry

INTERVAL_SECONDS: Final = 10.0

MAX_WAITING: Final = 30
"""Intervals that wait for a database which fails: five minutes; older ones are lost, and counted."""

STOP_SECONDS: Final = 5.0
"""How long a stop waits for the last interval."""

QUANTILES: Final = (("p50", 0.50), ("p95", 0.95), ("p99", 0.99))

_log = logging.getLogger(__name__)

Row = tuple[Name, str, float]
"""What, which statistic of it, how much."""


class PipelineStats:
    """Writes what `telemetry` has counted."""

    def __init__(self, telemetry: Telemetry, store: Store, instance: str) -> None:
        """Begin to count here.

        Args:
            telemetry: The numbers.
            store: Where they go.
            instance: Name of this receiver among others.
        """
        self._telemetry = telemetry
        self._store = store
        self._instance = instance
        self._before = telemetry.read(take_peaks=True)
        self._waiting: deque[tuple[str, pa.Table]] = deque()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pipeline-stats", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write the last interval, if that does not take long, and end. Idempotent."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)

    def write(self) -> None:
        """Write what was counted since the last time, and what still waits.

        Raises:
            MeteringError: The database did not take it; it waits.
        """
        now = self._telemetry.read(take_peaks=True)
        rows = list(interval(self._before, now))
        self._before = now
        table = _to_table(rows, self._telemetry.clock.now_ns() // 1_000_000, self._instance)
        self._waiting.append((secrets.token_hex(16), table))
        if len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()
            self._telemetry.add("stats", "lost")
        while self._waiting:
            token, table = self._waiting[0]
            self._store.insert(tables.PIPELINE_STATS, table, token=token)
            self._waiting.popleft()

    def _run(self) -> None:
        is_stopping = False
        while not is_stopping:
            is_stopping = self._stopping.wait(INTERVAL_SECONDS)
            try:
                self.write()
            except MeteringError as error:
                _log.warning("Statistics wait: %s", error, extra={"event": "pipeline_stats_failed"})
            except Exception as error:  # noqa: BLE001 - the top of a worker loop
                _log.error(
                    "Statistics failed", exc_info=error, extra={"event": "pipeline_stats_failed"}
                )


def interval(before: Reading, after: Reading) -> Iterator[Row]:
    """What happened between two readings; a counter that stood still has no row."""
    for name, count in sorted(after.counters.items()):
        grown = count - before.counters.get(name, 0)
        if grown:
            yield name, "delta", float(grown)
    for name, value in sorted(after.gauges.items()):
        yield name, "value", value
    for name, (counts, total, peak) in sorted(after.distributions.items()):
        earlier, earlier_total, _ = before.distributions.get(name, ((0,) * len(counts), 0.0, 0.0))
        grown_counts = [now - then for now, then in zip(counts, earlier, strict=True)]
        count = sum(grown_counts)
        if count:
            yield name, "count", float(count)
            yield name, "sum", total - earlier_total
            yield name, "max", peak
            for stat, share in QUANTILES:
                yield name, stat, quantile(grown_counts, share, peak)


def quantile(counts: Sequence[int], share: float, peak: float) -> float:
    """The duration that `share` of all do not exceed, in seconds: linear within its bucket.

    Args:
        counts: Of each bucket; not all are zero.
        share: 0 < share <= 1.
        peak: The largest duration.
    """
    rank, seen = share * sum(counts), 0
    for place, count in enumerate(counts):
        if count and seen + count >= rank:
            low = BOUNDS[place - 1] if place else 0.0
            high = BOUNDS[place] if place < len(BOUNDS) else peak
            return min(low + (high - low) * (rank - seen) / count, peak)
        seen += count
    return peak


def _to_table(rows: Sequence[Row], at_ms: int, instance: str) -> pa.Table:
    labels = [[pair for pair in name.labels if pair[0] != "reason"] for name, _, _ in rows]
    at = pa.repeat(pa.scalar(at_ms, pa.int64()), len(rows)).cast(pa.timestamp("ms", "UTC"))
    return pa.table(
        {
            "at": at,
            "instance": pa.repeat(instance, len(rows)),
            "stage": pa.array([name.stage for name, _, _ in rows], pa.string()),
            "name": pa.array([name.name for name, _, _ in rows], pa.string()),
            "stat": pa.array([stat for _, stat, _ in rows], pa.string()),
            "reason": pa.array(
                [dict(name.labels).get("reason", "") for name, _, _ in rows], pa.string()
            ),
            "labels": pa.array(labels, pa.map_(pa.string(), pa.string())),
            "value": pa.array([value for _, _, value in rows], pa.float64()),
        }
    )
