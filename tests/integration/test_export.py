"""Events leave complete and exact: as JSON, CSV and lines of JSON, page by page or in one stream."""

import csv
import io
import json
import random
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx
import pyarrow as pa
import pytest

from query_api import event_queries
from query_api.queries import Statement
from query_api.routes import events
from receiver.store import tables
from receiver.store.keys import Scope
from tests.integration.api_harness import Api, running_api
from tests.waiting import eventually

EVENTS = "/v1/meter/events"
AT = 1_769_904_000_000_000_000
"""2026-02-01T00:00:00Z"""
WITHIN = {"from": "2026-01-01", "to": "2026-03-01"}
ODD = ["", 'a"b', "x,y", "two\nlines", "é\t☃", "\\N", "'; DROP TABLE x --", "{}"]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("export")) as running:
        yield running


@pytest.fixture(scope="module")
def reader(api: Api) -> httpx.Client:
    return api.client(Scope.QUERY)


def store(api: Api, tenants: list[str], count: int, seed: int) -> list[dict[str, Any]]:
    """Events of some tenants and meters, many at the same time, with odd texts; some are corrected."""
    chance = random.Random(seed)
    rows = [
        {
            "event_id": UUID(int=chance.getrandbits(128)),
            "tenant_id": chance.choice(tenants),
            "meter": chance.choice(["api.calls", "b"]),
            "quantity": f"{chance.randrange(-(10**12), 10**12)}e-{chance.randrange(10)}",
            "timestamp": AT + chance.randrange(4) * chance.choice([1, 500_000_000]),
            "start_time": chance.choice([0, AT]),
            "attributes": {"odd": chance.choice(ODD), chance.choice(ODD[1:]): "x"},
            "dimensions": {"odd": chance.choice(ODD)},
        }
        for _ in range(count)
    ]
    api.insert(rows)
    correct(api, rows[::5])
    return rows


def correct(api: Api, rows: list[dict[str, Any]]) -> None:
    moment = pa.timestamp("ns", "UTC")
    table = pa.table(
        {
            "event_id": pa.array([row["event_id"].bytes for row in rows], pa.binary(16)),
            "tenant_id": [row["tenant_id"] for row in rows],
            "meter": [row["meter"] for row in rows],
            "timestamp": pa.array([row["timestamp"] for row in rows], moment),
            "action": ["void" if i % 2 else "correct" for i in range(len(rows))],
            "reason": [ODD[i % len(ODD)] or "-" for i in range(len(rows))],
            "replaced_by": pa.array([bytes([i % 2]) * 16 for i in range(len(rows))], pa.binary(16)),
            "corrected_at": pa.array([AT // 10**6 + 5] * len(rows), pa.timestamp("ms", "UTC")),
        }
    )
    api.store.insert(tables.EVENT_CORRECTIONS, table, token=str(rows[0]["event_id"]))


def listed(reader: httpx.Client, **parameters: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    asked = {**WITHIN, "limit": 1000, **parameters}
    while True:
        page = reader.get(EVENTS, params=asked).json()
        found += page["data"]
        if page["next_cursor"] is None:
            return found
        asked["cursor"] = page["next_cursor"]


def from_csv(text: str) -> list[dict[str, Any]]:
    """What a CSV answer says, in the shape of JSON."""
    found = []
    for row in csv.DictReader(io.StringIO(text, newline="")):
        event: dict[str, Any] = {k: v for k, v in row.items() if not k.startswith("correction.")}
        correction = {
            k.removeprefix("correction."): v or None
            for k, v in row.items()
            if k.startswith("correction.")
        }
        for name in ("attributes", "dimensions"):
            event[name] = json.loads(event[name])
        for name in ("start_time", "trace_id", "span_id"):
            event[name] = event[name] or None
        is_corrected = event["status"] != "counted"
        event["correction"] = {**correction, "key_id": ""} if is_corrected else None
        found.append(event)
    return found


def ordered(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(found, key=lambda event: str(event["uuid"]))


@pytest.mark.parametrize("page", [1, 7, 50, 10_000])
def test_an_export_has_each_event_once_in_the_order_of_the_key(
    api: Api, reader: httpx.Client, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(events, "EXPORT_PAGE", page)
    tenants = [f"x{page}.a", f"x{page}.b"]
    stored = store(api, tenants, 50, page)
    store(api, [f"{page}.other"], 5, page + 1)

    # One tenant after the other, for a reader that may see both.
    lines = [
        line
        for tenant in tenants
        for line in reader.get(
            f"{EVENTS}/export", params={**WITHIN, "tenant_id": tenant}
        ).text.splitlines()
    ]

    found = [json.loads(line) for line in lines]
    assert sorted(one["uuid"] for one in found) == sorted(str(row["event_id"]) for row in stored)
    keys = [(one["tenant_id"], one["meter"], one["timestamp"]) for one in found]
    assert [key[:2] for key in keys] == sorted(key[:2] for key in keys)
    expected = [event for tenant in tenants for event in listed(reader, tenant_id=tenant)]
    assert ordered(found) == ordered(expected)
    assert {one["status"] for one in found} == {"counted", "voided", "corrected"}


def test_an_export_of_all_tenants_is_complete(
    api: Api, reader: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "EXPORT_PAGE", 3)
    store(api, ["all.a", "all.b"], 20, 77)

    found = [
        json.loads(line) for line in reader.get(f"{EVENTS}/export", params=WITHIN).text.splitlines()
    ]

    assert ordered(found) == ordered(listed(reader))


def test_csv_and_lines_of_json_say_what_json_says(api: Api, reader: httpx.Client) -> None:
    store(api, ["formats"], 60, 5)
    asked = {**WITHIN, "tenant_id": "formats"}
    expected = listed(reader, tenant_id="formats")

    page = reader.get(EVENTS, params={**asked, "limit": 40, "format": "csv"})
    rest = reader.get(
        EVENTS,
        params={
            **asked,
            "limit": 40,
            "format": "csv",
            "cursor": page.headers["x-next-cursor"],
        },
    )
    lines = reader.get(EVENTS, params={**asked, "limit": 1000, "format": "ndjson"})
    exported = reader.get(f"{EVENTS}/export", params={**asked, "format": "csv"})

    assert from_csv(page.text) + from_csv(rest.text) == expected
    assert "x-next-cursor" not in rest.headers
    assert [json.loads(line) for line in lines.text.splitlines()] == expected
    assert ordered(from_csv(exported.text)) == ordered(expected)
    assert page.headers["content-type"].startswith("text/csv")
    assert lines.headers["content-type"].startswith("application/x-ndjson")


def test_conditions_on_attributes_choose_events(api: Api, reader: httpx.Client) -> None:
    values = ["eu-west", "eu-east", "us", "", "o'dd", "eu"]
    chance = random.Random(3)
    api.insert(
        [
            {
                "event_id": UUID(int=chance.getrandbits(128)),
                "tenant_id": "conditions",
                "timestamp": AT + i,
                "attributes": {"region": value} if value else {},
            }
            for i, value in enumerate(values)
        ]
    )

    def chosen(**conditions: Any) -> set[str]:
        asked = {**WITHIN, "tenant_id": "conditions", **conditions}
        found = {one["attributes"].get("region", "") for one in listed(reader, **asked)}
        text = reader.get(f"{EVENTS}/export", params=asked).text
        exported = {json.loads(o)["attributes"].get("region", "") for o in text.splitlines()}
        assert found == exported
        return found

    assert chosen(**{"filter[region]": ["us", "o'dd"]}) == {"us", "o'dd"}
    assert chosen(**{"filter[region][prefix]": "eu-"}) == {"eu-west", "eu-east"}
    assert chosen(**{"filter[region][prefix]": ["eu-w", "u"]}) == {"eu-west", "us"}
    assert chosen(**{"filter[region][not]": ["us", "eu"]}) == {"eu-west", "eu-east", "", "o'dd"}
    assert chosen(**{"filter[region][prefix]": "eu", "filter[region][not]": "eu"}) == {
        "eu-west",
        "eu-east",
    }
    assert chosen(**{"attribute[region]": "us"}) == {"us"}
    # A percent sign or underscore is a character, not a pattern.
    assert chosen(**{"filter[region][prefix]": "%"}) == set()


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"filter[a][like]": "x"}, "[prefix] or [not]"),
        ({"filter[a]": ["x"] * 101}, "101 values"),
        ({"limit": "5"}, "'limit' is unknown"),
        ({"format": "json"}, "format"),
        ({"from": "2026-01-02", "to": "2026-01-01"}, "empty"),
    ],
)
def test_an_export_that_cannot_be_made_says_why(
    reader: httpx.Client, parameters: dict[str, Any], said: str
) -> None:
    response = reader.get(f"{EVENTS}/export", params=parameters)

    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"
    assert said in response.json()["detail"]


def test_an_export_ends_with_its_client(
    api: Api, reader: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its second page would take the engine for ever; the client leaves after the first."""
    store(api, ["slow"], 40, 9)
    monkeypatch.setattr(events, "EXPORT_PAGE", 5)
    pages, make = [0], event_queries.export

    def slow(*arguments: Any) -> Any:
        pages[0] += 1
        if pages[0] == 1:
            return make(*arguments)
        return Statement(
            "SELECT sleepEachRow(0.1) FROM numbers(600) SETTINGS max_block_size = 1, "
            "function_sleep_max_microseconds_per_block = 0",
            {},
        )

    monkeypatch.setattr(event_queries, "export", slow)

    def running() -> int:
        query = "SELECT count() FROM system.processes WHERE query LIKE 'SELECT sleepEachRow%'"
        return int(api.store.query(query)[0][0])

    with reader.stream(
        "GET", f"{EVENTS}/export", params={**WITHIN, "tenant_id": "slow"}
    ) as response:
        lines = response.iter_lines()  # kept: without it the connection would be closed at once
        next(lines)
        eventually(running, lambda count: count == 1)
    eventually(running, lambda count: count == 0, seconds=10)
