"""Cells to spool, once per interval: what is in the spool is counted, what is not is kept."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from otel_metering._cell_file import CellFile, Header
from otel_metering._cells import CellBook, Event, Reading, Series, slot_of
from otel_metering._config import Settings
from otel_metering._encode import (
    LOGS,
    METRICS,
    Interval,
    Limits,
    encode_events,
    encode_usage,
    forget_idle,
    resource_of,
)
from otel_metering._export import Sender, rest_forever
from otel_metering._global_meters import global_counters, mirror
from otel_metering._guard import Problem, guarded, problems
from otel_metering._modes import AnyOutbox
from otel_metering._outbox import Outbox
from otel_metering._parcel import gate
from otel_metering._recovery import CELLS, spooled
from otel_metering.clock import Clock
from otel_metering.errors import ConfigurationError, UnavailableError

_HELD_ROUNDS: Final = 100
"""Of a millisecond each, in which threads finish the additions they are in the middle of."""

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

    def __init__(self, settings: Settings, book: CellBook, outbox: AnyOutbox, edges: Edges) -> None:
        """Prepare; nothing runs before `start`.

        Raises:
            ConfigurationError: The receiver cannot be reached as `settings` say.
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
        self._cells = self._new_cell_file(outbox)
        self._pause = threading.Event()
        self._is_stopping = False
        self._is_closed = False
        self._is_abandoned = False
        self._thread = threading.Thread(target=self._run, name="otel-metering-flush", daemon=True)

    def take_cells(self) -> None:
        """Keep the cells of this process in a file from here on, if the settings say so."""
        if self._cells is not None:
            try:
                self.outbox.open()  # its lock is what says that the process lives
            except ConfigurationError as error:
                problems.report(Problem.UNMAPPED_SERIES, error)
                return
        self._book.map_into(self._cells)

    def start(self) -> None:
        """Start both threads."""
        self._thread.start()
        self.sender.start()

    def flush(self) -> bool:
        """Write everything recorded so far to the spool.

        Returns:
            Whether it is on disk; if not, it is still in memory.
        """
        if gate.is_mine():
            # This is a finalizer in the middle of a spool's own work. Another thread's flush may wait for
            # that spool, and this thread would wait for that flush.
            return False
        book = self._book
        with book.lock:
            # Closed: the cells are the next pipeline's to read. Flushing: this is a signal handler that
            # interrupted a flush of its own thread; a second reading now would count twice.
            if self._is_closed or book.is_flushing:
                return False
            book.is_flushing = True
            try:
                return self._flush()
            finally:
                book.is_flushing = False

    def write_event(self, event: Event) -> bool:
        """Put `event` on disk before this returns.

        Returns:
            False: it is in memory, because the disk refused it, there is none, or this is a signal handler
            or finalizer that interrupted a use of the spool; a flush follows at once.
        """
        if gate.is_mine() or self.settings.transport_mode == "global":
            self._book.add_event(event)
            self._book.pressure.set()
            return False
        if self._put(
            [(LOGS, body) for body in encode_events([event], self._resource, self._limits)]
        ):
            if self.settings.transport_mode == "mirror":
                with guarded:
                    self._mirror({}, [event])
            return True
        self._book.add_event(event)
        return False

    def stop(self, timeout_seconds: float) -> bool:
        """End both threads and flush what is left; the outbox stays open.

        Returns:
            False: it did not fit. It is still in memory, or in the file of the cells.
        """
        self._is_stopping = True
        self._book.pressure.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)
        is_flushed = self._flush_last()
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
            try:
                self.flush()
            except Exception as error:  # noqa: BLE001 -- top of the loop: a fault must not end flushing
                problems.report(Problem.INTERNAL_ERRORS, error)
        if self._is_abandoned:
            rest_forever()

    def _flush(self) -> bool:
        now_ns = self._clock.now_ns()
        reading = self._book.read(self._cells)
        if self.settings.transport_mode == "global":
            self._book.confirm(reading)  # first: at most once
            with guarded:
                global_counters.add(reading.deltas, reading.events)
            self._book.tidy()
            return True
        interval = Interval(
            start_ns=self._read_until_ns,
            # The clock may have been set back; an interval never is, or two of them could overlap.
            end_ns=max(now_ns, self._read_until_ns + 1),
        )
        usage = encode_usage(reading.deltas, interval, self._resource, self._limits)
        events = encode_events(reading.events, self._resource, self._limits)
        requests = [(METRICS, body) for body in usage] + [(LOGS, body) for body in events]
        if requests:
            if not self._put(requests, self._mark(reading, interval.end_ns)):
                return False
            if self._cells is not None:
                self._cells.commit()
        self._book.confirm(reading)
        self._read_until_ns = interval.end_ns
        if self.settings.transport_mode == "mirror":
            with guarded:
                self._mirror(reading.deltas, reading.events)
        if self._book.tidy():
            forget_idle()
        if self._cells is not None:
            self._cells.tick(alive_ns=now_ns, read_until_ns=interval.end_ns)
        return True

    def _flush_last(self) -> bool:
        """Flush, and leave no usage behind that only a file of cells has, or that it has twice."""
        book, cells = self._book, self._cells
        if cells is not None:
            if book.is_kept_in(cells):
                book.map_into(None)
            for _ in range(_HELD_ROUNDS):
                if not book.is_held(cells):
                    break
                self._pause.wait(0.001)
        with book.lock:
            is_flushed = self.flush()
            self._is_closed = True
            if cells is not None:
                if not is_flushed:
                    book.leave_to(cells)
                cells.close(delete=is_flushed)
        return is_flushed

    def _mirror(self, deltas: Mapping[Series, int], events: Sequence[Event]) -> None:
        mirror.add(deltas, events, max_series=self.settings.max_series_per_meter)

    def _mark(self, reading: Reading, read_until_ns: int) -> list[tuple[bytes, bytes]]:
        """What makes `reading` read once it is in the spool."""
        cells = self._cells
        if cells is None:
            return []
        flush = cells.mark(zip(map(slot_of, reading.cells), reading.totals, strict=True))
        return [(CELLS, spooled(flush, read_until_ns))]

    def _new_cell_file(self, outbox: AnyOutbox) -> CellFile | None:
        settings = self.settings
        # Without a disk there is no file either.
        if not (settings.keeps_usage_at_once and isinstance(outbox, Outbox)):
            return None
        header = Header(
            resource=self._resource.SerializeToString(),
            read_until_ns=self._read_until_ns,
            flush_interval_ns=round(settings.flush_interval_seconds * 1e9),
        )
        return CellFile(outbox.cells_path, header)

    def _put(
        self,
        requests: list[tuple[str, bytes]],
        states: Sequence[tuple[bytes, bytes]] = (),
    ) -> bool:
        try:
            self.outbox.put(requests, states)
        except UnavailableError as error:
            problems.report(Problem.FAILED_FLUSHES, f"usage stays in memory: {error}")
            return False
        problems.settle(Problem.FAILED_FLUSHES)
        self.sender.wake()
        return True
