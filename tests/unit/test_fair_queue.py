"""The queue of requests: bounded, in turn between keys, and never closed to a key by another."""

import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_metering.clock import ManualClock
from otel_metering.errors import UnavailableError
from receiver.errors import RateLimitedError
from receiver.fair_queue import FairQueue
from receiver.rate_limit import BURST_SECONDS, RateLimit


def taken(queue: FairQueue[str], count: int = 100) -> list[str]:
    return queue.take(max_bytes=10**9, max_items=count)


def test_keys_take_turns() -> None:
    queue: FairQueue[str] = FairQueue(1_000)
    for number in range(4):
        queue.put("loud", f"loud {number}", 10)
    queue.put("quiet", "quiet 0", 10)

    assert taken(queue, 3) == ["loud 0", "quiet 0", "loud 1"]


def test_a_key_that_floods_leaves_room_for_others() -> None:
    queue: FairQueue[str] = FairQueue(1_000)
    for _ in range(50):
        queue.put("loud", "x", 10)

    with pytest.raises(UnavailableError, match="send again"):
        queue.put("loud", "x", 10)

    for _ in range(20):
        queue.put("quiet", "y", 10)


def test_a_first_request_fits_whatever_its_size() -> None:
    queue: FairQueue[str] = FairQueue(10)

    queue.put("k", "x", 50)

    with pytest.raises(UnavailableError):
        queue.put("k", "y", 1)
    assert taken(queue) == ["x"]
    queue.put("k", "y", 1)


@given(
    puts=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 40)), max_size=60),
    bound=st.integers(1, 200),
)
def test_what_was_put_is_taken_once_in_order_of_its_key_and_within_the_bound(
    puts: list[tuple[str, int]], bound: int
) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue(bound)
    accepted: dict[str, list[tuple[str, int]]] = {key: [] for key in "abc"}
    for number, (key, size) in enumerate(puts):
        try:
            queue.put(key, (key, number), size)
            accepted[key].append((key, number))
        except UnavailableError:
            continue
        assert queue.byte_count <= max(bound, size)

    queue.close()
    every = [
        item for part in iter(lambda: queue.take(max_bytes=7, max_items=2), []) for item in part
    ]

    assert queue.byte_count == 0
    for key, items in accepted.items():
        assert [item for item in every if item[0] == key] == items
    assert Counter(every).total() == sum(map(len, accepted.values()))


def test_a_closed_queue_refuses_and_gives_out_what_it_has() -> None:
    queue: FairQueue[str] = FairQueue(10)
    queue.put("k", "x", 1)
    queue.close()

    with pytest.raises(UnavailableError, match="stopping"):
        queue.put("k", "y", 1)
    assert taken(queue) == ["x"]
    assert taken(queue) == []


def test_a_take_waits_for_a_put() -> None:
    queue: FairQueue[str] = FairQueue(10)
    found: list[str] = []
    taker = threading.Thread(target=lambda: found.extend(taken(queue)))
    taker.start()

    queue.put("k", "x", 1)
    taker.join(20)

    assert found == ["x"]


def test_a_key_may_send_its_rate_and_a_burst_and_then_must_wait() -> None:
    clock = ManualClock()
    limit = RateLimit(100, clock)
    limit.check("k", int(100 * BURST_SECONDS))

    with pytest.raises(RateLimitedError) as refused:
        limit.check("k", 50)
    limit.check("other", 50)
    clock.advance(refused.value.retry_after_seconds)

    limit.check("k", 50)


def test_a_request_beyond_the_burst_passes_when_the_key_was_quiet_and_is_paid_for_later() -> None:
    clock = ManualClock()
    limit = RateLimit(100, clock)
    limit.check("k", 1_000)

    clock.advance(5)
    with pytest.raises(RateLimitedError):
        limit.check("k", 1)
    clock.advance(5)
    limit.check("k", 1)


def test_a_rate_of_0_is_no_limit() -> None:
    limit = RateLimit(0, ManualClock())

    for _ in range(100):
        limit.check("k", 10**12)
