"""Requests by route, and counted once, with Starlette, FastAPI and Litestar."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import litestar
import pytest
from fastapi import APIRouter, FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request as StarletteRequest
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Host, Mount, Route
from starlette.staticfiles import StaticFiles

from otel_metering import set_tenant
from otel_metering._context import claimed_by, current
from otel_metering.middleware.asgi import MeteringMiddleware, Receive, Scope, Send
from tests.integration.web import (
    ALL,
    Counted,
    call,
    counting,
    get,
    reads_and_answers,
    scope_of,
)


@pytest.fixture
def counted() -> Iterator[Counted]:
    with counting() as counted:
        yield counted


async def endpoint(_request: StarletteRequest) -> Response:
    return PlainTextResponse("ok")


ROUTES: list[BaseRoute] = [
    Route("/", endpoint),
    Route("/orders/{id:int}", endpoint, methods=["GET", "POST"]),
    Mount(
        "/shops/{shop}",
        routes=[
            Route("/items/{item}", endpoint),
            Mount("/deep/{d}", app=Starlette(routes=[Route("/{x}", endpoint)])),
        ],
    ),
    Mount("/fixed", app=Starlette(routes=[Route("/{y}", endpoint)])),
    Mount("/files", app=StaticFiles(directory="docs")),
    Host("{any}.hosted.com", app=Starlette(routes=[Route("/at/{host}", endpoint)])),
]


def fastapi_app() -> FastAPI:
    inner = APIRouter()
    outer = APIRouter(prefix="/shops/{shop}")
    mounted = FastAPI()

    def answer() -> str:
        return "ok"

    for router in (inner, mounted):
        router.get("/leaf/{leaf}")(answer)
    outer.get("/items/{item}")(answer)
    outer.include_router(inner, prefix="/two")
    mounted.include_router(outer)
    app = FastAPI()
    app.get("/orders/{id}")(answer)
    app.include_router(outer, prefix="/v1")
    app.mount("/sub/{name}", mounted)
    app.mount("/plain", Starlette(routes=ROUTES))
    return app


def litestar_app() -> litestar.Litestar:
    @litestar.get("/items/{item:int}")
    async def item() -> str:
        return "ok"

    @litestar.get("/")
    async def root() -> str:
        return "ok"

    return litestar.Litestar([litestar.Router("/shops/{shop:str}", route_handlers=[item]), root])


FRAMEWORKS: dict[str, Callable[[], Any]] = {
    "starlette": lambda: Starlette(routes=ROUTES),
    "fastapi": fastapi_app,
    "litestar": litestar_app,
}


@pytest.mark.parametrize(
    ("framework", "path", "dimensions"),
    [
        ("starlette", "/", "GET / 2xx"),
        ("starlette", "/orders/7", "GET /orders/{id} 2xx"),
        ("starlette", "/shops/s1/items/i1", "GET /shops/{shop}/items/{item} 2xx"),
        ("starlette", "/shops/s1/deep/d1/x1", "GET /shops/{shop}/deep/{d}/{x} 2xx"),
        ("starlette", "/fixed/y1", "GET /fixed/{y} 2xx"),
        ("starlette", "/files/keys.md", "GET /files/{path} 2xx"),
        ("starlette", "/files/none", "GET /files/{path} 4xx"),
        ("starlette", "/orders/none", "GET - 4xx"),
        ("starlette", "/shops/s1/none", "GET - 4xx"),
        ("starlette", "/none", "GET - 4xx"),
        ("fastapi", "/orders/7", "GET /orders/{id} 2xx"),
        ("fastapi", "/v1/shops/s/items/i", "GET /v1/shops/{shop}/items/{item} 2xx"),
        ("fastapi", "/v1/shops/s/two/leaf/l", "GET /v1/shops/{shop}/two/leaf/{leaf} 2xx"),
        ("fastapi", "/sub/n/leaf/l", "GET /sub/{name}/leaf/{leaf} 2xx"),
        ("fastapi", "/sub/n/shops/s/items/i", "GET /sub/{name}/shops/{shop}/items/{item} 2xx"),
        ("fastapi", "/plain/orders/1", "GET /plain/orders/{id} 2xx"),
        ("fastapi", "/plain/shops/s/items/1", "GET /plain/shops/{shop}/items/{item} 2xx"),
        ("fastapi", "/orders/7/", "GET - 3xx"),
        ("fastapi", "/sub/n/none", "GET - 4xx"),
        ("fastapi", "/none", "GET - 4xx"),
        ("litestar", "/shops/s1/items/7", "GET /shops/{shop}/items/{item} 2xx"),
        ("litestar", "/", "GET / 2xx"),
        ("litestar", "/none", "GET - 4xx"),
    ],
)
def test_a_request_is_counted_by_its_route(
    framework: str, path: str, dimensions: str, counted: Counted
) -> None:
    app = MeteringMiddleware(FRAMEWORKS[framework](), requests="requests")

    for _ in range(2):  # what is remembered says the same
        get(app, path, x_tenant_id="acme")

    assert counted.usage() == {("requests", "acme", dimensions): 2}


@pytest.mark.parametrize("framework", ["starlette", "fastapi"])
def test_added_as_the_framework_adds_middlewares_it_counts_the_same(
    framework: str, counted: Counted
) -> None:
    app = FRAMEWORKS[framework]()
    app.add_middleware(MeteringMiddleware, requests="requests")

    get(app, "/orders/1", x_tenant_id="acme")
    get(app, "/none", x_tenant_id="acme")

    assert counted.usage() == {
        ("requests", "acme", "GET /orders/{id} 2xx"): 1,
        ("requests", "acme", "GET - 4xx"): 1,
    }


def test_sub_applications_by_host_are_found(counted: Counted) -> None:
    app = MeteringMiddleware(Starlette(routes=ROUTES), requests="requests")
    scope = scope_of("GET", "/at/h1")
    scope["headers"] = [(b"host", b"acme.hosted.com")]

    asyncio.run(call(app, scope))

    assert counted.usage() == {("requests", None, "GET /at/{host} 2xx"): 1}


def test_the_prefix_that_a_server_strips_is_no_part_of_the_route(counted: Counted) -> None:
    app = MeteringMiddleware(Starlette(routes=ROUTES), requests="requests")
    for path in ("/api/orders/1", "/api/shops/s/items/i"):
        asyncio.run(call(app, {**scope_of("GET", path), "root_path": "/api"}))

    assert counted.usage() == {
        ("requests", None, "GET /orders/{id} 2xx"): 1,
        ("requests", None, "GET /shops/{shop}/items/{item} 2xx"): 1,
    }


@pytest.mark.parametrize("path", ["/orders/1", "/none"])
def test_methods_that_nobody_knows_are_one(path: str, counted: Counted) -> None:
    app = MeteringMiddleware(Starlette(routes=ROUTES), requests="requests")
    for method in ("BREW", "X1", "get"):
        asyncio.run(call(app, scope_of(method, path)))

    assert [key[2].split()[0] for key in counted.usage()] == ["_OTHER"]
    assert sum(counted.usage().values()) == 3


def test_several_middlewares_on_one_request_count_it_once(counted: Counted) -> None:
    app = FRAMEWORKS["starlette"]()
    app.add_middleware(MeteringMiddleware, **ALL, tenant_header="x-inner")
    app.add_middleware(MeteringMiddleware, requests="requests", tenant_header="x-none")
    outer = MeteringMiddleware(app, requests="requests")

    get(outer, "/orders/1", x_tenant_id="outer", x_inner="inner")

    # The inner ones know better whose it is, and count what the outer ones do not.
    assert counted.usage() == {
        ("requests", "inner", "GET /orders/{id} 2xx"): 1,
        ("bytes.out", "inner", "GET /orders/{id} 2xx"): 2,
    }


def test_a_mounted_application_with_its_own_middleware_counts_once(counted: Counted) -> None:
    mounted = Starlette(
        routes=[Route("/{x}", endpoint)],
        middleware=[Middleware(MeteringMiddleware, requests="requests", tenant=lambda _: None)],
    )
    app = FastAPI()
    app.mount("/sub", mounted)
    app.add_middleware(MeteringMiddleware, requests="requests")

    get(app, "/sub/1", x_tenant_id="acme")

    assert counted.usage() == {("requests", "acme", "GET /sub/{x} 2xx"): 1}


def test_the_meters_of_a_request_are_claimed_while_it_runs_and_not_longer() -> None:
    claimed: list[frozenset[str]] = []

    async def use() -> None:
        tasks: list[asyncio.Task[None]] = []
        is_over = asyncio.Event()

        async def goes_on() -> None:
            await is_over.wait()
            claimed.append(current.get().claimed)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            tasks.append(asyncio.create_task(goes_on()))
            claimed.append(current.get().claimed)
            await asyncio.to_thread(lambda: claimed.append(current.get().claimed))

        await call(MeteringMiddleware(app, requests="requests"), scope_of("GET", "/"))
        is_over.set()
        await tasks[0]

    with counting():
        asyncio.run(use())

    assert claimed == [{"requests"}, {"requests"}, frozenset()]


def test_a_worker_that_a_request_started_serves_requests_of_its_own(counted: Counted) -> None:
    async def use() -> None:
        tasks: list[asyncio.Task[Any]] = []
        is_over = asyncio.Event()
        own = MeteringMiddleware(reads_and_answers, requests="requests")

        async def goes_on() -> None:
            await is_over.wait()
            await call(own, scope_of("GET", "/", x_tenant_id="second"))

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            tasks.append(asyncio.create_task(goes_on()))

        outer = MeteringMiddleware(app, requests="requests")
        await call(outer, scope_of("GET", "/", x_tenant_id="first"))
        is_over.set()
        await tasks[0]

    asyncio.run(use())

    assert counted.totals() == {("requests", "first"): 1, ("requests", "second"): 1}


def test_the_span_of_a_request_gets_its_tenant_and_its_claims() -> None:
    tracer = TracerProvider().get_tracer("test")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        set_tenant("later")

    with counting(), tracer.start_as_current_span("request") as span:
        get_status = MeteringMiddleware(app, requests="requests", response_bytes="bytes.out")
        asyncio.run(call(get_status, scope_of("GET", "/", x_tenant_id="acme")))

    assert claimed_by(span) == {"requests", "bytes.out"}
    assert span.attributes["tenant.id"] == "later"  # type: ignore[attr-defined] # a span of the SDK
    assert claimed_by(trace.INVALID_SPAN) == frozenset()
