"""Each event is read once, from a row that has nothing but its window, and from no finer one than needed."""

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from query_api.periods import MAX_NS, SECOND_NS, Grain, Range
from query_api.plan import Cells, Read, floor, plan
from query_api.windows import Window, cut
from query_api.zones import Zone

NO_EDGES = np.array([], dtype=np.int64)
DAY_NS = 86_400 * SECOND_NS
ROLLUPS = [Grain.MINUTE, Grain.HOUR, Grain.DAY, Grain.MONTH]

ranges = st.builds(
    lambda start, length: Range(start, start + length),
    st.integers(0, MAX_NS - 1 - 100 * DAY_NS)
    | st.integers(0, 49_000).map(lambda days: days * DAY_NS)
    | st.integers(0, 49_000 * 1440).map(lambda minutes: minutes * 60 * SECOND_NS),
    st.integers(1, 90 * DAY_NS) | st.integers(1, 90).map(lambda days: days * DAY_NS),
)
zones = st.sampled_from(
    ["UTC", "Asia/Kathmandu", "Europe/Berlin", "Australia/Lord_Howe", "Africa/Monrovia"]
)


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND_NS


def row_of(at_ns: int, grain: Grain) -> tuple[int, int]:
    """The row of a table that an event is in, in ns."""
    if grain is Grain.EVENT:
        return at_ns, at_ns + 1
    at = datetime.fromtimestamp(at_ns // SECOND_NS, UTC)
    if grain is Grain.MONTH:
        start = at.replace(day=1, hour=0, minute=0, second=0)
        end = start.replace(year=at.year + at.month // 12, month=at.month % 12 + 1)
        return int(start.timestamp()) * SECOND_NS, int(end.timestamp()) * SECOND_NS
    length = {Grain.MINUTE: 60, Grain.HOUR: 3_600, Grain.DAY: 86_400}[grain] * SECOND_NS
    return at_ns - at_ns % length, at_ns - at_ns % length + length


def is_in(at_ns: int, cells: Cells) -> bool:
    return row_of(at_ns, cells.grain)[0] // SECOND_NS in cells.starts.tolist()


def has(read: Read, at_ns: int) -> bool:
    """Whether a table's condition takes the row of an event."""
    start_ns, _ = row_of(at_ns, read.grain)
    return (
        read.range.start_ns <= start_ns < read.range.end_ns
        and (not read.any_of or any(is_in(at_ns, cells) for cells in read.any_of))
        and not any(is_in(at_ns, cells) for cells in read.none_of)
    )


@given(
    within=ranges,
    window=st.sampled_from([w for w in Window if w not in {Window.MINUTE, Window.QUARTER_HOUR}]),
    zone=zones,
    dirty_grain=st.sampled_from([None, *ROLLUPS]),
    places=st.lists(st.floats(0, 0.999999), min_size=1, max_size=12),
    dirty_places=st.lists(st.floats(0, 0.999999), min_size=1, max_size=4),
)
def test_each_event_is_read_once_and_from_the_coarsest_row_that_may_be(
    within: Range,
    window: Window,
    zone: str,
    dirty_grain: Grain | None,
    places: list[float],
    dirty_places: list[float],
) -> None:
    length = within.end_ns - within.start_ns
    windows = cut(within, window, Zone(zone))
    edges = windows.starts[1:].tolist()
    dirty_at = [within.start_ns + int(i * length) for i in dirty_places] if dirty_grain else []
    dirty = None
    if dirty_grain:
        starts = {row_of(at, dirty_grain)[0] // SECOND_NS for at in dirty_at}
        dirty = Cells(dirty_grain, np.array(sorted(starts), dtype=np.int64))

    reads = plan(within, windows.starts[1:], dirty)

    def may_be_read(at_ns: int, grain: Grain) -> bool:
        start_ns, end_ns = row_of(at_ns, grain)
        if grain is Grain.EVENT:
            return True
        cuts = [within.start_ns, within.end_ns, *(edge * SECOND_NS for edge in edges)]
        is_clean = dirty is None or not (
            is_in(at_ns, dirty)
            if grain <= dirty.grain
            else any(start_ns <= at < end_ns for at in dirty_at)
        )
        return is_clean and not any(start_ns < at < end_ns for at in cuts)

    assert [read.grain for read in reads] == sorted({read.grain for read in reads}, reverse=True)
    corners = [
        within.start_ns,
        within.end_ns - 1,
        *(e * SECOND_NS - k for e in edges[:40] for k in (0, 1)),
    ]
    for at_ns in [*corners, *dirty_at, *(within.start_ns + int(i * length) for i in places)]:
        found = [read.grain for read in reads if has(read, at_ns)]
        assert len(found) == 1
        assert may_be_read(at_ns, found[0])
        coarser = [g for g in ROLLUPS if found[0] < g <= max(read.grain for read in reads)]
        assert not any(may_be_read(at_ns, grain) for grain in coarser)
    for outside in (within.start_ns - 1, within.end_ns):
        assert not any(has(read, outside) for read in reads if outside >= 0)


@pytest.mark.parametrize(
    ("start", "end", "window", "grains"),
    [
        ("2026-01-01", "2026-02-01", Window.TOTAL, [Grain.MONTH]),
        ("2026-01-01", "2026-02-01", Window.HOUR, [Grain.HOUR]),
        ("2026-01-01", "2026-02-01", Window.QUARTER_HOUR, [Grain.MINUTE]),
        ("2026-01-01", "2026-02-01", Window.WEEK, [Grain.DAY]),
        ("2026-01-31T22:00:00", "2026-02-01T00:01:00", Window.DAY, [Grain.HOUR, Grain.MINUTE]),
        (
            "2026-01-30T23:58:59",
            "2026-03-02T01:01:01",
            Window.TOTAL,
            [Grain.MONTH, Grain.DAY, Grain.HOUR, Grain.MINUTE, Grain.EVENT],
        ),
        ("2026-01-01T00:00:01", "2026-01-01T00:00:59", Window.TOTAL, [Grain.EVENT]),
    ],
)  # fmt: skip
def test_the_inside_is_coarse_and_the_edges_are_fine(
    start: str, end: str, window: Window, grains: list[Grain]
) -> None:
    within = Range(ns(start), ns(end))

    reads = plan(within, cut(within, window, Zone("UTC")).starts[1:])

    assert [read.grain for read in reads] == grains


def test_days_of_a_quarter_hour_zone_come_from_hours_and_few_minutes() -> None:
    within = Range(ns("2025-12-31T18:15:00"), ns("2026-12-31T18:15:00"))

    reads = plan(within, cut(within, Window.DAY, Zone("Asia/Kathmandu")).starts[1:])

    assert [read.grain for read in reads] == [Grain.HOUR, Grain.MINUTE]
    assert [len(cells.starts) for cells in reads[1].any_of] == [366]


def test_only_a_corrected_minute_is_read_from_events() -> None:
    within = Range(ns("2026-01-01"), ns("2026-03-01"))
    minute_s = ns("2026-01-15T12:34:00") // SECOND_NS
    dirty = Cells(Grain.MINUTE, np.array([minute_s], dtype=np.int64))

    reads = plan(within, NO_EDGES, dirty)

    assert [read.grain for read in reads] == [
        Grain.MONTH, Grain.DAY, Grain.HOUR, Grain.MINUTE, Grain.EVENT,
    ]  # fmt: skip
    assert reads[-1].range == Range(minute_s * SECOND_NS, (minute_s + 60) * SECOND_NS)


def test_events_alone_are_read_when_nothing_coarser_may_be() -> None:
    within = Range(ns("2026-01-01"), ns("2026-03-01"))

    reads = plan(within, NO_EDGES, coarsest=Grain.EVENT)

    assert [(read.grain, read.range) for read in reads] == [(Grain.EVENT, within)]


def test_more_cells_than_a_statement_may_list_are_read_from_a_finer_table() -> None:
    within = Range(ns("1980-01-01"), ns("2020-01-01"))

    reads = plan(within, cut(within, Window.DAY, Zone("Asia/Kathmandu")).starts[1:])

    assert [read.grain for read in reads] == [Grain.MINUTE]


@given(st.integers(0, MAX_NS // SECOND_NS - 1), st.sampled_from(ROLLUPS))
def test_rows_begin_with_the_calendar(at_s: int, grain: Grain) -> None:
    found = floor(np.array([at_s], dtype=np.int64), grain).tolist()

    assert found == [row_of(at_s * SECOND_NS, grain)[0] // SECOND_NS]
