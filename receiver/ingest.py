"""Requests -> acknowledgements: decode, meter, admit, spool, and only then answer.

One thread does it, so that duplicates are decided in one place and in one order. Whatever arrived while
the last micro-batch was decoded and fsynced is the next one: under load many requests share one fsync,
and a lone request waits for nobody.
"""

import logging
import queue
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

from otel_metering.clock import Clock
from otel_metering.contract.event import UsageEvent
from otel_metering.contract.meter import Signal
from otel_metering.errors import InvalidUsageError, UnavailableError
from otel_metering.spool import Spool
from receiver.admit import MicroBatch, Outcome, Sender
from receiver.identity import ID_BYTES, SeenIds
from receiver.metering import Metering

MAX_BATCH_BYTES: Final = 8 * 2**20
"""Bytes of requests in one micro-batch: some 75,000 points, a tenth of a second of work."""

MAX_BATCH_REQUESTS: Final = 1_024

_EVENT_BYTES: Final = 256
"""What one event of the JSON API counts as, in the bounds above."""

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Work:
    """One request on its way; `done` gets its outcome, or the error that it is answered with."""

    sender: Sender
    signal: Signal
    body: bytes = b""
    events: Sequence[UsageEvent] = ()
    done: "Future[Outcome]" = field(default_factory=Future)

    @property
    def size(self) -> int:
        """Bytes it counts as."""
        return len(self.body) + _EVENT_BYTES * len(self.events)


class Ingest:
    """The only writer of the spool."""

    def __init__(
        self,
        *,
        metering: Metering,
        seen: SeenIds,
        spool: Spool,
        clock: Clock,
        max_queue_bytes: int,
        on_commit: Callable[[], None],
    ) -> None:
        self._metering = metering
        self._seen = seen
        self._spool = spool
        self._clock = clock
        self._max_queue_bytes = max_queue_bytes
        self._on_commit = on_commit
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._queued_bytes = 0
        self._lock = threading.Lock()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def submit(self, work: Work) -> "Future[Outcome]":
        """Queue a request; its future is done when its usage is durable, or it is refused.

        Raises:
            UnavailableError: The queue is full, or this is stopping; nothing was queued.
        """
        with self._lock:
            if self._is_stopping:
                raise UnavailableError("the receiver is stopping; send again to the next one")
            if self._queued_bytes + work.size > self._max_queue_bytes and self._queued_bytes:
                raise UnavailableError(
                    f"{self._queued_bytes} bytes of requests wait, and {self._max_queue_bytes} may; "
                    "send again in a second"
                )
            # From here on it will be worked on, even if its sender has gone away.
            work.done.set_running_or_notify_cancel()
            self._queued_bytes += work.size
            self._queue.put(work)
        return work.done

    def stop(self) -> None:
        """Refuse new requests, finish those that were queued, end. Idempotent."""
        with self._lock:
            is_first, self._is_stopping = not self._is_stopping, True
        if is_first:
            self._queue.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        is_running = True
        while is_running:
            works = self._take()
            is_running = works[-1] is not None
            batch = [work for work in works if work is not None]
            self._process_all(batch)

    def _process_all(self, batch: Sequence[Work]) -> None:
        try:
            self._process(batch)
        except Exception as error:  # noqa: BLE001 - the top of a worker loop
            if len(batch) > 1:
                # Only the request that cannot be worked on may notice that it cannot.
                for work in batch:
                    self._process_all([work])
            else:
                _log.error("A request failed", exc_info=error, extra={"event": "ingest_failed"})
                _refuse(batch, UnavailableError(f"the receiver failed: {type(error).__name__}"))

    def _take(self) -> list[Work | None]:
        """Wait for a request; return it and what else has come, in order. None: no more will."""
        work = self._queue.get()
        works, size = [work], work.size if work else 0
        while work is not None and size < MAX_BATCH_BYTES and len(works) < MAX_BATCH_REQUESTS:
            try:
                work = self._queue.get_nowait()
            except queue.Empty:
                break
            works.append(work)
            size += work.size if work else 0
        with self._lock:
            self._queued_bytes -= size
        return works

    def _process(self, works: Sequence[Work]) -> None:
        if not works:
            return
        batch = MicroBatch(
            self._metering,
            self._seen,
            now_ns=self._clock.now_ns(),
            new_id=lambda: secrets.token_bytes(ID_BYTES),
        )
        added = [work for work in works if not work.done.done() and self._add(batch, work)]
        admitted = batch.admit()
        if admitted.entries:
            try:
                self._spool.append(admitted.entries)
            except UnavailableError as error:
                _log.warning("The spool refuses", extra={"event": "spool_refused"})
                _refuse(added, error)
                return
            # Only now: an id that is remembered but not stored would destroy what is sent again.
            self._seen.add(*admitted.ids)
            self._on_commit()
        for work, outcome in zip(added, admitted.outcomes, strict=True):
            work.done.set_result(outcome)

    @staticmethod
    def _add(batch: MicroBatch, work: Work) -> bool:
        try:
            if work.signal is Signal.EVENT:
                batch.add_events(work.events, work.sender)
            else:
                batch.add_otlp(work.signal, work.body, work.sender)
        except InvalidUsageError as error:
            work.done.set_exception(error)
            return False
        return True


def _refuse(works: Sequence[Work], error: UnavailableError) -> None:
    for work in works:
        if not work.done.done():
            work.done.set_exception(error)
