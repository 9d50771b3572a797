"""Cells to spool, once per interval: what is in the spool is counted, what is not is kept."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from otel_metering._cells import CellBook
from otel_metering._config import Settings
from otel_metering._encode import (
    LOGS,
    METRICS,
    Interval,
    Limits,
    encode_events,
    encode_usage,
    resource_of,
)
from otel_metering._export import Sender, rest_forever
from otel_metering._guard import Problem, problems
from otel_metering._outbox import Outbox
from otel_metering.clock import Clock
from otel_metering.errors import UnavailableError

SERVICE_INSTANCE_ID = "service.instance.id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Edges:
    """Time and chance.

    Attributes:
        clock: Of all timestamps and pauses.
        new_id: A text that never was before.
        jitter: A random number in [0, 1).
    """

    clock: Clock
    new_id: Callable[[], str]
    jitter: Callable[[], float]


class Pipeline:
    """One configuration at work: a flusher and a sender.

    Attributes:
        settings: What it was made with.
        outbox: Its spools.
        sender: Empties the outbox.
    """

    def __init__(self, settings: Settings, book: CellBook, outbox: Outbox, edges: Edges) -> None:
        """Prepare; nothing runs before `start`.

        Raises:
            ConfigurationError: The CA certificates cannot be read.
        """
        self.settings = settings
        self.outbox = outbox
        self.sender = Sender(settings, outbox, clock=edges.clock, jitter=edges.jitter)
        self._book = book
        self._clock = edges.clock
        # An identity per pipeline, not only per process: its streams, and their intervals, are its own.
        self._resource = resource_of({**settings.resource, SERVICE_INSTANCE_ID: edges.new_id()})
        self._limits = Limits(max_points=settings.batch_size)
        self._read_until_ns = edges.clock.now_ns()
        self._lock = threading.RLock()
        self._is_flushing = False
        self._is_stopping = False
        self._is_closed = False
        self._is_abandoned = False
        self._thread = threading.Thread(target=self._run, name="otel-metering-flush", daemon=True)

    def start(self) -> None:
        """Start both threads."""
        self._thread.start()
        self.sender.start()

    def flush(self) -> bool:
        """Write everything recorded so far to the spool.

        Returns:
            Whether it is on disk; if not, it is still in memory.
        """
        with self._lock:
            # Closed: the cells are the next pipeline's to read. Flushing: this is a signal handler that
            # interrupted a flush of its own thread; a second reading now would count twice.
            if self._is_closed or self._is_flushing:
                return False
            self._is_flushing = True
            try:
                return self._flush()
            finally:
                self._is_flushing = False

    def stop(self, timeout_seconds: float) -> bool:
        """End both threads and flush what is left; the outbox stays open. False: it did not fit."""
        self._is_stopping = True
        self._book.pressure.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)
        with self._lock:
            is_flushed = self.flush()
            self._is_closed = True
        self.sender.stop(timeout_seconds)
        return is_flushed

    def abandon(self) -> frozenset[Path]:
        """In a forked child: do nothing any more; return the files this process must never open.

        Threads end with the fork, but gevent's greenlets go on in the child.
        """
        self._is_abandoned = self._is_stopping = self._is_closed = True
        self.sender.abandon()
        return self.outbox.abandon()

    def _run(self) -> None:
        while not self._is_stopping:
            self._book.pressure.wait(self.settings.flush_interval_seconds)
            self._book.pressure.clear()
            try:
                self.flush()
            except Exception as error:  # noqa: BLE001 -- top of the loop: a fault must not end flushing
                problems.report(Problem.INTERNAL_ERRORS, error)
        if self._is_abandoned:
            rest_forever()

    def _flush(self) -> bool:
        reading = self._book.read()
        interval = Interval(
            start_ns=self._read_until_ns,
            # The clock may have been set back; an interval never is, or two of them could overlap.
            end_ns=max(self._clock.now_ns(), self._read_until_ns + 1),
        )
        usage = encode_usage(reading.deltas, interval, self._resource, self._limits)
        events = encode_events(reading.events, self._resource, self._limits)
        requests = [(METRICS, body) for body in usage] + [(LOGS, body) for body in events]
        if requests and not self._put(requests):
            return False
        self._book.confirm(reading)
        self._read_until_ns = interval.end_ns
        self._book.tidy()
        return True

    def _put(self, requests: list[tuple[str, bytes]]) -> bool:
        try:
            self.outbox.put(requests)
        except UnavailableError as error:
            problems.report(Problem.FAILED_FLUSHES, f"usage stays in memory: {error}")
            return False
        problems.settle(Problem.FAILED_FLUSHES)
        self.sender.wake()
        return True
