"""Waking a thread, also from a signal handler that interrupted another waking: `threading.Event` would hang."""

from queue import Empty, SimpleQueue


class Wake:
    """An event that lets one waiter go once. Any thread and any signal handler may set it."""

    def __init__(self) -> None:
        # Written in C, and made to be put into by whatever interrupts a put.
        self._calls: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Let the waiter go, or the next one."""
        if self._calls.empty():
            self._calls.put(None)

    def wait(self, seconds: float) -> None:
        """Wait until it is set, at most `seconds`; it is not set any more."""
        try:
            self._calls.get(timeout=seconds)
            while True:
                self._calls.get_nowait()
        except Empty:
            pass
