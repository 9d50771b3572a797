"""Counts on their way to Redis: in order, by a thread of their own, until they are there."""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Final

from otel_metering.errors import UnavailableError
from query_api.quota_usage import TagUsage
from query_api.quotas import Tag

MAX_WAITING: Final = 10_000
"""Commits that wait; beyond it all counters are loaded again."""

MAX_TOGETHER: Final = 100
"""Commits that are sent together."""

RETRY_SECONDS: Final = 0.2

Commit = tuple[int, dict[Tag, TagUsage]]
"""(number, usage) of one commit of the spool."""

Add = Callable[[str, int], None]
"""Counts something of this name."""

_log = logging.getLogger(__name__)


class Feed:
    """A queue, and the thread that empties it.

    Attributes:
        is_behind: Whether the last attempt failed.
    """

    def __init__(self, apply: Callable[[Sequence[Commit]], None], add: Add) -> None:
        """Put it together; what was applied with an unknown outcome, `apply` does no second time."""
        self._apply = apply
        self._add = add
        self.is_behind = False
        # An event is set when everything before it was applied; None ends the thread.
        self._queue: queue.Queue[Commit | threading.Event | None] = queue.Queue(MAX_WAITING)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="quota-feed", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Apply what is queued if that is possible at once, and end."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._queue.put(None)
            self._thread.join()

    def put(self, commit: Commit) -> None:
        """Apply it soon.

        Raises:
            UnavailableError: Too much waits; it is not queued.
        """
        try:
            self._queue.put_nowait(commit)
        except queue.Full:
            raise UnavailableError(f"{MAX_WAITING} commits wait to be counted") from None

    def wait(self, timeout: float) -> bool:
        """Wait until everything that was put before is applied; False: it was not, in time."""
        done = threading.Event()
        try:
            self._queue.put_nowait(done)
        except queue.Full:
            return False
        return done.wait(timeout)

    def _run(self) -> None:
        is_ending = False
        while not is_ending:
            item = self._queue.get()
            commits: list[Commit] = []
            done: list[threading.Event] = []
            while item is not None:
                if isinstance(item, threading.Event):
                    done.append(item)
                else:
                    commits.append(item)
                if len(commits) >= MAX_TOGETHER or self._queue.empty():
                    break
                item = self._queue.get()
            is_applied = self._is_applied(commits)
            is_ending = item is None or not is_applied
            for one in done:
                one.set()

    def _is_applied(self, commits: Sequence[Commit]) -> bool:
        """Try until it is done; False: it is not, and the process ends."""
        while commits:
            try:
                self._apply(commits)
                break
            except Exception as error:  # noqa: BLE001 - the top of a worker loop
                if not self.is_behind:
                    self.is_behind = True
                    self._add("count_failures", 1)
                    details = {"event": "counts_wait", "error": str(error)}
                    _log.warning("Counts wait for Redis", extra=details)
                if self._stopping.wait(RETRY_SECONDS):
                    return False
        self.is_behind = False
        return True
