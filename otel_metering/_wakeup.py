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
        # By its module, where gevent puts its own.
        self._queue: queue.SimpleQueue[None] = queue.SimpleQueue()

    def is_set(self) -> bool:
        """Whether it was set since it was last waited for or cleared."""
        return not self._queue.empty()

    def set(self) -> None:
        """Wake the thread that waits, or is about to."""
        if self._queue.empty():
            self._queue.put(None)

    def clear(self) -> None:
        """Forget that it was set."""
        # As many as there are: what is set from now on is not to be missed, nor to keep this busy.
        for _ in range(self._queue.qsize()):
            with suppress(queue.Empty):
                self._queue.get_nowait()

    def wait(self, timeout_seconds: float) -> None:
        """Return when it is set, and clear it, or when the time is up."""
        with suppress(queue.Empty):
            self._queue.get(timeout=timeout_seconds)
        self.clear()
