"""The Django middleware, under WSGI and ASGI."""

import asyncio
import json
import socket
import types
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import django
import pytest
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import include, path, re_path

from otel_metering import current_tenant, record, set_tenant
from otel_metering._context import current
from otel_metering._leases import Grant, Leases
from otel_metering.errors import ConfigurationError, QuotaExceededError
from otel_metering.middleware import _metering
from otel_metering.middleware.asgi import MeteringMiddleware as AsgiMiddleware
from otel_metering.middleware.wsgi import MeteringMiddleware as WsgiMiddleware
from tests.integration.web import (
    ALL,
    Counted,
    chunked,
    counting,
    exchanged,
    request,
    served,
    served_by_wsgiref,
)
from tests.waiting import eventually

ACME = "x-tenant-id: acme"

if not settings.configured:
    settings.configure(ALLOWED_HOSTS=["*"], SECRET_KEY="not secret", LOGGING_CONFIG=None)
    django.setup()


def ok(request: HttpRequest, **_: Any) -> HttpResponse:
    return HttpResponse("ok")


async def ok_async(request: HttpRequest) -> HttpResponse:
    await asyncio.sleep(0)
    return HttpResponse(f"{current_tenant()}")


def read(request: HttpRequest) -> HttpResponse:
    return HttpResponse(b"read %d" % len(request.body))


def stream(request: HttpRequest, size: int) -> StreamingHttpResponse:
    def parts() -> Iterator[bytes]:
        for number in range(size):
            record("parts")
            yield b"%d," % number

    return StreamingHttpResponse(parts())


async def stream_async(request: HttpRequest, size: int) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[str]:
        for number in range(size):
            record("parts")
            yield f"{number},"
            await asyncio.sleep(0)

    return StreamingHttpResponse(parts())


async def endless(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[bytes]:
        while True:
            record("parts")
            yield b"x" * 1000
            await asyncio.sleep(0)

    return StreamingHttpResponse(parts())


def broken(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("broken")


def authenticated(request: HttpRequest) -> HttpResponse:
    set_tenant("authenticated")
    return HttpResponse("ok")


def claims(request: HttpRequest) -> HttpResponse:
    return HttpResponse(",".join(sorted(current.get().claimed)))


def file(request: HttpRequest) -> FileResponse:
    return FileResponse(open(__file__, "rb"))


urls: Any = types.ModuleType("urls_of_shop")
urls.urlpatterns = [
    path("", ok),
    path("orders/<int:number>/", ok),
    re_path(r"^old/(?P<number>[0-9]+)$", ok),
    path("goods/<kind>/", include([path("<int:number>", ok)])),
    path("async", ok_async),
    path("read", read),
    path("ignore", ok),
    path("stream/<int:size>", stream),
    path("stream_async/<int:size>", stream_async),
    path("endless", endless),
    path("broken", broken),
    path("authenticated", authenticated),
    path("claims", claims),
    path("nothing", lambda request: HttpResponse(status=204)),
    path("file", file),
]


def shop(handler: Callable[[], Any], **options: Any) -> AbstractContextManager[Any]:
    @contextmanager
    def made() -> Iterator[Any]:
        with override_settings(
            ROOT_URLCONF=urls,
            MIDDLEWARE=["otel_metering.middleware.django.MeteringMiddleware"],
            OTEL_METERING=options,
        ):
            yield handler()

    return made()


@contextmanager
def served_django(kind: str, **options: Any) -> Iterator[int]:
    if kind == "wsgi":
        with shop(WSGIHandler, **options) as app, served_by_wsgiref(app) as port:
            yield port
    else:
        with shop(ASGIHandler, **options) as app, served(app, lifespan="off") as port:
            yield port


@pytest.fixture(scope="module", params=["wsgi", "asgi"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    with served_django(request.param, **ALL) as port:
        yield port


@pytest.fixture
def counted() -> Iterator[Counted]:
    with counting() as counted:
        yield counted


def used(
    key: str, bytes_in: int = 0, bytes_out: int = 0
) -> dict[tuple[str, str | None, str], float]:
    units = {"requests": 1, "bytes.in": bytes_in, "bytes.out": bytes_out}
    return {(meter, "acme", key): count for meter, count in units.items() if count}


@pytest.mark.parametrize(
    ("path_", "dimensions"),
    [
        ("/", "GET / 2xx"),
        ("/orders/7/", "GET orders/<int:number>/ 2xx"),
        ("/old/7", "GET ^old/(?P<number>[0-9]+)$ 2xx"),
        ("/goods/fruit/7", "GET goods/<kind>/<int:number> 2xx"),
        ("/async", "GET async 2xx"),
        ("/broken", "GET broken 5xx"),
        ("/none", "GET - 4xx"),
    ],
)
def test_a_request_is_counted_by_its_route(
    path_: str, dimensions: str, port: int, counted: Counted
) -> None:
    _, body = exchanged(port, request("GET", path_, ACME))

    assert path_ != "/async" or body == b"acme"
    counted.becomes(used(dimensions, 0, len(body)))


@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_bodies_of_a_known_length(size: int, port: int, counted: Counted) -> None:
    sent = request("POST", "/read", ACME, f"content-length: {size}", body=b"x" * min(size, 10**6))

    _, body = exchanged(port, sent)

    assert body == b"read %d" % size
    counted.becomes(used("POST read 2xx", size, len(body)))


def test_a_body_that_the_application_does_not_read(port: int, counted: Counted) -> None:
    exchanged(port, request("POST", "/ignore", ACME, "content-length: 500", body=b"x" * 500))

    counted.becomes(used("POST ignore 2xx", 500, 2))


@pytest.mark.parametrize("view", ["stream", "stream_async"])
@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
def test_streamed_responses(view: str, port: int, counted: Counted) -> None:
    _, body = exchanged(port, request("GET", f"/{view}/500", ACME))

    counted.becomes(
        {**used(f"GET {view}/<int:size> 2xx", 0, len(body)), ("parts", "acme", "- - -"): 500}
    )


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
def test_files(port: int, counted: Counted) -> None:
    _, body = exchanged(port, request("GET", "/file", ACME))

    assert body == Path(__file__).read_bytes()
    counted.becomes(used("GET file 2xx", 0, len(body)))


def test_answers_without_a_body(port: int, counted: Counted) -> None:
    assert exchanged(port, request("GET", "/nothing", ACME))[1] == b""
    exchanged(port, request("HEAD", "/", ACME))

    counted.becomes({**used("GET nothing 2xx"), **used("HEAD / 2xx")})


def test_a_tenant_that_is_set_later_pays(port: int, counted: Counted) -> None:
    exchanged(port, request("GET", "/authenticated", ACME))

    counted.total_becomes({("requests", "authenticated"): 1, ("bytes.out", "authenticated"): 2})


def test_the_meters_of_a_request_are_claimed_while_it_runs(port: int) -> None:
    assert exchanged(port, request("GET", "/claims"))[1] == b"bytes.in,bytes.out,requests"


def test_bodies_in_chunks(counted: Counted) -> None:
    body = chunked(b"abc", b"defgh")
    with served_django("asgi", **ALL) as port:
        exchanged(port, request("POST", "/read", ACME, "transfer-encoding: chunked", body=body))

        counted.becomes(used("POST read 2xx", 8, len(b"read 8")))


def test_a_client_that_leaves_in_mid_stream(counted: Counted) -> None:
    with served_django("asgi", **ALL) as port:
        with closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as client:
            client.sendall(request("GET", "/endless", ACME))
            seen = len(client.recv(50_000))
        usage = eventually(
            counted.totals, lambda totals: ("requests", "acme") in totals, seconds=10, every=0.005
        )

    assert seen * 0.9 - 1000 <= usage["bytes.out", "acme"] <= usage["parts", "acme"] * 1000


class NoLeases(Leases):
    def take(self, meter: str, tenant: str | None, nanos: int) -> Grant:
        raise QuotaExceededError(
            "used up",
            reason="limit_exceeded",
            remaining=None,
            resets_at=datetime.now(UTC) + timedelta(minutes=1),
        )

    async def take_async(self, meter: str, tenant: str | None, nanos: int) -> Grant:
        return self.take(meter, tenant, nanos)


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_a_request_beyond_its_quota_is_answered_429_and_not_counted(
    kind: str, monkeypatch: pytest.MonkeyPatch, counted: Counted
) -> None:
    monkeypatch.setattr(_metering, "leases", NoLeases())
    with served_django(kind, **ALL, quota="enforce") as port:
        head, body = exchanged(port, request("GET", "/authenticated", ACME))

    assert b" 429 Too Many Requests" in head
    assert b"application/problem+json" in head
    assert b"retry-after: 60" in head.lower() or b"retry-after: 59" in head.lower()
    assert json.loads(body)["detail"] == "used up"
    assert counted.usage() == {}


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_several_middlewares_on_one_request_count_it_once(kind: str, counted: Counted) -> None:
    outer: Any = {"requests": "requests", "response_bytes": "bytes.out"}
    if kind == "wsgi":
        with (
            shop(WSGIHandler, **ALL) as app,
            served_by_wsgiref(WsgiMiddleware(app, **outer)) as port,
        ):
            exchanged(port, request("POST", "/read", ACME, "content-length: 3", body=b"abc"))
            counted.becomes(used("POST read 2xx", 3, 6))
    else:
        with (
            shop(ASGIHandler, **ALL) as app,
            served(AsgiMiddleware(app, **outer), lifespan="off") as port,
        ):
            exchanged(port, request("POST", "/read", ACME, "content-length: 3", body=b"abc"))
            counted.becomes(used("POST read 2xx", 3, 6))


def test_a_source_that_may_wait_does_not_hold_up_the_event_loop(counted: Counted) -> None:
    def slow(request: Any) -> str:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        return "acme"

    slow.is_blocking = True  # type: ignore[attr-defined]
    with served_django("asgi", requests="requests", tenant=slow) as port:
        exchanged(port, request("GET", "/async"))
        counted.becomes(used("GET async 2xx"))


def test_options_that_cannot_be_used_stop_the_start() -> None:
    with (
        pytest.raises(ConfigurationError, match="together with requests"),
        shop(WSGIHandler, quota="enforce"),
    ):
        pass
