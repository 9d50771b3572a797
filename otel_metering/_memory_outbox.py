"""Requests that wait in memory: no file, and no promise beyond the end of the process."""

import logging
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from otel_metering._config import Settings
from otel_metering._outbox import Outbox
from otel_metering._parcel import Parcel, gate
from otel_metering.errors import SpoolFullError
from otel_metering.spool import Entry

_log = logging.getLogger("otel_metering")


class MemoryOutbox:
    """First in, first out, in memory. Any thread. As `Outbox`, which see.

    Attributes:
        put_count: Requests put in by this process.
        settled_count: Of those, the ones delivered or given up.
        before: What a pipeline before left on disk, which is sent first; None: nothing.
    """

    def __init__(self, settings: Settings) -> None:
        self.put_count = 0
        self.settled_count = 0
        self._max_bytes = settings.spool_max_bytes
        self._entries: deque[Entry] = deque()
        self._byte_count = 0
        self.before: Outbox | None = None

    def open(self) -> None:
        """There is nothing to open."""

    def put(
        self,
        requests: Sequence[tuple[str, bytes]],
        states: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Append (key, payload) requests, all or none.

        Raises:
            SpoolFullError: They would not fit; none was put.
        """
        size = sum(len(payload) for _, payload in requests)
        with gate.lock:
            if self._byte_count + size > self._max_bytes:
                raise SpoolFullError(self._byte_count, self._max_bytes)
            for key, payload in requests:
                self.put_count += 1
                self._entries.append(Entry(id=self.put_count, key=key, payload=payload))
            self._byte_count += size

    def take(self, *, is_single: bool = False) -> Parcel | None:
        """The oldest request, those of the pipeline before first; None: there is none.

        Raises:
            UnavailableError: The disk refused what the pipeline before left there.
        """
        with gate.lock:
            if self.before is not None:
                parcel = self.before.take(is_single=is_single)
                if parcel is not None:
                    return parcel
                self.before.close()
                self.before = None
            return Parcel(entries=(self._entries[0],)) if self._entries else None

    def settle(self, parcel: Parcel) -> None:
        """`parcel` is delivered: forget it."""
        with gate.lock:
            if parcel.spool is None:
                self._remove(parcel)
                self.settled_count += 1
            elif self.before is not None:
                self.before.settle(parcel)

    def postpone(self, parcel: Parcel) -> None:
        """Others first: move `parcel` behind all that wait with it.

        Raises:
            UnavailableError: It lies on a disk, which refused.
        """
        with gate.lock:
            if parcel.spool is None:
                self._entries.rotate(-1)
            elif self.before is not None:
                self.before.postpone(parcel)

    def set_aside(self, parcel: Parcel, reason: str) -> None:
        """`parcel` can never be delivered; with no disk to keep it on, it is given up.

        Raises:
            UnavailableError: It lies on a disk, which refused.
        """
        with gate.lock:
            if parcel.spool is not None and self.before is not None:
                self.before.set_aside(parcel, reason)
                return
            _log.error(
                "a request of %d bytes is given up: %s",
                len(parcel.payload),
                reason,
                extra={"event": "request_given_up"},
            )
            self.settle(parcel)

    def adopt_orphans(self) -> None:
        """What ended processes left on disk is left to a process that uses the disk."""

    def inherit(self, predecessor: "Outbox | MemoryOutbox") -> None:
        """Take over what waits of this process's pipeline before; it uses it no more."""
        with gate.lock:
            if isinstance(predecessor, MemoryOutbox):
                self.before, predecessor.before = predecessor.before, None
                self.put(predecessor.give_up())
            else:
                self.before = predecessor

    def give_up(self) -> list[tuple[str, bytes]]:
        """Everything that waits in memory, taken out."""
        with gate.lock:
            waiting = [(entry.key, entry.payload) for entry in self._entries]
            self._entries.clear()
            self._byte_count = 0
            return waiting

    @property
    def has_adopted(self) -> bool:
        """Whether requests of the pipeline before wait."""
        return self.before is not None

    @property
    def pending_requests(self) -> int:
        """Requests that wait."""
        before = self.before
        return len(self._entries) + (0 if before is None else before.pending_requests)

    @property
    def pending_bytes(self) -> int:
        """Their size."""
        before = self.before
        return self._byte_count + (0 if before is None else before.pending_bytes)

    def abandon(self) -> frozenset[Path]:
        """In a forked child: what waits is the parent's to send."""
        return frozenset() if self.before is None else self.before.abandon()

    def close(self) -> None:
        """Nothing is sent any more: what waits in memory is lost."""
        with gate.lock:
            if self.before is not None:
                self.before.close()
                self.before = None
            if self._entries:
                _log.warning(
                    "%d requests were not delivered, and end with this process "
                    "(METERING_TRANSPORT_MODE=memory)",
                    len(self._entries),
                    extra={"event": "memory_lost"},
                )

    def _remove(self, parcel: Parcel) -> None:
        if self._entries and self._entries[0] == parcel.entries[0]:
            self._entries.popleft()
            self._byte_count -= len(parcel.payload)
