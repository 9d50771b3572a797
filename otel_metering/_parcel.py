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
        entry: The request.
        spool: Where it lies; None: in memory.
    """

    entry: Entry
    spool: Spool | None = None

    @property
    def key(self) -> str:
        """Which kind of request."""
        return self.entry.key

    @property
    def payload(self) -> bytes:
        """The request's bytes."""
        return self.entry.payload
