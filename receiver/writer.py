"""Spool -> database: seal a batch, insert it until it is stored, drop it.

A batch keeps its rows and its token until it was stored, across crashes and errors of unknown outcome,
and the database stores a token once: so each row is there once, in the table and in every rollup.
"""

import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

from otel_metering.clock import Clock
from otel_metering.errors import MeteringError, UnavailableError
from otel_metering.spool import Batch, Spool
from receiver import rows
from receiver.store import tables
from receiver.store.client import Store
from receiver.telemetry import Attempt, Telemetry
from receiver.turns import Turns

MAX_BATCH_ENTRIES: Final = 1_024
MAX_BATCH_BYTES: Final = 4 * 2**20
"""Spool bytes in one INSERT: some 100,000 rows. Larger batches cost less a row."""

FULL_BATCH_BYTES: Final = 2 * 2**20
"""From here on a batch does not wait for more."""

LINGER_SECONDS: Final = 0.4
"""How long the first entry waits for company: each INSERT makes parts in six tables, at a fixed cost."""

MAX_BACKOFF_SECONDS: Final = 5.0

BACKLOG_BYTES: Final = 6 * 2**20
"""Spool bytes from which senders are slowed down: what the database takes in about a second."""

MAX_PACE_SECONDS: Final = 0.5
"""Longest wait for one micro-batch: far below the five seconds after which a Collector gives up."""

_log = logging.getLogger(__name__)


class Writer:
    """The only reader of the spool."""

    def __init__(
        self,
        spool: Spool,
        store: Store,
        clock: Clock,
        on_written: Callable[[int], None] = lambda _: None,
        telemetry: Telemetry | None = None,
    ) -> None:
        """Put it together; `on_written` is told how many entries were stored since the start."""
        self._spool = spool
        self._store = store
        self._clock = clock
        self._on_written = on_written
        self._telemetry = telemetry or Telemetry(clock)
        self._written_count = 0
        self._turns = Turns()
        # From the start on the spool may have a batch that was stored, wholly or in part, before a crash.
        self._is_in_doubt = spool.entry_count > 0
        self._has_entries = threading.Event()
        self._has_room = threading.Event()
        self._stopping = threading.Event()
        self._drain_until = 0.0
        self._last_error: MeteringError | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    @property
    def last_error(self) -> MeteringError | None:
        """Why the last attempt failed; None: it did not."""
        return self._last_error

    def start(self) -> None:
        """Begin with what the spool holds."""
        self._has_entries.set()
        self._thread.start()

    def notify(self) -> None:
        """The spool has entries."""
        self._has_entries.set()

    @contextmanager
    def at_rest(self, timeout: float) -> Iterator[None]:
        """Keep still: while this is entered, what is in the spool is not in the database, and else it is.

        Args:
            timeout: Seconds that may be waited for it.

        Raises:
            UnavailableError: It was not so in time; a batch that failed may be stored or not.
        """
        deadline = self._clock.monotonic() + timeout
        while True:
            left = deadline - self._clock.monotonic()
            if left <= 0 or not self._turns.take(left):
                raise UnavailableError("the writer did not come to rest in time")
            try:
                if not self._is_in_doubt:
                    yield
                    return
            finally:
                self._turns.give()
            threading.Event().wait(min(left, 0.05))

    def pace(self) -> None:
        """Wait a moment if more is acknowledged than the database keeps up with.

        So that under any load acknowledged usage is soon visible: the senders wait instead. A database
        that fails paces nobody; then the spool fills, as it is meant to. Nor does a full spool: what
        will be refused is refused at once.
        """
        size = self._spool.byte_count
        if BACKLOG_BYTES < size < self._spool.max_bytes and self._last_error is None:
            self._has_room.clear()
            self._has_room.wait(MAX_PACE_SECONDS)

    def stop(self, drain_seconds: float) -> bool:
        """Write what the spool holds, for at most `drain_seconds`, and end.

        Returns:
            Whether the spool is empty. What is left stays in it, for the next start.
        """
        self._drain_until = self._clock.monotonic() + drain_seconds
        self._stopping.set()
        self._has_entries.set()
        if self._thread.ident is not None:
            self._thread.join()
        return self._spool.entry_count == 0

    def write_batch(self) -> bool:
        """Store one batch; False: the spool is empty.

        Raises:
            MeteringError: It may be stored or not, and is still sealed in the spool.
        """
        batch = self._spool.seal(
            secrets.token_hex(16), max_entries=MAX_BATCH_ENTRIES, max_bytes=MAX_BATCH_BYTES
        )
        if batch is None:
            self._is_in_doubt = False
            return False
        with self._turns, self._telemetry.attempt(len(batch.entries)) as attempt:
            self._is_in_doubt = True
            self._insert(batch, attempt)
            self._spool.drop(batch)
            self._is_in_doubt = False
        self._written_count += len(batch.entries)
        self._on_written(self._written_count)
        self._has_room.set()
        return True

    def _insert(self, batch: Batch, attempt: Attempt) -> None:
        batch_id = UUID(batch.token).bytes
        events = [entry.payload for entry in batch.entries if entry.key == rows.EVENTS_KEY]
        aside = [entry.payload for entry in batch.entries if entry.key == rows.QUARANTINE_KEY]
        taken_back = [entry.payload for entry in batch.entries if entry.key == rows.CORRECTIONS_KEY]
        if events:
            table = attempt.add(tables.EVENTS, rows.to_events(events, batch_id))
            self._store.insert(tables.EVENTS, table, token=batch.token)
        if aside:
            table = attempt.add(tables.QUARANTINE, rows.to_quarantine(aside, batch_id))
            self._store.insert(tables.QUARANTINE, table, token=batch.token)
        if taken_back:
            # After the events: what counts instead is there before its correction names it.
            table = attempt.add(
                tables.EVENT_CORRECTIONS,
                rows.to_corrections(taken_back, batch_id),
                admitted_at="corrected_at",
            )
            self._store.insert(tables.EVENT_CORRECTIONS, table, token=batch.token)

    def _run(self) -> None:
        backoff = 0.0
        while not self._may_end():
            if backoff:
                self._pause(backoff)
            elif not self._stopping.is_set():
                self._has_entries.wait()
                self._gather()
            self._has_entries.clear()
            try:
                while self.write_batch() and self._spool.byte_count >= FULL_BATCH_BYTES:
                    pass
                if self._spool.entry_count:
                    self._has_entries.set()
                backoff, self._last_error = 0.0, None
            except Exception as error:  # noqa: BLE001 - the top of a worker loop
                backoff = min(max(2 * backoff, 0.1), MAX_BACKOFF_SECONDS)
                self._has_room.set()
                self._last_error = (
                    error if isinstance(error, MeteringError) else MeteringError(repr(error))
                )
                _log.error(
                    "A batch is not stored yet", exc_info=error, extra={"event": "insert_failed"}
                )

    def _pause(self, seconds: float) -> None:
        """Wait after a failure; a stop cuts it short, and then tries ten times a second."""
        if self._stopping.wait(seconds):
            threading.Event().wait(min(seconds, 0.1))

    def _gather(self) -> None:
        """Let the first entry wait for others, unless there is enough to do."""
        if self._spool.byte_count < FULL_BATCH_BYTES:
            self._stopping.wait(LINGER_SECONDS)

    def _may_end(self) -> bool:
        if not self._stopping.is_set():
            return False
        return self._spool.entry_count == 0 or self._clock.monotonic() >= self._drain_until
