"""Requests -> acknowledgements: decode, meter, admit, spool, and only then answer.

One thread does it, so that duplicates are decided in one place and in one order. Whatever arrived while
the last micro-batch was decoded and fsynced is the next one: under load many requests share one fsync,
and a lone request waits for nobody.
"""

import asyncio
import logging
import queue
import secrets
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from otel_metering.clock import Clock
from otel_metering.contract.event import UsageEvent
from otel_metering.contract.meter import Signal
from otel_metering.errors import InvalidUsageError, UnavailableError
from otel_metering.spool import Spool
from receiver.admit import Admitted, MicroBatch, Outcome
from receiver.identity import ID_BYTES
from receiver.metering import Metering
from receiver.seen import SeenIds
from receiver.usage import Sender

MAX_BATCH_BYTES: Final = 8 * 2**20
"""Bytes of requests in one micro-batch: some 75,000 points, a tenth of a second of work."""

MAX_BATCH_REQUESTS: Final = 1_024

_EVENT_BYTES: Final = 256
"""What one event of the JSON API counts as, in the bounds above."""

_log = logging.getLogger(__name__)


Answer = Outcome | Exception
"""What a request is answered with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One request on its way."""

    sender: Sender
    signal: Signal
    body: bytes = b""
    events: Sequence[UsageEvent] = ()

    @property
    def size(self) -> int:
        """Bytes it counts as."""
        return len(self.body) + _EVENT_BYTES * len(self.events)


@dataclass(slots=True)
class _Waiting:
    """A request, and who waits for its answer: a thread, or a task of an event loop."""

    work: Work
    future: "Future[Outcome] | asyncio.Future[Outcome]"
    answer: Answer | None = None


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
        pace: Callable[[], None],
        on_commit: Callable[[], None],
    ) -> None:
        """Put it together.

        Args:
            metering: Decides what is usage.
            seen: Every identity that was ever admitted.
            spool: Where what is admitted goes.
            clock: The time.
            max_queue_bytes: Bound on requests that wait to be decoded.
            pace: Called before each micro-batch; may wait a moment to slow senders down.
            on_commit: Called after each commit.
        """
        self._metering = metering
        self._seen = seen
        self._spool = spool
        # Entries ever appended, those that the spool held at start included: as the writer counts them.
        self._entry_number = spool.entry_count
        self._clock = clock
        self._max_queue_bytes = max_queue_bytes
        self._pace = pace
        self._on_commit = on_commit
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._queued_bytes = 0
        self._lock = threading.Lock()
        self._is_stopping = False
        # False when the spool has what the memory of ids may not have: only a restart, which rebuilds the
        # memory from the spool, makes it safe to admit anything again.
        self._is_exact = True
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)

    @property
    def is_exact(self) -> bool:
        """Whether it may admit; False: everything is refused until a restart."""
        return self._is_exact

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def submit(self, work: Work) -> "Future[Outcome]":
        """Queue a request; its future is done when its usage is durable, or it is refused.

        Raises:
            UnavailableError: The queue is full, or this is stopping; nothing was queued.
        """
        done: Future[Outcome] = Future()
        # From here on it will be worked on, even if its sender has gone away.
        done.set_running_or_notify_cancel()
        self._enqueue(_Waiting(work, done))
        return done

    async def request(self, work: Work) -> Outcome:
        """As `submit`, for an event loop: returns when its usage is durable.

        Raises:
            UnavailableError: See `submit`.
            InvalidUsageError: The request is refused as a whole.
        """
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._enqueue(_Waiting(work, done))
        return await done

    def _enqueue(self, waiting: _Waiting) -> None:
        size = waiting.work.size
        with self._lock:
            if self._is_stopping:
                raise UnavailableError("the receiver is stopping; send again to the next one")
            if self._queued_bytes + size > self._max_queue_bytes and self._queued_bytes:
                raise UnavailableError(
                    f"{self._queued_bytes} bytes of requests wait, and {self._max_queue_bytes} may; "
                    "send again in a second"
                )
            self._queued_bytes += size
            self._queue.put(waiting)

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
            taken = self._take()
            is_running = taken[-1] is not None
            batch = [waiting for waiting in taken if waiting is not None]
            self._pace()
            self._process_all(batch)
            _answer(batch)

    def _take(self) -> list[_Waiting | None]:
        """Wait for a request; return it and what else has come, in order. None: no more will."""
        waiting = self._queue.get()
        taken, size = [waiting], waiting.work.size if waiting else 0
        while waiting is not None and size < MAX_BATCH_BYTES and len(taken) < MAX_BATCH_REQUESTS:
            try:
                waiting = self._queue.get_nowait()
            except queue.Empty:
                break
            taken.append(waiting)
            size += waiting.work.size if waiting else 0
        with self._lock:
            self._queued_bytes -= size
        return taken

    def _process_all(self, batch: Sequence[_Waiting]) -> None:
        if not self._is_exact:
            _refuse(batch, "the memory of ids is not exact any more; restart the receiver")
            return
        if not self._seen.has_room:
            _refuse(batch, "the memory of ids is full of usage that the database does not have yet")
            return
        try:
            self._process(batch)
        except UnavailableError as error:
            # Ids were asked for in the database. Others may have to be too, so none is tried alone.
            _log.warning("Ids cannot be looked up", extra={"event": "lookup_refused"})
            _refuse(batch, str(error))
        except Exception as error:  # noqa: BLE001 - the top of a worker loop
            if len(batch) > 1:
                # Only the request that cannot be worked on may notice that it cannot.
                for waiting in batch:
                    self._process_all([waiting])
            else:
                _log.error("A request failed", exc_info=error, extra={"event": "ingest_failed"})
                refusal = UnavailableError(f"the receiver failed: {type(error).__name__}")
                for waiting in batch:
                    waiting.answer = refusal

    def _process(self, batch: Sequence[_Waiting]) -> None:
        micro_batch = MicroBatch(
            self._metering,
            self._seen,
            now_ns=self._clock.now_ns(),
            new_id=lambda: secrets.token_bytes(ID_BYTES),
        )
        # What was answered in an earlier attempt at this batch was refused for good.
        added = [one for one in batch if one.answer is None and _add(micro_batch, one)]
        admitted = micro_batch.admit()
        if admitted.entries:
            try:
                self._commit(admitted)
            except UnavailableError as error:
                _log.warning("The spool refuses", extra={"event": "spool_refused"})
                for waiting in added:
                    waiting.answer = error
                return
        for waiting, outcome in zip(added, admitted.outcomes, strict=True):
            waiting.answer = outcome

    def _commit(self, admitted: Admitted) -> None:
        self._is_exact = False
        try:
            self._spool.append(admitted.entries)
        except UnavailableError:
            self._is_exact = True  # it took all or none: none
            raise
        # Only now: an id that is remembered but not stored would destroy what is sent again.
        self._entry_number += len(admitted.entries)
        self._seen.add(admitted.ids, self._entry_number, self._clock.now_ns())
        self._is_exact = True
        self._on_commit()


def _refuse(batch: Sequence[_Waiting], why: str) -> None:
    """Answer whoever has no answer yet so that it sends again."""
    refusal = UnavailableError(why)
    for waiting in batch:
        waiting.answer = waiting.answer or refusal


def _add(micro_batch: MicroBatch, waiting: _Waiting) -> bool:
    work = waiting.work
    try:
        if work.signal is Signal.EVENT:
            micro_batch.add_events(work.events, work.sender)
        else:
            micro_batch.add_otlp(work.signal, work.body, work.sender)
    except InvalidUsageError as error:
        waiting.answer = error
        return False
    return True


def _answer(batch: Sequence[_Waiting]) -> None:
    """Tell everybody who waits; one call into each event loop, whatever the number of its requests."""
    of_loops: dict[asyncio.AbstractEventLoop, list[_Waiting]] = defaultdict(list)
    for waiting in batch:
        if isinstance(waiting.future, asyncio.Future):
            of_loops[waiting.future.get_loop()].append(waiting)
        else:
            _settle([waiting])
    for loop, some in of_loops.items():
        with suppress(RuntimeError):  # the loop has ended, and who waited with it
            loop.call_soon_threadsafe(_settle, some)


def _settle(batch: Sequence[_Waiting]) -> None:
    for waiting in batch:
        if waiting.future.done():
            continue  # a task that was cancelled: its sender has gone away
        if isinstance(waiting.answer, Outcome):
            waiting.future.set_result(waiting.answer)
        else:
            waiting.future.set_exception(waiting.answer or UnavailableError("no answer"))
