"""Periods of quotas: calendars of any zone, without gap or overlap."""

from calendar import monthrange
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_metering.contract.quota import Period
from otel_metering.errors import InvalidUsageError
from query_api.quota_periods import Span, span_of
from query_api.zones import load

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Sao_Paulo",  # its summer time began and ended at midnight
    "America/St_Johns",  # at one minute past midnight
    "Australia/Lord_Howe",  # by half an hour
    "Asia/Kathmandu",
    "Asia/Beirut",
    "Pacific/Apia",  # skipped a day
]


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * 10**9


def span(start: str, end: str) -> Span:
    return Span(ns(start), ns(end))


@pytest.mark.parametrize(
    ("period", "anchor", "zone", "at", "expected"),
    [
        (Period.DAY, None, "Europe/Berlin", "2026-03-29T12:00Z", ("2026-03-28T23:00Z", "2026-03-29T22:00Z")),
        (Period.DAY, None, "Europe/Berlin", "2026-10-25T12:00Z", ("2026-10-24T22:00Z", "2026-10-25T23:00Z")),
        (Period.HOUR, None, "Asia/Kathmandu", "2026-01-01T00:20Z", ("2026-01-01T00:15Z", "2026-01-01T01:15Z")),
        (Period.HOUR, None, "Europe/Berlin", "2026-10-25T01:30Z", ("2026-10-25T01:00Z", "2026-10-25T02:00Z")),
        (Period.WEEK, None, "UTC", "2026-03-01T00:00Z", ("2026-02-23T00:00Z", "2026-03-02T00:00Z")),
        (Period.WEEK, None, "UTC", "2026-03-02T00:00Z", ("2026-03-02T00:00Z", "2026-03-09T00:00Z")),
        (Period.MONTH, None, "America/New_York", "2026-03-15T00:00Z", ("2026-03-01T05:00Z", "2026-04-01T04:00Z")),
        (Period.MONTH, 31, "UTC", "2026-02-27T23:59Z", ("2026-01-31T00:00Z", "2026-02-28T00:00Z")),
        (Period.MONTH, 31, "UTC", "2026-02-28T00:00Z", ("2026-02-28T00:00Z", "2026-03-31T00:00Z")),
        (Period.MONTH, 30, "UTC", "2028-02-29T00:00Z", ("2028-02-29T00:00Z", "2028-03-30T00:00Z")),
        (Period.MONTH, 29, "UTC", "2026-03-01T00:00Z", ("2026-02-28T00:00Z", "2026-03-29T00:00Z")),
        (Period.MONTH, 15, "UTC", "2026-01-14T23:59Z", ("2025-12-15T00:00Z", "2026-01-15T00:00Z")),
        # Midnight of 2 November 2008 comes twice in Newfoundland; the day begins with the first.
        (Period.DAY, None, "America/St_Johns", "2008-11-02T02:45Z", ("2008-11-02T02:30Z", "2008-11-03T03:30Z")),
        # Samoa had no 30 December 2011.
        (Period.DAY, None, "Pacific/Apia", "2011-12-30T10:00Z", ("2011-12-30T10:00Z", "2011-12-31T10:00Z")),
        # Midnight of 15 October 2017 did not exist.
        (Period.DAY, None, "America/Sao_Paulo", "2017-10-15T12:00Z", ("2017-10-15T03:00Z", "2017-10-16T02:00Z")),
    ],
)  # fmt: skip
def test_a_period_has_the_edges_of_its_calendar(
    period: Period, anchor: int | None, zone: str, at: str, expected: tuple[str, str]
) -> None:
    assert span_of(period, anchor, load(zone), ns(at)) == span(*expected)


def test_a_lifetime_has_no_end() -> None:
    assert span_of(Period.LIFETIME, None, load("UTC"), 5) == Span(0, None)


periods = st.sampled_from([one for one in Period if one is not Period.LIFETIME])


@given(
    period=periods,
    anchor=st.none() | st.integers(1, 31),
    zone=st.sampled_from(ZONES),
    at=st.integers(ns("2000-01-01T00:00Z"), ns("2037-01-01T00:00Z")),
)
def test_periods_have_neither_gap_nor_overlap(
    period: Period, anchor: int | None, zone: str, at: int
) -> None:
    anchor = anchor if period is Period.MONTH else None
    where = load(zone)
    found = span_of(period, anchor, where, at)
    assert found.end_ns is not None

    assert found.has(at)
    assert span_of(period, anchor, where, found.start_ns) == found
    assert span_of(period, anchor, where, found.end_ns - 1) == found
    assert span_of(period, anchor, where, found.end_ns).start_ns == found.end_ns


@given(
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu"]),
    anchor=st.integers(1, 31),
    at=st.integers(ns("2001-01-01T00:00Z"), ns("2037-01-01T00:00Z")),
)
def test_an_anchored_month_begins_on_its_day_or_the_last(zone: str, anchor: int, at: int) -> None:
    found = span_of(Period.MONTH, anchor, load(zone), at)
    begin = (
        datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=found.start_ns // 10**9)
    ).astimezone(ZoneInfo(zone))

    assert begin.day == min(anchor, monthrange(begin.year, begin.month)[1])
    assert (begin.hour, begin.minute, begin.second) == (0, 0, 0)


@pytest.mark.parametrize(
    "name", ["", "Mars/Olympus", "../etc/passwd", "Europe/Berlin\x00", "x" * 999]
)
def test_an_unknown_zone_is_named(name: str) -> None:
    with pytest.raises(InvalidUsageError, match="timezone"):
        load(name)
