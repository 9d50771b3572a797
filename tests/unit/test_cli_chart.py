"""Charts: as wide as allowed, exact where they say numbers, and never a zero for what is none."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_metering.cli.chart import Style, bars, columns, merged, scale_of, short

numbers = st.decimals(
    allow_nan=False, allow_infinity=False, min_value=-(10**25), max_value=10**25, places=9
)
styles = st.builds(lambda width, is_ascii: Style(width=width, is_ascii=is_ascii), st.integers(40, 200), st.booleans())  # fmt: skip


def draw(values: list[int]) -> list[str]:
    some = [Decimal(value) for value in values]
    return columns(some, ("first", "last"), scale_of(some), Style(width=40), height=4)


def test_columns_are_as_high_as_their_values() -> None:
    # 40 cells, of which 2 are the axis: 7 for each column, with one between two.
    column, gap = "█" * 6, " " * 7

    assert draw([0, 1, 2, 3, 4]) == [
        "4 " + 4 * gap + column,
        "  " + 3 * gap + f"{column} {column}",
        "  " + 2 * gap + f"{column} {column} {column}",
        "  " + gap + f"{column} {column} {column} {column}",
        "0 " + "─" * 35,
        "  first" + " " * 26 + "last",
    ]


@given(st.lists(numbers, min_size=1, max_size=400), styles)
def test_no_line_is_wider_than_the_terminal(values: list[Decimal], style: Style) -> None:
    ends = ("2026-01-01 00:00", "2026-12-31 23:00")
    lines = columns(values, ends, scale_of(values), style)
    lines += bars([("a label that is long enough to be cut" * 2, value) for value in values], style)

    assert max(len(line) for line in lines) <= style.width
    assert not style.is_ascii or all(line.isascii() for line in lines)


@given(st.lists(numbers, min_size=1, max_size=20), styles)
def test_what_is_not_zero_is_seen(values: list[Decimal], style: Style) -> None:
    lines = bars([("x", value) for value in values], style)

    for line, value in zip(lines, values, strict=True):
        assert (style.full in line) == (value != 0)


def test_more_windows_than_fit_are_drawn_by_their_largest() -> None:
    values = [Decimal(0)] * 999 + [Decimal(5)]

    assert merged(1000, scale_of(values), Style(width=80)) == 13
    drawn = columns(values, ("a", "b"), scale_of(values), Style(width=80))
    assert drawn[0] == "5" + " " * 77 + "█"


def test_negative_values_hang_below_zero() -> None:
    column, gap = "█" * 7, " " * 8

    # "-2" makes the axis one wider: 37 cells, at most 8 for a column.
    assert draw([2, -2])[:5] == [
        " 2 " + column,
        "   " + column,
        " 0 " + "─" * 16,
        "   " + gap + column,
        "-2 " + gap + column,
    ]
    up, down = bars([("up", Decimal(1)), ("down", Decimal(-1))], Style(width=27))
    assert up == "up    1 " + " " * 10 + "█" * 9
    assert down == "down -1 " + "█" * 10


def test_all_zero_and_nothing_finite_are_an_empty_drawing() -> None:
    assert draw([0, 0])[-2].startswith("0 ─")
    nan = [Decimal("NaN"), Decimal(0)]
    assert "█" not in "".join(columns(nan, ("a", "b"), scale_of(nan), Style(width=40)))
    assert bars([("x", Decimal("NaN"))], Style(width=40)) == ["x NaN"]


def test_labels_that_are_too_long_lose_their_middle() -> None:
    (line,) = bars([("tenant-with-a-long-name-000001", Decimal(7))], Style(width=30))

    assert line.startswith("tenant-")
    assert "…" in line
    assert "000001 7 █" in line


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0", "0"),
        ("1", "1"),
        ("999", "999"),
        ("999.96", "1k"),
        ("1000", "1k"),
        ("1234", "1.2k"),
        ("-98765432", "-98.8M"),
        ("0.5", "0.5"),
        ("0.000000001", "1E-9"),
        ("98765432109876543210", "98.8E"),
        ("1E+30", "1000000Y"),
    ],
)
def test_numbers_on_an_axis_are_short(value: str, text: str) -> None:
    assert short(Decimal(value)) == text
