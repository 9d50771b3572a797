"""Pages, order, the largest groups, the previous period, and the formats of aggregates."""

import base64
import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import httpx
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receiver.store.keys import Scope
from tests.integration.api_harness import Api, running_api

SECOND = 1_000_000_000
URL = "/v1/meter/aggregates"
ROLL = {"meter": "roll", "from": "2026-01-01", "to": "2026-01-06", "window": "day"}
BOTH = {**ROLL, "group_by": ["tenant_id", "region"]}
USAGE = [
    # (day, tenant, region, quantity); none on the third, and equal ones for ties.
    (1, "a", "eu", "1.5"),
    (1, "b", "eu", "100000000000000000000000000000.000000001"),
    (1, "b", "us", "100000000000000000000000000000"),
    (2, "a", "eu", "1.5"),
    (2, "c", "=eu", "-7"),
    (4, "a", "us", "0.000000001"),
    (4, "b", "eu", "2"),
    (5, "c", "=eu", "9"),
    (5, "a", "ü\n,\"", "1.5"),
]  # fmt: skip


def day_ns(day: int) -> int:
    return int(datetime(2026, 1, day, 12, tzinfo=UTC).timestamp()) * SECOND


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("pages")) as running:
        running.insert(
            [
                {
                    "event_id": UUID(int=i),
                    "tenant_id": tenant,
                    "meter": "roll",
                    # A rollup holds 38 digits, nine of them decimals.
                    "quantity": Decimal(quantity) / (10 if len(quantity) > 25 else 1),
                    "timestamp": day_ns(day),
                    "dimensions": {"region": region},
                }
                for i, (day, tenant, region, quantity) in enumerate(USAGE)
            ]
        )
        yield running


@pytest.fixture(scope="module")
def reader(api: Api) -> httpx.Client:
    return api.client(Scope.QUERY)


def get(reader: httpx.Client, **parameters: Any) -> dict[str, Any]:
    response = reader.get(URL, params=parameters)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def pages(reader: httpx.Client, **parameters: Any) -> Iterator[list[dict[str, Any]]]:
    answer = get(reader, **parameters)
    yield answer["data"]
    while answer["next_cursor"]:
        answer = get(reader, **parameters, cursor=answer["next_cursor"])
        yield answer["data"]


def groups(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (row["window_start"][8:10], row["tenant_id"], row["dimensions"]["region"]) for row in rows
    ]


@settings(max_examples=40)
@given(
    limit=st.integers(1, 12),
    order=st.sampled_from(["window_start", "value", "-value"]),
    group_by=st.sampled_from([[], ["region"], ["tenant_id", "region"]]),
    top=st.sampled_from([None, 2]),
    fill=st.sampled_from([None, "zero"]),
    compare=st.sampled_from([None, "previous"]),
    window=st.sampled_from(["day", "week", "total", "last_5_days"]),
    aggregation=st.sampled_from(["sum", "avg", "min"]),
)
def test_pages_together_are_the_whole_answer(
    reader: httpx.Client, limit: int, window: str, **others: Any
) -> None:
    asked = {k: v for k, v in others.items() if v is not None}
    if not others["group_by"]:
        asked.pop("top", None)
    asked |= {**ROLL, "window": window}
    if window == "last_5_days":
        del asked["from"]

    whole = get(reader, **asked)
    found = list(pages(reader, **asked, limit=limit))

    assert whole["next_cursor"] is None
    assert [row for page in found for row in page] == whole["data"]
    assert all(len(page) == limit for page in found[:-1])
    assert len(found[-1]) <= limit


def test_the_end_of_a_range_up_to_now_does_not_move_between_pages(
    api: Api, reader: httpx.Client
) -> None:
    asked = {"meter": "roll", "window": "day", "from": "2026-01-01", "limit": 1}
    before = api.clock.ns
    try:
        api.clock.ns = day_ns(4) - 1
        first = get(reader, **asked)
        api.clock.ns = day_ns(6)
        second = get(reader, **asked, cursor=first["next_cursor"])
    finally:
        api.clock.ns = before

    assert second["next_cursor"] is None
    assert [row["window_start"][:10] for row in second["data"]] == ["2026-01-02"]


@pytest.mark.parametrize(
    "other",
    [
        {"window": "hour"},
        {"timezone": "Asia/Kolkata"},
        {"tenant_id": "a"},
        {"filter[region]": "eu"},
        {"aggregation": "max"},
        {"order": "value"},
        {"group_by": "region"},
        {"from": "2025-12-31"},
    ],
)
def test_a_cursor_is_refused_with_other_parameters(
    reader: httpx.Client, other: dict[str, str]
) -> None:
    cursor = get(reader, **BOTH, limit=1)["next_cursor"]

    assert get(reader, **BOTH, limit=3, cursor=cursor)["data"]
    response = reader.get(URL, params={**BOTH, **other, "cursor": cursor})

    assert response.status_code == 400
    assert "other parameters" in response.json()["detail"]


def test_a_cursor_of_another_tenant_gets_nothing_of_it(api: Api, reader: httpx.Client) -> None:
    cursor = get(reader, **BOTH, limit=1)["next_cursor"]

    response = api.client(Scope.QUERY, tenant_id="c").get(URL, params={**BOTH, "cursor": cursor})

    assert response.status_code == 400


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2, 3, 4]",
        '["x", Infinity, 1, 0, [], null]',
        '["x", NaN, 1, 0, [], null]',
        '["x", 0, 1, 0, [], "NaN"]',
        '["x", 0, 1, 0, [], "snan"]',
        '["x", 0, 1, 0, ["\\ud800"], "1"]',
        '["x", 0, 1, -1, [], "1"]',
        '["x", 5, 1, 0, [], "1"]',
        '["x", 0, 1e30, 0, [], "1"]',
        "[" * 20_000,
    ],
)
@pytest.mark.parametrize("url", [URL, "/v1/meter/events"])
def test_what_is_no_cursor_is_refused(reader: httpx.Client, url: str, text: str) -> None:
    cursor = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    response = reader.get(url, params={**(ROLL if url == URL else {}), "cursor": cursor})

    assert response.status_code == 400
    assert "not one of ours" in response.json()["detail"]


def test_values_are_sorted_by_all_their_digits(reader: httpx.Client) -> None:
    largest = get(reader, **BOTH, order="-value")["data"]
    smallest = get(reader, **BOTH, order="value")["data"]

    # Two differ in the 38th digit; three are equal, and sorted by window and groups both times.
    assert groups(largest)[:3] == [("01", "b", "eu"), ("01", "b", "us"), ("05", "c", "=eu")]
    ties = [("01", "a", "eu"), ("02", "a", "eu"), ("05", "a", 'ü\n,"')]
    assert [i for i in groups(largest) if i in ties] == ties
    assert [i for i in groups(smallest) if i in ties] == ties
    assert groups(smallest)[0] == ("02", "c", "=eu")


def test_the_largest_groups_are_those_of_the_whole_range(reader: httpx.Client) -> None:
    # a has 1.5 + 1.5 + 0.000000001 + 1.5, b 2e28, c 2.
    rows = get(reader, **{**ROLL, "group_by": "tenant_id"}, top=2)["data"]

    assert {row["tenant_id"] for row in rows} == {"a", "b"}
    assert [row["window_start"][8:10] for row in rows] == ["01", "01", "02", "04", "04", "05"]
    averages = get(reader, **{**ROLL, "group_by": "tenant_id"}, top=2, aggregation="avg")["data"]
    assert {row["tenant_id"] for row in averages} == {"a", "b"}
    counts = get(reader, **{**ROLL, "group_by": "region"}, top=3, aggregation="count")["data"]
    # us and =eu both have two: the name decides.
    assert {row["dimensions"]["region"] for row in counts} == {"eu", "us", "=eu"}
    counts = get(reader, **{**ROLL, "group_by": "region"}, top=2, aggregation="count")["data"]
    assert {row["dimensions"]["region"] for row in counts} == {"eu", "=eu"}


def test_gaps_are_zeros_for_each_group_and_null_where_nothing_has_no_value(
    reader: httpx.Client,
) -> None:
    asked = {**ROLL, "group_by": "tenant_id", "fill": "zero"}

    rows = get(reader, **asked)["data"]

    assert len(rows) == 5 * 3
    assert [row["value"] for row in rows if row["tenant_id"] == "c"] == ["0", "-7", "0", "0", "9"]
    rows = get(reader, **asked, aggregation="max")["data"]
    assert [i["value"] for i in rows if i["tenant_id"] == "c"] == [None, "-7", None, None, "9"]
    # Without groups there is always one; with groups, none occurs.
    nothing = {"meter": "never", "from": "2026-01-01", "to": "2026-01-04", "window": "day"}
    assert [i["value"] for i in get(reader, **nothing, fill="zero")["data"]] == ["0", "0", "0"]
    assert get(reader, **nothing, fill="zero", group_by="tenant_id")["data"] == []
    # What has no value is last, both ways.
    for order in ("value", "-value"):
        values = [i["value"] for i in get(reader, **asked, aggregation="max", order=order)["data"]]
        assert values.count(None) == 7
        assert values[-7:] == [None] * 7


def test_a_period_is_compared_with_the_one_before(reader: httpx.Client) -> None:
    asked = {"meter": "roll", "from": "2026-01-04", "to": "2026-01-06", "window": "day"}

    answer = get(reader, **asked, group_by="tenant_id", compare="previous")

    assert answer["previous"] == {"from": "2026-01-02T00:00:00Z", "to": "2026-01-04T00:00:00Z"}
    assert [(i["tenant_id"], i["value"], i["previous_value"]) for i in answer["data"]] == [
        ("a", "0.000000001", "1.5"),
        ("b", "2", None),
        ("a", "1.5", None),
        ("c", "9", None),
    ]
    filled = get(reader, **asked, group_by="tenant_id", compare="previous", fill="zero")["data"]
    assert [(i["tenant_id"], i["value"], i["previous_value"]) for i in filled[:3]] == [
        ("a", "0.000000001", "1.5"),
        ("b", "2", "0"),
        ("c", "0", "-7"),
    ]


def test_a_month_is_compared_with_the_days_that_the_month_before_has(
    reader: httpx.Client,
) -> None:
    asked = {"meter": "roll", "from": "2026-03-01", "to": "2026-04-01", "window": "day"}

    rows = get(reader, **asked, compare="previous", fill="zero")["data"]

    # February has 28 days: the last three of March have nothing to be compared with.
    assert [row["previous_value"] for row in rows] == ["0"] * 28 + [None] * 3


def test_a_rolling_window_is_one_row_up_to_the_end(reader: httpx.Client) -> None:
    answer = get(reader, meter="roll", window="last_2_days", to="2026-01-06", timezone="Asia/Tokyo")

    assert (answer["window"], answer["timezone"]) == ("last_2_days", "Asia/Tokyo")
    assert answer["data"] == [
        {
            "window_start": "2026-01-03T15:00:00Z",
            "window_end": "2026-01-05T15:00:00Z",
            "dimensions": {},
            "value": "12.500000001",
        }
    ]


def test_csv_has_a_column_for_each_field_and_no_formulas(reader: httpx.Client) -> None:
    response = reader.get(URL, params={**BOTH, "format": "csv", "compare": "previous"})

    assert response.headers["content-type"].startswith("text/csv")
    header, *rows = csv.reader(io.StringIO(response.text))
    assert header == [
        "window_start", "window_end", "tenant_id", "dimensions.region", "value", "previous_value",
    ]  # fmt: skip
    data = get(reader, **BOTH)["data"]
    assert [row[2:5] for row in rows] == [
        [
            row["tenant_id"],
            row["dimensions"]["region"].replace("=eu", "'=eu"),
            row["value"],
        ]
        for row in data
    ]
    # A negative number is a number.
    assert ["c", "'=eu", "-7", ""] in [row[2:] for row in rows]


@pytest.mark.parametrize("first", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx"])
def test_text_that_a_spreadsheet_would_run_has_an_apostrophe(
    api: Api, reader: httpx.Client, first: str
) -> None:
    # OWASP, CSV Injection: cells that begin with = + - @, tab, carriage return or line feed.
    meter = f"formulas.{ord(first[0])}"
    api.insert(
        [
            {
                "event_id": UUID(int=1),
                "tenant_id": "t",
                "meter": meter,
                "timestamp": day_ns(1),
                "dimensions": {"formula": first},
            }
        ]
    )
    asked = {**ROLL, "meter": meter, "group_by": "formula", "format": "csv"}

    _, row = csv.reader(io.StringIO(reader.get(URL, params=asked).text, newline=""))

    assert row[2] == "'" + first


def test_lines_of_json_are_the_rows(reader: httpx.Client) -> None:
    response = reader.get(URL, params=BOTH, headers={"accept": "application/x-ndjson"})

    assert response.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in response.text.rstrip("\n").split("\n")] == get(
        reader, **BOTH
    )["data"]


def test_arrow_has_instants_and_exact_decimals(reader: httpx.Client) -> None:
    asked = {**BOTH, "format": "arrow", "compare": "previous"}

    table = pa.ipc.open_stream(reader.get(URL, params=asked).content).read_all()

    assert table.schema.field("value").type == pa.decimal128(38, 9)
    assert table.schema.field("window_start").type == pa.timestamp("ns", "UTC")
    data = get(reader, **BOTH)["data"]
    assert [Decimal(row["value"]) for row in data] == table["value"].to_pylist()
    assert table["dimensions.region"].to_pylist() == [row["dimensions"]["region"] for row in data]
    assert table["previous_value"].null_count == len(data)
    estimates = reader.get(URL, params={**asked, "aggregation": "p50"}).content
    assert pa.ipc.open_stream(estimates).schema.field("value").type == pa.string()


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "application/json"),
        ("text/html", "application/json"),
        ("text/csv", "text/csv; charset=utf-8"),
        ("application/json;q=0.5, text/csv;q=0.6", "text/csv; charset=utf-8"),
        ("text/csv;q=0, application/json;q=0.1", "application/json"),
        ("application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.stream"),
    ],
)
def test_the_header_accept_picks_a_format(
    reader: httpx.Client, accept: str, media_type: str
) -> None:
    response = reader.get(URL, params=ROLL, headers={"accept": accept})

    assert response.headers["content-type"] == media_type


@pytest.mark.parametrize("written", ["csv", "ndjson", "arrow"])
def test_other_formats_tell_the_next_cursor_in_a_header(reader: httpx.Client, written: str) -> None:
    asked: dict[str, Any] = {**BOTH, "format": written, "limit": 4}

    first = reader.get(URL, params=asked)
    second = reader.get(URL, params={**asked, "cursor": first.headers["x-next-cursor"]})
    third = reader.get(URL, params={**asked, "cursor": second.headers["x-next-cursor"]})

    assert "x-next-cursor" not in third.headers


@pytest.mark.parametrize("written", ["json", "csv"])
def test_what_is_known_already_is_not_sent_again(
    api: Api, reader: httpx.Client, written: str
) -> None:
    asked: dict[str, Any] = {**ROLL, "meter": f"tagged.{written}", "format": written}
    row = {"tenant_id": "t", "meter": asked["meter"], "timestamp": day_ns(1)}
    api.insert([{**row, "event_id": UUID(int=1)}])

    first = reader.get(URL, params=asked)
    tag = first.headers["etag"]
    for known in (tag, f'"other", W/{tag}', "*"):
        again = reader.get(URL, params=asked, headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert reader.get(URL, params=asked, headers={"if-none-match": '"x"'}).status_code == 200

    api.insert([{**row, "event_id": UUID(int=2)}])
    changed = reader.get(URL, params=asked, headers={"if-none-match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag


def test_an_answer_of_any_length_is_paged_or_streamed_and_never_cut(
    api: Api, reader: httpx.Client
) -> None:
    # Straight into one rollup: 100,001 groups through all views would take a quarter of a minute.
    api.store.execute(
        "INSERT INTO metering.usage_month (tenant_id, meter, window_start, dimensions, quantity_sum) "
        "SELECT 'tenant_l', 'many', toDateTime('2026-01-01', 'UTC'), map('n', toString(number)), 1 "
        "FROM numbers(100001)"
    )
    asked: dict[str, Any] = {
        "meter": "many",
        "from": "2026-01-01",
        "to": "2026-02-01",
        "group_by": "n",
    }

    first = get(reader, **asked)
    assert (len(first["data"]), first["next_cursor"] is None) == (1000, False)
    lines = reader.get(URL, params={**asked, "format": "ndjson"}).text.splitlines()
    assert len({json.loads(line)["dimensions"]["n"] for line in lines}) == len(lines) == 100_001
    for refused in ({"format": "csv"}, {"order": "value"}, {"fill": "zero"}, {"format": "arrow"}):
        response = reader.get(URL, params={**asked, **refused})
        assert response.status_code == 413, refused
        assert "100000 rows" in response.json()["detail"]
    assert len(get(reader, **asked, top=5)["data"]) == 5
    assert [row["value"] for row in get(reader, **asked, **{"filter[n]": "7"})["data"]] == ["1"]
