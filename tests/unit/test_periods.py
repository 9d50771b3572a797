"""Instants survive text, ranges are what was asked for, and rows are those of the calendar."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_metering.errors import InvalidUsageError
from query_api.periods import (
    MAX_NS,
    SECOND_NS,
    Range,
    format_instant,
    parse_instant,
    parse_range,
    utc_midnight,
)

DAY_NS = 86_400 * SECOND_NS
instants = st.integers(0, MAX_NS - 1)


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND_NS


@given(instants)
def test_an_instant_survives_its_text(instant: int) -> None:
    assert parse_instant(format_instant(instant)) == instant


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.000000001Z", 1),
        ("1970-01-01t01:00:00.5+01:00", SECOND_NS // 2),
        ("1969-12-31 19:00:00-05:00", 0),
        ("2105-12-31T23:59:59.999999999z", MAX_NS - 1),
    ],
)
def test_rfc_3339_is_read_to_the_nanosecond(text: str, expected: int) -> None:
    assert parse_instant(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2026-01-01",
        "2026-01-01T00:00:00",
        "2026-01-01T00:00:00.Z",
        "2026-01-01T00:00:00.1234567890Z",
        "2026-01-01T00:00:00 02:00",
        "2026-02-30T00:00:00Z",
        "2026-01-01T24:00:01Z",
        "2026-01-01T00:00:60Z",
        "2026-01-01T00:00:00+25:00",
        "1969-12-31T23:59:59Z",
        "2106-01-01T00:00:00Z",
        "0001-01-01T00:00:00+23:00",
        "٢٠٢٦-01-01T00:00:00Z",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidUsageError):
        parse_instant(text)


def test_a_range_defaults_to_the_thirty_days_before_its_end() -> None:
    now_ns = ns("2026-03-01")

    assert parse_range(None, None, now_ns=now_ns) == Range(now_ns - 30 * DAY_NS, now_ns)
    assert parse_range("2026-02-01", None, now_ns=now_ns) == Range(ns("2026-02-01"), now_ns)
    assert parse_range(None, "2026-02-01T00:00:01Z", now_ns=now_ns) == Range(
        ns("2026-02-01") + SECOND_NS - 30 * DAY_NS, ns("2026-02-01") + SECOND_NS
    )


@pytest.mark.parametrize("start", ["2026-02-01", "2026-02-01T00:00:00.000000001Z"])
def test_an_empty_range_is_refused(start: str) -> None:
    with pytest.raises(InvalidUsageError, match="is empty"):
        parse_range(start, "2026-02-01", now_ns=0)


def test_a_date_is_midnight_of_whoever_asks() -> None:
    hour_ns = 3_600 * SECOND_NS

    found = parse_range(
        "2026-02-01", "2026-02-02", now_ns=0, midnight=lambda day: utc_midnight(day) - hour_ns
    )

    assert found == Range(ns("2026-02-01") - hour_ns, ns("2026-02-02") - hour_ns)


@pytest.mark.parametrize(
    "text", ["2026-02-30", "0000-01-01", "1969-12-31", "2107-01-01", "9999-12-31"]
)
def test_a_date_that_does_not_exist_or_is_far_off_is_refused(text: str) -> None:
    with pytest.raises(InvalidUsageError, match=text):
        parse_range("1970-01-01", text, now_ns=0)
