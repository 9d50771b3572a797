"""Requests that a quota denies."""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from otel_metering import set_tenant
from otel_metering._leases import Grant, Leases
from otel_metering.errors import QuotaExceededError
from otel_metering.middleware import _metering
from otel_metering.middleware.asgi import Message, MeteringMiddleware, Receive, Scope, Send
from tests.integration.web import (
    ALL,
    Counted,
    call,
    counting,
    get,
    never_answers,
    reads_and_answers,
    scope_of,
)


@pytest.fixture
def counted() -> Iterator[Counted]:
    with counting() as counted:
        yield counted


class SmallLeases(Leases):
    """Has one unit of `tenant` acme, and says until when."""

    def __init__(self, resets_at: datetime | None) -> None:
        self.left = 1
        self.resets_at = resets_at
        self.settled: list[tuple[str | None, int]] = []

    def take(self, meter: str, tenant: str | None, nanos: int) -> Grant:
        assert (meter, nanos) == ("requests", 1_000_000_000)
        if tenant is None:
            return Grant(None, nanos)
        if self.left == 0:
            raise QuotaExceededError(
                "the quota of acme is used up",
                reason="limit_exceeded",
                remaining=Decimal("0.50"),
                resets_at=self.resets_at,
            )
        self.left -= 1
        return Grant("reservation", nanos)

    async def take_async(self, meter: str, tenant: str | None, nanos: int) -> Grant:
        await asyncio.sleep(0)
        return self.take(meter, tenant, nanos)

    def settle(self, grant: Grant, used_nanos: int) -> None:
        self.settled.append((grant.reservation_id, used_nanos))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> SmallLeases:
    leases = SmallLeases(datetime.now(UTC) + timedelta(hours=1))
    monkeypatch.setattr(_metering, "leases", leases)
    return leases


def test_a_request_beyond_its_quota_is_answered_429_and_not_counted(
    small: SmallLeases, counted: Counted
) -> None:
    served: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        served.append(scope["path"])
        await reads_and_answers(scope, receive, send)

    middleware = MeteringMiddleware(app, **ALL, quota="enforce")
    assert get(middleware, "/first", x_tenant_id="acme") == 200
    before = counted.usage()
    start, body = asyncio.run(call(middleware, scope_of("GET", "/second", x_tenant_id="acme")))

    assert counted.usage() == before
    assert before["requests", "acme", "GET - 2xx metering.reservation.id=reservation"] == 1
    assert before["bytes.out", "acme", "GET - 2xx"] == 5
    assert served == ["/first"]
    assert small.settled == [("reservation", 1_000_000_000)]
    headers = dict(start["headers"])
    assert start["status"] == 429
    assert headers[b"content-type"] == b"application/problem+json"
    assert 3590 <= int(headers[b"retry-after"]) <= 3600
    assert int(headers[b"content-length"]) == len(body["body"])
    problem = json.loads(body["body"])
    assert problem | {"resets_at": None} == {
        "type": "urn:otel-metering:problem:quota-exceeded",
        "title": "A quota is used up",
        "status": 429,
        "detail": "the quota of acme is used up",
        "meter": "requests",
        "reason": "limit_exceeded",
        "remaining": "0.50",
        "resets_at": None,
    }


def test_a_quota_that_never_resets_says_no_time(small: SmallLeases) -> None:
    small.resets_at, small.left = None, 0
    middleware = MeteringMiddleware(reads_and_answers, requests="requests", quota="enforce")

    start, body = asyncio.run(call(middleware, scope_of("GET", "/", x_tenant_id="acme")))

    assert b"retry-after" not in dict(start["headers"])
    assert "resets_at" not in json.loads(body["body"])


def test_excluded_paths_and_inner_middlewares_ask_no_quota(
    small: SmallLeases, counted: Counted
) -> None:
    enforced: Any = {"requests": "requests", "quota": "enforce", "exclude": ["/health"]}
    app = MeteringMiddleware(MeteringMiddleware(reads_and_answers, **enforced), **enforced)

    assert get(app, "/health", x_tenant_id="acme") == 200
    assert get(app, "/", x_tenant_id="acme") == 200
    assert get(app, "/", x_tenant_id="acme") == 429

    assert counted.totals() == {("requests", "acme"): 1}


def test_units_of_a_tenant_that_was_not_the_one_are_given_back(
    small: SmallLeases, counted: Counted
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        set_tenant("other")
        await reads_and_answers(scope, receive, send)

    get(MeteringMiddleware(app, requests="requests", quota="enforce"), "/", x_tenant_id="acme")

    assert counted.usage() == {("requests", "other", "GET - 2xx"): 1}
    assert small.settled == [("reservation", 0)]


@pytest.mark.parametrize("extensions", [{}, {"websocket.http.response": {}}])
def test_a_websocket_beyond_its_quota_is_refused(
    extensions: dict[str, object], small: SmallLeases, counted: Counted
) -> None:
    small.left = 0
    middleware = MeteringMiddleware(never_answers, **ALL, quota="enforce")
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = scope_of("GET", "/", kind="websocket", x_tenant_id="acme")
    asyncio.run(middleware({**scope, "extensions": extensions}, receive, send))

    assert counted.usage() == {}
    assert [message["type"] for message in sent] == (
        ["websocket.http.response.start", "websocket.http.response.body"]
        if extensions
        else ["websocket.close"]
    )
