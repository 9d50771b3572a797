"""Following events: each that arrives in time is shown once, whatever arrives when."""

from datetime import UTC, datetime
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from otel_metering.cli.tail import Tail
from otel_metering.client import Event

LATENESS = 50


def event(number: int, at_ns: int) -> Event:
    return Event(
        event_id=f"e{number}",
        tenant_id="t",
        meter="m",
        quantity=Decimal(1),
        timestamp_ns=at_ns,
        start_time=None,
        attributes={},
        dimensions={},
        service_name="",
        signal="event",
        trace_id=None,
        span_id=None,
        ingested_at=datetime(2026, 1, 1, tzinfo=UTC),
        status="counted",
        correction=None,
    )


@given(
    arrivals=st.lists(st.tuples(st.integers(0, 500), st.integers(0, LATENESS)), max_size=40),
    looks=st.lists(st.tuples(st.integers(0, 700), st.booleans()), max_size=30),
)
def test_every_event_that_is_not_too_late_is_shown_once(
    arrivals: list[tuple[int, int]], looks: list[tuple[int, bool]]
) -> None:
    # (when it was used, how late it arrives); a look may fail, which only tells nothing.
    events = [(used + late, event(i, used)) for i, (used, late) in enumerate(arrivals)]
    tail = Tail(since_ns=0, lateness_ns=LATENESS)
    shown: list[str] = []
    for at, is_answered in [*sorted(looks), (1_000, True)]:
        listed = [
            one for arrived, one in events if arrived <= at and tail.from_ns <= one.timestamp_ns
        ]
        if is_answered:
            shown += [one.event_id for one in tail.fresh(reversed(listed), at)]

    assert sorted(shown) == sorted(one.event_id for _, one in events)


def test_what_one_look_finds_is_shown_oldest_first_and_is_forgotten_in_time() -> None:
    tail = Tail(since_ns=0, lateness_ns=LATENESS)

    found = tail.fresh([event(1, 30), event(2, 10), event(3, 20)], 100)

    assert [one.timestamp_ns for one in found] == [10, 20, 30]
    assert tail.from_ns == 50
    assert tail._seen == {}
