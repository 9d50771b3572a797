"""Requests -> acknowledgements: decode, meter, admit, spool, and only then answer.

One thread does it, so that duplicates are decided in one place and in one order. Whatever arrived while
the last micro-batch was decoded and fsynced is the next one: under load many requests share one fsync,
and a lone request waits for nobody. What cannot be taken is refused at once, for the sender to send again.
"""

import asyncio
import logging
import secrets
import shutil
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
from receiver.corrections import Corrections, taken_back
from receiver.cumulative import Accumulators
from receiver.fair_queue import FairQueue
from receiver.identity import ID_BYTES
from receiver.metering import Metering
from receiver.rate_limit import RateLimit
from receiver.rows import EventColumns
from receiver.seen import SeenIds
from receiver.store.corrections import Correction
from receiver.telemetry import Telemetry
from receiver.usage import Sender

MAX_BATCH_BYTES: Final = 8 * 2**20
"""Bytes of requests in one micro-batch: some 75,000 points, a tenth of a second of work."""

MAX_BATCH_REQUESTS: Final = 1_024

_EVENT_BYTES: Final = 256
"""What one event of the JSON API, or a correction, counts as, in the bounds above."""

_log = logging.getLogger(__name__)


Answer = Outcome | Exception
"""What a request is answered with."""

OnAdmitted = Callable[[int, Sequence[EventColumns]], None]
"""Told the number of the last entry in the spool, and the usage in the entries since the call before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One request on its way."""

    sender: Sender
    signal: Signal
    body: bytes = b""
    events: Sequence[UsageEvent] = ()
    correction: Correction | None = None

    @property
    def size(self) -> int:
        """Bytes it counts as."""
        events = len(self.events) + (self.correction is not None)
        return len(self.body) + _EVENT_BYTES * events


@dataclass(slots=True)
class _Waiting:
    """A request, and who waits for its answer: a thread, or a task of an event loop."""

    work: Work
    future: "Future[Outcome] | asyncio.Future[Outcome]"
    answer: Answer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds the intake.

    Attributes:
        max_queue_bytes: Requests that wait to be decoded.
        max_key_bytes_per_second: What one API key may send; 0: anything.
        min_free_disk_bytes: Below it nothing is taken, so that what was taken can still be worked on.
    """

    max_queue_bytes: int
    max_key_bytes_per_second: int = 0
    min_free_disk_bytes: int = 0


class Ingest:
    """The only writer of the spool."""

    def __init__(
        self,
        *,
        metering: Metering,
        seen: SeenIds,
        spool: Spool,
        clock: Clock,
        limits: Limits,
        pace: Callable[[], None],
        on_commit: Callable[[], None],
        corrections: Corrections | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        """Put it together.

        Args:
            metering: Decides what is usage.
            seen: Every identity that was ever admitted.
            spool: Where what is admitted goes.
            clock: The time.
            limits: What may be taken.
            pace: Called before each micro-batch; may wait a moment to slow senders down.
            on_commit: Called after each commit.
            corrections: Every event that was ever corrected.
            telemetry: Counts what becomes of requests and items.
        """
        self._metering = metering
        self._seen = seen
        self._accumulators = Accumulators(spool.states)
        self._spool = spool
        self._clock = clock
        self._limits = limits
        self._pace = pace
        self._on_commit = on_commit
        self._corrections = Corrections() if corrections is None else corrections
        self._on_admitted: OnAdmitted | None = None
        self._queue: FairQueue[_Waiting] = FairQueue(limits.max_queue_bytes)
        self._rate_limit = RateLimit(limits.max_key_bytes_per_second, clock)
        # Entries are numbered as they are put, also by the writer; those from before a restart come first.
        self._last_entry = spool.entry_count
        self._telemetry = telemetry or Telemetry(clock)
        # False when the spool has what the memory of ids may not have: only a restart, which rebuilds the
        # memory from the spool, makes it safe to admit anything again.
        self._is_exact = True
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)

    @property
    def is_exact(self) -> bool:
        """Whether it may admit; False: everything is refused until a restart."""
        return self._is_exact

    @property
    def stream_count(self) -> int:
        """How many streams are described in the cache."""
        return len(self._metering.streams)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def tell(self, on_admitted: OnAdmitted) -> None:
        """From the next commit on tell what was admitted, before it is acknowledged; it should not wait.

        It is given the number of the last entry of the spool, and events; what corrections take back are
        events of the opposite sign.
        """
        self._on_admitted = on_admitted

    def replace_metering(self, metering: Metering) -> None:
        """Decide by `metering` from the next micro-batch on. Any thread may call it."""
        self._metering = metering  # a micro-batch takes it once, at its begin

    def submit(self, work: Work) -> "Future[Outcome]":
        """Queue a request; its future is done when its usage is durable, or it is refused.

        Raises:
            UnavailableError: The queue is full, or this is stopping; nothing was queued.
            RateLimitedError: The key sends too much; nothing was queued.
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
            RateLimitedError: See `submit`.
            InvalidUsageError: The request is refused as a whole.
        """
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._enqueue(_Waiting(work, done))
        return await done

    def _enqueue(self, waiting: _Waiting) -> None:
        key_id, size = waiting.work.sender.key_id, waiting.work.size
        self._rate_limit.check(key_id, size)
        self._queue.put(key_id, waiting, size)

    def stop(self) -> None:
        """Refuse new requests, finish those that were queued, end. Idempotent."""
        self._queue.close()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while batch := self._queue.take(max_bytes=MAX_BATCH_BYTES, max_items=MAX_BATCH_REQUESTS):
            self._pace()
            self._process_all(batch)
            # First: who has an answer finds it counted.
            self._telemetry.answered([(one.work.sender.key_id, one.answer) for one in batch])
            _answer(batch)

    def _process_all(self, batch: Sequence[_Waiting]) -> None:
        refusal = self._cannot_take()
        if refusal is not None:
            for waiting in batch:
                waiting.answer = refusal
            return
        try:
            self._process(batch)
        except UnavailableError as error:
            _log.warning("Nothing can be admitted now", extra={"event": "admission_unavailable"})
            for waiting in batch:
                waiting.answer = waiting.answer or error
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
            self._accumulators,
            now_ns=self._clock.now_ns(),
            new_id=lambda: secrets.token_bytes(ID_BYTES),
            corrections=self._corrections,
        )
        # What was answered in an earlier attempt at this batch was refused for good.
        added = [one for one in batch if one.answer is None and _add(micro_batch, one)]
        admitted = micro_batch.admit()
        if admitted.entries or admitted.states:
            try:
                self._commit(admitted)
            except UnavailableError as error:
                _log.warning("The spool refuses", extra={"event": "spool_refused"})
                for waiting in added:
                    waiting.answer = error
                return
        for waiting, outcome in zip(added, admitted.outcomes, strict=True):
            waiting.answer = outcome

    def _cannot_take(self) -> UnavailableError | None:
        """Why nothing may be taken now; None: it may."""
        if not self._is_exact:
            return UnavailableError("the memory of ids is not exact any more; restart the receiver")
        if not self._seen.has_room:
            return UnavailableError(
                "the ids of usage that waits for the database fill METERING_MAX_IDS_BYTES; "
                "send again when the database keeps up"
            )
        free = shutil.disk_usage(self._spool.path.parent).free
        if free < self._limits.min_free_disk_bytes:
            return UnavailableError(
                f"the disk of the spool has {free} bytes free, less than METERING_MIN_FREE_DISK_BYTES "
                f"({self._limits.min_free_disk_bytes}); make room, then send again"
            )
        return None

    def _commit(self, admitted: Admitted) -> None:
        try:
            self._spool.append(admitted.entries, admitted.states)
        except UnavailableError:
            raise  # it took all or none: none
        except BaseException:
            self._is_exact = False
            raise
        try:
            # Only now: an id that is remembered but not stored would destroy what is sent again.
            self._last_entry += len(admitted.entries)
            self._seen.add(admitted.ids, self._last_entry, self._clock.now_ns())
            self._accumulators.remember(admitted.states)
            self._corrections.add(row.event_id for row in admitted.corrections)
        except BaseException:
            self._is_exact = False
            raise
        self._telemetry.committed(entries=len(admitted.entries), rows=admitted.row_count)
        self._on_commit()
        if self._on_admitted is not None:
            try:
                back = [taken_back(admitted.corrections)] if admitted.corrections else []
                self._on_admitted(self._spool.mark.appended, [*admitted.counted, *back])
            except Exception as error:  # noqa: BLE001 - what is durable is acknowledged, whoever counts it
                _log.error("Usage was not counted", exc_info=error, extra={"event": "count_failed"})


def _add(micro_batch: MicroBatch, waiting: _Waiting) -> bool:
    work = waiting.work
    try:
        if work.correction is not None:
            micro_batch.add_correction(work.correction, work.sender)
        elif work.signal is Signal.EVENT:
            micro_batch.add_events(work.events, work.sender)
        else:
            micro_batch.add_otlp(work.signal, work.body, work.sender)
    except (InvalidUsageError, UnavailableError) as error:
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
