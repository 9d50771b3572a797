"""How a range is cut up: by calendars and clocks, on the days on which they are changed too."""

from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_metering.errors import InvalidUsageError
from query_api.periods import MAX_NS, SECOND_NS, Range, format_instant
from query_api.windows import (
    MAX_WINDOWS,
    Rolling,
    Unit,
    Window,
    cut,
    parse_window,
    previous_range,
    rolling_range,
)
from query_api.zones import Zone, load

HOUR = 3_600
zones = st.sampled_from(
    [
        "UTC",
        "Europe/Berlin",
        "Asia/Kathmandu",
        "Australia/Lord_Howe",
        "America/St_Johns",
        "Pacific/Apia",
        "Africa/Monrovia",
        "Africa/Casablanca",
    ]
)


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND_NS


def lengths(start: str, end: str, window: Window, zone: str) -> list[float]:
    """In hours."""
    windows = cut(Range(ns(start), ns(end)), window, Zone(zone))
    spans = [windows.at(i) for i in range(len(windows))]
    return [(span.end_ns - span.start_ns) / SECOND_NS / HOUR for span in spans]


@pytest.mark.parametrize(
    ("zone", "window", "start", "end", "expected"),
    [
        # Europe/Berlin: the last Sundays of March and October.
        ("Europe/Berlin", Window.DAY, "2026-03-27T23:00", "2026-03-30T22:00", [24, 23, 24]),
        ("Europe/Berlin", Window.DAY, "2026-10-23T22:00", "2026-10-26T23:00", [24, 25, 24]),
        ("Europe/Berlin", Window.HOUR, "2026-10-25T00:00", "2026-10-25T03:00", [1, 1, 1]),
        ("Europe/Berlin", Window.WEEK, "2026-10-18T22:00", "2026-11-01T23:00", [169, 168]),
        ("Europe/Berlin", Window.MONTH, "2026-02-28T23:00", "2026-04-30T22:00", [743, 720]),
        # Lord Howe: put back by half an hour at 02:00 (15:00 UTC), forward at 02:00 (15:30 UTC).
        ("Australia/Lord_Howe", Window.DAY, "2026-04-04T13:00", "2026-04-05T13:30", [24.5]),
        ("Australia/Lord_Howe", Window.HOUR, "2026-04-04T14:00", "2026-04-04T16:30", [1, 0.5, 1]),
        ("Australia/Lord_Howe", Window.HOUR, "2026-10-03T14:30", "2026-10-03T17:00", [1, 0.5, 1]),
        ("Australia/Lord_Howe", Window.QUARTER_HOUR, "2026-04-04T14:50", "2026-04-04T15:20", [1 / 6, 0.25, 1 / 12]),
        # Samoa had no 30 December 2011.
        ("Pacific/Apia", Window.DAY, "2011-12-29T10:00", "2011-12-31T10:00", [24, 24]),
        ("Asia/Kathmandu", Window.DAY, "2026-01-01T00:00", "2026-01-02T00:00", [18.25, 5.75]),
        ("Asia/Kathmandu", Window.HOUR, "2026-01-01T00:00", "2026-01-01T02:00", [0.25, 1, 0.75]),
        ("Asia/Kathmandu", Window.QUARTER_HOUR, "2026-01-01T00:00", "2026-01-01T00:30", [0.25, 0.25]),
        ("Africa/Monrovia", Window.MINUTE, "1971-01-01T00:00", "1971-01-01T00:02", [0.5 / 60, 1 / 60, 0.5 / 60]),
        # Weeks begin on Mondays.
        ("UTC", Window.WEEK, "2026-01-01T00:00", "2026-01-14T00:00", [96, 168, 48]),
        ("UTC", Window.MONTH, "2024-02-01T00:00", "2024-03-01T00:00", [696]),
        ("UTC", Window.TOTAL, "2026-01-01T00:00", "2026-01-14T00:00", [312]),
    ],
)  # fmt: skip
def test_windows_are_as_long_as_their_calendar_says(
    zone: str, window: Window, start: str, end: str, expected: list[float]
) -> None:
    assert lengths(start, end, window, zone) == pytest.approx(expected)


@given(
    zones,
    st.sampled_from(Window),
    st.integers(0, MAX_NS - 1 - 60 * 86_400 * SECOND_NS),
    st.integers(1, 60 * 86_400 * SECOND_NS),
)
def test_windows_cover_the_range_and_runs_say_the_same(
    zone: str, window: Window, start_ns: int, length: int
) -> None:
    within = Range(start_ns, start_ns + length)

    windows = cut(within, window, Zone(zone))

    spans = [windows.at(i) for i in range(len(windows))]
    assert (spans[0].start_ns, spans[-1].end_ns) == (within.start_ns, within.end_ns)
    assert all(a.end_ns == b.start_ns for a, b in pairwise(spans))
    assert all(span.start_ns < span.end_ns for span in spans)
    runs = windows.runs
    for i, start_s in enumerate(windows.starts.tolist()):
        last_s = (spans[i].end_ns - 1) // SECOND_NS
        for at_s in (max(start_s, 0), last_s):
            run = max(k for k, begin in enumerate(runs.starts) if begin <= at_s)
            begin, step = runs.starts[run], runs.steps[run]
            assert begin + (at_s - begin) // step * step == start_s


def test_a_year_of_days_is_few_runs() -> None:
    within = Range(ns("2026-01-01"), ns("2027-01-01"))

    assert len(cut(within, Window.DAY, Zone("UTC")).runs.starts) == 1
    assert len(cut(within, Window.DAY, Zone("Europe/Berlin")).runs.starts) == 5


def test_too_many_windows_are_refused() -> None:
    fits = Range(0, MAX_WINDOWS * 60 * SECOND_NS)

    assert len(cut(fits, Window.MINUTE, Zone("UTC"))) == MAX_WINDOWS
    with pytest.raises(InvalidUsageError, match="over 100000 windows of minute"):
        cut(Range(0, fits.end_ns + 60 * SECOND_NS), Window.MINUTE, Zone("UTC"))


@pytest.mark.parametrize(
    ("count", "unit", "zone", "end", "start"),
    [
        (90, Unit.MINUTES, "UTC", "2026-03-01T00:00:00.5Z", "2026-02-28T22:30:00.5Z"),
        (2, Unit.HOURS, "Europe/Berlin", "2026-10-25T02:00:00Z", "2026-10-25T00:00:00Z"),
        # By the calendar: the same time of the clock, a day of 25 hours before.
        (1, Unit.DAYS, "Europe/Berlin", "2026-10-26T00:00:00.25Z", "2026-10-24T23:00:00.25Z"),
        (1, Unit.WEEKS, "UTC", "2026-03-08T01:02:03Z", "2026-03-01T01:02:03Z"),
        (1, Unit.MONTHS, "UTC", "2024-03-31T12:00:00Z", "2024-02-29T12:00:00Z"),
        (13, Unit.MONTHS, "UTC", "2026-01-15T00:00:00Z", "2024-12-15T00:00:00Z"),
        # 30 December was left out: a day as it elapses.
        (1, Unit.DAYS, "Pacific/Apia", "2011-12-30T10:00:00Z", "2011-12-29T10:00:00Z"),
    ],
)
def test_a_rolling_window_ends_where_the_range_does(
    count: int, unit: Unit, zone: str, end: str, start: str
) -> None:
    end_ns = ns(end.rstrip("Z").split(".")[0]) + int(
        float("0." + (end.rstrip("Z") + ".0").split(".")[1]) * 1e9
    )

    found = rolling_range(end_ns, Rolling(count, unit), Zone(zone))

    assert (format_instant(found.start_ns), found.end_ns) == (start, end_ns)


@pytest.mark.parametrize("unit", Unit)
def test_a_rolling_window_before_1970_is_refused(unit: Unit) -> None:
    with pytest.raises(InvalidUsageError, match="before 1970"):
        rolling_range(ns("1970-01-01T00:00:30"), Rolling(99_999, unit), Zone("UTC"))


@pytest.mark.parametrize(
    ("zone", "start", "end", "rolling", "expected"),
    [
        ("UTC", "2026-03-01", "2026-04-01", None, "2026-02-01"),
        ("UTC", "2026-01-01", "2026-04-01", None, "2025-10-01"),
        ("UTC", "2026-03-02", "2026-03-09", None, "2026-02-23"),
        ("UTC", "2026-03-01T01:00", "2026-03-01T03:30", None, "2026-02-28T22:30"),
        # Months, and days, of the zone: with 23 hours on 29 March, and none of that in February.
        ("Europe/Berlin", "2026-02-28T23:00", "2026-03-31T22:00", None, "2026-01-31T23:00"),
        ("Europe/Berlin", "2026-03-29T22:00", "2026-03-30T22:00", None, "2026-03-28T23:00"),
        # Midnights of UTC are none of Berlin's: as much time as elapses.
        ("Europe/Berlin", "2026-03-30", "2026-03-31", None, "2026-03-29"),
        ("UTC", "2026-02-28", "2026-03-31", Rolling(1, Unit.MONTHS), "2026-01-28"),
    ],
)
def test_the_previous_range_is_of_the_same_length_in_its_calendar(
    zone: str, start: str, end: str, rolling: Rolling | None, expected: str
) -> None:
    found = previous_range(Range(ns(start), ns(end)), Zone(zone), rolling)

    assert found == Range(ns(expected), ns(start))


def test_a_previous_range_before_1970_is_refused() -> None:
    with pytest.raises(InvalidUsageError, match="before 1970"):
        previous_range(Range(ns("1970-01-02"), ns("1970-01-05")), load("UTC"), None)


def test_the_names_of_windows_are_read() -> None:
    assert parse_window("15m") is Window.QUARTER_HOUR
    assert parse_window("last_30_days") == Rolling(30, Unit.DAYS)
    for text in ("fortnight", "last_0_days", "last_100000_days", "last_5_years", "LAST_1_DAYS", ""):
        with pytest.raises(InvalidUsageError, match="minute, 15m, hour"):
            parse_window(text)
