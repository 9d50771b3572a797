"""What a clock on a wall shows: every zone, as the tz database says through `zoneinfo` itself."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_metering.errors import InvalidUsageError
from query_api.zones import Zone, load

SECOND = 1_000_000_000
names = st.sampled_from(sorted(available_timezones()))
seconds = st.integers(0, 4_291_747_199)


def shown(name: str, at_s: int) -> datetime:
    return datetime.fromtimestamp(at_s, ZoneInfo(name)).replace(tzinfo=None)


def utc(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


@given(names, seconds, st.integers(1, 3 * 366 * 86_400), st.lists(st.floats(0, 1), max_size=20))
def test_the_offset_of_a_stretch_is_that_of_each_of_its_seconds(
    name: str, start_s: int, length: int, places: list[float]
) -> None:
    stretches = Zone(name).stretches(start_s, start_s + length)

    assert (stretches[0].start_s, stretches[-1].end_s) == (start_s, start_s + length)
    for stretch in stretches:
        inside = [stretch.start_s + int(i * (stretch.end_s - stretch.start_s - 1)) for i in places]
        for at_s in (stretch.start_s, stretch.end_s - 1, *inside):
            local = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=at_s + stretch.offset_s)
            assert local.replace(tzinfo=None) == shown(name, at_s)


@given(names, st.dates(date(1970, 1, 3), date(2105, 12, 30)))
def test_a_day_begins_when_its_date_is_first_shown(name: str, day: date) -> None:
    at_s = Zone(name).midnight(day) // SECOND

    assert shown(name, at_s).date() >= day
    # Nobody's clock is put forward and back within a day: what is before shows an earlier date.
    assert all(shown(name, at_s - back).date() < day for back in (1, 60, 3_600, 86_400))


@pytest.mark.parametrize(
    ("name", "day", "begins"),
    [
        ("UTC", date(2026, 3, 1), "2026-03-01T00:00:00"),
        ("Asia/Kathmandu", date(2026, 3, 1), "2026-02-28T18:15:00"),
        # Put forward from 00:00 to 01:00: the day begins at one o'clock.
        ("America/Sao_Paulo", date(2017, 10, 15), "2017-10-15T03:00:00"),
        # Put back from 00:01 to 23:01: midnight comes twice, the day begins at the first.
        ("America/St_Johns", date(2010, 11, 7), "2010-11-07T02:30:00"),
        # Left out: it begins, and ends, when the next day does.
        ("Pacific/Apia", date(2011, 12, 30), "2011-12-30T10:00:00"),
        ("Pacific/Apia", date(2011, 12, 31), "2011-12-30T10:00:00"),
        # 44 minutes and 30 seconds behind UTC until 1972.
        ("Africa/Monrovia", date(1971, 7, 1), "1971-07-01T00:44:30"),
    ],
)
def test_days_begin_where_clocks_are_changed(name: str, day: date, begins: str) -> None:
    assert Zone(name).midnight(day) == utc(begins) * SECOND


def test_many_times_are_found_as_each_is_alone() -> None:
    local = np.arange(utc("2026-01-01"), utc("2027-01-01"), 7_200, dtype=np.int64)

    together = Zone("Europe/Berlin").first(local)

    assert together.tolist() == [
        int(Zone("Europe/Berlin").first(local[i : i + 1])[0]) for i in range(len(local))
    ]


@pytest.mark.parametrize(
    "name",
    ["", "Europe/Atlantis", "../etc/passwd", "Europe", "right/UTC", "utc ", "x" * 1000, "\0"],
)
def test_what_is_no_zone_is_refused(name: str) -> None:
    with pytest.raises(InvalidUsageError, match="IANA"):
        load(name)
