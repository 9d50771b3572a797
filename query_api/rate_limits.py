"""How many requests a second an API key may send: a token bucket for each, with a second of burst.

Each process has its own buckets: behind a load balancer a key may send as much to each.
"""

import math
from typing import Final

from otel_metering.clock import Clock
from query_api.problems import RateLimitedError
from receiver.store.keys import Principal

_SECOND_NS: Final = 1_000_000_000


class RateLimits:
    """The buckets. It belongs to the event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._full_at_ns: dict[str, int] = {}

    def check(self, principal: Principal) -> None:
        """Count a request of this key, or of a token that it made.

        Raises:
            RateLimitedError: It is too much now; it was not counted.
        """
        rate = principal.rate_limit_per_second
        if rate is None:
            return
        now_ns = round(self._clock.monotonic() * _SECOND_NS)
        full_at_ns = max(self._full_at_ns.get(principal.key_id, now_ns), now_ns)
        full_at_ns += _SECOND_NS // rate
        excess_ns = full_at_ns - now_ns - _SECOND_NS
        if excess_ns > 0:
            raise RateLimitedError(
                f"key {principal.key_id} has sent more than its rate_limit_per_second of {rate} to "
                "this process; wait as Retry-After says, or use a key with a higher limit",
                retry_after_seconds=math.ceil(excess_ns / _SECOND_NS),
            )
        self._full_at_ns[principal.key_id] = full_at_ns
