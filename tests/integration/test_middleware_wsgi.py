"""The WSGI middleware and the Flask extension."""

import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import flask
import pytest
from asgiref.wsgi import WsgiToAsgi
from fastapi import FastAPI
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.serving import make_server

import otel_metering
from otel_metering import current_tenant, record, set_tenant
from otel_metering._context import NOBODY, current
from otel_metering._leases import Grant, Leases
from otel_metering.errors import QuotaExceededError
from otel_metering.middleware import _metering
from otel_metering.middleware.asgi import MeteringMiddleware as AsgiMiddleware
from otel_metering.middleware.flask import Metering
from otel_metering.middleware.wsgi import MeteringMiddleware
from tests.integration.web import (
    ALL,
    Counted,
    call_wsgi,
    chunked,
    counting,
    environ_of,
    exchanged,
    request,
    served,
    served_by_wsgiref,
)
from tests.waiting import eventually

ACME = "x-tenant-id: acme"


@pytest.fixture
def counted() -> Iterator[Counted]:
    with counting() as counted:
        yield counted


def read() -> flask.Response:
    return flask.Response(b"read %d" % len(flask.request.get_data()))


def stream(size: int) -> flask.Response:
    def parts() -> Iterator[bytes]:
        for number in range(size):
            record("parts")  # for the tenant, in the server's loop
            yield b"%d," % number

    return flask.Response(parts())


def endless() -> flask.Response:
    def parts() -> Iterator[bytes]:
        while True:
            record("parts")
            yield b"x" * 1000

    return flask.Response(parts())


def broken() -> str:
    raise RuntimeError("broken")


def authenticated() -> str:
    set_tenant("authenticated")
    return "ok"


def shop(**options: Any) -> flask.Flask:
    app = flask.Flask("shop")
    goods = flask.Blueprint("goods", "shop", url_prefix="/goods/<kind>")
    goods.add_url_rule("/<int:number>", "one", lambda kind, number: "ok")
    app.register_blueprint(goods, url_prefix="/v1/goods/<kind>")
    app.add_url_rule("/", "root", lambda: "ok")
    app.add_url_rule("/read", view_func=read, methods=["POST"])
    app.add_url_rule("/ignore", "ignore", lambda: "ignored", methods=["POST"])
    app.add_url_rule("/stream/<int:size>", view_func=stream)
    app.add_url_rule("/endless", view_func=endless)
    app.add_url_rule("/broken", view_func=broken)
    app.add_url_rule("/authenticated", view_func=authenticated)
    app.add_url_rule("/nothing", "nothing", lambda: ("", 204))
    app.add_url_rule("/file", "file", lambda: flask.send_file(__file__))
    if options:
        Metering(app, **options)
    return app


@contextmanager
def served_by_werkzeug(app: Callable[..., Any]) -> Iterator[int]:
    """By a server that speaks HTTP/1.1: bodies in chunks, connections that stay."""
    with make_server("127.0.0.1", 0, app, threaded=True) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.005,), daemon=True)
        thread.start()
        yield server.port
        server.shutdown()
        thread.join(10)


@pytest.mark.parametrize(
    ("path", "dimensions"),
    [
        ("/", "GET / 2xx"),
        ("/v1/goods/fruit/7", "GET /v1/goods/<kind>/<int:number> 2xx"),
        ("/stream/3", "GET /stream/<int:size> 2xx"),
        ("/broken", "GET /broken 5xx"),
        ("/read", "GET - 4xx"),
        ("/none", "GET - 4xx"),
    ],
)
@pytest.mark.parametrize("form", ["extension", "middleware"])
def test_a_request_is_counted_by_the_rule_of_flask(
    form: str, path: str, dimensions: str, counted: Counted
) -> None:
    app = shop(requests="requests") if form == "extension" else shop()
    if form == "middleware":
        app.wsgi_app = MeteringMiddleware(app.wsgi_app, requests="requests")  # type: ignore[method-assign]

    app.test_client().get(path, headers={"x-tenant-id": "acme"}).close()

    usage = {key: units for key, units in counted.usage().items() if key[0] == "requests"}
    assert usage == {("requests", "acme", dimensions): 1}


def test_an_application_is_metered_once_however_often_it_is_asked_for(counted: Counted) -> None:
    app = shop(requests="requests")
    metering = Metering(requests="requests")
    metering.init_app(app)
    metering.init_app(app)

    app.test_client().get("/").close()

    assert counted.totals() == {("requests", None): 1}


def used(
    key: str, bytes_in: int = 0, bytes_out: int = 0
) -> dict[tuple[str, str | None, str], float]:
    units = {"requests": 1, "bytes.in": bytes_in, "bytes.out": bytes_out}
    return {(meter, "acme", key): count for meter, count in units.items() if count}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with served_by_werkzeug(shop(**ALL)) as port:
        yield port


@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_bodies_of_a_known_length(size: int, port: int, counted: Counted) -> None:
    sent = request("POST", "/read", ACME, f"content-length: {size}", body=b"x" * size)

    _, body = exchanged(port, sent)

    assert body == b"read %d" % size
    counted.becomes(used("POST /read 2xx", size, len(body)))


def test_bodies_in_chunks(port: int, counted: Counted) -> None:
    body = chunked(b"abc", b"defgh")

    _, answer = exchanged(
        port, request("POST", "/read", ACME, "transfer-encoding: chunked", body=body)
    )

    assert answer == b"read 8"
    counted.becomes(used("POST /read 2xx", 8, 6))


def test_a_body_that_the_application_does_not_read(port: int, counted: Counted) -> None:
    exchanged(port, request("POST", "/ignore", ACME, "content-length: 500", body=b"x" * 500))

    counted.becomes(used("POST /ignore 2xx", 500, len(b"ignored")))


def test_streamed_responses(port: int, counted: Counted) -> None:
    _, body = exchanged(port, request("GET", "/stream/5000", ACME))

    counted.becomes(
        {
            **used("GET /stream/<int:size> 2xx", 0, len(body)),
            ("parts", "acme", "- - -"): 5000,
        }
    )


def test_files(port: int, counted: Counted) -> None:
    _, body = exchanged(port, request("GET", "/file", ACME))

    counted.becomes(used("GET /file 2xx", 0, len(body)))


def test_answers_without_a_body(port: int, counted: Counted) -> None:
    for method, path in (("HEAD", "/"), ("GET", "/nothing")):
        assert exchanged(port, request(method, path, ACME))[1] == b""

    counted.becomes({**used("HEAD / 2xx"), **used("GET /nothing 2xx")})


def test_an_unhandled_error(port: int, counted: Counted) -> None:
    _, body = exchanged(port, request("GET", "/broken", ACME))

    counted.becomes(used("GET /broken 5xx", 0, len(body)))


def test_a_client_that_leaves_in_mid_stream(port: int, counted: Counted) -> None:
    with closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as client:
        client.sendall(request("GET", "/endless", ACME))
        seen = len(client.recv(50_000))

    usage = eventually(
        counted.totals, lambda totals: ("requests", "acme") in totals, seconds=10, every=0.005
    )

    assert seen * 0.9 - 1000 <= usage["bytes.out", "acme"] <= usage["parts", "acme"] * 1000


def test_a_client_that_leaves_while_it_sends(port: int, counted: Counted) -> None:
    with closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as client:
        client.sendall(request("POST", "/read", ACME, "content-length: 1000", body=b"x" * 100))
        client.shutdown(socket.SHUT_WR)
        client.recv(1000)

    totals = eventually(
        counted.totals, lambda totals: ("requests", "acme") in totals, seconds=10, every=0.005
    )
    assert (totals["requests", "acme"], totals["bytes.in", "acme"]) == (1, 100)


def test_a_tenant_that_is_set_later_pays(port: int, counted: Counted) -> None:
    exchanged(port, request("GET", "/authenticated", ACME))

    counted.total_becomes({("requests", "authenticated"): 1, ("bytes.out", "authenticated"): 2})


def writes(environ: Any, start_response: Any) -> Iterable[bytes]:
    write = start_response("200 OK", [])
    write(b"abc")
    return [b"de"]


def answers_with_one_chunk(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b"12345"]


def starts_late(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("201 Created", [])
    yield b"1"
    yield b"2345"


@pytest.mark.parametrize("app", [writes, answers_with_one_chunk, starts_late])
def test_the_reference_server_serves_every_way_to_answer(app: Any, counted: Counted) -> None:
    with served_by_wsgiref(MeteringMiddleware(app, **ALL)) as port:
        head, body = exchanged(port, request("GET", "/", ACME))

        assert len(body) == 5
        # Of a single chunk that server tells the length.
        assert (b"Content-Length: 5" in head) == (app is answers_with_one_chunk)
        counted.becomes(used("GET - 2xx", 0, 5))


def test_what_is_streamed_runs_for_the_request_and_nothing_else_does(counted: Counted) -> None:
    seen: list[str | None] = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            for _ in range(3):
                seen.append(current_tenant())
                yield b"x"
        finally:
            seen.append(current_tenant())

    body = MeteringMiddleware(app, **ALL)(environ_of(HTTP_X_TENANT_ID="acme"), lambda *_: print)
    chunks = iter(body)
    next(chunks)
    assert current.get() is NOBODY
    set_tenant("of the server")
    next(chunks)
    body.close()  # type: ignore[attr-defined] # PEP 3333

    assert seen == ["acme"] * 3
    assert current_tenant() == "of the server"
    current.set(NOBODY)
    assert counted.totals() == {("requests", "acme"): 1, ("bytes.out", "acme"): 2}


@pytest.mark.parametrize("is_late", [False, True])
def test_an_application_that_raises_is_counted_as_the_500_of_the_server(
    is_late: bool, counted: Counted
) -> None:
    def late(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"abc"
        raise RuntimeError("late")

    def at_once(environ: Any, start_response: Any) -> list[bytes]:
        raise RuntimeError("at once")

    with pytest.raises(RuntimeError):
        call_wsgi(MeteringMiddleware(late if is_late else at_once, **ALL), environ_of())

    status_class = "2xx" if is_late else "5xx"
    assert counted.usage()["requests", None, f"GET - {status_class}"] == 1


def test_requests_of_a_thread_that_serves_many_are_their_own(counted: Counted) -> None:
    app = MeteringMiddleware(answers_with_one_chunk, **ALL)
    # A server that does not close what it got.
    kept = app(environ_of(HTTP_X_TENANT_ID="lost"), lambda *_: print)

    for tenant in ("a", "b", "a"):
        call_wsgi(app, environ_of(HTTP_X_TENANT_ID=tenant))
    call_wsgi(app, environ_of())

    assert {key: units for key, units in counted.totals().items() if key[0] == "requests"} == {
        ("requests", "a"): 2,
        ("requests", "b"): 1,
        ("requests", None): 1,
    }
    del kept  # as asgiref's server for ASGI does
    assert counted.totals()["requests", "lost"] == 1


class NoLeases(Leases):
    def take(self, meter: str, tenant: str | None, nanos: int) -> Grant:
        raise QuotaExceededError(
            "used up",
            reason="limit_exceeded",
            remaining=None,
            resets_at=datetime.now(UTC) - timedelta(seconds=5),
        )


def test_a_request_beyond_its_quota_is_answered_429_and_not_counted(
    monkeypatch: pytest.MonkeyPatch, counted: Counted
) -> None:
    monkeypatch.setattr(_metering, "leases", NoLeases())
    client = shop(**ALL, quota="enforce").test_client()

    answer = client.get("/stream/3", headers={"x-tenant-id": "acme"})

    assert (answer.status_code, answer.content_type) == (429, "application/problem+json")
    assert answer.headers["retry-after"] == "1"
    assert json.loads(answer.data)["detail"] == "used up"
    assert counted.usage() == {}


def test_inside_asgi_a_request_is_counted_once(counted: Counted) -> None:
    app = FastAPI()
    app.mount("/old", WsgiToAsgi(shop(**ALL).wsgi_app))  # type: ignore[no-untyped-call]
    with served(AsgiMiddleware(app, requests="requests", response_bytes="bytes.out")) as port:
        for _ in range(2):
            exchanged(port, request("POST", "/old/read", ACME, "content-length: 3", body=b"abc"))

        counted.becomes(
            {
                ("requests", "acme", "POST /read 2xx"): 2,
                ("bytes.out", "acme", "POST /read 2xx"): 2 * len(b"read 3"),
                ("bytes.in", "acme", "POST /read 2xx"): 2 * 3,
            }
        )


def test_several_middlewares_on_one_request_count_it_once(counted: Counted) -> None:
    inner = shop(**ALL, tenant_header="x-inner")
    app = MeteringMiddleware(
        DispatcherMiddleware(answers_with_one_chunk, {"/mounted": inner}), requests="requests"
    )

    call_wsgi(app, environ_of(path="/mounted/v1/goods/x/1", HTTP_X_INNER="inner"))
    call_wsgi(app, environ_of(path="/mounted/none", HTTP_X_TENANT_ID="outer"))

    usage = counted.usage()
    # Where the application is mounted may be any text, so it is no part of the route.
    assert usage["requests", "inner", "GET /v1/goods/<kind>/<int:number> 2xx"] == 1
    assert usage["requests", "outer", "GET - 4xx"] == 1


def test_sources_of_tenants_see_a_request_of_flask(counted: Counted) -> None:
    app = shop(
        requests="requests",
        tenant=lambda request: request.native.args.get("tenant"),
        attributes=lambda request, _: {"agent": request.native.headers["user-agent"]},
    )

    app.test_client().get("/?tenant=acme", headers={"user-agent": "x"}).close()

    assert counted.usage() == {("requests", "acme", "GET / 2xx agent=x"): 1}


def test_the_span_of_the_instrumentation_gets_the_tenant(counted: Counted) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = shop(requests="requests")
    FlaskInstrumentor().instrument_app(app, tracer_provider=provider)  # type: ignore[no-untyped-call]

    app.test_client().get("/authenticated").close()

    assert counted.totals() == {("requests", "authenticated"): 1}


def test_a_fault_of_the_core_reaches_no_application(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # as in production
    before = otel_metering.stats().internal_errors

    def broken(_: object) -> str:
        raise OSError("no database")

    with counting() as counted:
        assert (
            call_wsgi(MeteringMiddleware(starts_late, **ALL, tenant=broken), environ_of())
            == "201 Created"
        )
        assert counted.totals() == {("requests", None): 1, ("bytes.out", None): 5}
    assert otel_metering.stats().internal_errors == before + 1
