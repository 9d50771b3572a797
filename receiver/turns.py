"""A lock that serves in the order of asking, so that nobody who works in a loop keeps the others out."""

import threading
from collections import deque
from typing import Self


class Turns:
    """Whose turn it is is the first in the queue."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()

    def take(self, timeout: float | None = None) -> bool:
        """Wait for the turn; False: it did not come within `timeout` seconds."""
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            if self._changed.wait_for(lambda: self._queue[0] is ticket, timeout):
                return True
            self._queue.remove(ticket)
            return False

    def give(self) -> None:
        """End the turn."""
        with self._changed:
            self._queue.popleft()
            self._changed.notify_all()

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.give()
