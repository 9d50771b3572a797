"""What is known of requests that wait: how often each was tried, and for how long the oldest waits. Pure."""

from collections import deque
from typing import Final

_MAX_AGE_SECONDS: Final = 60.0
"""A receiver that restarts is back by then."""

_STEP_SECONDS: Final = 5.0
"""Requests put within so many seconds are as old as the first of them: an outage may last for days."""

_MAX_TRACKED: Final = 10_000
"""Requests whose attempts are counted at once."""


class Tries:
    """Failed attempts by request."""

    def __init__(self) -> None:
        self._failures: dict[int, int] = {}

    def count(self, payload: bytes) -> int:
        """Count one more failed attempt of `payload`; returns how many it has had."""
        key = hash(payload)
        if key not in self._failures and len(self._failures) >= _MAX_TRACKED:
            self._failures.clear()  # they start again, which is harmless
        self._failures[key] = failures = self._failures.get(key, 0) + 1
        return failures

    def forget(self, payload: bytes) -> None:
        """`payload` is delivered or refused."""
        self._failures.pop(hash(payload), None)


class Backlog:
    """For how long usage has been waiting. The flusher notes, the sender looks.

    Attributes:
        is_piled_up: Whether it has been said that usage piles up, and it has not drained since.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self.is_piled_up = False
        self._max_bytes = max_bytes
        # Requests are settled in the order of their putting: (count of all put, time) tells when the
        # oldest was put. Those that are out of order have a time of their own.
        self._puts: deque[tuple[int, float]] = deque()
        self._postponed_at: float | None = None
        self._adopted_at: float | None = None

    def note_put(self, put_count: int, now: float) -> None:
        """Requests up to the `put_count`th were put."""
        if self._puts and now - self._puts[-1][1] < _STEP_SECONDS:
            now = self._puts.pop()[1]
        self._puts.append((put_count, now))

    def note_postponed(self, now: float) -> None:
        """A request let others pass."""
        if self._postponed_at is None:
            self._postponed_at = now

    def look(
        self,
        now: float,
        *,
        settled_count: int,
        has_adopted: bool,
        pending_requests: int,
        pending_bytes: int,
    ) -> str | None:
        """Why usage piles up, once; None: it does not, or that was said already."""
        while self._puts and self._puts[0][0] <= settled_count:
            self._puts.popleft()
        if not has_adopted:
            self._adopted_at = None
        elif self._adopted_at is None:
            self._adopted_at = now
        if pending_requests == 0:
            self._postponed_at = None
            self.is_piled_up = False
            return None
        reason = self._reason(now, pending_requests, pending_bytes)
        if reason is None or self.is_piled_up:
            return None
        self.is_piled_up = True
        return reason

    def _reason(self, now: float, pending_requests: int, pending_bytes: int) -> str | None:
        since = (
            self._puts[0][1] if self._puts else None,
            self._postponed_at,
            self._adopted_at,
        )
        age = now - min((at for at in since if at is not None), default=now)
        if age >= _MAX_AGE_SECONDS:
            return f"the oldest of {pending_requests} requests has waited for {age:.0f} s"
        if pending_bytes * 2 >= self._max_bytes:
            return f"{pending_bytes} of at most {self._max_bytes} bytes wait"
        return None
