"""Receiver and query APIs as processes of their own: as exact as in one, however many APIs there are."""

import http.client
import threading
import urllib.error
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import pytest

from tests.e2e.separate import Api, Separate, running_separately
from tests.e2e.up import KEY, Up
from tests.otlp import NOON, Point, metrics_request, post
from tests.waiting import eventually

MINUTE = "2026-09-21T14:13:00Z"
"""That of `NOON`."""


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Separate]:
    with running_separately(tmp_path_factory.mktemp("separate")) as running:
        yield running


def ask(up: Up, method: str, path: str, key: str = KEY, **arguments: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.request(method, f"http://{up.api}{path}", headers=headers, timeout=30, **arguments)


def usage_of(up: Up, tenant: str) -> int:
    """The usage of `api.calls` of one tenant."""
    bounds = {"from": "2026-01-01T00:00:00Z", "to": "2027-01-01T00:00:00Z"}
    parameters = {"meter": "api.calls", "tenant_id": tenant, "window": "month", **bounds}
    answer = ask(up, "GET", "/v1/meter/aggregates", params=parameters)
    answer.raise_for_status()
    return sum(int(row["value"]) for row in answer.json()["data"])


def event(tenant: str, number: int) -> dict[str, Any]:
    return {
        "tenant_id": tenant,
        "meter": "api.calls",
        "event_id": f"{tenant}-{number}",
        "timestamp": MINUTE,
    }


def otlp(up: Up, tenant: str, number: int) -> int:
    """Send a call to the receiver; the status of the answer."""
    point = Point(tenant, 1, at_ns=NOON + number, start_ns=NOON - 1)
    body = metrics_request([point]).SerializeToString()
    return post(up.http, "/v1/metrics", body, KEY, timeout=10)[0]


def post_event(up: Up, body: object) -> int:
    return ask(up, "POST", "/v1/meter/events", json=body).status_code


def until_taken(send: Callable[[], int]) -> None:
    """Send the same until it is acknowledged, as every client does."""

    def status() -> int:
        try:
            return send()
        except (OSError, http.client.HTTPException, httpx.HTTPError):
            return 0  # nobody listens, or the answer was cut off

    eventually(status, lambda found: found in {200, 202}, seconds=120)


def test_usage_sent_anywhere_is_read_at_every_api(processes: Separate) -> None:
    first, second = processes.apis

    assert otlp(processes.receiver, "anywhere", 1) == 200
    answer = ask(first, "POST", "/v1/meter/events", json=[event("anywhere", i) for i in range(3)])

    assert answer.json() == {"accepted": 3, "duplicates": 0, "rejected": []}
    for api in (first, second):
        eventually(partial(usage_of, api, "anywhere"), lambda found: found == 4)
    repeated = ask(second, "POST", "/v1/meter/events", json=event("anywhere", 1))
    assert repeated.json() == {"accepted": 0, "duplicates": 1, "rejected": []}


def test_a_quota_is_never_exceeded_whoever_is_asked(processes: Separate) -> None:
    first, second = processes.apis
    quota = {"tenant_id": "limited", "meter": "api.calls", "limit": "50", "period": "month"}
    assert ask(first, "PUT", "/v1/meter/quotas", json=quota).status_code == 200

    def reserve(number: int) -> bool:
        api = processes.apis[number % 2]
        asked = {"tenant_id": "limited", "meter": "api.calls", "quantity": "1", "reserve": True}
        answer = ask(api, "POST", "/v1/meter/validate", json=asked)
        assert answer.status_code == 200
        return bool(answer.json()["allowed"])

    with ThreadPoolExecutor(8) as pool:
        allowed = list(pool.map(reserve, range(80)))

    assert sum(allowed) == 50
    for api in (first, second):
        (status,) = api.get("/v1/meter/quotas/status", tenant_id="limited")["data"]
        assert (status["used"], status["reserved"], status["remaining"]) == ("0", "50", "0")


def test_a_key_is_made_and_revoked_for_every_process(processes: Separate) -> None:
    first, second = processes.apis
    new = {"name": "n", "scopes": ["query", "ingest"]}
    made = ask(first, "POST", "/v1/meter/keys", json=new).json()

    def may(up: Up) -> bool:
        return ask(up, "GET", "/v1/meter/meters", made["key"]).status_code == 200

    assert may(first)
    assert may(processes.receiver)
    eventually(lambda: may(second), bool, seconds=5)

    assert ask(second, "DELETE", f"/v1/meter/keys/{made['key_id']}").status_code == 200
    assert not may(second)
    assert not may(processes.receiver)
    assert (
        ask(first, "POST", "/v1/meter/events", made["key"], json=event("t", 1)).status_code == 401
    )
    eventually(lambda: may(first), lambda found: not found, seconds=5)
    audit = first.get("/v1/meter/audit", target=made["key_id"])["data"]
    assert [row["action"] for row in audit] == ["key.revoke", "key.create"]
    assert {row["key_id"] for row in audit} == {"root"}


def test_an_event_is_corrected_through_any_api(processes: Separate) -> None:
    first, second = processes.apis
    assert ask(first, "POST", "/v1/meter/events", json=event("wrong", 1)).status_code == 202

    body = {"reason": "a test", "tenant_id": "wrong", "meter": "api.calls"}
    answer = ask(second, "POST", "/v1/meter/events/wrong-1/void", json=body)

    assert answer.status_code == 200, answer.text
    eventually(lambda: usage_of(first, "wrong"), lambda found: found == 0)
    assert first.get("/v1/meter/events/wrong-1", tenant_id="wrong", meter="api.calls")[
        "status"
    ] == ("voided")


def test_a_meter_made_through_one_api_is_fed_through_the_other(processes: Separate) -> None:
    first, second = processes.apis
    meter = {"slug": "made.here", "eventType": "made", "aggregation": "COUNT"}
    assert ask(first, "POST", "/api/v1/meters", json=meter).status_code == 201
    sent = {"specversion": "1.0", "id": "1", "source": "s", "type": "made", "subject": "fed"}

    assert ask(second, "POST", "/api/v1/events", json=sent).status_code == 204

    assert ask(first, "GET", "/api/v1/meters/made.here").status_code == 200
    query = "/api/v1/meters/made.here/query"
    eventually(
        lambda: [row["value"] for row in ask(second, "GET", query).json().get("data", ())],
        lambda found: found == [1.0],
    )


def test_metrics_are_those_of_the_receiver_and_health_is_ones_own(processes: Separate) -> None:
    api = processes.apis[0]

    assert "otel_metering_receiver_edge_in_total" in ask(api, "GET", "/metrics").text
    assert set(api.get("/v1/meter/health")["checks"]) == {"database", "meters", "receiver"}


def test_while_the_receiver_is_killed_reads_go_on_and_nothing_is_lost_or_counted_twice(
    processes: Separate,
) -> None:
    first, second = processes.apis
    until_taken(partial(post_event, first, event("killed", 0)))
    eventually(lambda: usage_of(first, "killed"), lambda found: found == 1)
    senders = [
        Sender(partial(post_numbered, first, 1_000_000)),
        Sender(partial(post_numbered, second, 2_000_000)),
        Sender(lambda number: otlp(processes.receiver, "killed", 1_000 + number)),
    ]
    with sending(senders):
        eventually(lambda: [one.count for one in senders], lambda counts: min(counts) >= 3)
        processes.receiver.kill()
        assert usage_of(first, "killed") >= 1
        answer = ask(second, "POST", "/v1/meter/validate", json=event("killed", 0))
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "1"
        assert processes.receiver.api in answer.json()["detail"]
        health = second.get("/v1/meter/health")
        assert (health["status"], health["checks"]["receiver"]["status"]) == ("ok", "failed")
        before = [one.count for one in senders]
        processes.receiver.start()
        eventually(
            lambda: [one.count for one in senders],
            lambda counts: all(now > then for now, then in zip(counts, before, strict=True)),
        )

    sent = 1 + sum(one.count for one in senders)
    for api in (first, second):
        eventually(partial(usage_of, api, "killed"), lambda found: found == sent)


def test_the_engine_is_killed_and_usage_is_taken_meanwhile(processes: Separate) -> None:
    first, second = processes.apis
    assert otlp(processes.receiver, "engine", 0) == 200
    eventually(lambda: usage_of(second, "engine"), lambda found: found == 1)

    processes.engine.kill()
    taken = [otlp(processes.receiver, "engine", number) for number in range(1, 20)]
    with pytest.raises(httpx.HTTPStatusError) as refused:
        usage_of(second, "engine")
    processes.engine.start()

    assert taken == [200] * 19
    assert refused.value.response.status_code == 503
    until_taken(lambda: ask(first, "POST", "/v1/meter/events", json=event("engine", 1)).status_code)
    for api in (first, second):
        eventually(partial(of_engine, api), lambda found: found == 21, seconds=30)


def of_engine(api: Api) -> int | None:
    """What it says now, if it says anything."""
    try:
        return usage_of(api, "engine")
    except (httpx.HTTPError, urllib.error.URLError):
        return None


def post_numbered(api: Api, first: int, number: int) -> int:
    return post_event(api, event("killed", first + number))


@dataclass
class Sender:
    """Sends one after another, each until it is acknowledged.

    Attributes:
        send: Sends that of a number; returns the status of the answer.
        count: How many were acknowledged.
    """

    send: Callable[[int], int]
    count: int = 0

    def run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            until_taken(partial(self.send, self.count))
            self.count += 1


@contextmanager
def sending(senders: Sequence[Sender]) -> Iterator[None]:
    """Meanwhile they send; at the end what they began is acknowledged."""
    stopping = threading.Event()
    with ThreadPoolExecutor(len(senders)) as pool:
        running = [pool.submit(one.run, stopping) for one in senders]
        try:
            yield
        finally:
            stopping.set()
        for one in running:
            one.result()
