"""The ASGI middleware, called as a server calls it."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import jwt
import pytest
from opentelemetry import baggage, context
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request as StarletteRequest
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import otel_metering
from otel_metering import current_tenant, record, set_tenant
from otel_metering._context import current
from otel_metering.errors import ConfigurationError
from otel_metering.middleware.asgi import App, Message, MeteringMiddleware, Receive, Scope, Send
from otel_metering.middleware.tenants import header, jwt_claim
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


def test_bodies_are_counted_in_both_directions(counted: Counted) -> None:
    app = MeteringMiddleware(reads_and_answers, **ALL)

    asyncio.run(call(app, scope_of("POST", "/", x_tenant_id="acme"), b"12", b"", b"345678"))

    assert counted.usage() == {
        ("requests", "acme", "POST - 2xx"): 1,
        ("bytes.in", "acme", "POST - 2xx"): 8,
        ("bytes.out", "acme", "POST - 2xx"): 5,
    }


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_a_body_that_http_forbids_is_not_counted(
    method: str, status: int, counted: Counted
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"never seen"})

    asyncio.run(call(MeteringMiddleware(app, **ALL), scope_of(method, "/")))

    assert counted.usage() == {("requests", None, f"{method} - {status // 100}xx"): 1}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 3),
        ({"content_length": "12"}, 12),
        ({"content_length": "x"}, 3),
        ({"content_length": "12", "expect": "100-continue"}, 3),
    ],
)
def test_of_a_body_that_is_not_read_the_announced_length_counts(
    headers: dict[str, str], expected: int, counted: Counted
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 413, "headers": []})
        await send({"type": "http.response.body"})

    asyncio.run(
        call(
            MeteringMiddleware(app, request_bytes="bytes.in"),
            scope_of("POST", "/", **headers),
            b"123",
            b"456",
        )
    )

    assert counted.totals() == {("bytes.in", None): expected}


def raises_at_once(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
    raise RuntimeError("at once")


async def raises_later(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 201, "headers": []})
    await send({"type": "http.response.body", "body": b"abc", "more_body": True})
    raise RuntimeError("later")


@pytest.mark.parametrize(
    ("app", "usage"),
    [
        (raises_at_once, {("requests", "acme", "GET - 5xx"): 1}),
        (
            raises_later,
            {("requests", "acme", "GET - 2xx"): 1, ("bytes.out", "acme", "GET - 2xx"): 3},
        ),
        (never_answers, {("requests", "acme", "GET - 5xx"): 1}),
    ],
)
def test_a_failed_request_is_counted_as_what_the_client_gets(
    app: App, usage: object, counted: Counted
) -> None:
    middleware = MeteringMiddleware(app, **ALL)
    with suppress(RuntimeError):
        get(middleware, "/", x_tenant_id="acme")

    assert counted.usage() == usage


def test_the_error_page_of_the_application_is_counted(counted: Counted) -> None:
    async def broken(_request: StarletteRequest) -> Response:
        raise RuntimeError("broken")

    app = MeteringMiddleware(Starlette(routes=[Route("/x", broken)]), **ALL)

    with pytest.raises(RuntimeError, match="broken"):
        get(app, "/x")

    assert counted.usage() == {
        ("requests", None, "GET /x 5xx"): 1,
        ("bytes.out", None, "GET /x 5xx"): len("Internal Server Error"),
    }


def test_a_client_that_left_before_the_answer_is_counted_without_a_status(
    counted: Counted,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    messages = [{"type": "http.request", "body": b"ab", "more_body": True}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    scope = scope_of("POST", "/", content_length="100")
    asyncio.run(MeteringMiddleware(app, **ALL)(scope, receive, send))

    assert counted.usage() == {("requests", None, "POST - -"): 1, ("bytes.in", None, "POST - -"): 2}


def test_a_request_that_is_cancelled_is_counted(counted: Counted) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        get(MeteringMiddleware(app, **ALL), "/")

    assert counted.usage() == {("requests", None, "GET - -"): 1}


def test_a_request_is_counted_before_its_background_task_has_run(counted: Counted) -> None:
    seen: list[object] = []

    async def later() -> None:
        seen.append(counted.totals())
        seen.append(current_tenant())
        record("jobs")

    async def respond(_request: StarletteRequest) -> Response:
        return PlainTextResponse("ok", background=BackgroundTask(later))

    app = MeteringMiddleware(Starlette(routes=[Route("/", respond)]), requests="requests")
    get(app, "/", x_tenant_id="acme")

    assert seen == [{("requests", "acme"): 1}, "acme"]
    assert counted.totals() == {("requests", "acme"): 1, ("jobs", "acme"): 1}


@pytest.mark.parametrize("sets", [set_tenant, None], ids=["in time", "never"])
def test_a_tenant_that_is_set_later_pays_for_the_whole_request(
    sets: Callable[[str], None] | None, counted: Counted
) -> None:
    def handler(_request: StarletteRequest) -> Response:  # in a thread
        if sets is not None:
            sets("authenticated")
        with otel_metering.tenant("for a moment"):
            return PlainTextResponse("ok")

    app = MeteringMiddleware(Starlette(routes=[Route("/", handler)]), **ALL)
    get(app, "/", x_tenant_id="claimed")

    payer = "claimed" if sets is None else "authenticated"
    assert counted.totals() == {("requests", payer): 1, ("bytes.out", payer): 2}


def test_a_block_of_another_tenant_does_not_pay_for_the_request(counted: Counted) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with otel_metering.tenant("other"):
            await reads_and_answers(scope, receive, send)

    asyncio.run(call(MeteringMiddleware(app, requests="requests"), scope_of("GET", "/")))

    assert counted.totals() == {("requests", None): 1}


def test_spoofed_baggage_is_nobody(counted: Counted) -> None:
    spoofed = baggage.set_baggage("tenant.id", "victim", baggage.set_baggage("tenant", "victim"))
    token = context.attach(spoofed)
    try:
        get(
            MeteringMiddleware(reads_and_answers, requests="requests"),
            "/",
            baggage="tenant.id=victim,tenant=victim",
        )
    finally:
        context.detach(token)

    assert counted.totals() == {("requests", None): 1}


def test_excluded_paths_are_served_for_the_tenant_and_not_counted(counted: Counted) -> None:
    seen: list[tuple[str | None, int]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((current_tenant(), len(current.get().claimed)))
        await reads_and_answers(scope, receive, send)

    middleware = MeteringMiddleware(app, **ALL, exclude=["/health", "/internal/.*"])
    for path in ("/health", "/internal/a/b", "/healthy", "/api/health"):
        get(middleware, path, x_tenant_id="acme")

    assert counted.totals()["requests", "acme"] == 2
    assert seen == [("acme", 0), ("acme", 0), ("acme", 3), ("acme", 3)]


def test_attributes_of_ones_own_are_added(counted: Counted) -> None:
    app = MeteringMiddleware(
        reads_and_answers,
        requests="requests",
        attributes=lambda request, status: {"plan": request.header("x-plan"), "status": status},
    )

    get(app, "/", x_plan="pro")

    assert counted.usage() == {("requests", None, "GET - 2xx plan=pro status=200"): 1}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"requests": "not a slug"}, "meter 'not a slug'"),
        ({"requests": "a", "response_bytes": "a"}, "a meter each"),
        ({"quota": "enforce"}, "together with requests"),
        ({"quota": "ask", "requests": "a"}, 'may be "enforce"'),
        ({"tenant": header("a"), "tenant_header": "b"}, "both given"),
        ({"tenant": "x-tenant-id"}, "give a source"),
        ({"tenant": []}, "give a source"),
        ({"exclude": "/health"}, "a list"),
        ({"exclude": ["("]}, "no regular expression"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: Any, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        MeteringMiddleware(never_answers, **options)


def test_sources_may_be_several(counted: Counted) -> None:
    app = MeteringMiddleware(
        reads_and_answers,
        requests="requests",
        tenant=[jwt_claim("org", verify=False), header("x-tenant-id")],
    )
    token = jwt.encode({"org": "by-token"}, "k" * 32, "HS256")
    get(app, "/", authorization=f"Bearer {token}", x_tenant_id="by-header")
    get(app, "/", x_tenant_id="by-header")

    assert counted.totals() == {("requests", "by-token"): 1, ("requests", "by-header"): 1}


def test_a_fault_of_a_source_reaches_no_application(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # as in production
    before = otel_metering.stats().internal_errors

    def broken(*_: object) -> Any:
        raise OSError("no database")

    app = MeteringMiddleware(
        reads_and_answers, requests="requests", tenant=broken, attributes=broken
    )
    with counting() as counted:
        assert get(app, "/", x_tenant_id="acme") == 200
        assert counted.usage() == {("requests", None, "GET - 2xx"): 1}

    assert otel_metering.stats().internal_errors == before + 2


def test_a_source_that_may_wait_does_not_hold_up_the_event_loop(counted: Counted) -> None:
    threads: list[int] = []

    def slow(request: Any) -> str:
        threads.append(threading.get_ident())
        return "acme"

    slow.is_blocking = True  # type: ignore[attr-defined]
    get(MeteringMiddleware(reads_and_answers, requests="requests", tenant=slow), "/")

    assert threads[0] != threading.get_ident()
    assert counted.totals() == {("requests", "acme"): 1}
