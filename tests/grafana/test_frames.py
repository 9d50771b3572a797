"""Answers become frames as the plugin and Grafana's SDK make them."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from grafana.emulator import frames
from grafana.emulator.frames import Column, FrameError
from grafana.emulator.time_range import TimeRange

AT = [datetime(2026, 9, 17, 10, minute, tzinfo=UTC) for minute in range(3)]
MS = [1789639200000, 1789639260000, 1789639320000]
COLUMNS = [
    Column("time", "DateTime('UTC')"),
    Column("meter", "LowCardinality(String)"),
    Column("used", "Decimal(38, 9)"),
]


@pytest.mark.parametrize(
    ("clickhouse", "expected"),
    [
        ("UInt8", "number"),
        ("Nullable(Int64)", "number"),
        ("Float64", "number"),
        ("Decimal(38, 9)", "number"),
        ("SimpleAggregateFunction(sum, Decimal(38, 9))", "number"),
        ("Bool", "boolean"),
        ("String", "string"),
        ("LowCardinality(Nullable(String))", "string"),
        ("Enum8('a' = 1, 'b' = 2)", "string"),
        ("Date", "time"),
        ("DateTime64(9, 'UTC')", "time"),
        ("Nullable(DateTime)", "time"),
        ("Map(String, String)", "other"),
        ("Array(UInt8)", "other"),
    ],
)
def test_each_type_becomes_what_the_plugin_converts_it_to(clickhouse: str, expected: str) -> None:
    assert Column("x", clickhouse).field_type == expected


@pytest.mark.parametrize("clickhouse", ["UUID", "AggregateFunction(uniqExact, String)"])
def test_a_type_without_a_converter_is_an_error(clickhouse: str) -> None:
    with pytest.raises(FrameError):
        _ = Column("x", clickhouse).field_type


def test_a_table_keeps_rows_and_columns() -> None:
    columns = [*COLUMNS, Column("day", "Date"), Column("ratio", "Nullable(Float64)")]
    rows = [(AT[0], "a", Decimal("1.5"), date(2026, 9, 17), float("nan"))]

    assert frames.table(columns, rows, "B").to_json() == {
        "schema": {
            "refId": "B",
            "fields": [
                {"name": "time", "type": "time"},
                {"name": "meter", "type": "string"},
                {"name": "used", "type": "number"},
                {"name": "day", "type": "time"},
                {"name": "ratio", "type": "number"},
            ],
        },
        "data": {"values": [[MS[0]], ["a"], [1.5], [1789603200000], [None]]},
    }


def test_a_series_for_each_label_on_one_axis_with_null_where_it_has_nothing() -> None:
    rows = [
        (AT[0], "a", Decimal(1)),
        (AT[1], "a", Decimal(2)),
        (AT[1], "b", Decimal(3)),
        (AT[2], "b", Decimal(4)),
    ]

    frame = frames.series(COLUMNS, rows)

    assert frame is not None
    assert frame.to_json() == {
        "schema": {
            "refId": "A",
            "fields": [
                {"name": "time", "type": "time"},
                {"name": "used", "type": "number", "labels": {"meter": "a"}},
                {"name": "used", "type": "number", "labels": {"meter": "b"}},
            ],
        },
        "data": {"values": [MS, [1.0, 2.0, None], [None, 3.0, 4.0]]},
    }


def test_booleans_are_labels_too_and_without_labels_each_number_is_a_series() -> None:
    labelled = frames.series(
        [COLUMNS[0], Column("ok", "Bool"), Column("n", "UInt8")], [(AT[0], True, 1)]
    )
    plain = frames.series([COLUMNS[0], Column("n", "UInt8"), Column("m", "UInt8")], [(AT[0], 1, 2)])

    assert labelled is not None
    assert labelled.fields[1].labels == {"ok": "true"}
    assert plain is not None
    assert [(one.name, one.values) for one in plain.fields[1:]] == [("n", [1]), ("m", [2])]


def test_no_rows_are_no_frame() -> None:
    assert frames.series(COLUMNS, []) is None


def test_times_have_to_ascend() -> None:
    with pytest.raises(FrameError, match="ascend"):
        frames.series(COLUMNS, [(AT[1], "a", Decimal(1)), (AT[0], "a", Decimal(1))])


def test_a_series_needs_a_time_and_a_number() -> None:
    for columns in (COLUMNS[:2], COLUMNS[1:]):
        with pytest.raises(FrameError):
            frames.series(columns, [(AT[0], "a")])


def test_rows_of_one_time_and_label_are_found() -> None:
    rows = [(AT[0], "a", 1), (AT[0], "a", 2), (AT[0], "b", 1)]

    assert frames.duplicates(COLUMNS, rows) == 1


def test_an_interval_gives_about_a_thousand_points_and_is_round() -> None:
    end = AT[0]

    assert TimeRange.last(timedelta(hours=24), end).interval_ms() == 60_000
    assert TimeRange.last(timedelta(minutes=5), end).interval_ms() == 1_000
