"""Windows and ranges: pieces cover a range exactly, and instants survive text."""

from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_metering.errors import InvalidUsageError
from query_api.periods import (
    MAX_NS,
    SECOND_NS,
    Grain,
    Range,
    Window,
    clip,
    end_of,
    format_instant,
    parse_instant,
    parse_range,
    pieces_for,
    start_of,
)

DAY_NS = 86_400 * SECOND_NS
instants = st.integers(0, MAX_NS - 1)
ranges = st.lists(instants, min_size=2, max_size=2, unique=True).map(lambda e: Range(*sorted(e)))
short_ranges = st.builds(
    lambda start, length: Range(start, start + length),
    st.integers(0, MAX_NS - 1 - 62 * DAY_NS),
    st.integers(1, 62 * DAY_NS),
)


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


@given(ranges | short_ranges, st.sampled_from(Window))
def test_pieces_cover_the_range_without_gap_or_overlap(within: Range, window: Window) -> None:
    pieces = pieces_for(within, window)

    assert pieces[0].range.start_ns == within.start_ns
    assert pieces[-1].range.end_ns == within.end_ns
    for piece, following in pairwise(pieces):
        assert piece.range.end_ns == following.range.start_ns


@given(ranges | short_ranges, st.sampled_from(Window))
def test_each_piece_is_whole_rows_within_one_window_each(within: Range, window: Window) -> None:
    coarsest = Grain.MONTH if window is Window.TOTAL else Grain[window.name]

    for piece in pieces_for(within, window):
        assert piece.range.start_ns < piece.range.end_ns
        assert piece.grain <= coarsest
        assert start_of(piece.range.start_ns, piece.grain) == piece.range.start_ns
        assert start_of(piece.range.end_ns, piece.grain) == piece.range.end_ns


@given(short_ranges)
def test_no_coarser_row_would_have_fitted(within: Range) -> None:
    for piece in pieces_for(within, Window.TOTAL):
        if piece.grain is not Grain.MONTH:
            coarser = Grain(piece.grain + 1)
            first = start_of(piece.range.start_ns + end_of(0, coarser) - 1, coarser)
            assert not (
                first >= piece.range.start_ns and end_of(first, coarser) <= piece.range.end_ns
            )


@pytest.mark.parametrize(
    ("start", "end", "window", "grains"),
    [
        ("2026-01-01", "2026-02-01", Window.TOTAL, [Grain.MONTH]),
        ("2026-01-01", "2026-02-01", Window.HOUR, [Grain.HOUR]),
        ("2026-01-31T22:00:00", "2026-02-01T00:01:00", Window.DAY, [Grain.HOUR, Grain.MINUTE]),
        (
            "2026-01-30T23:58:59",
            "2026-03-02T01:01:01",
            Window.TOTAL,
            [
                Grain.EVENT,
                Grain.MINUTE,
                Grain.DAY,
                Grain.MONTH,
                Grain.DAY,
                Grain.HOUR,
                Grain.MINUTE,
                Grain.EVENT,
            ],
        ),
    ],
)
def test_the_inside_is_coarse_and_the_edges_are_fine(
    start: str, end: str, window: Window, grains: list[Grain]
) -> None:
    pieces = pieces_for(Range(ns(start), ns(end)), window)

    assert [piece.grain for piece in pieces] == grains


@pytest.mark.parametrize(
    ("grain", "start", "end"),
    [
        (Grain.EVENT, "2024-02-29T23:59:58", None),
        (Grain.MINUTE, "2024-02-29T23:59:00", "2024-03-01"),
        (Grain.HOUR, "2024-02-29T23:00:00", "2024-03-01"),
        (Grain.DAY, "2024-02-29", "2024-03-01"),
        (Grain.MONTH, "2024-02-01", "2024-03-01"),
    ],
)
def test_rows_start_and_end_with_the_calendar(grain: Grain, start: str, end: str | None) -> None:
    at = ns("2024-02-29T23:59:58")

    assert start_of(at, grain) == ns(start)
    assert end_of(at, grain) == (ns(end) if end else at + 1)


def test_windows_are_cut_where_the_range_is() -> None:
    within = Range(ns("2026-01-31T12:00:00"), ns("2026-02-01T12:00:00"))

    assert clip(ns("2026-01-31"), Window.DAY, within) == Range(within.start_ns, ns("2026-02-01"))
    assert clip(ns("2026-02-01"), Window.MONTH, within) == Range(ns("2026-02-01"), within.end_ns)
    assert clip(0, Window.TOTAL, within) == within
