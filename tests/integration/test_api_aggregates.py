"""Answers about usage: tables, pages, order, formats, and what cannot be answered.

That their values are right is what test_aggregates_oracle.py checks.
"""

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import httpx
import pytest

from receiver.store.keys import Scope
from tests.integration.api_harness import Api, running_api

SECOND = 1_000_000_000
START = int(datetime.fromisoformat("2026-01-31T23:59:59Z").timestamp()) * SECOND


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("aggregates")) as running:
        yield running


@pytest.fixture(scope="module")
def reader(api: Api) -> httpx.Client:
    return api.client(Scope.QUERY)


def get(reader: httpx.Client, **parameters: Any) -> dict[str, Any]:
    names = {"from_": "from"}
    response = reader.get(
        "/v1/meter/aggregates", params={names.get(k, k): v for k, v in parameters.items()}
    )
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


@pytest.mark.parametrize(
    ("window", "start", "end", "table"),
    [
        ("total", "2026-01-01", "2026-03-01", "metering.usage_month"),
        ("day", "2026-01-01", "2026-03-01", "metering.usage_day"),
        ("hour", "2026-01-01", "2026-03-01", "metering.usage_hour"),
        ("total", "2026-01-02", "2026-01-09", "metering.usage_day"),
        ("total", "2026-01-02T05:00:00Z", "2026-01-02T07:00:00Z", "metering.usage_hour"),
        ("total", "2026-01-02T05:07:00Z", "2026-01-02T05:09:00Z", "metering.usage_minute"),
        ("total", "2026-01-02T05:07:00.5Z", "2026-01-02T05:08:00Z", "metering.events"),
    ],
)
def test_the_coarsest_table_that_answers_exactly_is_read(
    reader: httpx.Client, window: str, start: str, end: str, table: str
) -> None:
    parameters = {"meter": "api.calls", "window": window, "from": start, "to": end}

    answer = reader.get("/v1/meter/aggregates", params=parameters).json()

    assert answer["table"] == table


@pytest.mark.parametrize(("percentile", "low", "high"), [("p50", 480, 520), ("p99", 980, 1000)])
def test_a_percentile_merges_rollups_and_edges(
    api: Api, reader: httpx.Client, percentile: str, low: int, high: int
) -> None:
    start = START
    rows = [
        {
            "event_id": UUID(int=i),
            "tenant_id": "tenant_p",
            "meter": "latency",
            "quantity": i,
            "timestamp": start + (i * 7919 % 1000) * 60 * SECOND,
        }
        for i in range(1000)
    ]
    api.insert(rows)

    answer = get(
        reader,
        meter="latency",
        aggregation=percentile,
        from_="2026-01-31T23:59:58.999999999Z",
        to="2026-02-12T13:46:39Z",
    )

    value = Decimal(answer["data"][0]["value"])

    assert low <= value <= high


def test_a_percentile_of_one_event_is_its_quantity(api: Api, reader: httpx.Client) -> None:
    row = {"event_id": UUID(int=1), "tenant_id": "tenant_q", "meter": "latency2", "quantity": "0.1"}
    api.insert([{**row, "timestamp": START}])

    answer = get(reader, meter="latency2", aggregation="p95", from_="2026-01-31", to="2026-02-01")

    assert answer["data"][0]["value"] == "0.1"


def test_the_definition_of_the_meter_decides_what_is_not_asked(
    api: Api, reader: httpx.Client
) -> None:
    at = api.clock.ns - SECOND
    rows = [{"event_id": UUID(int=i), "tenant_id": "tenant_d", "quantity": 7} for i in range(3)]
    api.insert([{**row, "meter": "requests", "timestamp": at} for row in rows])

    answer = reader.get("/v1/meter/aggregates", params={"meter": "requests"}).json()

    assert (answer["aggregation"], answer["window"], answer["unit"]) == ("count", "total", "")
    assert [row["value"] for row in answer["data"]] == ["3"]


def test_a_range_without_events_has_no_rows(reader: httpx.Client) -> None:
    answer = reader.get("/v1/meter/aggregates", params={"meter": "never.seen"}).json()

    assert answer["data"] == []


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({}, "meter"),
        ({"meter": "a b"}, "rename it"),
        ({"meter": "api.calls", "group_by": "color"}, "plan, region"),
        ({"meter": "requests", "filter[color]": "red"}, "its dimensions: none"),
        ({"meter": "api.calls", "tenant": "tenant_a"}, "'tenant' is unknown"),
        ({"meter": "api.calls", "window": "fortnight"}, "minute, 15m, hour"),
        ({"meter": "api.calls", "window": "last_1_days", "from": "2026-01-01"}, "leave out from"),
        ({"meter": "api.calls", "window": "last_99999_months"}, "before 1970"),
        ({"meter": "api.calls", "window": "minute", "from": "2020-01-01"}, "shorten the range"),
        ({"meter": "api.calls", "timezone": "Mars/Base"}, "IANA"),
        ({"meter": "api.calls", "top": "3"}, "group_by"),
        ({"meter": "api.calls", "top": "0", "group_by": "plan"}, "top"),
        ({"meter": "api.calls", "filter[region][suffix]": "u"}, "[prefix] or [not]"),
        ({"meter": "api.calls", "filters[region]": "u"}, "filters[region]"),
        ({"meter": "api.calls", "compare": "previous", "from": "1970-01-02"}, "before 1970"),
        ({"meter": "api.calls", "cursor": "nonsense"}, "not one of ours"),
        ({"meter": "api.calls", "limit": "100001"}, "limit"),
        ({"meter": "api.calls", "aggregation": "median"}, "'sum', 'count'"),
        ({"meter": "api.calls", "from": "yesterday"}, "RFC 3339"),
        ({"meter": "api.calls", "from": "2026-01-02", "to": "2026-01-02"}, "is empty"),
        ({"meter": ["a", "b"]}, "given twice"),
    ],
)
def test_a_request_that_cannot_be_answered_says_why(
    reader: httpx.Client, parameters: dict[str, Any], said: str
) -> None:
    response = reader.get("/v1/meter/aggregates", params=parameters)

    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"
    assert said in response.json()["detail"]


def test_meters_are_those_defined_and_those_used(api: Api, reader: httpx.Client) -> None:
    at = api.clock.ns - SECOND
    api.insert(
        [{"event_id": UUID(int=1), "tenant_id": "tenant_m", "meter": "new", "timestamp": at}]
    )

    meters = reader.get("/v1/meter/meters", params={"tenant_id": "tenant_m"}).json()["data"]

    assert [(meter["slug"], meter["events"], meter["is_defined"]) for meter in meters] == [
        ("api.calls", 0, True),
        ("new", 1, False),
        ("requests", 0, True),
    ]


def test_the_number_of_events_has_no_corrected_ones(api: Api, reader: httpx.Client) -> None:
    rows = [
        {
            "event_id": UUID(int=i),
            "tenant_id": "tenant_v",
            "meter": "voided",
            "timestamp": START + i * 3_600 * SECOND,
        }
        for i in range(6)
    ]
    api.insert(rows)
    api.correct(rows[::2])

    def counted(start: str) -> int:
        parameters = {"tenant_id": "tenant_v", "from": start, "to": "2026-02-02"}
        meters = reader.get("/v1/meter/meters", params=parameters).json()["data"]
        return next(int(i["events"]) for i in meters if i["slug"] == "voided")

    # From rollups, and, where the edge is ragged, from the events.
    assert counted("2026-01-31") == 3
    assert counted("2026-01-31T23:59:58.5Z") == 3
    assert counted("2026-01-31T23:59:59.5Z") == 3
    assert counted("2026-02-01T00:59:59.5Z") == 2
