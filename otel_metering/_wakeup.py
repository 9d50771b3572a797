"""What a thread waits for, and what code that must not wait may still set."""

import queue
from contextlib import suppress


class Wakeup:
    """As `threading.Event`, for one waiting thread; `set` may be called anywhere.

    An event holds a lock while it is set or looked at. Usage is recorded by finalizers and signal handlers
    too, which run in the middle of anything, also of that: they would wait for their own thread for ever.
    The standard library says of `SimpleQueue.put` that it is reentrant, for this very reason.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._queue: queue.SimpleQueue[None] | None = None

    def is_set(self) -> bool:
        """Whether it was set since it was last waited for."""
        return self._is_set

    def set(self) -> None:
        """Wake the thread that waits, or is about to."""
        # In this order: who begins to wait makes the queue, and then looks.
        self._is_set = True
        waited_for = self._queue
        if waited_for is not None and waited_for.empty():
            waited_for.put(None)

    def wait(self, timeout_seconds: float) -> None:
        """Return when it is set, and clear it, or when the time is up."""
        if self._queue is None:
            # Not before, and by its module: gevent may have put its own there since this was made.
            self._queue = queue.SimpleQueue()
        with suppress(queue.Empty):
            if not self._is_set:
                self._queue.get(timeout=timeout_seconds)
        # First: what is set from now on is not to be missed.
        self._is_set = False
        for _ in range(self._queue.qsize()):
            with suppress(queue.Empty):
                self._queue.get_nowait()
