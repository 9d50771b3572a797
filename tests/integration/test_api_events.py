"""Events over HTTP: sent exactly, seen exactly once."""

import json
import random
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from uuid import UUID

import httpx
import pytest

from otel_metering.contract.event import UsageEvent
from otel_metering.errors import UnavailableError
from receiver.store.keys import Scope
from tests.integration.api_harness import Api, running_api

EVENTS = "/v1/meter/events"
AT = 1_769_904_000_000_000_000
"""2026-02-01T00:00:00Z"""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("events")) as running:
        yield running


@pytest.fixture(scope="module")
def sender(api: Api) -> httpx.Client:
    return api.client(Scope.INGEST)


@pytest.fixture(scope="module")
def reader(api: Api) -> httpx.Client:
    return api.client(Scope.QUERY)


def rows(tenant_id: str, count: int, *, first: int = 0) -> list[dict[str, Any]]:
    shuffled = random.Random(first)
    return [
        {
            "event_id": UUID(int=shuffled.getrandbits(128)),
            "tenant_id": tenant_id,
            "timestamp": AT + shuffled.randrange(5) * 1_000_000_001,
        }
        for _ in range(count)
    ]


def pages(reader: httpx.Client, **parameters: Any) -> Iterator[list[dict[str, Any]]]:
    while True:
        answer = reader.get(EVENTS, params=parameters).json()
        yield answer["data"]
        if answer["next_cursor"] is None:
            return
        parameters["cursor"] = answer["next_cursor"]


def test_one_event_answers_like_a_list(api: Api, sender: httpx.Client) -> None:
    body = '{"tenant_id": "tenant_a", "meter": "api.calls", "quantity": 0.10, "event_id": "one"}'

    responses = [sender.post(EVENTS, content=text) for text in (body, f"[{body}]")]

    assert [response.status_code for response in responses] == [202, 202]
    assert responses[0].json() == {"accepted": 1, "duplicates": 0, "rejected": []}
    assert responses[1].json() == {"accepted": 0, "duplicates": 1, "rejected": []}


def test_what_is_sent_arrives_exactly(api: Api, sender: httpx.Client) -> None:
    event = (
        '{"tenant_id": "tenant_x", "meter": "api.calls", "quantity": 9007199254740993.000000001, '
        '"timestamp": "2026-02-01T01:30:00.123456789+01:30", "event_id": "é", '
        '"attributes": {"n": 1.50, "b": true, "text": "x", "none": null, "big": 12345678901234567890}}'
    )

    sender.post(EVENTS, content=event)

    assert api.ledger.events[-1] == UsageEvent(
        tenant_id="tenant_x",
        meter="api.calls",
        quantity=Decimal("9007199254740993.000000001"),
        timestamp_ns=AT + 123_456_789,
        event_id="é",
        attributes={"n": "1.5", "b": "true", "text": "x", "big": "12345678901234567890"},
    )


def test_a_bad_event_costs_its_neighbours_nothing(api: Api, sender: httpx.Client) -> None:
    good = {"tenant_id": "tenant_a", "meter": "api.calls"}
    body = [{"meter": "api.calls"}, good, {**good, "tenant_id": "refused"}, 7, good]

    answer = sender.post(EVENTS, json=body).json()

    assert answer["accepted"] == 2
    assert [rejection["index"] for rejection in answer["rejected"]] == [0, 2, 3]
    assert answer["rejected"][1]["reason"] == "tenant refused"


def test_a_bound_key_writes_its_tenant_alone(api: Api) -> None:
    sender = api.client(Scope.INGEST, tenant_id="tenant_b")
    body = [{"meter": "own"}, {"meter": "own", "tenant_id": "tenant_a"}]

    answer = sender.post(EVENTS, json=body).json()

    assert answer["accepted"] == 1
    assert api.ledger.events[-1].tenant_id == "tenant_b"
    assert [rejection["index"] for rejection in answer["rejected"]] == [1]
    assert "bound to 'tenant_b'" in answer["rejected"][0]["reason"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"\xff", 400, "not JSON"),
        (b'[{"quantity": NaN}]', 400, "NaN"),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b'"text"', 400, "neither an object nor a list"),
        (json.dumps([{}] * 10_001).encode(), 413, "the limit is 10000"),
        (b" " * (16 * 1024 * 1024 + 1), 413, "16777216 bytes"),
    ],
)
def test_a_body_that_holds_no_events_is_a_problem(
    sender: httpx.Client, body: bytes, status: int, said: str
) -> None:
    response = sender.post(EVENTS, content=body)

    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert said in response.json()["detail"]


def test_when_nothing_can_be_accepted_the_sender_shall_send_again(api: Api) -> None:
    def refuse(*_: object) -> None:
        raise UnavailableError("the spool is full")

    sender = api.client(Scope.INGEST)
    with api.submitting(refuse):
        response = sender.post(EVENTS, json={"tenant_id": "tenant_a", "meter": "api.calls"})

    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["detail"] == "the spool is full"


def test_ten_thousand_events_are_read_quickly(api: Api, sender: httpx.Client) -> None:
    event = {
        "event_id": "id",
        "tenant_id": "tenant_a",
        "meter": "api.calls",
        "quantity": "1.25",
        "timestamp": "2026-02-01T00:00:00.5Z",
        "attributes": {"region": "eu", "plan": "pro"},
    }
    body = json.dumps([event] * 10_000)

    started = time.perf_counter()
    response = sender.post(EVENTS, content=body)
    elapsed_seconds = time.perf_counter() - started

    assert response.json()["accepted"] + response.json()["duplicates"] == 10_000
    # A guard against an accident, not a measurement: it takes 0.1 s on an idle core.
    assert elapsed_seconds < 2


def test_an_event_is_shown_as_it_was_stored(api: Api, reader: httpx.Client) -> None:
    uuid = UUID("00112233-4455-6677-8899-aabbccddeeff")
    api.insert(
        [
            {
                "event_id": uuid,
                "tenant_id": "tenant_s",
                "quantity": "12345678901234567890.100000000",
                "timestamp": AT + 1,
                "start_time": AT - 500_000_000,
                "dimensions": {"region": "eu"},
                "attributes": {"region": "eu", "metering.event.id": "mine", "é": "ü"},
                "service_name": "shop",
                "signal": "span",
                "trace_id": "0af7651916cd43dd8448eb211c80319c",
                "span_id": "b7ad6b7169203331",
                "ingested_at": AT // 1_000_000 + 250,
            }
        ]
    )

    parameters = {"tenant_id": "tenant_s", "from": "2026-01-01", "to": "2026-03-01"}
    answer = reader.get(EVENTS, params=parameters).json()

    assert answer == {
        "data": [
            {
                "event_id": "mine",
                "uuid": str(uuid),
                "tenant_id": "tenant_s",
                "meter": "api.calls",
                "quantity": "12345678901234567890.1",
                "timestamp": "2026-02-01T00:00:00.000000001Z",
                "start_time": "2026-01-31T23:59:59.5Z",
                "attributes": {"region": "eu", "metering.event.id": "mine", "é": "ü"},
                "dimensions": {"region": "eu"},
                "service_name": "shop",
                "signal": "span",
                "trace_id": "0af7651916cd43dd8448eb211c80319c",
                "span_id": "b7ad6b7169203331",
                "ingested_at": "2026-02-01T00:00:00.25Z",
                "status": "counted",
                "correction": None,
            }
        ],
        "next_cursor": None,
    }
    for event_id in ("mine", str(uuid), str(uuid).upper()):
        found = reader.get(EVENTS, params={**parameters, "event_id": event_id}).json()["data"]
        assert len(found) == 1
    assert not reader.get(EVENTS, params={**parameters, "event_id": "other"}).json()["data"]


@pytest.mark.parametrize("limit", [1, 7, 100])
def test_the_pages_have_each_event_exactly_once_newest_first(
    api: Api, reader: httpx.Client, limit: int
) -> None:
    tenant_id = f"tenant_pages_{limit}"
    stored = rows(tenant_id, 40, first=limit)
    api.insert(stored)
    seen: list[dict[str, Any]] = []

    found = pages(
        reader, tenant_id=tenant_id, limit=limit, **{"from": "2026-01-01", "to": "2026-03-01"}
    )
    for page in found:
        if not seen:
            # Newer than the first page, so it belongs to none that follows.
            api.insert([{**rows(tenant_id, 1, first=99)[0], "timestamp": AT + 10**12}])
        seen += page

    assert sorted(event["event_id"] for event in seen) == sorted(str(r["event_id"]) for r in stored)
    times = [event["timestamp"] for event in seen]
    assert times == sorted(times, reverse=True)


def test_a_cursor_keeps_the_range_of_its_first_page(api: Api, reader: httpx.Client) -> None:
    stored = [
        {**row, "timestamp": api.clock.ns - 29 * 86_400 * 10**9}
        for row in rows("tenant_clock", 2, first=3)
    ]
    api.insert(stored)

    first = reader.get(EVENTS, params={"tenant_id": "tenant_clock", "limit": 1}).json()
    api.clock.advance(2 * 86_400)
    api.keys.refresh()
    parameters = {"tenant_id": "tenant_clock", "limit": 1, "cursor": first["next_cursor"]}
    second = reader.get(EVENTS, params=parameters).json()

    assert len(first["data"] + second["data"]) == 2


def test_filters_and_edges_choose_events(api: Api, reader: httpx.Client) -> None:
    base = rows("tenant_f", 4, first=4)
    attributes = [{"region": "eu"}, {"region": "us", "plan": "pro"}, {}, {"region": "o'dd"}]
    api.insert(
        [
            {**row, "attributes": names, "timestamp": AT + i, "quantity": i}
            for i, (row, names) in enumerate(zip(base, attributes, strict=True))
        ]
    )

    def quantities(**parameters: Any) -> list[str]:
        query = {"tenant_id": "tenant_f", "from": "2026-02-01", "to": "2026-02-02"} | parameters
        return [event["quantity"] for event in reader.get(EVENTS, params=query).json()["data"]]

    assert quantities() == ["3", "2", "1", "0"]
    assert quantities(**{"filter[region]": ["eu", "us"]}) == ["1", "0"]
    assert quantities(**{"filter[region]": ["eu", "us"], "filter[plan]": "pro"}) == ["1"]
    assert quantities(**{"filter[region]": "o'dd"}) == ["3"]
    assert quantities(**{"filter[region]": ""}) == ["2"]
    assert quantities(meter="other") == []
    edges = {"from": "2026-02-01T00:00:00.000000001Z", "to": "2026-02-01T00:00:00.000000003Z"}
    assert quantities(**edges) == ["2", "1"]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"cursor": "x"}, "not one of ours"),
        ({"cursor": "W10"}, "not one of ours"),
        ({"tenant": "a"}, "'tenant' is unknown"),
        ({f"filter[{i}]": "x" for i in range(17)}, "17 filters"),
    ],
)
def test_a_listing_that_cannot_be_made_says_why(
    reader: httpx.Client, parameters: dict[str, Any], said: str
) -> None:
    response = reader.get(EVENTS, params=parameters)

    assert response.status_code == 400
    assert said in response.json()["detail"]
