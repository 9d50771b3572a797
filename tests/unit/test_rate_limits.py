"""The rate limit of a key: a token bucket with a second of burst."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_metering.clock import ManualClock
from query_api.problems import RateLimitedError
from query_api.rate_limits import RateLimits
from receiver.store.keys import Principal


def of(key_id: str, rate: int | None) -> Principal:
    return Principal(key_id=key_id, scopes=frozenset(), tenant_id=None, rate_limit_per_second=rate)


def passes(limits: RateLimits, principal: Principal) -> bool:
    try:
        limits.check(principal)
    except RateLimitedError:
        return False
    return True


@pytest.mark.parametrize("rate", [1, 3, 7, 1_000])
def test_a_quiet_key_may_send_a_second_of_its_rate_at_once_and_then_its_rate(rate: int) -> None:
    clock = ManualClock()
    limits = RateLimits(clock)

    burst = sum(passes(limits, of("a", rate)) for _ in range(3 * rate))
    clock.advance(1.0)
    later = sum(passes(limits, of("a", rate)) for _ in range(3 * rate))

    # A third of a second is no whole number of nanoseconds.
    assert burst == rate
    assert rate <= later <= rate + 1


def test_keys_do_not_share_a_limit_and_a_key_without_one_has_none() -> None:
    limits = RateLimits(ManualClock())

    assert passes(limits, of("a", 1))
    assert not passes(limits, of("a", 1))
    assert passes(limits, of("b", 1))
    assert all(passes(limits, of("c", None)) for _ in range(100))


def test_who_waits_as_long_as_it_was_told_is_let_in() -> None:
    clock = ManualClock()
    limits = RateLimits(clock)
    limits.check(of("a", 1))

    with pytest.raises(RateLimitedError, match="rate_limit_per_second of 1 ") as refused:
        limits.check(of("a", 1))
    clock.advance(refused.value.retry_after_seconds)

    assert refused.value.retry_after_seconds == 1
    assert passes(limits, of("a", 1))


@given(st.integers(1, 50), st.lists(st.integers(0, 3_000), min_size=1, max_size=200))
def test_no_window_of_time_has_more_than_its_rate_and_a_second_of_burst(
    rate: int, pauses_ms: list[int]
) -> None:
    clock = ManualClock()
    limits = RateLimits(clock)
    taken: list[int] = []
    for pause in pauses_ms:
        clock.advance(pause / 1_000)
        if passes(limits, of("a", rate)):
            taken.append(clock.ns)

    for first, start in enumerate(taken):
        for last in range(first, len(taken)):
            seconds = (taken[last] - start) / 1e9
            assert last - first + 1 <= rate * (seconds + 1) + 1e-3
