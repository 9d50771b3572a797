"""How many bytes a second one API key may send: a token bucket for each."""

from typing import Final

from otel_metering.clock import Clock
from receiver.errors import RateLimitedError

BURST_SECONDS: Final = 2.0
"""What a key that was quiet may send at once, in seconds of its rate."""

MAX_WAIT_SECONDS: Final = 5.0
"""Longest advice: an OpenTelemetry SDK gives up at once when it exceeds its ten seconds in all."""

MAX_KEYS: Final = 100_000
"""Keys remembered; keys are known ones, so this is only a guard."""


class RateLimit:
    """The buckets. Any thread may call it; a race gives a key a request more, not less."""

    def __init__(self, bytes_per_second: int, clock: Clock) -> None:
        self._rate = bytes_per_second
        self._clock = clock
        self._full_at: dict[str, float] = {}

    def check(self, key_id: str, size: int) -> None:
        """Count `size` bytes of `key_id`; a rate of 0 is no limit.

        A request larger than the burst passes when the bucket is full, and is paid for afterwards.

        Raises:
            RateLimitedError: It is too much now; nothing was counted.
        """
        if not self._rate:
            return
        now = self._clock.monotonic()
        full_at = max(self._full_at.get(key_id, now), now)
        wait = full_at + size / self._rate - now - BURST_SECONDS
        if wait > 0 and full_at > now:
            raise RateLimitedError(
                f"the API key {key_id} sends more than {self._rate} bytes a second; send less at once, "
                "or raise METERING_MAX_KEY_BYTES_PER_SECOND",
                retry_after_seconds=min(wait, MAX_WAIT_SECONDS),
            )
        if len(self._full_at) >= MAX_KEYS:
            self._full_at.clear()
        self._full_at[key_id] = full_at + size / self._rate
