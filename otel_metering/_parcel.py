"""One request on its way out, and the gate that all queues share."""

import contextlib
import threading
from dataclasses import dataclass
from typing import Final

from otel_metering.spool import Entry, Spool

_FORK_WAIT_SECONDS: Final = 5.0
"""A commit takes milliseconds; a disk that hangs longer must not hang the application's fork."""


class _Gate:
    """Held while any queue is used, and during a fork."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def is_mine(self) -> bool:
        """Whether this thread is in the middle of using a spool."""
        return bool(self.lock._is_owned())  # type: ignore[attr-defined] # as threading.Condition asks it

    def close_for_fork(self) -> None:
        self.lock.acquire(timeout=_FORK_WAIT_SECONDS)

    def open_in_parent(self) -> None:
        with contextlib.suppress(RuntimeError):  # the wait was in vain
            self.lock.release()

    def open_in_child(self) -> None:
        self.lock = threading.RLock()


gate = _Gate()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """One request on its way out.

    Attributes:
        entries: The request; requests of events may go as one, as they may have been put one by one.
        spool: Where it lies; None: in memory.
    """

    entries: tuple[Entry, ...]
    spool: Spool | None = None

    @property
    def key(self) -> str:
        """Which kind of request."""
        return self.entries[0].key

    @property
    def payload(self) -> bytes:
        """The request's bytes; messages that follow each other are one (Protocol Buffers, Encoding)."""
        return b"".join(entry.payload for entry in self.entries)
